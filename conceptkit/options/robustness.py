"""Options of ``robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.families import POOLINGS, REMEDIES
from conceptkit.options.base import Names, RecordCommand, declare, option
from conceptkit.options.encoders import EncoderOptions, features_given
from conceptkit.options.shared import ComputeOptions, TableOptions


@declare
class Robustness(TableOptions, EncoderOptions, ComputeOptions, RecordCommand):
    """Measure whether features follow biology or the hospital: RI, MaRI, CRoMa, APD and nIPD, with intervals."""

    name = "robustness"
    example = "robustness --table patches.csv --features uni=UNI,conch=CONCH --label tumor --center hospital"
    runner = "conceptkit.commands.robustness:robustness"

    layers: Names = option((), flag="--layer")
    """Layers, comma-separated. Default: the study's, or all of a store. Of several encoders ENCODER=LAYER is a layer of
    one."""
    features: Any = option(None, parse=features_given)
    """Store of extract, or your own features (a folder with a file per slide, .h5, .pt, .npy, .parquet), instead of a
    network. Several encoders, as NAME=PATH,NAME=PATH, are compared."""
    against: str | None = None
    """Encoder that the others are compared with; default: every two encoders."""
    per: str | None = option(None, choices=("slide", "patch"))
    """Unit of a table of slides with features: slide for the mean over its patches (default), or patch."""
    label: str | None = None
    """Column of the biological label; default: the study's label."""
    center: str | None = None
    """Column of the centers; default: center."""
    concepts: Names = option((), flag="--concept")
    """Concepts that are probed as well, comma-separated."""
    split: str | None = None
    """Use only the rows of this split."""
    pool: str | None = option(None, choices=POOLINGS)
    """Pooling of a layer's output; default: that of the encoder's authors, or gap."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds of the probes."""
    neighbours: tuple[int, ...] = option((5, 11, 21), minimum=1)
    """Numbers of neighbours of RI and MaRI, comma-separated; the one that predicts the label best is used."""
    nearest: int = option(5, minimum=1)
    """Neighbours of each type in CRoMa."""
    repeats: int = option(5, minimum=0)
    """Repeats of the training under a growing shortcut, for APD and nIPD; 0 for none."""
    remedies: Names = option((), choices=REMEDIES)
    """Remedies against the center, comma-separated: their scores, each with its difference to nothing."""
    card: str | Path | None = None
    """Folder, missing or empty, for a card of each encoder as HTML and Markdown."""
