"""The rows as a network's trained part sees them: the frozen part's output, computed once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.guide.prefix import Frozen, Pooled, cached, split
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone, Preprocessing
from conceptkit.models.guided import GuidedModel
from conceptkit.models.inference import choose_device, ieee_float32

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
    frozen: Frozen | None = None
    """Of pixels whose frozen part is run anew in every step: from images to the cut's values"""
    pass_size: int = 16
    """Images per pass through the frozen part, which is the same wherever it runs: another changes the last bits"""
    channels_last: bool = True
    """How the frozen part lays out images and weights"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors of some rows, float32."""
        if self.preprocessing is not None:
            pixels = self.tensors[0][rows].numpy()
            if self.frozen is None:
                return (self.preprocessing(pixels, device),)
            passes = [pixels[start : start + self.pass_size] for start in range(0, max(len(pixels), 1), self.pass_size)]
            frozen = self.frozen.to(device)
            parts = [_pass(frozen, self.preprocessing, own, self.pass_size, device) for own in passes]
            return tuple(torch.cat(column).clone() for column in zip(*parts, strict=True))
        if self.scales is None:
            return tuple(t[rows].to(device) for t in self.tensors)
        return tuple(
            t[rows].to(device).float().mul_(_by_row(scale[rows].to(device), t))
            for t, scale in zip(self.tensors, self.scales, strict=True)
        )


def pass_size(device: str) -> int:
    """Return how many images a pass through the frozen part has: 16 on a processor, in whose cache more do not fit."""
    return 32 if choose_device(device).type == "cuda" else 16


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
    where = choose_device(device)
    channels_last = where.type != "cuda"  # as for :class:`conceptkit.models.inference.Reader`, in float32
    pixels = iter(pixels)
    first = next(pixels)
    parts = None if cache == "off" else _cut(model, backbone.preprocessing, first.shape[1:3], channels_last)
    pixels = itertools.chain([first], pixels)
    if parts is None:
        whole = torch.from_numpy(np.concatenate(list(pixels)))
        return _of_pixels(model, whole, backbone.preprocessing, batch_size, channels_last)
    frozen, rest = parts
    frozen.to(where)
    collected: list[list[Tensor]] = []
    scales: list[list[Tensor]] = []
    for batch in pixels:
        with ieee_float32():
            kept = [t.cpu() for t in _pass(frozen, backbone.preprocessing, batch, batch_size, where)]
        if not all(torch.isfinite(t).all() for t in kept):
            raise InputError(
                f"model: the frozen part of {backbone.name} gives values that are not finite; its weights, or what it "
                "is normalised by, are to blame, and no option of training mends that."
            )
        if cache == "fast":
            halves = [_halved(t) for t in kept]
            kept = [half for half, _ in halves]
            scales.append([scale for _, scale in halves])
        collected.append(kept)
    frozen.to("cpu")  # with the network, where it shares its weights
    return Inputs(_joined(collected), rest, scales=_joined(scales) if scales else None)


@contextlib.contextmanager
def on_device(model: nn.Module, inputs: Inputs, device: str) -> Iterator[torch.device]:
    """Have a network and what its inputs run through in evaluation on a device; afterwards they are on the CPU."""
    where = choose_device(device)
    for module in (model, inputs.rest):
        module.eval().to(where)
    try:
        with ieee_float32():
            yield where
    finally:
        for module in (model, inputs.rest):
            module.to("cpu")


def _pass(
    frozen: Frozen, preprocessing: Preprocessing, pixels: Pixels, size: int, device: torch.device
) -> list[Tensor]:
    """Return the frozen part's values of n ≤ size images, from a pass of ``size``."""
    # One of several processes may have no row of a small batch, and still takes part in it.
    last = pixels[-1:] if len(pixels) else np.zeros((1, *pixels.shape[1:]), pixels.dtype)
    padded = np.concatenate([pixels, np.repeat(last, size - len(pixels), axis=0)])
    return [t[: len(pixels)].contiguous() for t in frozen(preprocessing(padded, device))]


def _cut(
    model: GuidedModel, preprocessing: Preprocessing, shape: Sequence[int], channels_last: bool
) -> tuple[Frozen, nn.Module] | None:
    """Return the frozen part as it is run, tried on noise, and the rest; ``None`` where the network cannot be cut."""
    parts = split(model)
    if parts is None:
        return None
    noise = preprocessing(np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8))
    values: list[Any] = list(cached(parts[0].eval(), noise))
    if not all(isinstance(v, Tensor) and v.is_floating_point() and v.ndim and len(v) == len(noise) for v in values):
        return None  # sizes, or what is no row's value, lie at the cut
    return Frozen(parts[0], noise, channels_last=channels_last), parts[1]


def _of_pixels(
    model: GuidedModel, pixels: Tensor, preprocessing: Preprocessing, pass_size: int, channels_last: bool
) -> Inputs:
    """Return inputs of which nothing is kept; what is frozen still runs as it does where it is kept."""
    parts = _cut(model, preprocessing, pixels.shape[1:3], channels_last)
    frozen, rest = (None, Pooled(model)) if parts is None else parts
    return Inputs((pixels,), rest, preprocessing, frozen=frozen, pass_size=pass_size, channels_last=channels_last)


def _joined(parts: list[list[Tensor]]) -> tuple[Tensor, ...]:
    # Tensors of inference mode cannot take part in training; clones can.
    return tuple(torch.cat(column).clone() for column in zip(*parts, strict=True))


def inputs_for(model: GuidedModel, inputs: Inputs) -> Inputs:
    """Return the same rows for another network, whose trained part begins where that of the first one does."""
    if inputs.preprocessing is not None:
        return _of_pixels(model, inputs.tensors[0], inputs.preprocessing, inputs.pass_size, inputs.channels_last)
    parts = split(model)
    if parts is None:
        raise RuntimeError("the frozen part was kept for a network that can be cut; this one cannot")
    return Inputs(inputs.tensors, parts[1], scales=inputs.scales)
