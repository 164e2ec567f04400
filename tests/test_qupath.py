"""Export to QuPath and other viewers: objects where the tissue is, and what was corrected read back."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import shapely
from command_calls import call
from PIL import Image
from qupath_files import SIZE, annotation, box, exported, features, write_tsv
from slide_files import SCN_CORNER, SCN_SIZE, write_scn

from conceptkit.pathology.adapters.qupath import qupath_objects
from conceptkit.pathology.annotation_files import read_drawing
from conceptkit.pathology.viewers.masks import outline
from conceptkit.pathology.viewers.shapes import object_id, spellings, with_unit, without_unit
from conceptkit.tables.patches import load_table

# Export


def test_tiles_are_tile_objects_where_the_table_says(place, tmp_path):
    out = exported(place, tmp_path)
    table = load_table(place / "patches.csv").frame
    found = features(next(out.glob("*.geojson")))
    assert list(found) == list(table["patch_id"])
    for row in table.to_dict("records"):
        feature, shape = found[row["patch_id"]]
        about = feature["properties"]
        assert shape.bounds == (row["x"], row["y"], row["x"] + SIZE, row["y"] + SIZE)
        assert shape.area == SIZE**2
        assert about["objectType"] == "tile"
        assert about["measurements"]["count [nuclei per patch]"] == row["count"]
        assert about["metadata"]["patient"] == "007"
        assert about["metadata"]["seen/by"] == row["seen/by"]
        if pd.isna(row["area_um2"]):
            assert "area_um2 [µm²]" not in about["measurements"]
        else:
            assert about["measurements"]["area_um2 [µm²]"] == row["area_um2"]
        # QuPath's own class and colour, which it spells with a capital; no class where there is no label
        expected = {
            "tumor": {"name": "Tumor", "color": [200, 0, 0]},
            "normal": {"name": "normal", "color": [0, 114, 178]},
        }
        assert about.get("classification") == expected.get(row["label"])
    assert len({f["id"] for f, _ in found.values()}) == 12
    contents_file = json.loads((out / "conceptkit.json").read_text())
    [image] = contents_file["images"]
    assert (image["image"], image["width"], image["height"], image["left"]) == ("case a.tif", 700, 500, 0)
    script = (out / "import.groovy").read_text()
    assert str(out.resolve()) in script
    assert "FOLDER" not in script


def test_coordinates_count_from_the_scanned_area_as_qupath_does(tmp_path):
    path = write_scn(tmp_path)
    (left, top), (width, height) = SCN_CORNER, SCN_SIZE
    rows = pd.DataFrame(
        {"patch_id": ["a", "b"], "slide": path.name, "x": [left, left + 64], "y": [top, top + 32], "size": 64}
    )
    rows.assign(count=[1, 2]).to_csv(tmp_path / "t.csv", index=False)
    whole = exported(tmp_path, tmp_path / "no", "--no-crop", table="t.csv")
    out = exported(tmp_path, tmp_path / "yes", "--format", "qupath,asap", table="t.csv")
    assert features(out / "case.scn.geojson")["b"][1].bounds == (64, 32, 128, 96)
    assert features(whole / "case.scn.geojson")["b"][1].bounds == (left + 64, top + 32, left + 128, top + 96)
    image = json.loads((out / "conceptkit.json").read_text())["images"][0]
    assert (image["width"], image["height"], image["left"], image["top"]) == (width, height, left, top)
    drawn = read_drawing(out / "asap" / "case.scn.xml").drawn  # ASAP counts from the corner of level 0
    assert drawn[1].polygon.points.min(axis=0).tolist() == [left + 64, top + 32]
    for folder in (out, whole):
        back = qupath_objects(folder, out=tmp_path / "back.csv").table
        assert back[["x", "y", "size"]].to_numpy().tolist() == rows[["x", "y", "size"]].to_numpy().tolist()


def test_nuclei_are_cells_with_contour_type_and_measures(place, tmp_path):
    out = exported(place, tmp_path, "--nuclei", place / "nuclei.parquet")
    given = pyarrow.parquet.read_table(place / "nuclei.parquet").to_pylist()
    cells = [
        pair for pair in features(next(out.glob("*.geojson"))).values() if pair[0]["properties"]["objectType"] != "tile"
    ]
    assert len(cells) == 6
    for nucleus, (feature, shape) in zip(given, cells, strict=True):
        about = feature["properties"]
        if nucleus["contour"] is None:
            assert (about["objectType"], shape.geom_type) == ("detection", "Point")
            assert (shape.x, shape.y) == (nucleus["x"], nucleus["y"])
        else:
            assert about["objectType"] == "cell"
            assert shape.equals_exact(shapely.Polygon(nucleus["contour"]), 0.005)
            assert feature["nucleusGeometry"] == feature["geometry"]
        assert about["measurements"]["area_um2 [µm²]"] == nucleus["area_um2"]
        assert (about.get("classification") or {}).get("name") == nucleus["type"]
    colours = {
        c["properties"]["classification"]["name"]: c["properties"]["classification"]["color"] for c, _ in cells[:2]
    }
    assert colours == {"Tumor": [200, 0, 0], "Immune cells": [160, 90, 160]}


@pytest.mark.parametrize("form", ["nested", "fixed", "flat", "large"])
def test_contours_in_every_form_of_a_list(place, tmp_path, form):
    number = pyarrow.float64()
    pair = pyarrow.list_(number, 2) if form == "fixed" else pyarrow.list_(number)
    kind = {"flat": pyarrow.list_(number), "large": pyarrow.large_list(pyarrow.large_list(number))}.get(
        form, pyarrow.list_(pair)
    )
    square = [[10.0, 10.0], [20.0, 10.0], [20.0, 25.0]]
    values = [[v for p in square for v in p] if form == "flat" else square, None]
    table = {"slide": ["case a.tif"] * 2, "x": [15.0, 40.0], "y": [15.0, 40.0], "contour": pyarrow.array(values, kind)}
    pyarrow.parquet.write_table(pyarrow.table(table), place / f"{form}.parquet")
    out = exported(place, tmp_path, table=f"{form}.parquet")
    (_, cell), (_, point) = features(next(out.glob("*.geojson"))).values()
    assert cell.equals(shapely.Polygon(square))
    assert (point.x, point.y) == (40, 40)


def test_label_images_become_cells(tmp_path):
    rng = np.random.default_rng(1)
    labels = np.zeros((96, 120), np.uint16)
    yy, xx = np.mgrid[:96, :120]
    for k, (y, x) in enumerate(((20, 25), (60, 80), (70, 20)), start=1):
        labels[(yy - y) ** 2 / 1.5 + (xx - x) ** 2 < rng.integers(60, 120)] = k
    (tmp_path / "masks").mkdir()
    Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    Image.fromarray(np.full((96, 120, 3), 200, np.uint8)).save(tmp_path / "a.png")
    pd.DataFrame({"patch_id": ["p"], "image": "a.png", "x": 0, "y": 0, "size": 96}).to_csv(
        tmp_path / "t.csv", index=False
    )
    out = exported(tmp_path, tmp_path, "--nuclei", tmp_path / "masks", table="t.csv")
    cells = [shape for f, shape in features(out / "a.png.geojson").values() if f["properties"]["objectType"] == "cell"]
    for k, shape in enumerate(cells, start=1):
        inside = shapely.contains_xy(shape, xx + 0.5, yy + 0.5)
        both, either = (inside & (labels == k)).sum(), (inside | (labels == k)).sum()
        assert both / either > 0.97
        shifted = shapely.contains_xy(shape, xx + 2.5, yy + 0.5)  # the control: two pixels beside, it does not fit
        assert (shifted & (labels == k)).sum() / (shifted | (labels == k)).sum() < 0.9
    ring = outline(np.ones((1, 1), bool))
    assert np.allclose(ring.mean(axis=0), 0.5)


@pytest.mark.parametrize("viewer", ["asap", "imagescope", "dsa"])
def test_files_of_other_viewers(place, tmp_path, viewer):
    out = exported(place, tmp_path, "--format", viewer, "--nuclei", place / "nuclei.parquet")
    assert not list(out.glob("*.geojson"))
    table = load_table(place / "patches.csv").frame
    [path] = (out / viewer).iterdir()
    if viewer == "dsa":
        found = json.loads(path.read_text())
        assert set(found) == {"name", "elements"}
        allowed = {
            "type",
            "id",
            "label",
            "group",
            "user",
            "lineColor",
            "lineWidth",
            "points",
            "closed",
            "fillColor",
            "center",
        }
        for element in found["elements"]:
            assert set(element) <= allowed
            assert re.fullmatch("[0-9a-f]{24}", element["id"])
            assert all("." not in key and not key.startswith("$") for key in element["user"])
        rings = [np.array(e["points"])[:, :2] for e in found["elements"][:12]]
        classes = [e.get("group", "") for e in found["elements"][:12]]
    else:
        drawn = read_drawing(path).drawn[:12]
        rings, classes = [d.polygon.points for d in drawn], [d.classes[0] for d in drawn]
    for row, ring, name in zip(table.to_dict("records"), rings, classes, strict=True):
        assert ring.min(axis=0).tolist() == [row["x"], row["y"]]
        assert ring.max(axis=0).tolist() == [row["x"] + SIZE, row["y"] + SIZE]
        if isinstance(row["label"], str):
            assert name == {"tumor": "Tumor", "normal": "normal"}[row["label"]]


def test_names_of_classes_and_measurements():
    assert spellings(["tumor", "Stroma", "x"]) == {"tumor": "Tumor", "Stroma": "Stroma", "x": "x"}
    assert spellings(["tumor", "Tumor"]) == {"tumor": "tumor", "Tumor": "Tumor"}  # two classes stay two
    for name, unit in (("area", "µm²"), ("count", ""), ("a [b]", ""), ("a [b]", "c"), ("a/b", "1/s")):
        assert without_unit(with_unit(name, unit)) == name


# Back


def same(found, expected):
    pd.testing.assert_frame_equal(found[list(expected.columns)], expected, check_dtype=True)


def test_a_round_trip_loses_nothing(place, tmp_path):
    out = exported(place, tmp_path, "--nuclei", place / "nuclei.parquet")
    expected = load_table(place / "patches.csv").frame
    back = tmp_path / "back.csv"
    result = call("adapt", "qupath", out, "--out", back)
    assert result.exit_code == 0, result.output
    found = load_table(back).frame
    assert list(found.columns) == list(expected.columns)
    same(found.drop(columns="slide"), expected.drop(columns="slide"))
    assert {(back.parent / v).resolve() for v in found["slide"]} == {(place / "case a.tif").resolve()}
    given = pyarrow.parquet.read_table(place / "nuclei.parquet").to_pandas()
    nuclei = pyarrow.parquet.read_table(tmp_path / "back_nuclei.parquet").to_pandas()
    names = ["patch", "x", "y", "area_um2", "type", "touches_edge"]
    same(nuclei[names], given[names])
    for a, b in zip(nuclei["contour"], given["contour"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or np.allclose(np.stack(a), np.stack(b), atol=0.006)
    packed = tmp_path / "packed"
    packed.mkdir()
    with gzip.open(packed / "case a.tif.geojson.gz", "wb") as stream:
        stream.write(next(out.glob("*.geojson")).read_bytes())
    plain = qupath_objects(packed, out=back, slides=place).table  # without what the export says of its columns
    assert plain["count"].tolist() == expected["count"].tolist()
    assert plain["label"].dropna().unique().tolist() == ["Tumor", "normal"]


def corrected(out, change):
    """Change the features of an export as QuPath would, and write them as QuPath does, on one line."""
    path = next(out.glob("*.geojson"))
    found = json.loads(path.read_text())
    tiles = {f["properties"].get("name"): f for f in found["features"]}
    found["features"] = change(tiles, found["features"]) or found["features"]
    folder = out / "corrected"
    folder.mkdir()
    (folder / path.name).write_text(json.dumps(found, indent=2))
    return folder


def test_corrections_come_back(place, tmp_path):
    out = exported(place, tmp_path, "--nuclei", place / "nuclei.parquet")

    def change(tiles, found):
        tiles["t01"]["properties"]["classification"] = {"name": "Tumor", "color": [200, 0, 0]}
        tiles["t02"]["properties"]["classification"] = {"name": "Stroma"}
        del tiles["t03"]["properties"]["classification"]
        tiles["t04"]["properties"]["classification"] = {"name": "Ignore*"}
        tiles["t05"]["properties"]["measurements"]["Smoothed: count"] = float("nan")
        tiles["t06"]["properties"]["measurements"]["Smoothed: count"] = 3.5
        cells = [f for f in found if f["properties"]["objectType"] == "cell"]
        cells[0]["properties"]["classification"] = {"names": ["Immune cells", "Positive"]}
        found.remove(tiles["t08"])
        found.append(annotation("Exclude", box(3 * SIZE, 0, 4 * SIZE, 10 * SIZE)))
        found.append(annotation("Region*", box(0, 0, 2 * SIZE, 3 * SIZE), name="front", isLocked=True))
        outer = annotation("Stroma", box(0, SIZE, 2 * SIZE, 3 * SIZE))
        outer["properties"]["childObjects"] = [found.pop(found.index(tiles["t09"]))]
        found.append(outer)
        found.append({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}})

    before = load_table(place / "patches.csv").frame
    adapted = qupath_objects(corrected(out, change), out=tmp_path / "back.csv", table=place / "patches.csv")
    found = adapted.table.set_index("patch_id")
    assert list(found.index) == [
        "t00",
        "t01",
        "t02",
        "t05",
        "t06",
        "t09",
        "t10",
    ]  # column 3 excluded, 04 ignored, 08 gone
    labels = found["label"].where(found["label"].notna(), "")
    assert labels[["t00", "t01", "t02", "t05", "t06"]].to_list() == ["tumor", "tumor", "Stroma", "", "tumor"]
    region = found["region"].where(found["region"].notna(), "").to_dict()
    # all of these lie in the outline; of regions that hold a tile equally the inner one names it
    assert region == {"t00": "front", "t01": "front", "t02": "", "t05": "Stroma", "t06": "", "t09": "Stroma", "t10": ""}
    assert found.loc["t06", "Smoothed: count"] == 3.5
    assert np.isnan(found.loc["t05", "Smoothed: count"])
    kept = before.set_index("patch_id").loc[found.index]
    same(
        found[["x", "y", "count", "area_um2", "inked", "patient"]],
        kept[["x", "y", "count", "area_um2", "inked", "patient"]],
    )
    nuclei = pyarrow.parquet.read_table(tmp_path / "back_nuclei.parquet").to_pandas()
    assert nuclei["type"].fillna("").to_list()[:3] == ["Immune cells: Positive", "Immune cells", ""]
    notes = " ".join(adapted.notes)
    for part in (
        "left out: 3",
        "ignored class, left out: 1",
        "deleted in QuPath: 1",
        "hierarchy, read like the others: 1",
        "locked in QuPath, read like the others: 1",
        "points or lines were left out: 1",
    ):
        assert part in notes, notes
    # without the table the rows are the tiles of the file
    alone = qupath_objects(out / "corrected", out=tmp_path / "back.csv").table
    assert sorted(alone["patch_id"]) == list(found.index)


def test_regions_decide_by_the_share_of_a_tile(place, tmp_path):
    out = exported(place, tmp_path)

    def change(tiles, found):
        found.append(annotation("Ignore*", box(0, 0, 0.4 * SIZE, 3 * SIZE)))
        found.append(annotation("Necrosis", box(1.5 * SIZE, 0, 2.6 * SIZE, SIZE)))

    folder = corrected(out, change)
    found = qupath_objects(folder, out=tmp_path / "b.csv").table
    assert len(found) == 12
    assert found.set_index("patch_id")["region"].dropna().to_dict() == {"t01": "Necrosis", "t02": "Necrosis"}
    found = qupath_objects(folder, out=tmp_path / "b.csv", exclude=0.3).table
    assert found["x"].min() == SIZE


def test_tables_of_measurements_correct_a_table(place, tmp_path):
    ids = {name: object_id("case a.tif", name) for name in ("t00", "t01", "t02")}
    rows = [
        ["case a.tif", ids["t00"], "Tile", "t00", "normal", "32", "1.5"],
        ["case a.tif", ids["t02"], "Tile", "t02", "Stroma", "5", ""],
    ]
    write_tsv(tmp_path / "m.tsv", rows)
    adapted = qupath_objects(tmp_path, out=tmp_path / "b.csv", table=place / "patches.csv")
    found = adapted.table.set_index("patch_id")
    assert found["label"].to_list()[:3] == ["normal", "normal", "Stroma"]
    assert found.loc["t00", "Smoothed: count"] == 1.5
    assert len(found) == 12
    assert "Labels that were changed: 2." in adapted.notes
