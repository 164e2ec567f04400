"""Scores given confounders, on held-out levels, and against a second measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.intervals import Interval, r2_interval
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.crossfit import deleted_errors, jackknife_units, read_fold
from conceptkit.probe.ridge import ALPHAS, Split, factorise
from conceptkit.probe.targets import Target


@dataclass(frozen=True)
class Adjusted:
    """The partial R² of one target given confounders."""

    score: float
    interval: Interval
    note: str | None
    """Why there is no score; ``None`` where there is one"""


def absent_level(confounders: Mapping[str, NDArray[Any]], splits: Sequence[Split]) -> str | None:
    """Return why an adjustment cannot be estimated: a level of a confounder that a training part lacks.

    Parameters
    ----------
    confounders : name → (n,) numbers, or text for categorical ones
    """
    for name, values in confounders.items():
        if values.dtype.kind == "f":
            continue
        text = values.astype(str)
        for fold, (train, test) in enumerate(splits):
            lacking = np.setdiff1d(text[test], text[train])
            if len(lacking):
                return f"not estimable: {name} {str(lacking[0])!r} is absent from the training part of fold {fold + 1}."
    return None


def design(confounders: Mapping[str, NDArray[Any]]) -> Floats:
    """Return confounders as columns (n, q): a constant, numbers standardised, an indicator of each level but one."""
    n = len(next(iter(confounders.values())))
    columns = [np.ones(n)]
    for values in confounders.values():
        if values.dtype.kind == "f":
            spread = values.std()
            columns.append((values - values.mean()) / (spread if spread > 0 else 1.0))
        else:
            text = values.astype(str)
            columns += [(text == level).astype(float) for level in np.unique(text)[1:]]
    return np.stack(columns, axis=1)


def adjusted_score(
    X: NDArray[Any],
    target: Target,
    confounders: Mapping[str, NDArray[Any]],
    splits: Sequence[Split],
    *,
    alphas: Floats = ALPHAS,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Adjusted:
    """Return the held-out partial R² of a continuous concept given confounders.

    Concept and activations are residualised on the confounders by least squares *inside each training part*, and the
    same coefficients are applied to the held-out part. With r the concept's held-out residuals and r̂ their
    predictions from the activations' residuals, the score is 1 − Σ(r − r̂)² / Σr²: the share of what the confounders
    leave unexplained.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    confounders : name → (n,) numbers (float), or text for categorical ones
    """
    nan = float("nan")
    if target.kind != "continuous":
        return Adjusted(nan, Interval(nan, nan), "not estimable: a partial R² needs a continuous concept.")
    why = absent_level(confounders, splits)
    if why is not None:
        return Adjusted(nan, Interval(nan, nan), why)
    C, y = design(confounders), target.y.astype(np.float64)[:, None]
    groups, units = target.groups, jackknife_units(target.clusters)
    left, predicted = np.empty(len(y)), np.empty(len(y))
    deleted = np.zeros(int(units.max()) + 1)
    for split in splits:
        train, test = split
        inverse = np.linalg.pinv(C[train])
        residual = y - C @ (inverse @ y[train])
        cleaned = np.asarray(X) - C @ (inverse @ X[train])
        reading = read_fold(factorise(cleaned, train), split, residual, groups, alphas)
        left[test], predicted[test] = residual[test, 0], reading.predicted[:, 0]
        deleted += deleted_errors(reading, split, residual, units)[:, 0]
    score = 1.0 - float(np.sum((left - predicted) ** 2) / np.sum(left**2))
    interval = r2_interval(
        left, predicted, target.clusters, deleted, units, n_resamples=n_resamples, seed=seed, about_mean=False
    )
    return Adjusted(score, interval, None)


def ceiling(first: Floats, second: Floats) -> tuple[float, int]:
    """Return Pearson's r of two measurements (n,) of one concept, and the number of rows that have both.

    If the errors of both are equal and independent, r is the share of the true value's variance in a measurement, and
    no prediction reaches a higher R².
    """
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), len(a)
    return float(np.corrcoef(a, b)[0, 1]), len(a)
