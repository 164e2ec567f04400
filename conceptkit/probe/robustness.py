"""Robustness of features to centers: RI, MaRI and CRoMa, with the values that jackknives over patients need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats, balanced_accuracy
from conceptkit.probe.neighbours import Cohort, Column, Lists, Nearest, Neighbours, find_neighbours, make_cohort

K_CANDIDATES = (5, 11, 21)
"""Numbers of neighbours from which the one of the best kNN accuracy for the label is chosen, as croma proposes"""

M_NEAREST = 5
"""Neighbours of each type in CRoMa"""

TAIL = 0.10
"""Share of the rows with the lowest CRoMa, whose mean is the lower tail"""

FALLBACK_TAU = 0.2
"""Temperature of MaRI where the distances give none, as in croma; the value of MaRI does not depend on it then"""

INDICES = ("RI", "MaRI", "CRoMa", "CRoMa tail", "CRoMa below 0")
"""Names of the indices, in their order"""


@dataclass(frozen=True)
class Index:
    """One index of a cohort, and its value without each patient and each center."""

    name: str
    value: float
    """NaN where no row counts"""
    without_patient: Floats
    """(p,)"""
    without_center: Floats
    """(c,)"""
    n_rows: int
    """Rows that count: with an informative neighbour (RI, MaRI), or all typed neighbours (CRoMa)"""
    n_patients: int
    """Patients of these rows"""
    chance: float = math.nan
    """Of RI and MaRI: the value of features that know neither label nor center"""


@dataclass(frozen=True)
class RobustnessIndices:
    """The indices of one set of features."""

    cohort: Cohort
    k: int
    """Neighbours of RI and MaRI"""
    tau: float
    """Temperature of MaRI"""
    knn_label: float
    """Balanced accuracy of the label by k neighbours of other patients"""
    knn_center: float
    """The same of the center"""
    indices: dict[str, Index]
    """By name, see :data:`INDICES`"""


def robustness_indices(
    X: Any,
    label: Column,
    center: Column,
    patient: Column,
    *,
    k: int | Sequence[int] = K_CANDIDATES,
    m: int = M_NEAREST,
    tau: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RobustnessIndices:
    """Return RI, MaRI and CRoMa of features (n, d).

    Neighbours are compared by cosine distance, and rows of the same patient are never neighbours. RI is the share of
    neighbours of the same label and another center among those that share exactly one of both. MaRI weights them by
    exp(−distance/τ). CRoMa of a row is (d_c − d_l)/(d_c + d_l), with d_l the mean distance to the m nearest rows of its
    label in other centers and d_c that to the m nearest rows of other labels in its center; the index is the median,
    the tail the mean of the lowest tenth.

    Parameters
    ----------
    label, center, patient : (n,)
    k : number of neighbours, or candidates of which the one with the best kNN balanced accuracy for the label is used
    tau : temperature; by default the median distance of the neighbours that count at k
    progress : receives the number of rows done and in total

    Raises
    ------
    InputError
        see :func:`.neighbours.make_cohort` and :func:`.neighbours.find_neighbours`

    Source
    ------
    Kömen et al., 2025 (PathoROB; RI); Grisi et al., 2026 (MaRI, CRoMa); equal to the package croma 1.0.1
    """
    cohort = make_cohort(label, center, patient)
    candidates = candidates_of([k] if isinstance(k, int) else k, len(cohort.label))
    return indices_of(find_neighbours(X, cohort, k=max(candidates), m=m, progress=progress), candidates, tau)


def candidates_of(k: Sequence[int], n_rows: int) -> list[int]:
    """Return the numbers of neighbours below the number of rows; :class:`InputError` where there are none."""
    found = [one for one in k if 1 <= one < n_rows]
    if not found:
        raise InputError(f"neighbours: must be from 1 to {n_rows - 1} for {n_rows} rows, got {', '.join(map(str, k))}.")
    return found


def indices_of(found: Neighbours, candidates: Sequence[int], tau: float | None = None) -> RobustnessIndices:
    """Return the indices from neighbours; see :func:`robustness_indices`."""
    cohort, near = found.cohort, found.patients.any
    accuracy = {k: knn_accuracy(near, cohort.label, len(cohort.labels), k) for k in candidates}
    k = max(candidates, key=lambda one: accuracy[one])  # the first of equal ones
    typed = near.distance[:, :k][np.logical_or(*_types(found.patients.any, cohort))[:, :k]]
    if tau is None:
        tau = float(np.median(typed)) if typed.size else 0.0
        tau = tau if tau > 0 else FALLBACK_TAU
    indices = [*_evidence_indices(found, k, tau), *_margin_indices(found)]
    return RobustnessIndices(
        cohort=cohort,
        k=k,
        tau=tau,
        knn_label=accuracy[k],
        knn_center=knn_accuracy(near, cohort.center, len(cohort.centers), k),
        indices={one.name: one for one in indices},
    )


def knn_accuracy(near: Nearest, codes: NDArray[np.intp], n_classes: int, k: int) -> float:
    """Return the balanced accuracy of classes (n,) by the most frequent class of k neighbours (the first of equal)."""
    index = near.index[:, :k]
    votes = np.stack([((codes[index] == one) & (index >= 0)).sum(1) for one in range(n_classes)], axis=1)
    used = votes.any(1)
    return balanced_accuracy(codes[used], votes[used].argmax(1), n_classes) if used.any() else math.nan


def _types(near: Nearest, cohort: Cohort) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which neighbours have the same label and another center, and which the same center and another label."""
    index = np.maximum(near.index, 0)
    label = cohort.label[index] == cohort.label[:, None]
    center = cohort.center[index] == cohort.center[:, None]
    known = near.index >= 0
    return known & label & ~center, known & ~label & center


