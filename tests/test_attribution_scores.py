"""Vectors, patterns, scores and what they are by chance, against slower statements and controls."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom

import conceptkit as ck
from conceptkit.attribution.analysis import analyse
from conceptkit.attribution.directions import fit_concept, fit_shuffled, patterns, refit
from conceptkit.attribution.nulls import score_all, shuffle_rows, two_sided_p
from conceptkit.attribution.tcav import directional_derivatives, magnitude, mean, relevance, sign_count
from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import group_means, intraclass_correlation
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.probe.permutation import level_of
from conceptkit.probe.targets import make_target

GROUPS, EACH, WIDTH = 20, 8, 6


def made(seed=0, *, icc=0.4, kind="continuous", width=WIDTH, each=EACH, groups=GROUPS):
    """Activations, a concept read from the first of them, and one that has nothing to do with any."""
    rng = np.random.default_rng(seed)
    n = groups * each
    of = np.repeat(np.arange(groups), each)

    def drawn(columns):
        shared = rng.normal(size=(groups, columns))[of]
        return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(n, columns))

    X = drawn(width) @ rng.normal(size=(width, width))
    own, other = X[:, 0] + 0.2 * drawn(1)[:, 0], drawn(1)[:, 0]
    names = np.array([f"P{g:02d}" for g in of], dtype=object)
    if kind == "categorical":
        words = np.array(["low", "high"], dtype=object)
        own, other = (words[(v > np.median(v)).astype(int)] for v in (own, other))
    return X, make_target("own", kind, own, names), make_target("other", kind, other, names)


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_their_documented_formulas():
    S, r2 = np.random.default_rng(0).normal(0.3, 1.0, (50, 3)), np.array([0.5, -0.2, 0.8])
    for t in range(3):
        up = [s for s in S[:, t] if s > 0]
        assert sign_count(S)[t] == pytest.approx(len(up) / 50)
        assert magnitude(S)[t] == pytest.approx(sum(up) / sum(abs(s) for s in S[:, t]))
        assert mean(S)[t] == pytest.approx(sum(S[:, t]) / 50)
        average = sum(S[:, t]) / 50
        spread = math.sqrt(sum((s - average) ** 2 for s in S[:, t]) / 49)
        assert relevance(S, r2)[t] == pytest.approx(max(r2[t], 0.0) * average / spread)
    assert relevance(S, r2)[1] == 0.0  # what is not read is not relevant


def test_signs_are_pinned():
    rising = np.array([[2.0], [1.0], [3.0]])
    assert [float(v[0]) for v in score_all(rising, 0.5).values()] == [1.0, 1.0, 2.0, pytest.approx(1.0)]
    assert [float(v[0]) for v in score_all(-rising, 0.5).values()] == [0.0, 0.0, -2.0, pytest.approx(-1.0)]
    assert sign_count(np.array([[0.0], [1.0]]))[0] == 0.5  # no change is not a rise


def test_a_score_without_a_value_has_none():
    assert math.isnan(magnitude(np.zeros((3, 1)))[0])
    assert math.isnan(relevance(np.full((3, 1), 2.0), 0.9)[0])  # a linear network: one derivative for every image
    assert math.isnan(relevance(np.full((3, 1), 2.0) * (1 + 1e-9 * np.arange(3)[:, None]), 0.9)[0])
    assert math.isnan(relevance(np.ones((1, 1)), 0.9)[0])
    with pytest.raises(InputError, match=r"images: .* got none"):
        directional_derivatives(np.zeros((0, 4)), np.ones((4, 1)))


def test_p_counts_what_is_as_far_from_indifference_on_either_side():
    null = np.array([-3.0, -1.0, 0.0, 1.0])
    assert two_sided_p(2.0, null) == pytest.approx(2 / 5)
    assert two_sided_p(-1.0, null) == pytest.approx(4 / 5)
    assert two_sided_p(0.9, np.array([0.1, 0.2, 0.5]), 0.5) == pytest.approx(2 / 4)
    assert two_sided_p(2.0, np.array([np.nan, 0.0])) == pytest.approx(2 / 3)  # a shuffle that says nothing is no help
    assert math.isnan(two_sided_p(np.nan, null))
    assert math.isnan(two_sided_p(1.0, np.zeros(0)))
    q = adjust_for_many([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(q, [0.03, np.nan, 0.04, 0.04])


# --- vectors and patterns ----------------------------------------------------------------------------------------


def test_the_vector_is_that_of_the_estimators():
    X, own, _ = made()
    fitted = fit_concept(X, own)
    expected = ck.RegressionConceptVector().fit(X, own.y, own.groups)
    np.testing.assert_allclose(fitted.found.vectors[:, 0], expected.coef_)
    np.testing.assert_allclose(fitted.found.unit[:, 0], expected.direction_)
    np.testing.assert_allclose(X @ fitted.found.vectors[:, 0] + fitted.intercepts[0], expected.predict(X))
    X, own, _ = made(kind="categorical")
    fitted = fit_concept(X, own)
    assert fitted.classes == ("low",)  # the second of two, in the order of their names
    expected = ck.ConceptActivationVector().fit(X, own.y, own.groups)
    np.testing.assert_allclose(fitted.found.vectors, expected.coef_.T)


def test_a_pattern_is_the_slope_of_each_activation_on_the_concept():
    X, own, _ = made()
    slopes = [np.polyfit(own.y, column, 1)[0] for column in X.T]
    np.testing.assert_allclose(patterns(X, own.columns)[:, 0], slopes)
    X, own, _ = made(kind="categorical")
    difference = X[own.y == 1].mean(0) - X[own.y == 0].mean(0)
    np.testing.assert_allclose(patterns(X, own.columns)[:, 0], difference)


def test_confounders_are_held_fixed_as_in_a_multiple_regression():
    X, own, _ = made()
    Z = np.random.default_rng(1).normal(size=(len(X), 2)) + X[:, :2]
    design = np.column_stack([np.ones(len(X)), own.y, Z])
    slopes = np.linalg.lstsq(design, X, rcond=None)[0][1]
    np.testing.assert_allclose(patterns(X, own.columns, Z)[:, 0], slopes)
    assert not np.allclose(patterns(X, own.columns)[:, 0], slopes, rtol=0.1)


def test_a_linear_output_changes_per_unit_as_it_does_between_patches():
    """A known limit: on a linear network the pattern says what regressing the output on the concept would."""
    X, own, _ = made()
    weight = np.random.default_rng(2).normal(size=WIDTH)
    found = analyse(X, own, np.broadcast_to(weight, (1, len(X), WIDTH)), {"all": np.arange(len(X))}, refits=10)
    assert found.found[0].per_unit == pytest.approx(np.polyfit(own.y, X @ weight, 1)[0])


def test_each_group_drawn_once_gives_the_same_vectors():
    for kind in ("continuous", "categorical"):
        X, own, _ = made(kind=kind)
        fitted = fit_concept(X, own)
        (again,) = refit(X, fitted, np.ones((1, GROUPS), dtype=np.int64))
        np.testing.assert_allclose(again.vectors, fitted.found.vectors, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(again.patterns, fitted.found.patterns)
        one = np.zeros((1, GROUPS), dtype=np.int64)
        one[0, 3] = GROUPS
        (other,) = refit(X, fitted, one)
        assert other is None or not np.allclose(other.patterns, fitted.found.patterns)


def test_a_resample_without_a_class_gives_nothing():
    X, own, _ = made(kind="categorical")
    of = own.groups
    own = make_target("own", "categorical", np.where(of < 10, "a", "b").astype(object), of.astype(str))
    draws = np.zeros((1, GROUPS), dtype=np.int64)
    draws[0, np.unique(own.groups[own.y == 0])] = 2
    assert refit(X, fit_concept(X, own), draws) == [None]


# --- shuffled concepts -------------------------------------------------------------------------------------------


def test_a_concept_that_varies_within_groups_is_shuffled_inside_them():
    X, own, _ = made(icc=0.0)
    for order in shuffle_rows(own, 5, 0):
        for g in range(GROUPS):
            rows = np.flatnonzero(own.groups == g)
            assert sorted(order[rows]) == list(rows)
    assert len(X) == len(own.y)


def on_slides(values):
    """A concept of 8 patients of 3 slides of 2 to 4 rows; ``values(patient, slide, rng)`` are its values."""
    slide = np.repeat(np.arange(24), np.resize([2, 3, 4], 24))
    patient = slide // 3
    names = np.array([f"P{p}" for p in patient], dtype=object)
    y = values(patient, slide, np.random.default_rng(0))
    return make_target("c", "continuous", y, names, nested=slide), patient, slide


def within_patients(values, patient):
    """Values without what the rows of a patient have in common."""
    return values - group_means(values[:, None], patient)[patient, 0]


def test_slides_are_shuffled_whole_where_the_concept_is_the_slides():
    target, patient, slide = on_slides(lambda patient, slide, rng: within_patients(rng.normal(size=24)[slide], patient))
    assert level_of(target).permuted == "within"
    orders = shuffle_rows(target, 20, 0)
    assert (patient[orders] == patient).all()
    assert all(len(np.unique(order_of[slide == s])) == 1 for order_of in slide[orders] for s in range(24))
    assert (slide[orders] != slide).any()  # the control: slides change places


def test_slides_stay_together_where_patients_change_places():
    target, patient, slide = on_slides(
        lambda patient, slide, rng: 2 * rng.normal(size=8)[patient] + rng.normal(size=24)[slide]
    )
    assert level_of(target).permuted == "groups and within"
    for order in shuffle_rows(target, 20, 0):
        for units, of in ((24, slide), (8, patient)):
            assert all(len(np.unique(of[order][of == unit])) == 1 for unit in range(units))
    free = dataclasses.replace(target, nested=None)  # the control
    assert any(len(np.unique(slide[order][slide == 0])) > 1 for order in shuffle_rows(free, 20, 0))


def test_rows_are_shuffled_within_slides_where_the_concept_varies_in_them():
    target, _, slide = on_slides(lambda patient, slide, rng: within_patients(rng.normal(size=len(slide)), patient))
    assert level_of(target).permuted == "within"
    for order in shuffle_rows(target, 5, 0):
        np.testing.assert_array_equal(slide[order], slide)


def test_a_concept_of_both_levels_keeps_its_likeness_within_groups():
    _, own, _ = made(icc=0.6)
    orders = shuffle_rows(own, 40, 0)
    shuffled = [intraclass_correlation(own.y[order][:, None], own.groups) for order in orders]
    assert np.mean(shuffled) == pytest.approx(own.icc, abs=1e-9)  # groups of one size: the very values of others
    moved = [np.corrcoef(own.y, own.y[order])[0, 1] for order in orders]
    assert abs(np.mean(moved)) < 0.1
    # The control: shuffled freely, nothing of it is left.
    rng = np.random.default_rng(0)
    free = [intraclass_correlation(rng.permutation(own.y)[:, None], own.groups) for _ in range(40)]
    assert np.mean(free) < 0.1


def test_groups_of_other_sizes_take_what_they_need():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 9, 12)
    of = np.repeat(np.arange(12), sizes)
    target = make_target("c", "categorical", np.where(of % 3 == 0, "a", "b").astype(object), of.astype(str))
    for order in shuffle_rows(target, 20, 1):
        values = target.y[order]
        assert all(len(np.unique(values[of == g])) == 1 for g in range(12))  # constant in a group, as before
        assert len(np.unique(values)) == 2


def test_without_groups_rows_change_places():
    target = make_target("c", "continuous", np.arange(30.0), None)
    orders = shuffle_rows(target, 10, 0)
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 10


def test_vectors_of_shuffled_concepts_are_fitted_as_the_concepts_own():
    X, own, _ = made()
    fitted = fit_concept(X, own)
    orders = shuffle_rows(own, 3, 0)
    null = fit_shuffled(X, fitted, orders)
    for i, order in enumerate(orders):
        expected = ck.RegressionConceptVector(alphas=[fitted.alpha]).fit(X, own.y[order], own.groups)
        np.testing.assert_allclose(null.vectors[:, i], expected.coef_)
        np.testing.assert_allclose(null.patterns[:, i], patterns(X, own.y[order][:, None])[:, 0])
    X, own, _ = made(kind="categorical")
    fitted = fit_concept(X, own)
    orders = shuffle_rows(own, 70, 0)  # more than are fitted in one go
    null = fit_shuffled(X, fitted, orders)
    assert null.vectors.shape == null.patterns.shape == (WIDTH, 70)
    expected = ck.ConceptActivationVector(alphas=[fitted.alpha]).fit(X, own.y[orders[69]], own.groups)
    np.testing.assert_allclose(null.vectors[:, 69], expected.coef_[0], rtol=1e-3, atol=1e-5)


# --- planted and unrelated concepts ------------------------------------------------------------------------------


def gate(X, seed=0):
    """Derivatives (n, d) of a network that bends: Σ_j v_j |x·a_j| has another one on either side of each fold."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(X.shape[1], 9))
    return (np.sign(X @ A) * rng.normal(size=9)) @ A.T


