"""Scores of predictions: R², balanced accuracy, AUC, F1 with its threshold, calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CALIBRATION_BINS = 10
"""Bins of equal width of the calibration error"""


def r2(y: Floats, predicted: Floats) -> float:
    """Return R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)² of predictions (n,); NaN when y (n,) is constant."""
    total = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - float(np.sum((y - predicted) ** 2)) / total if total > 0 else float("nan")


def confusion(y: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int) -> Floats:
    """Return the (n_classes, n_classes) counts of true class × predicted class."""
    return np.bincount(y * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes).astype(float)


def balanced_accuracy(y: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int) -> float:
    """Return the mean recall over the classes that occur in ``y``; chance is one over their number."""
    return float(recall_mean(confusion(y, predicted, n_classes)))


def recall_mean(table: Floats) -> Floats:
    """Return the mean recall of confusion tables (…, k, k), over the classes that occur in each."""
    occurring = table.sum(-1) > 0  # (…, k)
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    recall = np.divide(hits, table.sum(-1), out=np.zeros(hits.shape), where=occurring)
    return np.asarray(recall.sum(-1) / np.maximum(occurring.sum(-1), 1))


def auc(y: NDArray[np.intp], score: Floats) -> float:
    """Return the area under the ROC curve; for more than two classes the mean over one class against the rest.

    Class numbers y are (n,), scores (n,) for two classes and (n, k) for more. NaN when only one class occurs.
    """
    if score.ndim == 1:
        return _auc_binary(y == 1, score)
    areas = [_auc_binary(y == k, score[:, k]) for k in range(score.shape[1]) if (y == k).any()]
    return float(np.mean(areas)) if len(areas) > 1 else float("nan")


def _auc_binary(positive: NDArray[np.bool_], score: Floats) -> float:
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]  # ties share their mean rank (Mann and Whitney)
    return float((rank[positive].sum() - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative))


def f1(y: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int) -> float:
    """Return F1 of class 1 for two classes, the mean over classes for more; 0 for a class without rows."""
    table = confusion(y, predicted, n_classes)
    hits = np.diagonal(table)
    each = 2 * hits / np.maximum(table.sum(0) + table.sum(1), 1)
    return float(each[1] if n_classes == 2 else each.mean())


def best_threshold(y: NDArray[np.intp], probability: Floats) -> float:
    """Return the threshold on probabilities (n,) of class 1 with the largest F1, for use on other rows than these.

    It lies half way between two of the probabilities; of equally good ones, the nearest to one half is taken.
    """
    values = np.unique(probability)
    between = (values[1:] + values[:-1]) / 2
    cuts = np.concatenate([[values[0] - 1e-9 if values[0] <= 0 else values[0] / 2], between])
    above = np.sort(probability)
    positives = np.sort(probability[y == 1])
    predicted = len(above) - np.searchsorted(above, cuts, side="right")
    hits = len(positives) - np.searchsorted(positives, cuts, side="right")
    score = 2 * hits / np.maximum(predicted + len(positives), 1)
    best = cuts[score >= score.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def squared_errors(y: NDArray[np.intp], probability: Floats) -> Floats:
    """Return the squared error (n,) of the probability of class 1, or its sum over more than two classes."""
    if probability.ndim == 1:
        return np.asarray((probability - (y == 1)) ** 2)
    return np.asarray(((probability - np.eye(probability.shape[1])[y]) ** 2).sum(1))


def brier(y: NDArray[np.intp], probability: Floats) -> float:
    """Return the mean squared error of the probabilities, summed over classes when there are more than two."""
    return float(np.mean(squared_errors(y, probability)))


def calibration_gaps(y: NDArray[np.intp], probability: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return the bin of each row (n,), and by how much its outcome exceeds its probability.

    Probabilities are (n,) of class 1; or (n, k), of which the most likely class is scored.
    """
    top, true = (probability, y == 1) if probability.ndim == 1 else (probability.max(1), probability.argmax(1) == y)
    return np.minimum((top * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1), true - top


def calibration_error(y: NDArray[np.intp], probability: Floats) -> float:
    """Return the expected calibration error (Guo et al., 2017) over bins of equal width, weighted by rows."""
    bin_of, gaps = calibration_gaps(y, probability)
    return float(np.abs(np.bincount(bin_of, weights=gaps)).sum() / len(y))


def main_task_scores(y: NDArray[np.intp], probability: Floats, *, threshold: float = 0.5) -> Mapping[str, float]:
    """Return the scores of the main task on one set of rows.

    Parameters
    ----------
    y : (n,) class numbers
    probability : (n,) of class 1 for two classes, (n, k) for more
    threshold : above which a row counts as class 1; unused for more than two classes

    Returns
    -------
    ``auc``; ``f1`` and ``balanced_accuracy`` at the threshold; ``brier`` and ``ece``; for two classes ``threshold``
    and ``f1_at_half`` too
    """
    binary = probability.ndim == 1
    n_classes = 2 if binary else probability.shape[1]
    predicted = (probability > threshold).astype(np.intp) if binary else probability.argmax(1)
    scores = {
        "auc": auc(y, probability),
        "f1": f1(y, predicted, n_classes),
        "balanced_accuracy": balanced_accuracy(y, predicted, n_classes),
        "brier": brier(y, probability),
        "ece": calibration_error(y, probability),
    }
    if binary:
        scores |= {"threshold": threshold, "f1_at_half": f1(y, (probability > 0.5).astype(np.intp), 2)}
    return scores
