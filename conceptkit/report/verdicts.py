"""The report in sentences: what the rows of probe and guide show, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from conceptkit.records import Difference, GuideRecord, ProbeRecord, ProbeRow
from conceptkit.report.contents import (
    READERS,
    compared_runs,
    difference_kind,
    is_in_sample,
    networks,
    over_seeds,
    read_by,
    reference_run,
    run_names,
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
)
from conceptkit.report.wording import as_float, groups_word, interval, is_finite, metric_name, number

READABLE_ABOVE_CHANCE = 0.05
"""Without an interval or a test, a concept counts as decodable when a fresh probe scores this much above chance."""

FEW_FOR_LEAKAGE = 10
"""Below so many patients a mean score without an interval says nothing about what is left."""


# --- probe -------------------------------------------------------------------------------------------------------


def probe_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return one verdict per network and concept, that of the layer with the strongest evidence."""
    several = networks(record.rows)
    out = []
    for network in several:
        for concept in dict.fromkeys(r.concept for r in record.rows):
            rows = [r for r in record.rows if (r.model, r.weights) == network and r.concept == concept]
            if rows:
                verdict = _best_verdict(rows, record.group)
                prefix = f"{network[0]} ({network[1]}): " if len(several) > 1 else ""
                out.append(Verdict(text=prefix + verdict.text, mark=verdict.mark))
    return out


def _best_verdict(rows: Sequence[ProbeRow], group: str | None) -> Verdict:
    scored = [row for row in rows if is_finite(row.score)]
    if not scored:
        return Verdict(text=f"{rows[0].concept} could not be scored at any layer.", mark="open")
    strength = list(MARKS)
    best = max(scored, key=lambda row: (-strength.index(judge_probe(row, group).mark), row.score))
    return judge_probe(best, group, layers=len(scored))


def judge_probe(row: ProbeRow, group: str | None, *, layers: int = 1) -> Verdict:
    """Return what one row shows.

    Parameters
    ----------
    row : the numbers
    group : column of the groups; ``None``: rows were taken as independent
    layers : among how many layers the row was chosen
    """
    if not is_finite(row.score):
        return Verdict(text=f"{row.concept} could not be scored at {row.layer}.", mark="open")
    if is_in_sample(row):
        text = (
            f"The training fit of {row.concept} at {row.layer} is R² = {number(row.score)} (protocol of the paper, "
            f"{row.n} rows). It does not show what holds for other patients."
        )
        return Verdict(text=text, mark="open")
    side, few = side_of(row.score, row.score_low, row.score_high, row.chance), are_few(row.n_groups, group)
    significant = is_significant(_tested(row)[1], row.p_min)
    mark = mark_of(side, significant, few=few)
    controls = _controls(row) if mark != "open" else ""
    decoded = mark == "established"
    mark = "associated" if decoded and controls else mark
    numbers = _probe_numbers(row, side, group, layers)
    if decoded:
        lead = f"{row.concept} can be decoded from {row.layer}" if controls else f"{row.layer} encodes {row.concept}"
    elif mark == "associated":
        lead = f"{row.concept} is associated with {row.layer} ({p_words(*_tested(row)[::-1])}); size not established"
    else:
        lead = f"Open whether {row.layer} encodes {row.concept}"
    unconfirmed = significant is False and side == "above"
    caveats = [
        f"The permutation test does not confirm it ({p_words(*_tested(row)[::-1])})" if unconfirmed else "",
        few_words(row.n_groups, group) if few else "",
        controls,
        *(_conditions(row) if mark != "open" else ()),
        _odd_fit(row, group),
        "It was not compared with a randomly initialised network or with pixel statistics"
        if decoded and not is_finite(row.score_random_network) and not is_finite(row.score_pixels)
        else "",
    ]
    return Verdict(text=_sentences(f"{lead}: {numbers}", caveats), mark=mark)


def _sentences(answer: str, caveats: Sequence[str]) -> str:
    """Return the answer and the first caveat."""
    first = next((caveat for caveat in caveats if caveat), "")
    return f"{answer}. {first}." if first else f"{answer}."


def _tested(row: ProbeRow) -> tuple[str, float | None]:
    """Return the name and the value by which a row is tested: q, or p where nothing was adjusted."""
    return ("q", row.q) if is_finite(row.q) else ("p", row.p)


