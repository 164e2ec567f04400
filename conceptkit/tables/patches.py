"""The patch table: one row per patch, its pixels read on demand, its other columns concepts."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from conceptkit.errors import InputError, check_choice, near_names
from conceptkit.images.decoding import (
    LOCATIONS,
    PLACE_COLUMNS,
    Pixels,
    content_digest,
    hexdigest,
    one_line,
    read_pixels,
)
from conceptkit.options.base import is_frame
from conceptkit.tables.table_reading import (
    NO_NUMBER,
    are_dates,
    check_spelling,
    frame_digest,
    is_number,
    label_of,
    read_frame,
    read_in_memory,
    set_aside,
    spelling_note,
)

RESERVED = (
    *("patch_id", "image", "slide", "h5", "features", "key", "row", "x", "y", "size", "side", "mpp", "mask"),
    *("tissue_share", "tumor_share", "label", "split", "fold", "group", "patient"),
)
"""Columns with a meaning of their own; every other column is a concept."""

_PLACES = (
    *("patch_id", "image", "slide", "h5", "features", "key", "row", "x", "y", "size", "side", "mpp", "mask", "split"),
)
"""Reserved columns that cannot be probed (label, group and patient can)."""

CATEGORICAL = ("center", "label", "split", "group", "patient")
"""Columns that are categorical whatever their type."""

KINDS = ("continuous", "categorical")

_FEW_CLASSES = 10
"""Largest number of distinct whole numbers that may be classes."""

_FIGURE = r"[<>≤≥~]?\s*[+-]?(?:\d[\d.,'’\s]*|\.\d+)(?:[eE][+-]?\d+)?\s*%?"
"""A number as people write it: 3,5 or 1 234 or <0.1 or 35%"""

_LONGEST_ID = 4096
"""Bytes of a patch_id: stores give every name the room of the longest"""

_ODD_WORDS = ("-", "--", "–", "?", ".")
"""Words of a column of text that mostly stand for a missing value"""


@dataclass(frozen=True)
class Concept:
    """One concept of a patch table."""

    name: str
    kind: str
    """``continuous`` or ``categorical``"""
    values: NDArray[Any]
    """(n,) float64 with NaN where missing, or text with ``None`` where missing"""


class Treatment(Protocol):
    """A change of pixels that depends only on a row's values in some columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns."""

    def __call__(self, pixels: Pixels, record: Mapping[Any, Any]) -> Pixels:
        """Return the changed pixels (h, w, 3) of a row."""


