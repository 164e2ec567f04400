"""Several encoders at once: the same patches and folds, paired differences by refits, ties, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from scipy.stats import t as student
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.evaluate.paired import paired_interval, refit_difference, scored_r2
from conceptkit.options.probe import Probe
from conceptkit.probe.encoders import layer_pairs
from conceptkit.probe.rows import Layer
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate
from conceptkit.records import load_record
from conceptkit.report.encoder_tables import best_encoders, matrix_table
from conceptkit.report.page import write_page

PATIENTS, EACH = 24, 8


def views(seed=0, noises=(0.4, 0.4, 4.0), width=12):
    """Latent features of patches in patients, noisy linear views of them, and the patients."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(PATIENTS), EACH)

    def clustered(d):
        return 0.6 * rng.normal(size=(PATIENTS, d))[patients] + 0.8 * rng.normal(size=(len(patients), d))

    Z = clustered(4)
    seen = [Z @ rng.normal(size=(4, width)) + noise * clustered(width) for noise in noises]
    return Z, [X.astype(np.float32) for X in seen], patients


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of patches, and features of three encoders: two alike, one that sees little."""
    place = tmp_path_factory.mktemp("encoders")
    Z, seen, patients = views()
    noise = np.random.default_rng(9).normal(size=len(Z))
    frame = pd.DataFrame(
        {
            "patch_id": [f"p{i:03d}" for i in range(len(Z))],
            "patient": [f"P{k:02d}" for k in patients],
            "row": np.arange(len(Z)),
            "count": 10 + 3 * Z[:, 0] + 0.3 * noise,
            "grade": np.where(Z[:, 1] + 0.3 * noise > 0, "high", "low"),
        }
    )
    frame.to_csv(place / "t.csv", index=False)
    for name, X in zip(("uni", "conch", "weak"), seen, strict=True):
        np.save(place / f"{name}.npy", X)
    return place


def probed(folder, out, **options):
    given = {"group": "patient", "concepts": ["count", "grade"], "permutations": 0, **options}
    return ck.run_probe(table=folder / "t.csv", out=out, **given)


def paths(folder, *names):
    return {name: str(folder / f"{name}.npy") for name in names}


@pytest.fixture(scope="module")
def record(folder, tmp_path_factory):
    features = paths(folder, "uni", "conch", "weak")
    return probed(folder, tmp_path_factory.mktemp("runs") / "run", features=features)


# --- the difference and its interval ------------------------------------------------------------------------------


def refitted(X, y, splits, alphas, groups, drop):
    """The plain statement: R² of scikit-learn's models without a patient in training parts and scored rows."""
    predicted = np.full(len(y), np.nan)
    for (train, test), alpha in zip(splits, alphas, strict=True):
        scaler = StandardScaler().fit(X[train])  # columns stay standardised as in the whole training part
        kept = train[groups[train] != drop]
        predicted[test] = Ridge(alpha).fit(scaler.transform(X[kept]), y[kept]).predict(scaler.transform(X[test]))
    rest = groups != drop
    return r2_score(y[rest], predicted[rest])


def test_the_difference_is_that_of_models_refitted_without_each_patient():
    Z, seen, patients = views()
    y = Z[:, 0]
    target = make_target("c", "continuous", y, patients)
    found = [validate(X, [target], n_resamples=9)[0] for X in (seen[0], seen[2])]
    deleted = [
        np.array(
            [refitted(X.astype(float), y, target.folds(5), one.alpha_folds, target.groups, g) for g in range(PATIENTS)]
        )
        for X, one in zip((seen[0], seen[2]), found, strict=True)
    ]
    for one, expected in zip(found, deleted, strict=True):
        np.testing.assert_allclose(one.refits.score.deleted, expected, atol=1e-9)
    paired = refit_difference(*(one.refits for one in found))
    gain = found[0].score - found[1].score
    error = np.sqrt((PATIENTS - 1) / PATIENTS * np.sum((d := deleted[0] - deleted[1]) ** 2 - d.mean() ** 2))
    reach = student.ppf(0.975, PATIENTS - 1) * error
    assert (paired.mean, paired.low, paired.high) == pytest.approx((gain, gain - reach, gain + reach), abs=1e-9)
    logs = [np.log(1 - one) for one in deleted]
    log_error = np.sqrt((PATIENTS - 1) / PATIENTS * np.sum((d := logs[0] - logs[1]) ** 2 - d.mean() ** 2))
    ratio = (np.log(1 - found[0].score) - np.log(1 - found[1].score)) / log_error
    assert paired.p == pytest.approx(2 * student.sf(abs(ratio), PATIENTS - 1), abs=1e-9)
    # the control: predictions that are not refitted have another, smaller error
    fixed = paired_interval(*([scored_r2(y, one.predicted, target.groups)] for one in found))
    assert fixed.high - fixed.low < 0.97 * (paired.high - paired.low)


