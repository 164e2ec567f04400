"""The penalty of least error on left-out groups, in closed form from one factorisation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.ridge import ALPHAS, Eigenbasis, Response

_ROWS_AT_ONCE = 512

_COLUMNS_AT_ONCE = 1024

_SYRK_FROM = 32
"""Rows of a group from which its product is taken by itself."""


def choose_alpha(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats = ALPHAS, mix: Floats | None = None
) -> tuple[Floats, Floats]:
    """Choose the penalty of each target by leave-one-group-out error inside the training part.

    Parameters
    ----------
    response : the t targets of a training part
    groups : (n,) group numbers of the training rows; ``None``: each row is left out by itself
    alphas : (a,) penalties to choose from
    mix : (t, t') instead of the targets, combinations of them

    Returns
    -------
    (t,) penalties, the larger one on a tie, and (a, t) sums of squared errors of left-out rows

    Raises
    ------
    InputError
        when all rows are of one group, so that none can be left out
    """
    error = left_out_error(response, groups, alphas, mix)
    order = np.argsort(-alphas, kind="stable")
    chosen: Floats = alphas[order][error[order].argmin(0)]
    return chosen, error


def left_out_error(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats, mix: Floats | None = None
) -> Floats:
    """Return the sums of squared errors (a, t) of left-out rows, had each group been left out of the fit.

    Nothing is fitted again. With an unpenalised intercept and columns standardised by the whole training part, the
    fit is ŷ = Hy, H = 11ᵀ/n + A diag(1/(λ + α)) Aᵀ, and the errors of group g had it been left out are
    (I − H_gg)⁻¹ e_g of its ordinary errors e_g. A group of more rows than coordinates is left out of the r × r normal
    equations instead.
    """
    error = np.zeros((len(alphas), len(response.mean) if mix is None else mix.shape[1]))
    for _, at_each in _each_left_out(response, groups, alphas):
        for i, errors in enumerate(at_each):
            mixed = errors if mix is None else errors @ mix  # an error is as linear in the target as the fit is
            error[i] += np.einsum("kt,kt->t", mixed, mixed)
    return error


def deleted_residuals(response: Response, groups: NDArray[np.intp] | None, alpha: Floats) -> Floats:
    """Return the error (n, t) of each training row had its group been left out, each target at its penalty (t,)."""
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

    The errors of one penalty at a time stay in the processor's cache.
    """
    basis, centred, M = response.basis, response.centred, response.moments
    n, r = len(centred), len(basis.spectrum)
    shrink = 1.0 / (basis.spectrum + alphas[:, None])  # (a, r)
    if groups is None:
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, n))
            yield rows, _single_left_out(basis, centred, M, rows, shrink)
        return
    _, numbers = np.unique(groups, return_inverse=True)
    sizes = np.bincount(numbers)
    if len(sizes) < 2:
        raise InputError("groups: choosing a penalty needs at least 2 groups in a training part, it has 1.")
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    large = [g for g, s in enumerate(sizes) if _dearer(int(s), r, len(alphas))]
    for g in large:
        rows = members[g]
        yield rows, _large_left_out(basis, centred, M, rows, alphas)
    small = [g for g in np.argsort(sizes, kind="stable") if g not in set(large)]
    for chunk in _chunks([int(sizes[g]) for g in small]):
        those = [members[small[i]] for i in chunk]
        yield np.concatenate(those), _small_left_out(basis, centred, M, those, shrink)


def _dearer(s: int, r: int, a: int) -> bool:
    """Tell whether s × s systems of a group cost more than r × r ones without it."""
    return a * (2 * s * s * r + s**3) > 2 * s * r * r + a * (r**3 / 3 + 2 * r * r)


def _chunks(sizes: list[int]) -> Iterator[list[int]]:
    """Cut ascending sizes into runs that are padded to one size at little waste, and fit into memory."""
    run: list[int] = []
    for i, size in enumerate(sizes):
        if run and (size > 1.25 * sizes[run[0]] + 2 or (len(run) + 1) * size > _ROWS_AT_ONCE):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _single_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, rows: NDArray[np.intp], shrink: Floats
) -> Iterator[Floats]:
    """Yield the errors (k, t) of rows that are left out one by one, at each penalty."""
    A = basis.coordinates(basis.train[rows])
    rest = 1.0 - (1.0 / len(centred) + (A * A) @ shrink.T)  # (k, a)
    for i, read in enumerate(_readings(A, M, shrink)):
        errors = centred[rows] - read
        errors /= rest[:, i, None]
        yield errors


