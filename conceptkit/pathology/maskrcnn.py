"""Nuclei by Mask R-CNN: trained on label masks as in the paper, kept as safetensors, applied to images of any size."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.images.pixel_values import check_enlarged, nearest

SCHEMA = "conceptkit/maskrcnn/1"

_TILE, _MARGIN = 256, 32


@dataclass
class MaskRCNN:
    """A network that finds nuclei, and the resolution that it was trained at."""

    network: nn.Module
    mpp: float
    device: torch.device
    score: float = 0.5
    """Least score of a nucleus."""

    def segment(self, image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.int32]:
        """Return the nuclei of an image (h, w, 3) as labels, (h, w).

        The image is brought to the resolution of the training and processed in overlapping windows; a nucleus is taken
        from the window whose inner part holds its centre.
        """
        height, width = image.shape[:2]
        factor = 1.0 if mpp is None else mpp / self.mpp
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        check_enlarged(size)
        same = abs(factor - 1) <= 0.05
        pixels = image if same else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        labels = self._in_windows(pixels)
        return labels if same else nearest(labels, height, width)

    def _in_windows(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        height, width = image.shape[:2]
        labels = np.zeros((height, width), dtype=np.int32)
        number = 0
        for top, inner_y in _windows(height):
            for left, inner_x in _windows(width):
                part = image[top : top + _TILE, left : left + _TILE]
                for mask in self._masks(part):
                    ys, xs = np.nonzero(mask)
                    if not (inner_y[0] <= ys.mean() + top < inner_y[1] and inner_x[0] <= xs.mean() + left < inner_x[1]):
                        continue
                    view = labels[top : top + _TILE, left : left + _TILE]
                    free = mask & (view == 0)
                    if free.sum() * 2 > mask.sum():  # mostly taken already: the same nucleus once more
                        number += 1
                        view[free] = number
        return labels

    def _masks(self, part: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
        """Return the nuclei of one window as (h, w) masks, the surest first."""
        self.network.eval()
        height, width = part.shape[:2]
        with torch.inference_mode():
            found = self.network([_tensor(part).to(self.device)])[0]
        keep = found["scores"] >= self.score
        masks = (found["masks"][keep, 0, :height, :width] > 0.5).cpu().numpy()
        return [mask for mask in masks if mask.any()]


def build(*, weights: str = "imagenet") -> nn.Module:
    """Return torchvision's Mask R-CNN with ResNet50 and two classes; its backbone from ImageNet, or ``random``.

    BatchNorm is frozen, as in torchvision: batches are too small for statistics of their own.
    """
    check_choice("weights", weights, ("imagenet", "random"))
    start = ResNet50_Weights.IMAGENET1K_V1 if weights == "imagenet" else None
    try:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=start, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
    except OSError as error:
        raise InputError(
            f"weights: {ResNet50_Weights.IMAGENET1K_V1.url} could not be fetched ({type(error).__name__}); put it "
            f"into {Path(torch.hub.get_dir()) / 'checkpoints'}."
        ) from None
    if start is None:
        for name, module in backbone.named_modules():
            if name.endswith("bn3"):  # without statistics each block would double the variance: it starts as identity
                module.weight.zero_()
    # Nuclei are 8 to 64 pixels wide, not 32 to 512 as the things of photographs.
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5)
    network: nn.Module = Detector(
        backbone,
        num_classes=2,
        rpn_anchor_generator=anchors,
        min_size=_TILE,
        max_size=4 * _TILE,
        box_detections_per_img=400,  # a window of lymphocytes holds more than the usual 100
    )
    return network


def train_maskrcnn(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.integer]],
    *,
    mpp: float = 0.25,
    weights: str = "imagenet",
    epochs: int = 50,
    batch_size: int = 2,
    held_out: int = 1,
    seed: int = 0,
    device: str = "auto",
    network: nn.Module | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> MaskRCNN:
    """Train Mask R-CNN on images with nucleus labels; the epoch of the best Dice is kept.

    As in the paper: ResNet50 from ImageNet, SGD with learning rate 0.001 and momentum 0.9, validated by Dice.
    Raises :class:`InputError` when images and labels do not fit, or none is left to train on.

    Parameters
    ----------
    images, labels : (h, w, 3) RGB and (h, w) labels each, all at ``mpp``; windows of them are rotated and mirrored
    held_out : number of images, the last ones, that Dice is measured on and that are not trained on
    network : instead of :func:`build`
    progress : receives the epoch, the number of epochs, and Dice
    """
    check_at_least("epochs", epochs, 1)
    if len(images) != len(labels) or any(a.shape[:2] != b.shape for a, b in zip(images, labels, strict=False)):
        raise InputError(
            f"labels: one per image and of its size is needed, got {len(labels)} for {len(images)} images."
        )
    if not 0 < held_out < len(images):
        raise InputError(f"held_out: must leave an image to train on, got {held_out} of {len(images)}.")
    chosen = device_of(device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = (network if network is not None else build(weights=weights)).to(chosen)
    model = MaskRCNN(net, mpp, chosen)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    best, kept = -1.0, {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
    training = list(zip(images, labels, strict=True))[:-held_out]
    windows = sum(math.ceil(i.shape[0] / _TILE) * math.ceil(i.shape[1] / _TILE) for i, _ in training)
    for epoch in range(epochs):
        net.train()
        for _ in range(math.ceil(windows / batch_size)):
            drawn = [_draw(*training[rng.integers(len(training))], rng) for _ in range(batch_size)]
            usable = [d for d in drawn if d is not None]
            if not usable:
                continue
            inputs = [x.to(chosen) for x, _ in usable]
            targets = [{k: v.to(chosen) for k, v in t.items()} for _, t in usable]
            loss = sum(net(inputs, targets).values())
            if not torch.isfinite(loss):
                raise InputError(f"training: the loss is not finite in epoch {epoch + 1}; are the labels right?")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
        scores = [
            _dice(model.segment(image, mpp), drawn)
            for image, drawn in zip(images[-held_out:], labels[-held_out:], strict=True)
        ]
        dice = float(np.mean(scores))
        if dice > best:
            best, kept = dice, {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
        if progress is not None:
            progress(epoch + 1, epochs, dice)
    net.load_state_dict(kept)
    return model


def save_maskrcnn(model: MaskRCNN, path: Path) -> None:
    """Write a network as one safetensors file that a later version opens."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file(state, temporary, metadata={"conceptkit": json.dumps({"schema": SCHEMA, "mpp": model.mpp})})
    temporary.replace(path)


