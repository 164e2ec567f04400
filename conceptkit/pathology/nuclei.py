"""Nuclei found by a named method: an image becomes a label image, which is kept as a 16-bit PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.families import NUCLEI
from conceptkit.files.atomic import replacing
from conceptkit.pathology.colour import check_images

Labels = NDArray[np.int32]
COARSEST = 2.0
"""Largest microns per pixel at which nuclei are looked for: a lymphocyte has 3 pixels across."""

Segmenter = Callable[[NDArray[np.uint8], float | None], Labels]
"""From an image (h, w, 3) and its microns per pixel to labels (h, w), 0 where there is no nucleus."""


@dataclass(frozen=True)
class Found:
    """The nuclei of one image."""

    labels: NDArray[Any]
    """(h, w), 0 where there is none"""
    confidence: Mapping[int, float] = field(default_factory=dict)
    """Label → how sure the method is, 0 to 1; empty where a method does not say"""
    types: Mapping[int, str] = field(default_factory=dict)
    """Label → type; empty where types are unknown"""


def open_method(name: str, *, weights: Path | None = None, device: str = "auto") -> Segmenter:
    """Return the method ``name``, ready to be called on images.

    Raises :class:`InputError` when weights are missing, superfluous or unreadable.
    """
    segmenter: Segmenter = NUCLEI.choose("nuclei", name)(weights, device)
    return segmenter


def find_in(image: NDArray[np.uint8], method: Segmenter, mpp: float | None = None) -> Labels:
    """Return the nuclei of one image (h, w, 3) as labels 1 … n, (h, w).

    Raises :class:`InputError` when pixels are too large to show nuclei, or the image would need too much memory at the
    method's resolution.
    """
    return find_plain(image, method, mpp).labels


def find_plain(image: NDArray[np.uint8], method: Segmenter, mpp: float | None = None) -> Found:
    """Return the nuclei of one image as :func:`find_in`, without confidence and types, which take time."""
    check_images(image[None])
    check_resolution(mpp)
    return Found(method(image, None if mpp is None or not np.isfinite(mpp) else mpp))


def find_detailed(image: NDArray[np.uint8], method: Segmenter, mpp: float | None = None) -> Found:
    """Return the nuclei of one image as :func:`find_in`, with confidence and types where the method has them.

    A method has them in ``detailed``, which takes what the method itself takes and returns :class:`Found`.
    """
    detailed = getattr(method, "detailed", None)
    if detailed is None:
        return find_plain(image, method, mpp)
    check_images(image[None])
    check_resolution(mpp)
    found: Found = detailed(image, None if mpp is None or not np.isfinite(mpp) else mpp)
    return found


def check_resolution(mpp: float | None) -> None:
    """Raise :class:`InputError` when pixels are too large to show nuclei."""
    if mpp is not None and mpp > COARSEST:
        raise InputError(
            f"nuclei: the image has {mpp:.4g} microns per pixel, and nuclei can be found up to {COARSEST:g}; use a "
            "higher magnification."
        )


def write_labels(labels: NDArray[np.integer], path: Path) -> None:
    """Write a label image as 16-bit PNG, in one step.

    Raises :class:`InputError` when there are more than 65,535 labels.
    """
    top = int(labels.max()) if labels.size else 0
    if top > 0xFFFF:
        raise InputError(f"masks-out: a 16-bit image holds 65535 labels, {path.name} needs {top}; cut the image first.")
    with replacing(path) as temporary:
        Image.fromarray(labels.astype(np.uint16)).save(temporary, "PNG", compress_level=3)


def mask_name(image_id: str) -> str:
    """Return the file name of an image's mask.

    Raises :class:`InputError` when the id is not a plain file name: a table must not choose where files are written.
    """
    plain = (
        image_id and not image_id.startswith(".") and not set(image_id) & set('/\\:*?"<>|\0') and len(image_id) < 200
    )
    if not plain or not image_id.isprintable():
        raise InputError(f"image_id: must be a plain file name to name a mask, got {image_id!r}.")
    return f"{image_id}.png"
