"""One forward pass: pooled as explicit hooks say, stopped early, and prepared without a change of its values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.models import folding
from conceptkit.models.backbones import Backbone, Preprocessing, build, open_backbone
from conceptkit.models.folding import AGREEMENT, folded
from conceptkit.models.inference import Reader, choose_device, pooled_activations
from conceptkit.models.layouts import measure_views
from conceptkit.models.pooling import View

SIDE = 64


@pytest.fixture(scope="module")
def network():
    return open_backbone("mini_inception")


def eager(module, images, layers):
    """What layers return in a full forward pass, copied before anyone can write over it."""
    seen = {}

    def keep(layer):
        return lambda _, inputs, output: seen.__setitem__(layer, output.detach().clone())

    handles = [module.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    with torch.inference_mode():
        module(images)
    for handle in handles:
        handle.remove()
    return seen


def images(n=3, side=SIDE, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pixels(n=3, side=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture
def calls():
    """Return a counter of how often modules run; its hooks are removed at the end."""
    handles = []

    def count(module, *names):
        counts = dict.fromkeys(names, 0)

        def add(name):
            def hook(_, inputs):
                counts[name] += len(inputs[0])

            return hook

        handles.extend(module.get_submodule(n).register_forward_pre_hook(add(n)) for n in names)
        return counts

    yield count
    for handle in handles:
        handle.remove()


def settle(module, seed=0):
    """Give normalisations statistics and scales that a fold must not miss."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                m.running_mean.normal_(0, 0.1, generator=generator)
                m.running_var.uniform_(0.5, 2.0, generator=generator)
                m.weight.uniform_(0.5, 1.5, generator=generator)
                m.bias.normal_(0, 0.1, generator=generator)
    return module


def settled(name, **arguments):
    backbone = build(name, arguments, seed=0)
    settle(backbone.module)
    return backbone


