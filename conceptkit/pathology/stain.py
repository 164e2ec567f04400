"""Stain normalisation: Reinhard's and Macenko's methods, fitted on a reference and applied to a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology.colour import (
    LAB_OF_ROOTS,
    Floats,
    check_images,
    from_roots,
    optical_density,
    roots,
    tissue_weight,
)

T = TypeVar("T")

LEAST_TISSUE = 0.01
"""Share of tissue below which a patch says nothing of its stain and is returned as it is."""

MOST_GAIN = 4.0
"""Largest factor on a channel's spread: more would show a nearly even patch's noise as tissue."""

_BETA = 0.15
_PERCENT = (1.0, 99.0)


@dataclass(frozen=True)
class LabStatistics:
    """Mean and standard deviation of L*, a* and b* over tissue."""

    mean: NDArray[np.float64]
    """(3,)"""
    sd: NDArray[np.float64]
    """(3,)"""


@dataclass(frozen=True)
class StainStatistics:
    """The two stains of a slide or patch, and how much of each there is."""

    vectors: NDArray[np.float64]
    """(2, 3) optical density of red, green and blue, of length 1: hematoxylin, eosin."""
    most: NDArray[np.float64]
    """(2,) 99th percentile of their amounts over tissue."""


def lab_statistics(images: NDArray[np.uint8]) -> LabStatistics | None:
    """Return mean and standard deviation of CIELAB over the tissue of all of (n, h, w, 3) images.

    ``None`` where there is hardly any tissue, or it is of one colour: white, black and flat images have no stain.
    """
    images = check_images(images)
    return _lab_statistics(roots(images), tissue_weight(images).ravel())


def stain_statistics(images: NDArray[np.uint8]) -> StainStatistics | None:
    """Return the stain vectors of all of (n, h, w, 3) images by Macenko's method; ``None`` as :func:`lab_statistics`.

    The plane of the two largest eigenvectors of the tissue's optical densities (each channel's mean above 0.15) holds
    both stains; they are its 1st and 99th percentile of the angle (Macenko et al., "A method for normalizing histology
    slides for quantitative analysis", 2009).
    """
    images = check_images(images)
    density = optical_density(images.reshape(-1, 3).T)
    return _stain_statistics(density, tissue_weight(images).ravel())


@dataclass(frozen=True)
class Reinhard:
    """Give tissue the mean and spread of a reference's colours, in CIELAB.

    Reinhard et al., "Color transfer between images", 2001. Only tissue is counted and only tissue is changed; where it
    meets glass the change fades out.
    """

    target: LabStatistics

    @classmethod
    def fit(cls, reference: NDArray[np.uint8]) -> Self:
        """Take the target from one (h, w, 3) or several (n, h, w, 3) reference images.

        Raises
        ------
        InputError
            when the reference is no RGB image or shows no tissue
        """
        return cls(_required(lab_statistics(_batch(reference))))

    @staticmethod
    def measure(images: NDArray[np.uint8]) -> LabStatistics | None:
        """Return what ``transform`` takes as ``source``, of a whole slide's patches."""
        return lab_statistics(images)

    def transform(self, images: NDArray[np.uint8], *, source: LabStatistics | None = None) -> NDArray[np.uint8]:
        """Normalise patches.

        Parameters
        ----------
        images : (n, h, w, 3) RGB
        source : statistics of the whole slide, so that a patch of fat is not stretched to look like tumor; by default
            those of each patch

        Returns
        -------
        (n, h, w, 3) RGB; patches without tissue, or of one colour, and glass are as they were
        """
        images = check_images(images)
        out = images.copy()
        for image, changed in zip(images, out, strict=True):
            f = roots(image)  # (3, pixels)
            weight = tissue_weight(image).ravel()
            own = source or _lab_statistics(f, weight)
            if own is None:
                continue
            gain = np.minimum(self.target.sd / np.maximum(own.sd, 1e-6), MOST_GAIN)
            # Lab is linear in the roots, so that the change of Lab is one matrix on the roots and Lab is never built.
            back = np.linalg.inv(LAB_OF_ROOTS)
            black = np.array([16, 0, 0])
            shift = back @ (self.target.mean + black - gain * (own.mean + black))
            moved = (back @ np.diag(gain) @ LAB_OF_ROOTS).astype(np.float32) @ f
            moved += shift[:, None].astype(np.float32)
            _blend(changed, from_roots(moved), weight)
        return out


@dataclass(frozen=True)
class Macenko:
    """Give the two stains of tissue the colours and the strength that they have in a reference."""

    target: StainStatistics

    @classmethod
    def fit(cls, reference: NDArray[np.uint8]) -> Self:
        """Take the target from one (h, w, 3) or several (n, h, w, 3) reference images.

        Raises
        ------
        InputError
            when the reference is no RGB image or shows no tissue
        """
        return cls(_required(stain_statistics(_batch(reference))))

    @staticmethod
    def measure(images: NDArray[np.uint8]) -> StainStatistics | None:
        """Return what ``transform`` takes as ``source``, of a whole slide's patches."""
        return stain_statistics(images)

    def transform(self, images: NDArray[np.uint8], *, source: StainStatistics | None = None) -> NDArray[np.uint8]:
        """Normalise patches; parameters and result as :meth:`Reinhard.transform`."""
        images = check_images(images)
        out = images.copy()
        for image, changed in zip(images, out, strict=True):
            density = optical_density(image.reshape(-1, 3).T)  # (3, pixels)
            weight = tissue_weight(image).ravel()
            own = source or _stain_statistics(density, weight)
            if own is None:
                continue
            gain = np.minimum(self.target.most / np.maximum(own.most, 1e-6), MOST_GAIN)
            matrix = self.target.vectors.T @ np.diag(gain) @ np.linalg.pinv(own.vectors).T  # (3, 3)
            moved = matrix.astype(np.float32) @ density
            light = np.exp(np.maximum(moved, 0) * np.float32(-np.log(10)))
            _blend(changed, np.rint(light * np.float32(255)).astype(np.uint8), weight)
        return out


class StainMethod(Protocol):
    """A stain normalisation: fitted on a reference, applied to patches."""

    @classmethod
    def fit(cls, reference: NDArray[np.uint8]) -> Self:
        """Return the method with the stain of one (h, w, 3) or several (n, h, w, 3) reference images as target."""

    @staticmethod
    def measure(images: NDArray[np.uint8]) -> Any:
        """Return the stain of a slide from patches (n, h, w, 3); ``None`` where they show no tissue."""

    def transform(self, images: NDArray[np.uint8], *, source: Any = None) -> NDArray[np.uint8]:
        """Return patches (n, h, w, 3) in the target's stain, from the slide's stain or each patch's own."""


def _blend(out: NDArray[np.uint8], moved: NDArray[np.uint8], weight: Floats) -> None:
    """Write the planes ``moved`` (3, pixels) into ``out`` (h, w, 3) as far as a pixel is tissue."""
    planes = np.ascontiguousarray(out.reshape(-1, 3).T).astype(np.float32)
    change = (moved - planes) * weight
    change += planes
    change += np.float32(0.5)
    out.reshape(-1, 3).T[...] = change.astype(np.uint8)


def _lab_statistics(f: Floats, weight: Floats) -> LabStatistics | None:
    """Return the statistics over the tissue of planes (3, pixels)."""
    tissue = (weight == 1).astype(np.float32)
    pixels = int(tissue.sum())
    if pixels < LEAST_TISSUE * tissue.size:
        return None
    middle = (f @ tissue) / np.float32(pixels)  # centred first, as squares in 32 bits would lose a small spread
    centred = f - middle[:, None]
    masked = centred * tissue
    rest = (masked @ np.ones(tissue.size, dtype=np.float32)).astype(np.float64) / pixels
    covariance = (masked @ centred.T).astype(np.float64) / pixels - np.outer(rest, rest)
    spread = np.einsum("ij,jk,ik->i", LAB_OF_ROOTS, covariance, LAB_OF_ROOTS)
    sd = np.sqrt(np.maximum(spread, 0))
    if sd[0] < 0.5:  # of one colour up to a grey level: there is no stain to read
        return None
    return LabStatistics(LAB_OF_ROOTS @ (middle + rest) - (16, 0, 0), sd)


def _stain_statistics(density: Floats, weight: Floats) -> StainStatistics | None:
    """Return the statistics over the tissue of planes (3, pixels)."""
    tissue = density[:, (weight == 1) & (density.mean(axis=0) > _BETA)]
    if tissue.shape[1] < max(LEAST_TISSUE * density.shape[1], 16):
        return None
    _, axes = np.linalg.eigh(np.cov(tissue).astype(np.float64))
    plane = axes[:, [2, 1]]  # of the largest spread first
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    on_plane = plane.T.astype(np.float32) @ tissue
    low, high = np.percentile(np.arctan2(on_plane[1], on_plane[0]), _PERCENT)
    if high - low < 1e-3:  # one colour only: two stains cannot be told apart
        return None
    ends = np.array([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    ends = np.maximum(ends[np.argsort(-ends[:, 0])], 0)  # hematoxylin absorbs more red than eosin does
    vectors = ends / np.linalg.norm(ends, axis=1, keepdims=True)
    amounts = np.linalg.pinv(vectors).T.astype(np.float32) @ tissue
    most = np.percentile(amounts, _PERCENT[1], axis=1).astype(np.float64)
    return StainStatistics(vectors, most) if (most > 1e-3).all() else None


def _batch(reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
    reference = np.asarray(reference)
    return reference[None] if reference.ndim == 3 else reference


def _required(statistics: T | None) -> T:
    if statistics is None:
        raise InputError("reference: must show stained tissue, this one is blank or of one colour.")
    return statistics
