"""The MoNuSeg images, measured and probed by the commands: known levels, and what scikit-learn says of the same."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.features.activations import read_activations
from conceptkit.models.checkpoints import open_model
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import load_table


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    """The MoNuSeg images, measured and probed by the commands of the README: folder, table, printed object."""
    images = shared_data / "monuseg" / "images.csv"
    weights = shared_data / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors"
    for path in (images, weights):
        if not path.is_file():
            pytest.skip(f"{path.name} is not among the real data")
    folder = tmp_path_factory.mktemp("real")
    measured = CliRunner().invoke(app, ["measure", str(images), "--out", str(folder / "patches.csv"), "--json", "-"])
    assert measured.exit_code == 0, measured.stderr
    assert json.loads(measured.stdout)["rows_written"] == 480
    command = ["probe", "--table", str(folder / "patches.csv"), "--group", "patient", "--model", "mobilenetv2_100"]
    command += ["--weights", str(weights), "--layer", "blocks.2,blocks.4,blocks.6"]
    command += ["--concept", "count,area_px,contrast,correlation", "--out", str(folder / "run"), "--json", "-"]
    command += ["--permutations", "0"]
    probed = CliRunner().invoke(app, command)
    assert probed.exit_code == 0, probed.stderr
    return folder, weights, json.loads(probed.stdout)


def test_the_real_table_is_as_the_images_are(real):
    table = pd.read_csv(real[0] / "patches.csv")
    assert (len(table), table.patient.nunique(), table.center.nunique()) == (480, 30, 18)


def test_the_real_probe_tells_knowledge_from_its_controls(real):
    _, _, body = real
    rows = {(r["layer"], r["concept"]): r for r in body["rows"]}
    assert len(rows) == 12
    assert body["group"] == "patient"
    assert not body["synthetic"]
    assert {r["n_groups"] for r in rows.values()} == {30}
    area = rows["blocks.6", "area_px"]
    # Plain RidgeCV gave 0.83, 0.70 and 0.51; here each penalty is chosen by patient, inside the training part.
    assert area["score_in_sample"] == pytest.approx(0.83, abs=0.05)
    assert area["score_patchwise"] == pytest.approx(0.70, abs=0.05)
    assert area["score"] == pytest.approx(0.51, abs=0.06)
    assert area["score_random_network"] < 0.3


@pytest.mark.parametrize("concept", ["count", "area_px"])
def test_the_real_probe_agrees_with_scikit_learn(real, concept):

    folder, weights, body = real
    data = load_table(folder / "patches.csv")
    network = open_model("mobilenetv2_100", str(weights))
    X = read_activations(data, network, ["blocks.2"], cache=cache_folder())["blocks.2"].astype(np.float64)
    y, groups = data.concept(concept).values, data.groups("patient").astype(str)
    known = np.isfinite(y)
    X, y, groups = X[known], y[known], groups[known]
    alphas = np.logspace(-1, 6, 20)
    with h5py.File(folder / "run" / "context.h5") as file:  # the folds of the run, where no patient is in two
        folds = file[f"folds/{concept}"][:][known]
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))

    def vector(alpha):
        return make_pipeline(StandardScaler(), Ridge(alpha=alpha))

    def chosen(X, y, groups):
        """The penalty of least error on groups left out one by one."""
        Z = StandardScaler().fit_transform(X)
        errors = [
            np.sum((y - cross_val_predict(Ridge(a), Z, y, groups=groups, cv=LeaveOneGroupOut())) ** 2) for a in alphas
        ]
        return alphas[np.argmin(errors)]

    def held_out(choose):
        out = np.empty(len(y))
        for train, test in PredefinedSplit(folds).split():
            model = vector(choose(X[train], y[train], groups[train])).fit(X[train], y[train])
            out[test] = model.predict(X[test])
        return r2_score(y, out)

    (row,) = (r for r in body["rows"] if (r["layer"], r["concept"]) == ("blocks.2", concept))
    assert row["n"] == len(y)
    assert row["score"] == pytest.approx(held_out(chosen), abs=1e-6)
    alpha = chosen(X, y, groups)
    assert row["alpha"] == pytest.approx(alpha, rel=1e-6)
    assert row["score_in_sample"] == pytest.approx(r2_score(y, vector(alpha).fit(X, y).predict(X)), abs=1e-6)
    # The control: with a penalty that was not chosen the score is another one.
    assert abs(row["score"] - held_out(lambda *_: alphas[-1])) > 1e-3


@pytest.fixture(scope="module")
def features(real):
    """Features of MobileNetV2, nuclear area in pixels, patients and centers of the same patches."""
    folder, weights, _ = real
    table = load_table(folder / "patches.csv")
    backbone = open_model("mobilenetv2_100", str(weights))
    X = read_activations(table, backbone, ["blocks.6"], cache=cache_folder())["blocks.6"].astype(float)
    area = table.concept("area_px").values
    kept = ~np.isnan(area)
    return X[kept], area[kept], table.groups("patient")[kept], table.groups("center")[kept]


def area_target(y, groups):
    return make_target("area_px", "continuous", y, groups)


def test_on_real_tissue_what_ignores_patients_flatters(features):
    """That the score is the independent statement's is tested through the command, on the same patches."""
    X, y, patients, _ = features
    assert X.shape[1] == 320
    assert len(set(patients)) == 30
    [result] = validate(X, [area_target(y, patients)])
    assert result.score_low < result.score < result.score_high
    assert result.score_in_sample > result.score_patchwise > result.score + 0.1


def test_the_known_levels_of_real_tissue(features):
    """Levels that were found with scikit-learn alone: what flatters, and by how much."""
    X, y, patients, centers = features
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))
    in_sample = r2_score(y, model.fit(X, y).predict(X))
    patchwise = r2_score(y, cross_val_predict(model, X, y, cv=KFold(5, shuffle=True, random_state=0)))
    patientwise = r2_score(y, cross_val_predict(model, X, y, cv=GroupKFold(5), groups=patients))
    centerwise = r2_score(y, cross_val_predict(model, X, y, cv=GroupKFold(5), groups=centers))
    assert in_sample == pytest.approx(0.83, abs=0.03)
    assert patchwise == pytest.approx(0.70, abs=0.03)
    assert patientwise == pytest.approx(0.51, abs=0.03)
    assert centerwise == pytest.approx(0.31, abs=0.03)


def test_permuted_areas_of_real_tissue_are_not_read(features):
    X, y, patients, _ = features
    target = area_target(np.random.default_rng(0).permutation(y), patients)
    [result] = validate(X, [target], n_resamples=50)
    assert result.score < 0.03
    assert result.score_in_sample > result.score
