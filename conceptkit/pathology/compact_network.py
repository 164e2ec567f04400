"""A small U-Net for nuclei: its layers, its targets and its loss."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = (24, 48, 96, 144)
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the image's size."""

STRIDE = 16
"""Sides that the network takes are multiples of this."""


def _block(before: int, after: int, number: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(number):
        layers += [
            nn.Conv2d(before if index == 0 else after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class CompactNetwork(nn.Module):
    """From images (n, 3, h, w), 0 to 1, to maps (n, 2 + types, h, w): logits of nucleus, of depth inside it, of types.

    It works at half the image's size and below: four neighbouring pixels enter as channels, and leave as such. Depth is
    the distance to the nucleus' rim as a share of its largest in that nucleus (Naylor et al. 2018, normalised).
    """

    def __init__(self, types: int = 0, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip((12, *widths[:-1]), widths, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(deep, shallow, 1) for shallow, deep in itertools.pairwise(widths))
        self.up = nn.ModuleList(_block(width, width, 1) for width in widths[:-1])
        self.maps = nn.Conv2d(widths[0], 8, 1)
        self.types = nn.Conv2d(widths[0], types, 1) if types else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps of images whose sides are multiples of :data:`STRIDE`."""
        x = functional.pixel_unshuffle(images, 2)
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = functional.interpolate(self.narrow[level](x), scale_factor=2, mode="nearest")
            x = self.up[level](x + kept[level])
        maps = functional.pixel_shuffle(self.maps(x), 2)
        if self.types is None:
            return maps
        return torch.cat([maps, functional.interpolate(self.types(x), scale_factor=2, mode="nearest")], dim=1)


def folded(network: CompactNetwork) -> CompactNetwork:
    """Return a copy in evaluation mode whose normalisations are part of the convolutions before them."""
    out = copy.deepcopy(network).eval()
    for block in (*out.down, *out.up):
        for index in range(0, len(block), 3):
            block[index] = fuse_conv_bn_eval(block[index], block[index + 1])
            block[index + 1] = nn.Identity()
    return out


def depth_of(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return how deep each pixel of labels (h, w) lies in its nucleus: 1 at the deepest, 0 outside."""
    if not labels.any():
        return np.zeros(labels.shape, dtype=np.float32)
    cut = np.zeros(labels.shape, dtype=np.bool_)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        first = [slice(None), slice(None)]
        second = [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        cut[tuple(first)] |= differs
        cut[tuple(second)] |= differs
    distance = ndimage.distance_transform_edt((labels > 0) & ~cut).astype(np.float32) + np.float32(0.5)
    most = np.zeros(int(labels.max()) + 1, dtype=np.float32)
    np.maximum.at(most, labels.ravel(), distance.ravel())
    most[0] = np.inf
    return np.asarray(distance / most[labels], dtype=np.float32)


def type_loss_of(maps: Tensor, kinds: Tensor) -> Tensor:
    """Return the cross-entropy of the maps of types (n, types, h, w) where the type is known.

    ``kinds`` (n, h, w) has the number of the type from 1, and 0 where there is none. All types that are present weigh
    the same, however many their pixels.
    """
    here = (kinds > 0).flatten()
    logits = maps.float().permute(0, 2, 3, 1).flatten(0, 2)[here]
    truth = kinds.flatten()[here].long() - 1
    if not len(truth):
        return maps.sum() * 0
    numbers = torch.bincount(truth, minlength=maps.shape[1])
    weight = 1 / numbers.clamp(min=1).float()
    return functional.cross_entropy(logits, truth, weight=weight)


def loss_of(maps: Tensor, inside: Tensor, depth: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the loss of maps (n, 2 or more, h, w) against nucleus or not and depth, (n, h, w) each.

    Cross-entropy and Dice of the nuclear pixels, and cross-entropy of the depth, which counts double inside nuclei.
    ``known`` (n, h, w) is 0 where the truth is not known.
    """
    weight = torch.ones_like(inside) if known is None else known
    total = weight.sum().clamp(min=1)
    nucleus = maps[:, 0].float()
    cross = functional.binary_cross_entropy_with_logits(nucleus, inside, reduction="none")
    share = nucleus.sigmoid() * weight
    dice = 1 - (2 * (share * inside).sum() + 1) / (share.sum() + (inside * weight).sum() + 1)
    deep = functional.binary_cross_entropy_with_logits(maps[:, 1].float(), depth, reduction="none")
    return (cross * weight).sum() / total + dice + (deep * weight * (1 + inside)).sum() / total
