"""What ``attribute`` found, in words and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conceptkit.records.attribute import AttributeRecord, AttributeRow, Score
from conceptkit.report.judging import (
    Mark,
    Verdict,
    are_few,
    few_words,
    is_significant,
    mark_of,
    p_words,
    side_of,
)
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE
from conceptkit.report.wording import as_float, groups_word, interval, is_finite, metric_name, number

_MOST_DIGITS = 5
"""Decimals of a change, which has the output's unit and may be small"""


def concept_name(row: AttributeRow) -> str:
    """Return the concept, with the class that is meant of a categorical one."""
    return row.concept if row.concept_class is None else f"{row.concept}: {row.concept_class}"


def step_name(row: AttributeRow) -> str:
    """Return the step by which people read a change: ``+10 µm²``, or the way from the other classes."""
    if row.concept_class is not None:
        return "others → class"
    return f"+{row.round_step:g} {row.unit}".rstrip()


def attribution_tables(record: AttributeRecord) -> list[Table]:
    """Return the tables of a record: the change of the outputs, the scores, and what moving along a concept did."""
    found = [change_table(record), score_table(record), moved_table(record) if record.moved else None]
    return [table for table in found if table is not None]


def change_table(record: AttributeRecord) -> Table:
    """Return the change of each output per step of each concept, in the concept's own unit."""
    several = {key: len({getattr(row, key) for row in record.rows}) > 1 for key in ("layer", "target")}
    rows = []
    for row in record.rows:
        step = row.round_step
        rows.append(
            {
                "layer": row.layer,
                "concept": concept_name(row),
                "output": row.target,
                "images": row.among,
                "step": step_name(row),
                "difference": row.per_unit * step,
                "difference low": row.per_unit_low * step,
                "difference high": row.per_unit_high * step,
                "difference per SD": as_float(row.per_sd),
                "difference per SD low": as_float(row.per_sd_low),
                "difference per SD high": as_float(row.per_sd_high),
                "p": row.per_unit_p,
                "q": row.per_unit_q,
                "verdict": judge_change(row, record.group).mark,
                "decoded": row.score,
                "decoded low": as_float(row.score_low),
                "decoded high": as_float(row.score_high),
                "rows": row.n,
                "groups": row.n_groups,
            }
        )
    columns = list(rows[0]) if rows else ["concept", "output", "difference"]
    dropped = {key for key, column in (("layer", "layer"), ("output", "target")) if not several[column]}
    if not any(is_finite(row["difference per SD"]) for row in rows):
        dropped |= {f"difference per SD{end}" for end in ("", " low", " high")}
    first = record.rows[0] if record.rows else None
    held = f", with {', '.join(first.adjusted_for)} held fixed" if first is not None and first.adjusted_for else ""
    where = "" if first is None or several["layer"] else f" at {first.layer}"
    what = "the outputs" if first is None or several["target"] else f"the logit of {first.target}"
    return Table(
        name="attribution",
        title=f"How {what} changes with each concept{where}",
        caption=f"Difference: change of the output (log-odds, for a class) when the activations change as between "
        f"patches whose concept differs by one step{held}; first order, averaged over the images, with a 95 % interval "
        f"from resampling {groups_word(record.group)} of images and fits together. p: share of shuffled concepts with "
        "at least as large a change; q: adjusted for everything attributed. Decoded: held-out score of the concept at "
        "the layer, with its 95 % interval.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
        most_digits=_MOST_DIGITS,
    )


def score_table(record: AttributeRecord) -> Table | None:
    """Return the scores along the concept vectors, beside those of shuffled concepts.

    Rows whose derivative is the same at every image go: each of their shares is 0 or 1, whatever the concept. ``None``
    where no row is left.
    """
    told_apart = [row for row in record.rows if not row.same_derivative]
    several = {key: len({getattr(row, key) for row in told_apart}) > 1 for key in ("layer", "target")}
    rows = []
    for row in told_apart:
        cells: dict[str, object] = {
            "layer": row.layer,
            "concept": concept_name(row),
            "output": row.target,
            "images": row.among,
        }
        for name, word in (("sign_count", "TCAV"), ("magnitude", "magnitude"), ("relevance", "Br")):
            score = row.scores.get(name)
            cells[word] = math.nan if score is None else score.value
            if name == "relevance":
                cells[f"{word} sd"] = math.nan if score is None else score.refits_sd
            elif score is not None:
                cells[f"{word} low"], cells[f"{word} high"] = score.low, score.high
            if name != "magnitude":  # its test repeats that of TCAV
                cells[f"{word} by chance"] = _chance(score)
                cells[f"{word} q"] = math.nan if score is None else score.q
        cells["agreement"] = row.agreement
        cells["cosine"] = row.cosine
        rows.append(cells)
    if not rows:
        return None
    dropped = {key for key, column in (("layer", "layer"), ("output", "target")) if not several[column]}
    if not any(is_finite(row["Br"]) for row in rows):
        dropped |= {"Br", "Br sd", "Br by chance", "Br q"}
    return Table(
        name="sensitivity",
        title="Scores along the concept vectors",
        caption="TCAV: share of the images whose output rises along the vector. Magnitude: share of all change that is "
        f"upward. Both have a 95 % interval over {groups_word(record.group)}, for images and fits together. "
        "Br = max(R², 0) · mean / SD of the derivatives, ± its SD over refits. By chance: where 95 % of shuffled "
        "concepts lie. q: permutation test against these, adjusted for everything attributed. Agreement: share of the "
        "images at which vector and pattern agree on whether the output rises. Cosine: mean between the vector and its "
        "refits.",
        frame=tidy(rows, [c for c in rows[0] if c not in dropped]),
    )


