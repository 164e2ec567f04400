"""The tables and verdicts of ``attribute``."""

from __future__ import annotations

from collections.abc import Sequence

from conceptkit.records.attribute import AttributeRecord, AttributeRow, Moved, Score
from conceptkit.report.judging import (
    Mark,
    Side,
    Verdict,
    are_few,
    few_words,
    is_significant,
    mark_of,
    p_words,
    side_of,
    verdict,
)
from conceptkit.report.table import Table, ends, make_table, spread
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE
from conceptkit.report.wording import as_float, counted, groups_word, interval, is_finite, metric_name, number

_MOST_DIGITS = 5
"""Decimals of a change, which has the output's unit and may be small"""


def concept_name(row: AttributeRow | Moved) -> str:
    """Return the concept, with the class of a categorical one."""
    return row.concept if row.concept_class is None else f"{row.concept}: {row.concept_class}"


def step_name(row: AttributeRow) -> str:
    """Return the step by which people read a change: ``+10 µm²``, or from the other classes to one."""
    if row.concept_class is not None:
        return "others → class"
    return f"+{row.round_step:g} {row.unit}".rstrip()


def change(row: AttributeRow) -> tuple[float, float, float]:
    """Return the change of the output for one step, with the ends of its interval."""
    return row.per_unit * row.round_step, row.per_unit_low * row.round_step, row.per_unit_high * row.round_step


def attribution_tables(record: AttributeRecord) -> list[Table]:
    """Return the tables of a record: the change of the outputs, the scores, and the effect of moving activations."""
    tables = [change_table(record), score_table(record), moved_table(record) if record.moved else None]
    return [table for table in tables if table is not None]


def _same_everywhere(rows: Sequence[AttributeRow]) -> set[str]:
    """Return the columns that are the same in all rows and are named in the title."""
    columns = {"layer": {row.layer for row in rows}, "output": {row.target for row in rows}}
    return {name for name, values in columns.items() if len(values) < 2}


def _place(row: AttributeRow) -> dict[str, object]:
    return {"layer": row.layer, "concept": concept_name(row), "output": row.target, "images": row.among}


def change_table(record: AttributeRecord) -> Table:
    """Return the change of each output per step of each concept, in the concept's own unit."""
    same = _same_everywhere(record.rows)
    rows = []
    for row in record.rows:
        rows.append(
            {
                **_place(row),
                "step": step_name(row),
                **ends("difference", *change(row)),
                **ends("difference per SD", row.per_sd, row.per_sd_low, row.per_sd_high),
                "p": row.per_unit_p,
                "q": row.per_unit_q,
                "verdict": judge_change(row, record.group).mark,
                **ends("decoded", row.score, row.score_low, row.score_high),
                "rows": row.n,
                "groups": row.n_groups,
            }
        )
    first = record.rows[0] if record.rows else None
    held = f", with {', '.join(first.adjusted_for)} held fixed" if first and first.adjusted_for else ""
    where = f" at {first.layer}" if first and "layer" in same else ""
    what = f"the logit of {first.target}" if first and "output" in same else "the outputs"
    return make_table(
        "attribution",
        f"How {what} changes with each concept{where}",
        "Difference: change of the output (log-odds, for a class) when the activations change as between patches whose "
        f"concept differs by one step{held}; first order, averaged over the images, with a 95 % interval from "
        f"resampling {groups_word(record.group)} of images and fits together. p: share of shuffled concepts with at "
        "least as large a change; q: adjusted for everything attributed. Decoded: held-out score of the concept at the "
        "layer, with its 95 % interval.",
        rows,
        without=same,
        most_digits=_MOST_DIGITS,
    )


def score_table(record: AttributeRecord) -> Table | None:
    """Return the scores along the concept vectors, next to those of shuffled concepts.

    Rows whose derivative is the same at every image are dropped: each of their shares is 0 or 1, whatever the concept.
    ``None`` where no row is left.
    """
    kept = [row for row in record.rows if not row.same_derivative]
    rows = []
    for row in kept:
        cells = _place(row)
        for name, word in (("sign_count", "TCAV"), ("magnitude", "magnitude"), ("relevance", "Br")):
            score = row.scores.get(name)
            value, low, high, sd, q = (score.value, score.low, score.high, score.refits_sd, score.q) if score else _NONE
            cells |= spread(word, value, sd) if name == "relevance" else ends(word, value, low, high)
            if name != "magnitude":  # its test repeats that of TCAV
                cells |= {f"{word} by chance": _chance(score), f"{word} q": q}
        rows.append({**cells, "agreement": row.agreement, "cosine": row.cosine})
    if not rows:
        return None
    no_relevance = all(not is_finite(row["Br"]) for row in rows)
    return make_table(
        "sensitivity",
        "Scores along the concept vectors",
        "TCAV: share of the images whose output rises along the vector. Magnitude: share of all change that is "
        f"upward. Both have a 95 % interval over {groups_word(record.group)}, for images and fits together. "
        "Br = max(R², 0) · mean / SD of the derivatives, ± its SD over refits. By chance: where 95 % of shuffled "
        "concepts lie. q: permutation test against these, adjusted for everything attributed. Agreement: share of the "
        "images at which vector and pattern agree on whether the output rises. Cosine: mean between the vector and its "
        "refits.",
        rows,
        without={*_same_everywhere(kept), *(("Br", "Br by chance", "Br q") if no_relevance else ())},
    )


