"""The report's figures: records and layouts in, drawings with a text for those who cannot see them."""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.records import GuideRecord, ProbeRecord, ProbeRow
from conceptkit.report.embedding import Embeddings, Projection
from conceptkit.report.tables import difference_kind, difference_parts, metric_name, networks, number, run_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
"""Okabe and Ito's colours, safe for the colour-blind; their yellow is darkened, as it vanishes on white."""

DIFFERENCE_COLOURS = {
    "encouraged": (COLOURS[0], "Encouraged concepts in blue"),
    "discouraged": (COLOURS[2], "discouraged ones in green"),
    "main task": (COLOURS[1], "the main task in orange"),
}
"""Kind of a paired difference → its colour, and the words of the caption."""

_MARKERS = ("circle", "triangle", "square", "diamond", "inverted_triangle", "hex", "star", "plus")
_MARKERS_MATPLOTLIB = ("o", "^", "s", "D", "v", "h", "*", "P")
_INK, _FAINT = "#222222", "#767676"
CATEGORIES_MOST = 15
"""Classes that get a colour and marker of their own; rarer ones are drawn together."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure and its words."""

    name: str
    """Short name, fit for a file."""
    alt: str
    """What is seen, with its numbers."""
    caption: str
    figure: Figure


@contextmanager
def _style() -> Iterator[None]:
    """Draw and save in here: our sizes, names taken literally (no ``$`` mathematics), the same bytes every time."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.hashsalt": "conceptkit",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # a name in a script that the font lacks shows as boxes in the figure; the table beneath has it in full
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*", category=UserWarning)
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def to_bytes(figure: Figure, *, kind: str = "svg", dpi: int = 110) -> bytes:
    """Return the figure as a file's bytes; ``kind`` is ``svg``, ``pdf`` or ``png``."""
    with _style():
        buffer = io.BytesIO()
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dated)
    return buffer.getvalue()


