"""Losses of the tasks over labelled rows, and schedules of discouraging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as all of torch's users write it

from conceptkit.models.guided import CONTINUOUS, MAIN, Task


def class_weights(codes: Tensor, n_classes: int) -> Tensor:
    """Return weights (n_classes,) under which all classes count alike, whatever their shares p of the labelled rows.

    1/(K·p) for K ≥ 3 classes, so that the mean over rows is 1. For two classes 1 − p, which has the same ratio and sums
    to 1. A class without rows gets 0.

    Parameters
    ----------
    codes : (n,) class numbers, −1 where unlabelled
    """
    counts = torch.bincount(codes[codes >= 0], minlength=n_classes).float()
    if n_classes < 3:
        return 1.0 - counts / counts.sum().clamp_min(1.0)
    return torch.where(counts > 0, counts.sum() / (n_classes * counts.clamp_min(1.0)), 0.0)


def balance_factors(codes: Tensor, main: Tensor, *, power: float = 1.0) -> Tensor:
    """Return factors (n,) of rows, of mean 1, under which a categorical concept is independent of the main label.

    Each row gets p(c)·p(y) / p(c, y), shares of the rows where both are known; the other rows get 1. Under these
    factors an adversary does not learn the concept from the label, so that discouraging a confounded concept does not
    erase the label; and the main task does not learn the label from the concept.

    Parameters
    ----------
    codes : (n,) class numbers of the concept, −1 where unlabelled
    main : (n,) class numbers of the main task, −1 where unlabelled
    power : exponent of the factors; below 1 they balance partly
    """
    factors = torch.ones(len(codes))
    both = (codes >= 0) & (main >= 0)
    if not both.any():
        return factors
    table = torch.zeros(int(codes.max()) + 1, int(main.max()) + 1)
    table.index_put_((codes[both], main[both]), torch.ones(int(both.sum())), accumulate=True)
    share = table / table.sum()
    expected = share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
    known = (expected / share)[codes[both], main[both]] ** power
    factors[both] = known / known.mean()
    return factors


def even_factors(codes: Tensor, main: Tensor | None = None) -> Tensor:
    """Return factors (n,) of rows under which all classes of a concept count alike, whatever their shares.

    1/(C·p(c)) for C classes with rows; with the main label p(y)/(C·p(c, y)), under which the label does not predict the
    concept either. Their mean is 1 over the rows where the concept is known; the other rows get 1. Under them the best
    output that does not depend on the features is the same for all C classes, so that a confusion loss is 0 there.
    Where a class has no row of some label, classes still count alike, but that label predicts them.

    Parameters
    ----------
    codes : (n,) class numbers of the concept, −1 where unlabelled
    main : (n,) class numbers of the main task; rows without one, −1, count as a label of their own
    """
    factors = torch.ones(len(codes))
    known = codes >= 0
    if not known.any():
        return factors
    own = codes[known]
    label = torch.zeros_like(own) if main is None else main[known] + 1
    table = torch.zeros(int(label.max()) + 1, int(own.max()) + 1, dtype=torch.float64)
    table.index_put_((label, own), torch.ones(len(own), dtype=torch.float64), accumulate=True)
    each = (table.sum(1, keepdim=True) / table.clamp_min(1.0))[label, own]
    of_class = torch.zeros(table.shape[1], dtype=torch.float64).index_add_(0, own, each)
    factors[known] = (len(own) / (of_class > 0).sum() * each / of_class[own]).float()
    return factors


BINS = 5
"""Bins, of equal numbers of rows, in which a continuous concept is balanced"""


def binned(values: Tensor) -> Tensor:
    """Return the bins (n,) of the values of a continuous concept, −1 where missing; ties share a bin."""
    known = ~torch.isnan(values)
    codes = torch.full((len(values),), -1)
    if known.any():
        own = values[known].contiguous()
        edges = torch.quantile(own.double(), torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]).to(own)
        codes[known] = torch.bucketize(own, torch.unique(edges))
    return codes


def joint_codes(columns: Sequence[Tensor]) -> Tensor:
    """Return class numbers (n,) of combinations of classes, −1 where one is unlabelled."""
    stacked = torch.stack(list(columns), dim=1)
    known = (stacked >= 0).all(1)
    codes = torch.full((len(stacked),), -1)
    if known.any():
        codes[known] = torch.unique(stacked[known], dim=0, return_inverse=True)[1]
    return codes


def task_loss(
    task: Task,
    output: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
    *,
    bounded: bool = False,
) -> Tensor:
    """Return the mean loss of one task over its labelled rows; 0 without a gradient if there is none.

    Parameters
    ----------
    output : (n, nodes) of the task's head
    target : (n,) z-scores with NaN where missing, or class numbers with −1 where missing
    weights : (n_classes,) factor of each class; only for categorical tasks
    factors : (n,) factor of each row
    bounded : whether a discouraged continuous concept has 1 − e^(−e²/2) of its error e, whose reversed gradient is
        bounded. Its best constant output is not the mean of a skewed concept, so that it is for reversal only

    Returns
    -------
    scalar: squared error, binary or multi-class cross-entropy
    """
    labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
    if not labelled.any():
        return output.sum() * 0.0
    output, target = output[labelled], target[labelled]
    if task.kind == CONTINUOUS:
        square = (output[:, 0] - target) ** 2
        each = 1.0 - torch.exp(-0.5 * square) if bounded and task.adversarial else square
    elif task.name == MAIN and task.nodes == 1:
        each = F.binary_cross_entropy_with_logits(output[:, 0], target.to(output.dtype), reduction="none")
    else:
        each = F.cross_entropy(output, target, reduction="none")
    if weights is not None:
        each = weights.to(output)[target] * each
    if factors is not None:
        each = factors.to(output)[labelled] * each
    return each.mean()


def confusion_loss(task: Task, output: Tensor, target: Tensor, factors: Tensor | None = None) -> Tensor:
    """Return the distance of an adversary's output from chance, as a mean over labelled rows (Tzeng et al., 2015).

    Parameters
    ----------
    output : (n, nodes) of the discouraged task's head
    target : (n,) as for :func:`task_loss`; it only says which rows are labelled
    factors : (n,) factor of each row

    Returns
    -------
    scalar, 0 where the output is the same for every class (categorical) or 0, the mean of all values (continuous)
    """
    labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
    if not labelled.any():
        return output.sum() * 0.0
    output = output[labelled]
    if task.kind == CONTINUOUS:
        each = output[:, 0] ** 2
    else:
        each = -F.log_softmax(output, dim=1).mean(1) - math.log(output.shape[1])
    if factors is not None:
        each = factors.to(output)[labelled] * each
    return each.mean()


def constant(progress: float) -> float:
    """Return 1, as in the paper."""
    return 1.0


def ramp(progress: float) -> float:
    """Return Ganin's 2/(1 + e^(−10p)) − 1, scaled to reach 1 at the end, p = 1."""

    def curve(p: float) -> float:
        return 2.0 / (1.0 + math.exp(-10.0 * p)) - 1.0

    return curve(min(progress, 1.0)) / curve(1.0)


def switched(progress: float) -> float:
    """Return 0 until the end, then 1: the adversary learns before it acts on the network."""
    return 0.0 if progress < 1.0 else 1.0


def encode(task: Task, values: list[str | None] | list[float]) -> Tensor:
    """Return targets (n,): z-scores float32 with NaN where missing, or class numbers int64 with −1 where missing."""
    if task.kind == CONTINUOUS:
        return (torch.tensor(values, dtype=torch.float64) - task.mean).div(task.deviation).float()
    number = {name: code for code, name in enumerate(task.classes)}
    return torch.tensor([-1 if v is None else number.get(str(v), -1) for v in values])
