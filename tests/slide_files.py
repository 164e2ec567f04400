"""Small slides as TIFF and DICOM files, for tests."""

from __future__ import annotations

import struct

import numpy as np
import tifffile
from PIL import Image


def tissue(width, height, *, seed=0):
    """(height, width, 3): glass and ragged tissue that looks different from place to place."""
    rng = np.random.default_rng(seed)
    shape, grain = (smooth(rng, width, height, side)[..., None] for side in (300, 48))
    stained = np.array([190, 110, 165]) + grain * np.array([30, 45, 20])
    return np.where(shape > 0, stained, 243).clip(0, 255).astype(np.uint8)


def smooth(rng, width, height, side):
    """(height, width): noise without structure finer than ``side`` pixels."""
    coarse = rng.normal(size=(max(2, height // side), max(2, width // side))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def reduced(image, factor, *, up=False):
    """Every side divided by a factor, rounded down or up; the mean of the pixels."""
    height, width = image.shape[:2]
    if up:
        image = np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    size = (image.shape[1] // factor, image.shape[0] // factor)
    box = (0, 0, size[0] * factor, size[1] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, box=box))


def padded(image, tile, value=0):
    """An image enlarged to whole tiles."""
    height, width = (-(-v // tile) * tile for v in image.shape[:2])
    out = np.full((height, width, 3), value, dtype=np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def cropped(image, tile):
    """An image cut down to whole tiles; a side of less than one is kept."""
    height, width = (v // tile * tile or v for v in image.shape[:2])
    return image[:height, :width]


def write_slide(path, levels, *, tile=128, mpp=0.5, **options):
    """Write a tiled TIFF that OpenSlide opens; further options go to its first page."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            more = {**resolution, **options} if number == 0 else {"subfiletype": 1}
            file.write(
                np.ascontiguousarray(level),
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                compression="deflate",
                **more,
            )
    return path


SCN_CORNER, SCN_SIZE = (512, 256), (1024, 768)
"""Corner and size of the scanned area of :func:`write_scn`."""


def write_scn(folder):
    """Write a Leica SCN whose scanned area begins at (512, 256): tissue in its left half, 512 x 768 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "case.scn"
    rng = np.random.default_rng(0)
    pixels = rng.integers(228, 240, (768, 1024, 3), dtype=np.uint8)
    pixels[:, :512] = rng.integers(0, 20, (768, 512, 3)) + np.array((200, 120, 170))
    nm = 500

    def image(name, size, view, corner, first, power):
        dimensions = "".join(
            f'<dimension r="{k}" ifd="{first + k}" sizeX="{size[0] >> k}" sizeY="{size[1] >> k}" />'
            for k in range(3 if first else 1)
        )
        return (
            f'<image name="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1" />'
            f'<pixels sizeX="{size[0]}" sizeY="{size[1]}">{dimensions}</pixels><view sizeX="{view[0] * nm}" '
            f'sizeY="{view[1] * nm}" offsetX="{corner[0] * nm}" offsetY="{corner[1] * nm}" spacingZ="0" />'
            f"<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings>"
            "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    glass = (2048, 2048)
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">'
        f'<collection name="c" uuid="urn:uuid:1" sizeX="{glass[0] * nm}" sizeY="{glass[1] * nm}"><barcode />'
        + image("macro", (256, 256), glass, (0, 0), 0, 0.6)
        + image("main", (1024, 768), (1024, 768), (512, 256), 1, 20)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        macro = np.full((256, 256, 3), 230, np.uint8)
        file.write(macro, tile=(128, 128), photometric="rgb", description=description, metadata=None)
        for step in (1, 2, 4):
            level = np.ascontiguousarray(pixels[::step, ::step])
            file.write(level, tile=(128, 128), photometric="rgb", metadata=None)
    return path


def write_dicom(folder, image, factors, *, series):
    """Write a pyramid as a DICOM series, one file per level; OpenSlide opens each of them as the whole slide."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, factor in enumerate(factors, start=1):
        level = reduced(image, factor)
        height, width = level.shape[:2]
        tiles = padded(level, DICOM_TILE, 255)
        rows, columns = (side // DICOM_TILE for side in tiles.shape[:2])
        frames = tiles.reshape(rows, DICOM_TILE, columns, DICOM_TILE, 3).swapaxes(1, 2)
        instance, spacing = f"{series}.{number}", f"{0.0005 * factor:g}"
        meta = b"".join(
            [
                element(0x0002, 0x0002, "UI", WHOLE_SLIDE),
                element(0x0002, 0x0003, "UI", instance),
                element(0x0002, 0x0010, "UI", "1.2.840.10008.1.2.1"),
            ]
        )
        elements = [
            element(0x0008, 0x0008, "CS", "\\".join(["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])),
            element(0x0008, 0x0016, "UI", WHOLE_SLIDE),
            element(0x0008, 0x0018, "UI", instance),
            element(0x0020, 0x000E, "UI", series),
            element(0x0020, 0x9311, "CS", "TILED_FULL"),
            element(0x0028, 0x0002, "US", 3),
            element(0x0028, 0x0004, "CS", "RGB"),
            element(0x0028, 0x0006, "US", 0),
            element(0x0028, 0x0008, "IS", str(rows * columns)),
            element(0x0028, 0x0010, "US", DICOM_TILE),
            element(0x0028, 0x0011, "US", DICOM_TILE),
            *(element(0x0028, tag, "US", value) for tag, value in ((0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0))),
            element(0x0048, 0x0006, "UL", width),
            element(0x0048, 0x0007, "UL", height),
            sequence(0x5200, 0x9229, sequence(0x0028, 0x9110, element(0x0028, 0x0030, "DS", f"{spacing}\\{spacing}"))),
            element(0x7FE0, 0x0010, "OW", frames.tobytes()),
        ]
        start = bytes(128) + b"DICM" + element(0x0002, 0x0000, "UL", len(meta))
        (folder / f"{number}.dcm").write_bytes(start + meta + b"".join(elements))


DICOM_TILE = 128

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""DICOM's class of whole-slide images."""


def element(group, number, kind, value):
    """One element of a DICOM file, explicit and little-endian."""
    if isinstance(value, int):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    elif isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind in ("UI", "OW") else b" ") * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if kind in ("OW", "SQ") else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def sequence(group, number, item):
    """A DICOM sequence of one item."""
    return element(group, number, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)
