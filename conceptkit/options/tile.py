"""Options of ``tile``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.families import STAIN
from conceptkit.options.base import Command, Names, declare, option
from conceptkit.options.shared import JobOptions


@declare
class Tile(JobOptions, Command):
    """Cut slides into tiles that hold tissue: a patch table, read from the slides on demand or exported."""

    name = "tile"
    example = "tile slides/ --out tiles.csv --size 224 --tile-mpp 0.5"
    runner = "conceptkit.commands.tile:tile"
    caches = False

    slides: Names = option(argument=True, metavar="SLIDES…")
    """Slides, or folders with slides at any depth."""
    out: str | Path = option(flag="--out -o")
    """Patch table to write, .csv or .parquet; finished slides are kept in OUT.parts until all are finished."""
    size: int = 224
    """Side of a tile, in pixels."""
    mpp: float | None = None
    """Microns per pixel of level 0 of the slides, instead of what they state."""
    tile_mpp: float | None = None
    """Microns per pixel of the tiles; default: the highest magnification."""
    overlap: int = 0
    """Pixels that neighbouring tiles share."""
    tissue: float = 0.5
    """Minimum share of tissue in a tile."""
    annotations: str | Path | None = None
    """Folder of annotation files named like the slides (case.geojson, case.svs.geojson), at any depth: XML of ASAP,
    ImageScope or HALO, GeoJSON, or Camelyon's JSON. Tiles of slides without one have no label."""
    tumor: float = 0.5
    """Minimum annotated share of a tile labelled tumor; normal tiles have none."""
    tumor_class: Names = ()
    """Classes, base classes or groups of annotations that count as tumor, comma-separated; default: all that are not
    excluded."""
    shift_geojson: bool = option(True, flag="--shift-geojson/--no-shift-geojson")
    """Whether GeoJSON counts from the corner of the scanned area, as QuPath's does."""
    export: str = option("none", choices=("none", "png", "h5"))
    """Where pixels are kept: in the slides, read on demand; as a PNG per tile; as an HDF5 file per slide."""
    stain: str | None = option(None, choices=STAIN)
    """Stain normalisation of exported pixels, each slide by its own tissue."""
    stain_reference: str | Path | None = None
    """Image or .npy file that the stain is fitted on."""
