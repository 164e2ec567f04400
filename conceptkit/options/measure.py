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
    example = "measure images.csv --out patches.csv --nuclei hematoxylin"
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
    """Measures, comma-separated; or core, nuisances, all; default: the paper's, as far as the images allow."""
    nuclei: str | None = option(None, choices=NUCLEI)
    """Method that finds nuclei, instead of reading masks."""
    nuclei_weights: str | Path | None = None
    """Checkpoint of maskrcnn."""
    masks_out: str | Path | None = None
    """Folder for the nuclei found, a 16-bit PNG per image."""
    on_error: str = option("fail", choices=("fail", "skip"))
    """fail, or skip to list a bad image and continue; what was measured is kept either way."""
    device: str = "auto"
    """auto, cpu, cuda, …, for maskrcnn."""
