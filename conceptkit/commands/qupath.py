"""Exporting to viewers: from a table, nuclei or a run to a folder that QuPath opens, and maps that lie on the slide."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError, near_names
from conceptkit.options.base import Notify, Progress
from conceptkit.options.qupath import Qupath
from conceptkit.pathology.viewers.exporting import Exported, Wanted, check_new, export
from conceptkit.pathology.viewers.shapes import Canvas
from conceptkit.pathology.viewers.sources import known_units
from conceptkit.pathology.viewers.tables import is_nucleus_table, whole_of
from conceptkit.runs.opening import at_stage
from conceptkit.tables.patches import load_table

RUN_TABLE = "attention.csv"
"""Table of a run folder that has a row per patch"""


def qupath(options: Qupath, *, progress: Progress | None = None, notify: Notify | None = None) -> Exported:
    """Write the folder of a viewer, see :func:`conceptkit.pathology.viewers.exporting.export`."""
    path, out = Path(options.table), Path(options.out)
    check_new(out)
    nuclei = None if options.cells is None else Path(options.cells)
    if is_nucleus_table(path):
        if nuclei is not None or options.maps:
            raise InputError(
                f"{'nuclei' if nuclei else 'map'}: {path} is itself a table of nuclei; give a patch table."
            )
        frame, folder, nuclei = None, path.parent, path
    else:
        table = load_table(_table_of(path))
        frame, folder = table.frame, table.folder
    return _export(
        frame,
        folder,
        Wanted(
            out=out,
            label=options.label,
            only=options.concepts,
            formats=options.formats,
            crop=options.crop,
            slides=None if options.slides is None else Path(options.slides),
            units=known_units([] if frame is None else frame.columns),
        ),
        nuclei=nuclei,
        maps=options.maps,
        progress=progress,
    )


def export_patches(
    frame: pd.DataFrame,
    folder: Path,
    out: str | Path,
    *,
    units: Mapping[str, str] | None = None,
    nuclei: str | Path | None = None,
) -> Exported:
    """Write patches with their measures or predictions, as the option ``qupath`` of a command does.

    Parameters
    ----------
    frame : a row per patch, with its place
    folder : that paths in the table are relative to
    out : folder to write, missing or empty
    units : of columns
    nuclei : table of nuclei, or folder of label images
    """
    wanted = Wanted(out=Path(out), units=known_units(frame.columns, units))
    cells = None if nuclei is None else Path(nuclei)
    return _export(frame, folder, wanted, nuclei=cells, maps=(), progress=None)


def check_export(columns: Iterable[str] | None, out: str | Path | None) -> None:
    """Refuse what the option ``qupath`` cannot write, before the work; ``columns`` are the table's, where known."""
    if out is None:
        return
    check_new(Path(out), "qupath")
    if columns is not None:
        whole_of(list(columns), "qupath")


def _export(
    frame: pd.DataFrame | None,
    folder: Path,
    wanted: Wanted,
    *,
    nuclei: Path | None,
    maps: Sequence[str],
    progress: Progress | None,
) -> Exported:
    if frame is not None:
        _check_maps(frame, maps)
    with contextlib.ExitStack() as stack:
        if nuclei is not None:
            # Tracing label images takes 100 MB of libraries, which an export of patches does not need.
            from conceptkit.pathology.viewers.masks import nuclei_of_masks

            nuclei = stack.enter_context(nuclei_of_masks(nuclei, frame))
        return export(
            frame,
            folder,
            wanted,
            nuclei=nuclei,
            maps=None if frame is None or not maps else functools.partial(_write_maps, frame, maps, wanted.units),
            progress=None if progress is None else at_stage(progress, "writing objects"),
        )


def _table_of(path: Path) -> Path:
    """Return the table of a run folder, or the table itself."""
    if not path.is_dir():
        return path
    if not (path / RUN_TABLE).is_file():
        raise InputError(
            f"table: {path} has no {RUN_TABLE}: only runs of bags keep a row per patch; use --qupath of predict, "
            "attribute or measure, or name a table."
        )
    return path / RUN_TABLE


def _check_maps(frame: pd.DataFrame, maps: Sequence[str]) -> None:
    for name in maps:
        if name not in frame:
            raise InputError(f"map: the table has no column {name!r}; {near_names(name, map(str, frame.columns))}.")
        if not frame[name].notna().any():
            raise InputError(f"map: column {name} has no value.")
    if maps and "size" not in frame:
        raise InputError("map: a map needs a column size, the side of a patch in pixels of level 0.")


def _write_maps(
    frame: pd.DataFrame, maps: Sequence[str], units: Mapping[str, str], folder: Path, images: Mapping[str, Canvas]
) -> None:
    # Drawing takes 40 MB of libraries, which an export without maps does not need.
    from conceptkit.commands.viewer_maps import write_viewer_maps

    write_viewer_maps(frame, maps, units, folder, images)
