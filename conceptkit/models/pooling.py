"""Pooling: from what a layer returns to one row per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from conceptkit._checks import InputError


@dataclass(frozen=True)
class Tokens:
    """What a transformer puts before its patch tokens."""

    prefix: int = 0
    """Class and register tokens, all before the patch tokens"""
    has_class: bool = False
    """Whether the first of them is a class token"""
    patches: int | None = None
    """Patch tokens, where the network states their number: a layer that returns just as many has no prefix"""

    @classmethod
    def of(cls, module: nn.Module) -> Tokens:
        """Return what a network states, itself or one inside it (a guided network's backbone)."""
        owner: Any = next((m for m in module.modules() if getattr(m, "num_prefix_tokens", None) is not None), None)
        if owner is None:
            return cls()
        patches = getattr(getattr(owner, "patch_embed", None), "num_patches", None)
        return cls(int(owner.num_prefix_tokens), getattr(owner, "cls_token", None) is not None, patches)

    def before(self, x: Tensor) -> int:
        """Return how many tokens of ``x`` (n, t, c) stand before the patch tokens."""
        return 0 if x.shape[1] == self.patches else self.prefix


def _gap(x: Tensor, tokens: Tokens) -> Tensor:
    """Mean over positions of maps (n, c, h, w), or over patch tokens (n, t, c)."""
    if x.ndim == 4:
        return x.mean((2, 3))
    return _tokens(x, tokens) if x.ndim == 3 else x.clone()


def _max(x: Tensor, tokens: Tokens) -> Tensor:
    """Maximum over positions of maps (n, c, h, w), or over patch tokens (n, t, c)."""
    if x.ndim == 4:
        return x.amax((2, 3))
    return x[:, tokens.before(x) :].amax(1) if x.ndim == 3 else x.clone()


def _flatten(x: Tensor, tokens: Tokens) -> Tensor:
    """Every value of the layer, in one row."""
    return x.flatten(1).clone()  # a copy, as a later layer may work in place


def _cls(x: Tensor, tokens: Tokens) -> Tensor:
    """The class token of (n, t, c)."""
    if x.ndim != 3 or not tokens.has_class or not tokens.before(x):
        raise InputError(f"pool: cls needs a class token, the layer gives {shape_text(x)} without one.")
    return x[:, 0].clone()


def _tokens(x: Tensor, tokens: Tokens) -> Tensor:
    """Mean over the patch tokens of (n, t, c), class and register tokens left out."""
    if x.ndim != 3:
        raise InputError(f"pool: tokens needs (n, tokens, width), the layer gives {shape_text(x)}.")
    return x[:, tokens.before(x) :].mean(1)


POOLINGS: Mapping[str, Callable[[Tensor, Tokens], Tensor]] = {
    "gap": _gap,
    "max": _max,
    "flatten": _flatten,
    "cls": _cls,
    "tokens": _tokens,
}
"""Pooling → function from a layer's output and what stands before its patch tokens to (n, d)."""


def shape_text(x: Tensor) -> str:
    """Return the shape of one image's output, such as 2048×5×5."""
    return "×".join(map(str, x.shape[1:]))
