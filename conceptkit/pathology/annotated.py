"""Images with a label mask each: read, checked, and compared with the nuclei that a method finds."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.image_lists import read_list
from conceptkit.pathology.images import check_upright, read_image
from conceptkit.pathology.masks import read_mask
from conceptkit.pathology.measuring import check_mask_shape, types_of
from conceptkit.pathology.nuclei import Segmenter, check_resolution, find_in
from conceptkit.pathology.scales import ASSUMED_MPP, read_scale

AREAS = (4.0, 1000.0)
"""Median area in µm² of an image's annotated nuclei; outside, masks or microns per pixel are wrong."""

_DARK, _LIGHT = 70, 30
"""Median of the brightest channel below which an image is not brightfield; value up to which a pixel is dark."""

SCORES = ("aji", "dice", "pq", "f1")


@dataclass(frozen=True)
class Annotated:
    """One image and its nuclei as annotated."""

    name: str
    patient: str
    image: NDArray[np.uint8]
    """(h, w, 3)"""
    labels: NDArray[np.int32]
    """(h, w), 0 where there is no nucleus"""
    mpp: float
    """Microns per pixel; NaN where unknown"""
    cells: dict[str, str]
    """The row of the list"""
    types: dict[int, str] = field(default_factory=dict)
    """Label → type, where known"""


@dataclass(frozen=True)
class AnnotatedList:
    """A list of annotated images, read one at a time."""

    path: Path
    table: pd.DataFrame
    type_names: str | None = None
    """What numbers of types mean; types are read where it is given, and where there is a column ``types``."""

    @functools.cached_property
    def patients(self) -> list[str]:
        """Return the patient of each image; the image itself where no column says."""
        column = next((c for c in ("patient", "group") if c in self.table), "image_id")
        return [p or i for p, i in zip(self.table[column], self.table["image_id"], strict=True)]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Annotated]:
        """Yield the images; raise :class:`InputError` at the first that cannot be used."""
        for k in range(len(self)):
            yield self[k]

    def __getitem__(self, index: int) -> Annotated:
        """Return one image; raise :class:`InputError` when it or its mask cannot be used."""
        cells = {str(c): str(v) for c, v in self.table.iloc[index].items()}
        name, folder = cells["image_id"], self.path.parent
        for column in ("image", "mask"):
            if not cells[column]:
                raise InputError(f"{column}: a path is needed, got none for {name} in {self.path}.")
        mpp = read_scale(cells["mpp"], name)
        check_resolution(mpp)
        check_upright(folder / cells["image"])
        image, _ = read_image(folder / cells["image"])
        check_bright(image, name)
        labels = read_mask(folder / cells["mask"], image.shape[:2], mpp)
        check_mask_shape(labels, image.shape, cells["mask"], f"its image {cells['image']}")
        known = types_of(folder, cells["mask"], cells.get("types", ""), self.type_names)
        numbers, inverse = np.unique(labels, return_inverse=True)
        labels = inverse.reshape(labels.shape).astype(np.int32) + int(labels.min() > 0)
        types = {k: known[int(n)] for k, n in enumerate(numbers, start=int(numbers[0] > 0)) if int(n) in known}
        check_areas(labels, mpp, cells["mask"])
        return Annotated(name, self.patients[index], image, labels, mpp, cells, types)


def open_annotated(path: Path, type_names: str | None = None) -> AnnotatedList:
    """Open a list of images with masks; raises :class:`InputError` when it is not one."""
    table = read_list(path)
    if (table["mask"] == "").all():
        raise InputError(f"{path}: a column mask is needed, with a label image for each image.")
    return AnnotatedList(path, table, type_names)


def check_bright(image: NDArray[np.uint8], name: str) -> None:
    """Raise :class:`InputError` when an image is dark where it has no tissue, as fluorescence is.

    The black outside of a slide's scan is of one value, and what it surrounds has the colours of stains.
    """
    pixels = image[::4, ::4].reshape(-1, 3).astype(np.int16)
    brightest = pixels.max(axis=1)
    dark, seen = pixels[brightest <= _LIGHT], pixels[brightest > _LIGHT]
    mostly_dark = len(dark) > len(seen)
    pure = (
        len(seen) == 0 or np.median(seen.min(axis=1) / seen.max(axis=1)) < 0.15 or np.median(np.ptp(seen, axis=1)) < 8
    )
    if (mostly_dark and (pure or np.ptp(dark) > 0)) or (len(seen) and np.median(seen.max(axis=1)) < _DARK):
        raise InputError(
            f"image: {name} is dark (median {np.median(brightest):.0f} of 255), as fluorescence is; nuclei are found "
            "in brightfield images of stained tissue."
        )


