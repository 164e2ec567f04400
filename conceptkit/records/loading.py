"""Opening the record of a run folder, of whichever command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from conceptkit.errors import InputError
from conceptkit.options import RECORDS
from conceptkit.records.base import RECORD_FILE, Record
from conceptkit.registry import load

_NAMED = 5
"""Runs that a sentence names"""


def load_record(folder: str | Path) -> Record:
    """Load the record of a run folder (or of a record file).

    Raises
    ------
    InputError
        when there is no record, it is not JSON, or its schema is of another version.
    """
    folder = Path(folder)
    path = folder / RECORD_FILE if folder.is_dir() else folder
    if not path.is_file():
        within = sorted(found.parent for found in folder.glob(f"*/{RECORD_FILE}"))
        few = ", ".join(str(run) for run in within[:_NAMED]) + (" …" if len(within) > _NAMED else "")
        other = f"name a run in it: {few}" if within else "name a run folder (probe, guide and others write one)"
        raise InputError(f"run: {folder} holds no {RECORD_FILE}; {other}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"run: {path} is not a record of conceptkit (no JSON object with a schema).") from None
    kinds: dict[str, type[Record]] = {kind.schema: kind for kind in map(load, RECORDS.values())}
    if not isinstance(schema, str) or schema not in kinds:
        raise InputError(f"run: {path} has schema {schema!r}; this version reads {', '.join(kinds)}.")
    try:
        record = kinds[schema].from_dict(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"run: {path} is not a valid {schema} record: {error}.") from None
    return dataclasses.replace(record, folder=path.parent)
