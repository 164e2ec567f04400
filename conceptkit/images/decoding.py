"""The pixels of one patch: decoded from an image file, read from an HDF5 file, or from a slide."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.images.image_files import read_rgb
from conceptkit.images.pyramid import Pyramid

Pixels = NDArray[np.uint8]

LOCATIONS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "slide": ("slide", "x", "y", "size"),
    "h5": ("h5", "key", "row"),
}
"""How a row may say where its pixels are: leading column → columns that must be there."""

PLACE_COLUMNS = ("key", "row", "x", "y", "size", "side")
"""What, besides the leading column, says where pixels are"""

_MOST_PIXELS = 20_000**2
"""Largest number of pixels of one patch; a file that states more is damaged or malicious."""


def read_pixels(folder: Path, location: str, cells: Mapping[str, Any], name: str) -> Pixels:
    """Return the pixels of one row of a table, (height, width, 3) uint8, RGB.

    Raises :class:`InputError` when the file is missing, cannot be read, or the window lies outside.

    Parameters
    ----------
    folder : base of relative paths
    location : leading column, of :data:`LOCATIONS`
    cells : column → value of the row
    name : of the patch, for messages
    """
    value = cells[location]
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: column {location} is empty.")
    path = folder / value
    if not os.path.isfile(path):  # pathlib's own raises for a name that no file can have
        raise InputError(f"{name}: file {path} not found.")
    if location == "h5":
        return _from_h5(path, str(cells["key"]), _row(cells["row"], name), name)
    window = _window(cells, name)
    if location == "slide":
        if window is None:
            raise InputError(f"{name}: a patch of a slide needs x, y and size.")
        return _from_slide(path, window, name, _side(cells, window[2], name))
    whole = _image(path, name)
    if window is None:
        return whole
    x, y, size = window
    if x < 0 or y < 0 or x + size > whole.shape[1] or y + size > whole.shape[0]:
        raise InputError(
            f"{name}: the window x={x}, y={y}, size={size} lies outside the image of "
            f"{whole.shape[1]}×{whole.shape[0]} pixels."
        )
    return np.ascontiguousarray(whole[y : y + size, x : x + size])


def content_digest(folder: Path, location: str, cells: Mapping[str, Any], made: Sequence[str] = ()) -> str:
    """Return a digest of a row's encoded bytes: of the image file and the window, or of the row of an HDF5 file.

    A slide is not read as a whole: its name, size and time of change stand for it. Empty when there is no file.
    ``made`` are further columns that the pixels depend on.
    """
    path = folder / str(cells[location])
    place = [str(cells[c]) for c in (*PLACE_COLUMNS, *made) if c in cells]
    try:
        stat = path.stat()
        if location == "h5":
            content = hexdigest(_from_h5(path, str(cells["key"]), _row(cells["row"], ""), "").tobytes())
            if made:  # without them the digest is that of older stores
                content += f"|{[str(cells[c]) for c in made]}"
        elif location == "slide":
            content = f"{path.name}|{stat.st_size}|{stat.st_mtime_ns}|{place}"
        else:
            content = f"{_file_digest(path, stat.st_mtime_ns, stat.st_size)}|{place}"
    except (OSError, InputError):
        return ""
    return hexdigest(content.encode())


def hexdigest(content: bytes) -> str:
    """Return the first half of SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError's text is its repr
    lines = str(text).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@functools.lru_cache(maxsize=4)
def _decoded(path: Path, stamp: int) -> Pixels:
    """Decode an image file; the few last ones are kept, as neighbouring rows are windows of one image."""
    return read_rgb(path)


@functools.lru_cache(maxsize=4)
def _file_digest(path: Path, stamp: int, size: int) -> str:
    """Return a digest of a file's bytes; kept as the decoded image is."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def forget_files() -> None:
    """Clear the caches of open files and metadata."""
    for kept in (_decoded, _file_digest, _h5_file, _slide_file):
        kept.cache_clear()


def _window(cells: Mapping[str, Any], name: str) -> tuple[int, int, int] | None:
    """Return x, y, size of a row; ``None`` stands for the whole image."""
    values = [cells.get(c) for c in ("x", "y", "size")]
    if all(pd.isna(v) for v in values):
        return None
    try:
        x, y, size = (_whole(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        got = ", ".join(str(v) for v in values)
        raise InputError(f"{name}: a window needs whole numbers in x, y and size, got {got}.") from None
    if size < 1:
        raise InputError(f"{name}: size must be at least 1 pixel, got {size}.")
    return x, y, size


def _row(value: Any, name: str) -> int:
    return _at_least(0, value, f"{name}: row must be a whole number from 0 on")  # below, h5py counts from the end


def _at_least(least: int, value: Any, rule: str) -> int:
    try:
        whole = _whole(value)
    except (TypeError, ValueError, OverflowError):
        whole = least - 1
    if whole < least:
        raise InputError(f"{rule}, got {value}.")
    return whole


def _whole(value: Any) -> int:
    whole = int(value)
    if whole != float(value):
        raise ValueError(value)
    return whole


def _image(path: Path, name: str) -> Pixels:
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except (InputError, OSError) as error:
        raise InputError(f"{name}: {one_line(error)}") from None


@functools.lru_cache(maxsize=2)
def _h5_file(path: Path, stamp: int) -> Any:
    return h5py.File(path, "r")


def _from_h5(path: Path, key: str, row: int, name: str) -> Pixels:
    try:
        data = _h5_file(path, path.stat().st_mtime_ns)[key]
        shape, kind = data.shape[1:], data.dtype  # before it is read: a few bytes may stand for any number of pixels
        if len(shape) != 3 or shape[2] != 3 or kind != np.uint8 or not 0 < shape[0] * shape[1] <= _MOST_PIXELS:
            raise InputError(
                f"{name}: needs height × width × 3 bytes, {key!r} in {path} holds {kind} of shape {shape}."
            )
        pixels: Pixels = np.asarray(data[row])
    except (OSError, KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: row {row} of {key!r} in {path} cannot be read ({one_line(error)}).") from None
    return pixels


@functools.lru_cache(maxsize=2)
def _slide_file(path: Path, stamp: int) -> Pyramid:
    import openslide

    return Pyramid(openslide.OpenSlide(path))


def _from_slide(path: Path, window: tuple[int, int, int], name: str, side: int) -> Pixels:
    import openslide

    x, y, size = window
    if max(size, side) ** 2 > _MOST_PIXELS:
        raise InputError(f"{name}: size and side must be at most {math.isqrt(_MOST_PIXELS)}, got {size} and {side}.")
    try:
        return _slide_file(path, path.stat().st_mtime_ns).read(x, y, size, size, out=(side, side))
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(f"{name}: {path} cannot be read as a slide ({one_line(error)}).") from None


def _side(cells: Mapping[str, Any], size: int, name: str) -> int:
    """Return the side in pixels that a slide's window has when it is read; its own without a column ``side``."""
    value = cells.get("side")
    if pd.isna(value):
        return size
    return _at_least(1, value, f"{name}: side must be a whole number of at least 1 pixel")
