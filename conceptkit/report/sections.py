"""What the page says of one run: its sentences, tables and drawings, chosen by the kind of record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.records import (
    AttributeRecord,
    AuditRecord,
    BagsRecord,
    GridRecord,
    GuideRecord,
    PredictivityRecord,
    ProbeRecord,
    Record,
)
from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts
from conceptkit.report.audit_tables import audit_tables, audit_verdicts
from conceptkit.report.bag_tables import bag_tables, bag_verdicts
from conceptkit.report.contents import difference_kind, notes_of, run_names
from conceptkit.report.data_parts import data_parts
from conceptkit.report.drawing import Drawing
from conceptkit.report.figures import DIFFERENCE_COLOURS, difference_figure, probe_figures, training_figures
from conceptkit.report.grid_figures import grid_figures
from conceptkit.report.grid_tables import grid_tables, grid_verdicts
from conceptkit.report.judging import Verdict
from conceptkit.report.part import Part, saved_pictures, table_part
from conceptkit.report.prediction_parts import prediction_parts
from conceptkit.report.predictivity_tables import predictivity_table, predictivity_verdicts
from conceptkit.report.provenance import provenance
from conceptkit.report.run_context import Context, read_context
from conceptkit.report.tables import tables
from conceptkit.report.umap_parts import Plots, umap_parts
from conceptkit.report.verdicts import guide_verdicts, probe_verdicts
from conceptkit.report.wording import groups_word


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything the page says of one run folder."""

    anchor: str
    title: str
    study: str
    synthetic: bool
    verdicts: Sequence[Verdict]
    notes: Sequence[str]
    parts: Sequence[Part]
    provenance: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as a section's parts are made from it."""

    folder: Path
    anchor: str
    seed: int
    """Of the UMAPs"""
    context: Context | None
    seen: set[str]
    """What other sections show of the data already"""
    plots: Plots = field(default_factory=dict)
    """Interactive plots by key, which the parts add to: one script at the page's end holds them all"""


Parts = tuple[list[Verdict], list[Part]]


def section(
    record: Record, folder: Path, *, title: str, anchor: str, seed: int, plots: Plots, seen: set[str]
) -> Section:
    """Return the section of one record; what it draws interactively is added to ``plots``."""
    run = Run(folder=folder, anchor=anchor, seed=seed, context=read_context(folder), seen=seen, plots=plots)
    verdicts, parts = BUILDERS[type(record)](record, run)
    return Section(
        anchor=anchor,
        title=title,
        study=record.study,
        synthetic=record.synthetic,
        verdicts=verdicts,
        notes=notes_of(record),
        parts=parts,
        provenance=provenance(record, folder, run.context),
    )


def _probe(record: ProbeRecord, run: Run) -> Parts:
    parts = [_layers(record), *(table_part(table) for table in tables(record))]
    parts += data_parts(run.context, record.group, run.seen)
    return probe_verdicts(record), [part for part in parts if part is not None]


def _layers(record: ProbeRecord) -> Part | None:
    drawings = probe_figures(record)
    one_group = f" or a random split ({groups_word(record.group)} mixed)"
    text = (
        "The blue line is the held-out score; its points are filled where the result is established, half filled where "
        "it is associated, and hollow where it is open. The other lines are controls: a randomly initialised network, "
        f"and the scores that a training fit{one_group if record.group else ''} would give."
    )
    return Part(title="By layer", text=text, drawings=drawings) if drawings else None


def _guide(record: GuideRecord, run: Run) -> Parts:
    parts: list[Part | None] = [table_part(table) for table in tables(record)]
    parts += [_differences(record), *prediction_parts(record, run.folder), _training(record)]
    parts += umap_parts(record, run.folder, anchor=run.anchor, seed=run.seed, plots=run.plots, names=run_names(record))
    parts += data_parts(run.context, record.group, run.seen)
    return guide_verdicts(record), [part for part in parts if part is not None]


