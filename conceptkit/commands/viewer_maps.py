"""Maps of a table's columns on the images of a viewer: an OME-TIFF pyramid and a PNG each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from conceptkit.files.atomic import replacing
from conceptkit.images.image_files import read_rgb
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.viewers.exporting import value_range
from conceptkit.pathology.viewers.overlays import write_map
from conceptkit.pathology.viewers.shapes import Canvas
from conceptkit.pathology.viewers.tables import whole_of
from conceptkit.report.drawing import file_name, to_bytes
from conceptkit.report.slide_maps import MapLayer, Place, layer_colours, map_on_tissue

PICTURE = 1600
"""Longer side of the tissue below a map, in pixels"""


def write_viewer_maps(
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
