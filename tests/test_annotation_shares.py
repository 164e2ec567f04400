"""Annotated areas: holes, classes, and the share of a box that lies in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from annotation_texts import asap_xml, corners, shape
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.pathology.annotations import Annotations, Polygon, classes_in, read_annotations

# Annotations


@pytest.fixture
def xml(tmp_path):
    def write(polygons, name="slide.xml"):
        path = tmp_path / name
        path.write_text(polygons if isinstance(polygons, str) else asap_xml(polygons))
        return path

    return write


def test_holes_and_exclusions_are_taken_away(xml):
    drawn = read_annotations(
        xml([("Tumor", corners(0, 0, 100)), ("Exclusion", corners(0, 0, 50)), ("_1", corners(200, 0, 10))])
    )
    boxes = np.array(
        [[0, 0, 100, 100], [50, 50, 100, 100], [0, 0, 50, 50], [195, 0, 215, 10], [300, 0, 310, 10]], float
    )
    np.testing.assert_allclose(drawn.share(boxes), [0.75, 1, 0, 0.5, 0], atol=0.01)
    assert len(drawn.areas) == 2
    assert len(drawn.holes) == 1


def test_geojson_with_inner_rings(tmp_path):
    path = tmp_path / "s.geojson"
    ring = [*corners(0, 0, 100), (0, 0)]
    hole = [*corners(20, 20, 60), (20, 20)]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring, hole]}, "properties": {}},
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[[*corners(200, 0, 50), (200, 0)]]]},
            "properties": {"classification": {"name": "Tumor"}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*corners(200, 0, 25), (200, 0)]]},
            "properties": {"classification": {"name": "Ignore*"}},
        },
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": None},
    ]
    for content in ({"type": "FeatureCollection", "features": features}, features):
        path.write_text(json.dumps(content))
        shares = read_annotations(path).share(np.array([[0.0, 0, 100, 100], [200, 0, 250, 50]]))
        np.testing.assert_allclose(shares, [0.64, 0.75], atol=1 / 32)


def test_an_island_in_a_hole_counts(tmp_path):
    path = tmp_path / "s.geojson"
    ring, hole, island = corners(0, 0, 100), corners(20, 20, 60), corners(40, 40, 20)
    path.write_text(json.dumps([shape(ring, hole, name="Tumor"), shape(island, name="Tumor")]))
    boxes = np.array([[40.0, 40, 60, 60], [22, 22, 38, 38], [0, 0, 100, 100]])
    np.testing.assert_allclose(read_annotations(path).share(boxes, samples=100), [1, 0, 0.68], atol=1e-3)
    path.write_text(json.dumps([shape(ring), shape(hole, island, name="Ignore*")]))  # and one in what is ignored
    np.testing.assert_allclose(read_annotations(path).share(boxes, samples=100), [1, 0, 0.68], atol=1e-3)
    path.write_text(json.dumps([shape(ring), shape(hole, name="Ignore*"), shape(island)]))
    assert read_annotations(path).share(boxes)[0] == 0  # control: what is ignored holds for all polygons
    path.write_text(json.dumps([shape(ring, [*corners(20, 20, 60), *corners(20, 20, 60)])]))
    with pytest.raises(InputError, match=r"polygon 'polygon 1' of .* winds twice"):
        read_annotations(path)


def test_classes_that_count_can_be_named(tmp_path):
    path = tmp_path / "s.geojson"
    drawn = [shape(corners(100 * k, 0, 100), name=name) for k, name in enumerate(("Tumor", "Stroma", "Ignore*", None))]
    path.write_text(json.dumps(drawn))
    boxes = np.array([[100.0 * k, 0, 100 * k + 100, 100] for k in range(4)])
    assert classes_in(path) == ("Tumor", "Stroma", "")
    for classes, expected in (((), [1, 1, 0, 1]), (("tumor",), [1, 0, 0, 0]), (("Stroma", "ignore*"), [0, 1, 1, 0])):
        assert read_annotations(path, classes=classes).share(boxes).tolist() == expected


def test_shares_are_those_of_a_drawn_mask():
    rng = np.random.default_rng(3)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 25))
    radius = rng.uniform(60, 140, 25)
    points = np.stack([150 + radius * np.cos(angle), 150 + radius * np.sin(angle)], axis=1)
    from PIL import ImageDraw

    scale = 8
    canvas = Image.new("1", (300 * scale, 300 * scale))
    ImageDraw.Draw(canvas).polygon([tuple(p * scale) for p in points], fill=1)
    mask = np.asarray(canvas)
    boxes = np.array([[x, y, x + 40, y + 40] for x in range(0, 260, 40) for y in range(0, 260, 40)], dtype=float)
    ours = Annotations((Polygon("p", points),)).share(boxes)
    for share, (x0, y0, x1, y1) in zip(ours, (boxes * scale).astype(int), strict=True):
        assert abs(share - mask[y0:y1, x0:x1].mean()) < 1 / 32
    assert (ours == 0).any()
    assert (ours == 1).any()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([("Tumor", [*corners(0, 0, 10), (0, 0), *corners(0, 0, 10)])], "polygon 'a0' of .* winds twice .* near x="),
        ([("Tumor", [(0, 0), (1, "x"), (2, 2)])], "is not ASAP XML"),
        ("<a", "is not ASAP XML"),
        ("<html></html>", "is not ASAP XML .*its root is 'html'"),
    ],
)
def test_bad_annotations_are_told_in_one_sentence(xml, content, sentence):
    with pytest.raises(InputError, match=sentence) as told:
        read_annotations(xml(content))
    assert "\n" not in str(told.value)


def test_other_bad_files(tmp_path):
    (tmp_path / "s.json").write_text("{")
    for name, sentence in (("s.json", "is not GeoJSON"), ("none.xml", "not found"), ("s.txt", "must end in")):
        with pytest.raises(InputError, match=sentence):
            read_annotations(tmp_path / name)


def test_touching_itself_is_no_crossing(xml):
    eight = [(0, 0), (10, 0), (5, 5), (10, 10), (0, 10), (5, 5)]  # as some contours of masks are written
    assert len(read_annotations(xml([("Tumor", eight)])).areas) == 1
    repeated = [(0, 0), (0, 0), (10, 0), (10, 10), (0, 0)]
    assert len(read_annotations(xml([("Tumor", repeated)])).areas[0].points) == 3


def test_real_annotations_agree_with_what_was_published(shared_data):
    for path in sorted((shared_data / "camelyon16_annotations").glob("*.xml")):
        published = json.loads(path.with_suffix(".json").read_text())
        drawn = read_annotations(path)
        assert len(drawn.areas) == len(published["positive"])
        assert len(drawn.holes) == len(published["negative"])
        for polygon in (*drawn.areas, *drawn.holes):
            x, y = polygon.points.T
            area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2  # the shoelace formula
            low, high = polygon.points.min(axis=0), polygon.points.max(axis=0)
            share = Annotations((polygon,)).share(np.array([[*low, *high]]), samples=400)[0]
            assert share == pytest.approx(area / np.prod(high - low), abs=0.005)
        of_json = read_annotations(path.with_suffix(".json"))
        for polygons, others in ((drawn.areas, of_json.areas), (drawn.holes, of_json.holes)):
            for polygon, other in zip(polygons, others, strict=True):
                np.testing.assert_array_equal(polygon.points, other.points)
