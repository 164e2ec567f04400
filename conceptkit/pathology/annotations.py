"""What a pathologist drew on a slide: the areas of the classes that count, and how much of a tile lies in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology.annotation_files import Drawing, Points, Polygon, read_drawing

EXCLUSION = ("exclusion", "exclude", "normal", "none of interest", "ignore", "_2")
"""Classes (lower case) whose polygons are taken away from the others; ``_2`` is Camelyon16's name of them.
So are QuPath's ignored classes, whose names end in ``*``."""

_OUTLINE = "region*"
"""QuPath's class for an outline that other annotations lie in: it is not counted and takes nothing away."""

_TWICE = 0.05
"""Largest share of a ring's area that it may wind around twice."""


@dataclass(frozen=True)
class Annotations:
    """What is drawn on one slide: inside of ``areas`` and not inside of ``holes``."""

    areas: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()
    cropped: bool = False
    """Whether coordinates count from the corner of the scanned area, as QuPath's do, not from that of level 0."""

    def share(self, boxes: NDArray[np.float64], *, samples: int = 32) -> NDArray[np.float64]:
        """Return the share of each box that is inside, (n,).

        Boxes are (n, 4): left, top, right, bottom in pixels of level 0. A box that a contour crosses is sampled at
        ``samples`` points per side; the error is below 1 / samples.
        """
        out = np.zeros(len(boxes))
        polygons = (*self.areas, *self.holes)
        if not self.areas:
            return out
        reach = extents(polygons)
        grid = (np.arange(samples) + 0.5) / samples
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            near = np.flatnonzero(touches(reach, (x0, y0, x1, y1)))
            xs, ys = x0 + grid * (x1 - x0), y0 + grid * (y1 - y0)
            inside = np.zeros((samples, samples), dtype=np.bool_)
            taken = np.zeros_like(inside)
            for index in near:
                (inside if index < len(self.areas) else taken)[...] |= _contains(polygons[index], xs, ys)
            out[k] = (inside & ~taken).mean()
        return out

    def moved(self, x: float, y: float) -> Annotations:
        """Return the same areas and holes, moved right by ``x`` and down by ``y`` pixels of level 0."""
        by = np.array([x, y], dtype=np.float64)

        def move(polygon: Polygon) -> Polygon:
            return Polygon(polygon.name, polygon.points + by, tuple(ring + by for ring in polygon.inner))

        return dataclasses.replace(
            self, areas=tuple(map(move, self.areas)), holes=tuple(map(move, self.holes)), cropped=False
        )


def extents(polygons: Sequence[Polygon]) -> NDArray[np.float64]:
    """Return left, top, right and bottom of polygons, (n, 4)."""
    return np.array([[*p.points.min(axis=0), *p.points.max(axis=0)] for p in polygons]).reshape(-1, 4)


def touches(boxes: NDArray[np.float64], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Return which boxes (n, 4) overlap one box: left, top, right, bottom."""
    (left, top, right, bottom), (x0, y0, x1, y1) = boxes.T, box
    return np.asarray((left < x1) & (top < y1) & (right > x0) & (bottom > y0))


def read_annotations(path: Path, *, classes: Sequence[str] = ()) -> Annotations:
    """Read the areas that count of an annotation file; ``classes`` as in :func:`select`.

    A ring may touch or cross itself: it is filled by the even-odd rule. Inner rings are cut out of their polygon.
    Raises :class:`InputError` when the file cannot be read, or a ring winds twice around a part of its area.
    """
    found = select(read_drawing(path), classes)
    for polygon in (*found.areas, *found.holes):
        for ring in (polygon.points, *polygon.inner):
            _check_ring(ring, polygon.name, path)
    return found


def select(drawing: Drawing, classes: Sequence[str] = ()) -> Annotations:
    """Return the polygons of a file whose class counts, and those that are subtracted from them.

    ``classes`` are classes, base classes or groups, in upper or lower case; by default all that are not excluded.
    """
    wanted = {_key(name) for name in classes}
    areas, holes = [], []
    for drawn in drawing.drawn:
        names = [_key(name) for name in drawn.classes]
        if names[0] in wanted:
            areas.append(drawn.polygon)
        elif _OUTLINE in names:
            continue
        elif _excluded(names):
            holes.append(drawn.polygon)
        elif not wanted or wanted & set(names):
            areas.append(drawn.polygon)
    return Annotations(tuple(areas), tuple(holes), drawing.cropped)


def classes_in(source: Path | Drawing) -> tuple[str, ...]:
    """Return the classes of a file that count by default, in the order of the file; "" stands for no class."""
    drawing = source if isinstance(source, Drawing) else read_drawing(source)
    return tuple(dict.fromkeys(d.classes[0] for d in drawing.drawn if not _excluded([_key(n) for n in d.classes])))


def _key(name: str) -> str:
    return ": ".join(part.strip() for part in name.lower().split(":"))


def _excluded(names: Sequence[str]) -> bool:
    return any(name in EXCLUSION or any(part.endswith("*") for part in name.split(": ")) for name in names)


def _check_ring(points: Points, name: str, path: Path) -> None:
    """Refuse a ring whose inside depends on the fill rule: even-odd and non-zero differ where it winds twice."""
    low, high = points.min(axis=0), points.max(axis=0)
    steps = (np.arange(64) + 0.5) / 64
    xs, ys = (low + steps[:, None] * (high - low)).T
    winding = _winding(points, xs, ys)
    twice = (winding != 0) & (winding % 2 == 0)
    if twice.sum() > _TWICE * (winding != 0).sum():
        row, column = np.argwhere(twice)[0]
        raise InputError(
            f"annotations: polygon {name!r} of {path} winds twice around the area near x={xs[column]:.0f}, "
            f"y={ys[row]:.0f}, so its inside is not defined; draw its outline once."
        )


def _contains(polygon: Polygon, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points of a grid lie inside a polygon and outside its inner rings, (len(ys), len(xs))."""
    inside = np.asarray(_winding(polygon.points, xs, ys) % 2 == 1)
    for ring in polygon.inner:
        if inside.any():
            inside &= _winding(ring, xs, ys) % 2 == 0
    return inside


def _winding(points: Points, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return how often a ring winds around each point of a grid, (len(ys), len(xs)); odd is inside by even-odd."""
    (ax, ay), (bx, by) = points.T, np.roll(points, -1, axis=0).T
    near = np.flatnonzero((np.minimum(ay, by) <= ys[-1]) & (np.maximum(ay, by) >= ys[0]))
    ax, ay, bx, by = ax[near], ay[near], bx[near], by[near]
    below, above = ay[:, None] > ys, by[:, None] > ys
    edge, row = np.nonzero(below != above)
    at = ax[edge] + (ys[row] - ay[edge]) * ((bx - ax)[edge] / (by - ay)[edge])
    order = np.lexsort((at, row))
    at, row, turn = at[order], row[order], np.where(above[edge, row], 1, -1)[order]
    out = np.zeros((len(ys), len(xs)), dtype=np.intp)
    ends = np.searchsorted(row, np.arange(len(ys) + 1))
    for k in range(len(ys)):
        part = slice(ends[k], ends[k + 1])
        out[k] = np.concatenate([[0], np.cumsum(turn[part])])[np.searchsorted(at[part], xs)]
    return out
