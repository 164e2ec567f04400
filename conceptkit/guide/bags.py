"""Training on bags: features of patches gathered and padded, so that the loop sees bags as it sees rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.families import DISCOURAGING
from conceptkit.guide.bench import Bench
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.models.bags import AttentionPooling, BagModel, save_bag_model
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.training import TrainingOptions

Members = Sequence[NDArray[np.intp]]
"""Of each bag, the row numbers of its patches; no bag is empty"""


@dataclass(frozen=True)
class BagInputs(Inputs):
    """Bags as a network sees them; the ``tensors`` of the rows are the numbers of patches of the bags (n,)."""

    patches: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, d) float32, bag after bag"""

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Return the patches (b, m, d) of some bags, padded to the longest, and which of them exist (b, m)."""
        sizes = self.tensors[0]
        ends = sizes.cumsum(0)
        own = sizes[rows]
        present = torch.arange(int(own.max())) < own[:, None]
        padded = self.patches.new_zeros(*present.shape, self.patches.shape[1])
        starts = (ends - sizes)[rows]
        at = (starts[:, None] + torch.arange(present.shape[1]))[present]
        padded[present] = self.patches[at]
        return padded.to(device), present.to(device)


def bag_inputs(model: BagModel, features: NDArray[np.float32], members: Members) -> BagInputs:
    """Return bags of patches with the given features (n patches, d) for a network."""
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
    """Build a network on bags at its start; two with the same seed start alike, whatever other heads they have.

    Parameters
    ----------
    features : (n, d) of the training patches, by whose mean and spread features are standardised
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
    """Return the attention to the patches of each bag, in the order of its members."""
    found: list[NDArray[np.float64]] = []
    sizes = inputs.tensors[0]
    with on_device(model, inputs, device) as where, torch.inference_mode():
        for rows in torch.split(torch.arange(len(sizes)), batch_size):
            weights = model.attention(*inputs.batch(rows, where)).cpu().double().numpy()
            found += [weights[i, : int(sizes[row])] for i, row in enumerate(rows.tolist())]
    return found


@dataclass
class BagBench(Bench):
    """A bench of bags."""

    features: NDArray[np.float32] = field(kw_only=True)
    """(n patches, d)"""
    members: Members = field(kw_only=True)
    """Of each row of the table of bags"""
    shape: Mapping[str, Any] = field(kw_only=True)
    """``embedding``, ``hidden`` and ``attention`` of :func:`build_bag_model`"""
    made_with: Mapping[str, Any] = field(kw_only=True)
    """What checkpoints state of features and bags"""

    @property
    def used_members(self) -> list[NDArray[np.intp]]:
        """Return the members of the bags that belong to a split."""
        return [self.members[i] for i in self.used]

    def build(self, tasks: Sequence[Task], options: TrainingOptions, seed: int) -> GuidedModel:
        """Return a network at its start, standardised by the patches of the training bags."""
        rows = np.concatenate([self.members[i] for i in self.plan.rows["train"]])
        return build_bag_model(self.features[rows], tasks, options, seed=seed, **self.shape)

    def inputs(self, network: GuidedModel) -> Inputs:
        """Return the used bags."""
        assert isinstance(network, BagModel)
        return bag_inputs(network, self.features, self.used_members)

    def save(self, network: GuidedModel, folder: Path) -> None:
        """Write a checkpoint."""
        assert isinstance(network, BagModel)
        save_bag_model(network, folder, self.made_with)

    def attention(self, network: GuidedModel) -> NDArray[np.float64]:
        """Return the attention (n patches,) of a network to each patch in its bag; NaN outside the used bags."""
        inputs = self.inputs(network)
        assert isinstance(network, BagModel)
        assert isinstance(inputs, BagInputs)
        weights = np.full(len(self.features), np.nan)
        read = read_attention(network, inputs, device=self.engine.device)
        weights[np.concatenate(self.used_members)] = np.concatenate(read)
        return weights
