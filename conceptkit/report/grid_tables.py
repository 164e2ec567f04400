"""The tables of a grid in the form of the paper's Tables 4 to 6, and its sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conceptkit.records import GridRecord
from conceptkit.report.judging import Verdict, are_few, few_words, side_of
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import difference_mark
from conceptkit.report.wording import f1_words, groups_word, interval, is_finite, metric_name, number, with_unit

if TYPE_CHECKING:
    from conceptkit.records import Difference
    from conceptkit.records.grid import GridCell

_READERS = {"probe": "linear probe", "head": "own head", "linear": "linear probe", "mlp": "MLP probe"}

_METRICS = ("auc", "f1", "f1_at_half", "balanced_accuracy", "brier", "ece")


def grid_tables(record: GridRecord) -> list[Table]:
    """Return the tables of a grid, in the order in which they are read."""
    found = [main_table(record), metric_table(record), concept_table(record)]
    found += [curve_table(record, kind) for kind in ("noise", "fraction")]
    found += [affinity_table(record), patch_level_table(record)]
    return [table for table in found if not table.frame.empty]


def grid_split_table(record: GridRecord) -> Table:
    """Return the patches by split, center and label; the page has a fuller one, from the run folder's own rows."""
    columns = list(dict.fromkeys(key for row in record.splits for key in row))
    return Table(
        name="grid splits",
        title="Patches by split, center and label",
        caption="Where a split has centers of one class only, its AUC rewards whoever knows the center.",
        frame=tidy(record.splits, columns),
    )


def shown_name(record: GridRecord, name: str) -> str:
    """Return the name of a network; without its weighting where all have the same."""
    weightings = _weightings(record)
    return name.removesuffix(f", {next(iter(weightings))}") if len(weightings) == 1 else name


def _weightings(record: GridRecord) -> set[str]:
    return {cell.weighting for cell in record.cells if cell.weighting}


def main_table(record: GridRecord) -> Table:
    """Return the AUC of the main task by network and evaluation split, vanilla beside uncertainty (Table 4)."""
    rows = []
    columns = ["model", "network", "weighting", "control"]
    for values in record.table4().to_dict("records"):
        row: dict[str, object] = {"model": _text(values["number"]), "network": shown_name(record, str(values["cell"]))}
        row |= {"weighting": _text(values["weighting"]), "control": _text(values["control"])}
        for split in record.evaluation:
            row[split] = _number(values[split])
            row[f"{split} sd"] = _number(values[f"{split} sd"])
            for column in record.strata:
                within = f"{split} within {column}"
                row[within], row[f"{within} sd"] = _number(values[within]), _number(values[f"{within} sd"])
            name = f"difference {split}"
            row[name] = _number(values[f"{split} difference"])
            row[f"{name} low"] = _number(values[f"{split} difference low"])
            row[f"{name} high"] = _number(values[f"{split} difference high"])
        row["seeds"] = int(values["seeds"])
        rows.append(row)
    columns = list(rows[0]) if rows else columns
    inside = f" Within {' and '.join(record.strata)}: of pairs of one level alone." if record.strata else ""
    empty = {c for c in ("model", "control") if not any(row[c] for row in rows)}
    empty |= {"weighting"} if len(_weightings(record)) < 2 else set()
    return Table(
        name="table4",
        title="AUC of the main task by network",
        caption="Mean ± SD over seeds. Difference: paired, to the single task of the same weighting, with a 95 % "
        f"interval over {groups_word(record.group)}.{inside} The paper's Table 4, whose baseline has no such "
        "weighting.",
        frame=tidy(rows, [c for c in columns if c not in empty]),
        digits=3,
    )