def _probe_numbers(row: ProbeRow, side: str, group: str | None, layers: int) -> str:
    text = f"held-out {metric_name(row.metric)} = {interval(row.score, row.score_low, row.score_high)}"
    if row.chance != 0:
        text += f", chance {number(row.chance)}"
    text += {"below": ", below chance", "missing": ", without an interval"}.get(side, "")
    basis = f"{row.n} rows taken as independent"
    if group is not None:
        basis = f"{row.n_groups} {groups_word(group, row.n_groups)}"
    return f"{text} ({basis}{f'; best supported of {layers} layers' if layers > 1 else ''})"


def _controls(row: ProbeRow) -> str:
    """Return the controls that reach the interval (or the score, without an interval) in words; empty without any."""
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
    """Give the further analyses that were requested and that do not support the score."""
    if is_finite(row.score_adjusted) and side_of(
        row.score_adjusted, row.score_adjusted_low, row.score_adjusted_high
    ) not in ("above", "missing"):
        size = interval(row.score_adjusted, row.score_adjusted_low, row.score_adjusted_high)
        yield f"Adjusted for {', '.join(row.adjusted_for)} it is open (partial R² = {size})"
    if is_finite(row.score_leave_out) and as_float(row.score_leave_out) <= row.chance:
        yield f"With each {row.leave_out} held out in turn it is not above chance ({number(row.score_leave_out)})"


def _odd_fit(row: ProbeRow, group: str | None) -> str:
    """Return what to know of a training fit below the random split or the held-out score, or of a high random split."""
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
    """Return the verdicts of a guide record: concepts, then leakage, then the main task, then what did not change."""
    said: dict[str, list[Verdict]] = {"encouraged": [], "discouraged": [], "main task": []}
    pooled = {_place(d): d for d in record.differences if d.metric == "auc"}
    unchanged: list[Difference] = []
    for d in record.differences:
        if d.metric.startswith("auc_within_") and _place(d) in pooled and _same(d, pooled[_place(d)]):
            continue  # a split with one center would be reported twice
        if side_of(d.mean, d.low, d.high) == "covers":
            unchanged.append(d)
        else:
            said[difference_kind(d)].append(_difference_verdict(d, record))
    if not record.differences:
        said["main task"].append(Verdict(text="No paired difference between runs was recorded.", mark="open"))
    order = [*said["encouraged"], *_leakage_verdicts(record), *said["discouraged"], *said["main task"]]
    return order + ([_unchanged(unchanged, record)] if unchanged else [])


def _place(d: Difference) -> tuple[str, str, str]:
    return d.run, d.against, d.split


