"""The section of one run on the page: its verdicts, tables and drawings, chosen by the kind of record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.records import (
    AttributeRecord,
    AuditRecord,
    BagsRecord,
    GridRecord,
    GuideRecord,
    Note,
    PredictivityRecord,
    ProbeRecord,
    Record,
    RobustnessRecord,
)
from conceptkit.records.guide import BASELINE
from conceptkit.records.texts import DOUBTS
from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts
from conceptkit.report.audit_tables import audit_tables, audit_verdicts
from conceptkit.report.bag_tables import bag_tables, bag_verdicts
from conceptkit.report.contents import compared_runs, difference_kind, notes_of, reference_run
from conceptkit.report.data_parts import data_parts
from conceptkit.report.encoder_tables import encoder_verdicts
from conceptkit.report.figures import DIFFERENCE_COLOURS, difference_figure, probe_figures, training_figures
from conceptkit.report.first_screen import guide_cautions, guide_question, probe_cautions, probe_question
from conceptkit.report.grid_figures import grid_figures
from conceptkit.report.grid_tables import GRID_SPLITS, grid_split_table, grid_tables, grid_verdicts
from conceptkit.report.guide_tables import guide_tables
from conceptkit.report.judging import Verdict
from conceptkit.report.meaning_tables import meaning_verdicts
from conceptkit.report.part import Part, saved_pictures, table_part
from conceptkit.report.patches import HINT, probe_patches
from conceptkit.report.prediction_parts import prediction_parts
from conceptkit.report.predictions import read_predictions
from conceptkit.report.predictivity_tables import predictivity_table, predictivity_verdicts
from conceptkit.report.probe_tables import probe_tables
from conceptkit.report.provenance import provenance
from conceptkit.report.robustness_figures import robustness_figures
from conceptkit.report.robustness_tables import robustness_tables, robustness_verdicts
from conceptkit.report.run_context import Context, read_context
from conceptkit.report.table import Table
from conceptkit.report.umap_parts import umap_parts
from conceptkit.report.verdicts import guide_verdicts, primary_verdict, probe_verdicts
from conceptkit.report.wording import groups_word


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything that the page shows of one run folder."""

    anchor: str
    title: str
    study: str
    synthetic: bool
    question: str
    verdicts: Sequence[Verdict]
    cautions: Sequence[str]
    """What not to conclude"""
    notes: Sequence[Note]
    parts: Sequence[Part]
    provenance: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as a section's parts are made from it."""

    folder: Path
    seed: int
    """Seed of the UMAPs"""
    context: Context | None
    seen: set[str]
    """Parts on the data that other sections show already"""


def section(record: Record, folder: Path, *, title: str, anchor: str, seed: int, seen: set[str]) -> Section:
    """Return the section of one record."""
    run = Run(folder=folder, seed=seed, context=read_context(folder), seen=seen)
    kind = KINDS[type(record)]
    tables = kind.tables(record)
    if run.context is not None:  # the rows that it holds are counted in a fuller table
        tables = [table for table in tables if table.name != GRID_SPLITS]
    notes = notes_of(record)
    parts = [*kind.above(record, run), *map(table_part, tables), *kind.parts(record, run)]
    if kind.data:
        parts += data_parts(run.context, record.group, run.seen)
    return Section(
        anchor=anchor,
        title=title,
        study=record.study,
        synthetic=record.synthetic,
        question=kind.question(record),
        verdicts=[*kind.lead(record), *kind.verdicts(record)],
        cautions=[*(note for note in notes if note.kind in DOUBTS), *kind.cautions(record)],
        notes=notes,
        parts=parts,
        provenance=provenance(record, folder, run.context),
    )


def _probe_verdicts(record: ProbeRecord) -> list[Verdict]:
    return [*encoder_verdicts(record), *probe_verdicts(record), *meaning_verdicts(record)]


def _layers(record: ProbeRecord, run: Run) -> list[Part]:
    drawings = probe_figures(record)
    one_group = f" or a random split ({groups_word(record.group)} mixed)"
    text = (
        "The blue line is the held-out score; its points are filled where the result is established, half filled where "
        "it is associated, and hollow where it is open. The other lines are controls: a randomly initialised network, "
        f"and the scores that a training fit{one_group if record.group else ''} would give."
    )
    return [Part(title="By layer", text=text, drawings=drawings)] if drawings else []


def _probe(record: ProbeRecord, run: Run) -> list[Part]:
    patches = None if run.context is None else probe_patches(run.context)
    text = f"Held-out predictions of each concept's best layer, and their errors. {HINT}"
    return [] if patches is None else [Part(title="Patches", text=text, patches=patches)]


def _guide(record: GuideRecord, run: Run) -> list[Part]:
    predictions = read_predictions(run.folder)
    parts = [*_differences(record), *prediction_parts(record, predictions), *_training(record)]
    others = [name for name in compared_runs(record) if name != BASELINE or len(record.run_names) == 2]
    names = [reference_run(record), *others] if record.run_names else []
    return parts + umap_parts(record, run.folder, seed=run.seed, names=names, predictions=predictions)


