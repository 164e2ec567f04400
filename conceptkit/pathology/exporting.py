"""Tiles' pixels kept in files of their own: a PNG each, or an HDF5 file per slide, normalised where wanted."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.families import STAIN
from conceptkit.files.atomic import scratch, take_space
from conceptkit.images.pyramid import Pixels
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.stain import StainMethod
from conceptkit.pathology.tiling import read_tiles

_BATCH = 64

_STAIN_PIXELS = 32 * 224**2
"""Pixels of a slide's tiles that its stain is read from, at the tiles' own resolution: in the small picture of the
slide nuclei are blurred into their surroundings, and spreads half as large."""

Starts = NDArray[np.intp]


def read_reference(path: Path) -> NDArray[np.uint8]:
    """Return a reference image (h, w, 3) from an ``.npy`` file or an image.

    Raises
    ------
    InputError
        when the file cannot be read or is no RGB image
    """
    if path.suffix.lower() != ".npy":
        from conceptkit.pathology.images import read_image

        return read_image(path)[0]
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"stain-reference: {path} cannot be read ({error}).") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(f"stain-reference: {path} must hold height x width x 3 bytes, got {pixels.shape}.")
    return np.asarray(pixels)


def export_tiles(
    path: Path,
    table: pd.DataFrame,
    folder: Path,
    *,
    kind: str,
    slide_mpp: float | None = None,
    stain: tuple[str, Path] | None = None,
) -> pd.DataFrame:
    """Write the pixels of a slide's tiles, and return the table with where they are.

    Parameters
    ----------
    path : the slide
    table : what :func:`conceptkit.pathology.tiling.tile_slide` gave
    folder : where ``{name}.h5`` or the folder ``{name}`` of PNGs goes; complete or not there
    kind : ``png`` or ``h5``
    stain : a stain method's name and its reference image

    Returns
    -------
    The table with ``image``, or ``h5``, ``key`` and ``row``, as seen from ``folder``.
    """
    name = safe_name(path)
    x, y = table["x"].to_numpy(dtype=np.intp), table["y"].to_numpy(dtype=np.intp)
    size, side = int(table["size"].iloc[0]), int(table["side"].iloc[0])
    method = None if stain is None else STAIN[stain[0]].fit(read_reference(stain[1]))
    with scratch(folder / name) as temporary, open_slide(path, mpp=slide_mpp) as slide:
        source = None
        if method is not None:
            some = _spread_out(len(x), side)  # one change for the whole slide, by its own tissue
            source = method.measure(np.stack(list(read_tiles(slide, x[some], y[some], size=size, side=side))))
        batches = _batches(read_tiles(slide, x, y, size=size, side=side), method, source)
        write = _write_h5 if kind == "h5" else _write_pngs
        columns = write(batches, temporary, folder, name, x, y, side)
    return table.assign(**columns)


def _spread_out(number: int, side: int) -> Starts:
    """Return which of a slide's tiles its stain is read from: evenly many from top to bottom, the same in every run."""
    wanted = min(number, max(8, round(_STAIN_PIXELS / side**2)))
    return np.linspace(0, number - 1, wanted).round().astype(np.intp)


def safe_name(path: Path) -> str:
    """Return a slide's name as a file name of letters, digits, ``-``, ``_`` and ``.``, unlike that of another slide."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in path.stem)[:80]
    same = plain == path.stem
    return plain if same else f"{plain}-{hashlib.sha256(path.stem.encode()).hexdigest()[:8]}"


def _batches(tiles: Iterable[Pixels], method: StainMethod | None, source: Any) -> Iterator[Pixels]:
    batch: list[NDArray[np.uint8]] = []
    for tile in tiles:
        batch.append(tile)
        if len(batch) == _BATCH:
            yield np.stack(batch) if method is None else method.transform(np.stack(batch), source=source)
            batch = []
    if batch:
        yield np.stack(batch) if method is None else method.transform(np.stack(batch), source=source)


def _write_h5(
    batches: Iterable[Pixels], temporary: Path, folder: Path, name: str, x: Starts, y: Starts, side: int
) -> dict[str, Any]:
    import h5py

    path = temporary / "tiles.h5"
    take_space(path, int(1.02 * len(x) * side * side * 3))  # before HDF5 does, which may crash on a full disk
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        shape, chunks = (len(x), side, side, 3), (1, side, side, 3)
        data = file.create_dataset("patches", shape, np.uint8, chunks=chunks, track_times=False, dcpl=early)
        file["coords"] = np.stack([x, y], axis=1)
        file.flush()
        take_space(path, path.stat().st_size)
        start = 0
        for batch in batches:
            data[start : start + len(batch)] = batch
            start += len(batch)
    os.replace(path, folder / f"{name}.h5")
    return {"h5": f"{name}.h5", "key": "patches", "row": np.arange(len(x))}


def _write_pngs(
    batches: Iterable[Pixels], temporary: Path, folder: Path, name: str, x: Starts, y: Starts, side: int
) -> dict[str, Any]:
    from PIL import Image

    files = [f"x{left}_y{top}.png" for left, top in zip(x, y, strict=True)]
    inside = temporary / name
    inside.mkdir()
    start = 0
    for batch in batches:
        for tile in batch:
            Image.fromarray(tile).save(inside / files[start], compress_level=1)
            start += 1
    target = folder / name
    if target.exists():
        shutil.rmtree(target)  # of an earlier run with other options
    os.replace(inside, target)
    return {"image": [f"{name}/{file}" for file in files]}
