"""Optimizers of a guided training."""

from __future__ import annotations

from typing import Any

import torch

from conceptkit.options.training import TrainingOptions


def adam(groups: list[dict[str, Any]], options: TrainingOptions, *, fused: bool) -> torch.optim.Optimizer:
    """Return Adam with the learning rate of the options."""
    return torch.optim.Adam(groups, lr=options.lr, fused=fused)


def sgd(groups: list[dict[str, Any]], options: TrainingOptions, *, fused: bool) -> torch.optim.Optimizer:
    """Return SGD with the learning rate and the momentum of the options."""
    nesterov = options.nesterov and options.momentum > 0
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov, fused=fused)