def apart(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def reader(backbone, layers, **options):
    size = options.pop("side", SIDE)
    return Reader(backbone, layers, (size, size), **{"batch_size": 4, "device": "cpu", **options})


# One forward pass


EXPECTED = {
    "gap": lambda x: x.mean((2, 3)) if x.ndim == 4 else x,
    "max": lambda x: x.flatten(2).max(2).values if x.ndim == 4 else x,
    "flatten": lambda x: x.reshape(len(x), -1),
}


@pytest.mark.parametrize("pool", EXPECTED)
def test_pooled_values_are_those_of_the_full_pass(network, pool):
    layers = ["mixed3", "stem", "mixed10", "mixed7", "global_pool"]
    found = pooled_activations(network.module, images(), layers, pool=pool)
    assert list(found) == layers
    for layer, value in eager(network.module, images(), layers).items():
        assert found[layer].dtype == torch.float32
        torch.testing.assert_close(found[layer], EXPECTED[pool](value))


def test_the_pass_ends_after_the_deepest_layer(network, calls):
    views = measure_views(network.module, ["mixed4", "mixed0"], images())
    counts = calls(network.module, "mixed3", "mixed4", "mixed5", "mixed10", "global_pool")
    pooled_activations(network.module, images(), ["mixed4", "mixed0"], views=views)
    assert counts == {"mixed3": 3, "mixed4": 3, "mixed5": 0, "mixed10": 0, "global_pool": 0}
    network.module(images())
    assert counts["mixed10"] == 3  # the control: a full pass gets there, and the hooks are gone


class InPlace(nn.Module):
    """A network whose activation writes over what the layer before it returned."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dense = nn.Linear(5, 4)
        self.last = nn.ReLU(inplace=True)
        self.unused = nn.Linear(1, 1)
        self.pair = Pair()

    def forward(self, x):
        return self.pair(self.last(self.dense(self.pool(self.act(self.norm(self.conv(x)))))))[0]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.fixture
def in_place():
    torch.manual_seed(0)
    return InPlace().eval()


@pytest.mark.parametrize("pool", EXPECTED)
def test_a_later_layer_that_works_in_place_changes_nothing(in_place, pool):
    layers = ["conv", "norm", "dense", "last"]
    expected = eager(in_place, images(), layers)
    assert (expected["norm"] < 0).any()
    assert (expected["dense"] < 0).any()
    for layer, value in pooled_activations(in_place, images(), layers, pool=pool).items():
        torch.testing.assert_close(value, EXPECTED[pool](expected[layer]))


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_layers_that_give_no_tensor_or_take_no_part(in_place):
    with pytest.raises(InputError, match="layer: pair returns a tuple, not one tensor; name a layer inside"):
        pooled_activations(in_place, images(), ["pair"])
    with pytest.raises(InputError, match="layer: unused takes no part in the network's forward pass"):
        pooled_activations(in_place, images(), ["unused", "conv"])
    assert hooks(in_place) == 0


def test_hooks_are_removed_after_an_error(in_place, monkeypatch):
    def fail(x):
        assert hooks(in_place) == 1
        raise KeyError("on purpose")

    monkeypatch.setattr(in_place.act, "forward", fail)
    with pytest.raises(KeyError, match="on purpose"):
        pooled_activations(in_place, images(), ["dense"], views={"dense": View()})
    assert hooks(in_place) == 0


def test_no_gradient_is_recorded(network):
    assert not pooled_activations(network.module, images(), ["mixed1"])["mixed1"].requires_grad


# Tokens


REGISTERS = {"img_size": 28, "depth": 2}


def test_class_and_register_tokens_are_left_out():
    backbone = build("vit_small_patch14_reg4_dinov2", REGISTERS, seed=0)
    x = images(2, 28)
    tokens = eager(backbone.module, x, ["blocks.1"])["blocks.1"]
    assert tokens.shape == (2, 1 + 4 + 2 * 2, 384)
    expected = {"tokens": tokens[:, 5:].mean(1), "gap": tokens[:, 5:].mean(1), "max": tokens[:, 5:].amax(1)}
    for pool, value in {**expected, "cls": tokens[:, 0], "flatten": tokens.flatten(1)}.items():
        torch.testing.assert_close(pooled_activations(backbone.module, x, ["blocks.1"], pool=pool)["blocks.1"], value)
    without_class_alone = tokens[:, 1:].mean(1)  # the control: what a reader who forgets the registers gets
    assert apart(without_class_alone, expected["tokens"]) > 0.01


def test_a_layer_before_the_class_token_loses_no_patch():
    backbone = build("vit_small_patch14_reg4_dinov2", REGISTERS, seed=0)
    x = images(2, 28)
    patches = eager(backbone.module, x, ["patch_embed"])["patch_embed"]
    assert patches.shape[1] == 4
    torch.testing.assert_close(
        pooled_activations(backbone.module, x, ["patch_embed"], pool="tokens")["patch_embed"], patches.mean(1)
    )
    with pytest.raises(InputError, match="pool: cls needs a class token, the layer gives 4×384 without one"):
        pooled_activations(backbone.module, x, ["patch_embed"], pool="cls")


def test_maps_have_no_tokens(network):
    with pytest.raises(InputError, match="pool: cls needs a class token, the layer gives 256×4×4 without one"):
        pooled_activations(network.module, images(), ["mixed10"], pool="cls")
    with pytest.raises(InputError, match=r"pool: tokens needs \(n, tokens, width\), the layer gives 256×4×4"):
        pooled_activations(network.module, images(), ["mixed10"], pool="tokens")


def test_maps_with_channels_last_are_pooled_over_positions():
    backbone = build("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "img_size": 64, "window_size": 4}, seed=0)
    maps = eager(backbone.module, images(), ["layers.3"])["layers.3"]
    assert maps.shape == (3, 2, 2, 768)
    found = pooled_activations(backbone.module, images(), ["layers.3"])["layers.3"]
    torch.testing.assert_close(found, maps.mean((1, 2)))


# The prepared network


NETWORKS = {
    "inception_v3": (96, ["mixed2", "mixed10"]),
    "resnet18": (SIDE, ["conv2_block1_out", "layer4"]),
    "mobilenetv2_050": (SIDE, ["blocks.2", "conv_head", "bn2"]),
    "mini_inception": (SIDE, ["mixed0", "mixed10"]),
    "vit_tiny_patch16_224": (224, ["blocks.1"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_prepared_networks_agree_with_plain_ones(name):
    side, layers = NETWORKS[name]
    backbone = settled(name, **({"depth": 2} if "vit" in name else {}))
    read = reader(backbone, layers, side=side)
    assert read.module is not backbone.module
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.module.modules())
    assert read.folded == norms - ("conv_head" in layers)  # which is asked for as it is before its normalisation
    shown = pixels(4, side, seed=1)
    plain = pooled_activations(
        backbone.module, backbone.preprocessing(shown), [backbone.layer(layer) for layer in layers]
    )
    for layer, value in read(shown).items():
        assert apart(torch.from_numpy(value), plain[layer]) <= AGREEMENT
        assert value.shape == (4, read.widths[layer])


def test_the_plain_network_stays_as_it_was():
    backbone = settled("resnet18")
    before = backbone.fingerprint()
    read = reader(backbone, ["layer2"])
    assert read.folded > 0
    assert backbone.fingerprint() == before
    assert isinstance(backbone.module.bn1, nn.modules.batchnorm._BatchNorm)


def test_a_layer_between_convolution_and_normalisation_keeps_its_value():
    backbone = settled("resnet18")
    x = images()
    plain = eager(backbone.module, x, ["conv1", "layer1.0.conv1", "bn1"])
    module, count = folded(backbone.module, keep=["conv1", "layer1.0.conv1"])
    assert count == 18
    for layer, value in eager(module, x, list(plain)).items():
        assert apart(value, plain[layer]) <= AGREEMENT
    other = eager(folded(backbone.module)[0], x, ["conv1"])["conv1"]  # the control: folded all the same
    assert apart(other, plain["conv1"]) > 0.01


class Fork(nn.Module):
    """A convolution that two look at, one that runs twice, and one that reshapes its weights."""

    def __init__(self):
        super().__init__()
        self.shared, self.shared_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.weighted, self.weighted_norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)
        self.single, self.single_norm = nn.Conv2d(4, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        y = self.shared(x)
        y = y + self.shared_norm(y)
        y = self.twice_norm(self.twice(self.twice(y)))
        return self.single_norm(self.single(self.weighted_norm(self.weighted(y))))


class Unseen(nn.Module):
    """A network whose own code cannot be traced, around parts that can."""

    def __init__(self):
        super().__init__()
        self.fork = Fork()
        self.end = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        y = self.fork(x)
        return self.end(y) if float(y.sum()) > -1e9 else y


def toy(module, **options):
    return Backbone(
        module=module.eval(),
        name="toy",
        weights="random",
        architecture="toy",
        arguments={},
        preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3),
        **options,
    )


def test_only_pairs_that_nobody_else_looks_at_are_folded():
    torch.manual_seed(0)
    module = settle_all(Unseen().eval())
    copied, count = folded(module)
    assert count == 2  # single and end
    assert isinstance(copied.fork.single_norm, nn.Identity)
    assert isinstance(copied.fork.shared_norm, nn.BatchNorm2d)
    for layer, value in eager(copied, images(), ["fork", "end"]).items():
        assert apart(value, eager(module, images(), ["fork", "end"])[layer]) <= AGREEMENT


def settle_all(module):
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    return module


def test_a_network_that_disagrees_is_read_as_it_is(monkeypatch):
    backbone = settled("resnet18")

    def wrong(module, keep=()):
        copied, count = folded(module, keep)
        with torch.no_grad():
            copied.conv1.weight.mul_(1.001)
        return copied, count

    monkeypatch.setattr(folding, "folded", wrong)
    read = reader(backbone, ["layer1"])
    assert read.folded == 0
    assert read.module is backbone.module


def test_a_network_that_cannot_be_copied_is_read_as_it_is():
    class Lonely(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

        def __deepcopy__(self, memo):
            raise TypeError("there can be only one")

    backbone = toy(Lonely())
    assert reader(backbone, ["conv"]).module is backbone.module


def test_rows_do_not_depend_on_their_batch(network):
    shown = pixels(7)
    read = reader(network, ["mixed10"])
    whole = np.concatenate([read(shown[:4])["mixed10"], read(shown[4:])["mixed10"]])
    for i in range(7):
        np.testing.assert_array_equal(read(shown[[i]])["mixed10"], whole[[i]])
    np.testing.assert_array_equal(read(shown[[6, 1, 3]])["mixed10"], whole[[6, 1, 3]])


def test_every_pass_has_the_same_number_of_images(network, calls):
    read = reader(network, ["mixed1", "mixed0"])
    counts = calls(read.module, "stem", "mixed1", "mixed2")
    for n in (4, 1, 3):
        assert read(pixels(n))["mixed0"].shape == (n, 48)
    assert counts == {"stem": 12, "mixed1": 12, "mixed2": 0}


def test_lower_precision_is_near(network):
    exact = reader(network, ["mixed10"])(pixels())["mixed10"]
    near = reader(network, ["mixed10"], autocast="bf16")(pixels())["mixed10"]
    assert near.dtype == np.float32
    assert 1e-4 < np.abs(near - exact).max() / np.abs(exact).max() < 0.05
    with pytest.raises(InputError, match="autocast: 'int8' is not known"):
        reader(network, ["mixed10"], autocast="int8")


def test_what_a_reader_refuses(network):
    with pytest.raises(InputError, match="model: the network does not take patches of 64×64 pixels"):
        reader(build("inception_v3", {}, seed=0), ["mixed10"])
    with pytest.raises(InputError, match="pool: 'mean' is not known; near names: max"):
        reader(network, ["mixed10"], pool="mean")
    with pytest.raises(InputError, match="batch_size: must be at least 1, got 0"):
        reader(network, ["mixed10"], batch_size=0)
    with pytest.raises(InputError, match="layer: pair returns a tuple, not one tensor; name a layer inside"):
        reader(toy(InPlace()), ["pair"])


def test_a_dict_is_refused_in_a_sentence():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = Parts()

        def forward(self, x):
            return self.parts(x)["a"]

    class Parts(nn.Module):
        def forward(self, x):
            return {"a": x}

    with pytest.raises(InputError, match="layer: parts returns a dict, not one tensor; name a layer inside"):
        reader(toy(Split()), ["parts"])


def test_preprocessing_is_the_same_on_tensors(network):
    shown = pixels()
    torch.testing.assert_close(
        network.preprocessing.of(torch.from_numpy(shown)), network.preprocessing(shown), rtol=0, atol=0
    )
    resized = dataclasses.replace(network.preprocessing, size=32)
    assert resized(shown).shape == (3, 3, 32, 32)


def test_devices():
    for device in ("tpu9", "cuda:99"):
        with pytest.raises(InputError, match=f"device: '{device}' cannot be used") as told:
            choose_device(device)
        assert "\n" not in str(told.value)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
