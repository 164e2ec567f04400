"""Samples of an image turned into 8-bit RGB: their range, their transparency, their orientation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError

Pixels = NDArray[np.uint8]

MOST_PIXELS = 2 * 89_478_485
"""Largest number of pixels of one image, read or enlarged: the limit at which Pillow refuses files."""


def in_bytes(values: NDArray[Any], path: Path, largest: float | None = None) -> Pixels:
    """Scale samples, unsigned integers or floats, to 8 bits.

    ``largest`` is the value of white that the file states; ``None`` for the largest of the integer type, and 1 for
    floats. Raises :class:`InputError` when values lie outside the range, or use less than a quarter of a range that is
    not stated: most likely these are 12 bits stored in 16.
    """
    kind = values.dtype.kind
    if kind == "i":
        raise InputError(f"{path} has signed values, so their white is unknown; save it as 8-bit RGB.")
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8, copy=False)
    low, top = float(values.min()), float(values.max())
    white = largest or (1.0 if kind == "f" else float(np.iinfo(values.dtype).max))
    if not (low >= 0 and top <= white) or (largest is None and 0 < top < white / 4):
        raise InputError(
            f"{path} has more than 8 bits per channel, and values from {low:.6g} to {top:.6g} do not fit a white of "
            f"{white:.6g}; save it as 8-bit RGB."
        )
    if kind == "f":
        return np.rint(values * (255 / white)).astype(np.uint8)
    return np.asarray(values >> values.dtype.type(round(math.log2(white + 1)) - 8)).astype(np.uint8)


def on_white(colours: Pixels, alpha: Pixels, *, associated: bool = False) -> Pixels:
    """Put colours (h, w, 3) of opacity ``alpha`` (h, w) on white; ``associated``: they are multiplied by it already."""
    wide, share = colours.astype(np.uint16), alpha[..., None].astype(np.uint16)
    if associated:
        return np.asarray(np.minimum(wide + (255 - share), 255), dtype=np.uint8)
    return np.asarray((wide * share + 255 * (255 - share) + 127) // 255, dtype=np.uint8)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an image (h, w, …) as the orientation of EXIF and TIFF, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def check_enlarged(size: tuple[int, int]) -> None:
    """Raise :class:`InputError` when an image resized to a width and height would need too much memory."""
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            f"nuclei: the image would have {size[0]} x {size[1]} pixels at the resolution at which nuclei are looked "
            f"for, at most {MOST_PIXELS:,} in all; cut it into smaller images first."
        )


def nearest(labels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return labels (h, w) at another size, each pixel with the label nearest to its centre."""
    rows, columns = labels.shape
    y = np.minimum(((np.arange(height) + 0.5) * rows / height).astype(np.intp), rows - 1)
    x = np.minimum(((np.arange(width) + 0.5) * columns / width).astype(np.intp), columns - 1)
    return np.asarray(labels[y][:, x])
