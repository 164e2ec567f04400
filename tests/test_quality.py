"""Quality of tissue: synthetic artefacts are found by their share, clean tissue is not, and patches are left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from conceptkit.errors import InputError
from conceptkit.pathology.colour import optical_density
from conceptkit.pathology.measures import measure
from conceptkit.pathology.quality import exclude, read_conditions
from tests.test_nuclei import drawn_tissue

SHARES = ("background", "blur_share", "folds", "ink")


def tissue(seed=0):
    """A crisp patch of 224 pixels without glass, at 0.25 µm."""
    return drawn_tissue(0.25, 56, seed=seed, number=60)[0]


def shares(image):
    return {name: float(v[0]) for name, v in measure(image[None], None, 0.25, names=SHARES).items()}


def with_glass(image):
    image[:112] = 242
    return image


def with_blur(image):
    soft = ndimage.gaussian_filter(image.astype(float), (3, 3, 0))
    image[:, :128] = soft[:, :128] + np.random.default_rng(0).normal(0, 1, (224, 128, 3))
    return image


def with_fold(image):
    density = optical_density(image)
    density[64:160] += np.roll(density, 90, axis=0)[64:160]
    return np.clip(255 * 10**-density, 0, 255).astype(np.uint8)


def with_ink(image):
    image[40:80, 20:200] = (20, 90, 160)
    return image


@pytest.mark.parametrize(
    ("artefact", "name", "low", "high"),
    [
        (with_glass, "background", 0.49, 0.51),
        (with_blur, "blur_share", 0.4, 0.7),
        (with_fold, "folds", 0.25, 0.6),
        (with_ink, "ink", 0.13, 0.16),
    ],
)
def test_an_artefact_is_found_and_taken_for_no_other(artefact, name, low, high):
    clean, spoilt = shares(tissue()), shares(artefact(tissue()))
    assert all(value < 0.03 for value in clean.values())
    assert low < spoilt[name] < high
    others = [n for n in SHARES if n != name and (name, n) != ("ink", "folds")]  # thick ink is dark as a fold is
    assert all(spoilt[n] < 0.06 for n in others), spoilt


def test_patches_of_glass_have_no_share_of_blurred_or_folded_tissue():
    found = shares(np.full((64, 64, 3), 245, np.uint8))
    assert found["background"] == 1
    assert np.isnan(found["blur_share"])
    assert np.isnan(found["folds"])


def test_a_patch_smaller_than_a_block_is_one_block():
    assert shares(tissue()[:20, :28])["blur_share"] in (0.0, 1.0)


def test_conditions_leave_patches_out_and_are_counted():
    table = pd.DataFrame({"patch_id": list("abcd"), "folds": [0.0, 0.2, 0.01, np.nan], "count": [9.0, 9.0, 2.0, 9.0]})
    left, notes = exclude(table, read_conditions(["folds", "count<5"]))
    assert left["patch_id"].tolist() == ["a", "d"]
    assert notes[0] == "2 of 4 patches were left out by --exclude (folds > 0.1 in 1, count < 5 in 1)."
    assert notes[1] == "Patches without a value of folds were not left out by it."
    assert exclude(table, ()) == (table, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold", "exclude: 'fold' is not known; near names: folds"),
        ("contrast", "exclude: contrast has no usual limit; give one, as in 'contrast>0.5'."),
        ("folds>much", "exclude: the limit of folds must be a number, got 'much'."),
        ("folds=0.1", "exclude: must be MEASURE, MEASURE>NUMBER or MEASURE<NUMBER, got 'folds=0.1'."),
    ],
)
def test_conditions_that_cannot_be_read(text, message):
    with pytest.raises(InputError) as caught:
        read_conditions([text])
    assert str(caught.value).startswith(message)


def test_not_every_patch_can_be_left_out():
    table = pd.DataFrame({"patch_id": ["a"], "ink": [0.5]})
    with pytest.raises(InputError, match=r"exclude: all 1 patches would be left out \(ink > 0.05 in 1\)"):
        exclude(table, read_conditions(["ink"]))
