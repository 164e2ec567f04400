"""Tables from CSV and Parquet: text stays as it is written, numbers are numbers, a saved index is dropped."""

from __future__ import annotations

import csv
import datetime
import decimal
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from pandas.api import types

from conceptkit.errors import InputError

PARQUET = (".parquet", ".pq")
"""Suffixes of Parquet files; every other table is read as CSV."""

TEXT = (
    *("patch_id", "image", "slide", "h5", "features", "key", "mask"),
    *("center", "label", "split", "group", "patient"),
)
"""Columns read as text, so that patient 007 stays 007."""

_NUMBERS = ("row", "x", "y", "size", "side", "mpp", "tissue_share", "tumor_share")
"""Columns of numbers, however they are written: x may be 00512."""

NO_NUMBER = ("na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none")
"""Texts for a missing number, in upper or lower case; in a column of text they are ordinary words."""

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters without a width, which web pages and spreadsheets leave next to words"""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf(?:inity)?"

_NAME = r"0\d+|\d{16,}|\d+e\d+"
"""Digits that no program writes for a measured number: 007, ids that are too long for a float, 1E5 for a well"""

_DATE = r"(?:\d{4}-\d\d?-\d\d?|\d{4}/\d\d?/\d\d?|\d\d?([./-])\d\d?\1\d{4})(?:[T ]\d\d?:\d\d.*)?"

_INDEX = re.compile(r"|Unnamed: ?\d+(\.\d+)*|__index_level_\d+__")

_ID = re.compile(r"(?i:(?:.*[_ .-])?(?:uu|gu)?id)|.*[a-z]I[dD]")

_COORDINATE_WORDS = re.compile(
    "p(i)?x(els?)?|[uµμm]m|coord(inate)?s?|pos(ition)?|cent(er|re|roid)|tile|patch|level0?|start|end|min|max|grid|slide|wsi|"
    "origin|offset|index|idx|[01]"
)
"""What may follow or precede x in the name of a coordinate"""
_AXES = {"x": "xy", "y": "xy", "row": "rows", "col": "rows", "column": "rows"}


def read_frame(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table with typed columns, in the order of the file, and notes on what was changed.

    Names of columns and cells of text lose the blanks around them. In CSV a column is of numbers when every cell is one
    or stands for a missing one, unless its digits can only be names (007). Raises ValueError, OSError, csv.Error,
    KeyError, TypeError or NotImplementedError when the file cannot be read, or a column name occurs twice.
    """
    parquet = path.suffix.lower() in PARQUET
    return _tidied(_read_parquet(path) if parquet else _read_csv(path), parquet=parquet)


