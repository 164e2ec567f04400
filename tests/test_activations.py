"""Activations: pooled as explicit hooks say, stopped early, and never computed twice."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from conceptkit._checks import InputError
from conceptkit.models import activations
from conceptkit.models.activations import POOLINGS, choose_device, pooled_activations, read_activations, read_pixels
from conceptkit.models.backbones import Backbone, Preprocessing, build, open_backbone
from conceptkit.patches import PatchTable, load_table

SIDE, N = 64, 11


@pytest.fixture(scope="module")
def network():
    return open_backbone("mini_inception")


def paint(folder, i, seed=0):
    rng = np.random.default_rng([seed, i])
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")


@pytest.fixture
def table(tmp_path):
    for i in range(N):
        paint(tmp_path, i)
    pd.DataFrame({"image": [f"{i:02d}.png" for i in range(N)]}).to_csv(tmp_path / "table.csv", index=False)
    return load_table(tmp_path / "table.csv")


def read(table, network, layers=("mixed10",), **options):
    return read_activations(
        table, network, list(layers), **{"cache": table.folder / "cache", "batch_size": 4, "device": "cpu", **options}
    )


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


# One forward pass


EXPECTED = {
    "gap": lambda x: x.mean((2, 3)) if x.ndim == 4 else x,
    "max": lambda x: x.flatten(2).max(2).values if x.ndim == 4 else x,
    "flatten": lambda x: x.reshape(len(x), -1),
}


@pytest.mark.parametrize("pool", POOLINGS)
def test_pooled_values_are_those_of_the_full_pass(network, pool):
    layers = ["mixed3", "stem", "mixed10", "mixed7", "global_pool"]
    found = pooled_activations(network.module, images(), layers, pool=pool)
    assert list(found) == layers
    for layer, value in eager(network.module, images(), layers).items():
        assert found[layer].dtype == torch.float32
        torch.testing.assert_close(found[layer], EXPECTED[pool](value))


def test_tokens_are_pooled_without_the_class_token():
    backbone = build("vit_tiny_patch16_224", {"depth": 2}, seed=0)
    x = images(2, 224)
    tokens = eager(backbone.module, x, ["blocks.1"])["blocks.1"]
    assert tokens.shape == (2, 1 + 14 * 14, 192)
    torch.testing.assert_close(pooled_activations(backbone.module, x, ["blocks.1"])["blocks.1"], tokens[:, 1:].mean(1))
    found = pooled_activations(backbone.module, x, ["blocks.1"], pool="max")["blocks.1"]
    torch.testing.assert_close(found, tokens[:, 1:].amax(1))


def test_the_pass_ends_after_the_deepest_layer(network, calls):
    counts = calls(network.module, "mixed3", "mixed4", "mixed5", "mixed10", "global_pool")
    pooled_activations(network.module, images(), ["mixed4", "mixed0"])
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


@pytest.mark.parametrize("pool", POOLINGS)
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
        pooled_activations(in_place, images(), ["dense"])
    assert hooks(in_place) == 0


def test_no_gradient_is_recorded(network):
    assert not pooled_activations(network.module, images(), ["mixed1"])["mixed1"].requires_grad


# Tables


def test_a_table_is_read_as_the_network_sees_it(table, network):
    found = read(table, network, ["mixed10", "mixed3"], pool="max")
    x = network.preprocessing(np.stack([table.pixels(i) for i in range(N)]))
    for layer, value in eager(network.module, x, ["mixed10", "mixed3"]).items():
        assert found[layer].dtype == np.float32
        # Another batch size: the last bits differ.
        np.testing.assert_allclose(found[layer], value.amax((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_rows_come_in_the_order_asked_for(table, network):
    whole = read(table, network)["mixed10"]
    for rows in ([7, 2, 5], [3], [4, 4, 0]):
        np.testing.assert_array_equal(read(table, network, rows=np.array(rows))["mixed10"], whole[rows])


def test_rows_computed_alone_are_bitwise_those_of_the_whole_table(table, network):
    whole = read(table, network)["mixed10"]
    for i in (0, 6, N - 1):
        alone = read(table, network, rows=np.array([i]), cache=table.folder / f"alone{i}")["mixed10"]
        np.testing.assert_array_equal(alone, whole[[i]])


def test_a_second_call_computes_nothing(table, network, monkeypatch):
    first = read(table, network, ["mixed10", "mixed2"])

    def fail(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(network.module, "forward", fail)
    monkeypatch.setattr(PatchTable, "pixels", fail)
    again = read(load_table(table.folder / "table.csv"), network, ["mixed2", "mixed10"])
    for layer in first:
        np.testing.assert_array_equal(first[layer], again[layer])
    with pytest.raises(AssertionError, match="computed again"):
        read(table, network, ["mixed3"])


def test_only_the_row_of_a_changed_image_is_computed_anew(table, network, monkeypatch, calls):
    before = read(table, network)["mixed10"]
    paint(table.folder, 5, seed=1)
    os.utime(table.folder / "05.png", ns=(1, 1))  # a change within the clock's grain would look like none
    pixels, asked = PatchTable.pixels, []
    monkeypatch.setattr(PatchTable, "pixels", lambda self, row: asked.append(row) or pixels(self, row))
    counts = calls(network.module, "stem")
    after = read(table, network)["mixed10"]
    assert asked == [5]
    assert counts["stem"] == 4  # one padded batch
    np.testing.assert_array_equal(np.flatnonzero((before != after).any(1)), [5])
    fresh = read(table, network, cache=table.folder / "fresh")["mixed10"]
    np.testing.assert_array_equal(after, fresh)


def test_only_the_missing_layer_is_computed(table, network, calls):
    read(table, network, ["mixed1"])
    read(table, network, rows=np.arange(4))
    counts = calls(network.module, "stem", "mixed5")
    read(table, network, ["mixed1", "mixed10"])
    # Seven rows in two batches of four; no more than one row to learn a layer's width.
    assert 8 <= counts["stem"] <= 9
    assert counts["mixed5"] == counts["stem"]


def test_other_weights_pools_and_sizes_have_stores_of_their_own(table, network):
    cache = table.folder / "cache" / "activations"
    values = [read(table, network)["mixed10"]]
    values.append(read(table, build("mini_inception", {}, seed=1))["mixed10"])
    values.append(read(table, build("mini_inception", {}, seed=2))["mixed10"])
    values.append(read(table, network, pool="max")["mixed10"])
    assert len(list(cache.iterdir())) == 4
    for i, a in enumerate(values):
        for b in values[:i]:
            assert not np.allclose(a, b)
    read(table, network, batch_size=3)  # its last bits may differ
    read(table.select(np.arange(4)), network)
    assert len(list(cache.iterdir())) == 6


def test_two_names_of_one_layer(tmp_path, table, in_place):
    backbone = Backbone(
        module=in_place,
        name="toy",
        weights="random",
        architecture="toy",
        arguments={},
        preprocessing=Preprocessing(mean=(0.5,) * 3, std=(1.0,) * 3),
        aliases={"first": "conv"},
    )
    found = read(table, backbone, ["first", "conv", "dense"])
    np.testing.assert_array_equal(found["first"], found["conv"])
    assert list(found) == ["first", "conv", "dense"]
    assert found["dense"].shape == (N, 4)


def test_progress_is_told(table, network):
    told = []
    read(table, network, progress=lambda done, todo: told.append((done, todo)))
    assert told == [(4, N), (8, N), (N, N)]


def test_interrupted_work_is_kept(table, network, monkeypatch):
    forward, passes = activations._forward, []

    def interrupted(module, x, layers, pool):
        passes.append(len(x))
        if len(passes) == 4:  # the first learns the width
            raise KeyboardInterrupt
        return forward(module, x, layers, pool)

    monkeypatch.setattr(activations, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(table, network)
    monkeypatch.setattr(activations, "_forward", lambda *a: passes.append(0) or forward(*a))
    found = read(table, network)["mixed10"]
    assert len(passes) == 5  # the three rows that were left
    np.testing.assert_array_equal(found, read(table, network, cache=table.folder / "fresh")["mixed10"])


# What is refused


def test_images_of_unlike_sizes(table, network):
    Image.new("RGB", (SIDE + 8, SIDE)).save(table.folder / "03.png")
    os.utime(table.folder / "03.png", ns=(1, 1))
    with pytest.raises(InputError, match="patches must have one size, this table has 64×64 and 72×64 pixels"):
        read_pixels(table, np.arange(N))


def test_images_that_are_too_small(table, tmp_path):
    network = build("inception_v3", {}, seed=0)
    with pytest.raises(InputError, match="model: the network does not take patches of 64×64 pixels"):
        read(table, network, ["mixed10"])


def test_options_that_are_not_known(table, network):
    with pytest.raises(InputError, match="pool: 'mean' is not known; near names: max"):
        read(table, network, pool="mean")
    with pytest.raises(InputError, match="layer: the network has no layer 'mixed99'"):
        read(table, network, ["mixed99"])
    for device in ("tpu9", "cuda:99"):
        with pytest.raises(InputError, match=f"device: '{device}' cannot be used") as told:
            choose_device(device)
        assert "\n" not in str(told.value)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
