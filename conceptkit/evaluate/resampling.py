"""Bootstrap over groups: patients are drawn, never their patches one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats, confusion, recall_mean

Resamples = NDArray[np.int64]
"""(n_resamples, n_groups) how often each group is drawn in each resample."""


def draw_groups(n_groups: int, *, n_resamples: int = 2000, seed: int = 0) -> Resamples:
    """Draw ``n_groups`` groups with replacement, ``n_resamples`` times.

    Returns
    -------
    (n_resamples, n_groups) multiplicities; each row sums to ``n_groups``
    """
    rng = np.random.default_rng(seed)
    even = np.full(n_groups, 1.0 / n_groups)
    return rng.multinomial(n_groups, even, size=n_resamples)


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval of resampled values; resamples without a value (one class only) are left out."""
    kept = values[np.isfinite(values)]
    if kept.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def r2_resampled(y: Floats, predicted: Floats, groups: NDArray[np.intp], draws: Resamples) -> Floats:
    """Return R² of the pooled predictions in every resample, from four sums per group.

    Parameters
    ----------
    y, predicted : (n,) values and their held-out predictions
    groups : (n,) group numbers 0 … n_groups − 1
    draws : (n_resamples, n_groups) from :func:`draw_groups`

    Returns
    -------
    (n_resamples,)
    """
    n_groups = draws.shape[1]
    shifted = y - y.mean()  # R² does not change, and the sums of squares keep their digits
    per_group = np.stack(
        [
            np.bincount(groups, weights=w, minlength=n_groups)
            for w in (np.ones_like(y), shifted, shifted**2, (y - predicted) ** 2)
        ],
        axis=1,
    )  # (n_groups, 4)
    n, first, second, residual = (draws @ per_group).T  # each (n_resamples,)
    total = second - first**2 / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1.0 - residual / total, np.nan)


def balanced_accuracy_resampled(
    y: NDArray[np.intp], predicted: NDArray[np.intp], groups: NDArray[np.intp], draws: Resamples, n_classes: int
) -> Floats:
    """Return the balanced accuracy in every resample (over the classes drawn), from one confusion table per group."""
    tables = np.stack(
        [confusion(y[groups == g], predicted[groups == g], n_classes).ravel() for g in range(draws.shape[1])]
    )
    return recall_mean((draws @ tables).reshape(len(draws), n_classes, n_classes))


def resampled(statistic: Callable[[NDArray[np.intp]], float], groups: NDArray[np.intp], draws: Resamples) -> Floats:
    """Return ``statistic(rows)`` for the rows of every resample, for statistics that no sum per group can give.

    Parameters
    ----------
    statistic : takes row numbers (with repeats) and returns a number
    groups : (n,) group numbers 0 … n_groups − 1
    draws : (n_resamples, n_groups)
    """
    return np.array([statistic(np.repeat(np.arange(groups.size), draw[groups])) for draw in draws])
