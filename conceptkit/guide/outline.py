"""What a guided training will train, before it does: the tree of branches with their signs, losses and parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from conceptkit.guide.options import TrainingOptions
from conceptkit.guide.weighting import Weighting
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One task's head."""

    task: str
    kind: str
    layer: str
    """What the head reads: ``trunk``, or a layer of the backbone"""
    alpha: int
    """1: encouraged; −1: discouraged"""
    loss: str
    nodes: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What would be trained."""

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
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists, ``schema`` and ``study`` first."""
        body = asdict(self)
        return {"schema": self.schema, "study": body.pop("study"), **body}


def branches(model: GuidedModel) -> tuple[Branch, ...]:
    """Return the heads of a network, the main task's first."""
    return tuple(
        Branch(
            task=task.name,
            kind=task.kind,
            layer=task.layer or "trunk",
            alpha=-1 if task.adversarial else 1,
            loss=_loss(task),
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


def count(module: nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _loss(task: Task) -> str:
    if task.kind == CONTINUOUS:
        return "1 − exp(−e²/2)" if task.adversarial else "squared error"
    weighted = "class-weighted " if task.name == MAIN else ""
    return weighted + ("binary cross-entropy" if task.nodes == 1 else f"cross-entropy of {len(task.classes)}")
