"""Where annotations lie on a slide: the scanned area, the names of files, and what a table says of them."""

from __future__ import annotations

import json
import shutil

import pytest
from annotation_texts import asap, collection, feature, imagescope, polygon, square
from slide_files import write_scn
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.tile import run_tile
from conceptkit.errors import InputError
from conceptkit.pathology.slides import bounds, open_slide
from conceptkit.pathology.tiling import Tiling, tile_slide

CMU, TCGA = "cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"


@pytest.fixture(scope="module")
def off_origin(tmp_path_factory):
    return write_scn(tmp_path_factory.mktemp("scn"))


@pytest.fixture
def drawn(tmp_path):
    folder = tmp_path / "drawn"
    folder.mkdir()
    return folder


def labels(tiled):
    return tiled.table["label"].value_counts(dropna=False).to_dict()


def test_geojson_is_shifted_by_the_scanned_area_and_xml_is_not(off_origin, drawn, tmp_path):
    with open_slide(off_origin) as slide:
        assert bounds(slide) == (512, 256, 1024, 768)
    half = [[0, 0], [512, 0], [512, 384], [0, 384]]  # the upper half of the tissue, as QuPath counts
    (drawn / "case.scn.geojson").write_text(json.dumps(collection(feature(polygon(half), "Tumor"))))
    options = {"out": tmp_path / "t.csv", "size": 128, "annotations": drawn}
    tiled = run_tile([off_origin], **options)
    assert labels(tiled) == {"tumor": 12, "normal": 12}
    assert (tiled.table["y"][tiled.table["label"] == "tumor"] < 256 + 384).all()
    assert any("Shifted by the corner" in note and "case.scn.geojson by 512, 256" in note for note in tiled.notes)
    (drawn / "case.scn.geojson").write_text(json.dumps(polygon([[x + 512, y + 256] for x, y in half])))
    tiled = run_tile([off_origin], **options, shift_geojson=False)
    assert labels(tiled) == {"tumor": 12, "normal": 12}
    assert any("Not shifted by the corner" in note for note in tiled.notes)
    (drawn / "case.scn.geojson").unlink()
    moved = [(x + 512, y + 256) for x, y in half]
    for name, text in (
        ("case.xml", asap(("Polygon", "Tumor", moved))),
        ("case.xml", imagescope(('Name="Tumor"', "", [("0", 0, moved)]))),
        ("case.json", json.dumps({"positive": [{"vertices": moved}], "negative": []})),
    ):
        (drawn / "case.xml").unlink(missing_ok=True)
        (drawn / name).write_text(text)
        tiled = run_tile([off_origin], **options)
        assert labels(tiled) == {"tumor": 12, "normal": 12}
        assert any("Not shifted by the corner" in note for note in tiled.notes)


def test_annotations_of_another_slide_are_refused_and_those_on_glass_named(off_origin, drawn, tmp_path):
    path = drawn / "case.geojson"
    path.write_text(json.dumps(polygon(square(90_000, 90_000, 500))))
    with pytest.raises(InputError, match=r"everything in .*case\.geojson lies outside the scanned area .*x from 512"):
        tile_slide(off_origin, Tiling(side=128), annotations=path)
    path.write_text(json.dumps(polygon(square(600, 100, 300))))  # in the scanned area, right of the tissue
    tiled = run_tile([off_origin], out=tmp_path / "t.csv", size=128, annotations=drawn)
    assert labels(tiled) == {"normal": 24}
    assert any("No tile of tissue lies in the annotated areas of case.geojson" in text for text in tiled.warnings)
    path.write_text(json.dumps([polygon(square(0, 0, 500)), polygon(square(90_000, 90_000, 500))]))
    tiled = run_tile([off_origin], out=tmp_path / "t.csv", size=128, annotations=drawn)
    assert "Annotated areas outside the scanned area of their slide: 1 of 2 in case.geojson." in tiled.notes
    path.write_text(json.dumps(collection()))  # control: nothing drawn is no contradiction
    assert run_tile([off_origin], out=tmp_path / "t.csv", size=128, annotations=drawn).warnings == ()


def test_files_named_as_qupath_names_them(shared_data, drawn, tmp_path):
    slide = shared_data / "wsi" / CMU
    area = json.dumps(polygon(square(0, 0, 20_000)))
    options = {"out": tmp_path / "t.csv", "size": 512, "annotations": drawn}
    below = drawn / "batch 1"
    below.mkdir()
    for path in (drawn / f"{CMU}.geojson", drawn / f"{CMU.upper()}.JSON", below / f"{slide.stem}.geojson"):
        path.write_text(area)
        assert set(labels(run_tile([slide], **options))) == {"tumor"}
        path.unlink()
    (drawn / f"{CMU}.geojson").write_text(area)
    (drawn / f"{slide.stem}.xml").write_text(asap(("Polygon", "Tumor", square(0, 0, 20_000))))
    tiled = run_tile([slide], **options)
    assert any(f"Not read, as another kind of annotation goes first: {CMU}.geojson" in note for note in tiled.notes)
    (drawn / f"{slide.stem}.geojson").write_text(area)
    (drawn / f"{slide.stem}.xml").unlink()
    with pytest.raises(InputError, match=r"both match slide cmu-1-small-region\.svs; remove one"):
        run_tile([slide], **options)


def test_a_slide_without_annotations_and_objects_skipped_are_named(shared_data, drawn, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("a.svs", "b.svs"):
        shutil.copy(shared_data / "wsi" / (CMU if name == "a.svs" else TCGA), slides / name)
    click = asap(("Polygon", "Tumor", square(0, 0, 20_000)), ("Polygon", "Tumor", [(1, 1)]))
    (drawn / "a.xml").write_text(click)
    (drawn / "b final.xml").write_text(click)
    report = tmp_path / "r.json"
    call = ["tile", str(slides), "--out", str(tmp_path / "t.csv"), "--size", "512", "--annotations", str(drawn)]
    result = CliRunner().invoke(app, [*call, "--workers", "1", "--json", str(report)])
    assert result.exit_code == 0, result.output
    said = json.loads(report.read_text())
    assert said["warnings"] == [
        "No annotations for 1 of 2 slides (b.svs): their tiles have no label. "
        "Annotation files that match no slide: b final.xml."
    ]
    assert said["notes"][0] == said["warnings"][0]
    assert "Skipped in annotations: polygons of fewer than 3 points (1), in a.xml." in said["notes"]
    (drawn / "b.xml").write_text("<html />")
    result = CliRunner().invoke(app, [*call, "--workers", "1", "--json", str(report)])
    assert result.exit_code == 1
    assert [entry["what"] for entry in json.loads(report.read_text())["skipped"]] == ["b.svs"]
