"""Levels of slides: factors that sizes alone hide, and pixels that are the same whichever way levels are stored."""

from __future__ import annotations

import math

import numpy as np
import openslide
import pytest
import slide_files
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
        ([(16384, 8192), (4096, 2048), (1024, 512), (512, 256)], 256, (1, 4, 16, 32)),
        # Leica, Hamamatsu: odd sides rounded down or up, level after level
        ([(36833, 38433), (9208, 9608), (2302, 2402), (575, 600), (143, 150)], 512, (1, 4, 16, 64, 256)),
        ([(4443, 3567), (2222, 1784), (1111, 892), (556, 446)], 0, (1, 2, 4, 8)),
        # A level is missing
        ([(20000, 15000), (10000, 7500), (1250, 938)], 256, (1, 2, 16)),
        # One level
        ([(2220, 2967)], 240, (1,)),
        # Several factors explain the sizes: 1, 4, 12 exactly, or 1, 4, 16 padded
        ([(3072, 3072), (768, 768), (256, 256)], 256, (1, 4, None)),
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


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    base=st.tuples(st.integers(3_000, 200_000), st.integers(3_000, 200_000)),
    tile=st.sampled_from([128, 240, 256, 512]),
    steps=st.sampled_from([(2, 4, 8, 16, 32), (4, 16, 64), (4, 16, 32), (8, 64)]),
    way=st.sampled_from(["down", "up", "pad", "crop"]),
    whole=st.booleans(),
)
def test_a_factor_is_right_or_unknown(base, tile, steps, way, whole):
    if whole:
        base = tuple(-(-v // tile) * tile for v in base)

    def side(length, factor):
        exact = length / factor
        if way == "down":
            return int(exact)
        if way == "up":
            return math.ceil(exact)
        return math.ceil(exact / tile) * tile if way == "pad" else int(exact) // tile * tile or math.ceil(exact)

    sizes = [base, *(tuple(side(v, f) for v in base) for f in steps)]
    found = true_factors(sizes, [(tile, tile)] * len(sizes))
    for level, factor in enumerate(steps, start=1):
        assert found[level] in (factor, None)
        if min(sizes[level]) > 8 * tile or any(side % tile for side in sizes[level]):
            assert found[level] == factor