def metric_table(record: GridRecord) -> Table:
    """Return every metric of the main task by network and split (Table 5)."""
    frame = record.table5()
    own = [m for m in frame.columns if str(m).startswith("auc_within_") and not str(m).endswith(" sd")]
    metrics = [m for m in ("auc", *map(str, own), *_METRICS[1:]) if m in frame]
    rows = []
    for values in frame.to_dict("records"):
        row: dict[str, object] = {"split": _text(values["split"]), "network": shown_name(record, str(values["cell"]))}
        for metric in metrics:
            row[metric_name(metric)] = _number(values[metric])
            row[f"{metric_name(metric)} sd"] = _number(values[f"{metric} sd"])
        rows.append(row)
    rows.sort(key=lambda row: record.evaluation.index(str(row["split"])))
    return Table(
        name="table5",
        title="The main task in full",
        caption="Mean ± SD over seeds, by split. F1 and balanced accuracy at the threshold chosen on validation "
        f"rows.{f1_words(record.settings)} The paper's Table 5 is one of these splits.",
        frame=tidy(rows, list(rows[0]) if rows else ["split", "network"]),
        digits=3,
    )


def concept_table(record: GridRecord) -> Table:
    """Return how well each concept is read from each network (Table 6, held out)."""
    cells = {cell.name: cell for cell in record.cells}

    def mark(values: dict[Any, Any]) -> str:
        metric = f"{values['reader']}:{values['concept']}"
        d = record.difference(cells[values["cell"]], record.evaluated_on, metric)
        return "" if d is None else difference_mark(d, record.group)

    rows: list[dict[str, object]] = [
        {
            "concept": with_unit(str(values["concept"]), record.units),
            "role": _text(values["role"]),
            "network": shown_name(record, str(values["cell"])),
            "reader": _READERS.get(str(values["reader"]), str(values["reader"])),
            "score": _number(values["score"]),
            "score sd": _number(values["score sd"]),
            "difference": _number(values["difference"]),
            "difference low": _number(values["difference low"]),
            "difference high": _number(values["difference high"]),
            "verdict": mark(values),
            "chance": _number(values["chance"]),
        }
        for values in record.table6().to_dict("records")
    ]
    return Table(
        name="table6",
        title="Concepts read from each network",
        caption=f"Held out, by {groups_word(record.group)}, on {record.evaluated_on}; R² of continuous, balanced "
        "accuracy of categorical concepts. Difference: paired, to the single task of the same weighting, with its "
        "verdict. The paper's Table 6 is fitted and scored on the same rows.",
        frame=tidy(rows, list(rows[0]) if rows else ["concept", "network", "score"]),
    )


def curve_table(record: GridRecord, kind: str) -> Table:
    """Return the points of a curve of noisy or scarce concept values."""
    rows: list[dict[str, object]] = [
        {
            kind: float(values["level"]),
            "split": _text(values["split"]),
            "network": "multimodal" if values["multimodal"] else "multi-task",
            "AUC": _number(values["auc"]),
            "AUC sd": _number(values["sd"]),
        }
        for values in record.curve(kind).to_dict("records")
    ]
    what = {"noise": "that were exchanged", "fraction": "that were kept"}[kind]
    return Table(
        name=kind,
        title=f"AUC by {kind} of concept values",
        caption=f"Share of concept values {what}; mean ± SD over seeds. Multimodal: concept values as inputs.",
        frame=tidy(rows, [kind, "split", "network", "AUC", "AUC sd"]),
        digits=3,
    )


def affinity_table(record: GridRecord) -> Table:
    """Return what each task's step does to each other's loss."""
    rows: list[dict[str, object]] = [
        {"a step of": a.step, "does to the loss of": a.on, "affinity": a.value, "affinity sd": a.sd}
        for a in record.affinity
    ]
    return Table(
        name="affinity",
        title="Which task helps which",
        caption="1 − loss after / loss before on validation rows, when one task alone takes a step; above 0 it helps. "
        "Mean ± SD over seeds.",
        frame=tidy(rows, ["a step of", "does to the loss of", "affinity", "affinity sd"]),
        digits=4,
    )


def patch_level_table(record: GridRecord) -> Table:
    """Return the comparisons by the paper's own protocol."""
    rows: list[dict[str, object]] = [
        {
            "network": p.run,
            "against": p.against,
            "split": p.split,
            "AUC": p.mean,
            "AUC sd": p.sd,
            "difference": p.difference,
            "p": math.nan if p.p is None else p.p,
            "resamples": p.resamples,
        }
        for p in record.patch_level
    ]
    return Table(
        name="patch-level",
        title="By the paper's protocol: patches taken as independent",
        caption="Bootstrap of pooled patches and Wilcoxon's test over paired resamples. It says nothing of new "
        "patients: with enough resamples any difference has a small p.",
        frame=tidy(rows, ["network", "against", "split", "AUC", "AUC sd", "difference", "p", "resamples"]),
        digits=3,
    )


