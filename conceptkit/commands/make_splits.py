"""Splits that are made: patients or centers assigned to parts, as a new table, and the shortcut that remains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from conceptkit.errors import InputError, check_distinct
from conceptkit.evaluate.scores import Floats
from conceptkit.evaluate.shortcuts import Shortcut, center_shortcut
from conceptkit.options.study import Splits
from conceptkit.pathology.measuring import check_out, relative_path, write_table
from conceptkit.runs.context import center_column
from conceptkit.runs.opening import open_study
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.splitting import Assigned, Demands, assign

_BINS = 4
"""Bins of equal size by which a continuous concept is balanced"""

_NONE = "none"
"""For ``--label`` and ``--center``: there is none"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a split."""

    name: str
    share: float
    """Of the patients, as demanded"""
    patients: int
    patches: int
    centers: int | None
    labels: Mapping[str, float]
    """Class of the label → its share of the part's labelled patches"""
    shortcut: Shortcut | None
    """How well the center predicts the label here; ``None`` without centers or labels"""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        found = self.shortcut
        auc = {} if found is None else {"auc": found.auc, "chance": found.chance, "chance_high": found.high}
        plain = {key: None if math.isnan(value) else value for key, value in auc.items()}
        return {**vars(self), "labels": dict(self.labels), "shortcut": plain or None}


@dataclass(frozen=True, kw_only=True)
class MadeSplits:
    """A split that was made."""

    parts: tuple[Part, ...]
    deviation: float
    """Mean deviation of the balanced counts from their shares, relative to them"""
    gap: float
    """Largest amount by which another split can have a smaller deviation"""
    column: str
    out: Path | None
    frame: pd.DataFrame
    """The table with the new column"""
    notes: tuple[str, ...]
    study: str

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "schema": "conceptkit/made-splits/1",
            "study": self.study,
            "column": self.column,
            "deviation": self.deviation,
            "gap": self.gap,
            "parts": [part.to_dict() for part in self.parts],
            "out": None if self.out is None else str(self.out),
            "notes": list(self.notes),
        }


def make_splits(options: Splits, study: Any) -> MadeSplits:
    """Assign a study's patients to parts, and write the table with the new column where ``options.out`` says.

    Raises
    ------
    InputError
        when the demands conflict, a column is missing, or a file or column would be overwritten
    """
    opened, table = open_study(study, options.table, None, None, options.group, (), opens_model=False)
    folds, shares = parts_of(str(options.make))
    column = options.column or ("fold" if folds else opened.splits.column)
    out = _checked_out(options, table, column)
    center = center_column(table, options.center)
    label = opened.label if options.label is None else options.label
    if options.label is None and label not in table.frame.columns:
        label = _NONE
    label_codes, classes = _codes(table, None if label == _NONE else label, "label")
    center_codes, centers = _codes(table, center, "center")
    notes: list[str] = []
    groups = table.groups(opened.group)
    if groups is None:
        notes.append("The table has no column of patients (--group): each row counts as one patient.")
        groups = np.arange(len(table))
    patients = np.unique(groups, return_inverse=True)[1]
    balance = _balanced(table, options.balance, dict.fromkeys([] if label == _NONE else [label]))
    made = _demands(shares, options.tolerance, patients, patients, label_codes, classes, balance)
    demands, unit_of, single = made, patients, None
    if options.preserve_centers:
        unit_of, joined = _center_units(patients, center_codes, centers, center)
        notes += joined
        demands = _demands(shares, options.tolerance, unit_of, patients, label_codes, classes, balance)
        single = made
    _check_counts(demands, label, "centers that share no patient" if options.preserve_centers else "patients")
    assigned = assign(demands, single, seconds=options.seconds, seed=options.seed)
    part_of = assigned.part[unit_of]
    names = list(shares)
    parts = tuple(
        _part(name, shares[name], np.flatnonzero(part_of == k), patients, center_codes, (label_codes, classes))
        for k, name in enumerate(names)
    )
    values = part_of + 1 if folds else np.array(names, dtype=object)[part_of]
    frame = _rebased(table, out).assign(**{column: values})
    if out is not None:
        write_table(frame, out)
    return MadeSplits(
        parts=parts,
        deviation=assigned.deviation,
        gap=assigned.gap,
        column=column,
        out=out,
        frame=frame,
        notes=(*notes, *_remarks(parts, assigned, label, out)),
        study=opened.name,
    )


