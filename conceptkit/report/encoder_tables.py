"""Encoders side by side: the matrix of scores with ties, the paired differences, and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from conceptkit.records import ProbeRecord, ProbeRow
from conceptkit.records.probe import EncoderDifference
from conceptkit.report.judging import (
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
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.wording import as_float, counted, groups_word, interval, is_finite, metric_name


def judge_difference(d: EncoderDifference, group: str | None) -> Mark:
    """Return what the interval and the test of a difference show together."""
    few = are_few(d.n_groups, group)
    return mark_of(side_of(d.mean, d.low, d.high), is_significant(d.q), few=few, sought=("above", "below"))


def _shown(d: EncoderDifference, group: str | None) -> bool:
    return judge_difference(d, group) == "established"


def _rows_of(record: ProbeRecord) -> dict[tuple[str, str], dict[str, ProbeRow]]:
    """Return concept and layer → encoder → its row; layers that are compared in their order share a place."""
    names: dict[tuple[str, str], str] = {}
    for d in record.differences:
        name = d.layer if d.layer == d.against_layer else f"{d.layer} / {d.against_layer}"
        for place in ((d.encoder, d.layer), (d.against, d.against_layer)):
            names.setdefault(place, name)
    found: dict[tuple[str, str], dict[str, ProbeRow]] = {}
    for row in record.rows:
        if row.encoder is not None:
            place = row.concept, names.get((row.encoder, row.layer), row.layer)
            found.setdefault(place, {})[row.encoder] = row
    return found


def best_encoders(rows: Mapping[str, ProbeRow], record: ProbeRecord) -> list[str]:
    """Return the encoder with the highest score at one place, and those that are not shown to score lower."""
    scored = {name: row for name, row in rows.items() if is_finite(row.score)}
    if not scored:
        return []
    best = max(scored, key=lambda name: scored[name].score)
    lower = set()
    for d in record.differences:
        one, other = rows.get(d.encoder), rows.get(d.against)
        places = (d.layer, d.against_layer, d.concept)
        if one is None or other is None or places != (one.layer, other.layer, one.concept):
            continue
        if best in (d.encoder, d.against) and _shown(d, record.group):
            lower |= {d.encoder, d.against} - {best}
    return [best, *(name for name in scored if name != best and name not in lower)]


def _any_above_chance(rows: Mapping[str, ProbeRow]) -> bool:
    return any(side_of(row.score, row.score_low, row.score_high, row.chance) == "above" for row in rows.values())


def matrix_table(record: ProbeRecord) -> Table:
    """Return the score of every encoder by concept and layer, with the best one or the tie."""
    rows = []
    encoders = list(dict.fromkeys(row.encoder for row in record.rows if row.encoder is not None))
    for (concept, layer), by in _rows_of(record).items():
        best = best_encoders(by, record)
        cells: dict[str, object] = {"concept": concept, "layer": layer}
        named = best[0] if len(best) == 1 else f"tie: {', '.join(best)}" if _any_above_chance(by) else "none"
        for name in encoders:
            row = by.get(name)
            cells |= ends(name, *((None,) * 3 if row is None else (row.score, row.score_low, row.score_high)))
        rows.append(cells | {"best": named if best else ""})
    metrics = ", ".join(dict.fromkeys(metric_name(row.metric) for row in record.rows))
    without = {"layer"} if len({row["layer"] for row in rows}) == 1 else set()
    return make_table(
        "encoders",
        "Encoders by concept",
        f"Held-out scores ({metrics}) with 95 % intervals, on the same rows and folds. Best: the highest score; a tie "
        "names every encoder whose paired difference to it is not established (interval excludes 0, q < 0.05). None: "
        "no interval lies above chance. "
        "Overlapping intervals of two scores do not decide this: the difference is paired.",
        rows,
        without=without,
    )


def difference_table(record: ProbeRecord) -> Table:
    """Return the paired differences between encoders."""
    rows = [
        {
            "concept": d.concept,
            "encoder": d.encoder,
            "against": d.against,
            "layer": d.layer if d.layer == d.against_layer else f"{d.layer} / {d.against_layer}",
            "metric": metric_name(d.metric),
            **ends("difference", d.mean, d.low, d.high),
            "p": as_float(d.p),
            "q": as_float(d.q),
            groups_word(record.group): d.n_groups,
            "verdict": judge_difference(d, record.group),
        }
        for d in record.differences
    ]
    units = groups_word(record.group)
    return make_table(
        "encoder differences",
        "Paired differences between encoders",
        f"Score of the encoder minus that of the other, with a 95 % interval for models fitted on other {units}: each "
        f"of the {units} is deleted from training parts and scored rows of both encoders, and the models are refitted. "
        "q is p adjusted for all differences of the call (Benjamini and Hochberg).",
        rows,
        without={"layer"} if len({row["layer"] for row in rows}) == 1 else (),
    )


def encoder_tables(record: ProbeRecord) -> list[Table]:
    """Return the tables on encoders; none where none were compared."""
    return [matrix_table(record), difference_table(record)] if record.differences else []


def encoder_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return, for each concept and layer, which encoder encodes it better, or which are tied."""
    out = []
    several = len({layer for _, layer in _rows_of(record)}) > 1
    for (concept, layer), by in _rows_of(record).items() if record.differences else ():
        best = best_encoders(by, record)
        if len(by) < 2 or not best:
            continue
        what = f"{concept} at {layer}" if several else concept
        n_groups = by[best[0]].n_groups
        if len(best) > 1 and not _any_above_chance(by):
            text = f"No encoder is shown to encode {what}: the interval of each score reaches chance"
            out.append(verdict("open", text, few_words(n_groups, record.group)))
            continue
        if len(best) > 1:
            text = f"Tie for {what}: {', '.join(best)}{_size(best[0], best[1], concept, by, record)}"
            few = few_words(n_groups, record.group)
            out.append(verdict("open", text, few, "This does not show that they are equal"))
            continue
        others = [name for name in by if name != best[0]]
        size = _size(best[0], others[0], concept, by, record) if len(others) == 1 else ""
        text = f"{best[0]} encodes {what} better than {' and '.join(others)}{size}"
        out.append(verdict("established", f"{text} ({counted(record.group, n_groups)})"))
    return out


def _size(one: str, other: str, concept: str, by: Mapping[str, ProbeRow], record: ProbeRecord) -> str:
    """Return the difference of two encoders in words, after a colon; empty where it was not measured."""
    for d in record.differences:
        sign = {(one, other): 1.0, (other, one): -1.0}.get((d.encoder, d.against))
        if sign is None or (d.concept, d.layer, d.against_layer) != (concept, by[d.encoder].layer, by[d.against].layer):
            continue
        size = interval(sign * d.mean, *sorted((sign * d.low, sign * d.high)), signed=True)
        return f": {one} − {other}, {metric_name(d.metric)} {size}, {p_words(d.q, 'q')}"
    return ""