def to_data_uri(figure: Figure, *, kind: str = "svg", dpi: int = 110) -> str:
    """Return the figure as a data URI of an SVG or PNG."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64," + base64.b64encode(to_bytes(figure, kind=kind, dpi=dpi)).decode()


def short(text: str, most: int = 24) -> str:
    """Return ``text`` on one line, its middle left out when it is longer than ``most`` characters."""
    text = " ".join(text.split()) or "(empty)"
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[-(most - most // 2 - 1) :]


# --- probe -------------------------------------------------------------------------------------------------------


def probe_figures(record: ProbeRecord) -> list[Drawing]:
    """Return one figure per network and concept: the score by layer, with its controls."""
    several = len(networks(record.rows)) > 1
    by: dict[tuple[str, str, str], list[ProbeRow]] = {}
    for row in record.rows:
        by.setdefault((row.model, row.weights, row.concept), []).append(row)
    return [
        _probe_figure(rows, f"{concept}: {model} ({weights})" if several else concept, record.group, i)
        for i, ((model, weights, concept), rows) in enumerate(by.items())
    ]


def _probe_figure(rows: Sequence[ProbeRow], title: str, group: str | None, i: int) -> Drawing:
    measure = metric_name(rows[0].metric)
    at = np.arange(len(rows))
    score = _column(rows, "score")
    ends = np.vstack([score - _column(rows, "score_low"), _column(rows, "score_high") - score])
    controls = [
        ("in sample", "score_in_sample", COLOURS[3], ":", "v"),
        ("ignoring groups", "score_patchwise", COLOURS[4], "--", "^"),
        ("random network", "score_random_network", COLOURS[1], "-.", "s"),
        ("pixel statistics", "score_pixels", COLOURS[2], "-.", "D"),
        ("random concepts", "score_random_concept", _FAINT, ":", "x"),
    ]
    if group is None:  # patch-wise is then the score itself
        del controls[1]
    with _style():
        figure = _figure(min(4.6 + 0.25 * max(0, len(rows) - 8), 9.0), 3.7)
        axes = figure.add_subplot()
        chance = rows[0].chance
        handles: list[Any] = [axes.axhline(chance, color=_FAINT, lw=1)]
        names = [f"chance ({'0' if chance == 0 else number(chance)})"]
        for name, field, colour, style, marker in controls:
            values = _column(rows, field)
            if np.isfinite(values).any():
                handles += axes.plot(at, values, style, color=colour, marker=marker, ms=4, lw=1.3)
                names.append(name)
        drawn = np.nan_to_num(np.maximum(ends, 0.0))  # a missing end leaves the point without a whisker
        bars = axes.errorbar(at, score, drawn, color=COLOURS[0], marker="o", ms=5, lw=2, capsize=3, zorder=3)
        handles.insert(0, bars)
        in_sample = rows[0].protocol != "cross-validated"
        names.insert(0, "in sample (the paper's protocol)" if in_sample else "held out, 95 % interval")
        _layer_ticks(axes, [r.layer for r in rows])
        # a held-out R² may fall without bound; the part that says something must keep its room
        floor = -0.25 if rows[0].metric == "r2" else 0.0
        low = np.nanmin([floor + 0.2, *score, *_column(rows, "score_low"), *_column(rows, "score_random_network")])
        axes.set_ylim(max(floor, low - 0.05), 1.03)
        axes.set_ylabel(measure)
        axes.set_title(short(title, 32), loc="left")
        figure.legend(handles, names, loc="outside lower left", ncols=2)
    alt = f"{measure} of {title} by layer: " + "; ".join(
        f"{r.layer} {number(r.score)} [{number(r.score_low)}, {number(r.score_high)}]"
        + (f", random network {number(r.score_random_network)}" if r.score_random_network is not None else "")
        for r in rows
    )
    return Drawing(name=f"probe-{i + 1}", alt=f"{alt}; chance {number(rows[0].chance)}.", caption="", figure=figure)


def _column(rows: Sequence[ProbeRow], field: str) -> NDArray[np.float64]:
    return np.array([math.nan if getattr(r, field) is None else getattr(r, field) for r in rows], dtype=float)


def _layer_ticks(axes: Axes, layers: Sequence[str]) -> None:
    step = -(-len(layers) // 24)  # more names than that cannot be read
    at = range(0, len(layers), step)
    before, parts, after = _told_apart(layers)
    long = max(map(len, parts)) > 6 or len(layers) > 8
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(list(at), [short(parts[i], 18) for i in at], **turned)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    if before or after:
        axes.set_xlabel(f"{short(before, 30) if before else ''} … {short(after, 30) if after else ''}".strip())


def _told_apart(layers: Sequence[str]) -> tuple[str, list[str], str]:
    """Return what all dotted names begin with, what tells them apart, and what all end with."""
    parts = [layer.split(".") for layer in layers]
    shared = min(map(len, parts)) - 1 if len(layers) > 1 else 0
    first = next((i for i in range(shared) if len({p[i] for p in parts}) > 1), shared)
    shared -= first
    last = next((i for i in range(shared) if len({p[-1 - i] for p in parts}) > 1), shared)
    names = [".".join(p[first : len(p) - last]) for p in parts]
    before = ".".join([*parts[0][:first], ""])
    after = ".".join(["", *parts[0][len(parts[0]) - last :]])
    return before, names, after


# --- guide -------------------------------------------------------------------------------------------------------


def difference_figure(record: GuideRecord) -> Drawing | None:
    """Return every paired difference as a point with its interval about 0; ``None`` when there is none to draw."""
    pairs = zip(record.differences, difference_parts(record), strict=True)
    rows = [(d, parts) for d, parts in pairs if math.isfinite(d.mean)]
    if not rows:
        return None
    with _style():
        figure = _figure(6.4, 1.0 + 0.32 * len(rows))
        axes = figure.add_subplot()
        axes.axvline(0, color=_FAINT, lw=1)
        for at, (d, _) in enumerate(rows):
            colour = DIFFERENCE_COLOURS[difference_kind(d)][0]
            clear = not d.low <= 0 <= d.high
            axes.plot([d.low, d.high], [at, at], color=colour, lw=2)
            axes.plot(d.mean, at, marker="o", ms=6, color=colour, mfc=colour if clear else "white", mew=1.5)
        labels = [", ".join(short(part, 30) for part in parts if part) for _, parts in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("difference")
    alt = "Paired differences: " + "; ".join(
        f"{', '.join(filter(None, parts))} {number(d.mean, digits=3)} "
        f"[{number(d.low, digits=3)}, {number(d.high, digits=3)}]"
        for d, parts in rows
    )
    return Drawing(name="differences", alt=alt + ".", caption="", figure=figure)


def training_figures(record: GuideRecord) -> list[Drawing]:
    """Return one figure per task: raw losses by epoch, and below them the task's weight; empty without a history."""
    keys = dict.fromkeys(key for run in record.runs for epoch in run.history for key in epoch if "/" in key)
    tasks = list(dict.fromkeys(key.split("/", 1)[1] for key in keys))
    return [_training_figure(record, task, f"weight/{task}" in keys, i) for i, task in enumerate(tasks)]


