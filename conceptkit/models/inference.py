"""One forward pass up to the deepest layer asked for, on a network prepared to be read."""

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

from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.families import POOLINGS
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone
from conceptkit.models.folding import prepared
from conceptkit.models.layouts import Enough, measure_views
from conceptkit.models.pooling import View, readable

AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Lower precisions that a forward pass may run in."""


@contextlib.contextmanager
def _taps(
    module: nn.Module, layers: Sequence[str], pool: str, views: Mapping[str, View], seen: dict[str, Tensor]
) -> Iterator[None]:
    """Hook ``layers`` so that their pooled outputs land in ``seen`` and the pass stops after the last of them."""
    pooling = POOLINGS[pool]

    def tap(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(own: nn.Module, inputs: Any, output: Any) -> None:
            seen[layer] = pooling(output, views[layer])
            if len(seen) == len(layers):
                raise Enough

        return hook

    handles = [module.get_submodule(layer).register_forward_hook(tap(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    if views is None:
        views = measure_views(module, layers, images)
        layers, skipped = readable(views, pool)
        for sentence in skipped:
            warnings.warn(sentence, stacklevel=2)
    seen: dict[str, Tensor] = {}
    with _taps(module, layers, pool, views, seen), torch.inference_mode(), contextlib.suppress(Enough):
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
        reason = str(error).strip().splitlines()[0]
        if "device type" in reason:  # torch then lists some twenty kinds of hardware
            reason = "known: auto, cpu, cuda, mps"
        raise InputError(f"device: {device!r} cannot be used ({reason}).") from None
    return chosen


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Keep a GPU's convolutions to float32 as IEEE has it (no TF32), by algorithms that do not change.

    TF32 keeps three digits: a network would have other activations where it is trained than where it is probed.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def forked_rng(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Leave the processor's and the device's sources of chance as they were, whatever is drawn within."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Reader:
    """A network prepared for reading some of its layers, always at one batch size.

    The network is copied, its batch normalisations are folded and its weights laid out as is fastest there. The copy is
    used only if it agrees with the plain network on noise, whatever the layers: else the plain network is read.

    Parameters
    ----------
    backbone : stays as it is
    layers : names or aliases, each once
    shape : height and width of the images in pixels
    pool : one of :data:`conceptkit.families.POOLINGS`
    batch_size : images per forward pass; fewer are padded, as another number would change the last bits
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
        """Dotted name → how it is read"""
        noise = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
        example = self._preprocessing(noise)
        self.widths = {layer: int(value.shape[1]) for layer, value in self._pass(backbone.module, example).items()}
        """Dotted name → values per image"""
        self.folded = 0
        """Batch normalisations that were folded"""
        self.module = self._prepared(backbone.module, example).to(self.device)
        """What is run"""

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
        with _refused_size(images):
            return pooled_activations(module, images, self.layers, pool=self._pool, views=self.views)


@contextlib.contextmanager
def _refused_size(images: Tensor) -> Iterator[None]:
    """Say in words that a user understands when a network refuses the size of the images."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = f"{images.shape[-1]}×{images.shape[-2]}"
        raise InputError(f"model: the network does not take patches of {size} pixels ({reason}).") from None


def views_of(backbone: Backbone, layers: Sequence[str], shape: tuple[int, int]) -> dict[str, View]:
    """Return how each layer of a network is read.

    Parameters
    ----------
    layers : dotted names
    shape : height and width of the patches in pixels

    Raises
    ------
    InputError
        when a layer cannot be read, or the network does not take images of that shape
    """
    images = backbone.preprocessing(np.zeros((1, *shape, 3), dtype=np.uint8))
    with _refused_size(images):
        return measure_views(backbone.module, layers, images)


def check_autocast(autocast: str | None) -> str | None:
    """Return ``autocast`` when it is known."""
    return None if autocast is None else check_choice("autocast", autocast, AUTOCAST)


VIEWS = 2
"""Version of :mod:`conceptkit.models.layouts`: activations of another version may be pooled over other axes."""


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
