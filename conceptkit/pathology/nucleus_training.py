"""Train the compact network on annotated images: windows, augmentation, validation, early stopping, resuming."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.images.pixel_values import nearest
from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.colour import RUIFROK, optical_density
from conceptkit.pathology.compact import Compact, compact_of, nuclei_of
from conceptkit.pathology.compact_network import CompactNetwork, depth_of, loss_of, type_loss_of

WORKING_MPP = 0.25
"""Microns per pixel of the windows, before they are drawn larger or smaller."""

CROP, BATCH, EVERY = 192, 8, 100
"""Side of a window, windows of a step, steps between validations."""

VALIDATED = 512
"""Side of the largest part of an image that is validated on, its middle."""

THRESHOLDS, APARTS = (0.4, 0.5, 0.6), (1.0, 1.5, 2.0, 2.5)
"""Least probabilities, and least µm between nuclei, among which the best are chosen by validation."""

RATE = 1e-3

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """An image and its labels at :data:`WORKING_MPP`."""

    image: Image8
    labels: NDArray[np.int32]
    depth: NDArray[np.uint8]
    """Depth times 255, at least 1 inside nuclei"""
    kinds: NDArray[np.uint8]
    """Number of each pixel's type of nucleus, from 1; 0 where it is unknown or there is none"""


@dataclass
class Progressing:
    """What a training has come to."""

    step: int = 0
    best: float = -1.0
    """Best AJI; with types the best mean of AJI and recall"""
    best_step: int = 0
    aji: float = -1.0
    """Of the best step"""
    recall: float | None = None
    """Of the best step: share of nuclei whose type is right, mean over types; ``None`` without types"""
    threshold: float = 0.5
    apart: float = 1.25
    history: list[tuple[int, float]] = field(default_factory=list)
    """Steps and AJI of the validations"""


def sample_of(
    image: Image8,
    labels: NDArray[np.int32],
    mpp: float | None,
    known: Mapping[int, str] | None = None,
    types: Sequence[str] = (),
) -> Sample:
    """Return an image (h, w, 3) and labels (h, w) as they are trained on; ``known`` are the types of its labels."""
    factor = 1.0 if mpp is None else mpp / WORKING_MPP
    if abs(factor - 1) > 0.1:
        height, width = (max(8, round(n * factor)) for n in labels.shape)
        how = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), how))
        labels = nearest(labels, height, width)
    depth = np.where(labels > 0, np.maximum(1, np.round(255 * depth_of(labels))), 0).astype(np.uint8)
    kind_of = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint8)
    for label, kind in (known or {}).items():
        if label < len(kind_of):
            kind_of[label] = types.index(kind) + 1
    return Sample(image, labels, depth, kind_of[labels])


def restained(rng: np.random.Generator, image: Image8) -> Image8:
    """Return an image with other amounts and vectors of hematoxylin and eosin, focus, noise and compression.

    Amounts are scaled as by Tellez et al. 2019, and the vectors of the stains are moved.
    """
    amounts = optical_density(image) @ np.linalg.inv(RUIFROK) * np.exp(rng.normal(0, 0.2, 3))
    density = amounts @ (RUIFROK + rng.normal(0, 0.04, (3, 3)))
    return photographed(rng, (255 * np.power(10, -np.clip(density, 0, 3))).astype(np.float32))


def photographed(rng: np.random.Generator, light: NDArray[np.float32]) -> Image8:
    """Return light (h, w, 3), 0 to 255, as a scanner gives it: with blur, another contrast, noise and compression."""
    size = light.shape[1], light.shape[0]
    chance = rng.random()
    if chance < 0.2:  # a scan at a lower magnification, enlarged
        factor = rng.uniform(1.2, 2.2)
        small = (max(8, round(size[0] / factor)), max(8, round(size[1] / factor)))
        picture = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
        light = np.asarray(picture.resize(small, Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR))
    elif chance < 0.6:
        sigma = rng.uniform(0.3, 1.4)
        light = ndimage.gaussian_filter(light, (sigma, sigma, 0))
    light = np.clip(light, 0, 255).astype(np.float32)
    if rng.random() < 0.3:
        light = 255 * np.power(light / 255, np.float32(rng.uniform(0.8, 1.25)))
    light = light + rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    image = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=int(rng.integers(40, 96)))
        image = np.asarray(Image.open(stream).convert("RGB"))
    return image


