"""Methods of discouraging a concept: losses that act on the layers that all tasks share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conceptkit.guide.objective import confusion_loss
from conceptkit.guide.tally import summed
from conceptkit.models.guided import CONTINUOUS, GuidedModel, Task

Earlier = list[tuple[Tensor, Tensor, Tensor]]
"""Inputs (n, d) of a head in earlier batches, targets (n,) and factors (n,), of the labelled rows"""

Pressure = Callable[..., Tensor]
"""From a discouraged task, the input (n, d) of its head, the head's output (n, nodes) without a gradient into the head,
targets (n,) and factors of rows (n,), to a scalar that the shared layers minimise. Outputs and targets have the classes
with training rows only, and values of mean 0 over the training rows. A method with a memory gets :data:`Earlier` too"""


@dataclass(frozen=True)
class Method:
    """How discouraging acts on the shared layers; the head of the concept always learns to predict it."""

    pressure: Pressure | None = None
    """Loss of the shared layers"""
    reverses: bool = False
    """Whether the head's gradient times −λ reaches the shared layers"""
    erases: bool = False
    """Whether an affine map erases the concept from the output of the trunk (LEACE)"""
    needs_whole: bool = False
    """Whether its statistic needs the whole batch, so that several processes cannot share a batch"""
    memory: int = 0
    """Number of earlier batches that it sees"""
    of_active: bool = True
    """Whether its gradient keeps shift and scale of the active values of a unit, or of all values"""


def as_method(*, needs_whole: bool = False, memory: int = 0, of_active: bool = True) -> Callable[[Pressure], Method]:
    """Return a decorator that makes a method of a function from what a discouraged head reads to a scalar."""
    return lambda pressure: Method(pressure, needs_whole=needs_whole, memory=memory, of_active=of_active)


reversal = Method(reverses=True)
leace = Method(erases=True)


# With the projection over active values only, an adversary that learns by steps removed nothing in simulations.
@as_method(of_active=False)
def confusion(task: Task, read: Tensor, held: Tensor, target: Tensor, factors: Tensor | None) -> Tensor:
    """Return how far the head's output is from the same for all rows; see :func:`confusion_loss`."""
    return confusion_loss(task, held, target, factors)


RIDGE = 0.03
"""Penalty of :func:`ridge` on standardised units"""


@as_method(needs_whole=True, memory=15)
def ridge(task: Task, read: Tensor, held: Tensor, target: Tensor, factors: Tensor | None, earlier: Earlier) -> Tensor:
    """Return how far the best linear prediction of the concept is from the same for all rows; 0 if it is.

    Ridge regression on this batch and 15 earlier ones, in closed form, so that the adversary is never behind; the χ²
    distance of the predicted shares of the classes from equal ones, or the squared z-score of a continuous concept.
    """
    labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
    if not labelled.any():
        return read.sum() * 0.0
    own, y = read[labelled], target[labelled]
    w = torch.ones(len(own), device=own.device) if factors is None else factors.to(own)[labelled]
    earlier.append((own.detach(), y, w))
    del earlier[: -(ridge.memory + 1)]
    X, values, share = (torch.cat(column) for column in zip(*earlier, strict=True))
    share = share / share.sum()
    k = held.shape[1]
    truth = values[:, None] if task.kind == CONTINUOUS else torch.nn.functional.one_hot(values, k) - 1.0 / k
    mean = share @ X
    deviation = (share @ (X - mean).square()).sqrt() + 1e-4
    root = share.sqrt()[:, None]
    Z, T = root * ((X - mean) / deviation), root * truth.to(X)
    if len(Z) < Z.shape[1]:
        found = Z.T @ torch.linalg.solve(Z @ Z.T + RIDGE * torch.eye(len(Z)).to(Z), T)
    else:
        found = torch.linalg.solve(Z.T @ Z + RIDGE * torch.eye(Z.shape[1]).to(Z), Z.T @ T)
    square = (((own - mean) / deviation) @ found).square().sum(1)
    distance: Tensor = (w * square).mean() * (1 if task.kind == CONTINUOUS else k)
    return distance


