"""The figures of a grid: which tasks help each other, and the curves of noisy and of scarce concept values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import NullLocator

from conceptkit.records import GridRecord
from conceptkit.report.drawing import COLOURS, FAINT, Drawing, new_figure, styled
from conceptkit.report.short_names import apart, short
from conceptkit.report.wording import number

_KINDS = ((False, COLOURS[0], "o", "multi-task"), (True, COLOURS[1], "s", "multimodal"))
"""Whether concept values are inputs, and how the curve of such networks looks and is called"""


def grid_figures(record: GridRecord) -> list[Drawing]:
    """Return the figures that the record allows: affinities, and each curve."""
    drawn = [affinity_figure(record), curve_figure(record, "noise"), curve_figure(record, "fraction")]
    return [drawing for drawing in drawn if drawing is not None]


def affinity_figure(record: GridRecord) -> Drawing | None:
    """Draw the affinities as a matrix, the task that steps in the row; ``None`` without any."""
    if not record.affinity:
        return None
    tasks = len({a.step for a in record.affinity})
    with styled():
        figure = new_figure(2.6 + 0.75 * tasks, 1.6 + 0.5 * tasks)
        draw_affinity(figure, record)
    said = [f"{a.step} on {a.on} {number(a.value, digits=4, signed=True)}" for a in record.affinity if a.step != a.on]
    return Drawing(
        name="affinity",
        alt="Affinities: " + "; ".join(said) + ".",
        caption="1 − loss after / loss before on validation rows, when only one task takes a step: above 0 it helps. "
        "A discouraged task steps so as to raise its own loss.",
        figure=figure,
    )


def draw_affinity(figure: FigureBase, record: GridRecord) -> None:
    """Draw the affinities into a figure."""
    matrix = record.affinity_matrix()
    values = matrix.to_numpy(dtype=float)
    names = apart([str(name) for name in matrix.index])
    # the effect of a task on itself is larger than any other, and of no interest
    aside = values[~np.eye(len(names), dtype=bool) & np.isfinite(values)]
    largest = float(np.abs(aside).max(initial=0.0)) or 1e-6
    axes = figure.subplots()
    image = axes.imshow(values, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("does to the loss of")
    axes.set_ylabel("a step of")
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            colour = "white" if abs(value) > 0.6 * largest else "black"
            axes.text(j, i, number(value, digits=4, signed=True), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, extend="both").ax.set_title("affinity", fontsize=8)


_ALONG = {"noise": "share of concept values exchanged", "fraction": "share of rows that keep concept values"}


def curve_figure(record: GridRecord, kind: str) -> Drawing | None:
    """Draw the AUC against the share of noisy or of kept concept values; ``None`` without such a curve."""
    points = record.curve(kind)
    if points.empty:
        return None
    with styled():
        figure = new_figure(3.2 * points["split"].nunique(), 3.2)
        draw_curve(figure, record, kind)
    said = [
        f"{name}, {point.split}, {point.level:g}: {point.auc:.2f}"
        for multimodal, _, _, name in _KINDS
        for point in points[points["multimodal"] == multimodal].sort_values(["split", "level"]).itertuples()
    ]
    return Drawing(
        name=f"concept-{kind}",
        alt=f"AUC by {_ALONG[kind]}: " + "; ".join(said) + ".",
        caption="Mean and standard deviation over seeds.",
        figure=figure,
    )


def draw_curve(figure: FigureBase, record: GridRecord, kind: str) -> None:
    """Draw a curve into a figure, a panel for each split."""
    points, base = record.curve(kind), record.table4().set_index("cell")
    splits = [split for split in record.evaluation if split in set(points["split"])]
    single = next((record.reference(cell) for cell in record.cells if cell.curve == kind), None)
    legend: dict[str, Any] = {}
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for multimodal, colour, marker, name in _KINDS:
            own = points[(points["split"] == split) & (points["multimodal"] == multimodal)].sort_values("level")
            if len(own):
                spread = own["sd"].astype(float).fillna(0.0)
                legend[name] = axes.errorbar(
                    own["level"], own["auc"], yerr=spread, color=colour, marker=marker, capsize=3
                )
        if single is not None:
            legend["single task"] = axes.axhline(float(base[split][single]), color=FAINT, linestyle="--")
        if kind == "fraction" and (points["level"] > 0).all():
            axes.set_xscale("log")
            # matplotlib's own labels are powers set as mathematics, which is off, as names are taken literally
            levels = sorted(set(points["level"].astype(float)))
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(short(split))
        axes.set_xlabel(_ALONG[kind])
    panels[0].set_ylabel("AUC of the main task")
    figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=3)
