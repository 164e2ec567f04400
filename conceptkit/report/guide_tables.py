"""The tables of guided training: concepts, leakage, main task, differences."""

from __future__ import annotations

import math

from conceptkit.records import GuideRecord
from conceptkit.report.contents import compared_runs, difference_name, names_in, over_seeds, reference_run, run_names
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import difference_mark
from conceptkit.report.wording import MISSING, f1_words, groups_word, metric_name, with_unit


def comparison_table(record: GuideRecord) -> Table:
    """Return the encouraged concepts, reference beside compared runs (the paper's Table 6, held out)."""
    reference, compared = reference_run(record), compared_runs(record)
    single = len(compared) == 1
    probe, head = (f"{compared[0]} probe", f"{compared[0]} head") if single else ("probe", "head")
    before = f"{reference} probe"
    differences = {(d.run, d.metric): d for d in record.differences if d.against == reference}
    rows = []
    for concept in names_in(record, record.encourage, lambda r: r.concepts):
        for name in compared or [""]:  # a single run is shown without a comparison
            row: dict[str, object] = {"concept": with_unit(concept, record.units)}
            row["run"] = name or MISSING
            row[before], row[f"{before} sd"] = over_seeds(
                record, reference or "", lambda r: r.concepts, concept, "probe"
            )
            row[probe], row[f"{probe} sd"] = over_seeds(record, name, lambda r: r.concepts, concept, "probe")
            row[head], row[f"{head} sd"] = over_seeds(record, name, lambda r: r.concepts, concept, "head")
            d = differences.get((name, f"probe:{concept}"))
            row["difference"], row["difference low"], row["difference high"] = (
                (d.mean, d.low, d.high) if d else (math.nan, math.nan, math.nan)
            )
            row["verdict"] = difference_mark(d, record.group) if d else ""
            rows.append(row)
    columns = list(rows[0]) if rows else ["concept", "run", before, probe, head, "difference", "verdict"]
    return Table(
        name="concepts",
        title="Encouraged concepts, before and after",
        caption=f"Held-out scores on {record.evaluated_on}: R² for continuous concepts, balanced accuracy for "
        "categorical ones. Probe: a fresh linear probe on the frozen network; head: the network's own output. "
        f"Mean{_seeds_words(record)}. Difference: probe, paired over the same rows, with a 95 % interval "
        f"over {groups_word(record.group)}. Verdict: of the difference.",
        frame=tidy(rows, [c for c in columns if not (single and c == "run")]),
    )


def _seeds_words(record: GuideRecord) -> str:
    seeds = len({run.seed for run in record.runs})
    return f" ± SD over {seeds} seeds" if seeds > 1 else " of one seed"


def main_task_table(record: GuideRecord) -> Table:
    """Return the main task's scores, one row per split and run."""
    several = len({run.seed for run in record.runs}) > 1
    rows = []
    for split in names_in(record, (), lambda r: r.metrics):
        for name in run_names(record):
            row: dict[str, object] = {"split": split, "run": name}
            for metric in ("auc", "f1", "balanced_accuracy"):
                shown_as = metric_name(metric)
                row[shown_as], row[f"{shown_as} sd"] = over_seeds(record, name, lambda r: r.metrics, split, metric)
            row["seeds"] = sum(run.name == name and split in run.metrics for run in record.runs)
            rows.append(row)
    columns = list(rows[0]) if rows else ["split", "run", "AUC", "F1", "balanced accuracy", "seeds"]
    return Table(
        name="main-task",
        title="Main task",
        caption=f"Mean{_seeds_words(record)}."
        + (" The SD is the spread over refits." if several else "")
        + f" The intervals of the differences show the uncertainty over {groups_word(record.group)}."
        + f1_words(record.settings),
        frame=tidy(rows, columns),
        digits=3,
    )


def leakage_table(record: GuideRecord) -> Table:
    """Return how well fresh probes still decode the discouraged concepts."""
    rows = []
    for concept in names_in(record, record.discourage, lambda r: r.leakage):
        for name in run_names(record):
            row: dict[str, object] = {"concept": concept, "run": name}
            for key, column in (("linear", "linear probe"), ("mlp", "MLP probe")):
                row[column], row[f"{column} sd"] = over_seeds(record, name, lambda r: r.leakage, concept, key)
            row["chance"] = over_seeds(record, name, lambda r: r.leakage, concept, "chance")[0]
            rows.append(row)
    columns = list(rows[0]) if rows else ["concept", "run", "linear probe", "MLP probe", "chance"]
    return Table(
        name="leakage",
        title="Discouraged concepts: what is left",
        caption=f"Fresh probes on the frozen networks, held out, on {record.evaluated_on}; mean{_seeds_words(record)}. "
        "A probe that is trained afterwards measures what is left; the adversary's own accuracy does not. "
        "Balanced accuracy for categorical concepts, R² for continuous ones.",
        frame=tidy(rows, columns),
    )


def difference_table(record: GuideRecord) -> Table:
    """Return every paired difference with its interval."""
    rows = [
        {
            "split": d.split,
            "run": d.run,
            "against": d.against,
            "what": difference_name(d),
            "difference": d.mean,
            "difference low": d.low,
            "difference high": d.high,
            "groups": d.n_groups,
            "verdict": difference_mark(d, record.group),
        }
        for d in record.differences
    ]
    columns = [
        "split",
        "run",
        "against",
        "what",
        "difference",
        "difference low",
        "difference high",
        "groups",
        "verdict",
    ]
    return Table(
        name="differences",
        title="Paired differences",
        caption="Same rows for both runs, averaged over seeds; 95 % interval over "
        f"{groups_word(record.group)}. Open: the interval covers 0, or there are too few {groups_word(record.group)}; "
        "this does not show that there is no difference.",
        frame=tidy(rows, columns),
        digits=3,
    )
