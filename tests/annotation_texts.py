"""Texts of annotation files, for tests."""

from __future__ import annotations


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, classification=None, **properties):
    if classification is not None:
        properties["classification"] = classification
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def asap(*annotations, groups=""):
    body = ""
    for k, (kind, group, points) in enumerate(annotations):
        inner = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        body += f'<Annotation Name="a{k}" Type="{kind}" PartOfGroup="{group}"><Coordinates>{inner}</Coordinates>'
        body += "</Annotation>"
    body = f"<Annotations>{body}</Annotations><AnnotationGroups>{groups}</AnnotationGroups>"
    return f"<ASAP_Annotations>{body}</ASAP_Annotations>"


def imagescope(*layers):
    body = ""
    for k, (attributes, description, regions) in enumerate(layers, start=1):
        inner = ""
        for number, (kind, negative, points) in enumerate(regions, start=1):
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0" />' for x, y in points)
            inner += f'<Region Id="{number}" Type="{kind}" NegativeROA="{negative}" Text=""><Attributes />'
            inner += f"<Vertices>{vertices}</Vertices></Region>"
        body += f'<Annotation Id="{k}" {attributes} Type="4"><Attributes><Attribute Name="Description" Id="0" '
        body += (
            f'Value="{description}" /></Attributes><Regions><RegionAttributeHeaders />{inner}</Regions></Annotation>'
        )
    return f'<Annotations MicronsPerPixel="0.25">{body}</Annotations>'


def asap_xml(polygons):
    """ASAP's XML of (group, points) pairs."""
    body = ""
    for k, (group, points) in enumerate(polygons):
        inner = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        body += f'<Annotation Name="a{k}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
        body += f"<Coordinates>{inner}</Coordinates></Annotation>"
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>'


def shape(points, *inner, name=None):
    properties = {} if name is None else {"classification": {"name": name}}
    rings = [[*ring, ring[0]] for ring in (points, *inner)]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def corners(x, y, side):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
