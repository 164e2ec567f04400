"""The guided network: a backbone, a trunk of dense layers, and a linear head per task, some with a reversal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.models.layouts import hooked, measure_views

MAIN = "main"
"""Name of the main task's head."""

CONTINUOUS = "continuous"
CATEGORICAL = "categorical"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A target that the network is trained to encode, or not to encode."""

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
    """Whether the gradient into trunk and backbone is reversed (α = −1)"""
    layer: str | None = None
    """Layer of the backbone whose pooled output the head reads; ``None``: the trunk's end"""
    through: bool = False
    """Whether the main head reads this prediction, and of the network nothing but such predictions"""
    residual: bool = False
    """Of a main task behind predictions: whether its head also reads the trunk's end"""

    @property
    def columns(self) -> int:
        """Return the columns that a main head reads of this prediction: a value, or the shares of all but one class."""
        return 1 if self.kind == CONTINUOUS else len(self.classes) - 1

    @property
    def nodes(self) -> int:
        """Return the width of the head: 1 for a value or a main task of two classes, else one per class."""
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
    strength : λ ≥ 0, a buffer that a schedule can set without building the graph again
    """

    strength: Tensor

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("strength", torch.tensor(float(strength)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape) unchanged."""
        out: Tensor = _Reverse.apply(x, self.strength)
        return out


class Erasure(nn.Module):
    """An affine map of ``width`` features that removes concepts, x ↦ μ + A (x − μ); the identity until it is fitted."""

    matrix: Tensor
    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (n, width) without the concepts."""
        return self.mean + (x - self.mean) @ self.matrix.T


class GuidedModel(nn.Module):
    """A network that predicts the main task and concepts from one shared representation (Graziani et al.).

    Parameters
    ----------
    backbone : network with ``forward_features`` and ``forward_head(…, pre_logits=True)``, as all of timm have
    width : number of features that the backbone's pooled output has
    tasks : what is predicted; one of them is named ``main``
    trunk : widths of the dense layers
    dropout : rate after each dense layer
    widths : layer → channels of its output, for every layer that a task names; see :func:`layer_width`
    erases : whether the trunk's end passes through an :class:`Erasure` before the heads
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        tasks: Sequence[Task],
        *,
        trunk: Sequence[int] = (256, 64),
        dropout: float = 0.0,
        widths: Mapping[str, int] | None = None,
        erases: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = tuple(tasks)
        self.width = width
        self.trunk_widths = tuple(trunk)
        self.dropout = dropout
        self.layers = tuple(dict.fromkeys(task.layer for task in self.tasks if task.layer is not None))
        self.widths = {layer: (widths or {})[layer] for layer in self.layers}
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *trunk), trunk, strict=False):
            layers.append(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)))
        self.trunk = nn.Sequential(*layers)
        end = trunk[-1] if trunk else width
        self.erasure = Erasure(end) if erases else None
        reads = {task.name: end if task.layer is None else self.widths[task.layer] for task in self.tasks}
        self.through = tuple(task for task in self.tasks if task.through)
        residual = [task for task in self.tasks if task.residual]
        self.residual = nn.Linear(end, residual[0].nodes, bias=False) if residual else None
        if self.through:
            reads[MAIN] = sum(task.columns for task in self.through)
        self.heads = nn.ModuleDict({task.name: nn.Linear(reads[task.name], task.nodes) for task in self.tasks})
        self.reversals = nn.ModuleDict({task.name: GradientReversal() for task in self.tasks if task.adversarial})

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's pooled features (n, width), then the pooled output (n, channels) of each of ``layers``.

        Parameters
        ----------
        images : (n, 3, h, w) normalised
        """
        with reading_layers(self.backbone, self.layers) as seen:
            maps = self.backbone.forward_features(images)  # type: ignore[operator]
            pooled: Tensor = self.backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return (pooled, *(seen[layer] for layer in self.layers))

    def reads(self, pooled: Tensor, *layers: Tensor) -> dict[str | None, Tensor]:
        """Return layer → input of its heads, ``None`` for the trunk's end, from what :meth:`features` returns."""
        end = self.trunk(pooled)
        if self.erasure is not None:
            end = self.erasure(end)
        return {None: end, **dict(zip(self.layers, layers, strict=True))}

    def outputs(self, reads: Mapping[str | None, Tensor]) -> dict[str, Tensor]:
        """Return each task's raw output (n, nodes) from what :meth:`reads` returns."""
        found = {}
        for task in self.tasks:
            if task.adversarial:
                found[task.name] = self.heads[task.name](self.reversals[task.name](reads[task.layer]))
            else:
                found[task.name] = self.output(task, reads)
        return found

    def output(self, task: Task, reads: Mapping[str | None, Tensor]) -> Tensor:
        """Return the raw output (n, nodes) of one task, without a reversal."""
        if task.name == MAIN and self.through:
            return self.decide(self.concepts(reads), reads)
        out: Tensor = self.heads[task.name](reads[task.layer])
        return out

    def concepts(self, reads: Mapping[str | None, Tensor]) -> Tensor:
        """Return what a main head reads of predicted concepts (n, columns): z-scores, and shares of classes."""
        parts = []
        for task in self.through:
            raw = self.heads[task.name](reads[task.layer])
            parts.append(raw if task.kind == CONTINUOUS else raw.softmax(1)[:, 1:])
        return torch.cat(parts, dim=1)

    def decide(self, concepts: Tensor, reads: Mapping[str | None, Tensor]) -> Tensor:
        """Return the main task's raw output (n, nodes) from concepts (n, columns), predicted or true."""
        out: Tensor = self.heads[MAIN](concepts)
        return out if self.residual is None else out + self.residual(reads[None])

    def represented(self, reads: Mapping[str | None, Tensor]) -> Tensor:
        """Return what the main head reads (n, width): predicted concepts behind a bottleneck, else the trunk's end."""
        return self.concepts(reads) if self.through and self.residual is None else reads[None]

    def held_outputs(self, reads: Mapping[str | None, Tensor]) -> dict[str, Tensor]:
        """Return each discouraged task's raw output (n, nodes) without a gradient for its head's weights."""
        found = {}
        for task in self.tasks:
            if task.adversarial:
                head: Any = self.heads[task.name]
                found[task.name] = nn.functional.linear(reads[task.layer], head.weight.detach(), head.bias.detach())
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return task → raw output (n, nodes): logits of categorical tasks, z-scores of continuous ones."""
        return self.outputs(self.reads(*self.features(images)))


@contextmanager
def reading_layers(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the pooled output (n, channels) of layers, pooled at once because later modules may work in place."""
    seen: dict[str, Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[layer] = output.mean((2, 3))

        return hook

    with hooked(backbone, keep, layers):
        yield seen


def layer_width(backbone: nn.Module, layer: str, *, size: int) -> int:
    """Return the channels of a layer's output for images of (3, size, size); refuse all but (n, channels, h, w)."""
    shapes: list[tuple[int, ...]] = []

    def look(name: str) -> Any:
        return lambda module, inputs, output: shapes.append(tuple(getattr(output, "shape", ())))

    with hooked(backbone, look, [layer]):
        view = measure_views(backbone, [layer], torch.zeros(1, 3, size, size))[layer]
    if len(shapes[0]) != 4 or view.channels != 1:
        got = "×".join(map(str, shapes[0][1:]))
        raise InputError(
            f"layer: a task needs a layer of maps (channels × height × width); {layer} gives {got}, whose "
            f"{'channels come last' if len(shapes[0]) == 4 else 'form is another'}; omit @{layer} to put the task "
            "on the end of the trunk."
        )
    return shapes[0][1]
