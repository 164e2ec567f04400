"""Probing bare arrays: keys, controls, confounders, and what does not depend on the order of anything."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import conceptkit as ck
from conceptkit.probe.adjustment import adjusted_score, ceiling, design
from conceptkit.probe.folds import make_folds
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import Validation
from conceptkit.records import load_record


def data(n_groups=20, per_group=10, d=15, seed=0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    X = rng.normal(size=(n_groups, d))[groups] + rng.normal(size=(len(groups), d))
    y = X[:, 0] + 0.5 * X[:, 1] + rng.normal(size=len(groups))
    center = np.array(["A", "B", "C", "D"])[groups % 4]
    concepts = pd.DataFrame({"count": y, "noise": rng.normal(size=len(groups)), "center": center})
    return X, concepts, np.array([f"p{g:02d}" for g in groups])


def probed(X, concepts, groups=None, **options):
    return ck.probe_arrays(X, concepts, groups, **{"permutations": 49, "n_resamples": 100, **options})


@pytest.fixture(scope="module")
def found():
    X, concepts, groups = data()
    rng = np.random.default_rng(1)
    baselines = {"pixels": rng.normal(size=(200, 4)), "random_network": [X + 3 * rng.normal(size=X.shape)] * 2}
    return probed(X, concepts, groups, baseline_features=baselines)


def test_rows_have_every_key_and_read_like_dicts(found):
    assert [row["concept"] for row in found.rows] == ["count", "noise", "center"]
    count, noise, center = (dict(row) for row in found.rows)
    stable = "model weights layer concept kind n n_groups folds metric score score_low score_high score_in_sample"
    stable += " score_patchwise score_random_network chance alpha"
    added = "score_pixels score_shuffled score_random_concept selectivity r2_above_baseline permuted p p_within p_min q"
    added += " icc cosine auc alpha_folds score_adjusted score_leave_out ceiling notes protocol interval_note"
    assert set((stable + " " + added).split()) <= set(count)
    with pytest.raises(KeyError):
        found.rows[0]["scores"]
    assert count["selectivity"] == pytest.approx(count["score"] - max(count["score_random_concept"], 0))
    assert count["r2_above_baseline"] == pytest.approx(
        count["score"] - max(0, count["score_random_network"], count["score_pixels"])
    )
    assert count["p"] == 2 * min(count["p_between"], count["p_within"]) == count["p_min"] == 2 / 50
    assert (count["permuted"], noise["permuted"], center["permuted"]) == ("groups and within", "within", "groups")
    assert (count["p_between"], count["p_within"], count["decided_by"]) == (1 / 50, 1 / 50, "between")
    assert center["p"] == center["p_between"]
    assert noise["p_within"] is None
    assert noise["selectivity"] == pytest.approx(0, abs=0.1)
    assert abs(count["score_shuffled"]) < 0.1
    assert center["chance"] == 0.25
    assert center["auc_low"] < center["auc"] < center["auc_high"]
    assert count["auc"] is None
    assert count["score"] > count["score_random_network"] > count["score_pixels"]
    assert 0.5 < count["cosine"] <= 1
    assert len(count["alpha_folds"]) == 5
    assert "20 groups" in count["interval_note"]


def test_q_is_over_everything_probed(found):
    p = [row.p for row in found.rows]
    np.testing.assert_allclose([row.q for row in found.rows], false_discovery_control(p))


def test_the_record_is_saved_and_loaded_and_a_table(found, tmp_path):
    found.save(tmp_path)
    assert load_record(tmp_path) == found
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert rows[0]["score"] == found.rows[0].score
    frame = found.to_frame()
    assert len(frame) == 3
    assert frame.loc[0, "score"] == found.rows[0].score


def test_the_score_by_layer_is_drawn():
    X, concepts, groups = data()
    record = probed({"early": X[:, 5:], "late": X}, concepts[["count"]], groups, permutations=0)
    assert [row.layer for row in record.rows] == ["early", "late"]
    figure = record.plot()
    drawn = " ".join(text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text")))
    assert "early" in drawn
    assert "random concepts" in drawn


def test_neither_the_order_of_rows_nor_of_concepts_changes_anything():
    X, concepts, groups = data()
    ids = np.array([f"patch{i:03d}" for i in range(200)])
    first = probed(X, concepts, groups, ids=ids)
    moved = np.random.default_rng(3).permutation(200)
    names = ["center", "noise", "count"]
    second = probed(X[moved], concepts.iloc[moved][names], groups[moved], ids=ids[moved])
    by_name = {row.concept: row for row in second.rows}
    for row in first.rows:
        other = by_name[row.concept]
        for key in ("score", "score_low", "score_in_sample", "score_patchwise", "alpha", "cosine", "icc"):
            assert other[key] == pytest.approx(row[key], abs=1e-10)
        assert other.p == pytest.approx(row.p, abs=0.05)


def test_without_groups_rows_are_permuted_and_a_note_says_so():
    X, concepts, _ = data()
    record = probed(X, concepts[["count"]])
    assert record.rows[0].permuted == "rows"
    assert record.rows[0].n_groups == 200
    assert "rows were taken as independent" in record.notes[0]


def test_missing_values_are_left_out_per_concept():
    X, concepts, groups = data()
    concepts = {"count": concepts["count"].where(concepts["center"] != "A"), "center": concepts["center"]}
    record = probed(X, concepts, groups, permutations=0)
    assert [row.n for row in record.rows] == [150, 200]
    assert record.rows[0].p is None


# Confounders


def confounded(seed=0):
    """A concept that follows the center, activations that follow the center, and nothing else between them."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(24), 10)
    center = np.array(["A", "B", "C"])[groups % 3]
    shift = (groups % 3).astype(float)
    X = rng.normal(size=(240, 8)) + 2 * shift[:, None]
    return X, 3 * shift + rng.normal(size=240), center, groups


