"""The figures of robustness: indices and probes by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conceptkit.records import ProbeRow, RobustnessRecord, RobustnessRow
from conceptkit.report.drawing import COLOURS, FAINT, Drawing, new_figure, styled
from conceptkit.report.short_names import short
from conceptkit.report.wording import number

_DRAWN = ("RI", "CRoMa", "CRoMa tail")


def robustness_figures(record: RobustnessRecord) -> list[Drawing]:
    """Return a figure for each encoder with several layers."""
    found: list[Drawing] = []
    for encoder in dict.fromkeys(row.encoder or row.model for row in record.rows):
        rows = [row for row in record.rows if (row.encoder or row.model) == encoder]
        if len({row.layer for row in rows}) > 1:
            probes = [row for row in record.probes if (row.encoder or row.model) == encoder]
            alt = f"Robustness of {encoder} by layer: " + "; ".join(
                f"{row.layer} {row.index} {number(row.value)}" for row in rows if row.index in _DRAWN
            )
            name = f"robustness-{len(found) + 1}"
            found.append(Drawing(name=name, alt=f"{alt}.", caption=encoder, figure=layer_figure(rows, probes)))
    return found


def layer_figure(rows: Sequence[RobustnessRow], probes: Sequence[ProbeRow]) -> Figure:
    """Return indices above, and probes of label, center and concepts below, by layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    with styled():
        figure = new_figure(min(5.6 + 0.3 * max(0, len(layers) - 8), 10.0), 5.4 if probes else 3.0)
        axes = figure.subplots(2 if probes else 1, sharex=True, squeeze=False)[:, 0]
        for colour, index in zip(COLOURS, _DRAWN, strict=False):
            own = {row.layer: (row.value, row.low, row.high) for row in rows if row.index == index}
            _line(axes[0], layers, own, index, colour)
        for value in {0.0, *(row.chance for row in rows if row.index == "RI" and row.chance is not None)}:
            axes[0].axhline(value, color=FAINT, linewidth=0.8, linestyle=":")
        axes[0].set_ylabel("index")
        for colour, concept in zip(COLOURS[3:], dict.fromkeys(row.concept for row in probes), strict=False):
            own = {row.layer: (row.score, row.score_low, row.score_high) for row in probes if row.concept == concept}
            _line(axes[-1], layers, own, f"{concept} probe", colour)
        if probes:
            axes[-1].set_ylabel("held-out score")
        axes[-1].set_xticks(range(len(layers)), [short(layer) for layer in layers], rotation=30, ha="right")
        figure.legend(loc="outside lower left", ncols=3)
    return figure


def _line(axes: Axes, layers: Sequence[str], values: dict[str, Any], label: str, colour: str) -> None:
    known = [[math.nan if end is None else end for end in values.get(layer, (None,) * 3)] for layer in layers]
    if not known:
        return
    middle, low, high = zip(*known, strict=True)
    axes.plot(range(len(layers)), middle, marker="o", markersize=4, color=colour, label=label)
    axes.fill_between(range(len(layers)), low, high, color=colour, alpha=0.15, linewidth=0)
