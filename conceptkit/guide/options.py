"""How a guided network is trained: the options, and their ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from conceptkit.errors import InputError, check_at_least, check_at_most, check_choice
from conceptkit.families import DISCOURAGING, OPTIMIZERS, SCHEDULES
from conceptkit.guide.inputs import CACHES
from conceptkit.guide.weighting import parse_weighting

OTHER_NAMES: Mapping[str, str] = {"grl": "reversal"}
"""Other names of methods of discouraging"""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a network is trained; the same for every run that is compared."""

    unfreeze: tuple[str, ...] = ()
    """Layers of the backbone that are trained, beside trunk and heads; their BatchNorm stays frozen"""
    trunk: tuple[int, ...] = (256, 64)
    dropout: float = 0.2
    l2: float = 5e-5
    """λ of the penalty λ‖W‖² on the kernels of the trunk, as Keras states it (torch's ``weight_decay`` is 2λ)"""
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    """Of ``sgd``"""
    nesterov: bool = True
    """Of ``sgd``"""
    epochs: int = 40
    """At most"""
    warmup: int = 10
    """Epochs in which the schedule of the discouragement runs; no earlier state of any run can be the chosen one"""
    patience: int = 8
    """Epochs without a lower validation loss of main and encouraged tasks after which training stops"""
    batch_size: int = 32
    weighting: str = "uncertainty-bounded"
    reset_weights: bool = False
    """Whether learned loss weights start anew when the schedule has ended"""
    method: str = "confusion"
    """How a discouraged concept reaches the shared layers, see :data:`conceptkit.families.DISCOURAGING`"""
    strength: float = 1.0
    """λ of the discouragement at the end of its schedule"""
    reversal: str = "ramp"
    """Schedule by which the strength is reached"""
    balance: bool = True
    """Whether a categorical adversary learns from rows weighted so that the main label tells it nothing"""
    balance_main: float = 0.75
    """Power of the same factors in the main loss of a network that a categorical concept is discouraged in: 1 makes
    the concept useless for guessing the label, 0 leaves the rows as they are"""

    cache: str = "exact"
    """How the frozen part's output is kept, see :data:`conceptkit.guide.inputs.CACHES`"""

    def __post_init__(self) -> None:
        """Take a method by its other name."""
        object.__setattr__(self, "method", OTHER_NAMES.get(self.method, self.method))

    def check(self) -> None:
        """Raise :class:`InputError` for an option outside its range."""
        parse_weighting(self.weighting)
        SCHEDULES.check("reversal", self.reversal)
        DISCOURAGING.check("method", self.method)
        check_choice("cache", self.cache, CACHES)
        OPTIMIZERS.check("optimizer", self.optimizer)
        for name in ("epochs", "patience", "batch_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_most("balance_main", self.balance_main, 1)
        for name in ("warmup", "l2", "strength", "balance_main"):
            check_at_least(name, getattr(self, name), 0)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"lr: must be above 0, got {self.lr}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must lie between 0 and 1, got {self.dropout}.")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum: must lie between 0 and 1, got {self.momentum}.")
        if any(width < 1 for width in self.trunk):
            raise InputError(f"trunk: widths must be at least 1, got {self.trunk}.")
