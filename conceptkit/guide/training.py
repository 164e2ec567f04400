"""Training one guided network: its epochs, and which of them is kept."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit._checks import InputError
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.objective import (
    REVERSALS,
    balance_factors,
    class_weights,
    confusion_loss,
    joint_codes,
    task_loss,
)
from conceptkit.guide.options import TrainingOptions
from conceptkit.guide.weighting import Weighting
from conceptkit.models.guided import CATEGORICAL, MAIN, GuidedModel
from conceptkit.models.inference import choose_device

EpochProgress = Callable[[int, int], None]
"""Told how many epochs are done, and how many there may be."""


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about."""

    model: GuidedModel
    history: tuple[Mapping[str, float], ...]
    best_epoch: int


def train(
    model: GuidedModel,
    inputs: Inputs,
    targets: Mapping[str, Tensor],
    rows: Mapping[str, NDArray[np.intp]],
    options: TrainingOptions,
    *,
    seed: int,
    device: str = "auto",
    progress: EpochProgress | None = None,
) -> Trained:
    """Train a network; the state of least validation loss is the one returned.

    Parameters
    ----------
    targets : task → (n,) encoded values of every row, see :func:`conceptkit.guide.objective.encode`
    rows : ``train`` and ``val`` → row numbers
    seed : of the batches' order and of dropout

    Raises
    ------
    InputError
        when a loss is not finite
    """
    where = choose_device(device)
    loop = _Loop(model, inputs, targets, rows, options, progress)
    batches = _Batches(torch.from_numpy(rows["train"]), options.batch_size, seed=seed)
    held_back = _Batches(torch.from_numpy(rows["val"]), 256, seed=None)
    with torch.random.fork_rng(devices=[]), _quiet_lightning():
        torch.manual_seed(seed)
        trainer = lightning.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu" if where.type == "cpu" else "auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loop.train()  # the trainer leaves modes as it finds them, and a built model is in evaluation mode
        trainer.fit(loop, batches, held_back)
    model.load_state_dict(loop.best_state)
    return Trained(model.eval().to("cpu"), tuple(loop.history), loop.best_epoch)


def predict(model: GuidedModel, inputs: Inputs, *, batch_size: int = 256) -> tuple[dict[str, Tensor], Tensor]:
    """Return task → raw output (n, nodes) and the trunk's end (n, width) for every row, in evaluation mode."""
    model.eval()
    inputs.rest.eval()
    outputs: list[dict[str, Tensor]] = []
    shared: list[Tensor] = []
    n = len(inputs.tensors[0])
    device = next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, n, batch_size):
            batch = inputs.batch(torch.arange(start, min(start + batch_size, n)), device)
            reads = model.reads(*inputs.rest(*batch))
            shared.append(reads[None])
            outputs.append(model.outputs(reads))
    return {name: torch.cat([o[name] for o in outputs]) for name in outputs[0]}, torch.cat(shared)


class _Batches:
    """Row numbers in batches, shuffled anew in every epoch from one seed; without a seed in order."""

    def __init__(self, rows: Tensor, size: int, *, seed: int | None) -> None:
        self.rows, self.size = rows, size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self.rows
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator)]
        return iter(torch.split(order, self.size))


