"""What would be trained, by recipe: the paper's parameters; and predictions from a checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.models.checkpoints import load_checkpoint
from conceptkit.options.guide import run_guide

PATIENTS = {"train": 6, "val": 4, "internal": 6}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 64 small patches with seven centers, two classes, and a value missing here and there."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    rows = []
    for split, n_patients in PATIENTS.items():
        for patient in range(n_patients):
            for number in range(4):
                tumor = (patient + number) % 2
                center = (patient * 4 + number) % 7
                pixels = rng.integers(0, 60, (96, 96, 3)) + 40 * tumor + 15 * center
                name = f"{split}-{patient}-{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
                rows.append(
                    {
                        "patch_id": name.removesuffix(".png"),
                        "image": name,
                        "label": ("normal", "tumor")[tumor],
                        "center": f"c{center}",
                        "patient": f"{split}{patient}",
                        "split": split,
                        "count": np.nan if rng.random() < 0.1 else 10 * tumor + rng.normal(),
                        "area": 30 + 5 * tumor + rng.normal(),
                        "contrast": 100 + 20 * center + rng.normal(),
                    }
                )
    path = folder / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


WISHES = {"encourage": ["area", "count", "contrast"], "discourage": ["center"]}


@pytest.mark.parametrize(("model", "before_heads"), [("inception_v3", 7_801_600), ("resnet50", 6_425_344)])
def test_the_papers_parameters(table, model, before_heads):
    """Main, three concepts and a seven-way center on a trunk of 256: 2,827 in the heads, 7,804,427 in all."""
    outline = ck.Guide(table=table, model=model, weights="random", recipe="paper", **WISHES, dry_run=True).run()
    assert outline.trainable_before_heads == before_heads
    assert outline.trainable_heads == 2_827
    assert outline.trainable_loss_weights == 5
    assert [(b.task, b.alpha) for b in outline.branches] == [
        ("main", 1),
        ("area", 1),
        ("count", 1),
        ("contrast", 1),
        ("center", -1),
    ]
    assert outline.settings["l2"] == 0.01
    assert any(note.startswith("Recipe paper set: unfreeze") for note in outline.notes)


def test_a_named_option_goes_before_the_recipe(table):
    outline = ck.Guide(
        table=table, recipe="paper-code", model="mini_inception", trunk=(16,), lr=0.5, **WISHES, dry_run=True
    ).run()
    assert outline.settings["trunk"] == (16,)
    assert outline.settings["lr"] == 0.5
    assert outline.settings["warmup"] == 80
    note = next(n for n in outline.notes if n.startswith("Recipe paper-code set"))
    assert "trunk" not in note
    assert outline.settings["weighting"] == "uncertainty,center=uncertainty-full"


def test_the_dry_run_prints_the_tree_and_its_json(table):
    arguments = ["guide", "--dry-run", "--table", str(table), "--model", "mini_inception", "--json", "-"]
    result = CliRunner().invoke(app, [*arguments, "--encourage", "count@mixed10,area", "--discourage", "center"])
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body["schema"] == "conceptkit/guide-outline/1"
    by_task = {branch["task"]: branch for branch in body["branches"]}
    assert by_task["count"]["layer"] == "mixed10"
    assert by_task["center"] == {
        "task": "center",
        "kind": "categorical",
        "layer": "trunk",
        "alpha": -1,
        "loss": "cross-entropy of 7",
        "nodes": 7,
        "parameters": 7 * 65,
    }
    assert body["trainable_heads"] == sum(b["parameters"] for b in body["branches"])
    assert "α = −1" in result.stderr


@pytest.mark.parametrize("command", [["--dry-run"], ["--epochs", "1", "--device", "cpu", "--warmup", "0"]])
def test_the_first_line_says_what_is_trained(table, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    arguments = ["guide", "--table", str(table), "--model", "mobilenetv2_035", "--weights", "random", *command]
    result = CliRunner().invoke(app, [*arguments, "--encourage", "area", "--trunk", "8"])
    assert result.exit_code == 0, result.output
    # An expansion 56 → 336, a 3×3 of each channel, and a projection 336 → 112; its normalisations stay frozen.
    assert 56 * 336 + 9 * 336 + 336 * 112 == 59_472
    first = " ".join(result.stdout.split("Study ")[0].split())  # rich breaks long lines
    assert first.startswith(
        "Trained: blocks.6.0 (59,472 parameters) of the backbone; the trunk 8 (10,248 parameters); a linear head per "
        "task."
    )


class WithoutStages(nn.Module):
    """A network that states no stages, with the methods that a guided network needs."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4)

    def forward_features(self, x):
        return self.bn(self.conv(x))

    def forward_head(self, x, pre_logits=False):
        return x.mean((2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def without_stages():
    return WithoutStages()


def test_a_backbone_of_which_nothing_is_trained_is_said_before_the_run(table):
    model = f"{__name__}:without_stages"
    outline = ck.Guide(table=table, model=model, encourage=["area"], dry_run=True).run()
    assert outline.trains.startswith(
        f"Trained: no layer of the backbone, as the last block of {model} is not known (name layers with --unfreeze"
    )
    assert outline.unfrozen == {}
    named = ck.Guide(table=table, model=model, encourage=["area"], unfreeze="conv", dry_run=True).run()
    assert named.trains.startswith("Trained: conv (772 parameters) of the backbone; the trunk 256 → 64")
    chosen = ck.Guide(table=table, model=model, encourage=["area"], unfreeze=(), dry_run=True).run()
    assert chosen.trains.startswith("Trained: no layer of the backbone; the trunk")
    with pytest.raises(InputError, match=r"unfreeze: bn has no weights to train \(batch normalisations stay frozen\)"):
        ck.Guide(table=table, model=model, encourage=["area"], unfreeze="bn", dry_run=True).run()


def test_outliers_among_the_training_rows_are_told(table):
    def notes(split):
        frame = pd.read_csv(table)
        row = frame.index[frame["split"] == split][3]
        frame["area"] = frame["area"].where(frame.index != row, 1e6)
        frame.to_csv(table.with_name("outlier.csv"), index=False)
        arguments = ["guide", "--dry-run", "--table", str(table.with_name("outlier.csv")), "--model", "mini_inception"]
        result = CliRunner().invoke(app, [*arguments, "--encourage", "area,count", "--json", "-"])
        assert result.exit_code == 0, result.output
        return [note for note in json.loads(result.stdout)["notes"] if "rule its standard deviation" in note]

    (note,) = notes("train")
    assert note.startswith("area: 1 of 24 values lie far out")
    assert notes("internal") == []  # control: the scale is not of these rows


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"encourage": ["count@mixed2"]}, "count@mixed2 lies before every trained layer"),
        ({"encourage": ["count@"]}, "must be CONCEPT or CONCEPT@LAYER, got 'count@'"),
        ({"encourage": ["count@mixed99"]}, "no layer 'mixed99'"),
        ({"encourage": ["count"], "discourage": ["count@mixed10"]}, "count given more than once"),
        ({"encourage": ["label"]}, "label is the main task itself"),
        ({"weighting": "vanilla,cuont=fixed:1", "encourage": ["count"]}, "no task 'cuont'"),
        ({"recipe": "papper"}, "'papper' is not known"),
    ],
)
def test_wishes_that_cannot_be_met_are_sentences(table, wishes, sentence):
    with pytest.raises(ck.InputError, match=sentence):
        ck.Guide(table=table, model="mini_inception", **wishes, dry_run=True).run()


