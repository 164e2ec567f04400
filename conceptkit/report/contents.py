"""What a record holds: networks, notes, and its differences in words."""

from __future__ import annotations

from collections.abc import Sequence

from conceptkit.records import (
    Difference,
    GridRecord,
    GuideRecord,
    Note,
    ProbeRecord,
    ProbeRow,
    Record,
    RunsRecord,
    concept_of,
)
from conceptkit.records.guide import reference_of
from conceptkit.report.wording import metric_name


def network_name(row: ProbeRow) -> str:
    """Return the name of a row's encoder, else its network and weights."""
    return row.encoder or f"{row.model} ({row.weights})"


def networks(rows: Sequence[ProbeRow]) -> list[str]:
    """Return the names of the networks of ``rows`` in their order."""
    return list(dict.fromkeys(map(network_name, rows)))


def notes_of(record: Record) -> list[Note]:
    """Return the notes of a record, then those of its rows, each once with the rows that it concerns."""
    if not isinstance(record, ProbeRecord):
        return [*map(Note.of, record.notes)]
    concerned: dict[Note, list[ProbeRow]] = {}
    for row in record.rows:
        for text in (row.interval_note, *row.notes):
            if text:
                concerned.setdefault(Note.of(text), []).append(row)
    own = [
        Note(note.kind, f"{_places(rows, record.rows)}: {note}{'' if note.endswith(('.', ')')) else '.'}")
        for note, rows in concerned.items()
    ]
    return [*map(Note.of, record.notes), *own]


def _places(rows: Sequence[ProbeRow], among: Sequence[ProbeRow]) -> str:
    """Return which of the rows ``among`` these are: concepts, and their layers where it is not all of them."""
    if len(rows) == len(among) > 1:
        return "Every score"
    several = len(networks(among)) > 1
    parts = []
    for concept in dict.fromkeys(row.concept for row in rows):
        own = [row for row in rows if row.concept == concept]
        all_of_it = len(own) == sum(row.concept == concept for row in among)
        places = [f"{row.layer} of {network_name(row)}" if several else row.layer for row in own]
        parts.append(concept if all_of_it else f"{concept} at {', '.join(dict.fromkeys(places))}")
    return "; ".join(parts)


def trained_concepts(record: RunsRecord) -> tuple[list[str], list[str]]:
    """Return the concepts that some network of the record encourages, and those that one discourages."""
    holders = record.cells if isinstance(record, GridRecord) else [record] if isinstance(record, GuideRecord) else []
    encouraged = dict.fromkeys(concept_of(name) for holder in holders for name in holder.encourage)
    discouraged = dict.fromkeys(concept_of(name) for holder in holders for name in holder.discourage)
    return list(encouraged), list(discouraged)


def reference_run(record: RunsRecord) -> str:
    """Return the run that the others are compared with; empty without runs."""
    return reference_of(record.run_names)


def compared_runs(record: GuideRecord) -> list[str]:
    """Return the names of the runs other than the reference."""
    return [name for name in record.run_names if name != reference_run(record)]


def is_in_sample(row: ProbeRow) -> bool:
    """Return whether the row was scored on the rows of its fit."""
    return row.protocol != "cross-validated"


READERS = {"probe": "probe", "head": "head", "linear": "linear probe", "mlp": "MLP probe", "kernel": "kernel probe"}
"""Reader of a concept → its name in words."""


def difference_kind(d: Difference) -> str:
    """Return whether ``d`` is of an ``encouraged`` concept, a ``discouraged`` one, or the ``main task``."""
    return {"": "main task", "probe": "encouraged"}.get(d.metric.reader, "discouraged")


def difference_name(d: Difference) -> str:
    """Return what ``d`` is a difference of, in words."""
    return f"{d.metric.concept} ({READERS[d.metric.reader]})" if d.metric.reader else metric_name(d.metric)


def difference_parts(record: RunsRecord) -> list[tuple[str, str, str]]:
    """Return what, split and run of each difference, for a figure's labels; the run is empty if there is only one."""
    several = len({(d.run, d.against) for d in record.differences}) > 1
    return [(difference_name(d), d.split, d.run if several else "") for d in record.differences]
