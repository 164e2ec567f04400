"""Random search for trunk, dropout, penalty and learning rate by the baseline's validation loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conceptkit.errors import check_at_least
from conceptkit.options.training import TrainingOptions

TRUNKS = ((64,), (256,), (256, 64), (512, 128), (1024, 256, 64))
DROPOUTS = (0.0, 0.2, 0.5)
L2 = (1e-6, 1e-2)
"""Range, on a logarithmic scale"""
LR_FACTOR = (0.1, 10.0)
"""Range of the factor of the given learning rate, on a logarithmic scale"""


@dataclass(frozen=True)
class Trial:
    """One tried set of options."""

    trunk: tuple[int, ...]
    dropout: float
    l2: float
    lr: float
    loss: float
    """Least validation loss of the main task; infinite where training failed"""


def search(
    loss: Callable[[TrainingOptions], float], start: TrainingOptions, *, trials: int, seed: int = 0
) -> tuple[TrainingOptions, tuple[Trial, ...]]:
    """Return the options of least loss, and all trials; the first trial is ``start``.

    Parameters
    ----------
    loss : trains a baseline with the options and returns its validation loss, NaN if that failed
    """
    check_at_least("search", trials, 1)
    chance = np.random.default_rng(seed)
    best, least, tried = start, math.inf, []
    for k in range(trials):
        options = start if k == 0 else _drawn(start, chance)
        value = loss(options)
        value = value if math.isfinite(value) else math.inf
        tried.append(Trial(tuple(options.trunk), options.dropout, options.l2, options.lr, value))
        if value < least:
            best, least = options, value
    return best, tuple(tried)


def _drawn(start: TrainingOptions, chance: np.random.Generator) -> TrainingOptions:
    return dataclasses.replace(
        start,
        trunk=TRUNKS[int(chance.integers(len(TRUNKS)))],
        dropout=DROPOUTS[int(chance.integers(len(DROPOUTS)))],
        l2=_two_digits(_log_uniform(L2, chance)),
        lr=_two_digits(start.lr * _log_uniform(LR_FACTOR, chance)),
    )


def _log_uniform(bounds: tuple[float, float], chance: np.random.Generator) -> float:
    return math.exp(chance.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
