"""Options of ``qupath``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.options.base import Command, Names, declare, option

FORMATS = ("qupath", "dsa", "asap", "imagescope")
"""Viewers whose files are written"""


@declare
class Qupath(Command):
    """Export patches and nuclei with their concepts to QuPath and other viewers, with maps that lie on the slide."""

    name = "qupath"
    example = "qupath patches.csv --out for-qupath --nuclei nuclei.parquet --map count"
    runner = "conceptkit.commands.qupath:qupath"
    caches = False

    table: str | Path = option(argument=True, metavar="RUN|TABLE")
    """Patch table or predictions with slide or image, x, y and size; a table of nuclei (Parquet with contour); or a run
    folder of bags, whose attention is exported."""
    out: str | Path = option(flag="--out -o")
    """Folder to write: a GeoJSON per slide, conceptkit.json and scripts for QuPath. It must be missing or empty."""
    cells: str | Path | None = option(None, flag="--nuclei")
    """Nuclei: a Parquet file, or a folder of label images named like the images of the table."""
    maps: Names = option((), flag="--map")
    """Columns drawn as maps, comma-separated: an OME-TIFF pyramid and a PNG per slide."""
    concepts: Names = option((), flag="--concept")
    """Columns of numbers that become measurements, comma-separated; default: all."""
    label: str | None = option(None, flag="--class")
    """Column that becomes the class of a tile; default: label."""
    slides: str | Path | None = None
    """Folder that holds the slides now, in it or below, instead of the paths of the table."""
    formats: Names = option(("qupath",), flag="--format", choices=FORMATS)
    """Viewers, comma-separated: qupath (GeoJSON), dsa (HistomicsUI), asap, imagescope."""
    crop: bool = option(True, flag="--crop/--no-crop")
    """Whether QuPath shows the scanned area only, as it does unless an image was opened with --no-crop."""
