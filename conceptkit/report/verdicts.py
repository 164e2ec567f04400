"""The verdicts of probe and guide: the answer, its number, and one caveat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from conceptkit.records import Difference, GuideRecord, ProbeRecord, ProbeRow, RunsRecord
from conceptkit.records.guide import BASELINE
from conceptkit.report.contents import (
    READERS,
    compared_runs,
    difference_kind,
    is_in_sample,
    network_name,
    networks,
    reference_run,
)
from conceptkit.report.judging import (
    MARKS,
    Mark,
    Verdict,
    are_few,
    few_words,
    is_significant,
    mark_of,
    p_words,
    side_of,
    verdict,
)
from conceptkit.report.wording import as_float, counted, groups_word, interval, is_finite, metric_name, number

READABLE_ABOVE_CHANCE = 0.05
"""Without an interval or a test, a concept counts as decodable when a fresh probe scores this much above chance."""

_REMNANTS = ("linear", "mlp", "kernel")

NAMED_MOST = 3
"""Results without a clear change that a sentence names"""

FEW_FOR_LEAKAGE = 10
"""Below this number of patients a mean score without an interval does not show what is left."""


# --- probe -------------------------------------------------------------------------------------------------------


def probe_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return one verdict per network and concept, that of the layer with the strongest evidence."""
    several = len(networks(record.rows)) > 1
    by: dict[tuple[str, str], list[ProbeRow]] = {}
    for network in networks(record.rows):
        for row in record.rows:
            if network_name(row) == network:
                by.setdefault((network, row.concept), []).append(row)
    out = []
    for (network, _), rows in by.items():
        best = _best_verdict(rows, record.group)
        prefix = f"{network}: " if several else ""
        out.append(Verdict(text=prefix + best.text, mark=best.mark))
    return out


def _best_verdict(rows: Sequence[ProbeRow], group: str | None) -> Verdict:
    scored = [row for row in rows if is_finite(row.score)]
    if not scored:
        return verdict("open", f"{rows[0].concept} could not be scored at any layer")
    strength = list(MARKS)
    best = max(scored, key=lambda row: (-strength.index(judge_probe(row, group).mark), row.score))
    return judge_probe(best, group, layers=len(scored))


def judge_probe(row: ProbeRow, group: str | None, *, layers: int = 1) -> Verdict:
    """Return what one row shows.

    Parameters
    ----------
    row : the numbers
    group : column of the groups; ``None``: rows were treated as independent
    layers : number of layers among which the row was chosen
    """
    if not is_finite(row.score):
        return verdict("open", f"{row.concept} could not be scored at {row.layer}")
    if is_in_sample(row):
        fit = f"The training fit of {row.concept} at {row.layer} is R² = {number(row.score)}"
        answer = f"{fit} (protocol of the paper, {row.n} rows)"
        return verdict("open", answer, "It does not show what holds for other patients")
    side, few = side_of(row.score, row.score_low, row.score_high, row.chance), are_few(row.n_groups, group)
    name, p = ("q", row.q) if is_finite(row.q) else ("p", row.p)
    significant = is_significant(p, row.p_min)
    mark = mark_of(side, significant, few=few)
    controls = _controls(row) if mark != "open" else ""
    decoded = mark == "established"
    mark = "associated" if decoded and controls else mark
    if decoded:
        lead = f"{row.concept} can be decoded from {row.layer}" if controls else f"{row.layer} encodes {row.concept}"
    elif mark == "associated":
        lead = f"{row.concept} is associated with {row.layer} ({p_words(p, name)}); size not established"
    else:
        lead = f"Open whether {row.layer} encodes {row.concept}"
    unconfirmed = significant is False and side == "above"
    compared = is_finite(row.score_random_network) or is_finite(row.score_pixels)
    return verdict(
        mark,
        f"{lead}: {_probe_numbers(row, side, group, layers)}",
        f"The permutation test does not confirm it ({p_words(p, name)})" if unconfirmed else "",
        few_words(row.n_groups, group),
        controls,
        *(_conditions(row) if mark != "open" else ()),
        _odd_fit(row, group),
        ""
        if compared or not decoded
        else "It was not compared with a randomly initialised network or with pixel statistics",
    )


