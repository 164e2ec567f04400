"""Training one guided network: what is trained, on which rows, for how long."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit._checks import InputError, check_at_least, check_choice
from conceptkit.guide.objective import REVERSALS, class_weights, task_loss
from conceptkit.guide.prefix import Pooled, cached, split
from conceptkit.guide.weighting import WEIGHTINGS
from conceptkit.models.activations import choose_device
from conceptkit.models.backbones import Backbone
from conceptkit.models.guided import CATEGORICAL, MAIN, GuidedModel, Task
from conceptkit.patches import Pixels

EpochProgress = Callable[[int, int], None]
"""Told how many epochs are done, and how many there may be."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a network is trained; the same for every run that is compared."""

    unfreeze: tuple[str, ...] = ()
    """Layers of the backbone that are trained, beside trunk and heads; their BatchNorm stays frozen"""
    trunk: tuple[int, ...] = (256, 64)
    dropout: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 40
    """At most"""
    warmup: int = 10
    """Epochs in which the reversal's schedule runs; no earlier state of any run can be the chosen one"""
    patience: int = 8
    """Epochs without a lower validation loss of main and encouraged tasks after which training stops"""
    batch_size: int = 32
    weighting: str = "uncertainty-bounded"
    reversal: str = "ramp"

    def check(self) -> None:
        """Raise :class:`InputError` for an option outside its range."""
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("reversal", self.reversal, REVERSALS)
        for name in ("epochs", "patience", "batch_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("warmup", self.warmup, 0)
        if not self.lr > 0:
            raise InputError(f"lr: must be above 0, got {self.lr}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must lie between 0 and 1, got {self.dropout}.")
        if any(width < 1 for width in self.trunk):
            raise InputError(f"trunk: widths must be at least 1, got {self.trunk}.")


@dataclass(frozen=True)
class Inputs:
    """The rows as a network's trained part sees them."""

    tensors: tuple[Tensor, ...]
    """Each (n, …), from :func:`prepare_inputs`"""
    rest: nn.Module
    """From these tensors to pooled features (n, width), from :func:`remaining_part`"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors of some rows."""
        return tuple(t[rows].to(device) for t in self.tensors)


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about."""

    model: GuidedModel
    history: tuple[Mapping[str, float], ...]
    best_epoch: int


def build_model(backbone: Backbone, tasks: Sequence[Task], options: TrainingOptions, *, seed: int) -> GuidedModel:
    """Build a guided network on a copy of ``backbone`` and set what is trained.

    The trunk and the main head of two networks of one seed start alike, whatever other heads they have.
    """
    own = copy.deepcopy(backbone.module)
    layers = [backbone.layer(name) for name in options.unfreeze]
    ordered = sorted(tasks, key=lambda t: t.name != MAIN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GuidedModel(own, _width(backbone), ordered, trunk=options.trunk, dropout=options.dropout)
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    for layer in layers:
        for module in own.get_submodule(layer).modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
    return model.eval()


def prepare_inputs(
    model: GuidedModel, backbone: Backbone, pixels: Iterable[Pixels], *, batch_size: int, device: str = "auto"
) -> tuple[Tensor, ...]:
    """Run the frozen part of a network once over all rows.

    Parameters
    ----------
    pixels : batches (≤ batch_size, h, w, 3); short ones are padded, so that every pass has one size

    Returns
    -------
    tensors (n, …), on the CPU, from which :func:`remaining_part` computes the features; the images themselves when
    nothing is frozen or the network cannot be cut
    """
    where = choose_device(device)
    parts = split(model)
    prefix = None if parts is None else parts[0].to(where).eval()
    collected: list[tuple[Tensor, ...]] = []
    for batch in pixels:
        padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        images = backbone.preprocessing(padded)
        tensors = (images,) if prefix is None else cached(prefix, images.to(where))
        collected.append(tuple(t[: len(batch)].cpu() for t in tensors))
    # Tensors of inference mode cannot take part in training; clones can.
    return tuple(torch.cat(column).clone() for column in zip(*collected, strict=True))


def remaining_part(model: GuidedModel) -> nn.Module:
    """Return the part of a network behind what :func:`prepare_inputs` computed; it shares the network's weights."""
    parts = split(model)
    return Pooled(model) if parts is None else parts[1]


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
            trunk = model.trunk(inputs.rest(*batch))
            shared.append(trunk)
            outputs.append({name: head(trunk) for name, head in model.heads.items()})
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
        self.weighting = WEIGHTINGS[options.weighting](model.tasks)
        in_training = torch.from_numpy(rows["train"])
        self.class_weights = {
            t.name: class_weights(targets[t.name][in_training], len(t.classes))
            for t in model.tasks
            if t.name == MAIN and t.kind == CATEGORICAL
        }
        self.wanted = [t.name for t in model.tasks if not t.adversarial]
        self.history: list[Mapping[str, float]] = []
        self.best_loss, self.best_epoch, self.best_state = float("inf"), 0, copy.deepcopy(model.state_dict())
        self._sums: dict[str, list[tuple[float, int]]] = {}

    def train(self, mode: bool = True) -> _Loop:
        """Set dropout's mode; the backbone stays in evaluation mode, its BatchNorm at its moving statistics."""
        super().train(mode)
        self.model.backbone.eval()
        self.rest.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Decay kernels alone; biases and loss weights are left free."""
        kernels: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                (kernels if parameter.ndim > 1 else others).append(parameter)
        decay = self.options.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": decay},
            {"params": [*others, *self.weighting.parameters()], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.options.lr)

    def on_train_epoch_start(self) -> None:
        """Set the reversal's strength for this epoch."""
        at = self.current_epoch / self.options.warmup if self.options.warmup else 1.0
        strength = REVERSALS[self.options.reversal](min(at, 1.0))
        for reversal in self.model.reversals.values():
            reversal.get_buffer("strength").fill_(strength)
        self._sums = {}

    def training_step(self, rows: Tensor, index: int) -> Tensor:
        """Return the weighted total over one batch."""
        losses = self._losses(rows, "train")
        total: Tensor = self.weighting(losses)
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
        loss = sum(entry[f"val/{name}"] for name in self.wanted if entry[f"val/{name}"] == entry[f"val/{name}"])
        settled = self.current_epoch >= min(self.options.warmup, self.options.epochs - 1)
        if settled and loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.current_epoch + 1
            self.best_state = copy.deepcopy(self.model.state_dict())
        if self.best_epoch and self.current_epoch + 1 - self.best_epoch >= self.options.patience:
            self.trainer.should_stop = True
        if self.progress is not None:
            self.progress(self.current_epoch + 1, self.options.epochs)

    def _losses(self, rows: Tensor, part: str) -> dict[str, Tensor]:
        rows = rows.cpu()
        batch = self.inputs.batch(rows, self.device)
        outputs = self.model.outputs(self.rest(*batch))
        losses = {}
        for task in self.model.tasks:
            target = self.targets[task.name][rows].to(self.device)
            losses[task.name] = task_loss(task, outputs[task.name], target, self.class_weights.get(task.name))
            labelled = int((torch.isfinite(target) if target.is_floating_point() else target >= 0).sum())
            self._sums.setdefault(f"{part}/{task.name}", []).append((float(losses[task.name].detach()), labelled))
        return losses


def _width(backbone: Backbone) -> int:
    """Return the number of pooled features a backbone gives."""
    width = getattr(backbone.module, "head_hidden_size", None) or getattr(backbone.module, "num_features", None)
    if width is None or not hasattr(backbone.module, "forward_head"):
        raise InputError(f"model: {backbone.name} has no pooled features to build a trunk on (no forward_head).")
    return int(width)


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
