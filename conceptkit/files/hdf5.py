"""HDF5 files: atomic writes, and checks for damage that would keep HDF5 reading forever."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
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


def _walk_heaps(data: mmap.mmap | bytes) -> None:
    """Raise :class:`OSError` unless the walk over each global heap moves on, and stays within it."""
    start = data.find(_HEAP)
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
        start = data.find(_HEAP, start + 1)
