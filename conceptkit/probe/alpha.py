"""Leave-one-group-out errors at every penalty, in closed form from one factorisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.ridge import Eigenbasis, Response

ROWS_AT_ONCE = 512
"""Rows left out together"""

_COLUMNS_AT_ONCE = 1024

_SYRK_FROM = 32
"""Minimum number of rows of a group for a product of its own."""

Members = list[NDArray[np.intp]]
"""Rows of each of some groups"""


def best_alpha(alphas: Floats, error: Floats) -> Floats:
    """Return the penalties (…) with the smallest error (a, …), the larger one on a tie."""
    order = np.argsort(-alphas, kind="stable")
    return np.asarray(alphas[order][error[order].argmin(0)])


def left_out_error(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats, mix: Floats | None = None
) -> Floats:
    """Return the leave-one-group-out sums of squared errors (a, t), without refitting.

    With an unpenalised intercept and columns standardised by the whole training part, the fit is ŷ = Hy,
    H = 11ᵀ/n + A diag(1/(λ + α)) Aᵀ, and the left-out errors of group g are (I − H_gg)⁻¹ e_g of its ordinary errors
    e_g. A group with more rows than coordinates is removed from the r × r normal equations instead.
    """
    error = np.zeros((len(alphas), len(response.mean) if mix is None else mix.shape[1]))
    for _, at_each in _each_left_out(response, groups, alphas):
        for i, errors in enumerate(at_each):
            mixed = errors if mix is None else errors @ mix  # errors are linear in the target
            error[i] += np.einsum("kt,kt->t", mixed, mixed)
    return error


def deleted_residuals(response: Response, groups: NDArray[np.intp] | None, alpha: Floats) -> Floats:
    """Return the left-out error (n, t) of each training row, each target at its penalty (t,)."""
    out = np.empty_like(response.centred)
    for value in np.unique(alpha):
        at = np.flatnonzero(alpha == value)
        for rows, at_each in _each_left_out(response.only(at), groups, np.array([value])):
            out[np.ix_(rows, at)] = next(iter(at_each))
    return out


def _each_left_out(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats
) -> Iterator[tuple[NDArray[np.intp], Iterator[Floats]]]:
    """Yield positions in the training part (k,) with their left-out errors (k, t) at each penalty, every row once.

    The errors of a single penalty fit into the processor's cache.
    """
    basis, centred, M = response.basis, response.centred, response.moments
    n, r = len(centred), len(basis.spectrum)
    shrink = 1.0 / (basis.spectrum + alphas[:, None])  # (a, r)
    if groups is None:
        for rows in _some_at_once(n):
            yield rows, _single_left_out(basis, centred, M, rows, shrink)
        return
    large, small = grouped(groups, r, len(alphas))
    for rows in large:
        yield rows, _large_left_out(basis, centred, M, rows, alphas)
    for those in small:
        yield np.concatenate(those), _small_left_out(basis, centred, M, those, shrink)


def _some_at_once(n: int) -> Iterator[NDArray[np.intp]]:
    yield from (np.arange(start, min(start + ROWS_AT_ONCE, n)) for start in range(0, n, ROWS_AT_ONCE))


def grouped(groups: NDArray[np.intp], r: int, a: int) -> tuple[Members, list[Members]]:
    """Return the rows of each group.

    Parameters
    ----------
    groups : (n,) numbers of at least 2 groups
    r, a : number of coordinates, and of penalties

    Returns
    -------
    those of groups that are removed from r × r normal equations, and those of others, of similar size in each list
    """
    _, numbers = np.unique(groups, return_inverse=True)
    sizes = np.bincount(numbers)
    if len(sizes) < 2:
        raise InputError("groups: choosing a penalty needs at least 2 groups in a training part, it has 1.")
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    large = [g for g, s in enumerate(sizes) if _dearer(int(s), r, a)]
    small = [g for g in np.argsort(sizes, kind="stable") if g not in set(large)]
    chunks = _chunks([int(sizes[g]) for g in small])
    return [members[g] for g in large], [[members[small[i]] for i in chunk] for chunk in chunks]


def _dearer(s: int, r: int, a: int) -> bool:
    """Return whether s × s systems of a group cost more than r × r ones without it."""
    return a * (2 * s * s * r + s**3) > 2 * s * r * r + a * (r**3 / 3 + 2 * r * r)


def _chunks(sizes: list[int]) -> Iterator[list[int]]:
    """Split ascending sizes into runs that can be padded to one size with little waste."""
    run: list[int] = []
    for i, size in enumerate(sizes):
        if run and (size > 1.25 * sizes[run[0]] + 2 or (len(run) + 1) * size > ROWS_AT_ONCE):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _single_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, rows: NDArray[np.intp], shrink: Floats
) -> Iterator[Floats]:
    """Yield the leave-one-row-out errors (k, t) at each penalty."""
    A = basis.coordinates(basis.train[rows])
    rest = 1.0 - (1.0 / len(centred) + (A * A) @ shrink.T)  # (k, a)
    for i, read in enumerate(readings(A, M, shrink)):
        errors = centred[rows] - read
        errors /= rest[:, i, None]
        yield errors


def _small_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, members: Members, shrink: Floats
) -> Iterator[Floats]:
    """Yield left-out errors (k, t) of rows, group by group, at each penalty, by solving with I − H_gg."""
    together, real = np.concatenate(members), filled(members)
    flat = basis.coordinates(basis.train[together])  # (k, r)
    kept = without_mean(real, len(centred))
    leverage = leverages(padded(flat, real), np.sqrt(shrink))
    for i, read in enumerate(readings(flat, M, shrink)):
        solved = np.linalg.solve(kept - leverage[i], padded(centred[together] - read, real))
        yield solved[real]


def filled(members: Members) -> NDArray[np.bool_]:
    """Return which places (groups, k) of groups that are padded to one size hold rows."""
    sizes = np.array([len(m) for m in members])
    return np.asarray(np.arange(sizes.max()) < sizes[:, None])


def padded(rows: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[Any]:
    """Return rows (k, …) at their places (groups, k, …); padding has neither error nor leverage."""
    if real.all():
        return rows.reshape(*real.shape, -1)
    out = np.zeros((*real.shape, rows.shape[1]), rows.dtype)
    out[real] = rows
    return out


def without_mean(real: NDArray[np.bool_], n: int) -> Floats:
    """Return I − 11ᵀ/n of each group (groups, k, k), n training rows."""
    return np.eye(real.shape[1]) - np.where(real[:, :, None] & real[:, None, :], 1.0 / n, 0.0)


def readings(flat: NDArray[Any], M: Floats, shrink: Floats) -> Iterator[NDArray[Any]]:
    """Yield the fitted values (k, t) of rows (k, r) at each penalty, with one product for several penalties."""
    t = M.shape[1]
    step = max(1, _COLUMNS_AT_ONCE // t)
    for start in range(0, len(shrink), step):
        some = shrink[start : start + step]
        solutions = (M[:, None, :] * some.T[:, :, None]).reshape(len(M), -1).astype(flat.dtype, copy=False)
        yield from (flat @ solutions).reshape(len(flat), len(some), t).transpose(1, 0, 2)


def leverages(A: NDArray[Any], roots: Floats) -> NDArray[Any]:
    """Return A diag(root²) Aᵀ (a, groups, k, k) of each group's coordinates (groups, k, r) and each penalty (a, r)."""
    roots = roots.astype(A.dtype, copy=False)
    if A.shape[1] == 1:
        return np.asarray((A[:, 0] ** 2 @ (roots**2).T).T[:, :, None, None])
    out = np.empty((len(roots), len(A), A.shape[1], A.shape[1]), A.dtype)
    if A.shape[1] < _SYRK_FROM:
        rooted = np.empty_like(A)
        for i, root in enumerate(roots):
            np.multiply(A, root, out=rooted)
            np.matmul(rooted, rooted.transpose(0, 2, 1), out=out[i])
        return out
    # NumPy uses syrk, half the work, for single products only, and a single group fits into the processor's cache. For
    # small systems the calls would cost more.
    scaled = np.empty_like(A[0])
    for g, of_group in enumerate(A):
        for i, root in enumerate(roots):
            np.multiply(of_group, root, out=scaled)
            np.matmul(scaled, scaled.T, out=out[i, g])
    return out


def _large_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, rows: NDArray[np.intp], alphas: Floats
) -> Iterator[Floats]:
    """Yield left-out errors (k, t) of one group at each penalty, from the normal equations of the other rows."""
    A = basis.coordinates(basis.train[rows])
    rest = len(centred) - len(rows)
    S, total = A.sum(0), centred[rows].sum(0)
    # Coordinates and targets of the other rows have the means −S/rest and −total/rest.
    gram = np.diag(basis.spectrum) - A.T @ A - np.outer(S, S) / rest
    b = M - A.T @ centred[rows] - np.outer(S, total) / rest
    shifted = A + S / rest
    for alpha in alphas:
        system = gram.copy()
        system.flat[:: len(S) + 1] += alpha
        _, c, failed = dposv(system, b, overwrite_a=True)  # cho_solve's checks cost more than a small system
        if failed:
            raise np.linalg.LinAlgError("the normal equations without a group are not positive definite")
        yield centred[rows] + total / rest - shifted @ c
