"""Activation stores: rows of activations on disk, resumable after a kill, with a provenance that must match."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice
from conceptkit.features.store_files import (
    DONE,
    DTYPES,
    MISSING,
    SCHEMA,
    SKIPPED,
    Floats,
    HeldError,
    Rows,
    check_layout,
    create,
    names_of,
    open_file,
    provenance_of,
    refused_when_broken,
    refused_when_full,
    schema_of,
    take,
)
from conceptkit.files.matrix import Part, in_blocks


class ActivationStore:
    """Activations of some layers, one row per patch, in an HDF5 file of fixed layout.

    The file is created with all space allocated and then moved to its place, so that later writes only change values.
    A row is done when its entry in the completion map, which is written after the row, says so.

    Parameters
    ----------
    path : the HDF5 file; created when absent
    provenance : what the values depend on beside the pixels: network, layers, pooling, preprocessing
    rows : names, stamps and digests of the rows; a row whose pixels changed becomes missing
    widths : layer → activations per row; called only when the file has to be created
    dtype : one of :data:`DTYPES`
    verify : compare every row's digest, even where its stamp is the same
    refresh : replace a file of another network, table or schema

    Raises
    ------
    InputError
        when the file is not a store, is of another schema, provenance or table, or the disk is full
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
            create(path, stated, rows, widths(), dtype)
        try:
            self._take_up(stated, verify)
        except InputError as error:
            self.close()
            if not refresh or isinstance(error, HeldError):
                raise
            create(path, stated, rows, widths(), dtype, over=True)
            self._take_up(stated, verify)
        except BaseException:
            self.close()
            raise

    def _take_up(self, stated: str, verify: bool) -> None:
        """Open the file and check its content."""
        self._file = open_file(self.path, "r+")
        with refused_when_broken(self.path), refused_when_full(self.path):
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
            with contextlib.suppress(OSError, RuntimeError):  # a full disk, already reported
                self._file.close()

    def missing(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return those of ``rows`` that are not done."""
        absent: NDArray[np.intp] = rows[self._state[rows] != DONE]
        return absent

    def write(
        self,
        rows: NDArray[np.intp],
        values: Mapping[str, Floats],
        digests: Sequence[str],
        *,
        stamps: Sequence[str] | None = None,
    ) -> None:
        """Write layer → (len(rows), width) and mark the rows as done.

        Parameters
        ----------
        rows : distinct row numbers
        values : at least those of :attr:`layers`
        digests : of the encoded bytes that each row was computed from
        stamps : of the rows' files; ``None`` for the current ones

        Raises
        ------
        InputError
            when the disk is full (rows written before are kept), or a value is too large for the store's type
        """
        if not len(rows):
            return
        with refused_when_full(self.path):
            for layer in self.layers:
                data = self._file["values"][layer]
                stored = _as_type(values[layer], data.dtype, layer)
                if stored.shape[1] != data.shape[1]:
                    raise InputError(
                        f"store: {self.path} has {data.shape[1]} values a row for layer {layer}, the network gives "
                        f"{stored.shape[1]}; --refresh computes it again."
                    )
                for row, value in zip(rows, stored, strict=True):
                    # Without the chunk cache: a failed write is not repeated when the file is closed.
                    data.id.write_direct_chunk((int(row), 0), value.tobytes())
            marks = [self._rows.stamps[row] for row in rows] if stamps is None else stamps
            self._put("stamps", rows, [mark.encode() for mark in marks])
            self._put("digests", rows, [digest.encode() for digest in digests])
            self._file.flush()
            self._mark(rows, DONE)

    def skip(self, rows: NDArray[np.intp]) -> None:
        """Mark rows whose image cannot be read as skipped; the next run tries them again."""
        if len(rows):
            with refused_when_full(self.path):
                self._mark(rows, SKIPPED)

    def read(self, layer: str, rows: NDArray[np.intp]) -> Floats:
        """Return values (len(rows), width) as stored; raise :class:`InputError` when a row is missing."""
        absent = len(self.missing(rows))
        if absent:
            raise InputError(f"store: {absent} of {len(rows)} rows are missing in {self.path}.")
        with refused_when_broken(self.path):
            return take(self._file["values"][layer], rows)

    def parts(self, layer: str, rows: NDArray[np.intp]) -> Iterator[Part]:
        """Yield rows in blocks, for :func:`conceptkit.files.matrix.gather`."""
        width = int(self._file["values"][layer].shape[1])
        yield from in_blocks(len(rows), width, lambda some: self.read(layer, rows[some]))

    def absorb(self, path: Path) -> None:
        """Copy the finished rows of a store of the same provenance whose patches are among this one's.

        Raises
        ------
        BrokenError
            when the other file is not a complete store
        InputError
            when the disk is full, or another process uses the other file
        """
        place = {name: row for row, name in enumerate(self._rows.patch_ids)}
        with open_file(path, "r", wait=False) as file:
            with refused_when_broken(path):
                alike = schema_of(file) == SCHEMA and provenance_of(file) == provenance_of(self._file)
                ids = names_of(file) if alike else np.array([])
                theirs = np.flatnonzero(file["state"][:] == DONE) if alike else np.array([], dtype=np.intp)
            theirs = np.array([row for row in theirs if ids[row] in place], dtype=np.intp)
            for start in range(0, len(theirs), 256):
                part = theirs[start : start + 256]
                ours = np.array([place[ids[row]] for row in part], dtype=np.intp)
                with refused_when_broken(path):
                    values = {layer: take(file["values"][layer], part) for layer in self.layers}
                    digests, stamps = (list(take(file[name], part)) for name in ("digests", "stamps"))
                # Outside the context: an error of this store does not mean that the other is broken.
                self.write(ours, values, [v.decode() for v in digests], stamps=[v.decode() for v in stamps])
        self._forget_changed(verify=False)

    def _forget_changed(self, verify: bool) -> None:
        """Mark rows whose encoded bytes have changed as missing."""
        stamps = np.array([stamp.encode() for stamp in self._rows.stamps], dtype="S32")
        done = self._state == DONE
        suspects = np.flatnonzero(done if verify else done & (self._file["stamps"][:] != stamps))
        if not len(suspects):
            return
        known = self._file["digests"][:]
        same = np.array([self._rows.digest(int(row)).encode() == known[row] for row in suspects])
        if not same.all():
            self._mark(suspects[~same], MISSING)
        if same.any():
            self._put("stamps", suspects[same], list(stamps[suspects[same]]))
            self._file.flush()

    def _mark(self, rows: NDArray[np.intp], state: int) -> None:
        self._state[rows] = state
        self._put("state", rows, [state] * len(rows))
        self._file.flush()

    def _put(self, name: str, rows: NDArray[np.intp], values: Sequence[Any]) -> None:
        """Write entries of a small dataset as one slice."""
        if not len(rows):
            return
        data = self._file[name]
        low, high = int(rows.min()), int(rows.max()) + 1
        piece = data[low:high]
        piece[rows - low] = np.array(values, dtype=data.dtype)
        data[low:high] = piece

    def _check(self, provenance: str) -> None:
        check_layout(self._file, self.path)
        kept, wanted = provenance_of(self._file), json.loads(provenance)
        differing = [k for k in sorted({*kept, *wanted}) if kept.get(k) != wanted.get(k)]
        if differing:
            what = "; ".join(f"{k} {_short(kept.get(k))} instead of {_short(wanted.get(k))}" for k in differing)
            raise InputError(f"store: {self.path} was made with {what}; --refresh computes it again.")
        if list(names_of(self._file)) != list(self._rows.patch_ids):
            raise InputError(
                f"store: {self.path} was made for another table, whose patch_ids differ; --refresh computes it again."
            )


def _as_type(values: Floats, dtype: np.dtype[Any], layer: str) -> Floats:
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if dtype != values.dtype and (np.isinf(stored) & np.isfinite(values)).any():
        largest = float(np.abs(values[np.isfinite(values)]).max())
        raise InputError(f"dtype: {dtype} cannot hold the {largest:.4g} of layer {layer}; store it as float32.")
    return stored


def _short(value: Any) -> str:
    """Return a value for an error message, digests cut short."""
    text = repr(value)
    return f"{text[:13]}…'" if isinstance(value, str) and len(value) == 64 else text
