"""One factorisation of a training part, from which all of its ridge solutions follow."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dger

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.linear_algebra import eigh, product

ALPHAS: Floats = np.logspace(-1, 6, 20)
"""Default penalties, for standardised columns."""

Split = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Row numbers of a training part and of its held-out part."""

_BLOCK = 2**19
"""Values converted to float64 at a time (4 MiB, which the processor's cache holds). X is never copied whole."""

_MOMENTS_BLOCK = 2**22
"""Values whose scatter is computed at a time: each further block adds d × d sums"""

_KEPT = 2**26
"""Maximum number of coordinates (512 MiB) kept between calls; larger ones are computed again."""


def _blocks(
    X: NDArray[Any], rows: NDArray[np.intp], mean: Floats | float, size: int = _BLOCK
) -> Iterator[tuple[slice, Floats]]:
    """Yield places among ``rows``, and these rows of X (n, d) minus ``mean`` in float64, a block at a time."""
    step = max(1, size // X.shape[1])
    for i in range(0, len(rows), step):
        block = X[rows[i : i + step]].astype(np.float64, copy=False)  # rows by number are a copy already
        block -= mean
        yield slice(i, i + step), block


def column_scale(X: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each column, 1 for a constant column."""
    mean = X.mean(0)
    return mean, _scale(X.shape[0], mean, ((X - mean) ** 2).mean(0))


def _scale(n: int, mean: Floats, variance: Floats) -> Floats:
    """Return standard deviations, 1 where the variance is rounding error, as scikit-learn's ``StandardScaler``."""
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))


@dataclass(frozen=True)
class Moments:
    """Number, mean (d,) and scatter (d, d) about the mean of some rows."""

    n: int
    mean: Floats
    scatter: Floats


def scale_of(moments: Moments) -> Floats:
    """Return the standard deviation of each column, 1 for a constant one."""
    return _scale(moments.n, moments.mean, np.diagonal(moments.scatter) / moments.n)


def row_moments(X: NDArray[Any], rows: NDArray[np.intp]) -> Moments:
    """Return the moments of some rows of X (n, d), computed in float64 a block of rows at a time."""
    whole: Moments | None = None
    for _, block in _blocks(X, rows, 0.0, _MOMENTS_BLOCK):
        mean = block.mean(0)
        block -= mean
        whole = added(whole, Moments(len(block), mean, product(block.T, block)))
    return whole or Moments(0, np.zeros(0), np.zeros((0, 0)))


def gathered(parts: Iterable[Moments]) -> Moments:
    """Return the moments of the union of disjoint parts (Chan et al., 1983).

    Parts are added, never subtracted from a whole, so that a column that varies in one part only is exactly constant
    in the others.
    """
    whole: Moments | None = None
    for part in parts:
        whole = Moments(part.n, part.mean, part.scatter.copy()) if whole is None else added(whole, part)
    return whole or Moments(0, np.zeros(0), np.zeros((0, 0)))


def added(whole: Moments | None, part: Moments) -> Moments:
    """Return the moments of both, in the scatter of ``whole``."""
    if whole is None:
        return part
    n, step = whole.n + part.n, part.mean - whole.mean
    whole.scatter.__iadd__(part.scatter)
    # In place, without a second d × d matrix
    dger(whole.n * part.n / n, step, step, a=whole.scatter.T, overwrite_a=1)
    return Moments(n, whole.mean + step * (part.n / n), whole.scatter)


def part_moments(X: NDArray[Any], splits: Sequence[Split]) -> list[Moments] | None:
    """Return the moments of each held-out part, of which all rows consist.

    ``None`` when a training part has fewer rows than columns, because it is then factorised through its kernel.
    """
    if any(len(train) < X.shape[1] for train, _ in splits):
        return None
    return [row_moments(X, test) for _, test in splits]


def training_moments(parts: Sequence[Moments]) -> Iterator[Moments]:
    """Yield the moments of each training part: all held-out parts except one."""
    for i in range(len(parts)):
        yield gathered(part for j, part in enumerate(parts) if j != i)


