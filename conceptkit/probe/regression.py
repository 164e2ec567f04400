"""Regression concept vectors: the direction in which a continuous concept increases."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.alpha import deleted_residuals
from conceptkit.probe.crossfit import mean_cosine
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import ALPHAS, Response, factorise
from conceptkit.probe.search import choose_alpha


def group_numbers(groups: ArrayLike | None) -> NDArray[np.intp] | None:
    """Return groups of any type as numbers 0 … k − 1, or ``None``."""
    if groups is None:
        return None
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.intp)


class RegressionConceptVector(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Ridge regression of a continuous concept on activations (Graziani et al., 2018).

    Columns are standardised, and the penalty is chosen by leave-one-group-out error (leave-one-out without groups), in
    closed form; ``coef_`` is in the units of the activations.

    Parameters
    ----------
    alphas : penalties to choose from; ``None`` for 20 values from 0.1 to 10⁶
    folds : number of parts of the groups (or rows) for ``cosine_``

    Attributes
    ----------
    coef_ : (d,) change of the concept per unit of each activation, or (t, d) for t concepts
    intercept_ : the concept at zero activations, scalar or (t,)
    alpha_ : the chosen penalty, scalar or (t,)
    direction_ : ``coef_`` scaled to length 1, the regression concept vector; zeros if ``coef_`` is zero
    cosine_ : mean cosine between the directions without each fold, scalar or (t,); NaN for fewer than 2 folds
    """

    def __init__(self, *, alphas: ArrayLike | None = None, folds: int = 5) -> None:
        self.alphas = alphas
        self.folds = folds

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit the vector.

        Parameters
        ----------
        X : (n, d) activations
        y : (n,) or (n, t) concept values
        groups : (n,) patients or slides, left out one by one when the penalty is chosen
        """
        checked = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        A: Floats = checked[0]
        Y: Floats = np.asarray(checked[1], dtype=np.float64).reshape(len(A), -1)
        alphas = ALPHAS if self.alphas is None else np.asarray(self.alphas, dtype=np.float64)
        numbers = group_numbers(groups)
        response = factorise(A).response(Y)
        alpha = choose_alpha(response, numbers, alphas)
        weights, intercept = response.fit(alpha).coefficients()
        single = np.ndim(checked[1]) == 1
        self.coef_ = weights[:, 0] if single else weights.T
        self.intercept_ = float(intercept[0]) if single else intercept
        self.alpha_ = float(alpha[0]) if single else alpha
        cosine = _fold_cosine(response, alpha, numbers, self.folds)
        self.cosine_ = float(cosine[0]) if single else cosine
        length = np.linalg.norm(self.coef_, axis=-1, keepdims=True)
        self.direction_ = np.divide(self.coef_, length, out=np.zeros_like(self.coef_), where=length > 0)
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return concept values (n,) or (n, t) for rows X (n, d)."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return A @ self.coef_.T + self.intercept_

    def project(self, X: ArrayLike) -> Floats:
        """Return projections (n,) or (n, t) of rows X (n, d) on the unit direction, in units of the activations."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(A @ self.direction_.T)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def _fold_cosine(response: Response, alpha: Floats, groups: NDArray[np.intp] | None, folds: int) -> Floats:
    """Return the mean cosine (t,) between the directions without each fold, in closed form at the same penalties."""
    n, t = response.centred.shape
    available = n if groups is None else int(groups.max()) + 1
    if min(folds, available) < 2:
        return np.full(t, np.nan)
    basis, c = response.basis, response.fit(alpha).c
    part = np.empty(n, dtype=np.intp)
    for k, (_, test) in enumerate(make_folds(n, groups, min(folds, available))):
        part[test] = k
    left = deleted_residuals(response, part, alpha)
    without = []
    for k in range(int(part.max()) + 1):
        rows = np.flatnonzero(part == k)
        pulled = basis.coordinates(rows).T @ left[rows]
        without.append(basis.weights(c - pulled / (basis.spectrum[:, None] + alpha)))
    return mean_cosine(without)
