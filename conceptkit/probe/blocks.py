"""Ridge vectors of rows that are too many for memory, in two passes over them.

The first pass computes the moments of features and targets, together, of each unit that the jackknife deletes. Errors
at every penalty follow from sums of these; the second pass predicts. A training part chooses its penalties by leaving
out each of its blocks of units, at most ten in all: leave-one-group-out itself reads each row for each penalty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import MOST_UNITS
from conceptkit.evaluate.scores import Floats
from conceptkit.files.matrix import FileMatrix, Part, gather
from conceptkit.probe.alpha import best_alpha
from conceptkit.probe.block_ridge import BlockRidge, Fit
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import Moments, Split, added, gathered, scale_of
from conceptkit.probe.space import Space, agreement_of

MOST_BLOCKS = 10
"""Maximum number of blocks of groups, unless there are more folds"""

_ROWS = 4096
"""Rows read at a time"""

_TOGETHER = 16
"""Units whose deletion is computed together"""


@dataclass(frozen=True)
class Whole:
    """The fit on all rows, and what its limits need."""

    weights: Floats  # (d, t)
    intercepts: Floats  # (t,)
    patterns: Floats  # (d, t)
    space: Space
    leading: Floats  # (n, r) coordinates of all rows in the space
    agreement: Floats  # (t,) of the folds' vectors


@dataclass(frozen=True)
class Fold:
    """One fold of rows that are too many for memory."""

    ridge: BlockRidge
    held: Moments
    """Joint moments of the held-out part and the columns"""


class UnitMeans:
    """Mean rows of units, from blocks of rows."""

    def __init__(self, d: int, numbers: NDArray[np.intp]) -> None:
        self.numbers, self.sums = numbers, np.zeros((int(numbers.max()) + 1, d))

    def add(self, rows: NDArray[np.intp], block: Floats) -> None:
        """Add a block (k, d) of rows (k,)."""
        order = np.argsort(self.numbers[rows], kind="stable")
        units, starts = np.unique(self.numbers[rows][order], return_index=True)
        self.sums[units] += np.add.reduceat(block[order], starts)

    def means(self) -> Floats:
        """Return the means (u, d)."""
        return self.sums / np.bincount(self.numbers)[:, None]


@dataclass(frozen=True)
class HeldOut:
    """Predictions of t targets, and what their scores and intervals need."""

    predicted: Floats  # (n, t) out of fold
    fitted: Floats  # (n, t) by the fit on all rows
    patchwise: Floats  # (n, t) out of folds that mix groups
    alpha_folds: Floats  # (folds, t)
    alpha: Floats  # (t,) of the fit on all rows
    weights: list[Floats]  # (d, t) of each fold
    units: NDArray[np.intp]  # (n,) numbers 0 … u − 1 of the units that are deleted
    deleted: Floats  # (u, t) squared out-of-fold error with each unit deleted
    scores: Floats  # (t',) out-of-fold R² of combinations of the columns
    whole: Whole | None = None
    folds: Sequence[Fold] = ()
    means: Sequence[Floats] = ()
    """(u, d) mean of the rows of each unit, for each numbering of units that was given"""


def is_many(X: Any, splits: Sequence[Split]) -> bool:
    """Return whether rows lie in files, and every training part has more of them than columns."""
    return isinstance(X, FileMatrix) and all(len(train) > X.shape[1] for train, _ in splits)


def probe_blocks(
    X: Any,
    columns: Floats,
    mix: Floats,
    t: int,
    groups: NDArray[np.intp] | None,
    splits: Sequence[Split],
    alphas: Floats,
    seed: int,
    units: Sequence[NDArray[np.intp]] = (),
) -> HeldOut:
    """Probe targets in two passes over the rows.

    Parameters
    ----------
    X : (n, d) rows, a :class:`conceptkit.files.matrix.FileMatrix`
    columns : (n, k), first the ``t`` targets, then controls
    mix : (k, t') combinations that are scored, first the targets
    groups : (n,) numbers of the groups, or ``None``
    splits : folds by group
    alphas : penalties to choose from
    seed : of the blocks, and of the folds that mix groups
    units : (n,) numberings of units whose mean rows are returned
    """
    d, n_folds = X.shape[1], len(splits)
    layout = _Layout.of(groups, splits, seed)
    mixed = fold_numbers(make_folds(len(columns), None, n_folds, seed=seed))
    first = _FirstPass.of(X, columns, layout, mixed, t)
    ridges, alpha_folds, error = [], np.empty((n_folds, mix.shape[1])), np.zeros(mix.shape[1])
    for k in range(n_folds):
        inside, held = layout.parts(first.blocks, k)
        alpha_folds[k] = _chosen_alpha(inside, d, mix, alphas)
        ridges.append(BlockRidge.of(gathered(inside), d))
        error += ridges[k].errors_at(held, mix, alpha_folds[k])
    own = mix[:, :t]
    alpha, whole = _chosen_alpha(first.blocks, d, own, alphas), gathered(first.blocks)
    total = np.einsum("kt,kl,lt->t", mix, whole.scatter[d:, d:], mix, optimize=True)
    fits = [ridge.fit(own, alpha_folds[k, :t]) for k, ridge in enumerate(ridges)]
    ridge_of_all = BlockRidge.of(whole, d)
    of_all = ridge_of_all.fit(own, alpha)
    patch_fits = _mixed_fits(first.parts, d, t, alphas)
    space = ridge_of_all.space()
    means = [UnitMeans(X.shape[1], numbers) for numbers in units]
    predicted, fitted, patchwise, errors, leading = _second_pass(
        X, columns[:, :t], layout, mixed, fits, patch_fits, of_all, space, means
    )
    deleted = np.empty((len(first.units), t))
    for some in np.array_split(np.arange(len(deleted)), -(-len(deleted) // _TOGETHER)):
        deleted[some] = _deleted(some, first, errors, layout, ridges, fits, alpha_folds[:, :t], own)
    weights, chosen, r2 = [fit[0] for fit in fits], alpha_folds[:, :t], 1.0 - error / total
    agreed = agreement_of(whole.scatter[:d, :d], weights)
    return HeldOut(
        predicted,
        fitted,
        patchwise,
        chosen,
        alpha,
        weights,
        layout.unit,
        deleted,
        r2,
        Whole(*of_all, _patterns(whole, d, own), space, leading, agreed),
        [Fold(ridge, layout.parts(first.blocks, k)[1]) for k, ridge in enumerate(ridges)],
        [of_units.means() for of_units in means],
    )


def _patterns(whole: Moments, d: int, mix: Floats) -> Floats:
    """Return what :func:`conceptkit.probe.space.patterns_of` does, from joint moments with the columns."""
    total = np.einsum("kt,kl,lt->t", mix, whole.scatter[d:, d:], mix, optimize=True)
    moved = whole.scatter[:d, d:] @ mix
    out: Floats = np.divide(moved, total, out=np.zeros_like(moved), where=total > 0)
    return out


def predict_blocks(
    X: Any, Y: Floats, groups: NDArray[np.intp] | None, splits: Sequence[Split], alphas: Floats
) -> Floats:
    """Return out-of-fold predictions (n, t) of targets Y (n, t) in two passes over the rows."""
    d, layout = X.shape[1], _Layout.of(groups, splits, 0)
    mix, fits = np.eye(Y.shape[1]), []
    units = _unit_moments(X, Y, layout)
    blocks = [gathered(units_of) for units_of in _by_block(units, layout)]
    for k in range(len(splits)):
        inside, _ = layout.parts(blocks, k)
        fits.append(BlockRidge.of(gathered(inside), d).fit(mix, _chosen_alpha(inside, d, mix, alphas)))
    out = np.empty(Y.shape)
    for rows, block in _read(X, np.arange(len(X))):
        out[rows] = _own(_predictions(block, fits), layout.fold[layout.unit[rows]])
    return out


@dataclass(frozen=True)
class _Layout:
    """Units that the jackknife deletes, within blocks, within held-out parts."""

    unit: NDArray[np.intp]  # (n,)
    block: NDArray[np.intp]  # (u,) block of each unit, ascending
    fold: NDArray[np.intp]  # (u,) held-out part of each unit

    @classmethod
    def of(cls, groups: NDArray[np.intp] | None, splits: Sequence[Split], seed: int) -> _Layout:
        n = sum(len(test) for _, test in splits)
        own = np.arange(n) if groups is None else groups
        count = max(MOST_BLOCKS // len(splits), 1)
        most = max(MOST_UNITS // (count * len(splits)), 1) if int(own.max()) >= MOST_UNITS else n
        unit = np.empty(n, dtype=np.intp)
        block: list[int] = []
        fold: list[int] = []
        for k, (_, test) in enumerate(splits):
            within = np.unique(own[test], return_inverse=True)[1]
            parts = min(count, int(within.max()) + 1)
            blocks = [(test, np.arange(len(test)))]
            if parts > 1:
                blocks = make_folds(len(test), within, parts, seed=seed)
            for _, rows in blocks:
                numbers = np.unique(within[rows], return_inverse=True)[1] % most
                unit[test[rows]] = len(block) + numbers
                number = block[-1] + 1 if block else 0
                block += [number] * (int(numbers.max()) + 1)
                fold += [k] * (int(numbers.max()) + 1)
        if block[-1] < 2:
            raise InputError("groups: choosing a penalty needs at least 2 groups in a training part, it has 1.")
        return cls(unit, np.array(block), np.array(fold))

    def parts(self, blocks: Sequence[Moments], k: int) -> tuple[list[Moments], Moments]:
        """Return the blocks of the training part of fold ``k``, and the moments of its held-out part."""
        fold = self.fold[np.unique(self.block, return_index=True)[1]]
        of = list(zip(blocks, fold, strict=True))
        return [block for block, own in of if own != k], gathered(block for block, own in of if own == k)


@dataclass(frozen=True)
class _FirstPass:
    """Moments of features and columns together."""

    blocks: list[Moments]
    parts: list[Moments]
    """Of the held-out parts that mix groups, with the targets"""
    units: list[tuple[int, Floats]]
    """Number and mean (d,) of the rows of each unit"""
    scatter: Any
    """(u · d, d) float32 scatter of each unit about its mean, one below the other"""

    @classmethod
    def of(cls, X: FileMatrix, columns: Floats, layout: _Layout, mixed: NDArray[np.intp], t: int) -> _FirstPass:
        """Read all rows once, unit by unit."""
        d = X.shape[1]
        parts = [_Sums() for _ in range(int(mixed.max()) + 1)]
        blocks: list[Moments] = []
        units: list[tuple[int, Floats]] = []

        def scatters() -> Iterator[Part]:
            moments = _unit_moments(X, columns, layout, mixed, parts, t)
            for of_block in _by_block(moments, layout):
                whole = None
                for one in of_block:
                    at = len(units) * d
                    units.append((one.n, one.mean[:d]))
                    yield np.arange(at, at + d), one.scatter[:d, :d].astype(np.float32)
                    whole = added(whole, one)
                if whole is not None:
                    blocks.append(whole)

        scatter = gather(len(layout.block) * d, scatters(), X.folder)
        return cls(blocks, [part.moments() for part in parts], units, scatter)


def _by_block(units: Iterator[Moments], layout: _Layout) -> Iterator[Iterator[Moments]]:
    for _, of_block in itertools.groupby(zip(layout.block, units, strict=True), key=lambda one: int(one[0])):
        yield (moments for _, moments in of_block)


def _unit_moments(
    X: FileMatrix,
    columns: Floats,
    layout: _Layout,
    mixed: NDArray[np.intp] | None = None,
    parts: Sequence[_Sums] = (),
    t: int = 0,
) -> Iterator[Moments]:
    """Yield the joint moments of features and columns of each unit; add the rows, with t columns, to ``parts``."""
    order = np.argsort(layout.unit, kind="stable")
    sums, d = _Sums(), X.shape[1]
    current = 0
    for rows, block in _read(X, order):
        joint = np.concatenate([block, columns[rows]], axis=1)
        for number, part in enumerate(parts):
            if mixed is not None and (own := mixed[rows] == number).any():
                part.add(joint[own, : d + t])
        for unit in np.unique(layout.unit[rows]):
            if unit != current:
                yield sums.moments()
                sums, current = _Sums(), unit
            sums.add(joint[layout.unit[rows] == unit])
    yield sums.moments()


def _mixed_fits(parts: Sequence[Moments], d: int, t: int, alphas: Floats) -> list[Fit]:
    """Return the fits of folds that mix groups, at penalties with the smallest error on all of them."""
    alpha = _chosen_alpha(parts, d, np.eye(t), alphas)
    rest = ([part for j, part in enumerate(parts) if j != i] for i in range(len(parts)))
    return [BlockRidge.of(gathered(some), d).fit(np.eye(t), alpha) for some in rest]


def fold_numbers(splits: Sequence[Split]) -> NDArray[np.intp]:
    """Return the held-out part (n,) of each row."""
    out = np.empty(sum(len(test) for _, test in splits), dtype=np.intp)
    for k, (_, test) in enumerate(splits):
        out[test] = k
    return out


def _read(X: FileMatrix, order: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        yield rows, X[rows].astype(np.float64)


class _Sums:
    """Sums of rows and of their products about the mean of the first ones, which keeps them precise."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, rows: Floats) -> None:
        if not self.n:
            self.shift, self.total = rows.mean(0), np.zeros(rows.shape[1])
            self.products = np.zeros((rows.shape[1],) * 2, order="F")
        rows = rows - self.shift
        self.n += len(rows)
        self.total += rows.sum(0)
        self.products = dsyrk(1.0, rows.T, 1.0, self.products, overwrite_c=1)  # half the work of a product

    def moments(self) -> Moments:
        mean = self.total / self.n
        upper = np.triu(self.products)
        upper += np.triu(upper, 1).T
        self.products = np.zeros((0, 0))
        return Moments(self.n, self.shift + mean, upper - self.n * np.outer(mean, mean))


def _chosen_alpha(parts: Sequence[Moments], d: int, mix: Floats, alphas: Floats) -> Floats:
    """Return the penalty of each combination (k, t) with the smallest error on parts that are left out in turn.

    As with groups, columns are standardised by all parts.
    """
    whole = gathered(parts)
    scale = scale_of(Moments(whole.n, whole.mean[:d], whole.scatter[:d, :d]))
    error = np.zeros((len(alphas), mix.shape[1]))
    for i, held in enumerate(parts):
        rest = gathered(part for j, part in enumerate(parts) if j != i)
        error += BlockRidge.of(rest, d, scale).errors(held, mix, alphas)
    return best_alpha(alphas, error)


def _predictions(block: Floats, fits: Sequence[Fit]) -> Floats:
    """Return predictions (rows, fits, t)."""
    B, level = np.concatenate([fit[0] for fit in fits], axis=1), np.concatenate([fit[1] for fit in fits])
    return np.asarray(block @ B + level).reshape(len(block), len(fits), -1)


def _own(predictions: Floats, folds: NDArray[np.intp]) -> Floats:
    """Return those (rows, t) of the fold in which each row is held out."""
    return np.asarray(predictions[np.arange(len(folds)), folds])


def _second_pass(
    X: FileMatrix,
    Y: Floats,
    layout: _Layout,
    mixed: NDArray[np.intp],
    fits: Sequence[Fit],
    patch_fits: Sequence[Fit],
    of_all: Fit,
    space: Space,
    means: Sequence[UnitMeans],
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return three predictions (n, t), sums of errors, and coordinates (n, r) in the space; ``means`` get the rows.

    The predictions are out of fold, by the fit on all rows, and out of the folds that mix groups. The sums are
    Σ (1, x) e (u, 1 + d, folds, t) of each unit's errors e by each fold; of the fold that holds a unit out, Σ e² stands
    in place of Σ e.
    """
    predicted, fitted, patchwise = (np.empty(Y.shape) for _ in range(3))
    f, t = len(fits), Y.shape[1]
    sums = np.zeros((len(layout.fold), X.shape[1] + 1, f, t))
    leading = np.empty((len(Y), space.whitening.shape[1]))
    for rows, block in _read(X, np.argsort(layout.unit, kind="stable")):
        every = _predictions(block, [*fits, *patch_fits, of_all])
        for of_units in means:
            of_units.add(rows, block)
        leading[rows] = np.concatenate(list(space.coordinates(block)))
        unit = layout.unit[rows]
        predicted[rows] = _own(every[:, :f], layout.fold[unit])
        patchwise[rows], fitted[rows] = _own(every[:, f:-1], mixed[rows]), every[:, -1]
        error = Y[rows][:, None, :] - every[:, :f]
        for one in np.unique(unit):
            own = error[unit == one]
            sums[one, 0] += own.sum(0)
            sums[one, 0, layout.fold[one]] += (own[:, layout.fold[one]] ** 2 - own[:, layout.fold[one]]).sum(0)
            sums[one, 1:] += (block[unit == one].T @ own.reshape(len(own), -1)).reshape(-1, f, t)
    return predicted, fitted, patchwise, sums, leading


def _deleted(
    some: NDArray[np.intp],
    first: _FirstPass,
    errors: Floats,
    layout: _Layout,
    ridges: Sequence[BlockRidge],
    fits: Sequence[Fit],
    alpha_folds: Floats,
    mix: Floats,
) -> Floats:
    """Return the squared out-of-fold errors (len(some), t) with each of some units deleted, as if refitted.

    Without its rows, in training, the vector of a fold changes by the solution of the normal equations of the others,
    found by conjugate gradients. Held out, the errors of its own rows are subtracted.
    """
    d, t = ridges[0].d, mix.shape[1]
    scatter = [np.asarray(first.scatter[u * d : (u + 1) * d]) for u in some]
    out = np.zeros((len(some), t))
    for k, ridge in enumerate(ridges):
        _, held = layout.parts(first.blocks, k)
        B, _ = fits[k]
        linear = held.scatter[:d, d:] @ mix - held.scatter[:d, :d] @ B  # Σ (x − x̄) e of held-out rows
        off = (held.mean[d:] - ridge.mean[d:]) @ mix - (held.mean[:d] - ridge.mean[:d]) @ B  # mean e
        squared = ridge.errors_at(held, mix, alpha_folds[k])
        out += squared
        inside = np.flatnonzero(layout.fold[some] != k)
        of_own = np.flatnonzero(layout.fold[some] == k)
        out[of_own] -= errors[some[of_own], 0, k]
        if not len(inside):
            continue
        level, q = ridge.without(
            [first.units[u] for u in some[inside]],
            [scatter[i] for i in inside],
            errors[some[inside], :, k],
            alpha_folds[k],
        )
        g = q / ridge.scale[:, None, None]  # (d, u, t)
        change = level + np.einsum("d,dut->ut", held.mean[:d] - ridge.mean[:d], g)  # of e at the held-out mean
        flat = g.reshape(d, -1)
        square = (flat * (held.scatter[:d, :d] @ flat)).sum(0).reshape(-1, t) + held.n * change**2
        out[inside] += 2 * (held.n * off * change + np.einsum("dt,dut->ut", linear, g)) + square
    return out
