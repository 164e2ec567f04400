"""Nuclei by their hematoxylin alone: colour deconvolution, many thresholds, watershed; no network, no weights file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conceptkit.pathology import colour
from conceptkit.pathology.nucleus_score import score
from conceptkit.pathology.regions import Fields, Labels, best_set, candidates, split_touching

WORKING_MPP = 0.5
"""Microns per pixel at which nuclei are looked for, whatever the image's own: sizes below mean the same everywhere."""

ASSUMED_MPP = 0.25
"""What an image without microns per pixel is taken for: 40x."""

LEAST_CONTRAST = 0.06
"""Optical density between an image's median and its 99.5th percentile below which it holds no nucleus."""

THRESHOLDS = np.linspace(0.12, 0.82, 8)
SMALLEST, LARGEST, HOLE = 20, 900, 150
"""Pixels of 0.5 µm: regions of 5 to 225 µm² may be nuclei, and what they enclose up to 37 µm² is a pale inside."""

_LEAST, _POWER = 0.2, 0.4
_APART = 3


def segment(image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.int32]:
    """Return the nuclei of an image as labels, (h, w), 0 where there is none.

    The image is brought to 0.5 µm per pixel. Its hematoxylin is cut at 8 thresholds between its median and its
    99.5th percentile; the connected dark regions form trees, each region is given a score (how far it will overlap a
    nucleus, from ten numbers of shape and darkness, see :mod:`conceptkit.pathology.nucleus_score`), and the set of
    regions that do not overlap and score best is kept. Regions that are no ellipse are parted by a watershed on the
    distance to their rim where the parts score better.

    Parameters
    ----------
    image
        (h, w, 3) RGB.
    mpp
        Microns per pixel; ``None``: taken for :data:`ASSUMED_MPP`.
    """
    height, width = image.shape[:2]
    fields = prepare(image, mpp)
    if fields is None:
        return np.zeros((height, width), dtype=np.int32)
    shape = fields.dark.shape
    levels = candidates(fields, thresholds=THRESHOLDS, smallest=SMALLEST, largest=LARGEST, hole=HOLE)
    labels = best_set(levels, score, shape, least=_LEAST, power=_POWER)
    labels = _numbered(split_touching(labels, fields, score, apart=_APART))
    return _enlarged(labels, height, width)


def prepare(image: NDArray[np.uint8], mpp: float | None) -> Fields | None:
    """Return what nuclei are looked for in, at 0.5 µm per pixel; ``None`` where nothing stands out."""
    from scipy import ndimage

    own = ASSUMED_MPP if mpp is None or not np.isfinite(mpp) else mpp
    red, blue = (_resized(colour.optical_density(image[..., c]), own) for c in (0, 2))
    green = _resized(colour.optical_density(image[..., 1]), own)
    r, g, b = colour.HEMATOXYLIN
    amount = ndimage.gaussian_filter(r * red + g * green + b * blue, 0.3)
    low, high = (float(v) for v in np.quantile(amount[::2, ::2], (0.5, 0.995)))
    # A patch that nuclei fill has them at its median: then the darkness of glass and stroma is missing, not the nuclei.
    if high - low < LEAST_CONTRAST:
        return None
    dark = ((amount - np.float32(low)) / np.float32(high - low)).astype(np.float32)
    hue = ndimage.uniform_filter((blue - red) / (red + green + blue + np.float32(0.1)), 3)
    return Fields(dark, hue.astype(np.float32), ndimage.uniform_filter(dark, 25))


def _resized(plane: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
    """Return a plane at the working resolution."""
    factor = WORKING_MPP / mpp
    height, width = plane.shape
    if abs(factor - 1) <= 0.1:
        return plane
    if abs(factor - 2) <= 0.1 and height % 2 == 0 and width % 2 == 0:
        upper, lower = plane[0::2], plane[1::2]
        rows = upper + lower
        return np.asarray((rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25))
    from PIL import Image

    size = (max(4, round(width / factor)), max(4, round(height / factor)))
    method = Image.Resampling.BOX if factor > 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(plane).resize(size, method))


def _enlarged(labels: Labels, height: int, width: int) -> NDArray[np.int32]:
    """Return labels at the image's own size."""
    rows, columns = labels.shape
    if (rows, columns) == (height, width):
        return labels
    if (2 * rows, 2 * columns) == (height, width):
        return labels.repeat(2, axis=0).repeat(2, axis=1)
    y = np.minimum(((np.arange(height) + 0.5) * rows / height).astype(np.intp), rows - 1)
    x = np.minimum(((np.arange(width) + 0.5) * columns / width).astype(np.intp), columns - 1)
    return np.asarray(labels[y][:, x])


def _numbered(labels: Labels) -> Labels:
    """Return labels 1 … n without gaps, specks below the smallest nucleus left out."""
    area = np.bincount(labels.ravel())
    keep = area >= SMALLEST // 2
    keep[0] = False
    numbers = np.zeros(len(area), dtype=np.int32)
    numbers[keep] = np.arange(1, int(keep.sum()) + 1)
    return numbers[labels]
