"""The ``coords`` files of TRIDENT and CLAM as a patch table of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conceptkit._checks import InputError
from conceptkit._hdf5 import open_hdf5
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.slides import open_slide


def coords_table(files: Sequence[Path], *, slides: Path, out: Path) -> Adapted:
    """Return one row per patch of HDF5 files with ``coords`` (n, 2), left and top in pixels of level 0.

    Parameters
    ----------
    files : one per slide, named as the slide (TRIDENT adds ``_patches``)
    slides : folder that holds the slides, in it or below
    out : where the table will be written

    Returns
    -------
    ``slide``, ``x``, ``y``, ``size`` (level 0), ``side`` (pixels when read), ``mpp`` of the patches as
    the slide tells it, or else the file, ``group``

    Raises
    ------
    InputError
        when a file has no coords or does not say the size of a patch, or its slide is not there
    """
    if not files:
        raise InputError("files: at least one is needed, got none.")
    known = {p.stem: p for p in sorted(slides.rglob("*")) if p.is_file() and p.suffix.lower() != ".h5"}
    frames = [_one(path, known, out) for path in files]
    table = pd.concat(frames, ignore_index=True)
    return Adapted(table.dropna(axis=1, how="all"), ("group is the slide; name the patient where one has several.",))


def _one(path: Path, known: dict[str, Path], out: Path) -> pd.DataFrame:
    stem = path.stem.removesuffix("_patches")
    if stem not in known:
        raise InputError(f"slides: there is none named {stem}, as {path} asks for.")
    try:
        with open_hdf5(path) as file:
            data = file["coords"]
            coords = np.asarray(data[()])
            about = {**file.attrs, **data.attrs}
            features = len(file["features"]) if "features" in file else None
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"files: {path} holds no coords ({error}).") from None
    if coords.ndim == 3 and len(coords) == 1:
        coords = coords[0]  # some versions write a leading axis of 1
    if coords.ndim != 2 or coords.shape[1] != 2 or len(coords) == 0:
        raise InputError(f"files: coords of {path} must be n x 2, got {coords.shape}.")
    if features is not None and features not in (1, len(coords)):
        raise InputError(f"files: {path} has {features} features for {len(coords)} coords.")
    side, size = _sizes(about, path)
    x, y = coords[:, 0].astype(np.int64), coords[:, 1].astype(np.int64)
    table = pd.DataFrame({"patch_id": [f"{stem}_x{a}_y{b}" for a, b in zip(x, y, strict=True)]})
    table["slide"] = relative_path(known[stem], out.parent)
    table["x"], table["y"], table["size"], table["side"] = x, y, size, side
    table["mpp"] = _mpp(known[stem], size / side) or _number(about, "target_mpp", "mpp") or np.nan
    table["group"] = stem
    return table


def _mpp(slide: Path, scale: float) -> float | None:
    """Return the microns per pixel of patches with ``scale`` pixels of level 0 for one, as the slide says."""
    try:
        with open_slide(slide) as opened:
            return None if opened.mpp is None else opened.mpp * scale
    except InputError:  # one that cannot be opened is told of when it is read
        return None


def _sizes(about: dict[str, Any], path: Path) -> tuple[int, int]:
    """Return the side in pixels as read, and in pixels of level 0."""
    side = _number(about, "patch_size")
    if side is None:
        raise InputError(f"files: coords of {path} do not say their patch_size.")
    whole = _number(about, "patch_size_level0")
    if whole is None:
        level, down = _number(about, "patch_level") or 0, _number(about, "downsample")
        if level and down is None:
            raise InputError(f"files: coords of {path} lie on level {level:.0f} without its downsample.")
        whole = side * (down or 1)
    return round(side), round(whole)


def _number(about: dict[str, Any], *names: str) -> float | None:
    for name in names:
        if name in about:
            value = np.asarray(about[name]).ravel()
            if value.size and value.dtype.kind in "iuf" and float(value[0]) >= 0:
                return float(value[0])
    return None
