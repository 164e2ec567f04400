"""Nearest rows of other patients by cosine distance, deep enough to leave out any one patient or center."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.files.matrix import rows_of

Codes = NDArray[np.intp]

Column = Sequence[Any] | NDArray[Any]
"""(n,) values, taken as text"""

_BLOCK = 2**23
"""Maximum number of distances that a thread holds at once"""

_SMALLEST = 1e-14
"""Distances below this are rounding errors of 0"""


@dataclass(frozen=True)
class Cohort:
    """Label, center and patient of each row, as numbers in the order in which they first occur."""

    label: Codes
    """(n,)"""
    center: Codes
    """(n,)"""
    patient: Codes
    """(n,)"""
    labels: tuple[str, ...]
    centers: tuple[str, ...]

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1

    @property
    def center_of_patient(self) -> Codes:
        """Center of each patient (p,), that of the first row where a patient has several."""
        return self.center[np.unique(self.patient, return_index=True)[1]]


def make_cohort(label: Column, center: Column, patient: Column) -> Cohort:
    """Return the cohort of rows with a label, a center and a patient each.

    Raises
    ------
    InputError
        when the rows have fewer than two labels, centers or patients, or lengths differ
    """
    if not len(label) == len(center) == len(patient):
        raise InputError(
            f"label: label, center and patient must have one value for each row, got {len(label)}, {len(center)} and "
            f"{len(patient)} values."
        )
    codes, names = {}, {}
    for what, values in (("label", label), ("center", center), ("patient", patient)):
        codes[what], names[what] = pd.factorize(np.asarray(values).astype(str))
        if len(names[what]) < 2:
            raise InputError(
                f"{what}: robustness compares rows of several {what}s, and all {len(values)} rows have "
                f"{names[what][0] if len(values) else 'none'}."
            )
    return Cohort(**codes, labels=tuple(names["label"]), centers=tuple(names["center"]))


@dataclass(frozen=True)
class Nearest:
    """Rows nearest first, of other patients."""

    index: NDArray[np.int32]
    """(n, w) row numbers; −1 where there are no more"""
    distance: Floats
    """(n, w) cosine distances, infinite where there are no more"""


@dataclass(frozen=True)
class Lists:
    """Neighbours of every row of which any one unit (a patient or a center) can be left out."""

    unit: Codes
    """(n,) unit of each row"""
    any: Nearest
    """(n, 2k) at most k of a unit: the k nearest rows remain when any unit is left out"""
    same_label: Nearest
    """(n, 2m) of the same label and another center, at most m of a unit"""
    same_center: Nearest
    """(n, 2m) of the same center and another label, at most m of a unit"""


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of every row of a cohort."""

    cohort: Cohort
    k: int
    m: int
    patients: Lists
    centers: Lists


