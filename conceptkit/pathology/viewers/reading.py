"""What QuPath wrote, read one object at a time: GeoJSON, and tables of measurements."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology.annotation_files import Drawn, drawn_shapes

_BLOCK = 1 << 20

_DECODE = json.JSONDecoder().raw_decode

_COMMA = re.compile(r"[+-]?\d+,\d+")

_FIRST = re.compile(r'\s*(?:\[|\{\s*(?:"[^"]*"\s*:\s*(?:"[^"]*"|[^\s"\[\]{},]+)\s*,\s*)*"features"\s*:\s*\[)')
"""What comes before the first object: a list, or a collection with the key ``features`` after others of one value."""

TABLES = (".tsv", ".txt", ".csv")

OBJECT_ID, CLASSIFICATION, NAME = "Object ID", "Classification", "Name"

_OF_QUPATH = ("Image", OBJECT_ID, "Object type", NAME, CLASSIFICATION, "Parent", "ROI")
"""Columns of QuPath's tables that do not hold measurements; nor do those of centroids."""

_TYPES = {
    **{"PathTileObject": "tile", "PathCellObject": "cell", "PathDetectionObject": "detection"},
    **{"PathAnnotationObject": "annotation", "TMACoreObject": "tmaCore", "PathRootObject": "root"},
    "tma_core": "tmaCore",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One object of an image."""

    kind: str
    """``annotation``, ``detection``, ``tile``, ``cell``, ``tmaCore`` or ``root``."""
    id: str
    name: str | None
    classification: str
    """Class and those it derives from, joined by ``": "``; "" where there is none."""
    geometry: Any
    measures: Mapping[str, float]
    metadata: Mapping[str, str]
    nested: bool
    locked: bool

    def ring(self) -> NDArray[np.float64]:
        """Return the outer ring of the first polygon, or the point, as x and y (k, 2)."""
        kind, parts = self.geometry.get("type"), self.geometry.get("coordinates")
        depth = {"Point": 0, "Polygon": 1, "MultiPolygon": 2}[kind]
        points = [parts] if depth == 0 else parts[0] if depth == 1 else parts[0][0]
        return np.asarray(points, dtype=np.float64)[:, :2]

    def drawn(self) -> list[Drawn | str]:
        """Return its polygons, as those of an annotation file."""
        return list(drawn_shapes(self.geometry, self.name or self.classification or "annotation", self.classification))


def read_objects(path: Path) -> Iterator[Found]:
    """Yield the objects of a GeoJSON file of QuPath, those nested in others too; the file is not kept in memory.

    Raises :class:`InputError` when it cannot be read, or a measurement is not a number.
    """
    try:
        with _opened(path) as stream:
            for feature in _features(stream, path):
                yield from _objects(feature, path, nested=False)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        raise InputError(f"folder: {path} cannot be read to its end as text in UTF-8.") from None


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _features(stream: IO[str], path: Path) -> Iterator[Any]:
    """Yield the values of a list, or of the list ``features`` of an object, as soon as each is complete."""
    text, at, block = stream.read(_BLOCK), 0, _BLOCK
    first = _FIRST.match(text)
    if first is None:
        yield from _whole(text + stream.read(), path)
        return
    at = first.end()
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at < len(text) and text[at] == "]":
            return
        try:
            if at == len(text):
                raise ValueError
            value, end = _DECODE(text, at)
        except ValueError as error:
            more = stream.read(block)
            if not more:
                place = error.colno if isinstance(error, json.JSONDecodeError) else len(text)
                raise InputError(
                    f"folder: {path} is not GeoJSON: it is broken or ends early (near {text[at : at + 40]!r}, "
                    f"column {place})."
                ) from None
            text, at = text[at:] + more, 0
            block *= 2  # of an object that is longer than a block, little is read again
            continue
        block = _BLOCK
        at = end
        yield value


def _whole(text: str, path: Path) -> list[Any]:
    """Return the features of a file with more before them than a key or two, or its only one."""
    try:
        found = json.loads(text)
    except ValueError:
        raise InputError(f"folder: {path} is not GeoJSON: its JSON is broken.") from None
    if isinstance(found, dict) and isinstance(found.get("features"), list):
        return list(found["features"])
    if not isinstance(found, dict) or "geometry" not in found:
        raise InputError(f"folder: {path} is not GeoJSON: it holds no features.")
    return [found]


def _objects(feature: Any, path: Path, *, nested: bool) -> Iterator[Found]:
    if not isinstance(feature, dict) or not isinstance(feature.get("properties") or {}, dict):
        raise InputError(f"folder: {path} is not GeoJSON: it holds {json.dumps(feature)[:40]} where a feature belongs.")
    properties = feature.get("properties") or {}
    given = properties.get("objectType") or properties.get("object_type") or properties.get("type")
    identity = str(feature.get("id") or "")
    kind = given or (identity if identity in _TYPES else "annotation")
    name = properties.get("name")
    yield Found(
        _TYPES.get(kind, kind),
        identity,
        None if name is None else str(name),
        _class_of(properties.get("classification"), path),
        feature.get("geometry") or {},
        _measures(properties.get("measurements"), path),
        properties.get("metadata") or {},
        nested,
        bool(properties.get("isLocked") or properties.get("locked")),
    )
    for child in properties.get("childObjects") or properties.get("children") or ():
        yield from _objects(child, path, nested=True)


def _class_of(given: Any, path: Path) -> str:
    if isinstance(given, dict):
        given = given.get("names") or given.get("name")
    if not given:
        return ""
    if isinstance(given, list):
        return ": ".join(map(str, given))
    if not isinstance(given, str):
        raise InputError(f"folder: {path} has a classification that is neither a name nor a list of names.")
    return given


def _measures(given: Any, path: Path) -> Mapping[str, float]:
    """Return measurements, of which earlier versions wrote a list of names and values."""
    if not given:
        return {}
    found = given if isinstance(given, dict) else {entry["name"]: entry["value"] for entry in given}
    for name, value in found.items():
        if value.__class__ not in (float, int):
            found[name] = _number(value, f"measurement {name!r}", path)
    return found


def _number(value: Any, what: str, path: Path) -> float:
    if isinstance(value, str) and _COMMA.fullmatch(value.strip()):
        raise InputError(
            f"folder: {what} of {path} has a decimal comma ({value}); set the locale of QuPath to English and export "
            "again, so that numbers have a point."
        )
    try:
        return float("nan") if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise InputError(f"folder: {what} of {path} must be a number, got {str(value)[:40]!r}.") from None


def read_measurements(path: Path) -> Iterator[tuple[str, str | None, str, dict[str, float]]]:
    """Yield id, name, class and measurements of each row of a table that QuPath exported (TSV or CSV).

    Raises :class:`InputError` when the table has no ids, or numbers with decimal commas.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        separator = max("\t;,", key=header.count)
        names = next(csv.reader([header], delimiter=separator), [])
        if OBJECT_ID not in names:
            raise InputError(
                f"folder: {path} has no column {OBJECT_ID!r}, by which measurements find their objects; export them "
                "with QuPath 0.4 or later."
            )
        for cells in csv.reader(stream, delimiter=separator):
            row = dict(zip(names, cells, strict=False))
            numbers = {
                name: number
                for name, value in row.items()
                if name not in _OF_QUPATH and not name.startswith("Centroid ")
                if not np.isnan(number := _cell(value, name, path))
            }
            yield row[OBJECT_ID], row.get(NAME) or None, row.get(CLASSIFICATION, ""), numbers


def _cell(value: str, name: str, path: Path) -> float:
    """Return a number; not a number for an empty cell and for text, which metadata columns hold."""
    try:
        return float(value)
    except ValueError:
        return _number(value, f"column {name!r}", path) if _COMMA.fullmatch(value.strip()) else float("nan")
