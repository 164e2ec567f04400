"""The networks' spaces as pictures, for print and where no script runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.report.drawing import COLOURS, Drawing, new_figure, styled
from conceptkit.report.embedding import Embeddings, Projection
from conceptkit.report.short_names import apart, short
from conceptkit.report.wording import natural, number

MARKERS = ("o", "^", "s", "D", "v", "h", "*", "P")
"""One per class until they repeat."""

CATEGORIES_MOST = 15
"""Classes that get a colour and marker of their own; rarer ones are drawn together."""


def categories(values: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Return each class with the indices of its rows, by name; beyond :data:`CATEGORIES_MOST` the rarest together."""
    texts = np.array([v if v else "(none)" for v in values], dtype=str)
    names, counts = np.unique(texts, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")]
    kept = sorted(frequent if len(names) <= CATEGORIES_MOST else frequent[: CATEGORIES_MOST - 1], key=natural)
    out = [(str(name), np.flatnonzero(texts == name)) for name in kept]
    if len(kept) < len(names):
        out.append((f"{len(names) - len(kept)} others", np.flatnonzero(~np.isin(texts, kept))))
    return out


def marker(k: int) -> int:
    """Return the marker of class ``k``: where the colours repeat, the markers differ."""
    return (k + k // len(COLOURS)) % len(MARKERS)


def point_sizes(values: NDArray[np.float64] | None, n: int, *, small: float = 4.0, large: float = 12.0) -> Any:
    """Return (n,) diameters: ``small`` at the 2nd centile of ``values`` and below or missing, ``large`` at the 98th."""
    crowd = min(1.0, max(0.5, math.sqrt(800 / max(n, 1))))  # many points must leave each other room
    small, large = small * crowd, large * crowd
    if values is None or not np.isfinite(values).any():
        return np.full(n, (small + large) / 2.5)
    low, high = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), [2, 98])
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(n, 0.5)
    return np.where(np.isfinite(values), small + share * (large - small), small)


def umap_figure(
    embeddings: Embeddings, projections: Sequence[Projection], *, layer: str, colour: str, size: str | None
) -> Drawing:
    """Return the layouts side by side, for print and where no script runs; ``colour`` is ``label`` or a concept."""
    values = embeddings.labels if colour == "label" else np.asarray(embeddings.concepts[colour], dtype=str)
    sizes = point_sizes(sizing(embeddings, size), len(values), small=3.0, large=8.0)
    columns = min(len(projections), 2)
    lines = -(-len(projections) // columns)
    handles: dict[str, Any] = {}
    with styled():
        figure = new_figure(4.0 * columns, 3.9 * lines + 0.5)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(projections) :]:
            axes.set_axis_off()
        for axes, projection in zip(grid.flat, projections, strict=False):
            classes = categories(values.tolist())
            texts = apart([name for name, _ in classes])
            for k, (name, (_, rows)) in enumerate(zip(texts, classes, strict=True)):
                mark = {"color": COLOURS[k % 8], "marker": MARKERS[marker(k)], "alpha": 0.65, "lw": 0}
                dots = axes.scatter(*projection.xy[rows].T, s=sizes[rows] ** 2, rasterized=True, **mark)
                handles.setdefault(name, dots)
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axes.set_title(short(projection.run, 40), loc="left")
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=4)
    alt = f"{projections[0].method} of {len(values)} held-out patches at {layer}, coloured by {colour}: " + "; ".join(
        f"{p.run} (trustworthiness {number(p.trustworthiness)})" for p in projections
    )
    return Drawing(name=f"umap-{layer}-{colour}", alt=alt + ".", caption="", figure=figure)


def sizing(embeddings: Embeddings, size: str | None) -> NDArray[np.float64] | None:
    """Return the values of the concept that sizes the points."""
    return None if size is None else np.asarray(embeddings.concepts[size], dtype=float)
