"""Annotation files of slides: XML of ASAP, ImageScope and HALO, GeoJSON and Camelyon's JSON, read as polygons."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError

SUFFIXES = (".xml", ".annotations", ".geojson", ".geojson.gz", ".json")
"""Kinds of annotation file; of several that match one slide the first kind is read."""

CAMELYON_HOLE = "Exclusion"
"""Class of the ``negative`` polygons of Camelyon's JSON, and ASAP's usual name of holes."""

Points = NDArray[np.float64]

_LARGEST = 2.0**31
"""No slide has as many pixels along a side."""

_EMPTY = "empty geometries"
_FEW = "polygons of fewer than 3 points"
_POINTS = "points"
_LINES = "lines"

_GEOJSON_SKIPPED = {
    **{"Point": _POINTS, "MultiPoint": _POINTS},
    **{"LineString": _LINES, "MultiLineString": _LINES},
}
_QUPATH_SKIPPED = {"cell": "cells", "tma_core": "TMA cores", "root": "root objects"} | {
    "PathCellObject": "cells",
    "TMACoreObject": "TMA cores",
    "PathRootObject": "root objects",
}
_ASAP_SKIPPED = {"Dot": _POINTS, "PointSet": _POINTS, "Measurement": _LINES}
_REGION_KINDS = {
    **{"0": "polygon", "1": "rectangle", "2": "ellipse", "3": _LINES},
    **{"polygon": "polygon", "rectangle": "rectangle", "ellipse": "ellipse", "ruler": _LINES, "pin": _POINTS},
}
"""Types of a region: numbers in ImageScope, names in HALO."""


_BROKEN = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
    *(OSError, EOFError, zlib.error, ElementTree.ParseError),
)
"""What reading a file of another structure, or a damaged one, ends in."""


@dataclass(frozen=True)
class Polygon:
    """One ring, and what is cut out of it."""

    name: str
    points: Points
    """(n, 2) x and y in pixels of level 0, first point not repeated."""
    inner: tuple[Points, ...] = ()
    """Rings cut out of this polygon only: another one may lie inside, as an island."""


@dataclass(frozen=True)
class Drawn:
    """A polygon and its classes."""

    polygon: Polygon
    classes: tuple[str, ...]
    """Its class ("" where none is given), then other names of it: base classes, parent groups, texts."""


@dataclass(frozen=True)
class Drawing:
    """What an annotation file holds."""

    drawn: tuple[Drawn, ...]
    skipped: Mapping[str, int]
    """Kind of object that encloses no area → number of them."""
    cropped: bool
    """Whether coordinates count from the corner of the scanned area, as QuPath's do, not from that of level 0."""


class _ContentError(ValueError):
    """What is wrong with the content of a file, as part of a sentence."""


def suffix_of(path: Path) -> str:
    """Return which of :data:`SUFFIXES` a file name ends in, or ""."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def read_drawing(path: Path) -> Drawing:
    """Read an annotation file of a slide, by its suffix.

    Raises :class:`InputError` when it is missing, in none of these formats, or holds objects but no polygon.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise InputError(f"annotations: must end in {', '.join(SUFFIXES)}, got {path}.")
    if not path.is_file():
        raise InputError(f"annotations: file {path} not found.")
    in_xml = suffix in (".xml", ".annotations")
    try:
        content = path.read_bytes()
        objects, cropped = _xml(content) if in_xml else _json(gzip.decompress(content) if "gz" in suffix else content)
        found = list(objects)
    except _BROKEN as error:
        raise InputError(_refusal(path, error, in_xml=in_xml)) from None
    drawn = tuple(entry for entry in found if isinstance(entry, Drawn))
    skipped = Counter(entry for entry in found if isinstance(entry, str))
    placed = [kind for kind in skipped if kind not in (_EMPTY, _FEW)]
    if placed and not drawn:
        raise InputError(
            f"annotations: {path} holds no polygon, only {' and '.join(placed)}, which have no area; "
            "draw areas, or remove the file to leave the slide without labels."
        )
    return Drawing(drawn, skipped, cropped)


def _refusal(path: Path, error: Exception, *, in_xml: bool) -> str:
    """Return the sentence for a file that cannot be read, without Python's own words."""
    if isinstance(error, _ContentError):
        reason = str(error)
    elif isinstance(error, json.JSONDecodeError):
        reason = f"JSON is broken at line {error.lineno}, column {error.colno}"
    elif isinstance(error, ElementTree.ParseError):
        line, column = error.position
        reason = f"XML is broken at line {line}, column {column + 1}"
    elif isinstance(error, UnicodeDecodeError):
        reason = "it is not text in UTF-8 or UTF-16"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, (OSError, EOFError, zlib.error)):
        reason = "the file cannot be read to its end"
    else:
        reason = "its structure is another one"
    return f"annotations: {path} is not {'ASAP XML or ImageScope XML' if in_xml else 'GeoJSON'} ({reason})."


