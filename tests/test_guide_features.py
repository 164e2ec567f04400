"""Guiding on features: adapters are trained, saved, read, audited and exported like networks on images."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from small_study import write_study
from torch import nn
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands.cohort_notes import read_training
from conceptkit.features import sources
from conceptkit.files import matrix
from conceptkit.guide import feature_bench
from conceptkit.models.adapter import export_onnx
from conceptkit.models.checkpoints import load_checkpoint

OPTIONS = {
    "encourage": "count",
    "discourage": "center",
    "epochs": 12,
    "warmup": 1,
    "lr": 0.01,
    "arms": "baseline,guided",
}


@pytest.fixture(scope="module")
def place(table, tmp_path_factory):
    """A study without images, and features that hold the label, the count and the center, far from mean 0."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    center = pd.get_dummies(table.center).to_numpy(float)
    X = np.column_stack([table.label == "tumor", (table["count"] - 20) / 10, center, rng.normal(size=(len(table), 12))])
    X = (X + 0.3 * rng.normal(size=X.shape)) * 5 + 100
    pd.DataFrame(X.astype(np.float32), columns=[f"f{k}" for k in range(X.shape[1])]).assign(
        patch_id=table.patch_id
    ).to_parquet(folder / "f.parquet")
    write_study(folder, table.drop(columns=["h5", "key", "row"]))
    text = (folder / "conceptkit.toml").read_text().replace('model = "mini_inception"\nweights = "bundled"\n', "")
    (folder / "conceptkit.toml").write_text(text)
    return folder, X.astype(np.float32)


@pytest.fixture(scope="module")
def record(place):
    folder, _ = place
    features = folder / "f.parquet"
    return ck.run_guide(folder, features=features, **OPTIONS, export=folder / "a.onnx", out=folder / "run")


@pytest.fixture(scope="module")
def checkpoint(record):
    return record.folder / "checkpoints" / "guided-seed0"


def plainly(folder, X):
    """The main logit and the count (in units) by the stored weights alone, in float64."""
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "weights.safetensors").items()}
    x = (X.astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]
    k = 0
    while f"trunk.{k}.0.weight" in w:
        x = np.maximum(x @ w[f"trunk.{k}.0.weight"].T + w[f"trunk.{k}.0.bias"], 0)
        k += 1
    task = next(t for t in json.loads((folder / "checkpoint.json").read_text())["tasks"] if t["name"] == "count")
    out = {name: x @ w[f"heads.{name}.weight"].T + w[f"heads.{name}.bias"] for name in ("main", "count")}
    return out["main"][:, 0], out["count"][:, 0] * task["deviation"] + task["mean"]


def test_an_adapter_learns_what_the_features_hold_and_its_record_repeats(place, record):
    assert {run.name for run in record.runs} == {"baseline", "guided"}
    assert all(run.metrics["external"]["auc"] > 0.9 for run in record.runs)
    again = ck.from_settings(ck.load_record(record.folder).settings).run(place[0], out=place[0] / "again")
    assert [run.metrics for run in again.runs] == [run.metrics for run in record.runs]
    page = ck.write_report([record.folder], place[0] / "page.html").read_text(encoding="utf-8")
    assert "count" in page