def read_in_memory(data: Any) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table in memory (pandas, or any that Arrow reads) as :func:`read_frame` returns its Parquet file.

    Raises ValueError, TypeError, KeyError or NotImplementedError when Parquet cannot hold it.
    """
    file = io.BytesIO()
    if isinstance(data, pd.DataFrame):
        data.set_axis([str(name) for name in data.columns], axis=1).to_parquet(file)
    else:
        to_arrow = getattr(data, "to_arrow", None)  # text of polars is of a type that few readers know otherwise
        pyarrow.parquet.write_table(pyarrow.table(data if to_arrow is None else to_arrow()), file)
    return _tidied(_read_parquet(file), parquet=True)


def frame_digest(frame: pd.DataFrame) -> str:
    """Return a digest of the names, types and cells of a table."""
    digest = hashlib.sha256(repr([(str(name), str(column.dtype)) for name, column in frame.items()]).encode())
    for _, column in frame.items():
        digest.update(pd.util.hash_pandas_object(column, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _tidied(frame: pd.DataFrame, *, parquet: bool) -> tuple[pd.DataFrame, tuple[str, ...]]:
    empty = frame.isna().all(axis=1)
    if not parquet and empty.any():  # spreadsheets write them below a table
        frame = frame[~empty].reset_index(drop=True)
    frame, notes = _without_index(frame)
    notes += [f"Rows without any value skipped: {int(empty.sum())}."] if not parquet and empty.any() else []
    names = list(frame.columns)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"column {', '.join(repeated)} occurs more than once")
    frame, stripped = _stripped(frame)
    if not parquet:
        return _typed(frame, [*notes, *stripped])
    return _with(frame, {c: _as_text(frame[c]) for c in names if c in TEXT}), (*notes, *stripped)


def _with(frame: pd.DataFrame, changed: dict[Any, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: changed.get(name, column) for name, column in frame.items()})


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        skipped = _lines_above(stream)
        stream.seek(0)
        for _ in range(skipped):
            stream.readline()
        names = next((line for line in csv.reader(stream) if line), [])
    separator = next((s for s in ";\t|" if len(names) == 1 and s in names[0]), None)
    if separator is not None:
        raise ValueError(f"cells must be separated by commas, got {separator!r}")
    # An empty cell is missing; a class may well be called NA, None or null.
    frame = pd.read_csv(
        path, dtype="str", encoding="utf-8-sig", keep_default_na=False, na_values=[""], skiprows=skipped
    )
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes cells without a name for an index
        raise ValueError(f"rows have more than the {len(names)} cells that are named")
    return frame.set_axis([_name(name) for name in names], axis=1)  # pandas numbers names that repeat


def _lines_above(stream: TextIO) -> int:
    """Return the number of lines above the names of columns: the separator as Excel reads it, and comments.

    Raises
    ------
    ValueError
        when a line that begins with # may be the names of columns
    """
    above: list[list[str]] = []
    for text in stream:
        cells = next(csv.reader([text]), [])
        if cells and not cells[0].startswith("#") and not (not above and cells[0].lower().startswith("sep=")):
            named = next((line for line in above if line[:1] and line[0][0] == "#" and len(line) == len(cells)), None)
            if named is not None and len(cells) > 1:
                raise ValueError(
                    f"line {above.index(named) + 1} begins with # and has as many cells as the next; remove the # if "
                    "they are the names of columns, else the line"
                )
            break
        above.append(cells)
    return len(above) if any(above) else 0


def _read_parquet(path: Path | BinaryIO) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    if not isinstance(frame.index, pd.RangeIndex):
        levels = enumerate(frame.index.names)
        frame = frame.reset_index(names=[f"__index_level_{i}__" if v is None else v for i, v in levels])
    types = {field.name: field.type for field in pyarrow.parquet.read_schema(path)}
    columns = {}
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if isinstance(column.dtype, pd.StringDtype):  # Arrow decodes text lazily
            pyarrow.array(column).validate(full=True)
        elif column.dtype == object:
            column = _of_objects(name, column)
        elif (
            column.dtype == np.float64
            and pyarrow.types.is_integer(types.get(str(name), pyarrow.null()))
            and (column.abs() >= 2**53).any()
        ):  # pandas makes floats of integers with gaps, which would merge ids
            whole = pyarrow.parquet.read_table(path, columns=[str(name)]).column(0)
            column = whole.to_pandas(types_mapper={whole.type: pd.Int64Dtype()}.get)
        columns[place] = column
    return pd.DataFrame(columns).set_axis([_name(name) for name in frame.columns], axis=1)


def _of_objects(name: Any, column: pd.Series[Any]) -> pd.Series[Any]:
    """Return decimals as numbers, and refuse cells that hold more than one value."""
    odd = next((v for v in column if isinstance(v, bytes | list | dict | np.ndarray)), None)
    if odd is not None:
        raise ValueError(f"column {name} holds {type(odd).__name__} in a cell; each cell must be a number or text")
    decimals = any(isinstance(v, decimal.Decimal) for v in column)
    return column.astype("float64") if decimals else column


def _name(name: Any) -> str:
    return str(name).replace("\ufeff", "").strip()


def _without_index(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out columns without a name of their own: an index that pandas, R or a spreadsheet wrote, or empty ones."""
    unnamed = np.array([bool(_INDEX.fullmatch(str(name))) for name in frame.columns], dtype=bool)
    if not unnamed.any():
        return frame, []
    first = frame.iloc[:, int(unnamed.argmax())].iloc[:1].tolist()
    which = "A column" if unnamed.sum() == 1 else f"{int(unnamed.sum())} columns"
    shown = f" (first cell {str(first[0])[:30]!r})" if first and first[0] == first[0] else ""
    note = f"{which} without a name{shown} skipped, as a saved index; give the column a name to use it."
    return frame.loc[:, ~unnamed], [note]


