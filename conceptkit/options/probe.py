"""Options of ``probe``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conceptkit.families import POOLINGS
from conceptkit.options.base import Names, RecordCommand, declare, option
from conceptkit.options.encoders import EncoderOptions, features_given
from conceptkit.options.shared import ComputeOptions, TableOptions

NO_CENTER = "none"
"""Named as the column of centers, where the table has none or they are not to count"""


@declare
class Probe(TableOptions, EncoderOptions, ComputeOptions, RecordCommand):
    """Measure how well concepts can be decoded from layers or other features, held out by patient."""

    name = "probe"
    example = "probe --table patches.csv --group patient --model mobilenetv2_100 --layer blocks.6 --concept area_um2"
    runner = "conceptkit.commands.probe:probe"

    layers: Names = option((), flag="--layer")
    """Layers, comma-separated; conceptkit layers lists a network's. Default: the study's, or all of a store. Of several
    encoders ENCODER=LAYER is a layer of one."""
    concepts: Names = option((), flag="--concept")
    """Concepts: columns of the table, comma-separated."""
    features: Any = option(None, parse=features_given)
    """Store of extract, or your own features (a folder with a file per slide, .h5, .pt, .npy, .parquet), instead of a
    network. Several encoders, as NAME=PATH,NAME=PATH, are compared."""
    against: str | None = None
    """Encoder that the others are compared with; default: every two encoders."""
    per: str | None = option(None, choices=("slide", "patch"))
    """Unit of a table of slides with features: slide for the mean over its patches (default), or patch."""
    center: str | None = None
    """Column of the centers, or none; default: center, if present."""
    nested: str | None = None
    """Column of units nested in the groups, such as slides of patients."""
    split: str | None = None
    """Use only the rows of this split."""
    pool: str | None = option(None, choices=POOLINGS)
    """Pooling of a layer's output; default: that of the encoder's authors, or gap."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds."""
    permutations: int = option(1000, minimum=0)
    """Permutations of each concept, for p; 0 for none."""
    adjust: Names = ()
    """Confounders for a partial R², comma-separated; stain stands for all stain measures."""
    adjust_terms: str = option("linear", choices=("linear", "quadratic"))
    """Terms of the confounders; quadratic adds squares and pairwise interactions."""
    leave_out: str | None = None
    """Column whose levels are each held out for one more score; default: the centers, in at most ten parts."""
    repeat: Mapping[str, str] | None = None
    """CONCEPT=COLUMN of its repeated measurement, for the reliability ceiling."""
    meaning: bool = option(False, flag="--meaning/--no-meaning")
    """Test whether each vector means its concept: other concepts, refits, disturbed images, nucleus masks."""
    protocol: str = option("cross-validated", choices=("cross-validated", "paper"))
    """cross-validated, or paper: least squares, scored in sample."""


def run_probe(
    study: Any = None, *, out: str | Path | None = None, progress: Any = None, notify: Any = None, **options: Any
) -> Any:
    """Return the record of :class:`Probe` with ``options``; see :meth:`Probe.run` for the other parameters."""
    return Probe(**options).run(study, out=out, progress=progress, notify=notify)