@dataclass(frozen=True)
class Eigenbasis:
    """Standardised rows in the eigenbasis of a training part, in which a ridge solution is a division.

    With Z (n, d) the standardised training rows and A = ZV = U diag(√λ) their coordinates, the solution of
    min ‖y − ȳ − Zw‖² + α‖w‖² is w = V c with c = Aᵀ(y − ȳ) / (λ + α). Primal: ZᵀZ = V diag(λ) Vᵀ. Dual, for n < d:
    ZZᵀ = U diag(λ) Uᵀ, and V = ZᵀU diag(1/√λ) is never formed.
    """

    X: NDArray[Any]  # (rows, d) all rows, as given
    train: NDArray[np.intp]  # (n,) rows of the training part
    mean: Floats  # (d,) column means of the training part
    scale: Floats  # (d,) column standard deviations of the training part
    spectrum: Floats  # (r,) λ
    vectors: Floats  # (d, r) V, or (n, r) U diag(1/√λ) in the dual form
    kernel: Floats | None  # (rows, n) products of standardised rows with the training rows; None in the primal form

    @functools.cached_property
    def _kernel_coordinates(self) -> Floats:
        return np.zeros((0, 0)) if self.kernel is None else self.kernel @ self.vectors

    @functools.cached_property
    def computed(self) -> dict[tuple[bool, Any], Any]:
        """Return the coordinates computed so far, of the training part and of the other rows, by precision."""
        return {}

    @functools.cached_property
    def _rest(self) -> NDArray[np.intp]:
        return np.flatnonzero(self._place < 0)

    @functools.cached_property
    def _place(self) -> NDArray[np.intp]:
        """Return the place (rows,) of each row of X in the training part, −1 for the others."""
        place = np.full(len(self.X), -1)
        place[self.train] = np.arange(len(self.train))
        return place

    @functools.cached_property
    def _small(self) -> bool:
        """Return whether the coordinates of all rows are kept in memory."""
        return self.kernel is not None or len(self.X) * len(self.spectrum) <= _KEPT

    def _side(self, fitted: bool, dtype: Any) -> Any:
        """Return coordinates in memory, or in a file next to that of X; ``None``: too large, to be computed again."""
        if (fitted, dtype) not in self.computed:
            rows = self.train if fitted else self._rest
            new_file = getattr(self.X, "new_file", None)  # X may be a conceptkit.files.matrix.FileMatrix
            if self._small:
                self.computed[fitted, dtype] = self._projected(rows, dtype)
            else:
                file = None if new_file is None else new_file(len(rows), self._in_blocks(rows, dtype))
                self.computed[fitted, dtype] = file
        return self.computed[fitted, dtype]

    def coordinates(self, rows: NDArray[np.intp], dtype: Any = np.float64) -> NDArray[Any]:
        """Return the read-only coordinates (len(rows), r) of some rows of X.

        Those of the training part are computed together once, and so are those of the other rows. Single precision
        takes half the time.
        """
        if self.kernel is not None:
            return self._kernel_coordinates[rows].astype(dtype, copy=False)
        place = self._place[rows]
        fitted = place >= 0
        if len(rows) and fitted.all() == fitted.any():
            kept, at = self._side(bool(fitted[0]), dtype), place
            if not fitted[0]:
                at = np.searchsorted(self._rest, rows)
            return self._projected(rows, dtype) if kept is None else _taken(kept, at)
        out = np.empty((len(rows), len(self.spectrum)), dtype)
        for some in (fitted, ~fitted):
            if some.any():
                out[some] = self.coordinates(rows[some], dtype)
        return out

    def _projected(self, rows: NDArray[np.intp], dtype: Any) -> NDArray[Any]:
        out = np.empty((len(rows), len(self.spectrum)), dtype)
        for _ in self._in_blocks(rows, dtype, out):
            pass
        out.flags.writeable = False  # callers receive views
        return out

    def _in_blocks(
        self, rows: NDArray[np.intp], dtype: Any, out: NDArray[Any] | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[Any]]]:
        """Yield places among ``rows`` and their coordinates, a block at a time; computed in ``out``, if given."""
        V = self.vectors.astype(dtype, copy=False)
        for at, Z in self.standardised(rows):
            A = product(Z.astype(dtype, copy=False), V)
            if out is not None:
                out[at] = A
            yield np.arange(at.start, at.start + len(A)), A

    def standardised(self, rows: NDArray[np.intp]) -> Iterator[tuple[slice, Floats]]:
        """Yield places among ``rows`` and these rows, standardised, a block at a time."""
        for at, block in _blocks(self.X, rows, self.mean):
            block /= self.scale
            yield at, block

    def response(self, Y: Floats) -> Response:
        """Return training targets Y (n, t) with their products with the coordinates."""
        mean = Y.mean(0)
        return Response(self, mean, Y - mean, self._moments(Y - mean))

    def _moments(self, centred: Floats) -> Floats:
        if self.kernel is not None:
            return self.coordinates(self.train).T @ centred
        # Vᵀ(Zᵀy), not (ZV)ᵀy: this avoids the coordinates of the rows, a product of n × d × d.
        products = np.zeros((self.X.shape[1], centred.shape[1]))
        for at, block in _blocks(self.X, self.train, self.mean):
            products += block.T @ centred[at]
        return self.vectors.T @ (products / self.scale[:, None])

    def weights(self, c: Floats) -> Floats:
        """Return coefficients (d, t) in units of the columns of X, of solutions c (r, t) in the eigenbasis."""
        if self.kernel is None:
            return (self.vectors @ c) / self.scale[:, None]
        dual = self.vectors @ c  # (n, t)
        out = np.empty((self.X.shape[1], c.shape[1]))
        for at in _column_blocks(self.X):
            block = self.X[:, at][self.train].astype(np.float64, copy=False) - self.mean[at]
            out[at] = (block / self.scale[at]).T @ dual / self.scale[at, None]
        return out

    def linear(self, rows: NDArray[np.intp], C: Floats) -> Floats:
        """Return the products (len(rows), k) of the coordinates of rows outside the training part with C (r, k).

        Few columns need no coordinates, which are kept where they were computed.
        """
        if self.kernel is not None or (False, np.float64) in self.computed or C.shape[1] > len(rows):
            return self.coordinates(rows) @ C
        return _predicted_by(self.X, rows, self.mean, self.weights(C), np.zeros(C.shape[1]))

    def fit(self, Y: Floats, alpha: Floats) -> RidgeFit:
        """Return the solutions for training targets Y (n, t), each at its own penalty (t,)."""
        return self.response(Y).fit(alpha)


