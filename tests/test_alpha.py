"""The closed-form penalty against a loop over left-out groups in scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.probe import alpha as alpha_module
from conceptkit.probe import search
from conceptkit.probe.alpha import best_alpha, deleted_residuals, left_out_error
from conceptkit.probe.crossfit import deleted_errors, each_fold, mean_cosine, read_fold
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import ALPHAS, factorise
from conceptkit.probe.search import choose_alpha, exact_residuals, rough_error

SHAPES = {"primal": (90, 12), "dual": (60, 70), "few rows more": (80, 40)}


def draw(n, d, seed=0):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 7, n)  # groups of unlike sizes
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=(7, d))[groups] + 3
    Y = X[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(size=(7, 2))[groups] + rng.normal(size=(n, 2))
    return X, Y, groups


def left_out(X, Y, groups, alpha):
    """Errors of left-out rows, written out."""
    Z = StandardScaler().fit_transform(X)
    out = np.empty_like(Y)
    for train, test in LeaveOneGroupOut().split(Z, groups=groups):
        out[test] = Y[test] - Ridge(alpha).fit(Z[train], Y[train]).predict(Z[test])
    return out


@pytest.mark.parametrize("way", ["cheaper", "systems of the group", "normal equations"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_of_left_out_groups_are_those_of_the_loop(shape, way, monkeypatch):
    if way != "cheaper":
        monkeypatch.setattr(alpha_module, "_dearer", lambda s, r, a: way == "normal equations")
    X, Y, groups = draw(*shape)
    expected = np.array([(left_out(X, Y, groups, alpha) ** 2).sum(0) for alpha in ALPHAS])
    found = left_out_error(factorise(X).response(Y), groups, ALPHAS)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    chosen = choose_alpha(factorise(X).response(Y), groups)
    np.testing.assert_array_equal(chosen, ALPHAS[expected.argmin(0)])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_groups_each_row_is_left_out(shape):
    X, Y, _ = draw(*shape)
    response, rows = factorise(X).response(Y), np.arange(len(X))
    np.testing.assert_allclose(
        left_out_error(response, None, ALPHAS), left_out_error(response, rows, ALPHAS), rtol=1e-10
    )
    expected = [(left_out(X, Y, rows, alpha) ** 2).sum(0) for alpha in ALPHAS[::6]]
    np.testing.assert_allclose(left_out_error(response, None, ALPHAS[::6]), expected, rtol=1e-8)


def test_many_groups_of_many_sizes(monkeypatch):
    monkeypatch.setattr(alpha_module, "ROWS_AT_ONCE", 40)  # several chunks, and padding
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    X, Y = rng.normal(size=(len(groups), 9)), rng.normal(size=(len(groups), 2))
    rows = rng.permutation(len(groups))
    found = deleted_residuals(factorise(X[rows]).response(Y[rows]), groups[rows], np.array([1.0, 100.0]))
    for t, value in enumerate((1.0, 100.0)):
        np.testing.assert_allclose(found[:, t], left_out(X[rows], Y[rows], groups[rows], value)[:, t], rtol=1e-9)


def test_on_a_tie_the_larger_penalty_is_taken():
    X, Y, groups = draw(20, 5)
    X[:] = 1.0  # constant columns: every penalty predicts the mean
    chosen = choose_alpha(factorise(X).response(Y), groups)
    np.testing.assert_array_equal(chosen, np.full(2, ALPHAS[-1]))


def test_one_group_cannot_be_left_out():
    X, Y, _ = draw(20, 5)
    with pytest.raises(InputError, match="at least 2 groups in a training part, it has 1"):
        choose_alpha(factorise(X).response(Y), np.zeros(20, dtype=int))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_jackknife_fits_again_without_each_group(shape):
    X, Y, groups = draw(*shape)
    splits = make_folds(len(X), groups, 4)
    parts = each_fold(X, splits, lambda basis, split: (read_fold(basis, split, Y, groups, ALPHAS), split))
    for reading, (train, test) in parts:
        found = deleted_errors(reading, (train, test), Y, groups)
        scaler = StandardScaler().fit(X[train])
        for g in range(7):
            kept, scored = train[groups[train] != g], test[groups[test] != g]
            for t, alpha in enumerate(reading.alpha):
                model = Ridge(alpha).fit(scaler.transform(X[kept]), Y[kept, t])
                error = (
                    0.0 if not len(scored) else ((model.predict(scaler.transform(X[scored])) - Y[scored, t]) ** 2).sum()
                )
                assert found[g, t] == pytest.approx(error, rel=1e-8, abs=1e-9)


def test_many_groups_are_deleted_several_at_a_time():
    groups = np.repeat(np.arange(450), 2)
    units = jackknife_units(groups)
    assert units.max() + 1 == 200
    assert all(len(np.unique(units[groups == g])) == 1 for g in range(450))
    np.testing.assert_array_equal(jackknife_units(groups[:300]), groups[:300])


def test_cosine_of_directions():
    a, b = np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])
    assert mean_cosine([a, b])[0] == pytest.approx(np.sqrt(0.5))
    assert mean_cosine([a, 5 * b, -a])[0] == pytest.approx((np.sqrt(0.5) - np.sqrt(0.5) - 1) / 3)


DESIGNS = {
    "plain": lambda X, groups, rng: X,
    "columns of one group": lambda X, groups, rng: X * (groups[:, None] == np.arange(X.shape[1]) % 15),
    "outliers": lambda X, groups, rng: X * np.where(rng.random((len(X), 1)) < 0.01, 100, 1),
    "heavy tails": lambda X, groups, rng: rng.standard_t(1.5, size=X.shape),
    "patients apart": lambda X, groups, rng: X + 3 * rng.normal(size=(15, X.shape[1]))[groups],
    "few directions": lambda X, groups, rng: X[:, :20] @ rng.normal(size=(20, X.shape[1])),
}


@pytest.mark.parametrize("by_group", [True, False], ids=["groups", "rows"])
@pytest.mark.parametrize("design", DESIGNS)
def test_single_precision_decides_as_double_does(design, by_group, monkeypatch):
    monkeypatch.setattr(search, "ROUGH_FROM", 0)
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 15, 700)
    groups = numbers if by_group else None
    X = DESIGNS[design](rng.normal(size=(700, 200)) * np.linspace(1, 0.05, 200), numbers, rng)
    Y = X[:, :8] @ rng.normal(size=(8, 6)) / X[:, :8].std() + rng.normal(size=(700, 6))
    response = factorise(X).response(np.concatenate([Y, rng.normal(size=(700, 10))], axis=1))
    mix = rng.normal(size=(16, 20))
    exact = left_out_error(response, groups, ALPHAS, mix)
    found, bound = rough_error(response, groups, ALPHAS, mix)
    assert (np.abs(found - exact) <= bound).all()
    assert 0 < np.median(bound / exact) < (1e-3 if design == "outliers" else 1e-4)  # and the bound is of use
    # Penalties that differ in the seventh digit have errors within the bounds: they are compared again.
    for alphas in (ALPHAS, np.sort(np.concatenate([ALPHAS, ALPHAS * (1 + 1e-7)]))):
        expected = best_alpha(alphas, left_out_error(response, groups, alphas, mix))
        np.testing.assert_array_equal(choose_alpha(response, groups, alphas, mix), expected)
    # The control: without bounds the last choice differs.
    monkeypatch.setattr(search, "_ROUNDING", 0.0)
    assert design != "plain" or not np.array_equal(choose_alpha(response, groups, alphas, mix), expected)


@pytest.mark.parametrize("design", DESIGNS)
def test_corrected_residuals_are_those_of_double_precision(design, monkeypatch):
    monkeypatch.setattr(search, "ROUGH_FROM", 0)
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 15, 700)
    X = DESIGNS[design](rng.normal(size=(700, 200)) * np.linspace(1, 0.05, 200), groups, rng)
    Y = X[:, :3] @ rng.normal(size=(3, 2)) / X[:, :3].std() + rng.normal(size=(700, 2))
    alpha = np.array([10.0, 1000.0])
    expected = deleted_residuals(factorise(X).response(Y), groups, alpha)
    response = factorise(X).response(Y)
    found = exact_residuals(response, groups, alpha)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert (True, np.float64) not in response.basis.computed or design in ("columns of one group", "outliers")
    monkeypatch.setattr(search, "_EXACT", 1.0)  # the control: one solution, not corrected
    rough = exact_residuals(factorise(X).response(Y), groups, alpha)
    assert np.abs(rough - expected).max() > 1e-9 * np.abs(expected).max()
