"""Measuring: from images with nucleus masks to a patch table of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conceptkit.workflow.opening import Progress

if TYPE_CHECKING:
    from conceptkit.pathology.measuring import Measured


def run_measure(
    images: str | Path,
    *,
    out: str | Path,
    patch_size: int = 224,
    names: Sequence[str] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Cut images into patches, measure the concepts of each, and write the patch table.

    Parameters
    ----------
    images : CSV, one row per image: ``image``, and where known ``mask``, ``mpp``, ``patient``, …
    out : the table to write, ``.csv`` or ``.parquet``
    patch_size : side of a patch, in pixels
    names : measures to take; ``None`` for all that the images allow
    skip_bad : list a bad image in the result and go on, instead of ending there

    Raises
    ------
    InputError
        when something that was given cannot be used; an earlier table stays as it was
    """
    from conceptkit.pathology.measuring import measure_images, write_table

    measured = measure_images(
        Path(images),
        out=Path(out),
        patch_size=patch_size,
        names=names,
        on_error="skip" if skip_bad else "raise",
        progress=None if progress is None else lambda done, todo: progress("measuring images", done, todo),
    )
    write_table(measured.table, Path(out))
    return measured
