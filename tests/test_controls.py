"""Controls mean nothing, and as much a matter of the group as the concept they stand beside."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2gray

from conceptkit.evaluate.clustering import intraclass_correlation
from conceptkit.probe.controls import PIXEL_STATISTICS, pixel_statistics, random_concepts, shuffled_values
from conceptkit.probe.targets import Target, make_target


def concept(icc, kind="continuous", n_groups=200, per_group=12, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    y = np.sqrt(icc) * rng.normal(size=n_groups)[groups] + np.sqrt(1 - icc) * rng.normal(size=len(groups))
    if kind == "categorical":
        return make_target("c", kind, np.array(["a", "b", "c"], dtype=object)[np.digitize(y, [-0.5, 0.8])], groups)
    return make_target("c", kind, y, groups)


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
@pytest.mark.parametrize("icc", [0.0, 0.4, 0.9])
def test_random_concepts_have_the_intraclass_correlation_of_the_concept(icc, kind):
    target = concept(icc, kind)
    drawn = random_concepts(target, 20, 0)
    assert drawn.shape == (len(target.y), 20)
    found = [Target("c", kind, target.rows, drawn[:, i], target.groups, target.classes).icc for i in range(20)]
    assert np.mean(found) == pytest.approx(target.icc, abs=0.03)
    if kind == "categorical":
        shares = [np.bincount(drawn[:, i], minlength=3) / len(drawn) for i in range(20)]
        np.testing.assert_allclose(np.mean(shares, axis=0), np.bincount(target.y) / len(drawn), atol=0.03)


def test_random_concepts_of_rows_without_groups_are_independent():
    target = make_target("c", "continuous", np.arange(300.0), None)
    drawn = random_concepts(target, 4, 0)
    assert abs(intraclass_correlation(drawn, np.arange(300) // 10)) < 0.05
    np.testing.assert_array_equal(drawn, random_concepts(target, 4, 0))
    assert (drawn != random_concepts(target, 4, 1)).any()


def test_shuffled_values_are_the_concepts_own():
    target = concept(0.4)
    drawn = shuffled_values(target, 3, 0)
    for column in drawn.T:
        np.testing.assert_array_equal(np.sort(column), np.sort(target.y))
        assert abs(np.corrcoef(column, target.y)[0, 1]) < 0.1


def test_pixel_statistics_by_their_definitions():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    pixels[1] //= 3
    found = pixel_statistics(pixels)
    assert found.shape == (2, PIXEL_STATISTICS)
    for image, values in zip(pixels / 255.0, found, strict=True):
        flat = image.reshape(-1, 3)
        for channel in range(3):
            mean, deviation, skewness, *centiles = values[8 * channel : 8 * channel + 8]
            column = flat[:, channel]
            assert mean == pytest.approx(column.mean())
            assert deviation == pytest.approx(column.std())
            assert skewness == pytest.approx((((column - column.mean()) / column.std()) ** 3).mean())
            expected = np.quantile(column, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf")
            np.testing.assert_allclose(centiles, expected)
        np.testing.assert_allclose(values[24:27], np.corrcoef(flat.T)[np.triu_indices(3, 1)], atol=1e-5)
        assert (values[27:] > 0).all()
        # Luma here, luminance there: the spread of both goes with the picture's.
        assert values[27] == pytest.approx(np.hypot(*np.gradient(rgb2gray(image))).mean(), rel=1.0)


def test_a_flat_patch_has_statistics_too():
    found = pixel_statistics(np.full((1, 8, 8, 3), 200, dtype=np.uint8))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, 27:], 0, atol=1e-6)
