"""Options of ``measure``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.families import NUCLEI
from conceptkit.options.base import Command, Names, declare, option
from conceptkit.options.shared import JobOptions, ViewerOptions


@declare
class Measure(ViewerOptions, JobOptions, Command):
    """Cut images into patches and measure the concepts of each."""

    name = "measure"
    example = "measure images.csv --out patches.csv --nuclei compact"
    runner = "conceptkit.commands.measure:measure"
    caches = False

    images: str | Path = option(argument=True, metavar="IMAGES.csv")
    """One row per image: image, mask, mpp, patient, …; or a patch table, whose patches are measured as they are. Masks
    are label images: PNG, TIFF, .npy, HoVer-Net's .mat (its inst_map), Cellpose's _cp_masks.png (its _seg.npy is a
    pickle and is refused)."""
    out: str | Path = option(flag="--out -o")
    """Patch table to write, .csv or .parquet; finished images are kept in OUT.parts until all are finished."""
    patch_size: int = 224
    """Side of a patch, in pixels."""
    names: Names | None = option(None, flag="--measure")
    """Measures, comma-separated; or core, nuisances, typed (of types of nuclei), all (all others); default: those of
    the paper that the images allow."""
    exclude: Names = ()
    """Leave out patches by a measure, comma-separated: background, blur_share, folds and ink, or MEASURE>NUMBER or
    MEASURE<NUMBER; what it needs is measured too."""
    nuclei: str | None = option(None, choices=NUCLEI)
    """Method that finds nuclei, instead of reading masks."""
    nuclei_weights: str | Path | None = None
    """Weights of `nuclei train`, for compact (default: those of the package) and maskrcnn."""
    type_names: str | None = None
    """Names of the numbers by which masks give types of nuclei: pannuke, consep, lizard, or 1=neoplastic,2=…; masks are
    then HoVer-Net's .mat or .json, Lizard's .mat, or any with a column types of CSV files (label, type)."""
    masks_out: str | Path | None = None
    """Folder for the nuclei found, a 16-bit PNG per image, or per patch of a table."""
    nuclei_out: str | Path | None = None
    """Table of a row per nucleus to write, .parquet."""
    contours: bool = option(False, flag="--contours")
    """Add the outline of each nucleus to the table of nuclei."""
    on_error: str = option("fail", choices=("fail", "skip"))
    """fail, or skip to list a bad image and continue; what was measured is kept either way."""
    device: str = "auto"
    """auto, cpu, cuda, …, for compact and maskrcnn."""
