"""What feature files state of the encoder that made them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py

_NAMES = {
    "encoder": "encoder",
    "extractor": "encoder",  # STAMP
    "model_name": "encoder",
    "patch_encoder": "encoder",
    "target_magnification": "magnification",  # TRIDENT
    "patch_size": "patch size",  # TRIDENT
    "tile_size_um": "tile size in µm",  # STAMP
}
"""Attribute of a file or its datasets → what it states"""

_TRIDENT = re.compile(r"\d+(\.\d+)?x_\d+px_.*overlap")
"""Folder in which TRIDENT writes its folders ``features_ENCODER``"""

_OPENED = 20
"""Maximum number of files that are opened"""


def stated_of(paths: Iterable[Path]) -> dict[str, str]:
    """Return what HDF5 files state of encoder and patches; what differs between the files is left out."""
    found: dict[str, set[str]] = {}
    for path in list(paths)[:_OPENED]:
        for name, value in _of_file(path).items():
            found.setdefault(name, set()).add(value)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _of_file(path: Path) -> dict[str, str]:
    stated: dict[str, str] = {}
    folder = path.parent
    if _TRIDENT.fullmatch(folder.parent.name) and folder.name.startswith("features_"):
        stated["encoder"] = folder.name.removeprefix("features_")
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return stated
    try:
        with h5py.File(path, "r") as file:
            for place in [file, *(file[name] for name in ("features", "feats", "coords") if name in file)]:
                known = {_NAMES[name]: _text(value) for name, value in place.attrs.items() if name in _NAMES}
                stated |= {name: value for name, value in known.items() if value}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):  # h5py's for a damaged file, named when it is read
        return stated
    return stated


def _text(value: Any) -> str:
    """Return an attribute as text: numbers without trailing zeros, so that 20 and 20.0 are alike."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else f"{float(value):g}" if getattr(value, "size", 1) == 1 else ""
