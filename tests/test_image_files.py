"""Images of every kind read as 8-bit RGB, or refused: against the pixels that were written, and tifffile's reading."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from conceptkit.errors import InputError
from conceptkit.images.decoding import read_pixels
from conceptkit.images.image_files import image_shape, read_rgb
from conceptkit.images.tiff_pages import tiff_pages
from conceptkit.pathology.images import read_image, read_quality
from conceptkit.tables.patches import load_table

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 17, 3), dtype=np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=2)
ALPHA = RNG.integers(0, 256, (24, 17), dtype=np.uint8)
RGBA = np.dstack([RGB, ALPHA])
WIDE = RGB.astype(np.uint16) * 257
CYX = np.moveaxis(RGB, 2, 0)


def on_white(colours, alpha=ALPHA):
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def png(values, colour_type, chunks=b""):
    """Return a PNG of 16 bits, which Pillow does not write in colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, **options):
    return lambda path: tifffile.imwrite(path, values, **options)


def pillow(image, **options):
    return lambda path: image.save(path, **options)


def bytes_of(data):
    return lambda path: path.write_bytes(data)


PALETTE = Image.fromarray(RGB).quantize(32)
INDEX = np.asarray(PALETTE)
COLOURS = np.asarray(PALETTE.convert("RGB"))
KEY = tuple(int(v) for v in RGB[3, 3])
OME = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


def named(*names):
    return {**OME, "metadata": {"axes": "CYX", "Channel": {"Name": list(names)}}}