@dataclass(frozen=True)
class PatchTable:
    """A patch table in memory: columns, and pixels on demand.

    Rows are ordered by ``patch_id``, so that no result depends on the order of the file.
    """

    frame: pd.DataFrame
    folder: Path
    """Paths in the table are relative to this folder"""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Concept → ``continuous`` or ``categorical``, where the user said so"""
    treatment: Treatment | None = None
    """What is done to the pixels of every row when they are read"""
    aside: Mapping[str, str] = field(default_factory=dict)
    """Column → what it holds (ids, coordinates, row numbers, dates), of those that are concepts only when named"""
    notes: tuple[str, ...] = ()
    """What was changed when the table was read"""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def patch_ids(self) -> list[str]:
        """Return the unique names of the rows."""
        return [str(v) for v in self.frame["patch_id"]]

    @functools.cached_property
    def location(self) -> str | None:
        """Return the leading column of the pixels' location, or ``None`` when the table has no pixels."""
        return _location(self.frame.columns)

    @property
    def concept_names(self) -> list[str]:
        """Return the columns that are concepts by default, in the order of the table."""
        named = {*RESERVED, *self.aside} - {*self.kinds}
        return [str(c) for c in self.frame.columns if c not in named and c not in RESERVED]

    @property
    def aside_note(self) -> str | None:
        """Return a sentence on the columns that are concepts only when they are named."""
        columns = [f"{name} ({what})" for name, what in self.aside.items() if name not in self.kinds]
        return f"Skipped columns: {', '.join(columns)}. Name a column to use it as a concept." if columns else None

    def column(self, argument: str, name: str) -> pd.Series[Any]:
        """Return a column; raise :class:`InputError` with the near names when it does not exist."""
        if name not in self.frame.columns:
            offered = [c for c in self.frame.columns if argument != "concept" or c not in _PLACES]
            raise InputError(f"{argument}: the table has no column {name!r}; {near_names(name, offered)}.")
        return self.frame[name]

    def kind(self, name: str) -> str:
        """Return ``continuous`` or ``categorical`` for a column."""
        if name in self.kinds:
            return self.kinds[name]
        column = self.column("concept", name)
        if name in CATEGORICAL or types.is_bool_dtype(column) or not types.is_numeric_dtype(column):
            # A column without any value is read as numbers or as text by chance; make_target refuses it either way.
            return "categorical"
        return "continuous"

    def concept(self, name: str) -> Concept:
        """Return a concept's values.

        Raises :class:`InputError` when there is no such column, or the column says where pixels are, or text was
        declared continuous.
        """
        column = self.column("concept", name)
        if name in _PLACES:
            raise InputError(f"concept: {name} says where a patch is or how it is used; it cannot be probed.")
        kind = self.kind(name)
        if name not in self.kinds and are_dates(column):
            raise InputError(
                f"concept: {name} holds dates, which are neither numbers nor classes; write a number, such as days "
                f"since the first, or use them as classes with --categorical {name}."
            )
        if kind == "continuous":
            try:
                return Concept(name, kind, column.to_numpy(dtype=np.float64, na_value=np.nan))
            except (ValueError, TypeError):
                words = [v for v in column.dropna() if not is_number(v)]
                wrong = next((v for v in words if str(v).strip().lower() not in NO_NUMBER), words[0])
                raise InputError(f"concept: {name} is declared continuous but holds {wrong!r}.") from None
        missing = column.isna().to_numpy()
        values = np.array([None if m else label_of(v) for v, m in zip(column, missing, strict=True)], dtype=object)
        check_spelling("concept", name, values)
        return Concept(name, kind, values)

    def looks_categorical(self, name: str) -> str | None:
        """Return a sentence when a continuous concept is an integer column of at most 10 values, else ``None``."""
        if self.kind(name) != "continuous" or name in self.kinds:
            return None
        values = self.concept(name).values
        distinct = np.unique(values[np.isfinite(values)])
        if 2 < len(distinct) <= _FEW_CLASSES and (distinct == np.round(distinct)).all():
            return (
                f"{name} has {len(distinct)} whole-numbered values and is treated as continuous; "
                f"use --categorical {name} to treat it as classes."
            )
        return None

    def check_words(self, name: str) -> None:
        """Raise :class:`InputError` when a column is text only because of cells such as ``n.d.`` or ``3,5``."""
        column = self.column("concept", name)
        if name in self.kinds or name in CATEGORICAL or self.kind(name) != "categorical":
            return
        words = column.dropna().astype("str").str.strip()
        figures = words[words.str.fullmatch(_FIGURE)]
        wrong = next((w for w in words if w.lower() not in NO_NUMBER and not is_number(w)), None)
        if wrong is None or len(figures) <= len(words) / 2:  # a Parquet file may say that its numbers are text
            return
        if figures.nunique() > _FEW_CLASSES or re.fullmatch(_FIGURE, wrong):
            raise InputError(
                f"concept: {name} holds {figures.nunique()} different numbers but is text because of {wrong!r}; "
                f"correct or empty such cells, or use the column as classes with --categorical {name}."
            )

    def looks_missing(self, name: str) -> str | None:
        """Return a sentence when a categorical column holds a word that other programs write for missing values."""
        if self.kind(name) != "categorical":
            return None
        words = self.frame[name].dropna().astype("str")
        odd = NO_NUMBER if (words == "+").any() else (*NO_NUMBER, *_ODD_WORDS)
        found = words[words.str.lower().isin(odd) & (words.str.lower() != "none")]
        if found.empty:
            return None
        return (
            f"{name} holds {found.iloc[0]!r} in {len(found)} rows, treated as a value; "
            "leave a cell empty where the value is missing."
        )

    def groups(self, name: str | None) -> NDArray[Any] | None:
        """Return the group labels (n,), or ``None`` without a group column; every row needs one."""
        if name is None:
            return None
        column = self.column("group", name)
        if column.isna().any():
            raise InputError(f"group: every row needs a {name}, {int(column.isna().sum())} of {len(self)} have none.")
        if column.dtype == object:  # True and 1 are equal, and two groups
            labels = np.array([label_of(v) for v in column], dtype=object)
        else:
            codes, values = pd.factorize(column)
            labels = np.array([label_of(v) for v in values], dtype=object)[codes]
        check_spelling("group", name, labels)
        return labels

    def spelled_alike(self, name: str) -> str | None:
        """Return a sentence when two values of a categorical column differ only in capitals or leading zeros."""
        return spelling_note(name, self.frame[name].dropna().unique()) if self.kind(name) == "categorical" else None

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> PatchTable:
        """Return the table with some of its rows."""
        return replace(self, frame=self.frame.iloc[np.flatnonzero(rows) if rows.dtype == bool else rows])

    def with_kinds(self, kinds: Mapping[str, str]) -> PatchTable:
        """Return the table with the kind of some concepts declared."""
        for name, kind in kinds.items():
            self.column("kind", name)
            check_choice(f"kind of {name}", kind, KINDS)
        return replace(self, kinds={**self.kinds, **kinds})

    def pixels(self, row: int) -> Pixels:
        """Return the pixels of one row, (height, width, 3) uint8, RGB.

        Raises :class:`InputError` when the file is missing, cannot be read, or the window lies outside.
        """
        location = self.location
        if location is None:
            if "slide" in self.frame.columns:
                raise InputError(_incomplete(self.frame.columns, "slide"))
            raise InputError(
                f"table: needs one of the columns {', '.join(LOCATIONS)} to find pixels; "
                f"it has {', '.join(map(str, self.frame.columns))}."
            )
        cells = self._cells(row)
        found = read_pixels(self.folder, location, cells, f"patch {cells['patch_id']}")
        return found if self.treatment is None else self.treatment(found, self.frame.iloc[row].to_dict())

    def identities(self) -> list[str]:
        """Return, for each row, a digest of where its pixels are and of that file's size and time of change.

        Two rows with the same digest hold the same pixels, as long as the file system reports changes.
        """
        location = self.location
        if location is None:
            return [""] * len(self)
        files: dict[str, str] = {}
        out = []
        places = [c for c in (*PLACE_COLUMNS, *self._made) if c in self.frame.columns]
        columns = [self.frame[c].tolist() for c in (location, *places)]
        for file, *place in zip(*columns, strict=True):
            if file not in files:
                path = self.folder / str(file)
                stat = path.stat() if os.path.isfile(path) else None
                files[file] = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" if stat else f"{path}|absent"
            out.append(hexdigest(f"{files[file]}|{place}".encode()))
        return out

    def files_digest(self) -> str:
        """Return a digest of the names, sizes and times of change of all files that hold pixels.

        Names are as the table has them, so that a study may be moved as a whole.
        """
        location = self.location
        names = [] if location is None else sorted({str(v) for v in self.frame[location]})
        lines = []
        for name in names:
            path = self.folder / name
            stat = path.stat() if path.is_file() else None
            lines.append(f"{name}|{stat.st_size}|{stat.st_mtime_ns}" if stat else f"{name}|absent")
        return hexdigest("\n".join(lines).encode())

    def digest(self, row: int) -> str:
        """Return :func:`conceptkit.images.decoding.content_digest` of a row."""
        return "" if self.location is None else content_digest(self.folder, self.location, self._cells(row), self._made)

    @property
    def _made(self) -> tuple[str, ...]:
        """Return the columns that the treatment of pixels reads."""
        return () if self.treatment is None else self.treatment.columns

    @functools.cached_property
    def _places(self) -> Mapping[str, list[Any]]:
        """Return the columns that say where pixels are: a cell of a list is found a hundred times faster."""
        whole = self.location == "image" and "size" not in self.frame.columns
        wanted = ("patch_id", *LOCATIONS, *(c for c in PLACE_COLUMNS if not (whole and c in ("x", "y"))), *self._made)
        return {name: self.frame[name].tolist() for name in wanted if name in self.frame.columns}

    def _cells(self, row: int) -> dict[str, Any]:
        return {name: values[row] for name, values in self._places.items()}


