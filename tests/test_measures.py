"""Measures against loops over nuclei."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conceptkit.errors import InputError
from conceptkit.families import MEASURES
from conceptkit.pathology.batch import Batch, PatchMeasure
from conceptkit.pathology.measures import CORE, area_px, check_names, count, measure, names_for, spell_out
from conceptkit.pathology.texture import haralick, luma


def pixels(n=3, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def by_loops(mask):
    """Count and mean area of one mask, nucleus by nucleus."""
    areas = [int((mask == label).sum()) for label in np.unique(mask) if label != 0]
    return len(areas), (np.mean(areas) if areas else np.nan)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.dtype(">u2")]).flatmap(
        lambda dtype: arrays(
            dtype, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 6)
        )
    )
)
def test_count_and_area_are_those_of_loops(masks):
    expected = np.array([by_loops(m) for m in masks])
    batch = Batch(np.zeros((*masks.shape, 3), np.uint8), masks)
    np.testing.assert_array_equal(count(batch), expected[:, 0])
    np.testing.assert_allclose(area_px(batch), expected[:, 1], rtol=1e-12)


def test_labels_beyond_16_bits():
    mask = np.zeros((1, 4, 4), dtype=np.uint32)
    mask[0, 0, :2], mask[0, 3, 3] = 70_000, 4_000_000_000
    values = measure(np.zeros((1, 4, 4, 3), np.uint8), mask)
    assert values["count"][0] == 2
    assert values["area_px"][0] == 1.5


def test_all_measures_with_units_that_agree():
    images = pixels()
    masks = np.zeros((3, 16, 16), dtype=np.uint16)
    masks[0, :4, :4], masks[0, 8:, 8:] = 5, 9
    masks[1] = 1
    values = measure(images, masks, 0.25)
    assert list(values) == list(CORE) == ["count", "area_px", "area_um2", "contrast", "correlation"]
    assert all(v.shape == (3,) and v.dtype == np.float64 for v in values.values())
    np.testing.assert_array_equal(values["count"], [2, 1, 0])
    np.testing.assert_array_equal(values["area_px"], [40, 256, np.nan])  # nothing to average: missing, not 0
    np.testing.assert_array_equal(values["area_um2"], [2.5, 16, np.nan])
    np.testing.assert_array_equal(values["contrast"], haralick(luma(images)).contrast)
    np.testing.assert_array_equal(values["correlation"], haralick(luma(images)).correlation)


def test_what_is_measured_follows_what_is_given():
    masks = np.ones((3, 16, 16), dtype=np.uint8)
    assert list(measure(pixels())) == ["contrast", "correlation"]
    assert {"contrast", "lab_l", "ink"} <= set(names_for(mask=False, mpp=True))
    assert not {"count", "hematoxylin", "jpeg_quality"} & set(names_for(mask=False, mpp=True))
    assert list(measure(pixels(), masks)) == ["count", "area_px", "contrast", "correlation"]
    assert list(measure(pixels(), masks, names=["contrast", "count"])) == ["contrast", "count"]
    values = measure(pixels(), masks, [0.5, np.nan, 1.0], names=("area_um2",))
    np.testing.assert_array_equal(values["area_um2"], [64, np.nan, 256])
    assert measure(pixels()[:0], masks[:0])["count"].shape == (0,)


@pytest.mark.parametrize("entry", MEASURES.values(), ids=lambda m: m.name)
def test_each_entry_says_what_it_is(entry):
    assert MEASURES[entry.name] is entry
    assert entry.unit
    assert entry.source
    assert entry.kind == "continuous"
    assert entry.meaning.endswith(".")
    assert entry.meaning.count(". ") == 0  # one sentence
    with pytest.raises(AttributeError):
        entry.name = "other"


def test_a_new_measure_is_one_function_and_one_entry(monkeypatch):
    def redness(images):
        return images[..., 0].mean(axis=(1, 2))

    entry = PatchMeasure(
        name="redness", unit="1", kind="continuous", meaning="Red.", source="here", needs="pixels", function=redness
    )
    monkeypatch.setitem(MEASURES, "redness", entry)
    np.testing.assert_allclose(measure(pixels(), names="redness")["redness"], [p[..., 0].mean() for p in pixels()])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": pixels().astype(float)}, "images: must be uint8"),
        ({"images": pixels()[..., 0]}, "images: must be uint8"),
        ({"images": pixels()[:, :0]}, "images: must be uint8"),
        ({"masks": np.zeros((3, 16, 16))}, "masks: must be integers"),
        ({"masks": np.zeros((3, 16, 15), int)}, "masks: must be integers of shape"),
        ({"masks": np.full((3, 16, 16), -1)}, "at least 0, got -1"),
        ({"mpp": 0}, "mpp: must be a positive"),
        ({"mpp": np.inf}, "mpp: must be a positive"),
        ({"mpp": [1, 2]}, "one for each of 3"),
        ({"names": ["cuont"]}, "near names: count"),
        ({"names": ["count", "count"]}, "more than once"),
        ({"names": []}, "at least one"),
        ({"masks": None, "names": ["count"]}, "count needs mask"),
        ({"mpp": None, "names": ["area_um2"]}, "area_um2 needs mask and mpp"),
    ],
)
def test_bad_input_is_told_in_one_sentence(change, sentence):
    given_ = {"images": pixels(), "masks": np.ones((3, 16, 16), int), "mpp": 0.5, "names": None} | change
    with pytest.raises(InputError, match=sentence) as caught:
        measure(given_["images"], given_["masks"], given_["mpp"], names=given_["names"])
    assert "\n" not in str(caught.value)


def test_one_name_may_be_a_plain_string():
    assert check_names("count") == ("count",)


# Measures of the whole dict, against slower statements of the same


def drawn(seed=0, n=2, size=72):
    """Patches with ellipses as nuclei, some on the border, some cut from others."""
    from skimage.draw import ellipse

    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), dtype=np.uint16)
    for mask in masks:
        for label in range(1, 12):
            y, x = rng.integers(0, size, 2)
            inside = ellipse(y, x, *rng.uniform(4, 9, 2), shape=mask.shape, rotation=rng.uniform(0, 3))
            mask[inside] = label * 7
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), masks


def own(mask):
    return [mask == label for label in np.unique(mask) if label]


def touches(nucleus):
    return nucleus[0].any() or nucleus[-1].any() or nucleus[:, 0].any() or nucleus[:, -1].any()


def test_shapes_are_those_of_scikit_image():
    from skimage.measure import regionprops

    images, masks = drawn()
    values = measure(images, masks, 0.5, names="all", jpeg_quality=80)
    for k, mask in enumerate(masks):
        props = regionprops(mask)
        whole = [p for p in props if not touches(mask == p.label)]
        assert 0 < len(whole) < len(props)
        np.testing.assert_allclose(values["eccentricity"][k], np.mean([p.eccentricity for p in whole]), rtol=1e-9)
        assert abs(values["eccentricity"][k] - np.mean([p.eccentricity for p in props])) > 1e-6  # control
        np.testing.assert_allclose(values["area_sd_px"][k], np.std([p.area for p in props], ddof=1))
        np.testing.assert_allclose(values["area_sd_um2"][k], np.std([p.area for p in props], ddof=1) / 4)
        np.testing.assert_allclose(values["nuclear_share"][k], (mask > 0).mean())
        np.testing.assert_allclose(values["density_mm2"][k], len(props) / (72 * 72 * 0.25) * 1e6)
        centres = np.array([p.centroid for p in props])
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=2) + np.diag([np.inf] * len(centres))
        np.testing.assert_allclose(values["neighbour_px"][k], distances.min(axis=1).mean())
        np.testing.assert_allclose(values["neighbour_um"][k], distances.min(axis=1).mean() / 2)
        np.testing.assert_allclose(values["neighbour_sd_px"][k], distances.min(axis=1).std(ddof=1))


def test_solidity_is_area_over_the_hull_of_all_corners():
    from scipy.spatial import ConvexHull

    images, masks = drawn(1)
    values = measure(images, masks, names="solidity")["solidity"]
    for k, mask in enumerate(masks):
        expected = []
        for nucleus in own(mask):
            if not touches(nucleus):
                points = np.argwhere(nucleus)
                corners = np.concatenate([points + np.array([a, b]) for a in (0, 1) for b in (0, 1)])
                expected.append(len(points) / ConvexHull(corners).volume)
        np.testing.assert_allclose(values[k], np.mean(expected), rtol=1e-12)
    square = np.zeros((1, 9, 9), int)
    square[0, 2:6, 3:8] = 4
    dented = square.copy()
    dented[0, 2:4, 5] = 0
    assert measure(images[:1, :9, :9], square, names="solidity")["solidity"][0] == 1
    assert measure(images[:1, :9, :9], dented, names="solidity")["solidity"][0] == 18 / 20


def test_hematoxylin_is_that_of_colour_deconvolution():
    from skimage.color import rgb2hed

    images, masks = drawn(2)
    images = np.maximum(images, 1)
    values = measure(images, masks, names=["hematoxylin", "hematoxylin_sd"])
    for k, mask in enumerate(masks):
        stains = np.linalg.inv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
        unit = np.linalg.inv(np.diag(1 / np.linalg.norm(np.linalg.inv(stains), axis=1)) @ np.linalg.inv(stains))
        amount = (-np.log10(images[k] / 255.0) @ unit)[..., 0]
        each = [amount[nucleus] for nucleus in own(mask)]
        np.testing.assert_allclose(values["hematoxylin"][k], np.mean([v.mean() for v in each]), rtol=1e-4)
        np.testing.assert_allclose(values["hematoxylin_sd"][k], np.mean([v.std() for v in each]), rtol=1e-4)
        assert np.corrcoef(amount.ravel(), rgb2hed(images[k])[..., 0].ravel())[0, 1] > 0.8


def test_lab_stain_and_file_measures():
    from skimage.color import rgb2lab

    images, _ = drawn(3)
    values = measure(images, names="nuisances", jpeg_quality=37)
    for k, image in enumerate(images):
        reference = rgb2lab(image).reshape(-1, 3)
        for j, axis in enumerate("lab"):
            np.testing.assert_allclose(values[f"lab_{axis}"][k], reference[:, j].mean(), atol=0.02)
            np.testing.assert_allclose(values[f"lab_{axis}_sd"][k], reference[:, j].std(), atol=0.02)
    vectors = np.array([[values[f"stain_{s}_{c}"] for c in "rgb"] for s in "he"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    assert (values["jpeg_quality"] == 37).all()


def test_empty_masks_and_single_nuclei_have_no_value_where_there_is_none():
    images, masks = drawn(4)
    masks[0] = 0
    masks[1] = 0
    masks[1, 10:20, 10:20] = 3
    values = measure(images, masks, 0.5, names="all", jpeg_quality=50)
    assert values["count"].tolist() == [0, 1]
    for name in ("area_px", "eccentricity", "solidity", "hematoxylin", "nuclei_contrast", "nuclei_asm", "neighbour_px"):
        assert np.isnan(values[name][0])
    for name in ("area_sd_px", "neighbour_px", "neighbour_sd_px"):
        assert np.isnan(values[name][1])
    assert values["solidity"][1] == 1
    assert values["density_mm2"][0] == values["nuclear_share"][0] == 0


def test_a_batch_is_its_patches_and_labels_may_be_any():
    images, masks = drawn(5, n=3)
    together = measure(images, masks, 0.25, names="all", jpeg_quality=50)
    far = masks.astype(np.int64) * 700_001
    for name, values in together.items():
        single = [
            measure(images[k : k + 1], far[k : k + 1], 0.25, names=name, jpeg_quality=50)[name][0] for k in range(3)
        ]
        np.testing.assert_allclose(values, single, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", MEASURES)
def test_flat_patches_survive(name):
    for level in (0, 128, 255):
        flat = np.full((1, 24, 24, 3), level, dtype=np.uint8)
        masks = np.zeros((1, 24, 24), dtype=np.uint8)
        masks[0, 4:9, 4:9] = 1
        value = measure(flat, masks, 0.5, names=name, jpeg_quality=90, types={1: "neoplastic"})[name]
        assert value.shape == (1,)
        assert not np.isinf(value).any()


def test_groups_stand_for_several():
    assert spell_out("core") == CORE
    typed = spell_out("typed")
    assert {MEASURES[name].needs for name in typed} == {"types", "types+mpp"}
    assert check_names("all") == tuple(name for name in MEASURES if name not in typed)
    assert all(MEASURES[name].level == "acquisition" for name in spell_out("nuisances"))
    assert {m.level for m in MEASURES.values()} == {"nucleus", "patch", "acquisition"}


# Nuisances move the way they are meant to


def tissue(seed=0, size=96):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(size, size)), 1.5)
    field = (field - field.min()) / np.ptp(field)
    return (np.array([230, 150, 210]) - field[..., None] * np.array([120, 90, 60])).clip(0, 255).astype(np.uint8)


def test_blur_rises_with_blurring():
    from scipy.ndimage import gaussian_filter

    sharp = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
    series = [np.repeat(gaussian_filter(sharp, s)[..., None], 3, axis=2) for s in (0, 1, 2, 4)]
    values = measure(np.stack(series), names="blur")["blur"]
    assert (np.diff(values) > 0).all()
    assert 0 <= values[0] < values[-1] <= 1


def test_blur_is_the_formula():
    from conceptkit.pathology.nuisances import blur

    grey = np.random.default_rng(1).integers(0, 256, (1, 20, 22), dtype=np.uint8)
    worst = []
    for image in (grey[0].astype(float), grey[0].T.astype(float)):
        lost = total = 0.0
        for row in image:
            padded = np.pad(row, 4, mode="edge")
            again = [padded[i : i + 9].mean() for i in range(len(row))]
            for i in range(len(row) - 1):
                step = abs(row[i + 1] - row[i])
                lost += max(0.0, step - abs(again[i + 1] - again[i]))
                total += step
        worst.append((total - lost) / total)
    np.testing.assert_allclose(blur(grey)[0], max(worst), rtol=1e-5)


def test_blocks_of_jpeg_are_seen_wherever_a_patch_is_cut():
    import io

    from PIL import Image

    values = {}
    for quality in (15, 95):
        stream = io.BytesIO()
        Image.fromarray(tissue()).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as opened:
            read = np.asarray(opened.convert("RGB"))
            table = opened.quantization[0]
        crops = np.stack([read[k : k + 80, k : k + 80] for k in (0, 3, 5)])
        values[quality] = measure(crops, names="jpeg_blocks")["jpeg_blocks"]
        from conceptkit.pathology.nuisances import jpeg_quality

        assert abs(jpeg_quality(table) - quality) <= 1
    assert values[15].min() > values[95].max() + 0.2


def test_ink_is_ink_and_tissue_is_not():
    image = tissue()
    assert measure(image[None], names="ink")["ink"][0] == 0
    for colour_of_ink in ((10, 12, 14), (30, 140, 60), (20, 60, 160)):
        marked = image.copy()
        marked[:24] = colour_of_ink
        assert measure(marked[None], names="ink")["ink"][0] == 0.25


def test_the_documentation_shows_this_very_table():
    from pathlib import Path

    page = Path(__file__).parents[1] / "docs" / "measures.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if "| `" in line]
    shown = {row[0].replace("★", "").strip(" `|"): row for row in rows}
    assert list(shown) == list(MEASURES)
    for name, m in MEASURES.items():
        assert ("★" in shown[name][0]) == (name in CORE)
        assert shown[name][1:5] == [m.unit, m.level, m.role, m.needs.replace("+", ", ")]
        assert shown[name][5] == m.meaning
