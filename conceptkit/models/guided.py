"""The guided network: a backbone, a trunk of dense layers, and one linear head per task, some behind a reversal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MAIN = "main"
"""Name of the main task's head."""

CONTINUOUS = "continuous"
CATEGORICAL = "categorical"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing that the network is trained to predict, or not to know."""

    name: str
    kind: str
    """``continuous`` or ``categorical``"""
    classes: tuple[str, ...] = ()
    """Classes of a categorical task, in the order of the head's nodes"""
    mean: float = 0.0
    """Mean of a continuous concept over the training rows: the head predicts (value − mean) / deviation"""
    deviation: float = 1.0
    """Standard deviation of a continuous concept over the training rows"""
    adversarial: bool = False
    """True: the gradient into trunk and backbone is reversed (α = −1)"""

    @property
    def nodes(self) -> int:
        """Return the width of the head: 1 for a value, 1 for the main task of two classes, else one per class."""
        if self.kind == CONTINUOUS or (self.name == MAIN and len(self.classes) == 2):
            return 1
        return len(self.classes)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength * gradients[0], None


class GradientReversal(nn.Module):
    """The identity forwards; backwards the gradient times −λ (Ganin et al., 2016).

    Parameters
    ----------
    strength : λ ≥ 0, kept as a buffer so that a schedule can set it without building the graph anew
    """

    strength: Tensor

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("strength", torch.tensor(float(strength)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape) unchanged."""
        out: Tensor = _Reverse.apply(x, self.strength)
        return out


class GuidedModel(nn.Module):
    """A network that predicts the main task and concepts from one shared representation (Graziani et al.).

    Parameters
    ----------
    backbone : network with ``forward_features`` and ``forward_head(…, pre_logits=True)``, as all of timm have
    width : number of features that the backbone's pooled output has
    tasks : what is predicted; one of them is named ``main``
    trunk : widths of the dense layers
    dropout : rate after each dense layer
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        tasks: Sequence[Task],
        *,
        trunk: Sequence[int] = (256, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = tuple(tasks)
        self.width = width
        self.trunk_widths = tuple(trunk)
        self.dropout = dropout
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *trunk), trunk, strict=False):
            layers.append(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)))
        self.trunk = nn.Sequential(*layers)
        end = trunk[-1] if trunk else width
        self.heads = nn.ModuleDict({task.name: nn.Linear(end, task.nodes) for task in self.tasks})
        self.reversals = nn.ModuleDict({task.name: GradientReversal() for task in self.tasks if task.adversarial})

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's pooled features (n, width) of normalised images (n, 3, h, w)."""
        maps = self.backbone.forward_features(images)  # type: ignore[operator]
        pooled: Tensor = self.backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return pooled

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """Return each task's raw output (n, nodes) from pooled features (n, width)."""
        shared = self.trunk(features)
        return {
            name: head(self.reversals[name](shared) if name in self.reversals else shared)
            for name, head in self.heads.items()
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return task → raw output (n, nodes): logits of categorical tasks, z-scores of continuous ones."""
        return self.outputs(self.features(images))
