"""HDF5 files: atomic writes, and checks for damage that would keep HDF5 reading forever."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py

from conceptkit.files.atomic import replacing

_HEAP = b"GCOL"
"""Signature of a global heap, which holds texts of variable length and references"""


@contextlib.contextmanager
def replacing_hdf5(path: Path) -> Iterator[Any]:
    """Yield an HDF5 file in memory, written to ``path`` if the block succeeds; HDF5 may crash on a full disk."""
    with h5py.File(f"{path.name}-{os.urandom(8).hex()}", "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)


def open_hdf5(path: Path) -> Any:
    """Open with h5py, for reading, a file whose texts of variable length will be read.

    HDF5 (2.0.0 as 1.14) walks a global heap by the sizes that are written in it, and for ever where free space says
    that it has none; nothing in Python can end that. The heaps are walked here first. The whole file is looked through
    for them: a file of many gigabytes should have texts of fixed length, and be opened without this.

    Raises :class:`OSError` when h5py does, or a heap is damaged.
    """
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _walk_heaps(data)
    return h5py.File(path, "r")


def check_heaps(path: Path, datasets: Iterable[Any]) -> None:
    """Look, as :func:`open_hdf5` does, for damaged heaps outside the values of some datasets, which are not read.

    Raises :class:`OSError` when a heap is damaged. A heap that a text has within these values is not found: only a
    file that was made for that has one.
    """
    taken = sorted(extent for dataset in datasets for extent in _extents(dataset))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for start, stop in (*taken, (len(data), len(data))):
            if start > at:
                _walk_heaps(data, at, start + len(_HEAP) - 1)
            at = max(at, stop)


def _extents(dataset: Any) -> Iterator[tuple[int, int]]:
    """Yield first and last offset, in the file, of the values of a dataset."""
    if dataset.chunks is None:
        if (start := dataset.id.get_offset()) is not None:
            yield start, start + dataset.id.get_storage_size()
        return
    for i in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(i)
        yield chunk.byte_offset, chunk.byte_offset + chunk.size


def _walk_heaps(data: mmap.mmap | bytes, first: int = 0, last: int = sys.maxsize) -> None:
    """Raise :class:`OSError` unless the walk over each global heap moves on, and stays within it."""
    start = data.find(_HEAP, first, last)
    while start >= 0:
        # signature, version 1, three bytes, size; then per object: index, references, four bytes, size, contents
        end = start + int.from_bytes(data[start + 8 : start + 16], "little")
        at = start + 16
        while data[start + 4 : start + 5] == b"\1" and at + 16 <= end:
            free = data[at : at + 2] == b"\0\0"
            size = int.from_bytes(data[at + 8 : at + 16], "little")
            step = size if free else 16 + -(-size // 8) * 8  # free space counts its own head
            if step < 16 or at + step > min(end, len(data)):
                raise OSError("the heap of its texts is damaged")
            at += step
        start = data.find(_HEAP, start + 1, last)
