"""The tables of guided training: concepts, leakage, main task, differences."""

from __future__ import annotations

from conceptkit.evaluate.weighted import WEIGHTED
from conceptkit.records import Difference, GuideRecord, RunsRecord, Selection
from conceptkit.report.contents import compared_runs, difference_name, reference_run
from conceptkit.report.table import Table, ends, make_table, spread
from conceptkit.report.verdicts import difference_mark
from conceptkit.report.wording import MISSING, as_float, f1_words, groups_word, is_finite, metric_name, with_unit


def guide_tables(record: GuideRecord) -> list[Table]:
    """Return the tables of guided training, in the order in which they are read."""
    tables = [table(record) for table in (comparison_table, leakage_table, main_task_table)]
    weighted = weighted_table(record)
    first = [] if record.selection is None else [selection_table(record.selection, record.group)]
    tables += [] if weighted.frame.empty else [weighted]
    return [*first, *tables, *bottleneck_tables(record), difference_table(record)]


def selection_table(selection: Selection, group: str | None) -> Table:
    """Return the candidates of a selection, in the order in which they were tried."""
    marks = {selection.reference: "reference", selection.chosen: "chosen"}
    rows = [
        {
            "candidate": one.name,
            "AUC": as_float(one.auc),
            "difference": as_float(one.difference),
            "error": as_float(one.error),
            **{f"without {center}": as_float(value) for center, value in one.centers.items()},
            "": marks.get(one.name, ""),
        }
        for one in selection.candidates
    ]
    return make_table(
        "selection",
        "Selection by training centers left out",
        "AUC within each training center of a network that was trained on the others, and its mean. Difference: from "
        f"the reference, with its standard error over {groups_word(group)}. The reference is kept unless another "
        "candidate is better by more than one standard error; of those the best is chosen.",
        rows,
        digits=3,
    )


def weighted_table(record: RunsRecord, *, details: bool = False) -> Table:
    """Return the main task's scores of weighted rows, one row per split and run; empty without centers."""
    rows = []
    for split in dict.fromkeys(split for run in record.runs for split in run.metrics):
        for name in record.run_names:
            row: dict[str, object] = {"split": split, "run": name}
            for metric in WEIGHTED:
                row |= spread(metric_name(metric), *record.over_seeds(name, "metrics", split, f"{metric}_weighted"))
            rows.append(row | {f"effective {groups_word(record.group)}": as_float(record.effective_groups.get(split))})
    return make_table(
        "main-task-weighted",
        "Main task, rows weighted by center and label",
        "A row of center c and label y weighs p(c)·p(y)/p(c, y), shares of the split's rows, so that a network that "
        "only recognises the center has an AUC of one half. Balanced accuracy at the threshold chosen on validation "
        f"rows; lower is better for the Brier score and the calibration error. Mean{_seeds_words(record)}. Effective "
        f"{groups_word(record.group)}: the number of equal weight with the same information (Kish).",
        [row for row in rows if is_finite(row["AUC"])],
        digits=3,
        details=details,
    )


def comparison_table(record: GuideRecord) -> Table:
    """Return the encouraged concepts, reference next to compared runs (the paper's Table 6, held out)."""
    reference, compared = reference_run(record), compared_runs(record)
    single = len(compared) == 1
    prefix = f"{compared[0]} " if single else ""
    differences = {(d.run, d.metric.concept): d for d in record.differences if _is_of_probe(d, reference)}
    concepts = dict.fromkeys([*record.encourage, *(name for run in record.runs for name in run.concepts)])
    rows = []
    for concept in concepts:
        for name in compared or [""]:  # a single run is shown without a comparison
            d = differences.get((name, concept))
            rows.append(
                {
                    "concept": with_unit(concept, record.units),
                    "run": name or MISSING,
                    **spread(f"{reference} probe", *record.over_seeds(reference, "concepts", concept, "probe")),
                    **spread(f"{prefix}probe", *record.over_seeds(name, "concepts", concept, "probe")),
                    **spread(f"{prefix}head", *record.over_seeds(name, "concepts", concept, "head")),
                    **ends("difference", *((d.mean, d.low, d.high) if d else (None, None, None))),
                    "verdict": difference_mark(d, record.group) if d else "",
                }
            )
    return make_table(
        "concepts",
        "Encouraged concepts, before and after",
        f"Held-out scores on {record.evaluated_on}: R² for continuous concepts, balanced accuracy for categorical "
        "ones. Probe: a fresh linear probe on the frozen network; head: the network's own output. "
        f"Mean{_seeds_words(record)}. Difference: probe, paired over the same rows, with a 95 % interval over "
        f"{groups_word(record.group)}. Verdict: of the difference.",
        rows,
        without={"run"} if single else (),
    )


def _is_of_probe(d: Difference, reference: str) -> bool:
    return d.against == reference and d.metric.reader == "probe"


def _seeds_words(record: RunsRecord) -> str:
    seeds = len({run.seed for run in record.runs})
    return f" ± SD over {seeds} seeds" if seeds > 1 else " of one seed"


