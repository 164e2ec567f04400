"""The HDF5 file of an activation store: its layout, how it is created whole, opened and checked."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, reason_of
from conceptkit.files.atomic import beside, holder, remove_left, take_space

SCHEMA = "conceptkit/activations/3"

DTYPES = ("float32", "float16")
"""Types of stored activations."""

_MOST_ROWS = 10**9
"""A store that states more rows is broken or malicious"""

_MOST_PROVENANCE = 10**7
"""Bytes of a provenance at most; it takes a few hundred"""

MISSING, DONE, SKIPPED = 0, 1, 2

Floats = NDArray[np.floating[Any]]

PAUSE = 0.2
"""Seconds between two attempts to open a store that another process uses"""

SAY_EVERY = 60.0
"""Seconds between two log messages while waiting"""

_logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a store: their names, and how to see that their pixels changed."""

    patch_ids: Sequence[str]
    """(n,) unique"""
    stamps: Sequence[str]
    """(n,) path, size and time of change of the file, cheap to read; the digest decides where a stamp differs"""
    digest: Callable[[int], str]
    """Row → digest of its encoded bytes"""


class HeldError(InputError):
    """The store cannot be opened, whatever it holds: another process has it open, or it may not be written."""


class InUseError(HeldError):
    """Another process uses the store."""

    def __init__(self, path: Path, user: str) -> None:
        super().__init__(f"store: {path} is in use by {user}; wait for it to finish.")
        self.user = user


class BrokenError(InputError):
    """The file is not a complete store."""


def predicted_bytes(patch_ids: Sequence[str], widths: Mapping[str, int], dtype: str = "float32") -> int:
    """Return the size of a store in bytes, within a few percent."""
    value = np.dtype(dtype).itemsize
    name = max((len(name.encode()) for name in patch_ids), default=1)
    chunks = 60 * len(widths)  # entries of the index of chunks
    return 8_000 + len(patch_ids) * (name + 64 + 1 + chunks + value * sum(widths.values()))


