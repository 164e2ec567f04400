"""The tables of a grid in the form of the paper's Tables 4 to 6, and its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conceptkit.records import GridRecord, Metric
from conceptkit.report.contents import READERS
from conceptkit.report.guide_tables import difference_table, weighted_table
from conceptkit.report.judging import Verdict, few_words, side_of, verdict
from conceptkit.report.table import Table, ends, make_table, spread
from conceptkit.report.verdicts import difference_mark, no_clear_change
from conceptkit.report.wording import (
    as_float,
    counted,
    f1_words,
    groups_word,
    interval,
    is_finite,
    metric_name,
    number,
    with_unit,
)

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.records import Difference
    from conceptkit.records.grid import GridCell

_READERS = {**READERS, "probe": "linear probe", "head": "own head"}

_METRICS = ("f1", "f1_at_half", "balanced_accuracy", "brier", "ece")


GRID_SPLITS = "grid splits"
"""Name of the table of patches by split, center and label"""


def grid_tables(record: GridRecord) -> list[Table]:
    """Return the tables of a grid, in the order in which they are read."""
    tables = [main_table(record), metric_table(record), concept_table(record)]
    tables += [curve_table(record, kind) for kind in ("noise", "fraction")]
    tables += [affinity_table(record), patch_level_table(record)]
    tables += [weighted_table(record, details=True), difference_table(record, details=True)]
    return [table for table in tables if not table.frame.empty]


def grid_split_table(record: GridRecord) -> Table:
    """Return the patches by split, center and label; the page has a fuller one, from the run folder's own rows."""
    columns = dict.fromkeys(key for row in record.splits for key in row)
    return make_table(
        GRID_SPLITS,
        "Patches by split, center and label",
        "Where a split has centers of one class only, its AUC rewards a network that recognises the center.",
        [{column: row.get(column) for column in columns} for row in record.splits],
    )


def shown_name(record: GridRecord, name: str) -> str:
    """Return the name of a network; without its weighting where all have the same."""
    weightings = _weightings(record)
    return name.removesuffix(f", {next(iter(weightings))}") if len(weightings) == 1 else name


def _weightings(record: GridRecord) -> set[str]:
    return {cell.weighting for cell in record.cells if cell.weighting}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a record's table; their missing values are empty texts or no finite numbers."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def _spread(values: dict[str, Any], column: str, name: str | None = None) -> dict[str, float]:
    return spread(name or column, as_float(values[column]), as_float(values[f"{column} sd"]))


def _ends(values: dict[str, Any], column: str, name: str) -> dict[str, float]:
    return ends(name, values[column], values[f"{column} low"], values[f"{column} high"])


def main_table(record: GridRecord) -> Table:
    """Return the AUC of the main task by network and evaluation split, vanilla next to uncertainty (Table 4)."""
    rows = []
    for values in _rows(record.table4()):
        row: dict[str, object] = {"model": values["number"], "network": shown_name(record, values["cell"])}
        row |= {"weighting": values["weighting"], "control": values["control"]}
        for split in record.evaluation:
            row |= _spread(values, split)
            if f"{split} weighted" in values:
                row |= _spread(values, f"{split} weighted")
            for column in record.strata:
                row |= _spread(values, f"{split} within {column}")
            row |= _ends(values, f"{split} difference", f"difference {split}")
        row["seeds"] = int(values["seeds"])
        rows.append(row)
    inside = f" Within {' and '.join(record.strata)}: of pairs of one level only." if record.strata else ""
    return make_table(
        "table4",
        "AUC of the main task by network",
        "Mean ± SD over seeds. Difference: paired, to the single task of the same weighting, with a 95 % interval over "
        f"{groups_word(record.group)}.{inside} Weighted: of rows among which the center does not predict "
        "the label. The paper's Table 4, whose baseline has no such weighting.",
        rows,
        without={"weighting"} if len(_weightings(record)) < 2 else (),
        digits=3,
    )


def metric_table(record: GridRecord) -> Table:
    """Return every metric of the main task by network and split (Table 5)."""
    frame = record.table5()
    metrics = [m for m in ("auc", *(Metric("auc", within=c) for c in record.strata), *_METRICS) if m in frame]
    rows: list[dict[str, object]] = []
    for values in _rows(frame):
        row: dict[str, object] = {"split": values["split"], "network": shown_name(record, values["cell"])}
        for metric in metrics:
            row |= _spread(values, metric, metric_name(metric))
        rows.append(row)
    rows.sort(key=lambda row: record.evaluation.index(str(row["split"])))
    return make_table(
        "table5",
        "The main task in full",
        "Mean ± SD over seeds, by split. F1 and balanced accuracy at the threshold chosen on validation "
        f"rows.{f1_words(record.settings)} The paper's Table 5 is one of these splits.",
        rows,
        digits=3,
    )


def concept_table(record: GridRecord) -> Table:
    """Return how well each concept is decoded from each network (Table 6, held out)."""
    cells = {cell.name: cell for cell in record.cells}
    rows = []
    for values in _rows(record.table6()):
        metric = Metric(reader=values["reader"], concept=values["concept"])
        d = record.difference(cells[values["cell"]], record.evaluated_on, metric)
        rows.append(
            {
                "concept": with_unit(values["concept"], record.units),
                "role": values["role"],
                "network": shown_name(record, values["cell"]),
                "reader": _READERS.get(values["reader"], values["reader"]),
                **_spread(values, "score"),
                **_ends(values, "difference", "difference"),
                "verdict": "" if d is None else difference_mark(d, record.group),
                "chance": as_float(values["chance"]),
            }
        )
    return make_table(
        "table6",
        "Concepts decoded from each network",
        f"Held out, by {groups_word(record.group)}, on {record.evaluated_on}; R² of continuous, balanced accuracy of "
        "categorical concepts. Difference: paired, to the single task of the same weighting, with its verdict. The "
        "paper's Table 6 is fitted and scored on the same rows.",
        rows,
    )


