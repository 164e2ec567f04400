"""The plan of a guided training: rows by split, the main task, and the tasks of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.models.guided import Task
from conceptkit.records import Note
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class Plan:
    """Rows that train, validate and evaluate."""

    classes: tuple[str, ...]
    """Classes of the main task"""
    codes: NDArray[np.intp]
    """(n rows of the table,) class numbers of the main task, −1 where unlabelled"""
    groups: NDArray[np.intp]
    """(n rows of the table,) group numbers; the row numbers where there is no group column"""
    rows: dict[str, NDArray[np.intp]]
    """``train``, ``val`` and the evaluation splits → row numbers of the table"""
    concept_rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """Rows that train only concepts: those without a split and a main label, and the evaluation splits if training is
    transductive"""
    notes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    """Marks of every network that these rows train, see :data:`conceptkit.models.checkpoints.MARKS`"""

    @property
    def used(self) -> NDArray[np.intp]:
        """Return all row numbers, in order."""
        return np.unique(np.concatenate([*self.rows.values(), self.concept_rows]))

    @property
    def training(self) -> NDArray[np.intp]:
        """Return the row numbers that train, in order."""
        return np.unique(np.concatenate([self.rows["train"], self.concept_rows]))

    @property
    def scaled_on(self) -> NDArray[np.intp]:
        """Return the row numbers that scale concepts and define classes: training rows and those without a split."""
        return np.union1d(self.rows["train"], np.setdiff1d(self.concept_rows, np.concatenate([*self.rows.values()])))

    @property
    def without_evaluation(self) -> Plan:
        """Return the plan without its evaluation rows."""
        rows = {name: self.rows[name] for name in ("train", "val")}
        return replace(self, rows=rows, concept_rows=np.setdiff1d(self.scaled_on, rows["train"]))

    @property
    def evaluation(self) -> list[str]:
        """Return the names of the evaluation splits."""
        return [name for name in self.rows if name not in ("train", "val")]


def make_plan(
    study: Study,
    table: PatchTable,
    *,
    concepts: Sequence[str] = (),
    transductive: bool = False,
    allow_leakage: bool = False,
) -> Plan:
    """Read splits and main task from the table; refuse what makes the comparison meaningless.

    Parameters
    ----------
    concepts : trained with the main task. Rows without a split and a main label train them, if they have a value
        of one and their group is in no split but the training split
    transductive : whether rows of the evaluation splits train the concepts too; their main labels never train
    allow_leakage : whether a group may have rows in several splits; a note then says so
    """
    column = table.column("split", study.splits.column)
    table.column("label", study.label)
    label = table.concept(study.label)
    if label.kind != "categorical":
        raise InputError(f"label: {study.label} must be categorical; use --categorical {study.label}.")
    split = np.array([None if v != v else str(v) for v in column], dtype=object)
    rows = _rows_by_split(study, split)
    classes, codes = _main_task(study.label, label.values, rows)
    groups = table.groups(study.group)
    names = np.arange(len(table)).astype(str) if groups is None else groups.astype(str)
    home, notes = _home_splits(str(study.group), names, rows, allow_leakage=allow_leakage)
    marks = ["allow_leakage"] if notes else []
    free = (split == None) & (codes < 0) & _any_value(table, concepts)  # noqa: E711  # elementwise
    outside = np.array([home.get(g, "train") == "train" for g in names])
    if (free & ~outside).any():
        notes.append(
            f"{int((free & ~outside).sum())} rows without a split and a label do not train: their {study.group} "
            "is in another split."
        )
    concept_rows = np.flatnonzero(free & outside)
    if len(concept_rows):
        notes.append(f"{len(concept_rows)} rows without a split and a label train the concepts.")
    unlabelled = int((codes[rows["train"]] < 0).sum())
    if unlabelled:
        use = "train the concepts only" if concepts else "do not train"
        notes.append(f"{unlabelled} of {len(rows['train'])} training rows have no label: they {use}.")
    if transductive and concepts:
        marks.append("transductive")
        others = [name for name in rows if name not in ("train", "val")]
        concept_rows = np.unique(np.concatenate([concept_rows, *(rows[name] for name in others)]))
        notes.append(
            Note(
                "transductive",
                f"TRANSDUCTIVE: the rows of {', '.join(others)} trained the concepts (their main labels did not); "
                "scores on them are not those of new data.",
            )
        )
    numbers = np.arange(len(table)) if groups is None else np.unique(names, return_inverse=True)[1]
    return Plan(classes, codes, numbers, rows, concept_rows, tuple(notes), tuple(marks))


def _rows_by_split(study: Study, split: NDArray[Any]) -> dict[str, NDArray[np.intp]]:
    """Return ``train``, ``val`` and the evaluation splits → row numbers, of the split of each row (n,)."""
    named = study.splits
    values = [v for v in dict.fromkeys(split) if v is not None]
    for role, name in (("train", named.train), ("val", named.val)):
        if name not in values:
            raise InputError(
                f"split: column {named.column} has no row {name!r} for {role}; "
                f'it has {", ".join(map(repr, values)) or "no values"}. Set {role} = "…" in the [splits] section of '
                "the study file; conceptkit init writes one."
            )
    others = [v for v in values if v not in (named.train, named.val)]
    if not others:
        raise InputError(f"split: column {named.column} has no evaluation split besides {named.train} and {named.val}.")
    roles = {"train": named.train, "val": named.val, **{name: name for name in others}}
    return {role: np.flatnonzero(split == name) for role, name in roles.items()}


def _main_task(
    name: str, labels: NDArray[Any], rows: dict[str, NDArray[np.intp]]
) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Return the classes of the main task and the class number of each row (n,), −1 where unlabelled."""
    classes = tuple(sorted({str(v) for v in labels[rows["train"]] if v is not None}))
    codes = np.array([classes.index(v) if v in classes else -1 for v in labels])
    unknown = sorted({str(v) for v in labels[np.concatenate(list(rows.values()))] if v is not None} - set(classes))
    if unknown:
        raise InputError(f"label: class {unknown[0]!r} of {name} does not occur in the training rows.")
    for split, members in rows.items():
        present = np.unique(codes[members][codes[members] >= 0])
        if len(present) == 1 or (split in ("train", "val") and not len(present)):
            what = f"only {classes[present[0]]!r}" if len(present) else "no row"
            raise InputError(f"label: {name} needs two classes in split {split!r}, there is {what}.")
    return classes, codes


