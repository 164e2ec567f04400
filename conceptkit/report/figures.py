"""The figures of probe and guide: records in, drawings out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from conceptkit.records import GuideRecord, ProbeRecord, ProbeRow, RunsRecord
from conceptkit.report.contents import difference_kind, difference_parts, is_in_sample, network_name, networks
from conceptkit.report.drawing import COLOURS, FAINT, Drawing, new_figure, styled
from conceptkit.report.judging import Mark
from conceptkit.report.short_names import apart, shared_ends, short
from conceptkit.report.verdicts import difference_mark, judge_probe
from conceptkit.report.wording import metric_name, number


def point_style(mark: Mark, colour: str) -> dict[str, Any]:
    """Return how a point is drawn: filled when established, half filled when associated, hollow when open."""
    return {
        "marker": "o",
        "color": colour,
        "fillstyle": "left" if mark == "associated" else "full",
        "markerfacecolor": "white" if mark == "open" else colour,
        "markerfacecoloralt": "white",
    }


DIFFERENCE_COLOURS = {
    "encouraged": (COLOURS[0], "Encouraged concepts in blue"),
    "discouraged": (COLOURS[2], "discouraged ones in green"),
    "main task": (COLOURS[1], "the main task in orange"),
}
"""Kind of a paired difference → its colour, and the words of the caption."""


def by_concept(record: ProbeRecord) -> dict[str, list[ProbeRow]]:
    """Return the rows of each network and concept under their title, in their order."""
    several = len(networks(record.rows)) > 1
    by: dict[str, list[ProbeRow]] = {}
    for row in record.rows:
        title = f"{row.concept}: {network_name(row)}" if several else row.concept
        by.setdefault(title, []).append(row)
    return by


def probe_figures(record: ProbeRecord) -> list[Drawing]:
    """Return one figure per network and concept: the score by layer, with its controls."""
    drawings = [_probe_figure(rows, title, record.group) for title, rows in by_concept(record).items()]
    return [dataclasses.replace(drawing, name=f"probe-{i + 1}") for i, drawing in enumerate(drawings)]


def _probe_figure(rows: Sequence[ProbeRow], title: str, group: str | None) -> Drawing:
    with styled():
        figure = new_figure(min(4.6 + 0.25 * max(0, len(rows) - 8), 9.0), 3.7)
        legend = draw_probe(figure.add_subplot(), rows, title, group)
        figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=2)
    alt = f"{metric_name(rows[0].metric)} of {title} by layer: " + "; ".join(
        f"{r.layer} {number(r.score)} [{number(r.score_low)}, {number(r.score_high)}] {judge_probe(r, group).mark}"
        + (f", random network {number(r.score_random_network)}" if r.score_random_network is not None else "")
        for r in rows
    )
    return Drawing(name="probe", alt=f"{alt}; chance {number(rows[0].chance)}.", caption="", figure=figure)


# next to the held-out score, not on it: where they agree with it, one would hide the other
_CONTROLS = (
    ("training fit", "score_in_sample", COLOURS[3], ":", "v", -0.16),
    ("random split", "score_patchwise", COLOURS[4], "--", "^", -0.08),
    ("random network", "score_random_network", COLOURS[1], "-.", "s", 0.08),
    ("pixel statistics", "score_pixels", COLOURS[2], "-.", "D", 0.16),
    ("random concepts", "score_random_concept", FAINT, ":", "x", 0.24),
)


def draw_probe(axes: Axes, rows: Sequence[ProbeRow], title: str, group: str | None) -> dict[str, Any]:
    """Draw the score of one concept by layer with its controls; return what the legend names."""
    at, score = np.arange(len(rows)), _column(rows, "score")
    ends = np.vstack([score - _column(rows, "score_low"), _column(rows, "score_high") - score])
    bars = axes.errorbar(  # a missing end leaves the point without a whisker
        at, score, np.nan_to_num(np.maximum(ends, 0.0)), color=COLOURS[0], lw=2, capsize=3, zorder=3
    )
    chance = rows[0].chance
    legend: dict[str, Any] = {
        "training fit (the paper's protocol)" if is_in_sample(rows[0]) else "held out, 95 % interval": bars,
        f"chance ({'0' if chance == 0 else number(chance)})": axes.axhline(chance, color=FAINT, lw=1),
    }
    for name, field, colour, style, marker, aside in _CONTROLS:
        values = _column(rows, field)
        if np.isfinite(values).any() and not (name == "random split" and group is None):  # it is then the score itself
            [legend[name]] = axes.plot(at + aside, values, style, color=colour, marker=marker, ms=4, lw=1.3)
    marks = [judge_probe(row, group).mark for row in rows]
    for x, y, mark in zip(at, score, marks, strict=True):
        axes.plot(x, y, ms=7, mew=1.4, zorder=4, **point_style(mark, COLOURS[0]))
    for mark in dict.fromkeys(marks):
        [legend[mark]] = axes.plot([], [], ms=7, mew=1.4, ls="", **point_style(mark, COLOURS[0]))
    _layer_ticks(axes, [r.layer for r in rows])
    # a held-out R² may fall without bound; the part that says something must keep its room
    floor = -0.25 if rows[0].metric == "r2" else 0.0
    below = [_column(rows, f"score{what}") for what in ("", "_low", "_random_network", "_random_concept")]
    bottom = max(floor, float(np.nanmin([floor + 0.2, *np.concatenate(below)])) - 0.05)
    axes.set_ylim(bottom, 1.03)
    for x, end in zip(at, _column(rows, "score_low"), strict=True):
        if end < bottom:  # an interval that leaves the picture says how far it goes
            axes.annotate(f"↓ {number(end)}", (x, bottom), (4, 3), textcoords="offset points", fontsize=8)
    axes.set_ylabel(metric_name(rows[0].metric))
    axes.set_title(short(title, 32), loc="left")
    return legend


def _column(rows: Sequence[ProbeRow], field: str) -> NDArray[np.float64]:
    return np.array([math.nan if getattr(r, field) is None else getattr(r, field) for r in rows], dtype=float)


def _layer_ticks(axes: Axes, layers: Sequence[str]) -> None:
    step = -(-len(layers) // 24)  # more names than that cannot be read
    at = range(0, len(layers), step)
    before, parts, after = _split_names(layers)
    texts = apart(parts, 18)
    long = max(map(len, texts)) > 6 or len(layers) > 8
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(list(at), [texts[i] for i in at], **turned)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    if before or after:
        axes.set_xlabel(f"{short(before, 30) if before else ''} … {short(after, 30) if after else ''}".strip())


def _split_names(layers: Sequence[str]) -> tuple[str, list[str], str]:
    """Return the common start of dotted names, the parts that differ, and the common end."""
    parts = [layer.split(".") for layer in layers]
    first, last = shared_ends(parts)
    names = [".".join(p[first : len(p) - last]) for p in parts]
    before = ".".join([*parts[0][:first], ""])
    after = ".".join(["", *parts[0][len(parts[0]) - last :]])
    return before, names, after


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and mark, as one line of a figure."""

    label: str
    ends: tuple[float, float, float]
    """Value, lower and upper end"""
    mark: Mark
    colour: str = COLOURS[0]