def size_text(size: float) -> str:
    """Return a number of bytes with a readable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def create(
    path: Path, provenance: str, rows: Rows, widths: Mapping[str, int], dtype: str, *, over: bool = False
) -> None:
    """Create a store's file with all of its space allocated and every row missing.

    Parameters
    ----------
    provenance : as JSON
    widths : layer → activations per row
    over : replace an existing file

    Raises
    ------
    InputError
        when the disk has not enough space
    """
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
        with refused_when_full(path):
            take_space(temporary, int(1.1 * need))  # before HDF5 does, which may crash on a full disk
            with h5py.File(temporary, "w") as file:
                # Texts have a fixed length: those of variable length lie in a heap, which may be damaged.
                file.attrs["schema"] = np.bytes_(SCHEMA)
                file["provenance"] = np.bytes_(provenance.encode())
                names = [name.encode() for name in rows.patch_ids]
                text = h5py.string_dtype("utf-8", max(map(len, names), default=1))
                file["patch_ids"] = np.array(names, dtype=text)
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
    """Move the file to its place; without ``over``, one that another process has put there meanwhile stays."""
    if not over:
        with contextlib.suppress(FileExistsError, OSError):
            os.link(temporary, path)
        if path.exists():
            return
    os.replace(temporary, path)


def check_layout(file: Any, path: Path) -> None:
    """Raise unless a file has the layout of a store, without links to other files, which writing would change."""
    schema = schema_of(file)
    if schema != SCHEMA:
        earlier = "the schema of an earlier version" if "schema" in file.attrs else "no schema"
        has = f"schema {schema!r}" if schema else earlier
        raise InputError(f"store: {path} has {has}, this version reads {SCHEMA!r}; --refresh computes it again.")
    values = file["values"]
    parts = [(file, name) for name in ("values", "patch_ids", "stamps", "digests", "state")]
    parts += [(values, name) for name in values] if isinstance(values, h5py.Group) else [(file, "values")]
    for group, name in parts:
        data = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if name == "values" and isinstance(data, h5py.Group):
            continue
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise ValueError(f"{name} is not a dataset in the file itself")
        if len(data) != len(file["state"]) or data.ndim != (1 if group is file else 2) or len(data) > _MOST_ROWS:
            raise ValueError(f"{name} has the shape {data.shape}")
        if group is file and data.dtype.kind != ("u" if name == "state" else "S"):
            raise ValueError(f"{name} holds {data.dtype}")
        if group is not file and (data.chunks != (1, data.shape[1]) or data.compression or data.dtype.kind != "f"):
            raise ValueError(f"{name} is not laid out as a store lays it out")


def schema_of(file: Any) -> str:
    """Return the schema that an HDF5 file states in a text of fixed length, else ``""``.

    Texts of variable length are not read: HDF5 may hang in a damaged heap.
    """
    if "schema" not in file.attrs or file.attrs.get_id("schema").dtype.kind != "S":
        return ""
    stated = file.attrs["schema"]
    return stated.decode(errors="replace") if isinstance(stated, bytes) else ""


def provenance_of(file: Any) -> dict[str, Any]:
    """Return what the values of a store depend on; raise :class:`ValueError` where it is not stated."""
    own = isinstance(file.get("provenance", getlink=True), h5py.HardLink)
    stated = file["provenance"] if own else None
    if not isinstance(stated, h5py.Dataset) or stated.external or stated.is_virtual:
        raise ValueError("provenance is not a dataset in the file itself")
    if stated.shape != () or stated.dtype.kind != "S" or stated.dtype.itemsize > _MOST_PROVENANCE:
        raise ValueError(f"provenance holds {stated.dtype} of shape {stated.shape}")
    found = json.loads(stated[()])
    if not isinstance(found, dict):
        raise ValueError("provenance is not a mapping")
    return found


def names_of(file: Any) -> NDArray[Any]:
    """Return the patch_ids of a store, (n,) text."""
    names: NDArray[Any] = file["patch_ids"].asstr()[:]
    return names


def open_file(path: Path, mode: str, *, wait: bool = True) -> Any:
    """Open a store's file with h5py, as soon as no other process uses it.

    The lock is HDF5's own, which the system releases however its holder ends.

    Parameters
    ----------
    mode : ``r`` shares the file with other readers, ``r+`` is exclusive
    wait : wait, and log it, while another process uses the file

    Raises
    ------
    HeldError
        when the file is in use or may not be written
    BrokenError
        when it is not a complete HDF5 file
    """
    began, said = time.monotonic(), 0.0
    while True:
        try:
            file = _open_free(path, mode)
        except InUseError as error:
            if not wait:
                raise
            waited = time.monotonic() - began
            if not said or waited - said >= SAY_EVERY:
                after = f" Waited {waited:.0f} s so far." if said else ""
                _logger.warning("Waiting for %s, which %s uses (Ctrl-C ends this run).%s", path, error.user, after)
                said = max(waited, PAUSE)
            time.sleep(PAUSE)
        else:
            if said:
                _logger.warning("%s is free after %.0f s.", path, time.monotonic() - began)
            return file


def _open_free(path: Path, mode: str) -> Any:
    try:
        return h5py.File(path, mode, rdcc_nbytes=0)
    except BlockingIOError:
        raise InUseError(path, holder(path)) from None
    except PermissionError:
        raise HeldError(f"store: no permission to write {path}; choose another file.") from None
    except OSError as error:
        raise BrokenError(
            f"store: {path} cannot be opened ({reason_of(error)}); --refresh computes it again."
        ) from None


@contextlib.contextmanager
def refused_when_broken(path: Path) -> Iterator[None]:
    """Raise :class:`BrokenError` in place of the many errors by which h5py reports a broken file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error.args[0] if error.args else "").strip().splitlines() or [type(error).__name__])[0]
        raise BrokenError(f"store: {path} is broken ({reason.rstrip('.')}); --refresh computes it again.") from None


@contextlib.contextmanager
def refused_when_full(path: Path) -> Iterator[None]:
    """Raise :class:`InputError` in place of HDF5's errors on a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in _FULL or any(f"errno = {code}," in str(error) for code in _FULL)
        if not full:
            raise
        raise InputError(
            f"store: the disk of {path} is full; make room and run the same command again, finished rows are kept."
        ) from None


def take(data: Any, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Read rows in any order, as one slice where they are close together."""
    if len(rows) == 0:
        return np.empty((0, *data.shape[1:]), data.dtype)
    low, high = int(rows.min()), int(rows.max()) + 1
    if high - low <= 2 * len(rows):
        piece: NDArray[Any] = data[low:high]
        return piece if high - low == len(rows) and (np.diff(rows) == 1).all() else piece[rows - low]
    return np.stack([data[int(row)] for row in rows])