def rising(X, kind):
    """Derivatives (n, d) of an output that rises with the first activation, and a little with what else there is."""
    sign = 1.0 if kind == "continuous" else -1.0  # the second class is "low"
    return 0.1 * gate(X) + sign * np.array([5.0, *np.zeros(WIDTH - 1)])


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
def test_a_planted_concept_has_tcav_1(kind):
    X, own, _ = made(3, kind=kind)
    found = analyse(X, own, rising(X, kind)[None], {"all": np.arange(len(X))}, refits=20, permutations=99)
    planted = found.found[0]
    assert planted.scores["sign_count"].value == 1.0
    assert planted.scores["mean"].p <= 0.02
    assert planted.p <= 0.02
    assert planted.per_unit - planted.reach > 0
    assert planted.agreement == 1.0
    assert found.score > 0.7
    if kind == "continuous":
        assert planted.scores["relevance"].value > 5
        assert planted.scores["relevance"].p == pytest.approx(0.01)
        assert planted.scores["sign_count"].refits_sd == 0.0
    else:
        assert "relevance" not in planted.scores


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
def test_an_unrelated_concept_lies_within_chance_beside_a_planted_one(kind):
    """Of a rate of 0.05 one in a thousand choices of seeds exceeds the bound."""
    sets, p, missed = 40, [], []
    for seed in range(740_000, 740_000 + sets):
        X, _, other = made(seed, kind=kind)
        [unrelated] = analyse(
            X, other, rising(X, kind)[None], {"all": np.arange(len(X))}, refits=10, permutations=39
        ).found
        p.append([unrelated.p, *(score.p for score in unrelated.scores.values())])
        missed.append(abs(unrelated.per_unit) > unrelated.reach)
    bound = binom.ppf(0.999, sets, 0.05)
    assert ((np.array(p) <= 0.05).sum(0) <= bound).all()
    assert sum(missed) <= bound


