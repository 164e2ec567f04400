"""Traces of the acquisition in a patch: ink, blur, the blocks of JPEG; and the quality of a JPEG file."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

_ANNEX_K = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
"""The luminance table of the JPEG standard, which the quality of common encoders scales."""


def ink_share(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share of pixels that look like marker ink, (n,).

    Ink is black (all channels below 50 and alike), or green or blue in a way that no hematoxylin or eosin is: red is
    the weakest channel by far and the strongest one stands out.
    """
    out = np.empty(len(images))
    for k, image in enumerate(images):
        red, green, blue = (image[..., c].astype(np.int16) for c in range(3))
        high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        black = (high < 50) & (high - low < 20)
        green_ink = (green - red > 25) & (green - blue > 5)
        blue_ink = (blue - red > 60) & (green - red > 15)
        out[k] = (black | green_ink | blue_ink).mean()
    return out


def blur(luma: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how little a patch loses when it is blurred once more, (n,): 0 crisp, towards 1 blurred; NaN when flat.

    Crété et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric", 2007,
    with their mean of 9 pixels, along rows and along columns; the larger of the two.
    """
    out = np.empty((2, len(luma)))
    for j, axis in enumerate((1, 2)):
        for k in range(len(luma)):
            grey = luma[k].astype(np.float32)
            again = uniform_filter1d(grey, 9, axis=axis - 1, mode="nearest")
            sharp = np.abs(np.diff(grey, axis=axis - 1))
            lost = np.maximum(0, sharp - np.abs(np.diff(again, axis=axis - 1)))
            total = float(sharp.sum(dtype=np.float64))
            out[j, k] = (total - float(lost.sum(dtype=np.float64))) / total if total else np.nan
    worst: NDArray[np.float64] = out.max(axis=0)
    return worst


def blockiness(luma: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how much stronger grey steps are on the grid of 8 pixels than off it, (n,): 1 without blocks.

    A patch may be cut anywhere, so the grid is taken at the offset with the strongest steps, separately for rows and
    columns; without blocks the value is therefore slightly above 1. NaN when flat.
    """
    out = np.full((2, len(luma)), np.nan)
    for k, image in enumerate(luma):
        grey = image.astype(np.float32)
        for axis in (0, 1):
            steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)  # (h - 1,) or (w - 1,)
            whole = steps[: len(steps) // 8 * 8].reshape(-1, 8)
            if whole.size and whole.mean() > 0:
                at = whole.mean(axis=0)
                best = int(at.argmax())
                rest = np.delete(at, best).mean()
                out[axis, k] = at[best] / rest if rest > 0 else np.inf
    result: NDArray[np.float64] = out.mean(axis=0)
    return np.where(np.isinf(result), np.nan, result)


def jpeg_quality(table: object) -> float:
    """Return the quality, 1 to 100, of a JPEG's luminance quantization table of 64 numbers, NaN for anything else.

    This inverts how libjpeg scales the standard table; other tables get the nearest quality.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.shape != (64,):
        return float("nan")
    return float(1 + np.abs(_sums() - values.sum()).argmin())  # sums, as the order of the 64 differs between readers


@functools.cache
def _sums() -> NDArray[np.float64]:
    """Return the sum of libjpeg's table at the qualities 1 to 100."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((np.array(_ANNEX_K)[:, None] * scale + 50) // 100, 1, 255)
    return np.asarray(tables.sum(axis=0), dtype=np.float64)
