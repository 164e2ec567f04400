"""The bootstrap over groups against explicit resamples, and against the patch-wise one that flatters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from conceptkit.evaluate.resampling import (
    draw_groups,
    percentile_interval,
    r2_resampled,
)


def explicit(draw, groups):
    """Row numbers of a resample, written out: every group's rows as often as the group was drawn."""
    return np.concatenate([np.repeat(np.flatnonzero(groups == g), times) for g, times in enumerate(draw)])


def test_draws():
    draws = draw_groups(7, n_resamples=4000, seed=3)
    assert draws.shape == (4000, 7)
    assert (draws.sum(1) == 7).all()
    np.testing.assert_array_equal(draws, draw_groups(7, n_resamples=4000, seed=3))
    assert (draws != draw_groups(7, n_resamples=4000, seed=4)).any()
    # Each group is drawn once on average; the mean of 4000 draws of variance 6/7 is off by 0.015 as a rule.
    np.testing.assert_allclose(draws.mean(0), 1, atol=0.06)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(-1e5, 1e5))
def test_r2_from_sums_is_that_of_the_explicit_resample(seed, n_groups, offset):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, 40)])
    y = rng.normal(size=len(groups)) + offset
    predicted = y + rng.normal(size=len(groups))
    draws = draw_groups(n_groups, n_resamples=20, seed=seed)
    rows = [explicit(draw, groups) for draw in draws]
    expected = [r2_score(y[r], predicted[r]) if len(np.unique(y[r])) > 1 else np.nan for r in rows]
    # An offset of 1e5 leaves eleven digits of the values, and their squares' sums somewhat fewer.
    np.testing.assert_allclose(r2_resampled(y, predicted, groups, draws), expected, rtol=1e-6, atol=1e-6)


def test_percentile_interval():
    values = np.random.default_rng(0).normal(size=1001)
    values = np.concatenate([values, [np.nan, np.nan]])  # resamples without a value are left out
    assert percentile_interval(values) == pytest.approx(tuple(np.nanquantile(values, [0.025, 0.975])))
    assert percentile_interval(values, level=0.5) == pytest.approx(tuple(np.nanquantile(values, [0.25, 0.75])))
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()


def test_a_resample_of_one_value_has_no_r2():
    y, groups = np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1])
    draws = np.array([[2, 0], [1, 1]])
    found = r2_resampled(y, y, groups, draws)
    assert np.isnan(found[0])
    assert found[1] == 1


def clustered(rng, n_groups=20, per_group=30):
    """Values and predictions whose errors are shared by the rows of a group."""
    groups = np.repeat(np.arange(n_groups), per_group)
    y = rng.normal(size=n_groups)[groups] + 0.3 * rng.normal(size=len(groups))
    return groups, y, y + rng.normal(size=n_groups)[groups] + 0.3 * rng.normal(size=len(groups))


def width(y, predicted, groups):
    low, high = percentile_interval(r2_resampled(y, predicted, groups, draw_groups(groups.max() + 1)))
    return high - low


def test_on_clustered_rows_the_patchwise_interval_is_far_too_narrow():
    groups, y, predicted = clustered(np.random.default_rng(0))
    rows = np.arange(len(y))
    assert width(y, predicted, rows) < 0.5 * width(y, predicted, groups)
    # The control: on independent rows the groups mean nothing, and both intervals are of one width.
    rng = np.random.default_rng(1)
    y = rng.normal(size=len(rows))
    predicted = y + rng.normal(size=len(rows))
    assert width(y, predicted, groups) == pytest.approx(width(y, predicted, rows), rel=0.35)
