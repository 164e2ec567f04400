"""The tables of a probe: scores by layer and concept, and what they have to be read against."""

from __future__ import annotations

import math

from conceptkit.records import ProbeRecord
from conceptkit.report.contents import is_in_sample, networks
from conceptkit.report.table import Table, tidy
from conceptkit.report.wording import as_float, groups_word, is_finite, metric_name

_COUNTS = {"rows": "n", "groups": "n_groups", "folds": "folds"}
"""Column → field of the record's rows that it holds"""


def probe_table(record: ProbeRecord) -> Table:
    """Return every layer and concept with all scores of it."""
    metrics = {metric_name(r.metric) for r in record.rows}
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "held out": math.nan if is_in_sample(r) else r.score,
            "held out low": r.score_low,
            "held out high": r.score_high,
            "AUC": as_float(r.auc),
            "AUC low": as_float(r.auc_low),
            "AUC high": as_float(r.auc_high),
            "adjusted": as_float(r.score_adjusted),
            "adjusted low": as_float(r.score_adjusted_low),
            "adjusted high": as_float(r.score_adjusted_high),
            "left out": as_float(r.score_leave_out),
            "ceiling": as_float(r.ceiling),
            "random network": as_float(r.score_random_network),
            "above random": math.nan if is_in_sample(r) else r.score - as_float(r.score_random_network),
            "ignoring groups": r.score_patchwise if record.group is not None else math.nan,
            "in sample": r.score_in_sample,
            "chance": r.chance,
            "metric": metric_name(r.metric),
            "rows": r.n,
            "groups": r.n_groups,
            "folds": r.folds,
            "alpha": r.alpha,
        }
        for r in record.rows
    ]
    columns = list(rows[0]) if rows else ["layer", "concept", "held out"]
    # one network is named once, in the caption, not in every row
    dropped = {"metric"} if len(metrics) == 1 else set()
    dropped |= set() if several else {"model", "weights"}
    unasked = {n for n in ("AUC", "adjusted", "left out", "ceiling") if not any(is_finite(row[n]) for row in rows)}
    dropped |= unasked | {f"{name} {end}" for name in unasked for end in ("low", "high")}
    dropped |= set() if record.group is not None else {"ignoring groups", "groups"}
    of = "" if several or not rows else f" Network: {record.rows[0].model}, weights {record.rows[0].weights}."
    of += f" Scores are {next(iter(metrics))}." if len(metrics) == 1 else ""
    of += "" if "AUC" in unasked else " AUC: of the same predictions of classes, with its own 95 % interval."
    counts = {name: {getattr(r, field) for r in record.rows} for name, field in _COUNTS.items() if name not in dropped}
    shared: dict[str, int] = {name: values.pop() for name, values in counts.items() if len(values) == 1}
    if shared:
        groups = groups_word(record.group, 1 if shared.get("groups") == 1 else 2)
        words = {"rows": "rows", "groups": groups, "folds": "folds"}
        of += f" Every score rests on {', '.join(f'{n} {words[name]}' for name, n in shared.items())}."
    apart = (
        f"no {groups_word(record.group, 1)} on both sides of a fold" if record.group else "rows taken as independent"
    )
    return Table(
        name="probe",
        title="What each layer knows of each concept",
        caption=f"Held out: pooled out-of-fold predictions, {apart}, with a 95 % interval over "
        f"{groups_word(record.group)}.{of} Random network: the same architecture with random weights. "
        "In sample and ignoring groups are what a careless analysis would report; they are no evidence. Each has a "
        "penalty of its own, so that either may be the higher one. "
        "Alpha is the ridge penalty of the vector fitted on all rows.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
        unshown=frozenset(shared),
    )


def control_table(record: ProbeRecord) -> Table:
    """Return what every score has to be read against: baselines, made-up concepts and permutations."""
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "pixels": as_float(r.score_pixels),
            "above baseline": as_float(r.r2_above_baseline),
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
    columns = list(rows[0]) if rows else ["layer", "concept"]
    optional = ("pixels", "p", "p within", "least p", "q", "ICC")
    dropped = {name for name in optional if not any(is_finite(row[name]) for row in rows)}
    dropped |= set() if several else {"model", "weights"}
    return Table(
        name="controls",
        title="What the scores have to be read against",
        caption="Pixels: raw pixel and colour statistics, by the same procedure. Above baseline: the score less the "
        "best of chance, random network and pixels. Random concepts have the concept's intra-class correlation (ICC) "
        "and mean nothing; selectivity is the score less theirs, and above 1 where theirs is below 0. Shuffled: the "
        "concept's own values in another order. p asks whether there is any relation at all, by permutations at the "
        "level at which the concept varies (permuted; p within: inside groups); the interval asks how large it is on "
        "other groups, and may cover 0 beside a small p. Least p is the smallest that p could be, q is p adjusted for "
        "everything probed (Benjamini and Hochberg). Cosine: mean between the directions that the folds found.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
    )
