"""The tables and verdicts of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conceptkit.records.audit import AuditRecord, AuditRow
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
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE
from conceptkit.report.wording import groups_word, interval, is_finite, metric_name, number

PROBES = {"linear": "linear", "mlp": "MLP", "kernel": "kernel"}


def audit_tables(record: AuditRecord) -> list[Table]:
    """Return the tables of a record: probes at each place, the cost of erasure, the main task within each class."""
    return [remnant_table(record), layer_table(record), *([level_table(record)] if record.levels else [])]


def remnant_table(record: AuditRecord) -> Table:
    """Return the score of every probe at every place, before and after erasure."""
    metric = metric_name(record.rows[0].metric) if record.rows else "score"
    erased = {(row.layer, row.probe): row for row in record.rows if row.erased}
    layers = dict.fromkeys(row.layer for row in record.rows)
    before = [[row for row in record.rows if row.layer == layer and not row.erased] for layer in layers]
    adjusted = {id(row): p for place in before for row, p in _adjusted(place)}
    rows = []
    for row in record.rows:
        if row.erased:
            continue
        after = erased.get((row.layer, row.probe))
        rows.append(
            {
                "layer": row.layer,
                "probe": PROBES.get(row.probe, row.probe),
                **ends(metric, row.score, row.low, row.high),
                "p": row.p,
                "verdict": judge_audit(row, adjusted[id(row)], record.group),
                **ends("erased", *((after.score, after.low, after.high) if after else (None, None, None))),
                "erased p": after.p if after else math.nan,
                "chance": row.chance,
                "rows": row.n,
                "groups": row.n_groups,
            }
        )
    return make_table(
        "audit",
        f"How well fresh probes decode {record.concept}",
        f"{metric} on held-out {groups_word(record.group)}, with a 95 % interval over them. p: permutation test of "
        "each probe by itself. Verdict: by the interval and by p adjusted for the probes of the place (Holm). Erased: "
        "after linear erasure (LEACE), fitted in each training part, with its own p.",
        rows,
    )


def layer_table(record: AuditRecord) -> Table:
    """Return the distance between the classes at each place, and the cost of erasure for the main task."""
    rows = [
        {
            "layer": one.layer,
            "A-distance": one.a_distance,
            "main label AUC": one.label_auc,
            "after erasure": one.label_auc_erased,
            "difference": one.label_auc_erased - one.label_auc,
        }
        for one in record.layers
    ]
    return make_table(
        "audit layers",
        f"The distance between classes of {record.concept}, and what erasing it costs",
        "A-distance: 2(1 − 2ε) of linear probes between two classes, from 0 (alike) to 2 (apart). Main label: AUC of a "
        "fresh linear probe, before and after the concept is erased.",
        rows,
    )


def level_table(record: AuditRecord) -> Table:
    """Return the main task's AUC over all rows and within each class of the concept."""
    rows = [{record.concept: "all", "AUC": record.auc, "rows": sum(one.n for one in record.levels)}]
    rows += [{record.concept: one.level, "AUC": one.auc, "rows": one.n} for one in record.levels]
    return make_table(
        "audit levels",
        f"Main task within each {record.concept}",
        "AUC of the network's own main output. Where the label depends on the concept, a network that relies on it "
        "scores higher over all rows than within its classes.",
        rows,
    )


def audit_verdicts(record: AuditRecord) -> list[Verdict]:
    """Return one verdict for each place that matters: the trunk's end (or last layer) and the logit."""
    layers = [one.layer for one in record.layers]
    inner = [name for name in layers if name not in ("input", "logit")]
    verdicts = [_decodable(record, name) for name in (*inner[-1:], "logit") if name in layers]
    if inner:
        verdicts.append(_after_erasure(record, inner[-1]))
    return [verdict for verdict in verdicts if verdict is not None]


