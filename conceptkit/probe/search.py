"""The search for a penalty in single precision, which takes half the time and decides as double precision does.

Each error comes with a bound of what single precision changed. Penalties whose bounds overlap are compared again in
double precision, so that the chosen penalty is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.alpha import (
    ROWS_AT_ONCE,
    Members,
    best_alpha,
    deleted_residuals,
    filled,
    grouped,
    left_out_error,
    leverages,
    padded,
    without_mean,
)
from conceptkit.probe.linear_algebra import product
from conceptkit.probe.ridge import ALPHAS, Eigenbasis, Response

ROUGH_FROM = 2**22
"""Coordinates of a training part from which single precision saves time"""

_ROUNDING = 2.0**-19
"""32 roundings of single precision: error of a coordinate, over the root mean square of those of its row"""

_UNSAFE, _FIRST_ORDER = 0.1, 0.003
"""Relative change of a group's system above which it is not solved in single precision, and from which the change of
its solution exceeds the first order"""

_MEASURED = 2**22
"""Values of groups whose bounds are computed together"""

_STEPS, _EXACT = 8, 1e-14
"""Maximum number of corrections of residuals, and the relative error at which they end"""


def choose_alpha(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats = ALPHAS, mix: Floats | None = None
) -> Floats:
    """Choose the penalty (t,) of each target by leave-one-group-out error within the training part.

    Parameters
    ----------
    response : the t targets of a training part
    groups : (n,) group numbers of the training rows, at least 2; ``None``: leave one row out
    alphas : (a,) penalties to choose from, the larger one on a tie
    mix : (t, t') for combinations of the targets instead of the targets
    """
    if not _worth(response.basis, groups, len(alphas)):
        return best_alpha(alphas, left_out_error(response, groups, alphas, mix))
    error, bound = rough_error(response, groups, alphas, mix)
    possible = ~(error - bound > (error + bound).min(0))  # NaN stays possible
    tied = np.flatnonzero(possible.sum(0) > 1)
    if len(tied):
        some = np.flatnonzero(possible[:, tied].any(1))
        of = response.only(tied) if mix is None else response
        error[:, tied] = np.inf
        error[np.ix_(some, tied)] = left_out_error(of, groups, alphas[some], None if mix is None else mix[:, tied])
    return best_alpha(alphas, error)


def _worth(basis: Eigenbasis, groups: NDArray[np.intp] | None, a: int) -> bool:
    """Return whether single precision saves time; normal equations without a large group need double precision."""
    if basis.kernel is not None or len(basis.train) * len(basis.spectrum) < ROUGH_FROM:
        return False
    return groups is None or not grouped(groups, len(basis.spectrum), a)[0]


def _members(basis: Eigenbasis, groups: NDArray[np.intp] | None, a: int) -> Iterator[Members]:
    if groups is not None:
        yield from grouped(groups, len(basis.spectrum), a)[1]
        return
    n = len(basis.train)
    for start in range(0, n, ROWS_AT_ONCE):
        yield list(np.arange(start, min(start + ROWS_AT_ONCE, n))[:, None])


def rough_error(
    response: Response, groups: NDArray[np.intp] | None, alphas: Floats, mix: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the result of :func:`left_out_error` (a, t) from coordinates in single precision, with its bounds (a, t).

    The bounds follow from the error of a coordinate to first order: errors of a group's entries are independent, those
    of its sum of squares add up over groups.
    """
    basis, centred = response.basis, response.centred
    mix = np.eye(centred.shape[1]) if mix is None else mix
    shrink = 1.0 / (basis.spectrum + alphas[:, None])  # (a, r)
    solutions = response.moments[:, None, :] * shrink.T[:, :, None]  # (r, a, t)
    columns, rough_mix = np.ascontiguousarray(solutions, np.float32).reshape(len(solutions), -1), mix.astype(np.float32)
    error, bound = np.zeros((2, len(alphas), mix.shape[1]))
    measured: list[tuple[NDArray[Any], ...]] = []
    for members in _members(basis, groups, len(alphas)):
        some, real = np.concatenate(members), filled(members)
        flat = basis.coordinates(basis.train[some], np.float32)
        A = padded(flat, real)
        kept, H = without_mean(real, len(centred)), leverages(A, np.sqrt(shrink))
        fitted = product(flat, columns).reshape(len(flat), len(alphas), -1)
        pulled, own = np.empty((2, len(real), len(alphas), mix.shape[1]))
        length = np.empty((len(real), len(alphas)))
        for i in range(len(alphas)):
            inverse = _inverse(kept - H[i])
            left = inverse @ padded(centred[some] - fitted[:, i], real)
            # By how much a change of the system changes errors, which are linear in the target.
            pulled[:, i] = np.linalg.norm((inverse @ left.astype(np.float32)) @ rough_mix, axis=1)
            left = left @ mix
            own[:, i] = np.einsum("gkt,gkt->gt", left, left)
            length[:, i] = np.linalg.norm(inverse, axis=(1, 2))
        error += own.sum(0)
        largest = np.einsum("gkr,gkr->gk", A, A).max(1) / A.shape[2]  # mean square of the largest row
        measured.append((real.sum(1), np.einsum("gkr,gkr->gr", A, A), largest, pulled, own, length))
        if sum(part[1].size for part in measured) > _MEASURED:
            bound += _bounds(measured, response.moments @ mix, shrink)
            measured = []
    return error, bound + (_bounds(measured, response.moments @ mix, shrink) if measured else 0.0)


def _bounds(measured: Sequence[tuple[NDArray[Any], ...]], moments: Floats, shrink: Floats) -> Floats:
    """Return the bounds (a, t) of the errors of some groups.

    Parameters
    ----------
    measured : for g groups together, number of rows (g,), sums of squares of their coordinates (g, r), mean square of
        the largest row (g,), change of errors with the system (g, a, t), squared errors (g, a, t), and length of the
        inverse systems (g, a)
    moments, shrink : (r, t) of the targets, and (a, r)
    """
    sizes, sums, largest, pulled, own, length = map(np.concatenate, zip(*measured, strict=True))
    root, row = np.sqrt(sizes)[:, None], (sizes * largest).astype(np.float32)[:, None]
    of_leverage = _ROUNDING * np.sqrt((sums * (4 * row + sums)) @ (shrink**2).T.astype(np.float32))  # (g, a)
    spread = length / root * of_leverage
    out = np.empty((len(shrink), moments.shape[1]))
    sums += row
    for i, of_alpha in enumerate(shrink):
        solutions = moments * of_alpha[:, None]
        peak = np.abs(solutions).max(0)
        relative = np.divide(solutions, peak, out=np.zeros_like(solutions), where=peak > 0).astype(np.float32)
        of_reading = _ROUNDING * peak * np.sqrt(sums @ relative**2) / root
        change = pulled[:, i] * (of_reading + of_leverage[:, [i]] / root**2 * np.sqrt(own[:, i]))
        changed = change * (1 + spread[:, [i]] / _FIRST_ORDER)
        out[i] = 2 * np.where(spread[:, [i]] > _UNSAFE, np.inf, changed).sum(0)
    return out


def _inverse(systems: Floats) -> Floats:
    """Return the inverses (g, k, k), NaN where one of them is singular in single precision."""
    try:
        return np.asarray(np.linalg.inv(systems))
    except np.linalg.LinAlgError:
        return np.full_like(systems, np.nan)


def exact_residuals(response: Response, groups: NDArray[np.intp], alpha: Floats) -> Floats:
    """Return the result of :func:`deleted_residuals` (n, t), where it pays from coordinates in single precision.

    Residuals of the systems in double precision correct the solutions, until nothing changes.
    """
    basis = response.basis
    if not _worth(basis, groups, 1) or (True, np.float64) in basis.computed:
        return deleted_residuals(response, groups, alpha)
    out = np.empty_like(response.centred)
    for value in np.unique(alpha):
        at = np.flatnonzero(alpha == value)
        corrected = _corrected(response.only(at), groups, float(value))
        out[:, at] = deleted_residuals(response.only(at), groups, alpha[at]) if corrected is None else corrected
    return out


def _corrected(response: Response, groups: NDArray[np.intp], alpha: float) -> Floats | None:
    """Return left-out errors (n, t) at one penalty, or ``None`` where corrections do not converge."""
    basis, n = response.basis, len(response.centred)
    roots = 1.0 / np.sqrt(basis.spectrum + alpha)[None]
    solvers = []
    for members in _members(basis, groups, 1):
        some, real = np.concatenate(members), filled(members)
        A = padded(basis.coordinates(basis.train[some], np.float32), real)
        solvers.append((some, real, _inverse(without_mean(real, n) - leverages(A, roots)[0])))
    units = _rows_of(groups)
    errors = response.centred - (response.fit(np.full(len(response.mean), alpha)).predict(basis.train) - response.mean)
    left, rest, rate, size = np.zeros_like(errors), errors, 1.0, 1.0
    for _ in range(_STEPS):
        for some, real, inverse in solvers:
            left[some] += (inverse @ padded(rest[some], real))[real]
        if size * rate <= _EXACT:  # each correction divides what is left by the same factor
            return left
        before, rest = np.linalg.norm(rest), errors - _others(basis, left, units, alpha)
        rate = float(np.linalg.norm(rest) / before) if before else 0.0
        size *= rate
        if not rate <= _UNSAFE:
            return None
    return None


def _rows_of(numbers: NDArray[np.intp]) -> Members:
    """Return the rows of each unit."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _others(basis: Eigenbasis, left: Floats, units: Members, alpha: float) -> Floats:
    """Return (I − H_gg) of each group times its rows of ``left`` (n, t)."""
    pulled = by_unit(basis, left, units)
    solutions = basis.vectors @ (pulled / (basis.spectrum[:, None] + alpha))  # (d, u · t)
    solutions = solutions.reshape(len(solutions), len(units), -1)
    out = left.copy()
    for u, rows in enumerate(units):
        out[rows] -= left[rows].sum(0) / len(left)
        for at, Z in basis.standardised(basis.train[rows]):  # a unit at a time fits into the processor's cache
            out[rows[at]] -= Z @ solutions[:, u]
    return out


def by_unit(basis: Eigenbasis, values: Floats, units: Members) -> Floats:
    """Return the products (r, u · t) of the coordinates of each unit's training rows with their values (n, t)."""
    t = values.shape[1]
    if basis.kernel is not None:
        A = basis.coordinates(basis.train)
        each = [A[rows].T @ values[rows] for rows in units]
        return np.stack(each, axis=1).reshape(A.shape[1], -1)
    products = np.zeros((len(units), basis.X.shape[1], t))
    for u, rows in enumerate(units):
        for at, Z in basis.standardised(basis.train[rows]):  # few columns need no coordinates of the rows
            products[u] += Z.T @ values[rows[at]]
    return np.asarray(basis.vectors.T @ products.transpose(1, 0, 2).reshape(basis.X.shape[1], -1))
