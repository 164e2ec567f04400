"""What every record shares: its header, its JSON, and how it is written and read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from conceptkit.files.atomic import replacing

RECORD_FILE = "record.json"
"""Name of the record in a run folder."""

EMBEDDINGS_FILE = "embeddings.h5"
"""Name of the file in a guide run's folder with the trunk's output of every run on the evaluation rows."""

CONTEXT_FILE = "context.h5"
"""Name of the file in a run folder with what its report shows of the patches: rows, folds, samples, colours."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: object) -> str:
    """Return ``value`` as JSON text; a number that is not finite becomes ``null``, as JSON has no word for it."""

    def plain(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x) for x in v]
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if hasattr(v, "item") and not isinstance(v, str | bytes):  # NumPy scalars
            return plain(v.item())
        if isinstance(v, Path):
            return str(v)
        return v

    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record holds beside its results."""

    schema: ClassVar[str]

    study: str
    """Name of the study."""
    synthetic: bool = False
    """True when the patches are generated tissue, not real: said wherever the numbers are shown."""
    group: str | None = None
    """Column whose values are never split across folds; ``None``: rows were taken as independent."""
    notes: tuple[str, ...] = ()
    """Sentences a reader of the numbers has to know."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The options the numbers were made with, seeds and hashes among them."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages in use."""
    folder: Path | None = field(default=None, compare=False)
    """The run folder the record lies in; no part of the JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts and lists, ``schema`` and ``study`` first."""
        body = dataclasses.asdict(self)
        del body["folder"]
        return {"schema": self.schema, "study": body.pop("study"), **body}

    def save(self, folder: Path) -> Path:
        """Write the record into a run folder, in one step, and return its path."""
        path = folder / RECORD_FILE
        write_atomically(path, to_json(self.to_dict()))
        return path


def common_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a saved record, without its schema."""
    known = {k: v for k, v in values.items() if k != "schema"}
    return {**known, "notes": tuple(known.get("notes", ()))}


def read_fields(kind: Any, values: Mapping[str, Any]) -> Any:
    """Build ``kind``, reading ``null`` as not a number except where ``None`` has a meaning of its own."""
    optional = {f.name for f in dataclasses.fields(kind) if "None" in str(f.type)}
    read = {k: math.nan if v is None and k not in optional else v for k, v in values.items()}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()})
