"""What a pathologist drew on a slide, from ASAP XML, GeoJSON or Camelyon's JSON, and how much of a tile lies in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError

SUFFIXES = (".xml", ".geojson", ".json")
"""Kinds of annotation file; of two that are named as a slide the first kind is taken."""

EXCLUSION = ("exclusion", "exclude", "normal", "none of interest", "ignore", "ignore*", "_2")
"""Groups (lower case) whose polygons are taken away from the others; ``_2`` is Camelyon16's name of them."""

_BROKEN = (*(ValueError, KeyError, TypeError, IndexError, OSError, AttributeError), OverflowError, RecursionError)
"""What reading a file of another make comes to; the last two from numbers and nesting without end."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """One ring, and what is cut out of it."""

    name: str
    points: Points
    """(n, 2) x and y in pixels of level 0, first point not repeated."""
    inner: tuple[Points, ...] = ()
    """Rings cut out of this polygon alone: another one may lie inside, as an island."""


@dataclass(frozen=True)
class Annotations:
    """What is drawn on one slide: inside of ``areas`` and not inside of ``holes``."""

    areas: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()

    def share(self, boxes: NDArray[np.float64], *, samples: int = 32) -> NDArray[np.float64]:
        """Return the share of each box that is inside, (n,).

        Parameters
        ----------
        boxes : (n, 4) left, top, right, bottom in pixels of level 0
        samples : points per side at which a box that a contour crosses is sampled; the error is below 1 / samples
        """
        out = np.zeros(len(boxes))
        rings = [_Ring(p, add=True) for p in self.areas] + [_Ring(p, add=False) for p in self.holes]
        grid = (np.arange(samples) + 0.5) / samples
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            near = [r for r in rings if r.low[0] < x1 and r.high[0] > x0 and r.low[1] < y1 and r.high[1] > y0]
            if not any(r.add for r in near):
                continue
            xs, ys = x0 + grid * (x1 - x0), y0 + grid * (y1 - y0)
            inside = np.zeros((samples, samples), dtype=np.bool_)
            taken = np.zeros_like(inside)
            for ring in near:
                (inside if ring.add else taken)[...] |= ring.contains(xs, ys)
            out[k] = (inside & ~taken).mean()
        return out


def read_annotations(path: Path, *, classes: Sequence[str] = ()) -> Annotations:
    """Read an annotation file of a slide, by its suffix.

    ASAP's XML: polygons, splines and rectangles; those of a group named in :data:`EXCLUSION` are holes. GeoJSON
    (QuPath): polygons and multipolygons with their inner rings; classes as ASAP's groups. Camelyon16's published JSON:
    ``positive`` polygons, and ``negative`` ones as holes.

    Parameters
    ----------
    path : the file
    classes : groups or classes that count, in whatever case; by default all that are no holes

    Raises
    ------
    InputError
        when the file is missing, is none of these, or a polygon is open (below three points) or crosses itself
    """
    named = {name.strip().lower() for name in classes}
    areas, holes = [], []
    for polygon, group in _drawn(path):
        if group.strip().lower() in named or (not named and not _excludes(group)):
            areas.append(polygon)
        elif _excludes(group):
            holes.append(polygon)
    for polygon in (*areas, *holes):
        _check(polygon, path)
    return Annotations(tuple(areas), tuple(holes))


def classes_in(path: Path) -> tuple[str, ...]:
    """Return the groups or classes of a file that are no holes, in the order they are met; "" is one without a name.

    Raises
    ------
    InputError
        when the file is missing or no annotation file
    """
    return tuple(dict.fromkeys(group.strip() for _, group in _drawn(path) if not _excludes(group)))


def _drawn(path: Path) -> list[tuple[Polygon, str]]:
    """Return every polygon of a file, and the group or class that it is of."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"annotations: must end in {', '.join(SUFFIXES)}, got {path}.")
    if not path.is_file():
        raise InputError(f"annotations: there is no file {path}.")
    try:
        return list(_asap(path) if path.suffix.lower() == ".xml" else _json(path))
    except (*_BROKEN, ElementTree.ParseError) as error:
        kind = "ASAP XML" if path.suffix.lower() == ".xml" else "GeoJSON"
        raise InputError(f"annotations: {path} is not {kind} ({error}).") from None


def _asap(path: Path) -> Iterator[tuple[Polygon, str]]:
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is {root.tag!r}, not ASAP_Annotations")
    for drawn in root.iter("Annotation"):
        name, kind = drawn.get("Name", ""), drawn.get("Type", "Polygon")
        if kind in ("Dot", "PointSet", "Measurement"):
            continue
        found = sorted(drawn.iter("Coordinate"), key=lambda c: float(c.get("Order", "0")))
        points = np.array([(_number(c.attrib["X"]), _number(c.attrib["Y"])) for c in found]).reshape(-1, 2)
        yield Polygon(name, _unrepeated(points)), drawn.get("PartOfGroup", "")


def _number(text: str) -> float:
    return float(text.replace(",", "."))  # ASAP writes the comma of some countries


