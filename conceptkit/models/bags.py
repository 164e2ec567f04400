"""Networks on bags: attention over the patches of a slide or patient, and a guided network's heads on top."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conceptkit.errors import InputError, check_choice
from conceptkit.models.checkpoints import WEIGHTS, cannot_open, read_description, write_network
from conceptkit.models.guided import GuidedModel, Task

SCHEMA = "conceptkit/bag-checkpoint/1"
DESCRIPTION = "bags.json"


class Gated(nn.Module):
    """The score wᵀ(tanh(Vh) ⊙ σ(Uh)) of each patch.

    Source
    ------
    Ilse et al., Attention-based deep multiple instance learning, 2018, equation 9; Lu et al., 2021 (CLAM)
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return a score (b, m) of embedded patches (b, m, width)."""
        out: Tensor = self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h)))[..., 0]
        return out


class Plain(nn.Module):
    """The score wᵀtanh(Vh) of each patch (Ilse et al., 2018, equation 8)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value, self.score = nn.Linear(width, hidden), nn.Linear(hidden, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return a score (b, m) of embedded patches (b, m, width)."""
        out: Tensor = self.score(torch.tanh(self.value(h)))[..., 0]
        return out


class Even(nn.Module):
    """The same score for every patch, so that a bag's mean is pooled: the baseline of attention."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        """Return zeros (b, m)."""
        return h.new_zeros(h.shape[:2])


ATTENTIONS: Mapping[str, Callable[[int, int], nn.Module]] = {"gated": Gated, "plain": Plain, "mean": Even}
"""Name → module that scores patches, built from their width and the hidden width"""


class AttentionPooling(nn.Module):
    """Pool the patches of a bag to one vector: z = Σ a_k h_k, with h = ReLU(Wx + b) and a = softmax of the scores.

    Parameters
    ----------
    width : features of a patch
    embedding : width of h, and of z
    hidden : width inside the attention
    attention : one of :data:`ATTENTIONS`
    """

    center: Tensor
    scale: Tensor

    def __init__(self, width: int, *, embedding: int = 64, hidden: int = 32, attention: str = "gated") -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTIONS)
        self.shape: dict[str, Any] = {"width": width, "embedding": embedding, "hidden": hidden, "attention": attention}
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU())
        self.attend = ATTENTIONS[attention](embedding, hidden)

    def standardise(self, patches: Tensor) -> None:
        """Set mean and standard deviation to those of the training patches (n, width)."""
        spread, mean = torch.std_mean(patches.double(), dim=0, correction=0)
        self.center.copy_(mean)
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def read(self, patches: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return bag vectors (b, embedding) and attention (b, m), which sums to 1 over the patches of a bag.

        Parameters
        ----------
        patches : (b, m, width), padded
        present : (b, m) true at patches, false at padding; each bag needs a patch
        """
        h = self.embed((patches - self.center) / self.scale)
        scores = self.attend(h).masked_fill(~present, -torch.inf)
        weights = torch.softmax(scores, dim=1)
        return torch.einsum("bm,bme->be", weights, h), weights

    def forward(self, patches: Tensor, present: Tensor) -> tuple[Tensor]:
        """Return the bag vectors, as the features of a guided network."""
        return (self.read(patches, present)[0],)


class BagModel(GuidedModel):
    """A guided network on bags: trunk and heads on the vectors of ``pooling``; see :class:`GuidedModel`."""

    backbone: AttentionPooling

    def __init__(
        self,
        pooling: AttentionPooling,
        tasks: Sequence[Task],
        *,
        trunk: Sequence[int] = (),
        dropout: float = 0.0,
        erases: bool = False,
    ) -> None:
        width = int(pooling.shape["embedding"])
        super().__init__(pooling, width, tasks, trunk=trunk, dropout=dropout, erases=erases)

    def features(self, patches: Tensor, present: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # of bags
        """Return the bag vectors (b, embedding); see :meth:`AttentionPooling.read`."""
        return self.backbone(patches, present)  # type: ignore[no-any-return]

    def forward(self, patches: Tensor, present: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # of bags
        """Return task → raw output (b, nodes)."""
        return self.outputs(self.reads(*self.features(patches, present)))

    def attention(self, patches: Tensor, present: Tensor) -> Tensor:
        """Return the attention (b, m) to each patch: 0 at padding, 1 in sum over a bag."""
        return self.backbone.read(patches, present)[1]


def save_bag_model(model: BagModel, folder: Path, made_with: Mapping[str, Any]) -> None:
    """Write a network on bags into ``folder``, as safetensors and JSON.

    Parameters
    ----------
    made_with : origin of a patch's features and definition of a bag, which :func:`load_bag_model` returns
    """
    description = {
        "schema": SCHEMA,
        "pooling": model.backbone.shape,
        "trunk": model.trunk_widths,
        "dropout": model.dropout,
        "erases": model.erasure is not None,
        "tasks": [dataclasses.asdict(task) for task in model.tasks],
        "made_with": dict(made_with),
    }
    write_network(model, folder, DESCRIPTION, description)


def is_bag_checkpoint(path: str | Path) -> bool:
    """Return whether ``path`` is a folder that holds a network on bags."""
    return (Path(path) / DESCRIPTION).is_file()


def load_bag_model(folder: Path) -> tuple[BagModel, Mapping[str, Any]]:
    """Open a network on bags; return it with ``made_with``.

    Raises
    ------
    InputError
        when the folder is not a checkpoint of bags, is broken, or has another version
    """
    stated = read_description(folder / DESCRIPTION, SCHEMA, "bags")
    try:
        tasks = [Task(**{**task, "classes": tuple(task["classes"])}) for task in stated["tasks"]]
        options = {name: stated[name] for name in ("trunk", "dropout", "erases")}
        model = BagModel(AttentionPooling(**stated["pooling"]), tasks, **options)
        model.load_state_dict(load_file(folder / WEIGHTS))
        made_with = dict(stated["made_with"])
    except InputError:
        raise
    except Exception as error:  # safetensors, torch and a malformed description raise many kinds
        raise cannot_open(folder, error) from None
    return model.eval(), made_with
