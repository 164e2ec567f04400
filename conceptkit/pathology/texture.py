"""Haralick texture of patches and of the nuclei in them, exact at 256 grey levels, from pixel pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology.colour import check_images

ANGLES = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
"""Directions of the pixel pairs, in radians: 0, 45, 90 and 135 degrees."""


@dataclass(frozen=True)
class Haralick:
    """Two Haralick properties of a batch of patches, each the mean over :data:`ANGLES`."""

    contrast: NDArray[np.float64]
    """(n,) mean squared difference of the grey levels of a pair, in grey levels squared."""
    correlation: NDArray[np.float64]
    """(n,) Pearson correlation of the grey levels of a pair; NaN where an angle's pairs are all of one grey level."""


@dataclass(frozen=True)
class Cooccurrence(Haralick):
    """Four Haralick properties of a batch of patches, each the mean over :data:`ANGLES`; NaN where there is no pair."""

    homogeneity: NDArray[np.float64]
    """(n,) mean of 1 / (1 + d²) over pairs of difference d: 1 where all neighbours are equal."""
    asm: NDArray[np.float64]
    """(n,) angular second moment: the squared matrix summed, 1 where all pairs are alike, near 0 where all differ."""


def luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 8-bit luma (n, h, w) of RGB patches (n, h, w, 3), bit for bit as Pillow's ``convert("L")``.

    0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in 16-bit fixed point, rounded.
    """
    images = check_images(images)
    grey = np.empty(images.shape[:-1], dtype=np.uint8)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)  # the rounded weights times 2^16; they sum to 2^16
    for image, out in zip(images, grey, strict=True):  # one by one: the 32-bit products are four times the patch
        red, green, blue = (image[..., c] * weights[c] for c in range(3))
        out[...] = (red + green + blue + np.uint32(0x8000)) >> np.uint32(16)
    return grey


def haralick(luma: NDArray[np.uint8], *, distance: int = 1) -> Haralick:
    r"""Return contrast and correlation (n,) of grey levels (n, h, w): their symmetric co-occurrence matrix, 256 levels.

    For the :math:`N` pairs :math:`(a, b)` of pixels that lie ``distance`` apart in one direction, counted in both
    orders (symmetric), the matrix's moments are those of the pairs, so the matrix itself is never built:

    .. math::
        \text{contrast} = \frac{1}{N} \sum (a - b)^2, \qquad
        \text{correlation} = \frac{\frac{1}{N}\sum ab - \mu^2}{\frac{1}{2N}\sum (a^2 + b^2) - \mu^2}, \qquad
        \mu = \frac{1}{2N} \sum (a + b)

    Both are averaged over :data:`ANGLES`; on the diagonals ``distance`` is rounded to whole rows and columns, as in
    ``skimage.feature.graycomatrix``. The correlation of a flat patch is NaN (scikit-image says 1). Source: Haralick,
    Shanmugam and Dinstein, "Textural features for image classification", 1973.
    """
    luma = _check(luma, distance)
    n, height, width = luma.shape
    steps = [_step(angle, distance) for angle in ANGLES]
    sums, squares = _Margins(luma, 1), _Margins(luma, 2)
    products = np.empty((n, len(steps)))
    grey = np.empty((height, width))
    flat = grey.ravel()
    for k in range(n):
        grey[...] = luma[k]  # sums of whole numbers stay exact in float64 up to 2^53
        sums.all[k], squares.all[k] = flat.sum(), flat @ flat
        for j, (down, right) in enumerate(steps):
            # The dot product of the flat image with itself, shifted, runs at memory speed; it also pairs the end of a
            # row with the start of the next one, and these few pairs are taken off again.
            shift = down * width + right
            products[k, j] = flat[: flat.size - shift] @ flat[shift:]
    contrast, correlation = np.empty((2, n, len(steps)))
    for j, (down, right) in enumerate(steps):
        total = sums.of(down, right, False) + sums.of(down, right, True)
        square = squares.of(down, right, False) + squares.of(down, right, True)
        within = products[:, j].astype(np.int64) - _across_the_edge(luma, down, right)
        pairs = (height - down) * (width - abs(right))
        moments = zip(total.tolist(), square.tolist(), within.tolist(), strict=True)
        contrast[:, j], correlation[:, j] = np.array([_pair_moments(pairs, *each) for each in moments]).reshape(-1, 2).T
    return Haralick(contrast=contrast.mean(axis=1), correlation=correlation.mean(axis=1))


def cooccurrence(luma: NDArray[np.uint8], labels: NDArray[Any] | None = None, *, distance: int = 1) -> Cooccurrence:
    """Return four properties (n,) of the symmetric co-occurrence matrix of grey levels (n, h, w), 256 levels.

    With nucleus ``labels`` (n, h, w) only pairs of pixels inside one nucleus count: the matrix of the chromatin,
    without the nuclear border. NaN where a direction has no pair, and for the correlation where it is of one grey
    level.
    """
    luma = _check(luma, distance)
    n = len(luma)
    out = np.full((4, n, len(ANGLES)), np.nan)
    nearness = 1.0 / (1.0 + np.arange(256.0) ** 2)
    for k in range(n):
        grey = luma[k].astype(np.int64)
        for j, angle in enumerate(ANGLES):
            down, right = _step(angle, distance)
            first, second = (v.ravel() for v in _pairs(grey, down, right))
            if labels is not None:
                one, other = _pairs(labels[k], down, right)
                same = ((one == other) & (one != 0)).ravel()
                first, second = first[same], second[same]
            if first.size == 0:
                continue
            total = int(first.sum() + second.sum())
            square = int(first @ first + second @ second)
            out[:2, k, j] = _pair_moments(first.size, total, square, int(first @ second))
            difference = np.bincount(np.abs(first - second), minlength=256)
            out[2, k, j] = difference @ nearness / first.size
            counts = np.bincount((np.minimum(first, second) << 8) + np.maximum(first, second))
            equal = counts[:: 256 + 1]  # codes of two equal levels; the matrix holds these whole, others in two halves
            out[3, k, j] = (0.5 * (counts @ counts) + 0.5 * (equal @ equal)) / first.size**2
    contrast, correlation, homogeneity, asm = out.mean(axis=2)
    return Cooccurrence(contrast=contrast, correlation=correlation, homogeneity=homogeneity, asm=asm)


def _check(luma: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    luma = np.asarray(luma)
    if luma.dtype != np.uint8 or luma.ndim != 3:
        raise InputError(f"luma: must be uint8 of shape (n, h, w), got {luma.dtype} of shape {luma.shape}.")
    if distance != int(distance) or distance < 1:
        raise InputError(f"distance: must be a whole number of at least 1, got {distance}.")
    height, width = luma.shape[1:]
    if min(height, width) <= distance:
        raise InputError(
            f"luma: must have more than {distance} rows and columns for pairs at distance {distance}, "
            f"got {height} x {width}."
        )
    return luma


def _step(angle: float, distance: int) -> tuple[int, int]:
    """Return how many rows down and how many columns to the right the second pixel of a pair lies."""
    return round(math.sin(angle) * distance), round(math.cos(angle) * distance)


def _pairs(image: NDArray[Any], down: int, right: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first and the second pixel of every pair, as two views of equal shape."""
    height, width = image.shape
    first = image[: height - down, max(0, -right) : width - max(0, right)]
    second = image[down:, max(0, right) : width - max(0, -right)]
    return first, second


