"""Options of ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.options.base import StudyCommand, declare, option, table_given
from conceptkit.options.shared import ViewerOptions


@declare
class Predict(ViewerOptions, StudyCommand):
    """Predict main task and concepts of patches, or of bags, with a guided network."""

    name = "predict"
    example = "predict runs/guide-001/checkpoints/guided-seed0 --table new.csv --out predicted.csv"
    runner = "conceptkit.commands.predict:run_predict"

    checkpoint: str | Path = option(argument=True)
    """Folder of a checkpoint that guide or bags wrote."""
    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's; no concept column is needed."""
    features: str | Path | None = None
    """Features of patches (.h5, .npy, .parquet), for a checkpoint of bags."""
    out: str | Path | None = option(None, flag="--out -o")
    """Predictions to write, .csv or .parquet."""
    maps: str | Path | None = option(None, flag="--map")
    """Folder for a picture per slide or image: its predictions as heat maps."""
    batch_size: int = option(16, minimum=1)
    """Images per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
