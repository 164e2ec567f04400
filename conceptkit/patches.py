"""The patch table: one row per patch, its pixels read on demand, its other columns concepts."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_choice, near_names

if TYPE_CHECKING:
    import pandas as pd

Pixels = NDArray[np.uint8]

LOCATIONS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "slide": ("slide", "x", "y", "size"),
    "h5": ("h5", "key", "row"),
}
"""How a row may say where its pixels are: leading column → columns that must be there."""

RESERVED = (
    *("patch_id", "image", "slide", "h5", "key", "row", "x", "y", "size", "mpp", "mask"),
    *("label", "split", "group", "patient"),
)
"""Columns with a meaning of their own; every other column is a concept."""

_PLACES = ("patch_id", "image", "slide", "h5", "key", "row", "x", "y", "size", "mpp", "mask", "split")
"""Reserved columns that cannot be probed (label, group and patient can)."""

CATEGORICAL = ("center", "label", "split", "group", "patient")
"""Columns that are categorical whatever their type."""

KINDS = ("continuous", "categorical")

_TEXT = ("patch_id", "image", "slide", "h5", "key", "mask", *CATEGORICAL)
"""Columns read as text, so that patient 007 stays 007."""


@dataclass(frozen=True)
class Concept:
    """One concept of a patch table."""

    name: str
    kind: str
    """``continuous`` or ``categorical``"""
    values: NDArray[Any]
    """(n,) float64 with NaN where missing, or text with ``None`` where missing"""


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

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def patch_ids(self) -> list[str]:
        """Return the unique names of the rows."""
        return [str(v) for v in self.frame["patch_id"]]

    @property
    def location(self) -> str | None:
        """Return the leading column of the pixels' location, or ``None`` when the table has no pixels."""
        return next((lead for lead in LOCATIONS if lead in self.frame.columns), None)

    @property
    def concept_names(self) -> list[str]:
        """Return the columns that are concepts by default, in the order of the table."""
        return [str(c) for c in self.frame.columns if c not in RESERVED]

    def column(self, argument: str, name: str) -> pd.Series[Any]:
        """Return a column; raise :class:`InputError` with the near names when it is not there."""
        if name not in self.frame.columns:
            raise InputError(f"{argument}: the table has no column {name!r}; {near_names(name, self.frame.columns)}.")
        return self.frame[name]

    def kind(self, name: str) -> str:
        """Return ``continuous`` or ``categorical`` for a column."""
        from pandas.api import types

        if name in self.kinds:
            return self.kinds[name]
        column = self.frame[name]
        if name in CATEGORICAL or types.is_bool_dtype(column) or not types.is_numeric_dtype(column):
            # A column without any value is read as numbers or as text by chance; make_target refuses it either way.
            return "categorical"
        return "continuous"

    def concept(self, name: str) -> Concept:
        """Return a concept's values.

        Raises
        ------
        InputError
            when there is no such column, or the column says where pixels are, or text was declared continuous
        """
        column = self.column("concept", name)
        if name in _PLACES:
            raise InputError(f"concept: {name} says where a patch is or how it is used; it cannot be probed.")
        kind = self.kind(name)
        if kind == "continuous":
            try:
                return Concept(name, kind, column.to_numpy(dtype=np.float64, na_value=np.nan))
            except (ValueError, TypeError):
                wrong = next(v for v in column.dropna() if not _is_number(v))
                raise InputError(f"concept: {name} is declared continuous but holds {wrong!r}.") from None
        missing = column.isna().to_numpy()
        values = np.array([None if m else _label(v) for v, m in zip(column, missing, strict=True)], dtype=object)
        return Concept(name, kind, values)

    def looks_categorical(self, name: str) -> str | None:
        """Return a sentence when a continuous concept is an integer column of at most 10 values, else ``None``."""
        if self.kind(name) != "continuous" or name in self.kinds:
            return None
        values = self.concept(name).values
        distinct = np.unique(values[np.isfinite(values)])
        if 2 < len(distinct) <= 10 and (distinct == np.round(distinct)).all():
            return (
                f"{name} has {len(distinct)} whole-numbered values and is taken as continuous; "
                f"--categorical {name} takes it as classes."
            )
        return None

    def groups(self, name: str | None) -> NDArray[Any] | None:
        """Return the group labels (n,), or ``None`` without a group column.

        Raises
        ------
        InputError
            when the column is not there or a row has no group
        """
        if name is None:
            return None
        column = self.column("group", name)
        if column.isna().any():
            raise InputError(f"group: every row needs a {name}, {int(column.isna().sum())} of {len(self)} have none.")
        return np.array([_label(v) for v in column], dtype=object)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> PatchTable:
        """Return the table with some of its rows."""
        return PatchTable(
            self.frame.iloc[np.flatnonzero(rows) if rows.dtype == bool else rows], self.folder, self.kinds
        )

    def with_kinds(self, kinds: Mapping[str, str]) -> PatchTable:
        """Return the table with the kind of some concepts declared."""
        for name, kind in kinds.items():
            self.column("kind", name)
            check_choice(f"kind of {name}", kind, KINDS)
        return PatchTable(self.frame, self.folder, {**self.kinds, **kinds})

    def pixels(self, row: int) -> Pixels:
        """Read the pixels of one row.

        Returns
        -------
        (height, width, 3) uint8, RGB

        Raises
        ------
        InputError
            when the file is missing, cannot be read, or the window lies outside
        """
        location = self.location
        if location is None:
            raise InputError(
                f"table: needs one of the columns {', '.join(LOCATIONS)} to find pixels; "
                f"it has {', '.join(map(str, self.frame.columns))}."
            )
        record = self.frame.iloc[row]
        name = f"patch {record['patch_id']}"
        if location == "h5":
            return _from_h5(self._path(record, "h5", name), str(record["key"]), _row(record["row"], name), name)
        window = _window(record, name)
        if location == "slide":
            if window is None:
                raise InputError(f"{name}: a patch of a slide needs x, y and size.")
            return _from_slide(self._path(record, "slide", name), window, name)
        whole = _image(self._path(record, "image", name), name)
        if window is None:
            return whole
        x, y, size = window
        if x < 0 or y < 0 or x + size > whole.shape[1] or y + size > whole.shape[0]:
            raise InputError(
                f"{name}: the window x={x}, y={y}, size={size} lies outside the image of "
                f"{whole.shape[1]}×{whole.shape[0]} pixels."
            )
        return np.ascontiguousarray(whole[y : y + size, x : x + size])

    def identities(self) -> list[str]:
        """Return, for each row, a digest of where its pixels are and of that file's size and time of change.

        Two rows of the same digest hold the same pixels as long as the file system tells the truth.
        """
        location = self.location
        if location is None:
            return [""] * len(self)
        files: dict[str, str] = {}
        place_columns = [c for c in ("key", "row", "x", "y", "size") if c in self.frame.columns]
        out = []
        columns = [self.frame[c].tolist() for c in (location, *place_columns)]
        for file, *place in zip(*columns, strict=True):
            if file not in files:
                path = self.folder / str(file)
                stat = path.stat() if path.is_file() else None
                files[file] = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" if stat else f"{path}|absent"
            out.append(hashlib.sha256(f"{files[file]}|{place}".encode()).hexdigest()[:32])
        return out

    def _path(self, record: pd.Series[Any], column: str, name: str) -> Path:
        value = record[column]
        if not isinstance(value, str) or not value:
            raise InputError(f"{name}: column {column} is empty.")
        path = self.folder / value
        if not path.is_file():
            raise InputError(f"{name}: there is no file {path}.")
        return path


