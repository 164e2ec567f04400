"""The report in sentences: what a record shows, and what it leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conceptkit.evaluate.intervals import FEW_GROUPS
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
from conceptkit.report.wording import as_float, groups_word, interval, is_finite, metric_name, number

READABLE_ABOVE_CHANCE = 0.05
"""Where no test decides, a concept is called readable when a fresh probe scores this much above chance."""

SIGNIFICANT = 0.05
"""A p or q below this is called more than chance gives."""

FEW_FOR_LEAKAGE = 10
"""Below so many patients a mean score without an interval settles nothing of what is left."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence of the summary."""

    text: str
    tone: str
    """``clear`` when the interval or the bound settles it, ``open`` when it does not."""


def _how_many(n_groups: int, group: str | None) -> str:
    words = f"{n_groups} {groups_word(group, n_groups)}"
    return f"only {words}: too few to trust the interval" if _are_few(n_groups, group) else words


def _are_few(n_groups: int, group: str | None) -> bool:
    return n_groups < FEW_GROUPS and group is not None


def probe_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return one sentence per network and concept: where it is read best, and against what."""
    several = networks(record.rows)
    concepts = list(dict.fromkeys(r.concept for r in record.rows))
    out = []
    for network in several:
        for concept in concepts:
            rows = [r for r in record.rows if (r.model, r.weights) == network and r.concept == concept]
            if rows:
                verdict = _probe_verdict(rows, record.group)
                prefix = f"{network[0]} ({network[1]}): " if len(several) > 1 else ""
                out.append(Verdict(text=prefix + verdict.text, tone=verdict.tone))
    return out


def _paper_verdict(row: ProbeRow) -> Verdict:
    text = (
        f"{row.concept} at {row.layer}: R² {number(row.score)} in sample, by the paper's protocol (least squares "
        f"fitted and scored on the same {row.n} rows); no evidence of what holds on other patients."
    )
    return Verdict(text=text, tone="open")


def _probe_verdict(rows: Sequence[ProbeRow], group: str | None) -> Verdict:
    scored = [r for r in rows if is_finite(r.score)]
    if not scored:
        return Verdict(text=f"{rows[0].concept} could not be scored at any layer.", tone="open")
    best = max(scored, key=lambda r: r.score)
    if is_in_sample(best):
        return _paper_verdict(best)
    measure, chance = metric_name(best.metric), "0" if best.chance == 0 else number(best.chance)
    score = interval(best.score, best.score_low, best.score_high)
    layers = "" if len(scored) == 1 else f" (the best of {len(scored)} layers)"
    readable = best.score_low > best.chance
    if readable:
        text = f"{best.concept} is readable at {best.layer}{layers}: held-out {measure} {score}"
    elif is_finite(best.score_low):
        text = f"{best.concept} is not shown to be readable at {best.layer}{layers}: held-out {measure} {score}"
    else:
        text = f"{best.concept} at {best.layer}{layers} has no interval to judge by: held-out {measure} {score}"
    random = best.score_random_network
    learned = True
    if is_finite(random):
        text += f", against {number(random)} for the same network with random weights"
        learned = not best.score_low <= as_float(random)
        if readable and not learned:
            text += ", which the interval does not exclude: it need not have been learned"
    if readable and is_finite(best.score_pixels) and best.score_low <= as_float(best.score_pixels):
        as_well = as_float(best.score_pixels) >= best.score
        text += f"; plain statistics of the pixels reach {number(best.score_pixels)}, "
        text += "so that no network is needed for it" if as_well else "which the interval does not exclude"
        learned = False
    elsewhere = [] if learned else [r.layer for r in scored if r is not best and _stands_out(r)]
    if readable and elsewhere:
        text += f"; at {', '.join(elsewhere)} the interval lies above these"
    text += f"; chance is {chance}"
    claims = []
    if group is not None and is_finite(best.score_patchwise):
        more = " would have claimed" if as_float(best.score_patchwise) > best.score else ":"
        claims.append(f"ignoring {groups_word(group)}{more} {number(best.score_patchwise)}")
    if is_finite(best.score_in_sample):
        claims.append(f"scoring in sample {number(best.score_in_sample)}")
    if claims:
        text += "; " + ", ".join(claims)
    of = f"of {_how_many(best.n_groups, group)}" if group is not None else "taken as independent"
    text += f" ({best.n} rows {of})."
    settled = readable and learned and not _are_few(best.n_groups, group)
    return Verdict(text=text, tone="clear" if settled else "open")


def _stands_out(row: ProbeRow) -> bool:
    """Tell whether the whole interval lies above chance, the random networks and the pixels."""
    controls = [row.chance, as_float(row.score_random_network), as_float(row.score_pixels)]
    return row.score_low > max(c for c in controls if is_finite(c))


def guide_verdicts(record: GuideRecord) -> list[Verdict]:
    """Return the sentences of a guide record: concepts, then leakage, then the main task per split."""
    said: dict[str, list[Verdict]] = {"encouraged": [], "discouraged": [], "main task": []}
    pooled = {_place(d): d for d in record.differences if d.metric == "auc"}
    for d in record.differences:
        if d.metric.startswith("auc_within_") and _place(d) in pooled and _same(d, pooled[_place(d)]):
            continue  # of a split with one center alone: it would be said twice
        said[difference_kind(d)].append(_difference_verdict(d, record))
    none = [] if record.differences else [Verdict(text="No paired difference between runs was recorded.", tone="open")]
    return said["encouraged"] + _leakage_verdicts(record) + said["discouraged"] + said["main task"] + none


def _place(d: Difference) -> tuple[str, str, str]:
    return d.run, d.against, d.split


def _same(d: Difference, other: Difference) -> bool:
    pairs = ((d.mean, other.mean), (d.low, other.low), (d.high, other.high))
    return all(math.isclose(a, b, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def _difference_verdict(d: Difference, record: GuideRecord) -> Verdict:
    guiding = "guiding" if (d.run, d.against) == ("guided", "baseline") else f"{d.run} (against {d.against})"
    reader, concept = read_by(d)
    names = (d.against, d.run)
    if reader == "probe":
        what = f"the held-out probe score of {concept} on {d.split}"
        levels = [over_seeds(record, name, lambda r: r.concepts, concept, "probe")[0] for name in names]
    elif reader:
        what = f"what a fresh {READERS[reader]} reads of {concept} on {d.split}"
        levels = [over_seeds(record, name, lambda r: r.leakage, concept, reader)[0] for name in names]
    else:
        what = f"the {metric_name(d.metric)} on {d.split}"
        levels = [over_seeds(record, name, lambda r: r.metrics, d.split, d.metric)[0] for name in names]
    if not is_finite(d.mean):
        return Verdict(text=f"How {guiding} changed {what} could not be measured.", tone="open")
    # The levels rest on all rows, the paired difference on those that both runs have: where the two disagree in sign,
    # both in one sentence would contradict each other; the tables show them apart.
    agree = (levels[1] - levels[0]) * d.mean > 0
    moved = f", from {number(levels[0])} to {number(levels[1])}" if agree else ""
    over = f" ({_how_many(d.n_groups, record.group)})."
    if not (is_finite(d.low) and is_finite(d.high)):
        size = number(d.mean, signed=True)
        return Verdict(
            text=f"{_upper(guiding)} moved {what} by {size}{moved}, without an interval to judge by.", tone="open"
        )
    if d.low <= 0 <= d.high:
        size = interval(d.mean, d.low, d.high, signed=True)
        text = f"{_upper(guiding)} did not clearly change {what}: {size}, the interval covers 0{over}"
        return Verdict(text=text, tone="open")
    verb, sign = ("raised", 1.0) if d.mean > 0 else ("lowered", -1.0)
    ends = sorted((sign * d.low, sign * d.high))
    text = f"{_upper(guiding)} {verb} {what} by {interval(sign * d.mean, *ends)}{moved}{over}"
    return Verdict(text=text, tone="open" if _are_few(d.n_groups, record.group) else "clear")


def _upper(text: str) -> str:
    """Return ``text`` with a capital when it is our word, and as it is when it is a run's name."""
    return "Guiding" if text == "guiding" else text


