"""Cross-validated logistic vectors of categorical concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats, balanced_accuracy
from conceptkit.probe.crossfit import each_fold, pooled
from conceptkit.probe.logistic import PENALTIES, choose_penalty, fit_logistic
from conceptkit.probe.ridge import Eigenbasis, Split
from conceptkit.probe.targets import Target

INNER_FOLDS = 3
"""Parts of a training part from which the penalty of logistic vectors is chosen."""


@dataclass(frozen=True)
class CrossClassified:
    """Out-of-fold classification of one target."""

    predicted: NDArray[np.intp]  # (n,) class numbers
    scores: Floats  # (n,) for two classes, (n, k) for more
    alpha: Floats  # (folds,) penalties
    vectors: list[Floats]  # (d, m) of each fold with all classes in its training part


def cross_classify(
    X: NDArray[Any], target: Target, groups: NDArray[np.intp] | None, splits: Sequence[Split]
) -> CrossClassified:
    """Predict each fold's rows by a logistic vector fitted on the others, its penalty chosen within that part.

    ``groups`` (n,) are never split when the penalty is chosen. Raises :class:`InputError` when a training part has one
    class only.
    """
    y, k = target.y.astype(np.intp), target.n_classes

    def work(basis: Eigenbasis, split: Split) -> tuple[Floats, float, Floats | None]:
        return _classify(basis, split, y, k, None if groups is None else groups[split[0]], target.name)

    parts = each_fold(X, splits, work)
    scores = pooled(splits, [part[0] for part in parts])
    return CrossClassified(
        predicted=scores.argmax(1),
        scores=scores[:, 1] - scores[:, 0] if k == 2 else scores,
        alpha=np.array([part[1] for part in parts]),
        vectors=[part[2] for part in parts if part[2] is not None],
    )


def _classify(
    basis: Eigenbasis, split: Split, y: NDArray[np.intp], k: int, groups: NDArray[np.intp] | None, name: str
) -> tuple[Floats, float, Floats | None]:
    """Return held-out scores (len(test), k), the penalty, and the vectors if the training part has all classes."""
    train, test = split
    present, codes = np.unique(y[train], return_inverse=True)
    if len(present) < 2:
        raise InputError(f"concept: {name} has one class only in one training part; set fewer `--folds`.")
    A = basis.coordinates(train)
    alpha = choose_penalty(A, basis.spectrum, codes, groups, PENALTIES, INNER_FOLDS)
    weights, intercept = fit_logistic(A, basis.spectrum, codes, alpha)
    decision = basis.coordinates(test) @ weights + intercept
    if len(present) == 2:
        decision = np.column_stack([-decision[:, 0] / 2, decision[:, 0] / 2])
    scores = np.full((len(test), k), decision.min() - 1.0)  # classes absent from the training part are the least likely
    scores[:, present] = decision
    return scores, alpha, basis.weights(weights) if len(present) == k else None


def draws_accuracy(X: NDArray[Any], draws: NDArray[Any], k: int, splits: Sequence[Split], alpha: Floats) -> float:
    """Return the mean balanced accuracy of draws (n, c) of a concept with k classes, at each fold's penalty (folds,).

    Draws with a class absent from a training part are skipped; NaN when all are.
    """
    usable = [all(len(np.unique(drawn[train])) == k for train, _ in splits) for drawn in draws.T]
    if not any(usable):
        return float("nan")
    codes = draws[:, usable].astype(np.intp)
    penalty = {test.tobytes(): float(a) for (_, test), a in zip(splits, alpha, strict=True)}

    def work(basis: Eigenbasis, split: Split) -> NDArray[np.intp]:
        train, test = split
        A, rows = basis.coordinates(train), basis.coordinates(test)
        weights, intercept = fit_logistic(A, basis.spectrum, codes[train], penalty[test.tobytes()])
        decision = (rows @ weights + intercept).reshape(len(test), codes.shape[1], -1)
        return (decision[:, :, 0] > 0).astype(np.intp) if k == 2 else decision.argmax(2)

    predicted = pooled(splits, each_fold(X, splits, work))
    return float(np.mean([balanced_accuracy(codes[:, i], predicted[:, i], k) for i in range(codes.shape[1])]))
