"""Validation of continuous concepts: each fold's factorisation serves scores, controls, interval and permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.intervals import Interval, r2_interval
from conceptkit.evaluate.scores import Floats, r2
from conceptkit.probe.alpha import choose_alpha
from conceptkit.probe.controls import RANDOM_CONCEPTS, SHUFFLES, part_weights, random_parts, shuffled_values
from conceptkit.probe.crossfit import (
    cross_predict_at,
    deleted_errors,
    each_fold_and_all,
    jackknife_units,
    mean_cosine,
    read_fold,
)
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import Eigenbasis, Split
from conceptkit.probe.targets import Target, values_of
from conceptkit.probe.testing import Tested, permutation_tests


@dataclass(frozen=True)
class _Fold:
    test: NDArray[np.intp]
    predicted: Floats
    alpha: Floats
    weights: Floats
    """(d, t) of the targets proper"""
    deleted: Floats
    """(u, t) held-out squared error without each unit"""
    permuted: Floats
    """(permutations + 1, t') held-out loss of the targets that are tested row by row"""


@dataclass(frozen=True)
class Continuous:
    """What is found of each target of a batch, in their order."""

    predicted: Floats
    """(n, t) out of fold"""
    intervals: list[Interval]
    fitted: Floats
    """(n, t) in sample"""
    patchwise: Floats
    """(n, t) out of fold, groups ignored"""
    alpha: Floats
    """(t,) of the vectors fitted on all rows"""
    fold_alpha: Floats
    """(k, t)"""
    cosine: Floats
    """(t,) mean between the folds' directions"""
    shuffled: Floats
    """(t,) mean R² of shuffled values; not a number without controls"""
    random_concept: Floats
    """(t,) mean R² of random concepts; not a number without controls"""
    tested: list[Tested]


def validate_continuous(
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
) -> Continuous:
    """Probe continuous concepts on the same rows; see :func:`conceptkit.probe.validation.validate`."""
    t, groups, clusters = len(targets), targets[0].groups, targets[0].clusters
    Y = values_of(targets)
    columns, mix = _with_controls(targets, seed) if controls else (Y, None)
    units = jackknife_units(clusters)
    tests = permutation_tests(targets, permutations, alphas, seed)

    def work(basis: Eigenbasis, split: Split) -> _Fold:
        reading = read_fold(basis, split, columns, groups, alphas, mix)
        own = reading.first(t)
        return _Fold(
            test=reading.test,
            predicted=reading.predicted,
            alpha=own.alpha,
            weights=basis.weights(own.response.fit(own.alpha).c),
            deleted=deleted_errors(own, split, Y, units),
            permuted=tests.in_fold(basis, split),
        )

    def of_all(whole: Eigenbasis) -> tuple[Floats, Floats, Floats]:
        response = whole.response(Y)
        alpha, _ = choose_alpha(response, groups, alphas)
        by_patch = alpha if groups is None else choose_alpha(response, None, alphas)[0]
        return alpha, by_patch, response.fit(alpha).predict(np.arange(len(Y)))

    parts, (alpha, by_patch, fitted) = each_fold_and_all(X, splits, work, of_all)
    every = columns if mix is None else columns @ mix
    predicted = np.empty_like(every)
    for part in parts:
        predicted[part.test] = part.predicted
    scores = np.array([r2(every[:, i], predicted[:, i]) for i in range(t, every.shape[1])])
    deleted = np.sum([part.deleted for part in parts], axis=0)
    patchwise = cross_predict_at(X, Y, make_folds(len(Y), None, folds, seed=seed), by_patch)
    nothing = np.full(t, np.nan)
    return Continuous(
        predicted=predicted[:, :t],
        intervals=[
            r2_interval(
                Y[:, i],
                predicted[:, i],
                clusters,
                deleted[:, i],
                units,
                n_columns=X.shape[1],
                n_resamples=n_resamples,
                seed=seed,
            )
            for i in range(t)
        ],
        fitted=fitted,
        patchwise=patchwise,
        alpha=alpha,
        fold_alpha=np.stack([part.alpha for part in parts]),
        cosine=mean_cosine([part.weights for part in parts]),
        shuffled=scores[: t * SHUFFLES].reshape(t, -1).mean(1) if controls else nothing,
        random_concept=scores[t * SHUFFLES :].reshape(t, -1).mean(1) if controls else nothing,
        tested=tests.finish(X, splits, [part.permuted for part in parts]),
    )


def _with_controls(targets: Sequence[Target], seed: int) -> tuple[Floats, Floats]:
    """Return columns (n, c) and their combinations (c, t'): targets, shuffles of each, random concepts of each.

    The targets' random concepts differ in how much of them is of the group, not in what they are made of.
    """
    shuffled = [shuffled_values(target, SHUFFLES, seed) for target in targets]
    columns = np.concatenate([values_of(targets), *shuffled, *random_parts(targets[0], RANDOM_CONCEPTS, seed)], axis=1)
    given = len(targets) * (1 + SHUFFLES)
    mix = np.zeros((columns.shape[1], given + len(targets) * RANDOM_CONCEPTS))
    mix[:given, :given] = np.eye(given)
    for i, target in enumerate(targets):
        at = given + i * RANDOM_CONCEPTS
        draws = [np.eye(RANDOM_CONCEPTS) * weight for weight in part_weights(target)]
        mix[given:, at : at + RANDOM_CONCEPTS] = np.concatenate(draws)
    return columns, mix
