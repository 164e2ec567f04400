"""What the scores assume, each with a simulation and the control that must fail: audit, partial R², patients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from simulations import highest, in_centers, lowest, p_of, seeds, two_levels
from sklearn.metrics import r2_score

import conceptkit as ck
from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.intervals import coverage_note
from conceptkit.evaluate.paired import Scored, paired_interval, scored_r2
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
from conceptkit.guide.objective import class_weights
from conceptkit.probe.adjustment import adjusted_score, design
from conceptkit.probe.permutation import draw_orders
from conceptkit.probe.remnants import permuted_agreement, read_remnant
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import Validation, held_out

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