def load_table(path: Path, *, kinds: Mapping[str, str] | None = None) -> PatchTable:
    """Load a patch table from CSV or Parquet.

    Raises
    ------
    InputError
        when the file is missing or unreadable, a column stands twice, there are no rows, or a ``patch_id`` repeats
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"table: there is no file {path}.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            names = [str(c) for c in frame.columns]
        else:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                names = next((line for line in csv.reader(stream) if line), [])
            dtypes: Any = {name: "str" for name in _TEXT if name in names}
            frame = pd.read_csv(path, dtype=dtypes, encoding="utf-8-sig")
            if not isinstance(frame.index, pd.RangeIndex):  # pandas takes cells without a name for an index
                raise ValueError(f"rows have more than the {len(names)} cells that are named")
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"table: {path} cannot be read as a table ({_one_line(error)}).") from None
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise InputError(f"table: column {', '.join(repeated)} stands more than once in {path}.")
    if frame.empty:
        raise InputError(f"table: {path} has no rows.")
    return PatchTable(_with_ids(frame, path), path.parent).with_kinds(kinds or {})


def _with_ids(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    import pandas as pd

    location = next((lead for lead in LOCATIONS if lead in frame.columns), None)
    for lead in [lead for lead in LOCATIONS if lead in frame.columns]:
        absent = [c for c in LOCATIONS[lead] if c not in frame.columns]
        if absent:
            raise InputError(f"table: column {lead} goes with {', '.join(LOCATIONS[lead])}; {absent[0]} is missing.")
    if "patch_id" not in frame.columns:
        if location is None:
            raise InputError(
                f"table: {path} needs a column patch_id, or one of {', '.join(LOCATIONS)} to build it from."
            )
        parts = [c for c in dict.fromkeys((*LOCATIONS[location], "x", "y", "size")) if c in frame.columns]
        places = zip(*(frame[c] for c in parts), strict=True)
        frame = frame.assign(patch_id=["|".join("" if pd.isna(v) else _label(v) for v in place) for place in places])
    if frame["patch_id"].isna().any():
        raise InputError(f"table: every row needs a patch_id, {int(frame['patch_id'].isna().sum())} have none.")
    frame = frame.assign(patch_id=frame["patch_id"].astype("str"))
    twice = frame["patch_id"][frame["patch_id"].duplicated()]
    if len(twice):
        raise InputError(f"table: patch_id must be unique, {twice.iloc[0]!r} stands more than once in {path}.")
    return frame.sort_values("patch_id", kind="stable").reset_index(drop=True)


def _window(record: pd.Series[Any], name: str) -> tuple[int, int, int] | None:
    """Return x, y, size of a row; ``None`` when the whole image is meant."""
    import pandas as pd

    values = [record.get(c) for c in ("x", "y", "size")]
    if all(pd.isna(v) for v in values):
        return None
    try:
        x, y, size = (_whole(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: a window needs whole numbers in x, y and size, got {values}.") from None
    if size < 1:
        raise InputError(f"{name}: size must be at least 1 pixel, got {size}.")
    return x, y, size


def _row(value: Any, name: str) -> int:
    try:
        row = _whole(value)
    except (TypeError, ValueError, OverflowError):
        row = -1
    if row < 0:  # h5py would count from the end
        raise InputError(f"{name}: row must be a whole number from 0 on, got {value}.")
    return row


def _whole(value: Any) -> int:
    whole = int(value)
    if whole != float(value):
        raise ValueError(f"{value} is no whole number")
    return whole


@functools.lru_cache(maxsize=4)
def _decoded(path: Path, stamp: int) -> Pixels:
    """Decode an image file; the few last ones are kept, as neighbouring rows are windows of one image."""
    from PIL import Image

    with Image.open(path) as image:
        pixels: Pixels = np.asarray(image.convert("RGB"))
    return pixels


def _image(path: Path, name: str) -> Pixels:
    from PIL import Image

    broken = (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)  # PIL raises all of these
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except broken as error:
        raise InputError(f"{name}: {path} cannot be read as an image ({_one_line(error)}).") from None


@functools.lru_cache(maxsize=2)
def _h5_file(path: Path, stamp: int) -> Any:
    import h5py

    return h5py.File(path, "r")


def _from_h5(path: Path, key: str, row: int, name: str) -> Pixels:
    try:
        data = _h5_file(path, path.stat().st_mtime_ns)[key]
        pixels = np.asarray(data[row])
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:  # TypeError: the key names a group
        raise InputError(f"{name}: row {row} of {key!r} in {path} cannot be read ({_one_line(error)}).") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"{name}: needs height × width × 3 bytes, {key!r} in {path} holds {pixels.dtype} of shape {pixels.shape}."
        )
    return pixels


@functools.lru_cache(maxsize=2)
def _slide_file(path: Path, stamp: int) -> Any:
    import openslide

    return openslide.OpenSlide(path)


def _from_slide(path: Path, window: tuple[int, int, int], name: str) -> Pixels:
    import openslide

    x, y, size = window
    try:
        region = _slide_file(path, path.stat().st_mtime_ns).read_region((x, y), 0, (size, size))
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(f"{name}: {path} cannot be read as a slide ({_one_line(error)}).") from None
    rgba = np.asarray(region, dtype=np.uint16)
    alpha = rgba[..., 3:]
    # Outside the scanned area a slide is transparent: white, as on the glass.
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _label(value: Any) -> str:
    """Return a class as text; 3.0, which a column with gaps makes of 3, is 3."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
