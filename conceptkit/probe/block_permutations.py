"""Permutation tests within cells of rows that are too many for memory: one pass for all permutations and folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.blocks import Fold
from conceptkit.probe.linear_algebra import product
from conceptkit.probe.permutation import by_gcv, by_owner

_ROWS = 2048
"""Rows read at a time"""

Drawn = tuple[NDArray[np.intp], NDArray[np.unsignedinteger[Any]]]
"""Rows (k,) of a cell, and the places (b, k) in it from which they take their values"""


def cell_losses(
    X: Any,
    fold: NDArray[np.intp],
    folds: Sequence[Fold],
    columns: Floats,
    owner: NDArray[np.intp],
    cells: NDArray[np.intp],
    means: Floats,
    orders: Iterator[Drawn],
    alphas: Floats,
) -> Floats:
    """Return the sums (b, t) over folds of :func:`conceptkit.probe.permutation.row_losses` within cells.

    Products of features and permuted values follow from one pass; those of a training part are sums of these, and so
    are losses, with the scatter of a held-out part about the means of its cells.

    Parameters
    ----------
    X : (n, d) rows
    fold : (n,) held-out part of each row, which never splits a cell
    columns : (n, c) values centred by cell
    owner : (c,) number of the target of each column
    cells : (n,) numbers of the cells
    means : (cells, d) mean rows
    orders : of ``cells``, see :func:`conceptkit.probe.permutation.each_order`
    """
    d, c = X.shape[1], columns.shape[1]
    mean, scale = folds[0].ridge.mean[:d], folds[0].ridge.scale
    products: list[Any] = [0.0] * len(folds)
    squares = np.zeros((len(folds), c, 1))
    for k, rows, values in _some_rows(orders, fold, columns):
        Z = (X[rows].astype(np.float64) - mean) / scale
        products[k] = products[k] + product(values.reshape(-1, len(rows)), Z.astype(np.float32))
    for k in range(len(folds)):
        squares[k] = np.sum(columns[fold == k] ** 2, axis=0)[:, None]  # the same in every order
    apart = (means - mean) / scale * np.sqrt(np.bincount(cells))[:, None]
    of_cell = fold[np.unique(cells, return_index=True)[1]]
    b = products[0].shape[0] // c
    out = np.zeros((b, int(owner.max()) + 1))
    for k, one in enumerate(folds):
        of_train = np.sum([part for j, part in enumerate(products) if j != k], axis=0)
        total = np.broadcast_to(squares.sum(0) - squares[k], (c, b))
        out += _losses(one, (mean, scale), of_train, products[k], apart[of_cell == k], total, owner, alphas)
    return out


def _losses(
    fold: Fold,
    scaling: tuple[Floats, Floats],
    of_train: NDArray[np.float32],
    of_held: NDArray[np.float32],
    apart: Floats,
    total: Floats,
    owner: NDArray[np.intp],
    alphas: Floats,
) -> Floats:
    """Return the losses (b, t) of one fold from products (c · b, d) of its parts.

    ``apart`` (cells, d) are means of the held-out cells times the root of their size.
    """
    ridge, held, (mean, scale) = fold.ridge, fold.held, scaling
    d, own = len(mean), (ridge.scale / scale).astype(np.float32)
    V, spectrum = ridge.vectors.astype(np.float32), ridge.spectrum
    # The values of a cell have the mean 0.
    M: NDArray[np.float32] = ((of_train / own) @ V).astype(np.float32, copy=False)
    alpha = by_gcv(M, total, spectrum, owner, alphas, ridge.n).astype(np.float32)
    M /= (spectrum.astype(np.float32) + alpha[..., None]).reshape(M.shape)
    W = (M @ V.T) / own
    off = (held.mean[:d] - mean) / scale
    within = held.scatter[:d, :d] / scale / scale[:, None] + held.n * np.outer(off, off) - apart.T @ apart
    loss = np.einsum("kd,kd->k", W, W @ within.astype(np.float32) - 2 * of_held, dtype=np.float64)
    return by_owner(loss.reshape(total.shape), owner).T


def _some_rows(
    orders: Iterator[Drawn], fold: NDArray[np.intp], columns: Floats
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.float32]]]:
    """Yield some rows (k,) of one fold after its number, and their permuted values (c, b, k)."""
    values = np.ascontiguousarray(columns.T, dtype=np.float32)
    waiting: dict[int, list[tuple[NDArray[np.intp], NDArray[np.float32]]]] = {}
    for rows, places in orders:
        k, of_cell = int(fold[rows[0]]), values[:, rows]
        for start in range(0, len(rows), _ROWS):
            at = slice(start, start + _ROWS)
            waiting.setdefault(k, []).append((rows[at], np.take(of_cell, places[:, at], axis=1)))
            if sum(len(some) for some, _ in waiting[k]) >= _ROWS:
                yield k, *_joined(waiting.pop(k))
    for k, parts in waiting.items():
        yield k, *_joined(parts)


def _joined(
    parts: list[tuple[NDArray[np.intp], NDArray[np.float32]]],
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([values for _, values in parts], axis=2)
