"""What a page and a terminal say first: the answers by importance, one picture, and what not to conclude."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from conceptkit.records import GuideRecord, ProbeRecord, ProbeRow, Record
from conceptkit.report.contents import difference_kind, is_in_sample, network_name, networks, reference_run
from conceptkit.report.drawing import COLOURS, Drawing, new_figure, styled
from conceptkit.report.figures import Estimate, difference_figure, draw_estimates
from conceptkit.report.judging import MARKS, Verdict
from conceptkit.report.short_names import short
from conceptkit.report.verdicts import judge_probe
from conceptkit.report.wording import as_float, is_finite, metric_name, number

ANSWERS_MOST = 5
"""Maximum number of answers"""

CAUTIONS_MOST = 5
"""Maximum number of things not to conclude"""

ROWS_MOST = 10
"""Maximum number of results in the first picture"""


def headline(verdicts: Sequence[Verdict], most: int = ANSWERS_MOST) -> list[Verdict]:
    """Return at most ``most`` answers by importance, the last one a count of those that are not said.

    A declared primary contrast comes first, then established and associated results. Open results are counted; without
    any finding the first ones are said.
    """
    strength = list(MARKS)
    findings = [v for v in verdicts if v.primary or v.mark != "open"] or [v for v in verdicts if v.count == 1]
    findings = sorted(findings, key=lambda v: (not v.primary, strength.index(v.mark)))
    left = [v for v in verdicts if v not in findings]
    if len(findings) + len(left) <= most:
        return [*findings, *left]
    said = findings[: most - 1]
    further, unclear = len(findings) - len(said), sum(v.count for v in left)
    parts = [f"{further} further finding{'s' * (further != 1)}"] * bool(further)
    parts += [f"{unclear} result{'s' * (unclear != 1)} without a clear effect"] * bool(unclear)
    return [*said, Verdict(text=f"{' and '.join(parts)}: see the tables.", mark="open", count=further + unclear)]


def first_picture(records: Sequence[Record]) -> Drawing | None:
    """Return the picture of the first guided training, its main differences; without one, of the first probe, each
    concept's best layer next to its controls."""
    for record in sorted(records, key=lambda record: not isinstance(record, GuideRecord)):
        drawing = None
        if isinstance(record, GuideRecord):
            drawing = _guide_picture(record)
        elif isinstance(record, ProbeRecord):
            drawing = _probe_picture(record)
        if drawing is not None:
            return drawing
    return None


def _guide_picture(record: GuideRecord) -> Drawing | None:
    """Return the differences from the reference: the primary one, those of concepts, and the main task's AUC."""
    reference = reference_run(record)
    chosen = [
        d
        for d in record.differences
        if d.primary or (d.against == reference and (difference_kind(d) != "main task" or d.metric == "auc"))
    ]
    return difference_figure(dataclasses.replace(record, differences=tuple(chosen[:ROWS_MOST])))


def _probe_picture(record: ProbeRecord) -> Drawing | None:
    best: dict[tuple[str, str], ProbeRow] = {}
    for row in record.rows:
        key = network_name(row), row.concept
        if is_finite(row.score) and not is_in_sample(row) and (key not in best or row.score > best[key].score):
            best[key] = row
    rows = list(best.values())[:ROWS_MOST]
    if not rows:
        return None
    several = len(networks(rows)) > 1
    estimates = [
        Estimate(
            f"{short(row.concept, 30)}\n{short(f'{network_name(row)}, {row.layer}' if several else row.layer, 30)}",
            (row.score, row.score_low, row.score_high),
            judge_probe(row, record.group).mark,
        )
        for row in rows
    ]
    controls = (("random network", "score_random_network", "s", 1), ("pixel statistics", "score_pixels", "D", 2))
    with styled():
        figure = new_figure(4.9, 1.5 + 0.42 * len(rows))
        axes = figure.add_subplot()
        draw_estimates(axes, estimates, reference=rows[0].chance, label="held-out score, best layer")
        for name, field, marker, colour in controls:
            values = [as_float(getattr(row, field)) for row in rows]
            if any(map(math.isfinite, values)):
                axes.scatter(values, range(len(rows)), marker=marker, s=26, color=COLOURS[colour], label=name, zorder=4)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower left", ncols=2)
        axes.set_xlim(max(axes.get_xlim()[0], -0.25), 1.03)
    alt = "Best layer of each concept: " + "; ".join(
        f"{row.concept} at {row.layer}, {metric_name(row.metric)} {number(row.score)} [{number(row.score_low)}, "
        f"{number(row.score_high)}], random network {number(row.score_random_network)}, pixel statistics "
        f"{number(row.score_pixels)}"
        for row in rows
    )
    return Drawing(name="first", alt=f"{alt}.", caption="", figure=figure)


# --- the question, and what not to conclude ----------------------------------------------------------------------


def probe_question(record: ProbeRecord) -> str:
    """Return what a probe asks."""
    concepts = list(dict.fromkeys(row.concept for row in record.rows))
    return f"What does {_listed(networks(record.rows))} encode of {_listed(concepts)}?"


def guide_question(record: GuideRecord) -> str:
    """Return what guided training asks."""
    towards = f" towards {_listed(record.encourage)}" if record.encourage else ""
    away = f" away from {_listed(record.discourage)}" if record.discourage else ""
    return f"What does guiding{towards}{' and' if towards and away else ''}{away} change?"


def probe_cautions(record: ProbeRecord) -> list[str]:
    """Return what the scores of a probe do not show."""
    said = ["A layer may encode a concept that the network does not use: attribute measures use."]
    if record.group is None:
        said.append("Rows were treated as independent: the scores do not describe new patients.")
    return said


def guide_cautions(record: GuideRecord) -> list[str]:
    """Return what differences between trainings do not show."""
    said = ["No clear change is not equality: an interval that covers 0 may hold an effect that matters."]
    if len({run.seed for run in record.runs}) == 1:
        said.append("One seed: the intervals hold the uncertainty over patients, not over another training.")
    if record.discourage:
        said.append(f"A low probe score does not prove that {_listed(record.discourage)} is gone: audit tests it.")
    return said


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Return names in a row; of many the first ones and a count."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
