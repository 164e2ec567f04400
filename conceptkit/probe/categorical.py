"""Validation of categorical concepts: logistic vectors by patient, with the controls of continuous ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.intervals import Interval, accuracy_interval, auc_interval, refit_inflation
from conceptkit.evaluate.scores import Floats, auc, balanced_accuracy
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.controls import RANDOM_CONCEPTS, SHUFFLES, random_concepts, shuffled_values
from conceptkit.probe.crossfit import deleted_errors, each_fold, jackknife_units, mean_cosine, read_fold
from conceptkit.probe.folds import make_folds
from conceptkit.probe.logistic import PENALTIES, choose_penalty, fit_logistic
from conceptkit.probe.ridge import Eigenbasis, Split
from conceptkit.probe.targets import Target
from conceptkit.probe.testing import Tested, permutation_tests

INNER_FOLDS = 3
"""Parts into which a training part is split to choose the penalty of logistic vectors."""


@dataclass(frozen=True)
class CrossClassified:
    """Out-of-fold classification of one target."""

    predicted: NDArray[np.intp]
    """(n,) class numbers"""
    scores: Floats
    """(n,) for two classes, (n, k) for more"""
    alpha: Floats
    """(folds,) penalties"""
    vectors: list[Floats]
    """(d, m) of each fold in which all classes were there"""


def cross_classify(
    X: NDArray[Any], target: Target, groups: NDArray[np.intp] | None, splits: Sequence[Split]
) -> CrossClassified:
    """Predict each fold's rows by a logistic vector fitted on the others, its penalty chosen inside that part.

    Parameters
    ----------
    groups : (n,) never split when the penalty is chosen

    Raises
    ------
    InputError
        when a training part has one class only
    """
    y, k = target.y.astype(np.intp), target.n_classes

    def work(basis: Eigenbasis, split: Split) -> tuple[Floats, float, Floats | None]:
        return _classify(basis, split, y, k, None if groups is None else groups[split[0]], target.name)

    parts = each_fold(X, splits, work)
    scores = np.empty((len(y), k))
    for (_, test), part in zip(splits, parts, strict=True):
        scores[test] = part[0]
    return CrossClassified(
        predicted=scores.argmax(1),
        scores=scores[:, 1] - scores[:, 0] if k == 2 else scores,
        alpha=np.array([part[1] for part in parts]),
        vectors=[part[2] for part in parts if part[2] is not None],
    )


def _classify(
    basis: Eigenbasis,
    split: Split,
    y: NDArray[np.intp],
    k: int,
    groups: NDArray[np.intp] | None,
    name: str,
) -> tuple[Floats, float, Floats | None]:
    """Return held-out scores (len(test), k), the penalty, and the vectors where the training part has all classes."""
    train, test = split
    present, codes = np.unique(y[train], return_inverse=True)
    if len(present) < 2:
        raise InputError(f"concept: {name} has one class only in one training part; name fewer --folds.")
    A = basis.coordinates(train)
    alpha = choose_penalty(A, basis.spectrum, codes, groups, PENALTIES, INNER_FOLDS)
    weights, intercept = fit_logistic(A, basis.spectrum, codes, alpha)
    decision = basis.coordinates(test) @ weights + intercept
    if len(present) == 2:
        decision = np.column_stack([-decision[:, 0] / 2, decision[:, 0] / 2])
    scores = np.full((len(test), k), decision.min() - 1.0)  # a class that the training part lacks is the least likely
    scores[:, present] = decision
    return scores, alpha, basis.weights(weights) if len(present) == k else None


@dataclass(frozen=True)
class Categorical:
    """What is found of one target."""

    held_out: CrossClassified
    interval: Interval
    auc: float
    auc_interval: Interval
    fitted: NDArray[np.intp]
    """(n,) in sample"""
    patchwise: NDArray[np.intp]
    """(n,) out of fold, groups ignored"""
    alpha: float
    cosine: float
    shuffled: float
    random_concept: float
    """Mean balanced accuracy; not a number without controls"""
    tested: Tested


def validate_categorical(
    X: NDArray[Any],
    targets: Sequence[Target],
    splits: Sequence[Split],
    *,
    folds: int,
    alphas: Floats,
    n_resamples: int,
    permutations: int,
    controls: bool,
    seed: int,
) -> list[Categorical]:
    """Probe categorical concepts on the same rows; see :func:`conceptkit.probe.validation.validate`.

    Permutation tests read indicators of the classes by ridge regression, at ``alphas``: a logistic vector for each
    permutation would cost a hundred times as much and test the same. By the same reading the standard errors are
    widened for the chance in the training groups: as much as those of its R² grow when it is fitted again.
    """
    tests = permutation_tests(targets, permutations, alphas, seed)
    columns = [target.columns for target in targets]
    at = np.cumsum([0, *(c.shape[1] for c in columns)])
    Y, groups = np.concatenate(columns, axis=1), targets[0].groups
    units = jackknife_units(targets[0].clusters)

    def work(basis: Eigenbasis, split: Split) -> tuple[NDArray[np.intp], Floats, Floats, Floats]:
        reading = read_fold(basis, split, Y, groups, alphas)
        return reading.test, reading.predicted, deleted_errors(reading, split, Y, units), tests.in_fold(basis, split)

    parts = each_fold(X, splits, work)
    predicted = np.empty_like(Y)
    for test, values, _, _ in parts:
        predicted[test] = values
    deleted = np.sum([part[2] for part in parts], axis=0)
    inflation = [
        refit_inflation(Y[:, i:j], predicted[:, i:j], deleted[:, i:j].sum(1), units) for i, j in itertools.pairwise(at)
    ]
    tested = tests.finish(X, splits, [part[3] for part in parts])
    shuffled_folds = make_folds(len(X), None, folds, seed=seed)
    return [
        _one(X, target, splits, shuffled_folds, test, ratio, n_resamples=n_resamples, controls=controls, seed=seed)
        for target, test, ratio in zip(targets, tested, inflation, strict=True)
    ]


def _one(
    X: NDArray[Any],
    target: Target,
    splits: Sequence[Split],
    shuffled_folds: Sequence[Split],
    tested: Tested,
    inflation: float,
    *,
    n_resamples: int,
    controls: bool,
    seed: int,
) -> Categorical:
    y, clusters = target.y.astype(np.intp), target.clusters
    found = cross_classify(X, target, target.groups, splits)
    whole = ConceptActivationVector().fit(X, y, target.groups)
    units = jackknife_units(clusters)
    return Categorical(
        held_out=found,
        interval=accuracy_interval(
            y, found.predicted, units, target.n_classes, inflation=inflation, n_resamples=n_resamples, seed=seed
        ),
        auc=auc(y, found.scores),
        auc_interval=auc_interval(y, found.scores, clusters, units, inflation=inflation),
        fitted=whole.predict(X),
        patchwise=cross_classify(X, target, None, shuffled_folds).predicted,
        alpha=float(whole.alpha_),
        cosine=float(mean_cosine(found.vectors).mean()) if len(found.vectors) > 1 else float("nan"),
        shuffled=_meaningless(X, target, shuffled_values(target, SHUFFLES, seed), splits, found.alpha, controls),
        random_concept=_meaningless(
            X, target, random_concepts(target, RANDOM_CONCEPTS, seed), splits, found.alpha, controls
        ),
        tested=tested,
    )


def _meaningless(
    X: NDArray[Any], target: Target, draws: NDArray[Any], splits: Sequence[Split], alpha: Floats, controls: bool
) -> float:
    """Return the mean balanced accuracy of draws (n, c) of a concept, at each fold's penalty of the concept itself."""
    k = target.n_classes
    usable = [all(len(np.unique(drawn[train])) == k for train, _ in splits) for drawn in draws.T]
    if not controls or not any(usable):
        return float("nan")
    codes = draws[:, usable].astype(np.intp)
    place = {test.tobytes(): i for i, (_, test) in enumerate(splits)}

    def work(basis: Eigenbasis, split: Split) -> NDArray[np.intp]:
        train, test = split
        weights, intercept = fit_logistic(
            basis.coordinates(train), basis.spectrum, codes[train], float(alpha[place[test.tobytes()]])
        )
        decision = (basis.coordinates(test) @ weights + intercept).reshape(len(test), codes.shape[1], -1)
        return (decision[:, :, 0] > 0).astype(np.intp) if k == 2 else decision.argmax(2)

    predicted = np.empty_like(codes)
    for (_, test), part in zip(splits, each_fold(X, splits, work), strict=True):
        predicted[test] = part
    return float(np.mean([balanced_accuracy(codes[:, i], predicted[:, i], k) for i in range(codes.shape[1])]))
