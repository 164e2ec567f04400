"""Pooled activations from forward passes that end after the deepest layer needed."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.errors import InputError, check_at_least, check_choice, reason_of
from conceptkit.families import POOLINGS
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone
from conceptkit.models.folding import prepared
from conceptkit.models.layouts import Enough, hooked, measure_views, refused_size
from conceptkit.models.pooling import View, readable

AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Lower precisions of forward passes."""


def pooled_activations(
    module: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    *,
    pool: str = "gap",
    views: Mapping[str, View] | None = None,
) -> dict[str, Tensor]:
    """Run one forward pass up to the deepest of ``layers``.

    Parameters
    ----------
    module : network in evaluation mode
    images : (n, 3, h, w) normalised
    layers : dotted module names, each once
    pool : one of :data:`conceptkit.families.POOLINGS`
    views : layer → how it is read, of images of that size; measured when not given, and of several layers those that
        cannot be pooled are then left out with a warning

    Returns
    -------
    layer → (n, d) float32

    Raises
    ------
    InputError
        when a layer did not run, does not return one tensor with a row per image, or cannot be pooled this way
    """
    known = measure_views(module, layers, images) if views is None else views
    if views is None:
        layers, skipped = readable(known, pool)
        for sentence in skipped:
            warnings.warn(sentence, stacklevel=2)
    seen: dict[str, Tensor] = {}

    def tap(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(own: nn.Module, inputs: Any, output: Any) -> None:
            seen[layer] = POOLINGS[pool](output, known[layer])
            if len(seen) == len(layers):
                raise Enough

        return hook

    with hooked(module, tap, layers), torch.inference_mode(), contextlib.suppress(Enough):
        module(images)
    for layer, value in seen.items():
        if len(value) != len(images):
            raise InputError(
                f"layer: {layer} returns {len(value)} rows for {len(images)} images, not one per image; name the block "
                "around it."
            )
    return {layer: seen[layer].float() for layer in layers}


def choose_device(device: str) -> torch.device:
    """Return the device named ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = reason_of(error)
        if "device type" in reason:  # torch then lists some twenty kinds of hardware
            reason = "known: auto, cpu, cuda, mps"
        raise InputError(f"device: {device!r} cannot be used ({reason}).") from None
    return chosen


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Run a GPU's convolutions in IEEE float32 (no TF32, which keeps three digits) with deterministic algorithms."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def forked_rng(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restore the random states of CPU and device afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Reader:
    """A network prepared to read some of its layers, always at one batch size.

    A copy with folded normalisations and the device's fastest layout is read where it agrees with the network on noise.

    Parameters
    ----------
    backbone : not changed
    layers : names or aliases, each once
    shape : height and width of the images in pixels
    pool : one of :data:`conceptkit.families.POOLINGS`
    batch_size : images per forward pass; fewer are padded, because another number would change the last bits
    device : ``auto``, ``cpu``, ``cuda``, …
    autocast : ``None`` for float32, or ``bf16`` or ``fp16``

    Raises
    ------
    InputError
        when a layer cannot be read, or the network does not take images of that shape
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[str],
        shape: tuple[int, int],
        *,
        pool: str = "gap",
        batch_size: int = 16,
        device: str = "auto",
        autocast: str | None = None,
    ) -> None:
        POOLINGS.check("pool", pool)
        check_at_least("batch_size", batch_size, 1)
        self.layers = list(dict.fromkeys(backbone.layer(layer) for layer in layers))
        """Dotted names"""
        self.batch_size = batch_size
        self._pool = pool
        self._autocast = check_autocast(autocast)
        self._preprocessing = backbone.preprocessing
        self.device = choose_device(device)
        """Where the network runs"""
        # On an H200 InceptionV3 in float32 reads 3,936 images a second channels first and 3,345 channels last.
        first = self.device.type == "cuda" and autocast is None
        self._format = torch.contiguous_format if first else torch.channels_last
        self.views = views_of(backbone, self.layers, shape)
        """Dotted name → axes of its output"""
        noise = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
        example = self._preprocessing(noise)
        self.widths = {layer: int(value.shape[1]) for layer, value in self._pass(backbone.module, example).items()}
        """Dotted name → values per image"""
        self.folded = 0
        """Number of folded batch normalisations"""
        self.module = self._prepared(backbone.module, example).to(self.device)
        """The network that runs"""

    def _prepared(self, module: nn.Module, example: Tensor) -> nn.Module:
        def run(network: nn.Module, images: Tensor) -> list[Tensor]:
            return list(pooled_activations(network, images, self.layers, pool=self._pool, views=self.views).values())

        found = prepared(module, run, example, keep=self.layers, layout=self._format)
        if found is None:
            return copy.deepcopy(module) if self.device.type != "cpu" else module
        ready, self.folded = found
        return ready

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self._format)

    def __call__(self, pixels: Pixels) -> dict[str, NDArray[np.float32]]:
        """Return dotted name → (n, d) float32 of n ≤ batch_size images (n, h, w, 3) uint8."""
        n = len(pixels)
        if n < self.batch_size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch_size - n, axis=0)])
        images = self._preprocessing(pixels, self.device)
        with self._precision():
            found = self._pass(self.module, self._laid_out(images))
        return {layer: value[:n].cpu().numpy() for layer, value in found.items()}

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with ieee_float32(), contextlib.ExitStack() as stack:
            if self._autocast is not None:
                stack.enter_context(torch.autocast(self.device.type, dtype=AUTOCAST[self._autocast]))
            yield

    def _pass(self, module: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Run :func:`pooled_activations`."""
        with refused_size(images):
            return pooled_activations(module, images, self.layers, pool=self._pool, views=self.views)


def views_of(backbone: Backbone, layers: Sequence[str], shape: tuple[int, int]) -> dict[str, View]:
    """Return the axes of each layer's output, by dotted name, for images of height and width ``shape``.

    Raises
    ------
    InputError
        when a layer cannot be read, or the network does not take images of that shape
    """
    images = backbone.preprocessing(np.zeros((1, *shape, 3), dtype=np.uint8))
    with refused_size(images):
        return measure_views(backbone.module, layers, images)


def check_autocast(autocast: str | None) -> str | None:
    """Return ``autocast`` if it is ``None`` or one of :data:`AUTOCAST`."""
    return None if autocast is None else check_choice("autocast", autocast, AUTOCAST)


VIEWS = 2
"""Version of :mod:`conceptkit.models.layouts`; another version may have pooled over other axes."""


def provenance(
    backbone: Backbone, layers: Sequence[str], *, pool: str, batch_size: int, autocast: str | None
) -> dict[str, Any]:
    """Return what activations depend on beside the pixels."""
    return {
        "architecture": backbone.architecture,
        "weights": backbone.fingerprint(),
        "preprocessing": asdict(backbone.preprocessing),
        "layers": [backbone.layer(layer) for layer in layers],
        "pool": POOLINGS.check("pool", pool),
        "views": VIEWS,
        "batch_size": batch_size,
        "autocast": check_autocast(autocast),
    }
