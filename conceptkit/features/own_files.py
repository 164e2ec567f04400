"""Feature files of your own: embeddings read from HDF5, NumPy or Parquet, so that no network is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from conceptkit.errors import InputError, reason_of
from conceptkit.files.matrix import Part, gather, in_blocks
from conceptkit.tables.patches import CATEGORICAL, RESERVED, PatchTable
from conceptkit.tables.table_reading import read_frame, set_aside

LAYER = "features"
"""Name of the one layer of a feature file."""

_HDF5, _TABLES = (".h5", ".hdf5"), (".parquet", ".pq")

_COMPARED = 2**22
"""Largest number of feature values that are compared with columns of the table"""

_ROUNDED = 1e-6
"""A feature whose correlation with a column is this close to 1 is the column, rounded or on another scale."""

_FEW_VALUES = 10
"""A column with at most this many values may equal a feature by chance."""


@dataclass(frozen=True)
class OwnFeatures:
    """Features of some rows of a table, and their origin."""

    X: Any
    """(n, d) float32, an array or a :class:`conceptkit.files.matrix.FileMatrix`"""
    name: str
    """Name of the file, or number of files"""
    notes: tuple[str, ...] = ()
    """Columns of the files that are not used as features, and features that are columns of the table"""

    def digest(self) -> str:
        """Return a digest of the values."""
        digest = hashlib.sha256(f"{self.X.shape}".encode())
        for _, values in in_blocks(len(self.X), self.X.shape[1], self.X.__getitem__):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def with_features(data: PatchTable, path: str | Path) -> PatchTable:
    """Return the table with one features file for all of its rows."""
    place = str(Path(path).absolute())
    return dataclasses.replace(data, frame=data.frame.assign(features=place))


def read_features(data: PatchTable, rows: NDArray[np.intp], *, away: Path | None = None) -> OwnFeatures:
    """Read the features of some rows from the files that column ``features`` names.

    A file is HDF5 as TRIDENT and CLAM write it (``features`` (n, d), and ``coords`` (n, 2) in pixels of level 0),
    ``.npy`` (n, d), or Parquet (``patch_id`` and numbers). A row of the table is joined by ``row``; else by ``x`` and
    ``y`` to ``coords``; in Parquet by ``patch_id``. Columns of a Parquet file that are reserved in a patch table, that
    the table has too, or that hold ids, coordinates, row numbers, dates or text are not used; a note names them.

    Parameters
    ----------
    rows : row numbers
    away : folder of the file for a large matrix, see :func:`conceptkit.files.matrix.gather`; ``None``: in memory

    Raises
    ------
    InputError
        when a file cannot be read, a row is missing in it, or widths differ
    """
    part = data.frame.iloc[rows].reset_index(drop=True)
    if part["features"].isna().any():
        raise InputError(f"features: every row needs a file, {int(part['features'].isna().sum())} have none.")
    files = part.groupby("features", sort=True).indices
    skipped: dict[str, str] = {}

    def parts() -> Iterator[Part]:
        width = 0
        for file, at in files.items():
            of_file = np.asarray(at, dtype=np.intp)
            for some, values in _from_file(data.folder / str(file), part.iloc[of_file], skipped):
                if width not in (0, values.shape[1]):
                    raise InputError(f"features: {file} has {values.shape[1]} columns, the files before it {width}.")
                width = values.shape[1]
                yield of_file[some], values

    names = [Path(str(file)).name for file in files]
    X = gather(len(part), parts(), away)
    columns = ", ".join(f"{name} ({what})" for name, what in skipped.items())
    notes = [f"Columns of the features file that are not used as features: {columns}."] if columns else []
    return OwnFeatures(X, names[0] if len(names) == 1 else f"{len(names)} files", (*notes, *_copies(X, part)))


def _copies(X: Any, part: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each column of the table that is also a feature."""
    at = np.unique(np.linspace(0, len(X) - 1, min(len(X), max(_COMPARED // max(X.shape[1], 1), 20))).astype(np.intp))
    sample = np.asarray(X[at], dtype=np.float32)
    for name, column in part.iloc[at].items():
        if not types.is_numeric_dtype(column) or column.nunique() <= _FEW_VALUES:
            continue
        with np.errstate(over="ignore"):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
        known = np.isfinite(values)
        feature = _linear_in(sample[known], values[known])
        if feature is not None:
            relation = "equals" if (sample[known, feature] == values[known]).all() else "is a linear function of"
            yield (
                f"Feature {feature} (counted from 0) {relation} the table's column {name} in every row: a score of "
                f"{name} says nothing about the other features; remove it from the file."
            )


def _linear_in(X: NDArray[np.float32], y: NDArray[np.float32]) -> int | None:
    """Return the number of the first feature that is ``y``, rounded or on another scale; else ``None``."""
    centered = X - X.mean(axis=0, dtype=np.float64)
    values = y - y.mean(dtype=np.float64)
    scale = np.sqrt((centered**2).sum(axis=0) * (values @ values))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.abs(values @ centered) / scale
    same = np.flatnonzero(correlation > 1 - _ROUNDED)
    return int(same[0]) if len(same) else None


def _from_file(path: Path, part: pd.DataFrame, skipped: dict[str, str]) -> Iterator[Part]:
    """Yield rows, numbered within ``part``, with their features in one file; add its unused columns to ``skipped``."""
    if not os.path.isfile(path):  # pathlib's own raises for a name that no file can have
        raise InputError(f"features: file {path} not found.")
    kind = path.suffix.lower()
    try:
        if kind in _HDF5:
            yield from _from_hdf5(path, part)
        elif kind == ".npy":
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_kind(matrix.dtype, path.name)
            at = _by_row(part, len(matrix), path, "a .npy file has no names: ")
            # opened for every block: mapped pages count as memory until the file is closed
            yield from _chosen(lambda: np.load(path, mmap_mode="r", allow_pickle=False), at, path)
        elif kind in _TABLES:
            yield from _from_parquet(path, part, skipped)
        else:
            raise InputError(f"features: must be {', '.join((*_HDF5, '.npy', *_TABLES))}, got {path.name}.")
    except InputError:
        raise
    except Exception as error:  # h5py, NumPy and Arrow raise many kinds for a broken file
        raise InputError(f"features: {path} cannot be read ({reason_of(error)}).") from None


def _from_hdf5(path: Path, part: pd.DataFrame) -> Iterator[Part]:
    with h5py.File(path, "r") as file:
        if "features" not in file:
            raise InputError(f"features: {path} has no dataset features, only {', '.join(file) or 'nothing'}.")
        matrix = file["features"]
        if not isinstance(matrix, h5py.Dataset):
            raise InputError(f"features: features of {path} is a group, not a dataset.")
        _check_numbers(matrix, path)
        matrix = matrix[0] if matrix.ndim == 3 and matrix.shape[0] == 1 else matrix  # as some versions of CLAM write it
        if "row" in part.columns:
            at = _by_row(part, len(matrix), path, "")
        elif {"x", "y"} <= set(part.columns) and "coords" in file:
            _check_numbers(file["coords"], path)
            coords = np.asarray(file["coords"])
            coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
            if coords.shape != (len(matrix), 2):
                raise InputError(
                    f"features: coords of {path} must be x and y of its {len(matrix)} features, got shape "
                    f"{coords.shape}; give the table a column row."
                )
            at = _by_place(part, coords, path)
        else:
            at = _by_row(part, len(matrix), path, "or x and y for the coords of an HDF5 file: ")
        yield from _chosen(lambda: matrix, at, path)


def _check_numbers(data: Any, path: Path) -> None:
    """Refuse other types before they are read: HDF5 may hang in the damaged heap of a text or object."""
    if hasattr(data, "dtype"):
        _check_kind(data.dtype, f"{data.name[1:]} of {path}")


def _check_kind(dtype: np.dtype[Any], what: str) -> None:
    if dtype.kind not in "iufb":
        raise InputError(f"features: {what} must hold numbers, got {dtype}.")


def _from_parquet(path: Path, part: pd.DataFrame, skipped: dict[str, str]) -> Iterator[Part]:
    frame, notes = read_frame(path)
    other = _other_columns(frame, part.columns)
    skipped |= {note.split(" (")[0].lower(): "a saved index" for note in notes if "without a name" in note}
    skipped |= {name: what for name, what in other.items() if name != "patch_id"}
    numbers = frame.drop(columns=list(other))
    if numbers.empty:
        raise InputError(
            f"features: {path} has no columns of numbers"
            + (f" beside {', '.join(other)}, which are not used as features." if other else ".")
        )
    if "patch_id" not in frame.columns:
        at = _by_row(part, len(frame), path, "or the file a patch_id: ")
    else:
        ids = pd.Index(frame["patch_id"])
        if not ids.is_unique:
            raise InputError(f"features: patch_id must be unique, {ids[ids.duplicated()][0]!r} repeats in {path}.")
        at = ids.get_indexer(pd.Index(part["patch_id"]))
        if (at < 0).any():
            raise InputError(
                f"features: {path} has no row for patch {part['patch_id'].iloc[int((at < 0).argmax())]}; its first "
                f"patch_id is {str(ids[0])!r}."
            )
    values = numbers.to_numpy(np.float32, na_value=np.nan)
    yield from _chosen(lambda: values, at, path)


def _other_columns(frame: pd.DataFrame, of_table: Iterable[Any]) -> dict[str, str]:
    """Return column → why it is not used as a feature."""
    table = {str(name).lower() for name in of_table}
    found = set_aside(frame)
    for name, column in frame.items():
        if str(name).lower() in (*RESERVED, *CATEGORICAL):
            found[str(name)] = "reserved"
        elif str(name).lower() in table:
            found[str(name)] = "a column of the table"
        elif not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
            found.setdefault(str(name), "no numbers")
    return found


def _by_row(part: pd.DataFrame, n: int, path: Path, otherwise: str) -> NDArray[np.intp]:
    if "row" not in part.columns:
        raise InputError(
            f"features: {otherwise}the table needs a column row, each patch's row in {path.name} from 0 on."
        )
    numbers = part["row"].to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~((numbers >= 0) & (numbers < n) & (numbers == np.round(numbers)))
    if wrong.any():
        first = part.iloc[int(wrong.argmax())]
        raise InputError(f"features: patch {first['patch_id']} names row {first['row']} of {path}, which has {n}.")
    return numbers.astype(np.intp)


def _by_place(part: pd.DataFrame, coords: NDArray[Any], path: Path) -> NDArray[np.intp]:
    place = {(float(x), float(y)): i for i, (x, y) in enumerate(coords)}
    if len(place) < len(coords):
        raise InputError(f"features: {path} has the same coords more than once; give the table a column row.")
    wanted = part[["x", "y"]].to_numpy(dtype=np.float64, na_value=np.nan)
    found = [place.get((x, y), -1) for x, y in wanted.tolist()]
    if -1 in found:
        first = part.iloc[found.index(-1)]
        raise InputError(
            f"features: {path} has no coords x={first['x']}, y={first['y']} for patch {first['patch_id']}."
        )
    return np.array(found, dtype=np.intp)


def _chosen(opened: Callable[[], Any], at: NDArray[np.intp], path: Path) -> Iterator[Part]:
    """Yield rows of an array or an HDF5 dataset (n, d) in blocks; HDF5 needs rows in order, each once."""
    shape = tuple(opened().shape)
    if len(shape) != 2:
        raise InputError(f"features: {path} must hold (n, d) numbers, got {shape}.")

    def take(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        once, back = np.unique(at[rows], return_inverse=True)
        together = len(once) > 0 and once[-1] - once[0] == len(once) - 1
        values = opened()[once[0] : once[-1] + 1] if together else opened()[once]
        values = np.asarray(values, dtype=np.float32)
        return values if together and len(back) == len(once) and bool((np.diff(back) == 1).all()) else values[back]

    yield from in_blocks(len(at), shape[1], take)