def difference_estimates(record: RunsRecord) -> list[Estimate]:
    """Return every paired difference that could be measured, coloured by its kind."""
    return [
        Estimate(
            f"{short(parts[0], 30)}\n{', '.join(short(part, 30) for part in parts[1:] if part)}",
            (d.mean, d.low, d.high),
            difference_mark(d, record.group),
            DIFFERENCE_COLOURS[difference_kind(d)][0],
        )
        for d, parts in zip(record.differences, difference_parts(record), strict=True)
        if math.isfinite(d.mean)
    ]


def draw_estimates(axes: Axes, estimates: Sequence[Estimate], *, reference: float, label: str) -> None:
    """Draw each number as a point with its interval, with a line at the reference."""
    axes.axvline(reference, color=FAINT, lw=1)
    for at, one in enumerate(estimates):
        value, low, high = one.ends
        axes.plot([low, high], [at, at], color=one.colour, lw=2)
        axes.plot(value, at, ms=6, mew=1.5, **point_style(one.mark, one.colour))
    axes.set_yticks(range(len(estimates)), [one.label for one in estimates], linespacing=1.05, fontsize=9)
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels would touch


def difference_figure(record: GuideRecord) -> Drawing | None:
    """Return every paired difference as a point with its interval about 0; ``None`` when there is none to draw."""
    estimates = difference_estimates(record)
    if not estimates:
        return None
    with styled():
        figure = new_figure(4.9, 1.0 + 0.42 * len(estimates))  # narrow enough to be read on a phone
        draw_estimates(figure.add_subplot(), estimates, reference=0, label="difference")
    alt = "Paired differences: " + "; ".join(
        f"{', '.join(filter(None, parts))} {number(d.mean, digits=3)} "
        f"[{number(d.low, digits=3)}, {number(d.high, digits=3)}] {difference_mark(d, record.group)}"
        for d, parts in zip(record.differences, difference_parts(record), strict=True)
        if math.isfinite(d.mean)
    )
    return Drawing(name="differences", alt=alt + ".", caption="", figure=figure)


