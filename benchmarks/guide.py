"""What caching the frozen prefix saves, and what the engine costs: InceptionV3, 224², random weights, random pixels.

    python benchmarks/guide.py [--images 2000] [--epochs 20] [--sweep 40] [--steps 6] [--device cpu]

Trained are the five convolutions of the paper, the trunk and the heads (main, two values, one center), in batches of
32. ``plain`` is a bare torch loop that runs the whole network in every step; its time for all epochs is extrapolated
from ``--steps`` steps, as is that of building the cache from as many images beyond a first pass; what building costs
once (the frozen part's copy, and its trial) is counted once. The cached epochs are run whole, twice, and the quicker
one counts, for the engine and for the bare loop on the same cache, with the same fused optimiser, alike. Ratios are of
times measured in turn in one run.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from conceptkit.guide.building import build_model
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs, inputs_for, pass_size, prepare_inputs
from conceptkit.guide.objective import task_loss
from conceptkit.guide.recipes import PAPER_CONVOLUTIONS
from conceptkit.guide.training import train
from conceptkit.guide.weighting import Weighting
from conceptkit.models.backbones import open_backbone
from conceptkit.models.guided import MAIN, Task
from conceptkit.models.inference import choose_device
from conceptkit.options.training import TrainingOptions

BATCH = 32
TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="area", kind="continuous"),
    Task(name="count", kind="continuous"),
    Task(name="center", kind="categorical", classes=tuple("ABCD"), adversarial=True),
)


def bare_step(model, features, rows, targets, weighting, optimizer, device):
    """One step of a loop that anyone would write."""
    outputs = model.outputs(model.reads(*features))
    losses = {t.name: task_loss(t, outputs[t.name], targets[t.name][rows].to(device)) for t in model.tasks}
    optimizer.zero_grad()
    weighting(losses).backward()
    optimizer.step()


def wait(device):
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_seconds(backbone, options, batches, targets, device):
    """Return the seconds per image of a loop that runs the whole network in every step."""
    model = build_model(backbone, TASKS, options, seed=0).to(device)
    weighting = Weighting(TASKS, options.weighting).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*trained, *weighting.parameters()])
    times = []
    for k, batch in enumerate([batches[0], *batches]):  # the first one warms up
        start = time.perf_counter()
        features = model.features(backbone.preprocessing(batch).to(device))
        bare_step(model, features, torch.arange(BATCH) + k, targets, weighting, optimizer, device)
        wait(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) / BATCH


def bare_epoch(model, inputs, targets, weighting, optimizer, rows):
    """Return the seconds of an epoch of the bare loop on cached inputs, with its validation."""
    device = next(model.parameters()).device
    start = time.perf_counter()
    for part in torch.split(torch.randperm(len(rows["train"])), BATCH):
        features = inputs.rest(*inputs.batch(part, device))
        bare_step(model, features, part, targets, weighting, optimizer, device)
    with torch.no_grad():
        for part in torch.split(torch.from_numpy(rows["val"]), 256):
            outputs = model.outputs(model.reads(*inputs.rest(*inputs.batch(part, device))))
            [task_loss(t, outputs[t.name], targets[t.name][part].to(device)) for t in TASKS]
    wait(device)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sweep", type=int, default=40)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = choose_device(given.device)
    rng = np.random.default_rng(0)
    n, held = given.images, 64
    backbone = open_backbone("inception_v3", "random", seed=0)
    options = TrainingOptions(
        unfreeze=PAPER_CONVOLUTIONS["inception_v3"],
        epochs=2,
        warmup=0,
        method="reversal",
        balance=False,
        balance_main=0,
    )
    total = n + held
    targets = {
        MAIN: torch.from_numpy(rng.integers(0, 2, total)),
        "area": torch.from_numpy(rng.normal(size=total)).float(),
        "count": torch.from_numpy(rng.normal(size=total)).float(),
        "center": torch.from_numpy(rng.integers(0, 4, total)),
    }
    pixels = rng.integers(0, 256, (given.steps * BATCH, 224, 224, 3), dtype=np.uint8)
    batches = [pixels[s : s + BATCH] for s in range(0, len(pixels), BATCH)]
    rows = {"train": np.arange(n), "val": np.arange(n, total)}

    plain = plain_seconds(backbone, options, batches, targets, device)
    print(f"device {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'}, {given.steps} plain steps")
    print("extrapolated: the plain loop and the building of the cache from these steps, sweeps from single epochs")
    print(f"{'plain loop':34s} {1e3 * plain:8.2f} ms per image and epoch")

    size = pass_size(given.device)
    passes = [pixels[s : s + size] for s in range(0, len(pixels), size)]
    for cache, wanted, wanted_sweep in (("exact", 9, None), ("fast", 11, 18)):
        network = build_model(backbone, TASKS, options, seed=0)
        took = []
        for some in (passes[:1], passes[:1], passes):  # the first one warms up
            start = time.perf_counter()
            few = prepare_inputs(network, backbone, some, batch_size=size, device=given.device, cache=cache)
            took.append(time.perf_counter() - start)
        each = (took[2] - took[1]) / (len(pixels) - size)
        once_only = took[1] - size * each
        building = each + once_only / total
        place = torch.arange(total) % len(pixels)
        scales = None if few.scales is None else tuple(t[place] for t in few.scales)
        inputs = Inputs(tuple(t[place] for t in few.tensors), few.rest, scales=scales)
        kept = sum(t.numel() * t.element_size() for t in inputs.tensors) / total
        ends: list[float] = [time.perf_counter()]
        train(
            network,
            inputs,
            targets,
            rows,
            options,
            seed=0,
            engine=TrainingEngine(device=given.device),
            progress=lambda done, todo, ends=ends: ends.append(time.perf_counter()),
        )
        engine = float(np.diff(ends).min()) / n
        bare_model = build_model(backbone, TASKS, options, seed=0)
        own = inputs_for(bare_model, inputs)
        bare_model.to(device)
        own.rest.to(device)
        weighting = Weighting(TASKS, options.weighting).to(device)
        optimizer = torch.optim.Adam(
            [*(p for p in bare_model.parameters() if p.requires_grad), *weighting.parameters()], fused=True
        )
        bare = min(bare_epoch(bare_model, own, targets, weighting, optimizer, rows) for _ in range(2)) / n
        once = given.epochs * plain / (building + given.epochs * engine)
        many = given.sweep * given.epochs * plain / (building + given.sweep * given.epochs * engine)
        print(f"cache {cache}: {kept / 1e3:.0f} kB per image, building {1e3 * each:.2f} ms each and {once_only:.2f} s")
        print(f"{'  epoch, engine':34s} {1e3 * engine:8.2f} ms per image; bare loop {1e3 * bare:.2f}")
        print(f"{'  engine over the bare loop':34s} {engine / bare:8.2f}   (wanted at most 1.15)")
        print(f"{f'  {given.epochs} epochs on {n} images':34s} {once:8.1f} × (wanted {wanted})")
        note = f" (wanted {wanted_sweep})" if wanted_sweep else ""
        print(f"{f'  sweep of {given.sweep} runs':34s} {many:8.1f} ×{note}", flush=True)


if __name__ == "__main__":
    main()
