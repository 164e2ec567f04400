"""The ``coords`` files of TRIDENT and CLAM as a patch table of slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conceptkit.errors import InputError
from conceptkit.files.hdf5 import open_hdf5
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.finding import (
    SlideFacts,
    copies_note,
    doubts_note,
    find_slides,
    listed,
    same_slides,
    slide_facts,
)
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.slides import open_slide


def coords_table(files: Sequence[Path], *, slides: Path, out: Path) -> Adapted:
    """Read the coords files of TRIDENT and CLAM.

    Parameters
    ----------
    files : HDF5 files with ``coords`` (n, 2), left and top in pixels of level 0; one per slide, named as the slide
        (TRIDENT adds ``_patches``)
    slides : folder that holds the slides, in it or below

    Returns
    -------
    One row per patch: ``slide``, ``x``, ``y``, ``size`` (level 0), ``side`` (pixels when read), ``mpp`` of the patches
    as the slide states it, or else the file, and ``group``; of files whose slides are the same one is kept

    Raises
    ------
    InputError
        when a file has no coords or does not state the size of a patch, or when no slide or several have its name
    """
    if not files:
        raise InputError("files: at least one is needed, got none.")
    if not slides.is_dir():
        raise InputError(f"slides: must be a folder, got {slides}.")
    paths, notes = find_slides([slides])
    named = {_stem(path): [p for p in paths if p.stem == _stem(path)] for path in files}
    candidates = [path for same in named.values() for path in same]
    facts = slide_facts(candidates)
    copies = same_slides(candidates, facts)
    found: dict[Path, Path] = {}
    for path in files:
        slide = _one_slide(path, named[_stem(path)], facts)
        if slide in found:
            raise InputError(f"files: {found[slide]} and {path} are of the same slide, {slide.name}; give one of them.")
        found[slide] = path
    notes += copies_note(copies)
    kept = [slide for slide in found if slide not in copies]
    notes += doubts_note(facts, kept)
    frames = [_one(found[slide], slide, out) for slide in kept]
    if shifted := [frame["group"].iloc[0] for frame in frames if "row" in frame]:
        frames = [frame.assign(row=np.arange(len(frame))) for frame in frames]
        notes.append(
            f"Coords of {listed(shifted)} are of a coarser level: x and y say where its pixels lie at the level's true "
            "factor, and row is the row of the coords."
        )
    table = pd.concat(frames, ignore_index=True)
    notes.append("group is the slide; name the patient where one has several.")
    return Adapted(table.dropna(axis=1, how="all"), tuple(notes))


def _stem(path: Path) -> str:
    return path.stem.removesuffix("_patches")


def _one_slide(path: Path, named: Sequence[Path], facts: Mapping[Path, SlideFacts]) -> Path:
    """Return the slide that a file of coords is of: the first of those that have its name and are the same slide."""
    different = list({facts[slide].identity or slide: slide for slide in reversed(named)}.values())
    if not different:
        raise InputError(f"slides: there is none named {_stem(path)}, as {path} asks for.")
    if len(different) > 1:
        names = ", ".join(map(str, reversed(different)))
        raise InputError(f"slides: {_stem(path)} is the name of more than one slide ({names}); keep one in the folder.")
    return different[0]


def _one(path: Path, slide: Path, out: Path) -> pd.DataFrame:
    stem = _stem(path)
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
    side = _number(about, "patch_size")
    if side is None:
        raise InputError(f"files: coords of {path} do not say their patch_size.")
    scale, moved, mpp = _scales(slide, about, side, path)
    x, y = (np.round(coords[:, axis] * moved).astype(np.int64) for axis in (0, 1))
    table = pd.DataFrame({"patch_id": [f"{stem}_x{a}_y{b}" for a, b in zip(x, y, strict=True)]})
    table["slide"] = relative_path(slide, out.parent)
    table["x"], table["y"], table["size"], table["side"] = x, y, round(side * scale), round(side)
    if mpp is None:
        table["mpp"] = _number(about, "target_mpp", "mpp") or np.nan
    else:
        table["mpp"] = mpp * round(side * scale) / round(side)
    table["group"] = stem
    if moved != 1:
        table["row"] = np.arange(len(table))
    return table


def _scales(slide: Path, about: dict[str, Any], side: float, path: Path) -> tuple[float, float, float | None]:
    """Return the pixels of level 0 for one of a patch, what coords are multiplied with, and the slide's mpp.

    CLAM reads patches of a coarser level through OpenSlide, which divides coords by its own downsample of the level.
    Where that is not the true factor, the pixels that CLAM saw lie elsewhere.
    """
    level, whole = round(_number(about, "patch_level") or 0), _number(about, "patch_size_level0")
    stated = _number(about, "downsample")
    if level and stated is None and whole is None:
        raise InputError(f"files: coords of {path} lie on level {level} without its downsample.")
    scale = (stated or 1.0) if whole is None else whole / side
    try:
        with open_slide(slide) as opened:
            mpp, factors, theirs = opened.mpp, opened.pyramid.factors, opened.handle.level_downsamples
    except InputError:  # a slide that cannot be opened is named when its pixels are read
        return scale, 1.0, None
    if not level or whole is not None:
        return scale, 1.0, mpp
    factor = factors[level] if level < len(factors) else None
    if factor is None:
        raise InputError(
            f"files: coords of {path} lie on level {level}, whose size in {slide.name} does not tell its factor; "
            f"make coords of level 0."
        )
    return factor, factor / theirs[level], mpp


def _number(about: dict[str, Any], *names: str) -> float | None:
    for name in names:
        if name in about:
            value = np.asarray(about[name]).ravel()
            if value.size and value.dtype.kind in "iuf" and float(value[0]) >= 0:
                return float(value[0])
    return None