def _differences(record: GuideRecord) -> list[Part]:
    drawing = difference_figure(record)
    if drawing is None:
        return []
    kinds = {difference_kind(d) for d in record.differences}
    colours = ", ".join(words for kind, (_, words) in DIFFERENCE_COLOURS.items() if kind in kinds)
    text = (
        f"{colours[:1].upper()}{colours[1:]}; bars are 95 % intervals; filled points are established, hollow open. "
        "Higher is better for encouraged concepts and the main task, lower for discouraged concepts, the Brier score "
        "and the calibration error."
    )
    return [Part(title="Differences at a glance", text=text, drawings=[drawing])]


def _training(record: GuideRecord) -> list[Part]:
    drawings = training_figures(record)
    text = (
        "Raw losses, before weighting, one line per seed; below them the score of the task's own head on validation "
        "rows (R² of a value, from −1 upwards; balanced accuracy of classes), and the weight of the task in the total."
    )
    return [Part(title="Training", text=text if drawings else "No training history was saved.", drawings=drawings)]


def _grid_tables(record: GridRecord) -> list[Table]:
    return [*([grid_split_table(record)] if record.splits else []), *grid_tables(record)]


def _grid(record: GridRecord, run: Run) -> list[Part]:
    predictions = read_predictions(run.folder)
    parts = prediction_parts(record, predictions)
    drawings = grid_figures(record)
    if drawings:
        parts.insert(0, Part(title="Affinities and curves", text="Over all seeds of the grid.", drawings=drawings))
    names = _cells_to_draw(record)
    return parts + umap_parts(record, run.folder, seed=run.seed, names=names, predictions=predictions)


def _cells_to_draw(record: GridRecord) -> list[str]:
    """Return the single task first, then the network of the largest gain on the rows that concepts are read on."""
    names = record.run_names
    split = record.evaluated_on if record.evaluated_on in record.evaluation else next(iter(record.evaluation), "")
    gains = {c.name: record.difference(c, split, "auc") for c in record.cells if not c.control and not c.curve}
    known = {name: d for name, d in gains.items() if d is not None and math.isfinite(d.mean) and name in names}
    if not known:
        return names[:2]
    best = max(known, key=lambda name: known[name].mean)
    return [known[best].against, best]


def _concept_maps(record: AttributeRecord, run: Run) -> list[Part]:
    maps = saved_pictures(run.folder, record.figures)
    text = (
        "Patches with the highest and lowest prediction of each concept, and where in them. A map shows where, not "
        "which pixels. Maps are grey where the held-out score does not establish the concept at the layer."
    )
    return [Part(title="Concept maps", text=text, pictures=maps)] if maps else []


def _index_layers(record: RobustnessRecord, run: Run) -> list[Part]:
    drawings = robustness_figures(record)
    text = (
        "Robustness indices by layer, above, and the probes of label and center, below; bands are 95 % intervals over "
        "patients."
    )
    return [Part(title="By layer", text=text, drawings=drawings)] if drawings else []


def _bags(record: BagsRecord, run: Run) -> list[Part]:
    return [*_differences(record), *_training(record)]


@dataclass(frozen=True)
class Kind:
    """What the report shows of a kind of record."""

    title: str
    question: Callable[[Any], str]
    tables: Callable[[Any], list[Table]]
    verdicts: Callable[[Any], list[Verdict]]
    lead: Callable[[Any], list[Verdict]] = lambda record: []
    """Verdicts above the tables, and before all others"""
    above: Callable[[Any, Run], list[Part]] = lambda record, run: []
    """Figures above the tables"""
    parts: Callable[[Any, Run], list[Part]] = lambda record, run: []
    """Figures below the tables"""
    cautions: Callable[[Any], list[str]] = lambda record: []
    """What not to conclude, besides the notes that put a comparison in doubt"""
    data: bool = True
    """Whether the rows of the run are shown, where it saved them"""


KINDS: Mapping[type[Record], Kind] = {
    ProbeRecord: Kind(
        "Probe", probe_question, probe_tables, _probe_verdicts, above=_layers, parts=_probe, cautions=probe_cautions
    ),
    GuideRecord: Kind(
        "Guide", guide_question, guide_tables, guide_verdicts, primary_verdict, parts=_guide, cautions=guide_cautions
    ),
    GridRecord: Kind(
        "Grid",
        lambda record: "Which concepts, encouraged or discouraged, change the network, and by which weighting?",
        _grid_tables,
        grid_verdicts,
        primary_verdict,
        parts=_grid,
    ),
    PredictivityRecord: Kind(
        "Predictivity",
        lambda record: "How well do concept values predict the main label?",
        lambda record: [predictivity_table(record)],
        predictivity_verdicts,
    ),
    AttributeRecord: Kind(
        "Attribution",
        lambda record: "Do the network's outputs depend on the concepts?",
        attribution_tables,
        attribution_verdicts,
        parts=_concept_maps,
    ),
    AuditRecord: Kind(
        "Audit",
        lambda record: f"Can {record.concept} still be decoded from the network?",
        audit_tables,
        audit_verdicts,
        data=False,
    ),
    RobustnessRecord: Kind(
        "Robustness",
        lambda record: "Do the features follow biology or the hospital?",
        robustness_tables,
        robustness_verdicts,
        above=_index_layers,
        data=False,
    ),
    BagsRecord: Kind(
        "Bags",
        guide_question,
        bag_tables,
        bag_verdicts,
        primary_verdict,
        parts=_bags,
        data=False,
        cautions=guide_cautions,
    ),
}
"""Class of record → what the report shows of it; the record of a new command is a new entry"""