def _taken(coordinates: Floats, at: NDArray[np.intp]) -> Floats:
    """Return rows of coordinates, as a view where they are consecutive."""
    if len(at) and bool((np.diff(at) == 1).all()):
        return coordinates[at[0] : at[-1] + 1]
    return coordinates[at]


@dataclass(frozen=True)
class Response:
    """Targets of a training part, with all that their solutions at any penalty need."""

    basis: Eigenbasis
    mean: Floats  # (t,)
    centred: Floats  # (n, t) about their means
    moments: Floats  # (r, t) Aᵀ(y − ȳ)

    def only(self, columns: slice | NDArray[np.intp]) -> Response:
        """Return some of the targets."""
        return Response(self.basis, self.mean[columns], self.centred[:, columns], self.moments[:, columns])

    def mixed(self, mix: Floats) -> Response:
        """Return the combinations (t, t') of the targets, in which all fields are linear."""
        return Response(self.basis, self.mean @ mix, self.centred @ mix, self.moments @ mix)

    def fit(self, alpha: Floats) -> RidgeFit:
        """Return the solutions, each target at its own penalty (t,)."""
        return RidgeFit(self.basis, self.mean, self.moments / (self.basis.spectrum[:, None] + alpha))


@dataclass(frozen=True)
class RidgeFit:
    """Ridge solutions of t targets, each at its own penalty."""

    basis: Eigenbasis
    target_mean: Floats  # (t,)
    c: Floats  # (r, t) solutions in the eigenbasis

    def predict(self, rows: NDArray[np.intp]) -> Floats:
        """Return predictions (len(rows), t) for rows of the basis's X."""
        basis = self.basis
        if basis.kernel is not None:
            return basis.coordinates(rows) @ self.c + self.target_mean
        weights = basis.weights(self.c)  # (d, t): cheaper than the coordinates of the rows
        return _predicted_by(basis.X, rows, basis.mean, weights, self.target_mean)

    def coefficients(self) -> tuple[Floats, Floats]:
        """Return coefficients (d, t) in the original units of X, and intercepts (t,)."""
        weights = self.basis.weights(self.c)
        return weights, self.target_mean - self.basis.mean @ weights