def parts_of(text: str) -> tuple[bool, dict[str, float]]:
    """Return whether a text asks for folds, and the share of each part: of ``5``, or ``train=0.8,test=0.2``.

    Raises
    ------
    InputError
        when it is neither, or shares do not sum to 1
    """
    if text.strip().lstrip("+-").isdigit():
        folds = int(text)
        if folds < 2:
            raise InputError(f"make: needs at least 2 folds, got {folds}.")
        return True, {str(k + 1): 1 / folds for k in range(folds)}
    pairs = [[piece.strip() for piece in part.partition("=")[::2]] for part in text.split(",")]
    try:
        shares = {name: float(share) for name, share in pairs}
    except ValueError:
        shares = {}
    if len(pairs) < 2 or not shares or "" in shares or not all(0 < share < 1 for share in shares.values()):
        raise InputError(f"make: must be a number of folds, or shares such as train=0.8,test=0.2, got {text!r}.")
    check_distinct("make", [name for name, _ in pairs])
    total = sum(shares.values())
    if abs(total - 1) > 0.005:
        raise InputError(f"make: shares must sum to 1, got {total:g}.")
    return False, {name: share / total for name, share in shares.items()}


def _checked_out(options: Splits, table: PatchTable, column: str) -> Path | None:
    """Return where the table is written; raise an error where a file or column would be replaced unasked."""
    if column in table.frame.columns and not options.overwrite:
        raise InputError(
            f"column: the table has a column {column} already; choose another name with --column, or replace it with "
            "--overwrite."
        )
    if options.out is None:
        return None
    out = Path(options.out)
    check_out(out)
    if out.exists() and not options.overwrite:
        raise InputError(f"out: {out} exists; choose another file, or replace it with --overwrite.")
    return out


def _codes(table: PatchTable, name: str | None, argument: str) -> tuple[NDArray[np.intp], list[str]]:
    """Return the numbers (n,) of a column's classes, −1 where missing, and the classes; none without a column."""
    if name is None:
        return np.full(len(table), -1), []
    table.column(argument, name)
    values = table.with_kinds({name: "categorical"}).concept(name).values
    classes = sorted({v for v in values if v is not None})
    place = {v: k for k, v in enumerate(classes)}
    return np.array([-1 if v is None else place[v] for v in values]), classes


def _balanced(table: PatchTable, names: Sequence[str], first: Mapping[str, None]) -> dict[str, Floats]:
    """Return column → indicators (n, c) of its classes or bins, missing values among them."""
    found = {}
    for name in (*first, *(n for n in names if n not in first)):
        concept = None if name in first else table.concept(name)
        if concept is None or concept.kind == "categorical":
            codes = _codes(table, name, "balance")[0]
        else:
            values = concept.values
            edges = (
                np.quantile(values[np.isfinite(values)], np.arange(1, _BINS) / _BINS)
                if np.isfinite(values).any()
                else []
            )
            codes = np.where(np.isfinite(values), np.searchsorted(np.unique(edges), values), -1)
        kinds, numbers = np.unique(codes, return_inverse=True)
        if len(kinds) < 2:
            raise InputError(f"balance: {name} has the same value in every row, so there is nothing to balance.")
        found[name] = np.eye(len(kinds))[numbers]
    return found


def _demands(
    shares: Mapping[str, float],
    tolerance: float,
    unit_of: NDArray[np.intp],
    patients: NDArray[np.intp],
    labels: NDArray[np.intp],
    classes: Sequence[str],
    balance: Mapping[str, Floats],
) -> Demands:
    """Return the demands in counts per unit, from rows (n,)."""
    n = int(unit_of.max()) + 1
    first = np.unique(patients, return_index=True)[1]
    has = {name: np.bincount(unit_of[labels == k], minlength=n) > 0 for k, name in enumerate(classes)}

    def summed(rows: Floats) -> Floats:
        found = np.zeros((n, rows.shape[1]))
        np.add.at(found, unit_of, rows)
        return found

    return Demands(
        shares=shares,
        tolerance=tolerance,
        patients=np.bincount(unit_of[first], minlength=n).astype(np.float64),
        classes=has,
        balance={"patches": summed(np.ones((len(unit_of), 1))), **{k: summed(v) for k, v in balance.items()}},
    )