def evidence_chance(cohort: Cohort) -> float:
    """Return RI of features that know neither label nor center: each row of another patient is as likely a neighbour.

    It is 0.5 only where as many rows share the label in other centers as share the center with other labels; of c
    centers with the same rows of two labels in each it is (c − 1)/c.
    """

    def of_type(*same: bool) -> Floats:
        """Return the number of rows of other patients with the same, or another, label and center."""
        numbers = np.zeros(len(cohort.label))
        for within in (None, cohort.patient):
            codes = [np.zeros_like(cohort.label) if within is None else within]
            for values, equal in zip((cohort.label, cohort.center), same, strict=True):
                codes += [values] if equal else []
            one, both = (_size_of_group(*codes), _size_of_group(*codes[:1], cohort.label, cohort.center))
            numbers += (one - both) * (1 if within is None else -1)
        return numbers

    shares = [
        numbers / np.maximum(len(cohort.label) - _size_of_group(cohort.patient), 1)
        for numbers in (of_type(True, False), of_type(False, True))
    ]
    total = float(np.sum(shares))
    return float(shares[0].sum()) / total if total else math.nan


def _size_of_group(*codes: NDArray[np.intp]) -> Floats:
    """Return for each row (n,) how many rows have the same codes."""
    _, group, counts = np.unique(np.stack(codes), axis=1, return_inverse=True, return_counts=True)
    return np.asarray(counts[group.ravel()], dtype=np.float64)


def _evidence_indices(found: Neighbours, k: int, tau: float) -> Iterator[Index]:
    """Yield RI and MaRI."""
    cohort = found.cohort
    counted = np.logical_or(*_types(found.patients.any, cohort))[:, :k].any(1)
    support = {"n_rows": int(counted.sum()), "n_patients": len(np.unique(cohort.patient[counted]))}
    for name, temperature in (("RI", math.inf), ("MaRI", tau)):
        sums = [_evidence(lists, cohort, k, temperature) for lists in (found.patients, found.centers)]
        (value, of_patients), (_, of_centers) = sums
        yield Index(name, value, of_patients, of_centers, **support, chance=evidence_chance(cohort))


