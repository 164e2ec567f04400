"""The cut between what is frozen and what is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.grid.kept import kept_inputs
from conceptkit.guide.building import build_model
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import inputs_for, prepare_inputs
from conceptkit.guide.objective import task_loss
from conceptkit.guide.prefix import Frozen, frozen_layers, split
from conceptkit.guide.recipes import PAPER_CONVOLUTIONS
from conceptkit.guide.training import train
from conceptkit.models.backbones import Backbone, open_backbone
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.training import TrainingOptions

TASKS = (Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),)


def _trainable(model: GuidedModel) -> int:
    return sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "unfreeze", "size"),
    [
        ("mini_inception", ("mixed10",), 96),
        ("mini_inception", (), 96),
        ("resnet18", ("layer4.1.conv2",), 64),
        ("mobilenetv2_100", ("blocks.6",), 64),
        ("inception_v3", PAPER_CONVOLUTIONS["inception_v3"], 96),  # frozen normalisations follow trained convolutions
        ("resnet50", PAPER_CONVOLUTIONS["resnet50"], 64),
        ("tf_mobilenetv3_small_minimal_100", ("blocks.4",), 64),  # its convolutions ask for sizes as they run
        ("tf_mobilenetv3_small_minimal_100", (), 64),
    ],
)
def test_both_parts_together_are_the_network(name: str, unfreeze: tuple[str, ...], size: int) -> None:
    backbone = open_backbone(name, "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=unfreeze, trunk=(8,)), seed=0)
    parts = split(model)
    assert parts is not None
    prefix, rest = parts
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, whole in zip(rest(*prefix(images)), model.features(images), strict=True):
            assert torch.equal(ours, whole)
    assert not any(p.requires_grad for p in prefix.parameters())
    assert sum(p.numel() for p in rest.parameters() if p.requires_grad) == _trainable(model)


@pytest.mark.parametrize(
    ("name", "unfreeze", "size"),
    [
        ("inception_v3", PAPER_CONVOLUTIONS["inception_v3"], 96),
        ("resnet50", PAPER_CONVOLUTIONS["resnet50"], 64),
        ("resnet50", (), 64),
        ("mobilenetv2_100", ("blocks.6",), 64),
        ("mini_inception", ("mixed10",), 96),
        ("vit_tiny_patch16_224", ("blocks.11",), 224),  # which has none
    ],
)
def test_the_frozen_part_runs_folded(name: str, unfreeze: tuple[str, ...], size: int) -> None:
    backbone = open_backbone(name, "random", seed=0)
    parts = split(build_model(backbone, TASKS, TrainingOptions(unfreeze=unfreeze, trunk=(8,)), seed=0))
    assert parts is not None
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    norms = sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in parts[0].modules())
    assert (norms == 0) == name.startswith("vit")
    for channels_last in (True, False):
        frozen = Frozen(parts[0], images, channels_last=channels_last)
        assert frozen.folded == norms
        with torch.no_grad():
            for ours, plain in zip(frozen(images), parts[0](images), strict=True):
                torch.testing.assert_close(ours, plain, rtol=0, atol=5e-5 * float(plain.abs().max()))
                assert norms == 0 or not torch.equal(ours, plain)


@pytest.mark.parametrize("layer", ["layer4.0.conv1", "layer4.0.bn1", "layer4.0.act1", "layer2"])
@pytest.mark.parametrize("unfreeze", [(), ("layer4.1",)])
def test_a_head_reads_its_layer_before_and_after_folding(layer: str, unfreeze: tuple[str, ...]) -> None:
    backbone = open_backbone("resnet18", "random", seed=0)
    tasks = (*TASKS, Task(name="count", kind="continuous", layer=layer))
    model = build_model(backbone, tasks, TrainingOptions(unfreeze=unfreeze, trunk=(8,)), seed=0)
    parts = split(model)
    assert parts is not None
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    frozen = Frozen(parts[0], images, channels_last=True)
    assert frozen.folded > 0
    with torch.no_grad():
        expected = model.features(images)
        for ours, plain in zip(parts[1](*frozen(images)), expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


def test_a_head_reads_the_activation_within_a_normalisation() -> None:
    backbone = open_backbone("mobilenetv2_100", "random", seed=0)
    tasks = (*TASKS, Task(name="count", kind="continuous", layer="blocks.5.0.bn1.act"))
    model = build_model(backbone, tasks, TrainingOptions(unfreeze=("blocks.6",), trunk=(8,)), seed=0)
    parts = split(model)
    assert parts is not None
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, plain in zip(parts[1](*parts[0](images)), model.features(images), strict=True):
            assert torch.equal(ours, plain)


def test_the_gradient_reaches_the_unfrozen_layer_and_no_other() -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=("mixed10",)), seed=0)
    parts = split(model)
    assert parts is not None
    prefix, rest = parts
    with torch.no_grad():
        boundary = prefix(torch.randn(2, 3, 96, 96))
    model.outputs(model.reads(*rest(*boundary)))[MAIN].sum().backward()
    reached = {n for n, p in model.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    convolutions = {n for n, p in model.backbone.named_parameters() if n.startswith("mixed10.") and "conv" in n}
    assert reached == convolutions


def test_nothing_is_cached_when_the_first_layer_is_trained() -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=("stem",)), seed=0)
    assert split(model) is None


def test_the_paper_s_trainable_parameters() -> None:
    """InceptionV3 with its last five convolutions and the trunk of 2048, 512, 256: 7,801,600 before the heads."""
    backbone = open_backbone("inception_v3", "random", seed=0)
    block = "Mixed_7c"
    layers = ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b")
    options = TrainingOptions(unfreeze=tuple(f"{block}.{layer}.conv" for layer in layers), trunk=(2048, 512, 256))
    model = build_model(backbone, TASKS, options, seed=0)
    assert _trainable(model) + sum(p.numel() for p in model.trunk.parameters()) == 7_801_600


def test_networks_of_one_seed_start_alike_whatever_their_heads() -> None:
    backbone: Backbone = open_backbone("mini_inception", "random", seed=0)
    more = (*TASKS, Task(name="count", kind="continuous"), Task(name="center", kind="categorical", classes=("A", "B")))
    options = TrainingOptions()
    first, second = (build_model(backbone, tasks, options, seed=3) for tasks in (TASKS, more))
    other = build_model(backbone, TASKS, options, seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.trunk[0][0].weight, other.trunk[0][0].weight)


@pytest.mark.parametrize(
    ("name", "unfreeze", "layers", "size"),
    [
        ("mini_inception", ("mixed9", "mixed10"), ("mixed9", "mixed4"), 96),
        ("resnet18", ("layer4.1.conv2",), ("layer4.1", "layer4.1.conv1"), 64),
    ],
)
def test_heads_on_layers_read_their_pooled_output(
    name: str, unfreeze: tuple[str, ...], layers: tuple[str, ...], size: int
) -> None:
    backbone = open_backbone(name, "random", seed=0)
    live, frozen = layers
    tasks = (
        *TASKS,
        Task(name="count", kind="continuous", layer=live),
        Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True, layer=frozen),
    )
    model = build_model(backbone, tasks, TrainingOptions(unfreeze=unfreeze, trunk=(8,)), seed=0)
    assert frozen_layers(model) == [frozen]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = {}
    for layer in layers:
        handle = model.backbone.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({layer: output.clone()})
        )
        with torch.no_grad():
            model.backbone.forward_features(images)
        handle.remove()
    parts = split(model)
    assert parts is not None
    prefix, rest = parts
    with torch.no_grad():
        pooled, *read = rest(*prefix(images))
    for layer, value in zip(model.layers, read, strict=True):
        torch.testing.assert_close(value, seen[layer].mean((2, 3)))
    outputs = model.outputs(model.reads(pooled, *read))
    torch.testing.assert_close(outputs["count"], model.heads["count"](seen[live].mean((2, 3))))
    assert outputs["center"].shape == (3, 3)


def test_a_head_needs_a_layer_of_maps() -> None:
    backbone = open_backbone("vit_tiny_patch16_224", "random", seed=0)
    task = Task(name="count", kind="continuous", layer="blocks.3")
    with pytest.raises(InputError, match=r"blocks\.3 gives"):
        build_model(backbone, (*TASKS, task), TrainingOptions(trunk=(8,)), seed=0)


def _trained(cache: str, *, batch_size: int = 8, training: int = 8, unfreeze: tuple[str, ...] = ("mixed10",)):
    """Three epochs of a small network on random pixels, with the frozen part kept in one way or another."""
    backbone = open_backbone("mini_inception", "random", seed=0)
    tasks = (*TASKS, Task(name="count", kind="continuous"))
    options = TrainingOptions(unfreeze=unfreeze, trunk=(8,), epochs=3, warmup=1, batch_size=training)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    targets = {MAIN: torch.tensor(rng.integers(0, 2, 40)), "count": torch.tensor(rng.normal(size=40)).float()}
    rows = {"train": np.arange(24), "val": np.arange(24, 40)}
    model = build_model(backbone, tasks, options, seed=0)
    batches = np.array_split(pixels, 40 // batch_size)
    inputs = prepare_inputs(model, backbone, batches, batch_size=batch_size, device="cpu", cache=cache)
    return inputs, train(model, inputs, targets, rows, options, seed=0, engine=TrainingEngine(device="cpu"))


@pytest.mark.parametrize("unfreeze", [("mixed10",), ()], ids=["last block", "trunk alone"])
def test_an_exact_cache_changes_nothing_in_batches_of_another_size(unfreeze: tuple[str, ...]) -> None:
    """Batches of 7 end in one of 3 rows, and the frozen part runs on 10 images: the validation losses are the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kept, cached = _trained("exact", batch_size=10, training=7, unfreeze=unfreeze)
        plain, uncached = _trained("off", batch_size=10, training=7, unfreeze=unfreeze)
    finally:
        torch.set_num_threads(threads)
    assert kept.preprocessing is None
    assert plain.tensors[0].dtype == torch.uint8
    assert [dict(e) for e in cached.history] == [dict(e) for e in uncached.history]
    state = cached.model.state_dict()
    for name, value in uncached.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_network_whose_cut_lies_among_sizes_is_trained_without_a_cache() -> None:
    backbone = open_backbone("vit_tiny_patch16_224", "random", seed=0)
    options = TrainingOptions(unfreeze=("blocks.11.attn.qkv",), trunk=(8,), epochs=1)
    model = build_model(backbone, TASKS, options, seed=0)
    pixels = [np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)]
    inputs = prepare_inputs(model, backbone, pixels, batch_size=2, device="cpu")
    assert inputs.preprocessing is not None
    assert inputs.frozen is None
    rows = torch.arange(2)
    with torch.no_grad():
        ours = inputs.rest(*inputs.batch(rows, torch.device("cpu")))
        whole = model.features(backbone.preprocessing(pixels[0]))
    assert torch.equal(ours[0], whole[0])


