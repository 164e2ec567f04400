"""Held-out validation of concept vectors: out-of-fold predictions by patient, beside the scores that flatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError
from conceptkit.evaluate.resampling import (
    Resamples,
    balanced_accuracy_resampled,
    draw_groups,
    percentile_interval,
    r2_resampled,
)
from conceptkit.evaluate.scores import Floats, balanced_accuracy, r2
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.folds import inner_folds, make_folds
from conceptkit.probe.ridge import ALPHAS, RidgePath, Split, choose_alpha, ridge_path

Predictor = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[Any]]
"""Takes row numbers of a training and of a held-out part, returns predictions (rows, …) for the latter."""


@dataclass(frozen=True)
class Target:
    """One concept on the rows that have it, ready to be probed."""

    name: str
    kind: str
    """``continuous`` or ``categorical``"""
    rows: NDArray[np.intp]
    """(n,) row numbers of the table that have a value"""
    y: Floats | NDArray[np.intp]
    """(n,) values, or class numbers 0 … k − 1"""
    groups: NDArray[np.intp] | None
    """(n,) group numbers 0 … g − 1; ``None``: rows are taken as independent"""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers"""

    @property
    def n_classes(self) -> int:
        """Return the number of classes; 0 for a continuous concept."""
        return len(self.classes)

    @property
    def metric(self) -> str:
        """Return the name of the score."""
        return "r2" if self.kind == "continuous" else "balanced_accuracy"

    @property
    def chance(self) -> float:
        """Return the score of knowing nothing."""
        return 0.0 if self.kind == "continuous" else 1.0 / self.n_classes

    @property
    def clusters(self) -> NDArray[np.intp]:
        """Return the units to resample: the groups, or the rows themselves."""
        return np.arange(len(self.y)) if self.groups is None else self.groups

    @property
    def n_groups(self) -> int:
        """Return the number of units to resample."""
        return int(self.clusters.max()) + 1

    def score(self, predicted: NDArray[Any]) -> float:
        """Return the score of predictions (n,) for all rows."""
        if self.kind == "continuous":
            return r2(self.y.astype(np.float64), predicted)
        return balanced_accuracy(self.y.astype(np.intp), predicted, self.n_classes)

    def resampled(self, predicted: NDArray[Any], draws: Resamples) -> Floats:
        """Return the score in every resample of groups."""
        if self.kind == "continuous":
            return r2_resampled(self.y.astype(np.float64), predicted, self.clusters, draws)
        return balanced_accuracy_resampled(self.y.astype(np.intp), predicted, self.clusters, draws, self.n_classes)


def make_target(name: str, kind: str, values: NDArray[Any], groups: NDArray[Any] | None) -> Target:
    """Take the rows that have the concept, number its classes and groups, and refuse what cannot be probed.

    Parameters
    ----------
    values : (n,) float with NaN where missing, or objects with ``None`` where missing
    groups : (n,) group labels, or ``None``

    Raises
    ------
    InputError
        when the concept is empty, constant, or infinite somewhere
    """
    present = ~np.isnan(values) if kind == "continuous" else np.array([v is not None for v in values], dtype=bool)
    rows = np.flatnonzero(present)
    if not rows.size:
        raise InputError(f"concept: {name} has no value in any of the {len(values)} rows.")
    kept = values[rows]
    names: tuple[str, ...] = ()
    if kind == "continuous":
        y: Any = kept.astype(np.float64)
        if not np.isfinite(y).all():
            raise InputError(f"concept: {name} must be finite, {int((~np.isfinite(y)).sum())} rows are infinite.")
        if np.ptp(y) == 0:
            raise InputError(f"concept: {name} is constant ({y[0]:g} in all {len(y)} rows); there is nothing to learn.")
    else:
        classes, y = np.unique(kept.astype(str), return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"concept: {name} has one class only ({str(classes[0])!r} in all {len(y)} rows).")
        names = tuple(str(c) for c in classes)
    numbers = None if groups is None else np.unique(groups[rows].astype(str), return_inverse=True)[1]
    return Target(name, kind, rows, y, numbers, names)


@dataclass(frozen=True)
class Validated:
    """How well a target is read from one set of activations."""

    predicted: NDArray[Any]
    """(n,) out-of-fold predictions, values or class numbers"""
    score: float
    low: float
    high: float
    in_sample: float
    patchwise: float
    alpha: float


def check_activations(X: Floats, name: str) -> None:
    """Raise :class:`InputError` when activations (n, d) hold NaN or infinity."""
    bad = ~np.isfinite(X).all(axis=1)
    if bad.any():
        raise InputError(f"activations: {name} must be finite, {int(bad.sum())} of {len(X)} rows hold NaN or infinity.")


def ridge_predictor(X: Floats, Y: Floats, groups: NDArray[np.intp] | None, folds: int, alphas: Floats) -> Predictor:
    """Return what fits ridge vectors on a training part, each penalty chosen inside that part, and predicts the rest.

    Parameters
    ----------
    X : (n, d) activations
    Y : (n, t) values of t concepts; all share each factorisation
    """

    def predict(train: NDArray[np.intp], test: NDArray[np.intp]) -> NDArray[Any]:
        splits = inner_folds(None if groups is None else groups[train], len(train), folds)
        alpha = choose_alpha(X[train], Y[train], splits, alphas)
        return _predict_each(ridge_path(X[train], Y[train]), X[test], alpha)

    return predict