@dataclass(frozen=True, eq=False)
class MemoryTable:
    """A table in memory, which takes the place of a file's path."""

    name: ClassVar[str] = "dataframe"
    """What records state instead of the name of a file"""
    stem: ClassVar[str] = "dataframe"
    frame: pd.DataFrame
    """As it was read, before rows are named"""
    notes: tuple[str, ...]
    parent: Path
    """Current folder when it was given"""

    def __str__(self) -> str:
        return self.name


def as_table(table: Any) -> Path | MemoryTable:
    """Return a table by its path, or a table in memory (pandas, polars, pyarrow) as it is read.

    Raises
    ------
    InputError
        when it is neither, or a table in memory cannot be read
    """
    if isinstance(table, MemoryTable):
        return table
    if isinstance(table, str | Path):
        return Path(table)
    if not is_frame(table):
        raise InputError(f"table: must be a path or a DataFrame (pandas or polars), got a {type(table).__name__}.")
    return MemoryTable(*_read(MemoryTable.name, lambda: read_in_memory(table)), Path.cwd())


def table_digest(table: Path | MemoryTable) -> str:
    """Return a digest of a table's content."""
    if isinstance(table, MemoryTable):
        return frame_digest(table.frame)
    return hashlib.sha256(table.read_bytes()).hexdigest()


