"""The figures of a grid: which tasks help each other, and the curves of noisy and of scarce concept values."""

from __future__ import annotations

import math

from conceptkit.records import GridRecord
from conceptkit.report.drawing import COLOURS, FAINT, Drawing, apart, new_figure, short, styled
from conceptkit.report.wording import number

_KINDS = ((False, COLOURS[0], "o", "multi-task"), (True, COLOURS[1], "s", "multimodal"))
"""Whether concept values are inputs, and how the curve of such networks looks and is called"""


def grid_figures(record: GridRecord) -> list[Drawing]:
    """Return the figures of what the record has: affinities, and each curve."""
    drawn = [affinity_figure(record), curve_figure(record, "noise"), curve_figure(record, "fraction")]
    return [drawing for drawing in drawn if drawing is not None]


def affinity_figure(record: GridRecord) -> Drawing | None:
    """Draw the affinities as a matrix, the task that steps in the row; ``None`` without any."""
    if not record.affinity:
        return None
    matrix = record.affinity_matrix()
    values = matrix.to_numpy(dtype=float)
    names = apart([str(name) for name in matrix.index])
    aside = [abs(v) for i, row in enumerate(values) for j, v in enumerate(row) if i != j and math.isfinite(v)]
    largest = max(aside, default=0.0) or 1e-6  # a task's effect on itself is larger than any other, and not asked for
    with styled():
        figure = new_figure(2.6 + 0.75 * len(names), 1.6 + 0.5 * len(names))
        axes = figure.subplots()
        image = axes.imshow(values, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("does to the loss of")
        axes.set_ylabel("a step of")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    dark = abs(value) > 0.6 * largest
                    text = number(value, digits=4, signed=True)
                    axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        figure.colorbar(image, ax=axes, extend="both").ax.set_title("affinity", fontsize=8)
    said = [f"{a.step} on {a.on} {number(a.value, digits=4, signed=True)}" for a in record.affinity if a.step != a.on]
    return Drawing(
        name="affinity",
        alt="Affinities: " + "; ".join(said) + ".",
        caption="1 − loss after / loss before on validation rows, when one task alone takes a step: above 0 it helps. "
        "A discouraged task steps so as to raise its own loss.",
        figure=figure,
    )


def curve_figure(record: GridRecord, kind: str) -> Drawing | None:
    """Draw the AUC against the share of noisy or of kept concept values; ``None`` without such a curve."""
    from matplotlib.ticker import NullLocator

    points = record.curve(kind)
    if points.empty:
        return None
    splits = [split for split in record.evaluation if split in set(points["split"])]
    along = {"noise": "share of concept values exchanged", "fraction": "share of rows that keep concept values"}[kind]
    said = []
    with styled():
        figure = new_figure(3.2 * len(splits), 3.2)
        for axes, split in zip(figure.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True):
            for multimodal, colour, marker, name in _KINDS:
                own = points[(points["split"] == split) & (points["multimodal"] == multimodal)].sort_values("level")
                if own.empty:
                    continue
                spread = own["sd"].astype(float).fillna(0.0)
                look = {"color": colour, "marker": marker, "capsize": 3, "label": name}
                axes.errorbar(own["level"], own["auc"], yerr=spread, **look)
                said += [
                    f"{name}, {split}, {level:g}: {auc:.2f}"
                    for level, auc in zip(own["level"], own["auc"], strict=True)
                ]
            base = record.table4().set_index("cell")[split]
            single = next((record.reference(cell) for cell in record.cells if cell.curve == kind), None)
            if single is not None:
                axes.axhline(float(base[single]), color=FAINT, linestyle="--", label="single task")
            if kind == "fraction" and (points["level"] > 0).all():
                axes.set_xscale("log")
                # matplotlib's own labels are powers set as mathematics, which is off, as names are taken literally
                levels = sorted(set(points["level"].astype(float)))
                axes.set_xticks(levels, [f"{level:g}" for level in levels])
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(short(split))
            axes.set_xlabel(along)
        figure.axes[0].set_ylabel("AUC of the main task")
        handles = {
            name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=3)
    return Drawing(
        name=f"concept-{kind}",
        alt=f"AUC by {along}: " + "; ".join(said) + ".",
        caption="Mean and standard deviation over seeds.",
        figure=figure,
    )