@pytest.mark.parametrize("cache", ["off", "fast", "exact"])
def test_what_a_grid_keeps_says_how_the_frozen_part_runs(cache: str, tmp_path: Path) -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=("mixed10",), trunk=(8,)), seed=0)
    pixels = [np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)]
    made = prepare_inputs(model, backbone, pixels, batch_size=4, device="cpu", cache=cache)
    made = dataclasses.replace(made, pass_size=5, channels_last=False)  # as on another device
    for compute in (lambda: made, lambda: pytest.fail("computed again")):
        kept = kept_inputs(tmp_path, compute)
        assert (kept.pass_size, kept.channels_last) == (5, False)
        if cache == "off":
            again = inputs_for(model, kept)
            assert (again.pass_size, again.channels_last) == (5, False)
            assert again.frozen is not None
            assert again.frozen.channels_last is False


def test_a_frozen_part_that_gives_no_numbers_is_a_sentence() -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=("mixed10",), trunk=(8,)), seed=0)
    pixels = [np.zeros((2, 96, 96, 3), dtype=np.uint8)]
    prepare_inputs(model, backbone, pixels, batch_size=2, device="cpu")
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"frozen part of mini_inception .* not finite"):
        prepare_inputs(model, backbone, pixels, batch_size=2, device="cpu")


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6], ids=["tiny", "usual", "beyond float16"])
def test_a_fast_cache_keeps_three_digits_of_any_range(size: float) -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, TrainingOptions(unfreeze=("mixed10",), trunk=(8,)), seed=0)
    with torch.no_grad():
        for module in model.backbone.get_submodule("mixed9").modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.mul_(size)
    pixels = [np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)]
    exact, fast = (
        prepare_inputs(model, backbone, pixels, batch_size=4, device="cpu", cache=c) for c in ("exact", "fast")
    )
    rows = torch.tensor([3, 1])
    assert all(t.dtype == torch.float16 for t in fast.tensors)
    for one, other in zip(exact.batch(rows, torch.device("cpu")), fast.batch(rows, torch.device("cpu")), strict=True):
        assert other.dtype == torch.float32
        assert float((one - other).abs().max()) <= 1e-3 * float(one.abs().max())


