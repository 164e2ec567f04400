"""Concept activation vectors: the direction that separates the classes of a categorical concept."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from conceptkit.errors import check_choice
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.logistic import PENALTIES, choose_penalty, fit_logistic
from conceptkit.probe.regression import group_numbers
from conceptkit.probe.ridge import Eigenbasis, column_scale, factorise


class ConceptActivationVector(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear classification of a categorical concept on activations (Kim et al., 2018).

    Columns are standardised and classes have equal weight.

    Parameters
    ----------
    method : ``logistic`` (multinomial, ridge penalty chosen by the log-loss on left-out groups) or
        ``mean-difference`` (each class mean minus the mean of the other class means)
    alphas : penalties to choose from; ``None`` for 1, 10, … 10⁴. Not used by ``mean-difference``
    folds : number of parts of the groups from which the penalty is chosen

    Attributes
    ----------
    classes_ : (k,) class labels
    coef_ : (1, d) for two classes, (k, d) for more, in the units of the activations
    intercept_ : (1,) or (k,)
    alpha_ : the chosen penalty; 0 for ``mean-difference``
    direction_ : ``coef_`` with rows of length 1
    """

    METHODS = ("logistic", "mean-difference")

    def __init__(self, *, method: str = "logistic", alphas: ArrayLike | None = None, folds: int = 3) -> None:
        self.method = method
        self.alphas = alphas
        self.folds = folds

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit the vector.

        Parameters
        ----------
        X : (n, d) activations
        y : (n,) classes of any type
        groups : (n,) patients or slides, never split when the penalty is chosen
        """
        check_choice("method", self.method, self.METHODS)
        checked = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        A: Floats = checked[0]
        check_classification_targets(checked[1])
        self.classes_, codes = np.unique(checked[1], return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: needs at least 2 classes, all rows are of one class {str(self.classes_[0])!r}.")
        if self.method == "mean-difference":
            mean, scale = column_scale(A)
            self.alpha_, (W, b) = 0.0, _mean_difference((A - mean) / scale, codes, len(self.classes_))
            return self._keep(W / scale, b, mean)
        return self._fit_logistic(factorise(A), codes, group_numbers(groups))

    def fit_basis(self, basis: Eigenbasis, codes: NDArray[np.intp], groups: NDArray[np.intp] | None) -> Self:
        """Fit the logistic vector of class numbers 0 … k − 1 (n,) on rows that are factorised already."""
        self.classes_, self.n_features_in_ = np.arange(int(codes.max()) + 1), basis.X.shape[1]
        return self._fit_logistic(basis, codes, groups)

    def _fit_logistic(self, basis: Eigenbasis, codes: NDArray[np.intp], groups: NDArray[np.intp] | None) -> Self:
        alphas = PENALTIES if self.alphas is None else np.asarray(self.alphas, dtype=np.float64)
        rows = basis.coordinates(basis.train)
        self.alpha_ = choose_penalty(rows, basis.spectrum, codes, groups, alphas, self.folds)
        solution, b = fit_logistic(rows, basis.spectrum, codes, self.alpha_)
        return self._keep(basis.weights(solution).T, b.ravel(), basis.mean)

    def _keep(self, coef: Floats, b: Floats, mean: Floats) -> Self:
        self.coef_, self.intercept_ = coef, b - coef @ mean
        length = np.linalg.norm(self.coef_, axis=1, keepdims=True)
        self.direction_ = np.divide(self.coef_, length, out=np.zeros_like(self.coef_), where=length > 0)
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the signed score of rows X (n, d): (n,) for two classes, positive for the second; (n, k) for more."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Floats = A @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class (n,) of rows X (n, d)."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(1)
        return np.asarray(self.classes_[codes])

    def project(self, X: ArrayLike) -> Floats:
        """Return the projection of rows X (n, d) on the unit direction: (n,) for two classes, (n, k) for more."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        projected: Floats = A @ self.direction_.T
        return projected[:, 0] if len(self.classes_) == 2 else projected


def class_shares(scores: Floats) -> Floats:
    """Return the shares of the classes (n, k), from scores (n,) of two classes or (n, k)."""
    logits = np.column_stack([np.zeros_like(scores), scores]) if scores.ndim == 1 else scores
    shares: Floats = softmax(logits, axis=1)
    return shares


def _mean_difference(Z: Floats, codes: NDArray[np.intp], n_classes: int) -> tuple[Floats, Floats]:
    """Return each class mean minus the mean of the other class means, with the threshold half way."""
    means = np.stack([Z[codes == k].mean(0) for k in range(n_classes)])
    others = (means.sum(0) - means) / (n_classes - 1)
    W = means - others
    b = -0.5 * np.einsum("kd,kd->k", W, means + others)
    return (W[1:], b[1:]) if n_classes == 2 else (W, b)