def _probe_numbers(row: ProbeRow, side: str, group: str | None, layers: int) -> str:
    text = f"held-out {metric_name(row.metric)} = {interval(row.score, row.score_low, row.score_high)}"
    if row.chance != 0:
        text += f", chance {number(row.chance)}"
    text += {"below": ", below chance", "missing": ", without an interval"}.get(side, "")
    basis = f"{row.n} rows treated as independent" if group is None else counted(group, row.n_groups)
    return f"{text} ({basis}{f'; best supported of {layers} layers' if layers > 1 else ''})"


def _controls(row: ProbeRow) -> str:
    """Return which controls reach the interval (or the score, without an interval); empty if none does."""
    bound = min(row.score, row.score_low) if is_finite(row.score_low) else row.score
    top = max(row.score, row.score_high) if is_finite(row.score_high) else row.score
    named = (
        ("randomly initialised network", row.score_random_network),
        ("pixel statistics", row.score_pixels),
    )
    reached = {name: as_float(score) for name, score in named if is_finite(score) and as_float(score) >= bound}
    if len(reached) == 2:
        network, pixels = map(number, reached.values())
        return (
            f"A randomly initialised network ({network}) and simple pixel statistics ({pixels}) do as well or better, "
            "so this says little about the network"
        )
    for name, score in reached.items():
        how = f"{'better' if score > top else 'about as well'} ({number(score)})"
        if name == "pixel statistics":
            return f"Simple pixel statistics do {how}, so this says little about the network"
        return f"A randomly initialised network does {how}, so training need not be the reason"
    return ""


def _conditions(row: ProbeRow) -> Iterator[str]:
    """Yield the further analyses that do not support the score."""
    if is_finite(row.score_adjusted) and side_of(
        row.score_adjusted, row.score_adjusted_low, row.score_adjusted_high
    ) not in ("above", "missing"):
        size = interval(row.score_adjusted, row.score_adjusted_low, row.score_adjusted_high)
        yield f"Adjusted for {', '.join(row.adjusted_for)} it is open (partial R² = {size})"
    if is_finite(row.score_leave_out) and as_float(row.score_leave_out) <= row.chance:
        yield f"With each {row.leave_out} held out in turn it is not above chance ({number(row.score_leave_out)})"


def _odd_fit(row: ProbeRow, group: str | None) -> str:
    """Return what is odd of a training fit below the random split or the held-out score, or of a high random split."""
    fit, mixed = row.score_in_sample, as_float(row.score_patchwise) if group is not None else math.nan
    if is_finite(fit) and fit < mixed:
        return (
            f"The training fit ({number(fit)}) is below the random split ({number(mixed)}), which may only recognise "
            f"{groups_word(group)}"
        )
    if is_finite(fit) and fit < row.score:
        return f"The training fit ({number(fit)}) is below the held-out score; compare the penalties (alpha)"
    if is_finite(row.score_high) and mixed > max(row.score_high, row.score):
        return f"A random split ({groups_word(group)} mixed) would give {number(mixed)}"
    return ""


# --- guide -------------------------------------------------------------------------------------------------------


