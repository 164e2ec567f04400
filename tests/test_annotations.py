"""Annotation files: every shape and class that programs write, compared with shapely, and placed on slides."""

from __future__ import annotations

import gzip
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from annotation_texts import asap, collection, feature, imagescope, polygon, square
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping

from conceptkit.errors import InputError
from conceptkit.pathology.annotation_files import read_drawing
from conceptkit.pathology.annotations import classes_in, read_annotations

CMU, TCGA = "cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"


LEFT, RIGHT = square(0, 0, 100), square(100, 0, 100)
BOXES = np.array([[0.0, 0, 100, 100], [100, 0, 200, 100]])
"""The insides of LEFT and RIGHT."""


@pytest.fixture
def write(tmp_path):
    def written(content, name="case.geojson"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


def shares(path, **options):
    return read_annotations(path, **options).share(BOXES).round(2).tolist()


# GeoJSON: shapes


@pytest.mark.parametrize(
    ("content", "expected", "skipped"),
    [
        (polygon(LEFT), [1, 0], {}),
        (feature(polygon(LEFT)), [1, 0], {}),
        ({"type": "GeometryCollection", "geometries": [polygon(LEFT), polygon(RIGHT)]}, [1, 1], {}),
        (
            collection(feature({"type": "GeometryCollection", "geometries": [polygon(RIGHT), polygon([])]}, "Tumor")),
            [0, 1],
            {"empty geometries": 1},
        ),
        ([collection(feature(polygon(LEFT))), collection(feature(polygon(RIGHT)))], [1, 1], {}),
        ([[feature(polygon(LEFT))], polygon(RIGHT)], [1, 1], {}),
        (collection(feature(None), feature(polygon(LEFT))), [1, 0], {"empty geometries": 1}),
        (collection(feature(polygon()), feature(polygon(LEFT))), [1, 0], {"empty geometries": 1}),
        (collection(feature({"type": "MultiPolygon", "coordinates": []})), [0, 0], {"empty geometries": 1}),
        (collection(), [0, 0], {}),
        (
            collection(
                feature({"type": "Point", "coordinates": [1, 1]}),
                feature({"type": "MultiPoint", "coordinates": [[1, 1], [2, 2]]}),
                feature({"type": "LineString", "coordinates": [[1, 1], [2, 2]]}),
                feature(polygon(LEFT)),
                feature(polygon([[1, 1], [1, 1], [2, 2], [1, 1]])),
            ),
            [1, 0],
            {"points": 2, "lines": 1, "polygons of fewer than 3 points": 1},
        ),
        ({"type": "MultiPolygon", "coordinates": [[LEFT], [RIGHT]]}, [1, 1], {}),
        (polygon(LEFT[:-1]), [1, 0], {}),  # not closed
        (polygon([[x, y, 7] for x, y in LEFT]), [1, 0], {}),
        (polygon(LEFT, square(0, 0, 50)), [0.75, 0], {}),
        (
            polygon(LEFT, square(0, 0, 50), square(25, 0, 50)),
            [0.62, 0],
            {},
        ),  # holes overlap: what they share is outside
        (polygon(LEFT, square(50, 0, 100)), [0.5, 0], {}),  # a hole reaches over the edge: nothing is added there
        (collection(feature(polygon(LEFT), objectType="cell"), feature(polygon(RIGHT))), [0, 1], {"cells": 1}),
    ],
)
def test_geojson_of_every_shape(write, content, expected, skipped):
    path = write(content)
    np.testing.assert_allclose(read_annotations(path).share(BOXES), expected, atol=0.02)
    assert dict(read_drawing(path).skipped) == skipped


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (collection(feature({"type": "Circle", "coordinates": [1, 1]})), 'unknown type "Circle"'),
        ({"type": "Topology", "objects": {}}, 'unknown type "Topology"'),
        ({}, "unknown type null"),
        ([3], "holds 3 where a feature"),
        ({"type": "FeatureCollection", "features": None}, "holds null where a feature"),
        (polygon(*LEFT), "not pairs of numbers"),  # one pair of brackets too few
        (polygon([[0], [1], [2]]), "not pairs of numbers"),
        (polygon([[0, 0], [1, None], [2, 2]]), "not pairs of numbers"),
        (polygon([[0, 0], [1, float("nan")], [2, 2]]), "not a finite number"),
        (polygon([[0, 0], [1e308, -1e308], [-1e308, 2]]), "not a finite number below 2^31"),
        ({"type": "Polygon"}, "no list of coordinates"),
        (feature(polygon(LEFT), 3), "classification 3 is neither"),
        (feature(polygon(LEFT), {"names": [1]}), "neither a name nor a list"),
        (feature(polygon(LEFT), {"label": "Tumor"}), "neither name nor names"),
        ('{"type": "Polygon", ', "JSON is broken at line 1, column"),
        ({"positive": [{"points": []}], "negative": []}, "its structure is another one"),
    ],
)
def test_what_is_unknown_in_geojson_is_refused_in_one_sentence(write, content, reason):
    with pytest.raises(InputError, match=r"^annotations: .*case\.geojson is not GeoJSON \(") as refused:
        read_annotations(write(content))
    sentence = str(refused.value)
    assert reason in sentence
    assert "\n" not in sentence
    assert sentence.endswith(").")


