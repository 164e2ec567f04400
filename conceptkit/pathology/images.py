"""Images to measure: their pixels, their size, and the JPEG quality of their files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _named() -> Iterator[None]:
    """Begin what is wrong with an image file with ``image:``."""
    try:
        yield
    except InputError as error:
        raise InputError(f"image: {error}") from None


@_named()
def read_image(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Return an image as RGB, (h, w, 3), and its JPEG quality as :func:`read_quality` does.

    Raises :class:`InputError` as :func:`conceptkit.images.image_files.read_rgb`.
    """
    return image_files.read_rgb(path), _quality(path)


@_named()
def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image in pixels, without reading its pixels."""
    return image_files.image_shape(path)


@_named()
def check_upright(path: Path) -> None:
    """Raise :class:`InputError` when an image is stored turned: whether its mask is turned as well is unknown."""
    if image_files.is_turned(path):
        raise InputError(
            f"the metadata of {path} turn it, and whether its mask is turned as well is unknown; save the image "
            "upright, without an orientation."
        )


@_named()
def read_quality(path: Path) -> float:
    """Return the quality of a JPEG file, or of the JPEG in a TIFF, 1 to 100, from its header; NaN for others."""
    return _quality(path)


def _quality(path: Path) -> float:
    with image_files.readable(path):
        if is_tiff(path):
            return tiff_quality(path)
        with image_files.pillow_image(path) as image:
            tables = getattr(image, "quantization", None) if image.format in ("JPEG", "MPO") else None
            return jpeg_quality(tables[0]) if tables and 0 in tables else math.nan


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
        return math.nan  # reading the pixels raises the error, with what is wrong with the file


def _luminance_table(head: bytes) -> list[int] | None:
    """Return the 64 numbers of the first quantization table in the segments that a JPEG begins with."""
    at = 2
    while head[:2] == b"\xff\xd8" and head[at : at + 1] == b"\xff":
        end = at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if head[at + 1] == 0xDB and head[at + 4 : at + 5] == b"\x00" and len(head) >= at + 69:  # 8 bits, number 0
            return list(head[at + 5 : at + 69])
        at = end
    return None
