"""Several runs of one kind side by side: what differs in their settings, their scores, and paired differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.paired import PairedInterval, Scored, paired_interval, scored_auc, scored_r2
from conceptkit.records import ProbeRecord, ProbeRow, Record, RobustnessRecord, RunsRecord
from conceptkit.report.contents import difference_name
from conceptkit.report.judging import are_few, mark_of, side_of
from conceptkit.report.part import Part, table_part
from conceptkit.report.predictions import read_predictions
from conceptkit.report.provenance import flat
from conceptkit.report.run_context import Context, read_context
from conceptkit.report.table import Table, ends, make_table, spread
from conceptkit.report.verdicts import difference_mark
from conceptkit.report.wording import groups_word, interval, is_finite, metric_name

UNTOLD = ("command", "out", "progress")
"""Settings that say nothing about results"""


def comparison_parts(records: Sequence[Record], folders: Sequence[Path], titles: Sequence[str]) -> list[Part]:
    """Return the comparison of runs of the same kind; nothing where no two runs are of one kind."""
    parts = []
    for kind in dict.fromkeys(map(type, records)):
        chosen = [k for k, record in enumerate(records) if type(record) is kind]
        if len(chosen) < 2:
            continue
        group = [records[k] for k in chosen]
        names = [titles[k] for k in chosen]
        tables = [settings_table(group, names)]
        if all(isinstance(record, ProbeRecord) for record in group):
            tables += [score_matrix(group, names), probe_differences(group, [folders[k] for k in chosen], names)]
        if all(isinstance(record, RobustnessRecord) for record in group):
            tables.append(index_matrix(group, names))
        if all(isinstance(record, RunsRecord) for record in group):
            tables += [run_matrix(group, names), run_differences(group, [folders[k] for k in chosen], names)]
            tables.append(recorded_differences(group, names))
        parts += [table_part(table) for table in tables]
    return parts


def settings_table(records: Sequence[Record], names: Sequence[str]) -> Table:
    """Return the settings, versions and studies that are not the same in every run."""
    values: dict[str, dict[str, str]] = {}
    for name, record in zip(names, records, strict=True):
        known = [("study", record.study), ("never split across folds", str(record.group)), *flat(record.settings)]
        known += [(f"version of {key}", value) for key, value in flat(record.versions)]
        for key, value in known:
            values.setdefault(key, {})[name] = value
    rows: list[dict[str, object]] = [
        {"setting": key, **{name: found.get(name, "") for name in names}}
        for key, found in values.items()
        if key not in UNTOLD and len({found.get(name) for name in names}) > 1
    ]
    rows = rows or [{"setting": "all settings", **dict.fromkeys(names, "the same")}]
    return make_table("settings", "What differs in the settings", "Settings that are not the same in every run.", rows)


def index_matrix(records: Sequence[Any], names: Sequence[str]) -> Table:
    """Return the robustness indices (rows) of each encoder and layer of each run (columns)."""
    found: dict[str, dict[str, Any]] = {}
    for name, record in zip(names, records, strict=True):
        several = len({(row.encoder, row.layer) for row in record.rows}) > 1
        for row in record.rows:
            where = ", ".join([name, *filter(None, (row.encoder, row.layer))]) if several else name
            found.setdefault(where, {})[row.index] = row
    rows: list[dict[str, object]] = []
    for index in dict.fromkeys(index for one in found.values() for index in one):
        cells: dict[str, object] = {"index": index}
        for where, one in found.items():
            row = one.get(index)
            cells |= ends(where, *((row.value, row.low, row.high) if row else (None, None, None)))
        rows.append(cells)
    text = (
        f"Each index with its 95 % interval over {groups_word(records[0].group)}. The intervals are not paired; for "
        "paired differences give one run several encoders."
    )
    return make_table("indices", "Robustness indices of the runs", text, rows)


# --- probes ------------------------------------------------------------------------------------------------------


def _best(record: ProbeRecord) -> dict[str, ProbeRow]:
    found: dict[str, ProbeRow] = {}
    for row in record.rows:
        if is_finite(row.score) and (row.concept not in found or row.score > found[row.concept].score):
            found[row.concept] = row
    return found


def score_matrix(records: Sequence[Any], names: Sequence[str]) -> Table:
    """Return the best held-out score of each concept (rows) in each run (columns)."""
    best = [_best(record) for record in records]
    concepts = dict.fromkeys(concept for one in best for concept in one)
    rows = []
    for concept in concepts:
        row: dict[str, object] = {"concept": concept}
        metrics = {one[concept].metric for one in best if concept in one}
        row["metric"] = ", ".join(map(metric_name, sorted(metrics)))
        for name, one in zip(names, best, strict=True):
            found = one.get(concept)
            row |= ends(name, *((found.score, found.score_low, found.score_high) if found else (None, None, None)))
        rows.append(row)
    text = "Held-out score with its 95 % interval at the layer where it is highest. The intervals are not paired."
    return make_table("matrix", "Encoder by concept", text, rows)


def probe_differences(records: Sequence[Any], folders: Sequence[Path], names: Sequence[str]) -> Table:
    """Return the paired difference of R² for each concept and pair of runs, over the patches that both have."""
    contexts = [read_context(folder) for folder in folders]
    rows: list[dict[str, object]] = []
    for (i, first), (j, second) in itertools.combinations(enumerate(contexts), 2):
        for concept in _best(records[i]):
            found = _paired_r2(first, second, concept)
            if found is not None:
                mark = _mark(found, records[i].group)
                row = {"concept": concept, "run": names[j], "against": names[i], **_numbers(found)}
                rows.append(row | {groups_word(records[i].group): found.n_groups, "verdict": mark})
    text = (
        "R² of the saved held-out predictions (best layer of each run) on the patches that both runs have, run − "
        f"against, with a 95 % jackknife interval over {groups_word(records[0].group)}; vectors are not refitted, and "
        "no correction for many comparisons is made."
    )
    return make_table("paired", "Paired differences between runs", text, rows, digits=3)


def _paired_r2(first: Context | None, second: Context | None, concept: str) -> PairedInterval | None:
    if first is None or second is None or first.patches is None or second.patches is None:
        return None
    if concept not in first.patches.predicted or concept not in second.patches.predicted:
        return None
    shared, a, b = np.intersect1d(first.patches.all_ids, second.patches.all_ids, return_indices=True)
    y = first.concepts[concept]
    if y.dtype.kind != "f" or not len(shared):
        return None
    y, read = y[a], [first.patches.predicted[concept][1][a], second.patches.predicted[concept][1][b]]
    if read[0].dtype.kind != "f" or read[1].dtype.kind != "f":
        return None
    known = np.isfinite(y) & np.isfinite(read[0]) & np.isfinite(read[1])
    if known.sum() < 3:
        return None
    units = _units(first.groups[a][known], int(known.sum()))
    scored = [scored_r2(y[known], p[known], units) for p in reversed(read)]
    return paired_interval(scored[:1], scored[1:])


def _units(groups: NDArray[Any], n: int) -> NDArray[np.intp]:
    if not (groups != "").any():
        return np.arange(n)
    return np.unique(groups, return_inverse=True)[1].astype(np.intp)


# --- trainings ---------------------------------------------------------------------------------------------------


def run_matrix(records: Sequence[Any], names: Sequence[str]) -> Table:
    """Return AUC and what probes read of each network of each run: the regimes of guiding side by side."""
    rows = []
    for title, record in zip(names, records, strict=True):
        for name in record.run_names:
            row: dict[str, object] = {"run": title, "network": name}
            for split in dict.fromkeys(split for run in record.runs for split in run.metrics):
                row |= spread(f"AUC {split}", *record.over_seeds(name, "metrics", split, "auc"))
            for concept in dict.fromkeys(c for run in record.runs for c in run.concepts):
                row |= spread(f"{concept} (probe)", *record.over_seeds(name, "concepts", concept, "probe"))
            for concept in dict.fromkeys(c for run in record.runs for c in run.leakage):
                row |= spread(f"{concept} (linear probe)", *record.over_seeds(name, "leakage", concept, "linear"))
            rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [{column: row.get(column, math.nan) for column in columns} for row in rows]
    text = "Mean over seeds, ± SD of several: held-out AUC, and the scores of fresh probes on each network."
    return make_table("regimes", "Networks side by side", text, rows, digits=3)


def run_differences(records: Sequence[Any], folders: Sequence[Path], names: Sequence[str]) -> Table:
    """Return the paired difference of AUC between networks of the same name in two runs, on the same rows."""
    rows: list[dict[str, object]] = []
    found = [list(_scored(record, folder)) for record, folder in zip(records, folders, strict=True)]
    for i, j in itertools.combinations(range(len(records)), 2):
        for key, rows_i, first in found[i]:
            match = next(((rows_j, second) for k, rows_j, second in found[j] if k == key), None)
            if match is None or match[0] != rows_i or len(match[1]) != len(first):
                continue
            difference = paired_interval(match[1], first)
            row = {"network": key[0], "split": key[1], "run": names[j], "against": names[i], **_numbers(difference)}
            mark = _mark(difference, records[i].group)
            rows.append(row | {groups_word(records[i].group): difference.n_groups, "verdict": mark})
    text = (
        "AUC of networks of the same name on the same held-out rows, run − against, averaged over seeds, with a 95 % "
        f"interval over {groups_word(records[0].group)}; no correction for many comparisons is made."
    )
    return make_table("paired-auc", "Paired differences between runs", text, rows, digits=3)


def _scored(record: Any, folder: Path) -> Iterator[tuple[tuple[str, str], int, list[Scored]]]:
    """Yield network and split, a digest of its rows, and the AUC of every seed."""
    predictions = read_predictions(folder)
    if predictions is None:
        return
    for split in dict.fromkeys(predictions.splits.tolist()):
        here = (predictions.splits == split) & (predictions.codes >= 0)
        y = predictions.codes[here]
        if len(np.unique(y)) < 2:
            continue
        units = np.unique(predictions.groups[here], return_inverse=True)[1].astype(np.intp)
        rows = hash((y.tobytes(), predictions.groups[here].tobytes()))
        for name in record.run_names:
            keys = [f"{run.name}-seed{run.seed}" for run in record.runs if run.name == name]
            known = [predictions.probabilities[key][here] for key in keys if key in predictions.probabilities]
            if known:
                yield (name, split), rows, [scored_auc(y, p, units) for p in known]


def recorded_differences(records: Sequence[Any], names: Sequence[str]) -> Table:
    """Return the differences within each run (rows) side by side (columns of text)."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for title, record in zip(names, records, strict=True):
        for d in record.differences:
            size = interval(d.mean, d.low, d.high, digits=3, signed=True)
            key = difference_name(d), d.split, f"{d.run} − {d.against}"
            found.setdefault(key, {})[title] = f"{size} {difference_mark(d, record.group)}"
    rows = [
        {"what": key[0], "split": key[1], "networks": key[2], **{name: one.get(name, "") for name in names}}
        for key, one in found.items()
    ]
    return make_table("within", "What guiding changed in each run", "Paired differences within each run.", rows)


def _numbers(found: PairedInterval) -> dict[str, object]:
    return {**ends("difference", found.mean, found.low, found.high), "p": found.p}


def _mark(found: PairedInterval, group: str | None) -> str:
    few = are_few(found.n_groups, group)
    return mark_of(side_of(found.mean, found.low, found.high), None, few=few, sought=("above", "below"))
