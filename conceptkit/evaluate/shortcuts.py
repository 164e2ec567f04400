"""How well the center of a row predicts its label, against the same with patients' labels permuted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats

Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Shortcut:
    """How well the center predicts the label, within some rows."""

    auc: float
    """Of the share of each label among the rows of the center; NaN with one label"""
    chance: float
    """Mean with the labels of patients permuted: above 0.5, as the shares are those of the same rows"""
    high: float
    """95 % quantile of the same; an AUC below it may be chance"""


def center_auc(counts: Floats) -> Floats:
    """Return the AUC of the center's label rates, from tables (…, centers, labels) of counts.

    Rows are scored with the share of a label among the rows of their center. For more than two labels the mean over one
    label against the rest, as :func:`conceptkit.evaluate.scores.auc` has it. NaN with fewer than two labels.
    """
    rows = counts.sum(-1, keepdims=True)
    rate = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    order = np.argsort(rate, axis=-2, kind="stable")
    up = np.take_along_axis(counts, order, -2)
    down = np.take_along_axis(rows - counts, order, -2)
    # centers of equal rate need no tied ranks: whatever their order, they share one slope of the ROC curve
    pairs = (up * (np.cumsum(down, -2) - down / 2)).sum(-2)
    present = counts.sum(-2) > 0
    areas = pairs / np.maximum(up.sum(-2) * down.sum(-2), 1)
    found = np.where(present, areas, 0.0).sum(-1) / np.maximum(present.sum(-1), 1)
    return np.asarray(np.where(present.sum(-1) > 1, found, np.nan))


def center_shortcut(centers: Codes, labels: Codes, patients: Codes, *, draws: int = 200, seed: int = 0) -> Shortcut:
    """Return how well the center predicts the label of rows (n,), each given by numbers from 0.

    Permuted are the labels of whole patients, whose rows are dependent: a patient's rows keep their labels together and
    get the centers of another patient's rows, in the shares that they have there.
    """
    n_centers, n_labels, n_patients = (int(codes.max(initial=0)) + 1 for codes in (centers, labels, patients))
    observed = np.zeros((n_centers, n_labels))
    np.add.at(observed, (centers, labels), 1.0)
    of_center = np.zeros((n_patients, n_centers))
    np.add.at(of_center, (patients, centers), 1.0)
    of_label = np.zeros((n_patients, n_labels))
    np.add.at(of_label, (patients, labels), 1.0)
    here = of_center.sum(1) > 0
    of_center, of_label = of_center[here], of_label[here]
    of_center /= of_center.sum(1, keepdims=True)
    rng = np.random.default_rng(seed)
    drawn = center_auc(np.stack([of_center.T @ rng.permutation(of_label) for _ in range(draws)]))
    return Shortcut(float(center_auc(observed)), float(drawn.mean()), float(np.quantile(drawn, 0.95)))