def guide_verdicts(record: GuideRecord) -> list[Verdict]:
    """Return the verdicts of a guide record: concepts, leakage, main task, and last all results without a change."""
    said: dict[str, list[Verdict]] = {"encouraged": [], "discouraged": [], "main task": []}
    of_auc = {_place(d): d for d in record.differences if d.metric == "auc"}
    pooled = {_place(d): d for d in record.differences if d.primary and d.metric == "auc_weighted"}
    unchanged: list[Difference] = []
    for d in record.differences:
        first = pooled.get(_place(d)) or of_auc.get(_place(d))
        same_kind = d.metric.within or d.metric in ("auc", "auc_weighted")
        if d.primary or (first and same_kind and d.metric != first.metric and _same(d, first)):
            continue  # a split with one center would be reported three times
        if side_of(d.mean, d.low, d.high) == "covers":
            unchanged.append(d)
        else:
            said[difference_kind(d)].append(difference_verdict(d, record))
    if not record.differences:
        said["main task"].append(verdict("open", "No paired difference between runs was recorded"))
    leakage = [
        _leakage_verdict(record, name, concept)
        for concept in record.discourage
        for name in sorted(compared_runs(record) or record.run_names, key=lambda name: name == BASELINE)
    ]
    order = [*said["encouraged"], *leakage, *said["discouraged"], *said["main task"]]
    unchanged.sort(key=lambda d: list(said).index(difference_kind(d)))
    several = len({(d.run, d.against) for d in record.differences}) > 1
    parts = [(f"{_what(d)}{f' ({d.run})' if several else ''}", d) for d in unchanged]
    return [*order, *no_clear_change(parts, record.group)]


def primary_verdict(record: RunsRecord) -> list[Verdict]:
    """Return the verdict of the contrast that was declared before the run; nothing without one."""
    d = record.primary
    if d is None:
        return []
    effective = f", effective number {number(d.n_effective, digits=1)}" if is_finite(d.n_effective) else ""
    basis = f"{d.run} against {d.against}; {counted(record.group, d.n_groups)}{effective}"
    basis += f"; {p_words(d.p)}" if is_finite(d.p) else ""
    sides = {"above": "higher", "below": "lower", "covers": "no clear change"}
    found = sides.get(side_of(d.mean, d.low, d.high), "not established")
    size = interval(d.mean, d.low, d.high, digits=3, most=4, signed=True)
    answer = f"Primary contrast, {_what(d)}: {found}, {size} ({basis})"
    said = verdict(difference_mark(d, record.group), answer, few_words(d.n_groups, record.group))
    return [dataclasses.replace(said, primary=True)]


def no_clear_change(results: Sequence[tuple[str, Difference]], group: str | None, *, digits: int = 2) -> list[Verdict]:
    """Return all named results whose interval covers 0 in one line, a few of them by name; nothing without any."""
    if not results:
        return []
    counts = sorted({d.n_groups for _, d in results})
    basis = f"{' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} {groups_word(group, counts[-1])}"
    parts = [f"{name} {interval(d.mean, d.low, d.high, digits=digits, signed=True)}" for name, d in results]
    many = f"{len(parts)} result{'' if len(parts) == 1 else 's'}"
    named = f": {'; '.join(parts)}" if len(parts) <= NAMED_MOST else ""  # the table of differences has them all
    said = verdict("open", f"No clear change in {many} ({basis}){named}")
    return [dataclasses.replace(said, count=len(parts))]


def _place(d: Difference) -> tuple[str, str, str]:
    return d.run, d.against, d.split