_NONE = (float("nan"),) * 5


def _chance(score: Score | None) -> str:
    if score is None or not is_finite(score.null_low):
        return ""
    return f"{number(score.null_low)} to {number(score.null_high)}"


def moved_table(record: AttributeRecord) -> Table:
    """Return the outputs after activations were moved along the patterns."""
    rows = []
    for one in record.moved:
        for name, values in one.outputs.items():
            if name.endswith("(probability)") and not name.startswith(f"{one.concept}:"):
                continue  # the classes of other concepts are in the record
            cells: dict[str, object] = {"layer": one.layer, "moved along": concept_name(one), "output": name}
            steps = {
                f"{size:+g}".replace("-", "−") if size else "0": value
                for size, value in zip(one.steps, values, strict=True)
            }
            rows.append({**cells, **steps})
    return make_table(
        "moved",
        "Outputs after moving the activations",
        "Mean of each output over the images, after moving along the concept's pattern by a number of its standard "
        "deviations (of a categorical concept, distances between the class and the others). Where this is not a "
        "straight line, the derivative describes small changes only.",
        rows,
        without={"layer"} if len({one.layer for one in record.moved}) == 1 else (),
    )


def attribution_verdicts(record: AttributeRecord) -> list[Verdict]:
    """Return one verdict per layer, concept and output over all images, and one per layer at which TCAV cannot work.

    Results whose interval covers 0 and whose test does not contradict share one line.
    """
    first: dict[tuple[str, str, str], AttributeRow] = {}
    for row in record.rows:
        first.setdefault((row.layer, concept_name(row), row.target), row)
    same: dict[str, list[str]] = {}
    for row in record.rows:
        if row.same_derivative and row.target not in same.setdefault(row.layer, []):
            same[row.layer].append(row.target)
    judged = [(row, judge_change(row, record.group)) for row in first.values()]
    unchanged = [row for row, said in judged if said.mark == "open" and _side(row) == "covers"]
    verdicts = [said for row, said in judged if row not in unchanged]
    if unchanged:
        parts = [f"{row.target} with {concept_name(row)} at {row.layer} {_size(row)}" for row in unchanged]
        many = f"{len(parts)} result{'' if len(parts) == 1 else 's'}"
        verdicts.append(verdict("open", f"No clear change in {many}: {'; '.join(parts)}"))
    return verdicts + [verdict("open", _same_words(layer, targets)) for layer, targets in same.items()]


def _same_words(layer: str, targets: Sequence[str]) -> str:
    return (
        f"The derivative of {', '.join(targets)} is the same for every image at {layer}, so TCAV is 0 or 1 for any "
        "direction; choose an earlier layer, if there is one"
    )


def read_mark(row: AttributeRow, group: str | None) -> Mark | None:
    """Return whether the concept is decoded at the layer; ``None`` where no interval was recorded."""
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


def _side(row: AttributeRow) -> Side:
    return side_of(row.per_unit, row.per_unit_low, row.per_unit_high)


def _size(row: AttributeRow) -> str:
    """Return the change for one step, with its interval where it has one."""
    by = (
        f"{step_name(row)} of {row.concept}"
        if row.concept_class is None
        else f"going from the others to {concept_name(row)}"
    )
    return f"{interval(*change(row), most=_MOST_DIGITS, signed=True)} for {by}"


def judge_change(row: AttributeRow, group: str | None) -> Verdict:
    """Return whether an output changes with a concept at a layer."""
    few, side, significant = are_few(row.n_groups, group), _side(row), is_significant(row.per_unit_q)
    mark = mark_of(side, significant, few=few, sought=("above", "below"))
    hardly = _is_hardly_read(row, group)
    mark = "associated" if mark == "established" and hardly else mark
    place = f"{concept_name(row)} at {row.layer}"
    place += f" with {', '.join(row.adjusted_for)} held fixed" if row.adjusted_for else ""
    q = p_words(row.per_unit_q, "q")
    answer = f"{row.target} {'rises' if row.per_unit > 0 else 'falls'} with {place}"
    if mark == "associated" and (few or side in ("covers", "missing")):
        tested = f" ({q})" if is_finite(row.per_unit_q) else ""
        answer = f"{row.target} is associated with {place}{tested}; size not established"
    elif mark == "open":
        answer = f"Open whether {row.target} changes with {place}"
    basis = f"({counted(group, row.n_groups) if group else f'{row.n} images'})"
    decoded = f"{metric_name(row.metric)} = {interval(row.score, row.score_low, row.score_high)}"
    return verdict(
        mark,
        f"{answer}: {_size(row)}{', no interval' if side == 'missing' else f' {basis}'}",
        few_words(row.n_groups, group),
        f"{row.concept} itself is not shown to be decodable there ({decoded})" if hardly else "",
        f"The permutation test does not confirm it ({q})"
        if significant is False and side in ("above", "below")
        else "",
        _against(row) if mark == "established" else "",
    )
