"""Options that several commands share: which data, which network, on what it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.options.base import Names, Options, declare, network_given, option, table_given

GIVEN = "given"
"""Weights of a network that was given as a torch module, as records state them"""


@declare
class TableOptions(Options):
    """Which table, and what its columns mean."""

    panel = "Data"

    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's."""
    group: str | None = None
    """Column of patients or slides, never split across folds."""
    categorical: Names = ()
    """Concepts to treat as classes, comma-separated."""


@declare
class NetworkOptions(Options):
    """Which network, with which weights."""

    panel = "Network"

    model: Any = option(None, parse=network_given)
    """A timm network (also hf-hub:…), an encoder of conceptkit encoders, mini_inception (bundled), a checkpoint folder,
    or package.module:factory, your own function, which is run."""
    weights: str | Path | None = None
    """imagenet, random, or a weights FILE (of any number of classes); imagenet when only --model is given."""


@declare
class ComputeOptions(Options):
    """Where it is computed, how many images at a time, and what is drawn at random."""

    panel = "Computation"

    device: str = "auto"
    """auto, cpu, cuda, …"""
    batch_size: int = option(16, minimum=1)
    """Images per forward pass."""
    seed: int = option(0, minimum=0)
    """Seed of everything that is drawn at random."""


@declare
class ViewerOptions(Options):
    """Where patches are exported to."""

    panel = "Viewer"

    qupath: str | Path | None = None
    """Folder, missing or empty, for a GeoJSON per slide: patches with these results, which QuPath opens."""


@declare
class JobOptions(Options):
    """On how many processes, or on which cluster."""

    panel = "Computation"

    engine: str = option("processes", choices=("processes", "dask"))
    """processes of this machine, or a dask cluster, which --scheduler names."""
    workers: int | None = option(None, minimum=1)
    """Number of processes; default: one per processor."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786."""
