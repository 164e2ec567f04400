"""The inputs of the trained part of a network: the output of the frozen part, computed once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.guide.prefix import Frozen, Pooled, cached, split
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone, Preprocessing
from conceptkit.models.guided import GuidedModel
from conceptkit.models.inference import choose_device, ieee_float32

CACHES = ("exact", "fast", "off")
"""How the output of the frozen part is cached: as float32, as float16, or not at all"""


@dataclass(frozen=True)
class Inputs:
    """The rows as the trained part of a network sees them."""

    tensors: tuple[Tensor, ...]
    """Each (n, …), on the CPU: outputs of the frozen part, or pixels (n, h, w, 3) uint8 if nothing is cached"""
    rest: nn.Module
    """The trained part, from a batch of them to the tuple of features; it shares the network's weights"""
    preprocessing: Preprocessing | None = None
    """Of pixels; ``None`` if the tensors are outputs of the frozen part"""
    scales: tuple[Tensor, ...] | None = None
    """(n,) each, of float16 tensors: a power of two per row, as activations may exceed the range of float16"""
    frozen: Frozen | None = None
    """The frozen part, if it runs in every step"""
    pass_size: int = 16
    """Images per pass through the frozen part; another size changes the last bits"""
    channels_last: bool = True
    """Memory layout of images and weights in the frozen part"""
    copies: Tensor | None = None
    """(n, k) for each row the rows of its copies, itself where it has none; copies come after the n rows"""

    def versions(self, *seeds: int) -> Tensor | None:
        """Return for each row (n,) itself or one of its copies at random, alike for the same seeds; or ``None``."""
        if self.copies is None:
            return None
        choices = torch.cat([torch.arange(len(self.copies))[:, None], self.copies], dim=1)
        drawn = np.random.default_rng(seeds).integers(0, choices.shape[1], len(choices))
        return choices[torch.arange(len(choices)), torch.from_numpy(drawn)]

    def only(self, at: NDArray[np.intp]) -> Inputs:
        """Return the rows at some positions (m,), with their copies; nothing of the tensors is copied."""
        place = torch.from_numpy(at)
        copies = None if self.copies is None else self.copies[place]
        if copies is not None:
            place = torch.cat([place, copies.flatten()])
            copies = len(at) + torch.arange(copies.numel()).reshape(copies.shape)
        return SomeInputs((torch.empty(len(place), 0),), self.rest, copies=copies, whole=self, place=place)

    def with_copies(self, k: int) -> Inputs:
        """Return the rows with ``k`` of their copies each; without any they are the only rows."""
        if self.copies is None:
            return self
        if k:
            return replace(self, copies=self.copies[:, :k])
        n = len(self.copies)
        scales = None if self.scales is None else tuple(scale[:n] for scale in self.scales)
        return replace(self, tensors=tuple(t[:n] for t in self.tensors), scales=scales, copies=None)

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


@dataclass(frozen=True, kw_only=True)
class SomeInputs(Inputs):
    """Some of the rows of other inputs."""

    whole: Inputs
    place: Tensor
    """(m,) their positions there, then those of their copies"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors of some rows, float32."""
        return self.whole.batch(self.place[rows], device)


def pass_size(device: str) -> int:
    """Return the images per pass through the frozen part: 16 on a CPU, whose cache holds no more."""
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
    """Run the frozen part of a network once over all rows; :func:`inputs_for` gives the inputs of other networks.

    Parameters
    ----------
    pixels : batches (≤ batch_size, h, w, 3); short ones are padded, so that all passes have one size
    cache : one of :data:`CACHES`; ignored if nothing is frozen, or the network cannot be split
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
                f"model: the frozen part of {backbone.name} returns values that are not finite; check its weights and "
                "its preprocessing, as no training option can change that."
            )
        if cache == "fast":
            halves = [_halved(t) for t in kept]
            kept = [half for half, _ in halves]
            scales.append([scale for _, scale in halves])
        collected.append(kept)
    frozen.to("cpu")  # it may share the weights of the network
    return Inputs(_joined(collected), rest, scales=_joined(scales) if scales else None)


@contextlib.contextmanager
def on_device(model: nn.Module, inputs: Inputs, device: str) -> Iterator[torch.device]:
    """Move a network and the module of its inputs to a device in evaluation mode, and back to the CPU at the end."""
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
    """Return the outputs of the frozen part for n ≤ size images, from a pass of ``size``."""
    # One of several processes may have no row of a small batch.
    last = pixels[-1:] if len(pixels) else np.zeros((1, *pixels.shape[1:]), pixels.dtype)
    padded = np.concatenate([pixels, np.repeat(last, size - len(pixels), axis=0)])
    return [t[: len(pixels)].contiguous() for t in frozen(preprocessing(padded, device))]


def _cut(
    model: GuidedModel, preprocessing: Preprocessing, shape: Sequence[int], channels_last: bool
) -> tuple[Frozen, nn.Module] | None:
    """Return the frozen part, tried on noise, and the trained one; ``None`` if the network cannot be split."""
    parts = split(model)
    if parts is None:
        return None
    noise = preprocessing(np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8))
    values: list[Any] = list(cached(parts[0].eval(), noise))
    if not all(isinstance(v, Tensor) and v.is_floating_point() and v.ndim and len(v) == len(noise) for v in values):
        return None  # sizes, or values that do not belong to a row, cross the boundary
    return Frozen(parts[0], noise, channels_last=channels_last), parts[1]


def _of_pixels(
    model: GuidedModel, pixels: Tensor, preprocessing: Preprocessing, pass_size: int, channels_last: bool
) -> Inputs:
    """Return inputs without a cache; the frozen part still runs as it does with one."""
    parts = _cut(model, preprocessing, pixels.shape[1:3], channels_last)
    frozen, rest = (None, Pooled(model)) if parts is None else parts
    return Inputs((pixels,), rest, preprocessing, frozen=frozen, pass_size=pass_size, channels_last=channels_last)


def _joined(parts: list[list[Tensor]]) -> tuple[Tensor, ...]:
    # Inference tensors cannot be trained on; clones can.
    return tuple(torch.cat(column).clone() for column in zip(*parts, strict=True))


def inputs_for(model: GuidedModel, inputs: Inputs) -> Inputs:
    """Return the same rows for another network whose trained part begins at the same layer."""
    if inputs.preprocessing is not None:
        found = _of_pixels(model, inputs.tensors[0], inputs.preprocessing, inputs.pass_size, inputs.channels_last)
        return replace(found, copies=inputs.copies)
    parts = split(model)
    if parts is None:
        raise RuntimeError("the cache is of a network that can be split; this one cannot")
    return Inputs(inputs.tensors, parts[1], scales=inputs.scales, copies=inputs.copies)
