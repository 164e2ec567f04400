"""What a guided training is made of: rows by split, the main task, the concepts' tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.models.guided import Task
from conceptkit.records import Note
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class Plan:
    """Which rows train, which hold back, which evaluate."""

    classes: tuple[str, ...]
    """Classes of the main task"""
    codes: NDArray[np.intp]
    """(n rows of the table,) class numbers of the main task, −1 where unlabelled"""
    groups: NDArray[np.intp]
    """(n rows of the table,) group numbers; the row numbers where there is no group column"""
    rows: dict[str, NDArray[np.intp]]
    """``train``, ``val`` and the evaluation splits → row numbers of the table"""
    concept_rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """Rows that train the concepts and not the main task, beside those of ``train``: without a split and a main label;
    and the evaluation splits' own, where training is transductive"""
    notes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    """What stays with every network that these rows train, see :data:`conceptkit.models.checkpoints.MARKS`"""

    @property
    def used(self) -> NDArray[np.intp]:
        """Return the row numbers that take part, in order."""
        return np.unique(np.concatenate([*self.rows.values(), self.concept_rows]))

    @property
    def training(self) -> NDArray[np.intp]:
        """Return the row numbers that train anything, in order."""
        return np.unique(np.concatenate([self.rows["train"], self.concept_rows]))

    @property
    def without_split(self) -> NDArray[np.intp]:
        """Return the row numbers that train concepts and belong to no split."""
        return np.setdiff1d(self.concept_rows, np.concatenate(list(self.rows.values())))

    @property
    def scaled_on(self) -> NDArray[np.intp]:
        """Return the row numbers by which concepts are scaled, and which give the classes of categorical ones."""
        return np.union1d(self.rows["train"], self.without_split)

    @property
    def evaluation(self) -> list[str]:
        """Return the names of the evaluation splits."""
        return [name for name in self.rows if name not in ("train", "val")]