def load_table(path: Path | MemoryTable, *, kinds: Mapping[str, str] | None = None) -> PatchTable:
    """Load a patch table from CSV or Parquet, or from memory.

    Raises :class:`InputError` when the file is missing or unreadable, a column occurs twice, there are no rows, or a
    ``patch_id`` repeats.
    """
    if isinstance(path, MemoryTable):
        frame, notes = path.frame, path.notes
    elif path.is_dir():
        raise InputError(f"table: must be a CSV or Parquet file, {path} is a folder.")
    elif not path.is_file():
        raise InputError(f"table: file {path} not found.")
    else:
        file = path
        frame, notes = _read(str(path), lambda: read_frame(file))
    if frame.empty:
        raise InputError(f"table: {path} has no rows.")
    frame, repeated = _one_row_each(frame)
    notes = (*notes, *repeated)
    aside = {name: what for name, what in set_aside(frame).items() if name not in (*RESERVED, *CATEGORICAL)}
    notes = (*notes, *_near_reserved(frame))
    if _location(frame.columns) == "image" and {"x", "y"} & set(frame.columns) and "size" not in frame.columns:
        notes = (*notes, "There is no column size: each patch is the whole image, and x and y are not used.")
    return PatchTable(_with_ids(frame, str(path)), path.parent, aside=aside, notes=notes).with_kinds(kinds or {})


def _read(path: str, read: Callable[[], tuple[pd.DataFrame, tuple[str, ...]]]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return what ``read`` returns; raise :class:`InputError` when the table cannot be read."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"table: {path} cannot be read as a table (not UTF-8: {error.reason}); save it as CSV in UTF-8."
        ) from None
    except (OSError, ValueError, csv.Error, KeyError, TypeError, NotImplementedError) as error:  # some are Arrow's
        raise InputError(f"table: {path} cannot be read as a table ({one_line(error)}).") from None


def _near_reserved(frame: pd.DataFrame) -> list[str]:
    """Return a sentence for each column whose name differs from one with a meaning only in capitals."""
    names = [str(name) for name in frame.columns]
    options = {"group": "group", "patient": "group", "center": "center"}
    notes = []
    for name in names:
        lower = name.lower()
        if lower not in (*RESERVED, "center") or lower in (*names, "x", "y"):
            continue
        option = f", or use --{options[lower]} {name}" if lower in options else ""
        notes.append(
            f"Column {name} is an ordinary column (names are case-sensitive); to use it as {lower}, rename it{option}."
        )
    return notes


