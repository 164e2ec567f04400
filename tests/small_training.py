"""A small guided training on synthetic pixels, for tests of the loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.prefix import Pooled
from conceptkit.guide.training import train
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.training import TrainingOptions

MAIN_TASK = Task(name=MAIN, kind="categorical", classes=("normal", "tumor"))
SIZE = Task(name="size", kind="continuous")
CENTER = Task(name="center", kind="categorical", classes=("A", "B"), adversarial=True)

OPTIONS = TrainingOptions(trunk=(8,), dropout=0.0, epochs=3, warmup=1, batch_size=16, lr=1e-2)


class Normalised(nn.Module):
    """A backbone whose BatchNorm would drift if it were trained."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x


def some_data(n=96):
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.normal(3, 2, (n, 6)), dtype=torch.float32)
    targets = {
        MAIN: (X[:, 0] > 3).long(),
        "size": (X[:, 1] - 3) / 2,
        "center": (X[:, 2] > 3).long(),
    }
    rows = {"train": np.arange(64), "val": np.arange(64, 80), "test": np.arange(80, n)}
    return X, targets, rows


def fit(options=OPTIONS, *, tasks=(MAIN_TASK, SIZE, CENTER), seed=0, change=None, parallel=1, loggers=(), **how):
    X, targets, rows = some_data()
    if change is not None:
        change(X, targets, rows)
    torch.manual_seed(7)
    model = GuidedModel(
        Normalised(), 6, tasks, trunk=options.trunk, dropout=options.dropout, erases=options.method == "leace"
    ).eval()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    inputs = Inputs((X,), Pooled(model))
    engine = TrainingEngine(device="cpu", devices=parallel, loggers=loggers)
    return train(model, inputs, targets, rows, options, seed=seed, engine=engine, **how), inputs


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])
