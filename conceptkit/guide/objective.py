"""Losses of the tasks over labelled rows, and the schedule of the gradient reversal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as all of torch's users write it

from conceptkit.models.guided import CONTINUOUS, MAIN, Task


def class_weights(codes: Tensor, n_classes: int) -> Tensor:
    """Return one minus each class's share of the labelled rows (n_classes,): for two classes the weights sum to one.

    Parameters
    ----------
    codes : (n,) class numbers, −1 where unlabelled
    """
    counts = torch.bincount(codes[codes >= 0], minlength=n_classes).float()
    return 1.0 - counts / counts.sum()


def task_loss(task: Task, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean loss of one task over its labelled rows; a zero that carries no gradient when there is none.

    Parameters
    ----------
    output : (n, nodes) of the task's head
    target : (n,) z-scores with NaN where missing, or class numbers with −1 where missing
    weights : (n_classes,) factor of each class; only for categorical tasks

    Returns
    -------
    scalar: squared error, binary or multi-class cross-entropy
    """
    labelled = torch.isfinite(target) if task.kind == CONTINUOUS else target >= 0
    if not labelled.any():
        return output.sum() * 0.0
    output, target = output[labelled], target[labelled]
    if task.kind == CONTINUOUS:
        return F.mse_loss(output[:, 0], target)
    factor = torch.ones_like(target, dtype=output.dtype) if weights is None else weights.to(output.device)[target]
    if task.name == MAIN and task.nodes == 1:
        each = F.binary_cross_entropy_with_logits(output[:, 0], target.to(output.dtype), reduction="none")
    else:
        each = F.cross_entropy(output, target, reduction="none")
    return (factor * each).mean()


def constant(progress: float) -> float:
    """Return 1: the paper's reversal, without a schedule."""
    return 1.0


def ramp(progress: float) -> float:
    """Return Ganin's 2/(1 + e^(−10p)) − 1, scaled to reach 1 at the end, p = 1."""

    def curve(p: float) -> float:
        return 2.0 / (1.0 + math.exp(-10.0 * p)) - 1.0

    return curve(min(progress, 1.0)) / curve(1.0)


def switched(progress: float) -> float:
    """Return 0 until the end, then 1: the adversary learns first and is turned against the network afterwards."""
    return 0.0 if progress < 1.0 else 1.0


REVERSALS: Mapping[str, Callable[[float], float]] = {"constant": constant, "ramp": ramp, "switched": switched}
"""Schedule → function from progress p (0 at the start, 1 when the schedule has ended) to the reversal's strength λ."""


def encode(task: Task, values: list[str | None] | list[float]) -> Tensor:
    """Return targets (n,): z-scores float32 with NaN where missing, or class numbers int64 with −1 where missing."""
    if task.kind == CONTINUOUS:
        return (torch.tensor(values, dtype=torch.float64) - task.mean).div(task.deviation).float()
    number = {name: code for code, name in enumerate(task.classes)}
    return torch.tensor([-1 if v is None else number.get(str(v), -1) for v in values])
