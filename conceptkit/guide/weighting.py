"""How the losses of the tasks are weighted against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from conceptkit.models.guided import CONTINUOUS, Task


class Weighting(nn.Module):
    """Weights that do not change: λ = 1 for every task (the paper's *vanilla* objective, Eq. 1)."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.kinds = {task.name: task.kind for task in tasks}

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the total of the tasks' losses (scalars), each times its weight, and what the weights cost."""
        return torch.stack(list(losses.values())).sum()

    def weights(self) -> dict[str, float]:
        """Return each task's present weight."""
        return dict.fromkeys(self.kinds, 1.0)


class Uncertainty(Weighting):
    """Weights learned as the tasks' homoscedastic uncertainty (Kendall et al., 2018).

    With s = log σ² per task, initially 0: e^(−s)·MSE/2 + s/2 for a continuous task, e^(−s)·CE + s/2 for a categorical
    one. Where s is at its optimum, e^(−s) is 1/MSE and 1/(2·CE).
    """

    least: ClassVar[float] = -math.inf
    """Lower bound of s"""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.kinds})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the total of the tasks' losses (scalars), each times its weight, and what the weights cost."""
        parts = []
        for name, loss in losses.items():
            s = self.log_variance[name]
            with torch.no_grad():
                s.clamp_(min=self.least)
            half = 0.5 if self.kinds[name] == CONTINUOUS else 1.0
            parts.append(half * torch.exp(-s) * loss + 0.5 * s)
        return torch.stack(parts).sum()

    def weights(self) -> dict[str, float]:
        """Return each task's present e^(−s): the weight of MSE/2 and of CE."""
        return {name: math.exp(-max(s.item(), self.least)) for name, s in self.log_variance.items()}


class BoundedUncertainty(Uncertainty):
    """Uncertainty weights that cannot grow without end: s is held at −log 4 or above, the weight at 4 or below.

    Once a task overfits, its training loss goes to 0 and the plain weight to infinity: the network then serves that
    task alone. The bound is put on s itself after each step, so that s leaves it as soon as the loss rises again.
    """

    least = -math.log(4.0)


WEIGHTINGS: Mapping[str, Callable[[Sequence[Task]], Weighting]] = {
    "vanilla": Weighting,
    "uncertainty": Uncertainty,
    "uncertainty-bounded": BoundedUncertainty,
}
"""Weighting strategy → what builds it from the tasks."""
