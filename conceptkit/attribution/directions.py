"""Directions of a concept in activation space: the vector that predicts it, and the pattern of activations it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.resampling import Resamples
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.logistic import fit_logistic
from conceptkit.probe.ridge import ALPHAS, factorise
from conceptkit.probe.search import choose_alpha
from conceptkit.probe.targets import Target

_COLUMNS_AT_ONCE = 64
"""Shuffled categorical concepts that are fitted together."""

Orders = NDArray[np.intp]
"""(b, n) source row of each row's value in each of b shuffles"""


def unit_columns(W: Floats) -> Floats:
    """Return columns (d, t) scaled to length 1; columns of zeros stay."""
    length = np.linalg.norm(W, axis=0)
    out: Floats = np.divide(W, length, out=np.zeros_like(W), where=length > 0)
    return out


def patterns(X: NDArray[Any], columns: Floats, Z: Floats | None = None) -> Floats:
    """Return the mean change of the activations per unit of the concept: Cov(x, c) / Var(c).

    Parameters
    ----------
    X : (n, d) activations
    columns : (n, t) values of a concept; for an indicator the pattern is the difference of the class means
    Z : (n, z) confounders that are held fixed: c is replaced by its residuals

    Returns
    -------
    (d, t), in units of the activations per unit of the concept; zeros for a constant column

    Source
    ------
    Haufe et al., 2014
    """
    left = residuals(columns, Z)
    total = np.sum(left * left, axis=0)
    moved: Floats = X.astype(np.float64, copy=False).T @ left  # left has mean 0, so that X need not be centred
    out: Floats = np.divide(moved, total, out=np.zeros_like(moved), where=total > 0)
    return out


def residuals(columns: Floats, Z: Floats | None) -> Floats:
    """Return the residuals of columns (n, t) after mean and confounders Z (n, z), by least squares."""
    centred: Floats = columns - columns.mean(0)
    if Z is None:
        return centred
    design = Z - Z.mean(0)
    left: Floats = centred - design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    # The residuals of a column that the confounders determine are rounding errors.
    gone = np.sum(left * left, axis=0) <= 1e-10 * np.sum(centred * centred, axis=0)
    return np.where(gone, 0.0, left)


@dataclass(frozen=True)
class Vectors:
    """Directions of t concepts, or of t classes of one."""

    vectors: Floats
    """(d, t) regression or concept activation vectors"""
    patterns: Floats
    """(d, t) change of the activations per unit of the concept"""

    @property
    def unit(self) -> Floats:
        """Return the vectors (d, t) scaled to length 1."""
        return unit_columns(self.vectors)


@dataclass(frozen=True)
class Fitted:
    """Directions of one concept, fitted on all rows that have it."""

    target: Target
    classes: tuple[str | None, ...]
    """Class of each column; ``None`` for a continuous concept"""
    columns: Floats
    """(n, t) values, or the classes' indicators"""
    alpha: float
    """Penalty of the vectors"""
    found: Vectors
    intercepts: Floats
    """(t,) of the vectors"""
    confounders: Floats | None
    """(n, z) that the patterns hold fixed"""


def fit_concept(X: NDArray[Any], target: Target, confounders: Floats | None = None) -> Fitted:
    """Fit the regression vector of a continuous concept or the activation vectors of a categorical one.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    confounders : (n, z) that the pattern holds fixed

    Raises
    ------
    InputError
        when no activation varies with the concept, or the confounders determine it
    """
    if target.kind == "continuous":
        columns = target.columns
        response = factorise(X).response(columns)
        alpha = choose_alpha(response, target.groups, ALPHAS)
        W, intercepts = response.fit(alpha).coefficients()
        classes: tuple[str | None, ...] = (None,)
        penalty = float(alpha[0])
    else:
        cav = ConceptActivationVector().fit(X, target.y, target.groups)
        W, intercepts, penalty = cav.coef_.T, cav.intercept_, float(cav.alpha_)
        classes, columns = target.classes[1:] if target.n_classes == 2 else target.classes, target.columns
    shown = patterns(X, columns, confounders)
    if not residuals(columns, confounders).any(axis=0).all():
        raise InputError(f"adjust: the confounders determine {target.name}; remove one of them.")
    if not np.abs(W).sum(0).all() or not np.abs(shown).sum(0).all():
        raise InputError(f"concept: {target.name} has no direction, because no activation of the layer varies with it.")
    return Fitted(target, classes, columns, penalty, Vectors(W, shown), intercepts, confounders)


def fit_shuffled(X: NDArray[Any], fitted: Fitted, orders: Orders) -> Vectors:
    """Fit vectors and patterns to shuffled values, at the concept's penalty.

    The penalty chosen for a shuffled concept would be the largest, and its direction would follow the activations of
    most variance, which have other derivatives. With confounders, the pattern's residuals are shuffled.

    Returns
    -------
    b · t columns, shuffle by shuffle
    """
    target, basis = fitted.target, factorise(X)
    left = residuals(fitted.columns, fitted.confounders)
    moved = left[orders].transpose(1, 0, 2).reshape(len(X), -1)  # (n, b·t)
    shown = patterns(X, moved, fitted.confounders)
    if target.kind == "continuous":
        Y = target.y.astype(np.float64)[orders].T  # (n, b)
        return Vectors(basis.weights(basis.fit(Y, np.full(len(orders), fitted.alpha)).c), shown)
    A, codes = basis.coordinates(basis.train), target.y.astype(np.intp)
    parts = []
    for start in range(0, len(orders), _COLUMNS_AT_ONCE):
        some = codes[orders[start : start + _COLUMNS_AT_ONCE]].T
        # Six digits of a direction are enough to count hundreds of them.
        parts.append(basis.weights(fit_logistic(A, basis.spectrum, some, fitted.alpha, tolerance=1e-9)[0]))
    return Vectors(np.concatenate(parts, axis=1), shown)


def refit(X: NDArray[Any], fitted: Fitted, draws: Resamples) -> list[Vectors | None]:
    """Fit vectors and patterns again on resamples of the groups, at the concept's penalty.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    draws : (refits, groups) how often each group is drawn

    Returns
    -------
    one per resample; ``None`` if a class is missing or the concept is constant in it
    """
    target = fitted.target
    out: list[Vectors | None] = []
    for draw in draws:
        rows = np.repeat(np.arange(len(X)), draw[target.clusters])
        confounders = None if fitted.confounders is None else fitted.confounders[rows]
        if len(np.unique(target.y[rows])) < max(2, target.n_classes):
            out.append(None)
            continue
        basis = factorise(X, rows)
        if target.kind == "continuous":
            W = basis.weights(basis.fit(fitted.columns[rows], np.array([fitted.alpha])).c)
        else:
            codes = target.y[rows].astype(np.intp)
            W = basis.weights(fit_logistic(basis.coordinates(rows), basis.spectrum, codes, fitted.alpha)[0])
        out.append(Vectors(W, patterns(X[rows], fitted.columns[rows], confounders)))
    return out
