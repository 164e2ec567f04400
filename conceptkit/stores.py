"""Activation stores: rows of activations on disk, resumable after a kill, never taken for another network's."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_choice
from conceptkit._files import beside, holder, remove_left, take_space

SCHEMA = "conceptkit/activations/2"

DTYPES = ("float32", "float16")
"""What activations are stored as."""

_MOST_ROWS = 10**9
"""A store that says it has more is broken, or means harm"""

_MISSING, _DONE, _SKIPPED = 0, 1, 2

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a store: what they are called, and how to tell that their pixels changed."""

    patch_ids: Sequence[str]
    """(n,) unique"""
    stamps: Sequence[str]
    """(n,) cheap marks (place, size and time of change of the file): one that stands needs no second look"""
    digest: Callable[[int], str]
    """Row → digest of its encoded bytes: the second look"""


class ActivationStore:
    """Activations of some layers, one row per patch, in an HDF5 file of fixed layout.

    The file is created whole (all space taken) beside its place and moved there, so that later writes change values
    alone. A row counts as there when its entry of the completion map says so, which is written after the row.

    Parameters
    ----------
    path : the HDF5 file; created when absent
    provenance : what the values depend on beside the pixels: network, layers, pooling, preprocessing
    rows : names and marks of the rows; a row whose pixels changed is not there any more
    widths : layer → activations per row; asked only when the file has to be created
    dtype : one of :data:`DTYPES`
    verify : look at every row's encoded bytes again, whatever its mark says
    refresh : begin anew where the file is of something else

    Raises
    ------
    InputError
        when the file is not a store, is of another schema, provenance or table, or is in use, or the disk is full
    """

    def __init__(
        self,
        path: Path,
        *,
        provenance: Mapping[str, Any],
        rows: Rows,
        widths: Callable[[], Mapping[str, int]],
        dtype: str = "float32",
        verify: bool = False,
        refresh: bool = False,
    ) -> None:
        self.path = path
        self._rows = rows
        stated = json.dumps({**provenance, "dtype": check_choice("dtype", dtype, DTYPES)}, sort_keys=True)
        if not path.exists():
            _create(path, stated, rows, widths(), dtype)
        try:
            self._take_up(stated, verify)
        except InputError as error:
            self.close()
            if not refresh or isinstance(error, HeldError):
                raise
            _create(path, stated, rows, widths(), dtype, over=True)
            self._take_up(stated, verify)
        except BaseException:
            self.close()
            raise

    def _take_up(self, stated: str, verify: bool) -> None:
        """Open the file, and see what is in it."""
        self._file = _open(self.path, "r+")
        with _told_when_broken(self.path), _told_when_full(self.path):
            self._check(stated)
            self.layers = tuple(self._file["values"])
            self._state: NDArray[np.uint8] = self._file["state"][:]
            self._forget_changed(verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; another process may then open it."""
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError, RuntimeError):  # of a full disk, which was told when it was met
                self._file.close()

    def missing(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return those of ``rows`` that are not there."""
        absent: NDArray[np.intp] = rows[self._state[rows] != _DONE]
        return absent

    def write(
        self,
        rows: NDArray[np.intp],
        values: Mapping[str, Floats],
        digests: Sequence[str],
        *,
        stamps: Sequence[str] | None = None,
    ) -> None:
        """Write layer → (len(rows), width); rows count as there once they are on their way to the disk.

        Parameters
        ----------
        rows : distinct row numbers
        values : at least those of :attr:`layers`
        digests : of the encoded bytes that each row was computed from
        stamps : of the rows' files; ``None`` for what they are now

        Raises
        ------
        InputError
            when the disk is full (what was written before is kept), or a value is too large for the store's type
        """
        if not len(rows):
            return
        with _told_when_full(self.path):
            for layer in self.layers:
                data = self._file["values"][layer]
                stored = _as_type(values[layer], data.dtype, layer)
                if stored.shape[1] != data.shape[1]:
                    raise InputError(
                        f"store: {self.path} has {data.shape[1]} values a row for layer {layer}, the network gives "
                        f"{stored.shape[1]}; --refresh computes it anew."
                    )
                for row, value in zip(rows, stored, strict=True):
                    # Past the chunk cache: what fails here is not tried again when the file is closed.
                    data.id.write_direct_chunk((int(row), 0), value.tobytes())
            marks = [self._rows.stamps[row] for row in rows] if stamps is None else stamps
            self._put("stamps", rows, [mark.encode() for mark in marks])
            self._put("digests", rows, [digest.encode() for digest in digests])
            self._file.flush()
            self._mark(rows, _DONE)

    def skip(self, rows: NDArray[np.intp]) -> None:
        """Note rows whose image cannot be read: left out on purpose, tried again next time."""
        if len(rows):
            with _told_when_full(self.path):
                self._mark(rows, _SKIPPED)

    def read(self, layer: str, rows: NDArray[np.intp]) -> Floats:
        """Return values (len(rows), width) of rows that are there, in float32 or as they are stored.

        Raises
        ------
        InputError
            when one of them is not
        """
        absent = len(self.missing(rows))
        if absent:
            raise InputError(f"store: {self.path} lacks {absent} of the {len(rows)} rows asked for.")
        with _told_when_broken(self.path):
            return _take(self._file["values"][layer], rows)

    def absorb(self, path: Path) -> None:
        """Take over the finished rows of a store of the same provenance whose patches are among this one's."""
        place = {name: row for row, name in enumerate(self._rows.patch_ids)}
        with _open(path, "r") as file:
            alike = all(file.attrs.get(k) == self._file.attrs[k] for k in ("schema", "provenance"))
            ids = file["patch_ids"].asstr()[:] if alike else np.array([])
            theirs = np.flatnonzero(file["state"][:] == _DONE) if alike else np.array([], dtype=np.intp)
            theirs = np.array([row for row in theirs if ids[row] in place], dtype=np.intp)
            for start in range(0, len(theirs), 256):
                part = theirs[start : start + 256]
                values = {layer: _take(file["values"][layer], part) for layer in self.layers}
                ours = np.array([place[ids[row]] for row in part], dtype=np.intp)
                digests, stamps = (list(_take(file[name], part)) for name in ("digests", "stamps"))
                self.write(ours, values, [v.decode() for v in digests], stamps=[v.decode() for v in stamps])
        self._forget_changed(verify=False)

    def _forget_changed(self, verify: bool) -> None:
        """Mark rows as missing whose encoded bytes are not those that they were computed from."""
        stamps = np.array([stamp.encode() for stamp in self._rows.stamps], dtype="S32")
        there = self._state == _DONE
        looked_at = np.flatnonzero(there if verify else there & (self._file["stamps"][:] != stamps))
        if not len(looked_at):
            return
        known = self._file["digests"][:]
        same = np.array([self._rows.digest(int(row)).encode() == known[row] for row in looked_at])
        if not same.all():
            self._mark(looked_at[~same], _MISSING)
        if same.any():
            self._put("stamps", looked_at[same], list(stamps[looked_at[same]]))
            self._file.flush()

    def _mark(self, rows: NDArray[np.intp], state: int) -> None:
        self._state[rows] = state
        self._put("state", rows, [state] * len(rows))
        self._file.flush()

    def _put(self, name: str, rows: NDArray[np.intp], values: Sequence[Any]) -> None:
        """Write entries of a small dataset in one piece, with what lies between them."""
        if not len(rows):
            return
        data = self._file[name]
        low, high = int(rows.min()), int(rows.max()) + 1
        piece = data[low:high]
        piece[rows - low] = np.array(values, dtype=data.dtype)
        data[low:high] = piece

    def _check(self, provenance: str) -> None:
        _check_layout(self._file, self.path)
        kept, asked = json.loads(self._file.attrs["provenance"]), json.loads(provenance)
        differing = [k for k in sorted({*kept, *asked}) if kept.get(k) != asked.get(k)]
        if differing:
            what = "; ".join(f"{k} {_short(kept.get(k))} instead of {_short(asked.get(k))}" for k in differing)
            raise InputError(f"store: {self.path} was made with {what}; --refresh computes it anew.")
        if list(self._file["patch_ids"].asstr()[:]) != list(self._rows.patch_ids):
            raise InputError(
                f"store: {self.path} was made for another table, whose patch_ids differ; --refresh computes it anew."
            )


class HeldError(InputError):
    """The store cannot be had, whatever is in it: another process has it open, or it may not be written."""


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Rows of one layer, read from the file when they are asked for: ``rows[10:20]``, ``np.asarray(rows)``."""

    path: Path
    layer: str
    """As the file has it"""
    shape: tuple[int, int]
    """(n, d)"""
    dtype: np.dtype[Any]
    _at: NDArray[np.intp]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> Floats:
        """Return (d,) of one row, or (k, d) of some: a number, a slice, numbers, or a mask."""
        at = self._at[rows]
        with _open(self.path, "r") as file, _told_when_broken(self.path):
            found = _take(file["values"][self.layer], np.atleast_1d(at))
        one: Floats = found[0] if np.ndim(at) == 0 else found
        return one

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """A finished store, read lazily: ``activations["mixed10"][:100]``, and ``activations[:100]`` of a single layer."""

    path: Path
    patch_ids: tuple[str, ...]
    """(n,) names of the rows that are there, in their order"""
    layers: Mapping[str, LayerActivations]
    """Layer as named → its rows"""
    provenance: Mapping[str, Any]
    """What the values depend on beside the pixels"""
    skipped: tuple[tuple[str, str], ...] = ()
    """Patches left out, each with the reason"""
    rows_written: int = 0
    """Rows computed by the call that returned this; the others were there before"""

    def __len__(self) -> int:
        return len(self.patch_ids)

    def __getitem__(self, key: Any) -> Any:
        """Return a layer by its name, or rows of the only layer."""
        if isinstance(key, str):
            return self.layers[check_choice("layer", key, self.layers)]
        if len(self.layers) > 1:
            raise InputError(f"layer: name one of {', '.join(self.layers)} before slicing.")
        return next(iter(self.layers.values()))[key]


def open_activations(path: Path, *, names: Mapping[str, str] | None = None) -> Activations:
    """Open a finished store for reading.

    Parameters
    ----------
    path : the HDF5 file
    names : layer as it is to be called → as the file has it; ``None`` for the file's own names

    Raises
    ------
    InputError
        when it is not a store, is of another schema, is in use, or is not finished
    """
    if not path.is_file():
        raise InputError(f"store: there is no file {path}.")
    with _open(path, "r") as file, _told_when_broken(path):
        _check_layout(file, path)
        state = file["state"][:]
        absent = int((state == _MISSING).sum())
        if absent:
            raise InputError(f"store: {path} lacks {absent} of its {len(state)} rows; extract again to finish it.")
        ids = file["patch_ids"].asstr()[:]
        at = np.flatnonzero(state == _DONE)
        found = {}
        for name, own in (names or {own: own for own in file["values"]}).items():
            data = file["values"][own]
            shape = (len(at), int(data.shape[1]))
            found[name] = LayerActivations(path=path, layer=own, shape=shape, dtype=data.dtype, _at=at)
        return Activations(
            path=path,
            patch_ids=tuple(str(v) for v in ids[at]),
            layers=found,
            provenance=json.loads(file.attrs["provenance"]),
            skipped=tuple((str(v), "skipped by an earlier run") for v in ids[state == _SKIPPED]),
        )


def is_store(path: Path) -> bool:
    """Return whether a file is an activation store, of this schema or another."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("schema", "")).startswith(SCHEMA.rpartition("/")[0])
    except BlockingIOError:
        return True  # another process writes it: opening it says so
    except OSError:
        return False


def changed_since(path: Path, rows: Rows) -> list[str]:
    """Return the patches whose encoded bytes are not those that a store's rows were computed from.

    Parameters
    ----------
    path : a store that has all of the rows
    rows : some patches as they are now; one whose digest is empty has no file to compare with
    """
    with _open(path, "r") as file, _told_when_broken(path):
        place = {str(name): i for i, name in enumerate(file["patch_ids"].asstr()[:])}
        at = np.array([place[name] for name in rows.patch_ids], dtype=np.intp)
        stamps, digests = file["stamps"][:][at], file["digests"][:][at]
    now = np.array([stamp.encode() for stamp in rows.stamps], dtype="S32")
    found = {int(i): rows.digest(int(i)).encode() for i in np.flatnonzero(stamps != now)}
    return [rows.patch_ids[i] for i, digest in found.items() if digest and digest != digests[i]]


def predicted_bytes(patch_ids: Sequence[str], widths: Mapping[str, int], dtype: str = "float32") -> int:
    """Return how large a store will be, within a few percent."""
    value = np.dtype(dtype).itemsize
    names = sum(len(name.encode()) + 16 for name in patch_ids)  # in a heap of their own
    chunks = 60 * len(widths)  # entries of the index of chunks
    return 8_000 + names + len(patch_ids) * (16 + 64 + 1 + chunks + value * sum(widths.values()))


def size_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _create(
    path: Path, provenance: str, rows: Rows, widths: Mapping[str, int], dtype: str, *, over: bool = False
) -> None:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = predicted_bytes(rows.patch_ids, widths, dtype), shutil.disk_usage(path.parent).free
    if need > free:
        raise InputError(
            f"store: {path} needs {size_text(need)}, and {size_text(free)} are free; "
            "choose another place, gap instead of flatten, or float16."
        )
    n = len(rows.patch_ids)
    remove_left(path)
    temporary = beside(path)
    try:
        with _told_when_full(path):
            take_space(temporary, int(1.1 * need))  # before HDF5 does, which may crash on a full disk
            with h5py.File(temporary, "w") as file:
                file.attrs["schema"] = SCHEMA
                file.attrs["provenance"] = provenance
                file.create_dataset("patch_ids", data=np.array(rows.patch_ids, dtype=h5py.string_dtype()))
                for name, kind in (("stamps", "S32"), ("digests", "S32"), ("state", np.uint8)):
                    file.create_dataset(name, data=np.zeros(n, dtype=kind))
                early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                for layer, width in widths.items():
                    # One row per chunk: rows are written and read in any order.
                    file["/"].create_dataset(
                        f"values/{layer}", (n, width), np.dtype(dtype), chunks=(1, width), dcpl=early.copy()
                    )
            take_space(temporary, temporary.stat().st_size)
        _move(temporary, path, over=over)
    finally:
        temporary.unlink(missing_ok=True)


def _move(temporary: Path, path: Path, *, over: bool) -> None:
    """Put the file in its place; one that another process has put there meanwhile stays, unless it is to go."""
    if not over:
        with contextlib.suppress(FileExistsError, OSError):
            os.link(temporary, path)
        if path.exists():
            return
    os.replace(temporary, path)


def _check_layout(file: Any, path: Path) -> None:
    """Raise :class:`InputError` unless a file holds what a store holds, and all of it in itself.

    A link to another file, or data that lie in one, would be written to when rows are.
    """
    import h5py

    schema = file.attrs.get("schema")
    if not isinstance(schema, str) or schema != SCHEMA:
        raise InputError(
            f"store: {path} has schema {schema!r}, this version reads {SCHEMA!r}; --refresh computes it anew."
        )
    values = file["values"]
    parts = [(file, name) for name in ("values", "patch_ids", "stamps", "digests", "state")]
    parts += [(values, name) for name in values] if isinstance(values, h5py.Group) else [(file, "values")]
    for group, name in parts:
        data = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if name == "values" and isinstance(data, h5py.Group):
            continue
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise ValueError(f"{name} is no dataset of its own")
        if len(data) != len(file["state"]) or data.ndim != (1 if group is file else 2) or len(data) > _MOST_ROWS:
            raise ValueError(f"{name} has the shape {data.shape}")
        if group is not file and (data.chunks != (1, data.shape[1]) or data.compression or data.dtype.kind != "f"):
            raise ValueError(f"{name} is not laid out as a store lays it out")


def _open(path: Path, mode: str) -> Any:
    import h5py

    try:
        return h5py.File(path, mode, rdcc_nbytes=0)
    except BlockingIOError:
        raise HeldError(f"store: {path} is in use by {holder(path)}; wait for it to finish.") from None
    except PermissionError:
        raise HeldError(f"store: {path} may not be written; name another place.") from None
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"store: {path} cannot be opened ({reason}); --refresh computes it anew.") from None


