"""Predictions for a whole slide or image as heat maps where the patches lie."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from numpy.typing import NDArray

from conceptkit.report.drawing import COLOURS, FAINT, Drawing, file_name, new_figure, styled
from conceptkit.report.short_names import apart, short
from conceptkit.report.wording import number

ACROSS = 3
"""Maps next to each other"""

_SEQUENTIAL, _PROBABILITY = "cividis", "viridis"


@dataclass(frozen=True, kw_only=True)
class MapLayer:
    """One prediction of all patches of a slide."""

    name: str
    values: NDArray[Any]
    """(n,) numbers, not a number where there is none; or classes as text"""
    unit: str = ""
    low: float = 0.0
    """Range of the colours, the same for all slides; values outside have the colour of the end"""
    high: float = 1.0
    classes: Sequence[str] = ()
    """All classes of a categorical prediction; empty for numbers"""
    score: str = ""
    """Held-out score of the prediction, in words"""
    established: bool = True
    """False where that score is not above chance: the map is then grey"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the patches of one slide or image lie."""

    name: str
    x: NDArray[np.float64]
    """(n,) left edges, in pixels of the slide's level 0 or of the image"""
    y: NDArray[np.float64]
    """(n,) upper edges"""
    size: NDArray[np.float64]
    """(n,) sides"""
    picture: NDArray[np.uint8] | None = None
    """(h, w, 3) the whole slide or image, small"""
    width: float = 0.0
    """Size of the slide or image, in the same pixels, if there is a picture"""
    height: float = 0.0


def slide_map(place: Place, layers: Sequence[MapLayer]) -> Drawing:
    """Draw a slide with its predictions next to it, one map each.

    Every patch is a square; where patches overlap, the squares are as large as the steps between them.
    """
    squares, bounds = _squares(place)
    left, right, top, bottom = bounds
    panels = len(layers) + (place.picture is not None)
    columns = 2 if panels == 4 else min(ACROSS, panels)
    rows = -(-panels // columns)
    shape = float(np.clip((bottom - top) / max(right - left, 1.0), 0.4, 2.5))
    with styled():
        lines = max((len(textwrap.wrap(layer.score, 34)) for layer in layers), default=0)
        figure = new_figure(3.6 * columns, 3.0 * shape * rows + (0.35 + 0.2 * lines) * rows + 0.3)
        axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for one in axes:
            one.set(xticks=[], yticks=[], aspect="equal", xlim=(left, right), ylim=(bottom, top))
            one.spines[:].set_visible(False)
        for one in axes[panels:]:
            one.set_visible(False)
        if place.picture is not None:
            first = axes.pop(0)
            first.imshow(place.picture, extent=(0, place.width, place.height, 0), interpolation="bilinear")
            first.set(xlim=(left, right), ylim=(bottom, top))
            first.set_title("the tissue", loc="left")
        for one, layer in zip(axes, layers, strict=False):
            grey = "" if layer.established else "\nnot above chance, in grey"
            score = f"\n{textwrap.fill(layer.score, 34)}{grey}" if layer.score else ""
            one.set_title(f"{short(layer.name, 34)}{score}", loc="left", color="black" if layer.established else FAINT)
            one.set_facecolor("#f4f4f4")
            values, mapped = layer_colours(layer)
            _colour_bar(figure, one, mapped, layer)
            _paint(one, squares, values, mapped)
        figure.suptitle(short(place.name, 60), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Drawing(
        name=file_name(place.name),
        alt=f"{place.name}, {len(place.x)} patches: " + "; ".join(_summary(layer) for layer in layers) + ".",
        caption="Each square is a patch; the colours of a number are the same on all slides of one call.",
        figure=figure,
    )


def layer_colours(layer: MapLayer, *, on_tissue: bool = False) -> tuple[NDArray[np.float64], ScalarMappable]:
    """Return the values (n,) of a layer as numbers, and the colours of these; classes are numbered.

    With ``on_tissue`` no colour is grey, as the tissue below is.
    """
    if layer.classes:
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(layer.classes))]
        if not layer.established:
            colours = [str(0.35 + 0.5 * k / len(colours)) for k in range(len(colours))]
        code = {name: k for k, name in enumerate(layer.classes)}
        values = np.array([float(code.get(str(v), np.nan)) for v in layer.values])
        return values, ScalarMappable(Normalize(-0.5, len(layer.classes) - 0.5), ListedColormap(colours))
    vivid = _PROBABILITY if on_tissue or (layer.low, layer.high) == (0.0, 1.0) else _SEQUENTIAL
    mapped = ScalarMappable(Normalize(layer.low, layer.high), vivid if layer.established else "Greys")
    return np.asarray(layer.values, dtype=np.float64), mapped