def logistic_predictor(X: Floats, target: Target, groups: NDArray[np.intp] | None) -> Predictor:
    """Return what fits a logistic vector on a training part, its penalty chosen inside that part."""

    def predict(train: NDArray[np.intp], test: NDArray[np.intp]) -> NDArray[Any]:
        if len(np.unique(target.y[train])) < 2:
            raise InputError(f"concept: {target.name} has one class only in one training part; name fewer --folds.")
        vector = ConceptActivationVector().fit(X[train], target.y[train], None if groups is None else groups[train])
        return vector.predict(X[test])

    return predict


def out_of_fold(predictor: Predictor, splits: Sequence[Split], n: int) -> NDArray[Any]:
    """Return predictions (n, …) for every row, each made without the row's own part."""
    parts = [(test, predictor(train, test)) for train, test in splits]
    out = np.empty((n, *parts[0][1].shape[1:]), dtype=parts[0][1].dtype)
    for test, predicted in parts:
        out[test] = predicted
    return out


def held_out(X: Floats, targets: Sequence[Target], *, folds: int = 5, alphas: Floats = ALPHAS) -> list[NDArray[Any]]:
    """Return, for each target, the out-of-fold predictions (n,) of a linear vector, no group on both sides.

    Parameters
    ----------
    X : (n, d) activations of the targets' rows
    targets : of one kind, and on the same rows; see :func:`batches`
    """
    first = targets[0]
    splits = make_folds(len(X), first.groups, folds, what=f"the rows with {first.name}")
    if first.kind == "continuous":
        predictor = ridge_predictor(X, _values(targets), first.groups, folds, alphas)
        return list(out_of_fold(predictor, splits, len(X)).T)
    return [out_of_fold(logistic_predictor(X, t, t.groups), splits, len(X)) for t in targets]


def held_out_mlp(X: Floats, target: Target, *, folds: int = 5, seed: int = 0) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a small multi-layer perceptron: what is left beyond the linear.

    One hidden layer of 64 units on standardised columns; a tenth of the training part decides when to stop.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    continuous = target.kind == "continuous"
    kind = MLPRegressor if continuous else MLPClassifier
    center, spread = (target.y.mean(), target.y.std()) if continuous else (0.0, 1.0)

    def predict(train: NDArray[np.intp], test: NDArray[np.intp]) -> NDArray[Any]:
        network = kind(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            max_iter=150,
            early_stopping=True,
            n_iter_no_change=15,
            random_state=seed,
        )
        y = (target.y[train] - center) / spread if continuous else target.y[train]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the early stop is the rule, the limit its bound
            model = make_pipeline(StandardScaler(), network).fit(X[train], y)
        predicted: NDArray[Any] = model.predict(X[test])
        return predicted * spread + center if continuous else predicted

    splits = make_folds(len(X), target.groups, folds, what=f"the rows with {target.name}")
    return out_of_fold(predict, splits, len(X))


def batches(targets: Sequence[Target]) -> list[list[Target]]:
    """Sort targets into lists of one kind on the same rows: continuous ones then share their factorisations."""
    found: dict[tuple[str, bytes], list[Target]] = {}
    for target in targets:
        found.setdefault((target.kind, target.rows.tobytes()), []).append(target)
    return list(found.values())


def validate(
    X: Floats,
    targets: Sequence[Target],
    *,
    folds: int = 5,
    alphas: Floats = ALPHAS,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[Validated]:
    """Probe concepts: the held-out score with its interval, and the two scores that flatter beside it.

    Parameters
    ----------
    X : (n, d) activations of the targets' rows
    targets : of one kind, and on the same rows; see :func:`batches`
    folds : parts of the outer and of the inner cross-validation
    alphas : penalties to choose from for continuous concepts
    n_resamples : bootstrap resamples of groups for the 95 % interval
    seed : of the resamples and of the shuffled patch-wise folds
    """
    first = targets[0]
    predicted = held_out(X, targets, folds=folds, alphas=alphas)
    shuffled = make_folds(len(X), None, folds, seed=seed)
    if first.kind == "continuous":
        Y = _values(targets)
        penalties = choose_alpha(X, Y, inner_folds(first.groups, len(X), folds), alphas)
        fitted = list(_predict_each(ridge_path(X, Y), X, penalties).T)
        ungrouped = list(out_of_fold(ridge_predictor(X, Y, None, folds, alphas), shuffled, len(X)).T)
    else:
        vectors = [ConceptActivationVector().fit(X, t.y, t.groups) for t in targets]
        penalties = np.array([v.alpha_ for v in vectors])
        fitted = [v.predict(X) for v in vectors]
        ungrouped = [out_of_fold(logistic_predictor(X, t, None), shuffled, len(X)) for t in targets]
    draws = draw_groups(first.n_groups, n_resamples=n_resamples, seed=seed)
    return [
        Validated(
            p,
            t.score(p),
            *percentile_interval(t.resampled(p, draws)),
            t.score(inside),
            t.score(patchwise),
            float(alpha),
        )
        for t, p, inside, patchwise, alpha in zip(targets, predicted, fitted, ungrouped, penalties, strict=True)
    ]


def _values(targets: Sequence[Target]) -> Floats:
    """Return the continuous values (n, t)."""
    return np.stack([t.y.astype(np.float64) for t in targets], axis=1)


def _predict_each(path: RidgePath, X: Floats, alpha: Floats) -> Floats:
    """Return predictions (n, t), each target at its own penalty (t,)."""
    weights, intercept = path.coefficients(alpha)
    out: Floats = X @ weights + intercept
    return out