@as_method(needs_whole=True)
def coral(task: Task, read: Tensor, held: Tensor, target: Tensor, factors: Tensor | None) -> Tensor:
    """Return how much the first two moments of the features differ between classes; 0 if they do not.

    Units are scaled to variance 1 over the batch. With m_c, S_c the mean and covariance of class c and m, S their
    means over classes: mean over c of ‖m_c − m‖²/d + ‖S_c − S‖²_F/(4d²). For a continuous concept the mean over units
    of the squared correlation with the value.

    Source
    ------
    Sun and Saenko, Deep CORAL, 2016, for the covariances; the means are added here, as units behind a ReLU differ in
    their means first
    """
    labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
    if int(labelled.sum()) < 4:
        return read.sum() * 0.0
    x, y = read[labelled], target[labelled]
    w = torch.ones(len(x), device=x.device) if factors is None else factors.to(x)[labelled]
    w = w / w.sum()
    x = x - w @ x
    x = x / (w @ x**2 + 1e-6).sqrt().detach()
    if task.kind == CONTINUOUS:
        y = y - w @ y
        y = y / (w @ y**2 + 1e-6).sqrt()
        return ((w * y) @ x).square().mean()
    means, covariances = [], []
    for code in torch.unique(y):
        rows = y == code
        if int(rows.sum()) < 2:
            continue
        own = w[rows] / w[rows].sum()
        mean = own @ x[rows]
        centred = x[rows] - mean
        means.append(mean)
        covariances.append((centred * own[:, None]).T @ centred)
    if len(means) < 2:
        return read.sum() * 0.0
    m, s = torch.stack(means), torch.stack(covariances)
    d = x.shape[1]
    between: Tensor = ((m - m.mean(0)) ** 2).sum(1).mean() / d
    return between + ((s - s.mean(0)) ** 2).sum((1, 2)).mean() / (4 * d**2)


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels of :func:`mmd`, times the median distance in the batch"""


@as_method(needs_whole=True)
def mmd(task: Task, read: Tensor, held: Tensor, target: Tensor, factors: Tensor | None) -> Tensor:
    """Return how much the distributions of the features differ between classes; 0 if they do not.

    The mean over pairs of classes of the squared maximum mean discrepancy with a mean of Gaussian kernels; for a
    continuous concept the Hilbert-Schmidt independence criterion with a Gaussian kernel on the value, over the root of
    its value for each variable with itself.

    Source
    ------
    Gretton et al., A kernel two-sample test, 2012; Long et al., Learning transferable features, 2015; Gretton et al.,
    Measuring statistical dependence with Hilbert-Schmidt norms, 2005
    """
    labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
    if int(labelled.sum()) < 4:
        return read.sum() * 0.0
    x, y = read[labelled], target[labelled]
    w = torch.ones(len(x), device=x.device) if factors is None else factors.to(x)[labelled]
    square = (x[:, None] - x[None]).square().sum(-1)
    distinct = square.detach()[~torch.eye(len(x), dtype=torch.bool, device=x.device)]
    scale = distinct.median().clamp_min(1e-6)
    kernel = torch.stack([torch.exp(-square / (2 * b**2 * scale)) for b in BANDWIDTHS]).mean(0)
    if task.kind == CONTINUOUS:
        share = w / w.sum()
        of_value = torch.exp(-0.5 * (y[:, None] - y[None]).square())

        def centred(k: Tensor) -> Tensor:
            rows = k @ share
            return k - rows[:, None] - rows[None] + share @ rows

        joint = share[:, None] * share[None]
        a, b = centred(kernel), centred(of_value)
        own = (joint * a * a).sum() * (joint * b * b).sum()
        return (joint * a * b).sum() / own.clamp_min(1e-12).sqrt()
    codes = [code for code in torch.unique(y) if int((y == code).sum()) >= 2]
    found = []
    for one, other in itertools.combinations(codes, 2):
        signed = torch.zeros(len(x), device=x.device)
        signed[y == one] = w[y == one] / w[y == one].sum()
        signed[y == other] = -w[y == other] / w[y == other].sum()
        found.append(signed @ kernel @ signed)
    return torch.stack(found).mean() if found else read.sum() * 0.0


def pressure(
    method: Method,
    model: GuidedModel,
    reads: Mapping[str | None, Tensor],
    targets: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    memory: dict[str, Earlier],
) -> dict[str, Tensor]:
    """Return discouraged task → scalar that the shared layers minimise, for one batch; empty without such a loss.

    Parameters
    ----------
    reads : inputs of the heads, see :meth:`GuidedModel.reads`
    targets, factors : task → (n,) of the batch's rows
    constants : task → the best output that does not depend on the features, see :func:`best_constant`
    memory : task → earlier batches, which a method with a memory changes
    """
    if method.pressure is None:
        return {}
    reads = {layer: without_scale(read, of_active=method.of_active) for layer, read in reads.items()}
    found = {}
    for name, held in model.held_outputs(reads).items():
        task = next(task for task in model.tasks if task.name == name)
        target, best = targets[name], constants[name].to(held.device)
        if task.kind == CONTINUOUS:
            held, target = held - best, target - best
        else:
            number = torch.where(best > 0, best.cumsum(0) - 1, -1)
            held, target = held[:, best > 0], torch.where(target >= 0, number[target], -1)
        more = (memory.setdefault(name, []),) if method.memory else ()
        found[name] = method.pressure(task, reads[task.layer], held, target, factors.get(name), *more)
    return found


def without_scale(read: Tensor, *, of_active: bool = True) -> Tensor:
    """Return the same features (n, d) with a gradient that neither shifts nor scales the values of a unit.

    Otherwise smaller values give smaller losses whatever they encode: features would shrink, and units die. Behind a
    ReLU, which gets no gradient where it is 0, only active values count (``of_active``). In several processes the sums
    are those of the whole batch.
    """
    if not read.requires_grad:
        return read
    same, x = read.view_as(read), read.detach()

    def project(gradient: Tensor) -> Tensor:
        active = (x != 0).to(x) if of_active else torch.ones_like(x)
        n, total = summed(torch.stack([active.sum(0), x.sum(0)]))
        centred = (x - total / n.clamp_min(1.0)) * active
        moved, grown = summed(torch.stack([(gradient * active).sum(0), (gradient * centred).sum(0)]))
        spread = summed(centred.square().sum(0))
        unscaled: Tensor = (gradient - moved / n.clamp_min(1.0)) * active - centred * (grown / spread.clamp_min(1e-12))
        return unscaled

    same.register_hook(project)  # type: ignore[no-untyped-call]  # torch's own
    return same


def best_constant(task: Task, target: Tensor, factors: Tensor | None) -> Tensor:
    """Return the best output of a head without input: a mean, or which classes have rows (0 or 1).

    Parameters
    ----------
    target, factors : (n,) of the training rows
    """
    if task.kind != CONTINUOUS:
        return (torch.bincount(target[target >= 0], minlength=len(task.classes)) > 0).long()
    known = ~torch.isnan(target)
    w = torch.ones(len(target)) if factors is None else factors
    return (w * target)[known].sum() / w[known].sum().clamp_min(1e-12)