class _Loop(lightning.LightningModule):
    """One network's epochs, for Lightning's trainer."""

    def __init__(
        self,
        model: GuidedModel,
        inputs: Inputs,
        targets: Mapping[str, Tensor],
        rows: Mapping[str, NDArray[np.intp]],
        options: TrainingOptions,
        progress: EpochProgress | None,
    ) -> None:
        super().__init__()
        self.model, self.rest = model, inputs.rest
        self.inputs, self.targets, self.options, self.progress = inputs, targets, options, progress
        self.weighting = Weighting(model.tasks, options.weighting)
        in_training = torch.from_numpy(rows["train"])
        self.class_weights = {
            t.name: class_weights(targets[t.name][in_training], len(t.classes))
            for t in model.tasks
            if t.name == MAIN and t.kind == CATEGORICAL
        }
        self.factors = {part: self._factors(torch.from_numpy(rows[part])) for part in ("train", "val")}
        self.strength = 0.0
        self.wanted = [t.name for t in model.tasks if not t.adversarial]
        self.history: list[Mapping[str, float]] = []
        self.best_loss, self.best_epoch, self.best_state = float("inf"), 0, copy.deepcopy(model.state_dict())
        self._sums: dict[str, list[tuple[float, int]]] = {}

    def _factors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return task → factors (n,) of all rows, those of ``rows`` balanced among themselves."""
        main = self.targets[MAIN][rows]
        discouraged = {
            t.name: self.targets[t.name][rows] for t in self.model.tasks if t.adversarial and t.kind == CATEGORICAL
        }
        found = {name: balance_factors(codes, main) for name, codes in discouraged.items() if self.options.balance}
        if discouraged and self.options.balance_main:
            found[MAIN] = balance_factors(
                joint_codes(list(discouraged.values())), main, power=self.options.balance_main
            )
        everywhere = {}
        for name, factors in found.items():
            everywhere[name] = torch.ones(len(self.targets[MAIN]))
            everywhere[name][rows] = factors
        return everywhere

    def train(self, mode: bool = True) -> _Loop:
        """Set dropout's mode; the backbone stays in evaluation mode, its BatchNorm at its moving statistics."""
        super().train(mode)
        self.model.backbone.eval()
        self.rest.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Decay the trunk's kernels alone; convolutions, heads, biases and loss weights are left free."""
        options = self.options
        kernels = [m.weight for m in self.model.trunk.modules() if isinstance(m, nn.Linear)]
        decayed = {id(p) for p in kernels}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in decayed]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": 2 * options.l2},
            {"params": [*others, *self.weighting.parameters()], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if options.optimizer == "adam":
            return torch.optim.Adam(groups, lr=options.lr)
        nesterov = options.nesterov and options.momentum > 0
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)

    def on_train_epoch_start(self) -> None:
        """Set the strength of the discouragement for this epoch."""
        options = self.options
        at = self.current_epoch / options.warmup if options.warmup else 1.0
        self.strength = options.strength * REVERSALS[options.reversal](min(at, 1.0))
        for reversal in self.model.reversals.values():
            # Under confusion the head learns from what it reads without any gradient into it.
            reversal.get_buffer("strength").fill_(self.strength if options.method == "reversal" else 0.0)
        if options.reset_weights and options.warmup and self.current_epoch == options.warmup:
            with torch.no_grad():
                for parameter in self.weighting.parameters():
                    parameter.zero_()
        self._sums = {}

    def training_step(self, rows: Tensor, index: int) -> Tensor:
        """Return the weighted total over one batch."""
        losses, confusion = self._losses(rows, "train")
        total: Tensor = self.weighting(losses) + self.strength * confusion
        if not torch.isfinite(total):
            broken = [name for name, loss in losses.items() if not torch.isfinite(loss)] or ["the total"]
            raise InputError(
                f"guide: the loss of {', '.join(broken)} is not finite in epoch {self.current_epoch + 1}; "
                "a lower --lr or --weighting uncertainty-bounded may help."
            )
        return total

    def validation_step(self, rows: Tensor, index: int) -> None:
        """Add one batch to the validation losses."""
        self._losses(rows, "val")

    def on_validation_epoch_end(self) -> None:
        """Record the epoch; keep its state when it is the best one after the reversal's schedule."""
        entry = {"epoch": float(self.current_epoch + 1)}
        for key, parts in self._sums.items():
            n = sum(count for _, count in parts)
            entry[key] = sum(value * count for value, count in parts) / n if n else float("nan")
        entry |= {f"weight/{name}": value for name, value in self.weighting.weights().items()}
        self.history.append(entry)
        self.weighting.end_epoch({t.name: entry[f"train/{t.name}"] for t in self.model.tasks})
        loss = sum(entry[f"val/{name}"] for name in self.wanted if entry[f"val/{name}"] == entry[f"val/{name}"])
        settled = self.current_epoch >= min(self.options.warmup, self.options.epochs - 1)
        if settled and loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.current_epoch + 1
            self.best_state = copy.deepcopy(self.model.state_dict())
        if self.best_epoch and self.current_epoch + 1 - self.best_epoch >= self.options.patience:
            self.trainer.should_stop = True
        if self.progress is not None:
            self.progress(self.current_epoch + 1, self.options.epochs)

    def _losses(self, rows: Tensor, part: str) -> tuple[dict[str, Tensor], Tensor]:
        """Return each task's loss over a batch, and the confusion of the discouraged ones (0 under reversal)."""
        rows = rows.cpu()
        batch = self.inputs.batch(rows, self.device)
        reads = self.model.reads(*self.rest(*batch))
        outputs = self.model.outputs(reads)
        held = self.model.held_outputs(reads) if self.options.method == "confusion" else {}
        losses = {}
        confusion = torch.zeros((), device=self.device)
        for task in self.model.tasks:
            target = self.targets[task.name][rows].to(self.device)
            factors = self.factors[part].get(task.name)
            if factors is not None:
                factors = factors[rows]
            weights = self.class_weights.get(task.name)
            losses[task.name] = task_loss(task, outputs[task.name], target, weights, factors)
            if task.name in held:
                confusion = confusion + confusion_loss(task, held[task.name], target, factors)
            labelled = int((torch.isfinite(target) if target.is_floating_point() else target >= 0).sum())
            self._sums.setdefault(f"{part}/{task.name}", []).append((float(losses[task.name].detach()), labelled))
        return losses, confusion


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence advice that does not apply: batches come from memory, and devices are chosen by the user."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        logger.setLevel(level)