# --- sentences ---------------------------------------------------------------------------------------------------


def grid_verdicts(record: GridRecord) -> list[Verdict]:
    """Return what the grid shows on each evaluation split, what its controls show, and what failed."""
    verdicts = [verdict for split in record.evaluation for verdict in _split_verdicts(record, split)]
    if record.failed:
        verdicts.append(Verdict(text=f"{len(record.failed)} of the grid's networks gave no result.", mark="open"))
    return verdicts or [Verdict(text="No network of this grid was compared with another.", mark="open")]


def _split_verdicts(record: GridRecord, split: str) -> list[Verdict]:
    compared: list[tuple[GridCell, Difference]] = []
    for cell in record.cells:
        d = record.difference(cell, split, "auc")
        if d is not None and is_finite(d.mean) and not cell.curve:
            compared.append((cell, d))
    models = [(cell, d) for cell, d in compared if not cell.control]
    out = [_networks_verdict(record, split, models)] if models else []
    for cell, d in compared:
        if cell.control in ("random target", "shuffled concept"):
            out.append(judge_control(f"{shown_name(record, cell.name)} ({cell.control})", d, record.group))
        elif cell.control == "confounder only":
            mean = _mean_auc(record, cell, split)
            text = f"The confounder by itself ({cell.name}) reaches an AUC of {number(mean, digits=3)} on {split}."
            out.append(Verdict(text=f"{text} This number has no interval.", mark="open"))
    return out


def _networks_verdict(record: GridRecord, split: str, models: Sequence[tuple[GridCell, Difference]]) -> Verdict:
    sides = [side_of(d.mean, d.low, d.high) for _, d in models if difference_mark(d, record.group) == "established"]
    best, d = max(models, key=lambda pair: pair[1].mean)
    networks = "guided network raises" if len(models) == 1 else "guided networks raise"
    text = (
        f"On {split} {sides.count('above')} of {len(models)} {networks} the AUC over the single task of the same "
        f"weighting, {sides.count('below')} lower it: largest difference "
        f"{interval(d.mean, d.low, d.high, digits=3, signed=True)} ({shown_name(record, best.name)}, {d.n_groups} "
        f"{groups_word(record.group, d.n_groups)})."
    )
    if are_few(d.n_groups, record.group):
        text += f" {few_words(d.n_groups, record.group)}."
    elif len(models) > 1:
        text += f" The largest of {len(models)} differences is biased upwards."
    return Verdict(text=text, mark="established" if sides else "open")


def judge_control(name: str, d: Difference, group: str | None) -> Verdict:
    """Return what a control without a real concept does to the AUC."""
    side, mark = side_of(d.mean, d.low, d.high), difference_mark(d, group)
    size = interval(d.mean, d.low, d.high, digits=3, signed=True)
    if mark == "established":
        verb, means = {
            "above": ("raises", "A gain of this size needs no real concept"),
            "below": ("lowers", "A real concept has to be compared with this loss"),
        }[side]
        return Verdict(text=f"The control {name} {verb} the AUC on {d.split}: {size}. {means}.", mark=mark)
    change = {"covers": "no clear change", "missing": "a change without an interval"}.get(side, "an uncertain change")
    text = f"The control {name} shows {change} of the AUC on {d.split}: {size}."
    return Verdict(text=f"{text} {few_words(d.n_groups, group)}." if are_few(d.n_groups, group) else text, mark=mark)


def _mean_auc(record: GridRecord, cell: GridCell, split: str) -> float:
    values = [run.metrics.get(split, {}).get("auc") for run in record.runs if run.name == cell.name]
    known = [v for v in values if is_finite(v)]
    return sum(map(float, known)) / len(known) if known else math.nan  # type: ignore[arg-type]


def _number(value: Any) -> float:
    return math.nan if value is None or value != value else float(value)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)
