"""Interactive UMAPs of the page, drawn with Bokeh."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.models import CDSView, ColumnDataSource, HoverTool, IndexFilter
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure
from numpy.typing import NDArray
from PIL import Image

from conceptkit.report.drawing import COLOURS
from conceptkit.report.embedding import Embeddings, Projection
from conceptkit.report.short_names import apart, short
from conceptkit.report.umap_figures import MARKERS, categories, marker, point_sizes, sizing


def umap_plots(
    embeddings: Embeddings,
    spaces: Sequence[Sequence[Projection]],
    rows: Sequence[tuple[int, str]],
    *,
    size: str | None,
) -> list[list[Any]]:
    """Return Bokeh plots, one list per row of the page, one plot per projection.

    All share one source, so that thumbnails are stored once and a selection in one plot shows in the others. Hovering
    shows the patch; a click on a legend entry hides that class in every plot of its row.

    Parameters
    ----------
    spaces : the projections of each layer
    rows : number of the layer, and what its points are coloured by
    """
    source = ColumnDataSource(_columns(embeddings, spaces, size))
    tooltip = _tooltip(embeddings)
    return [_coloured(source, embeddings, space, len(spaces[space]), colour, tooltip) for space, colour in rows]


def _columns(embeddings: Embeddings, spaces: Sequence[Sequence[Projection]], size: str | None) -> dict[str, Any]:
    """Return the source's columns under names of ours: a concept's name never becomes part of a template."""
    sizes = sizing(embeddings, size)
    columns: dict[str, Any] = {
        "id": embeddings.patch_ids.tolist(),
        "label": [v or "–" for v in embeddings.labels.tolist()],
        "group": [v or "–" for v in embeddings.groups.tolist()],
        "size": np.round(point_sizes(sizes, len(embeddings.labels)), 1).tolist(),
    }
    for s, projections in enumerate(spaces):
        for i, projection in enumerate(projections):
            columns[f"x{s}_{i}"], columns[f"y{s}_{i}"] = np.round(projection.xy.T, 3).tolist()
    for i, values in enumerate(embeddings.concepts.values()):
        texts = values.tolist() if values.dtype.kind == "U" else [_plain(v) for v in values.tolist()]
        columns[f"c{i}"] = [str(t) or "–" for t in texts]
    if embeddings.thumbnails is not None:
        columns["image"] = [_jpeg(image) for image in embeddings.thumbnails]
    return columns


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "–"


def _jpeg(image: NDArray[np.uint8]) -> str:
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


def _coloured(source: Any, embeddings: Embeddings, space: int, n_plots: int, colour: str, tooltip: str) -> list[Any]:
    values = embeddings.labels if colour == "label" else np.asarray(embeddings.concepts[colour], dtype=str)
    classes = categories(values.tolist())
    texts = apart([name for name, _ in classes], 18)
    columns = max(1, min(3, 330 // (6 * max(map(len, texts)) + 28)))  # as many as fit on a phone
    views = [CDSView(filter=IndexFilter(rows.tolist())) for _, rows in classes]
    plots, drawn = [], []
    for i in range(n_plots):
        plot = figure(
            width=480,
            height=480 + 24 * -(-len(classes) // columns),
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
        plot.axis.visible = False  # the axes of a UMAP have no meaning
        plot.grid.visible = False
        glyphs: list[Any] = [
            plot.scatter(
                f"x{space}_{i}",
                f"y{space}_{i}",
                size="size",
                source=source,
                view=view,
                marker=MARKERS[marker(k)],
                color=COLOURS[k % 8],
                alpha=0.65,
                line_width=0.5,
                nonselection_alpha=0.08,
                muted_alpha=0.05,
            )
            for k, view in enumerate(views)
        ]
        items = [LegendItem(label=name, renderers=[glyph]) for name, glyph in zip(texts, glyphs, strict=True)]
        legend = Legend(
            items=items,
            orientation="horizontal",
            ncols=columns,
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