def test_a_file_of_points_does_not_make_a_slide_normal(write):
    path = write(collection(feature({"type": "Point", "coordinates": [1, 1]}, "Tumor")))
    with pytest.raises(InputError, match="holds no polygon, only points, which have no area; draw areas"):
        read_annotations(path)


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.sampled_from(["Polygon", "Tumor", ""]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["type", "features", "geometry", "geometries", "coordinates", "properties", "name"]),
                inner | st.sampled_from(["Polygon", "Feature", "MultiPolygon", "GeometryCollection"]),
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_odd_json_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "odd.geojson"
    path.write_text(json.dumps(content))
    try:
        read_annotations(path).share(BOXES)
    except InputError as refused:
        assert "\n" not in str(refused)  # noqa: PT017 – most inputs are refused, some are read


def test_texts_of_every_encoding(tmp_path):
    text = json.dumps(feature(polygon(LEFT), "Tümör"), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        path = tmp_path / "case.geojson"
        path.write_bytes(text.encode(encoding))
        assert classes_in(path) == ("Tümör",)
    packed = tmp_path / "case.geojson.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert shares(packed) == [1, 0]
    packed.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(InputError, match="cannot be read to its end"):
        read_annotations(packed)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="not text in UTF-8 or UTF-16"):
        read_annotations(path)


# Rings beside shapely


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=36, max_size=36))
def test_outlines_of_masks_are_read_as_shapely_reads_them(tmp_path_factory, cells):
    mask = np.array(cells).reshape(6, 6)
    drawn = shapely.unary_union([shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)])
    path = tmp_path_factory.getbasetemp() / "mask.geojson"
    path.write_text(json.dumps(feature(mapping(drawn))))
    boxes = np.array([[x, y, x + 1, y + 1] for y in range(6) for x in range(6)], dtype=float)
    assert read_annotations(path).share(boxes, samples=2).tolist() == mask.ravel().astype(float).tolist()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=9))
def test_rings_that_touch_or_cross_themselves_are_filled_as_shapely_fills_them(tmp_path_factory, points):
    line = shapely.LineString([*points, points[0]])
    lines = shapely.unary_union(line)
    assume(lines.length == pytest.approx(line.length))  # of an edge drawn twice make_valid keeps one
    path = tmp_path_factory.getbasetemp() / "ring.geojson"
    path.write_text(json.dumps(polygon([*points, points[0]])))
    valid = shapely.make_valid(shapely.Polygon(points))
    try:
        share = read_annotations(path).share(np.array([[0.0, 0, 6, 6]]), samples=300)[0]
    except InputError as refused:
        assert "winds twice" in str(refused)  # noqa: PT017 – which rings these are is what shapely is asked
        faces = shapely.unary_union(list(shapely.polygonize([lines]).geoms))
        assert faces.area > 1.02 * valid.area  # a part that even-odd leaves out lies inside
    else:
        assert share * 36 == pytest.approx(valid.area, abs=0.15)


def test_a_bow_tie_and_a_ring_drawn_twice(write):
    bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    np.testing.assert_allclose(read_annotations(write(polygon(bow))).share(BOXES), [0.5, 0], atol=0.02)
    lasso = [[0, 0], [100, 0], [100, 100], [0, 100], [0, -3], [3, -3], [3, 1]]  # its end overlaps its start
    np.testing.assert_allclose(read_annotations(write(polygon(lasso))).share(BOXES), [1, 0], atol=0.02)
    with pytest.raises(InputError, match=r"winds twice around the area near x=.*draw its outline once"):
        read_annotations(write(polygon([*LEFT, *LEFT])))


