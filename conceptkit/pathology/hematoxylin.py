"""Nuclei by their hematoxylin: colour deconvolution, many thresholds, watershed; no network, no weights file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from conceptkit.errors import InputError
from conceptkit.images.pixel_values import check_enlarged, nearest
from conceptkit.pathology import colour
from conceptkit.pathology.nucleus_score import score
from conceptkit.pathology.regions import Fields, Labels, best_set, candidates, split_touching
from conceptkit.pathology.scales import ASSUMED_MPP

WORKING_MPP = 0.5
"""Microns per pixel at which nuclei are looked for, whatever the image's own: sizes below mean the same everywhere."""

LEAST_CONTRAST = 0.06
"""Optical density between an image's median and its 99.5th percentile below which it holds no nucleus."""

THRESHOLDS = np.linspace(0.12, 0.6867, 6)
SMALLEST, LARGEST, HOLE = 20, 900, 150
"""Pixels of 0.5 µm: regions of 5 to 225 µm² may be nuclei, and what they enclose up to 37 µm² is a pale inside."""

_LEAST, _POWER = 0.2, 0.4
_APART = 3


def open_hematoxylin(weights: Path | None, device: str) -> Callable[[NDArray[np.uint8], float | None], Labels]:
    """Return :func:`segment`, which has no weights."""
    if weights is not None:
        raise InputError(f"nuclei-weights: hematoxylin takes none, got {weights}.")
    return segment


def segment(image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.int32]:
    """Return the nuclei of an image (h, w, 3) as labels, (h, w), 0 where there is none.

    The image is brought to 0.5 µm per pixel; without ``mpp`` it counts as :data:`ASSUMED_MPP`. Its hematoxylin is cut
    at 6 thresholds between its median and its 99.5th percentile; the connected dark regions form trees, each region has
    a score (expected overlap with a nucleus, from ten numbers of shape and darkness, see
    :mod:`conceptkit.pathology.nucleus_score`), and the set of regions that do not overlap and score best is kept.
    Regions that are not ellipses are split by a watershed on the distance to their rim where the parts score better.
    """
    height, width = image.shape[:2]
    fields = prepare(image, mpp)
    if fields is None:
        return np.zeros((height, width), dtype=np.int32)
    levels = candidates(fields, thresholds=THRESHOLDS, smallest=SMALLEST, largest=LARGEST, hole=HOLE)
    chosen = best_set(levels, score, fields.dark.shape, least=_LEAST, power=_POWER)
    labels = _numbered(split_touching(chosen, fields, score, apart=_APART))
    return _enlarged(labels, height, width)


def prepare(image: NDArray[np.uint8], mpp: float | None) -> Fields | None:
    """Return what nuclei are looked for in, at 0.5 µm per pixel; ``None`` where nothing stands out."""
    own = ASSUMED_MPP if mpp is None or not np.isfinite(mpp) else mpp
    density = colour.optical_density(np.moveaxis(_resized(image, own), 2, 0))  # (3, h, w): planes
    red, green, blue = density
    r, g, b = colour.HEMATOXYLIN
    amount = ndimage.gaussian_filter(r * red + g * green + b * blue, 0.3)
    low, high = (float(v) for v in np.quantile(amount[::2, ::2], (0.5, 0.995)))
    # A patch that nuclei fill has them at its median: then the darkness of glass and stroma is missing, not the nuclei.
    if high - low < LEAST_CONTRAST:
        return None
    dark = ((amount - np.float32(low)) / np.float32(high - low)).astype(np.float32)
    hue = ndimage.uniform_filter((blue - red) / (red + green + blue + np.float32(0.1)), 3)
    return Fields(dark, hue.astype(np.float32), ndimage.uniform_filter(dark, 25))


def _resized(image: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) at the working resolution; light is averaged, as a scanner of that resolution would."""
    factor = WORKING_MPP / mpp
    height, width = image.shape[:2]
    if abs(factor - 1) <= 0.1:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    if abs(factor - 2) <= 0.1 and height % 2 == 0 and width % 2 == 0:
        return np.asarray(picture.reduce(2))
    size = (max(4, round(width / factor)), max(4, round(height / factor)))
    check_enlarged(size)
    return np.asarray(picture.resize(size, Image.Resampling.BOX if factor > 1 else Image.Resampling.BILINEAR))


def _enlarged(labels: Labels, height: int, width: int) -> NDArray[np.int32]:
    """Return labels at the image's own size."""
    rows, columns = labels.shape
    if (rows, columns) == (height, width):
        return labels
    if (2 * rows, 2 * columns) == (height, width):
        return labels.repeat(2, axis=0).repeat(2, axis=1)
    return nearest(labels, height, width)


def _numbered(labels: Labels) -> Labels:
    """Return labels 1 … n without gaps and without specks below the smallest nucleus."""
    area = np.bincount(labels.ravel())
    keep = area >= SMALLEST // 2
    keep[0] = False
    numbers = np.zeros(len(area), dtype=np.int32)
    numbers[keep] = np.arange(1, int(keep.sum()) + 1)
    return numbers[labels]