def main_task_table(record: GuideRecord) -> Table:
    """Return the main task's scores, one row per split and run."""
    rows = []
    for split in dict.fromkeys(split for run in record.runs for split in run.metrics):
        for name in record.run_names:
            row: dict[str, object] = {"split": split, "run": name}
            for metric in ("auc", "f1", "balanced_accuracy"):
                row |= spread(metric_name(metric), *record.over_seeds(name, "metrics", split, metric))
            row["seeds"] = sum(run.name == name and split in run.metrics for run in record.runs)
            rows.append(row)
    several = len({run.seed for run in record.runs}) > 1
    return make_table(
        "main-task",
        "Main task",
        f"Mean{_seeds_words(record)}."
        + (" The SD is the spread over refits." if several else "")
        + f" The intervals of the differences show the uncertainty over {groups_word(record.group)}."
        + f1_words(record.settings),
        rows,
        digits=3,
    )


def leakage_table(record: GuideRecord) -> Table:
    """Return how well fresh probes still decode the discouraged concepts."""
    rows = [
        {
            "concept": concept,
            "run": name,
            **spread("linear probe", *record.over_seeds(name, "leakage", concept, "linear")),
            **spread("MLP probe", *record.over_seeds(name, "leakage", concept, "mlp")),
            **spread("kernel probe", *record.over_seeds(name, "leakage", concept, "kernel")),
            "chance": record.over_seeds(name, "leakage", concept, "chance")[0],
        }
        for concept in dict.fromkeys([*record.discourage, *(name for run in record.runs for name in run.leakage)])
        for name in record.run_names
    ]
    return make_table(
        "leakage",
        "Discouraged concepts: what is left",
        f"Fresh probes on the frozen networks, held out, on {record.evaluated_on}; mean{_seeds_words(record)}. "
        "A probe that is trained afterwards measures what is left; the adversary's own accuracy does not. "
        "Balanced accuracy for categorical concepts, R² for continuous ones.",
        rows,
    )


def difference_table(record: RunsRecord, *, details: bool = False) -> Table:
    """Return every paired difference with its interval, the primary one first."""
    rows = [
        {
            "what": difference_name(d),
            "split": d.split,
            "run": d.run,
            "against": d.against,
            **ends("difference", d.mean, d.low, d.high),
            "p": as_float(d.p),
            "q": as_float(d.q),
            "groups": d.n_groups,
            "groups effective": as_float(d.n_effective),
            "verdict": difference_mark(d, record.group),
        }
        for d in record.differences
    ]
    patients = groups_word(record.group)
    return make_table(
        "differences",
        "Paired differences",
        f"Same rows for both runs, averaged over seeds; 95 % interval over {patients}. {_family_words(record)} Groups: "
        "in brackets their effective number (Kish). Open: the interval covers 0, q is not below 0.05, or there are too "
        f"few {patients}; this does not show that there is no difference.",
        rows,
        digits=3,
        unshown=("p",),
        details=details,
        apart=("run", "against"),
    )


def _family_words(record: RunsRecord) -> str:
    """Return which difference was declared before the run, and what q is."""
    first, others = record.primary, sum(not d.primary for d in record.differences)
    q = f"q: p adjusted for all {others} secondary differences (Benjamini and Hochberg)."
    return f"The first row is the primary contrast, declared before the run. {q}" if first else q


def bottleneck_tables(record: GuideRecord) -> list[Table]:
    """Return the tables of networks that read predicted concepts only; none without them."""
    found = record.bottleneck
    tables = [
        make_table(
            "bottleneck-odds",
            "Bottleneck: odds ratios of the main head",
            "Odds ratio per unit, and per standard deviation of the true values (SD), of the concept as the network "
            "predicts it, next to a logistic regression on the true values of the same training rows. Predictions have "
            "errors, which move these ratios: they show how the network decides, not how a concept acts.",
            [
                {
                    "run": row.run,
                    "concept": with_unit(row.concept, record.units),
                    "predicted, per unit": row.predicted,
                    "true, per unit": row.true,
                    "predicted, per SD": row.per_deviation[0],
                    "true, per SD": row.per_deviation[1],
                }
                for row in found.odds
            ],
            digits=3,
        )
    ]
    words = f"AUC on the rows that have the values, with a 95 % interval over {groups_word(record.group)}; weighted by "
    words += "center and label where that is defined."
    weighted = ("auc_weighted",)
    for name, title, caption, rows in (
        (
            "bottleneck-interventions",
            "Bottleneck: true values in place of predictions",
            f"The main head stays and reads true values of these concepts. {words}",
            found.interventions,
        ),
        (
            "bottleneck-leakage",
            "Bottleneck: what predictions say beyond the concepts",
            f"Difference: with predicted concepts − by a regression on true values. Above 0, predictions carry more "
            f"than their concepts, such as the center. {words}",
            found.leakage,
        ),
    ):
        defined = {(row.run, row.concepts, row.split) for row in rows if row.metric in weighted}
        tables.append(
            make_table(
                name,
                title,
                caption,
                [
                    {
                        "run": row.run,
                        "split": row.split,
                        "concepts": ", ".join(row.concepts),
                        "AUC": "weighted" if row.metric in weighted else "plain",
                        "predicted": row.predicted,
                        "true": row.true,
                        **ends("difference", row.mean, row.low, row.high),
                    }
                    for row in rows
                    if row.metric in weighted or (row.run, row.concepts, row.split) not in defined
                ],
                digits=3,
                apart=("run",),
            )
        )
    tables.append(
        make_table(
            "bottleneck-residual",
            "Bottleneck: the residual path",
            "Share of the path past the concepts in the decision: its covariance with the logit over the logit's "
            "variance. The concepts have the rest.",
            [
                {"run": run, "split": split, "share": share}
                for run, shares in found.residual.items()
                for split, share in shares.items()
            ],
        )
    )
    return [table for table in tables if not table.frame.empty]
