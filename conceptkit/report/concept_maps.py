"""Where in a patch a concept is predicted: contact sheets of the patches with the highest and lowest predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from conceptkit.report.drawing import Drawing, file_name, new_figure, styled
from conceptkit.report.short_names import short
from conceptkit.report.wording import number

_OVER = 0.6
"""Opacity of a map over its patch"""

_FAINT_OVER = 0.35
"""The same for a concept that is not established"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One patch of a contact sheet."""

    name: str
    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB"""
    map: NDArray[np.float64]
    """(rows, columns) prediction of the concept at each position; its mean is ``read``"""
    read: float
    measured: str
    """Value in the table, as text"""


def contact_sheet(
    most: Sequence[Shown],
    least: Sequence[Shown],
    *,
    concept: str,
    layer: str,
    unit: str,
    level: float,
    number: int,
    decoded: str,
    established: bool,
) -> Drawing:
    """Draw the patches with the highest and the lowest predictions of a concept, each above its map.

    All maps share one colour scale: white is the median prediction of all patches, red above it, blue below. Where the
    layer is not shown to encode the concept the maps are grey.

    Parameters
    ----------
    most, least : patches from the most extreme one on
    concept, layer : names
    unit : of the concept; empty where none is known
    level : median prediction over all patches
    number : of the picture in its run
    decoded : held-out score of the concept at the layer, with its interval
    established : whether that score is shown to be above chance
    """
    columns = max(len(most), len(least))
    values = np.concatenate([one.map.ravel() for one in (*most, *least)])
    # A single position far out would leave all others white.
    reach = float(np.quantile(np.abs(values - level), 0.98)) or 1.0
    scale = Normalize(level - reach, level + reach)
    colours, over = ("RdBu_r", _OVER) if established else ("Greys", _FAINT_OVER)
    with styled():
        figure = new_figure(1.45 * columns + 1.3, 7.0)
        grid = figure.subplots(4, columns, squeeze=False)
        for axes in grid.flat:
            _bare(axes)
        for top, word, patches in ((0, "highest", most), (2, "lowest", least)):
            for axes in grid[top : top + 2, len(patches) :].flat:
                axes.set_visible(False)
            for (above, below), one in zip(grid[top : top + 2].T, patches, strict=False):
                extent = (0.0, float(one.pixels.shape[1]), float(one.pixels.shape[0]), 0.0)
                above.imshow(one.pixels)
                above.set_title(_caption(one), fontsize=7.5, fontweight="normal")
                below.imshow(one.pixels.mean(2), cmap="gray", vmin=0, vmax=255, extent=extent)
                look: dict[str, Any] = {"cmap": colours, "norm": scale, "alpha": over, "interpolation": "nearest"}
                below.imshow(one.map, extent=extent, **look)
            grid[top, 0].set_ylabel(word, fontsize=9)
            grid[top + 1, 0].set_ylabel("where", fontsize=9)
        bar = figure.colorbar(
            ScalarMappable(scale, colours), alpha=over, ax=grid.ravel().tolist(), shrink=0.6, aspect=30, pad=0.02
        )
        bar.set_label(short(f"{concept} predicted at each position" + (f" ({unit})" if unit else ""), 60), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        title = f"{short(f'{concept} at {layer}', 60)}\n{_decoded(decoded, established)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Drawing(
        name=f"map-{number:02d}-{_part_of_name(layer)}-{_part_of_name(concept)}",
        alt=f"{concept} at {layer}, {_decoded(decoded, established)}: highest predictions, "
        f"{'; '.join(map(_words, most))}; lowest, {'; '.join(map(_words, least))}.",
        caption="The mean of a map is the prediction for its patch. Each position sees far more of the patch than its "
        "square, so a map shows where, not which pixels.",
        figure=figure,
    )


def _decoded(score: str, established: bool) -> str:
    return f"held-out {score}" if established else f"held-out {score}: not established, maps in grey"


def _part_of_name(text: str) -> str:
    return file_name(text, most=40, otherwise="concept")


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _caption(one: Shown) -> str:
    return f"{short(one.name, 16)}\npredicted {_three(one.read)}\nmeasured {short(one.measured, 12)}"


def _three(value: float) -> str:
    """Return ``value`` with three significant digits."""
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else number(value, digits=0)


def _words(one: Shown) -> str:
    return f"{one.name} (predicted {_three(one.read)}, measured {one.measured})"
