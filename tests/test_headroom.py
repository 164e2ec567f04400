"""Headroom and power: against scikit-learn, the jackknife and simulated studies; evaluation rows are not looked at."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_study import write_study

import conceptkit as ck
from conceptkit.evaluate.detectable import auc_components, detectable_difference, difference_spread, power
from conceptkit.evaluate.intervals import jackknife_error
from conceptkit.evaluate.paired import paired_interval, scored_auc
from conceptkit.evaluate.weighted import row_weights, scored_weighted
from conceptkit.guide.forecast import judged
from conceptkit.guide.headroom import CENTERS_LEFT_OUT, Evidence, aucs, folds_of, label_from, predicted_concepts
from conceptkit.options.guide import Guide
from conceptkit.probe.ridge import ALPHAS

# --- power -------------------------------------------------------------------------------------------------------


def simulated(rng, patients, rows, gain=0.0):
    """Two models' scores of one study: rows of a patient share an error that differs between the models."""
    groups = np.repeat(np.arange(patients), rows)
    y = (rng.random(len(groups)) < rng.beta(2, 2, patients)[groups]).astype(np.intp)
    both = rng.normal(0, 0.8, len(groups)) + rng.normal(0, 0.5, patients)[groups]
    first, second = (
        both + signal * y + rng.normal(0, 0.5, patients)[groups] + rng.normal(0, 0.5, len(groups))
        for signal in (1.0 + gain, 1.0)
    )
    return y, first, second, groups


def test_components_give_the_error_of_the_jackknife_weighted_or_not():
    rng = np.random.default_rng(0)
    y, first, second, groups = simulated(rng, 60, 15)
    for weights, pair in (
        (np.ones(len(y)), [scored_auc(y, score, groups) for score in (first, second)]),
        (
            row_weights(y, groups % 3),
            [scored_weighted(y, expit(score), groups, groups % 3)["auc"] for score in (first, second)],
        ),
    ):
        found = difference_spread(y, first, second, groups, weights)
        sizes = np.bincount(groups, weights=weights)
        jackknife = jackknife_error(pair[0].deleted - pair[1].deleted)
        assert found.error(sizes) == pytest.approx(jackknife, rel=0.06)
    one_row_each = difference_spread(y, first, second, np.arange(len(y)), np.ones(len(y)))
    assert one_row_each.error(np.ones(len(y))) < 0.75 * jackknife  # rows are not independent


def test_components_of_several_classes_are_the_mean_over_one_class_against_the_rest():
    rng = np.random.default_rng(1)
    y, score = rng.integers(0, 3, 90), rng.normal(size=(90, 3)).round(1)
    each = [auc_components((y == k).astype(int), score[:, k], np.ones(90)) for k in range(3)]
    assert auc_components(y, score, np.ones(90)) == pytest.approx(np.mean(each, axis=0))
    assert np.sum(each) == pytest.approx(0.0, abs=1e-12)


def test_the_stated_power_holds_in_studies_of_other_sizes_and_not_without_the_patients():
    rng = np.random.default_rng(2)
    truth = simulated(rng, 4000, 20, 0.35)
    difference = roc_auc_score(truth[0], truth[1]) - roc_auc_score(truth[0], truth[2])
    stated, by_rows, held = [], [], []
    for _ in range(300):
        y, first, second, groups = simulated(rng, 48, 20, 0.35)
        sizes = np.full(36, 10.0)
        found = difference_spread(y, first, second, groups, np.ones(len(y)))
        stated.append(power(difference, found.error(sizes), 36))
        found = difference_spread(y, first, second, np.arange(len(y)), np.ones(len(y)))
        by_rows.append(power(difference, found.error(np.ones(360)), 360))
        y, first, second, groups = simulated(rng, 36, 10, 0.35)
        held.append(paired_interval([scored_auc(y, first, groups)], [scored_auc(y, second, groups)]).low > 0)
    assert 0.3 < np.mean(held) < 0.9  # neither is trivial
    assert np.mean(stated) == pytest.approx(np.mean(held), abs=0.07)
    assert np.mean(by_rows) > np.mean(held) + 0.12


