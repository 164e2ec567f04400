"""What ``audit`` found, in words and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from conceptkit.records.audit import AuditRecord, AuditRow
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE, SIGNIFICANT, Verdict
from conceptkit.report.wording import groups_word, interval, is_finite, metric_name, number

PROBES = {"linear": "linear", "mlp": "MLP", "kernel": "kernel"}


def audit_tables(record: AuditRecord) -> list[Table]:
    """Return the tables of a record: what is read where, what erasure costs, the main task within each class."""
    return [remnant_table(record), layer_table(record), *([level_table(record)] if record.levels else [])]


def remnant_table(record: AuditRecord) -> Table:
    """Return the score of every probe at every place, before and after erasure."""
    metric = metric_name(record.rows[0].metric) if record.rows else "score"
    erased = {(row.layer, row.probe): row for row in record.rows if row.erased}
    rows = []
    for row in record.rows:
        if row.erased:
            continue
        after = erased.get((row.layer, row.probe))
        rows.append(
            {
                "layer": row.layer,
                "probe": PROBES.get(row.probe, row.probe),
                metric: row.score,
                f"{metric} low": row.low,
                f"{metric} high": row.high,
                "p": row.p,
                "erased": math.nan if after is None else after.score,
                "erased low": math.nan if after is None else after.low,
                "erased high": math.nan if after is None else after.high,
                "erased p": math.nan if after is None else after.p,
                "chance": row.chance,
                "rows": row.n,
                "groups": row.n_groups,
            }
        )
    return Table(
        name="audit",
        title=f"What fresh probes read of {record.concept}",
        caption=f"{metric} on held-out {groups_word(record.group)}, with a 95 % interval from resampling them. p: "
        "permutations of the concept's values that agree with the probe's held-out predictions at least as well. "
        "Erased: after LEACE, fitted in each training part, which leaves nothing linear there; erased p: the same of "
        "what is read then. Each p is of one probe alone; the sentences correct for the probes of a place.",
        frame=tidy(rows, list(rows[0]) if rows else ["layer", "probe"]),
    )


def layer_table(record: AuditRecord) -> Table:
    """Return how far the classes lie apart at each place, and what erasing the concept costs the main task."""
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
    columns = list(rows[0]) if rows else ["layer"]
    if not any(is_finite(row["A-distance"]) for row in rows):
        columns.remove("A-distance")
    return Table(
        name="audit layers",
        title=f"The distance between classes of {record.concept}, and what erasing it costs",
        caption="A-distance: 2(1 − 2ε) of linear probes that tell two classes apart, 0 alike to 2 apart. Main label: "
        "AUC of a fresh linear probe, before and after the concept is erased.",
        frame=tidy(rows, columns),
    )


def level_table(record: AuditRecord) -> Table:
    """Return the main task's AUC over all rows and within each class of the concept."""
    rows = [{record.concept: "all", "AUC": record.auc, "rows": sum(one.n for one in record.levels)}]
    rows += [{record.concept: one.level, "AUC": one.auc, "rows": one.n} for one in record.levels]
    return Table(
        name="audit levels",
        title=f"Main task within each {record.concept}",
        caption="AUC of the network's own main output. A network that relies on the concept scores higher over all "
        "rows than within its classes, where the label depends on it.",
        frame=tidy(rows, list(rows[0])),
    )


def audit_verdicts(record: AuditRecord) -> list[Verdict]:
    """Return one sentence on each place that matters: the trunk's end (or last layer) and the logit."""
    layers = [one.layer for one in record.layers]
    inner = [name for name in layers if name not in ("input", "logit")]
    verdicts = [_readable(record, name) for name in (*inner[-1:], "logit") if name in layers]
    if inner:
        verdicts.append(_after_erasure(record, inner[-1]))
    return verdicts


def is_readable(row: AuditRow) -> bool:
    """Return whether a probe reads the concept: by permutation where that was done, else clearly above chance."""
    if is_finite(row.p):
        return row.p < SIGNIFICANT and row.score > row.chance
    return row.score > row.chance + READABLE_ABOVE_CHANCE


def readers(rows: Sequence[AuditRow]) -> list[tuple[AuditRow, float]]:
    """Return the probes of one place that read the concept, each with its p by Holm over all of them.

    Whoever asks several probes and believes the luckiest is wrong more often than one p says. Where nothing was
    permuted p is not a number, and a probe reads what it scores clearly above chance.
    """
    tested = [row for row in rows if is_finite(row.p)]
    adjusted = dict(zip(map(id, tested), holm([row.p for row in tested]), strict=True))
    corrected = [(row, adjusted.get(id(row), math.nan)) for row in rows]
    return [(row, p) for row, p in corrected if is_readable(dataclasses.replace(row, p=p))]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together.

    Source
    ------
    Holm, A simple sequentially rejective multiple test procedure, 1979
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    out, largest = [0.0] * len(values), 0.0
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - k) * values[i]))
        out[i] = largest
    return out


def _readable(record: AuditRecord, layer: str) -> Verdict:
    rows = [row for row in record.rows if row.layer == layer and not row.erased]
    found = readers(rows)
    # What is said of the size is that of a probe that reads, where there is one.
    best = max([row for row, _ in found] or rows, key=lambda row: row.score if math.isfinite(row.score) else -math.inf)
    size = (
        f"{metric_name(best.metric)} {interval(best.score, best.low, best.high)} by the {PROBES[best.probe]} probe, "
        f"chance {number(best.chance)}"
    )
    own = ""
    if record.discouraged and record.head is not None and layer not in ("input", "logit"):
        own = f"; the network's own adversary scores {number(record.head)}, which is no evidence of its absence"
    if found:
        still = "still readable" if record.discouraged else "readable"
        names = ", ".join(f"{PROBES[row.probe]} p {number(p, digits=3)}" for row, p in found if is_finite(p))
        ways = f" ({names})" if names else ""
        return Verdict(text=f"{record.concept} is {still} at {layer}: {size}{ways}{own}.", tone="clear")
    text = f"No fresh probe is shown to read {record.concept} at {layer}: {size}{own}. That it is gone is not proved."
    return Verdict(text=text, tone="open")


def _after_erasure(record: AuditRecord, layer: str) -> Verdict:
    rows = {row.probe: row for row in record.rows if row.layer == layer and row.erased}
    whole = next(one for one in record.layers if one.layer == layer)
    linear = rows["linear"]
    text = f"After linear erasure at {layer} a linear probe reads {metric_name(linear.metric)} {number(linear.score)}"
    others = [f"{PROBES[name]} {number(rows[name].score)}" for name in ("mlp", "kernel") if name in rows]
    text += f" ({', '.join(others)}; chance {number(linear.chance)})"
    if is_finite(whole.label_auc_erased):
        text += f", at a cost of {number(whole.label_auc - whole.label_auc_erased)} of the main label's AUC"
        text += f" ({number(whole.label_auc)} before)"
    return Verdict(text=text + ".", tone="open" if is_readable(linear) else "clear")
