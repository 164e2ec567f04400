"""Stain normalisation against scikit-image's colour spaces, and on patches that have no stain."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from conceptkit.errors import InputError
from conceptkit.families import STAIN
from conceptkit.pathology.colour import lab, tissue_weight
from conceptkit.pathology.stain import Macenko, Reinhard, lab_statistics, stain_statistics

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.09, 0.95, 0.29])


def stained(seed=0, size=64, h=HEMATOXYLIN, e=EOSIN, glass=True):
    """A patch of two known stains in known amounts, and glass in a corner."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(3, 0.15, (size, size, 2))
    amounts[: size // 3, :, 0] *= 0.05  # some tissue is eosin alone and some hematoxylin alone: Macenko needs both
    amounts[-size // 3 :, :, 1] *= 0.05
    if glass:
        amounts[: size // 4, : size // 4] = 0
    density = amounts @ np.stack([h / np.linalg.norm(h), e / np.linalg.norm(e)])
    return np.rint(255 * 10**-density).astype(np.uint8)


def test_lab_is_that_of_scikit_image():
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    image[0, 0, :3] = [[0, 0, 0], [255, 255, 255], [1, 2, 3]]
    np.testing.assert_allclose(lab(image), rgb2lab(image), atol=0.02)  # their matrix has other last digits


def by_scikit_image(image, target):
    """Reinhard in scikit-image's CIELAB over the pixels that are tissue."""
    values, tissue = rgb2lab(image), tissue_weight(image) == 1
    mean, sd = values[tissue].mean(axis=0), values[tissue].std(axis=0)
    moved = lab2rgb((values - mean) / sd * target.sd + target.mean)
    return np.rint(moved * 255), tissue


def test_reinhard_is_scikit_images_within_a_grey_level(shared_data):
    reference = np.load(shared_data / "authors" / "normalizing_patch.npy")
    method = Reinhard.fit(reference)
    with Image.open(shared_data / "monuseg" / "images" / "TCGA-18-5592-01Z-00-DX1.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))
    for crop in (pixels[:224, :224], pixels[500:724, 300:524]):
        expected, tissue = by_scikit_image(crop, method.target)
        ours = method.transform(crop[None])[0]
        assert np.abs(ours.astype(int) - expected)[tissue].max() <= 1
        assert np.abs(crop.astype(int) - expected)[tissue].max() > 20  # control: it did something
        after = lab_statistics(ours[None])
        np.testing.assert_allclose(after.mean, method.target.mean, atol=1.5)  # what no screen shows is cut off


@pytest.mark.parametrize("name", STAIN)
def test_white_black_flat_and_empty_patches_survive(name):
    method = STAIN[name].fit(stained())
    for colour in ((255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 120, 180), (243, 244, 241)):
        flat = np.full((2, 16, 16, 3), colour, dtype=np.uint8)
        np.testing.assert_array_equal(method.transform(flat), flat)
    assert method.transform(flat[:0]).shape == (0, 16, 16, 3)
    noisy = (240 + np.random.default_rng(0).integers(0, 12, (1, 32, 32, 3))).astype(np.uint8)
    np.testing.assert_array_equal(method.transform(noisy), noisy)


@pytest.mark.parametrize("name", STAIN)
def test_glass_stays_glass_and_inputs_stay_as_they_were(name):
    patch = stained(1, e=EOSIN + np.array([0.2, 0, 0.1]))
    before = patch.copy()
    moved = STAIN[name].fit(stained(2)).transform(patch[None])[0]
    np.testing.assert_array_equal(patch, before)
    glass = tissue_weight(patch) == 0
    assert glass.sum() > 200
    np.testing.assert_array_equal(moved[glass], patch[glass])
    assert (moved[~glass] != patch[~glass]).any()


@pytest.mark.parametrize("name", STAIN)
def test_a_batch_is_its_patches_and_a_slide_has_one_change(name):
    patches = np.stack([stained(k, e=EOSIN + np.array([0.1 * k, 0, 0])) for k in range(3)])
    method = STAIN[name].fit(stained(9))
    together = method.transform(patches)
    np.testing.assert_array_equal(together, np.concatenate([method.transform(p[None]) for p in patches]))
    slide = method.measure(patches)
    assert slide is not None
    by_slide = method.transform(patches, source=slide)
    assert (by_slide != together).any()
    # One change for all: pixels of one colour have one colour afterwards, in whichever patch they lie.
    halves = np.concatenate([method.transform(p[None], source=slide) for p in patches])
    np.testing.assert_array_equal(by_slide, halves)


@pytest.mark.parametrize("name", STAIN)
def test_a_patch_normalised_to_itself_hardly_changes(name):
    patch = stained(3, glass=False)
    moved = STAIN[name].fit(patch).transform(patch[None])[0]
    change = np.abs(moved.astype(int) - patch)
    assert np.percentile(change, 99) <= (1 if name == "reinhard" else 12)  # Macenko drops what is neither stain


def test_macenko_finds_the_stains_that_were_drawn():
    found = stain_statistics(stained(4, size=96)[None])
    for ours, drawn in zip(found.vectors, (HEMATOXYLIN, EOSIN), strict=True):
        assert ours @ drawn / np.linalg.norm(drawn) > 0.995
    assert found.vectors[0] @ EOSIN / np.linalg.norm(EOSIN) < 0.95  # control: they are not the same


def test_macenko_gives_the_stains_of_the_reference():
    other = stained(5, h=np.array([0.55, 0.78, 0.30]), e=np.array([0.20, 0.90, 0.38]))
    method = Macenko.fit(stained(6))
    before, after = stain_statistics(other[None]), stain_statistics(method.transform(other[None]))
    for k in range(2):
        assert after.vectors[k] @ method.target.vectors[k] > 0.998
        assert after.vectors[k] @ method.target.vectors[k] > before.vectors[k] @ method.target.vectors[k]
    np.testing.assert_allclose(after.most, method.target.most, rtol=0.1)


@pytest.mark.parametrize("name", STAIN)
def test_a_reference_without_stain_is_refused(name):
    for reference in (np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="reference: must show stained tissue"):
            STAIN[name].fit(reference)
    with pytest.raises(InputError, match="images: must be uint8"):
        STAIN[name].fit(np.zeros((8, 8)))
    with pytest.raises(InputError, match="images: must be uint8"):
        STAIN[name].fit(stained()).transform(stained())
