"""The tables of a probe: scores by layer and concept, and the controls and baselines beside them."""

from __future__ import annotations

import math

from conceptkit.records import ProbeRecord
from conceptkit.report.contents import is_in_sample, networks
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import judge_probe
from conceptkit.report.wording import as_float, groups_word, is_finite, metric_name

_COUNTS = {"rows": "n", "groups": "n_groups", "folds": "folds"}
"""Column → field of the record's rows that it holds"""


def probe_table(record: ProbeRecord) -> Table:
    """Return every layer and concept with all its scores."""
    metrics = {metric_name(r.metric) for r in record.rows}
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "verdict": judge_probe(r, record.group).mark,
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
            "gain over random": math.nan if is_in_sample(r) else r.score - as_float(r.score_random_network),
            "random split": r.score_patchwise if record.group is not None else math.nan,
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
    columns = list(rows[0]) if rows else ["layer", "concept", "held out"]
    # a single network is named once, in the caption
    dropped = {"metric"} if len(metrics) == 1 else set()
    dropped |= set() if several else {"model", "weights"}
    absent = {n for n in ("AUC", "adjusted", "left out", "ceiling") if not any(is_finite(row[n]) for row in rows)}
    dropped |= absent | {f"{name} {end}" for name in absent for end in ("low", "high")}
    dropped |= set() if record.group is not None else {"random split", "groups"}
    of = "" if several or not rows else f" Network: {record.rows[0].model}, weights {record.rows[0].weights}."
    of += f" Scores are {next(iter(metrics))}." if len(metrics) == 1 else ""
    of += "" if "AUC" in absent else " AUC: of the same predictions of classes, with its own 95 % interval."
    counts = {name: {getattr(r, field) for r in record.rows} for name, field in _COUNTS.items() if name not in dropped}
    shared: dict[str, int] = {name: values.pop() for name, values in counts.items() if len(values) == 1}
    if shared:
        groups = groups_word(record.group, 1 if shared.get("groups") == 1 else 2)
        words = {"rows": "rows", "groups": groups, "folds": "folds"}
        of += f" Every score uses {', '.join(f'{n} {words[name]}' for name, n in shared.items())}."
    split = (
        f"no {groups_word(record.group, 1)} on both sides of a fold" if record.group else "rows taken as independent"
    )
    same = " of the same centers" if record.settings.get("center") or record.settings.get("centers") else ""
    return Table(
        name="probe",
        title="What each layer encodes of each concept",
        caption=f"Held out: pooled out-of-fold predictions, {split}, with a 95 % interval for new "
        f"{groups_word(record.group)}{same}.{of} Verdict: established (the interval excludes chance, the test agrees, "
        "no control reaches the interval), associated (a relation of unknown size or source) or open. Random network: "
        "the same architecture, randomly initialised. Training fit (in sample)"
        f"{' and random split (patients mixed)' if record.group else ''}: for comparison only; they do not describe "
        f"new {groups_word(record.group)}. Each has its own penalty, so the training fit may be the lower one. "
        "Alpha: ridge penalty of the vector fitted on all rows.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
        unshown=frozenset(shared),
    )


def control_table(record: ProbeRecord) -> Table:
    """Return the controls of every score: baselines, random concepts and permutation tests."""
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "pixels": as_float(r.score_pixels),
            "gain over baselines": as_float(r.r2_above_baseline),
            "gain over baselines low": as_float(r.r2_above_baseline_low),
            "gain over baselines high": as_float(r.r2_above_baseline_high),
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
        title="Controls and baselines",
        caption="Pixels: raw pixel and colour statistics, by the same procedure. Gain over baselines: the score minus "
        "the best of chance, random network and pixels, with a 95 % interval (paired; the lowest of each end over the "
        "baselines). Random concepts have the concept's intra-class correlation (ICC) and no meaning; selectivity: the "
        "score minus the larger of theirs and chance. Shuffled: the concept's own values in "
        "another order. p tests whether there is any relation, by permutations at the level at which the concept "
        "varies (permuted; p within: inside groups). The interval describes its size on other groups, so it may cover "
        "0 beside a small p: the verdict is then associated. Least p is the smallest possible p; q is p adjusted for "
        "everything probed (Benjamini and Hochberg). Cosine: mean between the directions of the folds.",
        frame=tidy(rows, [c for c in columns if c not in dropped]),
    )