def test_a_checkpoint_predicts_in_the_concepts_own_units(table, tmp_path):
    options = {"epochs": 2, "warmup": 1, "trunk": (8,)}
    record = run_guide(
        table=table,
        model="mini_inception",
        group="patient",
        **options,
        folds=3,
        encourage=["count@mixed10", "area"],
        discourage=["center"],
        out=tmp_path / "run",
    )
    guided = next(run for run in record.runs if run.name == "guided")
    bare = pd.read_csv(table)[["patch_id", "image"]]
    bare["image"] = [str(table.parent / name) for name in bare["image"]]
    bare.to_csv(tmp_path / "bare.csv", index=False)
    frame = ck.predict(guided.checkpoint, table=tmp_path / "bare.csv", out=tmp_path / "p.csv", batch_size=10)
    assert list(frame.columns) == ["patch_id", "probability_tumor", "count_predicted", "area_predicted"]
    assert frame["area_predicted"].between(15, 60).all()  # around 30 to 35, not around 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "p.csv"), frame)
    model = load_checkpoint(record.folder / "checkpoints" / "guided-seed0").module
    assert {task.name: task.layer for task in model.tasks}["count"] == "mixed10"
    whole = ck.predict(guided.checkpoint, table=tmp_path / "bare.csv", batch_size=64)
    np.testing.assert_allclose(frame["count_predicted"], whole["count_predicted"], rtol=1e-4)
    more = run_guide(
        table=table,
        model=guided.checkpoint,
        group="patient",
        epochs=2,
        warmup=1,
        folds=3,
        encourage=["contrast"],
        out=tmp_path / "more",
    )
    old = load_checkpoint(record.folder / "checkpoints" / "guided-seed0").module
    for name, tasks in (("baseline", ["main", "count", "area", "center"]), ("guided", None)):
        new = load_checkpoint(more.folder / "checkpoints" / f"{name}-seed0").module
        assert [t.name for t in new.tasks] == (tasks or ["main", "count", "area", "center", "contrast"])
        assert new.tasks[2] == old.tasks[2]  # with its scale
        moved = (new.heads["area"].weight - old.heads["area"].weight).abs().max()
        assert 0 < moved < 0.1  # it went on from there
    assert set(more.encourage) == {"count", "area", "contrast"}
    assert any("continues" in note for note in more.notes)
    with pytest.raises(ck.InputError, match="area was encouraged in the checkpoint"):
        ck.Guide(table=table, model=guided.checkpoint, discourage=["area"], dry_run=True).run()
    with pytest.raises(ck.InputError, match="trunk: the checkpoint has"):
        ck.Guide(table=table, model=guided.checkpoint, trunk=(4,), encourage=["contrast"], dry_run=True).run()
    with pytest.raises(ck.InputError, match="is not a checkpoint"):
        ck.predict(tmp_path, table=tmp_path / "bare.csv")