READ = {
    "rgba.png": (pillow(Image.fromarray(RGBA)), on_white(RGB)),
    "la.png": (pillow(Image.fromarray(np.dstack([RGB[..., 0], ALPHA]))), on_white(GREY)),
    "palette.png": (pillow(PALETTE), COLOURS),
    "palette_alpha.png": (
        pillow(PALETTE, transparency=bytes(range(0, 256, 8))),
        on_white(COLOURS, INDEX * np.uint8(8)),
    ),
    "palette_key.gif": (pillow(PALETTE, transparency=3), np.where((INDEX == 3)[..., None], 255, COLOURS)),
    "grey_key.png": (pillow(Image.fromarray(RGB[..., 0]), transparency=7), np.where(GREY == 7, 255, GREY)),
    "rgb_key.png": (
        pillow(Image.fromarray(RGB), transparency=KEY),
        np.where((RGB == KEY).all(axis=2)[..., None], 255, RGB),
    ),
    "rgba.webp": (pillow(Image.fromarray(RGBA), lossless=True, exact=True), on_white(RGB)),
    "rgba.jp2": (pillow(Image.fromarray(RGBA)), on_white(RGB)),
    "unassociated.tif": (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), on_white(RGB)),
    "deflate.tif": (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"], compression="zlib"), on_white(RGB)),
    "associated.tif": (
        tiff(
            np.dstack([np.rint(RGB * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
        on_white(RGB),
    ),
    "grey_alpha.tif": (
        tiff(
            np.dstack([RGB[..., 0], ALPHA]),
            photometric="minisblack",
            extrasamples=["unassalpha"],
            planarconfig="contig",
        ),
        on_white(GREY),
    ),
    "constant_extra.tif": (
        tiff(np.dstack([RGB, ALPHA * 0 + 9]), photometric="rgb", extrasamples=["unspecified"]),
        RGB,
    ),
    "deep_rgba.tif": (
        tiff(RGBA.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]),
        on_white(RGB),
    ),
    "deep.tif": (tiff(WIDE, photometric="rgb"), RGB),
    "big_endian.tif": (tiff(WIDE, photometric="rgb", byteorder=">", bigtiff=True), RGB),
    "deep_grey.tif": (tiff(WIDE[..., 0]), GREY),
    "white_is_zero.tif": (tiff(255 - RGB[..., 0], photometric="miniswhite"), GREY),
    "deep_white_is_zero.tif": (tiff(65535 - WIDE[..., 0], photometric="miniswhite"), GREY),
    "32_bits.tif": (tiff(RGB[..., 0].astype(np.uint32) * 0x01010101), GREY),
    "64_bits.tif": (tiff(RGB[..., 0].astype(np.uint64) * 0x0101010101010101), GREY),
    "12_bits_by_tag.tif": (tiff(WIDE >> 4, photometric="rgb", extratags=[(281, "H", 3, (4095,) * 3, True)]), RGB),
    "12_bits_by_ome.ome.tif": (
        tiff(WIDE >> 4, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": 12}),
        RGB,
    ),
    "12_bits_by_imagej.tif": (tiff(WIDE[..., 0] >> 4, imagej=True, metadata={"min": 0.0, "max": 4095.0}), GREY),
    "float.tif": (tiff(RGB.astype(np.float32) / 255, photometric="rgb"), RGB),
    "double.tif": (tiff(RGB / 255.0, photometric="rgb", compression="zlib", predictor=True), RGB),
    "float_to_255.tif": (
        tiff(RGB.astype(np.float32), photometric="rgb", extratags=[(341, "f", 3, (255.0,) * 3, True)]),
        RGB,
    ),
    "deep.png": (bytes_of(png(WIDE, 2)), RGB),
    "deep_alpha.png": (bytes_of(png(RGBA.astype(np.uint16) * 257, 6)), on_white(RGB)),
    "deep_grey.png": (bytes_of(png(WIDE[..., :1], 0)), GREY),
    "12_bits.pgm": (bytes_of(b"P5 17 24 4095\n" + (WIDE[..., 0] >> 4).astype(">u2").tobytes()), GREY),
    "planes.tif": (tiff(CYX, photometric="rgb", planarconfig="separate"), RGB),
    "pages.ome.tif": (tiff(CYX, **OME), RGB),
    "deep_pages.ome.tif": (tiff(CYX.astype(np.uint16) * 257, byteorder=">", **OME), RGB),
    "planes.ome.tif": (tiff(CYX, planarconfig="separate", **OME), RGB),
    "blue_first.ome.tif": (tiff(CYX[::-1], **named("Blue", "green", "R")), RGB),
    "ycbcr.tif": (pillow(Image.fromarray(RGB).convert("YCbCr"), compression="tiff_lzw"), RGB),
    "bilevel.tif": (
        pillow(Image.fromarray(RGB[..., 0] > 99), compression="group4"),
        np.where(GREY > 99, 255, 0),
    ),
}
"""Name → how the file is written, and the pixels that it means."""

WITHIN = {"ycbcr.tif": 3}
"""Grey levels that the conversion itself loses"""


@pytest.mark.parametrize("name", READ)
def test_what_a_file_means_is_what_is_read(name, tmp_path):
    write, expected = READ[name]
    path = tmp_path / name
    write(path)
    for pixels in (read_rgb(path), read_image(path)[0], read_pixels(tmp_path, "image", {"image": name}, "p")):
        assert pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - expected).max() <= WITHIN.get(name, 0)
    assert image_shape(path) == expected.shape[:2]


FRAMES = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}

LAB = Image.merge("LAB", [Image.fromarray(RGB[..., k]) for k in range(3)])

REFUSED = {
    "12_bits.tif": (tiff(WIDE >> 4, photometric="rgb"), "more than 8 bits .* do not fit a white of 65535"),
    "12_bits.png": (bytes_of(png(WIDE >> 4, 2)), "more than 8 bits"),
    "12_bits_grey.png": (bytes_of(png(WIDE[..., :1] >> 4, 0)), "more than 8 bits"),
    "14_bits_of_4095.tif": (
        tiff(WIDE[..., 0] >> 2, extratags=[(281, "H", 1, 4095, True)]),
        "do not fit a white of 4095",
    ),
    "display_range.tif": (
        tiff(WIDE[..., 0] >> 4, imagej=True, metadata={"min": 20.0, "max": 3001.0}),
        "white of 65535",
    ),
    "key.png": (
        bytes_of(
            png(WIDE[..., :1], 0, struct.pack(">I4sH", 2, b"tRNS", 9) + struct.pack(">I", zlib.crc32(b"tRNS\0\t")))
        ),
        "more than 8 bits",
    ),
    "float_to_255.tif": (tiff(RGB.astype(np.float32), photometric="rgb"), "do not fit a white of 1;"),
    "not_a_number.tif": (tiff(np.full((8, 8), np.nan, np.float32)), "from nan to nan"),
    "signed.tif": (tiff(RGB[..., 0].astype(np.int16)), "signed values"),
    "unknown_extra.tif": (tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]), "does not say what they are"),
    "stains.ome.tif": (tiff(CYX, **named("DAPI", "FITC", "TRITC")), "more than one page"),
    "twice_red.ome.tif": (tiff(CYX, **named("red", "red", "blue")), "more than one page"),
    "four.ome.tif": (tiff(np.concatenate([CYX, ALPHA[None]]), **OME), "more than one page"),
    "depth.ome.tif": (tiff(CYX, photometric="minisblack", metadata={"axes": "ZYX"}), "more than one page"),
    "channels.tif": (tiff(CYX, imagej=True, metadata={"axes": "CYX"}), "more than one page"),
    "pages.tif": (tiff(np.stack([RGB, RGB]), photometric="rgb"), "more than one page"),
    "cmyk.tif": (pillow(Image.fromarray(RGB).convert("CMYK")), "CMYK"),
    "cmyk.jpg": (pillow(Image.fromarray(RGB).convert("CMYK")), "CMYK"),
    "lab.tif": (pillow(LAB), "CIELab"),
    "frames.gif": (pillow(Image.fromarray(RGB), **FRAMES), "2 frames"),
    "frames.webp": (
        pillow(Image.fromarray(RGB), **FRAMES),
        "2 frames",
    ),
    "frames.png": (pillow(Image.fromarray(RGB), **FRAMES), "2 frames"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_rightly_is_refused(name, tmp_path):
    write, sentence = REFUSED[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(InputError, match=sentence) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"image: {path} ")
    assert str(caught.value).count("\n") == 0
    with pytest.raises(InputError, match=sentence):
        read_pixels(tmp_path, "image", {"image": name}, "p")


def test_of_a_pyramid_the_whole_image_is_read(tmp_path):
    for name, subifds in (("pages.tif", 0), ("sub.tif", 2)):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            writer.write(RGB, photometric="rgb", tile=(16, 16), subifds=subifds)
            for step in (2, 4):
                writer.write(RGB[::step, ::step], photometric="rgb", subfiletype=1)
        np.testing.assert_array_equal(read_rgb(tmp_path / name), RGB)
    with tifffile.TiffWriter(tmp_path / "small_first.tif") as writer:
        writer.write(RGB[::2, ::2], photometric="rgb")
        writer.write(RGB, photometric="rgb")
    with pytest.raises(InputError, match="the first is not the largest"):
        read_rgb(tmp_path / "small_first.tif")


def test_a_slide_of_jpeg_tiles_is_read_as_by_openslide(shared_data):
    openslide = pytest.importorskip("openslide")
    path = shared_data / "wsi" / "cmu-1-small-region.svs"
    with openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    assert np.abs(read_rgb(path).astype(int) - expected).max() <= 1
    with pytest.raises(InputError, match="in compression 33005, which cannot be read"):
        read_rgb(path.with_name("tcga-cr-7395-01a-01-ts1.svs"))


def test_of_the_two_pictures_of_a_phone_the_photograph_is_read(tmp_path):
    small = Image.fromarray(RGB).resize((64, 64))
    small.save(tmp_path / "one.jpg", quality=90)
    small.save(tmp_path / "two.mpo", quality=90, save_all=True, append_images=[small.rotate(90)])
    np.testing.assert_array_equal(read_rgb(tmp_path / "two.mpo"), read_rgb(tmp_path / "one.jpg"))
    assert read_quality(tmp_path / "two.mpo") == read_quality(tmp_path / "one.jpg") == 90


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "jpeg.tif"])
def test_images_are_upright(name, orientation, tmp_path):
    path, exif = tmp_path / name, Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB).save(path, exif=exif, **({"compression": "jpeg"} if name == "jpeg.tif" else {}))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_rgb(path), expected)
    assert image_shape(path) == expected.shape[:2]


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_a_damaged_file_ends_in_a_sentence(suffix, tmp_path):
    """Cut anywhere, and with bytes changed."""
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(RGB).save(whole)
    data, rng = whole.read_bytes(), np.random.default_rng(1)
    path = tmp_path / f"damaged.{suffix}"
    for k in range(120):
        broken = bytearray(data[: int(rng.integers(0, len(data)))] if k % 2 else data)
        for at in rng.integers(0, max(1, min(len(broken), 200)), 3 if k % 2 == 0 else 0):
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(InputError):
            assert read_rgb(path).ndim == 3


