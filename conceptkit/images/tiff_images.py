"""Pages of a TIFF file put together to the image that they stand for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.images.pixel_values import Pixels, in_bytes, on_white, upright
from conceptkit.images.tiff_pages import BITS, COLORMAP, EXTRA, ORIENTATION, PHOTOMETRIC, Page, TiffError, tiff_pages

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
"""Photometric interpretation → samples of a colour: grey of which 0 is white, grey, RGB, palette, YCbCr."""

_OTHERS = {4: "a transparency mask", 5: "CMYK", 8: "CIELab", 9: "CIELab", 10: "CIELab", 32803: "raw sensor data"}

_YCBCR_COEFFICIENTS, _YCBCR_SUBSAMPLING, _REFERENCE_BLACK_WHITE = 529, 530, 532
_LARGEST = (341, 281)  # SMaxSampleValue, MaxSampleValue
_CHANNELS = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}


def tiff_rgb(path: Path, file: IO[bytes]) -> Pixels | None:
    """Read a TIFF file as RGB (h, w, 3), upright; ``None`` where its compression is left to Pillow.

    Raises :class:`InputError` when it holds several images, or does not say which colours its values stand for, and
    :class:`TiffError` when it is damaged.
    """
    pages = tiff_pages(file)
    first = pages[0]
    photometric = first.one(PHOTOMETRIC, None)
    ome = _ome(first.text) if photometric in (0, 1) else None  # other pages have their own colours
    order = None if ome is None else _colour_order(ome, first.samples_per_pixel)
    if ome is not None and order is not None and first.samples_per_pixel == 1:
        pages = _planes(pages, ome, path)
    else:
        check_single(pages, path)
        pages = pages[:1]
    if photometric not in _COLOURS:
        meaning = _OTHERS.get(photometric, f"colours of kind {photometric}")
        raise InputError(f"{path} holds {meaning}, which cannot be turned into RGB without a guess; save it as RGB.")
    if not all(page.is_plain() for page in pages):
        if len(pages) > 1:
            raise InputError(f"{path} holds a page per colour, compressed with loss; save it as RGB.")
        return None
    if photometric == 6:
        _check_ycbcr(first, path)
    values = np.concatenate([page.samples(file) for page in pages], axis=2) if order else first.samples(file)
    return upright(_in_rgb(first, values, order, path), first.one(ORIENTATION, 1))


def check_single(pages: list[Page], path: Path) -> None:
    """Raise :class:`InputError` unless the first page is the image, and others are smaller copies or labels of it."""
    first = pages[0]
    planes = _planes_stated(first)
    alike = sum(page.size == first.size for page in pages)
    if max(planes, alike) > 1:
        raise InputError(
            f"{path} holds more than one page of its size ({max(planes, alike)}); save the one to use as its own file."
        )
    if any(math.prod(page.size) > math.prod(first.size) for page in pages):
        raise InputError(
            f"{path} holds several images, and the first is not the largest; save the one to use as its own file."
        )


def white_of(page: Page) -> float | None:
    """Return the value of white that a page states; ``None`` where it states none, or only its own largest value."""
    ome = _ome(page.text)
    bits = "" if ome is None else ome.get("SignificantBits", "")
    if bits.isdecimal() and 8 <= int(bits) <= 32:
        return 2.0 ** int(bits) - 1
    found = [value for tag in _LARGEST for value in page.all(tag)[:1]]
    if page.text.startswith("ImageJ="):
        found += [float(value) for value in re.findall(r"(?m)^max=(\d+(?:\.\d+)?)\s*$", page.text)]
    # Other numbers are the largest value of this image, or how it was last displayed.
    ranges = {2.0**n - 1 for n in range(8, 33)} | ({1.0} if page.is_float() else set())
    return next((float(value) for value in found if float(value) in ranges), None)


def _in_rgb(page: Page, values: NDArray[Any], order: list[int] | None, path: Path) -> Pixels:
    """Return the colours of samples (h, w, s), on white."""
    photometric = page.one(PHOTOMETRIC, None)
    count = 3 if order else _COLOURS[photometric]
    if values.shape[2] < count:
        raise TiffError(f"it has {values.shape[2]} samples per pixel where {count} are needed")
    white = white_of(page)
    samples = values[..., :count]
    colours = _of_palette(page, samples[..., 0]) if photometric == 3 else in_bytes(samples, path, white)
    if photometric == 0:
        colours = np.asarray(255 - colours)
    if photometric == 6:
        colours = _of_ycbcr(colours)
    colours = colours[..., order] if order else np.broadcast_to(colours, (*values.shape[:2], 3))
    alpha, associated = _alpha(page, values[..., count:], path)
    if alpha is None:
        return np.asarray(colours)
    opaque = 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
    return on_white(colours, in_bytes(alpha, path, white or opaque), associated=associated)


def _alpha(page: Page, extra: NDArray[Any], path: Path) -> tuple[NDArray[Any] | None, bool]:
    """Return the opacity (h, w) among the samples besides the colour, and whether colours are multiplied by it."""
    kinds = (*page.all(EXTRA), *[0] * extra.shape[2])[: extra.shape[2]]
    at = next((k for k, kind in enumerate(kinds) if kind in (1, 2)), None)
    for k in range(extra.shape[2]):
        if k != at and (extra[..., k] != extra[0, 0, k]).any():
            raise InputError(
                f"{path} has {page.samples_per_pixel} samples per pixel and does not say what they are; save it as RGB."
            )
    return (None, False) if at is None else (extra[..., at], kinds[at] == 1)


def _of_palette(page: Page, index: NDArray[Any]) -> Pixels:
    table = np.array(page.all(COLORMAP), dtype=np.uint16)
    if index.dtype.kind != "u" or table.size != 3 << page.one(BITS, 8):
        raise TiffError("its palette does not fit its values")
    table = table.reshape(3, -1).T
    # Some programs write colours from 0 to 255 where the format has 0 to 65535.
    return np.asarray((table >> 8 if table.max() > 255 else table)[index], dtype=np.uint8)


def _check_ycbcr(page: Page, path: Path) -> None:
    """Raise :class:`InputError` unless YCbCr is that of JPEG files, a value of each for every pixel."""
    pairs = page.all(_YCBCR_COEFFICIENTS, (299, 1000, 587, 1000, 114, 1000))
    coefficients = [top / bottom if bottom else 0.0 for top, bottom in zip(pairs[::2], pairs[1::2], strict=True)]
    numbers = page.all(_REFERENCE_BLACK_WHITE, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1))
    references = [top / bottom if bottom else 0.0 for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    plain = (
        page.all(_YCBCR_SUBSAMPLING, (2, 2)) == (1, 1)
        and page.one(BITS, 1) == 8
        and np.allclose(coefficients, (0.299, 0.587, 0.114), atol=1e-3)
        and references == [0, 255, 128, 255, 128, 255]
    )
    if not plain:
        raise InputError(f"{path} holds YCbCr that is subsampled or of unusual range; save it as RGB.")


def _of_ycbcr(values: Pixels) -> Pixels:
    return np.asarray(Image.merge("YCbCr", [Image.fromarray(values[..., k]) for k in range(3)]).convert("RGB"))


def _ome(text: str) -> dict[str, Any] | None:
    """Return the attributes of the first image that OME-XML describes, its channels and data; ``None`` without one."""
    if "OME" not in text[:2000] or not text.lstrip().startswith("<"):
        return None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    parts = {name: [e.attrib for e in pixels if e.tag.rpartition("}")[2] == name] for name in ("Channel", "TiffData")}
    return {**pixels.attrib, **parts}


def _planes_stated(page: Page) -> int:
    """Return the number of planes of the image that the description of its first page states."""
    if (ome := _ome(page.text)) is not None:
        sizes = {axis: _whole(ome.get(f"Size{axis}", "1")) for axis in "CZT"}
        return math.ceil(sizes["C"] / max(1, page.samples_per_pixel)) * sizes["Z"] * sizes["T"]
    found = re.search(r"(?m)^images=(\d+)", page.text) if page.text.startswith("ImageJ=") else None
    return int(found[1]) if found else 1


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 1


def _colour_order(ome: dict[str, Any], samples: int) -> list[int] | None:
    """Return which channel is red, green and blue where OME-XML describes one of each; ``None`` elsewhere.

    Three channels without names and without display colours are red, green and blue in this order.
    """
    channels = ome["Channel"] or [{}, {}, {}]
    if [_whole(ome.get(f"Size{axis}", "1")) for axis in "CZT"] != [3, 1, 1] or samples not in (1, 3):
        return None
    if len(channels) == 1 and samples == 3:  # one channel of three samples is RGB
        return [0, 1, 2]
    if len(channels) != 3 or any({"EmissionWavelength", "ExcitationWavelength", "Fluor"} & set(c) for c in channels):
        return None
    found = [_colour_of(channel) for channel in channels]
    if found == [None, None, None]:
        return [0, 1, 2]
    return [found.index(k) for k in range(3)] if set(found) == {0, 1, 2} else None


def _colour_of(channel: dict[str, str]) -> int | None:
    """Return 0 for a red channel, 1 for green, 2 for blue, 3 for another, ``None`` where nothing is said."""
    if name := channel.get("Name", "").strip().lower():
        return _CHANNELS.get(name, 3)
    colour = int(channel.get("Color", "-1")) & 0xFFFFFFFF  # red, green, blue, opacity
    return {0xFFFFFF: None, 0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}.get(colour >> 8, 3)


def _planes(pages: list[Page], ome: dict[str, Any], path: Path) -> list[Page]:
    """Return the pages of the three channels."""
    data = ome["TiffData"] or [{}]
    number: dict[int, int] = {}
    for part in data:
        start, channel = _whole(part.get("IFD", "0")), _whole(part.get("FirstC", "0"))
        count = _whole(part.get("PlaneCount", "1" if "IFD" in part else "3"))
        number |= {channel + k: start + k for k in range(count)}
    found = [pages[number[k]] for k in range(3) if number.get(k, len(pages)) < len(pages)]
    alike = {(p.size, p.one(BITS, 1), p.samples_per_pixel, p.is_float()) for p in found}
    if len(found) < 3 or len(alike) > 1:
        raise InputError(f"{path} does not hold all three colours that its OME-XML names; save it as RGB.")
    return found
