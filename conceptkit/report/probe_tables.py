"""The tables of a probe: scores by layer and concept, and the controls and baselines next to them."""

from __future__ import annotations

import math
from typing import Any

from conceptkit.options.probe import NO_CENTER
from conceptkit.records import ProbeRecord, ProbeRow
from conceptkit.report.contents import is_in_sample, networks
from conceptkit.report.encoder_tables import encoder_tables
from conceptkit.report.meaning_tables import meaning_table
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.verdicts import judge_probe
from conceptkit.report.wording import as_float, groups_word, metric_name

_COUNTS = {"rows": "n", "groups": "n_groups", "folds": "folds"}
"""Column → field of the record's rows that it holds"""

_NETWORK = frozenset(("encoder", "model", "weights"))
"""Columns of a row's network"""


def _place(row: ProbeRow) -> dict[str, Any]:
    network = {"model": row.model, "weights": row.weights} if row.encoder is None else {"encoder": row.encoder}
    return {**network, "layer": row.layer, "concept": row.concept}


def probe_table(record: ProbeRecord) -> Table:
    """Return every layer and concept with all its scores."""
    metrics = {metric_name(r.metric) for r in record.rows}
    several, grouped = len(networks(record.rows)) > 1, record.group is not None
    rows = [
        {
            **_place(r),
            "verdict": judge_probe(r, record.group).mark,
            **ends("held out", math.nan if is_in_sample(r) else r.score, r.score_low, r.score_high),
            **ends("AUC", r.auc, r.auc_low, r.auc_high),
            **ends("adjusted", r.score_adjusted, r.score_adjusted_low, r.score_adjusted_high),
            "left out": as_float(r.score_leave_out),
            "ceiling": as_float(r.ceiling),
            "random network": as_float(r.score_random_network),
            "gain over random": math.nan if is_in_sample(r) else r.score - as_float(r.score_random_network),
            "random split": r.score_patchwise,
            "training fit": r.score_in_sample,
            "chance": r.chance,
            "metric": metric_name(r.metric),
            "rows": r.n,
            "groups": r.n_groups,
            "folds": r.folds,
            "alpha": r.alpha,
        }
        for r in record.rows
    ]
    without = {"metric"} if len(metrics) == 1 else set()
    without |= set() if several else _NETWORK  # a single network is named once, in the caption
    without |= set() if grouped else {"random split", "groups"}
    of = "" if several or not rows else f" Network: {record.rows[0].model}, weights {record.rows[0].weights}."
    of += f" Scores are {next(iter(metrics))}." if len(metrics) == 1 else ""
    if any(r.auc is not None for r in record.rows):
        of += " AUC: of the same predictions of classes, with its own 95 % interval."
    counts = {name: {getattr(r, field) for r in record.rows} for name, field in _COUNTS.items() if name not in without}
    shared: dict[str, int] = {name: values.pop() for name, values in counts.items() if len(values) == 1}
    if shared:
        words = {**dict.fromkeys(shared, ""), "groups": groups_word(record.group, shared.get("groups", 2))}
        of += f" Every score uses {', '.join(f'{n} {words[name] or name}' for name, n in shared.items())}."
    patients = groups_word(record.group)
    split = f"no {groups_word(record.group, 1)} on both sides of a fold" if grouped else "rows treated as independent"
    has_centers = record.settings.get("center") not in (None, NO_CENTER) or record.settings.get("centers")
    same = " of the same centers" if has_centers else ""
    return make_table(
        "probe",
        "What each layer encodes of each concept",
        f"Held out: pooled out-of-fold predictions, {split}, with a 95 % interval for new {patients}{same}.{of} "
        "Verdict: established (the interval excludes chance, the test agrees, no control reaches the interval), "
        "associated (a relation of unknown size or source) or open. Random network: the same architecture, randomly "
        f"initialised. Training fit (in sample){' and random split (patients mixed)' if grouped else ''}: for "
        f"comparison only; they do not describe new {patients}. Each has its own penalty, so the training fit may be "
        "the lower one. Alpha: ridge penalty of the vector fitted on all rows.",
        rows,
        without=without,
        unshown=shared,
    )


def control_table(record: ProbeRecord) -> Table:
    """Return the controls of every score: baselines, random concepts and permutation tests."""
    rows = [
        {
            **_place(r),
            "pixels": as_float(r.score_pixels),
            **ends("gain over baselines", r.r2_above_baseline, r.r2_above_baseline_low, r.r2_above_baseline_high),
            "random concepts": as_float(r.score_random_concept),
            "selectivity": as_float(r.selectivity),
            "shuffled": as_float(r.score_shuffled),
            "p": as_float(r.p),
            "p within": as_float(r.p_within),
            "least p": as_float(r.p_min),
            "q": as_float(r.q),
            "permuted": r.permuted or "",
            "ICC": as_float(r.icc),
            "cosine": as_float(r.cosine),
        }
        for r in record.rows
    ]
    return make_table(
        "controls",
        "Controls and baselines",
        "Pixels: raw pixel and colour statistics, by the same procedure. Gain over baselines: the score minus the best "
        "of chance, random network and pixels, with a 95 % interval (paired; the lowest of each end over the "
        "baselines). Random concepts have the concept's intra-class correlation (ICC) and no meaning; selectivity: the "
        "score minus the larger of theirs and chance. Shuffled: the concept's own values in another order. p tests "
        "whether there is any relation, by permutations at the level at which the concept varies (permuted; p within: "
        "inside groups). The interval describes its size on other groups, so it may cover 0 although p is small: the "
        "verdict is then associated. Least p is the smallest possible p; q is p adjusted for everything probed "
        "(Benjamini and Hochberg). Cosine: mean between the directions of the folds.",
        rows,
        without=() if len(networks(record.rows)) > 1 else _NETWORK,
        details=True,
    )


def probe_tables(record: ProbeRecord) -> list[Table]:
    """Return the tables of a record: encoders side by side, scores, meanings and controls, where they were computed."""
    controlled = any(r.score_random_concept is not None or r.p is not None for r in record.rows)
    meanings = [meaning_table(record)] if record.meanings else []
    controls = [control_table(record)] if controlled else []
    return [*encoder_tables(record), probe_table(record), *meanings, *controls]
