"""One file of features by one interface: HDF5 as TRIDENT, CLAM and STAMP write it, ``.pt`` and ``.npy``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.files.hdf5 import check_heaps

HDF5, TENSORS, NUMPY = (".h5", ".hdf5"), (".pt", ".pth"), ".npy"

MATRICES = (*HDF5, *TENSORS, NUMPY)
"""Suffixes of files with one matrix, and at most coordinates and attributes"""

NAMES = ("features", "feats")
"""Dataset of the features: of TRIDENT and CLAM, and of STAMP"""

_ENCODERS = ("encoder", "extractor")
"""Attribute that names the network: of TRIDENT, and of STAMP"""

_FACTS = (
    *("target_magnification", "patch_size", "overlap"),  # of TRIDENT; patch_size_level0 depends on the scanner
    *("tile_size_um", "tile_size_px", "unit", "feat_type"),  # of STAMP
)
"""Attributes that say how patches were cut, and differ only between files of different runs"""


@dataclass(frozen=True)
class MatrixFile:
    """An open file: its matrix, and what the file says of it."""

    path: Path
    values: Callable[[], Any]
    """Opens the matrix (n, d), or (d,) of one row: an array, or a dataset that reads on indexing"""
    shape: tuple[int, ...]
    coords: Callable[[], NDArray[Any]] | None = None
    """Reads the coordinates (n, 2) of the patches; ``None`` where the file has none"""
    unit: str = "px"
    """Unit of the coordinates: ``px`` of level 0, ``um``, or empty where STAMP does not state it"""
    encoder: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """How patches were cut, as far as the file states it"""
    ids: pd.DataFrame | None = None
    """Columns ``patch_id`` or ``slide`` of the rows, where the file, or a table of the same name, names them"""

    def place_columns(self) -> tuple[str, str] | None:
        """Return the columns of a table with the coordinates of patches; ``None`` without known coordinates."""
        if self.coords is None or not self.unit:
            return None
        return ("x", "y") if self.unit == "px" else ("x_um", "y_um")


@contextlib.contextmanager
def open_matrix(path: Path) -> Iterator[MatrixFile]:
    """Open a file of :data:`MATRICES`; its matrix is read on indexing.

    Raises
    ------
    InputError
        when it has no matrix of numbers; h5py, NumPy and torch raise many kinds for a broken file
    """
    kind = path.suffix.lower()
    if kind in HDF5:
        with h5py.File(path, "r") as file:
            yield _of_hdf5(path, file)
        return
    # opened for every block: mapped pages count as memory until the file is closed
    opened = (lambda: _tensor(path)) if kind in TENSORS else (lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    values = _bare(opened())
    check_kind(values.dtype, path.name)
    yield MatrixFile(path, lambda: _bare(opened()), values.shape)


def check_kind(dtype: np.dtype[Any], what: str) -> None:
    """Refuse what holds no numbers."""
    if dtype.kind not in "iufb":
        raise InputError(f"features: {what} must hold numbers, got {dtype}.")


def _of_hdf5(path: Path, file: Any) -> MatrixFile:
    name = next((name for name in NAMES if name in file), None)
    if name is None:
        raise InputError(f"features: {path} has no dataset features, only {', '.join(file) or 'nothing'}.")
    data, coords = file[name], file.get("coords")
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"features: {name} of {path} is a group, not a dataset.")
    # Other types are refused before they are read: HDF5 may hang in the damaged heap of a text or object.
    check_kind(data.dtype, f"{name} of {path}")
    attributes = _attributes(path, file, [data, *([coords] if isinstance(coords, h5py.Dataset) else [])])
    values = _bare(data)
    return MatrixFile(
        path,
        lambda: values,
        values.shape,
        None if coords is None else lambda: _coords(path, coords, len(values)),
        attributes.get("unit", "px" if name == NAMES[0] else ""),
        next((attributes[key] for key in _ENCODERS if attributes.get(key)), None),
        {key: attributes[key] for key in _FACTS if key in attributes},
    )


def _attributes(path: Path, file: Any, datasets: list[Any]) -> dict[str, str]:
    """Return the attributes of a file and its datasets as text, of those that are read here."""
    owners = [file, *datasets]
    if not any(len(owner.attrs) for owner in owners):
        return {}
    check_heaps(path, datasets)
    found: dict[str, str] = {}
    for owner in owners:
        for key in (*_ENCODERS, *_FACTS):
            if key in owner.attrs and np.ndim(value := owner.attrs[key]) == 0:
                value = value.decode(errors="replace") if isinstance(value, bytes) else value
                found.setdefault(key, f"{value:g}" if isinstance(value, float) else str(value))
    return found


def _coords(path: Path, data: Any, n: int) -> NDArray[Any]:
    if hasattr(data, "dtype"):
        check_kind(data.dtype, f"coords of {path}")
    coords = np.asarray(data)
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if coords.shape != (n, 2):
        raise InputError(
            f"features: coords of {path} must be x and y of its {n} features, got shape {coords.shape}; give the table "
            "a column row."
        )
    return coords


def _tensor(path: Path) -> NDArray[Any]:
    """Return the tensor of a file as CLAM writes it, or that of its key ``features``; no code in it is run."""
    import torch  # takes a second and 400 MB, which only files of tensors need

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        held = torch.load(path, mmap=True, **options)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        held = torch.load(path, **options)  # of torch before 1.6
    if isinstance(held, dict):
        held = next((held[name] for name in NAMES if name in held), held)
    if not isinstance(held, torch.Tensor) or held.layout != torch.strided:
        raise InputError(f"features: {path} must hold a tensor (n, d), got a {type(held).__name__}.")
    held = held.detach()
    return held.float().numpy() if held.dtype == torch.bfloat16 else held.numpy()


class _First:
    """The matrix (n, d) of a dataset (1, n, d), read on indexing."""

    def __init__(self, data: Any) -> None:
        self.data, self.shape, self.dtype = data, data.shape[1:], data.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self.data[0, rows])


def _bare(data: Any) -> Any:
    """Return a matrix (n, d) without the leading axis of one that some versions of CLAM and TRIDENT write."""
    if len(data.shape) != 3 or data.shape[0] != 1:
        return data
    return data[0] if isinstance(data, np.ndarray) else _First(data)
