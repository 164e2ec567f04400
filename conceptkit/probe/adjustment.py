"""Scores given confounders, and the ceiling set by a second measurement."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.evaluate.intervals import NO_INTERVAL, Interval, r2_interval
from conceptkit.evaluate.scores import Floats, r2
from conceptkit.probe.crossfit import deleted_errors, read_fold
from conceptkit.probe.ridge import Split, factorise
from conceptkit.probe.search import choose_alpha
from conceptkit.probe.targets import Target
from conceptkit.probe.validation import Validation

TERMS = ("linear", "quadratic")
"""``quadratic`` adds the squares of numeric confounders and pairwise interactions."""


@dataclass(frozen=True)
class Adjusted:
    """The partial R² of one target given confounders."""

    score: float
    interval: Interval
    confounders: float
    """Held-out R² of the confounders without the activations"""
    note: str | None = None
    """Why there is no score, or its caveat"""


def absent_level(confounders: Mapping[str, NDArray[Any]], splits: Sequence[Split]) -> str | None:
    """Return a sentence when a level of a categorical confounder is absent from a training part."""
    for name, values in confounders.items():
        if values.dtype.kind == "f":
            continue
        text = values.astype(str)
        for fold, (train, test) in enumerate(splits):
            absent = np.setdiff1d(text[test], text[train])
            if len(absent):
                return f"not estimable: {name} {str(absent[0])!r} is absent from the training part of fold {fold + 1}."
    return None


def design(confounders: Mapping[str, NDArray[Any]], terms: str = "linear") -> Floats:
    """Return confounders as columns (n, q): standardised numbers, and an indicator of each level except the first.

    Parameters
    ----------
    confounders : name → (n,) numbers (float), or text for categorical ones
    terms : one of :data:`TERMS`
    """
    blocks = []
    for values in confounders.values():
        if values.dtype.kind == "f":
            spread = values.std()
            blocks.append(((values - values.mean()) / (spread if spread > 0 else 1.0))[:, None])
        else:
            text = values.astype(str)
            blocks.append(np.stack([text == level for level in np.unique(text)], axis=1).astype(float)[:, 1:])
    products = []
    if terms == "quadratic":
        numbers = [values.dtype.kind == "f" for values in confounders.values()]
        products = [block**2 for block, is_number in zip(blocks, numbers, strict=True) if is_number]
        for one, other in itertools.combinations(blocks, 2):
            products.append((one[:, :, None] * other[:, None, :]).reshape(len(one), -1))
    return np.concatenate([*blocks, *products], axis=1)


def adjusted_score(
    X: NDArray[Any],
    target: Target,
    confounders: Mapping[str, NDArray[Any]],
    splits: Sequence[Split],
    options: Validation,
    *,
    terms: str = "linear",
) -> Adjusted:
    """Return the held-out partial R² of a continuous concept given confounders.

    (R²_full − R²_confounders) / (1 − R²_confounders) = 1 − Σ(r − r̂)² / Σr². In each training part the concept is fitted
    by ridge regression on the confounders, with the penalty chosen by leave-one-group-out error; r are the held-out
    residuals of this model. The full model adds r̂, a ridge regression of the residuals on the activations, after the
    same regression on the confounders is subtracted from these. At a large penalty of the activations it equals the
    model of the confounders.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    confounders : name → (n,) numbers (float), or text for categorical ones
    terms : one of :data:`TERMS`
    """
    alphas = options.alphas
    why: str | None = "not estimable: a partial R² needs a continuous concept."
    if target.kind == "continuous":
        why = absent_level(confounders, splits)
    if why:
        return Adjusted(np.nan, NO_INTERVAL, np.nan, why)
    C, y = design(confounders, terms), target.y.astype(np.float64)[:, None]
    groups, units = target.groups, jackknife_units(target.clusters)
    every = np.arange(len(y))
    left, predicted = np.empty(len(y)), np.empty(len(y))
    deleted = np.zeros(int(units.max()) + 1)
    for split in splits:
        train, test = split
        basis = factorise(C, train)
        alpha = choose_alpha(basis.response(y[train]), None if groups is None else groups[train], alphas)
        residual = y - basis.fit(y[train], alpha).predict(every)
        cleaned = np.asarray(X) - basis.fit(X[train].astype(np.float64), np.repeat(alpha, X.shape[1])).predict(every)
        reading = read_fold(factorise(cleaned, train), split, residual, groups, alphas)
        left[test], predicted[test] = residual[test, 0], reading.predicted[:, 0]
        deleted += deleted_errors(reading, split, residual, units)[:, 0]
    score = 1.0 - float(np.sum((left - predicted) ** 2) / np.sum(left**2))
    of_confounders = r2(y[:, 0], y[:, 0] - left)
    interval = r2_interval(
        left,
        predicted,
        target.clusters,
        deleted,
        units,
        about_mean=False,
        n_resamples=options.n_resamples,
        seed=options.seed,
    )
    note = None
    if of_confounders <= 0:
        note = (
            f"the confounders do not predict the concept on held-out groups (R² {of_confounders:.2f}), so there is "
            "nothing to adjust for in these terms."
        )
    return Adjusted(score, interval, of_confounders, note)


def ceiling(first: Floats, second: Floats) -> tuple[float, int]:
    """Return Pearson's r of two measurements (n,) of one concept, and the number of rows with both.

    If their errors are equal and independent, r is the share of variance due to the true value, and so the highest R².
    """
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), len(a)
    return float(np.corrcoef(a, b)[0, 1]), len(a)
