"""What ``attribute`` found, in words and tables."""

from __future__ import annotations

import math

from conceptkit.evaluate.intervals import FEW_GROUPS
from conceptkit.records.attribute import AttributeRecord, AttributeRow, Score
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE, SIGNIFICANT, Verdict
from conceptkit.report.wording import as_float, groups_word, interval, is_finite, metric_name, number


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
    return [change_table(record), score_table(record), *([moved_table(record)] if record.moved else [])]


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
                "read": row.score,
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
        caption=f"Difference: change of the output (log-odds, for a class) when the activations differ as those of "
        f"patches do whose concept is a step higher{held}; first order, averaged over the images; with a 95 % interval "
        f"from resampling {groups_word(record.group)}, of images and fits alike. p: shuffled concepts with at least as "
        "large a change; q: adjusted for everything attributed. Read: how well the concept is read there, held out.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
    )


def score_table(record: AttributeRecord) -> Table:
    """Return the scores along the concept vectors, beside what shuffled concepts give."""
    several = {key: len({getattr(row, key) for row in record.rows}) > 1 for key in ("layer", "target")}
    rows = []
    for row in record.rows:
        cells: dict[str, object] = {
            "layer": row.layer,
            "concept": concept_name(row),
            "output": row.target,
            "images": row.among,
        }
        for name, word in (("sign_count", "TCAV"), ("magnitude", "magnitude"), ("relevance", "Br")):
            score = row.scores.get(name)
            cells[word], cells[f"{word} sd"] = (math.nan, math.nan) if score is None else (score.value, score.refits_sd)
            if name != "magnitude":  # its test says what TCAV's does
                cells[f"{word} by chance"] = _chance(score)
                cells[f"{word} q"] = math.nan if score is None else score.q
        cells["agreement"] = row.agreement
        cells["cosine"] = row.cosine
        rows.append(cells)
    columns = list(rows[0]) if rows else ["concept", "TCAV"]
    dropped = {key for key, column in (("layer", "layer"), ("output", "target")) if not several[column]}
    if not any(is_finite(row["Br"]) for row in rows):
        dropped |= {"Br", "Br sd", "Br by chance", "Br q"}
    return Table(
        name="sensitivity",
        title="Scores along the concept vectors",
        caption="TCAV: share of the images whose output rises along the vector; magnitude: share of all change that is "
        "upward; Br = max(R², 0) · mean / SD of the derivatives. ± is the SD over refits on resampled "
        f"{groups_word(record.group)}. By chance: where 95 % of shuffled concepts lie; q is against these, over "
        "everything attributed. Agreement: share of the images at which vector and pattern point the same way for the "
        "output. Cosine: mean between the vector and its refits.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
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
        caption="Mean over the images of each output, after moving along the concept's pattern by so many of its "
        "standard deviations (of a categorical one, distances between the class and the others). Where this is not a "
        "straight line, a derivative tells of small changes only.",
        frame=tidy(rows, [c for c in columns if several or c != "layer"]),
    )


def _step(size: float) -> str:
    return f"{size:+g}".replace("-", "−") if size else "0"


def attribution_verdicts(record: AttributeRecord) -> list[Verdict]:
    """Return one sentence per layer, concept and output, over all images."""
    first: dict[tuple[str, str, str], AttributeRow] = {}
    for row in record.rows:
        first.setdefault((row.layer, concept_name(row), row.target), row)
    return [_verdict(row, record.group) for row in first.values()]


def _is_hardly_read(row: AttributeRow) -> bool:
    """Return whether the concept is hardly read at all."""
    return row.metric == "r2" and not row.score > READABLE_ABOVE_CHANCE


def _against(row: AttributeRow) -> str:
    """Return what has to be said where the concept vector has the other sign."""
    mean = row.scores["mean"].value
    if not mean * row.per_unit < 0:
        return ""
    verb = "rises" if mean > 0 else "falls"
    return f", while along the vector that reads the concept it {verb} (TCAV {number(row.scores['sign_count'].value)})"


def _verdict(row: AttributeRow, group: str | None) -> Verdict:
    name, step = concept_name(row), row.round_step
    size = interval(row.per_unit * step, row.per_unit_low * step, row.per_unit_high * step, signed=True)
    by = f"{step_name(row)} of {row.concept}" if row.concept_class is None else f"the way from the others to {name}"
    measure = f"read there with {metric_name(row.metric)} {number(row.score)}"
    of = f"{row.n} images of {row.n_groups} {groups_word(group, row.n_groups)}" if group else f"{row.n} images"
    unread = (
        f"; {row.concept} is hardly {measure}, so that this tells little" if _is_hardly_read(row) else f"; {measure}"
    )
    if not is_finite(row.per_unit_low):
        text = f"{by} goes with {size} of {row.target} at {row.layer}, without an interval to judge by"
        return Verdict(text=f"{text}{unread} ({of}).", tone="open")
    covers = row.per_unit_low <= 0 <= row.per_unit_high
    chance = is_finite(row.per_unit_q) and row.per_unit_q >= SIGNIFICANT
    if covers or chance:
        why = "the interval covers 0" if covers else f"q {number(row.per_unit_q)} against shuffled concepts"
        text = f"{row.target} is not shown to change with {name} at {row.layer}: {size} for {by}, {why}"
        return Verdict(text=f"{text}{unread} ({of}).", tone="open")
    verb = "rises" if row.per_unit > 0 else "falls"
    held = f" with {', '.join(row.adjusted_for)} held fixed" if row.adjusted_for else ""
    text = f"{row.target} {verb} with {name} at {row.layer}{held}: {size} for {by}{_against(row)}"
    few = group is not None and row.n_groups < FEW_GROUPS
    return Verdict(text=f"{text}{unread} ({of}).", tone="open" if few or _is_hardly_read(row) else "clear")
