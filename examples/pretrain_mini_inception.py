"""Pretrain the small bundled network on drawn shapes and textures: an ImageNet in miniature.

The network of the embedded study needs features that were learned elsewhere, as ImageNet features are in pathology.
This script makes them from nothing but drawings: 40 families of shapes and textures, told apart by supervised
classification. Within every family the place, angle and colours of what is drawn, the texture of the background, blur,
contrast and noise are random, and so are the number and size of objects, by one law for all families of shapes; each
family of textures has its own range of grains and periods.

What the network does not see: a tissue image; an image of conceptkit's synthetic tissue study; a concept value. The
number, size and contrast of objects are never a label, only the family is. The linear probe printed with ``--check``
is made on further drawings after training; the recipe was set by the training loss and not by that probe.

The bundled file was made by::

    python examples/pretrain_mini_inception.py --check
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from drawn_shapes import (
    COLUMNS,
    FAMILIES,
    ROWS,
    SHAPES,
    SIZE,
    TEXTURES,
    Array,
    Rng,
    blurred,
    coverage,
    log_uniform,
    scatter,
    smooth_noise,
)
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from conceptkit.models import mini_inception
from conceptkit.models.mini_inception import LAYER_NAMES, MEAN, STD, MiniInception, load_mini_inception


def colours(rng: Rng) -> tuple[Array, Array, Array]:
    """Return background, first and second foreground colour, (3,) each on 0 to 1, any hue, never too alike."""
    while True:
        background, first = rng.uniform(0.02, 0.98, 3), rng.uniform(0.02, 0.98, 3)
        if rng.uniform() < 0.4:  # pale or dim backgrounds, as most pictures have
            background = np.clip(rng.choice([0.15, 0.85]) + rng.normal(0, 0.1, 3), 0, 1)
        if np.linalg.norm(background - first) > 0.6:
            break
    while True:
        second = np.clip(first + rng.normal(0, 0.3, 3), 0, 1)
        if np.linalg.norm(second - first) > 0.25:
            return background, first, second


def draw_image(seed: int, index: int) -> NDArray[np.uint8]:
    """Return image ``index`` (96, 96, 3) of the corpus of ``seed``; its family is ``index`` modulo their number."""
    rng = np.random.default_rng([seed, index])
    name = FAMILIES[index % len(FAMILIES)]
    if name in SHAPES:
        alpha, tint = scatter(rng, SHAPES[name])
    else:
        alpha, tint = TEXTURES[name](rng), rng.uniform(0, 0.6) * np.clip(smooth_noise(rng, rng.uniform(4, 20)), -1, 1)
    ground, first, second = colours(rng)
    backdrop = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    for scale, strength in ((log_uniform(rng, 1.5, 8), 0.05), (log_uniform(rng, 8, 50), 0.08)):
        backdrop += (rng.uniform(0, strength) * smooth_noise(rng, scale))[..., None] * rng.uniform(-0.3, 1.0, 3)
    mix = ((1 - tint) / 2)[..., None]
    paint = (1 - mix) * second + mix * first if name in SHAPES else first + tint[..., None] * (second - first) / 2
    paint = paint + (rng.uniform(0, 0.05) * smooth_noise(rng, log_uniform(rng, 1.5, 10)))[..., None]
    alpha = (alpha * rng.uniform(0.7, 1.0))[..., None]
    image = backdrop * (1 - alpha) + paint * alpha
    if rng.uniform() < 0.5:
        image = blurred(image, rng.uniform(0.4, 1.0))
    image = 0.5 + rng.uniform(0.75, 1.1) * (image - 0.5) + rng.normal(0, 0.05)
    image = image + log_uniform(rng, 0.005, 0.06) * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _draw_range(bounds: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.stack([draw_image(seed, i) for i in range(*bounds)])


def draw_corpus(number: int, *, seed: int, first: int = 0, workers: int = 1) -> tuple[Tensor, Tensor]:
    """Draw images ``first`` to ``first + number`` of the corpus of ``seed``, whatever the number of ``workers``.

    Returns
    -------
    images, targets
        uint8 (number, 3, 96, 96), and the number of each image's family, int64 (number,).
    """
    last = first + number
    bounds = [(i, min(i + 500, last)) for i in range(first, last, 500)]
    if workers == 1:
        parts = [_draw_range(b, seed) for b in bounds]
    else:
        # Matrices this small are slower on many threads; the processes read this when NumPy is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(partial(_draw_range, seed=seed), bounds))
    images = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
    return images, torch.arange(first, last) % len(FAMILIES)


def normalised(images: Tensor) -> Tensor:
    """Map uint8 ``images`` (n, 3, h, w) to what the network expects, channels last."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, crop: int, generator: torch.Generator, *, standardise: bool = False) -> Tensor:
    """Return normalised random windows (n, 3, crop, crop) of uint8 ``images``, turned, mirrored and recoloured.

    ``standardise`` takes mean and deviation off every window, so that its colours are out of the way.
    """
    n = len(images)
    top, left = (int(torch.randint(0, SIZE - crop + 1, (), generator=generator)) for _ in range(2))
    x = normalised(images[:, :, top : top + crop, left : left + crop])
    x = torch.rot90(x, int(torch.randint(0, 4, (), generator=generator)), (2, 3))
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    if standardise:
        x = x - x.mean((2, 3), keepdim=True)
        x = x / (x.std((1, 2, 3), keepdim=True) + 0.05)
    recolour = torch.eye(3) + 0.1 * torch.randn(n, 3, 3, generator=generator)  # mixes channels, changes contrast
    x = torch.einsum("nij,njhw->nihw", recolour, x) + 0.1 * torch.randn(n, 3, 1, 1, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def classifier(inputs: int) -> nn.Module:
    # Pooled features differ little between images beside their mean: unscaled, the first steps would be lost on it.
    return nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, len(FAMILIES)))