def map_on_tissue(place: Place, layer: MapLayer, *, mpp: float | None) -> Drawing:
    """Draw one map over the picture of its slide, with a bar of its colours and one of the scale.

    The picture is grey, so that the colours of the squares are those of the bar.

    Parameters
    ----------
    mpp : microns per pixel of the places; ``None`` where unknown, then the bar is in pixels
    """
    squares, (left, right, top, bottom) = _squares(place)
    values, mapped = layer_colours(layer, on_tissue=True)
    shape = float(np.clip((bottom - top) / max(right - left, 1.0), 0.3, 3.0))
    with styled():
        figure = new_figure(8.0, 7.0 * shape + 0.8)
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        if place.picture is not None:
            grey = np.asarray(place.picture, dtype=np.float64) @ (0.299, 0.587, 0.114)
            whole = (0, place.width, place.height, 0)
            axes.imshow(grey, extent=whole, interpolation="bilinear", cmap="gray", vmin=0, vmax=255)
        axes.set(xlim=(left, right), ylim=(bottom, top))
        _paint(axes, squares, values, mapped, alpha=0.65)
        _colour_bar(figure, axes, mapped, layer)
        length, text = scale_length(right - left, mpp)
        x, y = left + 0.04 * (right - left), bottom - 0.04 * (bottom - top)
        axes.plot([x, x + length], [y, y], color="black", linewidth=4, solid_capstyle="butt")
        mark = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        axes.annotate(text, (x, y), (0, 5), textcoords="offset points", va="bottom", fontsize=9, bbox=mark)
        axes.set_title(f"{short(place.name, 50)}: {short(layer.name, 40)}", loc="left")
    return Drawing(
        name=file_name(f"{place.name}-{layer.name}"),
        alt=f"{place.name}, {len(place.x)} patches: {_summary(layer)}.",
        caption=f"Each square is a patch; the black bar is {text}.",
        figure=figure,
    )


def scale_length(width: float, mpp: float | None) -> tuple[float, str]:
    """Return the length of a bar in pixels, and its text: a round length of about a sixth of the width."""
    wanted = width / 6 * (mpp or 1.0)
    power = 10.0 ** np.floor(np.log10(wanted))
    length = float(max((step for step in (1, 2, 5) if step * power <= wanted), default=1) * power)
    if mpp is None:
        return length, f"{length:,.0f} pixels (scale unknown)"
    return length / mpp, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


def _colour_bar(figure: Any, axes: Any, mapped: ScalarMappable, layer: MapLayer) -> None:
    """Draw what the colours of a layer say: names of classes, or numbers with their unit."""
    bar = figure.colorbar(mapped, ax=axes, shrink=0.8, aspect=25, ticks=range(len(layer.classes)) or None)
    if layer.classes:
        bar.ax.set_yticklabels(apart(layer.classes, 14))
    else:
        bar.set_label(layer.unit)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_edgecolor(FAINT)


def _paint(
    axes: Any, squares: NDArray[np.float64], values: NDArray[np.float64], mapped: Any, alpha: float | None = None
) -> None:
    known = np.isfinite(values)
    if known.any():
        # Edges of the squares' own colour close the hair lines that rounding leaves between them; where tissue is seen
        # through the squares, they would overlap.
        colours = mapped.to_rgba(values[known], alpha=alpha)
        axes.add_collection(
            PolyCollection(
                list(squares[known]), facecolors=colours, edgecolors=colours, linewidths=0.2 if alpha is None else 0.0
            )
        )


def _squares(place: Place) -> tuple[NDArray[np.float64], tuple[float, float, float, float]]:
    """Return corners (n, 4, 2) of what is drawn for each patch, and left, right, top and bottom of it all."""
    side = np.minimum(place.size, _step(place.x, place.y))
    middle = np.stack([place.x + place.size / 2, place.y + place.size / 2], axis=1)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    squares = middle[:, None] + corners[None] * side[:, None, None]
    if place.picture is not None:
        return squares, (0.0, place.width, 0.0, place.height)
    (left, top), (right, bottom) = squares.min((0, 1)), squares.max((0, 1))
    return squares, (float(left), float(right), float(top), float(bottom))


def _step(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the usual distance from a patch to the next one in its row or column; infinite without one."""
    steps = []
    for along, across in ((x, y), (y, x)):
        order = np.lexsort((along, across))
        gaps = np.diff(along[order])[np.diff(across[order]) == 0]
        steps += [float(np.median(gaps[gaps > 0]))] if (gaps > 0).any() else []
    return min(steps, default=float("inf"))


def _titled(layer: MapLayer) -> str:
    score = f" ({layer.score}{'' if layer.established else ', not above chance'})" if layer.score else ""
    return f"{layer.name}{score}"


def _summary(layer: MapLayer) -> str:
    if layer.classes:
        shares = [(name, float(np.mean(layer.values.astype(str) == name))) for name in layer.classes]
        return f"{_titled(layer)} " + ", ".join(f"{name} {share:.0%}" for name, share in shares)
    values = layer.values.astype(float)
    if not np.isfinite(values).any():
        return f"{_titled(layer)} unknown"
    return f"{_titled(layer)} {number(float(np.nanmin(values)))} to {number(float(np.nanmax(values)))}"