def test_classes_are_compared_by_balanced_accuracy():
    Z, seen, patients = views(seed=3)
    labels = np.where(Z[:, 1] > 0, "b", "a")
    target = make_target("c", "categorical", labels, patients)
    found = [validate(X, [target], n_resamples=9)[0] for X in (seen[0], seen[2])]
    paired = refit_difference(*(one.refits for one in found))
    scores = [balanced_accuracy_score(target.y, one.predicted) for one in found]
    assert paired.mean == pytest.approx(scores[0] - scores[1])
    plain = paired_interval(*([one.refits.score] for one in found))
    assert plain.high - plain.low <= paired.high - paired.low  # refitting may only widen it
    assert paired.p < 0.05


def test_patches_resampled_cover_a_true_difference_too_rarely():
    path = Path(__file__).parents[1] / "benchmarks" / "encoders.py"
    spec = importlib.util.spec_from_file_location("encoders_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = next(case for case in module.CASES if case[2] == 0.8)
    runs = np.array([module.one_set(seed, 30, *case[1:]) for seed in range(16)])
    truth = runs[:, 0].mean()
    ours, patches = (np.mean((runs[:, i] <= truth) & (truth <= runs[:, i + 1])) for i in (2, 6))
    assert ours >= 0.9
    assert patches <= 0.7  # the control


# --- the record ---------------------------------------------------------------------------------------------------


def test_rows_of_each_encoder_are_those_of_its_own_run(record, folder, tmp_path):
    assert [(row.encoder, row.concept) for row in record.rows] == [
        (encoder, concept) for encoder in ("uni", "conch", "weak") for concept in ("count", "grade")
    ]
    alone = probed(folder, tmp_path / "run", features=folder / "weak.npy")
    assert [row.encoder for row in alone.rows] == [None, None]
    assert alone.differences == ()
    for name in ("score", "score_low", "score_high", "alpha_folds"):
        assert [getattr(row, name) for row in record.rows[4:]] == [getattr(row, name) for row in alone.rows]


def test_differences_are_those_of_the_scores_with_q_over_all(record):
    assert [(d.encoder, d.against) for d in record.differences[::2]] == [
        ("uni", "conch"),
        ("uni", "weak"),
        ("conch", "weak"),
    ]
    score = {(row.encoder, row.concept): row.score for row in record.rows}
    for d in record.differences:
        assert d.mean == pytest.approx(score[d.encoder, d.concept] - score[d.against, d.concept])
        assert d.low <= d.mean <= d.high
        assert d.n_groups == PATIENTS
    q = false_discovery_control([d.p for d in record.differences])
    assert [d.q for d in record.differences] == pytest.approx(list(q))


def test_the_record_is_read_again_and_made_again(record):
    body = json.loads((record.folder / "record.json").read_text())
    keys = {"encoder", "against", "layer", "concept", "metric", "mean", "low", "high", "p", "q", "n_groups"}
    assert keys <= set(body["differences"][0])
    assert load_record(record.folder).differences == record.differences
    assert list(record.settings["encoders"]) == ["uni", "conch", "weak"]
    again = ck.from_settings(load_record(record.folder).settings)
    assert again.features == record.settings["features"]
    earlier = {k: v for k, v in body.items() if k != "differences"}
    for row in earlier["rows"]:
        del row["encoder"]
    assert ck.ProbeRecord.from_dict(earlier).differences == ()


def test_ties_are_called_ties(record, tmp_path):
    rows = {row.encoder: row for row in record.rows if row.concept == "count"}
    assert set(best_encoders(rows, record)) == {"uni", "conch"}
    assert matrix_table(record).frame.set_index("concept").loc["count", "best"] in (
        "tie: uni, conch",
        "tie: conch, uni",
    )
    only = {name: row for name, row in rows.items() if name != "conch"}
    assert best_encoders(only, record) == ["uni"]
    page = write_page([record.folder], tmp_path / "page.html").read_text()
    assert "Encoders by concept" in page
    assert "tie: " in page
    assert "Tie for count" in page


def test_against_compares_with_one_encoder(folder, tmp_path):
    features = ",".join(f"{name}={path}" for name, path in paths(folder, "uni", "conch", "weak").items())
    out = tmp_path / "r.json"
    words = [
        "probe",
        "--table",
        str(folder / "t.csv"),
        "--group",
        "patient",
        "--concept",
        "count",
        "--features",
        features,
    ]
    words += ["--against", "weak", "--permutations", "0", "--json", str(out), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["differences"]
    assert [(d["encoder"], d["against"]) for d in found] == [("uni", "weak"), ("conch", "weak")]


@pytest.mark.usefixtures("one_random_network")
def test_networks_are_compared_layer_by_layer(study, tmp_path):
    record = ck.run_probe(
        study,
        model="small=mini_inception,mini_inception",
        weights="random",
        layers=["small=mixed2", "mini_inception=mixed4"],
        concepts=["count"],
        permutations=0,
        out=tmp_path / "run",
    )
    assert [(row.encoder, row.layer) for row in record.rows] == [("small", "mixed2"), ("mini_inception", "mixed4")]
    [d] = record.differences
    assert (d.layer, d.against_layer) == ("mixed2", "mixed4")
    assert all(row.score_random_network is not None for row in record.rows)
    assert "mixed2 / mixed4" in set(matrix_table(record).frame.get("layer", ["mixed2 / mixed4"]))


def test_layers_without_a_common_name_are_compared_in_their_order():
    def layers(encoder, *names):
        return [Layer(name=name, X=None, model="m", weights="w", encoder=encoder) for name in names]

    def named(pairs):
        return [(one.place, other.place) for one, other in pairs]

    shared = layer_pairs([*layers("a", "l1", "l2"), *layers("b", "l2", "l3")])
    assert named(shared) == [("l2 of a", "l2 of b")]
    assert named(layer_pairs([*layers("a", "l1"), *layers("b", "m1")])) == [("l1 of a", "m1 of b")]
    assert layer_pairs([Layer(name="l1", X=None, model="m", weights="w")]) == []
    with pytest.raises(InputError, match="layer: a has 2 layers and b 1, with no name in common"):
        layer_pairs([*layers("a", "l1", "l2"), *layers("b", "m1")])


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "options", "sentence"),
    [
        ("uni={0}/uni.npy,conch={0}/short.npy", {}, "features: of encoder conch, patch .* which has 100"),
        ("uni={0}/uni.npy,conch={0}/other.parquet", {}, "features: of encoder conch, .* has no row for patch p000"),
        ("uni={0}/uni.npy,uni={0}/conch.npy", {}, "features: encoder uni is named twice"),
        ("uni={0}/uni.npy,conch={0}/uni.npy", {}, "features: uni and conch are the same file"),
        ("{0}/uni.npy,{0}/conch.npy", {}, "features: each of several encoders needs a name"),
        ("uni={0}/uni.npy", {"against": "conch"}, "against: a difference needs two encoders, .* got uni"),
        ("{0}/uni.npy", {"against": "conch"}, "against: a difference needs two encoders"),
        ("uni={0}/uni.npy,conch={0}/conch.npy", {"against": "unni"}, "against: 'unni' is not known; near names: uni"),
        ("uni={0}/uni.npy,conch={0}/conch.npy", {"layers": ["uno=features"]}, "layer: 'uno' is not known"),
        ("uni={0}/uni.npy", {"model": "uni=mini_inception"}, "model: encoder uni is named twice, in features too"),
        ("{0}/uni.npy", {"model": "a=mini_inception"}, "features: to be compared with networks it needs a name"),
        (None, {"model": "mini_inception,mini_inception"}, "model: encoder mini_inception is named twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder, tmp_path, features, options, sentence):
    np.save(folder / "short.npy", np.load(folder / "conch.npy")[:100])
    X = pd.DataFrame(np.load(folder / "conch.npy"), columns=[f"f{i}" for i in range(12)])
    X.assign(patch_id=[f"q{i:03d}" for i in range(len(X))]).to_parquet(folder / "other.parquet")
    given = None if features is None else features.format(folder)
    with pytest.raises(InputError, match=sentence):
        probed(folder, tmp_path / "run", features=given, **options)
    assert not (tmp_path / "run" / "record.json").exists()


def test_one_weights_file_is_not_that_of_two_networks(folder, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be the weights of 2 networks"):
        probed(folder, tmp_path / "run", model="mini_inception,b=mini_inception", weights=tmp_path / "w.safetensors")


def test_paths_with_commas_or_equals_stay_one_file(tmp_path):
    place = tmp_path / "run=3,b"
    place.mkdir()
    np.save(place / "f.npy", np.zeros((2, 2)))
    assert Probe(features=str(place / "f.npy")).features == str(place / "f.npy")
    assert Probe(features=tmp_path / "missing.npy").features == tmp_path / "missing.npy"