def open_maskrcnn(weights: Path | None, device: str) -> Callable[[NDArray[np.uint8], float | None], NDArray[np.int32]]:
    """Return the method of a checkpoint of :func:`save_maskrcnn`."""
    if weights is None:
        raise InputError("nuclei-weights: maskrcnn needs the checkpoint of a training, got none.")
    return load_maskrcnn(weights, device=device).segment


def load_maskrcnn(path: Path, *, device: str = "auto") -> MaskRCNN:
    """Open a checkpoint of :func:`save_maskrcnn`; raises :class:`InputError` when the file is not one."""
    if not path.is_file():
        raise InputError(f"nuclei-weights: file {path} not found.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["conceptkit"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # safe_open has only keys()
        if about["schema"] != SCHEMA:
            raise KeyError(about["schema"])
        network = build(weights="random")
        network.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError):
        raise InputError(f"nuclei-weights: {path} is not a checkpoint of conceptkit's maskrcnn.") from None
    chosen = device_of(device)
    return MaskRCNN(network.to(chosen).eval(), float(about["mpp"]), chosen)


def device_of(name: str) -> torch.device:
    """Return a device by name; ``auto`` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"device: must be auto, cpu, cuda, …, got {name!r}.") from None


def _windows(length: int) -> list[tuple[int, tuple[float, float]]]:
    """Return where windows begin along a side, and from where to where each is trusted."""
    if length <= _TILE:
        return [(0, (-math.inf, math.inf))]
    number = math.ceil((length - 2 * _MARGIN) / (_TILE - 2 * _MARGIN))
    starts = np.linspace(0, length - _TILE, number).round().astype(int).tolist()
    cuts = [-math.inf, *((a + _TILE + b) / 2 for a, b in itertools.pairwise(starts)), math.inf]
    return [(start, (cuts[k], cuts[k + 1])) for k, start in enumerate(starts)]


def _draw(image: NDArray[np.uint8], labels: NDArray[np.integer], rng: np.random.Generator) -> Any:
    """Return a window as a tensor (3, h, w) and its nuclei as boxes, classes and masks; ``None`` without nuclei."""
    height, width = labels.shape
    top, left = (int(rng.integers(max(1, n - _TILE + 1))) for n in (height, width))
    part, drawn = (a[top : top + _TILE, left : left + _TILE] for a in (image, labels))
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    part, drawn = (np.rot90(a[:, ::-1] if mirror else a, turns) for a in (part, drawn))
    masks, boxes = [], []
    for label in np.unique(drawn[drawn > 0]):
        mask = drawn == label
        ys, xs = np.nonzero(mask)
        if len(ys) >= 12 and np.ptp(ys) > 1 and np.ptp(xs) > 1:
            masks.append(mask)
            boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    if not masks:
        return None
    target = {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "labels": torch.ones(len(masks), dtype=torch.int64),
        "masks": torch.from_numpy(_whole(np.stack(masks, axis=-1).astype(np.uint8), 0)).permute(2, 0, 1),
    }
    return _tensor(part.astype(np.uint8, copy=False)), target


def _tensor(part: NDArray[np.uint8]) -> torch.Tensor:
    """Return a window (h, w, 3) as the network takes it, (3, 256, 256) from 0 to 1."""
    return torch.from_numpy(_whole(part, 255)).permute(2, 0, 1).float().div(255)


def _whole(part: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    """Return a window (h, w, n) filled up to the right and below: torchvision would enlarge one that is smaller, and
    with it the nuclei beyond the size that they were trained at. Pixels are filled as glass, masks as background."""
    height, width = part.shape[:2]
    border = ((0, max(0, _TILE - height)), (0, max(0, _TILE - width)), (0, 0))
    return np.ascontiguousarray(np.pad(part, border, constant_values=value))


def _dice(found: NDArray[np.integer], drawn: NDArray[np.integer]) -> float:
    both, total = int(((found > 0) & (drawn > 0)).sum()), int((found > 0).sum() + (drawn > 0).sum())
    return 2 * both / total if total else 1.0
