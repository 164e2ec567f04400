"""The activations that a vector was fitted on: their scaling, their leading components, and what is out of range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.conformal import LEVEL, group_weighted_quantile, left_out_coverage, next_group_quantile
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.ridge import Eigenbasis, Response, Split

LEADING = 16
"""Maximum number of leading components in which leverage is taken; never more than a tenth of the rows"""

OUT_OF_RANGE = 0.99
"""Share of the held-out rows, every patient with the same weight, below the leverage that flags a row"""

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Activations of the rows of a fit."""

    mean: Floats
    """(d,) mean of each column"""
    scale: Floats
    """(d,) standard deviation of each column, by which the fit divides; 1 for a constant one"""
    whitening: Floats
    """(d, r) leading principal components of the scaled columns, over their standard deviations"""
    limit: float = np.inf
    """Leverage above which a row is out of range"""

    def leverage(self, X: NDArray[Any]) -> Floats:
        """Return the leverage (n,) of rows X (n, d) over the mean leverage of the rows of the fit."""
        return np.concatenate([(A * A).mean(1) for A in self.coordinates(X)])

    def coordinates(self, X: NDArray[Any]) -> Iterator[Floats]:
        """Yield the whitened coordinates (k, r) of rows X (n, d), a block of rows at a time."""
        for start in range(0, max(len(X), 1), _ROWS_AT_ONCE):
            yield (X[start : start + _ROWS_AT_ONCE].astype(np.float64) - self.mean) @ self.whitening


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The vectors of one concept, fitted on all rows that have it."""

    weights: Floats
    """(d, m) change of the concept per unit of each activation; m = 1, or the number of more than two classes"""
    intercepts: Floats
    """(m,)"""
    patterns: Floats
    """(d, m) change of each activation per unit of the concept, or between the classes"""
    space: Space
    reach: float
    """Held-out error that a row of a new patient exceeds with a probability of at most a tenth; infinite if unknown"""
    coverage: float
    """Share of a patient's rows within the reach of the other patients, mean over patients; NaN if unknown"""
    predicted: NDArray[Any]
    """(n,) held-out predictions"""
    agreement: float
    """Mean correlation between the predictions that the folds' vectors give for all rows; NaN for fewer than 2"""


def space_of(basis: Eigenbasis) -> Space:
    """Return the space of the rows of a factorisation, without a limit."""
    return leading_space(len(basis.train), basis.mean, basis.scale, basis.spectrum, basis.weights)


def leading_space(n: int, mean: Floats, scale: Floats, spectrum: Floats, weights: Callable[[Floats], Floats]) -> Space:
    """Return the space of n rows from their spectrum; ``weights`` turns solutions in its basis into coefficients."""
    r = int(min(LEADING, max(n // 10, 1), (spectrum > 1e-10 * spectrum[-1]).sum()))
    leading = np.eye(len(spectrum))[:, -r:] / np.sqrt(spectrum[-r:] / n)
    return Space(mean=mean, scale=scale, whitening=weights(leading))


def limited(space: Space, A: Floats, groups: NDArray[np.intp], splits: Sequence[Split]) -> Space:
    """Return a space with the limit that flags a hundredth of the held-out rows.

    The components are those of all rows; mean and covariance of the coordinates are those of each training part.

    Parameters
    ----------
    A : (n, r) coordinates of the rows of the fit
    groups : (n,) numbers of patients
    """
    leverage = np.empty(len(A))
    for train, test in splits:
        mean = A[train].mean(0)
        spread = (A[train] - mean).T @ (A[train] - mean) / len(train)
        apart = A[test] - mean
        leverage[test] = (apart * (apart @ np.linalg.pinv(spread, hermitian=True))).mean(1)
    limit = group_weighted_quantile(leverage, groups, OUT_OF_RANGE)
    return Space(mean=space.mean, scale=space.scale, whitening=space.whitening, limit=limit)


def patterns_of(response: Response) -> Floats:
    """Return the change of the activations per unit of each target (d, t): Cov(x, y) / Var(y) (Haufe et al., 2014)."""
    basis = response.basis
    total = np.sum(response.centred**2, axis=0)
    moved = basis.weights(response.moments) * basis.scale[:, None] ** 2
    out: Floats = np.divide(moved, total, out=np.zeros_like(moved), where=total > 0)
    return out


def agreement(X: NDArray[Any], vectors: Sequence[Floats]) -> Floats:
    """Return the mean correlation (t,) between predictions of rows X (n, d) by each fold's vectors (d, t)."""
    if len(vectors) < 2:
        return np.full(vectors[0].shape[1] if vectors else 1, np.nan)
    W = np.stack(vectors, axis=2)  # (d, t, k)
    starts = range(0, len(X), _ROWS_AT_ONCE)
    predicted = [X[i : i + _ROWS_AT_ONCE].astype(np.float64) @ W.reshape(len(W), -1) for i in starts]
    P = np.concatenate(predicted).reshape(len(X), *W.shape[1:])
    P -= P.mean(0)
    return _mean_correlation(np.einsum("ntk,ntl->tkl", P, P))


def agreement_of(scatter: Floats, vectors: Sequence[Floats]) -> Floats:
    """Return the result of :func:`agreement` from the scatter (d, d) of the rows."""
    W = np.stack(vectors, axis=2)
    moved = (scatter @ W.reshape(len(W), -1)).reshape(W.shape)
    return _mean_correlation(np.einsum("dtk,dtl->tkl", W, moved))


def _mean_correlation(products: Floats) -> Floats:
    """Return the means (t,) over pairs of correlations from products (t, k, k); vectors of zeros have 0."""
    k, length = products.shape[1], np.sqrt(np.einsum("tkk->tk", products))
    scaled = products / np.where(length > 0, length, 1.0)[:, :, None] / np.where(length > 0, length, 1.0)[:, None, :]
    return np.asarray((scaled.sum((1, 2)) - np.einsum("tkk->t", scaled)) / (k * (k - 1)))


def make_fit(
    whole: tuple[Floats, Floats, Floats],
    space: Space,
    errors: Floats,
    clusters: NDArray[np.intp],
    *,
    predicted: NDArray[Any],
    agreement: float,
) -> Fit:
    """Return the vectors of a concept with the reach of its held-out errors (n,), by patients (n,).

    Parameters
    ----------
    whole : weights (d, m), intercepts (m,) and patterns (d, m)
    """
    weights, intercepts, patterns = whole
    return Fit(
        weights=weights,
        intercepts=intercepts,
        patterns=patterns,
        space=space,
        reach=next_group_quantile(errors, clusters, LEVEL),
        coverage=left_out_coverage(errors, clusters, LEVEL),
        predicted=predicted,
        agreement=agreement,
    )
