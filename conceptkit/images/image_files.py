"""Image files read as 8-bit RGB, in the same way for every command; files that cannot be read reliably are refused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from conceptkit.errors import InputError
from conceptkit.images.pixel_values import Pixels, in_bytes, on_white, upright
from conceptkit.images.tiff_images import tiff_rgb
from conceptkit.images.tiff_pages import BITS, COMPRESSION, ORIENTATION, WEBP, first_page, is_tiff

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of image files that are looked for in folders."""

_QUIET = threading.Lock()
"""Warnings are switched off for the whole process, so only one thread at a time may do it."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading an image into one sentence that starts with its path."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} cannot be read as an image (it is not an image, or is cut off).") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} cannot be read as an image (it is too large; cut it into smaller ones).") from None
    except Exception as error:  # damaged files raise errors of any kind in the readers of their formats
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} cannot be read as an image ({reason[0]}).") from None


@contextmanager
def pillow_image(path: Path) -> Iterator[Image.Image]:
    """Open an image with Pillow, without warnings of odd metadata or of a size that is normal in pathology."""
    with _quiet():
        image = Image.open(path)
    with image:
        yield image


def read_rgb(path: Path) -> Pixels:
    """Read an image as RGB (h, w, 3), 8 bits per channel, upright, transparent parts on white.

    More than 8 bits are scaled by the range that the file states: that of its type, or of fewer bits where the file
    says so; 0 to 1 for floats. Of a pyramid the first page is read, which must be the largest. Three pages of one
    colour each are one image where OME-XML says so.

    Raises :class:`InputError` when the file is missing or damaged, holds several images, or does not say which colours
    its values stand for.
    """
    with readable(path):
        bits = 16
        if is_tiff(path):
            with path.open("rb") as file:
                if (pixels := tiff_rgb(path, file)) is not None:
                    return pixels
                bits = _check_pillow_reads(path)
        with pillow_image(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in ("MPO", "TIFF"):  # MPO: the first is the photograph
                raise InputError(f"{path} holds {frames} frames; save the one to use as its own file.")
            pixels = _in_rgb(image, path, bits)
            # Of TIFF files Pillow itself turns what it reads.
            return pixels if image.format == "TIFF" else upright(pixels, orientation_of(image))


def image_shape(path: Path) -> tuple[int, int]:
    """Return height and width of an upright image in pixels, without reading its pixels."""
    (height, width), orientation = _stored(path)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def is_turned(path: Path) -> bool:
    """Return whether the metadata of an image say that its pixels are stored turned or mirrored."""
    return _stored(path)[1] in range(2, 9)


def _stored(path: Path) -> tuple[tuple[int, int], int]:
    """Return height and width as stored, and the orientation."""
    with readable(path):
        if is_tiff(path):
            with path.open("rb") as file:
                page = first_page(file)
            return page.size, page.one(ORIENTATION, 1)
        with pillow_image(path) as image:
            return (image.height, image.width), orientation_of(image)


def _check_pillow_reads(path: Path) -> int:
    """Return the bits per sample of a TIFF that Pillow can read."""
    with path.open("rb") as file:
        page = first_page(file)
    bits, compression = page.one(BITS, 1), page.one(COMPRESSION, 1)
    try:
        with pillow_image(path) as image:
            if compression == WEBP:
                _check_webp(image, path)
            return int(bits)
    except UnidentifiedImageError:
        raise InputError(
            f"{path} has {page.samples_per_pixel} samples of {bits} bits in compression {compression}, which cannot be "
            "read; save it as 8-bit RGB."
        ) from None


def _check_webp(image: Image.Image, path: Path) -> None:
    """Say what is wrong when the TIFF reader was built without WebP."""
    try:
        image.load()
    except OSError:
        raise InputError(
            f"{path} is compressed as WebP, which cannot be read here; save it as PNG or with another compression."
        ) from None


def _in_rgb(image: Image.Image, path: Path, bits: int) -> Pixels:
    """Return the colours of an image that Pillow opened, on white; 16-bit grey has ``bits`` bits in its file."""
    mode = image.mode
    if mode in ("CMYK", "LAB", "HSV"):
        raise InputError(f"{path} holds {mode}, which cannot be turned into RGB without a guess; save it as RGB.")
    deep = is_deep(image)
    if (
        mode == "F"
        or (mode == "I" and image.format != "PPM")
        or ("transparency" in image.info and (deep or mode == "I;16"))
    ):
        raise InputError(f"{path} has more than 8 bits per channel (mode {mode}); save it as 8-bit RGB.")
    load(image)
    if mode.startswith("I"):
        grey = in_bytes(np.asarray(image).astype(np.uint16), path, None if bits == 16 else 2.0**bits - 1)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode == "La":  # which Pillow turns into RGBA by way of LA only
        image = image.convert("LA")
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    found = np.asarray(image if image.mode == wanted else image.convert(wanted))
    colours = found[..., :3]
    if deep:  # of 16 bits Pillow keeps the high byte
        in_bytes(colours.astype(np.uint16) << 8 | colours, path)
    return colours if found.shape[2] == 3 else on_white(colours, found[..., 3])


def is_deep(image: Image.Image) -> bool:
    """Return whether an image that is not loaded yet has 16 bits, of which Pillow keeps the high 8."""
    return image.mode != "I;16" and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def load(image: Image.Image) -> None:
    """Decode an image, without warnings of odd metadata."""
    if image.format == "TIFF":  # Pillow looks at its metadata once more
        with _quiet():
            image.load()
    else:
        image.load()


def orientation_of(image: Image.Image) -> int:
    """Return how the metadata of an image turn it, 1 to 8; 1 is upright."""
    try:
        with _quiet():
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels can be used without damaged metadata
        return 1


@contextmanager
def _quiet() -> Iterator[None]:
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
