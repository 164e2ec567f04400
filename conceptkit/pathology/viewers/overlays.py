"""A map of values as a pyramid that lies on the slide: OME-TIFF, in colours, written tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from conceptkit.images.pyramid import Pixels
from conceptkit.pathology.viewers.shapes import Canvas

TILE = 256

PATCH_PIXELS = 16.0
"""Least pixels of a patch's side at the finest level: a map has one value per patch."""

_GLASS = 255


def factor_for(sizes: NDArray[np.float64]) -> int:
    """Return the pixels of level 0 for one of the map's finest level: a power of two, as in the slide's own levels."""
    return 1 << max(0, math.floor(math.log2(max(1.0, float(np.nanmin(sizes)) / PATCH_PIXELS))))


def write_map(path: Path, canvas: Canvas, boxes: NDArray[np.float64], colours: NDArray[np.uint8], *, name: str) -> int:
    """Write a map of patches on white, and return its factor: pixels of level 0 for one of its finest level.

    Every level begins at the corner of the image, and one of its pixels is exactly the factor times two to the number
    of the level, so that a level reaches less than one of its pixels beyond the image. Microns per pixel are stated
    where they are known, so that viewers that read them need no factor.

    Parameters
    ----------
    canvas : image as the viewer shows it
    boxes : (n, 4) left, top, right and bottom, in pixels of the canvas; later ones cover earlier ones
    colours : (n, 3)
    name : of the map
    """
    factor = factor_for(boxes[:, 2] - boxes[:, 0])
    scales = [factor]
    while max(canvas.width, canvas.height) / scales[-1] > TILE:
        scales.append(2 * scales[-1])
    about: dict[str, Any] = {"axes": "YXS", "Name": name}
    resolution: dict[str, Any] = {}
    if canvas.mpp is not None:
        size = canvas.mpp * factor
        about |= {"PhysicalSizeX": size, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": size, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        for level, scale in enumerate(scales):
            shape = (math.ceil(canvas.height / scale), math.ceil(canvas.width / scale), 3)
            if canvas.mpp is not None:
                resolution = {"resolution": (1e4 / (canvas.mpp * scale),) * 2, "resolutionunit": "CENTIMETER"}
            more: dict[str, Any] = {"subifds": len(scales) - 1, "metadata": about} if level == 0 else {"subfiletype": 1}
            file.write(
                _tiles(boxes / scale, colours, shape),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                **resolution,
                **more,
            )
    return factor


def _tiles(boxes: NDArray[np.float64], colours: NDArray[np.uint8], shape: tuple[int, ...]) -> Iterator[Pixels]:
    """Yield the tiles of one level, row by row; of a patch, pixels whose centre lies in it."""
    edges = np.ceil(boxes - 0.5).astype(np.intp)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)  # a patch is seen at every level
    order = np.argsort(edges[:, 1], kind="stable")
    highest = int((edges[:, 3] - edges[:, 1]).max(initial=0))
    for top in range(0, shape[0], TILE):
        ends = np.searchsorted(edges[order, 1], [top - highest, top + TILE])
        near = np.sort(order[ends[0] : ends[1]])
        near = near[edges[near, 3] > top]
        for left in range(0, shape[1], TILE):
            here = near[(edges[near, 0] < left + TILE) & (edges[near, 2] > left)]
            tile = np.full((TILE, TILE, 3), _GLASS, dtype=np.uint8)
            moved = np.maximum(edges[here] - [left, top, left, top], 0).tolist()
            for (x0, y0, x1, y1), colour in zip(moved, colours[here], strict=True):
                tile[y0:y1, x0:x1] = colour
            yield tile
