"""Exporting to viewers: from a table, nuclei or a run to a folder that QuPath opens, and maps that lie on the slide."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from conceptkit.errors import InputError, near_names
from conceptkit.files.atomic import replacing
from conceptkit.images.image_files import read_rgb
from conceptkit.options.base import Notify, Progress
from conceptkit.options.qupath import Qupath
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.viewers.exporting import Exported, Wanted, check_new, export, value_range
from conceptkit.pathology.viewers.masks import nuclei_of_masks
from conceptkit.pathology.viewers.overlays import write_map
from conceptkit.pathology.viewers.shapes import Canvas
from conceptkit.pathology.viewers.sources import known_units
from conceptkit.pathology.viewers.tables import is_nucleus_table, whole_of
from conceptkit.report.drawing import file_name, to_bytes
from conceptkit.report.slide_maps import MapLayer, Place, layer_colours, map_on_tissue
from conceptkit.runs.opening import at_stage
from conceptkit.tables.patches import load_table

RUN_TABLE = "attention.csv"
"""Table of a run folder that has a row per patch"""

PICTURE = 1600
"""Longer side of the tissue below a map, in pixels"""


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


def check_export(columns: Sequence[str] | None, out: str | Path | None) -> None:
    """Refuse what the option ``qupath`` cannot write, before the work; ``columns`` are the table's, where known."""
    if out is None:
        return
    check_new(Path(out), "qupath")
    if columns is not None:
        whole_of(columns, "qupath")


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
    with nuclei_of_masks(nuclei, frame) as found:
        return export(
            frame,
            folder,
            wanted,
            nuclei=found,
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
    """Write an OME-TIFF and a PNG per image and column into ``maps/``."""
    (folder / "maps").mkdir()
    whole = whole_of(frame.columns)
    groups = frame.groupby(frame[whole].astype("str")).indices
    for column in maps:
        numeric = pd.api.types.is_numeric_dtype(frame[column]) and not pd.api.types.is_bool_dtype(frame[column])
        values = frame[column].to_numpy(dtype=np.float64, na_value=np.nan) if numeric else frame[column].to_numpy()
        look: dict[str, Any] = {}
        if numeric:
            look["low"], look["high"] = value_range(column, values)
        else:
            look["classes"] = tuple(sorted({str(v) for v in frame[column].dropna()}))
        taken: set[str] = set()
        for name, canvas in images.items():
            rows = np.asarray(groups[name], dtype=np.intp)
            layer = MapLayer(name=column, values=values[rows], unit=units.get(column, ""), **look)
            stem = file_name(f"{canvas.path.name}-{column}", most=120)
            stem = next(one for one in (stem, *(f"{stem}-{k}" for k in range(2, 10**6))) if one not in taken)
            taken.add(stem)
            _write_map(folder / "maps" / stem, frame.iloc[rows], layer, canvas, whole == "slide")


def _write_map(stem: Path, rows: pd.DataFrame, layer: MapLayer, canvas: Canvas, is_slide: bool) -> None:
    numbers, mapped = layer_colours(layer, on_tissue=True)
    x, y, size = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("x", "y", "size"))
    x, y = x - canvas.left, y - canvas.top
    known = np.isfinite(numbers) & np.isfinite(x) & np.isfinite(y) & np.isfinite(size)
    if not known.any():
        return
    boxes = np.stack([x, y, x + size, y + size], axis=1)[known]
    colours = np.asarray(mapped.to_rgba(numbers[known], bytes=True))[:, :3]
    write_map(stem.with_name(f"{stem.name}.ome.tif"), canvas, boxes, colours, name=layer.name)
    place = Place(
        name=canvas.path.name,
        x=x[known],
        y=y[known],
        size=size[known],
        picture=_picture(canvas, is_slide),
        width=float(canvas.width),
        height=float(canvas.height),
    )
    shown = MapLayer(**{**vars(layer), "values": np.asarray(layer.values)[known]})
    with replacing(stem.with_name(f"{stem.name}.png")) as temporary:
        temporary.write_bytes(to_bytes(map_on_tissue(place, shown, mpp=canvas.mpp).figure, kind="png", dpi=150))


def _picture(canvas: Canvas, is_slide: bool) -> Any:
    """Return the image as the viewer shows it, small."""
    if not is_slide:
        small = Image.fromarray(read_rgb(canvas.path))
        small.thumbnail((PICTURE, PICTURE))
        return np.asarray(small)
    with open_slide(canvas.path) as slide:
        scale = max(1.0, max(canvas.width, canvas.height) / PICTURE)
        return slide.region(canvas.left, canvas.top, canvas.width, canvas.height, scale=scale)