def _stripped(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Remove blanks around cells of text; a cell of nothing else is empty."""
    changed, examples = {}, []
    for name, column in frame.items():
        of_text = isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_string_dtype(column.cat.categories)
        if not of_text and not isinstance(column.dtype, pd.StringDtype):
            continue
        words = column.astype("str")
        bare = words.str.strip().str.strip(_INVISIBLE).str.strip()
        differs = (bare != words) & words.notna()
        if differs.any():
            changed[name] = bare.mask(bare == "")
            examples.append(f"{name} ({int(differs.sum())} cells, such as {words[differs].iloc[0][:30]!r})")
    if not changed:
        return frame, []
    return _with(frame, changed), [f"Blanks around text were removed in {', '.join(examples)}."]


def _typed(frame: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return columns of text (CSV) as numbers or true and false where all cells are."""
    typed: dict[Any, Any] = {}
    for name, column in frame.items():
        if name in TEXT:
            continue
        words = column.str.lower()
        missing = words.isna() | words.isin(NO_NUMBER)
        here = words[~missing]
        if column.isna().all():
            typed[name] = column.astype("float64")
        elif not len(here) or not here.str.fullmatch(_NUMBER).all():
            flags = {"true": True, "false": False}
            if len(here) and here.isin(list(flags)).all():
                typed[name] = words.map(flags).astype("object") if missing.any() else words.map(flags)
        elif name not in _NUMBERS and _are_names(here):
            example = here[here.str.fullmatch(_NAME)].iloc[0]
            notes.append(
                f"{name} is read as text, as {example[:30]!r} looks like a name and not like a number; with kind "
                f"{name} = continuous in the study file it is read as numbers."
            )
        else:
            typed[name] = pd.to_numeric(words.mask(missing))
    return _with(frame, typed), tuple(notes)


def _are_names(words: pd.Series[Any]) -> bool:
    return bool(words.str.fullmatch(_NAME).any() and words.str.fullmatch(rf"\d+|{_NAME}").all())


def _as_text(column: pd.Series[Any]) -> pd.Series[Any]:
    return (
        column if isinstance(column.dtype, pd.StringDtype) else column.map(label_of, na_action="ignore").astype("str")
    )


def label_of(value: Any) -> str:
    """Return a class as text; 3.0, which a column with gaps makes of 3, is 3."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def is_number(value: Any) -> bool:
    """Return whether a cell can be read as a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def set_aside(frame: pd.DataFrame) -> dict[str, str]:
    """Return column → content, of those that say where or which a patch is rather than what is in it.

    These are coordinates (in pairs, such as ``x_um`` and ``y_um``), ids, row numbers and dates. Rows of ``frame`` are
    in the order of the file, in which they were numbered.
    """
    coordinates = _coordinates([str(name) for name in frame.columns])
    found = {}
    for name, column in frame.items():
        numeric = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
        if _ID.fullmatch(str(name)):
            found[str(name)] = "ids"
        elif numeric and str(name) in coordinates:
            found[str(name)] = "coordinates"
        elif numeric and _numbers_rows(str(name), column):
            found[str(name)] = "row numbers"
        elif are_dates(column):
            found[str(name)] = "dates"
    return found


def _coordinates(names: Iterable[str]) -> set[str]:
    """Return the names of x and y, or row and column, if both exist."""
    axes: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        spaced = re.sub(r"\b([xy])(min|max|start|end|px|um|coord|pos|[01])\b", r"\1 \2", name.replace("_", " ").lower())
        words = re.findall(r"\w+", spaced)
        axis = [word for word in words if word in _AXES]
        rest = tuple(word for word in words if word not in _AXES)
        if len(axis) == 1 and all(map(_COORDINATE_WORDS.fullmatch, rest)):
            axes.setdefault((_AXES[axis[0]], *rest), {})[name] = axis[0].replace("column", "col")
    return {name for pair in axes.values() if len(set(pair.values())) == 2 for name in pair}


def _numbers_rows(name: str, column: pd.Series[Any]) -> bool:
    n = len(column)
    if n < 3 or column.isna().any():
        return False
    values = column.to_numpy()
    if name.lower() in ("index", "level_0"):
        values = np.sort(values)
    first = (0,) if n < 10 else (0, 1)  # in a few rows 1, 2, 3 may well be measured
    return values[0] in first and bool((values == np.arange(n) + values[0]).all())


def are_dates(column: pd.Series[Any]) -> bool:
    """Return whether a column holds dates, times or durations, by its type or as text."""
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        return True
    here = column.dropna()
    if here.empty:
        return False
    if column.dtype == object:
        return all(isinstance(v, datetime.date | datetime.time | datetime.timedelta) for v in here)
    if not isinstance(column.dtype, pd.StringDtype) or re.fullmatch(_DATE, str(here.iloc[0])) is None:
        return False
    return all(re.fullmatch(_DATE, word) for word in here.unique())


def check_spelling(argument: str, name: str, labels: Iterable[Any]) -> None:
    """Raise :class:`InputError` when two labels are one number in two spellings, such as 1 and 1.0."""
    met: dict[str, str] = {}
    for label in sorted({str(v) for v in labels if v is not None}):
        # 007 and 7 may be two patients; 1.0 is what a column with gaps makes of 1.
        if not re.fullmatch(r"\d+(?:\.0*)?", label) or re.fullmatch(r"0\d+", label):
            continue
        other = met.setdefault(label.partition(".")[0], label)
        if other != label:
            raise InputError(
                f"{argument}: {name} holds {other!r} and {label!r}, which may be the same; write them the same way."
            )


def spelling_note(name: str, labels: Iterable[Any]) -> str | None:
    """Return a sentence when two labels differ only in capitals or leading zeros; they are treated as different."""
    met: dict[str, str] = {}
    for label in sorted({str(v) for v in labels if v is not None}):
        key = re.sub(r"(?<!\d)0+(?=\d)", "", label.casefold())
        if key in met:
            return f"{name} holds {met[key]!r} and {label!r}, treated as two different values."
        met[key] = label
    return None
