"""Ridge regression for many targets and penalties from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats

ALPHAS: Floats = np.logspace(-1, 6, 20)
"""The penalties tried by default, for standardised columns."""

Split = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Row numbers of a training part and of its held-out part."""


def column_scale(X: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each column; a constant column gets 1, so that it stays zero.

    Constant is judged as scikit-learn's ``StandardScaler`` does: a variance within the rounding error of the sums.
    """
    n, mean = X.shape[0], X.mean(0)
    variance = ((X - mean) ** 2).mean(0)
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(variance))


@dataclass(frozen=True)
class RidgePath:
    """All ridge solutions, one per penalty, of standardised X and centred Y: min ‖Y − XW‖² + α‖W‖².

    With X = (n, d) standardised, primal: XᵀX = V diag(λ) Vᵀ and W(α) = V diag(1/(λ + α)) VᵀXᵀY.
    Dual, used when n < d: XXᵀ = U diag(λ) Uᵀ and W(α) = XᵀU diag(1/(λ + α)) UᵀY.
    """

    mean: Floats
    """(d,) column means of the training part"""
    scale: Floats
    """(d,) column standard deviations of the training part"""
    target_mean: Floats
    """(t,)"""
    basis: Floats
    """(d, r) V in the primal form, XᵀU in the dual one: maps standardised rows onto the eigenbasis"""
    spectrum: Floats
    """(r,) λ"""
    moments: Floats
    """(r, t) VᵀXᵀY or UᵀY"""

    def predict(self, X: Floats, alphas: Floats) -> Floats:
        """Return predictions (a, n, t) for rows X (n, d) at each of the penalties (a,)."""
        projected = ((X - self.mean) / self.scale) @ self.basis  # (n, r)
        return np.stack([projected @ self._shrunk(a) for a in alphas]) + self.target_mean

    def coefficients(self, alpha: Floats) -> tuple[Floats, Floats]:
        """Return coefficients (d, t) and intercepts (t,) in the original units of X, one penalty per target (t,)."""
        shrunk = self.moments / (self.spectrum[:, None] + alpha[None, :])
        weights = (self.basis @ shrunk) / self.scale[:, None]
        return weights, self.target_mean - self.mean @ weights

    def _shrunk(self, alpha: float) -> Floats:
        out: Floats = self.moments / (self.spectrum + alpha)[:, None]
        return out


def ridge_path(X: Floats, Y: Floats) -> RidgePath:
    """Factorise once for every penalty and target.

    Parameters
    ----------
    X : (n, d) float64 activations, in their own units; standardised here with the moments of these rows
    Y : (n, t) float64 targets
    """
    mean, scale = column_scale(X)
    Z = (X - mean) / scale
    target_mean = Y.mean(0)
    centred = Y - target_mean
    # NumPy's divide and conquer, not SciPy's default: that takes 100 times as long where dead units make the spectrum
    # degenerate.
    if X.shape[0] < X.shape[1]:
        spectrum, U = np.linalg.eigh(Z @ Z.T)
        return RidgePath(mean, scale, target_mean, Z.T @ U, np.maximum(spectrum, 0.0), U.T @ centred)
    spectrum, V = np.linalg.eigh(Z.T @ Z)
    return RidgePath(mean, scale, target_mean, V, np.maximum(spectrum, 0.0), V.T @ (Z.T @ centred))


def held_out_error(X: Floats, Y: Floats, splits: Iterable[Split], alphas: Floats) -> Floats:
    """Return the sum of squared held-out errors (a, t) of each penalty and target over the splits."""
    total = np.zeros((len(alphas), Y.shape[1]))
    for train, test in splits:
        predicted = ridge_path(X[train], Y[train]).predict(X[test], alphas)
        total += ((predicted - Y[test]) ** 2).sum(1)
    return total


def choose_alpha(X: Floats, Y: Floats, splits: Iterable[Split], alphas: Floats = ALPHAS) -> Floats:
    """Return, for each target (t,), the penalty of least held-out error; the larger one on a tie."""
    error = held_out_error(X, Y, splits, alphas)[::-1]
    chosen: Floats = alphas[::-1][error.argmin(0)]
    return chosen