def curve_table(record: GridRecord, kind: str) -> Table:
    """Return the points of a curve of noisy or scarce concept values."""
    rows = [
        {
            kind: float(values["level"]),
            "split": values["split"],
            "network": "multimodal" if values["multimodal"] else "multi-task",
            **spread("AUC", as_float(values["auc"]), as_float(values["sd"])),
        }
        for values in _rows(record.curve(kind))
    ]
    what = {"noise": "that were exchanged", "fraction": "that were kept"}[kind]
    return make_table(
        kind,
        f"AUC by {kind} of concept values",
        f"Share of concept values {what}; mean ± SD over seeds. Multimodal: concept values as inputs.",
        rows,
        digits=3,
    )


def affinity_table(record: GridRecord) -> Table:
    """Return the effect of each task's step on each other's loss."""
    return make_table(
        "affinity",
        "Which task helps which",
        "1 − loss after / loss before on validation rows, when only one task takes a step; above 0 it helps. "
        "Mean ± SD over seeds.",
        [
            {"a step of": a.step, "does to the loss of": a.on, **spread("affinity", a.value, a.sd)}
            for a in record.affinity
        ],
        digits=4,
    )


def patch_level_table(record: GridRecord) -> Table:
    """Return the comparisons by the paper's own protocol."""
    rows = [
        {
            "network": p.run,
            "against": p.against,
            "split": p.split,
            **spread("AUC", p.mean, p.sd),
            "difference": p.difference,
            "p": as_float(p.p),
            "resamples": p.resamples,
        }
        for p in record.patch_level
    ]
    return make_table(
        "patch-level",
        "By the paper's protocol: patches treated as independent",
        "Bootstrap of pooled patches and Wilcoxon's test over paired resamples. It does not describe new patients: "
        "with enough resamples any difference has a small p.",
        rows,
        digits=3,
    )


# --- verdicts ----------------------------------------------------------------------------------------------------


def grid_verdicts(record: GridRecord) -> list[Verdict]:
    """Return what the grid and its controls show on each evaluation split, and how many networks failed."""
    verdicts: list[Verdict] = []
    unchanged: list[tuple[str, Difference]] = []
    for split in record.evaluation:
        compared = [
            (cell, d) for cell in record.cells if not cell.curve and (d := record.difference(cell, split, "auc"))
        ]
        compared = [(cell, d) for cell, d in compared if is_finite(d.mean)]
        models = [(cell, d) for cell, d in compared if not cell.control]
        verdicts += [_networks_verdict(record, split, models)] if models else []
        for cell, d in compared:
            name = f"{shown_name(record, cell.name)} ({cell.control})"
            if cell.control == "confounder only":
                mean = record.over_seeds(cell.name, "metrics", split, "auc")[0]
                text = f"The confounder by itself ({cell.name}) reaches an AUC of {number(mean, digits=3)} on {split}"
                verdicts.append(verdict("open", text, "This number has no interval"))
            elif cell.control in ("random", "shuffled", "random target", "shuffled concept"):
                if side_of(d.mean, d.low, d.high) == "covers":
                    unchanged.append((f"AUC of the control {name} on {split}", d))
                else:
                    verdicts.append(judge_control(name, d, record.group))
    verdicts += no_clear_change(unchanged, record.group, digits=3)
    if record.failed:
        verdicts.append(verdict("open", f"{len(record.failed)} of the grid's networks gave no result"))
    return verdicts or [verdict("open", "No network of this grid was compared with another")]


def _networks_verdict(record: GridRecord, split: str, models: Sequence[tuple[GridCell, Difference]]) -> Verdict:
    sides = [side_of(d.mean, d.low, d.high) for _, d in models if difference_mark(d, record.group) == "established"]
    best, d = max(models, key=lambda pair: pair[1].mean)
    networks = "guided network raises" if len(models) == 1 else "guided networks raise"
    text = (
        f"On {split} {sides.count('above')} of {len(models)} {networks} the AUC over the single task of the same "
        f"weighting, {sides.count('below')} lower it: largest difference "
        f"{interval(d.mean, d.low, d.high, digits=3, signed=True)} ({shown_name(record, best.name)}, "
        f"{counted(record.group, d.n_groups)})"
    )
    biased = f"The largest of {len(models)} differences is biased upwards" if len(models) > 1 else ""
    return verdict("established" if sides else "open", text, few_words(d.n_groups, record.group), biased)


def judge_control(name: str, d: Difference, group: str | None) -> Verdict:
    """Return what a control without a real concept does to the AUC."""
    side, mark = side_of(d.mean, d.low, d.high), difference_mark(d, group)
    size = interval(d.mean, d.low, d.high, digits=3, signed=True)
    if mark == "established":
        verb, consequence = {
            "above": ("raises", "A gain of this size needs no real concept"),
            "below": ("lowers", "A real concept has to be compared with this loss"),
        }[side]
        return verdict(mark, f"The control {name} {verb} the AUC on {d.split}: {size}", consequence)
    change = {"covers": "no clear change", "missing": "a change without an interval"}.get(side, "an uncertain change")
    text = f"The control {name} shows {change} of the AUC on {d.split}: {size}"
    return verdict(mark, text, few_words(d.n_groups, group))
