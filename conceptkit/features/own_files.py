"""Your own feature files: embeddings read from HDF5, NumPy or Parquet, without a network."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, reason_of
from conceptkit.features.feature_columns import Columns, copies_of, other_columns
from conceptkit.features.matrix_files import MATRICES, NUMPY, TENSORS, MatrixFile, open_matrix
from conceptkit.files.matrix import HELD, Part, ReadMatrix, gather, in_blocks
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.table_reading import PARQUET, read_frame

LAYER = "features"
"""Name of the one layer of a feature file."""


@dataclass(frozen=True)
class OwnFeatures:
    """Features of some rows of a table, and their origin."""

    X: Any
    """(n, d) float32, an array or a :class:`conceptkit.files.matrix.FileMatrix`"""
    name: str
    """Name of the file, or how many there are"""
    notes: tuple[str, ...] = ()
    """Which columns of the files are not used as features"""

    ends: str = ""
    """Names, sizes and ends of files that are too large to be read for a digest of their values"""

    def digest(self) -> str:
        """Return a digest of the values."""
        digest = hashlib.sha256(f"{self.X.shape}{self.ends}".encode())
        if self.ends:
            return digest.hexdigest()
        for _, values in in_blocks(len(self.X), self.X.shape[1], self.X.__getitem__):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def read_features(table: PatchTable, rows: NDArray[np.intp], *, away: Path | None = None) -> OwnFeatures:
    """Read the features of some rows from the files that column ``features`` names.

    A file is HDF5 as TRIDENT and CLAM write it (``features`` (n, d), and ``coords`` (n, 2) in pixels of level 0),
    ``.npy`` (n, d), or Parquet (``patch_id`` and numbers). A row of the table finds its own there by ``row``; else by
    ``x`` and ``y`` among ``coords``; in Parquet by ``patch_id``. Columns of a Parquet file that are reserved in a patch
    table, that the table has too, or that hold metadata, ids, coordinates, row numbers, dates or text are not
    used, nor is a feature of any file that is a concept, the label or the center of the table; a note names them.

    Parameters
    ----------
    table : the patch table
    rows : row numbers
    away : folder of the file that a large matrix lies in, see :func:`conceptkit.files.matrix.gather`; ``None`` keeps
        all of it in memory

    Raises
    ------
    InputError
        when a file cannot be read, a row is missing in it, or widths differ
    """
    part = table.frame.iloc[rows].reset_index(drop=True)
    if part["features"].isna().any():
        raise InputError(f"features: every row needs a file, {int(part['features'].isna().sum())} have none.")
    files = part.groupby("features", sort=True).indices
    columns = Columns()

    def parts() -> Iterator[Part]:
        width = 0
        for file, at in files.items():
            of_file = np.asarray(at, dtype=np.intp)
            for some, values in _from_file(table.folder / str(file), part.iloc[of_file], columns):
                if width not in (0, values.shape[1]):
                    raise InputError(f"features: {file} has {values.shape[1]} columns, the files before it {width}.")
                width = values.shape[1]
                yield of_file[some], values

    files_read = [Path(str(file)).name for file in files]
    name = files_read[0] if len(files_read) == 1 else f"{len(files_read)} files"
    lazy = None if away is None else _in_place(part, files, table.folder, away)
    X, ends = (gather(len(part), parts(), away), "") if lazy is None else lazy
    copies = copies_of(X, part)
    if copies:
        kept = np.setdiff1d(np.arange(X.shape[1]), list(copies))
        if not len(kept):
            raise InputError(f"features: {name} has no other feature than {next(iter(copies.values()))}.")
        whole, ends = X, ""
        X = gather(len(part), in_blocks(len(part), len(kept), lambda rows: whole[rows][:, kept]), away)
    skipped = [f"{column} ({what})" for column, what in columns.skipped.items()]
    skipped += [f"{columns.shown(at)} ({what})" for at, what in copies.items()]
    notes = [f"Columns of the features file that are not used as features: {', '.join(skipped)}."] if skipped else []
    return OwnFeatures(X, name, tuple(notes), ends)


def _in_place(part: pd.DataFrame, files: Mapping[Any, Any], folder: Path, away: Path) -> tuple[ReadMatrix, str] | None:
    """Return rows that are read from their files whenever they are used, and what identifies the files.

    ``None`` where all rows fit into memory, are means, or lie in files with other columns.
    """
    paths = [folder / str(file) for file in files]
    if rows_are_slides(part) or not all(path.suffix.lower() in MATRICES for path in paths):
        return None
    file_of, row_of = np.empty(len(part), dtype=np.intp), np.empty(len(part), dtype=np.intp)
    identities, width = [], 0
    for k, (path, at) in enumerate(zip(paths, files.values(), strict=True)):
        with opened(path, part.columns) as file:
            if k == 0:
                width = file.shape[-1]
                if len(part) * width <= HELD:
                    return None
            if file.shape[1:] != (width,):
                raise InputError(f"features: {path} must hold (n, {width}) as the files before it, got {file.shape}.")
            file_of[at], row_of[at] = k, _rows_in(file, part.iloc[at])
            ends = [np.asarray(file.values()[row]).tobytes() for row in (0, len(file.values()) - 1)]
            identities.append(f"{path.name}|{file.shape}|{hashlib.sha256(b''.join(ends)).hexdigest()}")

    def read(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        out = np.empty((len(rows), width), dtype=np.float32)
        of = file_of[rows]
        for k in np.unique(of):
            at = np.flatnonzero(of == k)
            with _readable(paths[k]), open_matrix(paths[k]) as file:
                for some, values in _chosen(file.values, row_of[rows[at]], paths[k]):
                    out[at[some]] = values
        return out

    return ReadMatrix(read, len(part), width, away), "\n".join(identities)


def _from_file(path: Path, part: pd.DataFrame, columns: Columns) -> Iterator[Part]:
    """Yield rows, numbered within ``part``, with their features in one file; add its unused columns to ``skipped``."""
    with opened(path, part.columns, columns) as file:
        by_id = file.ids is not None and "slide" not in file.ids
        if rows_are_slides(part) and not by_id:
            yield from _averaged(file, part)
        else:
            yield from _chosen(file.values, _rows_in(file, part), path)


@contextlib.contextmanager
def opened(path: Path, of_table: Iterable[Any], columns: Columns | None = None) -> Iterator[MatrixFile]:
    """Open a file of features of any kind.

    Parameters
    ----------
    of_table : names of the table's columns, which are not features
    columns : receives the names of the features, and of columns that are not

    Raises
    ------
    InputError
        when there is no such file, or it cannot be read, also while it is open
    """
    kind = path.suffix.lower()
    with _readable(path):
        if kind in PARQUET:
            yield _of_parquet(path, of_table, Columns() if columns is None else columns)
        elif kind in MATRICES:
            with open_matrix(path) as file:
                yield dataclasses.replace(file, ids=ids_next_to(path, file.shape) if kind == NUMPY else None)
        else:
            raise InputError(f"features: must be {', '.join((*MATRICES, *PARQUET))}, got {path.name}.")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not os.path.isfile(path):  # pathlib's own raises for a name that no file can have
        raise InputError(f"features: file {path} not found.")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # h5py, NumPy, torch and Arrow raise many kinds for a broken file
        raise InputError(f"features: {path} cannot be read ({reason_of(error)}).") from None


def rows_are_slides(frame: pd.DataFrame) -> bool:
    """Return whether each row of a table stands for all patches of a slide: its name is that of the slide."""
    return "slide" in frame.columns and bool((frame["slide"] == frame["patch_id"]).all())


def slide_rows(file: MatrixFile) -> dict[str, NDArray[np.intp]] | None:
    """Return the rows of each slide in a file of several slides; ``None`` for a file of one."""
    if file.ids is None or "slide" not in file.ids:
        return None
    if missing := int(file.ids["slide"].isna().sum()):
        raise InputError(f"features: every row of {file.path} needs a slide, {missing} have none.")
    return {str(slide): np.asarray(at, dtype=np.intp) for slide, at in file.ids.groupby("slide").indices.items()}


def ids_next_to(path: Path, shape: tuple[int, ...]) -> pd.DataFrame | None:
    """Return the table next to a .npy file that names its rows, if there is one."""
    beside = next((place for end in (".csv", *PARQUET) if (place := path.with_suffix(end)).is_file()), None)
    if beside is None:
        return None
    frame, _ = read_frame(beside)
    if len(frame) != shape[0]:
        raise InputError(f"features: {beside} must name the {shape[0]} rows of {path.name}, it has {len(frame)}.")
    return frame


def _averaged(file: MatrixFile, part: pd.DataFrame) -> Iterator[Part]:
    """Yield rows of a table of slides with the mean (1, d) of the features of each slide, in float64."""
    rows_of = slide_rows(file)
    if rows_of is None and len(part) > 1:
        raise InputError(
            f"features: {file.path} belongs to {len(part)} rows of the table; a table of patches needs a column row, "
            "or x and y, and a file of several slides needs a column slide."
        )
    for at, slide in enumerate(part["slide"]):
        n = 1 if len(file.shape) == 1 else file.shape[0]
        rows = np.arange(n) if rows_of is None else rows_of.get(str(slide), np.arange(0))
        if not len(rows) or not file.shape[-1]:
            raise InputError(f"features: {file.path} has no patches of slide {slide}.")
        values = file.values if len(file.shape) > 1 else lambda: np.asarray(file.values())[None]
        total = sum(block.sum(axis=0, dtype=np.float64) for _, block in _chosen(values, rows, file.path))
        yield np.array([at]), (total / len(rows))[None]


def _rows_in(file: MatrixFile, part: pd.DataFrame) -> NDArray[np.intp]:
    """Return the row of each patch in a file: by ``row``, by its id, or by its place among the coordinates."""
    n, path, names = file.shape[0], file.path, file.place_columns()
    if file.ids is not None and "patch_id" in file.ids:
        return _by_id(part, file.ids["patch_id"], path)
    if "row" in part.columns:
        return _by_row(part, n, path, "")
    if names is not None and set(names) <= set(part.columns) and file.coords is not None:
        return _by_place(part, file.coords(), path, names)
    if names is not None and names[0] == "x_um" and {"x", "y"} <= set(part.columns):
        raise InputError(
            f"features: coords of {path} are in µm, and x and y of the table in pixels; give the table the columns "
            "x_um and y_um, or row."
        )
    return _by_row(part, n, path, _OTHERWISE.get(path.suffix.lower(), "or x and y for the coords of an HDF5 file: "))


_OTHERWISE = {
    NUMPY: "a .npy file has no names: ",
    **dict.fromkeys(TENSORS, "a .pt file has no coords: "),
    **dict.fromkeys(PARQUET, "or the file a patch_id: "),
}
"""What the patches of a file could be found by, at the beginning of a sentence"""


def _by_id(part: pd.DataFrame, ids: pd.Series[Any], path: Path) -> NDArray[np.intp]:
    index = pd.Index(ids)
    if not index.is_unique:
        raise InputError(f"features: patch_id must be unique, {index[index.duplicated()][0]!r} repeats in {path}.")
    at = index.get_indexer(pd.Index(part["patch_id"]))
    if (at < 0).any():
        raise InputError(
            f"features: {path} has no row for patch {part['patch_id'].iloc[int((at < 0).argmax())]}; its first "
            f"patch_id is {str(index[0])!r}."
        )
    return np.asarray(at, dtype=np.intp)


def _of_parquet(path: Path, of_table: Iterable[Any], columns: Columns) -> MatrixFile:
    frame, notes = read_frame(path)
    other = other_columns(frame, of_table)
    columns.skipped |= {note.split(" (")[0].lower(): "a saved index" for note in notes if "without a name" in note}
    columns.skipped |= {name: what for name, what in other.items() if name not in _IDS}
    numbers = frame.drop(columns=list(other))
    if numbers.empty:
        raise InputError(
            f"features: {path} has no columns of numbers"
            + (f" besides {', '.join(other)}, which are not used as features." if other else ".")
        )
    columns.names = columns.names or list(numbers.columns)
    if set(columns.names) != set(numbers.columns):
        other_names = sorted(set(columns.names) ^ set(numbers.columns))
        raise InputError(f"features: {path.name} and the files before it differ in column {other_names[0]}.")
    values = numbers[columns.names].to_numpy(np.float32, na_value=np.nan)
    ids = frame[[name for name in _IDS if name in frame.columns]]
    return MatrixFile(path, lambda: values, values.shape, ids=ids)


_IDS = ("patch_id", "slide")
"""Columns of a Parquet file of features that name its rows"""


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


def _by_place(part: pd.DataFrame, coords: NDArray[Any], path: Path, names: tuple[str, str]) -> NDArray[np.intp]:
    wanted = part[list(names)].to_numpy(dtype=np.float64, na_value=np.nan)
    place = {(float(x), float(y)): i for i, (x, y) in enumerate(coords)}
    if len(place) < len(coords):
        raise InputError(f"features: {path} has the same coords more than once; give the table a column row.")
    if np.array_equal(wanted, coords):
        return np.arange(len(coords))
    found = [place.get((x, y), -1) for x, y in wanted.tolist()]
    if -1 in found:
        first = part.iloc[found.index(-1)]
        shown = ", ".join(f"{name}={first[name]}" for name in names)
        raise InputError(f"features: {path} has no coords {shown} for patch {first['patch_id']}.")
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
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            first = once[0] + finite.argmin() if together else once[finite.argmin()]
            raise InputError(
                f"features: {path} has NaN or infinity in row {first} of {shape[0]} (counted from 0); remove this row, "
                "or the slide from the table."
            )
        return values if together and len(back) == len(once) and bool((np.diff(back) == 1).all()) else values[back]

    yield from in_blocks(len(at), shape[1], take)
