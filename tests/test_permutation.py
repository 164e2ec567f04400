"""Permutation tests as statistics: silent where nothing is, strong where something is, at the concept's level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from conceptkit.evaluate.clustering import group_means, intraclass_correlation
from conceptkit.probe import permutation
from conceptkit.probe.crossfit import each_fold
from conceptkit.probe.folds import make_folds
from conceptkit.probe.permutation import draw_orders, level_of, p_value, row_losses, smallest_p
from conceptkit.probe.ridge import ALPHAS, factorise
from conceptkit.probe.targets import make_target
from conceptkit.probe.testing import permutation_tests


def p_of(X, y, groups, *, permutations=99, seed=0, folds=5, kind="continuous"):
    target = make_target("c", kind, y, groups)
    splits = target.folds(folds)
    tests = permutation_tests([target], permutations, ALPHAS, seed)
    parts = each_fold(X, splits, tests.in_fold) if tests.by_row else []
    return tests.finish(X, splits, parts)[0]


def clustered(rng, n_groups=20, per_group=30, d=10, icc=0.8):
    """Activations and a concept that have nothing to do with each other, both alike within groups."""
    groups = np.repeat(np.arange(n_groups), per_group)

    def draw(columns):
        shared = rng.normal(size=(n_groups, columns))[groups]
        return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(groups), columns))

    return draw(d), draw(1)[:, 0], groups


def share_below(p, level=0.05):
    return float(np.mean(np.asarray(p) < level + 1e-9))


# Calibration. The seeds are 0 … 399, fixed before the first run.


def test_of_independent_rows_without_relation_one_in_twenty_is_called_significant():
    p = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        p.append(p_of(rng.normal(size=(60, 8)), rng.normal(size=60), None, seed=seed).p)
    assert 0.025 <= share_below(p) <= 0.075


def test_of_clustered_rows_without_relation_one_in_twenty_is_called_significant_at_both_levels():
    found = []
    for seed in range(400):
        X, y, groups = clustered(np.random.default_rng(seed))
        found.append(p_of(X, y, groups, seed=seed))
    assert {t.permuted for t in found} == {"groups and within"}
    assert 0.025 <= share_below([t.p for t in found]) <= 0.075
    assert 0.025 <= share_below([t.p_between for t in found]) <= 0.075
    assert 0.025 <= share_below([t.p_within for t in found]) <= 0.075


def test_the_naive_permutation_of_patches_calls_nothing_significant():
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        X, y, _ = clustered(rng)
        rows = rng.permutation(len(y))  # patches of one patient on both sides, and permuted one by one
        p.append(p_of(X[rows], y[rows], None, seed=seed).p)
    assert share_below(p) > 0.9


def test_of_classes_that_belong_to_groups_one_in_twenty_is_called_significant():
    p = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        X, _, groups = clustered(rng, per_group=5)
        words = np.array(["a", "b", "c"], dtype=object)[rng.permutation(np.arange(20) % 3)][groups]
        p.append(p_of(X, words, groups, seed=seed, kind="categorical").p)
    assert 0.025 <= share_below(p) <= 0.075


def test_what_varies_within_groups_alone_is_calibrated_and_found():
    none, some = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        X, _, groups = clustered(rng, per_group=8)
        y = rng.normal(size=160)
        none.append(p_of(X, y, groups, seed=seed))
        if seed < 20:
            some.append(p_of(X, y + 2 * (X[:, 0] - group_means(X, groups)[groups, 0]), groups, seed=seed))
    assert sum(t.permuted == "within" for t in none) > 150  # an intra-class correlation of 0 is at most 0.1 as a rule
    within = [t.p for t in none if t.permuted == "within"]
    low, high = binom.ppf([0.001, 0.999], len(within), 0.05) / len(within)
    assert low <= share_below(within) <= high
    assert share_below([t.p for t in some]) > 0.9


def test_a_relation_between_groups_is_found_between_groups():
    rng = np.random.default_rng(0)
    X, noise, groups = clustered(rng)
    y = X[:, :2].sum(1) + 0.3 * noise
    found = p_of(X, y, groups, permutations=199)
    assert found.permuted == "groups and within"
    assert found.icc > 0.6
    assert found.p_between == found.p_within == 1 / 200
    assert found.p == found.p_min == 2 / 200  # twice the smaller of the two
    centers = np.where(X[:, 0] > 0, "a", "b").astype(object)[np.arange(0, 600, 30)][groups]
    center = p_of(X, centers, groups, permutations=199, kind="categorical")
    assert (center.permuted, np.isnan(center.p_within)) == ("groups", True)
    assert center.p < 0.05


# The statistic


def explicit_loss(X, y, splits, groups):
    """The statistic of one permutation written out: ridge, penalty by generalised cross-validation, errors pooled."""
    total = 0.0
    for train, test in splits:
        scaler = StandardScaler().fit(X[train])
        Z, n = scaler.transform(X[train]), len(train)
        scores = []
        for alpha in ALPHAS:
            residual = y[train] - Ridge(alpha).fit(Z, y[train]).predict(Z)
            H = Z @ np.linalg.solve(Z.T @ Z + alpha * np.eye(Z.shape[1]), Z.T)
            scores.append((residual**2).sum() / (n - 1 - np.trace(H)) ** 2)
        predicted = Ridge(ALPHAS[int(np.argmin(scores))]).fit(Z, y[train]).predict(scaler.transform(X[test]))
        if groups is not None:
            numbers = np.unique(groups[test], return_inverse=True)[1]
            predicted = predicted - group_means(predicted[:, None], numbers)[numbers, 0]
        mean = 0.0 if groups is not None else y[train].mean()
        total += ((y[test] - predicted) ** 2).sum() - ((y[test] - mean) ** 2).sum()
    return total


@pytest.mark.parametrize("within", [True, False])
def test_the_statistic_is_the_same_for_the_concept_and_its_permutations(within):
    X, y, groups = clustered(np.random.default_rng(3), n_groups=8, per_group=9, d=6)
    y = y + X[:, 0]
    y = y - (group_means(y[:, None], groups)[groups, 0] if within else y.mean())
    splits = make_folds(72, groups, 4)
    orders = draw_orders(72, 5, 0, groups if within else None)

    def work(basis, split):
        return row_losses(basis, split, y[:, None], np.zeros(1, int), orders, ALPHAS, groups if within else None)

    found = np.sum(each_fold(X, splits, work), axis=0)[:, 0]
    expected = [explicit_loss(X, y[order], splits, groups if within else None) for order in orders.of()]
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision


def test_permuted_targets_together_are_as_one_by_one():
    X, y, groups = clustered(np.random.default_rng(1), n_groups=10, per_group=8)
    first = make_target("a", "continuous", y, groups)
    second = make_target("b", "continuous", X[:, 0] + y, groups)
    splits = make_folds(80, groups, 5)
    tests = permutation_tests([first, second], 99, ALPHAS, 0)
    together = tests.finish(X, splits, each_fold(X, splits, tests.in_fold))
    for target, result in zip((first, second), together, strict=True):
        alone = permutation_tests([target], 99, ALPHAS, 0)
        assert alone.finish(X, splits, each_fold(X, splits, alone.in_fold)) == [result]


def test_orders():
    groups = np.array([0, 1, 0, 2, 1, 0])
    drawn = draw_orders(6, 200, 0, groups)
    orders = drawn.of()
    np.testing.assert_array_equal(drawn.of(np.array([4, 1])), orders[:, [4, 1]])
    assert drawn.places.dtype == np.uint8  # a hundred thousand rows in a thousand orders are 100 MB, not 800
    np.testing.assert_array_equal(orders[0], np.arange(6))
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    assert (groups[orders] == groups).all()
    assert len({tuple(o) for o in orders}) == 12  # 3! · 2! · 1!
    free = draw_orders(3, 300, 1).of()
    assert {tuple(o) for o in free.tolist()} == set(itertools.permutations(range(3)))


def test_rows_come_in_whole_groups_some_at_a_time(monkeypatch):
    monkeypatch.setattr(permutation, "_ROWS_AT_ONCE", 10)
    groups = np.array([3, 1, 3, 0, 1, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 0])
    rows = np.arange(1, 20)
    parts = list(permutation._in_whole_groups(rows, groups))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), rows)
    own = [set(groups[part]) for part in parts]
    assert own == [{0, 1}, {2}, {3}]  # 4 rows, 12 that are more than come at once, 3
    assert [len(p) for p in permutation._in_whole_groups(rows, None)] == [10, 9]


def test_the_smallest_p():
    distinct = np.arange(8.0)[:, None]
    assert smallest_p(distinct, 999) == 1 / 1000
    assert smallest_p(np.arange(4.0)[:, None], 999) == pytest.approx(1 / 24)
    assert smallest_p(np.array([[0.0], [0], [1], [1]]), 999) == pytest.approx(1 / 6)
    assert smallest_p(np.arange(4.0)[:, None], 999, np.array([0, 0, 1, 1])) == pytest.approx(1 / 4)


def test_p_counts_the_concept_itself_and_ties():
    errors = np.array([[1.0, 2.0], [1.0 + 1e-9, 1.0], [2.0, 1.5], [0.5, 1.9]])
    np.testing.assert_allclose(p_value(errors), [3 / 4, 1.0])


# Levels


def test_levels():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    free = rng.normal(size=400)
    shared = rng.normal(size=40)[groups]
    words = np.array(["a", "b"], dtype=object)[rng.integers(0, 2, 40)][groups]

    def level(kind, y, of):
        return level_of(make_target("c", kind, y, of))

    assert level("continuous", free, None).name == "rows"
    assert level("continuous", free, groups).name == "within"
    assert (level("continuous", shared + free, groups).name, level("continuous", shared + free, groups).both) == (
        "groups",
        True,
    )
    assert (level("continuous", shared, groups).name, level("continuous", shared, groups).both) == ("groups", False)
    assert (level("categorical", words, groups).name, level("categorical", words, groups).both) == ("groups", False)
    assert level("continuous", free, np.arange(400)).name == "groups"


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.8])
def test_intraclass_correlation(icc):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(2000), rng.integers(2, 9, 2000))
    y = np.sqrt(icc) * rng.normal(size=2000)[groups] + np.sqrt(1 - icc) * rng.normal(size=len(groups))
    assert intraclass_correlation(y[:, None], groups) == pytest.approx(icc, abs=0.03)
    assert intraclass_correlation(groups[:, None].astype(float), groups) == 1
    assert np.isnan(intraclass_correlation(y[:5, None], np.arange(5)))


def test_a_wide_layer_is_tested_in_its_dual_form():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 300)) + rng.normal(size=(40, 300))
    assert factorise(X).kernel is not None
    found = p_of(X, X[:, :100].sum(1), None, permutations=99)
    assert found.p <= 0.05
