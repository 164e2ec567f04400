"""Training on bags: patches' features gathered and padded, so that the loop sees bags as it sees rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.families import DISCOURAGING
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.guide.options import TrainingOptions
from conceptkit.models.bags import AttentionPooling, BagModel
from conceptkit.models.guided import MAIN, Task


@dataclass(frozen=True)
class BagInputs(Inputs):
    """Bags as a network sees them; the ``tensors`` of the rows are the bags' numbers of patches (n,)."""

    patches: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, d) float32, bag after bag"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the patches (b, m, d) of some bags, padded to the longest, and which are there (b, m)."""
        sizes = self.tensors[0]
        ends = sizes.cumsum(0)
        own = sizes[rows]
        present = torch.arange(int(own.max())) < own[:, None]
        padded = self.patches.new_zeros(*present.shape, self.patches.shape[1])
        starts = (ends - sizes)[rows]
        at = (starts[:, None] + torch.arange(present.shape[1]))[present]
        padded[present] = self.patches[at]
        return padded.to(device), present.to(device)


def bag_inputs(model: BagModel, features: NDArray[np.float32], members: Sequence[NDArray[np.intp]]) -> BagInputs:
    """Return bags for a network.

    Parameters
    ----------
    features : (n patches, d)
    members : of each bag, row numbers of ``features``; none is empty
    """
    sizes = torch.tensor([len(rows) for rows in members])
    patches = torch.from_numpy(np.ascontiguousarray(features[np.concatenate(list(members))], dtype=np.float32))
    return BagInputs((sizes,), model.backbone, patches=patches)


def build_bag_model(
    features: NDArray[np.float32],
    tasks: Sequence[Task],
    options: TrainingOptions,
    *,
    embedding: int,
    hidden: int,
    attention: str,
    seed: int,
) -> BagModel:
    """Build a network on bags at its start; two of one seed start alike, whatever other heads they have.

    Parameters
    ----------
    features : (n, d) of the training patches, whose mean and spread standardise all
    """
    ordered = sorted(tasks, key=lambda task: task.name != MAIN)
    erases = DISCOURAGING[options.method].erases and any(task.adversarial for task in ordered)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pooling = AttentionPooling(features.shape[1], embedding=embedding, hidden=hidden, attention=attention)
        model = BagModel(pooling, ordered, trunk=options.trunk, dropout=options.dropout, erases=erases)
    pooling.standardise(torch.from_numpy(np.ascontiguousarray(features)))
    return model.eval()


def read_attention(
    model: BagModel, inputs: BagInputs, *, batch_size: int = 32, device: str = "auto"
) -> list[NDArray[np.float64]]:
    """Return the attention to each bag's patches, in the order of its members."""
    found: list[NDArray[np.float64]] = []
    sizes = inputs.tensors[0]
    with on_device(model, inputs, device) as where, torch.inference_mode():
        for rows in torch.split(torch.arange(len(sizes)), batch_size):
            weights = model.attention(*inputs.batch(rows, where)).cpu().double().numpy()
            found += [weights[i, : int(sizes[row])] for i, row in enumerate(rows.tolist())]
    return found