def _chance(score: Score | None) -> str:
    if score is None or not is_finite(score.null_low):
        return ""
    return f"{number(score.null_low)} to {number(score.null_high)}"


def moved_table(record: AttributeRecord) -> Table:
    """Return what the outputs became when activations were moved along the patterns."""
    several = len({one.layer for one in record.moved}) > 1
    rows = []
    for one in record.moved:
        for name, values in one.outputs.items():
            head, _, share = name.partition(":")
            if share.endswith("(probability)") and head != one.concept:
                continue  # what another concept's classes do is in the record
            cells: dict[str, object] = {
                "layer": one.layer,
                "moved along": one.concept if one.concept_class is None else f"{one.concept}: {one.concept_class}",
                "output": name,
            }
            cells |= {_step(size): value for size, value in zip(one.steps, values, strict=True)}
            rows.append(cells)
    columns = list(rows[0]) if rows else ["moved along", "output"]
    return Table(
        name="moved",
        title="What the outputs become when the activations are moved",
        caption="Mean of each output over the images, after moving along the concept's pattern by a number of its "
        "standard deviations (of a categorical concept, distances between the class and the others). Where this is "
        "not a straight line, the derivative describes small changes only.",
        frame=tidy(rows, [c for c in columns if several or c != "layer"]),
    )


def _step(size: float) -> str:
    return f"{size:+g}".replace("-", "−") if size else "0"


def attribution_verdicts(record: AttributeRecord) -> list[Verdict]:
    """Return one verdict per layer, concept and output over all images, and one per layer at which TCAV cannot work."""
    first: dict[tuple[str, str, str], AttributeRow] = {}
    for row in record.rows:
        first.setdefault((row.layer, concept_name(row), row.target), row)
    same: dict[str, list[str]] = {}
    for row in record.rows:
        if row.same_derivative and row.target not in same.setdefault(row.layer, []):
            same[row.layer].append(row.target)
    verdicts = [judge_change(row, record.group) for row in first.values()]
    return verdicts + [Verdict(text=_same_words(layer, targets), mark="open") for layer, targets in same.items()]


def _same_words(layer: str, targets: Sequence[str]) -> str:
    return (
        f"The derivative of {', '.join(targets)} is the same for every image at {layer}, so TCAV is 0 or 1 for any "
        "direction; choose an earlier layer."
    )


def read_mark(row: AttributeRow, group: str | None) -> Mark | None:
    """Return whether the concept itself is decoded at the layer; ``None`` where no interval was recorded."""
    if not is_finite(row.score_low):
        return None
    side = side_of(row.score, row.score_low, row.score_high, as_float(row.chance))
    return mark_of(side, None, few=are_few(row.n_groups, group))


def _is_hardly_read(row: AttributeRow, group: str | None) -> bool:
    mark = read_mark(row, group)
    if mark is not None:
        return mark != "established"
    return row.metric == "r2" and not row.score > READABLE_ABOVE_CHANCE


def _against(row: AttributeRow) -> str:
    """Return the caveat of a concept vector whose sign is not that of the pattern."""
    mean = row.scores["mean"].value
    if not mean * row.per_unit < 0:
        return ""
    share = "" if row.same_derivative else f" (TCAV {number(row.scores['sign_count'].value)})"
    return f"Along the vector that predicts the concept it {'rises' if mean > 0 else 'falls'} instead{share}"


def judge_change(row: AttributeRow, group: str | None) -> Verdict:
    """Return whether an output changes with a concept at a layer."""
    name, step = concept_name(row), row.round_step
    few = are_few(row.n_groups, group)
    side = side_of(row.per_unit, row.per_unit_low, row.per_unit_high)
    significant = is_significant(row.per_unit_q)
    mark = mark_of(side, significant, few=few, sought=("above", "below"))
    hardly = _is_hardly_read(row, group)
    mark = "associated" if mark == "established" and hardly else mark
    ends = (row.per_unit * step, row.per_unit_low * step, row.per_unit_high * step)
    size = interval(*ends, most=_MOST_DIGITS, signed=True)
    by = f"{step_name(row)} of {row.concept}" if row.concept_class is None else f"going from the others to {name}"
    basis = f"{row.n_groups} {groups_word(group, row.n_groups)}" if group else f"{row.n} images"
    held = f" with {', '.join(row.adjusted_for)} held fixed" if row.adjusted_for else ""
    tested = f" ({p_words(row.per_unit_q, 'q')})" if is_finite(row.per_unit_q) else ""
    verb = "rises" if row.per_unit > 0 else "falls"
    answer = f"{row.target} {verb} with {name} at {row.layer}{held}"
    if (mark == "associated" and side in ("covers", "missing")) or (mark == "associated" and few):
        answer = f"{row.target} is associated with {name} at {row.layer}{held}{tested}; size not established"
    elif mark == "open":
        answer = f"Open whether {row.target} changes with {name} at {row.layer}{held}"
    text = f"{answer}: {size} for {by} ({basis})" if side != "missing" else f"{answer}: {size} for {by}, no interval"
    decoded = f"{metric_name(row.metric)} = {interval(row.score, row.score_low, row.score_high)}"
    caveats = [
        few_words(row.n_groups, group) if few else "",
        f"{row.concept} itself is not shown to be decodable there ({decoded})" if hardly else "",
        f"The permutation test does not confirm it ({p_words(row.per_unit_q, 'q')})"
        if significant is False and side in ("above", "below")
        else "",
        _against(row) if mark == "established" else "",
    ]
    caveat = next((one for one in caveats if one), "")
    return Verdict(text=f"{text}. {caveat}." if caveat else f"{text}.", mark=mark)