def test_what_a_confounder_explains_is_no_partial_r2():
    X, y, center, groups = confounded()
    row = probed(X, {"count": y}, groups, adjust={"center": center}, permutations=0).rows[0]
    assert row.score > 0.7
    assert row.score_adjusted < 0.05
    assert row.score_adjusted_low < row.score_adjusted < row.score_adjusted_high
    assert row.adjusted_for == ("center",)
    within = probed(X, {"count": y + 2 * X[:, 0]}, groups, adjust={"center": center}, permutations=0).rows[0]
    assert within.score_adjusted > 0.6


def test_partial_r2_is_the_statement_of_residuals():
    X, y, center, groups = confounded()
    y = y + X[:, 0]
    age = np.random.default_rng(1).normal(size=240)
    confounders = {"center": center, "age": age}
    target = make_target("count", "continuous", y, groups)
    splits = make_folds(240, target.groups, 4)
    found = adjusted_score(X, target, confounders, splits, Validation())
    C = StandardScaler().fit_transform(np.column_stack([center == "B", center == "C", age]).astype(float))
    left, read = np.empty(240), np.empty(240)
    for train, test in splits:
        of_y = ck.RegressionConceptVector().fit(C[train], y[train], groups[train])
        scale = StandardScaler().fit(C[train])
        of_x = make_pipeline(scale, Ridge(of_y.alpha_)).fit(C[train], X[train])
        vector = ck.RegressionConceptVector().fit(
            X[train] - of_x.predict(C[train]), y[train] - of_y.predict(C[train]), groups[train]
        )
        left[test] = y[test] - of_y.predict(C[test])
        read[test] = vector.predict(X[test] - of_x.predict(C[test]))
    assert found.score == pytest.approx(1 - ((left - read) ** 2).sum() / (left**2).sum(), abs=1e-9)
    assert found.confounders == pytest.approx(r2_score(y, y - left), abs=1e-9)
    assert design(confounders).shape == (240, 3)


def test_a_level_that_training_lacks_makes_it_not_estimable():
    X, y, center, groups = confounded()
    center = np.where(groups == 5, "alone", center)
    row = probed(X, {"count": y}, groups, adjust={"center": center}, permutations=0).rows[0]
    assert row.score_adjusted is None
    assert "not estimable: center 'alone' is absent from the training part of fold" in row.notes[0]


def test_rows_without_a_confounder_are_left_out_of_the_adjustment_alone():
    X, y, center, groups = confounded()
    center = np.array([None if i < 20 else c for i, c in enumerate(center)], dtype=object)
    row = probed(X, {"count": y}, groups, adjust={"center": center}, permutations=0).rows[0]
    assert row.n == 240
    assert "adjusted on the 220 of 240 rows" in row.notes[0]


def test_levels_held_out_in_turn():
    X, y, center, groups = confounded()
    row = probed(X, {"count": y}, groups, leave_out=center, permutations=0).rows[0]
    predicted = np.empty(240)
    for name in "ABC":
        there = center == name
        vector = ck.RegressionConceptVector().fit(X[~there], y[~there], groups[~there])
        predicted[there] = vector.predict(X[there])
    assert row.score_leave_out == pytest.approx(r2_score(y, predicted), abs=1e-9)
    assert row.score_leave_out < row.score
    assert row.leave_out == "leave_out"


def test_a_class_of_one_level_alone_cannot_be_read_where_that_is_left_out():
    X, _y, center, groups = confounded()
    site = np.where(center == "A", "lung", np.where(X[:, 0] > np.median(X[:, 0]), "skin", "colon"))
    concepts = {"center": center, "site": site, "high": np.where(X[:, 0] > 0, "yes", "no")}
    rows = probed(X, concepts, groups, leave_out=center, permutations=0).rows
    found = {row.concept: row for row in rows}
    assert found["center"].score_leave_out is None
    assert found["site"].score_leave_out is None
    assert found["site"].notes[-1] == (
        "leave-out leave_out: not estimable (class lung has rows in A only, and is unknown when that is held out)"
    )
    assert found["high"].score_leave_out is not None  # the control


