"""Options of ``extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.families import POOLINGS
from conceptkit.options.base import Names, StudyCommand, declare, option, table_given
from conceptkit.options.shared import ComputeOptions, NetworkOptions


@declare
class Extract(NetworkOptions, ComputeOptions, StudyCommand):
    """Compute activations of layers, once, into a store on disk; an interrupted run is resumed."""

    name = "extract"
    example = "extract --table patches.csv --model mobilenetv2_100 --layer blocks.6 --out activations.h5"
    runner = "conceptkit.commands.extract:run_extract"

    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's."""
    store: str | Path | None = option(None, flag="--out -o")
    """Store to write or to finish, an HDF5 file; default: one in the cache folder."""
    layers: Names = option((), flag="--layer")
    """Layers, comma-separated; default: the study's. conceptkit layers lists a network's."""
    pool: str | None = option(None, choices=POOLINGS)
    """Pooling of a layer's output; default: that of the encoder's authors, or gap."""
    dtype: str = option("float32", choices=("float32", "float16"))
    """Type of the stored values."""
    autocast: str | None = None
    """bf16 or fp16, faster on a GPU; default: float32."""
    on_error: str = option("fail", choices=("fail", "skip"))
    """fail, or skip to list an image that cannot be read and continue."""
    verify: bool = False
    """Read every image again; default: a file of unchanged size and time is trusted."""
    refresh: bool = False
    """Start again when the store is of another network, table or preprocessing, or damaged."""
    engine: str = option("local", choices=("local", "dask"))
    """local, or dask for the workers of a cluster."""
    scheduler: str | None = None
    """Address of the Dask scheduler."""
