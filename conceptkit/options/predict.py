"""Options of ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.options.base import Names, StudyCommand, declare, option, table_given
from conceptkit.options.shared import ViewerOptions


@declare
class Predict(ViewerOptions, StudyCommand):
    """Predict main task and concepts of patches or bags with a guided network, or concepts with a probe's vectors."""

    name = "predict"
    example = "predict runs/guide-001/checkpoints/guided-seed0 --table new.csv --out predicted.csv"
    runner = "conceptkit.commands.predict:run_predict"

    checkpoint: str | Path | None = option(None, argument=True)
    """Folder of a checkpoint that guide or bags wrote."""
    probe: str | Path | None = None
    """Run folder of probe, instead of a checkpoint: its concept vectors, with 90 % prediction intervals."""
    layer: str | None = None
    """Layer of --probe; needed where it has several."""
    concepts: Names = option((), flag="--concept")
    """Concepts of --probe, comma-separated; default: all."""
    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's; no concept column is needed."""
    features: str | Path | None = None
    """Features of patches (a folder with a file per slide, .h5, .pt, .npy, .parquet), for an adapter, a checkpoint of
    bags, or --probe, which needs no table then."""
    slides: Names = ()
    """Slides or folders of slides for --probe, comma-separated: cut as the patches of the probe were."""
    out: str | Path | None = option(None, flag="--out -o")
    """Predictions to write, .csv or .parquet."""
    maps: str | Path | None = option(None, flag="--map")
    """Folder for a picture per slide or image: its predictions as heat maps."""
    batch_size: int = option(16, minimum=1)
    """Images per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, …"""

    @property
    def needs_study(self) -> bool:
        """Whether the patches are those of a study or table."""
        return self.table is not None or not (self.probe is not None and (self.slides or self.features is not None))