def test_groups_on_both_sides_of_a_held_out_level_are_said():
    X, y, center, groups = confounded()
    apart = probed(X, {"count": y}, groups, leave_out=center, permutations=0).rows[0]
    assert not [note for note in apart.notes if "both sides" in note]  # the control
    center = center.copy()
    center[[0, 10, 20]] = ["B", "A", "A"]  # one row of each of three patients
    row = probed(X, {"count": y}, groups, leave_out=center, permutations=0).rows[0]
    [note] = row.notes
    assert note.startswith("leave-out leave_out: 3 of 24 groups have rows in several levels")
    assert row.score_leave_out is not None
    alone = probed(X, {"count": y}, leave_out=center, permutations=0).rows[0]
    assert not alone.notes


def test_a_constant_repeated_measurement_has_no_ceiling():
    X, concepts, groups = data()
    given = {"repeat": {"count": np.ones(200)}, "permutations": 0}
    row = probed(X, concepts[["count"]], groups, **given).rows[0]
    assert row.ceiling is None
    [note] = row.notes
    assert "ceiling: not estimable, as count or repeated count does not vary on the 200 rows" in note
    assert "nan" not in note


def test_the_ceiling_of_two_measurements():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=5000)
    first, second = (truth + 0.5 * rng.normal(size=5000) for _ in range(2))
    second[:100] = np.nan
    r, n = ceiling(first, second)
    assert n == 4900
    assert r == pytest.approx(1 / 1.25, abs=0.02)  # the share of the true value's variance
    # No prediction does better, not even the true value itself.
    assert r2_score(first, truth / 1.25) <= r + 0.02
    X, concepts, groups = data()
    row = probed(X, concepts[["count"]], groups, repeat={"count": concepts["count"] + 1}, permutations=0).rows[0]
    assert row.ceiling == pytest.approx(1)
    assert "equal and independent errors" in row.notes[0]


def test_the_papers_protocol_is_in_sample_and_says_so():
    X, concepts, groups = data()
    record = probed(X, concepts[["count", "noise"]], groups, protocol="paper", baseline_features=X[:, :2])
    for row in record.rows:
        y = concepts[row.concept]
        assert row.score == pytest.approx(r2_score(y, LinearRegression().fit(X, y).predict(X)))
        assert (row.metric, row.protocol) == ("r2_in_sample", "paper (in-sample)")
        assert (row.p, row.selectivity, row.r2_above_baseline) == (None, None, None)
    assert "in-sample" in record.notes[0]
    assert record.rows[1].score > 0.03  # noise scores, which is why it is no evidence
    with pytest.raises(ck.InputError, match="protocol: paper is for continuous concepts, center is categorical"):
        probed(X, concepts[["center"]], groups, protocol="paper")
    some = probed(X, concepts[["count", "center"]], groups, protocol="paper")
    assert [row.concept for row in some.rows] == ["count"]
    assert "Skipped: protocol: paper is for continuous concepts, center is categorical." in some.notes


# What is refused


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"X": np.zeros(3)}, r"X: must be numbers of shape \(n, d\), got float64 of shape \(3,\)"),
        ({"X": {}}, "X: at least one layer is needed"),
        ({"X": np.ones((200, 3))}, "features must vary between rows, all 3 columns are constant"),
        ({"X": np.full((200, 3), np.inf)}, "features must be finite, 200 of 200 rows"),
        ({"concepts": {}}, "concepts: at least one column is needed"),
        ({"concepts": {"a": np.zeros(7)}}, r"concepts\['a'\]: must have one value for each of the 200 rows"),
        ({"concepts": {"a": np.zeros(200)}}, r"concept: a is constant \(0 in all 200 rows\)"),
        ({"concepts": {"a": np.full(200, np.nan)}}, "concept: a has no value in any of the 200 rows"),
        ({"groups": [None] * 200}, "groups: every row needs a group, 200 of 200 have none"),
        ({"folds": 40}, "folds: 40 folds need at least 40 groups"),
        ({"alphas": [0.0, 1.0]}, "alphas: must be positive numbers"),
        ({"permutations": -1}, "permutations: must be at least 0, got -1"),
        ({"ids": np.zeros(200)}, "ids: must be unique, 199 of 200 repeat another"),
        (
            {"baseline_features": {"pixel": np.zeros((200, 2))}},
            "baseline_features: 'pixel' is not known; near names: pixels",
        ),
        ({"repeat": {"counts": np.zeros(200)}}, "concepts: there is no column 'counts'"),
        (
            {"protocol": "paper", "adjust": {"a": np.zeros(200)}},
            "protocol: adjust not available with .*paper",
        ),
        (
            {"protocol": "paper", "adjust": {"a": np.zeros(200)}, "leave_out": np.arange(200) % 3},
            "adjust and leave_out not available with .*paper.*; use cross-validated",
        ),
        ({"protocol": "papers"}, "protocol: 'papers' is not known; near names: paper"),
    ],
)
def test_mistakes_end_with_one_sentence(change, sentence):
    X, concepts, groups = data()
    given = {"X": X, "concepts": concepts, "groups": groups, **change}
    with pytest.raises(ck.InputError, match=sentence):
        probed(**given)


def test_few_groups_are_said_in_the_result():
    X, concepts, _ = data()
    record = probed(X, concepts[["count"]], np.arange(200) % 6, permutations=0)
    assert "Only 6 groups" in record.notes[0]
    assert "6 groups only" in record.rows[0].interval_note
