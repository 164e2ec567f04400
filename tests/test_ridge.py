"""The ridge path against scikit-learn's ridge, and the choice of the penalty against loops written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conceptkit._checks import InputError
from conceptkit.probe.folds import inner_folds, make_folds
from conceptkit.probe.ridge import ALPHAS, choose_alpha, column_scale, held_out_error, ridge_path

SHAPES = {"primal": (60, 12), "square": (25, 25), "dual": (20, 70)}


def draw(n, d, t=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.01, 100, d) + rng.normal(size=d) * 10  # columns of unlike units
    Z = (X - X.mean(0)) / X.std(0)
    return X, Z @ rng.normal(size=(d, t)) / np.sqrt(d) + rng.normal(size=(n, t)) + 5


def reference(alpha):
    return make_pipeline(StandardScaler(), Ridge(alpha))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_predictions_are_those_of_scaler_and_ridge(shape):
    X, Y = draw(*shape)
    new, _ = draw(11, shape[1], seed=1)
    path = ridge_path(X, Y)
    predicted = path.predict(new, ALPHAS)
    assert predicted.shape == (len(ALPHAS), 11, 3)
    for i, alpha in enumerate(ALPHAS):
        np.testing.assert_allclose(predicted[i], reference(alpha).fit(X, Y).predict(new), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_coefficients_are_in_the_units_of_the_columns_each_target_at_its_own_penalty(shape):
    X, Y = draw(*shape)
    new, _ = draw(11, shape[1], seed=1)
    alphas = np.array([0.1, 10.0, 1e4])
    weights, intercept = ridge_path(X, Y).coefficients(alphas)
    for t, alpha in enumerate(alphas):
        model = reference(alpha).fit(X, Y[:, t])
        scale = model[0].scale_
        np.testing.assert_allclose(weights[:, t], model[1].coef_ / scale, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(new @ weights[:, t] + intercept[t], model.predict(new), rtol=1e-9, atol=1e-9)
        # The intercept is the prediction where all activations are zero, wherever their means lie.
        np.testing.assert_allclose(intercept[t], model.predict(np.zeros((1, shape[1])))[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_constant_columns_tell_nothing_and_do_no_harm(shape):
    X, Y = draw(*shape)
    # 0.1 has no exact binary form: its mean over rows misses it in the last bit.
    X[:, 1], X[:, 4] = 0.1, 1e6 + 0.1
    path = ridge_path(X, Y)
    weights, _ = path.coefficients(np.full(3, 0.1))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[[1, 4]], 0, atol=1e-9)
    np.testing.assert_allclose(path.predict(X, np.array([0.1]))[0], reference(0.1).fit(X, Y).predict(X), rtol=1e-9)


def test_scale_is_that_of_the_standard_scaler():
    X, _ = draw(30, 6)
    X[:, 2] = 0.1
    mean, scale = column_scale(X)
    scaler = StandardScaler().fit(X)
    np.testing.assert_allclose(mean, scaler.mean_)
    np.testing.assert_allclose(scale, scaler.scale_)


def test_a_heavy_penalty_leaves_the_mean():
    X, Y = draw(60, 12)
    np.testing.assert_allclose(ridge_path(X, Y).predict(X, np.array([1e14]))[0], np.tile(Y.mean(0), (60, 1)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_penalty_is_that_of_least_squared_error_on_left_out_groups(shape):
    X, Y = draw(*shape)
    groups = np.random.default_rng(2).integers(0, 6, len(X))
    splits = inner_folds(groups, len(X), 3)
    error = np.zeros((len(ALPHAS), 3))
    for train, test in GroupKFold(3).split(X, groups=groups):
        assert not set(groups[train]) & set(groups[test])
        for i, alpha in enumerate(ALPHAS):
            for t in range(3):
                predicted = reference(alpha).fit(X[train], Y[train, t]).predict(X[test])
                error[i, t] += ((predicted - Y[test, t]) ** 2).sum()
    np.testing.assert_allclose(held_out_error(X, Y, splits, ALPHAS), error, rtol=1e-8)
    np.testing.assert_array_equal(choose_alpha(X, Y, splits), ALPHAS[error.argmin(0)])


def test_on_a_tie_the_larger_penalty_is_taken():
    X, Y = draw(20, 3)
    X[:] = 1.0  # constant columns: every penalty predicts the mean
    np.testing.assert_array_equal(choose_alpha(X, Y, inner_folds(None, 20, 4)), np.full(3, ALPHAS[-1]))


# Folds


def test_folds_never_split_a_group():
    groups = np.random.default_rng(0).integers(0, 9, 100)
    splits = make_folds(100, groups, 4)
    assert len(splits) == 4
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(100))
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test])
    # The control: plain folds do split them.
    assert any(set(groups[train]) & set(groups[test]) for train, test in make_folds(100, None, 4))


def test_plain_folds_are_those_of_scikit_learn():
    for seed, reference_folds in ((None, KFold(5)), (3, KFold(5, shuffle=True, random_state=3))):
        for (a, b), (c, d) in zip(make_folds(23, None, 5, seed=seed), reference_folds.split(np.zeros(23)), strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)


def test_too_few_groups_for_the_folds():
    with pytest.raises(InputError, match="5 folds need at least 5 groups, the rows with count have 3"):
        make_folds(30, np.repeat(np.arange(3), 10), 5, what="the rows with count")
    with pytest.raises(InputError, match="5 folds need at least 5 rows, the rows have 4"):
        make_folds(4, None, 5)
    with pytest.raises(InputError, match="folds: must be at least 2, got 1"):
        make_folds(4, None, 1)


def test_inner_folds_make_do_with_the_groups_there_are_but_not_with_one():
    assert len(inner_folds(np.repeat(np.arange(3), 10), 30, 5)) == 3
    assert len(inner_folds(None, 3, 5)) == 3
    with pytest.raises(InputError, match="2 folds need at least 2 groups, a training part have 1"):
        inner_folds(np.zeros(30, int), 30, 5)