def _xml(content: bytes) -> tuple[Iterator[Drawn | str], bool]:
    root = ElementTree.fromstring(content)
    if root.tag == "ASAP_Annotations":
        return _asap(root), False
    if root.tag == "Annotations":
        return _imagescope(root), False
    raise _ContentError(f"its root is {root.tag!r}, not ASAP_Annotations or Annotations")


def _json(content: bytes) -> tuple[Iterator[Drawn | str], bool]:
    found = json.loads(content)  # bytes: UTF-8, UTF-16 and UTF-32, with and without a byte order mark
    if isinstance(found, dict) and {"positive", "negative"} <= set(found):
        return _camelyon(found), False
    return _geojson(found), True


# ASAP


def _asap(root: ElementTree.Element) -> Iterator[Drawn | str]:
    parents = {group.get("Name", ""): group.get("PartOfGroup", "") for group in root.iter("Group")}
    for drawn in root.iter("Annotation"):
        name, kind = drawn.get("Name", ""), drawn.get("Type", "Polygon")
        if kind in _ASAP_SKIPPED:
            yield _ASAP_SKIPPED[kind]
            continue
        if kind not in ("Polygon", "Spline", "Rectangle"):
            raise _ContentError(f"annotation {name!r} is of the unknown type {kind!r}; draw it as a polygon")
        found = sorted(drawn.iter("Coordinate"), key=lambda c: float(c.get("Order", "0")))
        points = _vertices(found, name)
        rings = [_corners(points) if kind == "Rectangle" and len(points) == 2 else points]
        yield _polygon(name, rings, _lineage(drawn.get("PartOfGroup", ""), parents))


def _lineage(group: str, parents: Mapping[str, str]) -> tuple[str, ...]:
    """Return a group and the groups around it; ASAP writes ``None`` for no group."""
    found: list[str] = []
    while group not in ("", "None", *found):
        found.append(group)
        group = parents.get(group, "")
    return tuple(name.strip() for name in found) or ("",)


def _vertices(elements: Sequence[ElementTree.Element], name: str) -> Points:
    # ASAP writes decimal commas in some countries.
    return _points([[element.get(axis, "").replace(",", ".") for axis in ("X", "Y")] for element in elements], name)


# ImageScope and HALO


def _imagescope(root: ElementTree.Element) -> Iterator[Drawn | str]:
    """Read layers of regions; a negative region is cut out of the other regions of its layer."""
    for k, layer in enumerate(root.iter("Annotation"), start=1):
        names = [layer.get("Name", ""), *_texts(layer.find("Attributes"))]
        found: list[tuple[Points, tuple[str, ...]]] = []
        holes: list[Points] = []
        for region in layer.iter("Region"):
            known = [n.strip() for n in (*names, region.get("Text", "")) if n.strip()]
            classes = tuple(dict.fromkeys(known)) or (f"Layer {layer.get('Id', k)}",)
            ring = _region(region, f"{classes[0]} {region.get('Id', '')}".strip())
            if isinstance(ring, str):
                yield ring
            elif region.get("NegativeROA", "0").lower() in ("1", "true"):
                holes.append(ring)
            else:
                found.append((ring, classes))
        for number, (ring, classes) in enumerate(found, start=1):
            yield _polygon(f"{classes[0]} {number}", [ring, *(hole for hole in holes if _meet(ring, hole))], classes)


def _texts(attributes: ElementTree.Element | None) -> list[str]:
    """Return what a layer's attributes say: the description, or an attribute that is named after the class."""
    found = [] if attributes is None else list(attributes.iter("Attribute"))
    return [a.get("Value", "") or a.get("Name", "").replace("Description", "") for a in found]


