"""Whole slides: opened, described, and read as windows at a wanted resolution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError

Pixels = NDArray[np.uint8]

PICTURE_MPP = 8.0
"""Microns per pixel of the small picture in which tissue is looked for."""

_PICTURE_DOWNSAMPLE = 24
"""What is taken instead where a slide does not say its microns per pixel; about 8 µm at 30x."""

_BLOCK = 2048


@dataclass(frozen=True)
class Slide:
    """An open slide."""

    path: Path
    mpp: float | None
    """Microns per pixel of level 0, as given by the user or else as the slide says; ``None`` where neither does."""
    width: int
    height: int
    handle: Any
    """OpenSlide's object."""

    def region(self, x: int, y: int, width: int, height: int, *, scale: float = 1.0) -> Pixels:
        """Read a window.

        Parameters
        ----------
        x, y, width, height : in pixels of level 0
        scale : pixels of level 0 for one of the result

        Returns
        -------
        (round(height / scale), round(width / scale), 3) RGB, white where the slide was not scanned
        """
        out = (max(1, round(width / scale)), max(1, round(height / scale)))
        level = self.handle.get_best_level_for_downsample(scale * 1.01)  # levels are off by a pixel: 2.0005 is 2
        down = self.handle.level_downsamples[level]
        size = (max(1, round(width / down)), max(1, round(height / down)))
        image = self.handle.read_region((x, y), level, size)
        pixels = on_glass(image)
        if size == out:
            return pixels
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize(out, Image.Resampling.BOX))

    def picture(self) -> tuple[Pixels, float]:
        """Return the whole slide as a small picture, and the pixels of level 0 for one of it."""
        scale = PICTURE_MPP / self.mpp if self.mpp else float(_PICTURE_DOWNSAMPLE)
        scale = max(1.0, min(scale, min(self.width, self.height) / 64))
        if (small := self._thumbnail(scale)) is not None:
            return small, scale
        step = max(1, round(_BLOCK / scale))  # in blocks: a slide of one level does not fit into memory as a whole
        rows, columns = math.ceil(self.height / scale), math.ceil(self.width / scale)
        out = np.full((rows, columns, 3), 255, dtype=np.uint8)
        for top in range(0, rows, step):
            for left in range(0, columns, step):
                high, wide = min(step, rows - top), min(step, columns - left)
                window = (round(left * scale), round(top * scale), round(wide * scale), round(high * scale))
                part = self.region(*window, scale=scale)[:high, :wide]
                out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out, scale

    def _thumbnail(self, scale: float) -> Pixels | None:
        """Return the picture that the scanner kept, at a scale; ``None`` where there is none as fine, or of all."""
        from PIL import Image

        kept = self.handle.associated_images.get("thumbnail")
        if kept is None or kept.width * scale * 1.5 < self.width:
            return None
        if abs(kept.width * self.height / (kept.height * self.width) - 1) > 0.01:
            return None  # another shape: it shows another part of the glass
        size = (math.ceil(self.width / scale), math.ceil(self.height / scale))
        return np.asarray(kept.convert("RGB").resize(size, Image.Resampling.BOX))


def on_glass(image: Any) -> Pixels:
    """Return RGB of what OpenSlide read: transparent means not scanned, which is white as the glass."""
    if image.getchannel("A").getextrema()[0] == 255:
        return np.asarray(image.convert("RGB"))
    wide = np.asarray(image).astype(np.uint16)
    share = wide[..., 3:]
    return ((wide[..., :3] * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


@contextmanager
def open_slide(path: Path, *, mpp: float | None = None) -> Iterator[Slide]:
    """Open a slide; what goes wrong while it is open is told in one sentence.

    Parameters
    ----------
    path : any format that OpenSlide reads
    mpp : microns per pixel of level 0, instead of what the slide says

    Raises
    ------
    InputError
        when the file is missing, is no slide, or cannot be read through
    """
    import openslide

    if not path.is_file():
        raise InputError(f"slide: there is no file {path}.")
    if mpp is not None and not 0 < mpp < math.inf:
        raise InputError(f"mpp: must be a positive number of microns per pixel, got {mpp}.")
    handle = None
    try:
        handle = openslide.OpenSlide(path)
        width, height = handle.dimensions
        yield Slide(path, mpp if mpp is not None else _own_mpp(handle.properties), width, height, handle)
    except (openslide.OpenSlideError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise InputError(f"slide: {path} cannot be read as a slide ({lines[0] if lines else 'unknown'}).") from None
    finally:
        if handle is not None:
            handle.close()


def _own_mpp(properties: Any) -> float | None:
    """Return what the slide says: the mean of both directions, ``None`` where it says nothing sensible."""
    found = []
    for axis in ("x", "y"):
        try:
            value = float(properties[f"openslide.mpp-{axis}"])
        except (KeyError, ValueError):
            return None
        if not 0.01 < value < 100:  # 0 and 1000 are what some scanners write for unknown
            return None
        found.append(value)
    return sum(found) / 2


def bounds(slide: Slide) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the scanned area in pixels of level 0; the whole slide where none is stated."""
    found = [slide.handle.properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in found:
        return 0, 0, slide.width, slide.height
    x, y, width, height = map(int, found)
    return x, y, width, height