def judge_audit(row: AuditRow, p: float, group: str | None) -> Mark:
    """Return what one probe shows by its interval and its p (adjusted for the probes of one place).

    Without both, a score clearly above chance shows an association.
    """
    side, few = side_of(row.score, row.low, row.high, row.chance), are_few(row.n_groups, group)
    mark = mark_of(side, is_significant(p), few=few)
    if mark == "associated" and row.score <= row.chance:  # the p of a probe that does worse than chance
        return "open"
    bare = side == "missing" and not is_finite(p) and not few
    return "associated" if bare and row.score > row.chance + READABLE_ABOVE_CHANCE else mark


def _adjusted(rows: Sequence[AuditRow]) -> list[tuple[AuditRow, float]]:
    tested = [row for row in rows if is_finite(row.p)]
    adjusted = dict(zip(map(id, tested), holm([row.p for row in tested]), strict=True))
    return [(row, adjusted.get(id(row), math.nan)) for row in rows]


def readers(rows: Sequence[AuditRow], group: str | None = None) -> list[tuple[AuditRow, float]]:
    """Return the probes of one place that decode the concept, each with its p by Holm over all of them.

    Several probes are tried, and the best of them is significant more often than one p says. Without permutations p is
    not a number.
    """
    return [(row, p) for row, p in _adjusted(rows) if judge_audit(row, p, group) != "open"]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together (Holm, 1979); statsmodels takes a thousand times as long."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - k) * values[i]))
        adjusted[i] = largest
    return adjusted


def _decodable(record: AuditRecord, layer: str) -> Verdict | None:
    rows = [row for row in record.rows if row.layer == layer and not row.erased]
    if not rows:
        return None
    judged = [(judge_audit(row, p, record.group), row, p) for row, p in _adjusted(rows)]
    strength = list(MARKS)
    # The probe with the strongest evidence, as for the layers of ``probe``.
    mark, best, p = max(
        judged, key=lambda one: (-strength.index(one[0]), one[1].score if math.isfinite(one[1].score) else -math.inf)
    )
    still = "still " if record.discouraged else ""
    probe = PROBES.get(best.probe, best.probe)
    size = (
        f"{metric_name(best.metric)} = {interval(best.score, best.low, best.high)} ({probe} probe), "
        f"chance {number(best.chance)}"
    )
    tested = f" ({p_words(p)})" if is_finite(p) else ""
    answer = {
        "established": f"{record.concept} can {still}be decoded from {layer}{tested}: {size}",
        "associated": f"{record.concept} is {still}associated with {layer}{tested}; size not established: {size}",
        "open": f"{record.concept} is not shown to be decodable from {layer}: {size}",
    }[mark]
    adversary = ""
    if record.discouraged and record.head is not None and layer != "logit":
        adversary = f"The score of the network's own adversary ({number(record.head)}) does not show that it is gone"
    gone = "This does not prove that it is gone" if mark == "open" else ""
    return verdict(mark, answer, few_words(best.n_groups, record.group), adversary, gone)


def _after_erasure(record: AuditRecord, layer: str) -> Verdict | None:
    rows = {row.probe: row for row in record.rows if row.layer == layer and row.erased}
    if "linear" not in rows:
        return None
    linear, whole = rows["linear"], next(one for one in record.layers if one.layer == layer)
    size = f"{metric_name(linear.metric)} = {interval(linear.score, linear.low, linear.high)}"
    left = judge_audit(linear, linear.p, record.group)
    answer = "is not shown to decode" if left == "open" else "still decodes"
    text = f"After linear erasure at {layer} a linear probe {answer} {record.concept}: {size}"
    others = [f"{PROBES.get(name, name)} {number(row.score)}" for name, row in rows.items() if name != "linear"]
    text += f" ({', '.join([*others, f'chance {number(linear.chance)}'])})"
    cost = f"The main label's AUC goes from {number(whole.label_auc)} to {number(whole.label_auc_erased)}"
    return verdict(left, text, cost if is_finite(whole.label_auc_erased) else "")
