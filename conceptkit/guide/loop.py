"""The epochs of one network as a Lightning module: the steps, and which state is kept."""

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
from conceptkit.guide.discouraging import Earlier, Method, best_constant, pressure
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.objective import balance_factors, binned, class_weights, even_factors, joint_codes, task_loss
from conceptkit.guide.tally import Tally, summed
from conceptkit.guide.weighting import Weighting
from conceptkit.models.guided import CATEGORICAL, MAIN, Erasure, GuidedModel
from conceptkit.models.inference import ieee_float32
from conceptkit.options.training import TrainingOptions
from conceptkit.probe.erasure import fit_eraser

EpochProgress = Callable[[int, int], None]
"""Receives the number of epochs done and the maximum."""


EVERY = 20.0
"""Minimum seconds between two writings of the state of a training"""


class NotFiniteError(InputError):
    """Training diverged: a loss is not finite."""


class Batches:
    """Row numbers in batches, shuffled in every epoch; without a seed in order.

    Each of several processes gets its share of every batch, so that the batches are those of one process.
    """

    def __init__(self, rows: Tensor, size: int, *, seed: int | None) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.epoch, self.rank, self.world = 0, 0, 1
        self._generator: torch.Generator | None = None
        self._drawn = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        # Drawn with the first batch, as a loader may be opened before the epoch is known.
        for batch in torch.split(self._order(), self.size):
            yield batch[self.rank :: self.world]

    def __getstate__(self) -> dict[str, Any]:
        """Omit the generator, which another process makes again."""
        return {**self.__dict__, "_generator": None, "_drawn": 0}

    def _order(self) -> Tensor:
        """Return the order of the epoch, which depends only on seed and epoch."""
        if self.seed is None:
            return self.rows
        if self._generator is None or self._drawn > self.epoch:
            self._generator, self._drawn = torch.Generator().manual_seed(self.seed), 0
        while self._drawn <= self.epoch:
            order = torch.randperm(len(self.rows), generator=self._generator)
            self._drawn += 1
        return self.rows[order]