def _home_splits(
    column: str, names: NDArray[np.str_], rows: dict[str, NDArray[np.intp]], *, allow_leakage: bool
) -> tuple[dict[str, str], list[str]]:
    """Return group → its first split, and a note when groups have rows in several splits."""
    home: dict[str, str] = {}
    straddling = set()
    for split, members in rows.items():
        for group in names[members].tolist():
            if home.setdefault(group, split) == split:
                continue
            if not allow_leakage:
                raise InputError(
                    f"group: {column} {group!r} has rows in splits {home[group]!r} and {split!r}; a patient in "
                    "training and evaluation invalidates the scores. --allow-leakage continues with a note."
                )
            straddling.add(group)
    if not straddling:
        return home, []
    text = (
        f"LEAKAGE: {len(straddling)} of {len(home)} {column}s have rows in several splits (--allow-leakage); the "
        "scores overstate what the network does on new ones."
    )
    return home, [Note("leakage", text)]


def _any_value(table: PatchTable, concepts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows have a value of at least one concept (n,)."""
    found = np.zeros(len(table), dtype=bool)
    for name in concepts:
        concept = table.concept(name)
        if concept.kind == "categorical":
            found |= np.array([v is not None for v in concept.values])
        else:
            found |= ~np.isnan(concept.values)
    return found


def concept_task(
    table: PatchTable, name: str, rows: NDArray[np.intp], *, adversarial: bool, layer: str | None = None
) -> Task:
    """Return the task of a concept, scaled by some rows."""
    concept = table.concept(name)
    if "." in name:
        raise InputError(f"concept: a concept to train on cannot have a dot in its name, got {name!r}.")
    if concept.kind == "categorical":
        classes = tuple(sorted({str(v) for v in concept.values[rows] if v is not None}))
        if len(classes) < 2:
            raise InputError(f"concept: {name} needs two classes among the training rows, there is {len(classes)}.")
        return Task(name=name, kind="categorical", classes=classes, adversarial=adversarial, layer=layer)
    known = concept.values[rows]
    known = known[~np.isnan(known)]
    if not len(known) or not np.isfinite(known).all() or np.ptp(known) == 0:
        what = "no value" if not len(known) else "infinite values" if not np.isfinite(known).all() else "one value only"
        raise InputError(f"concept: {name} has {what} among the training rows; it cannot be learned.")
    mean, deviation = float(known.mean()), float(known.std())
    return Task(name=name, kind="continuous", mean=mean, deviation=deviation, adversarial=adversarial, layer=layer)