def training_figures(record: GuideRecord) -> list[Drawing]:
    """Return one figure per task by epoch: raw losses, its head's held-out score, its weight; empty without a history.

    A part that no run has is skipped.
    """
    keys = dict.fromkeys(key for run in record.runs for epoch in run.history for key in epoch if "/" in key)
    tasks = list(dict.fromkeys(key.split("/", 1)[1] for key in keys))
    return [
        _training_figure(record, task, [what for what in ("score", "weight") if f"{what}/{task}" in keys], i)
        for i, task in enumerate(tasks)
    ]


LEAST_SCORE = -1.0
"""Lower limit of the axis of scores: an R² far below 0, as in first epochs, would flatten all others into a line"""


def _training_figure(record: GuideRecord, task: str, below: Sequence[str], i: int) -> Drawing:
    names = record.run_names
    texts = apart(names, 20)
    handles: dict[str, Any] = {}
    with styled():
        figure = new_figure(4.6, 3.2 + 1.2 * len(below))
        ratios = [2, *(1 for _ in below)]
        grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        losses = grid[0, 0]
        for run in record.runs:
            colour = COLOURS[names.index(run.name) % len(COLOURS)]
            style = {"color": colour, "alpha": 0.85, "lw": 1.5}
            for part, dash in (("train", (0, (3, 2))), ("val", "solid")):
                epochs, values = _curve(run.history, f"{part}/{task}")
                if len(values):
                    losses.plot(epochs, values, linestyle=dash, marker="o" if len(values) == 1 else None, **style)
                    handles.setdefault(texts[names.index(run.name)], Line2D([], [], color=colour, lw=1.5))
            for axes, what in zip(grid[1:, 0], below, strict=True):
                epochs, values = _curve(run.history, f"{what}/{task}")
                axes.plot(epochs, values, marker="o" if len(values) == 1 else None, **style)
        losses.set_ylabel("raw loss")
        low, high = losses.dataLim.intervaly
        if low > 0 and high > 30 * low:  # one bad epoch would flatten all others into a line
            losses.set_yscale("log")
            losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            losses.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            losses.yaxis.set_minor_formatter("")
        losses.set_title(short(task, 32), loc="left")
        for axes, what in zip(grid[1:, 0], below, strict=True):
            axes.set_ylabel({"score": "head's score"}.get(what, what))
            if what == "score" and axes.get_ylim()[0] < LEAST_SCORE:
                axes.set_ylim(LEAST_SCORE, max(axes.get_ylim()[1], 0.05))
        grid[-1, 0].set_xlabel("epoch")
        grid[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        handles["training loss"] = Line2D([], [], color=FAINT, lw=1.5, linestyle=(0, (3, 2)))
        handles["validation loss"] = Line2D([], [], color=FAINT, lw=1.5)
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=2)
    alt = f"Losses of {task} by epoch"
    for words, key in ((": validation loss of ", f"val/{task}"), (". Held-out score of its head: ", f"score/{task}")):
        ends = _ends(record, key)
        alt += words + "; ".join(ends) if ends else ""
    return Drawing(name=f"training-{i + 1}", alt=f"{alt}.", caption="", figure=figure)


def _ends(record: GuideRecord, key: str) -> list[str]:
    """Return in words, for each run that has the curve, where it begins and ends."""
    found = []
    for run in record.runs:
        _, values = _curve(run.history, key)
        if len(values):
            first, last = number(values[0], digits=3), number(values[-1], digits=3)
            found.append(f"{run.name} seed {run.seed} from {first} to {last}")
    return found


def _curve(history: Sequence[Mapping[str, float | None]], key: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of ``key``, without epochs of no finite value."""
    points = [(e.get("epoch", i), e.get(key)) for i, e in enumerate(history)]
    kept = [(float(x), float(y)) for x, y in points if x is not None and y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]
