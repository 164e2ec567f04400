"""Where in a patch a concept is read: contact sheets of the patches that show it most and least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conceptkit.report.drawing import Drawing, file_name, new_figure, short, styled
from conceptkit.report.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OVER = 0.6
"""Opacity of a map over its patch"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One patch of a contact sheet."""

    name: str
    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB"""
    map: NDArray[np.float64]
    """(rows, columns) reading of the concept at each position; its mean is ``read``"""
    read: float
    measured: str
    """Value in the table, as text"""


def contact_sheet(
    most: Sequence[Shown], least: Sequence[Shown], *, concept: str, layer: str, unit: str, level: float, number: int
) -> Drawing:
    """Draw the patches in which a concept is read highest and lowest, each above its map.

    One colour scale serves all maps: white is the median reading of all patches, red above it, blue below.

    Parameters
    ----------
    most, least : patches from the most extreme one on
    concept, layer : names
    unit : of the concept; empty where none is known
    level : median reading over all patches
    number : of the picture in its run
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    columns = max(len(most), len(least))
    values = np.concatenate([one.map.ravel() for one in (*most, *least)])
    # A single position far out would leave all others white.
    reach = float(np.quantile(np.abs(values - level), 0.98)) or 1.0
    scale = Normalize(level - reach, level + reach)
    with styled():
        figure = new_figure(1.45 * columns + 1.3, 7.0)
        grid = figure.subplots(4, columns, squeeze=False)
        for top, (word, patches) in zip((0, 2), (("read highest", most), ("read lowest", least)), strict=True):
            for k in range(columns):
                for axes in (grid[top, k], grid[top + 1, k]):
                    _bare(axes)
                if k >= len(patches):
                    grid[top, k].set_visible(False)
                    grid[top + 1, k].set_visible(False)
                    continue
                one = patches[k]
                grid[top, k].imshow(one.pixels)
                grid[top, k].set_title(_caption(one), fontsize=7.5, fontweight="normal")
                side = one.pixels.shape
                extent = (0.0, float(side[1]), float(side[0]), 0.0)
                grey = one.pixels.mean(2)
                grid[top + 1, k].imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
                grid[top + 1, k].imshow(
                    one.map,
                    cmap="RdBu_r",
                    norm=scale,
                    extent=extent,
                    alpha=_OVER,
                    interpolation="nearest",
                )
            grid[top, 0].set_ylabel(word, fontsize=9)
            grid[top + 1, 0].set_ylabel("where", fontsize=9)
        bar = figure.colorbar(
            ScalarMappable(scale, "RdBu_r"), alpha=_OVER, ax=grid.ravel().tolist(), shrink=0.6, aspect=30, pad=0.02
        )
        bar.set_label(short(f"{concept} read at each position" + (f" ({unit})" if unit else ""), 60), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        figure.suptitle(short(f"{concept} at {layer}", 60), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Drawing(
        name=f"map-{number:02d}-{_part_of_name(layer)}-{_part_of_name(concept)}",
        alt=f"{concept} at {layer}: patches read highest, "
        + "; ".join(_told(one) for one in most)
        + "; and lowest, "
        + "; ".join(_told(one) for one in least)
        + ".",
        caption="The mean of a map is the reading of its patch. Each position sees far more of the patch than its "
        "square, so that a map tells where, not which pixels.",
        figure=figure,
    )


def _part_of_name(text: str) -> str:
    return file_name(text, most=40, otherwise="concept")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _caption(one: Shown) -> str:
    return f"{short(one.name, 16)}\nread {_three(one.read)}, is {short(one.measured, 12)}"


def _three(value: float) -> str:
    """Return three digits that count."""
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else number(value, digits=0)


def _told(one: Shown) -> str:
    return f"{one.name} (read {_three(one.read)}, is {one.measured})"
