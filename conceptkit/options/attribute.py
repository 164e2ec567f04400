"""Options of ``attribute``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.families import ATTRIBUTIONS, POOLINGS
from conceptkit.options.base import Names, RecordCommand, declare, option
from conceptkit.options.shared import ComputeOptions, NetworkOptions, TableOptions, ViewerOptions


@declare
class Attribute(TableOptions, NetworkOptions, ComputeOptions, ViewerOptions, RecordCommand):
    """Measure how a network's outputs depend on concepts: change per unit, TCAV, Br, and maps."""

    name = "attribute"
    example = "attribute runs/guide-001/checkpoints/guided-seed0 --layer trunk --concept area_um2,count"
    runner = "conceptkit.commands.attribute:attribute"

    checkpoint: str | Path | None = option(None, argument=True)
    """Folder of a checkpoint that guide wrote; without one, the network that --model or the study names."""
    features: str | Path | None = None
    """Features that an adapter of guide --features reads (.h5, .npy, .parquet, a folder of slides)."""
    layers: Names = option((), flag="--layer")
    """Layers, comma-separated; conceptkit layers lists a network's. Of an adapter: features, trunk (default: both)."""
    concepts: Names = option((), flag="--concept")
    """Concepts: columns of the table, comma-separated."""
    targets: Names = option((), flag="--target")
    """Outputs: classes (a checkpoint's by name, else by number) or a checkpoint's heads; default: the second of two
    classes, else all."""
    among: Names = ()
    """Labels whose images are scored separately; all stands for every image."""
    adjust: Names = ()
    """Columns held fixed in the change per unit, comma-separated."""
    split: str | None = None
    """Split whose rows are used, or all; default for a checkpoint: the rows it was not trained on."""
    nested: str | None = None
    """Column of units nested in the groups, such as slides of patients."""
    pool: str = option("gap", choices=POOLINGS)
    """Pooling of a layer's output."""
    method: str = option("gradient", choices=ATTRIBUTIONS)
    """gradient, or integrated: averaged on the way from an empty image."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds."""
    refits: int = option(100, minimum=10)
    """Resamples of the groups on which everything is fitted again."""
    permutations: int = option(500, minimum=0)
    """Permutations of each concept, for p; 0 for none."""
    maps: int | None = option(None, minimum=0)
    """Patches at each end of a contact sheet; 0 for none; default: 6, and none on features."""
