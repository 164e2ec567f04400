"""Intervals for the next group: hierarchical conformal prediction from held-out errors."""

from __future__ import annotations

import bisect
import math

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats

LEVEL = 0.9
"""Coverage of prediction intervals"""

LEAST_GROUPS = 9
"""Smallest number of groups from which a 90 % interval follows: with fewer, its end is infinite"""

_ROUNDING = 1e-9
"""Groups that a sum of shares may miss"""


def next_group_quantile(scores: Floats, groups: NDArray[np.intp], level: float = LEVEL) -> float:
    """Return the score that a row of a new group exceeds with probability at most 1 − ``level``.

    Every group has mass 1/(K + 1), spread evenly over its rows, and 1/(K + 1) lies at infinity. The guarantee holds if
    the groups are exchangeable with the new one; rows within a group may depend on each other in any way.

    Parameters
    ----------
    scores : (n,) held-out errors, larger is worse
    groups : (n,) numbers 0 … K − 1

    Returns
    -------
    infinity for too few groups

    Source
    ------
    Lee et al., 2024
    """
    order = np.argsort(scores, kind="stable")
    reached = _shares(groups)[order].cumsum()
    at = int(np.searchsorted(reached, level * (int(groups.max()) + 2) - _ROUNDING))
    return float(scores[order[at]]) if at < len(order) else math.inf


def left_out_coverage(scores: Floats, groups: NDArray[np.intp], level: float = LEVEL) -> float:
    """Return the mean over groups of the share of its rows within the quantile of the other groups.

    NaN where the quantile of the others is infinite for a group.
    """
    k, shares = int(groups.max()) + 1, _shares(groups)
    order = np.argsort(scores, kind="stable")
    reached = shares[order].cumsum()
    by_group = np.argsort(groups[order], kind="stable")  # places among the ordered rows, group by group
    ends = np.bincount(groups, minlength=k).cumsum()
    covered = []
    for own in np.split(by_group, ends[:-1]):

        def of_others(at: int, own: NDArray[np.intp] = own) -> float:
            return float(reached[at]) - int(np.searchsorted(own, at, side="right")) / len(own)

        at = bisect.bisect_left(range(len(order)), level * k - _ROUNDING, key=of_others)
        if at == len(order):
            return math.nan
        covered.append(float(np.mean(scores[order[own]] <= scores[order[at]])))
    return float(np.mean(covered))


def group_weighted_quantile(values: Floats, groups: NDArray[np.intp], share: float) -> float:
    """Return the quantile of values (n,), every group with the same weight."""
    order = np.argsort(values, kind="stable")
    reached = _shares(groups)[order].cumsum()
    at = int(np.searchsorted(reached, share * reached[-1] - _ROUNDING))
    return float(values[order[min(at, len(order) - 1)]])


def _shares(groups: NDArray[np.intp]) -> Floats:
    shares: Floats = 1.0 / np.bincount(groups)[groups]
    return shares
