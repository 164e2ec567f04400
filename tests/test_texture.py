"""Texture in closed form against scikit-image's co-occurrence matrix."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.feature import graycomatrix, graycoprops

from conceptkit.errors import InputError
from conceptkit.pathology.texture import ANGLES, cooccurrence, haralick, luma

MONUSEG = Path(__file__).parents[1].parent / "shared" / "data" / "monuseg"


def by_matrix(grey, distance=1, angles=(0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)):
    """Contrast and correlation of one image, (2, angles), from the co-occurrence matrix."""
    matrix = graycomatrix(grey, [distance], angles, levels=256, symmetric=True, normed=True)
    return np.array([graycoprops(matrix, p)[0] for p in ("contrast", "correlation")])


def assert_agrees(grey, distance=1):
    ours = haralick(grey[None], distance=distance)
    contrast, correlation = by_matrix(grey, distance)
    # Relative: scikit-image adds 65,536 rounded terms of up to 65,025, ours are sums of whole numbers.
    np.testing.assert_allclose(ours.contrast[0], contrast.mean(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.correlation[0], correlation.mean(), rtol=0, atol=1e-9)


def smooth(rng, size):
    y, x = np.mgrid[:size, :size] / size
    return (127 + 60 * np.sin(5 * x + 3 * y) + 40 * y + rng.normal(0, 2, (size, size))).clip(0, 255).astype(np.uint8)


def test_luma_is_pillows_bit_for_bit():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 97, 64, 3), dtype=np.uint8)
    images[0, :2] = [[[255, 255, 255]], [[0, 0, 0]]]
    expected = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in images])
    assert luma(images).dtype == np.uint8
    np.testing.assert_array_equal(luma(images), expected)
    truncated = (images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # control: the usual shortcut is not it
    assert (truncated != expected).any()


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_random_and_smooth_patches_agree_with_the_matrix(distance):
    rng = np.random.default_rng(1)
    assert_agrees(rng.integers(0, 256, (64, 80), dtype=np.uint8), distance)
    assert_agrees(smooth(rng, 96), distance)


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="the MoNuSeg images are not beside the repository")
def test_a_real_tile_agrees_with_the_matrix():
    path = sorted((MONUSEG / "images").iterdir())[0]
    with Image.open(path) as image:
        assert_agrees(np.asarray(image.convert("L"))[224:448, :224])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(arrays(np.uint8, st.tuples(st.integers(2, 6), st.integers(2, 6)), elements=st.sampled_from([0, 1, 7, 254, 255])))
def test_small_images_agree_except_where_correlation_is_missing(grey):
    contrast, _ = by_matrix(grey)
    ours = haralick(grey[None])
    np.testing.assert_allclose(ours.contrast[0], contrast.mean(), rtol=1e-9, atol=1e-9)
    pairs = [(grey[:, :-1], grey[:, 1:]), (grey[:-1, :-1], grey[1:, 1:]), (grey[:-1], grey[1:])]
    pairs.append((grey[:-1, 1:], grey[1:, :-1]))
    flat = any(len(np.unique(np.concatenate([a.ravel(), b.ravel()]))) == 1 for a, b in pairs)
    assert math.isnan(ours.correlation[0]) == flat
    if not flat:
        both = [np.concatenate([[a.ravel(), b.ravel()], [b.ravel(), a.ravel()]], axis=1) for a, b in pairs]
        expected = np.mean([np.corrcoef(x.astype(float))[0, 1] for x in both])
        np.testing.assert_allclose(ours.correlation[0], expected, atol=1e-9)


def test_a_flat_patch_has_no_correlation():
    flat = np.full((1, 16, 16), 200, dtype=np.uint8)
    assert haralick(flat).contrast[0] == 0
    assert math.isnan(haralick(flat).correlation[0])
    assert by_matrix(flat[0])[1].mean() == 1  # what scikit-image says, and we do not


def test_every_angle_counts():
    rng = np.random.default_rng(2)
    stripes = np.repeat(rng.integers(0, 256, (1, 40), dtype=np.uint8), 40, axis=0)  # equal along the columns
    assert_agrees(stripes)
    ours, (contrast, _) = haralick(stripes[None]).contrast[0], by_matrix(stripes)
    assert abs(ours - contrast[0]) > 1  # control: one angle is not the mean of four
    assert len(ANGLES) == 4


def test_large_values_do_not_overflow():
    board = (np.indices((600, 600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    ours = haralick(board[None])
    assert ours.contrast[0] == 255**2 / 2  # neighbours differ, diagonals do not
    np.testing.assert_allclose(ours.correlation[0], 0, atol=1e-12)


def test_a_batch_is_its_patches_and_an_empty_one_is_empty():
    batch = np.random.default_rng(3).integers(0, 256, (4, 12, 9), dtype=np.uint8)
    one_by_one = [haralick(b[None]).correlation[0] for b in batch]
    np.testing.assert_array_equal(haralick(batch).correlation, one_by_one)
    assert haralick(batch[:0]).contrast.shape == (0,)
    np.testing.assert_array_equal(haralick(batch.transpose(0, 2, 1)).contrast, haralick(batch).contrast)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 9, 1), (9, 9), (1, 0, 9)])
def test_too_few_rows_or_columns(shape):
    with pytest.raises(InputError, match="luma: must"):
        haralick(np.zeros(shape, dtype=np.uint8))


def test_other_bad_input():
    grey = np.zeros((1, 8, 8), dtype=np.uint8)
    with pytest.raises(InputError, match="uint8"):
        haralick(grey.astype(np.int64))
    with pytest.raises(InputError, match="distance"):
        haralick(grey, distance=0)
    with pytest.raises(InputError, match="more than 8 rows"):
        haralick(grey, distance=8)
    with pytest.raises(InputError, match="images"):
        luma(grey)


def four_by_matrix(grey, distance=1):
    matrix = graycomatrix(grey, [distance], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], 256, symmetric=True, normed=True)
    return [graycoprops(matrix, p).mean() for p in ("contrast", "correlation", "homogeneity", "ASM")]


def four(found):
    return [v[0] for v in (found.contrast, found.correlation, found.homogeneity, found.asm)]


@pytest.mark.parametrize("distance", [1, 2])
def test_four_properties_agree_with_the_matrix(distance):
    rng = np.random.default_rng(5)
    for grey in (rng.integers(0, 256, (40, 50), dtype=np.uint8), smooth(rng, 64)):
        np.testing.assert_allclose(
            four(cooccurrence(grey[None], distance=distance)), four_by_matrix(grey, distance), 1e-9
        )


def test_inside_nuclei_only_pairs_of_one_nucleus_count():
    rng = np.random.default_rng(6)
    grey = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    labels = np.zeros((24, 24), dtype=np.uint16)
    labels[2:9, 2:9], labels[2:9, 9:15], labels[12:20, 5:18] = 300, 2, 7  # the first two touch
    matrices = []
    for down, right in ((0, 1), (1, 1), (1, 0), (1, -1)):
        matrix = np.zeros((256, 256))
        for y in range(24):
            for x in range(24):
                if y + down < 24 and 0 <= x + right < 24:
                    one, other = labels[y, x], labels[y + down, x + right]
                    if one == other != 0:
                        matrix[grey[y, x], grey[y + down, x + right]] += 1
        matrices.append((matrix + matrix.T) / (2 * matrix.sum()))
    stack = np.stack(matrices, axis=-1)[:, :, None, :]
    expected = [graycoprops(stack, p).mean() for p in ("contrast", "correlation", "homogeneity", "ASM")]
    np.testing.assert_allclose(four(cooccurrence(grey[None], labels[None])), expected, rtol=1e-9)
    touching = cooccurrence(grey[None], (labels[None] > 0).astype(np.uint8))  # control: one nucleus of the two
    assert abs(touching.contrast[0] - expected[0]) > 1e-3


def test_without_a_nucleus_there_is_no_texture_of_nuclei():
    grey = np.zeros((1, 8, 8), dtype=np.uint8)
    assert np.isnan(four(cooccurrence(grey, np.zeros((1, 8, 8), dtype=int)))).all()