class Loop(lightning.LightningModule):
    """The epochs of one network; see :func:`conceptkit.guide.training.train` for the parameters."""

    def __init__(
        self,
        model: GuidedModel,
        inputs: Inputs,
        targets: Mapping[str, Tensor],
        rows: Mapping[str, NDArray[np.intp]],
        options: TrainingOptions,
        batches: Batches,
        progress: EpochProgress | None = None,
        shortcut: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model, self.rest = model, inputs.rest
        self.inputs, self.targets, self.options, self.progress = inputs, targets, options, progress
        self.batches, self.shortcut = batches, shortcut
        self.shown: Tensor | None = None
        """(n,) row of the inputs that each row shows in this epoch, if there are re-stained copies"""
        self.weighting = Weighting(model.tasks, options.weighting)
        self.aggregator = None if self.weighting.aggregation is None else aggregator(self.weighting.aggregation)
        self.absent: set[str] = set()
        """Tasks without a label in the current batch, in any process"""
        self._parts: tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]] | None = None
        self.in_training = torch.from_numpy(rows["train"])
        self.class_weights = {
            t.name: class_weights(targets[t.name][self.in_training], len(t.classes))
            for t in model.tasks
            if t.name == MAIN and t.kind == CATEGORICAL
        }
        self.factors = {part: self._factors(torch.from_numpy(rows[part])) for part in ("train", "val")}
        self.constants = {
            t.name: best_constant(
                t, targets[t.name][self.in_training], self._of_training(self.factors["train"].get(t.name))
            )
            for t in model.tasks
            if t.adversarial
        }
        self.memory: dict[str, Earlier] = {}
        self.strength = 0.0
        self.wanted = [MAIN] if options.stop_by == "main" else [t.name for t in model.tasks if not t.adversarial]
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch, self.best_state = float("inf"), 0, learned(model)
        self.last_epoch, self.last_state = 0, self.best_state
        self.rescued: Path | None = None
        """File for the last good state of one of several processes that ends with an error"""
        self.handed: Path | None = None
        """File for the result of one of several processes"""
        self.tally = Tally()

    @property
    def finished(self) -> bool:
        """Return whether the last epoch is done, or the patience is exhausted."""
        done = len(self.history)
        return done >= self.options.epochs or bool(self.best_epoch and done - self.best_epoch >= self.options.patience)

    @property
    def good(self) -> tuple[int, dict[str, Tensor]]:
        """Return the best epoch and its state; without one the last epoch that ended well, 0 if none did."""
        return (self.best_epoch, self.best_state) if self.best_epoch else (self.last_epoch, self.last_state)

    def _factors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return task → factors (n,) of all rows, which balance ``rows``.

        Classes of an adversary count alike; only reversal without balance, the paper's, takes the rows as they are.
        """
        main = self.targets[MAIN][rows]
        adversaries = {t: self.targets[t.name][rows] for t in self.model.tasks if t.adversarial}
        discouraged = [codes for t, codes in adversaries.items() if t.kind == CATEGORICAL]
        balance, found = self.options.balance, {}
        for task, target in adversaries.items():
            if task.kind == CATEGORICAL and (balance or not self.method.reverses):
                found[task.name] = even_factors(target, main if balance else None)
            elif balance and task.kind != CATEGORICAL:
                found[task.name] = balance_factors(binned(target), main)
        shortcut = joint_codes(discouraged) if self.shortcut is None and discouraged else self.shortcut
        if shortcut is not None and self.options.balance_main:
            own = shortcut if self.shortcut is None else shortcut[rows]
            found[MAIN] = balance_factors(own, main, power=self.options.balance_main)
        everywhere = {}
        for name, factors in found.items():
            everywhere[name] = torch.ones(len(self.targets[MAIN]))
            everywhere[name][rows] = factors
        return everywhere

    def _of_training(self, factors: Tensor | None) -> Tensor | None:
        return None if factors is None else factors[self.in_training]

    def train(self, mode: bool = True) -> Loop:
        """Set the mode of dropout; the backbone stays in evaluation mode, with the moving statistics of BatchNorm."""
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
        """Return the optimizer; only the kernels of the trunk have weight decay."""
        options = self.options
        kernels = [m.weight for m in self.model.trunk.modules() if isinstance(m, nn.Linear)]
        decayed = {id(p) for p in kernels}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in decayed]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": 2 * options.l2},
            {"params": [*others, *self.weighting.parameters()], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # Fused saves a tenth of a step on cached features. With aggregated gradients, heads without a label in a batch
        # have no gradient, which torch's fused SGD refuses.
        fused = self.aggregator is None
        optimizer: torch.optim.Optimizer = OPTIMIZERS[options.optimizer](groups, options, fused=fused)
        return optimizer

    def on_train_start(self) -> None:
        """Use this process' share of every batch, and compute as a single process does."""
        if self.trainer.world_size > 1:  # a spawned process ends with the training
            self._flags = ieee_float32()
            self._flags.__enter__()
        self.batches.rank, self.batches.world = self.global_rank, self.trainer.world_size

    def on_train_epoch_start(self) -> None:
        """Set the order of the rows and the strength of discouraging for this epoch."""
        self.batches.epoch = self.current_epoch
        options = self.options
        at = self.current_epoch / options.warmup if options.warmup else 1.0
        self.strength = options.strength * SCHEDULES[options.reversal](min(at, 1.0))
        for reversal in self.model.reversals.values():
            # Without reversal, the head's gradient stays in the head.
            reversal.get_buffer("strength").fill_(self.strength if self.method.reverses else 0.0)
        if options.reset_weights and options.warmup and self.current_epoch == options.warmup:
            with torch.no_grad():
                for parameter in self.weighting.parameters():
                    parameter.zero_()
        if self.method.erases and self.model.erasure is not None:
            self.erase(self.model.erasure)
        self.shown = self.inputs.versions(self.batches.seed or 0, self.current_epoch)
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
        """End the training with an error that names the losses that are not finite and, if known, the cause."""
        rows = rows.cpu()
        given = torch.ones(len(rows), dtype=torch.bool)
        for tensor in self.inputs.batch(rows, torch.device("cpu")):
            given &= torch.isfinite(tensor.flatten(1).float()).all(1)
        infinite = [name for name in broken if name in self.targets and torch.isinf(self.targets[name][rows]).any()]
        if not given.all():
            cause = (
                f"the input of the network is not finite in {int((~given).sum())} of the {len(rows)} rows of the "
                "batch, which no training option can change."
            )
        elif infinite:
            cause = f"values of {', '.join(infinite)} are infinite; leave missing values empty."
        else:
            cause = "a lower --lr or --weighting uncertainty-bounded may help."
        if self.rescued is not None:
            _save_whole({"history": self.history, "good": self.good}, self.rescued)
        what = f"{part}loss of {', '.join(broken)}"
        raise NotFiniteError(f"guide: the {what} is not finite in epoch {self.current_epoch + 1}; {cause}")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of one batch: of the total, or aggregated over tasks."""
        if self.aggregator is None or self._parts is None:
            super().backward(loss, *args, **kwargs)
            return
        (losses, pressures, reads), self._parts = self._parts, None
        heads = {id(p) for p in self.model.heads.parameters()}
        parameters = [p for p in self.model.parameters() if p.requires_grad and id(p) not in heads]
        # Some aggregators make no step if a row has no gradient into the shared layers.
        tasks = [t for t in self.model.tasks if t.name not in self.absent]
        separate = [] if self.method.reverses else [losses[t.name] for t in tasks if t.adversarial]
        rows = [losses[t.name] for t in tasks if self.method.reverses or not t.adversarial]
        if self.strength:
            rows += [self.strength * value for name, value in pressures.items() if name not in self.absent]
        backward(rows, separate, reads, parameters, self.aggregator)

    def on_validation_epoch_start(self) -> None:
        """Use this process' share of the validation rows."""
        held_back: Any = self.trainer.val_dataloaders
        held_back.rank, held_back.world = self.global_rank, self.trainer.world_size

    def validation_step(self, rows: Tensor, index: int) -> None:
        """Add one batch to the validation losses."""
        losses = self._losses(rows, "val")[0]
        # NaN also stands for a loss without labels, which the choice of an epoch ignores.
        broken = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        if broken:
            self._end("validation ", broken, rows)

    def on_validation_epoch_end(self) -> None:
        """Record the epoch; keep its state if it is the best one after the warmup."""
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
        """Hand the result to the process that started this one; all processes have the same."""
        if self.handed is not None and self.local_rank == 0:
            _save_whole(
                {"history": self.history, "best": (self.best_loss, self.best_epoch, self.best_state)}, self.handed
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history, the best state and the random states."""
        checkpoint["conceptkit"] = {
            "history": self.history,
            "best": (self.best_loss, self.best_epoch, self.best_state),
            "before": self.weighting.before,
            "memory": self.memory,
            "chance": torch.get_rng_state(),
            "chance_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        kept = checkpoint["conceptkit"]
        self.history = list(kept["history"])
        self.best_loss, self.best_epoch, self.best_state = kept["best"]
        self.weighting.before, self.memory = list(kept["before"]), kept["memory"]
        torch.set_rng_state(kept["chance"])
        if kept["chance_cuda"]:
            torch.cuda.set_rng_state_all(kept["chance_cuda"])

    def erase(self, erasure: Erasure) -> None:
        """Fit the erasure of the discouraged concepts to the current output of the trunk for the training rows.

        Rows have the factors of the adversaries' losses, so that what label and concept share is not erased; rows
        without a value of one of the concepts are ignored.
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
        """Return the output (n, width) of the trunk before any erasure, without dropout."""
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
        """Return each task's loss over a batch, the loss of the shared layers by discouraged task, and the features.

        In several processes a loss is scaled so that the mean over processes is the mean over all labelled rows of the
        batch, as labels may be missing unevenly.
        """
        rows = rows.cpu()
        seen = rows if self.shown is None or part != "train" else self.shown[rows]
        reads = self.model.reads(*self.rest(*self.inputs.batch(seen, self.device)))
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
                bounded=self.method.reverses,
            )
            self.tally.add(part, task, outputs[task.name], targets[task.name], loss)
            losses[task.name] = loss
        pressures: dict[str, Tensor] = {}
        if part == "train":
            pressures = pressure(self.method, self.model, reads, targets, factors, self.constants, self.memory)
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
    """Return copies of the tensors that training changes, by their names in the state."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= {f"backbone.{name}" for name, _ in model.backbone.named_buffers()}  # of a backbone in evaluation mode
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in frozen}


def _save_whole(content: dict[str, Any], path: Path) -> None:
    """Write a file in one step, as several processes may write it."""
    own = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, own)
    os.replace(own, path)


def _labelled(target: Tensor) -> int:
    return int((~torch.isnan(target) if target.is_floating_point() else target >= 0).sum())


class KeepState(lightning.Callback):
    """Writes the state of a training to a file after epochs, so that a killed one can be resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the state if it is due, and at the end."""
        loop: Any = pl_module
        due = loop.finished or time.monotonic() - self._last >= EVERY
        # The clock of the first process decides, as all processes write together.
        if not trainer.strategy.broadcast(due):
            return
        self._last = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.writing")
        try:
            trainer.save_checkpoint(temporary)
        except OSError:  # such as a full disk
            temporary.unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
