"""Held-out validation of concept vectors by patient, with in-sample and patch-wise scores and controls next to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.evaluate.intervals import (
    Interval,
    accuracy_interval,
    auc_interval,
    r2_interval,
    refit_inflation,
)
from conceptkit.evaluate.paired import Refits, refits_of_r2, scored_balanced_accuracy
from conceptkit.evaluate.scores import Floats, auc, r2
from conceptkit.probe.blocks import HeldOut, Whole, is_many, predict_blocks, probe_blocks
from conceptkit.probe.categorical import cross_classify, draws_accuracy
from conceptkit.probe.classification import ConceptActivationVector, class_shares
from conceptkit.probe.controls import (
    RANDOM_CONCEPTS,
    SHUFFLES,
    part_weights,
    random_concepts,
    random_parts,
    shuffled_values,
)
from conceptkit.probe.crossfit import (
    cross_predict,
    cross_predict_at,
    deleted_errors,
    each_fold,
    each_fold_and_all,
    mean_cosine,
    pooled,
    read_fold,
)
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import ALPHAS, Eigenbasis, Split, factorise
from conceptkit.probe.search import choose_alpha
from conceptkit.probe.space import Fit, Space, agreement, limited, make_fit, patterns_of, space_of
from conceptkit.probe.targets import Target, values_of
from conceptkit.probe.testing import Permutations, Tested, permutation_tests
from conceptkit.records.probe import ProbeScore


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Options of a validation."""

    folds: int = 5
    alphas: Floats = field(default_factory=lambda: ALPHAS)
    """Penalties to choose from, for continuous concepts and permutation tests"""
    n_resamples: int = 2000
    """Bootstrap resamples of groups for the 95 % interval"""
    permutations: int = 0
    """Permutations of each concept at the level at which it varies; 0 for no test"""
    controls: bool = False
    """Whether shuffled values and random concepts are scored too"""
    seed: int = 0
    keep: bool = False
    """Whether the vectors fitted on all rows are returned too"""


@dataclass(frozen=True, kw_only=True)
class Validated(ProbeScore):
    """Scores of one target, with its predictions."""

    predicted: NDArray[Any]
    """(n,) out-of-fold predictions, values or class numbers"""
    refits: Refits
    """The score without each group, for paired differences to other features"""
    fit: Fit | None = None
    """The vectors fitted on all rows, if they are kept"""


def held_out(
    X: NDArray[Any],
    targets: Sequence[Target],
    *,
    folds: int = 5,
    alphas: Floats = ALPHAS,
    splits: Sequence[Split] | None = None,
) -> list[NDArray[Any]]:
    """Return the out-of-fold predictions (n,) of a linear vector for each target, from activations X (n, d).

    Targets are on the same folds, see :func:`conceptkit.probe.targets.batches`; ``splits`` replace ``folds`` by group.
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
    """Return the result of :func:`held_out` for each of ``count`` matrices (n, d), read one after the other."""
    if targets[0].kind == "continuous":
        splits = targets[0].folds(folds) if splits is None else splits
        Y, groups = values_of(targets), targets[0].groups
        rest = iter(matrices)
        first = next(rest)
        if is_many(first, splits):
            each = [predict_blocks(X, Y, groups, splits, alphas) for X in itertools.chain([first], rest)]
        else:
            each = cross_predict(itertools.chain([first], rest), count, Y, groups, splits, alphas)
        return [list(predicted.T) for predicted in each]
    each_splits = [target.folds(folds) if splits is None else splits for target in targets]
    return [
        [cross_classify(X, t, t.groups, of).predicted for t, of in zip(targets, each_splits, strict=True)]
        for X in matrices
    ]


def validate(
    X: NDArray[Any], targets: Sequence[Target], options: Validation | None = None, **changes: Any
) -> list[Validated]:
    """Return the held-out score of each concept with its interval, in-sample scores, controls and tests.

    Parameters
    ----------
    X : (n, d) activations of the targets' rows
    targets : on the same folds; see :func:`conceptkit.probe.targets.batches`
    changes : fields of :class:`Validation` that differ from ``options``
    """
    options = dataclasses.replace(options or Validation(), **changes)
    method = _continuous if targets[0].kind == "continuous" else _categorical
    return method(X, targets, targets[0].folds(options.folds), options)


def _continuous(
    X: NDArray[Any], targets: Sequence[Target], splits: Sequence[Split], options: Validation
) -> list[Validated]:
    """Validate continuous concepts; each fold's factorisation serves scores, controls, intervals and permutations."""
    t, groups, clusters = len(targets), targets[0].groups, targets[0].clusters
    alphas, seed = options.alphas, options.seed
    Y = values_of(targets)
    columns, mix = _with_controls(targets, seed) if options.controls else (Y, None)
    tests = permutation_tests(targets, options.permutations, alphas, seed)

    if is_many(X, splits):
        combined = np.eye(t) if mix is None else mix
        units = tests.levels_of_means
        found = probe_blocks(X, columns, combined, t, groups, splits, alphas, seed, units)
        means = dict(zip([one.tobytes() for one in units], found.means, strict=True))
        losses = tests.in_blocks(X, splits, found.folds, means)
    else:
        found, losses = _in_memory(X, columns, mix, targets, splits, tests, options)
        means = {}
    fits: Sequence[Fit | None] = _fits(targets, splits, found) if options.keep else [None] * t
    tested = tests.finish(X, splits, losses, means)
    shuffled = random = np.full(t, np.nan)
    if options.controls:
        shuffled = found.scores[t:][: t * SHUFFLES].reshape(t, -1).mean(1)
        random = found.scores[t:][t * SHUFFLES :].reshape(t, -1).mean(1)
    cosine = mean_cosine(found.weights)
    intervals = [
        r2_interval(
            Y[:, i],
            found.predicted[:, i],
            clusters,
            found.deleted[:, i],
            found.units,
            n_columns=X.shape[1],
            n_resamples=options.n_resamples,
            seed=seed,
        )
        for i in range(t)
    ]
    return [
        _validated(
            target,
            found.predicted[:, i],
            intervals[i],
            tested[i],
            refits_of_r2(Y[:, i], found.predicted[:, i], found.deleted[:, i], found.units),
            fit=fits[i],
            score_in_sample=target.score(found.fitted[:, i]),
            score_patchwise=target.score(found.patchwise[:, i]),
            score_shuffled=float(shuffled[i]),
            score_random_concept=float(random[i]),
            alpha=float(found.alpha[i]),
            alpha_folds=tuple(found.alpha_folds[:, i].tolist()),
            cosine=float(cosine[i]),
        )
        for i, target in enumerate(targets)
    ]