def test_real_annotations_cover_the_area_that_shapely_finds(shared_data):
    seen = 0
    for path in sorted((shared_data / "camelyon16_annotations").glob("*.xml")):
        of_group = {}
        for drawn in ElementTree.parse(path).getroot().iter("Annotation"):
            ring = [(float(c.get("X")), float(c.get("Y"))) for c in drawn.iter("Coordinate")]
            of_group.setdefault(drawn.get("PartOfGroup"), []).append(shapely.make_valid(shapely.Polygon(ring)))
        if "Tumor" not in of_group:
            continue
        expected = shapely.unary_union(of_group["Tumor"]) - shapely.unary_union(of_group.get("Exclusion", []))
        box = np.array([expected.bounds])
        share = read_annotations(path).share(box, samples=600)[0]
        assert share == pytest.approx(expected.area / np.prod(box[0, 2:] - box[0, :2]), abs=0.004)
        seen += 1
    assert seen >= 5


# Classes


@pytest.mark.parametrize(
    ("classification", "by_default", "named_tumor", "shown"),
    [
        ("Tumor", 1, 1, ("Tumor",)),
        ({"name": "Tumor"}, 1, 1, ("Tumor",)),
        ({"names": ["Tumor", "Positive"]}, 1, 1, ("Tumor: Positive",)),
        ({"name": "Tumor: Positive", "colorRGB": -1}, 1, 1, ("Tumor: Positive",)),
        ({"names": ["Stroma", "Tumor"]}, 1, 0, ("Stroma: Tumor",)),
        ({"names": []}, 1, 0, ("",)),
        ({"name": None}, 1, 0, ("",)),
        ({}, 1, 0, ("",)),
        ({"name": "Ignore*"}, 0, 0, ()),
        ({"names": ["Ignore*", "Fold"]}, 0, 0, ()),
        ({"name": "Ignore*: Fold"}, 0, 0, ()),
        ({"names": ["Tumor", "Artefact*"]}, 0, 0, ()),
        ({"name": "Background*"}, 0, 0, ()),
        ({"names": ["Normal", "Gland"]}, 0, 0, ()),
    ],
)
def test_classes_of_qupath(write, classification, by_default, named_tumor, shown):
    path = write(collection(feature(polygon(LEFT), classification), feature(polygon(RIGHT), "Tumor")))
    assert shares(path) == [by_default, 1]
    assert shares(path, classes=("tumor",)) == [named_tumor, 1]
    assert classes_in(path) == tuple(dict.fromkeys((*shown, "Tumor")))


def test_derived_classes_can_be_named_and_ignored_ones_are_taken_away(write):
    path = write(
        collection(
            feature(polygon(LEFT), {"names": ["Tumor", "Positive"]}),
            feature(polygon(RIGHT), {"names": ["Tumor", "Negative"]}),
        )
    )
    assert shares(path, classes=("Tumor: Positive",)) == [1, 0]
    assert shares(path, classes=("TUMOR:negative",)) == [0, 1]
    path = write(
        collection(feature(polygon(LEFT), "Tumor"), feature(polygon(square(0, 0, 50)), {"names": ["Artefact*"]}))
    )
    assert shares(path) == [0.75, 0]


def test_an_outline_around_other_annotations_takes_nothing_away(write):
    path = write(collection(feature(polygon(square(0, 0, 200)), "Region*"), feature(polygon(LEFT), "Tumor")))
    assert shares(path) == [1, 0]
    assert shares(path, classes=("Tumor",)) == [1, 0]
    assert shares(path, classes=("Region*",)) == [1, 1]


# ASAP


