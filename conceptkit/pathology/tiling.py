"""One slide cut into tiles: where they lie, how much tissue and tumor each holds, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least
from conceptkit.images.pyramid import Pixels
from conceptkit.pathology.annotations import Annotations, extents, read_annotations, touches
from conceptkit.pathology.slides import Slide, bounds, open_slide
from conceptkit.pathology.tissue import share_of_tiles, tissue_mask

_RUN = 8
"""Tiles side by side that are read at once: neighbours share compressed blocks of the file."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How slides are cut."""

    side: int = 224
    """Pixels of a tile's side."""
    mpp: float | None = None
    """Microns per pixel of the tiles; ``None``: the highest magnification."""
    slide_mpp: float | None = None
    """Microns per pixel of level 0, instead of what the slides say."""
    overlap: int = 0
    """Pixels that neighbouring tiles share."""
    tissue: float = 0.5
    """Least share of tissue in a tile."""
    tumor: float = 0.5
    """Least share of the annotated area in a tile that is called tumor."""
    classes: tuple[str, ...] = ()
    """Classes, base classes or groups of annotations that count as tumor; by default all that are not excluded."""
    shift_geojson: bool = True
    """Whether GeoJSON counts from the corner of the scanned area (``openslide.bounds-x/y``), as QuPath's does."""

    def __post_init__(self) -> None:
        check_at_least("size", self.side, 8)
        if not 0 <= self.overlap < self.side:
            raise InputError(f"overlap: must be at least 0 and less than the size {self.side}, got {self.overlap}.")
        for name, value in (("tissue", self.tissue), ("tumor", self.tumor)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}: must be a share between 0 and 1, got {value}.")
        for name, scale in (("tile-mpp", self.mpp), ("mpp", self.slide_mpp)):
            if scale is not None and not 0 < scale < np.inf:
                raise InputError(f"{name}: must be a positive number of microns per pixel, got {scale}.")


def tile_slide(path: Path, tiling: Tiling, *, annotations: Path | None = None) -> pd.DataFrame:
    """Return the tiles of a slide that hold enough tissue, one row per tile in rows from the top left.

    Columns: ``x``, ``y`` (pixels of level 0), ``size`` (its side in pixels of level 0), ``side`` (pixels of its side
    when read), ``mpp`` (of the pixels read; empty where unknown), ``tissue_share``, and with annotations
    ``tumor_share`` and ``label``: ``tumor`` from the least share on, ``normal`` where there is none of it, empty
    between.

    Raises :class:`InputError` when slide or annotations cannot be read, all annotated areas lie outside the scanned
    area, a slide without mpp is to be read at an mpp, or there is no tile of tissue.
    """
    drawn = None if annotations is None else read_annotations(annotations, classes=tiling.classes)
    with open_slide(path, mpp=tiling.slide_mpp) as slide:
        if drawn is not None:
            drawn = _placed(drawn, slide, annotations, shift=tiling.shift_geojson)
        scale = _scale(slide, tiling)
        size, step = round(tiling.side * scale), (tiling.side - tiling.overlap) * scale
        x, y = _starts(slide.width, size, step), _starts(slide.height, size, step)
        if len(x) == 0 or len(y) == 0:
            raise InputError(
                f"slide: {path} has {slide.width} x {slide.height} pixels, less than a tile of {size} x {size}."
            )
        picture, small = slide.picture()
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([grid, grid + size], axis=1).astype(np.float64)
    share = share_of_tiles(tissue_mask(picture), boxes / small)
    keep = share >= max(tiling.tissue, 1e-9)
    if not keep.any():
        raise InputError(
            f"slide: {path} has no tile with a tissue share of {tiling.tissue} or more; the most is {share.max():.2f}."
        )
    table = pd.DataFrame({"x": grid[keep, 0], "y": grid[keep, 1], "size": size, "side": tiling.side})
    table["mpp"] = np.nan if slide.mpp is None else slide.mpp * size / tiling.side
    table["tissue_share"] = share[keep].round(4)
    if drawn is not None:
        inside = drawn.share(boxes[keep])
        table["tumor_share"] = inside.round(4)
        label = np.where(inside >= max(tiling.tumor, 1e-9), "tumor", np.where(inside == 0, "normal", ""))
        table["label"] = pd.Series(label, dtype="str").replace("", None)
    return table


def read_tiles(slide: Slide, x: NDArray[np.intp], y: NDArray[np.intp], *, size: int, side: int) -> Iterator[Pixels]:
    """Yield the pixels (side, side, 3) of tiles, in their order; neighbours in a row are read together."""
    start = 0
    while start < len(x):
        end = start + 1
        while (
            end < len(x)
            and end - start < _RUN
            and y[end] == y[start]
            and 0 < x[end] - x[end - 1] <= size
            and (size == side or x[end] - x[end - 1] == size)  # resized ones must fall on whole pixels
        ):
            end += 1
        width = int(x[end - 1] - x[start]) + size
        pixels = slide.region(int(x[start]), int(y[start]), width, size, scale=size / side)
        for k in range(start, end):
            left = round(int(x[k] - x[start]) * side / size)
            yield np.ascontiguousarray(pixels[:, left : left + side])
        start = end


def _placed(drawn: Annotations, slide: Slide, file: Path | None, *, shift: bool) -> Annotations:
    """Return annotations in pixels of level 0; refuse those that cannot belong to the slide."""
    x, y, width, height = bounds(slide)
    if shift and drawn.cropped:
        drawn = drawn.moved(x, y)
    if drawn.areas and not touches(extents(drawn.areas), (x, y, x + width, y + height)).any():
        raise InputError(
            f"annotations: everything in {file} lies outside the scanned area of {slide.path} (x from {x} to "
            f"{x + width}, y from {y} to {y + height}); check that it belongs to this slide, is in pixels of level 0, "
            "and, for GeoJSON, whether it is shifted by that corner (--shift-geojson)."
        )
    return drawn


def _scale(slide: Slide, tiling: Tiling) -> float:
    """Return the pixels of level 0 for one of a tile."""
    if tiling.mpp is None:
        return 1.0
    if slide.mpp is None:
        reason = slide.doubt or "it states none"
        raise InputError(f"slide: the microns per pixel of {slide.path} are unknown ({reason}); give them by --mpp.")
    scale = tiling.mpp / slide.mpp
    if scale < 0.95:
        raise InputError(
            f"tile-mpp: {slide.path} has {slide.mpp:.4g} microns per pixel at its highest magnification, "
            f"{tiling.mpp:.4g} would be finer."
        )
    return 1.0 if abs(scale - 1) <= 0.05 else scale  # 0.2527 is 0.25: resampling by a hair would only blur


def _starts(length: int, size: int, step: float) -> NDArray[np.intp]:
    """Return where whole tiles begin along one side of the slide."""
    number = int((length - size) / step + 1e-9) + 1 if length >= size else 0
    return np.asarray(np.round(np.arange(number) * step), dtype=np.intp)
