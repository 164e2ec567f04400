"""Opening networks: the names of layers, weights that are what they are said to be, and what is refused."""

from __future__ import annotations

import copy
import importlib
import pickle
import random
import re
import socket
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from conceptkit.errors import InputError
from conceptkit.models import downloads
from conceptkit.models.backbones import Preprocessing, build, from_module, open_backbone, same_architecture
from conceptkit.models.layers import INCEPTION_V3, last_block, resolve_layer


@pytest.fixture(scope="module")
def inception():
    return open_backbone("inception_v3", "random")


@pytest.fixture(scope="module")
def resnet():
    return open_backbone("resnet50", "random")


@pytest.fixture(scope="module")
def mobilenet_file(shared_data):
    return shared_data / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors"


def output_of(module, layer, images):
    """What a module returns in a full forward pass."""
    seen = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        module(images)
    handle.remove()
    return seen[0]


# Layers


def test_keras_names_of_inception(inception):
    assert inception.aliases == INCEPTION_V3
    assert list(inception.aliases) == [f"mixed{i}" for i in range(11)]
    # Shapes at 224 x 224 as Keras' InceptionV3 has them.
    shapes = {
        "mixed0": (256, 25, 25),
        "mixed1": (288, 25, 25),
        "mixed2": (288, 25, 25),
        **{f"mixed{i}": (768, 12, 12) for i in range(3, 8)},
        "mixed8": (1280, 5, 5),
        "mixed9": (2048, 5, 5),
        "mixed10": (2048, 5, 5),
    }
    images = torch.zeros(1, 3, 224, 224)
    for alias, shape in shapes.items():
        assert output_of(inception.module, inception.layer(alias), images).shape == (1, *shape)


def test_keras_names_of_resnet(resnet):
    images = torch.zeros(1, 3, 224, 224)
    assert resnet.layer("conv5_block3_out") == "layer4.2"
    assert output_of(resnet.module, "layer4.2", images).shape == (1, 2048, 7, 7)
    for stage, (blocks, width, side) in enumerate([(3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7)], start=2):
        alias = f"conv{stage}_block{blocks}_out"
        assert output_of(resnet.module, resnet.layer(alias), images).shape == (1, width, side, side)
        assert f"conv{stage}_block{blocks + 1}_out" not in resnet.aliases


def test_module_names_are_names_too(resnet):
    assert resnet.layer("layer3.0.conv2") == "layer3.0.conv2"


@pytest.mark.parametrize(
    ("layer", "near"),
    [("mixed11", "mixed1"), ("mixd10", "mixed10"), ("Mixed_7d", "Mixed_7c"), ("", None), ("quite.another", None)],
)
def test_an_unknown_layer_is_told_with_near_names(inception, layer, near):
    with pytest.raises(InputError, match=re.escape(f"layer: the network has no layer {layer!r}; ")) as told:
        inception.layer(layer)
    if near:
        assert near in str(told.value)
    assert "known: " in str(told.value) or "near names: " in str(told.value)


def test_last_blocks(inception, resnet):
    assert last_block(inception.module, "inception_v3") == "Mixed_7c"
    assert last_block(resnet.module, "resnet50") == "layer4.2"
    bundled = open_backbone("mini_inception")
    assert bundled.layer(last_block(bundled.module, "mini_inception")) == "mixed10"
    assert last_block(torch.nn.Linear(1, 1), "something") is None


