"""A kernel probe whose cost grows with the rows, not with their square."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.folds import inner_folds
from conceptkit.probe.ridge import column_scale
from conceptkit.probe.targets import Target

WIDTHS = (0.5, 2.0, 8.0, 32.0)
"""Widths to choose from, in units of the median squared distance; the largest is nearly linear."""

ALPHAS: Floats = np.logspace(-7, -1, 7)
"""Penalties to choose from, for a mean squared error and a kernel whose diagonal is 1."""

LANDMARKS = 96
"""Maximum number of training rows that span the functions."""

PARTS = 3
"""Parts of the training groups by which width and penalty are chosen."""


class KernelProbe:
    """Least squares on a radial kernel, with width and penalty chosen by the error on left-out groups.

    f(x) = b + Σⱼ aⱼ k(zⱼ, z), k(z, z′) = exp(−‖z − z′‖²/(w·m)), z standardised activations, m their median squared
    distance, over at most 96 training rows zⱼ (subset of regressors; Rasmussen and Williams, 2006, section 8.3.1).
    Classes have an indicator column each and equal weight; the largest column is predicted.
    """

    def __init__(self, *, classes: bool, seed: int = 0) -> None:
        self.classes, self.seed = classes, seed

    def fit(self, X: Floats, y: NDArray[Any], groups: NDArray[np.intp] | None = None) -> Self:
        """Fit activations (n, d) to values, or class numbers (n,); ``groups`` (n,) are never split."""
        self.labels, codes = np.unique(y, return_inverse=True)
        Y = np.eye(len(self.labels))[codes] if self.classes else np.asarray(y, np.float64)[:, None]
        w = 1.0 / np.bincount(codes)[codes] if self.classes else np.ones(len(y))
        w = w / w.sum()
        self.mean, self.scale = column_scale(X)
        Z = (X - self.mean) / self.scale
        chosen = np.random.default_rng(self.seed).permutation(len(Z))[:LANDMARKS]
        self.landmarks = Z[chosen]
        distances = cdist(Z, self.landmarks, "sqeuclidean")
        self.unit = float(np.median(distances)) or 1.0
        parts = inner_folds(groups, len(Z), PARTS)
        fits, errors = [], np.zeros((len(WIDTHS), len(ALPHAS)))
        for at, width in enumerate(WIDTHS):
            factor, features = self._features(distances, width, chosen)
            fits.append((factor, features))
            for train, test in parts:
                found = _ridge(features[train], Y[train], w[train], ALPHAS)
                for k, (slope, level) in enumerate(found):
                    errors[at, k] += w[test] @ ((Y[test] - features[test] @ slope - level) ** 2).sum(1)
        width_at, alpha_at = np.unravel_index(int(np.argmin(errors)), errors.shape)
        self.width, self.alpha = WIDTHS[width_at], float(ALPHAS[alpha_at])
        factor, features = fits[int(width_at)]
        [(slope, self.level)] = _ridge(features, Y, w, ALPHAS[alpha_at : alpha_at + 1])
        self.dual: Floats = solve_triangular(factor, slope, lower=True, trans="T")
        return self

    def _features(self, distances: Floats, width: float, chosen: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Return the factor L (m, m) of the landmarks' kernel LLᵀ, and features (n, m) with the kernel as products."""
        kernel = np.exp(-distances / (width * self.unit))
        own = kernel[chosen]
        factor = np.asarray(np.linalg.cholesky((own + own.T) / 2 + 1e-8 * np.eye(len(own))), np.float64)
        return factor, solve_triangular(factor, kernel.T, lower=True).T

    def predict(self, X: Floats) -> NDArray[Any]:
        """Return values, or class numbers (n,)."""
        distances = cdist((X - self.mean) / self.scale, self.landmarks, "sqeuclidean")
        found = np.exp(-distances / (self.width * self.unit)) @ self.dual + self.level
        return np.asarray(self.labels[found.argmax(1)] if self.classes else found[:, 0])


def _ridge(features: Floats, Y: Floats, w: Floats, alphas: Floats) -> list[tuple[Floats, Floats]]:
    """Return slopes (m, c) and intercept (c,) of the weighted ridge regression, for each penalty."""
    w = w / w.sum()
    mean, level = w @ features, w @ Y
    A = (features - mean) * np.sqrt(w)[:, None]
    gram, moments = A.T @ A, A.T @ ((Y - level) * np.sqrt(w)[:, None])
    slopes = np.linalg.solve(gram + alphas[:, None, None] * np.eye(len(gram)), moments)
    return [(slope, level - mean @ slope) for slope in slopes]


def held_out_kernel(X: Floats, target: Target, *, folds: int = 5, seed: int = 0) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a :class:`KernelProbe`."""
    classes = target.kind == "categorical"
    out = np.empty(len(X), dtype=np.intp if classes else np.float64)
    for train, test in target.folds(folds):
        groups = None if target.groups is None else target.groups[train]
        out[test] = KernelProbe(classes=classes, seed=seed).fit(X[train], target.y[train], groups).predict(X[test])
    return out
