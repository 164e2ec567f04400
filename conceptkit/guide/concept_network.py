"""A small network from concept values to the main label (the paper's Table 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as all of torch's users write it

from conceptkit.evaluate.scores import Floats

UNITS = 20
"""Width of the hidden layer; the paper prints "20 hidden layers", which its text does not support"""

LEARNING_RATE = 0.01
PATIENCE = 15
EPOCHS = 500
BATCH_SIZE = 32


@dataclass(frozen=True)
class Column:
    """A concept's values for all rows."""

    kind: str
    """``continuous`` or ``categorical``"""
    values: NDArray[Any]
    """(n,) float64 with NaN where missing, or text with ``None`` where missing"""


def design(columns: Sequence[Column], train: NDArray[np.intp]) -> Floats:
    """Return the inputs (n, d) of columns: z-scores, or an indicator per class, scaled by the training rows.

    A missing value becomes the training rows' mean, with an indicator if training rows have missing values; a
    missing or unknown class has no indicator.
    """
    parts: list[Floats] = []
    for column in columns:
        if column.kind == "categorical":
            classes = sorted({str(v) for v in column.values[train] if v is not None})
            parts.append(np.array([[float(v == c) for c in classes] for v in column.values]).reshape(-1, len(classes)))
            continue
        known = np.isfinite(column.values)
        own = column.values[train][known[train]]
        spread = float(own.std()) if len(own) else 0.0
        scores = np.where(known, column.values - (own.mean() if len(own) else 0.0), 0.0) / (spread or 1.0)
        parts.append(scores[:, None])
        if not known[train].all():
            parts.append((~known).astype(float)[:, None])
    return np.concatenate(parts, axis=1)


def fit_concept_network(
    X: Floats, codes: NDArray[np.intp], train: NDArray[np.intp], val: NDArray[np.intp], *, n_classes: int, seed: int
) -> Floats:
    """Train on the training rows, stop by the validation loss, and return the predictions for all rows.

    Parameters
    ----------
    X : (n, d) inputs
    codes : (n,) class numbers, −1 where unlabelled
    train, val : row numbers

    Returns
    -------
    (n,) probability of class 1 for two classes, (n, k) for more
    """
    inputs, target = torch.from_numpy(X).float(), torch.from_numpy(codes)
    train, val = train[codes[train] >= 0], val[codes[val] >= 0]
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(X.shape[1], UNITS), nn.ReLU(), nn.Linear(UNITS, 1 if n_classes == 2 else n_classes)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    own, held = torch.from_numpy(train), torch.from_numpy(val)
    best, since, kept = float("inf"), 0, copy.deepcopy(network.state_dict())
    for _ in range(EPOCHS):
        for batch in torch.split(own[torch.randperm(len(own), generator=order)], BATCH_SIZE):
            optimizer.zero_grad()
            _loss(network(inputs[batch]), target[batch]).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(network(inputs[held]), target[held]))
        since += 1
        if loss < best:
            best, since, kept = loss, 0, copy.deepcopy(network.state_dict())
        if since >= PATIENCE:
            break
    network.load_state_dict(kept)
    with torch.no_grad():
        logits = network(inputs).double()
    found: Tensor = torch.sigmoid(logits[:, 0]) if n_classes == 2 else torch.softmax(logits, 1)
    out: Floats = found.numpy()
    return out


def _loss(output: Tensor, target: Tensor) -> Tensor:
    if output.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(output[:, 0], target.to(output.dtype))
    return F.cross_entropy(output, target)
