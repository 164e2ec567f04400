"""The levels of a slide: their true factors, and windows read from the level that suits."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.images.pixel_values import on_white

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

_MOST_READ = 4096**2
"""Pixels of a level that are read at once; a larger window is read in parts."""

_SEVERAL = 2 * 4096**2
"""Pixels of a level from which on several threads read them"""

_THREADS = 4

_ROUNDING = 2
"""Pixels by which a level's side stays below this and is still exact: sides are rounded, by some to even numbers."""


class Pyramid:
    """An open slide, read with the true factors of its levels.

    Parameters
    ----------
    handle : OpenSlide's object

    Attributes
    ----------
    factors : pixels of level 0 for one of each level; ``None`` for a level whose size does not tell, which is not read
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.factors = true_factors(handle.level_dimensions, _tiles(handle.properties, handle.level_count))

    def read(self, x: float, y: float, width: float, height: float, *, out: Size) -> Pixels:
        """Read a window.

        Parameters
        ----------
        x, y, width, height : in pixels of level 0
        out : columns and rows of the result

        Returns
        -------
        (rows, columns, 3) RGB, white where the slide was not scanned
        """
        columns, rows = out
        canvas = np.full((rows, columns, 3), 255, dtype=np.uint8)
        _, factor = self._level(x + width, y + height, min(width / columns, height / rows))
        bands = min(math.ceil(width * height / factor**2 / _MOST_READ), rows)
        if width * height / factor**2 < _SEVERAL:
            self._fill(canvas, x, y, width, height)
        else:
            edges = [rows * k // bands for k in range(bands + 1)]
            step = height / rows
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                parts = [
                    pool.submit(self._fill, canvas[top:end], x, y + top * step, width, (end - top) * step)
                    for top, end in itertools.pairwise(edges)
                ]
                try:
                    for part in parts:
                        part.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        right, bottom = self.handle.dimensions  # a padded level holds pixels beyond the slide
        canvas[:, max(0, math.ceil((right - x) * columns / width)) :] = 255
        canvas[max(0, math.ceil((bottom - y) * rows / height)) :] = 255
        return canvas

    def pixels_read(self, scale: float) -> float:
        """Return the number of pixels that are read for the whole slide, at so many pixels of level 0 for one."""
        width, height = self.handle.dimensions
        _, factor = self._level(width, height, scale)
        return float(width * height / factor**2)

    def _fill(self, canvas: Pixels, x: float, y: float, width: float, height: float) -> None:
        """Fill a canvas with a window, in halves where it is too large to be read at once."""
        rows, columns = canvas.shape[:2]
        level, factor = self._level(x + width, y + height, min(width / columns, height / rows))
        wide, high = width / factor, height / factor
        if wide * high <= _MOST_READ or rows * columns == 1:
            canvas[...] = self._part(level, factor, (x, y), (wide, high), (columns, rows))
        elif rows == 1 or (columns > 1 and wide >= high):
            half = columns // 2
            part = width * half / columns
            self._fill(canvas[:, :half], x, y, part, height)
            self._fill(canvas[:, half:], x + part, y, width - part, height)
        else:
            half = rows // 2
            part = height * half / rows
            self._fill(canvas[:half], x, y, width, part)
            self._fill(canvas[half:], x, y + part, width, height - part)

    def _level(self, right: float, bottom: float, scale: float) -> tuple[int, float]:
        """Return the coarsest level that is fine enough and reaches the corner of a window, and its factor."""
        width, height = self.handle.dimensions
        for level in reversed(range(1, len(self.factors))):
            factor = self.factors[level]
            if factor is None or factor > scale * 1.01:
                continue
            columns, rows = self.handle.level_dimensions[level]
            if min(right, width) / factor < columns + 1 and min(bottom, height) / factor < rows + 1:
                return level, factor
        return 0, 1.0

    def _part(
        self, level: int, factor: float, corner: tuple[float, float], span: tuple[float, float], out: Size
    ) -> Pixels:
        """Read a window from a level: its corner in pixels of level 0, its span in pixels of the level."""
        from PIL import Image

        theirs = self.handle.level_downsamples[level]  # by which OpenSlide divides the place that it is given
        x, y = (v / factor for v in corner)
        size = (max(1, math.ceil(span[0] - 1e-6)), max(1, math.ceil(span[1] - 1e-6)))
        pixels = on_glass(self.handle.read_region((round(x * theirs), round(y * theirs)), level, size))
        # A level that is rounded down ends within a pixel of the slide's end: its last pixel stands for the rest.
        columns, rows = (math.floor(s - v) for s, v in zip(self.handle.level_dimensions[level], (x, y), strict=True))
        if 0 < columns < size[0] or 0 < rows < size[1]:
            pixels = pixels[:, np.minimum(np.arange(size[0]), max(columns, 1) - 1)]
            pixels = pixels[np.minimum(np.arange(size[1]), max(rows, 1) - 1)]
        if max(abs(span[0] - out[0]), abs(span[1] - out[1])) < 1e-6:
            return pixels
        box = (0.0, 0.0, min(span[0], size[0]), min(span[1], size[1]))
        return np.asarray(Image.fromarray(pixels).resize(out, Image.Resampling.BOX, box=box))


def on_glass(image: Any) -> Pixels:
    """Return RGB of what OpenSlide read: transparent means not scanned, which is white as the glass."""
    if image.getchannel("A").getextrema()[0] == 255:
        return np.asarray(image.convert("RGB"))
    samples = np.asarray(image)
    return on_white(samples[..., :3], samples[..., 3])


def true_factors(sizes: Sequence[Size], tiles: Sequence[Size]) -> tuple[int | None, ...]:
    """Return how many pixels of level 0, along a side, one pixel of each level stands for.

    OpenSlide's downsample is the mean of both ratios of the sizes, which is wrong where levels are padded up to whole
    tiles (Camelyon16) or cropped down to them. The true factor is the whole number that explains both sides by
    rounding, padding or cropping. Where several do, only a common ratio of the finer levels decides. A file treats its
    levels alike, so that what one level contradicts is ruled out for the coarser ones.

    Parameters
    ----------
    sizes : width and height of each level, the finest first
    tiles : width and height of each level's tiles, 0 where unknown

    Returns
    -------
    One factor per level, 1 for the first; ``None`` where no factor explains both sides, or where several do
    """
    factors: list[int | None] = [1]
    last = 1
    ratios: list[float] = []  # from each known level to the next
    ways: Sequence[tuple[Way, ...]] = (WAYS, WAYS)
    for before, size, tile in zip(sizes, sizes[1:], tiles[1:], strict=False):
        level = _Level(sizes[0], size, tile, ways)
        factor = None if size == before else level.factor(last, ratios)
        if factor is None:
            ratios.append(math.nan)
        else:
            ways = level.fitting(factor)
            ratios.append(factor / last)
            last = factor
        factors.append(factor)
    return tuple(factors)


Way = Callable[[int, float, int], bool]
"""Whether a side of a level follows from its exact length and the side of a tile."""


def _rounded(side: int, exact: float, tile: int) -> bool:
    return abs(side - exact) < _ROUNDING


def _padded(side: int, exact: float, tile: int) -> bool:
    return tile > 0 and side in {math.ceil(v / tile) * tile for v in (math.floor(exact), math.ceil(exact))}


def _cropped(side: int, exact: float, tile: int) -> bool:
    if exact < tile:  # nothing is left of less than a tile, so that it is kept
        return side == tile or _rounded(side, exact, tile)
    return tile > 0 and side in {v // tile * tile for v in (math.floor(exact), math.ceil(exact))}


WAYS: tuple[Way, ...] = (_rounded, _padded, _cropped)
"""How sides of levels come about."""


@dataclass(frozen=True)
class _Level:
    """The size of a level, and the ways that the finer levels leave for each side."""

    base: Size
    size: Size
    tile: Size
    ways: Sequence[tuple[Way, ...]]

    def fitting(self, factor: int) -> list[tuple[Way, ...]]:
        """Return, for each side, the ways that explain it by a factor."""
        sides = zip(self.base, self.size, self.tile, self.ways, strict=True)
        return [tuple(w for w in ways if w(side, whole / factor, tile)) for whole, side, tile, ways in sides]

    def explained(self, factor: int) -> bool:
        return all(self.fitting(factor))

    def exact(self, factor: int) -> bool:
        off = max(abs(side - whole / factor) for whole, side in zip(self.base, self.size, strict=True))
        return off <= 1 and all(_rounded in ways for ways in self.fitting(factor))

    def factor(self, last: int, ratios: Sequence[float]) -> int | None:
        """Return the factor of this level, given that of the next finer one and the ratios of the finer levels."""
        common = ratios[0] if len(set(ratios)) == 1 else math.nan  # NaN where a level between is unknown
        continued = int(last * common) if common > 1 else None
        least = math.ceil(max(b / s for b, s in zip(self.base, self.size, strict=True)))
        explaining = [f for f in range(last + 1, 2 * max(least, continued or 0) + 2) if self.explained(f)]
        if len(explaining) == 1:
            return explaining[0]
        if continued not in explaining:
            return None
        whole_tiles = all(tile and side % tile == 0 for side, tile in zip(self.size, self.tile, strict=True))
        if not whole_tiles and self.exact(continued):
            return continued
        multiples = [f for f in explaining if f % last == 0]
        return continued if len(ratios) > 1 and multiples == [continued] else None


def _tiles(properties: Mapping[str, str], levels: int) -> list[Size]:
    """Return the size of each level's tiles, 0 where OpenSlide does not state it."""
    keys = [(f"openslide.level[{k}].tile-width", f"openslide.level[{k}].tile-height") for k in range(levels)]
    return [(int(properties.get(width, 0)), int(properties.get(height, 0))) for width, height in keys]
