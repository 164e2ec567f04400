"""Affinity of tasks: the effect of one task's gradient step on the losses of the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.evaluate.scores import Floats
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.guide.objective import task_loss
from conceptkit.models.guided import GuidedModel
from conceptkit.models.inference import forked_rng

EPOCHS = 8
"""Epochs of the joint training along which steps are tried"""

BATCH_SIZE = 64
"""Rows per batch of the joint training, and per step"""

TRIED = 3
"""Steps tried in each epoch"""

LENGTH = 0.001
"""Length of a step as a share of the norm of the shared layers: too short to overshoot"""

LOOKED_AT = 512
"""Maximum number of validation rows on which losses are measured"""


def measure_affinity(
    model: GuidedModel,
    inputs: Inputs,
    targets: Mapping[str, Tensor],
    rows: Mapping[str, NDArray[np.intp]],
    *,
    seed: int,
    epochs: int = EPOCHS,
    device: str = "auto",
) -> Floats:
    """Return 1 − (loss of j after a step of i) / (loss of j before), mean over steps of a joint training.

    The shared layers are trained on the main and the encouraged tasks, with equal weights. Some steps of fixed length
    along one task's gradient over a training batch (against it for a discouraged task) are tried and undone.

    Parameters
    ----------
    model : at its start, with all tasks; it is changed
    targets : task → (n,) encoded values, see :func:`conceptkit.guide.objective.encode`
    rows : ``train`` and ``val`` → row numbers

    Returns
    -------
    (t, t), row i the task that steps, column j the task whose validation loss is measured; above 0, the step helps

    Source
    ------
    Fifty et al., 2021, equation 1; here on validation rows, and with steps of one length, so that the scale of a loss
    does not matter
    """
    shared = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")]
    order = torch.Generator().manual_seed(seed)
    train = torch.from_numpy(rows["train"])
    val = torch.from_numpy(rows["val"])
    val = val[torch.randperm(len(val), generator=order)[:LOOKED_AT]]
    # The adversaries' heads learn without any effect on the shared layers.
    for reversal in model.reversals.values():
        reversal.get_buffer("strength").fill_(0.0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found: list[Floats] = []
    with on_device(model, inputs, device) as where, forked_rng(where):
        targets = {name: values.to(where) for name, values in targets.items()}
        torch.manual_seed(seed)
        for _ in range(epochs):
            batches = torch.split(train[torch.randperm(len(train), generator=order)], BATCH_SIZE)
            every = max(len(batches) // TRIED, 1)
            for k, batch in enumerate(batches):
                if k % every == 0:
                    found.append(_try_steps(model, inputs, targets, shared, batch, val))
                _set_training(model, True)
                reads = model.reads(*inputs.rest(*inputs.batch(batch, where)))
                outputs = model.outputs(reads)
                losses = [task_loss(t, outputs[t.name], targets[t.name][batch], bounded=True) for t in model.tasks]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
        _set_training(model, False)
    with np.errstate(invalid="ignore"):
        out: Floats = np.nanmean(np.stack(found), axis=0)
    return out


def _try_steps(
    model: GuidedModel,
    inputs: Inputs,
    targets: Mapping[str, Tensor],
    shared: list[nn.Parameter],
    batch: Tensor,
    val: Tensor,
) -> Floats:
    """Return the affinities (t, t) at the current state of the model, which is restored."""
    _set_training(model, False)
    before = _losses(model, inputs, targets, val)
    length = LENGTH * float(torch.sqrt(torch.stack([p.detach().square().sum() for p in shared]).sum()))
    out = np.full((len(model.tasks), len(model.tasks)), np.nan)
    own = _losses(model, inputs, targets, batch, with_gradient=True)
    for i, task in enumerate(model.tasks):
        if not own[i].requires_grad:
            continue
        gradients = torch.autograd.grad(own[i], shared, retain_graph=True, allow_unused=True)
        norm = float(torch.sqrt(sum((g.square().sum() for g in gradients if g is not None), torch.zeros(()))))
        if not norm > 0:
            continue
        size = (1.0 if task.adversarial else -1.0) * length / norm
        kept = [p.detach().clone() for p in shared]
        with torch.no_grad():
            for parameter, gradient in zip(shared, gradients, strict=True):
                if gradient is not None:
                    parameter.data.add_(gradient, alpha=size)
            after = _losses(model, inputs, targets, val)
            for parameter, value in zip(shared, kept, strict=True):
                parameter.data.copy_(value)
        out[i] = [1.0 - float(a) / float(b) if float(b) > 0 else np.nan for a, b in zip(after, before, strict=True)]
    return out


def _losses(
    model: GuidedModel, inputs: Inputs, targets: Mapping[str, Tensor], rows: Tensor, *, with_gradient: bool = False
) -> list[Tensor]:
    """Return each task's loss over some rows, without gradient reversal."""
    device = next(model.parameters()).device
    with torch.set_grad_enabled(with_gradient):
        reads = model.reads(*inputs.rest(*inputs.batch(rows, device)))
        return [
            task_loss(task, model.output(task, reads), targets[task.name][rows], bounded=True) for task in model.tasks
        ]


def _set_training(model: GuidedModel, mode: bool) -> None:
    """Set dropout's mode; the backbone stays in evaluation mode."""
    model.train(mode)
    model.backbone.eval()
