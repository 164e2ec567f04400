"""Feature files of your own: embeddings read from HDF5, NumPy or Parquet, so that no network is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types
from scipy.stats import rankdata

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

_ROWS_APART = 10
"""Rows that must differ from a column's most frequent value; a column with fewer may equal a feature by chance."""

_RANKED = 300
"""Rows whose order is compared"""

_ROWS_OF_A_CLASS = 5
"""Rows of a class in which a feature must be constant to be a function of the classes"""

_METADATA = frozenset(
    (
        *("barcode", "case", "file", "idx", "image", "img", "index", "name", "patch", "path", "patient", "sample"),
        *("slide", "subject", "tile", "wsi", "date", "time", "timestamp", "epoch", "seed", "fold", "split"),
        *("number", "origin", "pos", "position"),
        *("bottom", "col", "column", "coord", "coords", "left", "right", "row", "top", "x", "y"),
        *("downsample", "factor", "height", "level", "mag", "magnification", "mpp", "objective", "pixel", "pixels"),
        *("power", "px", "resolution", "scale", "side", "size", "step", "stride", "um", "width"),
        *("center", "centre", "cluster", "group", "hospital", "scanner", "site", "test", "train", "val"),
        *("class", "classes", "diagnosis", "ground", "gt", "label", "labels", "loss", "outcome", "pred", "predicted"),
        *("code", "grade", "hat", "logit", "response", "score", "stage", "survival", "ypred", "ytrue"),
        *("prediction", "prob", "proba", "probability", "target", "targets", "true", "truth", "tumor", "weight"),
    )
)
"""Words of which the names of columns consist that describe a patch, its place or its label"""

_NUMBERED = (32, 0.9)
"""With so many numbered columns (f0, f1, …) that are such a share of all, columns without a number are no features."""


