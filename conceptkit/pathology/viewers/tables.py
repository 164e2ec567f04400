"""Rows of tables as objects of viewers: patches as tiles, nuclei as cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from pandas.api import types

from conceptkit.errors import InputError, near_names
from conceptkit.pathology.viewers.shapes import Canvas, Shape, object_id, with_unit
from conceptkit.tables.table_reading import PARQUET

WHOLES = ("slide", "image")
"""Columns that name the whole that a patch lies in; the first one that is present is used"""

CONTOUR = "contour"
"""Column of the outline of a nucleus: x and y in pixels of level 0, in pairs or one after the other"""

AS_TEXT = ("row", "side", "mpp")
"""Numbers that say how a patch is read: kept with the object, and not shown as measurements"""

_AT_ONCE = 4096

PLACES, PATCH_ID = ("x", "y", "size"), "patch_id"

OF_NUCLEI = ("x", "y", "x_um", "y_um")
"""Numbers of a table of nuclei that are kept as text: its contour says where a nucleus lies"""


@dataclass(frozen=True)
class Roles:
    """What becomes of the columns of a table."""

    whole: str
    """Column of the slide or image."""
    label: str | None
    """Column that becomes the class."""
    measures: Mapping[str, str]
    """Column of numbers → name of the measurement."""
    metadata: tuple[str, ...]
    """Columns that are kept with an object as text."""
    kinds: Mapping[str, str]
    """Column → ``bool``, ``integer``, ``number`` or ``text``, so that the way back restores its type."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class in the table → its spelling in viewers."""


def whole_of(columns: Collection[str], argument: str = "table") -> str:
    """Return the column that names the whole of a patch; raise :class:`InputError` without it or a place."""
    whole = next((name for name in WHOLES if name in columns), None)
    absent = [name for name in ("x", "y") if name not in columns]
    if whole is None or absent:
        needed = ", ".join([*absent, *([" or ".join(WHOLES)] if whole is None else [])])
        raise InputError(f"{argument}: a viewer needs columns that say where patches lie; the table has no {needed}.")
    return whole


def roles(
    frame: pd.DataFrame,
    *,
    label: str | None,
    only: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    places: Collection[str] = (*PLACES, PATCH_ID),
    usual: str = "label",
    as_text: Collection[str] = AS_TEXT,
) -> Roles:
    """Return what becomes of the columns of a table.

    Parameters
    ----------
    label : column of classes; ``None`` for ``usual``, where the table has it
    only : columns of numbers that become measurements; by default all
    units : of columns
    places : columns that the geometry and the name of an object hold
    as_text : columns of numbers that are kept with an object and not shown as measurements
    """
    columns = [str(name) for name in frame.columns]
    for argument, name in [("class", label), *(("concept", name) for name in only)]:
        if name is not None and name not in columns:
            raise InputError(f"{argument}: the table has no column {name!r}; {near_names(name, columns)}.")
    whole = whole_of(columns)
    label = label or (usual if usual in columns else None)
    rest = [name for name in columns if name not in (whole, label, CONTOUR, *places)]
    numbers = [name for name in rest if types.is_numeric_dtype(frame[name]) and name not in as_text]
    if wrong := [name for name in only if name not in numbers]:
        raise InputError(f"concept: {wrong[0]} is not a column of numbers; it is exported with each object as text.")
    measured = [name for name in numbers if not only or name in only]
    kinds = {name: _kind(frame[name]) for name in [*rest, *([label] if label else [])]}
    units = units or {}
    return Roles(
        whole,
        label,
        {name: with_unit(name, units.get(name, "")) for name in measured},
        tuple(name for name in rest if name not in numbers),
        {name: kind for name, kind in kinds.items() if name not in numbers or name in measured},
    )


def _kind(column: pd.Series[Any]) -> str:
    if types.is_bool_dtype(column):
        return "bool"
    if types.is_integer_dtype(column):
        return "integer"
    return "number" if types.is_numeric_dtype(column) else "text"


def tile_shapes(frame: pd.DataFrame, canvas: Canvas, found: Roles) -> Iterator[Shape]:
    """Yield the patches of one image, in the order of the table; rows without a place are left out."""
    image = canvas.path.name
    sized = "size" in frame
    for part in _parts(frame):
        x, y = (_numbers(part["x"]) - canvas.left, _numbers(part["y"]) - canvas.top)
        size = _numbers(part["size"]) if sized else np.zeros(len(part))
        names = [str(name) for name in part[PATCH_ID]] if PATCH_ID in part else [f"{a}|{b}" for a, b in _pairs(x, y)]
        rings = zip(_plain(x), _plain(y), _plain(x + size), _plain(y + size), strict=True)
        for (x0, y0, x1, y1), name, more in zip(rings, names, _more(part, found), strict=True):
            if x0 != x0 or y0 != y0 or x1 != x1:
                continue
            ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]] if sized else [[x0, y0]]
            yield Shape("tile" if sized else "point", object_id(image, name), ring, name, *more)


