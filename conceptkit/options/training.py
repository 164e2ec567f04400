"""Options of training: declared once, for a training itself and for commands that override a recipe."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from conceptkit.errors import InputError
from conceptkit.families import DISCOURAGING, OPTIMIZERS, SCHEDULES
from conceptkit.options.base import Declared, Names, Options, declare, option

C = TypeVar("C", bound="type[Any]")

ALIASES: Mapping[str, str] = {"grl": "reversal"}
"""Alias of a method of discouraging → method"""

BAG_DEFAULTS: Mapping[str, Any] = {"trunk": (32,), "dropout": 0.2, "lr": 1e-3, "epochs": 60, "batch_size": 16}
"""Training options of bags that differ from those of patches: bags are few"""


@declare
class LoopOptions(Options):
    """How a network is trained: trunk, optimizer, losses; the same for all networks that are compared."""

    panel = "Training"

    trunk: tuple[int, ...] = option((256, 64), minimum=1, parse=lambda widths: () if widths == "none" else widths)
    """Widths of the dense layers, such as 2048,512,256; none for linear heads."""
    dropout: float = option(0.2, minimum=0)
    """Dropout rate after each dense layer."""
    l2: float = option(5e-5, minimum=0)
    """λ of the penalty λ‖W‖² on the kernels of the trunk, as in Keras (weight_decay of torch is 2λ)."""
    optimizer: str = option("adam", choices=OPTIMIZERS)
    """Optimizer."""
    lr: float = 1e-3
    """Learning rate."""
    momentum: float = option(0.9, minimum=0)
    """Momentum (SGD only)."""
    nesterov: bool = option(True, flag="--nesterov/--no-nesterov")
    """Nesterov momentum (SGD only)."""
    epochs: int = option(40, minimum=1)
    """Maximum number of epochs."""
    warmup: int = option(10, minimum=0)
    """Epochs over which discouraging reaches its strength; no earlier state of any network is selected."""
    patience: int = option(8, minimum=1)
    """Epochs without a lower validation loss (--stop-by) after which training stops."""
    batch_size: int = option(32, minimum=1)
    """Patches, or bags, per step."""
    stop_by: str = option("main", choices=("main", "sum"))
    """Validation loss that chooses the epoch of every network: main, or the sum with its encouraged concepts."""
    weighting: str = "uncertainty-bounded"
    """Loss weighting of all tasks and of single ones, such as uncertainty,center=fixed:0.1."""
    reset_weights: bool = option(False, flag="--reset-weights/--keep-weights")
    """Reset learned loss weights after the warmup."""
    method: str = option("mmd", choices=DISCOURAGING, parse=lambda name: ALIASES.get(name, name))
    """Method of discouraging; grl is reversal."""
    strength: float = option(1.0, minimum=0)
    """Strength of discouraging at the end of the warmup."""
    reversal: str = option("ramp", choices=SCHEDULES)
    """Schedule of the strength."""
    balance: bool = option(True, flag="--balance/--no-balance")
    """Reweight the rows of categorical adversaries so that the main label does not predict the concept."""
    balance_main: float = option(0.75, minimum=0, maximum=1)
    """Exponent of the same weights in the main loss, if a categorical concept is discouraged: 0 to 1."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("dropout", "momentum"):
            value = getattr(self, name)
            if value is not None and not value < 1:
                raise InputError(f"{name}: must be below 1, got {value}.")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr: must be above 0, got {self.lr}.")


@declare
class TrainingOptions(LoopOptions):
    """How a network on patches is trained."""

    panel = "Training"

    unfreeze: Names = ()
    """Layers of the backbone to train, comma-separated; none for the trunk only. Their BatchNorm stays frozen."""
    cache: str = option("exact", choices=("exact", "fast", "off"))
    """Cache of the output of the frozen layers: exact, fast (16 bits) or off."""
    augment: int = option(0, minimum=0)
    """Re-stained copies of each training patch; an epoch sees one of them or the patch."""

    def __post_init__(self) -> None:
        """Check the values; ``none`` stands for no layer."""
        super().__post_init__()
        if self.unfreeze is not None:
            object.__setattr__(self, "unfreeze", tuple(name for name in self.unfreeze if name != "none"))


def overriding(**shown: Any) -> typing.Callable[[C], C]:
    """Return a decorator after which every option of a class may be ``None``, and is by default.

    Parameters
    ----------
    shown : option → default that the help shows, if it is not that of the class
    """

    def decorate(cls: C) -> C:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            default = shown.get(field.name, field.default)
            declared = dataclasses.replace(field.metadata.get("option", Declared()), shown=default)
            cls.__annotations__[field.name] = hints[field.name] | None
            setattr(cls, field.name, dataclasses.field(default=None, metadata={"option": declared}))
        return cls

    return decorate


class _Overrides(Options):
    """Methods of classes of overriding options."""

    def overrides(self) -> dict[str, Any]:
        """Return the training options that are given."""
        names = [field.name for field in dataclasses.fields(TrainingOptions) if hasattr(self, field.name)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@declare
@overriding(unfreeze="the last block")
class TrainingOverrides(TrainingOptions, _Overrides):
    """Training options that override a recipe; ``None`` leaves the recipe's. Defaults are those of the recipe ours."""


@declare
@overriding(**BAG_DEFAULTS)
class BagOverrides(LoopOptions, _Overrides):
    """Training options that override those of bags."""