def _evidence(lists: Lists, cohort: Cohort, k: int, tau: float) -> tuple[float, Floats]:
    """Return the share of evidence for the label, and that without each unit.

    Without a unit its rows are gone, and each of its places among the k neighbours of other rows is taken by the next
    nearest row.
    """
    index, units = lists.any.index, lists.unit[np.maximum(lists.any.index, 0)]
    known, n_units = index >= 0, int(lists.unit.max()) + 1
    with np.errstate(under="ignore"):
        weight = np.exp(-lists.any.distance / tau) if math.isfinite(tau) else known.astype(np.float64)
    both = [np.where(of_type, weight, 0.0) for of_type in _types(lists.any, cohort)]
    # The k nearest of the list without a cap: a cap of k on each unit leaves them as they are.
    whole = [one[:, :k].sum(1) for one in both]
    total = [one.sum() - np.bincount(lists.unit, one, n_units) for one in whole]
    for column in range(k):
        unit = units[:, column]
        repeated = (units[:, :column] == unit[:, None]).any(1)
        rows = np.flatnonzero(known[:, column] & ~repeated & (unit != lists.unit))
        rest = known[rows] & (units[rows] != unit[rows, None])
        rest &= np.cumsum(rest, axis=1) <= k
        for one, full, without in zip(both, whole, total, strict=True):
            change = (one[rows] * rest).sum(1) - full[rows]
            without += np.bincount(unit[rows], change, n_units)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, deleted = np.sum(whole[0]) / (np.sum(whole[0]) + np.sum(whole[1])), total[0] / (total[0] + total[1])
    return float(value), deleted


def _margin_indices(found: Neighbours) -> Iterator[Index]:
    """Yield CRoMa, its lower tail, and the share of rows at or below 0."""
    cohort, m = found.cohort, found.m
    values = _margins(found.patients.same_label.distance[:, :m], found.patients.same_center.distance[:, :m])
    counted = np.isfinite(values)
    whole = _summaries(values)
    without = [_margins_without(lists, values, m) for lists in (found.patients, found.centers)]
    for i, name in enumerate(INDICES[2:]):
        yield Index(
            name,
            whole[i],
            without[0][:, i],
            without[1][:, i],
            n_rows=int(counted.sum()),
            n_patients=len(np.unique(cohort.patient[counted])),
        )


def _margins(label: Floats, center: Floats) -> Floats:
    """Return CRoMa (n,) from distances (n, m) to rows of the label and of the center; NaN without m of both."""
    with np.errstate(invalid="ignore"):
        d_label, d_center = label.mean(1), center.mean(1)
        return np.asarray((d_center - d_label) / (d_center + d_label))


def _summaries(values: Floats) -> tuple[float, float, float]:
    """Return the median, the mean of the lowest tenth, and the share at or below 0, of finite values."""
    known = values[np.isfinite(values)]
    if not known.size:
        return math.nan, math.nan, math.nan
    q, median = np.percentile(known, [100 * TAIL, 50])
    return float(median), float(known[known <= q].mean()), float((known <= 0).mean())


def _margins_without(lists: Lists, values: Floats, m: int) -> Floats:
    """Return the summaries (u, 3) of CRoMa without each unit."""
    unit, rows, changed = (np.concatenate(parts) for parts in zip(*_changed_margins(lists, m), strict=True))
    order = np.argsort(unit, kind="stable")
    n_units = int(lists.unit.max()) + 1
    ends = np.searchsorted(unit[order], np.arange(n_units + 1))
    out = np.empty((n_units, 3))
    for one in range(n_units):
        here = order[ends[one] : ends[one + 1]]
        rest = values.copy()
        rest[rows[here]] = changed[here]
        rest[lists.unit == one] = np.nan
        out[one] = _summaries(rest)
    return out


def _changed_margins(lists: Lists, m: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], Floats]]:
    """Yield units, the rows that have them among their m nearest of a type, and the margins without the unit."""
    near = (lists.same_label, lists.same_center)
    units = [np.where(one.index >= 0, lists.unit[np.maximum(one.index, 0)], -1) for one in near]
    used = np.hstack([one[:, :m] for one in units])
    for column in range(2 * m):
        unit = used[:, column]
        repeated = (used[:, :column] == unit[:, None]).any(1)
        rows = np.flatnonzero((unit >= 0) & ~repeated & (unit != lists.unit))
        kept = []
        for one, of_unit in zip(near, units, strict=True):
            distance = np.where(of_unit[rows] == unit[rows, None], np.inf, one.distance[rows])
            kept.append(np.sort(distance, axis=1)[:, :m])
        yield unit[rows], rows, _margins(*kept)