def make_plan(
    meant: Study,
    data: PatchTable,
    *,
    concepts: Sequence[str] = (),
    transductive: bool = False,
    allow_leakage: bool = False,
) -> Plan:
    """Read splits and main task from the table, and refuse what would make the comparison void.

    Parameters
    ----------
    concepts : what is to be trained beside the main task. Rows without a split and without a main label train them,
        where they have a value of one and their group is in no split but the training's
    transductive : whether rows of the evaluation splits train the concepts too; their main labels never train
    allow_leakage : whether a group may have rows in several splits, which is said instead of refused
    """
    named = meant.splits
    column = data.column("split", named.column)
    data.column("label", meant.label)
    label = data.concept(meant.label)
    if label.kind != "categorical":
        raise InputError(f"label: {meant.label} must be categorical; --categorical {meant.label} takes it as classes.")
    split = np.array([None if v != v else str(v) for v in column], dtype=object)
    values = [v for v in dict.fromkeys(split[split != None]) if v is not None]  # noqa: E711  # elementwise
    for role, name in (("train", named.train), ("val", named.val)):
        if name not in values:
            raise InputError(
                f"split: column {named.column} has no row {name!r} for {role}; "
                f'it has {", ".join(map(repr, values)) or "no values"}. The study file names others: {role} = "…" in '
                "its part [splits]; conceptkit init writes one."
            )
    others = [v for v in values if v not in (named.train, named.val)]
    if not others:
        raise InputError(f"split: column {named.column} has no evaluation split beside {named.train} and {named.val}.")
    rows = {"train": np.flatnonzero(split == named.train), "val": np.flatnonzero(split == named.val)}
    rows |= {name: np.flatnonzero(split == name) for name in others}
    labels = label.values
    classes = tuple(sorted({str(v) for v in labels[rows["train"]] if v is not None}))
    codes = np.array([classes.index(v) if v in classes else -1 for v in labels])
    unknown = sorted({str(v) for v in labels[np.concatenate(list(rows.values()))] if v is not None} - set(classes))
    if unknown:
        raise InputError(f"label: class {unknown[0]!r} of {meant.label} does not occur in the training rows.")
    for name, members in rows.items():
        present = np.unique(codes[members][codes[members] >= 0])
        if len(present) == 1 or (name in ("train", "val") and not len(present)):
            what = f"only {classes[present[0]]!r}" if len(present) else "no row"
            raise InputError(f"label: {meant.label} needs two classes in split {name!r}, there is {what}.")
    groups = data.groups(meant.group)
    notes: list[str] = []
    marks: list[str] = []
    names = np.arange(len(data)).astype(str) if groups is None else groups.astype(str)
    home: dict[str, str] = {}
    for name, members in rows.items():
        for g in names[members].tolist():
            if home.setdefault(g, name) != name and not allow_leakage:
                raise InputError(
                    f"group: {meant.group} {g!r} has rows in splits {home[g]!r} and {name!r}; a patient in training "
                    "and evaluation makes the scores worthless. --allow-leakage goes on, and the result says so."
                )
    straddling = _straddling(names, rows)
    if straddling:
        marks.append("allow_leakage")
        notes.append(
            Note(
                "leakage",
                f"LEAKAGE: {len(straddling)} of {len(home)} {meant.group}s have rows in several splits "
                "(--allow-leakage); the scores overstate what the network does on new ones.",
            )
        )
    numbers = np.unique(names, return_inverse=True)[1] if groups is not None else np.arange(len(data))
    free = (split == None) & (codes < 0) & _any_value(data, concepts)  # noqa: E711  # elementwise
    outside = np.array([home.get(g, "train") == "train" for g in names])
    if (free & ~outside).any():
        notes.append(
            f"{int((free & ~outside).sum())} rows without a split and a label do not train, as their {meant.group} "
            "is in another split."
        )
    concept_rows = np.flatnonzero(free & outside)
    if len(concept_rows):
        notes.append(f"{len(concept_rows)} rows without a split and a label train the concepts.")
    if transductive and concepts:
        marks.append("transductive")
        concept_rows = np.unique(np.concatenate([concept_rows, *(rows[name] for name in others)]))
        notes.append(
            Note(
                "transductive",
                f"TRANSDUCTIVE: the rows of {', '.join(others)} trained the concepts (their main labels did not); "
                "scores on them are not those of new data.",
            )
        )
    return Plan(classes, codes, numbers, rows, concept_rows, tuple(notes), tuple(marks))


def _straddling(names: NDArray[np.str_], rows: dict[str, NDArray[np.intp]]) -> set[str]:
    """Return the groups that have rows in more than one split."""
    met: set[str] = set()
    twice: set[str] = set()
    for members in rows.values():
        own = set(names[members].tolist())
        twice |= met & own
        met |= own
    return twice


def _any_value(data: PatchTable, concepts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows have a value of at least one concept (n,)."""
    found = np.zeros(len(data), dtype=bool)
    for name in concepts:
        concept = data.concept(name)
        if concept.kind == "categorical":
            found |= np.array([v is not None for v in concept.values])
        else:
            found |= ~np.isnan(concept.values)
    return found


def read_wish(text: str) -> tuple[str, str | None]:
    """Return concept and layer of ``CONCEPT`` or ``CONCEPT@LAYER``; without a layer it is the trunk's end."""
    name, at, layer = text.partition("@")
    if at and not (name and layer):
        raise InputError(f"concept: must be CONCEPT or CONCEPT@LAYER, got {text!r}.")
    return name, layer or None


def concept_task(
    data: PatchTable, name: str, rows: NDArray[np.intp], *, adversarial: bool, layer: str | None = None
) -> Task:
    """Return a concept's task, scaled by the training rows alone."""
    concept = data.concept(name)
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
        raise InputError(f"concept: {name} has {what} among the training rows; there is nothing to learn.")
    mean, deviation = float(known.mean()), float(known.std())
    return Task(name=name, kind="continuous", mean=mean, deviation=deviation, adversarial=adversarial, layer=layer)
