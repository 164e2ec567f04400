"""Colour of stained tissue by table: optical density, hematoxylin, CIELAB, and which pixels are tissue."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError

Floats = NDArray[np.float32]

STEPS = 1 << 16
"""Entries of the table from light to grey level, fine enough for the steepest part near black."""

_WHITE = (0.95047, 1.0, 1.08883)
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)

_ABSORBED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

RUIFROK: NDArray[np.float64] = _ABSORBED / np.linalg.norm(_ABSORBED, axis=1, keepdims=True)
"""(3, 3) what hematoxylin, eosin and DAB (rows) absorb of red, green and blue (Ruifrok and Johnston 2001)."""

HEMATOXYLIN: Floats = np.linalg.inv(RUIFROK)[:, 0].astype(np.float32)
"""(3,) what the optical density of red, green and blue each adds to the amount of hematoxylin."""

LAB_OF_ROOTS = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=np.float64)
"""CIELAB is linear in the three roots of :func:`roots`: Lab = this @ roots - (16, 0, 0)."""


def check_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``images`` as an array; raise :class:`InputError` unless it is uint8 of shape (n, h, w, 3)."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise InputError(f"images: must be uint8 of shape (n, h, w, 3), got {images.dtype} of shape {images.shape}.")
    return images


def optical_density(images: NDArray[np.uint8]) -> Floats:
    """Return -log10 of each channel's share of light, 0 for white, (…, 3); black counts as level 1."""
    return _density().take(images)


def hematoxylin(images: NDArray[np.uint8]) -> Floats:
    """Return the amount of hematoxylin by colour deconvolution with Ruifrok's vectors, (…), in optical density."""
    amount = _hematoxylin()
    out: Floats = amount[0].take(images[..., 0])
    out += amount[1].take(images[..., 1])
    out += amount[2].take(images[..., 2])
    return out


def roots(image: NDArray[np.uint8]) -> Floats:
    """Return the f(X), f(Y), f(Z) of CIELAB (D65) of sRGB pixels (…, 3) as planes, (3, pixels)."""
    linear = _linear().take(image.reshape(-1, 3).T)  # (3, pixels): planes, as a matrix times planes runs faster
    f: Floats = (_XYZ / np.array(_WHITE)[:, None]).astype(np.float32) @ linear
    dark = f < np.float32(0.008856)
    if dark.any():
        low = np.float32(7.787) * f[dark] + np.float32(16 / 116)
        np.cbrt(f, out=f)
        f[dark] = low
    else:
        np.cbrt(f, out=f)
    return f


def from_roots(f: Floats) -> NDArray[np.uint8]:
    """Return the sRGB planes (3, pixels) of f(X), f(Y), f(Z); what no screen can show is cut to what it can."""
    cubes = f * f
    cubes *= f
    dark = f < np.float32(6 / 29)
    if dark.any():
        cubes[dark] = (f[dark] - np.float32(16 / 116)) / np.float32(7.787)
    index = ((STEPS - 1) * np.linalg.inv(_XYZ) * np.array(_WHITE)).astype(np.float32) @ cubes
    index += np.float32(0.5)
    np.clip(index, 0, STEPS - 1, out=index)
    pixels: NDArray[np.uint8] = _encoded().take(index.astype(np.intp), mode="clip")
    return pixels


def lab(images: NDArray[np.uint8]) -> Floats:
    """Return CIELAB (D65, 2°) of sRGB pixels, (…, 3): L* 0 to 100, a* and b* around 0."""
    out = LAB_OF_ROOTS.astype(np.float32) @ roots(images)
    out[0] -= 16
    return np.ascontiguousarray(out.T).reshape(images.shape)


def tissue_weight(images: NDArray[np.uint8]) -> Floats:
    """Return how far each pixel is tissue, (…): 0 for glass and for black, 1 for stained tissue, a ramp between.

    Glass absorbs less than 0.05 (mean optical density of the channels), tissue more than 0.12. Pixels that absorb
    nearly all light in all channels are ink, folds or the edge of the scan, and do not count as tissue.
    """
    table = _density() / np.float32(3)
    mean = table.take(images[..., 0])
    mean += table.take(images[..., 1])
    mean += table.take(images[..., 2])
    weight: Floats = np.clip((mean - np.float32(0.05)) * np.float32(1 / 0.07), 0, 1)
    weight *= mean <= np.float32(1.4)
    return weight


@functools.cache
def _density() -> Floats:
    return (-np.log10(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)


@functools.cache
def _hematoxylin() -> Floats:
    return HEMATOXYLIN[:, None] * _density()  # (3, 256)


@functools.cache
def _linear() -> Floats:
    v = np.arange(256) / 255
    return np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92).astype(np.float32)


@functools.cache
def _encoded() -> NDArray[np.uint8]:
    t = np.arange(STEPS) / (STEPS - 1)
    v = np.where(t > 0.0031308, 1.055 * t ** (1 / 2.4) - 0.055, 12.92 * t)
    return np.round(v * 255).astype(np.uint8)