def test_the_detectable_difference_has_its_power():
    assert power(detectable_difference(0.013, 24.0), 0.013, 24.0) == pytest.approx(0.8)
    assert power(0.0, 0.013, 24.0) == pytest.approx(0.025)


# --- headroom ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), 8)
    n, centers = len(groups), groups % 3
    concepts = rng.normal(size=(n, 2)) + rng.normal(size=(30, 2))[groups]
    codes = (concepts.sum(1) + rng.normal(size=n) > 0).astype(np.intp)
    X = np.concatenate([concepts + rng.normal(size=(n, 2)), rng.normal(size=(n, 4))], axis=1)
    codes[:8] = -1  # a patient that trains concepts only
    concepts[rng.random((n, 2)) < 0.1] = np.nan
    rows = {"train": np.flatnonzero(groups < 24), "val": np.flatnonzero(groups >= 24)}
    return Evidence(codes, groups, centers, rows, X, [(X, concepts)], centers, 0.75)


def by_scikit_learn(given, X, train, test, inverse):
    codes, centers = given.codes, given.centers
    own = train[codes[train] >= 0]
    joint, of_center = (pd.Series(list(k)) for k in (zip(centers[own], codes[own], strict=True), centers[own]))
    label = pd.Series(codes[own])
    share = [s.map(s.value_counts(normalize=True)) for s in (joint, of_center, label)]
    weights = (share[1] * share[2] / share[0]) ** 0.75 / share[2]
    # class weights of two classes are 1 − p, which are 1/p times p(1 − p)
    weights *= len(own) / (share[1] * share[2] / share[0] ** 1).pow(0.75).sum() * label.mean() * (1 - label.mean())
    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse, tol=1e-8, max_iter=5000))
    model.fit(X[own], codes[own], logisticregression__sample_weight=weights)
    return roc_auc_score(codes[test], model.decision_function(X[test]))


def test_aucs_are_those_of_scikit_learn_on_the_same_rows(evidence):
    found = aucs(evidence, inverse=0.1)
    known = ~np.isnan(evidence.values).any(1)
    train, val = evidence.rows["train"], evidence.rows["val"]
    held = val[known[val]]
    predicted = predicted_concepts(evidence, train, val)
    wanted = {
        "frozen_features": by_scikit_learn(evidence, evidence.features, train, held, 0.1),
        "true_concepts": by_scikit_learn(evidence, evidence.values, train[known[train]], held, 1.0),
        "predicted_concepts": by_scikit_learn(evidence, predicted, train, held, 1.0),
    }
    assert found["val"] == pytest.approx(wanted, abs=2e-3)
    each = []
    for center in range(3):
        rows = np.flatnonzero((evidence.centers == center) & known & (evidence.codes >= 0))
        others = train[evidence.centers[train] != center]
        each.append(by_scikit_learn(evidence, evidence.features, others, rows, 0.1))
    assert found[CENTERS_LEFT_OUT]["frozen_features"] == pytest.approx(np.mean(each), abs=2e-3)
    assert found["val"]["true_concepts"] > found["val"]["predicted_concepts"] > 0.7


def test_concepts_are_predicted_by_other_patients(evidence):
    train, column = evidence.rows["train"], evidence.values[:, 0]
    predicted = predicted_concepts(evidence, train)
    assert np.isnan(predicted[evidence.rows["val"]]).all()
    for fit, held in folds_of(train, evidence.groups)[:1]:
        assert not set(evidence.groups[fit]) & set(evidence.groups[held])
        known = fit[~np.isnan(column[fit])]
        Z = StandardScaler().fit(evidence.features[known])
        search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=LeaveOneGroupOut(), scoring="neg_mean_squared_error")
        search.fit(Z.transform(evidence.features[known]), column[known], groups=evidence.groups[known])
        wanted = search.predict(Z.transform(evidence.features[held]))
        assert np.corrcoef(predicted[held, 0], wanted)[0, 1] > 0.999