def test_an_exact_cache_changes_nothing() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads are added in another order
    try:
        kept, cached = _trained("exact")
        plain, uncached = _trained("off")
        halved, fast = _trained("fast")
    finally:
        torch.set_num_threads(threads)
    assert plain.tensors[0].dtype == torch.uint8
    assert {t.dtype for t in kept.tensors} == {torch.float32}
    assert {t.dtype for t in halved.tensors} == {torch.float16}
    for ours, theirs in zip(cached.history, uncached.history, strict=True):
        assert {k: v for k, v in ours.items() if "train" in k} == {k: v for k, v in theirs.items() if "train" in k}
    state, control = cached.model.state_dict(), fast.model.state_dict()
    for name, value in uncached.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert any(not torch.equal(value, state[name]) for name, value in control.items())
    torch.testing.assert_close(control["heads.main.weight"], state["heads.main.weight"], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_reversed_gradient_reaches_the_last_convolution_with_the_other_sign(strength: float) -> None:
    """Behind the cut, as training has it: minus λ times the gradient of the same task when it is encouraged."""
    backbone = open_backbone("mini_inception")
    boundary = None
    found = {}
    for adversarial in (False, True):
        center = Task(name="center", kind="categorical", classes=("0", "1", "2"), adversarial=adversarial)
        options = TrainingOptions(unfreeze=("mixed10",), trunk=(8,), dropout=0.0)
        model = build_model(backbone, (*TASKS, center), options, seed=0)
        parts = split(model)
        assert parts is not None
        prefix, rest = parts
        if adversarial:
            model.reversals["center"].strength.fill_(strength)
        if boundary is None:
            with torch.no_grad():
                boundary = prefix(torch.randn(6, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
        output = model.outputs(model.reads(*rest(*boundary)))["center"]
        task_loss(center, output, torch.arange(6) % 3).backward()
        trained = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        found[adversarial] = trained[-1].weight.grad, model.heads["center"].weight.grad
    (encouraged, own), (discouraged, adversary) = found[False], found[True]
    assert encouraged.abs().max() > 0
    torch.testing.assert_close(discouraged, -strength * encouraged)
    torch.testing.assert_close(adversary, own)  # which learns to read the concept in either case
