"""Outputs that are attributed: the logits of a network, by the names of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError, near_names
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task

MOST_CLASSES = 10
"""Largest number of classes that are all attributed by default."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """An attributed number per image: a logit, or a concept that a head predicts."""

    name: str
    """Class of the main task, number of a class, or name of a head"""
    forward: Callable[[Tensor], Tensor]
    """Normalised images (n, 3, h, w) → (n,), never behind a sigmoid, a softmax or a gradient reversal"""


def choose_outputs(module: nn.Module, images: Tensor, wanted: Sequence[str] | None = None) -> list[Output]:
    """Return the named outputs.

    A guided network's main task of two classes has one logit, that of the second class; the first class has its
    negative. Other heads are named ``count``, or ``center:A`` for a class of a categorical concept. Classes of other
    networks are numbered from 0.

    Parameters
    ----------
    module : in evaluation mode
    images : (n, 3, h, w) normalised, on the network's device; a few
    wanted : names; ``None`` for the second class of two, else all classes

    Raises
    ------
    InputError
        when a target does not exist, must be named among many, or the network has no classes
    """
    if isinstance(module, GuidedModel):
        known, usual = _guided(module)
    else:
        known, usual = _plain(module, images)
    if wanted is None and len(usual) > MOST_CLASSES:
        raise InputError(f"target: the network has {len(usual)} classes; choose some of them, as in --target 0.")
    names = list(usual if wanted is None else wanted)
    for name in names:
        if name not in known:
            raise InputError(f"target: the network has no class {name!r}; {near_names(name, known)}.")
    return [Output(name=name, forward=known[name]) for name in names]


@dataclass(frozen=True)
class _Node:
    """A node of a guided network's head, with sign and scale of the output it stands for."""

    task: Task
    number: int
    factor: float = 1.0
    shift: float = 0.0

    def read(self, model: GuidedModel, reads: Mapping[str | None, Tensor]) -> Tensor:
        # Not model.outputs, whose reversal would change the sign of a discouraged head's gradient.
        value: Tensor = model.output(self.task, reads)[:, self.number] * self.factor + self.shift
        return value

    def forward(self, model: GuidedModel) -> Callable[[Tensor], Tensor]:
        return lambda images: self.read(model, model.reads(*model.features(images)))


def _nodes(model: GuidedModel) -> dict[str, _Node]:
    """Return every output of a guided network by name; the main task's classes go first where names are equal."""
    known: dict[str, _Node] = {}
    for task in sorted(model.tasks, key=lambda task: task.name != MAIN):
        if task.name == MAIN and task.nodes == 1:
            known |= {task.classes[0]: _Node(task, 0, -1.0), task.classes[1]: _Node(task, 0)}
        elif task.kind == CONTINUOUS:
            known.setdefault(task.name, _Node(task, 0, task.deviation, task.mean))
        else:
            for k, name in enumerate(task.classes):
                known.setdefault(name if task.name == MAIN else f"{task.name}:{name}", _Node(task, k))
    return known


def _guided(model: GuidedModel) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[str]]:
    """Return every output by name, and those attributed by default."""
    (main,) = (task for task in model.tasks if task.name == MAIN)
    known = {name: node.forward(model) for name, node in _nodes(model).items()}
    return known, [main.classes[1]] if main.nodes == 1 else list(main.classes)


def _plain(module: nn.Module, images: Tensor) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[str]]:
    if getattr(module, "num_classes", None) == 0:
        raise InputError(
            "model: this network returns features, not classes, so nothing can be attributed; "
            "set --model to a guide checkpoint or a classifier."
        )
    with torch.no_grad():
        found = module(images)
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = "×".join(map(str, found.shape[1:])) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"model: must return one logit per class and image, this network returns {shape}.")
    names = [str(k) for k in range(found.shape[1])]
    return {name: _logit(module, k) for k, name in enumerate(names)}, names


def _logit(module: nn.Module, k: int) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        value: Tensor = module(images)[:, k]
        return value

    return forward


def watch_outputs(module: nn.Module, outputs: Sequence[Output]) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Return a function from images to name → (n,): ``outputs``, and a guided network's concepts.

    Continuous concepts are in their unit, categorical ones are the probability of each class.
    """

    def look(images: Tensor) -> Mapping[str, Tensor]:
        if not isinstance(module, GuidedModel):
            values = module(images)
            return {output.name: values[:, int(output.name)] for output in outputs}
        reads = module.reads(*module.features(images))  # once for all of them
        nodes = _nodes(module)
        found = {output.name: nodes[output.name].read(module, reads) for output in outputs}
        for task in module.tasks:
            if task.kind == CONTINUOUS:
                found.setdefault(task.name, nodes[task.name].read(module, reads))
            elif task.name != MAIN:
                share = module.heads[task.name](reads[task.layer]).softmax(1)
                found |= {f"{task.name}:{name} (probability)": share[:, k] for k, name in enumerate(task.classes)}
        return found

    return look
