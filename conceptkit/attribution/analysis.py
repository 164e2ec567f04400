"""Results for one concept at one layer: change per unit, scores, their null distributions and refits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.attribution.directions import Fitted, Vectors, fit_concept, fit_shuffled, refit
from conceptkit.attribution.nulls import score_all, shuffle_rows, two_sided_p
from conceptkit.attribution.tcav import (
    INDIFFERENT,
    SCORES,
    SHARES,
    directional_derivatives,
    is_same_for_all,
    share_interval,
)
from conceptkit.errors import InputError, check_at_least
from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.intervals import coverage_note, student_reach
from conceptkit.evaluate.resampling import draw_groups
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.permutation import level_of
from conceptkit.probe.targets import Target
from conceptkit.probe.validation import validate
from conceptkit.records.attribute import Score

LEAST_REFITS = 10
"""Fewer refits do not show how much a score depends on the patients."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One concept (or class of it), output and set of images."""

    column: int
    """Number of the concept's vector"""
    output: int
    among: str
    n: int
    n_groups: int
    per_unit: float
    """Change of the output per unit of the concept, along its pattern"""
    reach: float
    """Half the width of its 95 % interval over groups"""
    note: str | None
    p: float
    scores: Mapping[str, Score]
    agreement: float
    zero_gradients: int
    same_derivative: bool
    """Whether the derivative is the same at every image"""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Results for one concept at one layer."""

    fitted: Fitted
    score: float
    """Held-out R² or balanced accuracy"""
    score_low: float
    """Lower end of its 95 % interval, as in ``probe``"""
    score_high: float
    score_note: str | None
    """Note on that interval"""
    permuted: str
    refits: int
    cosines: Floats
    """(t,) mean cosine between each vector and its refits"""
    found: list[Found]


def analyse(
    X: NDArray[Any],
    target: Target,
    gradients: Floats,
    among: Mapping[str, NDArray[np.intp]],
    *,
    confounders: Floats | None = None,
    folds: int = 5,
    refits: int = 100,
    permutations: int = 500,
    seed: int = 0,
) -> Analysis:
    """Take derivatives of outputs along a concept, and compare them with those along shuffled concepts.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    gradients : (o, n, d) of o outputs, by :func:`conceptkit.attribution.sensitivity.pooled_gradients`
    among : name → row numbers whose images are scored together
    confounders : (n, z) that the pattern holds fixed
    folds : of the held-out score
    refits : resamples of the groups, on each of which vector and pattern are fitted again
    permutations : shuffles of the concept
    seed : of resamples and shuffles

    Raises
    ------
    InputError
        when nothing can be fitted, or a set of images is empty
    """
    check_at_least("refits", refits, LEAST_REFITS)
    check_at_least("permutations", permutations, 0)
    for name, rows in among.items():
        if not len(rows):
            raise InputError(f"among: no image of {name} has a value of {target.name}.")
    fitted = fit_concept(X, target, confounders)
    orders = shuffle_rows(target, permutations, seed)
    (read,) = validate(X, [target], folds=folds, seed=seed)
    null = fit_shuffled(X, fitted, orders) if permutations else None
    draws = draw_groups(target.n_groups, n_resamples=refits, seed=seed)
    again = refit(X, fitted, draws)
    kept = [(draw, vectors) for draw, vectors in zip(draws, again, strict=True) if vectors is not None]
    t = fitted.columns.shape[1]
    found = []
    for column in range(t):
        own = _Column(
            fitted=_picked(fitted.found, slice(column, column + 1)),
            null=None if null is None else _picked(null, slice(column, None, t)),
            refits=[(draw, _picked(vectors, slice(column, column + 1))) for draw, vectors in kept],
            r2=read.score if target.kind == "continuous" else math.nan,
            clusters=target.clusters,
        )
        for output, G in enumerate(gradients):
            for name, rows in among.items():
                found.append(_one(own, G[rows], rows, column=column, output=output, among=name))
    turned = [np.sum(fitted.found.unit * vectors.unit, axis=0) for _, vectors in kept]
    cosines = np.mean(turned, axis=0) if turned else np.full(t, np.nan)
    return Analysis(
        fitted=fitted,
        score=read.score,
        score_low=read.score_low,
        score_high=read.score_high,
        score_note=read.interval_note,
        permuted=level_of(target).permuted,
        refits=len(kept),
        cosines=cosines,
        found=found,
    )


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One vector of a concept, with its shuffles and refits."""

    fitted: Vectors
    null: Vectors | None
    refits: Sequence[tuple[NDArray[np.int64], Vectors]]
    r2: float
    clusters: NDArray[np.intp]