def _in_memory(
    X: NDArray[Any],
    columns: Floats,
    mix: Floats | None,
    targets: Sequence[Target],
    splits: Sequence[Split],
    tests: Permutations,
    options: Validation,
) -> tuple[HeldOut, list[Floats]]:
    """Return what :func:`probe_blocks` does by leave-one-group-out, and the losses of permutations."""
    t, groups, alphas = len(targets), targets[0].groups, options.alphas
    Y, units = columns[:, :t], jackknife_units(targets[0].clusters)

    def work(basis: Eigenbasis, split: Split) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        reading = read_fold(basis, split, columns, groups, alphas, mix)
        own = reading.first(t)
        weights = basis.weights(own.response.fit(own.alpha).c)
        return reading.predicted, own.alpha, weights, deleted_errors(own, split, Y, units), tests.in_fold(basis, split)

    def of_all(whole: Eigenbasis) -> tuple[Floats, Floats, Floats, tuple[Floats, Floats, Floats, Space] | None]:
        response = whole.response(Y)
        alpha = choose_alpha(response, groups, alphas)
        by_patch = alpha if groups is None else choose_alpha(response, None, alphas)
        fit = response.fit(alpha)
        kept = (*fit.coefficients(), patterns_of(response), space_of(whole)) if options.keep else None
        return alpha, by_patch, fit.predict(np.arange(len(Y))), kept

    parts, (alpha, by_patch, fitted, kept) = each_fold_and_all(X, splits, work, of_all)
    predicted = pooled(splits, [part[0] for part in parts])
    alpha_folds = np.stack([part[1] for part in parts])  # (folds, t)
    deleted = np.sum([part[3] for part in parts], axis=0)
    every = columns if mix is None else columns @ mix
    patchwise = cross_predict_at(X, Y, make_folds(len(Y), None, options.folds, seed=options.seed), by_patch)
    weights, whole = [part[2] for part in parts], None
    if kept is not None:
        whole = Whole(*kept, np.concatenate(list(kept[3].coordinates(X))), agreement(X, weights))
    found = HeldOut(
        predicted=predicted[:, :t],
        fitted=fitted,
        patchwise=patchwise,
        alpha_folds=alpha_folds,
        alpha=alpha,
        weights=weights,
        units=units,
        deleted=deleted,
        scores=np.array([r2(every[:, i], predicted[:, i]) for i in range(every.shape[1])]),
        whole=whole,
    )
    return found, [part[4] for part in parts]


def _fits(targets: Sequence[Target], splits: Sequence[Split], found: HeldOut) -> list[Fit]:
    """Return the fit of each target."""
    if found.whole is None:
        raise ValueError("the fit on all rows was not kept")
    weights, intercepts, patterns = found.whole.weights, found.whole.intercepts, found.whole.patterns
    clusters = targets[0].clusters
    space = limited(found.whole.space, found.whole.leading, clusters, splits)
    return [
        make_fit(
            (weights[:, [i]], intercepts[[i]], patterns[:, [i]]),
            space,
            np.abs(target.y - found.predicted[:, i]),
            clusters,
            predicted=found.predicted[:, i],
            agreement=float(found.whole.agreement[i]),
        )
        for i, target in enumerate(targets)
    ]


