"""Contours of nuclei that HoVer-Net writes as JSON, filled to a label mask."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from conceptkit.errors import InputError

_MPP_OF_ONE = 10.0
"""Microns per pixel at a magnification of 1: 40x is about 0.25."""

_APART = 1.4
"""Ratio of two resolutions from which they are different ones: scanners call 0.2 to 0.3 microns per pixel 40x."""

_REACH = 0.6
"""Share of both sides of the image that contours of its resolution reach; contours of half of it reach at most 0.5."""


def read_contours(path: Path, shape: tuple[int, ...] | None, mpp: float) -> NDArray[np.int32]:
    """Return the nuclei of a JSON file of HoVer-Net as labels 1 to n, (h, w), in the order of the file.

    The table ``nuc`` holds a ``contour`` (n, 2) of x and y for each nucleus. Raises :class:`InputError` when the file
    is damaged, holds something else, or its contours do not fit the image's ``shape`` or its ``mpp`` (NaN where
    unknown).
    """
    if shape is None:
        raise InputError(f"{path} holds contours, which need an image for their size; name a label image instead.")
    contours, magnification = _read(path)
    height, width = shape
    if contours:
        _check_scale(np.concatenate(contours), magnification, (height, width), mpp, path)
    canvas = Image.new("I", (width, height))
    draw = ImageDraw.Draw(canvas)
    for number, contour in enumerate(contours, start=1):
        points = [(int(x), int(y)) for x, y in np.rint(contour)]
        if len(points) > 1:
            draw.polygon(points, fill=number, outline=number)  # the contour's own pixels are part of the nucleus
        else:
            draw.point(points, fill=number)
    return np.asarray(canvas, dtype=np.int32)


def _read(path: Path) -> tuple[list[NDArray[np.float64]], float | None]:
    """Return the contours, (n, 2) each, and the magnification that they were drawn at."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}).") from None
    nuclei = content.get("nuc") if isinstance(content, dict) else None
    try:
        if not isinstance(nuclei, dict):
            raise ValueError
        contours = [np.array(nucleus["contour"], dtype=np.float64).reshape(-1, 2) for nucleus in nuclei.values()]
        if not all(len(contour) and np.isfinite(contour).all() for contour in contours):
            raise ValueError
        magnification = None if content.get("mag") is None else float(content["mag"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(f"{path} must be JSON of HoVer-Net, with a contour for each nucleus in a table nuc.") from None
    return contours, magnification if magnification and 0 < magnification < math.inf else None


def _check_scale(
    points: NDArray[np.float64], magnification: float | None, shape: tuple[int, int], mpp: float, path: Path
) -> None:
    """Raise :class:`InputError` unless contours are in pixels of their image."""
    height, width = shape
    (left, top), (right, bottom) = np.rint(points.min(axis=0)), np.rint(points.max(axis=0))
    if min(left, top) < 0 or right > width or bottom > height:
        raise InputError(
            f"{path} has contours from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), outside the image of "
            f"{width} x {height} pixels; give contours in pixels of this image."
        )
    if magnification is None:  # of a single image HoVer-Net writes none: contours are in its pixels
        return
    drawn = _MPP_OF_ONE / magnification
    if math.isnan(mpp):
        if right < _REACH * width or bottom < _REACH * height:
            raise InputError(
                f"{path} has contours of {magnification:g}x, and the resolution of the image is unknown; give its mpp."
            )
    elif not 1 / _APART < mpp / drawn < _APART:
        raise InputError(
            f"{path} has contours of {magnification:g}x, about {drawn:.3g} microns per pixel, and its image has "
            f"{mpp:.3g}; give contours in pixels of this image."
        )
