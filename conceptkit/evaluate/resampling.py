"""Bootstrap over groups: whole patients are drawn, not single patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats

Resamples = NDArray[np.int64]
"""(n_resamples, n_groups) how often each group is drawn in each resample."""


def draw_groups(n_groups: int, *, n_resamples: int = 2000, seed: int = 0) -> Resamples:
    """Draw ``n_groups`` groups with replacement, ``n_resamples`` times: (n_resamples, n_groups) multiplicities."""
    rng = np.random.default_rng(seed)
    even = np.full(n_groups, 1.0 / n_groups)
    return rng.multinomial(n_groups, even, size=n_resamples)


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval of resampled values; resamples without a value (one class only) are skipped."""
    kept = values[np.isfinite(values)]
    if kept.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def r2_sums(y: Floats, predicted: Floats, groups: NDArray[np.intp], n_groups: int, *, center: bool = True) -> Floats:
    """Return per group (n_groups, 4) the number of rows, Σy, Σy² and the squared error, from which R² follows.

    ``center`` subtracts the mean of y first: R² does not change, and the sums of squares stay precise.
    """
    shifted = y - y.mean() if center else y
    terms = (np.ones_like(shifted), shifted, shifted**2, (y - predicted) ** 2)
    return np.stack([np.bincount(groups, weights=term, minlength=n_groups) for term in terms], axis=1)


def r2_resampled(y: Floats, predicted: Floats, groups: NDArray[np.intp], draws: Resamples) -> Floats:
    """Return R² (n_resamples,) of the pooled predictions (n,) in every resample of :func:`draw_groups`."""
    n, first, second, residual = (draws @ r2_sums(y, predicted, groups, draws.shape[1])).T
    total = second - first**2 / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1.0 - residual / total, np.nan)