def _parts(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for start in range(0, len(frame), _AT_ONCE):
        yield frame.iloc[start : start + _AT_ONCE]


def _pairs(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[float, float]]:
    return zip(_plain(x), _plain(y), strict=True)


def _numbers(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _plain(values: NDArray[np.float64]) -> list[Any]:
    """Return numbers as lists hold them: whole ones without a point."""
    whole = np.isfinite(values).all() and (values == np.rint(values)).all()
    plain: list[Any] = (values.astype(np.int64) if whole else values).tolist()
    return plain


def _more(part: pd.DataFrame, found: Roles) -> Iterator[tuple[str, dict[str, float], dict[str, str]]]:
    """Yield class, measurements and texts of each row."""
    label = [""] * len(part)
    if found.label is not None:
        label = ["" if t is None else found.classes[t] for t in _texts(part[found.label])]
    names = list(found.measures.values())
    numbers = [_numbers(part[name]).tolist() for name in found.measures]
    texts = [_texts(part[name]) for name in found.metadata]
    for k, name in enumerate(label):
        measures = {key: values[k] for key, values in zip(names, numbers, strict=True) if math.isfinite(values[k])}
        metadata = {
            key: str(values[k]) for key, values in zip(found.metadata, texts, strict=True) if values[k] is not None
        }
        yield name, measures, metadata


def _texts(column: pd.Series[Any]) -> list[str | None]:
    return [None if missing else str(v) for v, missing in zip(column.tolist(), column.isna().tolist(), strict=True)]


def is_nucleus_table(path: Path) -> bool:
    """Return whether a file is a table of nuclei: Parquet with a column of contours."""
    if path.suffix.lower() not in PARQUET or not path.is_file():
        return False
    try:
        return CONTOUR in pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError):
        return False


def read_nuclei(path: Path) -> Iterator[tuple[pd.DataFrame, list[NDArray[np.float64]] | None]]:
    """Yield parts of a table of nuclei, and the contours (k, 2) of their rows in pixels of level 0.

    Raises :class:`InputError` when the file cannot be read, has no place of a nucleus, or contours that are not pairs.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
        has_contours = CONTOUR in file.schema_arrow.names
        for batch in file.iter_batches(batch_size=2 * _AT_ONCE):
            names = [name for name in batch.schema.names if name != CONTOUR]
            yield (
                batch.select(names).to_pandas(),
                _contours(batch.column(CONTOUR), path) if has_contours else None,
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"nuclei: {path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None


def _contours(column: Any, path: Path) -> list[NDArray[np.float64]]:
    """Return the points of each row, (0, 2) where a row has no contour."""
    if not hasattr(column, "offsets"):
        raise InputError(f"nuclei: column {CONTOUR} of {path} must hold lists of x and y, got {column.type}.")
    ends, inner = column.offsets.to_numpy(zero_copy_only=False), column.values
    if hasattr(inner, "offsets"):  # pairs of x and y
        starts = inner.offsets.to_numpy(zero_copy_only=False)
        if (np.diff(starts) != 2).any():
            raise InputError(f"nuclei: a point in column {CONTOUR} of {path} is not a pair of x and y.")
        ends, inner = 2 * ends + starts[0], inner.values
    elif hasattr(inner, "flatten") and pyarrow.types.is_fixed_size_list(inner.type):
        ends, inner = 2 * ends, inner.values
    flat = inner.to_numpy(zero_copy_only=False).astype(np.float64)
    if (np.diff(ends) % 2).any():
        raise InputError(f"nuclei: column {CONTOUR} of {path} has a contour of an odd number of values.")
    missing = column.is_null().to_numpy(zero_copy_only=False)
    return [
        flat[a : a if empty else b].reshape(-1, 2)
        for a, b, empty in zip(ends[:-1].tolist(), ends[1:].tolist(), missing.tolist(), strict=True)
    ]


def nucleus_shapes(
    part: pd.DataFrame, contours: list[NDArray[np.float64]] | None, canvas: Canvas, found: Roles, start: int
) -> Iterator[Shape]:
    """Yield the nuclei of one image; those without a contour as points.

    ``start`` is the number of the first one in the file, which makes its id.
    """
    corner = np.array([canvas.left, canvas.top], dtype=np.float64)
    x, y = _plain(_numbers(part["x"]) - canvas.left), _plain(_numbers(part["y"]) - canvas.top)
    at = part.index.to_numpy().tolist()
    for k, more in enumerate(_more(part, found)):
        number = start + at[k]
        if x[k] != x[k] or y[k] != y[k]:
            continue
        ring, kind = [[x[k], y[k]]], "point"
        points = None if contours is None else contours[at[k]]
        if points is not None and len(points) >= 3 and np.isfinite(points).all():
            ring, kind = _ring(np.round(points - corner, 2)), "cell"
        yield Shape(kind, object_id(canvas.path.name, f"nucleus {number}"), ring, None, *more)


def _ring(points: NDArray[np.float64]) -> list[list[Any]]:
    whole = points.astype(np.int64)
    ring: list[list[Any]] = (whole if (whole == points).all() else points).tolist()
    return ring if ring[0] == ring[-1] else [*ring, ring[0]]