def test_a_concept_turned_round_turns_every_sign():
    X, own, _ = made()
    G = (gate(X) + 1.0)[None]
    turned = dataclasses.replace(own, y=-own.y)
    options = {"refits": 10, "permutations": 0}
    a, b = (analyse(X, t, G, {"all": np.arange(len(X))}, **options).found[0] for t in (own, turned))
    assert b.per_unit == pytest.approx(-a.per_unit)
    assert b.scores["sign_count"].value == pytest.approx(1 - a.scores["sign_count"].value)
    assert b.scores["relevance"].value == pytest.approx(-a.scores["relevance"].value)
    assert math.isnan(a.p)
    assert math.isnan(a.scores["mean"].p)


def test_sets_of_images_are_scored_apart():
    X, own, _ = made()
    G = gate(X)
    among = {"all": np.arange(len(X)), "some": np.arange(0, len(X), 3)}
    found = {f.among: f for f in analyse(X, own, np.stack([G, 2 * G]), among, refits=10, permutations=9).found}
    assert {f.n for f in found.values()} == {len(X), len(among["some"])}
    fitted = fit_concept(X, own)
    S = G[among["some"]] @ fitted.found.unit[:, 0]
    assert found["some"].scores["mean"].value == pytest.approx(2 * S.mean())  # the last output, of twice the size


