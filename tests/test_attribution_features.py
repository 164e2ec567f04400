"""``attribute`` on adapters: exact gradients of heads on features, against NumPy in float64; what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.attribution.outputs import choose_outputs
from conceptkit.attribution.sensitivity import pooled_gradients
from conceptkit.cli import app
from conceptkit.commands.attribute_inputs import open_inputs
from conceptkit.models.backbones import of_features, open_backbone
from conceptkit.models.checkpoints import load_checkpoint, save_checkpoint
from conceptkit.models.guided import MAIN, GuidedModel, Task

WIDTH, ROWS = 7, 120
FAST = {"refits": 10, "permutations": 19, "folds": 3}
TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="count", kind="continuous", mean=12.0, deviation=5.0),
    Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True),
)


def adapter(folder, trunk, *, erases=False):
    """A checkpoint of random weights on features of mean 100 and deviation 5, and its weights in float64."""
    backbone = of_features("f", width=WIDTH, source=None, layer=None, pool=None, sha256="0")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GuidedModel(backbone.module, WIDTH, TASKS, trunk=trunk, dropout=0.3, erases=erases)
    model.backbone.standardise(np.full(WIDTH, 100.0), np.linspace(4, 6, WIDTH))
    if erases:
        model.erasure.matrix.copy_(torch.eye(model.heads[MAIN].in_features) - 0.1)
    save_checkpoint(model, backbone, folder)
    return folder, {k: v.astype(np.float64) for k, v in load_file(folder / "weights.safetensors").items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of 12 patients without images, and features that hold its count."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, WIDTH))
    table = pd.DataFrame(
        {
            "patch_id": [f"p{k:03d}" for k in range(ROWS)],
            "patient": [f"P{k % 12:02d}" for k in range(ROWS)],
            "center": [f"{'ABC'[k % 3]}" for k in range(ROWS)],
            "label": np.where(X[:, 1] > 0, "tumor", "normal"),
            "count": (12 + 5 * X[:, 0] + rng.normal(size=ROWS)).round(2),
        }
    )
    X = (X * 5 + 100).astype(np.float32)
    table.to_csv(folder / "table.csv", index=False)
    named = pd.DataFrame(X, columns=[f"f{k}" for k in range(WIDTH)]).assign(patch_id=table.patch_id)
    named.to_parquet(folder / "f.parquet")
    named[["patch_id", "f0", "f1"]].to_parquet(folder / "narrow.parquet")
    return folder, table, X


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return adapter(tmp_path_factory.mktemp("deep") / "adapter", (6, 5))


def forward(w, x, start=0):
    """The input of every dense layer, of the heads last, from layer ``start`` on."""
    inputs = [x]
    while f"trunk.{start}.0.weight" in w:
        inputs.append(np.maximum(inputs[-1] @ w[f"trunk.{start}.0.weight"].T + w[f"trunk.{start}.0.bias"], 0))
        start += 1
    return inputs


def logit_gradient(w, x):
    """∂logit/∂x (n, d) by the chain rule, layer by layer."""
    inputs = forward(w, x)
    G = np.repeat(w["heads.main.weight"], len(x), axis=0)
    for k in reversed(range(len(inputs) - 1)):
        G = (G * (inputs[k + 1] > 0)) @ w[f"trunk.{k}.0.weight"]
    return G


def attributed(place, checkpoint, out, **options):
    how = {"features": place[0] / "f.parquet", "concepts": "count", **FAST, **options}
    return ck.Attribute(checkpoint=checkpoint, **how).run(place[0] / "table.csv", out=out)


@pytest.fixture(scope="module")
def record(place, deep, tmp_path_factory):
    return attributed(place, deep[0], tmp_path_factory.mktemp("runs") / "run", targets="tumor,count")


def gradients(place, checkpoint, layer, targets, method="gradient"):
    study = ck.Study(name="s", table=place[0] / "table.csv", group="patient").replace(model=str(checkpoint))
    options = ck.Attribute(features=place[0] / "f.parquet", layers=layer)
    rows = np.arange(ROWS)
    inputs = open_inputs(options, study, study.load_table(), rows, torch.device("cpu"))
    module = inputs.backbone.module
    outputs = choose_outputs(module, inputs.reader.of(rows[:2]), targets)
    batches = inputs.reader.batches(rows)
    return pooled_gradients(module, inputs.backbone.layer(layer), outputs, batches, method=method)


def standardised(w, X):
    return (X.astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]


def test_gradients_equal_the_chain_rule_and_finite_differences(place, deep):
    folder, w = deep
    x = standardised(w, place[2])
    G = gradients(place, folder, "features", ["tumor", "count", "center:B"])
    np.testing.assert_allclose(G[0], logit_gradient(w, x), rtol=1e-12, atol=1e-14)

    def outputs(x):
        end = forward(w, x)[-1]
        count = (end @ w["heads.count.weight"].T + w["heads.count.bias"])[:, 0] * 5 + 12
        return np.stack([count, (end @ w["heads.center.weight"].T)[:, 1]])  # a head behind a reversal: not reversed

    for k, step in enumerate(np.eye(WIDTH) * 1e-6):
        slope = (outputs(x + step) - outputs(x - step)) / 2e-6
        np.testing.assert_allclose(G[1:, :, k], slope, atol=1e-7)
    at_trunk = gradients(place, folder, "trunk", ["tumor"])[0]
    np.testing.assert_array_equal(at_trunk, np.repeat(w["heads.main.weight"], ROWS, axis=0))


def test_integrated_gradients_start_at_the_mean_of_the_training_rows(place, deep):
    folder, w = deep
    x = standardised(w, place[2])
    G = gradients(place, folder, "features", ["tumor"], method="integrated")[0]
    ends = [forward(w, part)[-1] @ w["heads.main.weight"].T for part in (x, 0 * x)]
    change = (ends[0] - ends[1])[:, 0]  # along the path, gradients add up to it, but for the steps at its kinks
    assert np.corrcoef((G * x).sum(1), change)[0, 1] > 0.999
    assert np.abs((G * x).sum(1) - change).max() < 0.1 * np.abs(change).max()
    single = (logit_gradient(w, x) * x).sum(1)  # the control: the gradient at the row itself does not
    assert np.abs(single - change).mean() > 3 * np.abs((G * x).sum(1) - change).mean()


@pytest.mark.parametrize("layer", ["features", "trunk"])
def test_the_record_holds_what_numpy_and_scikit_learn_give(layer, place, deep, record):
    _, w = deep
    x, c = standardised(w, place[2]), place[1]["count"].to_numpy()
    A = x if layer == "features" else forward(w, x)[-1]
    G = logit_gradient(w, x) if layer == "features" else np.repeat(w["heads.main.weight"], ROWS, axis=0)
    row = next(r for r in record.rows if (r.layer, r.target, r.among) == (layer, "tumor", "all"))
    pattern = (A - A.mean(0)).T @ (c - c.mean()) / ((c - c.mean()) ** 2).sum()
    assert row.per_unit == pytest.approx((G @ pattern).mean(), rel=1e-10)
    scale = StandardScaler().fit(A)
    vector = Ridge(row.alpha).fit(scale.transform(A), c).coef_ / scale.scale_
    S = G @ vector / np.linalg.norm(vector)
    assert row.scores["sign_count"].value == np.mean(S > 0)
    assert row.scores["mean"].value == pytest.approx(S.mean(), rel=1e-8)
    assert row.same_derivative == (layer == "trunk")
    if layer == "features":
        assert row.scores["relevance"].value == pytest.approx(max(row.score, 0) * S.mean() / S.std(), rel=1e-2)
    # The control: the raw features, or the gradient of another head, give another number.
    raw = (place[2] - place[2].mean(0)).T @ (c - c.mean()) / ((c - c.mean()) ** 2).sum()
    assert layer == "trunk" or row.per_unit != pytest.approx((G @ raw).mean(), rel=1e-2)


def test_moving_features_moves_the_outputs_and_the_record_repeats(place, record):
    moved = next(one for one in record.moved if one.layer == "trunk")
    row = next(r for r in record.rows if (r.layer, r.target, r.among) == ("trunk", "tumor", "all"))
    at = dict(zip(moved.steps, moved.outputs["tumor"], strict=True))
    assert at[1.0] - at[0.0] == pytest.approx(row.per_sd, rel=1e-9)  # linear from there on
    assert {r.layer for r in record.rows} == {"features", "trunk"}
    assert (record.figures, record.settings["maps"]) == ((), 0)
    again = ck.from_settings(ck.load_record(record.folder).settings).replace(table=None)
    repeated = again.run(place[0] / "table.csv", out=place[0] / "again")
    np.testing.assert_equal(repeated.to_dict()["rows"], record.to_dict()["rows"])


def test_linear_heads_give_their_weights_from_the_command_line(place, tmp_path):
    table = place[1].assign(split=np.resize(["train", "val", "internal", "external"], ROWS))
    table.to_csv(tmp_path / "split.csv", index=False)
    source = ["--table", str(tmp_path / "split.csv"), "--features", str(place[0] / "f.parquet")]
    train = ["guide", *source, "--trunk", "none", "--encourage", "count", "--discourage", "", "--epochs", "2"]
    result = CliRunner().invoke(
        app, [*train, "--arms", "guided", "--warmup", "1", "--folds", "3", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run" / "checkpoints" / "guided-seed0"
    assert json.loads((folder / "checkpoint.json").read_text())["trunk"] == []
    w = {k: v.astype(np.float64) for k, v in load_file(folder / "weights.safetensors").items()}
    for layer in ("features", "trunk"):
        G = gradients(place, folder, layer, ["tumor", "normal"])
        np.testing.assert_array_equal(G[0], np.repeat(w["heads.main.weight"], ROWS, axis=0))
        np.testing.assert_array_equal(G[1], -G[0])
    fast = ["--refits", "10", "--permutations", "19", "--split", "all", "--folds", "3"]
    command = ["attribute", str(folder), *source, "--concept", "count", *fast, "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = ck.load_record(tmp_path / "a").rows
    assert {r.layer for r in rows} == {"features"}  # its trunk is the same layer
    x, c = standardised(w, place[2]), table["count"].to_numpy()
    slope = np.polyfit(c, x @ w["heads.main.weight"][0], 1)[0]
    assert next(r for r in rows if r.among == "all").per_unit == pytest.approx(slope, rel=1e-9)


def test_the_trunk_of_an_adapter_with_erasure_is_read_after_it(place, tmp_path):
    folder, w = adapter(tmp_path / "erased", (), erases=True)
    at_features, at_trunk = (gradients(place, folder, layer, ["tumor"])[0] for layer in ("features", "trunk"))
    np.testing.assert_array_equal(at_trunk[0], w["heads.main.weight"][0])
    np.testing.assert_allclose(at_features[0], w["heads.main.weight"][0] @ w["erasure.matrix"], rtol=1e-12)


def test_an_adapter_opens_as_a_plain_module(place, deep, tmp_path):
    module = ck.load_adapter(deep[0])
    assert isinstance(module, nn.Module)
    assert not module.training
    X = torch.from_numpy(place[2])
    with torch.inference_mode():
        found, expected = module(X), load_checkpoint(deep[0]).module(X)
    assert all(torch.equal(found[name], expected[name]) for name in ("main", "count", "center"))
    images = open_backbone("mini_inception")
    save_checkpoint(GuidedModel(images.module, 256, TASKS, trunk=()), images, tmp_path / "images")
    with pytest.raises(ck.InputError, match="is a network on images"):
        ck.load_adapter(tmp_path / "images")


MISTAKES = {
    "no features": ({"features": None}, "features: none are given; set --features"),
    "another width": ({"features": "narrow.parquet"}, "features of width 7, got 2"),
    "maps": ({"maps": 3}, "maps: features have no image to draw maps in, got 3"),
    "pooling": ({"pool": "max"}, "pool: features are pooled already, got max"),
    "a layer": ({"layers": "mixed2"}, "layer: 'mixed2' is not known; known: features, trunk"),
    "a layer twice": ({"layers": "trunk,trunk"}, "layer: trunk given more than once"),
    "a network on images": ({"checkpoint": None, "model": "mini_inception"}, "features: only an adapter"),
    "two networks": ({"model": "mini_inception"}, "name one of them"),
    "no checkpoint": ({"checkpoint": "."}, "is not a `guide` checkpoint"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence_and_write_nothing(name, place, deep, tmp_path):
    options, sentence = MISTAKES[name]
    if isinstance(options.get("features"), str):
        options = options | {"features": place[0] / options["features"]}
    with pytest.raises(ck.InputError, match=sentence):
        attributed(place, **{"checkpoint": deep[0], "out": tmp_path / "run"} | options)
    assert not (tmp_path / "run" / "record.json").exists()
