"""Objects of an image that were corrected in QuPath: tiles, nuclei and drawn regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology.annotation_files import Drawn
from conceptkit.pathology.annotations import Annotations, extents, touches
from conceptkit.pathology.viewers.collecting import Nuclei, Rows
from conceptkit.pathology.viewers.reading import Found, read_objects
from conceptkit.pathology.viewers.shapes import Canvas, is_own_id, object_id


@dataclass
class Correction:
    """What a table of QuPath says of an object."""

    name: str | None
    classification: str
    measures: dict[str, float]
    table: Path
    used: bool = False


@dataclass
class Corrected:
    """What was read for one image."""

    canvas: Canvas
    value: str
    """Path in the table that is written."""
    rows: Rows = field(default_factory=Rows)
    nuclei: Nuclei = field(default_factory=Nuclei)
    regions: list[tuple[str, str, Annotations]] = field(default_factory=list)
    """Name of the region, its class, and its polygons."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def corner(self) -> tuple[int, int]:
        """Return where the image begins, in pixels of level 0."""
        return self.canvas.left, self.canvas.top


def read_corrected(path: Path, image: Corrected, corrections: Mapping[str, Correction]) -> None:
    """Read the objects of an image into it; ``corrections`` are rows of QuPath's tables by the ids of objects.

    Raises :class:`InputError` when the file cannot be read, belongs to another image, or states another class of an
    object than a table does.
    """
    name, mine, foreign = image.canvas.path.name, 0, ""
    extent: list[NDArray[np.float64]] = []
    for found in read_objects(path):
        image.counts["nested"] += found.nested
        image.counts["locked"] += found.locked
        if found.kind == "annotation":
            _add_region(found, image, extent)
            continue
        if found.kind not in ("tile", "cell", "detection"):
            image.counts[f"skipped {found.kind}"] += 1
            continue
        try:
            ring = found.ring()
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(
                f"folder: {path} has a {found.kind} without a polygon ({found.name or found.id})."
            ) from None
        extent.append(np.concatenate([ring.min(axis=0), ring.max(axis=0)]))
        row = corrections.get(found.id)
        measures = {**({} if row is None else _added(found, row, path)), **found.measures}
        if found.name is not None and is_own_id(found.id):
            mine += found.id == object_id(name, found.name)
            foreign = foreign or ("" if found.id == object_id(name, found.name) else found.name)
        if found.kind == "tile" or (len(ring) == 1 and found.name is not None):
            _add_tile(found, ring, measures, image)
        else:
            image.nuclei.place(ring)
            image.nuclei.add(found.classification, measures, found.metadata)
    _check_image(path, image, np.reshape(extent, (-1, 4)), "" if mine else foreign)


def _added(found: Found, row: Correction, path: Path) -> dict[str, float]:
    """Return the measurements that a table has for an object; refuse another class than that of its file."""
    row.used = True
    if row.classification != found.classification and row.classification.lower() != "unclassified":
        raise InputError(
            f"folder: object {found.name or found.id} is {found.classification or 'without a class'} in {path} and "
            f"{row.classification or 'without a class'} in {row.table}; export both again."
        )
    return row.measures


def _add_region(found: Found, image: Corrected, extent: list[NDArray[np.float64]]) -> None:
    polygons = [one.polygon for one in found.drawn() if isinstance(one, Drawn)]
    if not polygons:
        image.counts["annotations without an area"] += 1
        return
    image.regions.append(
        (found.name or found.classification or "region", found.classification, Annotations(tuple(polygons)))
    )
    extent.extend(extents(polygons))


def _add_tile(found: Found, ring: NDArray[np.float64], measures: Mapping[str, float], image: Corrected) -> None:
    (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
    if abs((x1 - x0) - (y1 - y0)) > 1e-6 or (len(ring) != 1 and len(np.unique(ring, axis=0)) != 4):
        image.counts["tiles that are not squares"] += 1
        return
    rows = image.rows
    rows.ids.append(found.id)
    rows.names.append(found.name or found.id or f"{image.canvas.path.name}|{x0:g}|{y0:g}")
    rows.places.extend((x0, y0, x1, y1))
    rows.add(found.classification, measures, found.metadata)


def _check_image(path: Path, image: Corrected, boxes: NDArray[np.float64], foreign: str) -> None:
    canvas = image.canvas
    inside = touches(boxes, (0, 0, canvas.width, canvas.height)) | (boxes[:, 0] == boxes[:, 2])
    if foreign or (len(boxes) and not inside.any()):
        why = f"{foreign} was exported for another one" if foreign else "everything in it lies outside of the image"
        raise InputError(f"folder: {path} does not belong to {canvas.path.name}: {why}.")
    image.counts["outside"] = int((~inside).sum())