@dataclass(frozen=True)
class OwnFeatures:
    """Features of some rows of a table, and their origin."""

    X: Any
    """(n, d) float32, an array or a :class:`conceptkit.files.matrix.FileMatrix`"""
    name: str
    """Name of the file, or how many there are"""
    notes: tuple[str, ...] = ()
    """Which columns of the files are not used as features"""

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
    ``.npy`` (n, d), or Parquet (``patch_id`` and numbers). A row of the table finds its own there by ``row``; else by
    ``x`` and ``y`` among ``coords``; in Parquet by ``patch_id``. Columns of a Parquet file that are reserved in a patch
    table, that the table has too, or that hold metadata, ids, coordinates, row numbers, dates or text are not
    used, nor is a feature of any file that is a concept, the label or the center of the table; a note names them.

    Parameters
    ----------
    data : the patch table
    rows : row numbers
    away : folder of the file that a large matrix lies in, see :func:`conceptkit.files.matrix.gather`; ``None`` keeps
        all of it in memory

    Raises
    ------
    InputError
        when a file cannot be read, a row is missing in it, or widths differ
    """
    part = data.frame.iloc[rows].reset_index(drop=True)
    if part["features"].isna().any():
        raise InputError(f"features: every row needs a file, {int(part['features'].isna().sum())} have none.")
    files = part.groupby("features", sort=True).indices
    columns = _Columns()

    def parts() -> Iterator[Part]:
        width = 0
        for file, at in files.items():
            of_file = np.asarray(at, dtype=np.intp)
            for some, values in _from_file(data.folder / str(file), part.iloc[of_file], columns):
                if width not in (0, values.shape[1]):
                    raise InputError(f"features: {file} has {values.shape[1]} columns, the files before it {width}.")
                width = values.shape[1]
                yield of_file[some], values

    files_read = [Path(str(file)).name for file in files]
    name = files_read[0] if len(files_read) == 1 else f"{len(files_read)} files"
    X = gather(len(part), parts(), away)
    copies = _copies(X, part)
    if copies:
        kept = np.setdiff1d(np.arange(X.shape[1]), list(copies))
        if not len(kept):
            raise InputError(f"features: {name} has no other feature than {next(iter(copies.values()))}.")
        whole = X
        X = gather(len(part), in_blocks(len(part), len(kept), lambda rows: whole[rows][:, kept]), away)
    skipped = [f"{column} ({what})" for column, what in columns.skipped.items()]
    skipped += [f"{columns.shown(at)} ({what})" for at, what in copies.items()]
    notes = [f"Columns of the features file that are not used as features: {', '.join(skipped)}."] if skipped else []
    return OwnFeatures(X, name, tuple(notes))


@dataclass
class _Columns:
    """The columns of features files."""

    names: list[str] = field(default_factory=list)
    """Names of the features, where the files name them"""
    skipped: dict[str, str] = field(default_factory=dict)
    """Column → why it is not used as a feature"""

    def shown(self, at: int) -> str:
        return self.names[at] if self.names else f"number {at}, counted from 0"


def _copies(X: Any, part: pd.DataFrame) -> dict[int, str]:
    """Return the number of each feature that is a column of the table under another name → which one."""
    at = np.unique(np.linspace(0, len(X) - 1, min(len(X), max(_COMPARED // max(X.shape[1], 1), 20))).astype(np.intp))
    sample = np.asarray(X[at], dtype=np.float32)
    found: dict[int, str] = {}
    for name, column in part.iloc[at].items():
        if name in _NAMES or not _varies(column.dropna()):
            continue
        if not types.is_numeric_dtype(column) or types.is_bool_dtype(column) or name in CATEGORICAL:
            found |= dict.fromkeys(_constant_within(sample, column), f"is a function of {name}")
            continue
        with np.errstate(over="ignore"):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
        here = np.flatnonzero(np.isfinite(values))
        X_here, y = sample[here], values[here]
        if _varies(column.iloc[here[:_RANKED]]):
            ranks = (rankdata(v[:_RANKED], axis=0).astype(np.float32) for v in (X_here, y))
            found |= dict.fromkeys(_linear_in(*ranks), f"increases or decreases with {name} in every row")
        found |= dict.fromkeys(_linear_in(X_here, y), f"is a linear function of {name}")
        found |= dict.fromkeys(np.flatnonzero((X_here == y[:, None]).all(axis=0)).tolist(), f"equals {name}")
    return found


_NAMES = ("patch_id", "image", "slide", "h5", "features", "key", "mask", "split", "group", "patient")
"""Columns of the table that name a row rather than describe it"""


def _varies(column: pd.Series[Any]) -> bool:
    return len(column) > 0 and int(len(column) - column.value_counts().iloc[0]) >= _ROWS_APART


def _linear_in(X: NDArray[np.float32], y: NDArray[np.float32]) -> list[int]:
    """Return the numbers of the features that are ``y`` on another scale or rounded."""
    centered = X - X.mean(axis=0, dtype=np.float64)
    values = y - y.mean(dtype=np.float64)
    scale = np.sqrt((centered**2).sum(axis=0) * (values @ values))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.abs(values @ centered) / scale
    same: list[int] = np.flatnonzero(correlation > 1 - _ROUNDED).tolist()
    return same


def _constant_within(X: NDArray[np.float32], classes: pd.Series[Any]) -> list[int]:
    """Return the numbers of the features that differ between classes and not within them: codes and indicators."""
    numbers = classes.reset_index(drop=True)
    rows = [at for at in numbers.groupby(numbers).indices.values() if len(at) >= _ROWS_OF_A_CLASS]
    if len(rows) < 2:
        return []
    constant = np.all([(X[at] == X[at[0]]).all(axis=0) for at in rows], axis=0)
    varies = np.ptp(np.stack([X[at[0]] for at in rows]), axis=0) > 0
    found: list[int] = np.flatnonzero(constant & varies).tolist()
    return found


def _from_file(path: Path, part: pd.DataFrame, columns: _Columns) -> Iterator[Part]:
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
            yield from _from_parquet(path, part, columns)
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


def _from_parquet(path: Path, part: pd.DataFrame, columns: _Columns) -> Iterator[Part]:
    frame, notes = read_frame(path)
    other = _other_columns(frame, part.columns)
    columns.skipped |= {note.split(" (")[0].lower(): "a saved index" for note in notes if "without a name" in note}
    columns.skipped |= {name: what for name, what in other.items() if name != "patch_id"}
    numbers = frame.drop(columns=list(other))
    if numbers.empty:
        raise InputError(
            f"features: {path} has no columns of numbers"
            + (f" beside {', '.join(other)}, which are not used as features." if other else ".")
        )
    columns.names = columns.names or list(numbers.columns)
    if set(columns.names) != set(numbers.columns):
        other_names = sorted(set(columns.names) ^ set(numbers.columns))
        raise InputError(f"features: {path.name} and the files before it differ in column {other_names[0]}.")
    numbers = numbers[columns.names]
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
    series = Counter(re.sub(r"\d+", "#", str(name)) for name in frame.columns)
    numbered = {str(name) for name in frame.columns if series[re.sub(r"\d+", "#", str(name))] > 2}
    numeric = [name for name, column in frame.items() if types.is_numeric_dtype(column)]
    mostly = len(numbered) >= _NUMBERED[0] and len(numbered) >= _NUMBERED[1] * len(numeric)
    found = set_aside(frame)
    for name, column in frame.items():
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(name))
        if str(name).lower() in (*RESERVED, *CATEGORICAL):
            found[str(name)] = "reserved"
        elif str(name).lower() in table:
            found[str(name)] = "a column of the table"
        elif not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
            found.setdefault(str(name), "no numbers")
        elif str(name) in numbered:
            continue
        elif words and _METADATA.issuperset(word.lower() for word in words):
            found.setdefault(str(name), "metadata")
        elif mostly:
            found.setdefault(str(name), "not numbered as the features are")
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
