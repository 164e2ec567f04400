"""Patients, or whole centers, assigned to parts of given shares, so that counts are balanced: an integer program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats

FREE = 2000
"""Most integer variables, units × parts; of more units, most are dealt at random within strata, and the rest solved"""

_ROOM = 600
"""Integer variables of the units that are not dealt"""

_ENOUGH = 1e-3
"""Gap at which the search ends: an average count is within 0.1 % of the best one"""


@dataclass(frozen=True)
class Demands:
    """What a split must meet (shares, classes), and what it should come near (balance)."""

    shares: Mapping[str, float]
    """Part → its share of the patients; they sum to 1"""
    tolerance: float
    """Largest deviation of a part's number of patients, as a share of that number; a fraction of one patient is free"""
    patients: Floats
    """(u,) patients of each unit, where a unit is what stays in one part"""
    classes: Mapping[str, NDArray[np.bool_]]
    """Class → (u,) which units have it; every part needs one of them"""
    balance: Mapping[str, Floats]
    """What is balanced → (u, c) counts of rows of each class or bin"""

    def reach(self, tolerance: float) -> tuple[Floats, Floats]:
        """Return the least and most patients (p,) of each part."""
        wanted = np.array(list(self.shares.values())) * self.patients.sum()
        return np.maximum(np.floor(wanted * (1 - tolerance)), 1), np.ceil(wanted * (1 + tolerance) - 1e-9)


@dataclass(frozen=True)
class Assigned:
    """Which part each unit is in, and how good that is."""

    part: NDArray[np.intp]
    """(u,) numbers of parts"""
    deviation: float
    """Mean deviation of counts from their shares, relative to them: over what is balanced, its classes and the parts"""
    gap: float
    """Largest amount by which another split can have a smaller deviation: that of the split, minus the proven bound"""


def assign(demands: Demands, patientwise: Demands | None = None, *, seconds: float = 30.0, seed: int = 0) -> Assigned:
    """Assign units to parts so that counts deviate least from the shares (mixed-integer program, HiGHS).

    Up to :data:`FREE` units × parts are solved as one program, and the split is then improved by single moves and
    swaps, which the solver would need longer for. Of more units, most are dealt: in random order within strata of equal
    counts, each to the part that is furthest behind. The remaining ones, those with rare classes among them, are then
    solved, and balance what the deal left. The bound is then 0, which fractions of patients reach.

    Parameters
    ----------
    patientwise : the same demands of single patients, where ``demands`` has centers as units
    seconds : time limit of the solver; the best split by then is returned, and its gap
    seed : of the order of units, which decides between equally good splits

    Raises
    ------
    InputError
        when no split meets the demands, naming those that conflict; or none was found in time
    """
    n, parts = len(demands.patients), len(demands.shares)
    order = np.random.default_rng(seed).permutation(n)
    dealt = np.full(n, -1)
    if n * parts > FREE:
        free = _free_units(demands, order, math.ceil(_ROOM / parts))
        dealt = _deal(demands, order[~np.isin(order, free)])
    solved = _solve(demands, order, dealt, seconds)
    if solved is None and (dealt >= 0).any():
        dealt = np.full(n, -1)
        solved = _solve(demands, order, dealt, seconds)
    if solved is None:
        raise InputError(conflict(demands, patientwise, seconds))
    part, bound = solved
    if (dealt >= 0).any():
        bound = 0.0
    else:
        part = _improve(demands, part)
    deviation = mean_deviation(demands, part)
    return Assigned(part, deviation, deviation - min(max(bound, 0.0), deviation))


def mean_deviation(demands: Demands, part: NDArray[np.intp]) -> float:
    """Return the mean relative deviation of counts from their shares, for parts (u,) of units."""
    counts, shares, weights = _columns(demands)
    got = np.stack([counts[part == k].sum(0) for k in range(len(shares))], 1)  # (c, p)
    wanted = counts.sum(0)[:, None] * shares
    return float((weights[:, None] * np.abs(got - wanted) / wanted).sum() / len(shares))


def _columns(demands: Demands) -> tuple[Floats, Floats, Floats]:
    """Return counts (u, c) of everything that is balanced, shares (p,), and weights (c,) that sum to 1."""
    blocks = [block[:, block.sum(0) > 0] for block in (demands.patients[:, None], *demands.balance.values())]
    weights = np.concatenate([np.full(block.shape[1], 1 / block.shape[1]) for block in blocks]) / len(blocks)
    return np.hstack(blocks), np.array(list(demands.shares.values())), weights