def _one_row_each(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table without names of patches with those of its slides, or else patients, and notes on equal rows.

    Raises
    ------
    InputError
        when a slide or patient has several rows that differ
    """
    unit = next((name for name in ("slide", "patient") if name in frame.columns), None)
    if unit is None or not {"patch_id", *LOCATIONS, *PLACE_COLUMNS}.isdisjoint({*frame.columns} - {"slide"}):
        return frame, []
    distinct = frame.drop_duplicates()
    twice = distinct[distinct[unit].duplicated(keep=False)]
    if len(twice):
        first = twice[twice[unit] == twice[unit].iloc[0]]
        column = next((c for c in first.columns if first[c].nunique(dropna=False) > 1), unit)
        raise InputError(
            f"table: {unit} {first[unit].iloc[0]} has {len(first)} rows that differ in {column}; a table without "
            f"patch_id, and without x and y, has one row per {unit}."
        )
    names = frame[unit][frame.duplicated()].astype("str").unique()
    notes = [f"Repeated rows of {unit} {', '.join(names[:5])} read once ({len(frame) - len(distinct)})."]
    return distinct.assign(patch_id=distinct[unit].map(label_of, na_action="ignore")), notes if len(names) else []


def _with_ids(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    location = _location(frame.columns)
    partial = [lead for lead in LOCATIONS if lead in frame.columns]
    # With pixels or features a column slide is only a name; with patch_id it may be one.
    nameable = {"slide"} if "patch_id" in frame.columns else set()
    if location is None and "features" not in frame.columns and set(partial) - nameable:
        raise InputError(_incomplete(frame.columns, min(set(partial) - nameable)))
    if "patch_id" not in frame.columns:
        if location is None and not {"row", "x"} & set(frame.columns):
            raise InputError(
                f"table: {path} needs a column patch_id, or one of {', '.join(LOCATIONS)} to build it from."
            )
        lead = location or next(iter(partial), None)
        leading = ("slide", "features", "row") if lead is None else LOCATIONS[lead]
        parts = [c for c in dict.fromkeys((*leading, "x", "y", "size")) if c in frame.columns]
        places = zip(*(frame[c] for c in parts), strict=True)
        frame = frame.assign(patch_id=["|".join("" if pd.isna(v) else label_of(v) for v in place) for place in places])
    if frame["patch_id"].isna().any():
        raise InputError(f"table: every row needs a patch_id, {int(frame['patch_id'].isna().sum())} have none.")
    frame = frame.assign(patch_id=frame["patch_id"].astype("str"))
    for name in frame["patch_id"]:
        if not _storable(name):
            raise InputError(
                f"table: patch_id {name[:60]!r} in {path} cannot be kept: a name has at most {_LONGEST_ID} bytes of "
                "UTF-8, none of them 0."
            )
    twice = frame["patch_id"][frame["patch_id"].duplicated()]
    if len(twice):
        raise InputError(f"table: patch_id must be unique, {twice.iloc[0]!r} occurs more than once in {path}.")
    return frame.sort_values("patch_id", kind="stable").reset_index(drop=True)


def _location(columns: Iterable[Any]) -> str | None:
    """Return the leading column of the first location that is complete."""
    names = set(columns)
    return next((lead for lead, needed in LOCATIONS.items() if names.issuperset(needed)), None)


def _incomplete(columns: Collection[Any], lead: str) -> str:
    needed = [name for name in LOCATIONS[lead] if name != lead]
    absent = next(name for name in needed if name not in columns)
    return f"table: column {lead} needs {', '.join(needed)}; {absent} is missing."


def _storable(name: str) -> bool:
    try:
        return "\0" not in name and len(name.encode()) <= _LONGEST_ID
    except UnicodeEncodeError:
        return False