def _small_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, members: list[NDArray[np.intp]], shrink: Floats
) -> Iterator[Floats]:
    """Yield left-out errors (k, t) of rows group by group at each penalty, by solving with I − H_gg."""
    most = max(len(m) for m in members)
    n, t = centred.shape
    together = np.concatenate(members)
    flat = basis.coordinates(basis.train[together])  # (k, r)
    there = np.arange(most) < np.array([len(m) for m in members])[:, None]
    whole = bool(there.all())
    errors = np.zeros((*there.shape, t))
    if whole:
        A = flat.reshape(*there.shape, -1)
    else:
        A = np.zeros((*there.shape, flat.shape[1]))
        A[there] = flat
    # Padding rows have neither error nor leverage, so that they stand by themselves in each system.
    kept = np.eye(most) - np.where(there[:, :, None] & there[:, None, :], 1.0 / n, 0.0)
    leverage = _leverages(A, np.sqrt(shrink))
    for i, read in enumerate(_readings(flat, M, shrink)):
        left = centred[together] - read
        if whole:
            errors = left.reshape(errors.shape)
        else:
            errors[there] = left
        solved = np.linalg.solve(kept - leverage[i], errors)
        yield solved.reshape(left.shape) if whole else solved[there]


def _readings(flat: Floats, M: Floats, shrink: Floats) -> Iterator[Floats]:
    """Yield what is read of rows (k, r) at each penalty (k, t): one large product for several penalties."""
    t = M.shape[1]
    step = max(1, _COLUMNS_AT_ONCE // t)
    for start in range(0, len(shrink), step):
        some = shrink[start : start + step]
        solutions = (M[:, None, :] * some.T[:, :, None]).reshape(len(M), -1)
        yield from (flat @ solutions).reshape(len(flat), len(some), t).transpose(1, 0, 2)


def _leverages(A: Floats, roots: Floats) -> Floats:
    """Return A diag(root²) Aᵀ (a, groups, k, k) of each group's coordinates (groups, k, r) and each penalty (a, r)."""
    out = np.empty((len(roots), len(A), A.shape[1], A.shape[1]))
    if A.shape[1] < _SYRK_FROM:
        rooted = np.empty_like(A)
        for i, root in enumerate(roots):
            np.multiply(A, root, out=rooted)
            np.matmul(rooted, rooted.transpose(0, 2, 1), out=out[i])
        return out
    # NumPy takes syrk, half the work, for single products only; with small systems the calls would cost more. One group
    # at a time stays in the processor's cache.
    scaled = np.empty_like(A[0])
    for g, of_group in enumerate(A):
        for i, root in enumerate(roots):
            np.multiply(of_group, root, out=scaled)
            np.matmul(scaled, scaled.T, out=out[i, g])
    return out


def _large_left_out(
    basis: Eigenbasis, centred: Floats, M: Floats, rows: NDArray[np.intp], alphas: Floats
) -> Iterator[Floats]:
    """Yield left-out errors (k, t) of one group by solving the normal equations of the other rows, at each penalty."""
    from scipy.linalg import cho_factor, cho_solve

    A = basis.coordinates(basis.train[rows])
    rest = len(centred) - len(rows)
    S, total = A.sum(0), centred[rows].sum(0)
    # Of the other rows: coordinates and targets have the means −S/rest and −total/rest.
    gram = np.diag(basis.spectrum) - A.T @ A - np.outer(S, S) / rest
    b = M - A.T @ centred[rows] - np.outer(S, total) / rest
    shifted = A + S / rest
    for alpha in alphas:
        system = gram.copy()
        system.flat[:: len(S) + 1] += alpha
        c = cho_solve(cho_factor(system, overwrite_a=True, check_finite=False), b, check_finite=False)
        yield centred[rows] + total / rest - shifted @ c
