"""What the embedded studies share: a drawn patch, the look of a center, and smooth random fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from conceptkit.images.decoding import Pixels
from conceptkit.pathology.texture import haralick, luma

SIZE = 96
"""Width and height of a patch, in pixels."""

MPP = 0.5
"""Micrometres per pixel."""


@dataclass(frozen=True)
class Center:
    """How one center's slides look."""

    hematoxylin: tuple[float, float, float]
    """Optical density per unit of stain in red, green, blue"""
    eosin: tuple[float, float, float]
    amount_hematoxylin: float
    amount_eosin: float
    background: tuple[float, float, float]
    """Light through empty glass, 0 to 255"""
    blur: float
    """Standard deviation of the optics' blur, in pixels"""
    tilt: float
    """Where the tumor share lies between one half (0) and its extremes (−1, 1) in train and val"""


def visible_nuclei(labels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the visible pixels of each nucleus of a label image, without the hidden ones."""
    sizes = np.bincount(labels.ravel())[1:]
    visible: NDArray[np.intp] = sizes[sizes > 0]
    return visible


@dataclass(frozen=True)
class Patch:
    """A drawn patch with what is known of it."""

    pixels: Pixels
    """(96, 96, 3) uint8, RGB"""
    nuclei: NDArray[np.uint8]
    """(96, 96) label image; 0 is background"""

    def concepts(self) -> dict[str, float]:
        """Return the exact values: ``count`` and ``area`` (µm²) of what is visible, ``contrast``, ``correlation``."""
        visible = visible_nuclei(self.nuclei)
        texture = haralick(luma(self.pixels[None]))
        return {
            "count": float(len(visible)),
            "area": float(visible.mean() * MPP**2) if len(visible) else float("nan"),
            "contrast": float(texture.contrast[0]),
            "correlation": float(texture.correlation[0]),
        }


def filtered_noise(rng: np.random.Generator, sigma: tuple[float, float]) -> NDArray[np.float64]:
    """Return a smooth random field (96, 96) of mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    out: NDArray[np.float64] = (field - field.mean()) / field.std()
    return out
