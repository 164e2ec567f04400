"""What every record shares: its header, its JSON, its table and its figure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.files.atomic import replacing
from conceptkit.records.reading import read
from conceptkit.records.texts import Note, with_typed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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
    """Return ``value`` as JSON text; a number that is not finite becomes ``null``."""

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


def as_body(value: Any) -> Any:
    """Return dataclasses as dicts, wherever they are; with the typed forms of notes and metrics."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return with_typed({f.name: as_body(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {key: as_body(one) for key, one in value.items()}
    return tuple(map(as_body, value)) if isinstance(value, list | tuple) else value


def frame_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a tidy table, which has its columns even without a row."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns))


_SHOW: dict[str, Callable[[Record], Any]] = {}


def show_by(*, plot: Callable[[Record], Figure], html: Callable[[Record], str]) -> None:
    """Set the functions that draw a record and that show it in a notebook; the report, a room above, has them."""
    _SHOW.update(plot=plot, html=html)


@dataclass(frozen=True, kw_only=True, repr=False)
class Record:
    """What every record holds beside its results."""

    schema: ClassVar[str]

    study: str
    """Name of the study."""
    synthetic: bool = False
    """True when the patches are generated tissue, not real."""
    group: str | None = None
    """Column whose values are never split across folds; ``None``: rows were taken as independent."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the numbers has to know, each a :class:`conceptkit.records.Note`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The options the numbers were made with, seeds and hashes among them."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages in use."""
    folder: Path | None = field(default=None, compare=False)
    """The run folder; not part of the JSON."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(Note.of, self.notes)))

    def __repr__(self) -> str:
        """Return the class, the study, and how much of each kind the record holds."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        sizes = [f"{len(value)} {name}" for name, value in parts.items() if isinstance(value, tuple) and value]
        return f"{type(self).__name__}({', '.join([f'study={self.study!r}', *sizes])})"

    def _repr_html_(self) -> str:
        return str(_SHOW["html"](self))

    def plot(self) -> Figure:
        """Draw the record as one matplotlib figure; the same as ``ck.plot(record)``."""
        figure: Figure = _SHOW["plot"](self)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts and lists, ``schema`` and ``study`` first."""
        body = as_body(self)
        del body["folder"]
        return {"schema": self.schema, "study": body.pop("study"), **body}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` returned, also through JSON: ``null`` is read as not a number.

        Raises
        ------
        ValueError
            when a value is missing, unknown or of another type
        """
        record: Self = read({k: v for k, v in values.items() if k != "schema"}, cls, "record", null_is_nan=True)
        return record

    def save(self, folder: Path) -> Path:
        """Write the record into a run folder, in one step, and return its path."""
        path = folder / RECORD_FILE
        write_atomically(path, to_json(self.to_dict()))
        return path


@dataclass(frozen=True, kw_only=True, repr=False)
class RowsRecord(Record):
    """A record of rows, which are its table."""

    rows: tuple[Any, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table."""
        return frame_of(map(dataclasses.asdict, self.rows))
