"""Ridge vectors of rows that are too many for memory, in two passes over them.

The first pass computes the moments of features and targets together in each block of groups. Errors at every penalty
follow from sums of these; the second pass predicts. A training part chooses its penalties by leaving out each of its
blocks, at most ten in all: leave-one-group-out itself reads each row for each penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.files.matrix import FileMatrix
from conceptkit.probe.alpha import best_alpha
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import Moments, Split, gathered, scale_of

MOST_BLOCKS = 10
"""Maximum number of blocks of groups, unless there are more folds"""

_ROWS = 4096
"""Rows read at a time"""

Fit = tuple[Floats, Floats]
"""Coefficients (d, t) and intercepts (t,)"""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of t targets, and what their scores and intervals need."""

    predicted: Floats  # (n, t) out of fold
    fitted: Floats  # (n, t) by the fit on all rows
    patchwise: Floats  # (n, t) out of folds that mix groups
    alpha_folds: Floats  # (folds, t)
    alpha: Floats  # (t,) of the fit on all rows
    weights: list[Floats]  # (d, t) of each fold
    deleted: Floats  # (u, t) squared out-of-fold error with each unit deleted
    scores: Floats  # (t',) out-of-fold R² of combinations of the columns


def is_many(X: Any, splits: Sequence[Split]) -> bool:
    """Return whether rows lie in files, and every training part has more of them than columns."""
    return isinstance(X, FileMatrix) and all(len(train) > X.shape[1] for train, _ in splits)


def probe_blocks(
    X: Any,
    columns: Floats,
    mix: Floats,
    t: int,
    groups: NDArray[np.intp] | None,
    units: NDArray[np.intp],
    splits: Sequence[Split],
    alphas: Floats,
    seed: int,
) -> HeldOut:
    """Probe targets in two passes over the rows.

    A deleted unit changes the vectors to first order in its leverage: (I − H_gg)⁻¹ of
    :func:`conceptkit.probe.crossfit.deleted_errors` is taken as I.

    Parameters
    ----------
    X : (n, d) rows
    columns : (n, k), first the ``t`` targets, then controls
    mix : (k, t') combinations that are scored, first the targets
    groups, units : (n,) numbers of the groups, and of the units that the jackknife deletes; ``groups`` may be ``None``
    splits : folds by group
    alphas : penalties to choose from
    seed : of the blocks, and of the folds that mix groups
    """
    d, n_folds = X.shape[1], len(splits)
    layout = _Blocks.of(groups, splits, seed)
    mixed = _numbers(make_folds(len(columns), None, n_folds, seed=seed))
    blocks, parts = _moments(X, columns, [(layout.numbers, columns.shape[1]), (mixed, t)])
    ridges, alpha_folds, error = [], np.empty((n_folds, mix.shape[1])), np.zeros(mix.shape[1])
    for k in range(n_folds):
        inside, held = layout.parts(blocks, k)
        alpha_folds[k] = _chosen_alpha(inside, d, mix, alphas)
        ridges.append(_Ridge.of(gathered(inside), d))
        error += ridges[k].errors_at(held, mix, alpha_folds[k])
    own = mix[:, :t]
    alpha = _chosen_alpha(blocks, d, own, alphas)
    of_parts = _chosen_alpha(parts, d, np.eye(t), alphas)
    patch_fits = [
        _Ridge.of(gathered(p for j, p in enumerate(parts) if j != i), d).fit(np.eye(t), of_parts)
        for i in range(n_folds)
    ]
    whole = gathered(blocks)
    fits = [ridge.fit(own, alpha_folds[k, :t]) for k, ridge in enumerate(ridges)]
    second = _SecondPass(n_folds, d, t, int(units.max()) + 1)
    folds = _numbers(splits)
    predicted = second.run(
        X, columns[:, :t], folds, mixed, units, fits, patch_fits, _Ridge.of(whole, d).fit(own, alpha)
    )
    deleted = sum(
        second.deleted(k, ridge, layout.parts(blocks, k)[1], alpha_folds[k, :t]) for k, ridge in enumerate(ridges)
    )
    total = np.einsum("kt,kl,lt->t", mix, whole.scatter[d:, d:], mix)
    weights = [fit[0] for fit in fits]
    return HeldOut(*predicted, alpha_folds[:, :t], alpha, weights, np.asarray(deleted), 1.0 - error / total)


