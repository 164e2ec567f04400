"""Options of ``bags``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.options.base import Names, RecordCommand, declare, option, seed_list
from conceptkit.options.shared import NetworkOptions, TableOptions, ViewerOptions
from conceptkit.options.training import BagOverrides


@declare
class Bags(TableOptions, NetworkOptions, BagOverrides, ViewerOptions, RecordCommand):
    """Train attention over the patches of slides or patients, guided by concepts of the whole bag."""

    name = "bags"
    example = "bags --table tiles.csv --by slide --encourage count --discourage center"
    runner = "conceptkit.commands.bags:bags"

    by: str | None = None
    """Column that names the bag of each patch: slide, patient, …; default: the group, or made slides of the embedded
    study."""
    encourage: Names | None = None
    """Concepts of a bag to encourage, comma-separated; default: the study's."""
    discourage: Names | None = None
    """Concepts of a bag to discourage, comma-separated; default: the study's."""
    label: str | None = None
    """Column of the main task, instead of the study's; a continuous one is split at the median of training bags."""
    positive: str | None = None
    """Class of the label that makes a bag positive, if the label varies within bags."""
    share: float = option(0.0, minimum=0)
    """Share of a bag's labelled patches above which the class makes it positive; 0 for any patch."""
    layer: str | None = None
    """Layer whose pooled output is the features of a patch; default: the study's first."""
    features: str | Path | None = None
    """Your own features (a folder with a file per slide, .h5, .pt, .npy, .parquet), instead of a network's."""
    attention: str = option("gated", choices=("gated", "plain", "mean"))
    """Pooling of patches; mean for no attention."""
    embedding: int = option(64, minimum=1)
    """Width of an embedded patch."""
    hidden: int = option(32, minimum=1)
    """Width inside the attention."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds of the probes that read the trained networks."""
    within: Names = ()
    """Columns within whose levels AUCs are computed too, comma-separated."""
    primary: str | None = None
    """Primary contrast, declared before the run: RUN:SPLIT:METRIC, or none; default: the weighted AUC of the guided
    network over unseen centers."""
    seeds: tuple[int, ...] = option((0,), parse=seed_list)
    """Number of seeds (5), or a list (1001,822): one pair of networks per seed."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    images_per_pass: int = option(16, minimum=1)
    """Images per forward pass of the frozen network."""
