"""One network's epochs, for Lightning's trainer: what happens in a step, and which state is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.families import DISCOURAGING, OPTIMIZERS, SCHEDULES
from conceptkit.guide.aggregation import aggregator, backward
from conceptkit.guide.discouraging import Method, pressure
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.objective import balance_factors, class_weights, joint_codes, task_loss
from conceptkit.guide.options import TrainingOptions
from conceptkit.guide.tally import Tally, summed
from conceptkit.guide.weighting import Weighting
from conceptkit.models.guided import CATEGORICAL, MAIN, Erasure, GuidedModel
from conceptkit.models.inference import ieee_float32
from conceptkit.probe.erasure import fit_eraser

EpochProgress = Callable[[int, int], None]
"""Told how many epochs are done, and how many there may be."""


EVERY = 20.0
"""Seconds that pass at least between two writings of a training's state"""


class NotFiniteError(InputError):
    """A training that ended in numbers that are none."""


class Batches:
    """Row numbers in batches, shuffled anew in every epoch from one seed; without a seed in order.

    In several processes each gets its share of every batch, so that the batches are those of one process.
    """

    def __init__(self, rows: Tensor, size: int, *, seed: int | None) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.epoch, self.rank, self.world = 0, 0, 1
        self._generator: torch.Generator | None = None
        self._drawn = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        # Nothing is drawn before the first batch is asked for: a loader may be opened before the epoch is known.
        for batch in torch.split(self._order(), self.size):
            yield batch[self.rank :: self.world]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the generator: its state would have to outlive the way to another process."""
        return {**self.__dict__, "_generator": None, "_drawn": 0}

    def _order(self) -> Tensor:
        """Return the epoch's order, which depends on seed and epoch alone."""
        if self.seed is None:
            return self.rows
        if self._generator is None or self._drawn > self.epoch:
            self._generator, self._drawn = torch.Generator().manual_seed(self.seed), 0
        while self._drawn <= self.epoch:
            order = torch.randperm(len(self.rows), generator=self._generator)
            self._drawn += 1
        return self.rows[order]