def _training_figure(record: GuideRecord, task: str, weighted: bool, i: int) -> Drawing:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    names = run_names(record)
    handles: dict[str, Any] = {}
    with _style():
        figure = _figure(4.6, 4.4 if weighted else 3.2)
        grid = figure.subplots(
            2 if weighted else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + weighted]
        )
        losses = grid[0, 0]
        for run in record.runs:
            colour = COLOURS[names.index(run.name) % len(COLOURS)]
            style = {"color": colour, "alpha": 0.85, "lw": 1.5}
            for part, dash in (("train", (0, (3, 2))), ("val", "solid")):
                epochs, values = _curve(run.history, f"{part}/{task}")
                if len(values):
                    losses.plot(epochs, values, linestyle=dash, marker="o" if len(values) == 1 else None, **style)
                    handles.setdefault(short(run.name, 20), Line2D([], [], color=colour, lw=1.5))
            if weighted:
                grid[1, 0].plot(*_curve(run.history, f"weight/{task}"), **style)
        losses.set_ylabel("raw loss")
        low, high = losses.dataLim.intervaly
        if low > 0 and high > 30 * low:  # one bad epoch would flatten all others into a line
            losses.set_yscale("log")
            losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            losses.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            losses.yaxis.set_minor_formatter("")
        losses.set_title(short(task, 32), loc="left")
        if weighted:
            grid[1, 0].set_ylabel("weight")
        grid[-1, 0].set_xlabel("epoch")
        grid[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        handles["training loss"] = Line2D([], [], color=_FAINT, lw=1.5, linestyle=(0, (3, 2)))
        handles["validation loss"] = Line2D([], [], color=_FAINT, lw=1.5)
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=2)
    ends = []
    for run in record.runs:
        _, values = _curve(run.history, f"val/{task}")
        if len(values):
            ends.append(
                f"{run.name} seed {run.seed} from {number(values[0], digits=3)} to {number(values[-1], digits=3)}"
            )
    alt = f"Losses of {task} by epoch" + (": validation loss of " + "; ".join(ends) if ends else "") + "."
    return Drawing(name=f"training-{i + 1}", alt=alt, caption="", figure=figure)


