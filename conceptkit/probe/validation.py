"""Held-out validation of concept vectors: out-of-fold predictions by patient, beside the scores that flatter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.categorical import Categorical, cross_classify, validate_categorical
from conceptkit.probe.continuous import Continuous, validate_continuous
from conceptkit.probe.crossfit import cross_predict
from conceptkit.probe.folds import unseen_levels
from conceptkit.probe.perceptron import held_out_mlp
from conceptkit.probe.ridge import ALPHAS, Split
from conceptkit.probe.targets import Target, batches, check_activations, make_target, values_of
from conceptkit.records.probe import ProbeScore

__all__ = [
    "Target",
    "Validated",
    "batches",
    "check_activations",
    "held_out",
    "held_out_mlp",
    "make_target",
    "validate",
]


@dataclass(frozen=True, kw_only=True)
class Validated(ProbeScore):
    """How well a target is decoded from one set of activations."""

    predicted: NDArray[Any]
    """(n,) out-of-fold predictions, values or class numbers"""
    unseen: Mapping[str, int]
    """Center → number of folds that score rows of it and train on none"""


def held_out(
    X: NDArray[Any],
    targets: Sequence[Target],
    *,
    folds: int = 5,
    alphas: Floats = ALPHAS,
    splits: Sequence[Split] | None = None,
) -> list[NDArray[Any]]:
    """Return, for each target, the out-of-fold predictions (n,) of a linear vector, no group on both sides.

    Parameters
    ----------
    X : (n, d) activations of the targets' rows
    targets : on the same folds; see :func:`batches`
    splits : instead of ``folds`` parts by group
    """
    return held_out_each([X], 1, targets, folds=folds, alphas=alphas, splits=splits)[0]


def held_out_each(
    matrices: Iterable[NDArray[Any]],
    count: int,
    targets: Sequence[Target],
    *,
    folds: int = 5,
    alphas: Floats = ALPHAS,
    splits: Sequence[Split] | None = None,
) -> list[list[NDArray[Any]]]:
    """Return what :func:`held_out` does for each of ``count`` matrices (n, d), whose folds share the threads.

    Parameters
    ----------
    matrices : taken up one after the other, so that they need not all be in memory
    """
    if targets[0].kind == "continuous":
        splits = targets[0].folds(folds) if splits is None else splits
        each = cross_predict(matrices, count, values_of(targets), targets[0].groups, splits, alphas)
        return [list(predicted.T) for predicted in each]
    own = [target.folds(folds) if splits is None else splits for target in targets]
    return [
        [cross_classify(X, t, t.groups, of).predicted for t, of in zip(targets, own, strict=True)] for X in matrices
    ]


def validate(
    X: NDArray[Any],
    targets: Sequence[Target],
    *,
    folds: int = 5,
    alphas: Floats = ALPHAS,
    n_resamples: int = 2000,
    permutations: int = 0,
    controls: bool = False,
    seed: int = 0,
) -> list[Validated]:
    """Probe concepts: the held-out score with its interval, and what it has to be read against.

    Parameters
    ----------
    X : (n, d) activations of the targets' rows
    targets : on the same folds; see :func:`batches`
    folds : parts of the outer cross-validation
    alphas : penalties to choose from for continuous concepts, and in permutation tests
    n_resamples : bootstrap resamples of groups for the 95 % interval
    permutations : of each concept, at the level at which it varies; 0 for no test
    controls : whether shuffled values and random concepts are scored too
    seed : of all that is drawn
    """
    splits = targets[0].folds(folds)
    unseen = {} if targets[0].centers is None else unseen_levels(targets[0].centers, splits)
    if targets[0].kind == "continuous":
        found = validate_continuous(
            X,
            targets,
            splits,
            folds=folds,
            alphas=alphas,
            n_resamples=n_resamples,
            permutations=permutations,
            controls=controls,
            seed=seed,
        )
        return [_of_continuous(found, target, i, unseen) for i, target in enumerate(targets)]
    each = validate_categorical(
        X,
        targets,
        splits,
        folds=folds,
        alphas=alphas,
        n_resamples=n_resamples,
        permutations=permutations,
        controls=controls,
        seed=seed,
    )
    return [_of_categorical(one, target, unseen) for one, target in zip(each, targets, strict=True)]


def _of_continuous(found: Continuous, target: Target, i: int, unseen: Mapping[str, int]) -> Validated:
    score, random_concept = target.score(found.predicted[:, i]), float(found.random_concept[i])
    return Validated(
        predicted=found.predicted[:, i],
        unseen=unseen,
        score=score,
        score_low=found.intervals[i].low,
        score_high=found.intervals[i].high,
        interval_note=found.intervals[i].note,
        score_in_sample=target.score(found.fitted[:, i]),
        score_patchwise=target.score(found.patchwise[:, i]),
        score_shuffled=float(found.shuffled[i]),
        score_random_concept=random_concept,
        selectivity=score - max(random_concept, target.chance),
        alpha=float(found.alpha[i]),
        alpha_folds=tuple(found.fold_alpha[:, i].tolist()),
        cosine=float(found.cosine[i]),
        **dataclasses.asdict(found.tested[i]),
    )


def _of_categorical(found: Categorical, target: Target, unseen: Mapping[str, int]) -> Validated:
    score = target.score(found.held_out.predicted)
    return Validated(
        predicted=found.held_out.predicted,
        unseen=unseen,
        score=score,
        score_low=found.interval.low,
        score_high=found.interval.high,
        interval_note=found.interval.note,
        auc=found.auc,
        auc_low=found.auc_interval.low,
        auc_high=found.auc_interval.high,
        score_in_sample=target.score(found.fitted),
        score_patchwise=target.score(found.patchwise),
        score_shuffled=found.shuffled,
        score_random_concept=found.random_concept,
        selectivity=score - max(found.random_concept, target.chance),
        alpha=found.alpha,
        alpha_folds=tuple(found.held_out.alpha.tolist()),
        cosine=found.cosine,
        **dataclasses.asdict(found.tested),
    )
