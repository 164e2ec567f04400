"""The rows as a network's trained part sees them: the frozen part's output, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.guide.prefix import Pooled, cached, split
from conceptkit.models.backbones import Backbone, Preprocessing
from conceptkit.models.guided import GuidedModel
from conceptkit.models.inference import choose_device
from conceptkit.patches import Pixels

CACHES = ("exact", "fast", "off")
"""What is kept of the frozen part's output: all of it (float32), half of its digits (float16), or nothing"""


@dataclass(frozen=True)
class Inputs:
    """The rows as a network's trained part sees them."""

    tensors: tuple[Tensor, ...]
    """Each (n, …), on the CPU: the cut's values, or pixels (n, h, w, 3) uint8 where nothing is kept"""
    rest: nn.Module
    """From a batch of them to the tuple of features; it shares the network's weights"""
    preprocessing: Preprocessing | None = None
    """Of pixels; ``None`` where the tensors are the cut's"""
    scales: tuple[Tensor, ...] | None = None
    """(n,) each, of tensors that are kept as float16: a power of two per row, as activations may leave its range"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors of some rows, float32."""
        if self.preprocessing is not None:
            return (self.preprocessing(self.tensors[0][rows].numpy()).to(device),)
        if self.scales is None:
            return tuple(t[rows].to(device) for t in self.tensors)
        return tuple(
            t[rows].to(device).float() * _by_row(scale[rows].to(device), t)
            for t, scale in zip(self.tensors, self.scales, strict=True)
        )


def _halved(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``values`` (n, …) as float16 over a power of two per row, and the powers (n,)."""
    largest = values.flatten(1).abs().amax(1).clamp_min(1e-30)
    scale = torch.exp2(torch.ceil(torch.log2(largest)) - 14)  # the largest lies between 2¹³ and 2¹⁴
    return (values / _by_row(scale, values)).half(), scale


def _by_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (values.ndim - 1))


def prepare_inputs(
    model: GuidedModel,
    backbone: Backbone,
    pixels: Iterable[Pixels],
    *,
    batch_size: int,
    device: str = "auto",
    cache: str = "exact",
) -> Inputs:
    """Run the frozen part of a network once over all rows.

    Parameters
    ----------
    pixels : batches (≤ batch_size, h, w, 3); short ones are padded, so that every pass has one size
    cache : one of :data:`CACHES`; where nothing is frozen, or the network cannot be cut, nothing can be kept

    Returns
    -------
    inputs for this network, and through :func:`inputs_for` for others that are trained in the same place
    """
    parts = None if cache == "off" else split(model)
    if parts is None:
        whole = torch.from_numpy(np.concatenate(list(pixels)))
        return Inputs((whole,), Pooled(model), backbone.preprocessing)
    where = choose_device(device)
    prefix = parts[0].to(where).eval()
    collected: list[list[Tensor]] = []
    scales: list[list[Tensor]] = []
    for batch in pixels:
        padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        tensors = cached(prefix, backbone.preprocessing(padded).to(where))
        kept = [t[: len(batch)].cpu() for t in tensors]
        if cache == "fast":
            halves = [_halved(t) for t in kept]
            kept = [half for half, _ in halves]
            scales.append([scale for _, scale in halves])
        collected.append(kept)
    return Inputs(_joined(collected), parts[1], scales=_joined(scales) if scales else None)


def _joined(parts: list[list[Tensor]]) -> tuple[Tensor, ...]:
    # Tensors of inference mode cannot take part in training; clones can.
    return tuple(torch.cat(column).clone() for column in zip(*parts, strict=True))


def inputs_for(model: GuidedModel, inputs: Inputs) -> Inputs:
    """Return the same rows for another network, whose trained part begins where that of the first one does."""
    if inputs.preprocessing is not None:
        return Inputs(inputs.tensors, Pooled(model), inputs.preprocessing)
    parts = split(model)
    if parts is None:
        raise RuntimeError("the frozen part was kept for a network that can be cut; this one cannot")
    return Inputs(inputs.tensors, parts[1], scales=inputs.scales)
