"""Concept vectors that a probe keeps: what they hold, against scikit-learn, and what refuses them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler
from small_vectors import features_of, probed

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.evaluate.conformal import left_out_coverage, next_group_quantile
from conceptkit.features.activations import read_pixels
from conceptkit.models.checkpoints import open_model
from conceptkit.probe.vectors import VECTORS_FILE

LAYER = "features"


@pytest.fixture(scope="module")
def data():
    return features_of()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return probed(tmp_path_factory.mktemp("vectors"), *data)


@pytest.fixture(scope="module")
def vectors(run):
    return ck.load_vectors(run)


@pytest.fixture(scope="module")
def new():
    """Two patients that the probe has not seen."""
    return features_of(2, seed=5)


# --- what is kept --------------------------------------------------------------------------------------------------


def test_a_continuous_vector_is_the_ridge_regression_of_scikit_learn(vectors, data, new):
    table, X = data
    vector = vectors[LAYER, "count"]
    scaler = StandardScaler().fit(X.astype(np.float64))
    ridge = Ridge(vector.facts.alpha).fit(scaler.transform(X.astype(np.float64)), table["count"])
    expected = ridge.predict(scaler.transform(new[1].astype(np.float64)))
    assert np.abs(vector.predict(new[1]) - expected).max() < 1e-9
    coef = ridge.coef_ / scaler.scale_
    assert np.abs(vector.coef[0] - coef).max() < 1e-9
    assert np.abs(vector.direction[0] - coef / np.linalg.norm(coef)).max() < 1e-9
    assert np.abs(vector.project(new[1]) - new[1] @ coef / np.linalg.norm(coef)).max() < 1e-9
    assert vector.score(new[1], new[0]["count"]) == pytest.approx(r2_score(new[0]["count"], expected), abs=1e-9)


def test_the_pattern_is_the_change_of_the_activations_per_unit(vectors, data):
    table, X = data
    y = table["count"].to_numpy()
    slopes = [np.polyfit(y, column, 1)[0] for column in X.astype(np.float64).T]
    assert np.abs(vectors[LAYER, "count"].pattern[0] - slopes).max() < 1e-9
    low = (table["grade"] == "low").to_numpy()
    difference = X[low].mean(0, dtype=np.float64) - X[~low].mean(0, dtype=np.float64)
    at = vectors[LAYER, "grade"].facts.classes.index("low")
    assert np.abs(vectors[LAYER, "grade"].pattern[at] - difference).max() < 1e-9


@pytest.mark.parametrize("concept", ["grade", "flag"])
def test_a_categorical_vector_is_the_logistic_regression_of_scikit_learn(vectors, data, new, concept):
    table, X = data
    vector = vectors[LAYER, concept]
    scaler = StandardScaler().fit(X.astype(np.float64))
    logistic = LogisticRegression(C=1 / vector.facts.alpha, class_weight="balanced", tol=1e-10, max_iter=5000)
    logistic.fit(scaler.transform(X.astype(np.float64)), table[concept])
    Z = scaler.transform(new[1].astype(np.float64))
    assert list(vector.facts.classes) == list(logistic.classes_)
    assert np.abs(vector.shares(new[1]) - logistic.predict_proba(Z)).max() < 1e-4
    assert (vector.predict(new[1]) == logistic.predict(Z)).mean() > 0.99
    expected = balanced_accuracy_score(new[0][concept], vector.predict(new[1]))
    assert vector.score(new[1], new[0][concept]) == pytest.approx(expected, abs=1e-12)


def test_a_vector_carries_the_held_out_score_of_its_row(vectors, run):
    record = ck.load_record(run)
    for row in record.rows:
        facts = vectors[row.layer, row.concept].facts
        assert (facts.score, facts.score_low, facts.score_high) == (row.score, row.score_low, row.score_high)
        assert (facts.n, facts.n_groups, facts.alpha) == (row.n, row.n_groups, row.alpha)
    origin = vectors[LAYER, "count"].origin
    assert (origin.source, origin.finest, origin.pool) == ("files", 0.5, "gap")


def test_the_file_is_read_without_conceptkit(vectors, run):
    with safe_open(run / VECTORS_FILE, "numpy") as file:
        about = json.loads(file.metadata()["conceptkit"])
        direction = file.get_tensor("features/count/direction")
        space = about["vectors"][0]["space"]
        assert {f"{space}/{part}" for part in ("mean", "scale", "whitening")} <= set(file.keys())
    assert about["schema"] == "conceptkit/vectors/1"
    assert np.linalg.norm(direction) == pytest.approx(1)
    assert (direction == vectors[LAYER, "count"].direction).all()


def test_missing_values_of_y_are_skipped(vectors, new):
    y = new[0]["count"].to_numpy().copy()
    y[::2] = np.nan
    vector = vectors[LAYER, "count"]
    assert vector.score(new[1], y) == vector.score(new[1][1::2], y[1::2])


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_network(study, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conceptkit.commands.probe.RANDOM_NETWORKS", 0)
        out = tmp_path_factory.mktemp("network") / "run"
        return ck.run_probe(study, concepts=["count"], out=out, permutations=0)


def test_images_are_scored_as_the_rows_of_the_probe(of_network, study):
    table = ck.load_study(study).load_table()
    vector = ck.load_vectors(of_network.folder)["mixed2", "count"]
    found = ck.score_images(read_pixels(table, np.arange(20)), vector)
    truth = table.frame["count"].to_numpy()
    everything = ck.score_images([table.pixels(i) for i in range(len(table))], vector)
    assert np.allclose(found, everything[:20], atol=1e-4)
    in_sample = of_network.rows[0].score_in_sample
    assert 1 - np.mean((truth - everything) ** 2) / truth.var() == pytest.approx(in_sample, abs=1e-4)


def test_images_of_another_size_or_network_are_refused(of_network):
    vector = ck.load_vectors(of_network.folder)["mixed2", "count"]
    with pytest.raises(InputError, match=r"^images: the patches of the probe had \d+×\d+ pixels, got 32×32\.$"):
        ck.score_images(np.zeros((2, 32, 32, 3), np.uint8), vector)
    with pytest.raises(
        InputError, match=r"^images: must be \(h, w, 3\) uint8 of one size, got \(32, 32, 3\) float64\.$"
    ):
        ck.score_images(np.zeros((2, 32, 32, 3)), vector)
    blank, other = np.zeros((1, *[vector.origin.side] * 2, 3), np.uint8), open_model("mini_inception", "random")
    with pytest.raises(
        InputError, match=r"^vector: mini_inception does not suit .* its weights have the digest \w+, th"
    ):
        ck.score_images(blank, vector, model=other)
    bright = dataclasses.replace(other.preprocessing, mean=(0.1, 0.1, 0.1))
    same = dataclasses.replace(open_model("mini_inception"), preprocessing=bright)
    with pytest.raises(
        InputError, match=r"suit the vectors of mini_inception: mean of its preprocessing is \[0\.1, 0\.1, "
    ):
        ck.score_images(blank, vector, model=same)


# --- what is refused -------------------------------------------------------------------------------------------------


def sentence(error):
    assert str(error.value).count("\n") == 0
    return str(error.value)


def test_an_unknown_layer_or_concept_is_answered_by_near_names(vectors):
    with pytest.raises(InputError) as error:
        vectors["feature", "count"]
    assert sentence(error) == "layer: 'feature' is not known; near names: features."
    with pytest.raises(InputError) as error:
        vectors["features", "counts"]
    assert sentence(error) == "concept: 'counts' is not known; near names: count; also grade, flag."
    with pytest.raises(
        InputError, match=r"^vectors: name a layer and a concept, as \('features', 'count'\); got 'count"
    ):
        vectors["count"]


def test_other_features_and_gaps_are_refused(vectors, new):
    vector = vectors[LAYER, "count"]
    with pytest.raises(
        InputError, match=r"^X: the vector of count at features needs 24 columns, got shape \(24, 23\): "
    ):
        vector.predict(new[1][:, 1:])
    X = new[1].copy()
    X[3, 2], X[7, 0] = np.nan, np.inf
    for method in (vector.predict, vector.project, vector.interval, vector.leverage):
        with pytest.raises(InputError) as error:
            method(X)
        assert sentence(error) == "X: must be finite, 2 of 24 rows hold NaN or infinity."
    with pytest.raises(InputError, match=r"^y: must hold one value for each of the 24 rows, got shape \(3,\)\.$"):
        vector.score(new[1], [1, 2, 3])
    with pytest.raises(InputError, match=r"^y: grade has no class 'worst'; known: high, low, mid\.$"):
        vectors[LAYER, "grade"].score(new[1], ["worst"] * 12 + ["low"] * 12)
    with pytest.raises(
        InputError, match=r"^vector: it was fitted on the feature file probed\.npy, so there is no netw"
    ):
        ck.score_images(np.zeros((1, 64, 64, 3), np.uint8), vector)


def test_large_finite_values_are_no_gaps(vectors, new):
    X = new[1].copy()
    X[0, :] = 3e38  # their sum is infinite in float32
    assert np.isfinite(vectors[LAYER, "count"].predict(X)).all()


def test_a_folder_without_vectors_is_refused(tmp_path, run):
    with pytest.raises(
        InputError, match=r"^probe: .* holds no vectors\.safetensors; name a run folder of conceptkit pro"
    ):
        ck.load_vectors(tmp_path)
    broken = tmp_path / VECTORS_FILE
    broken.write_bytes((run / VECTORS_FILE).read_bytes()[:500])
    with pytest.raises(InputError, match=r"^probe: .* is not a file of concept vectors \("):
        ck.load_vectors(tmp_path)


# --- intervals -------------------------------------------------------------------------------------------------------


def slow_quantile(scores, groups, level=0.9):
    """The definition: masses of 1/(K + 1) for each group, and for infinity."""
    k = len(set(groups.tolist()))
    for value in sorted(set(scores.tolist())):
        if sum(np.mean(scores[groups == g] <= value) for g in range(k)) / (k + 1) >= level - 1e-12:
            return value
    return np.inf


@pytest.mark.parametrize("k", [8, 9, 10, 23])
def test_the_quantile_gives_each_patient_one_mass_and_infinity_another(k):
    rng = np.random.default_rng(k)
    groups = np.concatenate([np.arange(k), rng.integers(0, k, 150)])
    scores = np.round(rng.exponential(size=len(groups)) * (1 + groups / 3), 1)  # with ties
    assert next_group_quantile(scores, groups) == slow_quantile(scores, groups)
    assert np.isinf(next_group_quantile(scores, groups)) == (k < 9)
    each = []
    for g in range(k):
        others = np.unique(groups[groups != g], return_inverse=True)[1]
        each.append(np.mean(scores[groups == g] <= slow_quantile(scores[groups != g], others)))
    found = left_out_coverage(scores, groups)
    assert np.isnan(found) if k < 10 else found == pytest.approx(np.mean(each), abs=1e-12)


def test_below_nine_patients_there_is_no_interval(tmp_path, new):
    few = ck.load_vectors(probed(tmp_path, *features_of(8), concepts=["count"]))["features", "count"]
    assert np.isfinite(few.predict(new[1])).all()
    with pytest.raises(InputError) as error:
        few.interval(new[1])
    assert sentence(error).startswith(
        "probe: count was probed on 8 patients, an interval of 90 % for a new one needs at"
    )


def test_intervals_and_class_sets_follow_the_reach(vectors, new):
    vector = vectors[LAYER, "count"]
    low, high = vector.interval(new[1])
    assert np.allclose(high - low, 2 * vector.facts.reach)
    sets = vectors[LAYER, "grade"].class_sets(new[1])
    shares = vectors[LAYER, "grade"].shares(new[1])
    assert (sets == (1 - shares <= vectors[LAYER, "grade"].facts.reach)).all()
    assert sets.any(1).all()
    assert not sets.all()


def test_leverage_flags_rows_away_from_the_probe_and_few_others(vectors, data, new):
    vector = vectors[LAYER, "count"]
    X = data[1].astype(np.float64)
    Z = (X - X.mean(0)) / X.std(0)
    values, U = np.linalg.eigh(Z.T @ Z / len(Z))
    A = (new[1] - X.mean(0)) / X.std(0) @ U[:, -16:]
    assert np.allclose(vector.leverage(new[1]), (A**2 / values[-16:]).mean(1))
    assert vector.out_of_range(new[1]).mean() < 0.2
    assert vector.out_of_range(new[1] * 3).all()
