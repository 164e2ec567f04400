"""The bundled network: its file, its layers, its seeds, and the script that pretrains it on drawings."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open

from conceptkit.models.mini_inception import (
    LAYER_NAMES,
    MEAN,
    STD,
    WEIGHTS,
    ConvNormAct,
    MiniInception,
    load_mini_inception,
)


@pytest.fixture(scope="module")
def examples() -> Iterator[None]:
    """Import examples as scripts that are run, which find the files beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
        yield


@pytest.fixture(scope="module")
def script(examples: None) -> ModuleType:
    return importlib.import_module("pretrain_mini_inception")


@pytest.fixture(scope="module")
def pairs(examples: None) -> ModuleType:
    return importlib.import_module("pretrain_on_pairs")


@pytest.fixture(scope="module")
def pretrained() -> MiniInception:
    return load_mini_inception().eval()


def layer_shapes(model: MiniInception, size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
        for name in LAYER_NAMES
    ]
    with torch.no_grad():
        model(torch.zeros(2, 3, size, size))
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(("name", "seen"), [("bundled", "no tissue"), ("tissue", "pairs of generated tissue")])
class TestFile:
    def test_is_small(self, name, seen):
        with resources.as_file(resources.files("conceptkit.models") / WEIGHTS[name]) as path:
            assert path.stat().st_size <= 2_000_000

    def test_says_where_it_comes_from(self, name, seen):
        with (
            resources.as_file(resources.files("conceptkit.models") / WEIGHTS[name]) as path,
            safe_open(path, framework="pt") as stored,
        ):
            metadata = stored.metadata()
            kinds = {stored.get_tensor(key).dtype for key in stored.keys()}  # noqa: SIM118 (not a mapping)
        assert metadata["architecture"] == MiniInception.__name__
        assert metadata["mean"] == ", ".join(map(str, MEAN))
        assert metadata["std"] == ", ".join(map(str, STD))
        assert seen in metadata["corpus"]
        assert metadata["seed"].isdigit()
        assert (Path(__file__).parents[1] / metadata["script"]).is_file()
        assert kinds == {torch.float16, torch.int64}  # int64: the counters of batch normalisation

    def test_is_finite_and_trained(self, name, seen):
        pretrained = load_mini_inception(weights=name)
        assert all(torch.isfinite(value).all() for value in pretrained.state_dict().values())
        assert {p.dtype for p in pretrained.parameters()} == {torch.float32}
        assert pretrained.stem[0].bn.num_batches_tracked > 100


class TestArchitecture:
    @pytest.mark.parametrize(("size", "cells"), [(96, (24, 12, 6)), (128, (32, 16, 8)), (65, (17, 9, 5))])
    def test_layer_shapes(self, pretrained, size, cells):
        fine, middle, coarse = ((n, n) for n in cells)
        expected = {
            **{f"mixed{i}": (48, *fine) for i in range(3)},
            **{f"mixed{i}": (128, *middle) for i in range(3, 8)},
            **{f"mixed{i}": (256, *coarse) for i in range(8, 11)},
        }
        found = layer_shapes(pretrained, size)
        assert found == expected
        assert list(found) == list(expected)  # in the order in which they run

    def test_layer_names(self, pretrained):
        assert [name for name, _ in pretrained.named_children() if name.startswith("mixed")] == list(LAYER_NAMES)
        assert tuple(f"mixed{i}" for i in range(11)) == LAYER_NAMES

    def test_size_and_cost(self):
        model = MiniInception().eval()
        products: list[int] = []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(
                    lambda conv, inputs, out: products.append(conv.weight.numel() * out.shape[2] * out.shape[3])
                )
        model(torch.zeros(1, 3, 96, 96))
        assert 600_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000
        assert sum(products) < 65e6

    def test_every_branch_of_the_last_block_ends_in_a_unit(self, pretrained):
        ends: list[str] = []
        for name, module in pretrained.mixed10.named_modules():
            if isinstance(module, ConvNormAct):
                module.register_forward_hook(lambda m, i, out, name=name: setattr(m, "seen", out))
                ends.append(name)
        with torch.no_grad():
            out = pretrained.mixed10(torch.randn(1, 256, 6, 6))
        units = [pretrained.mixed10.get_submodule(name) for name in ends]
        final = [
            unit
            for unit in units
            if any(torch.equal(unit.seen, out[:, c : c + unit.seen.shape[1]]) for c in range(256))
        ]
        assert sum(unit.conv.out_channels for unit in final) == 256

    def test_fx_trace_equals_eager(self, pretrained):
        x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        traced = torch.fx.symbolic_trace(pretrained)
        with torch.no_grad():
            assert torch.equal(traced(x), pretrained(x))
        assert [node.target for node in traced.graph.nodes if node.target == "mixed10.branch1x1.conv"]

    def test_forward_is_the_blocks_in_order(self, pretrained):
        x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            h = pretrained.stem(x)
            for name in LAYER_NAMES:
                h = pretrained.get_submodule(name)(h)
            assert torch.equal(h, pretrained.forward_features(x))
            assert torch.equal(h.mean((2, 3)), pretrained.forward_head(h, pre_logits=True))
            assert torch.equal(pretrained(x), pretrained.forward_head(h))

    def test_head(self):
        model = MiniInception(num_classes=3).eval()
        features = torch.randn(2, 256, 6, 6)
        assert (model.num_classes, model.num_features) == (3, 256)
        assert model.forward_head(features).shape == (2, 3)
        assert model.forward_head(features, pre_logits=True).shape == (2, 256)


