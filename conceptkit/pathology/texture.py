"""Haralick texture of patches, in closed form from pixel pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError

ANGLES = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
"""Directions of the pixel pairs, in radians: 0, 45, 90 and 135 degrees."""


@dataclass(frozen=True)
class Haralick:
    """Two Haralick properties of a batch of patches, each the mean over :data:`ANGLES`."""

    contrast: NDArray[np.float64]
    """(n,) mean squared difference of the grey levels of a pair, in grey levels squared."""
    correlation: NDArray[np.float64]
    """(n,) Pearson correlation of the grey levels of a pair; NaN where an angle's pairs are all of one grey level."""


def luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 8-bit luma of RGB patches, bit for bit what Pillow's ``convert("L")`` gives.

    Parameters
    ----------
    images
        (n, h, w, 3) RGB.

    Returns
    -------
    (n, h, w) luma: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in 16-bit fixed point, rounded.

    Raises
    ------
    InputError
        when ``images`` is not uint8 of shape (n, h, w, 3).
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images: must be uint8 of shape (n, h, w, 3), got {images.dtype} of shape {images.shape}.")
    grey = np.empty(images.shape[:-1], dtype=np.uint8)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)  # the rounded weights times 2^16; they sum to 2^16
    for image, out in zip(images, grey, strict=True):  # one by one: the 32-bit products are four times the patch
        red, green, blue = (image[..., c] * weights[c] for c in range(3))
        out[...] = (red + green + blue + np.uint32(0x8000)) >> np.uint32(16)
    return grey


def haralick(luma: NDArray[np.uint8], *, distance: int = 1) -> Haralick:
    r"""Return contrast and correlation of the symmetric grey-level co-occurrence matrix with 256 levels.

    For the :math:`N` pairs :math:`(a, b)` of pixels that lie ``distance`` apart in one direction, counted in both
    orders (symmetric), the matrix's moments are those of the pairs, so the matrix itself is never built:

    .. math::
        \text{contrast} = \frac{1}{N} \sum (a - b)^2, \qquad
        \text{correlation} = \frac{\frac{1}{N}\sum ab - \mu^2}{\frac{1}{2N}\sum (a^2 + b^2) - \mu^2}, \qquad
        \mu = \frac{1}{2N} \sum (a + b)

    Both are then averaged over :data:`ANGLES`. Pairs are those of ``skimage.feature.graycomatrix``.

    Parameters
    ----------
    luma
        (n, h, w) grey levels 0 to 255.
    distance
        Pixels between the two of a pair; on the diagonals rounded to whole rows and columns.

    Returns
    -------
    The two properties, (n,) each. A flat patch has no correlation: it is NaN (scikit-image says 1).

    Raises
    ------
    InputError
        when ``luma`` is not uint8 of shape (n, h, w), ``distance`` is below 1, or a direction has no pair.

    Notes
    -----
    Haralick, Shanmugam and Dinstein, "Textural features for image classification", 1973.
    """
    luma = np.asarray(luma)
    if luma.dtype != np.uint8 or luma.ndim != 3:
        raise InputError(f"luma: must be uint8 of shape (n, h, w), got {luma.dtype} of shape {luma.shape}.")
    if distance != int(distance) or distance < 1:
        raise InputError(f"distance: must be a whole number of at least 1, got {distance}.")
    n, height, width = luma.shape
    if min(height, width) <= distance:
        raise InputError(
            f"luma: must have more than {distance} rows and columns for pairs at distance {distance}, "
            f"got {height} x {width}."
        )
    contrast = np.empty((n, len(ANGLES)))
    correlation = np.empty((n, len(ANGLES)))
    for k in range(n):
        grey = luma[k].astype(np.float64)  # sums of whole numbers stay exact in float64 up to 2^53
        for j, angle in enumerate(ANGLES):
            contrast[k, j], correlation[k, j] = _pair_moments(*_pairs(grey, angle, distance))
    return Haralick(contrast=contrast.mean(axis=1), correlation=correlation.mean(axis=1))


def _pairs(grey: NDArray[np.float64], angle: float, distance: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first and the second pixel of every pair, as two views of equal shape."""
    down, right = round(math.sin(angle) * distance), round(math.cos(angle) * distance)
    height, width = grey.shape
    first = grey[: height - down, max(0, -right) : width - max(0, right)]
    second = grey[down:, max(0, right) : width - max(0, -right)]
    return first, second


def _pair_moments(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Return contrast and correlation; Python integers, as n²·σ² of a large image overflows 64 bits."""
    n = first.size
    total = int(first.sum() + second.sum())
    squares = int(np.einsum("ij,ij->", first, first) + np.einsum("ij,ij->", second, second))
    products = int(np.einsum("ij,ij->", first, second))
    spread = 2 * n * squares - total * total  # (2n)² times the variance: exactly 0 when all pixels are equal
    contrast = (squares - 2 * products) / n
    return contrast, (4 * n * products - total * total) / spread if spread else math.nan
