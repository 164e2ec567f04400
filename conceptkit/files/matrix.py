"""Matrices in files, read a block at a time, for data larger than memory."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError

HELD = 2**27
"""Number of values (512 MiB as float32) up to which a matrix stays in memory."""

_BLOCK = 2**22
"""Values read or written at a time"""

Part = tuple[NDArray[np.intp], NDArray[Any]]
"""Row numbers (k,) and the values (k, d) of these."""


def gather(n: int, parts: Iterable[Part], folder: Path | None) -> Any:
    """Return a matrix (n, d) whose rows come in parts: an array, or, if it is large, a :class:`FileMatrix`.

    The file has no name, and is gone when it is not used. Raises :class:`InputError` when the disk has no room for it.

    Parameters
    ----------
    n : number of rows
    parts : row numbers (k,) and the values (k, d) of these, each row once; see :func:`in_blocks`
    folder : of the file; created if needed. ``None`` keeps all in memory
    """
    rest = iter(parts)
    first = next(rest, None)
    if first is None:
        return np.empty((n, 0), dtype=np.float32)
    if folder is not None and n * first[1].shape[1] > HELD:
        return _written(n, itertools.chain([first], rest), folder)
    X = np.empty((n, first[1].shape[1]), dtype=first[1].dtype)
    for rows, values in itertools.chain([first], rest):
        X[rows] = values
    return X


def _written(n: int, parts: Iterable[Part], folder: Path) -> FileMatrix:
    folder.mkdir(parents=True, exist_ok=True)
    file = _Open(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115  # as long as the matrix
    place, done, width, dtype = np.zeros(n, dtype=np.intp), 0, 0, np.dtype(np.float32)
    for rows, values in parts:
        width, dtype = values.shape[1], values.dtype
        _append(file.file, values, n, folder)
        place[rows] = np.arange(done, done + len(rows))
        done += len(rows)
    return FileMatrix(file, dtype, width, place, folder)


def in_blocks(n: int, width: int, take: Callable[[NDArray[np.intp]], NDArray[Any]]) -> Iterator[Part]:
    """Yield rows 0 … n − 1 some at a time, with ``take(rows)``: parts of :func:`gather`."""
    for start, stop in _blocks(n, width):
        rows = np.arange(start, stop)
        yield rows, take(rows)


def _append(file: IO[bytes], values: NDArray[Any], n: int, folder: Path) -> None:
    try:
        file.write(np.ascontiguousarray(values).data)
        file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = n * values.shape[1] * values.itemsize / 1e9
        raise InputError(
            f"features: {folder} has no room for {size:.1f} GB of rows that are too many for memory; "
            "let CONCEPTKIT_CACHE name a folder on another disk."
        ) from None


class _Open:
    """A file that is closed with the last matrix that reads it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


class FileMatrix:
    """Rows of a matrix in a file; ``X[rows]`` reads them, in any order, from several threads at once.

    Rows are given as numbers, a slice or a mask; ``X[:, columns]`` reads columns of all rows, and NumPy functions
    load the whole matrix into memory.
    """

    def __init__(self, file: _Open, dtype: np.dtype[Any], width: int, at: NDArray[np.intp], folder: Path) -> None:
        self._file, self._at, self.folder = file, at, folder
        self.dtype = dtype
        self.shape = (len(at), width)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, rows: NDArray[np.intp]) -> FileMatrix:
        """Return some of the rows; none is read."""
        some = copy.copy(self)
        some._at = self._at[rows]
        some.shape = (len(some._at), self.shape[1])
        return some

    def new_file(self, n: int, parts: Iterable[Part]) -> FileMatrix | None:
        """Return another matrix (n, d') in another file, or ``None`` if the disk has no room for it."""
        try:
            return _written(n, parts, self.folder)
        except InputError:
            return None

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return rows (k, d), one row (d,), or with ``[:, columns]`` columns (n, k)."""
        if isinstance(key, tuple):
            rows, columns = key
            at = self._at[rows]
            parts = [self._read(at[start:stop])[:, columns] for start, stop in _blocks(len(at), self.shape[1])]
            return np.concatenate(parts) if parts else self._read(at)[:, columns]
        at = self._at[key]
        return self._read(at) if np.ndim(at) else self._read(np.atleast_1d(at))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _read(self, at: NDArray[np.intp]) -> NDArray[Any]:
        out = np.empty((len(at), self.shape[1]), dtype=self.dtype)
        size = self.shape[1] * self.dtype.itemsize
        # Rows that follow one another in the file are read together.
        starts = np.concatenate([[0], np.flatnonzero(np.diff(at) != 1) + 1, [len(at)]]) if len(at) else np.zeros(1, int)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            self._fill(out[start:stop].data.cast("B"), int(at[start]) * size)
        return out

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):  # one call reads 2 GiB at most
            got = os.preadv(self._file.file.fileno(), [buffer[done:]], offset + done)
            if not got:
                raise OSError(errno.EIO, "the file of a matrix has become shorter")
            done += got


class ReadMatrix(FileMatrix):
    """Rows that are read from files of other programs whenever they are used: no copy of them is made."""

    def __init__(self, read: Callable[[NDArray[np.intp]], NDArray[Any]], n: int, width: int, folder: Path) -> None:
        self._source, self._at, self.folder = read, np.arange(n), folder
        self.dtype, self.shape = np.dtype(np.float32), (n, width)

    def _read(self, at: NDArray[np.intp]) -> NDArray[Any]:
        return self._source(at)


def rows_of(X: Any, rows: NDArray[np.intp]) -> Any:
    """Return rows of X (n, d), which may be a :class:`FileMatrix`; X itself where all are wanted in their order."""
    if len(rows) == len(X) and bool((rows == np.arange(len(X))).all()):
        return X  # a copy may be gigabytes
    return X.rows(rows) if isinstance(X, FileMatrix) else X[rows]


def _blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // max(width, 1))
    yield from ((i, min(i + step, n)) for i in range(0, n, step))