def check_areas(labels: NDArray[np.int32], mpp: float, mask: str) -> None:
    """Raise :class:`InputError` when the median nucleus has a size that no nucleus has at this resolution."""
    areas = np.bincount(labels.ravel())[1:]
    if not areas.size:
        return
    scale = mpp if np.isfinite(mpp) else ASSUMED_MPP
    median = float(np.median(areas))
    if not AREAS[0] <= median * scale**2 <= AREAS[1]:
        stated = "" if np.isfinite(mpp) else ", which is assumed where mpp is not given"
        raise InputError(
            f"mask: the median nucleus of {mask} has {median:.0f} pixels, {median * scale**2:.3g} µm² at {scale:g} µm "
            f"per pixel{stated}; nuclei have {AREAS[0]:g} to {AREAS[1]:g} µm², so check mpp and mask."
        )


@dataclass(frozen=True)
class Tile:
    """One tile of a scored image."""

    name: str
    aji: float
    image: NDArray[np.uint8]
    found: NDArray[np.int32]
    drawn: NDArray[np.int32]


def score_image(
    one: Annotated, method: Segmenter, size: int
) -> tuple[dict[str, float], NDArray[np.float64], list[Tile]]:
    """Return the scores of one image, counts (n, 2) of found and annotated nuclei in its tiles, and the tiles.

    Images smaller than a tile are one tile. Scores are NaN where nothing is annotated, except the counts.
    """
    found = find_in(one.image, method, one.mpp if np.isfinite(one.mpp) else None)
    scores = agreement(found, one.labels)
    values = dict.fromkeys(SCORES, np.nan)
    if scores.drawn:
        values = {"aji": scores.aji, "dice": scores.dice, "pq": scores.pq, "f1": scores.dq}
    height, width = found.shape
    tiles = []
    for y in range(0, max(1, height - size + 1), size):
        for x in range(0, max(1, width - size + 1), size):
            cut = np.s_[y : y + size, x : x + size]
            parts = one.image[cut], found[cut], one.labels[cut]
            tiles.append(Tile(f"{one.name}_x{x}_y{y}", agreement(*parts[1:]).aji, *parts))
    counts = [[len(np.unique(part[part > 0])) for part in (t.found, t.drawn)] for t in tiles]
    row = {**values, "found": float(scores.found), "drawn": float(scores.drawn)}
    return row, np.array(counts, dtype=np.float64), tiles


def summary(rows: pd.DataFrame, counts: NDArray[np.float64]) -> dict[str, float]:
    """Return the means of the scores over images, and correlation and bias of the counts over tiles.

    Bias is found minus annotated nuclei, as a share of the annotated ones; the correlation is NaN where either count is
    the same in all tiles.
    """
    found, drawn = counts.T
    out = {name: float(rows[name].mean()) for name in SCORES}
    constant = len(counts) < 2 or np.ptp(found) == 0 or np.ptp(drawn) == 0
    out["r"] = np.nan if constant else float(np.corrcoef(found, drawn)[0, 1])
    out["bias"] = float(found.sum() / drawn.sum() - 1) if drawn.sum() else np.nan
    return {**out, "images": float(len(rows)), "tiles": float(len(counts))}


def draw_tiles(tiles: Iterable[Tile], path: Path, number: int = 4) -> None:
    """Draw the best, median and worst tiles, a row each: annotated nuclei green, found ones yellow."""
    ordered = sorted((t for t in tiles if t.drawn.any()), key=lambda t: -t.aji)
    if not ordered:
        raise InputError("figure: no tile has annotated nuclei.")
    middle = max(0, len(ordered) // 2 - number // 2)
    chosen = (ordered[:number], ordered[middle : middle + number], ordered[-number:])
    side = max(max(t.found.shape) for t in ordered) + 4
    canvas = np.full((3 * side, number * side, 3), 255, dtype=np.uint8)
    for row, group in enumerate(chosen):
        for column, tile in enumerate(group):
            picture = tile.image.copy()
            for labels, colour in ((tile.drawn, (0, 200, 0)), (tile.found, (255, 255, 0))):
                edges: Any = find_boundaries(labels, mode="inner")  # type: ignore[no-untyped-call]
                picture[edges] = colour
            height, width = tile.found.shape
            canvas[row * side : row * side + height, column * side : column * side + width] = picture
    with replacing(path) as temporary:
        Image.fromarray(canvas).save(temporary, "PNG")