def test_asap_objects_of_every_type(write):
    path = write(
        asap(
            ("Polygon", "None", LEFT[:-1]),
            ("Polygon", "Tumor", [(5, 5)]),  # a stray click
            ("Polygon", "Tumor", []),
            ("Dot", "Tumor", [(5, 5)]),
            ("PointSet", "Tumor", [(5, 5), (6, 6), (7, 8)]),
            ("Measurement", "Tumor", [(5, 5), (6, 6)]),
            ("Rectangle", "Tumor", RIGHT[:-1]),
            ("Spline", "Exclusion", square(100, 0, 50)[:-1]),
        ),
        "case.xml",
    )
    assert shares(path) == [1, 0.75]
    assert classes_in(path) == ("", "Tumor")
    assert dict(read_drawing(path).skipped) == {
        "polygons of fewer than 3 points": 1,
        "empty geometries": 1,
        "points": 2,
        "lines": 1,
    }
    with pytest.raises(InputError, match=r"is not ASAP XML .*'a0' is of the unknown type 'Circle'"):
        read_annotations(write(asap(("Circle", "Tumor", LEFT)), "case.xml"))


def test_asap_groups_in_groups(write):
    groups = (
        '<Group Name="macro" PartOfGroup="Tumor" /><Group Name="Tumor" PartOfGroup="None" />'
        '<Group Name="fold" PartOfGroup="Exclusion" /><Group Name="loop" PartOfGroup="loop" />'
    )
    path = write(
        asap(
            ("Polygon", "macro", LEFT),
            ("Polygon", "loop", RIGHT),
            ("Polygon", "fold", square(0, 0, 50)),
            groups=groups,
        ),
        "case.xml",
    )
    assert shares(path) == [0.75, 1]
    assert shares(path, classes=("Tumor",)) == [0.75, 0]
    assert shares(path, classes=("macro",)) == [0.75, 0]


# ImageScope and HALO


def test_imagescope_regions(write):
    path = write(
        imagescope(
            (
                'Name="Tumor"',
                "",
                [
                    ("0", 0, LEFT[:-1]),
                    ("0", 1, square(0, 0, 50)),
                    ("3", 0, [(0, 0), (9, 9)]),
                    ("0", 0, [(5, 5)]),
                    ("7", 0, [(5, 5), (6, 6)]),  # an unknown type that encloses nothing
                ],
            ),
            ('Name=""', "Stroma", [("1", 0, [(100, 0), (200, 100)])]),
        ),
        "case.xml",
    )
    assert shares(path) == [0.75, 1]
    assert shares(path, classes=("tumor",)) == [0.75, 0]
    assert shares(path, classes=("stroma",)) == [0, 1]
    assert classes_in(path) == ("Tumor", "Stroma")
    assert dict(read_drawing(path).skipped) == {"lines": 1, "polygons of fewer than 3 points": 2}
    assert not read_drawing(path).cropped


def test_imagescope_ellipses_layers_without_a_name_and_holes_of_other_layers(write):
    layers = [
        ('Name=""', "", [("2", 0, [(0, 0), (100, 100)])]),
        ('Name=""', "", [("1", 0, RIGHT[:-1]), ("0", 1, square(0, 0, 40)), ("2", 1, [(100, 0), (200, 100)])]),
    ]
    path = write(imagescope(*layers), "case.xml")
    assert classes_in(path) == ("Layer 1", "Layer 2")
    circle = shapely.Point(0, 0).buffer(1, quad_segs=64).area / 4
    np.testing.assert_allclose(read_annotations(path).share(BOXES, samples=200), [circle, 1 - circle], atol=0.002)
    with pytest.raises(InputError, match=r"is not ASAP XML or ImageScope XML .*unknown type '9'"):
        read_annotations(write(imagescope(('Name="a"', "", [("9", 0, LEFT)])), "case.xml"))
    assert shares(write("<Annotations />", "case.xml")) == [0, 0]


def test_halo_writes_the_same_with_other_words(write):
    corners = '<V X="{}" Y="{}" /><V X="{}" Y="{}" />'
    regions = f'<Region Type="Rectangle" NegativeROA="0"><Vertices>{corners.format(0, 0, 100, 100)}</Vertices></Region>'
    regions += f'<Region Type="Ellipse" NegativeROA="1"><Vertices>{corners.format(0, 0, 100, 100)}</Vertices></Region>'
    layer = f'<Annotation Name="Tumor" Visible="True"><Regions>{regions}</Regions></Annotation>'
    path = write(f"<Annotations>{layer}</Annotations>", "case.annotations")
    np.testing.assert_allclose(read_annotations(path).share(BOXES, samples=200), [1 - np.pi / 4, 0], atol=0.002)