def train(
    images: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    seed: int,
    batch: int = 64,
    peak_rate: float = 3e-3,
    bfloat16: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[MiniInception, list[float]]:
    """Train the network to name the family of uint8 ``images`` (n, 3, 96, 96), and return it with each step's loss.

    AdamW, a one-cycle rate, label smoothing and two auxiliary classifiers. The first half of the epochs sees windows
    without their mean colour and contrast, as form is learned sooner where arbitrary hues do not hide it; all but the
    last sixth see windows of 64 pixels, which cost less than half of whole images.
    """
    model = load_mini_inception(pretrained=False, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.fc = classifier(model.num_features)
        heads = nn.ModuleDict({"mixed2": classifier(48), "mixed7": classifier(128)})
    model = model.to(memory_format=torch.channels_last).train()
    parameters = [*model.parameters(), *heads.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim == 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}])
    per_epoch = max(1, len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=peak_rate, total_steps=epochs * per_epoch, pct_start=0.2, cycle_momentum=False
    )
    objective = nn.CrossEntropyLoss(label_smoothing=0.05)
    generator = torch.Generator().manual_seed(seed)
    whole = epochs - max(1, epochs // 6)
    losses: list[float] = []
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(per_epoch):
            rows = order[step * batch : (step + 1) * batch]
            crop = 64 if epoch < whole else SIZE
            x = augmented(images[rows], crop, generator, standardise=epoch < epochs // 2)
            auxiliary = []
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                x = model.stem(x)
                for name in LAYER_NAMES:
                    x = model.get_submodule(name)(x)
                    if name in heads:
                        auxiliary.append(objective(heads[name](x.mean((2, 3))), targets[rows]))
                loss = objective(model.forward_head(x), targets[rows])
            optimiser.zero_grad()
            (loss + 0.5 * sum(auxiliary)).backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if (step + 1) % 100 == 0 or step + 1 == per_epoch:
                recent = np.mean(losses[-min(step + 1, 100) :])
                report(
                    f"epoch {epoch + 1}/{epochs}, step {step + 1}/{per_epoch}: loss {recent:.3f}, "
                    f"{time.perf_counter() - start:.0f} s"
                )
    return model.eval(), losses


@torch.no_grad()
def predicted(model: MiniInception, images: Tensor) -> Tensor:
    """Return the family that ``model`` names for uint8 ``images`` (n, 3, 96, 96), int64 (n,)."""
    return torch.cat([model(normalised(part)).argmax(1) for part in images.split(250)])


def save_body(
    model: MiniInception,
    path: Path,
    *,
    seed: int,
    corpus: str,
    script: str = "examples/pretrain_mini_inception.py",
) -> None:
    """Write all but the last layer as float16 to ``path``, at one stroke, with its provenance as metadata."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state = {k: v.contiguous() for k, v in state.items() if not k.startswith("fc.")}
    metadata = {
        "architecture": "MiniInception",
        "mean": ", ".join(map(str, MEAN)),
        "std": ", ".join(map(str, STD)),
        "corpus": corpus,
        "seed": str(seed),
        "script": script,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, temporary, metadata=metadata)
    temporary.chmod(0o644)
    temporary.replace(path)


def draw_check(number: int, seed: int) -> tuple[Tensor, Array]:
    """Draw pink images of dark irregular ellipses for a linear probe, and return their number and mean radius.

    Returns
    -------
    images, values
        uint8 (number, 3, 96, 96); number of ellipses and mean radius in pixels, (number, 2).
    """
    images, values = [], []
    for i in range(number):
        rng = np.random.default_rng([seed, i, 1])
        count, size = int(rng.integers(5, 41)), rng.uniform(3.0, 6.5)
        pink = np.array([0.9, 0.7, 0.82]) + rng.normal(0, 0.04, 3)
        dark = np.array([0.4, 0.22, 0.52]) + rng.normal(0, 0.06, 3)
        image = np.broadcast_to(pink, (SIZE, SIZE, 3)).copy()
        for scale in (2.0, 6.0, 18.0):
            image += (rng.uniform(0, 0.05) * smooth_noise(rng, scale))[..., None]
        radii = size * np.exp(rng.normal(0, 0.15, count))
        for radius in radii:
            y, x = rng.uniform(0, SIZE, 2)
            angle, q, phase = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0), rng.uniform(0, 6, 2)
            dy, dx = (ROWS - y) / radius, (COLUMNS - x) / radius
            u, v = dx * np.cos(angle) + dy * np.sin(angle), (dy * np.cos(angle) - dx * np.sin(angle)) / q
            turn = np.arctan2(v, u)
            outline = 1 + 0.12 * np.cos(2 * turn + phase[0]) + 0.1 * np.cos(3 * turn + phase[1])
            alpha = (rng.uniform(0.6, 1.0) * coverage(q * radius * (outline - np.hypot(u, v)), 1.5))[..., None]
            image = image * (1 - alpha) + (dark + rng.normal(0, 0.04, 3)) * alpha
        image = 0.6 + rng.uniform(0.7, 1.1) * (image - 0.6) + rng.uniform(0, 0.04) * rng.standard_normal(image.shape)
        images.append((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
        values.append((count, radii.mean()))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), np.array(values)


@torch.no_grad()
def probe_scores(model: MiniInception, images: Tensor, values: Array) -> dict[str, list[float]]:
    """Return, per layer, the five-fold R² of a ridge from pooled features to each column of ``values`` (n, k)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    taken: dict[str, list[Tensor]] = {"mixed2": [], "mixed7": [], "mixed10": []}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: taken[name].append(out.mean((2, 3)))
        )
        for name in taken
    ]
    model.eval()
    for part in images.split(200):
        model(normalised(part))
    for hook in hooks:
        hook.remove()
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    folds = KFold(5, shuffle=True, random_state=0)
    return {
        name: [
            float(r2_score(column, cross_val_predict(ridge, torch.cat(parts).double().numpy(), column, cv=folds)))
            for column in values.T
        ]
        for name, parts in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24_000, help="drawings to train on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(mini_inception.__file__).with_name(mini_inception.WEIGHTS_FILE)
    )
    parser.add_argument("--threads", type=int, default=2, help="threads to train with, and processes to draw with")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="train in mixed precision"
    )
    parser.add_argument("--check", action="store_true", help="probe number and size of ellipses after training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    held_out = 2_000
    start = time.perf_counter()
    images, targets = draw_corpus(options.images + held_out, seed=options.seed, workers=options.threads)
    print(f"{len(images)} drawings of {len(FAMILIES)} families in {time.perf_counter() - start:.0f} s", flush=True)
    model, _ = train(
        images[: options.images],
        targets[: options.images],
        epochs=options.epochs,
        seed=options.seed,
        bfloat16=options.bfloat16,
        report=partial(print, flush=True),
    )
    correct = (predicted(model, images[options.images :]) == targets[options.images :]).float().mean()
    print(f"held-out accuracy {correct:.3f} on {held_out} new drawings (chance {1 / len(FAMILIES):.3f})")
    corpus = f"{options.images} procedural drawings of {len(FAMILIES)} families of shapes and textures, no tissue"
    save_body(model, options.out, seed=options.seed, corpus=f"{corpus}; {options.epochs} epochs")
    print(f"wrote {options.out.name}, {options.out.stat().st_size / 1e6:.2f} MB")

    if options.check:
        pink, values = draw_check(600, options.seed)
        networks = {"pretrained": model, "random": load_mini_inception(pretrained=False, seed=options.seed)}
        for name, network in networks.items():
            for layer, (number, size) in probe_scores(network, pink, values).items():
                print(f"{name:>10} {layer:>7}: R² of number {number:.2f}, of mean radius {size:.2f}")


if __name__ == "__main__":
    main()