def test_what_is_discouraged_predicts_the_label_where_it_is_tied_to_it(evidence):
    tied = dataclasses.replace(evidence, codes=np.where(evidence.codes < 0, -1, (evidence.centers == 0).astype(int)))
    indicators = np.eye(3)[evidence.centers]
    assert label_from(tied, indicators) == pytest.approx(1.0)
    assert label_from(evidence, indicators) < 0.65


@pytest.mark.parametrize(
    ("predicted", "chance", "balanced", "arm", "words"),
    [
        (0.82, 0.9, True, "through-balanced", "predicted concepts beat frozen features"),
        (0.82, 0.9, False, "through", "AUC 0.820 against 0.800 with each training center left out"),
        (0.79, 0.9, True, "balanced", "cannot beat"),
        (0.79, 0.4, False, "baseline", "too small for a difference of 0.02 (power 0.40; it can detect 0.050)"),
        (float("nan"), None, True, "balanced", "no concept is encouraged"),
    ],
)
def test_the_verdict_leads_with_the_arm_and_says_why(predicted, chance, balanced, arm, words):
    found = {
        "val": {"predicted_concepts": 1.0, "frozen_features": 0.5},
        CENTERS_LEFT_OUT: {"predicted_concepts": predicted, "frozen_features": 0.8},
    }
    text, recommended = judged(found, 0.05, chance, balanced=balanced)
    assert recommended == arm
    assert text.startswith(f"Train {arm}: ")
    assert words in text
    assert ("too small" in text) is (chance == 0.4)


# --- the command -------------------------------------------------------------------------------------------------


def test_a_plan_does_not_depend_on_evaluation_rows_and_names_those_it_was_shown(study, tmp_path):
    table = pd.read_csv(study.parent / "patches.csv")
    held = table.split.isin(("internal", "external"))
    poisoned = table.copy()
    flipped = poisoned.label.map({"normal": "tumor", "tumor": "normal"})
    poisoned.loc[held, "label"] = flipped[held]
    poisoned.loc[held, "count"] = -(poisoned.loc[held, "count"] ** 2)
    poisoned.loc[held, "h5"] = "no such file"
    said = []
    plan = ck.Guide(plan=True).run(study, notify=said.append)
    assert said[0] == plan.verdict
    other = ck.Guide(plan=True).run(write_study(tmp_path / "poisoned", poisoned))
    assert other.to_dict() == plan.to_dict()
    assert plan.headroom.keys() == {"val", CENTERS_LEFT_OUT}
    assert list(tmp_path.iterdir()) == [tmp_path / "poisoned"]  # no run folder
    poisoned["h5"] = table["h5"]
    shown, of_others = (
        Guide(plan=True, with_test=True).run(place) for place in (study, write_study(tmp_path / "seen", poisoned))
    )
    assert shown.headroom.keys() == {"val", CENTERS_LEFT_OUT, "internal", "external"}
    assert shown.headroom["external"] != of_others.headroom["external"]
    assert {one.verdict for one in (shown, of_others)} == {plan.verdict}
    assert any(note.kind == "with_test" for note in shown.notes)


def test_a_run_starts_with_the_plan_and_keeps_it(study, tmp_path):
    said = []
    options = {"epochs": 1, "warmup": 0, "trunk": (8,), "unfreeze": (), "arms": ("baseline",)}
    record = Guide(**options, with_test=True).run(study, out=tmp_path / "run", notify=said.append)
    plan = Guide(unfreeze=(), plan=True, with_test=True).run(study)
    assert said[1].splitlines()[0] == record.verdict == plan.verdict
    body = ck.load_record(tmp_path / "run").to_dict()
    for name in ("headroom", "detectable_difference", "verdict", "recommended", "power", "effective_patients"):
        assert body[name] == plan.to_dict()[name]
    assert "with_test" in body["note_kinds"]
    opened = Guide(model=str(tmp_path / "run" / "checkpoints" / "baseline-seed0"), plan=True).run(study)
    assert any(note.kind == "with_test" for note in opened.notes)