def _free_units(demands: Demands, order: NDArray[np.intp], room: int) -> NDArray[np.intp]:
    """Return the units that are not dealt: those of rare classes, and some at random."""
    few = [has for has in demands.classes.values() if has.sum() <= room // 4]
    rare = np.flatnonzero(np.any(few, axis=0)) if few else order[:0]
    return np.union1d(rare, order[: max(room - len(rare), room // 4)])


def _deal(demands: Demands, units: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the part of each unit (u,), −1 of those not dealt: in strata of equal main classes, to the part behind."""
    counts, shares, _ = _columns(demands)
    strata = np.stack([block.argmax(1) for block in demands.balance.values()], 1) if demands.balance else counts[:, :0]
    keys = [*strata[units].T]
    sorted_units = units[np.lexsort(keys[::-1])] if keys else units
    part = np.full(len(counts), -1)
    given = np.zeros(len(shares))
    for at, unit in enumerate(sorted_units):
        chosen = int(np.argmax(shares * (at + 1) - given))
        part[unit], given[chosen] = chosen, given[chosen] + 1
    return part


def _solve(
    demands: Demands, order: NDArray[np.intp], dealt: NDArray[np.intp], seconds: float
) -> tuple[NDArray[np.intp], float] | None:
    """Return parts (u,) and the bound of the mean deviation; ``None`` when no split meets the demands.

    Variables: x (free units × parts), in 0 or 1; the relative deviation of each column in each part; a constant 1, by
    which the solver's relative gap is one of the deviation itself, which may be 0.
    """
    counts, shares, weights = _columns(demands)
    free = order[dealt[order] < 0]
    n, p, c = len(free), len(shares), counts.shape[1]
    fixed = np.stack([counts[dealt == k].sum(0) for k in range(p)], 1)
    wanted = counts.sum(0)[:, None] * shares
    sums = scipy.sparse.kron(scipy.sparse.csr_array(counts[free].T), scipy.sparse.eye_array(p))
    slack = scipy.sparse.diags_array(wanted.ravel())
    aim = (wanted - fixed).ravel()
    constraints = [
        *_hard(demands, free, dealt, c * p + 1),
        _rows([sums, -slack, _zeros(c * p, 1)], -np.inf, aim),
        _rows([sums, slack, _zeros(c * p, 1)], aim, np.inf),
    ]
    cost = np.concatenate([np.zeros(n * p), np.repeat(weights, p) / p, [1.0]])
    high = np.concatenate([np.ones(n * p), np.full(c * p, np.inf), [1.0]])
    low = np.concatenate([np.zeros(n * p + c * p), [1.0]])
    found = scipy.optimize.milp(
        cost,
        integrality=np.arange(len(cost)) < n * p,
        bounds=scipy.optimize.Bounds(low, high),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": _ENOUGH},
    )
    if found.x is None:
        if found.status == 2:
            return None
        raise InputError(f"make: no split was found in {seconds:g} seconds; raise --seconds, or demand less.")
    part = dealt.copy()
    part[free] = found.x[: n * p].reshape(n, p).argmax(1)
    return part, float(found.mip_dual_bound) - 1


def _improve(demands: Demands, part: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return parts (u,) after moves of units and swaps of two, each the best one of its unit, until none is better."""
    counts, shares, weights = _columns(demands)
    n, p = len(part), len(shares)
    wanted = shares[:, None] * counts.sum(0)  # (p, c)
    scale = weights / wanted / p
    held = np.stack([demands.patients, *demands.classes.values()], 1)
    low, high = demands.reach(demands.tolerance)
    least, most = np.ones((p, held.shape[1])), np.full((p, held.shape[1]), np.inf)
    least[:, 0], most[:, 0] = low, high
    # a move is a swap with an empty unit, of which each part has one
    size, limited = (np.vstack([values, np.zeros((p, values.shape[1]))]) for values in (counts, held))
    where = np.append(part, np.arange(p))
    got, here = (np.stack([values[where == k].sum(0) for k in range(p)]) for values in (size, limited))
    better = True
    while better:
        better = False
        for a in range(n):
            i, others = where[a], np.flatnonzero(where != where[a])
            j, more, change = where[others], size[a] - size[others], limited[a] - limited[others]
            gain = (scale[i] * (np.abs(got[i] - wanted[i]) - np.abs(got[i] - more - wanted[i]))).sum(1)
            gain += (scale[j] * (np.abs(got[j] - wanted[j]) - np.abs(got[j] + more - wanted[j]))).sum(1)
            first, second = here[i] - change, here[j] + change
            met = (first >= least[i]) & (first <= most[i]) & (second >= least[j]) & (second <= most[j])
            gain[~met.all(1)] = 0.0
            best = int(np.argmax(gain))
            if gain[best] > 1e-9:
                b, k = others[best], j[best]
                got[i], got[k] = got[i] - more[best], got[k] + more[best]
                here[i], here[k] = first[best], second[best]
                where[a], where[b], better = k, (i if b < n else k), True
    return where[:n]


def _hard(
    demands: Demands, free: NDArray[np.intp], dealt: NDArray[np.intp], more: int
) -> list[scipy.optimize.LinearConstraint]:
    """Return the constraints that must hold: one part per unit, patients per part, every class in every part.

    ``more`` is the number of variables after those of the units.
    """
    n, p = len(free), len(demands.shares)
    parts = scipy.sparse.eye_array(p)
    low, high = demands.reach(demands.tolerance)
    here = np.array([demands.patients[dealt == k].sum() for k in range(p)])
    patients = scipy.sparse.kron(scipy.sparse.csr_array(demands.patients[None, free]), parts)
    found = [
        _rows([scipy.sparse.kron(scipy.sparse.eye_array(n), np.ones((1, p))), _zeros(n, more)], 1, 1),
        _rows([patients, _zeros(p, more)], low - here, high - here),
    ]
    for has in demands.classes.values():
        covered = np.array([has[dealt == k].any() for k in range(p)])
        holders = scipy.sparse.kron(scipy.sparse.csr_array(has[None, free].astype(np.float64)), parts)
        found.append(_rows([holders, _zeros(p, more)], 1.0 - covered, np.inf))
    return found


def _rows(
    blocks: Sequence[scipy.sparse.sparray], low: Floats | float, high: Floats | float
) -> scipy.optimize.LinearConstraint:
    return scipy.optimize.LinearConstraint(scipy.sparse.hstack(blocks, format="csc"), low, high)


def _zeros(rows: int, columns: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((rows, columns))


def conflict(demands: Demands, patientwise: Demands | None, seconds: float) -> str:
    """Return a sentence that names demands which conflict, and what could be demanded instead.

    Each demand is left out in turn, for good if the others still conflict. The demands that remain conflict, and
    any of them could be given up.
    """
    centers, shares = "centers in one part each", f"shares within {demands.tolerance:.0%}"
    of_class = {f"{name} in every part": name for name in demands.classes}
    kept = [*of_class, shares, *([centers] if patientwise else [])]
    for one in tuple(kept):
        others = [name for name in kept if name != one]
        now = demands if centers in others or patientwise is None else patientwise
        classes = {name: now.classes[name] for text, name in of_class.items() if text in others}
        tolerance = demands.tolerance if shares in others else np.inf
        if _nearest(replace(now, classes=classes, tolerance=tolerance), seconds) is None:
            kept = others
    least = _nearest(replace(demands, tolerance=np.inf), seconds) if shares in kept else None
    advice = "give up one of them"
    if least is not None:
        advice = f"--tolerance {math.ceil(100 * least) / 100:g} is the smallest that can be met"
    if not kept:
        return f"make: {len(demands.shares)} parts cannot be made of {len(demands.patients)} patients."
    return f"make: no split has {' and '.join(kept)}; {advice}."


def _nearest(demands: Demands, seconds: float) -> float | None:
    """Return the smallest tolerance with which a split meets the demands; ``None`` where none is found in time."""
    free, wanted = np.arange(len(demands.patients)), np.array(list(demands.shares.values())) * demands.patients.sum()
    n, p = len(free), len(wanted)
    patients = scipy.sparse.kron(scipy.sparse.csr_array(demands.patients[None]), scipy.sparse.eye_array(p))
    column = scipy.sparse.csr_array(wanted[:, None])
    found = scipy.optimize.milp(
        np.append(np.zeros(n * p), 1.0),
        integrality=np.append(np.ones(n * p), 0),
        bounds=scipy.optimize.Bounds(0, np.append(np.ones(n * p), np.inf)),
        constraints=[
            *_hard(demands, free, np.full(n, -1), 1),
            _rows([patients, -column], -np.inf, wanted),
            _rows([patients, column], wanted, np.inf),
        ],
        options={"time_limit": seconds},
    )
    return None if found.x is None else float(found.x[-1])