class TestSeeds:
    def test_same_seed_same_weights(self):
        one, two = (load_mini_inception(pretrained=False, seed=7).state_dict() for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one)

    @pytest.mark.parametrize("other", [8, None])
    def test_other_seed_other_weights(self, other):
        one = load_mini_inception(pretrained=False, seed=7)
        two = load_mini_inception(pretrained=False, seed=other)
        for unit, twin in zip(one.modules(), two.modules(), strict=True):
            if isinstance(unit, torch.nn.Conv2d):
                assert not torch.equal(unit.weight, twin.weight)

    @pytest.mark.parametrize("options", [{}, {"pretrained": False, "seed": 7}, {"pretrained": False}])
    def test_global_state_is_left_alone(self, options):
        before = torch.get_rng_state()
        load_mini_inception(**options)
        assert torch.equal(before, torch.get_rng_state())
        MiniInception()  # the control: plain construction does draw from it
        assert not torch.equal(before, torch.get_rng_state())

    def test_pretrained_differs_from_random(self, pretrained):
        x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert not torch.allclose(pretrained(x), load_mini_inception(pretrained=False, seed=0).eval()(x), atol=0.1)

    def test_random_features_neither_vanish_nor_explode(self):
        x = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            features = load_mini_inception(pretrained=False, seed=0).eval()(x)
        assert 1e-3 < features.std() < 1e3


class TestScript:
    def test_drawings_depend_on_seed_and_index_alone(self, script):
        images, targets = script.draw_corpus(6, seed=3, first=38)
        again, _ = script.draw_corpus(4, seed=3, first=40)
        other, _ = script.draw_corpus(6, seed=4, first=38)
        assert images.shape == (6, 3, 96, 96)
        assert images.dtype == torch.uint8
        assert torch.equal(images[2:], again)
        assert not torch.equal(images, other)
        assert targets.tolist() == [38, 39, 0, 1, 2, 3]

    def test_every_family_draws_something(self, script):
        assert len(script.FAMILIES) == len(set(script.FAMILIES)) == 40
        for index in range(len(script.FAMILIES)):
            image = script.draw_image(5, index)
            assert image.shape == (96, 96, 3)
            assert image.std() > 1.0, script.FAMILIES[index]

    def test_number_size_and_place_follow_one_law_in_every_family(self, script):
        # From one random state a disk and a bullseye come out at the same places; the latter is a tenth wider.
        families = (script.SHAPES["disk"], script.SHAPES["bullseye"])
        for seed in range(5):
            disk, bullseye = (
                script.scatter(np.random.default_rng(seed), lambda rng, f=f: f(np.random.default_rng(0)))[0] > 0.5
                for f in families
            )
            assert disk.any()
            assert not (disk & ~bullseye).any()
            assert bullseye.sum() < 1.5 * disk.sum()

    def test_a_few_steps_lower_the_loss(self, script):
        images, targets = script.draw_corpus(400, seed=0)
        easy = [script.FAMILIES.index(name) for name in ("stripes", "gradient", "rings", "checkers")]
        rows = torch.isin(targets, torch.tensor(easy))
        images, targets = images[rows], targets[rows]
        lines: list[str] = []
        options = {"epochs": 8, "seed": 0, "batch": 20, "report": lines.append}
        model, losses = script.train(images, targets, **options)
        assert len(images) == 40
        assert len(losses) == 16
        assert len(lines) == 8
        assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5
        assert script.predicted(model, images).shape == (40,)
        # The control: at no rate to speak of, the loss stays where it was.
        _, idle = script.train(images, targets, peak_rate=1e-12, **options)
        assert abs(np.mean(idle[-4:]) - np.mean(idle[:4])) < 0.25

    def test_saved_body_is_read_back(self, script, tmp_path):
        model = MiniInception(num_classes=4)
        script.save_body(model, tmp_path / "body.safetensors", seed=1, corpus="none")
        with safe_open(tmp_path / "body.safetensors", framework="pt") as stored:
            keys = set(stored.keys())
            weight = stored.get_tensor("stem.0.conv.weight")
        assert keys == set(MiniInception().state_dict())
        assert torch.equal(weight, model.stem[0].conv.weight.half())
        assert [path.name for path in tmp_path.iterdir()] == ["body.safetensors"]


class TestPairs:
    """Pretraining on pairs of patches that show the same nuclei."""

    def test_a_pair_shares_its_nuclei_and_neighbours_share_a_slide(self, pairs, monkeypatch):
        seen: list[tuple[tuple[float, ...], object]] = []
        monkeypatch.setattr(pairs, "placed", lambda rng, areas, irregularity: (*areas, irregularity))
        monkeypatch.setattr(pairs, "stained", lambda rng, labels, center, *_: seen.append((labels, center)))
        for index in (0, 1, 2):
            pairs.draw_pair(5, index, 3)
        nuclei, slides = zip(*seen, strict=True)
        assert nuclei[0] == nuclei[1] != nuclei[2] == nuclei[3]
        assert slides[1] == slides[2] != slides[0] == slides[5]

    def test_contrast_is_the_cross_entropy_of_the_partner(self, pairs):
        rng = np.random.default_rng(0)
        one, other = rng.normal(size=(2, 5, 3))
        rows = np.concatenate([one, other])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        likeness = np.exp(rows @ rows.T / pairs.TEMPERATURE)
        losses = [-np.log(likeness[i, (i + 5) % 10] / np.delete(likeness[i], i).sum()) for i in range(10)]
        assert np.isclose(pairs.contrast(*map(torch.from_numpy, (one, other))).item(), np.mean(losses), rtol=1e-5)
