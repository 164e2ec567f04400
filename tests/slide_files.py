"""Small pyramids as TIFF files, for tests."""

from __future__ import annotations

import numpy as np
import tifffile
from PIL import Image


def tissue(width, height, *, seed=0):
    """(height, width, 3): glass and ragged tissue that looks different from place to place."""
    rng = np.random.default_rng(seed)
    shape, grain = (smooth(rng, width, height, side)[..., None] for side in (300, 48))
    stained = np.array([190, 110, 165]) + grain * np.array([30, 45, 20])
    return np.where(shape > 0, stained, 243).clip(0, 255).astype(np.uint8)


def smooth(rng, width, height, side):
    """(height, width): noise without structure finer than ``side`` pixels."""
    coarse = rng.normal(size=(max(2, height // side), max(2, width // side))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def reduced(image, factor, *, up=False):
    """Every side divided by a factor, rounded down or up; the mean of the pixels."""
    height, width = image.shape[:2]
    if up:
        image = np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    size = (image.shape[1] // factor, image.shape[0] // factor)
    box = (0, 0, size[0] * factor, size[1] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, box=box))


def padded(image, tile, value=0):
    """An image enlarged to whole tiles."""
    height, width = (-(-v // tile) * tile for v in image.shape[:2])
    out = np.full((height, width, 3), value, dtype=np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def cropped(image, tile):
    """An image cut down to whole tiles; a side of less than one is kept."""
    height, width = (v // tile * tile or v for v in image.shape[:2])
    return image[:height, :width]


def write_slide(path, levels, *, tile=128, mpp=0.5, **options):
    """Write a tiled TIFF that OpenSlide opens; further options go to its first page."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            more = {**resolution, **options} if number == 0 else {"subfiletype": 1}
            file.write(
                np.ascontiguousarray(level),
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                compression="deflate",
                **more,
            )
    return path
