"""Names of layers: dotted module names, and aliases from papers and Keras."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError, near_names
from conceptkit.models.layouts import hooked, refused_size

INCEPTION_V3 = {
    "mixed0": "Mixed_5b",
    "mixed1": "Mixed_5c",
    "mixed2": "Mixed_5d",
    "mixed3": "Mixed_6a",
    "mixed4": "Mixed_6b",
    "mixed5": "Mixed_6c",
    "mixed6": "Mixed_6d",
    "mixed7": "Mixed_6e",
    "mixed8": "Mixed_7a",
    "mixed9": "Mixed_7b",
    "mixed10": "Mixed_7c",
}
"""Keras' names of the InceptionV3 blocks → timm's modules."""


def _inception(module: nn.Module) -> Mapping[str, str]:
    return INCEPTION_V3


def _resnet(module: nn.Module) -> Mapping[str, str]:
    """Return Keras' ``conv{stage}_block{n}_out`` for the blocks of ``layer1`` … ``layer4``."""
    blocks = {"conv1_relu": "act1", "pool1_pool": "maxpool"}
    for stage in range(1, 5):
        for number, _ in enumerate(getattr(module, f"layer{stage}", ())):
            blocks[f"conv{stage + 1}_block{number + 1}_out"] = f"layer{stage}.{number}"
    return blocks


ALIASES: Mapping[str, Callable[[nn.Module], Mapping[str, str]]] = {
    r"inception_v3(\..*)?": _inception,
    r"(wide_)?res(net|next)\d+.*": _resnet,
}
"""Pattern of an architecture's name → function from the network to its aliases (alias → dotted name)."""


def aliases(module: nn.Module, architecture: str) -> dict[str, str]:
    """Return alias → dotted module name of a network's layers."""
    modules = dict(module.named_modules())
    found: dict[str, str] = {}
    for pattern, names in ALIASES.items():
        if re.fullmatch(pattern, architecture):
            found |= {alias: name for alias, name in names(module).items() if name in modules}
    return found


def resolve_layer(module: nn.Module, known: Mapping[str, str], layer: str) -> str:
    """Return the dotted name of a layer given by it or by an alias in ``known``; refuse others with near names."""
    name = known.get(layer, layer)
    modules = [n for n, _ in module.named_modules() if n]
    if name not in modules:
        outer = [n for n in modules if n.count(".") < 2]  # stages and their blocks, in most networks
        raise InputError(f"layer: the network has no layer {layer!r}; {near_names(layer, [*known, *outer])}.")
    return name


def last_block(module: nn.Module, architecture: str) -> str | None:
    """Return the dotted name of the last block before pooling; ``None`` where the architecture does not state it.

    It is the last block with weights in the last stage of timm's ``feature_info``; if that stage has no weights (an
    activation, a normalisation), in the module before it.
    """
    if architecture == "mini_inception":
        return "mixed10"
    known = aliases(module, architecture)
    if known:
        return known[list(known)[-1]]
    stage = _last_stage(module)
    return None if stage is None else _last_inside(module, stage)


def _last_stage(module: nn.Module) -> str | None:
    """Return the dotted name of the last stage with weights that a timm network states."""
    info: Any = getattr(module, "feature_info", None)
    stages = list(getattr(info, "info", info) or ())
    if not stages:
        return None
    stated, names = str(stages[-1]["module"]), [name for name, _ in module.named_modules() if name]
    if stated not in names:  # timm writes block.3 of stages.3 and blocks.3, and leaves out an outer module
        first, _, rest = stated.partition(".")
        others = (f"{first}s.{rest}", f"stages.{rest}", *(n for n in names if n.endswith(f".{stated}")))
        stated = next((name for name in others if name in names), "")
    if not stated:
        return None
    outer, _, own = stated.rpartition(".")
    before = [name for name, _ in module.get_submodule(outer).named_children()]
    candidates = [f"{outer}.{n}" if outer else n for n in before[: before.index(own) + 1]]
    return next((name for name in reversed(candidates) if has_weights(module.get_submodule(name))), None)


def _last_inside(module: nn.Module, name: str) -> str:
    """Return the dotted name of the last block of a stage, which is a list of blocks or a module that holds one."""
    own: Any = module.get_submodule(name)
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for held in ("blocks", "transformer_encoder"):
        if isinstance(blocks := getattr(own, held, None), lists) and has_weights(blocks):
            return _last_inside(module, f"{name}.{held}")
    if not isinstance(own, lists) and not type(own).__name__.endswith("Stage"):
        return name
    last = next(child for child, part in reversed(list(own.named_children())) if has_weights(part))
    if not any(True for _ in own.get_submodule(last).children()):  # a convolution: the list is the block itself
        return name
    return _last_inside(module, f"{name}.{last}")


def has_weights(module: nn.Module) -> bool:
    """Return whether a module has weights other than those of normalisations, which are one number per channel."""
    return any(p.ndim > 1 for p in module.parameters())


@dataclass(frozen=True, kw_only=True)
class NamedLayer:
    """A layer of a network in a forward pass."""

    name: str
    """Dotted"""
    aliases: tuple[str, ...]
    kind: str
    """Class of the module"""
    shape: tuple[int, ...] | None
    """Of one image's output; ``None`` when it is not one tensor and cannot be read"""
    returns: str
    """Class of what it returns"""


def list_layers(module: nn.Module, known: Mapping[str, str], images: Tensor) -> list[NamedLayer]:
    """Return the layers of a network in the order in which they finish.

    Parameters
    ----------
    known : alias → dotted name
    images : (1, 3, h, w) normalised
    """
    by_layer = {own: tuple(a for a, n in known.items() if n == own and a != own) for own in known.values()}
    found: dict[str, NamedLayer] = {}

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(own: nn.Module, inputs: Any, output: Any) -> None:
            shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
            found[name] = NamedLayer(
                name=name,
                aliases=by_layer.get(name, ()),
                kind=type(own).__name__,
                shape=shape,
                returns=type(output).__name__,
            )

        return hook

    with hooked(module, look), refused_size(images), torch.inference_mode():
        module(images)
    return list(found.values())
