"""Weights of the losses of the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.families import WEIGHTINGS
from conceptkit.guide.aggregation import AGGREGATORS
from conceptkit.models.guided import CONTINUOUS, Task

DWA_TEMPERATURE = 2.0
"""Temperature of dynamic weight averaging, as its authors set it"""


class Fixed(nn.Module):
    """A fixed weight: λ·L."""

    value: Tensor

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self, loss: Tensor) -> Tensor:
        """Return the task's part of the total, a scalar."""
        return self.value * loss

    def weight(self) -> float:
        """Return the current λ."""
        return float(self.value)


class Dynamic(Fixed):
    """A weight set in every epoch from how fast the loss decreases, relative to the other dynamic tasks."""


class Uncertainty(nn.Module):
    """A weight learned as the task's homoscedastic uncertainty (Kendall et al., 2018).

    With s = log σ², initially 0: e^(−s)·MSE/2 + s/2 for a continuous task, e^(−s)·CE + s/2 for a categorical one.
    Where s is at its optimum, e^(−s) is 1/MSE and 1/(2·CE).

    Parameters
    ----------
    kind : of the task
    largest : bound of the weight e^(−s), which otherwise grows without limit when a task overfits and its training loss
        goes to 0. It bounds s itself before each step, so that s leaves the bound as soon as the loss increases
    cost : factor of s; 1 instead of ½ doubles the weight, as in the paper's code for the center
    """

    def __init__(self, kind: str, *, largest: float = math.inf, cost: float = 0.5) -> None:
        super().__init__()
        self.share = 0.5 if kind == CONTINUOUS else 1.0
        self.cost = cost
        self.least = -math.log(largest)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, loss: Tensor) -> Tensor:
        """Return the task's part of the total with what its weight costs, a scalar."""
        with torch.no_grad():
            self.log_variance.clamp_(min=self.least)
        return self.share * torch.exp(-self.log_variance) * loss + self.cost * self.log_variance

    def weight(self) -> float:
        """Return the current e^(−s): the weight of MSE/2, or of CE."""
        return math.exp(-max(self.log_variance.item(), self.least))


Term = Fixed | Uncertainty


def without_value(make: Callable[[Task], Term]) -> Callable[[Task, float | None], Term]:
    """Return a weighting that refuses a value after the colon."""

    def build(task: Task, value: float | None) -> Term:
        if value is not None:
            raise InputError(f"weighting: the strategy takes no value after a colon, got {value:g}.")
        return make(task)

    return build


@without_value
def vanilla(task: Task) -> Term:
    """Return the weight 1."""
    return Fixed(1.0)


@without_value
def dwa(task: Task) -> Term:
    """Return the weight of dynamic weight averaging."""
    return Dynamic(1.0)


@without_value
def uncertainty(task: Task) -> Term:
    """Return the learned weight without a bound."""
    return Uncertainty(task.kind)


@without_value
def uncertainty_full(task: Task) -> Term:
    """Return the learned weight as in the paper's code for the center."""
    return Uncertainty(task.kind, cost=1.0)


def fixed(task: Task, value: float | None) -> Term:
    """Return the weight ``value``."""
    if value is None:
        raise InputError(f"weighting: fixed needs a value, as in {task.name}=fixed:0.1.")
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"weighting: fixed:{value} must be a finite number of at least 0.")
    return Fixed(value)


def uncertainty_bounded(task: Task, value: float | None) -> Term:
    """Return the learned weight with the bound ``value``, by default 4."""
    if value is not None and not value > 0:
        raise InputError(f"weighting: the bound in uncertainty-bounded:{value} must be above 0.")
    return Uncertainty(task.kind, largest=4.0 if value is None else value)


class Weighting(nn.Module):
    """The weighted total of the tasks' losses.

    Parameters
    ----------
    tasks : in the order of the losses
    text : ``STRATEGY[:VALUE][,TASK=STRATEGY[:VALUE]]…``, such as ``uncertainty,center=fixed:0.1``
    """

    def __init__(self, tasks: Sequence[Task], text: str) -> None:
        super().__init__()
        default, own = parse_weighting(text)
        named = {task.name: own.get(task.name, default) for task in tasks}
        terms = {task.name: WEIGHTINGS[named[task.name][0]](task, named[task.name][1]) for task in tasks}
        self.terms: Mapping[str, Term] = nn.ModuleDict(terms)  # type: ignore[assignment]  # a mapping of its kind
        self.aggregation: str | None = default[0] if default[0] in AGGREGATORS else None
        """The strategy, if it aggregates gradients"""
        self.before: list[Mapping[str, float]] = []
        """The mean training losses of the last two epochs"""

    def forward(self, losses: Mapping[str, Tensor], absent: Collection[str] = ()) -> Tensor:
        """Return the weighted total of the tasks' losses (scalars) with the cost of the weights.

        Parameters
        ----------
        absent : tasks without a label in the batch, which do not count; the cost of a weight alone would let it grow in
            every such batch. (They stay in the graph as zeros: several processes wait for the gradient of every
            parameter.)
        """
        terms = {name: self.terms[name](loss) for name, loss in losses.items()}
        return torch.stack([0.0 * term if name in absent else term for name, term in terms.items()]).sum()

    def weights(self) -> dict[str, float]:
        """Return task → current weight."""
        return {name: term.weight() for name, term in self.terms.items()}

    def end_epoch(self, losses: Mapping[str, float]) -> None:
        """Set the dynamic weights of the next epoch from the epoch's mean training losses.

        λ_k = K·e^(r_k/T) / Σ e^(r/T) with r_k the ratio of the last two epochs' losses (Liu et al., 2019); 1 until
        there are two, and for a task whose loss is not known.
        """
        self.before = [*self.before[-1:], dict(losses)]
        dynamic = {name: term for name, term in self.terms.items() if isinstance(term, Dynamic)}
        if len(self.before) < 2 or not dynamic:
            return
        earlier, later = self.before
        ratios = {n: later[n] / earlier[n] for n in dynamic if earlier.get(n, 0.0) > 0 and math.isfinite(later[n])}
        # The loss of an adversary may grow without bound; the ratio is bounded so that e^(r/T) stays finite.
        powers = {n: math.exp(min(r, 20.0) / DWA_TEMPERATURE) for n, r in ratios.items()}
        for name, power in powers.items():
            dynamic[name].value.fill_(len(powers) * power / sum(powers.values()))


def parse_weighting(text: str) -> tuple[tuple[str, float | None], dict[str, tuple[str, float | None]]]:
    """Return the strategy of all tasks, and those of single ones, as (name, value) each."""
    default: tuple[str, float | None] | None = None
    own: dict[str, tuple[str, float | None]] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        task, equals, strategy = part.rpartition("=")
        name, colon, number = strategy.partition(":")
        WEIGHTINGS.check("weighting", name)
        try:
            value = float(number) if colon else None
        except ValueError:
            raise InputError(f"weighting: {number!r} in {part!r} is not a number.") from None
        if equals and name in AGGREGATORS:
            raise InputError(f"weighting: {name} is for all tasks together, got {part!r}.")
        if equals:
            own[task.strip()] = (name, value)
        elif default is None:
            default = (name, value)
        else:
            raise InputError(f"weighting: one strategy for all tasks, and TASK=STRATEGY for others, got {text!r}.")
    return default or ("uncertainty-bounded", None), own
