"""One figure and one notebook table of any record."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit.records import (
    AttributeRecord,
    AuditRecord,
    GridRecord,
    PredictivityRecord,
    ProbeRecord,
    Record,
    RobustnessRecord,
    RunsRecord,
)
from conceptkit.records.base import RowsRecord
from conceptkit.report.attribution_tables import change, concept_name, judge_change
from conceptkit.report.audit_tables import PROBES, judge_audit
from conceptkit.report.drawing import new_figure, styled
from conceptkit.report.figures import Estimate, by_concept, difference_estimates, draw_estimates, draw_probe
from conceptkit.report.grid_figures import draw_affinity, draw_curve
from conceptkit.report.predictivity_tables import judge_auc
from conceptkit.report.robustness_figures import layer_figure
from conceptkit.report.sections import KINDS
from conceptkit.report.short_names import apart, short
from conceptkit.report.table import shown
from conceptkit.report.wording import metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS_MOST, LAYERS_MOST = 12, 60
"""Concepts and layers of a probe that are drawn with their controls; more are drawn as a map of scores"""

ROWS_MOST = 60
"""Results that are drawn next to each other, and rows of a table in a notebook"""


def plot(record: Record) -> Figure:
    """Draw a record as one matplotlib figure.

    Scores of ``probe`` by layer with their controls; paired differences of ``guide``, ``bags`` and grids, with the
    affinities and curves of these; the scores of ``audit``, ``attribute`` and ``predictivity`` with their intervals.
    """
    with styled():
        if isinstance(record, ProbeRecord):
            return _probe(record)
        if isinstance(record, GridRecord):
            return _grid(record)
        if isinstance(record, RunsRecord):
            return _estimates(difference_estimates(record), "difference")
        if isinstance(record, RobustnessRecord):
            return layer_figure(record.rows, record.probes)
        return _rows(record)


def _probe(record: ProbeRecord) -> Figure:
    by = by_concept(record)
    if len(by) > PANELS_MOST or max(map(len, by.values()), default=0) > LAYERS_MOST:
        return _score_map(record)
    columns = min(3, max(1, len(by)))
    lines = -(-len(by) // columns)
    figure = new_figure(4.4 * columns, 3.2 * max(1, lines) + 0.6)
    legend: dict[str, Any] = {}
    for k, (title, rows) in enumerate(by.items()):
        legend |= draw_probe(figure.add_subplot(lines, columns, k + 1), rows, title, record.group)
    figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=2 * columns)
    return figure


def _score_map(record: ProbeRecord) -> Figure:
    """Draw the held-out scores of many concepts and layers as a map."""
    by = by_concept(record)
    layers = {layer: k for k, layer in enumerate(dict.fromkeys(row.layer for row in record.rows))}
    scores = np.full((len(by), len(layers)), np.nan)
    for line, rows in zip(scores, by.values(), strict=True):
        line[[layers[row.layer] for row in rows]] = [row.score for row in rows]
    figure = new_figure(9.0, 7.0)
    axes = figure.add_subplot()
    image = axes.imshow(scores, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for axis, names in ((axes.xaxis, list(layers)), (axes.yaxis, list(by))):
        step = -(-len(names) // 40)  # more names than that cannot be read
        axis.set_ticks(range(0, len(names), step), apart(names[::step], 18), fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    figure.colorbar(image, ax=axes).set_label("held-out score")
    axes.set_title(f"{len(by)} concepts at {len(layers)} layers", loc="left")
    return figure


def _estimates(estimates: list[Estimate], label: str, reference: float = 0.0) -> Figure:
    drawn = estimates[:ROWS_MOST]
    figure = new_figure(5.6, 1.2 + 0.42 * len(drawn))
    axes = figure.add_subplot()
    draw_estimates(axes, drawn, reference=reference, label=label)
    if len(drawn) < len(estimates):
        axes.set_title(f"the first {len(drawn)} of {len(estimates)} results", loc="left")
    return figure


def _grid(record: GridRecord) -> Figure:
    """Draw the differences of the main task, then affinities and curves, one below the other."""
    main = [d for d in record.differences if not d.metric.reader and record.reference(record.cell(d.run)) == d.against]
    estimates = difference_estimates(dataclasses.replace(record, differences=tuple(main[:ROWS_MOST])))
    curves = [kind for kind in ("noise", "fraction") if any(cell.curve == kind for cell in record.cells)]
    heights = [1.2 + 0.42 * len(estimates)] * bool(estimates) + [3.6] * bool(record.affinity) + [3.2] * len(curves)
    figure = new_figure(7.0, sum(heights) or 1.0)
    if not heights:
        return figure
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if estimates:
        label = "difference to the single task"
        draw_estimates(parts.pop(0).subplots(), estimates, reference=0, label=label)
    if record.affinity:
        draw_affinity(parts.pop(0), record)
    for part, kind in zip(parts, curves, strict=True):
        draw_curve(part, record, kind)
    return figure


def _rows(record: Record) -> Figure:
    group = record.group
    if isinstance(record, AuditRecord):
        before = [row for row in record.rows if not row.erased]
        found = [
            Estimate(
                f"{short(row.layer, 24)}, {PROBES.get(row.probe, row.probe)}",
                (row.score, row.low, row.high),
                judge_audit(row, row.p, group),
            )
            for row in before
        ]
        label = f"{metric_name(before[0].metric)} of {short(record.concept)}" if before else "score"
        return _estimates(found, label, before[0].chance if before else 0.0)
    if isinstance(record, AttributeRecord):
        found = [
            Estimate(
                f"{short(concept_name(row), 30)}\n{short(f'{row.target}, {row.layer}, {row.among}', 36)}",
                change(row),
                judge_change(row, group).mark,
            )
            for row in record.rows
        ]
        return _estimates(found, "change of the output for one step of the concept")
    if isinstance(record, PredictivityRecord):
        found = [
            Estimate(
                f"{short(' + '.join(row.inputs), 30)}\n{short(row.split, 30)}",
                (row.auc, row.low, row.high),
                judge_auc(row, group, "").mark,
            )
            for row in record.rows
        ]
        return _estimates(found, "AUC of the main label", 0.5)
    raise TypeError(f"record: cannot draw a {type(record).__name__}")


def to_html(record: Record) -> str:
    """Return the tables of a record for a notebook, as people read them; of many rows the first ones."""
    short_record = record
    if isinstance(record, RowsRecord):
        short_record = dataclasses.replace(record, rows=record.rows[:ROWS_MOST])
    parts = []
    for table in KINDS[type(record)].tables(short_record):
        cells = shown(table)
        if not table.details and len(cells):
            parts.append(f"<p><b>{html.escape(table.title)}</b></p>")
            parts.append(cells.head(ROWS_MOST).to_html(index=False, border=0))
    if isinstance(record, RowsRecord) and len(record.rows) > ROWS_MOST:
        parts.append(f"<p>The first {ROWS_MOST} of {len(record.rows)} rows; <code>to_frame()</code> has all.</p>")
    return "\n".join(parts) or html.escape(repr(record))
