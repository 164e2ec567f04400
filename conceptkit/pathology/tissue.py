"""Where a slide shows tissue: a small picture, a threshold, and the share of each tile that is tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from conceptkit.pathology.colour import check_images, optical_density

LEAST_DENSITY = 0.04
"""Optical density (mean of the channels) below which nothing counts as tissue, whatever the slide's histogram says."""

MOST_DENSITY = 0.12
"""Optical density above which everything counts as tissue: a slide full of tissue has no glass to compare with."""


def tissue_mask(picture: NDArray[np.uint8], *, smallest: int = 16) -> NDArray[np.bool_]:
    """Return which pixels of a small picture of a slide are tissue.

    Otsu's threshold on the optical density, kept between :data:`LEAST_DENSITY` and :data:`MOST_DENSITY`; marker ink and
    what is black in all channels are excluded, specks removed and small holes filled.

    Parameters
    ----------
    picture
        (h, w, 3) RGB, a few µm per pixel.
    smallest
        Pixels below which a speck is not tissue and a hole is.

    Returns
    -------
    (h, w)
    """
    check_images(picture[None])
    density = optical_density(picture).mean(axis=-1)
    density = ndimage.gaussian_filter(density, 1.0)
    dark = density > min(max(_otsu(density), LEAST_DENSITY), MOST_DENSITY)
    red, green, blue = (picture[..., c].astype(np.int16) for c in range(3))
    black = picture.max(axis=-1) < 50
    ink = ((green - red > 25) & (green - blue > 5)) | ((blue - red > 60) & (green - red > 15))
    tissue = dark & ~black & ~ink
    tissue = _without_small(tissue, smallest)
    return ~_without_small(~tissue, smallest)


def share_of_tiles(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box that is true, (n,), counting parts of pixels.

    Parameters
    ----------
    mask
        (h, w)
    boxes
        (n, 4) left, top, right, bottom in the mask's pixels, fractions allowed; what lies outside counts as false.
    """
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)

    def upto(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        left, top = np.minimum(x.astype(np.intp), width - 1), np.minimum(y.astype(np.intp), height - 1)
        right, down = x - left, y - top
        upper = sums[top, left] * (1 - right) + sums[top, left + 1] * right
        lower = sums[top + 1, left] * (1 - right) + sums[top + 1, left + 1] * right
        result: NDArray[np.float64] = upper * (1 - down) + lower * down
        return result

    x0, y0, x1, y1 = boxes.T
    inside = upto(x1, y1) - upto(x0, y1) - upto(x1, y0) + upto(x0, y0)
    return np.asarray(inside / ((x1 - x0) * (y1 - y0)))


def _otsu(values: NDArray[np.floating]) -> float:
    """Return the threshold that parts the histogram best (Otsu 1979), over 256 bins."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    low, high = counts.cumsum(), counts[::-1].cumsum()[::-1]
    below = (counts * centres).cumsum() / np.maximum(low, 1)
    above = (counts * centres)[::-1].cumsum()[::-1] / np.maximum(high, 1)
    between = low[:-1] * high[1:] * (below[:-1] - above[1:]) ** 2
    return float(centres[between.argmax()])


def _without_small(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    pieces, number = ndimage.label(mask)
    keep = np.bincount(pieces.ravel(), minlength=number + 1) >= smallest
    keep[0] = False
    return np.asarray(keep[pieces], dtype=np.bool_)