LAST_BLOCKS = {
    "beit_base_patch16_224": "blocks.11",
    "botnet26t_256": "stages.3.1",
    "coat_lite_tiny": "serial_blocks4.1",
    "convmixer_768_32": "blocks.31",
    "convnext_atto": "stages.3.blocks.1",
    "cs3darknet_focus_s": "stages.3.blocks.0",
    "densenet121": "features.denseblock4.denselayer16",
    "efficientnet_b0": "blocks.6.0",
    "hrnet_w18_small": "stage4.0",
    "legacy_xception": "conv4",
    "mobilenetv2_100": "blocks.6.0",
    "mobilenetv3_small_050": "blocks.5.0",
    "mobilevit_xxs": "final_conv",
    "mvitv2_tiny": "stages.3.blocks.1",
    "nest_tiny": "levels.2.transformer_encoder.7",
    "pit_ti_224": "transformers.2.blocks.3",
    "pvt_v2_b0": "stages.3.blocks.1",
    "regnetx_002": "s4.b7",
    "resnetv2_18": "stages.3.blocks.1",
    "swin_tiny_patch4_window7_224": "layers.3.blocks.1",
    "twins_svt_small": "blocks.3.3",
    "vgg11": "features.18",
    "vit_tiny_patch16_224": "blocks.11",
    "volo_d1_224": "network.4.1",
    "xcit_nano_12_p16_224": "blocks.11",
}


def without_weights(name):
    """Build a network whose weights take no memory, where its code allows that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return timm.create_model(name)
        except (NotImplementedError, RuntimeError):
            return timm.create_model(name)


@pytest.mark.parametrize("name", LAST_BLOCKS)
def test_last_blocks_of_timms_families(name):
    module = without_weights(name)
    assert last_block(module, name) == LAST_BLOCKS[name]
    assert any(p.ndim > 1 for p in module.get_submodule(LAST_BLOCKS[name]).parameters())


@pytest.mark.long
@pytest.mark.parametrize("family", sorted(timm.list_modules()))
def test_every_family_of_timm_has_a_last_block(family):
    for name in timm.list_models(module=family)[:1]:
        module = without_weights(name)
        block = last_block(module, name)
        assert block is not None
        own = sum(p.numel() for p in module.get_submodule(block).parameters())
        assert 0 < own < 0.7 * sum(p.numel() for p in module.parameters())


def test_an_alias_never_hides_a_module():
    module = torch.nn.ModuleDict({"a": torch.nn.Identity()})
    assert resolve_layer(module, {"first": "a"}, "first") == "a"
    assert resolve_layer(module, {"first": "a"}, "a") == "a"


# Random weights


def states(*found):
    return [{k: v.clone() for k, v in b.module.state_dict().items()} for b in found]


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("model", ["mobilenetv2_035", "mini_inception"])
def test_random_weights_follow_their_seed(model):
    first, again, other = (open_backbone(model, "random", seed=s) for s in (1, 1, 2))
    a, b, c = states(first, again, other)
    assert equal(a, b)
    assert not equal(a, c)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert (first.weights, first.name, first.architecture) == ("random:1", model, model)
    assert not first.module.training


@pytest.mark.parametrize(
    ("model", "weights"), [("mobilenetv2_035", "random"), ("mini_inception", "random"), ("mini_inception", None)]
)
def test_opening_leaves_the_random_state_alone(model, weights):
    check_random_state(lambda: open_backbone(model, weights, seed=3))


def check_random_state(open_it):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002  # it is the matter here
    open_it()
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_the_same_architecture_with_other_weights(mobilenet_file):
    opened = open_backbone("mobilenetv2_100", str(mobilenet_file))
    like = same_architecture(opened, seed=4)
    assert (like.name, like.weights, like.preprocessing) == (opened.name, "random:4", opened.preprocessing)
    assert like.arguments == opened.arguments
    assert [v.shape for v in like.module.state_dict().values()] == [
        v.shape for v in opened.module.state_dict().values()
    ]
    assert like.fingerprint() != opened.fingerprint()


class Scaled(nn.Module):
    """A network of one's own whose factor is neither a weight nor printed."""

    def __init__(self, factor=1.0, act=torch.relu):
        super().__init__()
        self.factor, self.act = factor, act
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.act(self.factor * x) + self.shift[0]


def shifted():
    module = Scaled()
    module.shift += 1
    return module


