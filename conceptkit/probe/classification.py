"""Concept activation vectors: the direction that separates the classes of a categorical concept."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from conceptkit._checks import check_choice
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.folds import inner_folds
from conceptkit.probe.regression import group_numbers
from conceptkit.probe.ridge import column_scale

PENALTIES: Floats = np.logspace(0, 4, 5)
"""The penalties tried by default for logistic vectors, on standardised columns."""


class ConceptActivationVector(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear classification of a categorical concept on activations (Kim et al., 2018).

    Columns are standardised and classes weighted alike, so that a rare class counts as much as a frequent one.

    Parameters
    ----------
    method : ``logistic`` (multinomial, ridge penalty chosen by the log-loss on left-out groups) or
        ``mean-difference`` (the class mean against the mean of the other classes, two-class or one class each)
    alphas : penalties to choose from; ``None`` for 1, 10, … 10⁴. Unused by ``mean-difference``
    folds : parts into which the groups are split to choose the penalty

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
        mean, scale = column_scale(A)
        Z = (A - mean) / scale
        if self.method == "mean-difference":
            self.alpha_, (W, b) = 0.0, _mean_difference(Z, codes, len(self.classes_))
        else:
            alphas = PENALTIES if self.alphas is None else np.asarray(self.alphas, dtype=np.float64)
            self.alpha_ = _choose_penalty(A, codes, group_numbers(groups), alphas, self.folds)
            W, b = _logistic(Z, codes, self.alpha_)
        self.coef_ = W / scale
        self.intercept_ = b - self.coef_ @ mean
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
        labels: NDArray[Any] = self.classes_[codes]
        return labels

    def project(self, X: ArrayLike) -> Floats:
        """Return the projection of rows X (n, d) on the unit direction: (n,) for two classes, (n, k) for more."""
        check_is_fitted(self)
        A: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        projected: Floats = A @ self.direction_.T
        return projected[:, 0] if len(self.classes_) == 2 else projected


def _logistic(Z: Floats, codes: NDArray[np.intp], alpha: float) -> tuple[Floats, Floats]:
    """Fit Σ wᵢ·CE + (α/2)‖W‖² on standardised rows, wᵢ weighting classes alike."""
    model = LogisticRegression(C=1.0 / alpha, class_weight="balanced", max_iter=2000, tol=1e-4)
    with warnings.catch_warnings():
        # Separable classes never converge to the tolerance at weak penalties; the penalty chosen on left-out groups
        # is then a stronger one, and the direction has long settled.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(Z, codes)
    return model.coef_, model.intercept_


def _mean_difference(Z: Floats, codes: NDArray[np.intp], n_classes: int) -> tuple[Floats, Floats]:
    """Take, for each class, its mean minus the mean of the other classes' means; the threshold lies half way."""
    means = np.stack([Z[codes == k].mean(0) for k in range(n_classes)])
    others = (means.sum(0) - means) / (n_classes - 1)
    W = means - others
    b = -0.5 * np.einsum("kd,kd->k", W, means + others)
    return (W[1:], b[1:]) if n_classes == 2 else (W, b)


def _choose_penalty(
    X: Floats, codes: NDArray[np.intp], groups: NDArray[np.intp] | None, alphas: Floats, folds: int
) -> float:
    """Return the penalty of least class-balanced log-loss on left-out groups; the larger one on a tie."""
    n_classes = int(codes.max()) + 1
    row_weight = 1.0 / np.bincount(codes, minlength=n_classes)[codes]
    loss = np.zeros(len(alphas))
    for train, test in inner_folds(groups, len(codes), folds):
        present = np.unique(codes[train])
        known = np.isin(codes[test], present)  # a class absent from the training part tells nothing of the penalty
        if len(present) < 2 or not known.any():
            continue
        mean, scale = column_scale(X[train])
        Z, held_out = (X[train] - mean) / scale, (X[test][known] - mean) / scale
        target = np.searchsorted(present, codes[test][known])
        for i, alpha in enumerate(alphas):
            W, b = _logistic(Z, np.searchsorted(present, codes[train]), alpha)
            scores = held_out @ W.T + b
            if len(present) == 2:
                scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
            top = scores.max(1)
            log_sum = top + np.log(np.exp(scores - top[:, None]).sum(1))
            loss[i] += row_weight[test][known] @ (log_sum - scores[np.arange(len(target)), target])
    return float(alphas[::-1][loss[::-1].argmin()])
