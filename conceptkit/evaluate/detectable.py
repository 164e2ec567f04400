"""The smallest difference of two AUCs that a study can detect, from scores of patients that it already has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, nctdtrinc

from conceptkit.evaluate.clustering import effective_size
from conceptkit.evaluate.intervals import student_reach
from conceptkit.evaluate.scores import Floats

POWER = 0.8
"""Power of the smallest detectable difference, two-sided at 0.05"""


@dataclass(frozen=True)
class Spread:
    """How much the difference of two AUCs varies: of a row, and in common to the rows of a group."""

    variance: float
    """Of the difference over one row, so that n independent rows give it divided by n"""
    correlation: float
    """Between rows of a group, 0 to 1"""

    def error(self, sizes: Floats) -> float:
        """Return the standard error of the difference over groups of ``sizes`` rows (g,)."""
        shared, single = self.correlation / effective_size(sizes), (1 - self.correlation) / sizes.sum()
        return float(np.sqrt(self.variance * (shared + single)))


def auc_components(y: NDArray[np.intp], score: Floats, weights: Floats) -> Floats:
    """Return by how much each row (n,) moves the weighted AUC from its value; they sum to 0.

    Positives get w⁺(V₁₀ − θ) and negatives w⁻(V₀₁ − θ), with the placement values V of DeLong et al. (1988) and weights
    that sum to 1 in each class. For more than two classes the mean over one class against the rest.

    Parameters
    ----------
    y : (n,) class numbers, each with a row
    score : (n,) of class 1, or (n, k)
    weights : (n,) of rows
    """
    if score.ndim > 1:
        each = [auc_components((y == k).astype(np.intp), score[:, k], weights) for k in range(score.shape[1])]
        return np.asarray(np.mean(each, axis=0))
    positive, place = y == 1, np.unique(score, return_inverse=True)[1]
    parts = [np.where(own, weights, 0.0) / weights[own].sum() for own in (positive, ~positive)]
    up, down = (np.bincount(place, weights=part) for part in parts)
    below, above = np.cumsum(down) - down / 2, 1.0 - (np.cumsum(up) - up / 2)  # ties count one half
    area = float(up @ below)
    return np.asarray(parts[0] * (below[place] - area) + parts[1] * (above[place] - area))


def difference_spread(
    y: NDArray[np.intp], first: Floats, second: Floats, groups: NDArray[np.intp], weights: Floats
) -> Spread:
    """Return the spread of the difference of two weighted AUCs over the same rows.

    The variance of the sum of components over groups (Obuchowski, 1997) is split into the part that rows of a group
    share and the part of single rows, as a study with other numbers of rows per group divides them differently.

    Parameters
    ----------
    y, first, second : class numbers and two models' scores, see :func:`auc_components`
    groups : (n,) group numbers
    weights : (n,) of rows
    """
    each = auc_components(y, first, weights) - auc_components(y, second, weights)
    numbers = np.unique(groups, return_inverse=True)[1]
    sums, n, g = np.bincount(numbers, weights=each), len(each), int(numbers.max()) + 1
    by_group, by_row = g / (g - 1) * (sums**2).sum(), n / (n - 1) * (each**2).sum()
    of_rows, of_groups = (
        effective_size(weights),
        effective_size(np.bincount(numbers, weights=weights).astype(np.float64)),
    )
    variance = by_row * of_rows
    room = variance * (1 / of_groups - 1 / of_rows)
    shared = (by_group - by_row) / room if room > 1e-12 * variance else 1.0
    return Spread(float(variance), float(np.clip(shared, 0.0, 1.0)))


def power(difference: float, error: float, effective: float) -> float:
    """Return the probability that Student's 95 % interval of a positive true difference lies above 0.

    Parameters
    ----------
    error : standard error of the difference
    effective : effective number of groups, of which the interval has one degree of freedom fewer
    """
    return float(1 - nctdtr(max(effective - 1, 1), difference / error, student_reach(effective)))


def detectable_difference(error: float, effective: float) -> float:
    """Return the difference that has a power of :data:`POWER`; see :func:`power`."""
    return error * float(nctdtrinc(max(effective - 1, 1), 1 - POWER, student_reach(effective)))