KINDS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"]


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    compression=st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"]),
    predictor=st.booleans(),
    tile=st.sampled_from([None, (16, 16), (32, 16)]),
    rows=st.integers(1, 40),
    separate=st.booleans(),
    order=st.sampled_from("<>"),
    big=st.booleans(),
    seed=st.integers(0, 99),
)
def test_samples_are_those_that_tifffile_writes(
    kind, shape, compression, predictor, tile, rows, separate, order, big, seed, tmp_path
):
    if compression not in (None, "zlib"):
        pytest.importorskip("imagecodecs")
    dtype = np.dtype(kind)
    values = np.random.default_rng(seed).integers(0, 100, shape)
    values = (values / 7 if dtype.kind == "f" else values).astype(dtype)
    layout = {} if shape[2] == 1 else {"planarconfig": "separate" if separate else "contig"}
    stored = values[..., 0] if shape[2] == 1 else (np.moveaxis(values, 2, 0) if separate else values)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="minisblack" if shape[2] == 1 else "rgb",
        compression=compression,
        predictor=predictor and compression in ("zlib", "lzw", "zstd") and kind != "u8",
        tile=tile,
        rowsperstrip=None if tile else rows,
        byteorder=order,
        bigtiff=big,
        **layout,
    )
    with (tmp_path / "a.tif").open("rb") as file:
        (page,) = tiff_pages(file)
        assert page.is_plain()
        found = page.samples(file)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_a_size_that_the_file_does_not_hold_fills_no_memory(tmp_path):
    path = Path(tmp_path / "huge.tif")
    tifffile.imwrite(path, RGB, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[256].overwrite(13_000)
        file.pages[0].tags[257].overwrite(13_000)
        file.pages[0].tags[278].overwrite(13_000)
    with pytest.raises(InputError, match="it is cut off"):
        read_rgb(path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[256].overwrite(60_000)
    with pytest.raises(InputError, match="60000 x 13000 pixels; cut it into smaller images"):
        read_rgb(path)


def test_a_compression_that_is_not_built_in_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["Compression"].valueoffset
    data = bytearray(path.read_bytes())
    data[place : place + 2] = (50001).to_bytes(2, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="compressed as WebP, which cannot be read here; save it as PNG"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", pillow(Image.fromarray(RGBA)), on_white(RGB)),
        ("a.png", bytes_of(png(WIDE[..., :1], 0)), GREY),
        ("a.tif", tiff(WIDE[..., 0], photometric="minisblack"), GREY),
        ("a.ome.tif", tiff(CYX, photometric="minisblack", metadata={"axes": "CYX"}), RGB),
    ],
)
def test_patches_of_a_table_are_read_so(name, write, expected, tmp_path):
    write(tmp_path / name)
    (tmp_path / "t.csv").write_text(f"image\n{name}\n")
    np.testing.assert_allclose(load_table(tmp_path / "t.csv").pixels(0), expected, atol=1)