def test_what_the_pattern_can_say_of_a_concept_that_only_goes_with_the_used_one():
    """Two concepts that go together, one of them used: unadjusted the other seems used, held fixed it does not."""
    rng = np.random.default_rng(0)
    n = GROUPS * EACH
    used = rng.normal(size=n)
    bystander = 0.8 * used + 0.6 * rng.normal(size=n)
    X = np.column_stack([used, bystander, rng.normal(size=(n, 4))]) + 0.05 * rng.normal(size=(n, WIDTH))
    G = np.broadcast_to(np.eye(WIDTH)[0], (1, n, WIDTH))
    target = make_target("bystander", "continuous", bystander, np.repeat(np.arange(GROUPS), EACH).astype(str))
    everything = {"all": np.arange(n)}
    plain = analyse(X, target, G, everything, refits=20, permutations=99).found[0]
    held = analyse(X, target, G, everything, confounders=used[:, None], refits=20, permutations=99).found[0]
    assert plain.per_unit > 0.6
    assert plain.p == pytest.approx(0.01)
    assert abs(held.per_unit) < 0.05
    assert held.p > 0.05


# --- calibration -------------------------------------------------------------------------------------------------


def by_shuffles(X, target, G, seed, permutations=59):
    """p (t, 5) of every score along the vector and of the change per unit, for each of t classes."""
    fitted = fit_concept(X, target)
    t = fitted.columns.shape[1]
    null = fit_shuffled(X, fitted, shuffle_rows(target, permutations, seed))
    observed, by_chance = (score_all(G @ v.unit, 0.5) for v in (fitted.found, null))
    own, shuffled = G.mean(0) @ fitted.found.patterns, G.mean(0) @ null.patterns
    return [
        [
            *(two_sided_p(observed[name][k], by_chance[name][k::t], c) for name, c in CENTERS.items()),
            two_sided_p(float(own[k]), shuffled[k::t]),
        ]
        for k in range(t)
    ]