def _curve(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of ``key``, epochs without a finite value left out."""
    points = [(e.get("epoch", i), e.get(key)) for i, e in enumerate(history)]
    kept = [(float(x), float(y)) for x, y in points if x is not None and y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


# --- UMAP --------------------------------------------------------------------------------------------------------


def categories(values: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Return each class with the indices of its rows, by name; beyond :data:`CATEGORIES_MOST` the rarest together."""
    texts = np.array([v if v else "(none)" for v in values], dtype=str)
    names, counts = np.unique(texts, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")]
    kept = sorted(frequent if len(names) <= CATEGORIES_MOST else frequent[: CATEGORIES_MOST - 1], key=_natural)
    out = [(str(name), np.flatnonzero(texts == name)) for name in kept]
    if len(kept) < len(names):
        out.append((f"{len(names) - len(kept)} others", np.flatnonzero(~np.isin(texts, kept))))
    return out


def _marker(k: int) -> int:
    """Return the marker of class ``k``: where the colours begin anew, the markers are one further."""
    return (k + k // len(COLOURS)) % len(_MARKERS)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key by which C2 comes before C10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]


def point_sizes(values: NDArray[np.float64] | None, n: int, *, small: float = 4.0, large: float = 12.0) -> Any:
    """Return (n,) diameters: ``small`` at the 2nd centile of ``values`` and below or missing, ``large`` at the 98th."""
    crowd = min(1.0, max(0.5, math.sqrt(800 / max(n, 1))))  # many points must leave each other room
    small, large = small * crowd, large * crowd
    if values is None or not np.isfinite(values).any():
        return np.full(n, (small + large) / 2.5)
    low, high = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), [2, 98])
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(n, 0.5)
    return np.where(np.isfinite(values), small + share * (large - small), small)


def umap_figure(embeddings: Embeddings, projections: Sequence[Projection], *, colour: str, size: str | None) -> Drawing:
    """Return the layouts side by side, for print and where no script runs; ``colour`` is ``label`` or a concept."""
    values = embeddings.labels if colour == "label" else np.asarray(embeddings.concepts[colour], dtype=str)
    sizes = point_sizes(_sizing(embeddings, size), len(values), small=3.0, large=8.0)
    columns = min(len(projections), 2)
    lines = -(-len(projections) // columns)
    handles: dict[str, Any] = {}
    with _style():
        figure = _figure(4.0 * columns, 3.9 * lines + 0.5)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(projections) :]:
            axes.set_axis_off()
        for axes, projection in zip(grid.flat, projections, strict=False):
            for k, (name, rows) in enumerate(categories(values.tolist())):
                mark = {"color": COLOURS[k % 8], "marker": _MARKERS_MATPLOTLIB[_marker(k)], "alpha": 0.65, "lw": 0}
                dots = axes.scatter(*projection.xy[rows].T, s=sizes[rows] ** 2, rasterized=True, **mark)
                handles.setdefault(short(name), dots)
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axes.set_title(short(projection.run, 40), loc="left")
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=4)
    alt = f"{projections[0].method} of {len(values)} held-out patches, coloured by {colour}: " + "; ".join(
        f"{p.run} (trustworthiness {number(p.trustworthiness)})" for p in projections
    )
    return Drawing(name=f"umap-{colour}", alt=alt + ".", caption="", figure=figure)


def _sizing(embeddings: Embeddings, size: str | None) -> NDArray[np.float64] | None:
    return None if size is None else np.asarray(embeddings.concepts[size], dtype=float)


def umap_plots(
    embeddings: Embeddings, projections: Sequence[Projection], *, colours: Sequence[str], size: str | None
) -> list[list[Any]]:
    """Return Bokeh plots, one list per colouring, one plot per projection.

    All share one source, so that thumbnails are stored once and a selection in one plot shows in the others. Hovering
    shows the patch; a click on a legend entry hides that class in every plot of its colouring.
    """
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource(_columns(embeddings, projections, size))
    tooltip = _tooltip(embeddings)
    return [_coloured(source, embeddings, projections, colour, tooltip) for colour in colours]


