"""Activations: pooled as explicit hooks say, stopped early, and never computed twice."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.features.activations import read_activations, read_pixels
from conceptkit.models.backbones import build, open_backbone
from conceptkit.models.inference import Reader
from conceptkit.tables.patches import PatchTable, load_table

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


@pytest.fixture
def passes(monkeypatch):
    """Return the layers and the number of images of every batch that is computed."""
    call, seen = Reader.__call__, []
    monkeypatch.setattr(
        Reader, "__call__", lambda self, pixels: seen.append((self.layers, len(pixels))) or call(self, pixels)
    )
    return seen


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

    # Not the network's own forward: a network that computes something else is another one.
    monkeypatch.setattr("conceptkit.models.inference.pooled_activations", fail)
    monkeypatch.setattr(PatchTable, "pixels", fail)
    again = read(load_table(table.folder / "table.csv"), network, ["mixed2", "mixed10"])
    for layer in first:
        np.testing.assert_array_equal(first[layer], again[layer])
    with pytest.raises(AssertionError, match="computed again"):
        read(table, network, ["mixed3"])


def test_only_the_row_of_a_changed_image_is_computed_anew(table, network, monkeypatch, passes):
    before = read(table, network)["mixed10"]
    paint(table.folder, 5, seed=1)
    os.utime(table.folder / "05.png", ns=(1, 1))  # a change within the clock's grain would look like none
    pixels, asked = PatchTable.pixels, []
    monkeypatch.setattr(PatchTable, "pixels", lambda self, row: asked.append(row) or pixels(self, row))
    passes.clear()
    after = read(table, network)["mixed10"]
    assert asked == [0, 5]  # the first for its size
    assert passes == [(["mixed10"], 1)]
    np.testing.assert_array_equal(np.flatnonzero((before != after).any(1)), [5])
    fresh = read(table, network, cache=table.folder / "fresh")["mixed10"]
    np.testing.assert_array_equal(after, fresh)


def test_only_the_missing_layer_is_computed(table, network, passes):
    read(table, network, ["mixed1"])
    read(table, network, rows=np.arange(4))
    passes.clear()
    read(table, network, ["mixed1", "mixed10"])
    assert passes == [(["mixed10"], 4), (["mixed10"], 3)]


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


def test_two_names_of_one_layer(table, network):
    network = dataclasses.replace(network, aliases={"first": "mixed0"})
    found = read(table, network, ["first", "mixed0", "mixed1"])
    np.testing.assert_array_equal(found["first"], found["mixed0"])
    assert list(found) == ["first", "mixed0", "mixed1"]


def test_progress_is_told(table, network):
    told = []
    read(table, network, progress=lambda done, todo: told.append((done, todo)))
    assert told == [(4, N), (8, N), (N, N)]


def test_interrupted_work_is_kept(table, network, monkeypatch, passes):
    call = Reader.__call__

    def interrupted(self, pixels):
        if len(passes) == 2:
            raise KeyboardInterrupt
        return call(self, pixels)

    monkeypatch.setattr(Reader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(table, network)
    monkeypatch.setattr(Reader, "__call__", call)
    passes.clear()
    found = read(table, network)["mixed10"]
    assert passes == [(["mixed10"], 3)]  # the rows that were left
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
