"""Concept regions: kernel ridge regression for concepts that do not increase along a direction."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.regression import group_numbers
from conceptkit.probe.ridge import column_scale

ALPHAS: Floats = np.logspace(-4, 3, 15)
"""Default penalties, for a kernel whose diagonal is 1."""

WIDTHS: Floats = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
"""Default widths, in units of the median squared distance between rows."""


class ConceptRegion(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Kernel ridge regression of a continuous concept on activations.

    f(x) = b + Σᵢ aᵢ k(xᵢ, x) with k(x, x′) = exp(−‖z − z′‖² / (w·m)), z standardised activations and m the median
    squared distance between training rows. Width w and penalty are chosen by leave-one-group-out error in closed form;
    the intercept is not penalised.

    Parameters
    ----------
    alphas : penalties to choose from; ``None`` for 15 values from 10⁻⁴ to 10³
    widths : widths to choose from; ``None`` for 0.25, 0.5, 1, 2 and 4

    Attributes
    ----------
    alpha_, width_ : the chosen penalty and width
    dual_coef_ : (n,) weights a of the training rows
    intercept_ : b
    X_fit_ : (n, d) standardised training rows
    """

    def __init__(self, *, alphas: ArrayLike | None = None, widths: ArrayLike | None = None) -> None:
        self.alphas = alphas
        self.widths = widths

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit the region.

        Parameters
        ----------
        X : (n, d) activations
        y : (n,) concept values
        groups : (n,) patients or slides, at least 2, left out one by one to choose width and penalty; ``None``: rows
        """
        checked = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        A: Floats = checked[0]
        values = np.asarray(checked[1], dtype=np.float64)
        alphas = ALPHAS if self.alphas is None else np.asarray(self.alphas, dtype=np.float64)
        widths = WIDTHS if self.widths is None else np.asarray(self.widths, dtype=np.float64)
        numbers = group_numbers(groups)
        if numbers is not None and numbers.max() == 0:
            raise InputError("groups: choosing a penalty needs at least 2 groups in a training part, it has 1.")
        self.mean_, self.scale_ = column_scale(A)
        self.X_fit_ = (A - self.mean_) / self.scale_
        distances = _squared_distances(self.X_fit_, self.X_fit_)
        median = float(np.median(distances[np.triu_indices(len(A), 1)]))
        self.unit_ = median if median > 0 else 1.0
        fits = [_best(np.exp(-distances / (w * self.unit_)), values, numbers, alphas) for w in widths]
        best = int(np.argmin([error for error, *_ in fits]))
        _, self.alpha_, self.dual_coef_, self.intercept_ = fits[best]
        self.width_ = float(widths[best])
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return concept values (n,) for rows X (n, d)."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        distances = _squared_distances((A - self.mean_) / self.scale_, self.X_fit_)
        return np.exp(-distances / (self.width_ * self.unit_)) @ self.dual_coef_ + self.intercept_


def _squared_distances(A: Floats, B: Floats) -> Floats:
    """Return squared distances (n, m) between rows."""
    out = (A * A).sum(1)[:, None] + (B * B).sum(1) - 2.0 * (A @ B.T)
    return np.asarray(np.maximum(out, 0.0))


def _best(K: Floats, y: Floats, groups: NDArray[np.intp] | None, alphas: Floats) -> tuple[float, float, Floats, float]:
    """Return the smallest left-out error, its penalty, and the dual coefficients and intercept at that penalty.

    In feature space with an unpenalised intercept the fit is ŷ = Hy with H = 11ᵀ/n + CK(CKC + αI)⁻¹C, C = I − 11ᵀ/n,
    and the errors of left-out rows are (I − H_gg)⁻¹ e_g.
    """
    n = len(y)
    column = K.mean(0)
    spectrum, U = np.linalg.eigh(K - column - column[:, None] + K.mean())
    spectrum = np.maximum(spectrum, 0.0)
    mean = float(y.mean())
    moments = U.T @ (y - mean)
    members = [] if groups is None else [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
    best: tuple[float, float] = (np.inf, float(alphas[-1]))
    for alpha in np.sort(alphas)[::-1]:  # the larger penalty on a tie
        share = spectrum / (spectrum + alpha)
        left = y - mean - U @ (share * moments)
        if groups is None:
            error = float(np.sum((left / (1.0 - 1.0 / n - (U * U) @ share)) ** 2))
        else:
            error = 0.0
            for rows in members:
                H = (U[rows] * share) @ U[rows].T + 1.0 / n
                error += float(np.sum(np.linalg.solve(np.eye(len(rows)) - H, left[rows]) ** 2))
        if error < best[0]:
            best = (error, float(alpha))
    dual = U @ (moments / (spectrum + best[1]))
    dual -= dual.mean()
    return best[0], best[1], dual, mean - float(column @ dual)