@contextlib.contextmanager
def _told_when_broken(path: Path) -> Iterator[None]:
    """Say in a sentence that a file is no whole store; h5py tells it in many ways."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error.args[0] if error.args else "").strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"store: {path} is broken ({reason.rstrip('.')}); --refresh computes it anew.") from None


@contextlib.contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full; HDF5 tells it in its own way."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in _FULL or any(f"errno = {code}," in str(error) for code in _FULL)
        if not full:
            raise
        raise InputError(
            f"store: the disk of {path} is full; make room and run the same command again, finished rows are kept."
        ) from None


def _take(data: Any, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Read rows in any order, as one slice where they lie together."""
    if len(rows) == 0:
        return np.empty((0, *data.shape[1:]), data.dtype)
    low, high = int(rows.min()), int(rows.max()) + 1
    if high - low <= 2 * len(rows):
        piece: NDArray[Any] = data[low:high]
        return piece if high - low == len(rows) and (np.diff(rows) == 1).all() else piece[rows - low]
    return np.stack([data[int(row)] for row in rows])


def _as_type(values: Floats, dtype: np.dtype[Any], layer: str) -> Floats:
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if dtype != values.dtype and (np.isinf(stored) & np.isfinite(values)).any():
        largest = float(np.abs(values[np.isfinite(values)]).max())
        raise InputError(f"dtype: {dtype} cannot hold the {largest:.4g} of layer {layer}; store it as float32.")
    return stored


def _short(value: Any) -> str:
    """Return a value as an error names it, digests cut short."""
    text = repr(value)
    return f"{text[:13]}…'" if isinstance(value, str) and len(value) == 64 else text
