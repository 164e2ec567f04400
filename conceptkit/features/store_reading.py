"""Finished activation stores, read a row or a slice at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice
from conceptkit.features.store_files import (
    DONE,
    MISSING,
    SCHEMA,
    SKIPPED,
    Floats,
    Rows,
    check_layout,
    names_of,
    open_file,
    provenance_of,
    refused_when_broken,
    schema_of,
    take,
)


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Rows of one layer, read from the file on indexing: ``rows[10:20]``, ``np.asarray(rows)``."""

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
        with open_file(self.path, "r") as file, refused_when_broken(self.path):
            found = take(file["values"][self.layer], np.atleast_1d(at))
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
    notes: tuple[str, ...] = ()
    """What the call that returned this said of the network, such as another resolution or layers left out"""

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
        when it is not a store, is of another schema, or is not finished
    """
    if not path.is_file():
        raise InputError(f"store: file {path} not found.")
    with open_file(path, "r") as file, refused_when_broken(path):
        check_layout(file, path)
        state = file["state"][:]
        absent = int((state == MISSING).sum())
        if absent:
            raise InputError(f"store: {absent} of the {len(state)} rows of {path} are missing; extract again.")
        ids = names_of(file)
        at = np.flatnonzero(state == DONE)
        found = {}
        for name, own in (names or {own: own for own in file["values"]}).items():
            data = file["values"][own]
            shape = (len(at), int(data.shape[1]))
            found[name] = LayerActivations(path=path, layer=own, shape=shape, dtype=data.dtype, _at=at)
        return Activations(
            path=path,
            patch_ids=tuple(str(v) for v in ids[at]),
            layers=found,
            provenance=provenance_of(file),
            skipped=tuple((str(v), "skipped by an earlier run") for v in ids[state == SKIPPED]),
        )


def is_store(path: Path) -> bool:
    """Return whether a file is an activation store, of this schema or another."""
    try:
        with h5py.File(path, "r") as file:
            if schema_of(file).startswith(SCHEMA.rpartition("/")[0]):
                return True
            earlier = ("values", "patch_ids", "state")
            return "schema" in file.attrs and all(part in file for part in earlier)
    except BlockingIOError:
        return True  # another process writes it: opening it says so
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):  # all raised by h5py for damaged files
        return False


def changed_since(path: Path, rows: Rows) -> list[str]:
    """Return the patches whose encoded bytes are not those that a store's rows were computed from.

    Parameters
    ----------
    path : a store that has all of the rows
    rows : some patches as they are now; one whose digest is empty has no file to compare with
    """
    with open_file(path, "r") as file, refused_when_broken(path):
        place = {str(name): i for i, name in enumerate(names_of(file))}
        at = np.array([place[name] for name in rows.patch_ids], dtype=np.intp)
        stamps, digests = file["stamps"][:][at], file["digests"][:][at]
    now = np.array([stamp.encode() for stamp in rows.stamps], dtype="S32")
    found = {int(i): rows.digest(int(i)).encode() for i in np.flatnonzero(stamps != now)}
    return [rows.patch_ids[i] for i, digest in found.items() if digest and digest != digests[i]]