@pytest.mark.parametrize(
    "other",
    [lambda: Scaled(2.0), lambda: Scaled(act=torch.tanh), shifted],
    ids=["setting", "function", "buffer in no state dict"],
)
def test_fingerprints_see_what_no_state_dict_holds(other):
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), Scaled())
    changed = copy.deepcopy(plain)
    changed[1] = other()
    changed[0].load_state_dict(plain[0].state_dict())
    prints = [from_module(module).fingerprint() for module in (plain, copy.deepcopy(plain), changed)]
    assert prints[0] == prints[1] != prints[2]
    assert {*plain.state_dict()} == {*changed.state_dict()}  # the control: by these the two are one


def test_fingerprints_see_the_source_of_a_network_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for folder, sign in (("one", ""), ("two", ""), ("three", "-")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(
            "from torch import nn\n\n"
            f"class Net(nn.Module):\n    def forward(self, x):\n        return {sign}x\n\n"
            "class Part(Net):\n    pass\n"
        )
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / folder)
            patch.delitem(sys.modules, "own", raising=False)
            prints.append(from_module(nn.Sequential(importlib.import_module("own").Part())).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_fingerprints_see_the_architecture_around_the_same_weights():
    relu, tanh = (build("resnet10t", {"act_layer": act}, seed=0) for act in (nn.ReLU, timm.layers.Tanh))
    assert equal(*states(relu, tanh))
    assert relu.fingerprint() != tanh.fingerprint()
    strided = build("resnet10t", {"output_stride": 8}, seed=0)
    plain = build("resnet10t", {}, seed=0)
    assert equal(*states(plain, strided))
    assert plain.fingerprint() != strided.fingerprint()


def test_fingerprints_hold_no_place_in_memory():
    first, again = (Scaled(act=(torch.relu, lambda x: x)) for _ in range(2))
    assert from_module(first).fingerprint() == from_module(again).fingerprint()


def test_fingerprints_see_every_buffer():
    backbone = build("mobilenetv2_035", {}, seed=0)
    before = backbone.fingerprint()
    backbone.module.bn1.running_mean[0] += 1
    assert backbone.fingerprint() != before


# Weights from files


def test_a_weights_file_is_obeyed_and_knows_a_parrot(mobilenet_file, shared_data):
    backbone = open_backbone("mobilenetv2_100", str(mobilenet_file))
    assert backbone.arguments == {"num_classes": 1001, "pad_type": "same"}
    assert backbone.preprocessing == Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert backbone.weights == mobilenet_file.name
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}
    with Image.open(shared_data / "weights" / "parrot.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224)))[None]
    names = (shared_data / "weights" / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == 1001
    with torch.inference_mode():
        logits = backbone.module(backbone.preprocessing(pixels))
        # The control: without its own normalisation the network is less sure.
        plain = backbone.module(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float())
    number = int(logits.argmax())
    assert "macaw" in names[number]
    assert logits.softmax(1)[0, number] > 0.5
    assert plain.softmax(1)[0, number] < logits.softmax(1)[0, number]


def test_opening_a_file_leaves_the_random_state_alone(mobilenet_file):
    check_random_state(lambda: open_backbone("mobilenetv2_100", str(mobilenet_file)))


def test_a_file_of_another_architecture(mobilenet_file, tmp_path):
    with pytest.raises(InputError, match=r"weights: .* holds weights of mobilenetv2_100, the model is resnet50"):
        open_backbone("resnet50", str(mobilenet_file))
    # Without a word about its architecture the shapes tell.
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"weights: .*does not fit mobilenetv2_035") as told:
        open_backbone("mobilenetv2_035", str(tmp_path / "w.safetensors"))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def test_metadata_that_cannot_be_read(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"num_classes": "many"})
    with pytest.raises(InputError, match=r"weights: the metadata of .* cannot be read"):
        open_backbone("mobilenetv2_035", str(path))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_garbage_files(tmp_path, name):
    path = tmp_path / name
    for content in (b"", b"no weights at all " * 30):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"weights: .* cannot be read") as told:
            open_backbone("mobilenetv2_035", str(path))
        assert "\n" not in str(told.value)


