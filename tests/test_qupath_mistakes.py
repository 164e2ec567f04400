"""Files that QuPath did not write as they should be, large ones, and the tissue of a real slide."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
from command_calls import call, contents, sentence
from qupath_files import annotation, box, exported, features, write_tsv
from slide_files import tissue, write_slide

from conceptkit.errors import InputError
from conceptkit.pathology.adapters.qupath import qupath_objects
from conceptkit.pathology.viewers.reading import read_objects
from conceptkit.pathology.viewers.shapes import object_id

# Bad input


def bad(match, call_it, *arguments, **options):
    with pytest.raises(InputError, match=match) as error:
        call_it(*arguments, **options)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_an_export_replaces_nothing(place, tmp_path):
    out = exported(place, tmp_path)
    before = contents(out)
    assert "exists and is not an empty folder" in sentence(call("qupath", place / "patches.csv", "--out", out))
    assert contents(out) == before
    for words, part in (
        (["--map", "cuont"], "map: the table has no column 'cuont'; near names: count"),
        (["--concept", "patient"], "concept: patient is not a column of numbers"),
        (["--class", "nothing"], "class: the table has no column 'nothing'"),
        (["--nuclei", place / "patches.csv"], "cannot be read as Parquet"),
        (["--nuclei", place / "none.parquet"], "not found"),
        (["--slides", tmp_path], "holds no case a.tif"),
        (["--format", "sedeen"], "'sedeen' is not known"),
    ):
        assert part in sentence(call("qupath", place / "patches.csv", "--out", tmp_path / "new", *words))
        assert not (tmp_path / "new").exists()
    assert "only runs of bags keep a row per patch" in sentence(call("qupath", place, "--out", tmp_path / "new"))


def test_a_slide_that_was_moved_or_replaced(place, tmp_path):
    (tmp_path / "first").mkdir()
    slide = write_slide(tmp_path / "first" / "s.tif", [tissue(300, 300)])
    pd.DataFrame({"patch_id": ["a"], "slide": "first/s.tif", "x": 0, "y": 0, "size": 64}).to_csv(
        tmp_path / "t.csv", index=False
    )
    out = exported(tmp_path, tmp_path, table="t.csv")
    (tmp_path / "second").mkdir()
    moved = slide.rename(tmp_path / "second" / "s.tif")
    assert "--slides" in sentence(call("qupath", tmp_path / "t.csv", "--out", tmp_path / "new"))
    bad("slides: .* is not there; name the folder", qupath_objects, out, out=tmp_path / "b.csv")
    found = qupath_objects(out, out=tmp_path / "b.csv", slides=tmp_path / "second").table
    assert found["slide"].to_list() == ["second/s.tif"]
    write_slide(moved, [tissue(320, 300)])
    bad("it is another image", qupath_objects, out, out=tmp_path / "b.csv", slides=tmp_path / "second")


def test_files_that_cannot_be_right(place, tmp_path):
    out = exported(place, tmp_path)
    path = next(out.glob("*.geojson"))
    text = path.read_text()
    back = {"out": tmp_path / "back.csv"}

    def with_text(new, name=path.name):
        folder = tmp_path / "bad"
        folder.mkdir(exist_ok=True)
        (folder / "conceptkit.json").write_bytes((out / "conceptkit.json").read_bytes())
        (folder / name).write_text(new)
        return folder

    other = json.loads(text)
    for feature in other["features"]:
        feature["id"] = object_id("another.tif", feature["properties"]["name"])
    bad(
        "does not belong to case a.tif: t00 was exported for another one",
        qupath_objects,
        with_text(json.dumps(other)),
        **back,
    )
    far = text.replace('"id":"', '"id":"z')
    far = re.sub(r"\[(\d+),(\d+)\]", lambda m: f"[{int(m[1]) + 9000},{m[2]}]", far)
    bad("everything in it lies outside of the image", qupath_objects, with_text(far), **back)
    comma = text.replace('"measurements":{', '"measurements":{"Mean":"3,5",', 1)
    bad(r"measurement 'Mean' of .* has a decimal comma \(3,5\)", qupath_objects, with_text(comma), **back)
    bad("is broken or ends early", qupath_objects, with_text(text[: len(text) // 2]), **back)
    bad("is not GeoJSON", qupath_objects, with_text('{"a": 1}'), **back)
    with_text(text)
    write_tsv(tmp_path / "bad" / "m.csv", [["case a.tif", "x", "Tile", "t00", "Tumor", "1,5", "2,5"]], ";")
    bad("column 'Smoothed: count' of .* has a decimal comma", qupath_objects, tmp_path / "bad", **back)
    write_tsv(
        tmp_path / "bad" / "m.csv", [["case a.tif", object_id("case a.tif", "t00"), "Tile", "t00", "Stroma", "1", "2"]]
    )
    bad("object t00 is Tumor in .* and Stroma in .*; export both again", qupath_objects, tmp_path / "bad", **back)
    (tmp_path / "bad" / "m.csv").write_text("a,b\n1,2\n")
    bad("has no column 'Object ID'", qupath_objects, tmp_path / "bad", **back)
    (tmp_path / "empty").mkdir()
    bad("holds no GeoJSON and no table", qupath_objects, tmp_path / "empty", **back)
    bad("must be a folder", qupath_objects, tmp_path / "none", **back)
    (tmp_path / "bad" / "m.csv").unlink()
    with_text(text, "case a.geojson")
    bad("two files of .* belong to case a.tif", qupath_objects, tmp_path / "bad", **back)
    assert not (tmp_path / "back.csv").exists()


def test_objects_are_read_one_at_a_time_whatever_is_around_them(tmp_path):
    tile = annotation("Tumor", box(0, 0, 2, 2))
    features_text = ",\n".join(json.dumps(tile, indent=1) for _ in range(3))
    many = json.dumps({**tile, "properties": {"name": 'a "features": [ {'}})
    for k, text in enumerate(
        (
            f'{{"type": "FeatureCollection", "features": [{features_text}]}}',
            f'{{"type": "FeatureCollection", "crs": {{"properties": {{"a": [1]}}}}, "features": [{features_text}]}}',
            f"[{features_text}]",
            f'{{"features":[{many},{many},{many}],"type":"FeatureCollection"}}',
        )
    ):
        path = tmp_path / f"{k}.geojson"
        path.write_text("\ufeff" + text, encoding="utf-8")
        assert len(list(read_objects(path))) == 3
    (tmp_path / "one.geojson").write_text(json.dumps(tile))
    [one] = read_objects(tmp_path / "one.geojson")
    assert one.classification == "Tumor"
    old = {"type": "Feature", "id": "PathTileObject", "geometry": tile["geometry"], "properties": {}}
    old["properties"] = {
        "measurements": [{"name": "a", "value": 1.5}],
        "classification": {"name": "Tumor", "colorRGB": -3670016},
    }
    (tmp_path / "old.geojson").write_text(json.dumps([old]))
    [one] = read_objects(tmp_path / "old.geojson")
    assert (one.kind, one.measures) == ("tile", {"a": 1.5})


MEMORY = """
import sys
from pathlib import Path
from conceptkit.pathology.viewers.reading import read_objects
n = sum(1 for _ in read_objects(Path(sys.argv[1])))
print(n, next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def test_a_large_file_is_not_kept_in_memory(tmp_path):
    line = json.dumps(annotation("Tumor", box(0, 0, 2, 2), note="x" * 500))
    sizes = []
    for number in (1_000, 40_000):
        path = tmp_path / f"{number}.geojson"
        path.write_text('{"type":"FeatureCollection","features":[' + ",".join([line] * number) + "]}")
        done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
        found, megabytes = map(int, done.stdout.split())
        assert found == number
        sizes.append(megabytes)
    assert path.stat().st_size > 25e6
    assert sizes[1] - sizes[0] < 25


# Where tissue is: the shared slide, by an independent reader


def test_tiles_lie_on_the_tissue_of_the_shared_slide(shared_data, tmp_path):
    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    assert call("tile", slide, "--out", tmp_path / "t.csv", "--size", 224, "--workers", 1).exit_code == 0
    out = exported(tmp_path, tmp_path, table="t.csv")
    with openslide.OpenSlide(slide) as opened:
        small = np.asarray(opened.get_thumbnail((555, 742)).convert("HSV"))[..., 1]
        scale = opened.dimensions[0] / small.shape[1]
    shapes = shapely.union_all([shape for _, shape in features(out / "cmu-1-small-region.svs.geojson").values()])
    yy, xx = np.mgrid[: small.shape[0], : small.shape[1]]

    def stained(moved):
        return small[shapely.contains_xy(shapes, (xx + 0.5) * scale + moved, (yy + 0.5) * scale)].mean()

    outside = small[~shapely.contains_xy(shapes, (xx + 0.5) * scale, (yy + 0.5) * scale)].mean()
    assert stained(0) > 3 * outside
    assert stained(0) > 1.3 * stained(700)  # the control: the same tiles elsewhere
