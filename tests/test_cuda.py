"""What a GPU computes is what the processor computes, again and again; skipped where there is none."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands.doctor import examine
from conceptkit.guide.affinity import measure_affinity
from conceptkit.guide.building import build_model
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs, prepare_inputs
from conceptkit.guide.prefix import Pooled
from conceptkit.guide.training import Trained, predict, train
from conceptkit.models.backbones import open_backbone
from conceptkit.models.checkpoints import inside, load_checkpoint, save_checkpoint
from conceptkit.models.folding import AGREEMENT
from conceptkit.models.guided import MAIN, Task
from conceptkit.models.inference import Reader, ieee_float32
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.maskrcnn import build, load_maskrcnn, save_maskrcnn, train_maskrcnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="count", kind="continuous"),
    Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True),
)
OPTIONS = TrainingOptions(unfreeze=("mixed10",), trunk=(8,), epochs=3, warmup=1, batch_size=7)

CLASSIFIER = ("--model", "resnet10t", "--weights", "random", "--layer", "layer4", "--target", "0")


def noise(n: int, side: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def furthest(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """Return max |a − b| / max |b|."""
    a, b = (torch.as_tensor(x).double().cpu() for x in (found, expected))
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [("mini_inception", "mixed10", 96), ("resnet18", "layer4", 96), ("inception_v3", "Mixed_7c", 128)],
)
def test_activations_are_those_of_the_plain_network_on_the_processor(name: str, layer: str, side: int) -> None:
    backbone = open_backbone(name, "random", seed=0)
    pixels = noise(11, side)
    on_gpu = Reader(backbone, [layer], (side, side), batch_size=4, device="cuda")
    plain = backbone.module.eval()
    dotted = backbone.layer(layer)
    seen = {}
    handle = plain.get_submodule(dotted).register_forward_hook(lambda m, i, o: seen.update(map=o))
    with torch.inference_mode():
        plain(backbone.preprocessing(pixels))
    handle.remove()
    expected = seen["map"].mean((2, 3))
    found = [np.concatenate([on_gpu(pixels[i : i + 4])[dotted] for i in range(0, 11, 4)]) for _ in range(2)]
    assert furthest(found[0], expected) <= AGREEMENT
    np.testing.assert_array_equal(*found)
    assert next(plain.parameters()).device.type == "cpu"
    lower = Reader(backbone, [layer], (side, side), batch_size=11, device="cuda", autocast="bf16")(pixels)[dotted]
    assert AGREEMENT < furthest(lower, expected) < 0.1


def test_float32_is_not_tf32() -> None:
    """The control: where TF32 is allowed, a convolution is off by a thousand times more."""
    torch.manual_seed(0)
    x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
    expected = torch.nn.functional.conv2d(x.double(), w.double())
    with ieee_float32():
        exact = torch.nn.functional.conv2d(x.cuda(), w.cuda())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        rounded = torch.nn.functional.conv2d(x.cuda(), w.cuda())
    assert furthest(exact, expected) < 3e-6
    assert furthest(rounded, expected) > 3e-5


def trained(cache: str, *, options: TrainingOptions = OPTIONS, device: str = "cuda", **engine: str) -> Trained:
    rng = np.random.default_rng(0)
    targets = {
        MAIN: torch.tensor(rng.integers(0, 2, 40)),
        "count": torch.tensor(rng.normal(size=40)).float(),
        "center": torch.tensor(rng.integers(0, 3, 40)),
    }
    rows = {"train": np.arange(24), "val": np.arange(24, 40)}
    backbone = open_backbone("mini_inception", "random", seed=0)
    model = build_model(backbone, TASKS, options, seed=0)
    batches = np.array_split(noise(40), 4)
    inputs = prepare_inputs(model, backbone, batches, batch_size=10, device=device, cache=cache)
    assert next(model.parameters()).device.type == "cpu"
    return train(model, inputs, targets, rows, options, seed=0, engine=TrainingEngine(device=device, **engine))


def weights(result: Trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def test_training_repeats_bit_for_bit_and_an_exact_cache_changes_nothing() -> None:
    before = torch.cuda.get_rng_state()
    first, again, whole = trained("exact"), trained("exact"), trained("off")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(weights(first), weights(whole))
    assert [dict(e) for e in first.history] == [dict(e) for e in whole.history]
    assert weights(first).device.type == "cpu"
    other = trained("exact", options=dataclasses.replace(OPTIONS, lr=2 * OPTIONS.lr))
    assert not torch.equal(weights(first), weights(other))


def test_training_ends_where_the_processor_s_does() -> None:
    # Dropout's noise is drawn on the device, and Adam makes a step of any gradient that is not 0 to the last bit.
    plain = dataclasses.replace(OPTIONS, dropout=0.0, optimizer="sgd", lr=1e-4)
    ours, theirs = trained("exact", options=plain), trained("exact", options=plain, device="cpu")
    assert furthest(weights(ours), weights(theirs)) < 1e-4
    for one, other in zip(ours.history, theirs.history, strict=True):
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["confusion", "reversal", "leace", "coral", "mmd"])
def test_every_method_trains(method: str) -> None:
    result = trained("exact", options=dataclasses.replace(OPTIONS, method=method))
    assert torch.isfinite(weights(result)).all()


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_lower_precision_trains(precision: str) -> None:
    result, exact = trained("exact", precision=precision), trained("exact")
    assert torch.isfinite(weights(result)).all()
    assert not torch.equal(weights(result), weights(exact))


def test_what_follows_training_runs_on_the_gpu_and_leaves_it() -> None:
    backbone = open_backbone("mini_inception", "random", seed=0)
    for cache in ("exact", "fast", "off"):
        model = build_model(backbone, TASKS, OPTIONS, seed=0)
        inputs = prepare_inputs(
            model, backbone, np.array_split(noise(40), 4), batch_size=10, device="cuda", cache=cache
        )
        found, shared = predict(model, inputs, device="cuda")
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        expected, theirs = predict(model, inputs, device="cpu")
        assert furthest(shared, theirs) < AGREEMENT
        for name in expected:
            assert furthest(found[name], expected[name]) < 5 * AGREEMENT


def test_affinities_are_those_of_the_processor() -> None:
    rng = np.random.default_rng(0)
    backbone = open_backbone("mini_inception", "random", seed=0)
    targets = {
        MAIN: torch.tensor(rng.integers(0, 2, 60)),
        "count": torch.tensor(rng.normal(size=60)).float(),
        "center": torch.tensor(rng.integers(0, 3, 60)),
    }
    model = build_model(backbone, TASKS, dataclasses.replace(OPTIONS, unfreeze=(), dropout=0.0), seed=0)
    X = torch.tensor(rng.normal(size=(60, 256))).float()
    rows = {"train": np.arange(40), "val": np.arange(40, 60)}
    found = []
    for device in ("cuda", "cpu"):
        own = copy.deepcopy(model)
        inputs = dataclasses.replace(Inputs((X,), Pooled(own)), rest=_As())
        found.append(measure_affinity(own, inputs, targets, rows, seed=0, epochs=2, device=device))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


class _As(torch.nn.Module):
    def forward(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x


def test_a_checkpoint_trained_on_the_gpu_predicts_alike_on_both(tmp_path, study) -> None:
    backbone = open_backbone("mini_inception")
    model = build_model(backbone, TASKS, OPTIONS, seed=0)
    save_checkpoint(model.cuda().cpu(), backbone, tmp_path / "checkpoint")
    assert inside(load_checkpoint(tmp_path / "checkpoint"))[1] is not None
    table = study.parent / "patches.csv"
    one, other = (ck.predict(tmp_path / "checkpoint", table=table, device=d) for d in ("cuda", "cpu"))
    np.testing.assert_allclose(one["probability_tumor"], other["probability_tumor"], atol=1e-5)
    np.testing.assert_allclose(one["count_predicted"], other["count_predicted"], atol=1e-4)


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "--layer", "mixed10"],
        ["probe", "--layer", "mixed10", "--concept", "count", "--permutations", "49"],
        ["guide", "--encourage", "count", "--discourage", "center", "--epochs", "3"],
        ["attribute", *CLASSIFIER, "--concept", "count", "--refits", "10", "--permutations", "49"],
    ],
    ids=lambda command: command[0],
)
def test_commands_run_on_the_gpu(command, tmp_path, study, monkeypatch) -> None:
    monkeypatch.chdir(study.parent)
    monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path / "cache"))
    where = ["--out", str(tmp_path / "out.h5" if command[0] == "extract" else tmp_path / "out")]
    torch.cuda.reset_peak_memory_stats()
    result = CliRunner().invoke(app, [*command, *where, "--device", "cuda"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert torch.cuda.max_memory_allocated() > 1e6


def test_a_probe_on_the_gpu_scores_as_on_the_processor(study, tmp_path, monkeypatch) -> None:
    scores = []
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path / device))
        run = ck.run_probe(
            study, layers=["mixed10"], concepts=["count"], permutations=0, device=device, out=tmp_path / f"{device}-run"
        )
        scores.append(run.rows[0].score)
    one, other = scores
    assert one != other  # they were not read from one cache
    assert abs(one - other) < 1e-3


def test_maskrcnn_trains_and_segments(tmp_path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.indices((96, 96))
    labels = np.zeros((96, 96), np.int32)
    for k, (cy, cx) in enumerate(rng.uniform(12, 84, (6, 2)), 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 49] = k
    image = np.where(labels[..., None] > 0, 60, 230).astype(np.uint8).repeat(3, axis=2)
    torch.manual_seed(0)
    model = train_maskrcnn(
        [image, image], [labels, labels], epochs=1, batch_size=2, device="cuda", network=build(weights="random")
    )
    assert next(model.network.parameters()).device.type == "cuda"
    save_maskrcnn(model, tmp_path / "nuclei.safetensors")
    for device in ("cuda", "cpu"):
        assert load_maskrcnn(tmp_path / "nuclei.safetensors", device=device).segment(image, 0.25).shape == (96, 96)


def test_the_doctor_names_the_gpu() -> None:
    told = str(examine(offline=True))
    assert torch.cuda.get_device_name(0) in told
