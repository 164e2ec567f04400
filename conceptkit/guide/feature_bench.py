"""The bench on which adapters are trained: rows of features, read from their file when they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.guide.bench import PatchBench
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.prefix import Pooled
from conceptkit.models.adapter import Standardised
from conceptkit.models.checkpoints import save_checkpoint
from conceptkit.models.guided import GuidedModel, Task
from conceptkit.options.training import TrainingOptions

AT_ONCE = 4096
"""Rows read at a time for the moments of the columns"""


@dataclass(frozen=True)
class FeatureInputs(Inputs):
    """Rows of features as an adapter sees them; only those of a batch are read."""

    X: Any = None
    """(N, d), an array or a :class:`conceptkit.files.matrix.FileMatrix`"""
    at: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """(n,) row numbers of X"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the features (b, d) float32 of some rows."""
        return (torch.from_numpy(np.asarray(self.X[self.at[rows.numpy()]], dtype=np.float32)).to(device),)


@dataclass
class FeatureBench(PatchBench):
    """A bench of adapters."""

    _moments: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(default=None, init=False)

    def _inputs(self, network: GuidedModel) -> Inputs:
        at = np.searchsorted(self.setup.plan.used, self.used)
        return FeatureInputs((torch.empty(len(at), 0),), Pooled(network), X=self.setup.X, at=at)

    def build(self, tasks: Sequence[Task], options: TrainingOptions, seed: int) -> GuidedModel:
        """Return an adapter at its start, which standardises by the training rows."""
        network = super().build(tasks, options, seed)
        if self.setup.origin is None:
            if self._moments is None:
                self._moments = _moments(self.setup.X, np.searchsorted(self.setup.plan.used, self.plan.scaled_on))
            assert isinstance(network.backbone, Standardised)
            network.backbone.standardise(*self._moments)
        return network

    def save(self, network: GuidedModel, folder: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(network, self.setup.backbone, folder, marks=self.plan.marks)


def _moments(X: Any, rows: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the columns over some rows, in two passes over them."""
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    mean = sum(np.asarray(X[part], np.float64).sum(0) for part in parts) / len(rows)
    squares = sum(((np.asarray(X[part], np.float64) - mean) ** 2).sum(0) for part in parts)
    return np.asarray(mean), np.sqrt(np.asarray(squares) / len(rows))