def _validated(
    target: Target, predicted: NDArray[Any], interval: Interval, tested: Tested, refits: Refits, **scores: Any
) -> Validated:
    score = target.score(predicted)
    return Validated(
        predicted=predicted,
        refits=refits,
        score=score,
        score_low=interval.low,
        score_high=interval.high,
        interval_note=interval.note,
        selectivity=score - max(scores["score_random_concept"], target.chance),
        **dataclasses.asdict(tested),
        **scores,
    )


def _with_controls(targets: Sequence[Target], seed: int) -> tuple[Floats, Floats]:
    """Return columns (n, c) and their combinations (c, t'): targets, shuffles of each, random concepts of each.

    The random concepts of all targets are mixtures of the same draws, with weights by intra-class correlation.
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


def _categorical(
    X: NDArray[Any], targets: Sequence[Target], splits: Sequence[Split], options: Validation
) -> list[Validated]:
    """Validate categorical concepts by logistic vectors.

    Permutation tests use ridge regression of class indicators: a logistic vector for each permutation would cost a
    hundred times as much and test the same. The same regression widens the standard errors for the variation of the
    training groups, by the factor by which refitting enlarges those of its R².
    """
    tests = permutation_tests(targets, options.permutations, options.alphas, options.seed)
    columns = [target.columns for target in targets]
    at = np.cumsum([0, *(c.shape[1] for c in columns)])
    Y, groups = np.concatenate(columns, axis=1), targets[0].groups
    units = jackknife_units(targets[0].clusters)

    def work(basis: Eigenbasis, split: Split) -> tuple[Floats, Floats, Floats]:
        reading = read_fold(basis, split, Y, groups, options.alphas)
        return reading.predicted, deleted_errors(reading, split, Y, units), tests.in_fold(basis, split)

    parts = each_fold(X, splits, work)
    predicted = pooled(splits, [part[0] for part in parts])
    deleted = np.sum([part[1] for part in parts], axis=0)
    evidence = [(Y[:, i:j], predicted[:, i:j], deleted[:, i:j].sum(1), units) for i, j in itertools.pairwise(at)]
    tested = tests.finish(X, splits, [part[2] for part in parts])
    return [
        _classified(X, target, splits, test, of_target, options)
        for target, test, of_target in zip(targets, tested, evidence, strict=True)
    ]


def _classified(
    X: NDArray[Any],
    target: Target,
    splits: Sequence[Split],
    tested: Tested,
    refitted: tuple[Floats, Floats, Floats, NDArray[np.intp]],
    options: Validation,
) -> Validated:
    """Validate one concept; ``refitted`` are the arguments of :func:`refits_of_r2` for its indicators."""
    y, k, units = target.y.astype(np.intp), target.n_classes, jackknife_units(target.clusters)
    inflation = refit_inflation(*refitted)
    found = cross_classify(X, target, target.groups, splits)
    basis = factorise(X)
    whole = ConceptActivationVector().fit_basis(basis, y, target.groups)
    patchwise = cross_classify(X, target, None, make_folds(len(X), None, options.folds, seed=options.seed))
    shuffled = random = np.nan
    if options.controls:
        shuffled, random = (
            draws_accuracy(X, draw(target, count, options.seed), k, splits, found.alpha)
            for draw, count in ((shuffled_values, SHUFFLES), (random_concepts, RANDOM_CONCEPTS))
        )
    area = auc_interval(y, found.scores, target.clusters, units, inflation=inflation)
    interval = accuracy_interval(
        y, found.predicted, units, k, inflation=inflation, n_resamples=options.n_resamples, seed=options.seed
    )
    fit = None
    if options.keep:
        space = space_of(basis)
        space = limited(space, np.concatenate(list(space.coordinates(X))), target.clusters, splits)
        errors = 1 - np.take_along_axis(class_shares(found.scores), y[:, None], axis=1)[:, 0]
        fitted = (whole.coef_.T, whole.intercept_, patterns_of(basis.response(target.columns)))
        agreed = float(agreement(X, found.vectors).mean())
        fit = make_fit(fitted, space, errors, target.clusters, predicted=found.predicted, agreement=agreed)
    return _validated(
        target,
        found.predicted,
        interval,
        tested,
        refits_of_r2(*refitted, score=scored_balanced_accuracy(y, found.predicted, units, k)),
        fit=fit,
        auc=auc(y, found.scores),
        auc_low=area.low,
        auc_high=area.high,
        score_in_sample=target.score(whole.predict(X)),
        score_patchwise=target.score(patchwise.predicted),
        score_shuffled=shuffled,
        score_random_concept=random,
        alpha=float(whole.alpha_),
        alpha_folds=tuple(found.alpha.tolist()),
        cosine=float(mean_cosine(found.vectors).mean()) if len(found.vectors) > 1 else np.nan,
    )
