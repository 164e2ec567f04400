"""Measuring: from images, with nucleus masks or a method that finds nuclei, to a patch table of concepts."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from conceptkit.options.base import Progress
from conceptkit.runs.opening import at_stage

if TYPE_CHECKING:
    from conceptkit.pathology.measuring import Measured


def run_measure(
    images: str | Path,
    *,
    out: str | Path,
    patch_size: int = 224,
    names: Sequence[str] | None = None,
    nuclei: str | None = None,
    nuclei_weights: str | Path | None = None,
    masks_out: str | Path | None = None,
    device: str = "auto",
    skip_bad: bool = False,
    engine: str = "processes",
    workers: int | None = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Cut images into patches, measure the concepts of each, and write the patch table.

    Parameters
    ----------
    images : CSV, one row per image: ``image``, and where known ``mask``, ``mpp``, ``patient``, …; or a patch table,
        such as ``run_tile`` writes, whose patches are measured as they are
    out : the table to write, ``.csv`` or ``.parquet``; what is finished lies in ``{out}.parts`` until all is
    patch_size : side of a patch, in pixels
    names : measures to take, or ``core``, ``nuisances``, ``all``; ``None`` for the paper's that the images allow
    nuclei : ``hematoxylin`` or ``maskrcnn``: nuclei are found, and the column ``mask`` is not used
    nuclei_weights : checkpoint of ``maskrcnn``
    masks_out : folder for the nuclei found, one 16-bit PNG per image, ``{image_id}.png``
    device : of ``maskrcnn``: ``auto``, ``cpu``, ``cuda``, …
    skip_bad : list a bad image in the result and go on, instead of ending there; what was measured is kept either way
    engine, workers, scheduler : ``processes`` with that many (1: this one; ``None``: one per processor), or ``dask``
        with the address of a scheduler; more than one need ``if __name__ == "__main__"`` in a script

    Raises
    ------
    InputError
        when something that was given cannot be used; an earlier table stays as it was
    """
    from conceptkit.errors import InputError, check_place
    from conceptkit.files.atomic import held
    from conceptkit.jobs import Engine
    from conceptkit.pathology.measuring import Segmentation, check_out, measure_images, write_table
    from conceptkit.pathology.measuring_tables import is_patch_table, measure_table
    from conceptkit.pathology.resuming import parts_folder

    if nuclei is None and (masks_out is not None or nuclei_weights is not None):
        name = "masks-out" if masks_out is not None else "nuclei-weights"
        raise InputError(f"{name}: goes with --nuclei METHOD, which was not given.")
    segmentation = None
    if nuclei is not None:
        if masks_out is not None:
            check_place("masks-out", Path(masks_out) / "mask.png")
        segmentation = Segmentation(
            method=nuclei,
            weights=None if nuclei_weights is None else Path(nuclei_weights).absolute(),
            device=device,
            masks_out=None if masks_out is None else Path(masks_out).absolute(),
        )
    on_error: Literal["raise", "skip"] = "skip" if skip_bad else "raise"
    machines = Engine(engine, workers, scheduler)
    check_out(Path(out))
    parts = parts_folder(Path(out))
    with held(parts):
        if is_patch_table(Path(images)):
            stage, measure = "measuring patches", functools.partial(measure_table, Path(images))
        else:
            place = Path(images).absolute() if machines.name == "dask" else Path(images)
            stage, measure = "measuring images", functools.partial(measure_images, place, patch_size=patch_size)
        measured = measure(
            out=Path(out),
            names=names,
            on_error=on_error,
            nuclei=segmentation,
            engine=machines,
            progress=None if progress is None else at_stage(progress, stage),
            parts=parts,
        )
        write_table(measured.table, Path(out))
        if not measured.skipped:
            shutil.rmtree(parts, ignore_errors=True)  # nothing is left to be resumed
    return measured