def _same(d: Difference, other: Difference) -> bool:
    pairs = ((d.mean, other.mean), (d.low, other.low), (d.high, other.high))
    return all(math.isclose(a, b, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def difference_mark(d: Difference, group: str | None) -> Mark:
    """Return what a paired difference shows by its interval."""
    tested = None if is_significant(d.q) is not False else False
    few = are_few(d.n_groups, group)
    return mark_of(side_of(d.mean, d.low, d.high), tested, few=few, sought=("above", "below"))


def _what(d: Difference) -> str:
    score = f"{READERS[d.metric.reader]} score of {d.metric.concept}" if d.metric.reader else metric_name(d.metric)
    return f"{score} on {d.split}"


def difference_verdict(d: Difference, record: RunsRecord) -> Verdict:
    """Return what one paired difference shows."""
    usual = d.run == "guided" and d.against == reference_run(record)
    guiding = "guiding" if usual else f"{d.run} (against {d.against})"
    what = f"the {_what(d)}"
    if not is_finite(d.mean):
        return verdict("open", f"How {guiding} changed {what} could not be measured")
    side, mark = side_of(d.mean, d.low, d.high), difference_mark(d, record.group)
    if side == "missing":
        return verdict(
            "open", f"Open whether {guiding} changed {what}: {number(d.mean, signed=True)}, without an interval"
        )
    if side == "covers":
        size = interval(d.mean, d.low, d.high, signed=True)
        return verdict("open", f"No clear change of {what} by {guiding}: {size} ({counted(record.group, d.n_groups)})")
    verb, sign = ("raised", 1.0) if side == "above" else ("lowered", -1.0)
    if mark == "open":
        size = interval(d.mean, d.low, d.high, signed=True)
        not_significant = f"Among all secondary differences it is not significant ({p_words(d.q, 'q')})"
        few = few_words(d.n_groups, record.group)
        return verdict(mark, f"Open whether {guiding} {verb} {what}: {size}", few or not_significant)
    before, after = (_level(d, record, name) for name in (d.against, d.run))
    # The levels use all rows, the paired difference those that both runs have: where the two disagree in sign,
    # both in one sentence would contradict each other; the tables show them apart.
    moved = f", from {number(before)} to {number(after)}" if (after - before) * d.mean > 0 else ""
    subject = "Guiding" if guiding == "guiding" else guiding
    by = interval(sign * d.mean, *sorted((sign * d.low, sign * d.high)))
    return verdict(mark, f"{subject} {verb} {what} by {by}{moved} ({counted(record.group, d.n_groups)})")


def _level(d: Difference, record: RunsRecord, name: str) -> float:
    """Return the mean over seeds of the quantity of a difference, for one of its runs."""
    reader, concept = d.metric.reader, d.metric.concept
    if not reader:
        return record.over_seeds(name, "metrics", d.split, d.metric)[0]
    return record.over_seeds(name, "concepts" if reader == "probe" else "leakage", concept, reader)[0]


def _leakage_verdict(record: GuideRecord, name: str, concept: str) -> Verdict:
    *read, chance = _leakage(record, name, concept)
    network = "the guided network" if name == "guided" else f"the network of {name}"
    scores = {probe: v for probe, v in zip(("linear", "MLP", "kernel"), read, strict=True) if is_finite(v)}
    if not scores or not is_finite(chance):
        return verdict("open", f"What is left of {concept} in {network} was not measured")
    # chance is 0 for R² only: a class-wise measure of k classes has 1/k
    text = f"{'R²' if chance == 0 else 'balanced accuracy'} = "
    text += ", ".join(f"{number(v)} ({probe} probe)" for probe, v in scores.items())
    text += f", chance {'0' if chance == 0 else number(chance)}"
    reference = reference_run(record)
    before = [v for v in _leakage(record, reference, concept)[:-1] if is_finite(v)]
    if name != reference and before:
        text += f"; {reference} {number(max(before))}"
    paired = [d for d in record.differences if name in (d.run, d.against) and d.metric.concept == concept]
    n_groups = min((d.n_groups for d in paired if d.metric.reader in _REMNANTS), default=None)
    few = n_groups is None or (record.group is not None and n_groups < FEW_FOR_LEAKAGE)
    basis = "" if n_groups is None else counted(record.group, n_groups)
    text += f" ({basis or f'number of {groups_word(record.group)} not recorded'})"
    if max(scores.values()) <= chance + READABLE_ABOVE_CHANCE:
        answer = f"{concept} is not shown to be decodable from {network}: {text}"
        return verdict("open", answer, "This does not prove that it is gone")
    if few:
        why = f"{basis} are too few to decide" if basis else "Scores without an interval do not decide it"
        return verdict("open", f"Open whether {concept} is still decodable from {network}: {text}", why)
    answer = f"{concept} is still decodable from {network}: {text}"
    return verdict("associated", answer, "These scores have no interval; conceptkit audit gives one and a test")


def _leakage(record: GuideRecord, name: str, concept: str) -> list[float]:
    """Return the mean scores of the fresh probes, and chance."""
    return [record.over_seeds(name, "leakage", concept, key)[0] for key in (*_REMNANTS, "chance")]
