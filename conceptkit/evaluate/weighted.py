"""Scores of the main task on rows weighted so that the center does not predict the label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.evaluate.paired import Scored
from conceptkit.evaluate.scores import CALIBRATION_BINS, Floats, calibration_gaps, squared_errors

Codes = NDArray[np.intp]

WEIGHTED = ("auc", "balanced_accuracy", "brier", "ece")
"""Scores of weighted rows; their names in a record end with ``_weighted``"""


def empty_cells(y: Codes, centers: Codes) -> list[tuple[int, int]]:
    """Return the (center, class) that no row has, among the centers and classes that occur; both codes are (n,)."""
    counts = _counts(y, centers)
    expected = counts.sum(1, keepdims=True) * counts.sum(0)
    return [(int(c), int(k)) for c, k in np.argwhere((expected > 0) & (counts == 0))]


def _counts(y: Codes, centers: Codes) -> Floats:
    counts = np.zeros((int(centers.max(initial=-1)) + 1, int(y.max(initial=-1)) + 1))
    np.add.at(counts, (centers, y), 1.0)
    return counts


def _cell_weights(counts: Floats) -> Floats:
    """Return p(c)·p(y)/p(c, y) of the cells of tables (…, centers, classes); NaN for a table with an empty cell."""
    total = counts.sum((-2, -1), keepdims=True)
    expected = counts.sum(-1, keepdims=True) * counts.sum(-2, keepdims=True) / np.maximum(total, 1)
    weights = np.divide(expected, counts, out=np.zeros_like(counts), where=counts > 0)
    empty = ((expected > 0) & (counts == 0)).any((-2, -1), keepdims=True)
    return np.where(empty, np.nan, weights)


def row_weights(y: Codes, centers: Codes) -> Floats:
    """Return p(c)·p(y)/p(c, y) of each row (n,), shares of these rows; NaN where a cell is empty."""
    return np.asarray(_cell_weights(_counts(y, centers))[centers, y])


def scored_weighted(
    y: Codes, probability: Floats, groups: Codes, centers: Codes, *, threshold: float = 0.5
) -> dict[str, Scored]:
    """Return ``auc``, ``balanced_accuracy``, ``brier`` and ``ece`` of weighted rows, and each without each unit.

    A row of center c and class y weighs p(c)·p(y)/p(c, y), so that a score which only recognises the center has an AUC
    of one half. The weights are computed again without each unit: a group, or a union of them if there are many.
    ``sizes`` are the weights of all groups, from which their effective number follows.

    Parameters
    ----------
    y : (n,) class numbers
    probability : (n,) of class 1, or (n, k)
    groups, centers : (n,) numbers, each from 0
    threshold : above which a row counts as class 1; unused for more than two classes

    Returns
    -------
    NaN values where a center has no row of a class that occurs, and NaN without a unit that has the only such rows
    """
    counts, units = _counts(y, centers), jackknife_units(groups)
    own = np.zeros((int(units.max()) + 1, *counts.shape))
    np.add.at(own, (units, centers, y), 1.0)
    tables = np.concatenate([counts[None], counts - own])  # all rows, then without each unit
    weights = _cell_weights(tables)
    sizes: Floats = np.bincount(groups, weights=weights[0][centers, y]).astype(np.float64)
    found = {"auc": _areas(y, probability, units, centers, weights)}
    binary = probability.ndim == 1
    predicted = (probability > threshold).astype(np.intp) if binary else probability.argmax(1)
    bin_of, gaps = calibration_gaps(y, probability)
    columns = np.zeros((len(y), 2 + CALIBRATION_BINS))
    columns[:, 0], columns[:, 1] = predicted == y, squared_errors(y, probability)
    columns[np.arange(len(y)), 2 + bin_of] = gaps
    sums = np.zeros((*own.shape, columns.shape[1]))
    np.add.at(sums, (units, centers, y), columns)
    # (u + 1, classes, columns)
    totals = np.concatenate([sums.sum(0)[None], sums.sum(0) - sums])
    totals = (totals * weights[..., None]).sum(1)
    of_class = tables.sum(1)  # rows, which are also the weights of a class
    recall = np.divide(totals[..., 0], of_class, out=np.zeros_like(of_class), where=of_class > 0)
    n = of_class.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = (of_class[0] > 0) & (of_class == 0)  # a class that only this group has
        recall[lost] = np.nan
        found["balanced_accuracy"] = recall.sum(1) / (of_class > 0).sum(1)
        found["brier"] = totals[..., 1].sum(1) / n
        found["ece"] = np.abs(totals[..., 2:].sum(1)).sum(1) / n
    return {name: Scored(float(values[0]), values[1:], sizes) for name, values in found.items()}


def _areas(y: Codes, score: Floats, units: Codes, centers: Codes, weights: Floats) -> Floats:
    """Return the AUC (u + 1,) of all rows and without each unit, with the weights of cells (u + 1, centers, classes).

    Scores are ranked once. A row that is left out weighs 0.
    """
    columns = [score] if score.ndim == 1 else list(score.T)
    ranked = [np.unique(column, return_inverse=True)[1] for column in columns]

    def area(w: Floats, place: Codes, positive: NDArray[np.bool_]) -> float:
        up = np.bincount(place, weights=np.where(positive, w, 0.0))
        down = np.bincount(place, weights=np.where(positive, 0.0, w))
        pairs = up.sum() * down.sum()
        return float(up @ (np.cumsum(down) - down / 2) / pairs) if pairs > 0 else float("nan")

    def each() -> Iterator[float]:
        for k in range(len(weights)):
            w = np.where(units == k - 1, 0.0, weights[k][centers, y])
            if score.ndim == 1:
                yield area(w, ranked[0], y == 1)
                continue
            areas = [area(w, place, y == c) for c, place in enumerate(ranked) if (y == c).any()]
            yield float(np.mean(areas)) if len(areas) > 1 else float("nan")

    return np.fromiter(each(), np.float64, len(weights))
