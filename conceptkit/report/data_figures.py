"""The figures of the data itself: concepts by class and center, sample patches and their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from numpy.typing import NDArray

from conceptkit.report.drawing import COLOURS, FAINT, Drawing, new_figure, styled
from conceptkit.report.run_context import Context, Samples, is_drawable
from conceptkit.report.short_names import apart, short
from conceptkit.report.wording import natural, number, with_unit

CONCEPTS_MOST = 12
"""Concepts that are drawn; of more the first ones"""

LEVELS_MOST = 15
"""Classes or centers that are drawn side by side; of more the most frequent ones"""

_CHANNELS = (("red", COLOURS[1], "solid"), ("green", COLOURS[2], (0, (4, 2))), ("blue", COLOURS[0], (0, (1, 1))))
"""Name, colour and dash of the line, so that lines differ without colour too"""


def class_figures(context: Context) -> list[Drawing]:
    """Return each concept's distribution by class of the main task (the paper's Figure 5)."""
    classes = levels(context.labels)
    if not classes:
        return []
    drawings = []
    for i, (name, values) in enumerate(_drawn(context)):
        parts = {c: values[(context.labels == c) & np.isfinite(values)] for c in classes}
        parts = {c: part for c, part in parts.items() if len(part)}
        if not parts:
            continue
        drawings.append(_class_figure(with_unit(name, context.units), parts, i))
    return drawings


def _class_figure(name: str, parts: Mapping[str, NDArray[np.float64]], i: int) -> Drawing:
    with styled():
        figure = new_figure(max(3.4, 1.3 + 0.75 * len(parts)), 3.3)
        axes = figure.add_subplot()
        frame = _long(parts, "class")
        palette = {c: COLOURS[k % len(COLOURS)] for k, c in enumerate(parts)}
        options: dict[str, Any] = {"data": frame, "x": "class", "y": "value", "order": list(parts), "ax": axes}
        sns.violinplot(**options, hue="class", palette=palette, cut=0, inner="box", linewidth=0.8, legend=False)
        _named(axes, list(parts), name, most=26)
    said = "; ".join(f"{c} median {number(float(np.median(part)))} of {len(part)}" for c, part in parts.items())
    return Drawing(name=f"by-class-{i + 1}", alt=f"{name} by class: {said}.", caption="", figure=figure)


def center_figures(context: Context) -> list[Drawing]:
    """Return each concept's boxes by center and class (the paper's Figure 6)."""
    centers = levels(context.centers)
    if len(centers) < 2:
        return []
    drawn = [(i, name, values) for i, (name, values) in enumerate(_drawn(context)) if np.isfinite(values).any()]
    return [_center_figure(context, centers, with_unit(name, context.units), values, i) for i, name, values in drawn]


def _center_figure(context: Context, centers: Sequence[str], name: str, values: NDArray[np.float64], i: int) -> Drawing:
    classes = levels(context.labels)
    kept = np.isfinite(values) & np.isin(context.centers, centers)
    labels = np.where(np.isin(context.labels, classes), context.labels, "(none)")
    labelled = bool(classes)
    hues = [*classes, *(["(none)"] if (labels[kept] == "(none)").any() else [])]
    frame = pd.DataFrame({"center": context.centers[kept], "value": values[kept], "class": labels[kept]})
    with styled():
        figure = new_figure(min(9.0, max(4.2, 1.6 + 0.28 * len(centers) * (len(hues) + 1))), 3.6)
        axes = figure.add_subplot()
        sns.boxplot(
            data=frame,
            x="center",
            y="value",
            hue="class",
            order=list(centers),
            hue_order=hues,
            palette={c: COLOURS[k % len(COLOURS)] for k, c in enumerate(hues)},
            saturation=0.8,
            fliersize=1.5,
            linewidth=0.8,
            ax=axes,
        )
        _named(axes, centers, name)
        axes.set_xlabel("center")
        legend = axes.get_legend()
        if legend is not None:
            handles: Any = legend.legend_handles
            legend.remove()
        if legend is not None and labelled:
            figure.legend(handles, apart(hues, 18), loc="outside lower left", ncols=4)
    cells = [
        (f"{a}, {b}" if labelled else a, values[kept & (context.centers == a) & (labels == b)])
        for a in centers
        for b in hues
    ]
    said = "; ".join(f"{cell} {number(float(np.median(v)))}" for cell, v in cells if len(v))
    alt = f"{name}, median by center{' and class' if labelled else ''}: {said}."
    return Drawing(name=f"by-center-{i + 1}", alt=alt, caption="", figure=figure)


def sample_figure(samples: Samples) -> Drawing:
    """Return patches of each center next to the histograms of their colours (the paper's Figure 3)."""
    rows, columns = samples.images.shape[:2]
    side = 1.25 if rows <= 6 else 0.8  # inches; twelve centers still fit a printed page
    names = apart(samples.centers, 16)
    with styled():
        figure = new_figure(6.0 * side + 0.3, side * rows + 0.6)
        grid = figure.subplots(rows, columns + 1, squeeze=False, width_ratios=[*[1] * columns, 1.9])
        top = float(samples.histograms.max(initial=0.0)) or 1.0
        at = (np.arange(samples.histograms.shape[2]) + 0.5) * 256 / samples.histograms.shape[2]
        lines: list[Any] = []
        for k in range(rows):
            for i in range(columns):
                axes = grid[k, i]
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if i < samples.counts[k]:
                    axes.imshow(samples.images[k, i])
            grid[k, 0].set_ylabel(names[k], rotation=0, ha="right", va="center")
            axes = grid[k, columns]
            lines = [
                axes.plot(at, samples.histograms[k, c], color=colour, linestyle=dash, lw=1.2)[0]
                for c, (_, colour, dash) in enumerate(_CHANNELS)
            ]
            axes.set(xlim=(0, 256), ylim=(0, top * 1.05), yticks=[], xticks=[0, 128, 255])
            if k < rows - 1:
                axes.set_xticklabels([])
            axes.tick_params(labelsize=8, color=FAINT)
        figure.legend(lines, [name for name, _, _ in _CHANNELS], loc="outside lower right", ncols=3)
    bins = samples.histograms.shape[2]
    means = (samples.histograms * (np.arange(bins) + 0.5) * 256 / bins).sum(axis=2)
    said = "; ".join(
        f"{name or 'all patches'} {', '.join(number(v, digits=0) for v in mean.tolist())} ({n} patches)"
        for name, mean, n in zip(samples.centers, means, samples.n_patches.tolist(), strict=True)
    )
    alt = f"Sample patches and colour histograms by center. Mean red, green and blue, 0 to 255: {said}."
    return Drawing(name="samples", alt=alt, caption="", figure=figure)


def levels(values: NDArray[np.str_]) -> list[str]:
    """Return the values that occur, C2 before C10; of many the most frequent, without missing ones."""
    names, counts = np.unique(values[values != ""], return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")][:LEVELS_MOST]
    return sorted(map(str, frequent), key=natural)


def left_out_of_figures(context: Context) -> str:
    """Return which centers, classes and concepts are not drawn; empty where all are."""
    said = []
    for what, values in (("centers", context.centers), ("classes", context.labels)):
        drawn, every = levels(values), sorted(set(values[values != ""].tolist()), key=natural)
        if absent := [name for name in every if name not in drawn]:
            names = ", ".join(absent)
            said.append(f"Of {len(every)} {what} the {len(drawn)} with most patches are drawn; not drawn: {names}.")
    concepts = [name for name, values in context.concepts.items() if is_drawable(values)]
    if absent := concepts[CONCEPTS_MOST:]:
        names = ", ".join(absent)
        said.append(f"Of {len(concepts)} concepts the first {CONCEPTS_MOST} are drawn; not drawn: {names}.")
    return " ".join(said)


def _drawn(context: Context) -> list[tuple[str, NDArray[np.float64]]]:
    return [(name, values) for name, values in context.concepts.items() if is_drawable(values)][:CONCEPTS_MOST]


def _long(parts: Mapping[str, NDArray[np.float64]], column: str) -> pd.DataFrame:
    names = np.repeat(list(parts), [len(part) for part in parts.values()])
    return pd.DataFrame({column: names, "value": np.concatenate(list(parts.values()))})


def _named(axes: Any, names: Sequence[str], title: str, *, most: int = 34) -> None:
    """Set the names below the axis, turned where they are long or many, and the title."""
    texts = apart(names, 14)
    turned = max(map(len, texts)) > 7 or len(texts) > 8
    options: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(len(texts)), texts, **options)
    axes.set(xlabel="", ylabel="")
    axes.set_title(short(title, most), loc="left")
