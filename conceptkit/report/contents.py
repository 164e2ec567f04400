"""What a record holds, asked by run, seed, concept and kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from conceptkit.records import Difference, GridRecord, GuideRecord, GuideRun, ProbeRecord, ProbeRow, Record
from conceptkit.report.wording import as_float, metric_name


def mean_sd(values: Iterable[object]) -> tuple[float, float]:
    """Return mean and sample SD of the finite values; NaN for the SD of fewer than two."""
    finite = [v for v in map(as_float, values) if math.isfinite(v)]
    if not finite:
        return math.nan, math.nan
    mean = math.fsum(finite) / len(finite)
    if len(finite) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / (len(finite) - 1))


def networks(rows: Sequence[ProbeRow]) -> list[tuple[str, str]]:
    """Return the (model, weights) pairs of ``rows`` in their order."""
    return list(dict.fromkeys((r.model, r.weights) for r in rows))


def notes_of(record: Record) -> list[str]:
    """Return what a reader of a record has to know: its own sentences, then those of its rows, each once."""
    if not isinstance(record, ProbeRecord):
        return list(record.notes)
    said: dict[str, list[ProbeRow]] = {}
    for row in record.rows:
        for note in (row.interval_note, *row.notes):
            if note:
                said.setdefault(note, []).append(row)
    return [*record.notes, *(f"{_concerned(rows, record.rows)}: {_ended(note)}" for note, rows in said.items())]


def _ended(note: str) -> str:
    return note if note.endswith((".", ")")) else f"{note}."


def _concerned(rows: Sequence[ProbeRow], among: Sequence[ProbeRow]) -> str:
    """Return which of the rows ``among`` these are: concepts, and their layers where it is not all of them."""
    if len(rows) == len(among) > 1:
        return "Every score"
    several = len(networks(among)) > 1
    parts = []
    for concept in dict.fromkeys(row.concept for row in rows):
        own = [row for row in rows if row.concept == concept]
        all_of_it = len(own) == sum(row.concept == concept for row in among)
        places = [f"{row.layer} of {row.model} ({row.weights})" if several else row.layer for row in own]
        parts.append(concept if all_of_it else f"{concept} at {', '.join(dict.fromkeys(places))}")
    return "; ".join(parts)


def run_names(record: GuideRecord | GridRecord) -> list[str]:
    """Return the names of the runs in their order, each once whatever its number of seeds."""
    return list(dict.fromkeys(run.name for run in record.runs))


def wishes(record: GuideRecord | GridRecord) -> tuple[list[str], list[str]]:
    """Return the concepts that a network of the record was to know, and those that one was not to know."""
    holders = [record] if isinstance(record, GuideRecord) else record.cells
    known = dict.fromkeys(name.partition("@")[0] for holder in holders for name in holder.encourage)
    unknown = dict.fromkeys(name.partition("@")[0] for holder in holders for name in holder.discourage)
    return list(known), list(unknown)


def reference_run(record: GuideRecord) -> str | None:
    """Return the run that the others are compared with: ``baseline``, or the first; ``None`` without runs."""
    names = run_names(record)
    return "baseline" if "baseline" in names else (names[0] if names else None)


def compared_runs(record: GuideRecord) -> list[str]:
    """Return the names of the runs beside the reference."""
    return [name for name in run_names(record) if name != reference_run(record)]


def over_seeds(
    record: GuideRecord, name: str, read: Callable[[GuideRun], Mapping[str, Mapping[str, float | None]]], *keys: str
) -> tuple[float, float]:
    """Return mean and SD over the seeds of run ``name`` of the number under ``keys``."""
    outer, inner = keys
    return mean_sd(read(run).get(outer, {}).get(inner) for run in record.runs if run.name == name)


def names_in(record: GuideRecord, first: Sequence[str], read: Callable[[GuideRun], Iterable[str]]) -> list[str]:
    """Return ``first`` and then every other name that ``read`` finds in a run."""
    return list(dict.fromkeys([*first, *(name for run in record.runs for name in read(run))]))


def is_in_sample(row: ProbeRow) -> bool:
    """Return whether the row was scored on the rows of its fit."""
    return row.protocol != "cross-validated"


READERS = {"probe": "probe", "linear": "linear probe", "mlp": "MLP probe"}
"""First part of a difference's metric → who reads the concept that is its second part."""


def read_by(d: Difference) -> tuple[str, str]:
    """Return the reader's key and the concept of ``d``; two empty texts for a metric of the main task."""
    reader, _, concept = d.metric.partition(":")
    return (reader, concept) if concept and reader in READERS else ("", "")


def difference_kind(d: Difference) -> str:
    """Return whether ``d`` is of an ``encouraged`` concept, a ``discouraged`` one, or the ``main task``."""
    return {"": "main task", "probe": "encouraged"}.get(read_by(d)[0], "discouraged")


def difference_name(d: Difference) -> str:
    """Return what ``d`` is a difference of, in words."""
    reader, concept = read_by(d)
    return f"{concept} ({READERS[reader]})" if reader else metric_name(d.metric)


def difference_parts(record: GuideRecord) -> list[tuple[str, str, str]]:
    """Return what, split and run of each difference, for a figure's labels; the run is empty when there is but one."""
    several = len({(d.run, d.against) for d in record.differences}) > 1
    return [(difference_name(d), d.split, d.run if several else "") for d in record.differences]
