"""Scores of how an output depends on a concept: sign count, magnitude, mean, bidirectional relevance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import beta
from scipy.stats import t as student

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats


def sign_count(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return #{S > 0} / n for derivatives S (n, …): the share of images whose output rises (Kim et al., 2018)."""
    return np.asarray((S > 0).mean(0), dtype=np.float64)


def magnitude(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return Σ max(S, 0) / Σ|S|: the share of all change that is upward, from 0 to 1; NaN where nothing changes.

    This is the formula in captum's documentation; captum itself computes :func:`mean`.
    """
    total = np.abs(S).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(total > 0, np.maximum(S, 0.0).sum(0) / total, np.nan), dtype=np.float64)


def mean(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return the mean derivative: change of the output per unit of length in activation space."""
    return np.asarray(S.mean(0), dtype=np.float64)


def relevance(S: Floats, r2: Floats | float) -> Floats:
    """Return the bidirectional relevance Br = max(R², 0) · mean(S) / sd(S) (Graziani et al., 2018).

    It is 0 for a concept that cannot be decoded (R² ≤ 0), and NaN for a single image or if the derivative is the same
    for all images, as in a linear network.

    Parameters
    ----------
    S : (n, …)
    r2 : (…) held-out R² of the concept
    """
    if len(S) < 2:
        return np.full(S.shape[1:], np.nan)
    spread = S.std(0, ddof=1)
    # The derivative of a linear output varies by rounding only, and a ratio to rounding has no meaning.
    same = spread <= 1e-6 * np.abs(S).max(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(r2, 0.0) * S.mean(0) / spread
    return np.asarray(np.where(same, np.nan, ratio), dtype=np.float64)


SCORES: Mapping[str, Callable[[Floats, Floats | float], Floats]] = {
    "sign_count": sign_count,
    "magnitude": magnitude,
    "mean": mean,
    "relevance": relevance,
}
"""Name → function from derivatives (n, …) and R² (…) to scores (…)."""

INDIFFERENT: Mapping[str, float] = {"sign_count": 0.5, "magnitude": 0.5, "mean": 0.0, "relevance": 0.0}
"""Name → score of an output that does not depend on the concept; tests are two-sided about it."""

SHARES = ("sign_count", "magnitude")
"""Scores between 0 and 1, as are their intervals."""

_SAME = 1e-5
"""Relative spread below which derivatives in float32 count as equal"""


def is_same_for_all(G: Floats) -> bool:
    """Return whether the derivative G (n, d) is the same for all images; every sign count is then 0 or 1."""
    return len(G) > 1 and bool(np.ptp(G, axis=0).max() <= _SAME * np.abs(G).max())


def share_interval(share: float, error: float, *, n_groups: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval, within [0, 1], of a share over clustered rows.

    It is Clopper and Pearson's interval for the number of independent rows that have the same standard error; for a
    share of 0 or 1, for at most the number of groups.

    Parameters
    ----------
    error : standard error of the share, over resamples of the groups
    n_groups : groups among the rows; a single group has no interval
    n : rows

    Source
    ------
    Korn and Graubard, 1998
    """
    if n_groups < 2 or not np.isfinite(share):
        return float("nan"), float("nan")
    size = float(n_groups if share in (0.0, 1.0) else n)
    if np.isfinite(error) and error > 0:
        inner = (n_groups * share + 0.5) / (n_groups + 1)  # half a group away from 0 and 1
        ratio = float(student.ppf(0.975, n - 1) / student.ppf(0.975, n_groups - 1))
        size = min(size, inner * (1 - inner) / error**2 * ratio**2)
    hits = share * size
    low = float(beta.ppf(0.025, hits, size - hits + 1)) if share > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, size - hits)) if share < 1 else 1.0
    return math.floor(low * 1000) / 1000, math.ceil(high * 1000) / 1000  # rounded outwards


def directional_derivatives(G: Floats, unit: Floats) -> Floats:
    """Return S = G·v (n, t) of derivatives G (n, d) and directions v (d, t)."""
    if not len(G):
        raise InputError("images: at least one image is needed, got none.")
    out: Floats = G @ unit
    return out
