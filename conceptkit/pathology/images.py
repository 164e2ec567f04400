"""Images and nucleus label images read from files, each fault told in one sentence."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from conceptkit._checks import InputError
from conceptkit.pathology.nuisances import jpeg_quality

_JPEG_IN_TIFF = 7

_JPEG_HEAD = 4096
"""Bytes within which a JPEG has its quantization tables."""


@contextmanager
def _opened(argument: str, path: Path) -> Iterator[Image.Image]:
    """Open an image; what goes wrong until the ``with`` block ends is told in one sentence."""
    try:
        with warnings.catch_warnings():
            # Odd metadata, and a size that is large for a photograph, are common in pathology and harmless.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{argument}: {path} does not exist.") from None
    except UnidentifiedImageError:
        raise InputError(f"{argument}: {path} is not an image, or is cut off.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{argument}: {path} is too large for one image; cut it into smaller ones first.") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
    ) as error:  # as the format's reader does
        raise InputError(f"{argument}: {path} cannot be read ({error}).") from None


def read_image(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Return an image as RGB, (h, w, 3), and the quality of a JPEG file, 1 to 100; NaN for other files.

    Raises
    ------
    InputError
        when the file is missing, cannot be decoded, or has more than 8 bits per channel
    """
    with _opened("image", path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            raise InputError(
                f"image: {path} has more than 8 bits per channel (mode {image.mode}); save it as 8-bit RGB."
            )
        return np.asarray(image.convert("RGB")), _quality(image)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image in pixels, from its head alone.

    Raises
    ------
    InputError
        when the file is missing or is no image
    """
    with _opened("image", path) as image:
        return image.height, image.width


def read_quality(path: Path) -> float:
    """Return the quality of a JPEG file, or of the JPEG in a TIFF, 1 to 100, from its head alone; NaN for others.

    Raises
    ------
    InputError
        when the file is missing or is no image
    """
    with _opened("image", path) as image:
        return tiff_quality(path) if image.format == "TIFF" else _quality(image)


def tiff_quality(path: Path) -> float:
    """Return the JPEG quality, 1 to 100, of the first page of a TIFF: the full resolution of most scanners' slides.

    NaN for other files, for pages that are no JPEG, and for those whose quantization tables are not found.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    compression, tables, tiles, strips = 259, 347, 324, 273  # tags of TIFF 6.0
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of a head that is cut off
            head = file.read(8)
            directory = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)  # BigTIFF has 16
            file.seek(directory.next)
            directory.load(file)
            if directory.get(compression) != _JPEG_IN_TIFF:
                return math.nan
            found = _luminance_table(directory.get(tables, b""))
            if found is None:  # then each tile or strip is a whole JPEG
                file.seek((directory.get(tiles) or directory[strips])[0])
                found = _luminance_table(file.read(_JPEG_HEAD))
            return jpeg_quality(found)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, OverflowError, struct.error):
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


def _quality(image: Image.Image) -> float:
    tables = getattr(image, "quantization", None) if image.format == "JPEG" else None
    return jpeg_quality(tables[0]) if tables and 0 in tables else math.nan


def read_mask(path: Path) -> NDArray[Any]:
    """Return a label image, (h, w) of whole numbers, 0 where there is no nucleus.

    Label images of QuPath, StarDist and Cellpose (``_cp_masks.png``) are such; an ``.npy`` file may hold one too, and a
    ``.mat`` file of HoVer-Net as its variable ``inst_map``. Nothing is unpickled: Cellpose's ``_seg.npy`` is refused.

    Raises
    ------
    InputError
        when the file is missing, cannot be decoded, or is no label image
    """
    if path.suffix.lower() == ".npy":
        return _checked(_read_array(path), path)
    if path.suffix.lower() == ".mat":
        return _checked(_read_mat(path), path)
    with _opened("mask", path) as image:
        if image.mode not in {"L", "P"} and not image.mode.startswith("I"):
            raise InputError(
                f"mask: {path} is not a label image (mode {image.mode}): one whole number per pixel is needed."
            )
        if image.format == "JPEG":
            raise InputError(f"mask: {path} is a JPEG, which blurs labels into each other; save labels as PNG or TIFF.")
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"mask: {path} holds more than one page; save the labels as one.")
        labels: NDArray[Any] = np.asarray(image)
        if image.mode == "I" and image.format == "TIFF":
            sample_format = getattr(image, "tag_v2", {}).get(339, (1,))
            if sample_format == (1,):  # Pillow reads unsigned 32-bit as signed
                labels = labels.view(np.uint32)
    return _checked(labels, path)


def read_mask_row(path: Path, row: int) -> NDArray[Any]:
    """Return row ``row`` of the dataset ``masks`` (n, h, w) of an HDF5 file: the label image of one patch, (h, w).

    A patch is a window of an image, so that one nucleus may well lie in it in two pieces; :func:`read_mask` takes those
    for a mask without numbers.

    Raises
    ------
    InputError
        when the file, the dataset or the row is missing, or holds no whole numbers
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            data = file["masks"]
            if data.ndim != 3 or data.dtype.kind not in "iu":
                raise InputError(
                    f"mask: masks of {path} must hold whole numbers, n x height x width, got {data.dtype} of shape "
                    f"{data.shape}."
                )
            if not 0 <= row < len(data):
                raise InputError(f"mask: masks of {path} has {len(data)} rows, row {row} was asked for.")
            return np.asarray(data[row])
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise InputError(f"mask: {path} holds no label images in a dataset masks ({error}).") from None


def _read_array(path: Path) -> NDArray[Any]:
    try:
        labels = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"mask: {path} does not exist.") from None
    except (OSError, ValueError, EOFError) as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"mask: {path} is a pickle, as Cellpose's _seg.npy, which could run code and is not opened; save the "
                "labels as PNG or TIFF (cellpose --save_png or --save_tif)."
            ) from None
        raise InputError(f"mask: {path} cannot be read ({error}).") from None
    return _as_labels(labels, path)


def _read_mat(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    if not path.is_file():  # of which the reader says no more than that it needs a file
        raise InputError(f"mask: {path} does not exist.")
    try:
        labels = loadmat(path, variable_names=["inst_map"], appendmat=False).get("inst_map")
    except NotImplementedError:
        raise InputError(f"mask: {path} is a .mat file of version 7.3; save the labels as PNG or TIFF.") from None
    except Exception as error:  # the reader has no error of its own: a broken file ends in whatever it stumbles over
        raise InputError(f"mask: {path} cannot be read ({type(error).__name__}: {error}).") from None
    if labels is None:
        raise InputError(f"mask: {path} has no variable inst_map, in which HoVer-Net writes its labels.")
    labels = np.asarray(labels)
    # MATLAB's own numbers are floats: CoNSeP's labels are whole numbers among them.
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    return _as_labels(labels, path)


def _as_labels(labels: NDArray[Any], path: Path) -> NDArray[Any]:
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise InputError(f"mask: {path} is not a label image ({labels.dtype} of shape {labels.shape}).")
    return np.asarray(labels)


def _checked(labels: NDArray[Any], path: Path) -> NDArray[Any]:
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise InputError(f"mask: {path} is not a label image: a label must be at least 0, got {labels.min()}.")
    nuclear = labels != 0
    if nuclear.any() and (labels == labels.max())[nuclear].all():
        pieces = ndimage.label(nuclear, structure=np.ones((3, 3)))[1]
        if pieces > 1:  # counted as it stands, all of them would be one huge nucleus
            raise InputError(
                f"mask: {path} has one label in {pieces} separate pieces; give each nucleus its own integer."
            )
    return labels