@pytest.mark.long
def test_p_is_uniform_for_concepts_that_have_nothing_to_do_with_the_network():
    sets, small = [], {"width": 8, "each": 12, "groups": 15}
    for seed in range(400):
        X, _, other = made(seed, icc=(0.0, 0.4)[seed % 2], **small)
        sets += by_shuffles(X, other, gate(X, seed), seed)
    share = dict(zip((*CENTERS, "per_unit"), (np.array(sets) <= 0.05).mean(0), strict=True))
    # Some two standard errors of 400 sets about 0.05.
    assert all(0.025 <= value <= 0.075 for value in share.values()), share


@pytest.mark.long
@pytest.mark.parametrize("classes", [2, 4])
def test_p_is_uniform_for_concepts_of_whole_groups(classes):
    """As a center is: all patches of a patient have the same, and patients are what is shuffled."""
    sets, naive = [], []
    for seed in range(200):
        X, own, _ = made(seed, groups=16, each=6)
        rng = np.random.default_rng([seed, 1])
        of_group = np.array([f"C{k}" for k in rng.permutation(np.arange(16) % classes)], dtype=object)
        target = make_target("center", "categorical", of_group[own.groups], own.groups)
        G = gate(X, seed)
        sets.append(np.array(by_shuffles(X, target, G, seed)) <= 0.05)
        # The control: rows that change places break what patches of a patient have in common.
        orders = shuffle_rows(dataclasses.replace(target, groups=None), 59, seed)
        observed, null = (patterns(X, values) for values in (target.columns[:, :1], target.columns[orders, 0].T))
        naive.append(two_sided_p(float((G.mean(0) @ observed)[0]), G.mean(0) @ null) <= 0.05)
    share = dict(zip((*CENTERS, "per_unit"), np.mean(sets, axis=(0, 1)), strict=True))
    # Some two and a half standard errors of 200 sets about 0.05; a count of images has ties, which count against it.
    assert all(0.01 <= value <= 0.085 for value in share.values()), share
    assert all(value >= 0.02 for name, value in share.items() if name != "sign_count"), share
    assert np.mean(naive) > 0.15


CENTERS = {"sign_count": 0.5, "magnitude": 0.5, "mean": 0.0, "relevance": 0.0}


# --- bad input ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_analysed_is_told():
    X, own, _ = made()
    G = gate(X)[None]
    everything = {"all": np.arange(len(X))}
    with pytest.raises(InputError, match="refits: must be at least 10, got 9"):
        analyse(X, own, G, everything, refits=9)
    with pytest.raises(InputError, match="permutations: must be at least 0, got -1"):
        analyse(X, own, G, everything, permutations=-1)
    with pytest.raises(InputError, match="among: no image of tumor has a value of own"):
        analyse(X, own, G, {"tumor": np.zeros(0, dtype=np.intp)}, refits=10)
    with pytest.raises(InputError, match="adjust: the confounders determine own"):
        analyse(X, own, G, everything, confounders=own.y[:, None] * 2 + 3, refits=10)
    with pytest.raises(InputError, match="concept: flat is constant"):
        make_target("flat", "continuous", np.ones(len(X)), None)
