"""Building the network that is trained: backbone, trunk and heads, with the trained parameters set."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.families import DISCOURAGING
from conceptkit.models.backbones import Backbone
from conceptkit.models.guided import MAIN, GuidedModel, Task, layer_width
from conceptkit.options.training import TrainingOptions


def build_model(
    backbone: Backbone,
    tasks: Sequence[Task],
    options: TrainingOptions,
    *,
    seed: int,
    origin: GuidedModel | None = None,
) -> GuidedModel:
    """Build a guided network on a copy of ``backbone`` and set which parameters are trained.

    Trunk and main head of two networks with the same seed start alike, whatever other heads they have.

    Parameters
    ----------
    seed : of the initial weights of trunk and heads
    origin : a guided network on this backbone whose trunk and heads are kept; its trunk must be that of the options
    """
    if origin is not None and tuple(options.trunk) != origin.trunk_widths:
        raise InputError(f"trunk: the checkpoint has {origin.trunk_widths}, got {options.trunk}.")
    own = copy.deepcopy(backbone.module)
    layers = [backbone.layer(name) for name in options.unfreeze]
    ordered = [
        dataclasses.replace(task, layer=None if task.layer is None else backbone.layer(task.layer))
        for task in sorted(tasks, key=lambda t: t.name != MAIN)
    ]
    size = backbone.preprocessing.size or 224
    widths = {t.layer: layer_width(own, t.layer, size=size) for t in ordered if t.layer is not None}
    erases = DISCOURAGING[options.method].erases and any(task.adversarial for task in ordered)
    if origin is not None and origin.erasure is not None:
        erases = True  # its heads were trained behind the erasure
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GuidedModel(
            own,
            _width(backbone),
            ordered,
            trunk=options.trunk,
            dropout=options.dropout,
            widths=widths,
            erases=erases,
        )
    if origin is not None:
        model.trunk.load_state_dict(origin.trunk.state_dict())
        if model.erasure is not None and origin.erasure is not None:
            model.erasure.load_state_dict(origin.erasure.state_dict())
        kept = {task.name: task for task in origin.tasks}
        for task in ordered:
            behind = task.name == MAIN and bool(model.through)  # reads predicted concepts, as no checkpoint before did
            if task.name in kept and kept[task.name].layer == task.layer and not behind:
                model.heads[task.name].load_state_dict(origin.heads[task.name].state_dict())
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    for layer in layers:
        for module in own.get_submodule(layer).modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
    return model.eval()


def _width(backbone: Backbone) -> int:
    """Return the number of pooled features of a backbone."""
    width = getattr(backbone.module, "head_hidden_size", None) or getattr(backbone.module, "num_features", None)
    if width is None or not hasattr(backbone.module, "forward_head"):
        raise InputError(f"model: {backbone.name} has no pooled features to build a trunk on (no forward_head).")
    return int(width)
