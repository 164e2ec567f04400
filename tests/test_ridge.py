"""One factorisation against scikit-learn's scaler and ridge, and folds that never split a group."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conceptkit.errors import InputError
from conceptkit.probe import ridge
from conceptkit.probe.crossfit import cross_predict_at
from conceptkit.probe.folds import inner_folds, leave_out_folds, make_folds
from conceptkit.probe.ridge import ALPHAS, column_scale, factorise, part_moments, row_moments, training_moments

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
    n, d = shape
    X, Y = draw(n + 11, d)
    train, test = np.arange(n), np.arange(n, n + 11)
    basis = factorise(X, train)
    assert (basis.kernel is None) == (n >= d)
    for alpha in ALPHAS:
        expected = reference(alpha).fit(X[train], Y[train]).predict(X[test])
        found = basis.fit(Y[train], np.full(3, alpha)).predict(test)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_coefficients_are_in_the_units_of_the_columns_each_target_at_its_own_penalty(shape):
    X, Y = draw(*shape)
    new, _ = draw(11, shape[1], seed=1)
    alphas = np.array([0.1, 10.0, 1e4])
    weights, intercept = factorise(X).fit(Y, alphas).coefficients()
    for t, alpha in enumerate(alphas):
        model = reference(alpha).fit(X, Y[:, t])
        scale = model[0].scale_
        np.testing.assert_allclose(weights[:, t], model[1].coef_ / scale, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(new @ weights[:, t] + intercept[t], model.predict(new), rtol=1e-9, atol=1e-9)
        # The intercept is the prediction where all activations are zero, wherever their means lie.
        np.testing.assert_allclose(intercept[t], model.predict(np.zeros((1, shape[1])))[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(200, 40), (120, 300)], ids=["primal", "dual"])
def test_r2_on_the_same_folds_is_exact(shape):
    X, Y = draw(*shape)
    splits = make_folds(len(X), np.arange(len(X)) % 23, 5)
    for alpha in (0.1, 30.0, 1e4):
        found = cross_predict_at(X, Y, splits, np.full(3, alpha))
        expected = np.empty_like(Y)
        for train, test in splits:
            expected[test] = reference(alpha).fit(X[train], Y[train]).predict(X[test])
            eigen = factorise(X, train).fit(Y[train], np.full(3, alpha)).predict(test)
            assert r2_score(Y[test], eigen) == pytest.approx(r2_score(Y[test], expected[test]), abs=1e-12)
        assert r2_score(Y, found) == pytest.approx(r2_score(Y, expected), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_constant_columns_tell_nothing_and_do_no_harm(shape):
    X, Y = draw(*shape)
    # 0.1 has no exact binary form: its mean over rows misses it in the last bit.
    X[:, 1], X[:, 4] = 0.1, 1e6 + 0.1
    fit = factorise(X).fit(Y, np.full(3, 0.1))
    weights, _ = fit.coefficients()
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[[1, 4]], 0, atol=1e-9)
    np.testing.assert_allclose(fit.predict(np.arange(len(X))), reference(0.1).fit(X, Y).predict(X), rtol=1e-9)


def test_a_column_that_varies_in_the_held_out_part_alone_is_constant_in_training():
    X, Y = draw(60, 12)
    X[:, 3] = 0.1
    X[50:, 3] = np.arange(10)
    splits = make_folds(60, None, 6)
    train, test = splits[-1]
    *_, moments = training_moments(part_moments(X, splits))
    expected = reference(1.0).fit(X[train], Y[train]).predict(X[test])
    found = factorise(X, train, moments).fit(Y[train], np.ones(3)).predict(test)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(cross_predict_at(X, Y, splits, np.ones(3))[test], expected, rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_parts_are_those_of_the_whole(offset, monkeypatch):
    monkeypatch.setattr(ridge, "_MOMENTS_BLOCK", 70)  # ten rows at a time
    X = np.random.default_rng(0).normal(size=(53, 7)) + offset
    rows = np.arange(3, 50)
    found = row_moments(X, rows)
    assert found.n == 47
    np.testing.assert_allclose(found.mean, X[rows].mean(0), rtol=1e-14)
    # Centring block by block keeps the digits that a mean of 10⁶ would cost raw squares: 1e-4 of a variance of 1.
    np.testing.assert_allclose(found.scatter, np.cov(X[rows].T, bias=True) * 47, rtol=1e-8, atol=1e-7)
    splits = make_folds(53, None, 4)
    for (train, _), part in zip(splits, training_moments(part_moments(X, splits)), strict=True):
        np.testing.assert_allclose(part.scatter, np.cov(X[train].T, bias=True) * len(train), rtol=1e-8, atol=1e-7)


def test_single_precision_activations_are_taken_up_in_double():
    X, Y = draw(60, 12)
    small = X.astype(np.float32)
    found = factorise(small).fit(Y, np.ones(3)).predict(np.arange(60))
    expected = factorise(small.astype(np.float64)).fit(Y, np.ones(3)).predict(np.arange(60))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_changes_when_coordinates_are_not_kept(monkeypatch):
    X, Y = draw(60, 12)
    every, train = np.arange(60), np.arange(5, 45)
    basis = factorise(X, train)
    kept = basis.fit(Y[train], np.ones(3)).predict(every)
    held_out, fitted = basis.coordinates(np.array([50, 3])), basis.coordinates(np.array([44, 5]))
    np.testing.assert_array_equal(basis.coordinates(every)[[50, 3, 44, 5]], np.concatenate([held_out, fitted]))
    Z = (X - X[train].mean(0)) / X[train].std(0)
    np.testing.assert_allclose(basis.coordinates(every), Z @ basis.vectors, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(ridge, "_KEPT", 0)
    monkeypatch.setattr(ridge, "_BLOCK", 100)
    anew = factorise(X, train)
    np.testing.assert_allclose(anew.coordinates(every), basis.coordinates(every), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(anew.fit(Y[train], np.ones(3)).predict(every), kept, rtol=1e-12)


def test_scale_is_that_of_the_standard_scaler():
    X, _ = draw(30, 6)
    X[:, 2] = 0.1
    mean, scale = column_scale(X)
    scaler = StandardScaler().fit(X)
    np.testing.assert_allclose(mean, scaler.mean_)
    np.testing.assert_allclose(scale, scaler.scale_)


def test_a_heavy_penalty_leaves_the_mean():
    X, Y = draw(60, 12)
    found = factorise(X).fit(Y, np.full(3, 1e14)).predict(np.arange(60))
    np.testing.assert_allclose(found, np.tile(Y.mean(0), (60, 1)))


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
    for seed in (0, 3):
        reference_folds = KFold(5, shuffle=True, random_state=seed)
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


def test_levels_are_held_out_one_by_one():
    levels = np.array(["a", "b", "a", "c"])
    splits = leave_out_folds(levels, "center")
    assert [test.tolist() for _, test in splits] == [[0, 2], [1], [3]]
    assert [train.tolist() for train, _ in splits] == [[1, 3], [0, 2, 3], [0, 1, 2]]
    with pytest.raises(InputError, match="center needs at least 2 levels, all rows are of 'a'"):
        leave_out_folds(np.array(["a", "a"]), "center")
