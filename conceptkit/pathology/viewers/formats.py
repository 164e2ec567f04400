"""Files of viewers: GeoJSON of QuPath, JSON of the Digital Slide Archive, XML of ASAP and of ImageScope."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from conceptkit.pathology.viewers.shapes import Colour, Shape

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

Colours = Mapping[str, Colour]


@dataclass(frozen=True)
class Format:
    """How the objects of one image are written; each is written by itself, so that none is kept."""

    suffix: str
    crop: bool
    """Whether the viewer counts from the corner of the scanned area."""
    head: Callable[[str, list[str], Colours], str]
    """From the image's name, the classes and their colours to what comes before the objects."""
    body: Callable[[Shape, Colours], str]
    tail: str
    between: str = "\n"


def _geojson(shape: Shape, colours: Colours) -> str:
    geometry = (
        {"type": "Point", "coordinates": shape.ring[0]}
        if shape.kind == "point"
        else {"type": "Polygon", "coordinates": [shape.ring]}
    )
    feature: dict[str, object] = {"type": "Feature", "id": shape.id, "geometry": geometry}
    if shape.kind == "cell":  # nuclei are outlined; without a nucleus QuPath's display of nuclei would be empty
        feature["nucleusGeometry"] = geometry
    properties: dict[str, object] = {"objectType": "detection" if shape.kind == "point" else shape.kind}
    if shape.name is not None:
        properties["name"] = shape.name
    if shape.classification:
        parts = shape.classification.split(": ")
        name = {"name": parts[0]} if len(parts) == 1 else {"names": parts}
        properties["classification"] = {**name, "color": colours[shape.classification]}
    if shape.measures:
        properties["measurements"] = shape.measures
    if shape.metadata:
        properties["metadata"] = shape.metadata
    feature["properties"] = properties
    return _encode(feature)


def _dsa(shape: Shape, colours: Colours) -> str:
    # An id has 24 hexadecimal digits there, and no key of a user's values may hold a dot or begin with $.
    colour = colours.get(shape.classification, (0, 0, 0))
    element: dict[str, object] = {
        "type": "point" if shape.kind == "point" else "polyline",
        "id": shape.id.replace("-", "")[:24],
        "lineColor": f"rgb({colour[0]}, {colour[1]}, {colour[2]})",
        "lineWidth": 1,
    }
    if shape.kind == "point":
        element["center"] = [*shape.ring[0], 0]
    else:
        element |= {"points": [[x, y, 0] for x, y in shape.ring[:-1]], "closed": True}
        element["fillColor"] = f"rgba({colour[0]}, {colour[1]}, {colour[2]}, 0.25)"
    if shape.classification:
        element |= {"group": shape.classification, "label": {"value": shape.classification}}
    user = {**shape.measures, **shape.metadata, **({"name": shape.name} if shape.name else {})}
    element["user"] = {key.replace(".", "_").lstrip("$"): value for key, value in user.items()}
    return _encode(element)


def _asap(shape: Shape, colours: Colours) -> str:
    kind = "Dot" if shape.kind == "point" else "Polygon"
    points = shape.ring if shape.kind == "point" else shape.ring[:-1]
    places = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points))
    colour = _hexadecimal(colours.get(shape.classification, (0, 0, 0)))
    return (
        f'<Annotation Name={_quoted(shape.name or shape.id)} Type="{kind}" '
        f'PartOfGroup={_quoted(shape.classification or "None")} Color="{colour}"><Coordinates>{places}</Coordinates>'
        "</Annotation>"
    )


def _asap_head(image: str, classes: list[str], colours: Colours) -> str:
    groups = "".join(
        f'<Group Name={_quoted(name)} PartOfGroup="None" Color="{_hexadecimal(colours[name])}"><Attributes/></Group>'
        for name in classes
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ASAP_Annotations><AnnotationGroups>{groups}</AnnotationGroups>'
        "<Annotations>"
    )


def _imagescope(shape: Shape, colours: Colours) -> str:
    # One layer per object, so that objects can be written in any order and keep their class.
    red, green, blue = colours.get(shape.classification, (0, 0, 0))
    kind = 5 if shape.kind == "point" else 0
    points = shape.ring if shape.kind == "point" else shape.ring[:-1]
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Annotation Name={_quoted(shape.classification)} LineColor="{red + 256 * green + 65536 * blue}" Visible="1">'
        f'<Regions><Region Type="{kind}" Text={_quoted(shape.name or "")} NegativeROA="0"><Vertices>{vertices}'
        "</Vertices></Region></Regions></Annotation>"
    )


def _dsa_head(image: str, classes: list[str], colours: Colours) -> str:
    return f'{{"name":{_encode(f"{image}, conceptkit")},"elements":['


def _quoted(text: str) -> str:
    return f'"{html.escape(text)}"'


def _hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


FORMATS: Mapping[str, Format] = {
    "qupath": Format(
        ".geojson", True, lambda *_: '{"type":"FeatureCollection","features":[', _geojson, "]}\n", between=",\n"
    ),
    "dsa": Format(".json", False, _dsa_head, _dsa, "]}\n", between=",\n"),
    "asap": Format(".xml", False, _asap_head, _asap, "</Annotations></ASAP_Annotations>\n"),
    "imagescope": Format(
        ".xml",
        False,
        lambda *_: '<?xml version="1.0" encoding="UTF-8"?>\n<Annotations>',
        _imagescope,
        "</Annotations>\n",
    ),
}
"""Name → how files of a viewer are written"""
