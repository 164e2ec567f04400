"""Nuisances made on purpose: what is done to the pixels is what the concept says, and depends on the patch alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.families import DISTURBANCES
from conceptkit.pathology.colour import hematoxylin
from conceptkit.pathology.disturbances import blur, compress, disturbed, rescale, restain, rotate
from conceptkit.pathology.nuisances import blur as blurriness
from conceptkit.tables.patches import load_table


@pytest.fixture
def patch():
    """Smooth purple blobs on pink."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    mask = gaussian_filter(rng.normal(size=(96, 96)), 3) > 0.05
    out = np.where(mask[..., None], (110, 70, 150), (225, 170, 205)).astype(np.float64)
    return np.clip(out + rng.normal(0, 6, out.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def table(tmp_path, patch):
    rows = []
    for i in range(12):
        Image.fromarray(np.roll(patch, 7 * i, axis=0)).save(tmp_path / f"{i}.png")
        rows.append({"patch_id": f"p{i:02d}", "image": f"{i}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    return load_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", DISTURBANCES)
def test_the_shape_stays_and_the_amount_matters(patch, name):
    apply = DISTURBANCES[name].apply
    rng = np.random.default_rng(1)
    one, other = (apply(patch, DISTURBANCES[name].draw(rng)) for _ in range(2))
    assert one.shape == patch.shape
    assert one.dtype == np.uint8
    assert (one != other).any()


def test_a_turn_is_a_turn(patch):
    np.testing.assert_array_equal(rotate(patch, 0.0), patch)
    np.testing.assert_array_equal(rotate(patch, 90.0), np.rot90(patch))
    there_and_back = rotate(rotate(patch, 30.0), -30.0)[32:64, 32:64].astype(float)
    inner = patch[32:64, 32:64].astype(float)
    assert np.corrcoef(there_and_back.ravel(), inner.ravel())[0, 1] > 0.9


def test_a_doubling_is_seen_at_twice_the_size(patch):
    np.testing.assert_array_equal(rescale(patch, 0.0), patch)
    from scipy.ndimage import zoom

    larger = zoom(patch[24:72, 24:72, 1].astype(float), 2, order=1)
    np.testing.assert_allclose(rescale(patch, 1.0)[8:-8, 8:-8, 1], larger[8:-8, 8:-8], atol=40)
    assert np.corrcoef(rescale(patch, 1.0)[8:-8, 8:-8, 1].ravel(), larger[8:-8, 8:-8].ravel())[0, 1] > 0.9


def test_quality_and_focus_are_read_back(patch):
    error = [np.abs(compress(patch, q).astype(float) - patch).mean() for q in (30, 60, 95)]
    assert error[0] > error[1] > error[2]
    found = [blurriness(blur(patch, s)[None, ..., 1])[0] for s in (0.0, 1.0, 2.0)]
    assert found[0] < found[1] < found[2]
    np.testing.assert_array_equal(blur(patch, 0.0), patch)


def test_stain_is_scaled_and_glass_stays(patch):
    same = restain(patch, 0.0, stain=0)
    assert np.abs(same.astype(int) - patch).max() <= 1
    more = restain(patch, 0.5, stain=0)
    before, after = hematoxylin(patch[None]).mean(), hematoxylin(more[None]).mean()
    assert after / before == pytest.approx(2**0.5, rel=0.03)
    glass = np.full((8, 8, 3), 255, dtype=np.uint8)
    for stain in (0, 1):
        np.testing.assert_array_equal(restain(glass, 0.6, stain=stain), glass)
    eosin = hematoxylin(restain(patch, 0.5, stain=1)[None]).mean()
    assert eosin / before == pytest.approx(1.0, abs=0.03)  # the other stain's amount stays


def test_amounts_depend_on_the_patch_alone(table):
    names = ("jpeg", "rotation")
    whole = disturbed(table, names)
    assert whole.treatment.names == ("rotation", "jpeg")
    assert {"made_rotation", "made_jpeg"} <= set(whole.concept_names)
    assert whole.concept("made_jpeg").kind == "continuous"
    some = np.array([7, 2, 5])
    part = disturbed(table.select(some), names)
    for k, row in enumerate(some):
        np.testing.assert_array_equal(part.pixels(k), whole.pixels(row))
        record = whole.frame.iloc[row]
        by_hand = compress(rotate(table.pixels(row), record["made_rotation"]), record["made_jpeg"])
        np.testing.assert_array_equal(whole.pixels(row), by_hand)
    np.testing.assert_array_equal(whole.select(some).pixels(1), whole.pixels(2))
    other = disturbed(table, names, seed=1)
    assert (other.frame["made_rotation"] != whole.frame["made_rotation"]).all()


def test_what_is_disturbed_is_not_taken_for_what_is_not(table):
    plain, made, other = table, disturbed(table, ["blur"]), disturbed(table, ["blur"], seed=1)
    for a, b in ((plain, made), (made, other)):
        assert not set(a.identities()) & set(b.identities())
        assert a.digest(0) != b.digest(0)
    assert made.identities() == disturbed(table, ["blur"]).identities()


@pytest.mark.parametrize(
    ("names", "words"),
    [(["rotate"], "rotation"), (["blur", "blur"], "blur"), (["jpeg"], "already")],
    ids=["unknown", "twice", "a column of that name"],
)
def test_mistakes_are_sentences(table, names, words):
    taken = load_table(table.folder / "t.csv")
    frame = taken.frame.assign(made_jpeg=1.0)
    with pytest.raises(InputError, match=words):
        disturbed(type(taken)(frame, taken.folder), names)
    with pytest.raises(InputError, match="disturbed already"):
        disturbed(disturbed(table, ["blur"]), ["jpeg"])