class _Margins:
    """Sums over images (n, h, w), or over their squares, without some rows of one end and columns of another."""

    def __init__(self, images: NDArray[np.uint8], power: int) -> None:
        self._images, self._power = images, power
        self.all = np.zeros(len(images), dtype=np.int64)
        """(n,) over whole images; to be filled in"""

    def of(self, down: int, right: int, second: bool) -> NDArray[np.int64]:
        """Return the sums (n,) over the first or the second pixels of the pairs of a step."""
        cut = self.all
        rows = slice(0, down) if second else slice(self._images.shape[1] - down, None)
        side = right if second else -right  # > 0: columns at the left are in no pair
        columns = slice(0, side) if side > 0 else slice(self._images.shape[2] + side, None)
        if down:
            cut = cut - self._over(rows, slice(None))
        if right:
            cut = cut - self._over(slice(None), columns)
        if down and right:
            cut = cut + self._over(rows, columns)
        return cut

    def _over(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        part = self._images[:, rows, columns].astype(np.int64)
        out: NDArray[np.int64] = (part**self._power).sum(axis=(1, 2))
        return out


def _across_the_edge(images: NDArray[np.uint8], down: int, right: int) -> NDArray[np.int64] | int:
    """Return the products (n,) of pairs that the flat shift wraps into a wrong row."""
    if right > 0:  # the last columns wrap into the row below the right one
        one, other = images[:, : images.shape[1] - down - 1, -right:], images[:, down + 1 :, :right]
    elif right < 0:  # the first columns wrap into the row above the right one
        one, other = images[:, : images.shape[1] - down + 1, :-right], images[:, down - 1 :, right:]
    else:
        return 0
    out: NDArray[np.int64] = (one.astype(np.int64) * other).sum(axis=(1, 2))
    return out


def _pair_moments(pairs: int, total: int, squares: int, products: int) -> tuple[float, float]:
    """Return contrast and correlation; Python integers, as n²·σ² of a large image overflows 64 bits."""
    spread = 2 * pairs * squares - total * total  # (2n)² times the variance: exactly 0 when all pixels are equal
    contrast = (squares - 2 * products) / pairs
    return contrast, (4 * pairs * products - total * total) / spread if spread else math.nan
