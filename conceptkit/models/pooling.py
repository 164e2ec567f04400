"""Pooling: from what a layer returns to one row per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conceptkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class View:
    """Axes of a layer's output, as :func:`conceptkit.models.layouts.measure_views` finds them."""

    channels: int | None = None
    """Axis of the channels; ``None`` for one row per image, (n, d) or (n,), and where it is not clear"""
    prefix: int = 0
    """Class and register tokens, all before the patch tokens"""
    has_class: bool = False
    """Whether the first of them is the class token"""
    unclear: str = ""
    """Why positions and channels cannot be distinguished; only ``flatten`` can read such a layer"""
    note: str = ""
    """What was inferred"""

    def channels_first(self, x: Tensor) -> Tensor:
        """Return maps as (n, c, …), a view; tokens (n, t, c) stay as they are."""
        return x if self.channels is None or x.ndim < 4 else x.movedim(self.channels, 1)

    def patches(self, x: Tensor) -> Tensor:
        """Return what ``gap`` and ``max`` pool: (n, c, …) of maps, (n, c, t) of tokens; a view."""
        if self.channels is None:
            raise InputError(f"layer: {self.unclear}.")
        return x.movedim(self.channels, 1)[..., self.prefix :] if x.ndim == 3 else x.movedim(self.channels, 1)


def readable(views: Mapping[str, View], pool: str) -> tuple[list[str], list[str]]:
    """Return the layers that a pooling can read, and a sentence on each of the others.

    Raises
    ------
    InputError
        when there is no other layer
    """
    unclear = {layer: view.unclear for layer, view in views.items() if view.unclear and pool != "flatten"}
    if views and len(unclear) == len(views):
        raise InputError(f"layer: {next(iter(unclear.values()))}.")
    return [layer for layer in views if layer not in unclear], [f"Skipped: {why}." for why in unclear.values()]


def mean(x: Tensor, view: View) -> Tensor:
    """Return the mean over positions of maps, or over patch tokens."""
    return _row(x) if x.ndim <= 2 else view.patches(x).mean(tuple(range(2, x.ndim)))


def maximum(x: Tensor, view: View) -> Tensor:
    """Return the maximum over positions of maps, or over patch tokens."""
    return _row(x) if x.ndim <= 2 else view.patches(x).amax(tuple(range(2, x.ndim)))


def flatten(x: Tensor, view: View) -> Tensor:
    """Return every value of the layer, in one row."""
    return view.channels_first(x).flatten(1).clone() if x.ndim > 1 else _row(x)


def class_token(x: Tensor, view: View) -> Tensor:
    """Return the class token of (n, t, c)."""
    if view.unclear:
        raise InputError(f"layer: {view.unclear}.")
    if x.ndim != 3 or not view.has_class:
        raise InputError(f"pool: cls needs a class token, the layer gives {shape_text(x)} without one.")
    return x.select(1 if view.channels == 2 else 2, 0).clone()


def token_mean(x: Tensor, view: View) -> Tensor:
    """Return the mean over the patch tokens of (n, t, c), without class and register tokens."""
    if x.ndim != 3:
        raise InputError(f"pool: tokens needs (n, tokens, width), the layer gives {shape_text(x)}.")
    return mean(x, view)


def class_and_tokens(x: Tensor, view: View) -> Tensor:
    """Return the class token, then the mean over the patch tokens: (n, 2c) of (n, t, c)."""
    return torch.cat([class_token(x, view), token_mean(x, view)], dim=1)


def _row(x: Tensor) -> Tensor:
    """Return (n, d) of (n, d) or (n,), copied, as a later layer may work in place."""
    return x.clone().view(len(x), -1)


def shape_text(x: Tensor) -> str:
    """Return the shape of one image's output, such as 2048×5×5."""
    return "×".join(map(str, x.shape[1:]))