def _same(d: Difference, other: Difference) -> bool:
    pairs = ((d.mean, other.mean), (d.low, other.low), (d.high, other.high))
    return all(math.isclose(a, b, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def difference_mark(d: Difference, group: str | None) -> Mark:
    """Return what a paired difference shows by its interval."""
    few = are_few(d.n_groups, group)
    return mark_of(side_of(d.mean, d.low, d.high), None, few=few, sought=("above", "below"))


def _what(d: Difference) -> str:
    reader, concept = read_by(d)
    what = f"{READERS[reader]} score of {concept}" if reader else metric_name(d.metric)
    return f"{what} on {d.split}"


def _guiding(d: Difference) -> str:
    return "guiding" if (d.run, d.against) == ("guided", "baseline") else f"{d.run} (against {d.against})"


def _unchanged(differences: Sequence[Difference], record: GuideRecord) -> Verdict:
    """Return all results whose interval covers 0 in one line."""
    runs = {(d.run, d.against) for d in record.differences}
    kinds = ("encouraged", "discouraged", "main task")
    differences = sorted(differences, key=lambda d: kinds.index(difference_kind(d)))
    counts = sorted({d.n_groups for d in differences})
    basis = f"{' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} {groups_word(record.group, counts[-1])}"
    parts = [
        f"{_what(d)}{f' ({d.run})' if len(runs) > 1 else ''} {interval(d.mean, d.low, d.high, signed=True)}"
        for d in differences
    ]
    results = "1 result" if len(parts) == 1 else f"{len(parts)} results"
    return Verdict(text=f"No clear change in {results} ({basis}): {'; '.join(parts)}.", mark="open")


def _difference_verdict(d: Difference, record: GuideRecord) -> Verdict:
    guiding, what = _guiding(d), f"the {_what(d)}"
    if not is_finite(d.mean):
        return Verdict(text=f"How {guiding} changed {what} could not be measured.", mark="open")
    side, mark = side_of(d.mean, d.low, d.high), difference_mark(d, record.group)
    basis = f"{d.n_groups} {groups_word(record.group, d.n_groups)}"
    size = interval(d.mean, d.low, d.high, signed=True)
    if side == "missing":
        size = number(d.mean, signed=True)
        return Verdict(text=f"Open whether {guiding} changed {what}: {size}, without an interval.", mark="open")
    verb, sign = ("raised", 1.0) if side == "above" else ("lowered", -1.0)
    if mark == "open":
        text = _sentences(f"Open whether {guiding} {verb} {what}: {size}", [few_words(d.n_groups, record.group)])
        return Verdict(text=text, mark=mark)
    levels = [_level(d, record, name) for name in (d.against, d.run)]
    # The levels use all rows, the paired difference those that both runs have: where the two disagree in sign,
    # both in one sentence would contradict each other; the tables show them apart.
    agree = (levels[1] - levels[0]) * d.mean > 0
    moved = f", from {number(levels[0])} to {number(levels[1])}" if agree else ""
    subject = "Guiding" if guiding == "guiding" else guiding
    by = interval(sign * d.mean, *sorted((sign * d.low, sign * d.high)))
    return Verdict(text=f"{subject} {verb} {what} by {by}{moved} ({basis}).", mark=mark)


def _level(d: Difference, record: GuideRecord, name: str) -> float:
    """Return the mean over seeds of what a difference is about, for one of its runs."""
    reader, concept = read_by(d)
    if reader == "probe":
        return over_seeds(record, name, lambda r: r.concepts, concept, "probe")[0]
    if reader:
        return over_seeds(record, name, lambda r: r.leakage, concept, reader)[0]
    return over_seeds(record, name, lambda r: r.metrics, d.split, d.metric)[0]


def _leakage_verdicts(record: GuideRecord) -> list[Verdict]:
    compared = compared_runs(record) or run_names(record)
    return [_leakage_verdict(record, name, concept) for concept in record.discourage for name in compared]


def _leakage_verdict(record: GuideRecord, name: str, concept: str) -> Verdict:
    linear, mlp, chance = _leakage(record, name, concept)
    network = "the guided network" if name == "guided" else f"the network of {name}"
    if not (is_finite(linear) or is_finite(mlp)) or not is_finite(chance):
        return Verdict(text=f"What is left of {concept} in {network} was not measured.", mark="open")
    scores = {"linear": linear, "MLP": mlp}
    decodable = max(v for v in scores.values() if is_finite(v)) > chance + READABLE_ABOVE_CHANCE
    # chance is 0 for R² only: a class-wise measure of k classes has 1/k
    text = f"{'R²' if chance == 0 else 'balanced accuracy'} = "
    text += ", ".join(f"{number(v)} ({probe} probe)" for probe, v in scores.items() if is_finite(v))
    text += f", chance {'0' if chance == 0 else number(chance)}"
    reference = reference_run(record)
    before = [v for v in _leakage(record, reference or "", concept)[:2] if is_finite(v)]
    if name != reference and before:
        text += f"; {reference} {number(max(before))}"
    n_groups = _leakage_groups(record, name, concept)
    few = n_groups is None or (record.group is not None and n_groups < FEW_FOR_LEAKAGE)
    counted = f"{n_groups} {groups_word(record.group, n_groups)}" if n_groups is not None else ""
    text += f" ({counted or f'number of {groups_word(record.group)} not recorded'})"
    if not decodable:
        answer = f"{concept} is not shown to be decodable from {network}: {text}"
        return Verdict(text=f"{answer}. This does not prove that it is gone.", mark="open")
    if few:
        why = f"{counted} are too few to tell" if counted else "Scores without an interval settle nothing"
        return Verdict(text=f"Open whether {concept} is still decodable from {network}: {text}. {why}.", mark="open")
    answer = f"{concept} is still decodable from {network}: {text}"
    return Verdict(
        text=f"{answer}. These scores have no interval; conceptkit audit gives one and a test.", mark="associated"
    )


def _leakage_groups(record: GuideRecord, name: str, concept: str) -> int | None:
    counts = [
        d.n_groups
        for d in record.differences
        if name in (d.run, d.against) and read_by(d) in (("linear", concept), ("mlp", concept))
    ]
    return min(counts, default=None)


def _leakage(record: GuideRecord, name: str, concept: str) -> tuple[float, float, float]:
    read = [over_seeds(record, name, lambda r: r.leakage, concept, key)[0] for key in ("linear", "mlp", "chance")]
    return read[0], read[1], read[2]