def _json(path: Path) -> Iterator[tuple[Polygon, str]]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    published = isinstance(content, dict) and {"positive", "negative"} <= set(content)
    return _camelyon(content) if published else _geojson(content)


def _camelyon(content: dict[str, Any]) -> Iterator[tuple[Polygon, str]]:
    for key, group in (("positive", "Tumor"), ("negative", EXCLUSION[0])):
        for drawn in content[key]:
            yield Polygon(str(drawn.get("name", key)), _ring(drawn["vertices"])), group


def _geojson(content: Any) -> Iterator[tuple[Polygon, str]]:
    features = content if isinstance(content, list) else content.get("features", [content])
    for k, feature in enumerate(features):
        geometry = feature.get("geometry", feature)
        properties = feature.get("properties") or {}
        group = (properties.get("classification") or {}).get("name", "")
        name = str(properties.get("name") or f"{group or 'polygon'} {k + 1}")
        shapes: Sequence[Any]
        if geometry["type"] == "Polygon":
            shapes = [geometry["coordinates"]]
        elif geometry["type"] == "MultiPolygon":
            shapes = geometry["coordinates"]
        else:
            continue  # points and lines have no inside
        for outer, *inner in shapes:
            yield Polygon(name, _ring(outer), tuple(_ring(ring) for ring in inner)), group


def _ring(coordinates: Sequence[Sequence[float]]) -> Points:
    return _unrepeated(np.array([(float(p[0]), float(p[1])) for p in coordinates]).reshape(-1, 2))


def _excludes(group: str) -> bool:
    return group.strip().lower() in EXCLUSION


def _unrepeated(points: Points) -> Points:
    """Return the points without those equal to the one before, the first one repeated at the end among them."""
    if len(points) == 0:
        return points
    keep = (points != np.roll(points, 1, axis=0)).any(axis=1)
    return points[keep] if keep.any() else points[:1]


def _check(polygon: Polygon, path: Path) -> None:
    for k, points in enumerate((polygon.points, *polygon.inner)):
        name = f"{'hole of ' if k else ''}{polygon.name}"
        if len(points) < 3 or not np.isfinite(points).all():
            raise InputError(
                f"annotations: polygon {name!r} of {path} is open: at least 3 points are needed, got {len(points)}."
            )
        crossing = _first_crossing(points)
        if crossing is not None:
            x, y = crossing
            raise InputError(f"annotations: polygon {name!r} of {path} crosses itself near x={x:.0f}, y={y:.0f}.")


def _first_crossing(points: Points) -> tuple[float, float] | None:
    """Return a place where two edges properly cross; ``None`` for a simple ring (touching is no crossing)."""
    a, b = points, np.roll(points, -1, axis=0)
    low, high = np.minimum(a, b), np.maximum(a, b)
    n = len(points)
    for i in range(n - 2):
        rest = slice(i + 2, n if i else n - 1)  # neighbours share a point
        near = (
            (low[rest, 0] < high[i, 0])
            & (high[rest, 0] > low[i, 0])
            & (low[rest, 1] < high[i, 1])
            & (high[rest, 1] > low[i, 1])
        )
        if not near.any():
            continue
        p, q = a[rest][near], b[rest][near]
        apart = _side(a[i], b[i], p) * _side(a[i], b[i], q) < 0
        if (apart & (_side(p, q, a[i]) * _side(p, q, b[i]) < 0)).any():
            return float(a[i, 0]), float(a[i, 1])
    return None


def _side(a: Points, b: Points, p: Points) -> NDArray[np.float64]:
    """Return on which side of the line from a to b each point lies, as a sign."""
    ab, ap = b - a, p - a
    return np.asarray(np.sign(ab[..., 0] * ap[..., 1] - ab[..., 1] * ap[..., 0]))


class _Ring:
    """A polygon prepared for many points: by its edges, cut to the rows that they cross."""

    def __init__(self, polygon: Polygon, *, add: bool) -> None:
        self.add = add
        self.low, self.high = polygon.points.min(axis=0), polygon.points.max(axis=0)
        # The edges of inner rings are edges like any other: by the even-odd rule what they enclose is outside.
        rings = (polygon.points, *polygon.inner)
        self._a = np.concatenate(rings)
        self._b = np.concatenate([np.roll(points, -1, axis=0) for points in rings])

    def contains(self, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points of a grid lie inside, (len(ys), len(xs)), by the even-odd rule."""
        (ax, ay), (bx, by) = self._a.T, self._b.T
        near = (np.minimum(ay, by) <= ys[-1]) & (np.maximum(ay, by) >= ys[0])
        ax, ay, bx, by = ax[near], ay[near], bx[near], by[near]
        crossed = (ay[:, None] > ys) != (by[:, None] > ys)  # (edges, rows)
        slope = np.divide(bx - ax, by - ay, out=np.zeros_like(ax), where=by != ay)
        at = ax[:, None] + (ys - ay[:, None]) * slope[:, None]
        out = np.zeros((len(ys), len(xs)), dtype=np.bool_)
        for row in range(len(ys)):
            cuts = np.sort(at[crossed[:, row], row])
            out[row] = np.searchsorted(cuts, xs) % 2 == 1
        return out
