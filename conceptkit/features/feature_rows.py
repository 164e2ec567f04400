"""The rows of feature files that come without a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from pyarrow.parquet import read_schema

from conceptkit.errors import InputError, reason_of
from conceptkit.features.own_files import ids_next_to

_HDF5, _TABLES = (".h5", ".hdf5"), (".parquet", ".pq")

_NAMES = ("patch_id", "slide", "x", "y")
"""Columns that name a row"""


def rows_of_features(path: Path) -> pd.DataFrame:
    """Return a table of all rows of a feature file, or of the HDF5 files of slides in a folder.

    Raises
    ------
    InputError
        when there is no such file, or it cannot be read
    """
    if path.is_dir():
        files = sorted(file for end in _HDF5 for file in path.glob(f"*{end}"))
        if not files:
            raise InputError(f"features: {path} has no HDF5 files of slides; name a --table of the patches.")
        return pd.concat([_of_file(file) for file in files], ignore_index=True)
    if not path.is_file():
        raise InputError(f"features: file {path} not found.")
    return _of_file(path)


def _of_file(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    try:
        if kind in _TABLES:
            frame = pd.read_parquet(path, columns=[c for c in _columns(path) if c in _NAMES])
            n = len(frame)
        elif kind in _HDF5:
            frame = pd.DataFrame(dict(_of_hdf5(path)))
            n = len(frame)
        elif kind == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            n, beside = shape[0], ids_next_to(path, shape)
            frame = pd.DataFrame(index=range(n)) if beside is None else beside.filter(_NAMES)
        else:
            raise InputError(f"features: must be {', '.join((*_HDF5, '.npy', *_TABLES))}, got {path.name}.")
    except InputError:
        raise
    except Exception as error:  # h5py, NumPy and Arrow raise many kinds for a broken file
        raise InputError(f"features: {path} cannot be read ({reason_of(error)}).") from None
    frame = frame.assign(row=np.arange(n), features=str(path.absolute()))
    if "patch_id" not in frame:
        frame.insert(0, "patch_id", [f"{path.stem}_{row}" for row in range(n)])
    return frame


def _columns(path: Path) -> list[str]:
    return list(read_schema(path).names)


def _of_hdf5(path: Path) -> Iterator[tuple[str, Any]]:
    with h5py.File(path, "r") as file:
        if "features" not in file:
            raise InputError(f"features: {path} has no dataset features, only {', '.join(file) or 'nothing'}.")
        shape = file["features"].shape
        n = shape[1] if len(shape) == 3 and shape[0] == 1 else shape[0]
        yield "slide", np.repeat(path.stem, n)
        if "coords" in file:
            coords = np.asarray(file["coords"]).reshape(-1, 2)
            if len(coords) != n:
                raise InputError(f"features: coords of {path} must be x and y of its {n} features, got {len(coords)}.")
            yield "x", coords[:, 0]
            yield "y", coords[:, 1]
            if "patch_size_level0" in file["coords"].attrs:  # as TRIDENT writes it
                yield "size", np.repeat(int(file["coords"].attrs["patch_size_level0"]), n)
