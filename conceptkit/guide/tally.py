"""Sums over the batches of an epoch, over all processes, for its losses and scores."""

from __future__ import annotations

import torch
from torch import Tensor

from conceptkit.models.guided import CONTINUOUS, Task


class Tally:
    """Sums by part of the rows and task; a loss is the mean over labelled rows, whatever their batches."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}

    def add(self, part: str, task: Task, output: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        part : ``train`` or ``val``
        output : (n, nodes) of the task's head
        target : (n,) as :func:`conceptkit.guide.objective.encode` gives it
        loss : scalar, the mean over the batch's labelled rows
        """
        labelled = ~torch.isnan(target) if task.kind == CONTINUOUS else target >= 0
        y, out = target[labelled], output.detach()[labelled]
        n = len(y)
        head = torch.tensor([float(n), float(loss.detach()) * n], dtype=torch.float64)
        if task.kind == CONTINUOUS:
            value, read = y.double().cpu(), out[:, 0].double().cpu()
            body = torch.stack([value.sum(), (value**2).sum(), ((value - read) ** 2).sum()])
        else:
            k = len(task.classes)
            predicted = (out[:, 0] > 0).long() if task.nodes == 1 else out.argmax(1)
            body = torch.bincount((y * k + predicted).cpu(), minlength=k * k).double()
        found = torch.cat([head, body])
        key = (part, task.name)
        self._sums[key] = self._sums[key] + found if key in self._sums else found

    def close(self, tasks: tuple[Task, ...]) -> dict[str, float]:
        """Return the losses ``train/TASK`` and ``val/TASK`` and ``score/TASK``, the head's on validation rows.

        A score is R² of a continuous task and balanced accuracy of a categorical one. NaN without labelled rows.
        """
        found: dict[str, float] = {}
        nothing = float("nan")
        for part in ("train", "val"):
            for task in tasks:
                sums = self._sums.get((part, task.name))
                if sums is None:
                    size = 3 if task.kind == CONTINUOUS else len(task.classes) ** 2
                    sums = torch.zeros(2 + size, dtype=torch.float64)
                sums = summed(sums)
                n = float(sums[0])
                found[f"{part}/{task.name}"] = float(sums[1]) / n if n else nothing
                if part == "val":
                    found[f"score/{task.name}"] = _score(task, sums[2:], n)
        return found


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes; in one process the values themselves."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    where = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    moved = values.detach().clone().to(where)
    torch.distributed.all_reduce(moved)
    return moved.to(values.device)


def _score(task: Task, sums: Tensor, n: float) -> float:
    if not n:
        return float("nan")
    if task.kind == CONTINUOUS:
        first, second, residual = (float(s) for s in sums)
        spread = second - first**2 / n
        return 1.0 - residual / spread if spread > 0 else float("nan")
    table = sums.reshape(len(task.classes), -1)
    of_class = table.sum(1)
    occurring = of_class > 0
    return float((table.diagonal()[occurring] / of_class[occurring]).mean())