def _columns(embeddings: Embeddings, projections: Sequence[Projection], size: str | None) -> dict[str, Any]:
    """Return the source's columns under names of ours: a concept's name never becomes part of a template."""
    sizing = _sizing(embeddings, size)
    columns: dict[str, Any] = {
        "id": embeddings.patch_ids.tolist(),
        "label": [v or "–" for v in embeddings.labels.tolist()],
        "group": [v or "–" for v in embeddings.groups.tolist()],
        "size": np.round(point_sizes(sizing, len(embeddings.labels)), 1).tolist(),
    }
    for i, projection in enumerate(projections):
        columns[f"x{i}"], columns[f"y{i}"] = np.round(projection.xy.T, 3).tolist()
    for i, values in enumerate(embeddings.concepts.values()):
        texts = values.tolist() if values.dtype.kind == "U" else [_plain(v) for v in values.tolist()]
        columns[f"c{i}"] = [str(t) or "–" for t in texts]
    if embeddings.thumbnails is not None:
        columns["image"] = [_jpeg(image) for image in embeddings.thumbnails]
    return columns


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "–"


def _jpeg(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tooltip(embeddings: Embeddings) -> str:
    """Return the template of what hovering shows; Bokeh escapes the values, we escape the names."""

    def name(text: str) -> str:
        # @ and $ would start a placeholder of Bokeh
        return escape(short(text)).replace("@", "&#64;").replace("$", "&#36;")

    lines = [("label", "label"), ("group", "group")]
    lines += [(concept, f"c{i}") for i, concept in enumerate(embeddings.concepts)]
    rows = "".join(f"<div><span style='color:#666'>{name(n)}</span> @{column}</div>" for n, column in lines)
    picture = ""
    if embeddings.thumbnails is not None:
        picture = "<img src='@image' alt='' width='96' height='96' style='display:block;margin-bottom:4px'>"
    style = "max-width:220px;font:12px sans-serif;color:#222;overflow-wrap:anywhere"
    return f"<div style='{style}'>{picture}<b>@id</b>{rows}</div>"


def _coloured(
    source: Any, embeddings: Embeddings, projections: Sequence[Projection], colour: str, tooltip: str
) -> list[Any]:
    from bokeh.models import CDSView, HoverTool, IndexFilter
    from bokeh.models.annotations import Legend, LegendItem
    from bokeh.plotting import figure

    values = embeddings.labels if colour == "label" else np.asarray(embeddings.concepts[colour], dtype=str)
    classes = categories(values.tolist())
    views = [CDSView(filter=IndexFilter(rows.tolist())) for _, rows in classes]
    plots, drawn = [], []
    for i in range(len(projections)):
        plot = figure(
            width=480,
            height=480 + 24 * -(-len(classes) // 3),
            sizing_mode="scale_width",
            match_aspect=True,
            tools="pan,box_zoom,wheel_zoom,box_select,reset,save",
            active_drag=None,  # a finger that scrolls the page over the plot must not move the plot
            active_scroll=None,
            toolbar_location="above",
            background_fill_color="white",
            border_fill_color="white",
            outline_line_color="#cccccc",
        )
        plot.toolbar.logo = None
        plot.axis.visible = False  # the axes of a UMAP mean nothing
        plot.grid.visible = False
        glyphs: list[Any] = [
            plot.scatter(
                f"x{i}",
                f"y{i}",
                size="size",
                source=source,
                view=view,
                marker=_MARKERS[_marker(k)],
                color=COLOURS[k % 8],
                alpha=0.65,
                line_width=0.5,
                nonselection_alpha=0.08,
                muted_alpha=0.05,
            )
            for k, view in enumerate(views)
        ]
        items = [LegendItem(label=short(name, 18), renderers=[g]) for (name, _), g in zip(classes, glyphs, strict=True)]
        legend = Legend(
            items=items,
            orientation="horizontal",
            ncols=3,
            click_policy="hide",
            border_line_color=None,
            location="top_left",
        )
        plot.add_layout(legend, "below")
        # under a thick cloud of points a stack of cards would cover the page
        plot.add_tools(HoverTool(tooltips=tooltip, limit=2, renderers=list(glyphs)))
        plots.append(plot)
        drawn.append(glyphs)
    for k in range(len(classes)):
        for one in drawn:
            for other in drawn:
                if one is not other:
                    one[k].js_link("visible", other[k], "visible")
    return plots
