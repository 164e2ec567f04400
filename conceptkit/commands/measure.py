"""Measuring: from images, with nucleus masks or a method that finds nuclei, to a patch table of concepts."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

from conceptkit.commands.qupath import check_export, export_patches
from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import held
from conceptkit.jobs import Engine
from conceptkit.options.base import Notify, Progress
from conceptkit.options.measure import Measure
from conceptkit.pathology.measuring import Measured, Segmentation, check_out, measure_images, write_table
from conceptkit.pathology.measuring_tables import is_patch_table, measure_table
from conceptkit.pathology.nucleus_rows import NucleusTable
from conceptkit.pathology.quality import read_conditions
from conceptkit.pathology.resuming import parts_folder
from conceptkit.runs.opening import at_stage


def run_measure(
    images: str | Path,
    *,
    skip_bad: bool = False,
    workers: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Measured:
    """Measure the concepts of images, in this process unless ``workers`` or ``engine`` say otherwise.

    Parameters
    ----------
    images : CSV, one row per image: ``image``, and where known ``mask``, ``mpp``, ``patient``, …; or a patch table,
        such as ``run_tile`` writes, whose patches are measured as they are
    skip_bad : list a bad image in the result and continue
    workers : processes; more than one need ``if __name__ == "__main__"`` in a script
    options : of :class:`conceptkit.options.measure.Measure`
    """
    on_error = "skip" if skip_bad else "fail"
    return measure(Measure(**{"on_error": on_error, **options}, images=images, workers=workers), progress=progress)


def measure(options: Measure, *, progress: Progress | None = None, notify: Notify | None = None) -> Measured:
    """Cut images into patches, measure the concepts of each, and write the patch table."""
    images, out = Path(options.images), Path(options.out)
    engine = Engine(options.engine, options.workers, options.scheduler)
    check_out(out)
    check_place("out", out)
    conditions = read_conditions(options.exclude)
    if options.contours and options.nuclei_out is None:
        raise InputError("contours: needs --nuclei-out FILE.")
    table = None if options.nuclei_out is None else NucleusTable(Path(options.nuclei_out), options.contours)
    if table is not None:
        check_place("nuclei-out", table.out)
    check_export(None, options.qupath)
    parts = parts_folder(out)
    with held(parts):
        if is_patch_table(images):
            stage, run = "measuring patches", functools.partial(measure_table, images)
        else:
            place = images.absolute() if engine.name == "dask" else images
            stage, run = "measuring images", functools.partial(measure_images, place, patch_size=options.patch_size)
        measured = run(
            out=out,
            names=options.names or None,
            on_error="skip" if options.on_error == "skip" else "raise",
            nuclei=_segmentation(options),
            engine=engine,
            progress=None if progress is None else at_stage(progress, stage),
            parts=parts,
            nuclei_out=table,
            conditions=conditions,
            type_names=options.type_names,
        )
        write_table(measured.table, out)
        if not measured.skipped:
            shutil.rmtree(parts, ignore_errors=True)  # nothing is left to be resumed
    if options.qupath is not None:
        cells = options.masks_out if table is None else table.out
        export_patches(measured.table, out.parent, options.qupath, nuclei=cells)
    return dataclasses.replace(measured, source=images.stem, path=str(options.out))


def _segmentation(options: Measure) -> Segmentation | None:
    """Return how nuclei are found."""
    weights, masks_out = options.nuclei_weights, options.masks_out
    if options.nuclei is None:
        if masks_out is not None or weights is not None:
            name = "masks-out" if masks_out is not None else "nuclei-weights"
            raise InputError(f"{name}: needs --nuclei METHOD.")
        return None
    if masks_out is not None:
        check_place("masks-out", Path(masks_out) / "mask.png")
    return Segmentation(
        method=options.nuclei,
        weights=None if weights is None else Path(weights).absolute(),
        device=options.device,
        masks_out=None if masks_out is None else Path(masks_out).absolute(),
    )
