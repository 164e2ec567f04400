"""Images to measure: their pixels, their size, and the JPEG quality of their files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.images import image_files
from conceptkit.images.tiff_pages import first_page, is_tiff
from conceptkit.pathology.nuisances import jpeg_quality

_JPEG_IN_TIFF = 7

_JPEG_HEAD = 4096
"""Bytes within which a JPEG has its quantization tables."""


def read_image(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Return an image as RGB, (h, w, 3), and its JPEG quality as :func:`read_quality` does.

    Raises :class:`InputError` as :func:`conceptkit.images.image_files.read_rgb`.
    """
    try:
        pixels = image_files.read_rgb(path)
    except InputError as error:
        raise InputError(f"image: {error}") from None
    return pixels, read_quality(path)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image in pixels, without reading its pixels.

    Raises :class:`InputError` when the file is missing or is not an image.
    """
    try:
        return image_files.image_shape(path)
    except InputError as error:
        raise InputError(f"image: {error}") from None


def check_upright(path: Path) -> None:
    """Raise :class:`InputError` when an image is stored turned: whether its mask is turned as well is unknown."""
    try:
        turned = image_files.is_turned(path)
    except InputError as error:
        raise InputError(f"image: {error}") from None
    if turned:
        raise InputError(
            f"image: the metadata of {path} turn it, and whether its mask is turned as well is unknown; save the image "
            "upright, without an orientation."
        )


def read_quality(path: Path) -> float:
    """Return the quality of a JPEG file, or of the JPEG in a TIFF, 1 to 100, from its head alone; NaN for others.

    Raises :class:`InputError` when the file is missing or is not an image.
    """
    try:
        with image_files.readable(path):
            return tiff_quality(path) if is_tiff(path) else _file_quality(path)
    except InputError as error:
        raise InputError(f"image: {error}") from None


def tiff_quality(path: Path) -> float:
    """Return the JPEG quality, 1 to 100, of the first page of a TIFF: the full resolution of most scanners' slides.

    NaN for other files, for pages in another compression, and where the quantization tables are not found.
    """
    compression, tables, tiles, strips = 259, 347, 324, 273  # tags of TIFF 6.0
    try:
        if not is_tiff(path):
            return math.nan
        with path.open("rb") as file:
            page = first_page(file)
            if page.one(compression, 1) != _JPEG_IN_TIFF:
                return math.nan
            shared = page.tags.get(tables, b"")
            found = _luminance_table(shared) if isinstance(shared, bytes) else None
            if found is None:  # then each tile or strip is a whole JPEG
                file.seek((page.all(tiles) or page.all(strips))[0])
                found = _luminance_table(file.read(_JPEG_HEAD))
            return jpeg_quality(found)
    except (OSError, ValueError, LookupError, OverflowError):
        return math.nan  # whoever reads the pixels says what is wrong with the file


def _luminance_table(head: bytes) -> list[int] | None:
    """Return the 64 numbers of the first quantization table in the segments that a JPEG begins with."""
    at = 2
    while head[:2] == b"\xff\xd8" and head[at : at + 1] == b"\xff":
        end = at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if head[at + 1] == 0xDB and head[at + 4 : at + 5] == b"\x00" and len(head) >= at + 69:  # 8 bits, number 0
            return list(head[at + 5 : at + 69])
        at = end
    return None


def _file_quality(path: Path) -> float:
    with image_files.pillow_image(path) as image:
        tables = getattr(image, "quantization", None) if image.format in ("JPEG", "MPO") else None
        return jpeg_quality(tables[0]) if tables and 0 in tables else math.nan