class Loop(lightning.LightningModule):
    """One network's epochs.

    Parameters
    ----------
    model, inputs, targets, rows, options : as for :func:`conceptkit.guide.training.train`
    batches : of the training rows
    progress : told after every epoch
    """

    def __init__(
        self,
        model: GuidedModel,
        inputs: Inputs,
        targets: Mapping[str, Tensor],
        rows: Mapping[str, NDArray[np.intp]],
        options: TrainingOptions,
        batches: Batches,
        progress: EpochProgress | None = None,
    ) -> None:
        super().__init__()
        self.model, self.rest = model, inputs.rest
        self.inputs, self.targets, self.options, self.progress = inputs, targets, options, progress
        self.batches = batches
        self.weighting = Weighting(model.tasks, options.weighting)
        self.aggregator = None if self.weighting.aggregation is None else aggregator(self.weighting.aggregation)
        self.absent: set[str] = set()
        """Tasks without a label in the present batch, in any process"""
        self._parts: tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]] | None = None
        self.in_training = torch.from_numpy(rows["train"])
        self.class_weights = {
            t.name: class_weights(targets[t.name][self.in_training], len(t.classes))
            for t in model.tasks
            if t.name == MAIN and t.kind == CATEGORICAL
        }
        self.factors = {part: self._factors(torch.from_numpy(rows[part])) for part in ("train", "val")}
        self.strength = 0.0
        self.wanted = [t.name for t in model.tasks if not t.adversarial]
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch, self.best_state = float("inf"), 0, learned(model)
        self.last_epoch, self.last_state = 0, self.best_state
        self.rescued: Path | None = None
        """File that a process among several writes its good state into before it ends with an error"""
        self.handed: Path | None = None
        """File that one of several processes of a machine writes what it has learned into at the end"""
        self.tally = Tally()

    @property
    def finished(self) -> bool:
        """Return whether the last epoch is done, or the patience is at its end."""
        done = len(self.history)
        return done >= self.options.epochs or bool(self.best_epoch and done - self.best_epoch >= self.options.patience)

    @property
    def good(self) -> tuple[int, dict[str, Tensor]]:
        """Return epoch and state of the best epoch, before there is one of the last that ended well; 0 without one."""
        return (self.best_epoch, self.best_state) if self.best_epoch else (self.last_epoch, self.last_state)

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

    def train(self, mode: bool = True) -> Loop:
        """Set dropout's mode; the backbone stays in evaluation mode, its BatchNorm at its moving statistics."""
        super().train(mode)
        self.model.backbone.eval()
        self.rest.eval()
        return self

    @property
    def method(self) -> Method:
        """How concepts are discouraged; looked up by name, as a process that is spawned receives the options only."""
        method: Method = DISCOURAGING[self.options.method]
        return method

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
        # One pass over parameters, gradients and moments in place of ten: a tenth of a step on cached features. Not
        # where gradients are aggregated: heads without a label in a batch have none, which torch's fused SGD refuses.
        fused = self.aggregator is None
        optimizer: torch.optim.Optimizer = OPTIMIZERS[options.optimizer](groups, options, fused=fused)
        return optimizer

    def on_train_start(self) -> None:
        """Take this process' share of every batch, and compute as one process does."""
        if self.trainer.world_size > 1:  # a spawned process, which ends with the training
            self._flags = ieee_float32()
            self._flags.__enter__()
        self.batches.rank, self.batches.world = self.global_rank, self.trainer.world_size

    def on_train_epoch_start(self) -> None:
        """Set the order of the rows and the strength of the discouragement for this epoch."""
        self.batches.epoch = self.current_epoch
        options = self.options
        at = self.current_epoch / options.warmup if options.warmup else 1.0
        self.strength = options.strength * SCHEDULES[options.reversal](min(at, 1.0))
        for reversal in self.model.reversals.values():
            # Unless reversed, the head's gradient stays in the head.
            reversal.get_buffer("strength").fill_(self.strength if self.method.reverses else 0.0)
        if options.reset_weights and options.warmup and self.current_epoch == options.warmup:
            with torch.no_grad():
                for parameter in self.weighting.parameters():
                    parameter.zero_()
        if self.method.erases and self.model.erasure is not None:
            self.erase(self.model.erasure)
        self.tally = Tally()

    def training_step(self, rows: Tensor, index: int) -> Tensor:
        """Return the weighted total over one batch."""
        losses, pressures, reads = self._losses(rows, "train")
        if self.aggregator is not None:
            self._parts = losses, pressures, reads
        total: Tensor = self.weighting(losses, self.absent) + self.strength * sum(
            pressures.values(), torch.zeros(()).to(self.device)
        )
        if not torch.isfinite(total):
            parts = {**losses, **pressures}
            self._end("", [name for name, loss in parts.items() if not torch.isfinite(loss)] or ["the total"], rows)
        return total

    def _end(self, part: str, broken: list[str], rows: Tensor) -> None:
        """End the training with a sentence: which losses of a batch are not finite, and why if that can be told."""
        rows = rows.cpu()
        given = torch.ones(len(rows), dtype=torch.bool)
        for tensor in self.inputs.batch(rows, torch.device("cpu")):
            given &= torch.isfinite(tensor.flatten(1).float()).all(1)
        infinite = [name for name in broken if name in self.targets and torch.isinf(self.targets[name][rows]).any()]
        if not given.all():
            cause = (
                f"what the network is given is not finite in {int((~given).sum())} of the {len(rows)} rows of the "
                "batch, which no option of training mends."
            )
        elif infinite:
            cause = f"values of {', '.join(infinite)} are infinite, leave empty what was not measured."
        else:
            cause = "a lower --lr or --weighting uncertainty-bounded may help."
        if self.rescued is not None:
            _save_whole({"history": self.history, "good": self.good}, self.rescued)
        what = f"{part}loss of {', '.join(broken)}"
        raise NotFiniteError(f"guide: the {what} is not finite in epoch {self.current_epoch + 1}; {cause}")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of one batch: those of the total, or the tasks' own, aggregated."""
        if self.aggregator is None or self._parts is None:
            super().backward(loss, *args, **kwargs)
            return
        (losses, pressures, reads), self._parts = self._parts, None
        heads = {id(p) for p in self.model.heads.parameters()}
        parameters = [p for p in self.model.parameters() if p.requires_grad and id(p) not in heads]
        # A row without a gradient into what is shared would let some aggregators stand still.
        tasks = [t for t in self.model.tasks if t.name not in self.absent]
        alone = [] if self.method.reverses else [losses[t.name] for t in tasks if t.adversarial]
        rows = [losses[t.name] for t in tasks if self.method.reverses or not t.adversarial]
        if self.strength:
            rows += [self.strength * value for name, value in pressures.items() if name not in self.absent]
        backward(rows, alone, reads, parameters, self.aggregator)

    def on_validation_epoch_start(self) -> None:
        """Give each process its share of the rows that are held back."""
        held_back: Any = self.trainer.val_dataloaders
        held_back.rank, held_back.world = self.global_rank, self.trainer.world_size

    def validation_step(self, rows: Tensor, index: int) -> None:
        """Add one batch to the validation losses."""
        losses = self._losses(rows, "val")[0]
        # A loss that is no number must not pass for one without labels, which the choice of an epoch leaves out.
        broken = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        if broken:
            self._end("validation ", broken, rows)

    def on_validation_epoch_end(self) -> None:
        """Record the epoch; keep its state when it is the best one after the schedule of the discouragement."""
        entry = {"epoch": float(self.current_epoch + 1), **self.tally.close(self.model.tasks)}
        entry |= {f"weight/{name}": value for name, value in self.weighting.weights().items()}
        self.history.append(entry)
        for logger in self.trainer.loggers:
            logger.log_metrics({k: v for k, v in entry.items() if v == v}, step=self.current_epoch + 1)
        self.weighting.end_epoch({t.name: entry[f"train/{t.name}"] for t in self.model.tasks})
        loss = sum(entry[f"val/{name}"] for name in self.wanted if entry[f"val/{name}"] == entry[f"val/{name}"])
        settled = self.current_epoch >= min(self.options.warmup, self.options.epochs - 1)
        if settled and loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.current_epoch + 1
            self.best_state = learned(self.model)
        if not self.best_epoch:
            self.last_epoch, self.last_state = self.current_epoch + 1, learned(self.model)
        if self.finished:
            self.trainer.should_stop = True
        if self.progress is not None:
            self.progress(self.current_epoch + 1, self.options.epochs)

    def on_train_end(self) -> None:
        """Hand over what was learned to the process that has started this one; all processes have learned the same."""
        if self.handed is not None and self.local_rank == 0:
            _save_whole(
                {"history": self.history, "best": (self.best_loss, self.best_epoch, self.best_state)}, self.handed
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no parameter: the history, the best state, and the state of every source of chance."""
        checkpoint["conceptkit"] = {
            "history": self.history,
            "best": (self.best_loss, self.best_epoch, self.best_state),
            "before": self.weighting.before,
            "chance": torch.get_rng_state(),
            "chance_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        kept = checkpoint["conceptkit"]
        self.history = list(kept["history"])
        self.best_loss, self.best_epoch, self.best_state = kept["best"]
        self.weighting.before = list(kept["before"])
        torch.set_rng_state(kept["chance"])
        if kept["chance_cuda"]:
            torch.cuda.set_rng_state_all(kept["chance_cuda"])

    def erase(self, erasure: Erasure) -> None:
        """Fit the erasure of the discouraged concepts on the training rows as the trunk now gives them.

        The rows have the factors of the adversaries' losses, so that what label and concept share is not erased for
        the concept's sake; rows that lack one of the concepts take no part.
        """
        model = self.model
        tasks = [task for task in model.tasks if task.adversarial]
        features = self._trunk(self.in_training)
        known = torch.ones(len(self.in_training), dtype=torch.bool)
        columns, codes = [], []
        for task in tasks:
            target = self.targets[task.name][self.in_training]
            if task.kind == CATEGORICAL:
                known &= target >= 0
                columns.append(nn.functional.one_hot(target.clamp_min(0), len(task.classes)).double())
                codes.append(target)
            else:
                known &= ~torch.isnan(target)
                columns.append(target.double()[:, None])
        weights = torch.ones(len(known))
        if self.options.balance and codes:
            weights = balance_factors(joint_codes(codes), self.targets[MAIN][self.in_training])
        eraser = fit_eraser(
            features[known].double().numpy(), torch.cat(columns, 1)[known].numpy(), weights[known].double().numpy()
        )
        erasure.matrix.copy_(torch.from_numpy(eraser.matrix))
        erasure.mean.copy_(torch.from_numpy(eraser.mean))

    def _trunk(self, rows: Tensor) -> Tensor:
        """Return the trunk's end (n, width) of some rows before any erasure, without dropout."""
        was = self.training
        self.eval()
        with torch.no_grad():
            found = [
                self.model.trunk(self.rest(*self.inputs.batch(part, self.device))[0]).cpu()
                for part in torch.split(rows, 256)
            ]
        self.train(was)
        return torch.cat(found)

    def _losses(self, rows: Tensor, part: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
        """Return each task's loss over a batch, what presses on the shared layers by discouraged task, and the reads.

        In several processes a loss is scaled so that the mean over processes, which is what their gradients are
        averaged to, is the mean over all labelled rows of the batch: labels may be missing unevenly.
        """
        rows = rows.cpu()
        reads = self.model.reads(*self.rest(*self.inputs.batch(rows, self.device)))
        outputs = self.model.outputs(reads)
        targets = {task.name: self.targets[task.name][rows].to(self.device) for task in self.model.tasks}
        factors = {name: values[rows] for name, values in self.factors[part].items()}
        losses = {}
        for task in self.model.tasks:
            loss = task_loss(
                task,
                outputs[task.name],
                targets[task.name],
                self.class_weights.get(task.name),
                factors.get(task.name),
            )
            self.tally.add(part, task, outputs[task.name], targets[task.name], loss)
            losses[task.name] = loss
        pressures = pressure(self.method, self.model, reads, targets, factors) if part == "train" else {}
        if part == "train":
            own = torch.tensor([float(_labelled(targets[task.name])) for task in self.model.tasks])
            everywhere = summed(own)
            self.absent = {task.name for task, n in zip(self.model.tasks, everywhere, strict=True) if not n}
            share = own * self.trainer.world_size / everywhere.clamp_min(1.0)
        if part == "train" and self.trainer.world_size > 1:
            scale = {task.name: float(s) for task, s in zip(self.model.tasks, share, strict=True)}
            losses = {name: scale[name] * loss for name, loss in losses.items()}
            pressures = {name: scale[name] * value for name, value in pressures.items()}
        return losses, pressures, list(reads.values())


def learned(model: GuidedModel) -> dict[str, Tensor]:
    """Return copies of what a training changes, by their names in the state: most of a network is frozen."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= {f"backbone.{name}" for name, _ in model.backbone.named_buffers()}  # of a backbone in evaluation mode
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in frozen}


def _save_whole(content: dict[str, Any], path: Path) -> None:
    """Write a file of this training's scratch folder: whole, whichever of several processes writes it last."""
    own = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, own)
    os.replace(own, path)


def _labelled(target: Tensor) -> int:
    return int((~torch.isnan(target) if target.is_floating_point() else target >= 0).sum())


class KeepState(lightning.Callback):
    """Writes the state of a training after epochs, so that a killed one goes on where it was.

    Parameters
    ----------
    path : of the file; it is replaced in one step
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the state when it is time, and at the end."""
        loop: Any = pl_module
        due = loop.finished or time.monotonic() - self._last >= EVERY
        # The first process' clock decides: all of several processes write together, or none.
        if not trainer.strategy.broadcast(due):
            return
        self._last = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.writing")
        try:
            trainer.save_checkpoint(temporary)
        except OSError:  # a full disk has no room for half a state
            temporary.unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
