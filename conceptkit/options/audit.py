"""Options of ``audit``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.options.base import Names, RecordCommand, declare, option
from conceptkit.options.shared import ComputeOptions, TableOptions


@declare
class Audit(TableOptions, ComputeOptions, RecordCommand):
    """Test whether a concept can still be decoded from a guided network, input to logit, and what erasing it costs."""

    name = "audit"
    example = "audit runs/guide-001/checkpoints/guided-seed0 --concept center"
    runner = "conceptkit.commands.audit:audit"

    checkpoint: str | Path = option(argument=True)
    """Folder of a checkpoint that guide wrote."""
    concept: str = option()
    """The concept to decode, such as center; latent:3 for three domains proposed by stain."""
    layers: Names | None = option(None, flag="--layer")
    """Layers, comma-separated; default: some blocks of the backbone, and the trunk."""
    split: str | None = None
    """Split whose rows are used, or all; default: all rows outside training and validation."""
    nested: str | None = None
    """Column of units nested in the groups, such as slides of patients."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds."""
    permutations: int = option(1000, minimum=0)
    """Permutations of the concept, for p; 0 for none."""