def predict_blocks(
    X: Any, Y: Floats, groups: NDArray[np.intp] | None, splits: Sequence[Split], alphas: Floats
) -> Floats:
    """Return out-of-fold predictions (n, t) of targets Y (n, t) in two passes over the rows."""
    d, layout = X.shape[1], _Blocks.of(groups, splits, 0)
    blocks = _moments(X, Y, [(layout.numbers, Y.shape[1])])[0]
    mix, fits = np.eye(Y.shape[1]), []
    for k in range(len(splits)):
        inside, _ = layout.parts(blocks, k)
        fits.append(_Ridge.of(gathered(inside), d).fit(mix, _chosen_alpha(inside, d, mix, alphas)))
    folds, out = _numbers(splits), np.empty(Y.shape)
    for at, block in _read(X):
        out[at] = _own(_predictions(block, fits), folds[at])
    return out


@dataclass(frozen=True)
class _Blocks:
    """Blocks of groups, each within one held-out part."""

    numbers: NDArray[np.intp]  # (n,)
    fold: NDArray[np.intp]  # (b,) held-out part of each block

    @classmethod
    def of(cls, groups: NDArray[np.intp] | None, splits: Sequence[Split], seed: int) -> _Blocks:
        numbers, fold = np.empty(sum(len(test) for _, test in splits), dtype=np.intp), []
        for k, (_, test) in enumerate(splits):
            own = None if groups is None else np.unique(groups[test], return_inverse=True)[1]
            count = min(max(MOST_BLOCKS // len(splits), 1), len(test) if own is None else int(own.max()) + 1)
            parts = [(test, np.arange(len(test)))] if count == 1 else make_folds(len(test), own, count, seed=seed)
            for _, rows in parts:
                numbers[test[rows]] = len(fold)
                fold.append(k)
        if len(fold) < 3:
            raise InputError("groups: choosing a penalty needs at least 2 groups in a training part, it has 1.")
        return cls(numbers, np.array(fold))

    def parts(self, blocks: Sequence[Moments], k: int) -> tuple[list[Moments], Moments]:
        """Return the blocks of the training part of fold ``k``, and the moments of its held-out part."""
        of = list(zip(blocks, self.fold, strict=True))
        return [block for block, fold in of if fold != k], gathered(block for block, fold in of if fold == k)


def _numbers(splits: Sequence[Split]) -> NDArray[np.intp]:
    """Return the held-out part (n,) of each row."""
    out = np.empty(sum(len(test) for _, test in splits), dtype=np.intp)
    for k, (_, test) in enumerate(splits):
        out[test] = k
    return out


def _read(X: Any) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(X), _ROWS):
        at = slice(start, min(start + _ROWS, len(X)))
        yield at, X[at].astype(np.float64)


def _moments(X: Any, columns: Floats, labels: Sequence[tuple[NDArray[np.intp], int]]) -> list[list[Moments]]:
    """Return the moments of features and columns, together, of each number of each labelling of the rows.

    Parameters
    ----------
    labels : numbers (n,), and how many of the first columns are wanted
    """
    sums = [[_Sums() for _ in range(int(numbers.max()) + 1)] for numbers, _ in labels]
    d = X.shape[1]
    for at, block in _read(X):
        joint = np.concatenate([block, columns[at]], axis=1)
        for (numbers, k), of in zip(labels, sums, strict=True):
            own = numbers[at]
            for number in np.unique(own):
                of[number].add(np.ascontiguousarray(joint[own == number, : d + k]))
    return [[one.moments() for one in of] for of in sums]


class _Sums:
    """Sums of rows and of their products about the mean of the first ones, which keeps them precise."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, rows: Floats) -> None:
        if not self.n:
            self.shift, self.total = rows.mean(0), np.zeros(rows.shape[1])
            self.products = np.zeros((rows.shape[1],) * 2, order="F")
        rows -= self.shift
        self.n += len(rows)
        self.total += rows.sum(0)
        self.products = dsyrk(1.0, rows.T, 1.0, self.products, overwrite_c=1)  # half the work of a product

    def moments(self) -> Moments:
        mean = self.total / self.n
        upper = np.triu(self.products)
        upper += np.triu(upper, 1).T
        self.products = np.zeros((0, 0))
        return Moments(self.n, self.shift + mean, upper - self.n * np.outer(mean, mean))


@dataclass(frozen=True)
class _Ridge:
    """Ridge solutions of columns from their joint moments with the features."""

    d: int
    n: int
    mean: Floats  # (d + k,)
    scale: Floats  # (d,)
    spectrum: Floats  # (d,)
    vectors: Floats  # (d, d)
    products: Floats  # (d, k) of the features in the eigenbasis with the columns

    @classmethod
    def of(cls, moments: Moments, d: int, scale: Floats | None = None) -> _Ridge:
        if scale is None:
            scale = scale_of(Moments(moments.n, moments.mean[:d], moments.scatter[:d, :d]))
        gram = moments.scatter[:d, :d] / scale
        gram /= scale[:, None]
        spectrum, V = np.linalg.eigh(gram)
        return cls(
            d,
            moments.n,
            moments.mean,
            scale,
            np.maximum(spectrum, 0.0),
            V,
            V.T @ (moments.scatter[:d, d:] / scale[:, None]),
        )

    def fit(self, mix: Floats, alpha: Floats) -> Fit:
        """Return coefficients and intercepts of combinations (k, t) of the columns, each at its penalty (t,)."""
        B = self.vectors @ ((self.products @ mix) / (self.spectrum[:, None] + alpha)) / self.scale[:, None]
        return B, self.mean[self.d :] @ mix - self.mean[: self.d] @ B

    def errors(self, held: Moments, mix: Floats, alphas: Floats) -> Floats:
        """Return squared errors (a, t) on held-out rows of combinations (k, t) of the columns, at each penalty (a,)."""
        d, a, k = self.d, len(alphas), self.products.shape[1]
        shrunk = self.products[:, None, :] / (self.spectrum[:, None] + alphas)[:, :, None]  # (d, a, k)
        B = self.vectors @ shrunk.reshape(d, a * k)
        B /= self.scale[:, None]
        off = (held.mean[d:] - self.mean[d:])[None] - ((held.mean[:d] - self.mean[:d]) @ B).reshape(a, k)
        with_x = (held.scatter[:d, :d] @ B).reshape(d, a, k)
        B = B.reshape(d, a, k)
        out = np.empty((a, mix.shape[1]))
        for i in range(a):
            cross = B[:, i].T @ held.scatter[:d, d:]
            squares = held.scatter[d:, d:] - cross - cross.T + B[:, i].T @ with_x[:, i]
            squares += held.n * np.outer(off[i], off[i])
            out[i] = np.einsum("kt,kl,lt->t", mix, squares, mix, optimize=True)
        return out

    def errors_at(self, held: Moments, mix: Floats, alpha: Floats) -> Floats:
        """Return squared errors (t,) on held-out rows of combinations (k, t), each at its own penalty (t,)."""
        d = self.d
        B, _ = self.fit(mix, alpha)
        off = (held.mean[d:] - self.mean[d:]) @ mix - (held.mean[:d] - self.mean[:d]) @ B
        error = np.einsum("kt,kl,lt->t", mix, held.scatter[d:, d:], mix, optimize=True) + held.n * off**2
        error += (B * (held.scatter[:d, :d] @ B - 2 * held.scatter[:d, d:] @ mix)).sum(0)
        return np.asarray(error)


def _chosen_alpha(parts: Sequence[Moments], d: int, mix: Floats, alphas: Floats) -> Floats:
    """Return the penalty of each combination (k, t) with the smallest error on parts that are left out in turn.

    As with groups, columns are standardised by all parts.
    """
    whole = gathered(parts)
    scale = scale_of(Moments(whole.n, whole.mean[:d], whole.scatter[:d, :d]))
    error = np.zeros((len(alphas), mix.shape[1]))
    for i, held in enumerate(parts):
        rest = gathered(part for j, part in enumerate(parts) if j != i)
        error += _Ridge.of(rest, d, scale).errors(held, mix, alphas)
    return best_alpha(alphas, error)


def _predictions(block: Floats, fits: Sequence[Fit]) -> Floats:
    """Return predictions (rows, fits, t)."""
    B, level = np.concatenate([fit[0] for fit in fits], axis=1), np.concatenate([fit[1] for fit in fits])
    return np.asarray(block @ B + level).reshape(len(block), len(fits), -1)


def _own(predictions: Floats, folds: NDArray[np.intp]) -> Floats:
    """Return those (rows, t) of the fold in which each row is held out."""
    return np.asarray(predictions[np.arange(len(folds)), folds])


class _SecondPass:
    """Predictions of all rows, and what the deletion of units needs."""

    def __init__(self, n_folds: int, d: int, t: int, n_units: int) -> None:
        self.shape = n_folds, t
        self.pulled = np.zeros((n_units, d, n_folds * t))  # Σ x e over the rows of a unit that train a fold
        self.level = np.zeros((n_units, n_folds, t))  # Σ e over them
        self.held = np.zeros((n_folds, n_units, d, t))  # Σ x e over those that are held out
        self.held_level, self.held_square = (np.zeros((n_folds, n_units, t)) for _ in range(2))

    def run(
        self,
        X: Any,
        Y: Floats,
        folds: NDArray[np.intp],
        mixed: NDArray[np.intp],
        units: NDArray[np.intp],
        fits: Sequence[Fit],
        patch_fits: Sequence[Fit],
        whole: Fit,
    ) -> tuple[Floats, Floats, Floats]:
        """Return predictions (n, t) out of fold, by the fit on all rows, and out of the folds that mix groups."""
        predicted, fitted, patchwise = (np.empty(Y.shape) for _ in range(3))
        f = len(fits)
        for at, block in _read(X):
            every = _predictions(block, [*fits, *patch_fits, whole])
            own = folds[at]
            predicted[at], patchwise[at] = _own(every[:, :f], own), _own(every[:, f:-1], mixed[at])
            fitted[at] = every[:, -1]
            error = Y[at][:, None, :] - every[:, :f]
            order = np.lexsort([own, units[at]])
            starts = np.flatnonzero(np.diff(units[at][order] * f + own[order], prepend=-1))
            for rows in np.split(order, starts[1:]):
                self._add(block[rows], error[rows], int(units[at][rows[0]]), int(own[rows[0]]))
        return predicted, fitted, patchwise

    def _add(self, block: Floats, error: Floats, unit: int, fold: int) -> None:
        held = error[:, fold].copy()
        self.held[fold, unit] += block.T @ held
        self.held_level[fold, unit] += held.sum(0)
        self.held_square[fold, unit] += (held**2).sum(0)
        error[:, fold] = 0.0
        self.pulled[unit] += block.T @ error.reshape(len(block), -1)
        self.level[unit] += error.sum(0)

    def deleted(self, k: int, ridge: _Ridge, held: Moments, alpha: Floats) -> Floats:
        """Return the squared error (u, t) of held-out rows of fold ``k`` with each unit deleted from both parts."""
        d, t = ridge.d, self.shape[1]
        mean, out = ridge.mean[:d], np.empty((len(self.level), t))
        held_mean, scatter = held.mean[:d], held.scatter[:d, :d]
        for i in range(t):
            level = self.level[:, k, i]
            pulled = (self.pulled[:, :, k * t + i].T - np.outer(mean, level)) / ridge.scale[:, None]
            q = ridge.vectors @ ((ridge.vectors.T @ pulled) / (ridge.spectrum + alpha[i])[:, None])
            g = q / ridge.scale[:, None]  # (d, u): the prediction of x changes by level + (x − mean) g
            at_mean = (held_mean - mean) @ g + level / ridge.n
            xe, e = self.held[k, :, :, i], self.held_level[k, :, i]
            linear = at_mean * e.sum() + (xe.sum(0) - held_mean * e.sum()) @ g
            square = held.n * at_mean**2 + (g * (scatter @ g)).sum(0)
            own = at_mean * e + ((xe - np.outer(e, held_mean)).T * g).sum(0)
            squares = self.held_square[k, :, i]
            out[:, i] = squares.sum() + 2 * linear + square - squares - 2 * own
        return out