class Malicious:
    """Runs a command of its author's choice when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_file_is_run(tmp_path, write):
    mark, path = tmp_path / "executed", tmp_path / "w.pt"
    write({"state_dict": Malicious(mark)}, path)
    with pytest.raises(InputError, match=r"weights: .* cannot be read"):
        open_backbone("mobilenetv2_035", str(path))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()  # the control: the trap does work


def test_state_dicts_of_torch(tmp_path):
    original = build("mobilenetv2_035", {}, seed=7)
    for value in (original.module.state_dict(), {"state_dict": original.module.state_dict(), "epoch": 3}):
        torch.save(value, tmp_path / "w.pt")
        assert open_backbone("mobilenetv2_035", str(tmp_path / "w.pt")).fingerprint() == original.fingerprint()


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), {"model": {"a": 1}}, {"epoch": 3}])
def test_files_of_torch_that_are_no_state_dict(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"weights: .* cannot be read"):
        open_backbone("mobilenetv2_035", str(tmp_path / "w.pt"))


# Names


def test_names_that_are_not_known():
    with pytest.raises(InputError, match=r"model: 'inception_v33' is not known; near names: .*inception_v3"):
        open_backbone("inception_v33")
    with pytest.raises(InputError, match="model: 'mini_inceptoin' is not known; near names: mini_inception"):
        open_backbone("mini_inceptoin")
    with pytest.raises(InputError, match="weights: must be imagenet, random or a file; file w not found"):
        open_backbone("resnet50", "w")
    with pytest.raises(
        InputError, match="weights: mini_inception has weights bundled, tissue and random, got 'imagenet'"
    ):
        open_backbone("mini_inception", "imagenet")


def test_a_model_without_published_weights():
    without = next(m for m in timm.list_models("mobilenetv2*") if not timm.get_pretrained_cfg(m).has_weights)
    with pytest.raises(InputError, match=f"weights: timm has none for {without}; use --weights FILE"):
        open_backbone(without)


# The hub


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub that refuses every connection, and a computer that never downloaded anything."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy"):  # a proxy would answer in the hub's place
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_without_the_hub_it_says_so_and_never_takes_random_weights(no_hub, weights):
    start = time.monotonic()
    with pytest.raises(InputError, match="those of inception_v3 could not be downloaded") as told:
        open_backbone("inception_v3", weights)
    assert time.monotonic() - start < 10
    assert "--weights FILE" in str(told.value)
    assert "--weights random" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_hub_that_never_answers(no_hub, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not downloads.hub_answers(0.3)
        assert time.monotonic() - start < 2


# Preprocessing


def test_preprocessing_is_scaling_and_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    x = Preprocessing(mean=mean, std=std)(pixels)
    expected = ((pixels / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)
    resized = Preprocessing(mean=mean, std=std, size=4)(pixels)
    assert resized.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(
        Preprocessing(mean=(0,) * 3, std=(1,) * 3, size=4)(np.full_like(pixels, 51)), 0.2, rtol=1e-5
    )


def test_networks_of_one_input_size_get_it():
    assert build("vit_tiny_patch16_224", {}, seed=0).preprocessing.size == 224
    assert build("mobilenetv2_035", {}, seed=0).preprocessing.size is None


@pytest.mark.parametrize("mean", ["0.5", "0.5,0.5", "0.5,nan,0.5", "0.5,inf,0.5"])
def test_metadata_that_no_pixels_fit_are_refused(tmp_path, mean):
    state = {k: v.contiguous() for k, v in build("test_resnet", {}, seed=0).module.state_dict().items()}
    stated = {"architecture": "test_resnet", "mean": mean, "std": "0.5,0.5,0.5"}
    save_file(state, tmp_path / "w.safetensors", metadata=stated)
    with pytest.raises(
        InputError, match=r"the metadata of .* cannot be read \(preprocessing: mean and std must be three"
    ):
        open_backbone("test_resnet", str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="std above 0"):
        Preprocessing(mean=(0.5,) * 3, std=(0.5, 0.0, 0.5))