def _leakage_verdicts(record: GuideRecord) -> list[Verdict]:
    reference = reference_run(record)
    compared = compared_runs(record) or run_names(record)
    out = []
    for concept in record.discourage:
        for name in compared:
            linear, mlp, chance = _leakage(record, name, concept)
            network = "the guided network" if name == "guided" else f"the network of {name}"
            if not (is_finite(linear) or is_finite(mlp)) or not is_finite(chance):
                out.append(Verdict(text=f"What is left of {concept} in {network} was not measured.", tone="open"))
                continue
            best = max(v for v in (linear, mlp) if is_finite(v))
            readable = best > chance + READABLE_ABOVE_CHANCE
            # chance is 0 for R² alone: a class-wise measure of k classes has 1/k
            measure = "R²" if chance == 0 else "balanced accuracy"
            state = "is still readable from" if readable else "is near chance in"
            text = f"{concept} {state} {network}: {measure} {number(linear)} linear, {number(mlp)} MLP"
            text += f", chance {'0' if chance == 0 else number(chance)}"
            before = [v for v in _leakage(record, reference or "", concept)[:2] if is_finite(v)]
            if name != reference and before:
                text += f" ({reference} {number(max(before))})"
            words, tone = _leakage_basis(record, name, concept, readable)
            out.append(Verdict(text=f"{text}; {words}.", tone=tone))
    return out


def _leakage_basis(record: GuideRecord, name: str, concept: str, readable: bool) -> tuple[str, str]:
    """Return the bound that decided and the number of patients behind it, and the tone that these allow."""
    side = "above" if readable else "within"
    bound = f"{side} the bound of {READABLE_ABOVE_CHANCE:g} {'over' if readable else 'of'} chance"
    counts = [
        d.n_groups
        for d in record.differences
        if name in (d.run, d.against) and read_by(d) in (("linear", concept), ("mlp", concept))
    ]
    if not counts:
        return f"{bound}, number of {groups_word(record.group)} not recorded", "open"
    few = record.group is not None and min(counts) < FEW_FOR_LEAKAGE
    words = f"{min(counts)} {groups_word(record.group, min(counts))}"
    return f"{bound}, {f'only {words}' if few else words}", "open" if few else "clear"


def _leakage(record: GuideRecord, name: str, concept: str) -> tuple[float, float, float]:
    read = [over_seeds(record, name, lambda r: r.leakage, concept, key)[0] for key in ("linear", "mlp", "chance")]
    return read[0], read[1], read[2]
