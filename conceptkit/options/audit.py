"""Options of ``audit``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.options.base import Names, RecordCommand, declare, option
from conceptkit.options.shared import ComputeOptions, NetworkOptions, TableOptions


@declare
class Audit(TableOptions, NetworkOptions, ComputeOptions, RecordCommand):
    """Test whether a concept can still be decoded from a network or an embedding, and what erasing it costs."""

    name = "audit"
    example = "audit runs/guide-001/checkpoints/guided-seed0 --concept center"
    runner = "conceptkit.commands.audit:audit"

    checkpoint: str | Path | None = option(None, argument=True)
    """Folder of a checkpoint that guide wrote; without one, the network or the features that the options name."""
    features: str | Path | None = None
    """Features of patches (.h5, .npy, .parquet), instead of a network's, or for a checkpoint of an adapter."""
    concept: str = option()
    """The concept to decode, such as center; latent:3 for three domains proposed by stain."""
    layers: Names | None = option(None, flag="--layer")
    """Layers, comma-separated; default: some blocks of a checkpoint's backbone and its trunk; else the study's."""
    split: str | None = None
    """Split whose rows are used, or all; default: all rows outside training and validation."""
    nested: str | None = None
    """Column of units nested in the groups, such as slides of patients."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds."""
    permutations: int = option(1000, minimum=0)
    """Permutations of the concept, for p; 0 for none."""