def test_the_features_are_standardised_by_the_training_rows(place, checkpoint, table):
    w, X = load_file(checkpoint / "weights.safetensors"), place[1][(table.split == "train").to_numpy()]
    np.testing.assert_allclose(w["backbone.mean"], X.mean(0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(w["backbone.deviation"], X.std(0, dtype=float), rtol=1e-4)


def test_a_checkpoint_is_a_plain_module_and_predicts_what_its_weights_say(place, checkpoint, table):
    folder, X = place
    module = load_checkpoint(checkpoint).module
    assert isinstance(module, nn.Module)
    logit, count = plainly(checkpoint, X)
    with torch.inference_mode():
        np.testing.assert_allclose(module(torch.from_numpy(X))["main"][:, 0], logit, atol=1e-4)
    frame = ck.predict(checkpoint, folder, features=folder / "f.parquet").set_index("patch_id").loc[table.patch_id]
    np.testing.assert_allclose(frame["probability_tumor"], 1 / (1 + np.exp(-logit)), atol=1e-5)
    np.testing.assert_allclose(frame["count_predicted"], count, rtol=1e-4)
    assert "center_predicted" not in frame


def test_a_new_center_is_compared_with_the_training_rows_only(place, checkpoint, table, tmp_path):
    """In predict and in probe. Centers of evaluation rows are new."""
    folder, _ = place
    trained = set(table.center[table.split == "train"])
    assert trained < set(table.center)  # else the next line could not fail
    assert set(read_training(checkpoint.parents[1]).centers) == trained
    other = pd.read_csv(folder / "patches.csv").assign(center="elsewhere")
    for shift, noted in ((0, False), (60, True)):
        other.assign(count=other["count"] + shift).to_csv(tmp_path / "patches.csv", index=False)
        how = {"features": folder / "f.parquet", "table": tmp_path / "patches.csv"}
        notes = ck.predict(checkpoint, **how).attrs["notes"]
        probed = ck.run_probe(model=checkpoint, concepts="count", folds=2, out=tmp_path / f"probe{shift}", **how).notes
        for found in (notes, probed):
            assert any("center elsewhere lies beyond all" in note and "count" in note for note in found) == noted


@pytest.mark.parametrize("how", [{}, {"trunk": (), "method": "leace"}], ids=["trunk", "linear heads and erasure"])
def test_the_exported_graph_gives_what_the_adapter_gives(how, place, record, tmp_path):
    folder, X = place
    file, run = folder / "a.onnx", record
    if how:
        file = tmp_path / "b.onnx"
        run = ck.run_guide(folder, features=folder / "f.parquet", **OPTIONS | how, export=file, out=tmp_path / "run")
    module = load_checkpoint(run.folder / "checkpoints" / "guided-seed0").module
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    assert set(names) == {"main", "count", "center"}
    with torch.inference_mode():
        expected = module(torch.from_numpy(X))
    for name, found in zip(names, session.run(names, {"features": X}), strict=True):
        np.testing.assert_allclose(found, expected[name], atol=1e-5 * max(1, float(expected[name].abs().max())))
    tasks = json.loads(session.get_modelmeta().custom_metadata_map["tasks"])
    assert tasks[0]["name"] == "main"
    # The control: the baseline's outputs are others.
    other = load_checkpoint(run.folder / "checkpoints" / "baseline-seed0").module
    with torch.inference_mode():
        apart = other(torch.from_numpy(X))["main"].numpy() - session.run(["main"], {"features": X})[0]
    assert np.abs(apart).max() > 1e-3


def test_only_adapters_are_exported(tmp_path):
    with pytest.raises(ck.InputError, match="only an adapter"):
        export_onnx(nn.Linear(2, 2), tmp_path / "x.onnx")


def test_many_rows_stay_in_their_file_and_train_the_same(place, record, tmp_path, monkeypatch):
    largest = []
    read = feature_bench.FeatureInputs.batch

    def spied(self, rows, device):
        assert isinstance(self.X, matrix.FileMatrix)
        largest.append(len(rows))
        return read(self, rows, device)

    monkeypatch.setattr(matrix, "HELD", 0)
    monkeypatch.setattr(feature_bench.FeatureInputs, "batch", spied)
    again = ck.run_guide(place[0], features=place[0] / "f.parquet", **OPTIONS, out=tmp_path / "run")
    assert [run.metrics for run in again.runs] == [run.metrics for run in record.runs]
    assert 0 < max(largest) <= 256  # a batch at a time, however many rows there are


def test_a_store_is_read_at_its_layer_and_no_other(study, tmp_path):
    store = ck.extract("mini_inception", study, layers="mixed2,mixed3", weights="bundled", store=tmp_path / "s.h5").path
    run = ck.run_guide(study, features=store, layer="mixed2", **OPTIONS, out=tmp_path / "run")
    guided = run.folder / "checkpoints" / "guided-seed0"
    stated = json.loads((guided / "checkpoint.json").read_text())["arguments"]
    assert len(stated.pop("sha256")) == 64
    assert stated == {"width": 48, "source": "mini_inception", "layer": "mixed2", "pool": "gap"}
    assert len(ck.predict(guided, study, features=store)) > 100
    other = ck.extract("mini_inception", study, layers="mixed2", weights="random", store=tmp_path / "t.h5", pool="max")
    with pytest.raises(ck.InputError, match="of pooling gap, got max"):
        ck.predict(guided, study, features=other.path)
    # The same rows by the network itself: features of a store are those of its layer.
    probed = ck.Probe(model=str(guided), features=store, layers="trunk", concepts="count", permutations=0).run(
        study, out=tmp_path / "probe"
    )
    assert probed.rows[0].score_random_network is not None


def test_the_trunk_of_an_adapter_is_probed(place, checkpoint):
    folder, X = place
    study = ck.load_study(folder).replace(model=str(checkpoint))
    table = study.load_table()
    opened = sources.open_features(table, study, layers=("trunk", "heads.count"), features=folder / "f.parquet")
    rows = np.array([5, 3, 40])
    read = opened.read(rows)
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).module.trunk(
            load_checkpoint(checkpoint).module.backbone(torch.from_numpy(X[rows]))
        )
    ids = pd.read_csv(folder / "patches.csv").patch_id
    assert [table.patch_ids[k] for k in rows] == [sorted(ids)[k] for k in rows]
    order = np.array([list(ids).index(table.patch_ids[k]) for k in rows])
    np.testing.assert_allclose(opened._base.read(rows)["features"], X[order], rtol=1e-6)
    assert read["trunk"].shape == tuple(expected.shape)
    control = next(opened.random_controls(1))
    assert not np.allclose(control.read(rows)["trunk"], read["trunk"])
    moments = [one._adapter.backbone.mean for one in (opened, control)]
    assert torch.equal(*moments)


AUDITS = {
    "features": ({}, {"features"}, False),
    "adapter": ({"checkpoint": True}, {"features", "trunk", "logit"}, True),
}


@pytest.mark.parametrize("kind", AUDITS)
def test_any_kind_is_audited(kind, place, checkpoint, tmp_path):
    options, places, has_head = AUDITS[kind]
    options = {"checkpoint": checkpoint} if options else {}
    how = {"features": place[0] / "f.parquet", "concept": "center", "permutations": 9, "folds": 2}
    found = ck.Audit(**options, **how).run(place[0], out=tmp_path / "audit")
    assert {row.layer for row in found.rows} == places
    assert (found.head is not None) == has_head == np.isfinite(found.auc)
    linear = next(row for row in found.rows if row.probe == "linear" and row.layer == "features")
    assert linear.score > 0.7  # the features hold the center
    assert all(np.isfinite(one.label_auc) for one in found.layers if one.layer != "logit")


def test_a_network_is_audited_without_a_checkpoint(study, tmp_path):
    command = ["audit", "--study", str(study), "--layer", "mixed2", "--concept", "center", "--permutations", "0"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    found = ck.load_record(tmp_path / "a")
    assert {row.layer for row in found.rows} == {"input", "mixed2"}
    assert found.settings["layers"] == ["mixed2"]


def test_training_of_an_adapter_continues(place, checkpoint, tmp_path):
    how = {"features": place[0] / "f.parquet", "epochs": 1, "warmup": 0, "arms": "baseline,guided"}
    more = ck.run_guide(place[0], model=str(checkpoint), encourage="area", discourage="", **how, out=tmp_path / "more")
    tasks = json.loads((more.folder / "checkpoints" / "guided-seed0" / "checkpoint.json").read_text())["tasks"]
    assert [task["name"] for task in tasks] == ["main", "count", "center", "area"]
    after = more.folder / "checkpoints" / "guided-seed0"
    old, new = (load_file(one / "weights.safetensors")["backbone.mean"] for one in (checkpoint, after))
    np.testing.assert_array_equal(old, new)


def test_a_grid_trains_adapters(place, tmp_path):
    how = {"features": place[0] / "f.parquet", "ablate": "count", "controls": False, "seeds": [0], "workers": 1}
    grid = ck.Grid(**how, epochs=2, warmup=1, weightings="vanilla").run(place[0], out=tmp_path / "grid")
    assert len(grid.cells) > 1
    assert ck.write_report([grid.folder], tmp_path / "page.html").is_file()


def test_predictivity_needs_no_images(place, tmp_path):
    assert ck.Predictivity(seeds=[0], concepts="count").run(place[0], out=tmp_path / "p").rows


MISTAKES = {
    "no features": (lambda f, c: ck.predict(c, f), "features: none are given"),
    "another width": (lambda f, c: ck.predict(c, f, features=f / "narrow.parquet"), "of width 19, got 3"),
    "a network too": (lambda f, c: ck.run_guide(f, features=f / "f.parquet", model="mini_inception"), "drop one"),
    "unfreeze": (lambda f, c: ck.run_guide(f, features=f / "f.parquet", unfreeze="mixed10"), "no layers of a backbone"),
    "a layer": (lambda f, c: ck.run_guide(f, features=f / "f.parquet", encourage="count@mixed2"), "no layer 'mixed2'"),
    "augment": (lambda f, c: ck.run_guide(f, features=f / "f.parquet", augment=2), "needs images"),
    "disturb": (lambda f, c: ck.run_guide(f, features=f / "f.parquet", disturb="jpeg"), "needs images"),
    "layer without features": (lambda f, c: ck.run_guide(f, model="mini_inception", layer="mixed2"), "--unfreeze"),
    "export of images": (
        lambda f, c: ck.run_guide(f, model="mini_inception", export="x.onnx"),
        "pixels|only an adapter",
    ),
    "attribute": (
        lambda f, c: ck.Attribute(model=str(c), layers=["trunk"], concepts=["count"]).run(f),
        "features: none are given",
    ),
    "two sources": (
        lambda f, c: ck.Audit(checkpoint=c, model="resnet18", concept="center").run(f),
        "one of them",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name, place, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, call = place[0], MISTAKES[name]
    narrow = pd.read_parquet(folder / "f.parquet")[["patch_id", "f0", "f1", "f2"]]
    narrow.to_parquet(folder / "narrow.parquet")
    with pytest.raises(ck.InputError, match=call[1]):
        call[0](folder, checkpoint)
    assert not list(tmp_path.rglob("record.json"))