def _center_units(
    patients: NDArray[np.intp], centers: NDArray[np.intp], names: Sequence[str], center: str | None
) -> tuple[NDArray[np.intp], list[str]]:
    """Return the unit (n,) of each row: centers, joined where they share patients; and a note on joined ones."""
    if center is None:
        raise InputError("preserve_centers: the table has no column center; name the column with --center.")
    if (centers < 0).any():
        raise InputError(
            f"preserve_centers: every row needs a value of {center}, {int((centers < 0).sum())} of {len(centers)} "
            "have none."
        )
    n_patients = int(patients.max()) + 1
    links = coo_array((np.ones(len(patients)), (patients, n_patients + centers)), shape=(n_patients + len(names),) * 2)
    whole = connected_components(links, directed=False)[1]
    units = np.unique(whole[patients], return_inverse=True)[1]
    of_center = whole[n_patients:]
    joined = [[names[k] for k in np.flatnonzero(of_center == one).tolist()] for one in np.unique(of_center)]
    return units, [
        f"Centers {', '.join(some)} stay together, as they share patients." for some in joined if len(some) > 1
    ]


def _check_counts(demands: Demands, label: str, units: str) -> None:
    """Raise :class:`InputError` when there are fewer units than parts, or fewer of a class."""
    parts = len(demands.shares)
    if len(demands.patients) < parts:
        raise InputError(f"make: {parts} parts need at least {parts} {units}, the table has {len(demands.patients)}.")
    for name, has in demands.classes.items():
        if has.sum() < parts:
            raise InputError(
                f"make: {label} {name} occurs in {int(has.sum())} {units}, so {parts} parts cannot all have it; make "
                "fewer parts, or set --label none."
            )


def _part(
    name: str,
    share: float,
    rows: NDArray[np.intp],
    patients: NDArray[np.intp],
    centers: NDArray[np.intp],
    labelled: tuple[NDArray[np.intp], Sequence[str]],
) -> Part:
    labels, classes = labelled
    known = rows[labels[rows] >= 0]
    both = known[centers[known] >= 0]
    counts = np.bincount(labels[known], minlength=len(classes))
    return Part(
        name=name,
        share=share,
        patients=len(np.unique(patients[rows])),
        patches=len(rows),
        centers=len(np.unique(centers[rows][centers[rows] >= 0])) if (centers >= 0).any() else None,
        labels={one: float(count) / max(len(known), 1) for one, count in zip(classes, counts, strict=True)},
        shortcut=center_shortcut(centers[both], labels[both], patients[both]) if len(both) else None,
    )


def _remarks(parts: Sequence[Part], assigned: Assigned, label: str, out: Path | None) -> list[str]:
    """Return notes: how good the split is, and where the center predicts the label."""
    found = [
        f"Counts deviate from their shares by {assigned.deviation:.2%} on average; no split can deviate by less than "
        f"{assigned.deviation - assigned.gap:.2%} (gap {assigned.gap:.2%})."
    ]
    with_auc = [part.shortcut for part in parts if part.shortcut is not None]
    above = [one for one in with_auc if one.auc > one.high]
    if above:
        low, high = min(one.auc for one in above), max(one.auc for one in above)
        found.append(
            f"The center predicts {label} better than chance in {len(above)} of {len(parts)} parts: AUC {low:.2f} to "
            f"{high:.2f}, chance {np.mean([one.chance for one in above]):.2f}; a network can use it."
        )
    if out is None:
        found.append("Nothing was written; set --out.")
    return found


def _rebased(table: PatchTable, out: Path | None) -> pd.DataFrame:
    """Return the table's columns, with paths relative to the folder of ``out``."""
    frame = table.frame
    if out is None or out.absolute().parent == table.folder.absolute():
        return frame
    places = {table.location, "mask", "features"} & set(frame.columns)
    return frame.assign(
        **{
            str(c): [v if pd.isna(v) else relative_path(table.folder / str(v), out.parent) for v in frame[c]]
            for c in places
        }
    )
