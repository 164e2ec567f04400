"""Measures against loops over nuclei."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conceptkit._checks import InputError
from conceptkit.pathology.measures import MEASURES, Measure, area_px, check_names, count, measure, names_for
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
    np.testing.assert_array_equal(count(masks), expected[:, 0])
    np.testing.assert_allclose(area_px(masks), expected[:, 1], rtol=1e-12)


def test_labels_beyond_16_bits():
    mask = np.zeros((1, 4, 4), dtype=np.uint32)
    mask[0, 0, :2], mask[0, 3, 3] = 70_000, 4_000_000_000
    assert count(mask)[0] == 2
    assert area_px(mask)[0] == 1.5


def test_all_measures_with_units_that_agree():
    images = pixels()
    masks = np.zeros((3, 16, 16), dtype=np.uint16)
    masks[0, :4, :4], masks[0, 8:, 8:] = 5, 9
    masks[1] = 1
    values = measure(images, masks, 0.25)
    assert list(values) == list(MEASURES) == ["count", "area_px", "area_um2", "contrast", "correlation"]
    assert all(v.shape == (3,) and v.dtype == np.float64 for v in values.values())
    np.testing.assert_array_equal(values["count"], [2, 1, 0])
    np.testing.assert_array_equal(values["area_px"], [40, 256, np.nan])  # nothing to average: missing, not 0
    np.testing.assert_array_equal(values["area_um2"], [2.5, 16, np.nan])
    np.testing.assert_array_equal(values["contrast"], haralick(luma(images)).contrast)
    np.testing.assert_array_equal(values["correlation"], haralick(luma(images)).correlation)


def test_what_is_measured_follows_what_is_given():
    masks = np.ones((3, 16, 16), dtype=np.uint8)
    assert list(measure(pixels())) == ["contrast", "correlation"] == list(names_for(mask=False, mpp=True))
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

    entry = Measure(
        name="redness", unit="1", kind="continuous", meaning="Red.", source="here", needs="pixels", function=redness
    )
    monkeypatch.setitem(MEASURES, "redness", entry)
    np.testing.assert_allclose(measure(pixels())["redness"], [p[..., 0].mean() for p in pixels()])


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