def window(rng: np.random.Generator, sample: Sample) -> tuple[Image8, NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a window of an image, its depth and its types: any place, size, turn, mirror image and stain."""
    height, width = sample.depth.shape
    side = min(round(CROP * math.exp(rng.normal(0, 0.15))), height, width)
    y, x = (int(rng.integers(0, n - side + 1)) for n in (height, width))
    image, depth, kinds = (a[y : y + side, x : x + side] for a in (sample.image, sample.depth, sample.kinds))
    if side != CROP:
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((CROP, CROP), Image.Resampling.BILINEAR))
        depth, kinds = nearest(depth, CROP, CROP), nearest(kinds, CROP, CROP)
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    image, depth, kinds = (np.rot90(a[:, ::-1] if mirror else a, turns) for a in (image, depth, kinds))
    return restained(rng, np.ascontiguousarray(image)), depth, kinds


def batch(
    rng: np.random.Generator, samples: Sequence[Sample], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return windows (n, 3, h, w), whether each pixel is nuclear, its depth, and its type, (n, h, w) each."""
    drawn = [window(rng, samples[int(rng.integers(len(samples)))]) for _ in range(BATCH)]
    images, depth, kinds = (torch.from_numpy(np.stack(a)).to(device) for a in zip(*drawn, strict=True))
    images, depth = images.permute(0, 3, 1, 2).float().div(255), depth.float().div(255)
    return images.contiguous(memory_format=torch.channels_last), (depth > 0).float(), depth, kinds


def train_compact(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    start: Compact,
    *,
    types: Sequence[str] = (),
    steps: int = 900,
    patience: int = 4,
    seed: int = 0,
    folder: Path | None = None,
    key: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Compact, Progressing]:
    """Train on some images from given weights; the weights of the best validated AJI are returned, with its thresholds.

    Weights of the start itself are validated first, so that the result is never worse there than the start.

    Parameters
    ----------
    training, validation : images of different patients
    types : names of the types that samples have; the head of the start is kept where it has the same
    steps : at most, each a batch of 8 windows of 192 pixels
    patience : validations without a better AJI after which the training stops
    folder : where the state is kept after each validation; a run with the same ``key`` resumes it
    progress : receives the step and the number of steps

    Raises
    ------
    InputError
        when no image has a nucleus, or the loss is not finite
    """
    if not any(s.depth.any() for s in training) or not any(s.depth.any() for s in validation):
        raise InputError("mask: images of training and of validation need annotated nuclei, and one side has none.")
    device = start.device
    torch.manual_seed(seed)
    network = CompactNetwork(len(types))
    same = tuple(types) == start.types
    known = {k: v for k, v in start.state.items() if same or not k.startswith("types.")}
    network.load_state_dict({**network.state_dict(), **known})
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    file = None if folder is None else folder / "state.safetensors"
    resumed = _resume(file, key, network, optimizer)
    if resumed is None:
        state, kept = Progressing(), {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        _validate(network, validation, device, state, types)
    else:
        state, kept = resumed
    while state.step < steps and state.step - state.best_step < patience * EVERY:
        network.train()
        rate = RATE * min(1.0, (state.step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * state.step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, inside, depth, kinds = batch(np.random.default_rng([seed, state.step]), training, device)
        maps = network(images)
        loss = loss_of(maps, inside, depth)
        if types:
            loss = loss + type_loss_of(maps[:, 2:], kinds)
        if not torch.isfinite(loss):
            raise InputError(f"training: the loss is not finite in step {state.step + 1}; are the masks right?")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        state.step += 1
        if state.step % EVERY == 0 or state.step == steps:
            if _validate(network, validation, device, state, types):
                kept = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
            if file is not None:
                _keep(file, key, network, optimizer, kept, state)
        if progress is not None:
            progress(state.step, steps)
    about = {"threshold": state.threshold, "apart": state.apart, "types": list(types)}
    return compact_of(kept, about, device), state


def _validate(
    network: CompactNetwork, samples: Sequence[Sample], device: torch.device, state: Progressing, types: Sequence[str]
) -> bool:
    """Add the mean AJI of a validation, at the best thresholds, to the state; return whether it is the best so far."""
    weights = {k: v.detach().cpu() for k, v in network.state_dict().items()}
    model = compact_of(weights, {"threshold": 0.5, "apart": 1.25, "types": types}, device)
    middles = [_middle(s) for s in samples]
    maps = [model.maps(image) for image, _, _ in middles]

    def mean(threshold: float, apart: float) -> float:
        found = (nuclei_of(m, threshold, apart, WORKING_MPP) for m in maps)
        return float(np.mean([agreement(f, drawn).aji for f, (_, drawn, _) in zip(found, middles, strict=True)]))

    # One after the other: the distance decides which nuclei are parted, the probability how large they are.
    apart = max(APARTS, key=lambda a: mean(0.5, a))
    threshold = max(THRESHOLDS, key=lambda t: mean(t, apart))
    aji = mean(threshold, apart)
    state.history.append((state.step, aji))
    recall = _recall([m[2:] for m in maps], middles, len(types)) if types else None
    score = aji if recall is None else (aji + recall) / 2
    if score <= state.best:
        return False
    state.best, state.best_step, state.threshold, state.apart = score, state.step, threshold, apart
    state.aji, state.recall = aji, recall
    return True


def _recall(
    maps: Sequence[NDArray[np.float32]], middles: Sequence[tuple[Image8, NDArray[np.int32], NDArray[np.uint8]]], n: int
) -> float | None:
    """Return the share of annotated nuclei with the right type on their pixels, mean over types."""
    right: list[list[bool]] = [[] for _ in range(n)]
    for own, (_, labels, kinds) in zip(maps, middles, strict=True):
        top = int(labels.max(initial=0)) + 1
        sums = np.stack([np.bincount(labels.ravel(), m.ravel(), top) for m in own])
        truth = np.zeros(top, dtype=np.int64)
        truth[labels.ravel()] = kinds.ravel()
        for label in np.flatnonzero(truth):
            right[truth[label] - 1].append(bool(sums[:, label].argmax() == truth[label] - 1))
    shares = [float(np.mean(r)) for r in right if r]
    return float(np.mean(shares)) if shares else None


def _middle(sample: Sample) -> tuple[Image8, NDArray[np.int32], NDArray[np.uint8]]:
    y, x = (max(0, (n - VALIDATED) // 2) for n in sample.labels.shape)
    cut = np.s_[y : y + VALIDATED, x : x + VALIDATED]
    return sample.image[cut], sample.labels[cut], sample.kinds[cut]


def _keep(
    file: Path,
    key: str,
    network: CompactNetwork,
    optimizer: torch.optim.Optimizer,
    kept: dict[str, Tensor],
    state: Progressing,
) -> None:
    """Write everything that the next step depends on."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()} | {f"kept.{k}": v for k, v in kept.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": v for k, v in moments.items()}
    about = {"key": key, **vars(state)}
    with replacing(file) as temporary:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, temporary, metadata={"conceptkit": json.dumps(about)})


def _resume(
    file: Path | None, key: str, network: CompactNetwork, optimizer: torch.optim.Optimizer
) -> tuple[Progressing, dict[str, Tensor]] | None:
    """Load what :func:`_keep` wrote for the same training; ``None`` where there is nothing."""
    if file is None or not file.is_file():
        return None
    with safe_open(file, framework="pt") as stream:
        about: dict[str, Any] = json.loads(stream.metadata()["conceptkit"])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # it has only keys()
    if about.pop("key") != key:
        return None

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network.load_state_dict(part("network."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        number, _, kind = name.partition(".")
        moments.setdefault(int(number), {})[kind] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    about["history"] = [tuple(pair) for pair in about["history"]]
    return Progressing(**about), part("kept.")