def _differences(record: GuideRecord) -> Part | None:
    drawing = difference_figure(record)
    if drawing is None:
        return None
    there = {difference_kind(d) for d in record.differences}
    colours = ", ".join(words for kind, (_, words) in DIFFERENCE_COLOURS.items() if kind in there)
    text = (
        f"{colours[:1].upper()}{colours[1:]}; bars are 95 % intervals; filled points are established, hollow open. "
        "Higher is better for encouraged concepts and the main task, lower for discouraged concepts."
    )
    return Part(title="Differences at a glance", text=text, drawings=[drawing])


def _training(record: GuideRecord) -> Part:
    drawings: list[Drawing] = training_figures(record)
    text = (
        "Raw losses, before weighting, one line per seed; beneath them the score of the task's own head on validation "
        "rows (R² of a value, from −1 upwards; balanced accuracy of classes), and the weight of the task in the total."
    )
    return Part(title="Training", text=text if drawings else "No training history was saved.", drawings=drawings)


def _grid(record: GridRecord, run: Run) -> Parts:
    parts = [table_part(table) for table in grid_tables(record)]
    drawings = grid_figures(record)
    if drawings:
        parts.append(Part(title="Affinities and curves", text="Over all seeds of the grid.", drawings=drawings))
    parts += prediction_parts(record, run.folder)
    parts += umap_parts(
        record, run.folder, anchor=run.anchor, seed=run.seed, plots=run.plots, names=_cells_to_draw(record)
    )
    return grid_verdicts(record), [*parts, *data_parts(run.context, record.group, run.seen)]


def _cells_to_draw(record: GridRecord) -> list[str]:
    """Return the single task first, then the network of the largest gain on the rows that concepts are read on."""
    names = run_names(record)
    split = record.evaluated_on if record.evaluated_on in record.evaluation else next(iter(record.evaluation), "")
    gains = {c.name: record.difference(c, split, "auc") for c in record.cells if not c.control and not c.curve}
    known = {name: d for name, d in gains.items() if d is not None and math.isfinite(d.mean) and name in names}
    if not known:
        return names[:2]
    best = max(known, key=lambda name: known[name].mean)
    return [known[best].against, best]


def _predictivity(record: PredictivityRecord, run: Run) -> Parts:
    parts = [table_part(predictivity_table(record))]
    return predictivity_verdicts(record), [*parts, *data_parts(run.context, record.group, run.seen)]


def _attribute(record: AttributeRecord, run: Run) -> Parts:
    parts = [table_part(table) for table in attribution_tables(record)]
    maps = saved_pictures(run.folder, record.figures)
    if maps:
        text = (
            "Patches with the highest and lowest prediction of each concept, and where in them. A map shows where, not "
            "which pixels. Maps are grey where the held-out score does not establish the concept at the layer."
        )
        parts.append(Part(title="Concept maps", text=text, pictures=maps))
    return attribution_verdicts(record), [*parts, *data_parts(run.context, record.group, run.seen)]


def _audit(record: AuditRecord, run: Run) -> Parts:
    return audit_verdicts(record), [table_part(table) for table in audit_tables(record)]


def _bags(record: BagsRecord, run: Run) -> Parts:
    parts = [*(table_part(table) for table in bag_tables(record)), _differences(record), _training(record)]
    return bag_verdicts(record), [part for part in parts if part is not None]


BUILDERS: Mapping[type[Record], Callable[[Any, Run], Parts]] = {
    ProbeRecord: _probe,
    GuideRecord: _guide,
    GridRecord: _grid,
    PredictivityRecord: _predictivity,
    AttributeRecord: _attribute,
    AuditRecord: _audit,
    BagsRecord: _bags,
}
"""Class of record → its sentences and parts; a new command's record is a new entry"""

NAMES: Mapping[type[Record], str] = {
    ProbeRecord: "Probe",
    GuideRecord: "Guide",
    GridRecord: "Grid",
    PredictivityRecord: "Predictivity",
    AttributeRecord: "Attribution",
    AuditRecord: "Audit",
    BagsRecord: "Bags",
}
"""Class of record → title of its section"""
