"""What the statistics assume: each with a simulation, and the control that must fail.

Seeds and bounds were fixed before the first run. A share of data sets is compared with a binomial bound: of the nominal
rate (0.05 for p and for intervals, 0.8 for the power that is wanted) and the number of sets. An exact test crosses its
bound in one of a thousand choices of seeds. A control crosses the bound that the statistic itself must not cross.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, ttest_1samp
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.intervals import coverage_note
from conceptkit.evaluate.paired import Scored, paired_interval, scored_r2
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
from conceptkit.guide.objective import class_weights
from conceptkit.probe.adjustment import adjusted_score, design
from conceptkit.probe.crossfit import each_fold
from conceptkit.probe.folds import make_folds, unseen_levels
from conceptkit.probe.permutation import draw_orders
from conceptkit.probe.remnants import permuted_agreement, read_remnant
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import make_target
from conceptkit.probe.testing import permutation_tests, together
from conceptkit.probe.validation import Validation, held_out


def p_of(X, y, groups, *, seed=0, permutations=99, kind="continuous", **placed):
    target = make_target("c", kind, y, groups, **placed)
    splits = target.folds(5)
    tests = permutation_tests([target], permutations, ALPHAS, seed)
    return tests.finish(X, splits, each_fold(X, splits, tests.in_fold) if tests.by_row else [])[0]


def shares(found, *names, level=0.05):
    return [float(np.mean([getattr(t, name) <= level for t in found])) for name in names]


FIRST = 730_000
"""Seed of the first data set of every simulation"""

POWER = 0.8


def seeds(n):
    return range(FIRST, FIRST + n)


def highest(n, level=0.05):
    """The share of n data sets that one in a thousand choices of seeds exceeds, where the rate is ``level``."""
    return float(binom.ppf(0.999, n, level)) / n


def lowest(n, level):
    """The share of n data sets that one in a thousand choices of seeds falls below, where the rate is ``level``."""
    return float(binom.ppf(0.001, n, level)) / n


# Power: both levels decide


def two_levels(seed, *, related, n_groups=12, per=15, d=64):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per)
    X = 0.7 * rng.normal(size=(n_groups, d))[groups] + rng.normal(size=(len(groups), d))
    y = 2 * rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
    return X, y + (1.2 * X[:, :4].sum(1) if related else 0), groups


def test_a_relation_within_patients_is_found_though_there_are_few_patients():
    found = [p_of(*two_levels(seed, related=True), seed=seed) for seed in seeds(30)]
    combined, between, within = shares(found, "p", "p_between", "p_within")
    assert combined >= lowest(30, POWER)
    assert within >= lowest(30, POWER)
    assert between < lowest(30, POWER)  # the control: group means alone were the headline p
    for t in found:
        assert t.p == min(1.0, 2 * min(t.p_between, t.p_within))
        assert t.p_min == 2 / 100
        assert t.assumed == "groups and rows within each group"


def test_p_of_both_levels_is_calibrated():
    found = [p_of(*two_levels(seed, related=False, per=5, d=8), seed=seed) for seed in seeds(600)]
    both = [t for t in found if np.isfinite(t.p_within)]
    assert len(both) > 500
    assert shares(both, "p")[0] <= highest(len(both))
    naive = [min(t.p_between, t.p_within) <= 0.05 for t in both]
    assert np.mean(naive) > binom.ppf(0.99, len(both), 0.05) / len(both)  # the control: the smaller of two is no p


def test_p_of_several_tests():
    assert together([0.3, 0.04]) == 0.08
    assert together([0.3]) == 0.3
    assert together([0.7, 0.6]) == 1.0


# Exchangeability


def in_centers(seed, *, n_groups=40, n_centers=5, per=3, d=8, moved=1.0):
    """Activations and a concept without any relation, but centers that move both."""
    rng = np.random.default_rng(seed)
    center = np.arange(n_groups) % n_centers
    groups = np.repeat(np.arange(n_groups), per)
    X = (moved * rng.normal(size=(n_centers, d))[center] + rng.normal(size=(n_groups, d)))[groups]
    y = (moved * rng.normal(size=n_centers)[center] + rng.normal(size=n_groups))[groups]
    return X + 0.3 * rng.normal(size=X.shape), y, groups, np.array(list("vwxyz"))[center][groups].astype(object)


def test_patients_are_permuted_within_their_centers():
    found, free = [], []
    for seed in seeds(100):
        X, y, groups, centers = in_centers(seed)
        found.append(p_of(X, y, groups, seed=seed, centers=centers))
        free.append(p_of(X, y, groups, seed=seed))
    assert shares(found, "p")[0] <= highest(100)
    assert shares(free, "p")[0] > highest(100)  # the control: patients are not exchangeable across these centers
    assert {t.assumed for t in found} == {"groups within each center"}
    assert {t.assumed for t in free} == {"groups"}


def test_a_relation_within_centers_is_found():
    found = []
    for seed in seeds(20):
        X, y, groups, centers = in_centers(seed)
        means = np.stack([X[groups == g].mean(0) for g in range(40)])
        found.append(p_of(X, y + 2 * means[groups, 0], groups, seed=seed, centers=centers))
    assert shares(found, "p")[0] >= lowest(20, POWER)


def test_where_centers_leave_few_permutations_both_tests_are_reported():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    centers = np.array([f"c{g % 26:02d}" for g in range(30)], dtype=object)[groups]  # four centers of two patients
    X, y = rng.normal(size=(30, 5))[groups], rng.normal(size=30)[groups]
    found = p_of(X, y, groups, centers=centers)
    assert found.p_min == pytest.approx(1 / 2**4)
    assert found.p == found.p_between >= found.p_min
    assert np.isfinite(found.p_across_centers)
    assert found.p_across_centers == p_of(X, y, groups).p
    record = ck.probe_arrays(X, {"c": y}, groups, centers=centers, permutations=99, n_resamples=50)
    assert any("p is primary and permutes groups within centers" in note for note in record.rows[0].notes)
    assert record.rows[0].p_across_centers == found.p_across_centers
    plain = ck.probe_arrays(X, {"c": y}, groups, permutations=99, n_resamples=50).rows[0]
    assert (plain.p_across_centers, plain.assumed) == (None, "groups")


def test_a_concept_of_the_center_is_permuted_across_centers():
    X, _, groups, centers = in_centers(0)
    found = p_of(X, centers, groups, centers=centers, kind="categorical")
    assert found.p_min == 1 / 100
    assert "across centers, as the concept does not vary within any center" in found.assumed
    rows = p_of(X, centers, None, centers=centers, kind="categorical")
    assert rows.assumed == "rows across centers, as the concept does not vary within any center"


def test_rows_without_groups_are_permuted_within_centers():
    found, free = [], []
    for seed in seeds(60):
        rng = np.random.default_rng(seed)
        code = np.arange(60) % 3
        X = rng.normal(size=(60, 4)) + 2 * rng.normal(size=(3, 4))[code]
        y = rng.normal(size=60) + 2 * rng.normal(size=3)[code]
        found.append(p_of(X, y, None, seed=seed, centers=np.array(list("abc"), dtype=object)[code]))
        free.append(p_of(X, y, None, seed=seed))
    assert shares(found, "p")[0] <= highest(60)
    assert shares(free, "p")[0] > highest(60)  # the control
    assert {t.assumed for t in found} == {"rows within each center"}


def on_slides(seed, *, n_patients=20, slides=3, per=4, d=8, noise=0.0):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), slides)
    slide = np.repeat(np.arange(len(patient)), per)
    X = (1.5 * rng.normal(size=(n_patients, d))[patient] + rng.normal(size=(len(patient), d)))[slide]
    y = (1.5 * rng.normal(size=n_patients)[patient] + rng.normal(size=len(patient)))[slide]
    return X + 0.5 * rng.normal(size=X.shape), y + noise * rng.normal(size=len(slide)), patient[slide], slide


def test_slides_are_permuted_within_patients():
    nested, slides, rows = [], [], []
    for seed in seeds(80):
        X, y, patient, slide = on_slides(seed)
        nested.append(p_of(X, y, patient, seed=seed, nested=slide))
        slides.append(p_of(X, y, slide, seed=seed))
        rows.append(p_of(X, y, patient, seed=seed))
    assert shares(nested, "p")[0] <= highest(80)
    assert {t.assumed for t in nested} == {"groups and nested units within each group"}
    # The controls: rows of one slide are not exchangeable with another slide's,
    assert shares(rows, "p")[0] > highest(80)
    assert shares(slides, "p")[0] > highest(80)  # nor are slides of one patient with another patient's


def test_rows_are_permuted_within_slides_where_the_concept_varies_in_them():
    found = []
    for seed in seeds(80):
        X, y, patient, slide = on_slides(seed, noise=0.5)
        found.append(p_of(X, y, patient, seed=seed, nested=slide))
    assert shares(found, "p_within")[0] <= highest(80)
    assert {t.assumed for t in found} == {"groups and rows within each nested unit"}


def test_units_that_are_not_nested_are_refused():
    values, groups = np.arange(6.0), np.array(list("aabbcc"), dtype=object)
    with pytest.raises(InputError, match="nested: every unit must lie in one group, 1 of 3 have rows in several"):
        make_target("c", "continuous", values, groups, nested=np.array(list("xxxyzz"), dtype=object))
    with pytest.raises(InputError, match="nested: c has no groups"):
        make_target("c", "continuous", values, None, nested=groups)


# Folds


def numbered_in_turn(rename=None):
    rng = np.random.default_rng(0)
    center = np.arange(40) % 5
    groups = np.repeat(np.arange(40), 10)
    names = (np.arange(100, 140) if rename is None else np.random.default_rng(rename).permutation(900)[:40])[groups]
    X = (3 * rng.normal(size=(5, 20))[center] + rng.normal(size=(40, 20)))[groups] + rng.normal(size=(400, 20))
    y = (8 * rng.normal(size=5)[center])[groups] + 0.3 * X[:, :5].sum(1) + rng.normal(size=400)
    return X, y, names.astype(str), np.array(list("vwxyz"), dtype=object)[center][groups]


def test_folds_do_not_coincide_with_centers_that_patients_were_numbered_in():
    X, y, names, centers = numbered_in_turn()
    target = make_target("c", "continuous", y, names)
    by_name = list(GroupKFold(5).split(X, groups=target.groups))
    assert all(len(np.unique(centers[test])) == 1 for _, test in by_name)  # the control: each fold is a center
    assert target.score(held_out(X, [target], splits=by_name)[0]) < 0.3
    scores = [target.score(held_out(X, [target])[0])]
    for rename in range(4):
        other = make_target("c", "continuous", y, numbered_in_turn(rename)[2])
        scores.append(other.score(held_out(X, [other])[0]))
    assert min(scores) > 0.75
    stratified = make_target("c", "continuous", y, names, centers=centers)
    for train, test in stratified.folds(5):
        assert set(centers[test]) == set(centers[train]) == set("vwxyz")
        assert abs(len(test) - 80) <= 10  # one patient


def test_folds_are_assigned_by_seed_and_balance_rows():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), rng.integers(1, 40, 50))
    one, again, other = (make_folds(len(groups), groups, 5, seed=seed) for seed in (1, 1, 2))
    for (_, a), (_, b) in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(len(a) != len(b) or (a != b).any() for (_, a), (_, b) in zip(one, other, strict=True))
    sizes = [len(test) for _, test in one]
    assert max(sizes) - min(sizes) < 10
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in one])), np.arange(len(groups)))
    assert all(not set(groups[train]) & set(groups[test]) for train, test in one)


def test_classes_of_few_patients_are_spread_over_the_folds():
    groups = np.repeat(np.arange(30), 4)
    words = np.where(groups < 5, "rare", "common").astype(object)
    lacking = []
    for seed in seeds(20):
        target = make_target("c", "categorical", words, groups, seed=seed)
        assert all("rare" in words[test] for _, test in target.folds(5))
        lacking.append(any("rare" not in words[test] for _, test in make_folds(120, groups, 5, seed=seed)))
    # The control, assigned without regard to the classes: each of five folds of six gets one of five groups.
    assert np.mean(lacking) >= lowest(20, 1 - 6**5 / math.comb(30, 5))


def test_a_training_part_without_a_center_is_noted_and_centers_are_held_out():
    X, y, names, centers = numbered_in_turn()
    lonely = np.where(np.char.equal(names.astype(str), "139"), "alone", centers.astype(str)).astype(object)
    record = ck.probe_arrays(X, {"c": y}, names, centers=lonely, permutations=0, n_resamples=50)
    [row] = record.rows
    assert any("center alone: 1 of 5 folds score it without a training row of it" in note for note in row.notes)
    assert row.leave_out == "centers"
    held = np.full(len(y), np.nan)
    for center in np.unique(lonely.astype(str)):
        here = lonely == center
        held[here] = ck.RegressionConceptVector().fit(X[~here], y[~here], names[~here]).predict(X[here])
    assert row.score_leave_out == pytest.approx(r2_score(y, held), abs=1e-6)
    assert row.score_leave_out < 0.3 < 0.75 < row.score
    without = ck.probe_arrays(X, {"c": y}, names, permutations=0, n_resamples=50).rows[0]
    assert (without.leave_out, without.score_leave_out) == (None, None)
    assert unseen_levels(np.array(["a", "", "b"]), [(np.array([0]), np.array([1, 2]))]) == {"b": 1}


def test_many_centers_that_training_lacks_are_one_note():
    X, y, names, centers = numbered_in_turn()
    numbers = names.astype(str)
    lonely = np.where(np.isin(numbers, sorted(set(numbers))[:8]), numbers, centers.astype(str)).astype(object)
    record = ck.probe_arrays(X, {"c": y}, names, centers=lonely, permutations=0, n_resamples=50)
    said = [note for note in record.rows[0].notes if "without a training row" in note]
    assert len(said) == 1
    assert " and 3 more: 1 of 5 folds score each without a training row of it" in said[0]


def test_many_centers_are_held_out_in_ten_parts():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(36), 3)
    X, y = rng.normal(size=(108, 4)), rng.normal(size=108)
    centers = np.array([f"c{g % 18:02d}" for g in groups], dtype=object)
    [row] = ck.probe_arrays(X, {"c": y}, groups, centers=centers, permutations=0, n_resamples=50).rows
    assert "leave-out centers: the 18 levels were held out in 10 parts." in row.notes
    [row] = ck.probe_arrays(X, {"c": y}, groups, leave_out=centers, permutations=0, n_resamples=50).rows
    assert not row.notes  # asked for: each in turn


# Audit


def test_the_audit_has_the_interval_of_the_probe():
    """Models reach about the mean score of all sets: the percentile interval misses it more often."""
    ours, plain = [], []
    for seed in seeds(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(14), 4)
        X = rng.normal(size=(14, 4))[groups] + rng.normal(size=(56, 4))
        y = X[:, 0] + rng.normal(size=14)[groups] + rng.normal(size=56)
        target = make_target("c", "continuous", y, groups)
        found = read_remnant(X, target, "linear", permutations=0, n_resamples=400, seed=seed)
        percentile = percentile_interval(r2_resampled(y, found.predicted, groups, draw_groups(14, n_resamples=400)))
        ours.append((found.interval.low, found.interval.high, found.score))
        plain.append((*percentile, found.score))
    low, high, score = np.array(ours).T
    truth = score.mean()
    covered = np.mean((low <= truth) & (truth <= high))
    plain_low, plain_high, _ = np.array(plain).T
    assert covered >= lowest(60, 0.95)
    assert np.mean((plain_low <= truth) & (truth <= plain_high)) < covered  # the control
    assert "14 groups" in found.interval.note
    [row] = ck.probe_arrays(X, {"c": y}, groups, permutations=0, n_resamples=400, random_state=seed).rows
    again = read_remnant(
        X, dataclasses.replace(target, seed=seed), "linear", permutations=0, n_resamples=400, seed=seed
    )
    assert (again.score, again.interval.low, again.interval.high) == pytest.approx(
        (row.score, row.score_low, row.score_high), abs=1e-9
    )


def test_the_audits_linear_p_is_that_of_the_probe():
    X, y, groups, centers = in_centers(3)
    target = make_target("c", "continuous", y, groups, centers=centers)
    found = read_remnant(X, target, "linear", permutations=99, n_resamples=20)
    assert found.tested.p == p_of(X, y, groups, centers=centers).p


def test_after_erasure_no_permutation_of_the_linear_probe_differs():
    X, y, groups = two_levels(0, related=True)
    found = read_remnant(X[:, :5], make_target("c", "continuous", y, groups), "linear", erased=True, permutations=99)
    assert found.tested.p == 1.0


def test_predictions_that_are_not_fitted_again_are_compared_with_twice_the_variance():
    """Predictions of each fold from the values of the others, without a relation: pairs of rows count twice."""
    found, naive = [], []
    for seed in seeds(1000):
        rng = np.random.default_rng(seed)
        K, y = (A := rng.normal(size=(40, 80))) @ A.T, rng.normal(size=40)
        target = make_target("c", "continuous", y, None, seed=seed)
        predicted = np.empty(40)
        for train, test in (splits := target.folds(4)):
            read = K[np.ix_(test, train)] @ (y[train] - y[train].mean())
            predicted[test] = read - read.mean()
        found.append(permuted_agreement(target, predicted, splits, 99, seed).p <= 0.05)
        drawn = y[draw_orders(40, 99, seed).of()] @ predicted
        naive.append(np.mean(drawn >= drawn[0]) <= 0.05)
    assert np.mean(found) <= highest(1000)
    # The control: as if predictions of different folds were independent.
    assert np.mean(naive) > highest(1000)


# Partial R²


def adjusted(X, y, confounders, groups, **how):
    target = make_target("c", "continuous", y, groups)
    return adjusted_score(X, target, confounders, target.folds(5), Validation(n_resamples=20), **how)


def test_the_square_of_a_confounder_is_removed_when_it_is_named():
    rng = np.random.default_rng(0)
    w, groups = rng.normal(size=300), np.repeat(np.arange(30), 10)
    X, y = np.column_stack([w, w**2, rng.normal(size=(300, 4))]), w**2 + 0.3 * rng.normal(size=300)
    linear = adjusted(X, y, {"w": w}, groups)
    assert linear.score > 0.85  # the control: w itself tells nothing of w², and nothing is taken away
    assert linear.confounders <= 0.05
    squares = adjusted(X, y, {"w": w}, groups, terms="quadratic")
    assert abs(squares.score) < 0.05
    assert squares.confounders > 0.85


def test_irrelevant_confounders_do_not_raise_the_partial_r2():
    few, many, least_squares = [], [], []
    for seed in seeds(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(20), 4)
        w = rng.normal(size=80)
        y = w + 0.8 * rng.normal(size=80)
        X = np.column_stack([y + 0.35 * rng.normal(size=80), rng.normal(size=(80, 6))])
        noise = {f"n{i}": rng.normal(size=80) for i in range(25)}
        few.append(adjusted(X, y, {"w": w}, groups))
        many.append(adjusted(X, y, {"w": w, **noise}, groups))
        C = design({"w": w, **noise})
        target = make_target("c", "continuous", y, groups)
        left = np.empty(80)
        for train, test in target.folds(5):
            A = np.column_stack([np.ones(80), C])
            left[test] = y[test] - A[test] @ np.linalg.lstsq(A[train], y[train], rcond=None)[0]
        least_squares.append(r2_score(y, y - left))
    raised = [a.score - b.score for a, b in zip(many, few, strict=True)]
    assert ttest_1samp(raised, 0.0).pvalue > 0.001
    # What least squares makes of 25 columns that mean nothing, and what ridge does: the confounders' own score.
    own = np.array([a.confounders for a in many])
    assert ttest_1samp(own - least_squares, 0.0, alternative="greater").pvalue < 0.001
    assert ttest_1samp(own, 0.0, alternative="greater").pvalue < 0.001


def test_partial_r2_is_the_share_of_what_the_confounders_leave():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 6)
    center = np.array(list("abcd"), dtype=object)[np.arange(20) % 4][groups]
    shift = (3 * rng.normal(size=4))[np.arange(20) % 4][groups]
    X = rng.normal(size=(120, 5)) + shift[:, None]
    alone = adjusted(X, shift + rng.normal(size=120), {"center": center}, groups)
    assert alone.confounders > 0.7
    assert alone.score < 0.1  # pure confounding
    nothing = adjusted(X, rng.normal(size=120), {"center": center}, groups)
    assert nothing.confounders <= 0
    assert "the confounders do not predict the concept on held-out groups" in nothing.note
    assert alone.note is None


def test_the_design_of_squares_and_interactions():
    x, words = np.array([0.0, 1, 2, 3]), np.array(list("abab"), dtype=object)
    assert design({"x": x, "w": words}).shape == (4, 2)
    C = design({"x": x, "w": words}, "quadratic")
    z = (x - 1.5) / x.std()
    np.testing.assert_allclose(C, np.column_stack([z, words == "b", z**2, z * (words == "b")]))


# What scores have to be read against


def test_selectivity_is_not_above_the_gain_over_chance():
    X, y, groups = two_levels(1, related=True)
    record = ck.probe_arrays(X, {"c": y, "n": np.random.default_rng(0).normal(size=len(y))}, groups, permutations=0)
    for row in record.rows:
        assert row.score_random_concept < 0  # the control: subtracting it would add to the score
        assert row.selectivity == row.score - max(row.score_random_concept, row.chance) == row.score


def test_the_gain_over_baselines_has_a_paired_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    Z = rng.normal(size=(240, 6)) + rng.normal(size=(30, 6))[groups]
    y = Z[:, 0] + Z[:, 1] + 2 * rng.normal(size=30)[groups] + 0.3 * rng.normal(size=240)
    baselines = {"pixels": Z + 0.05 * rng.normal(size=Z.shape), "random_network": [Z[:, 3:], Z[:, 3:] ** 2]}
    record = ck.probe_arrays(Z, {"c": y}, groups, baseline_features=baselines, permutations=0, n_resamples=200)
    [row] = record.rows
    assert row.r2_above_baseline == pytest.approx(row.score - max(0, row.score_random_network, row.score_pixels))
    assert row.r2_above_baseline_low < 0.02
    assert row.r2_above_baseline_low <= row.r2_above_baseline <= row.r2_above_baseline_high
    # The control: the score's own interval is far wider than that of two readings of the same patients.
    width = row.r2_above_baseline_high - row.r2_above_baseline_low
    assert width < 0.25 * (row.score_high - row.score_low)
    target = make_target("c", "continuous", y, groups)
    [own], [pixels], *networks = ([scored_r2(y, held_out(A, [target])[0], groups)] for A in (Z, *flat(baselines)))
    intervals = [paired_interval([own], [pixels]), paired_interval([own] * 2, [one for [one] in networks])]
    assert row.r2_above_baseline_low == pytest.approx(min(row.score_low, *(one.low for one in intervals)))
    assert row.r2_above_baseline_high == pytest.approx(min(row.score_high, *(one.high for one in intervals)))


def flat(baselines):
    return [baselines["pixels"], *baselines["random_network"]]


# Patients of unequal size


def test_the_effective_number_of_groups():
    assert effective_number(np.repeat(np.arange(12), 5)) == pytest.approx(12)
    half = np.repeat(np.arange(30), [290, *[10] * 29])
    assert effective_number(half) == pytest.approx(1 / (0.25 + 0.25 / 29))
    assert coverage_note(30, effective=effective_number(half)) == (
        "the interval rests on 30 groups of unequal size, worth 4 equal ones and may cover far less than 95 %"
    )
    assert coverage_note(30, effective=30.0) is None


def test_a_patient_of_half_the_rows_costs_degrees_of_freedom():
    """Two readings that are equally good: how often the interval of their difference misses 0."""
    ours, by_count = [], []
    sizes = np.array([70, *[10] * 7])
    groups = np.repeat(np.arange(8), sizes)
    for seed in seeds(400):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=8)[groups] + rng.normal(size=140)
        pair = [y + 0.7 * rng.normal(size=8)[groups] + 0.5 * rng.normal(size=140) for _ in range(2)]
        first, second = (scored_r2(y, one, groups) for one in pair)
        found = paired_interval([first], [second])
        counted = paired_interval([Scored(first.value, first.deleted)], [second])
        ours.append(not found.low <= 0 <= found.high)
        by_count.append(not counted.low <= 0 <= counted.high)
    assert np.mean(ours) <= highest(400)
    assert np.mean(by_count) > np.mean(ours)


def test_three_classes_weigh_the_same_whatever_their_shares():
    codes = torch.tensor([0] * 60 + [1] * 30 + [2] * 10 + [-1] * 5)
    weights = class_weights(codes, 3)
    counts = torch.bincount(codes[codes >= 0])
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)
    assert class_weights(codes, 4).tolist() == pytest.approx([100 / 240, 100 / 120, 2.5, 0.0])
    two = class_weights(codes[:90], 2)
    assert (two[0] / two[1]).item() == pytest.approx(30 / 60)