def _picked(vectors: Vectors, at: slice) -> Vectors:
    return Vectors(vectors.vectors[:, at], vectors.patterns[:, at])


def _one(own: _Column, G: Floats, rows: NDArray[np.intp], *, column: int, output: int, among: str) -> Found:
    """Score one vector on images with derivatives G (n, d) and numbers ``rows`` (n,)."""
    S = directional_derivatives(G, own.fitted.unit)  # (n, 1)
    along = G @ own.fitted.patterns[:, 0]  # (n,)
    per_unit = float(along.mean())
    clusters = own.clusters[rows]
    n_groups = len(np.unique(clusters))
    effective = effective_number(clusters)
    changes = _resampled_changes(own, G, clusters)
    error = float(changes.std(ddof=1)) if len(changes) > 1 and n_groups > 1 else math.nan
    p, null_scores = math.nan, None
    if own.null is not None:
        p = two_sided_p(per_unit, G.mean(0) @ own.null.patterns)
        # At the concept's R²: with a shuffled concept's, about 0, Br would only test whether the concept is decodable.
        null_scores = score_all(directional_derivatives(G, own.null.unit), own.r2)
    values = score_all(S, own.r2)
    repeated = [score_all(G @ vectors.unit, own.r2) for _, vectors in own.refits]
    scores = {
        name: _score(
            float(values[name][0]),
            np.array([one[name][0] for one in repeated]),
            None if null_scores is None else null_scores[name],
            INDIFFERENT[name],
        )
        for name in SCORES
        if name != "relevance" or np.isfinite(own.r2)
    }
    for name, drawn in _resampled_shares(own, G, clusters).items():
        spread = float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
        low, high = share_interval(scores[name].value, spread, n_groups=n_groups, n=len(rows))
        scores[name] = dataclasses.replace(scores[name], low=low, high=high)
    return Found(
        column=column,
        output=output,
        among=among,
        n=len(rows),
        n_groups=n_groups,
        per_unit=per_unit,
        reach=student_reach(effective) * error if n_groups > 1 else math.nan,
        note=coverage_note(n_groups, effective=effective),
        p=p,
        scores=scores,
        agreement=float(np.mean(np.sign(S[:, 0]) == np.sign(along))),
        zero_gradients=int((~G.any(axis=1)).sum()),
        same_derivative=is_same_for_all(G),
    )


def _resampled_changes(own: _Column, G: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Return the change per unit in each resample of both the scored images and the fitted rows."""
    sums = np.zeros((int(own.clusters.max()) + 1, G.shape[1]))
    np.add.at(sums, clusters, G)
    counts = np.bincount(clusters, minlength=len(sums))
    found = []
    for draw, vectors in own.refits:
        drawn = draw @ counts
        if drawn:
            found.append(float((draw @ sums) @ vectors.patterns[:, 0] / drawn))
    return np.array(found)


def _resampled_shares(own: _Column, G: Floats, clusters: NDArray[np.intp]) -> dict[str, Floats]:
    """Return each score in [0, 1] in each resample of images and fits; resamples without a value are left out."""
    found: dict[str, list[float]] = {name: [] for name in SHARES}
    for draw, vectors in own.refits:
        weights = draw[clusters].astype(np.float64)
        S = G @ vectors.unit[:, 0]
        totals = {"sign_count": (S > 0, np.ones_like(S)), "magnitude": (np.maximum(S, 0.0), np.abs(S))}
        for name, (part, whole) in totals.items():
            if (total := float(weights @ whole)) > 0:
                found[name].append(float(weights @ part) / total)
    return {name: np.array(values) for name, values in found.items()}


def _score(value: float, repeated: Floats, null: Floats | None, indifferent: float) -> Score:
    finite = repeated[np.isfinite(repeated)]
    drawn = np.zeros(0) if null is None else null[np.isfinite(null)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
    outside = np.mean((finite < low) | (finite > high)) if len(finite) and len(drawn) else math.nan
    return Score(
        value=value,
        refits_mean=float(finite.mean()) if len(finite) else math.nan,
        refits_sd=float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
        null_low=float(low),
        null_high=float(high),
        outside=float(outside),
        p=math.nan if null is None else two_sided_p(value, null, indifferent),
        q=math.nan,
    )