def factorise(X: NDArray[Any], train: NDArray[np.intp] | None = None, moments: Moments | None = None) -> Eigenbasis:
    """Factorise a training part once for all penalties and targets.

    Parameters
    ----------
    X : (rows, d) activations of any float type
    train : (n,) rows of the training part, whose moments standardise the columns; all rows by default
    moments : of these rows, if already computed

    Returns
    -------
    the eigenbasis, primal for n ≥ d, dual for n < d, which forms no d × d matrix and reads X in blocks
    """
    train = np.arange(len(X)) if train is None else train
    if len(train) < X.shape[1]:
        mean, scale, products = _kernel(X, train)
        spectrum, U = eigh(products[train])
        kept = spectrum > len(train) * np.finfo(np.float64).eps * max(spectrum[-1], 0.0)
        return Eigenbasis(X, train, mean, scale, spectrum[kept], U[:, kept] / np.sqrt(spectrum[kept]), products)
    known = row_moments(X, train) if moments is None else moments
    scale = scale_of(known)
    spectrum, V = eigh(_standardised(known.scatter, scale))
    return Eigenbasis(X, train, known.mean, scale, np.maximum(spectrum, 0.0), V, None)


def _standardised(scatter: Floats, scale: Floats) -> Floats:
    out: Floats = scatter / scale
    out /= scale[:, None]
    return out


@dataclass(frozen=True)
class Products:
    """Products of some rows with their targets."""

    mean: Floats  # (d,) of the rows
    products: Floats  # (t, d) Σy (x − mean)ᵀ, in the order in which LAPACK solves in place
    total: Floats  # (t,) Σy


def part_products(X: NDArray[Any], rows: NDArray[np.intp], Y: Floats) -> Products:
    """Return the products of some rows of X (n, d) with their targets Y (n, t)."""
    mean = X[rows].mean(0, dtype=np.float64)
    out = np.zeros((Y.shape[1], X.shape[1]))
    for at, block in _blocks(X, rows, mean):
        out += Y[rows[at]].T @ block
    return Products(mean, out, Y[rows].sum(0))


def predict_at(
    X: NDArray[Any],
    test: NDArray[np.intp],
    products: Floats,
    target_mean: Floats,
    alpha: Floats,
    moments: Moments,
) -> Floats:
    """Return held-out predictions (len(test), t) at known penalties (t,), by Cholesky factors, which cost less than V.

    Parameters
    ----------
    products : (t, d) Σy (x − x̄)ᵀ over the training part; overwritten
    target_mean, moments : (t,) and moments of the training part, which has at least as many rows as columns
    """
    scale = scale_of(moments)
    products /= scale
    different = np.unique(alpha)
    for value in different:
        gram = _standardised(moments.scatter, scale)
        gram.flat[:: len(gram) + 1] += value
        factor = cho_factor(gram, overwrite_a=True, check_finite=False)
        at = slice(None) if len(different) == 1 else alpha == value
        some = products[at]
        products[at] = cho_solve(factor, some.T, overwrite_b=True, check_finite=False).T
    products /= scale
    return _predicted_by(X, test, moments.mean, products.T, target_mean)


def _predicted_by(
    X: NDArray[Any], rows: NDArray[np.intp], mean: Floats, weights: Floats, target_mean: Floats
) -> Floats:
    """Return (x − mean) · weights + target_mean (len(rows), t) of some rows."""
    out = np.empty((len(rows), weights.shape[1]))
    for at, block in _blocks(X, rows, mean):
        np.matmul(block, weights, out=out[at])
    out += target_mean
    return out


def _kernel(X: NDArray[Any], train: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Return column means and deviations of the training rows, and products of all rows with these (rows, n)."""
    mean, scale = np.empty(X.shape[1]), np.empty(X.shape[1])
    products = np.zeros((len(X), len(X)))
    for at in _column_blocks(X):
        block = X[:, at].astype(np.float64)
        mean[at], scale[at] = column_scale(block[train])
        block -= mean[at]
        block /= scale[at]
        products += product(block, block.T)
    return mean, scale, products[:, train]


def _column_blocks(X: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BLOCK // len(X))
    for i in range(0, X.shape[1], step):
        yield slice(i, i + step)
