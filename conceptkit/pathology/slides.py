"""Whole slides: opened, described, and read as windows at a wanted resolution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError
from conceptkit.images.pyramid import Pixels, Pyramid
from conceptkit.pathology.scales import SCALES

PICTURE_MPP = 8.0
"""Microns per pixel of the small picture in which tissue is detected."""

_PICTURE_DOWNSAMPLE = 24
"""Downsample of the small picture where the slide's microns per pixel are unknown; about 8 µm at 30x."""

_MOST_PICTURE = 50_000_000
"""Pixels of the small picture, whatever the slide says of its resolution."""


SLOW_PIXELS, MOST_PIXELS = 2e9, 30e9
"""Pixels read to detect tissue from which on this is announced, and above which a slide is refused"""

PIXELS_PER_SECOND = 30e6
"""Pixels that one core reads from a slide of JPEG tiles"""

AS_PYRAMID = "convert it to a pyramid: vips tiffsave IN OUT.tif --tile --pyramid --bigtiff"


@dataclass(frozen=True)
class Slide:
    """An open slide."""

    path: Path
    mpp: float | None
    """Microns per pixel of level 0, as given by the user or else as the slide states; ``None`` where unknown."""
    width: int
    height: int
    handle: Any
    """OpenSlide's object."""
    pyramid: Pyramid
    """Its levels, from which windows are read."""
    doubt: str = ""
    """Why the microns per pixel that the slide states are not used; empty where they are, or where it states none."""

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
        return self.pyramid.read(x, y, width, height, out=out)

    def picture(self) -> tuple[Pixels, float]:
        """Return the whole slide as a small picture, and the pixels of level 0 for one of it.

        It is read from the levels of the slide: the thumbnail that a scanner keeps may be damaged or show a part.
        """
        scale = self.picture_scale
        if (pixels := self.pyramid.pixels_read(scale)) > MOST_PIXELS:
            raise InputError(
                f"slide: {self.path} has no level that is coarse enough to detect tissue, and {pixels / 1e6:,.0f} "
                f"megapixels are too many to read; {AS_PYRAMID}."
            )
        out = (math.ceil(self.width / scale), math.ceil(self.height / scale))
        return self.pyramid.read(0, 0, out[0] * scale, out[1] * scale, out=out), scale

    @property
    def picture_scale(self) -> float:
        """Return the pixels of level 0 for one of the small picture."""
        scale = PICTURE_MPP / self.mpp if self.mpp else float(_PICTURE_DOWNSAMPLE)
        scale = max(1.0, min(scale, min(self.width, self.height) / 64))
        return max(scale, math.sqrt(self.width * self.height / _MOST_PICTURE))


@contextmanager
def open_slide(path: Path, *, mpp: float | None = None) -> Iterator[Slide]:
    """Open a slide and close it again; what goes wrong while it is open becomes an :class:`InputError`.

    Parameters
    ----------
    path : any format that OpenSlide reads
    mpp : microns per pixel of level 0, instead of what the slide states

    Raises
    ------
    InputError
        when the file is missing, is not a slide, or cannot be read
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
        stated, doubt = (mpp, "") if mpp is not None else _stated_mpp(handle.properties)
        yield Slide(path, stated, width, height, handle, Pyramid(handle), doubt)
    except (openslide.OpenSlideError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise InputError(f"slide: {path} cannot be read as a slide ({lines[0] if lines else 'unknown'}).") from None
    finally:
        if handle is not None:
            handle.close()


def bounds(slide: Slide) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the scanned area in pixels of level 0; the whole slide where none is stated."""
    found = [slide.handle.properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in found:
        return 0, 0, slide.width, slide.height
    x, y, width, height = map(int, found)
    return x, y, width, height


def _stated_mpp(properties: Mapping[str, str]) -> tuple[float | None, str]:
    """Return the mean of what the slide states for both directions, or ``None`` and why that is not used."""
    stated = [properties.get(f"openslide.mpp-{axis}") for axis in ("x", "y")]
    try:
        x, y = (float(value) for value in stated if value is not None)
    except ValueError:  # one of them is missing, or is not a number
        return None, ""
    if not all(SCALES[0] <= value <= SCALES[1] for value in (x, y)):
        return None, f"it states {x:.4g} × {y:.4g} µm per pixel, outside of {SCALES[0]:g} to {SCALES[1]:g}"
    if max(x, y) > 1.1 * min(x, y):
        return None, f"it states {x:.4g} × {y:.4g} µm per pixel, which differ by more than 10 %"
    return (x + y) / 2, ""
