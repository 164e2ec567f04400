"""Levels of slides: factors that sizes alone hide, and pixels that are the same whichever way levels are stored."""

from __future__ import annotations

import itertools
import math
import operator
import zlib

import numpy as np
import openslide
import pytest
import slide_files
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.images.pyramid import true_factors
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.tiling import Tiling, tile_slide
from conceptkit.tables.patches import load_table

FACTORS = (1, 2, 4, 8, 16)
WIDTH, HEIGHT, TILE = 7_200, 1_300, 128

STORED = {
    "rounded down": lambda image, factor: slide_files.reduced(image, factor),
    "rounded up": lambda image, factor: slide_files.reduced(image, factor, up=True),
    "padded": lambda image, factor: slide_files.padded(slide_files.reduced(image, factor, up=True), TILE),
    "cropped": lambda image, factor: slide_files.cropped(slide_files.reduced(image, factor), TILE),
}


@pytest.fixture(scope="module")
def image():
    return slide_files.tissue(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def slides(image, tmp_path_factory):
    """One image in four kinds of pyramid; level 0 is the same in all."""
    folder = tmp_path_factory.mktemp("slides")
    return {
        kind: slide_files.write_slide(
            folder / f"{kind.replace(' ', '-')}.tif", [image, *(level(image, f) for f in FACTORS[1:])], tile=TILE
        )
        for kind, level in STORED.items()
    }


def test_openslide_states_other_factors(slides):
    """Control: without it the tests below would show nothing."""
    for kind in ("padded", "cropped"):
        with openslide.OpenSlide(slides[kind]) as opened:
            assert abs(opened.level_downsamples[4] / 16 - 1) > 0.05
            assert opened.level_dimensions[0] == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", STORED)
def test_factors_and_tiles_do_not_depend_on_how_levels_are_stored(slides, kind):
    with open_slide(slides[kind]) as slide:
        assert slide.pyramid.factors == FACTORS
    one, other = (tile_slide(slides[k], Tiling(side=64)) for k in ("rounded down", kind))
    assert len(one) > 500
    places = [set(zip(t["x"], t["y"], strict=True)) for t in (one, other)]
    assert len(places[0] ^ places[1]) <= 0.01 * len(one)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("scale", [2, 4, 8, 16, 5.3])
def test_pixels_far_from_the_origin(image, slides, kind, scale):
    side = 40
    size = round(side * scale)
    for x, y in ((0, 0), (6_000, 700), (WIDTH - size, HEIGHT - size), (WIDTH // 2 + 1, 3)):
        expected = shrunk(image, x, y, size, side)
        with open_slide(slides[kind]) as slide:
            read = slide.region(x, y, size, size, scale=scale)
        assert np.abs(read - expected).mean() < 4


def shrunk(image, x, y, size, side):
    crop = Image.fromarray(image[y : y + size, x : x + size])
    return np.asarray(crop.resize((side, side), Image.Resampling.BOX)).astype(float)


@pytest.mark.parametrize("kind", ["padded", "cropped"])
def test_a_patch_table_reads_the_same_pixels(slides, image, kind, tmp_path):
    rows = [(6_000, 700, 320, 40), (WIDTH - 320, HEIGHT - 320, 320, 20), (100, 200, 40, 40)]
    lines = [f"{slides[kind]},{x},{y},{size},{side}" for x, y, size, side in rows]
    (tmp_path / "t.csv").write_text("\n".join(["slide,x,y,size,side", *lines]))
    table = load_table(tmp_path / "t.csv")
    for row, record in table.frame.reset_index(drop=True).iterrows():
        x, y, size, side = (int(record[c]) for c in ("x", "y", "size", "side"))
        assert np.abs(table.pixels(row) - shrunk(image, x, y, size, side)).mean() < 4
        with open_slide(slides[kind]) as slide:
            np.testing.assert_array_equal(table.pixels(row), slide.region(x, y, size, size, scale=size / side))


def test_a_slide_of_ninety_thousand_pixels_padded_to_whole_tiles(tmp_path):
    """Its tissue is one square; nearly all tiles are the same, so that the file is written quickly."""
    wide, high, tile, (left, top, side) = 97_792, 22_000, 512, (80_000, 9_600, 2_048)
    glass = zlib.compress(np.full((tile, tile, 3), 243, np.uint8))

    def tiles(factor, columns, rows):
        square = np.array([left, top, left + side, top + side]) // factor
        for y, x in itertools.product(range(0, rows, tile), range(0, columns, tile)):
            x0, y0, x1, y1 = np.clip(square - [x, y, x, y], 0, tile)
            if x0 == x1 or y0 == y1:
                yield glass
                continue
            block = np.full((tile, tile, 3), 243, np.uint8)
            block[y0:y1, x0:x1] = 130, 60, 120
            yield zlib.compress(block)

    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for factor in (1, 2, 4, 8, 16, 32):
            columns, rows = (math.ceil(v / factor) for v in (wide, high))
            if factor > 1:
                columns, rows = (-(-v // tile) * tile for v in (columns, rows))
            more = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"} if factor == 1 else {"subfiletype": 1}
            shape = {"shape": (rows, columns, 3), "dtype": np.uint8, "tile": (tile, tile)}
            options = {"photometric": "rgb", "compression": "deflate", "metadata": None}
            file.write(tiles(factor, columns, rows), **shape, **options, **more)
    with open_slide(tmp_path / "s.tif") as slide:
        assert abs(slide.handle.level_downsamples[5] / 32 - 1) > 0.1  # what OpenSlide states
        inside = slide.region(left, top, side, side, scale=32)
        around = slide.region(left - 320, top - 320, 320, 320, scale=32)
    assert np.abs(inside - np.array([130.0, 60, 120])).max() < 10  # OpenSlide reads between pixels
    assert np.abs(around - 243.0).max() < 10
    table = tile_slide(tmp_path / "s.tif", Tiling(side=512))
    corners = set(zip(table["x"], table["y"], strict=True))
    places = itertools.product(range(79_872, 82_048, 512), range(9_728, 11_648, 512))
    assert corners == {(x, y) for x, y in places if min(x + 512, left + side) - max(x, left) >= 256}


def test_a_patch_that_no_memory_holds_is_refused(slides, tmp_path):
    (tmp_path / "t.csv").write_text(f"slide,x,y,size,side\n{slides['padded']},0,0,64,64000\n")
    with pytest.raises(InputError, match=r"size and side must be at most 20000, got 64 and 64000"):
        load_table(tmp_path / "t.csv").pixels(0)


def test_beyond_the_slide_it_is_white_though_levels_are_padded_with_black(slides):
    for kind in STORED:
        with open_slide(slides[kind]) as slide:
            right = slide.region(WIDTH, 0, 64, 64, scale=8)
            below = slide.region(0, HEIGHT, 64, 64, scale=2)
        assert (right == 255).all()
        assert (below == 255).all()


def test_large_windows_are_read_in_parts(slides, monkeypatch):
    window = (0, 0, WIDTH, HEIGHT)
    with open_slide(slides["padded"]) as slide:
        whole = slide.region(*window, scale=16)
        monkeypatch.setattr("conceptkit.images.pyramid._MOST_READ", 3000)
        sizes = []
        read = slide.handle.read_region
        monkeypatch.setattr(
            slide.handle, "read_region", lambda at, level, size: sizes.append(size) or read(at, level, size)
        )
        parts = slide.region(*window, scale=16)
    assert len(sizes) > 10
    assert max(w * h for w, h in sizes) <= 3000
    assert np.abs(whole.astype(float) - parts).mean() < 1


def test_a_level_that_no_factor_explains_is_not_read(image, tmp_path):
    levels = [image, slide_files.reduced(image, 2), np.asarray(Image.fromarray(image).resize((1800, 260)))]
    path = slide_files.write_slide(tmp_path / "s.tif", [*levels, slide_files.reduced(image, 8)])
    with open_slide(path) as slide:
        assert slide.pyramid.factors == (1, 2, None, 8)
        read = slide.region(6_000, 700, 160, 160, scale=4)
    assert np.abs(read - shrunk(image, 6_000, 700, 160, 40)).mean() < 4


def test_pixels_of_a_cropped_pyramid_of_thirds(tmp_path):
    """Its levels of 512 pixels are explained by 3 and by 4."""
    image = slide_files.tissue(2_000, 2_000)
    levels = [image, *(slide_files.cropped(slide_files.reduced(image, f), 256) for f in (3, 9))]
    path = slide_files.write_slide(tmp_path / "s.tif", levels, tile=256)
    with open_slide(path) as slide:
        for x, y, scale in ((1_000, 1_100, 3), (1_200, 300, 4), (600, 1_000, 9)):
            read = slide.region(x, y, 40 * scale, 40 * scale, scale=scale)
            assert np.abs(read - shrunk(image, x, y, 40 * scale, 40)).mean() < 4


@pytest.mark.parametrize(
    ("sizes", "tile", "factors"),
    [
        # Camelyon16: every level padded to whole tiles
        (
            [(97792, 221184), (49152, 110592), (24576, 55296), (12288, 27648), (6144, 13824), (3072, 7168)],
            512,
            (1, 2, 4, 8, 16, 32),
        ),
        # Aperio: the last ratio is another one
        ([(46000, 32914), (11500, 8228), (2875, 2057), (1437, 1028)], 240, (1, 4, 16, 32)),
        ([(16384, 8192), (4096, 2048), (1024, 512), (512, 256)], 256, (1, 4, None, None)),
        # Leica, Hamamatsu: odd sides rounded down or up, level after level
        ([(36833, 38433), (9208, 9608), (2302, 2402), (575, 600), (143, 150)], 512, (1, 4, 16, 64, 256)),
        ([(4443, 3567), (2222, 1784), (1111, 892), (556, 446)], 0, (1, 2, 4, 8)),
        # A level is missing
        ([(20000, 15000), (10000, 7500), (1250, 938)], 256, (1, 2, 16)),
        # One level
        ([(2220, 2967)], 240, (1,)),
        # Several factors explain a size: 4 exactly and 5 padded; 3 cropped and 4 padded; 32 and 33 padded
        ([(3072, 3072), (768, 768), (256, 256)], 256, (1, None, None)),
        ([(2000, 2000), (512, 512), (222, 222)], 256, (1, None, 9)),
        ([(97792, 221184), (3072, 7168)], 512, (1, None)),
        # A ratio is common to two steps; 10 may follow 1, 2, 4 too
        ([(20000, 20000), (10240, 10240), (5120, 5120), (2560, 2560)], 512, (1, 2, 4, 8)),
        ([(4096, 4096), (2048, 2048), (1024, 1024)], 256, (1, 2, None)),
        ([(20000, 20000), (10240, 10240), (5120, 5120), (2048, 2048)], 512, (1, 2, 4, None)),
        ([(600, 500), (512, 512)], 512, (1, None)),
        # Two levels of one size: one of them is something else
        ([(3000, 2000), (1500, 1000), (1500, 1000)], 256, (1, 2, None)),
        # Another factor for each side; no whole number
        ([(40000, 30000), (10000, 6000)], 256, (1, None)),
        ([(40000, 30000), (16000, 12000)], 256, (1, None)),
        # Tiles that OpenSlide does not state cannot explain a padded level
        ([(1000, 900), (512, 512)], 0, (1, None)),
    ],
)
def test_factors_of_sizes(sizes, tile, factors):
    assert true_factors(sizes, [(tile, tile)] * len(sizes)) == factors


def side_of_level(length, factor, tile, way):
    exact = length / factor
    if way == "even":
        return round(exact / 2) * 2
    if way in ("down", "up"):
        return int(exact) if way == "down" else math.ceil(exact)
    return math.ceil(exact / tile) * tile if way == "padded" else int(exact) // tile * tile or math.ceil(exact)


@settings(derandomize=True, max_examples=2_000, deadline=None)
@given(
    base=st.tuples(*[st.one_of(st.integers(1_000, 6_000), st.integers(6_000, 200_000))] * 2),
    tile=st.sampled_from([128, 240, 256, 512, 1024]),
    steps=st.one_of(
        st.tuples(st.integers(2, 10), st.integers(1, 6)).map(lambda v: [v[0]] * v[1]),  # a common ratio
        st.lists(st.integers(2, 5), min_size=1, max_size=4),
        st.permutations([2, 2, 2, 4, 8]),  # levels are missing
        st.sampled_from([(4, 4, 2), (4, 2), (32,), (64,)]),
    ),
    way=st.sampled_from(["down", "up", "even", "padded", "cropped"]),
    whole=st.booleans(),
)
def test_a_factor_is_right_or_unknown(base, tile, steps, way, whole):
    if whole:
        base = tuple(-(-v // tile) * tile for v in base)
    factors = [f for f in itertools.accumulate(steps, operator.mul) if min(base) / f >= 16]
    sizes = [base, *(tuple(side_of_level(v, f, tile, way) for v in base) for f in factors)]
    found = true_factors(sizes, [(tile, tile)] * len(sizes))
    for level, factor in enumerate(factors, start=1):
        assert found[level] in (factor, None)
        tiles = min(sizes[level]) / tile
        common = len(set(steps)) == 1 and level > 2 and None not in found[:level]
        if tiles > 2 * factor + 2 or (common and tiles > 2 * steps[0] + 2):
            assert found[level] == factor


@settings(derandomize=True, max_examples=1_000, deadline=None)
@given(
    base=st.tuples(*[st.integers(2_000, 100_000)] * 2),
    tile=st.sampled_from([240, 256, 512]),
    factors=st.sets(st.integers(2, 40), min_size=1, max_size=3).map(sorted),
    way=st.sampled_from(["down", "padded", "cropped"]),
)
def test_factors_that_are_no_powers_are_right_or_unknown(base, tile, factors, way):
    sizes = [base, *(tuple(side_of_level(v, f, tile, way) for v in base) for f in factors)]
    found = true_factors(sizes, [(tile, tile)] * len(sizes))
    assert all(f in (factor, None) for f, factor in zip(found[1:], factors, strict=True))
