"""Recipes: named sets of training options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conceptkit.families import RECIPES
from conceptkit.models.backbones import Backbone
from conceptkit.models.layers import last_block

PAPER_CONVOLUTIONS: Mapping[str, tuple[str, ...]] = {
    "inception_v3": tuple(
        f"Mixed_7c.{branch}.conv"
        for branch in ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b")
    ),
    "resnet50": ("layer4.2.conv3",),
}
"""Architecture → the convolutions that the paper trains: in InceptionV3 Keras' conv2d_86, 88, 89, 92 and 93"""

_SHARED: Mapping[str, Any] = {
    "trunk": (2048, 512, 256),
    "dropout": 0.8,
    "l2": 0.01,
    "optimizer": "sgd",
    "lr": 1e-4,
    "momentum": 0.9,
    "nesterov": True,
    "epochs": 100,
    "batch_size": 32,
    "method": "reversal",
    "strength": 1.0,
    "balance": False,
    "balance_main": 0.0,
    "stop_by": "sum",
}


def ours(discouraged: Sequence[str]) -> dict[str, Any]:
    """Return nothing: the defaults are the options."""
    return {}


def paper(discouraged: Sequence[str]) -> dict[str, Any]:
    """Return the options of the method as printed (Graziani et al.)."""
    return {**_SHARED, "patience": 5, "weighting": "uncertainty", "reversal": "constant", "warmup": 0}


def paper_code(discouraged: Sequence[str]) -> dict[str, Any]:
    """Return the options of the code that the paper's authors released."""
    weighting = ",".join(["uncertainty", *(f"{name}=uncertainty-full" for name in discouraged)])
    return {
        **_SHARED,
        "patience": 10,
        "weighting": weighting,
        "reversal": "switched",
        "warmup": 80,
        "reset_weights": True,
    }


def recipe_options(recipe: str, backbone: Backbone, discouraged: Sequence[str]) -> dict[str, Any]:
    """Return the training options that a recipe sets for a network, with the layers to unfreeze.

    ``ours`` only unfreezes the last block. ``paper`` is the method as printed (Graziani et al.); where the text
    contradicts itself, its parameter count decides. ``paper-code`` is the method as its authors released it. For
    architectures that the paper does not use, both unfreeze the last block.
    """
    options = RECIPES.choose("recipe", recipe)(discouraged)
    block = last_block(backbone.module, backbone.architecture)
    unfreeze: tuple[str, ...] = (block,) if block else ()
    if recipe != "ours":
        unfreeze = PAPER_CONVOLUTIONS.get(backbone.architecture.split(".")[0], unfreeze)
    return {"unfreeze": unfreeze, **options}