def _region(region: ElementTree.Element, name: str) -> Points | str:
    """Return the outline of a region, or what it is when it encloses no area."""
    stated = region.get("Type", "0")
    kind = _REGION_KINDS.get(stated.lower(), "")
    if kind in (_LINES, _POINTS):
        return kind
    points = _vertices([*region.iter("Vertex"), *region.iter("V")], name)
    if len(points) < (2 if kind in ("rectangle", "ellipse") else 3):
        return _FEW  # whatever its type, it encloses no area
    if not kind:
        raise _ContentError(f"{name} is of the unknown type {stated!r}; draw it as a polygon")
    if kind == "rectangle" and len(points) == 2:
        return _corners(points)
    if kind == "ellipse" and len(points) <= 4:
        centre, radius = (points.min(axis=0) + points.max(axis=0)) / 2, np.ptp(points, axis=0) / 2
        angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        return np.asarray(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return points


def _corners(points: Points) -> Points:
    """Return the rectangle between two opposite corners, (4, 2)."""
    (x0, y0), (x1, y1) = points
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _meet(ring: Points, other: Points) -> bool:
    """Return whether the bounding boxes of two rings overlap."""
    return bool((ring.min(axis=0) < other.max(axis=0)).all() and (other.min(axis=0) < ring.max(axis=0)).all())


# JSON


def _camelyon(content: dict[str, Any]) -> Iterator[Drawn | str]:
    for key, group in (("positive", "Tumor"), ("negative", CAMELYON_HOLE)):
        for drawn in content[key]:
            name = str(drawn.get("name", key))
            yield _polygon(name, [_points(drawn["vertices"], name)], (group,))


def _geojson(content: Any) -> Iterator[Drawn | str]:
    for k, feature in enumerate(_features(content), start=1):
        properties = feature.get("properties") or {}
        kind = properties.get("objectType") or feature.get("id")
        if isinstance(kind, str) and kind in _QUPATH_SKIPPED:
            yield _QUPATH_SKIPPED[kind]
            continue
        classes = _derived(properties.get("classification"))
        name = str(properties.get("name") or f"{classes[0] or 'polygon'} {k}")
        yield from _shapes(feature.get("geometry"), name, classes)


def _features(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the features of lists and collections of them, nested or not; a bare geometry counts as a feature."""
    if isinstance(node, list):
        for part in node:
            yield from _features(part)
    elif not isinstance(node, dict):
        raise _ContentError(f"it holds {json.dumps(node)[:40]} where a feature or geometry is expected")
    elif "features" in node:
        yield from _features(node["features"])
    elif "geometry" in node or node.get("type") == "Feature":
        yield node
    else:
        yield {"geometry": node}


def _derived(given: Any) -> tuple[str, ...]:
    """Return a class of QuPath and those it derives from: ``Tumor: Positive``, ``Tumor``."""
    if isinstance(given, dict) and given:
        if not {"names", "name"} & set(given):
            raise _ContentError(f"the classification {json.dumps(given)[:60]} has neither name nor names")
        given = given.get("names") or given.get("name")
    if not given:
        return ("",)
    names = given.split(": ") if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _ContentError(f"the classification {json.dumps(given)[:60]} is neither a name nor a list of names")
    names = [name.strip() for name in names]
    return tuple(": ".join(names[:end]) for end in range(len(names), 0, -1))


def drawn_shapes(geometry: Any, name: str, classification: str) -> Iterator[Drawn | str]:
    """Yield the polygons of a geometry of QuPath, or what it is when it encloses no area.

    Raises :class:`InputError` when it is of no known type, or has coordinates that are not numbers.
    """
    try:
        yield from _shapes(geometry, name, _derived(classification))
    except _ContentError as error:
        raise InputError(f"annotations: {error}.") from None


def _shapes(geometry: Any, name: str, classes: tuple[str, ...]) -> Iterator[Drawn | str]:
    if geometry is None:
        yield _EMPTY
        return
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in _GEOJSON_SKIPPED:
        yield _GEOJSON_SKIPPED[kind]
        return
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates") if kind else None
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection"):
        raise _ContentError(
            f"{name!r} has a geometry of the unknown type {json.dumps(kind)[:40]}; polygons, collections, points and "
            "lines are known"
        )
    if not isinstance(parts, list):
        raise _ContentError(f"the {kind} of {name!r} has no list of coordinates or geometries")
    if not parts:
        yield _EMPTY
    elif kind == "GeometryCollection":
        for part in parts:
            yield from _shapes(part, name, classes)
    else:
        for rings in parts if kind == "MultiPolygon" else [parts]:
            yield _polygon(name, [_points(ring, name) for ring in rings], classes)


# Rings


def _points(coordinates: Any, name: str) -> Points:
    """Return a ring (n, 2) without points equal to the one before, the first one repeated at the end among them."""
    try:
        points = np.array([(float(p[0]), float(p[1])) for p in coordinates], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, LookupError, OverflowError):
        raise _ContentError(f"polygon {name!r} has coordinates that are not pairs of numbers") from None
    if not (np.abs(points) < _LARGEST).all():
        raise _ContentError(f"polygon {name!r} has a coordinate that is not a finite number below 2^31")
    if len(points) == 0:
        return points
    keep = (points != np.roll(points, 1, axis=0)).any(axis=1)
    return points[keep] if keep.any() else points[:1]


def _polygon(name: str, rings: Sequence[Points], classes: tuple[str, ...]) -> Drawn | str:
    """Return a polygon of an outer ring and inner ones, or what it is when it encloses no area."""
    if not rings or len(rings[0]) == 0:
        return _EMPTY
    outer, *inner = rings
    if len(outer) < 3:
        return _FEW
    return Drawn(Polygon(name, outer, tuple(ring for ring in inner if len(ring) >= 3)), classes)
