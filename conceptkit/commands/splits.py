"""Splits: how many patches, patients and slides each split, center and label of a study has, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.commands.make_splits import MadeSplits, make_splits
from conceptkit.errors import InputError
from conceptkit.options.base import Notify, Progress
from conceptkit.options.study import Splits
from conceptkit.pathology.outliers import outlier_notes
from conceptkit.records import Note
from conceptkit.runs.opening import find_study
from conceptkit.tables.study import Study


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """The rows of a study, counted; the form of the paper's Tables 1 and 2."""

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    """One per split × center × label that occurs, and a sum per split."""
    notes: tuple[str, ...]
    study: str

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        rows, notes = list(self.rows), list(self.notes)
        return {"schema": "conceptkit/splits/1", "study": self.study, "rows": rows, "notes": notes}


def splits(
    options: Splits, study: Any = None, *, progress: Progress | None = None, notify: Notify | None = None
) -> SplitCounts | MadeSplits:
    """Count a study's patches, see :func:`count_splits`; or make splits, see :func:`make_splits`."""
    if options.make is not None:
        return make_splits(options, study)
    if options.out is not None:
        raise InputError("make: must be given with --out, such as --make train=0.7,val=0.1,internal=0.2.")
    return count_splits(find_study(study, options.table))


def count_splits(study: Study) -> SplitCounts:
    """Count a study's patches by split, center and label, with the patients and slides behind them.

    A cell without a value counts under ``(none)``; columns that are not in the table are not counted.
    """
    table = study.load_table()
    frame = table.frame
    keys = [c for c in dict.fromkeys((study.splits.column, "center", study.label)) if c in frame.columns]
    units = {c: f"{c}s" for c in ("patient", "group", "slide") if c in frame.columns}
    if study.group is not None and study.group in frame.columns and study.group not in units:
        units[study.group] = f"{study.group}s"
    if "slide" not in frame.columns and {"patient", "node"} <= set(frame.columns):
        frame = frame.assign(slide=_slides_of_nodes(frame))
        units["slide"] = "slides"
    named = frame[keys].astype("object").where(frame[keys].notna(), "(none)").astype("str") if keys else frame[[]]
    split = study.splits.column if study.splits.column in keys else None
    rows: list[dict[str, Any]] = []
    for values, part in _parts(named, [split] if split else []):
        inside = named.loc[part]
        if len(keys) > bool(split):
            for inner, rest in _parts(inside, keys):
                rows.append(_count(frame, rest, dict(zip(keys, inner, strict=True)), units))
        total = {key: (values[0] if key == split else "all") for key in keys}
        rows.append(_count(frame, part, total, units))
    notes = list(_confounding(named, split, study))
    continuous = [name for name in table.concept_names if table.kind(name) == "continuous"]
    notes += outlier_notes({name: table.concept(name).values for name in continuous})
    columns = (*keys, "patches", *units.values())
    return SplitCounts(columns=columns, rows=tuple(rows), notes=tuple(notes), study=study.name)


def _parts(named: Any, keys: list[str]) -> list[tuple[tuple[str, ...], Any]]:
    """Return the values of ``keys`` and the index of the rows that have them, sorted."""
    if not keys:
        return [((), named.index)]
    groups = named.groupby(keys if len(keys) > 1 else keys[0], sort=True).groups
    return [(key if isinstance(key, tuple) else (key,), index) for key, index in groups.items()]


def _slides_of_nodes(frame: Any) -> Any:
    """Return the slide of each row where tables name lymph nodes, as of Camelyon17: one per node of a patient.

    Where the node is missing (Camelyon16) a patient has one slide.
    """
    node = frame["node"].map(lambda v: "" if v != v or v is None else f"_node_{v}")
    return (frame["patient"].astype("str") + node).where(frame["patient"].notna())


def _count(frame: Any, index: Any, values: dict[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    part = frame.loc[index]
    return {**values, "patches": len(part), **{name: int(part[c].nunique()) for c, name in units.items()}}


def _confounding(named: Any, split: str | None, study: Study) -> list[str]:
    """Return notes on centers that have only one label while others have several."""
    if split is None or "center" not in named or study.label not in named or study.label == "center":
        return []
    notes: list[str] = []
    for value, part in _parts(named, [split]):
        inside = named.loc[part]
        inside = inside[inside[study.label] != "(none)"]
        labels = inside.groupby("center")[study.label].nunique()
        if inside[study.label].nunique() > 1 and len(labels) > 1 and (labels == 1).any():
            single = ", ".join(sorted(str(c) for c in labels[labels == 1].index))
            text = f"Split {value[0]}: center {single} has one label only, so the center predicts the label."
            notes.append(Note("confounded", text))
    return notes
