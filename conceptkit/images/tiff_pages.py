"""Pages of a TIFF file: what their tags say, and their samples as the file stores them."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from conceptkit.images.pixel_values import MOST_PIXELS

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270  # tags of TIFF 6.0
ORIENTATION, SAMPLES, PLANAR, COLORMAP, EXTRA = 274, 277, 284, 320, 338
_FILL_ORDER, _ROWS, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 266, 278, 317, 322, 323, 339
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325

LOSSY = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
WEBP = 50001
LOSSY |= {34887: "LERC", 34892: "JPEG", WEBP: "WebP"}
"""Compressions that may change the values of samples."""

_RAW, _LZW, _PACKBITS, _LZMA, _ZSTD = 1, 5, 32773, 34925, 50000
_ZIP = (8, 32946)

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_TYPES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Types of tags, as :mod:`struct` writes them."""

_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
"""Values of the tag SampleFormat, as NumPy writes them; 4 is "not defined"."""

_MOST_PAGES, _MOST_BYTES = 100_000, 64
"""Largest number of pages, and of bytes per pixel."""


class TiffError(ValueError):
    """A TIFF file that cannot be read; the message says why."""


@dataclass(frozen=True)
class Page:
    """One page of a TIFF file."""

    order: Literal["<", ">"]
    """Byte order."""
    tags: dict[int, tuple[Any, ...] | bytes]
    """Tag → values, or bytes for text."""

    def all(self, tag: int, default: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        """Return all values of a tag."""
        return tuple(self.tags.get(tag, default))

    def one(self, tag: int, default: int | None) -> Any:
        """Return the first value of a tag."""
        return next(iter(self.tags.get(tag, ())), default)

    @property
    def text(self) -> str:
        """Return the description, where programs write what the pages mean."""
        raw = self.tags.get(DESCRIPTION, b"")
        return raw.split(b"\0")[0].decode("utf-8", "replace") if isinstance(raw, bytes) else ""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels as stored, before the orientation is applied."""
        return int(self.one(HEIGHT, 0)), int(self.one(WIDTH, 0))

    @property
    def samples_per_pixel(self) -> int:
        """Return the number of samples of one pixel."""
        return int(self.one(SAMPLES, 1))

    def is_float(self) -> bool:
        """Tell whether samples are floats."""
        return bool(self.one(_FORMAT, 1) == 3)

    def is_plain(self) -> bool:
        """Tell whether :meth:`samples` can read this page: whole bytes in a compression without loss."""
        bits, kinds = set(self.all(BITS, (1,))), set(self.all(_FORMAT, (1,)))
        known = {_RAW, _LZW, *_ZIP, _PACKBITS, _LZMA, _ZSTD}
        return (
            len(bits) == 1
            and bits <= {8, 16, 32, 64}
            and len(kinds) == 1
            and kinds <= set(_KINDS)
            and not (kinds == {3} and bits == {8})
            and self.one(_FILL_ORDER, 1) == 1
            and self.one(COMPRESSION, _RAW) in known
        )

    def samples(self, file: IO[bytes]) -> NDArray[Any]:
        """Return the samples (h, w, s) of a page that :meth:`is_plain`, in the file's type and the machine's order.

        Raises
        ------
        TiffError
            when the file is cut off, or its tags contradict each other
        """
        (height, width), count = self.size, self.samples_per_pixel
        if min(height, width, count) < 1:
            raise TiffError(f"its size is {width} x {height} x {count}")
        if height * width > MOST_PIXELS:
            raise TiffError(f"it has {width} x {height} pixels; cut it into smaller images first")
        dtype = np.dtype(f"{_KINDS[self.one(_FORMAT, 1)]}{self.one(BITS, 1) // 8}")
        if count * dtype.itemsize > _MOST_BYTES:
            raise TiffError(f"it has {count} samples of {dtype.itemsize} bytes per pixel")
        planes, deep = (count, 1) if self.one(PLANAR, 1) == 2 else (1, count)
        out = np.empty((planes, height, width, deep), dtype=dtype)
        for place, block in self._blocks(file, dtype, planes, deep):
            view = out[place]
            view[...] = block[: view.shape[0], : view.shape[1]]
        return out[0] if planes == 1 else np.moveaxis(out[..., 0], 0, 2)

    def _blocks(
        self, file: IO[bytes], dtype: np.dtype[Any], planes: int, deep: int
    ) -> Iterator[tuple[tuple[Any, ...], NDArray[Any]]]:
        """Yield the place of every strip or tile in (planes, height, width), and its samples."""
        height, width = self.size
        tiled = _TILES in self.tags
        high = int(self.one(_TILE_HEIGHT, 0)) if tiled else min(int(self.one(_ROWS, height)), height)
        wide = int(self.one(_TILE_WIDTH, 0)) if tiled else width
        if min(high, wide) < 1 or high * wide > MOST_PIXELS:
            raise TiffError(f"its blocks have {wide} x {high} pixels")
        offsets = self.all(_TILES if tiled else _STRIPS)
        down, across = math.ceil(height / high), math.ceil(width / wide)
        lengths = self.all(_TILE_BYTES if tiled else _STRIP_BYTES)
        raw = self.one(COMPRESSION, _RAW) == _RAW
        if len(offsets) < planes * down * across or (len(lengths) < len(offsets) and not raw):
            raise TiffError(f"it has {len(offsets)} blocks where {planes * down * across} are needed")
        for k in range(planes * down * across):
            plane, y, x = k // (down * across), k // across % down * high, k % across * wide
            rows = high if tiled else min(high, height - y)
            needed = rows * wide * deep * dtype.itemsize
            file.seek(offsets[k])
            packed = _read(file, needed if raw else lengths[k])
            block = self._unpacked(packed, (rows, wide, deep), dtype)
            yield np.s_[plane, y : y + rows, x : x + wide], block

    def _unpacked(self, packed: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the samples of one strip or tile."""
        rows, wide, deep = shape
        needed = math.prod(shape) * dtype.itemsize
        data = _decompressed(packed, int(self.one(COMPRESSION, _RAW)), rows, needed // rows)
        if len(data) < needed:
            raise TiffError("it is cut off")
        predictor = self.one(_PREDICTOR, 1) if self.one(COMPRESSION, _RAW) in (_LZW, *_ZIP, _LZMA, _ZSTD) else 1
        if predictor == 3:  # differences of bytes, the highest byte of all samples of a row first
            parts = np.frombuffer(data, np.uint8, needed).reshape(rows, wide * dtype.itemsize, deep)
            parts = np.add.accumulate(parts, axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, wide * deep)
            parts = np.ascontiguousarray(np.moveaxis(parts, 1, 2))
            return parts.view(dtype.newbyteorder(">")).reshape(shape).astype(dtype)
        stored = np.frombuffer(data, dtype.newbyteorder(self.order), math.prod(shape)).reshape(shape).astype(dtype)
        if predictor == 1:
            return stored
        if predictor != 2:
            raise TiffError(f"its predictor {predictor} is not known")
        whole = np.dtype(f"u{dtype.itemsize}")
        return np.add.accumulate(stored.view(whole), axis=1, dtype=whole).view(dtype)


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_pages(file: IO[bytes]) -> list[Page]:
    """Return all pages of an open TIFF file, without their pixels.

    Raises
    ------
    TiffError
        when the file is cut off or its list of pages has no end
    """
    return list(_walk(file))


def first_page(file: IO[bytes]) -> Page:
    """Return the first page of an open TIFF file, without its pixels.

    Raises
    ------
    TiffError
        when the file is cut off
    """
    return next(_walk(file))


def _walk(file: IO[bytes]) -> Iterator[Page]:
    """Yield at least one page."""
    file.seek(0)
    order: Literal["<", ">"] = "<" if file.read(2) == b"II" else ">"
    big = b"+" in file.read(2)
    file.seek(8 if big else 4)
    seen: set[int] = set()
    try:
        offset = _numbers(file, order, "Q" if big else "I")[0]
        if offset == 0:
            raise TiffError("it has no page")
        while offset:
            if offset in seen or len(seen) >= _MOST_PAGES:
                raise TiffError("its list of pages has no end")
            seen.add(offset)
            file.seek(offset)
            page, offset = _page(file, order, big)
            yield page
    except (struct.error, OverflowError, OSError):
        raise TiffError("it is cut off") from None


def _page(file: IO[bytes], order: Literal["<", ">"], big: bool) -> tuple[Page, int]:
    """Return the page that begins here, and where the next one begins; 0 after the last."""
    count = _numbers(file, order, "Q" if big else "H")[0]
    length, inline = (20, 8) if big else (12, 4)
    entries = _read(file, count * length)
    following = _numbers(file, order, "Q" if big else "I")[0]
    tags: dict[int, tuple[Any, ...] | bytes] = {}
    for k in range(count):
        tag, kind, n = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, k * length)
        if kind not in _TYPES:
            continue
        size = n * struct.calcsize(order + _TYPES[kind])
        at = (k + 1) * length - inline
        if size <= inline:
            value = entries[at : at + size]
        else:
            file.seek(struct.unpack_from(order + ("Q" if big else "I"), entries, at)[0])
            value = _read(file, size)
        if len(value) == size:  # one that is cut off counts as absent
            tags.setdefault(tag, value if _TYPES[kind] == "s" else _values(value, order, kind))
    return Page(order, tags), following


def _values(value: bytes, order: str, kind: int) -> tuple[Any, ...]:
    letters = _TYPES[kind]
    return struct.unpack(f"{order}{len(value) // struct.calcsize(order + letters[0])}{letters[0]}", value)


def _numbers(file: IO[bytes], order: str, letters: str) -> tuple[int, ...]:
    return struct.unpack(order + letters, file.read(struct.calcsize(order + letters)))


def _read(file: IO[bytes], size: int) -> bytes:
    """Read bytes, at most as many as the file has: a damaged size must not fill the memory."""
    return file.read(min(size, os.fstat(file.fileno()).st_size))


def _decompressed(packed: bytes, compression: int, rows: int, wide: int) -> bytes:
    """Return the bytes of a block of ``rows`` rows of ``wide`` bytes."""
    if compression == _RAW:
        return packed
    if compression in _ZIP:
        try:
            return zlib.decompressobj().decompress(packed, rows * wide)
        except zlib.error as error:
            raise TiffError(f"a block is damaged ({error})") from None
    from PIL import Image

    # Pillow's libtiff decodes any of these, wrapped as a picture of one byte per pixel.
    tags = {WIDTH: wide, HEIGHT: rows, BITS: 8, COMPRESSION: compression, PHOTOMETRIC: 1, SAMPLES: 1, _ROWS: rows}
    tags |= {_STRIPS: 0, _STRIP_BYTES: len(packed)}
    tags[_STRIPS] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    try:
        with Image.open(io.BytesIO(head + packed)) as picture:
            return picture.tobytes()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TiffError(f"a block is damaged ({error})") from None
