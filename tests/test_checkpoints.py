"""Checkpoints: opened as any network is, bitwise what was saved, and never half read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conceptkit import GradientReversal
from conceptkit.errors import InputError
from conceptkit.guide.building import build_model
from conceptkit.models.backbones import build, open_backbone
from conceptkit.models.checkpoints import (
    DESCRIPTION,
    SCHEMA,
    WEIGHTS,
    is_checkpoint,
    load_checkpoint,
    open_model,
    random_control,
    save_checkpoint,
)
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.models.inference import pooled_activations
from conceptkit.options.training import TrainingOptions

TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="count", kind="continuous", mean=12.5, deviation=3.25),
    Task(name="center", kind="categorical", classes=("0", "1", "2"), adversarial=True),
)


def images(n=2, side=64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def guided(backbone, width):
    torch.manual_seed(0)
    return GuidedModel(backbone.module, width, TASKS, trunk=(16, 8), dropout=0.5).eval()


@pytest.fixture(scope="module")
def bundled():
    backbone = open_backbone("mini_inception")
    return backbone, guided(backbone, 256)


@pytest.fixture
def folder(bundled, tmp_path):
    save_checkpoint(bundled[1], bundled[0], tmp_path / "guided-seed0")
    return tmp_path / "guided-seed0"


def change(folder, **changes):
    path = folder / DESCRIPTION
    description = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in description.items() if v is not None}), encoding="utf-8")


def test_what_is_loaded_computes_bitwise_what_was_saved(bundled, folder):
    opened = load_checkpoint(folder)
    with torch.inference_mode():
        saved, loaded = bundled[1](images()), opened.module(images())
    assert list(saved) == [MAIN, "count", "center"]
    for name in saved:
        assert torch.equal(saved[name], loaded[name])
    assert saved[MAIN].shape == (2, 1)
    assert saved["center"].shape == (2, 3)
    assert opened.module.tasks == TASKS
    assert opened.module.dropout == 0.5
    assert opened.preprocessing == bundled[0].preprocessing
    assert not opened.module.training
    assert (opened.name, opened.weights, opened.architecture) == ("guided-seed0", "trained", "mini_inception")
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_layers_keep_their_names(bundled, folder):
    opened = load_checkpoint(folder)
    assert opened.layer("mixed10") == opened.layer("backbone.mixed10") == "backbone.mixed10"
    assert opened.layer("trunk") == "trunk"
    assert opened.layer("trunk.0.0") == "trunk.0.0"
    layers = ["backbone.mixed10", "trunk"]
    found = pooled_activations(opened.module, images(), layers)
    plain = pooled_activations(bundled[0].module, images(), ["mixed10"])
    assert torch.equal(found["backbone.mixed10"], plain["mixed10"])
    with torch.inference_mode():
        trunk = bundled[1].trunk(bundled[1].features(images())[0])
    torch.testing.assert_close(found["trunk"], trunk)
    with pytest.raises(InputError, match="the network has no layer 'mixed11'"):
        opened.layer("mixed11")


def test_aliases_and_arguments_of_timm_are_kept(tmp_path):
    backbone = build("resnet10t", {"num_classes": 7}, seed=0)
    model = guided(backbone, 512)
    save_checkpoint(model, backbone, tmp_path)
    opened = load_checkpoint(tmp_path)
    assert opened.layer("conv5_block1_out") == "backbone.layer4.0"
    assert opened.layer("layer4.0") == "backbone.layer4.0"
    assert opened.arguments == {"num_classes": 7}
    with torch.inference_mode():
        for name, value in model(images()).items():
            assert torch.equal(value, opened.module(images())[name])


def test_a_mark_that_nobody_knows_is_not_passed_over(bundled, folder, tmp_path):
    assert load_checkpoint(folder).marks == ()
    save_checkpoint(bundled[1], bundled[0], folder, marks=["transductive"])
    assert load_checkpoint(folder).marks == ("transductive",)
    change(folder, marks=None)  # as earlier versions wrote it
    assert load_checkpoint(folder).marks == ()
    change(folder, marks=["stolen"])
    with pytest.raises(InputError, match="mark 'stolen' is not known"):
        load_checkpoint(folder)


def test_a_checkpoint_is_opened_like_any_model(folder, tmp_path):
    assert is_checkpoint(folder)
    assert open_model(str(folder)).fingerprint() == load_checkpoint(folder).fingerprint()
    assert open_model("mini_inception").architecture == "mini_inception"
    (tmp_path / "empty").mkdir()
    assert not is_checkpoint(tmp_path / "empty")
    with pytest.raises(InputError, match=r"model: the folder .*empty is not a guide checkpoint"):
        open_model(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"weights: the checkpoint .* has its own \(or random\), got 'imagenet'"):
        open_model(str(folder), "imagenet")


def test_random_controls_of_a_checkpoint(folder, bundled):
    trained = load_checkpoint(folder)
    state = torch.get_rng_state()
    first, again = (random_control(str(folder), trained, seed=3) for _ in range(2))
    other = open_model(str(folder), "random", seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint() == again.fingerprint()
    assert len({first.fingerprint(), other.fingerprint(), trained.fingerprint()}) == 3
    assert (first.weights, other.weights) == ("random:3", "random:4")
    for part in ("backbone.stem.0.conv.weight", "trunk.0.0.weight", "heads.main.weight"):
        a, b = (n.module.state_dict()[part] for n in (first, trained))
        assert a.shape == b.shape
        assert not torch.equal(a, b)
    plain = random_control("mini_inception", bundled[0], seed=3)
    assert plain.fingerprint() == build("mini_inception", {}, seed=3).fingerprint()


def test_loading_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_saving_again_writes_over(bundled, folder):
    other = guided(bundled[0], 256)
    with torch.no_grad():
        other.heads["count"].bias.add_(1)
    save_checkpoint(other, bundled[0], folder)
    assert torch.equal(load_checkpoint(folder).module.heads["count"].bias, other.heads["count"].bias)


# What is refused


def check_refused(folder, sentence):
    for open_it in (lambda: load_checkpoint(folder), lambda: open_model(str(folder))):
        with pytest.raises(InputError, match=sentence) as told:
            open_it()
        assert "\n" not in str(told.value)


def test_another_schema(folder):
    change(folder, schema="conceptkit/checkpoint/99")
    check_refused(folder, f"has schema 'conceptkit/checkpoint/99', this version reads {SCHEMA!r}")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_description_that_is_none(folder, text):
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    check_refused(folder, f"checkpoint: .*{DESCRIPTION} is not a checkpoint's description")


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": None},
        {"tasks": None},
        {"tasks": [{"name": "main"}]},
        {"trunk": [16, 9]},
        {"width": 255},
        {"tasks": []},
    ],
)
def test_a_description_that_does_not_fit(folder, changes):
    change(folder, **changes)
    check_refused(folder, "checkpoint: .* cannot be opened")


@pytest.mark.parametrize("changes", [{"preprocessing": None}, {"tasks": None}, {"trunk": "wide"}])
def test_a_broken_description_makes_no_random_control_either(folder, changes):
    change(folder, **changes)
    with pytest.raises(InputError, match=r"checkpoint: .* cannot be opened"):
        open_model(str(folder), "random")


def test_an_architecture_that_is_not_known(folder):
    change(folder, architecture="inception_v33")
    check_refused(folder, "'inception_v33' is not known; near names")


def test_broken_weights(folder):
    path = folder / WEIGHTS
    whole = path.read_bytes()
    for content in (b"", b"garbage" * 10, whole[: len(whole) // 2]):
        path.write_bytes(content)
        check_refused(folder, "checkpoint: .* cannot be opened")
    path.write_bytes(whole)
    state = load_file(path)
    del state["heads.main.bias"]
    save_file(state, path)
    check_refused(folder, "checkpoint: .* cannot be opened")
    path.unlink()
    check_refused(folder, "checkpoint: .* cannot be opened")


def test_a_half_written_checkpoint_is_none(folder):
    (folder / DESCRIPTION).unlink()  # it comes last
    assert not is_checkpoint(folder)
    with pytest.raises(InputError, match=r"is not a guide checkpoint: it has no checkpoint\.json"):
        load_checkpoint(folder)


# Gradient reversal


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
def test_the_reversal_is_the_identity_forwards_and_minus_lambda_backwards(strength):
    reverse = GradientReversal(strength)
    x = images(2, 4).double().requires_grad_()
    weight = torch.randn(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    y = reverse(x)
    assert torch.equal(y, x)
    (y * weight).sum().backward()
    torch.testing.assert_close(x.grad, -strength * weight)
    reverse.strength.fill_(7.0)  # a schedule sets it without a new graph
    x.grad = None
    (reverse(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, -7 * weight)


def test_the_reversal_reaches_trunk_and_backbone_but_not_its_own_head(bundled):
    model = guided(bundled[0], 256)
    features = torch.randn(6, 256, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.arange(6) % 3

    def gradients(strength):
        model.reversals["center"].strength.fill_(strength)
        model.zero_grad()
        features.grad = None
        torch.nn.functional.cross_entropy(model.outputs(model.reads(features))["center"], target).backward()
        return features.grad.clone(), model.trunk[0][0].weight.grad.clone(), model.heads["center"].weight.grad.clone()

    plain, reversed_, off = gradients(-1.0), gradients(1.0), gradients(0.0)
    for shared in (0, 1):
        assert plain[shared].abs().max() > 0
        torch.testing.assert_close(reversed_[shared], -plain[shared])
        assert not off[shared].any()
    torch.testing.assert_close(reversed_[2], plain[2])  # the head itself goes on learning
    torch.testing.assert_close(off[2], plain[2])


def test_strengths_are_no_part_of_a_checkpoint(bundled):
    assert not [k for k in bundled[1].state_dict() if "strength" in k]
    assert np.isclose(bundled[1].reversals["center"].strength.item(), 1.0)


def test_a_checkpoint_on_own_code_runs_it_only_when_it_is_named(tmp_path, monkeypatch):
    """A stranger's checkpoint may name any function; opening must not call it."""
    (tmp_path / "strangers.py").write_text(
        "from pathlib import Path\nfrom conceptkit.models.mini_inception import load_mini_inception\n\n"
        "def build():\n    Path('ran').touch()\n    return load_mini_inception(pretrained=False)\n"
    )
    monkeypatch.chdir(tmp_path)
    backbone = open_backbone("strangers:build")
    model = build_model(backbone, TASKS, TrainingOptions(trunk=(4,)), seed=0)
    save_checkpoint(model, backbone, tmp_path / "kept")
    Path("ran").unlink()
    with pytest.raises(InputError, match=r"was built on strangers:build, and opening it would run this code"):
        open_model("kept")
    with pytest.raises(InputError, match="opening it would run this code"):
        open_model("os:getcwd@kept")
    assert not Path("ran").exists()
    opened = open_model("strangers:build@kept")
    assert Path("ran").exists()
    assert isinstance(opened.module, GuidedModel)


def test_poor_checkpoints_and_names_are_sentences(tmp_path):
    for name in ("", "  "):
        with pytest.raises(InputError, match=r"^model: the name is empty"):
            open_model(name)
    (tmp_path / "checkpoint.json").write_text('{"schema": "conceptkit/checkpoint/1", "architecture": "mini_inception"}')
    with pytest.raises(InputError, match=r"description has no 'preprocessing'"):
        open_model(str(tmp_path))
