"""Group means, effective number of groups, units of the jackknife, intra-class correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats

MOST_UNITS = 200
"""Maximum number of jackknife units; more groups are deleted several at a time."""


def group_means(values: Floats, groups: NDArray[np.intp]) -> Floats:
    """Return the means (g, t) of values (n, t) over groups numbered 0 … g − 1."""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / counts[:, None]


def effective_number(groups: NDArray[np.intp]) -> float:
    """Return the number of equal groups with the information of groups (n,) of unequal size (Kish, 1965)."""
    return effective_size(np.bincount(groups).astype(np.float64))


def effective_size(sizes: Floats) -> float:
    """Return (Σm)²/Σm² of group sizes m (g,)."""
    return float(sizes.sum() ** 2 / np.sum(sizes**2))


def intraclass_correlation(columns: Floats, groups: NDArray[np.intp]) -> float:
    """Return ICC(1) of the one-way analysis of variance (Donner, 1986), with sums of squares over all columns.

    Parameters
    ----------
    columns : (n, c) values of a concept, or indicators of its classes
    groups : (n,) group numbers 0 … g − 1

    Returns
    -------
    Between −1 and 1; 1 when nothing varies within groups; NaN for one group, or one row in each
    """
    counts = np.bincount(groups)
    n, g = len(groups), len(counts)
    if g < 2 or n == g:
        return float("nan")
    means = group_means(columns, groups)
    within = float(np.sum((columns - means[groups]) ** 2)) / (n - g)
    between = float(np.sum(counts[:, None] * (means - columns.mean(0)) ** 2)) / (g - 1)
    typical = (n - float(np.sum(counts.astype(float) ** 2)) / n) / (g - 1)
    total = between + (typical - 1) * within
    return (between - within) / total if total > 0 else float("nan")


def jackknife_units(clusters: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the units (n,) that the jackknife deletes: groups, or unions of them if there are many."""
    n_groups = int(clusters.max()) + 1
    return clusters if n_groups <= MOST_UNITS else clusters % MOST_UNITS
