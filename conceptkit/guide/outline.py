"""What is said of a guided training instead of running it: its outline, and its plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from conceptkit.errors import InputError
from conceptkit.families import DISCOURAGING
from conceptkit.guide.weighting import Weighting
from conceptkit.models.adapter import FEATURES
from conceptkit.models.backbones import Backbone
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task
from conceptkit.options.training import TrainingOptions
from conceptkit.records.guide import Headroom


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One task's head."""

    task: str
    kind: str
    layer: str
    """``trunk``, or the layer of the backbone that the head reads"""
    alpha: int
    """1: encouraged; −1: discouraged"""
    loss: str
    nodes: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What ``guide`` would train."""

    schema: ClassVar[str] = "conceptkit/guide-outline/1"

    study: str
    model: str
    recipe: str
    settings: dict[str, Any]
    unfrozen: dict[str, int]
    """Layer of the backbone → its trained parameters"""
    trunk: tuple[int, ...]
    branches: tuple[Branch, ...]
    trainable_before_heads: int
    trainable_heads: int
    trainable_loss_weights: int
    rows: dict[str, int]
    """Split → rows"""
    trains: str
    """One sentence that says what is trained"""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists, ``schema`` and ``study`` first."""
        body = asdict(self)
        return {"schema": self.schema, "study": body.pop("study"), **body}


@dataclass(frozen=True, kw_only=True)
class GuidePlan(Headroom):
    """The result of ``guide --plan``."""

    schema: ClassVar[str] = "conceptkit/guide-plan/1"

    study: str
    synthetic: bool = False
    group: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists, ``schema`` and ``study`` first."""
        body = asdict(self)
        return {"schema": self.schema, "study": body.pop("study"), **body}


def branches(model: GuidedModel, options: TrainingOptions) -> tuple[Branch, ...]:
    """Return the branches of a network, the main task first."""
    bounded = bool(DISCOURAGING[options.method].reverses)
    return tuple(
        Branch(
            task=task.name,
            kind=task.kind,
            layer=task.layer or "trunk",
            alpha=-1 if task.adversarial else 1,
            loss=_loss(task, bounded=bounded),
            nodes=task.nodes,
            parameters=count(model.heads[task.name]),
        )
        for task in model.tasks
    )


def trained_parameters(model: GuidedModel, options: TrainingOptions) -> dict[str, int]:
    """Return the numbers of trained parameters: ``before_heads``, ``heads`` and ``loss_weights``."""
    return {
        "before_heads": count(model.backbone) + count(model.trunk),
        "heads": count(model.heads),
        "loss_weights": count(Weighting(model.tasks, options.weighting)),
    }


def unfrozen(model: GuidedModel, backbone: Backbone, options: TrainingOptions) -> dict[str, int]:
    """Return unfrozen layer of the backbone → its trained parameters; refuse a layer without any."""
    found = {name: count(model.backbone.get_submodule(backbone.layer(name))) for name in options.unfreeze}
    for name, number in found.items():
        if not number:
            raise InputError(
                f"unfreeze: {name} has no weights to train (batch normalisations stay frozen); name a layer with "
                "weights, or none."
            )
    return found


def trained_sentence(model: GuidedModel, backbone: Backbone, options: TrainingOptions, *, chosen: bool) -> str:
    """Return a sentence on what is trained; ``chosen`` says whether the user set the layers of the backbone."""
    if backbone.architecture == FEATURES:
        of_backbone = f"an adapter on {backbone.arguments['width']:,} features per patch"
        return _trained(of_backbone, model)
    layers = [f"{name} ({number:,} parameters)" for name, number in unfrozen(model, backbone, options).items()]
    if layers:
        of_backbone = f"{', '.join(layers)} of the backbone"
    elif chosen:
        of_backbone = "no layer of the backbone"
    else:
        of_backbone = (
            f"no layer of the backbone, as the last block of {backbone.name} is not known (name layers with "
            "--unfreeze; conceptkit layers lists them)"
        )
    return _trained(of_backbone, model)


def _trained(of_backbone: str, model: GuidedModel) -> str:
    widths = " → ".join(map(str, model.trunk_widths))
    trunk = f"the trunk {widths} ({count(model.trunk):,} parameters)" if widths else "no trunk"
    return f"Trained: {of_backbone}; {trunk}; a linear head per task."


def count(module: nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _loss(task: Task, *, bounded: bool) -> str:
    if task.kind == CONTINUOUS:
        return "1 − exp(−e²/2)" if bounded and task.adversarial else "squared error"
    weighted = "class-weighted " if task.name == MAIN else ""
    return weighted + ("binary cross-entropy" if task.nodes == 1 else f"cross-entropy of {len(task.classes)}")