def find_neighbours(
    X: Any,
    cohort: Cohort,
    *,
    k: int = 21,
    m: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbours:
    """Return the exact nearest neighbours of every row among the rows of other patients.

    The distances of a block of rows to all rows are computed once; of each cell (center and label) the nearest are
    kept, and every list is merged from them. Memory is X in 64 bits, the lists, and a block for each thread.

    Parameters
    ----------
    X : (n, d) features; rows are scaled to unit length
    k : neighbours of any kind that remain when a unit is left out
    m : neighbours of the same label and another center, and of the same center and another label
    progress : receives the number of rows done and in total

    Raises
    ------
    InputError
        when X has another number of rows, a row of zeros, or equal rows only
    """
    n = len(cohort.label)
    if len(X) != n:
        raise InputError(f"features: must have one row for each of the {n} labels, got {len(X)}.")
    order = np.lexsort((cohort.patient, cohort.label, cohort.center))
    ordered = Cohort(cohort.label[order], cohort.center[order], cohort.patient[order], cohort.labels, cohort.centers)
    Z = _unit_rows(X, order)
    starts = np.flatnonzero(np.r_[True, (np.diff(ordered.label) != 0) | (np.diff(ordered.center) != 0)])
    edges = [*starts.tolist(), n]
    cells = list(itertools.pairwise(edges))
    search = _Search(Z=Z, cohort=ordered, cells=cells, k=k, m=m, own=_rows_of_each(ordered.patient))
    size = max(1, _BLOCK // n)
    blocks = [slice(a, min(a + size, end)) for start, end in cells for a in range(start, end, size)]
    out = {name: _empty(n, width) for name, (width, _) in search.plan.items()}
    threads = max(1, *(int(one["num_threads"]) for one in threadpool_info()), 1)
    done = 0
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for block, found in zip(blocks, pool.map(search.block, blocks), strict=True):
            for name, (index, distance) in found.items():
                out[name].index[order[block]] = np.where(index < 0, -1, order[index])
                out[name].distance[order[block]] = distance
            done += block.stop - block.start
            if progress is not None:
                progress(done, n)
    patients = Lists(cohort.patient, out["patients"], out["same_label"], out["same_center"])
    # Without its own center a row is gone itself, so the list of its own center's rows is never shortened.
    centers = Lists(cohort.center, out["centers"], out["same_label_centers"], out["same_center"])
    return Neighbours(cohort=cohort, k=k, m=m, patients=patients, centers=centers)


def _unit_rows(X: Any, order: Codes) -> Floats:
    Z: Floats = np.array(rows_of(X, order), dtype=np.float64)
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise InputError("features: must be finite, and some are missing or infinite.")
    if not length.all():
        raise InputError(f"features: {int((length == 0).sum())} rows hold only zeros, which have no direction.")
    Z /= length
    if np.ptp(Z, axis=0).max() < _SMALLEST:
        raise InputError("features: all rows are equal, so that no row is nearer than another.")
    return Z


def _rows_of_each(codes: Codes) -> list[Codes]:
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def _empty(n: int, width: int) -> Nearest:
    return Nearest(np.full((n, width), -1, np.int32), np.full((n, width), np.inf))


@dataclass(frozen=True)
class _Search:
    """Rows sorted by cell, in which blocks of one cell are searched."""

    Z: Floats
    cohort: Cohort
    cells: list[tuple[int, int]]
    k: int
    m: int
    own: list[Codes]
    """Rows of each patient"""

    @property
    def plan(self) -> dict[str, tuple[int, int]]:
        """Return the width and the cap per unit of each list."""
        one, typed = (2 * self.k, self.k), (2 * self.m, self.m)
        return {
            "patients": one,
            "centers": one,
            "same_label": typed,
            "same_label_centers": typed,
            "same_center": typed,
        }

    def block(self, rows: slice) -> dict[str, tuple[NDArray[np.intp], Floats]]:
        """Return the lists of some rows of one cell, with indices into the sorted rows."""
        of = self.cohort
        D = self.Z[rows] @ self.Z.T
        np.subtract(1.0, D, out=D)
        D[D < _SMALLEST] = 0.0
        for i, patient in enumerate(of.patient[rows]):
            D[i, self.own[patient]] = np.inf
        most = max(self.k, self.m)
        index, distance = [], []
        for start, end in self.cells:
            at = _first(D[:, start:end], of.patient[start:end], most, 2 * most)
            distance.append(_taken(D[:, start:end], at, np.inf))
            index.append(np.where(at < 0, -1, at + start))
        label, center = of.label[rows.start], of.center[rows.start]
        types = [(of.label[start] == label, of.center[start] == center) for start, _ in self.cells]
        all_cells = list(range(len(types)))
        same_label = [i for i in all_cells if types[i] == (True, False)]
        same_center = [i for i in all_cells if types[i] == (False, True)]
        sources = {
            "patients": (all_cells, of.patient),
            "centers": (all_cells, of.center),
            "same_label": (same_label, of.patient),
            "same_label_centers": (same_label, of.center),
            "same_center": (same_center, of.patient),
        }
        found = {}
        for name, (chosen, unit) in sources.items():
            width, cap = self.plan[name]
            if not chosen:
                found[name] = np.full((len(D), width), -1, np.intp), np.full((len(D), width), np.inf)
                continue
            places, away = (np.hstack([values[i] for i in chosen]) for values in (index, distance))
            at = _first(away, unit[places], cap, width)
            found[name] = _taken(places, at, -1), _taken(away, at, np.inf)
        return found


def _taken(values: NDArray[Any], at: NDArray[np.intp], missing: float) -> NDArray[Any]:
    return np.where(at < 0, missing, np.take_along_axis(values, np.maximum(at, 0), axis=1)).astype(values.dtype)


def _first(D: Floats, unit: NDArray[np.intp], cap: int, width: int, depth: int | None = None) -> NDArray[np.intp]:
    """Return the columns (b, width) of the nearest of each row, with at most ``cap`` of a unit; −1: no more.

    Parameters
    ----------
    D : (b, c) distances, infinite where excluded
    unit : (c,) or (b, c)
    depth : nearest columns that are looked at first; more where too many of them share a unit
    """
    b, c = D.shape
    depth = min(c, width + cap if depth is None else depth)
    at = np.argpartition(D, depth - 1, axis=1)[:, :depth] if depth < c else np.tile(np.arange(c), (b, 1))
    near = np.take_along_axis(D, at, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    at, near = np.take_along_axis(at, order, axis=1), np.take_along_axis(near, order, axis=1)
    units = unit[at] if unit.ndim == 1 else np.take_along_axis(unit, at, axis=1)
    kept = (_rank_within(units) < cap) & np.isfinite(near)
    place = np.cumsum(kept, axis=1) - 1
    out = np.full((b, width), -1, np.intp)
    i, j = np.nonzero(kept & (place < width))
    out[i, place[i, j]] = at[i, j]
    short = np.flatnonzero((place[:, -1] < width - 1) & np.isfinite(near[:, -1])) if depth < c else ()
    if len(short):
        out[short] = _first(D[short], unit if unit.ndim == 1 else unit[short], cap, width, 4 * depth)
    return out


def _rank_within(units: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how many earlier columns of the row have the same unit (b, c)."""
    order = np.argsort(units, axis=1, kind="stable")
    ordered = np.take_along_axis(units, order, axis=1)
    column = np.arange(units.shape[1])
    new = np.hstack([np.ones((len(units), 1), bool), ordered[:, 1:] != ordered[:, :-1]])
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, column - np.maximum.accumulate(np.where(new, column, 0), axis=1), axis=1)
    return rank
