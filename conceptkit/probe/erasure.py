"""The smallest affine change of activations after which no linear probe decodes a concept (LEACE)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats


@dataclass(frozen=True)
class Eraser:
    """An affine map x ↦ μ + A (x − μ)."""

    matrix: Floats
    """A (d, d)"""
    mean: Floats
    """μ (d,)"""

    def __call__(self, X: Floats) -> Floats:
        """Return the activations (n, d) without linear information on the concept."""
        return self.mean + (X - self.mean) @ self.matrix.T


def indicators(codes: NDArray[np.intp], n_classes: int) -> Floats:
    """Return one indicator column per class (n, n_classes)."""
    return np.eye(n_classes)[codes]


def fit_eraser(X: Floats, Z: Floats, weights: Floats | None = None, *, shrinkage: float = 0.0) -> Eraser:
    """Fit the map with the smallest change of X after which X is uncorrelated with every column of Z.

    With W = Σ_xx^(−1/2) and P the orthogonal projection onto the columns of W Σ_xz, A = I − W⁺ P W. Uncorrelated
    means that no linear predictor of Z is better than a constant on these rows, for any convex loss. Directions in
    which X does not vary are unchanged.

    Parameters
    ----------
    X : (n, d) activations
    Z : (n, k) values of concepts, or :func:`indicators` of classes
    weights : (n,) row weights of the covariances
    shrinkage : share of a multiple of the identity in Σ_xx, from 0 to 1, for fewer rows than columns. X stays exactly
        uncorrelated with Z on these rows; the change is the smallest in the shrunk metric

    Raises
    ------
    InputError
        when there are fewer than two rows, or a value is not finite

    Source
    ------
    Belrose et al., LEACE: Perfect linear concept erasure in closed form, 2023, theorem 4.2
    """
    if len(X) < 2:
        raise InputError(f"erasure: needs at least 2 rows, got {len(X)}.")
    if not (np.isfinite(X).all() and np.isfinite(Z).all()):
        raise InputError("erasure: activations and values must be finite.")
    share = np.full(len(X), 1.0 / len(X)) if weights is None else weights / weights.sum()
    mean = share @ X
    centred = X - mean
    scaled = centred * share[:, None]
    cross = scaled.T @ (Z - share @ Z)  # (d, k)
    values, vectors = np.linalg.eigh(scaled.T @ centred)
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    varies = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(values[varies])
    basis = vectors[:, varies]
    # Covariance with the concept, in units of one standard deviation in every direction.
    whitened = (basis / root).T @ cross
    left, strength, _ = np.linalg.svd(whitened, full_matrices=False)
    # Directions with a correlation of rounding error are kept: projecting them out would change X without effect.
    spread = np.sqrt(share @ (Z - share @ Z) ** 2)
    left = left[:, strength > 1e-8 * max(float(spread.max(initial=0.0)), np.finfo(np.float64).tiny)]
    matrix = np.eye(X.shape[1]) - (basis * root) @ left @ left.T @ (basis / root).T
    # A constant unit stays constant: products would give it rounding errors correlated with the concept, which a probe
    # on standardised columns would decode.
    same = (X[:1] == X).all(0)
    matrix[same], matrix[:, same] = 0.0, 0.0
    matrix[same, same] = 1.0
    return Eraser(matrix, mean)
