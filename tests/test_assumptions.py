"""What the statistics of probes assume: each with a simulation, and the control that must fail.

Seeds and bounds were fixed before the first run. A share of data sets is compared with a binomial bound: of the nominal
rate (0.05 for p and for intervals, 0.8 for the power that is wanted) and the number of sets. An exact test crosses its
bound in one of a thousand choices of seeds. A control crosses the bound that the statistic itself must not cross.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom
from simulations import POWER, highest, in_centers, lowest, p_of, seeds, shares, two_levels
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.probe.folds import make_folds, unseen_levels
from conceptkit.probe.targets import make_target
from conceptkit.probe.testing import together
from conceptkit.probe.validation import held_out

# Power: both levels decide


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
