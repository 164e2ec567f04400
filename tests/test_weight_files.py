"""Weights files as trainings write them: wrapped, prefixed, without a head, with other classes."""

from __future__ import annotations

import argparse

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from conceptkit.errors import InputError
from conceptkit.models.backbones import build, open_backbone, same_architecture
from conceptkit.models.checkpoints import mark_notes
from conceptkit.models.weight_files import match_weights, read_weights

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return timm.create_model(MODEL, num_classes=10).state_dict()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def saved(folder, content):
    path = folder / "w.pt"
    torch.save(content, path)
    return path


def same(backbone, state):
    """Whether a network has all values of a state, and no others beside counters."""
    own = backbone.module.state_dict()
    return set(own) == set(state) and all(torch.equal(own[name], value) for name, value in state.items())


WRAPPED = {
    "plain": (lambda s: s, None),
    "DataParallel": (lambda s: prefixed(s, "module."), "without the prefix 'module.'"),
    "torch.compile": (lambda s: prefixed(s, "_orig_mod."), None),
    "compiled inside": (lambda s: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()}, None),
    "Lightning model.": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "loss.weight": torch.ones(3)}, "epoch": 3},
        "from 'state_dict' and without the prefix 'model.'",
    ),
    "Lightning net.": (lambda s: {"state_dict": prefixed(s, "net.")}, "without the prefix 'net.'"),
    "backbone.": (lambda s: prefixed(s, "backbone."), "without the prefix 'backbone.'"),
    "encoder.": (lambda s: prefixed(s, "encoder."), "without the prefix 'encoder.'"),
    "compiled, distributed, Lightning": (
        lambda s: {"state_dict": prefixed(s, "model._orig_mod.module.")},
        "without the prefix 'model.module.'",
    ),
    "model, with options": (
        lambda s: {"model": s, "args": argparse.Namespace(lr=1.0), "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        "from 'model'",
    ),
    "teacher": (lambda s: {"teacher": prefixed(s, "backbone."), "step": 1}, "from 'teacher' and without"),
    "nested": (lambda s: {"checkpoint": {"state_dict": s}}, "from 'checkpoint.state_dict'"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_found_and_said(name, state, tmp_path):
    wrap, said = WRAPPED[name]
    backbone = open_backbone(MODEL, str(saved(tmp_path, wrap(state))))
    assert same(backbone, state)
    assert backbone.arguments["num_classes"] == 10
    notes = mark_notes(backbone)
    assert notes == () if said is None else said in notes[0]


@pytest.mark.parametrize("model", [MODEL, "test_vit", "test_convnext", "test_efficientnet", "levit_128s"])
def test_a_fine_tuned_network_has_the_classes_of_its_file(model, tmp_path):
    torch.manual_seed(1)
    state = timm.create_model(model, num_classes=3).state_dict()
    backbone = open_backbone(model, str(saved(tmp_path, {"state_dict": state})))
    assert same(backbone, state)
    assert backbone.module.num_classes == 3
    assert same_architecture(backbone, seed=0).module.num_classes == 3  # the random control is built alike


def test_a_file_without_a_head(state, tmp_path):
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    save_file(prefixed(body, "module."), tmp_path / "w.safetensors")
    backbone = open_backbone(MODEL, str(tmp_path / "w.safetensors"))
    assert same(backbone, body)
    assert backbone.arguments["num_classes"] == 0
    assert "w.safetensors holds no classification head: only the layers before fc have its weights." in backbone.notes


@pytest.mark.parametrize("name", ["fc.0.weight", "head.weight", "classifier.2.weight"])
def test_a_head_of_another_form_is_not_read(name, state, tmp_path):
    body = {k: v for k, v in state.items() if not k.startswith("fc.")}
    backbone = open_backbone(MODEL, str(saved(tmp_path, {**body, name: torch.ones(4, 4)})))
    assert same(backbone, body)
    assert f"w.pt holds a head of another form ({name}), which was not read" in backbone.notes[0]


def test_two_sets_of_weights_are_refused(state, tmp_path):
    other = {name: value * 2 for name, value in state.items()}
    for content in (
        {"state_dict": state, "state_dict_ema": other},
        {"student": prefixed(state, "module."), "teacher": other},
        {**prefixed(state, "student."), **prefixed(other, "teacher.")},
    ):
        with pytest.raises(InputError, match=r"several sets of weights that fit test_resnet \(.*\); save"):
            open_backbone(MODEL, str(saved(tmp_path, content)))


def misfit(content, tmp_path, model=MODEL):
    with pytest.raises(InputError, match=f"does not fit {model}") as told:
        open_backbone(model, str(saved(tmp_path, content)))
    assert "\n" not in str(told.value)
    assert str(told.value).endswith(".")
    return str(told.value)


def test_what_does_not_fit_shows_names_of_both_sides(state, tmp_path):
    first = next(iter(state))
    said = misfit({"state_dict": {f"trunk/{name}": value for name, value in state.items()}}, tmp_path)
    assert f"the network has {first}" in said
    assert f"the file in 'state_dict' has trunk/{first}" in said
    assert "more names that the network does not have" in said
    missing = {name: value for name, value in state.items() if name != "layer2.0.conv1.weight"}
    said = misfit(prefixed(missing, "model."), tmp_path)
    assert "the network has layer2.0.conv1.weight that the file does not have, the file has nothing that" in said
    said = misfit({**state, "layer9.weight": torch.ones(2)}, tmp_path)
    assert "the network has nothing that the file does not have, the file has layer9.weight that" in said
    name = "layer1.0.conv1.weight"
    said = misfit({**state, name: torch.ones(2, 3)}, tmp_path)
    assert f"{name} is {'×'.join(map(str, state[name].shape))} in the network, and {name} is 2×3 in the file." in said


def test_a_deeper_network_of_the_same_names_is_refused(tmp_path):
    """Every name of resnet18 is one of resnet34, with the same shape."""
    deeper = {k: v for k, v in build("resnet34", {}, seed=0).module.state_dict().items() if not k.startswith("fc.")}
    assert "layer1.2.conv1.weight" in misfit(prefixed(deeper, "model."), tmp_path, "resnet18")


def small():
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def test_a_network_of_ones_own_takes_any_number_of_classes(tmp_path):
    torch.manual_seed(1)
    state = small().state_dict()
    state |= {"fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)}
    backbone = open_backbone(f"{__name__}:small", str(saved(tmp_path, prefixed(state, "module."))))
    assert same(backbone, state)
    assert isinstance(backbone.module.fc, nn.Linear)
    assert backbone.module.fc.out_features == 2
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    backbone = open_backbone(f"{__name__}:small", str(saved(tmp_path, body)))
    assert all(torch.equal(backbone.module.state_dict()[name], value) for name, value in body.items())
    assert "holds no classification head" in backbone.notes[0]


def test_a_head_without_its_bias_is_not_filled_with_chance(tmp_path):
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    content = read_weights(tmp_path / "w.pth")[1]
    found = match_weights(content, timm.create_model("test_resnet", num_classes=10), "test_resnet", tmp_path / "w.pth")
    assert found.classes is None
    assert "a head of another form (fc.weight), which was not read" in found.notes[0]
