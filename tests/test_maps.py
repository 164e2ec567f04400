"""Maps: each prediction lies where its patch does, on one scale for all slides, beside the tissue."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.maps import held_out_scores, write_maps
from conceptkit.models.checkpoints import load_checkpoint
from conceptkit.options.guide import run_guide
from conceptkit.records import load_record
from conceptkit.report.concept_maps import Shown, contact_sheet
from conceptkit.report.drawing import to_bytes
from conceptkit.report.slide_maps import MapLayer, Place, slide_map
from conceptkit.report.wording import number
from conceptkit.tables.patches import PatchTable, load_table


def grid(n=4, step=10, size=10):
    y, x = (a.ravel().astype(float) * step for a in np.mgrid[:n, :n])
    return Place(name="s", x=x, y=y, size=np.full(n * n, float(size)))


def colours(drawing, panel=0):
    """(n, 4) colours and (n, 2) middles of a panel's squares, in the order of the patches that are known."""
    axes = [a for a in drawing.figure.axes if a.collections and a.get_label() != "<colorbar>"][panel]
    (found,) = axes.collections
    corners = np.array([path.vertices[:4] for path in found.get_paths()])
    return found.get_facecolors(), corners.mean(1), corners


def test_every_patch_lies_at_its_place_with_its_colour():
    place = grid()
    values = np.linspace(0, 1, 16)
    values[5] = np.nan
    drawing = slide_map(place, [MapLayer(name="probability of tumor", values=values)])
    found, middles, _ = colours(drawing)
    known = np.isfinite(values)
    np.testing.assert_allclose(middles, np.stack([place.x, place.y], 1)[known] + 5)
    assert len(found) == 15
    from matplotlib import colormaps

    np.testing.assert_allclose(found, colormaps["viridis"](values[known]), atol=1e-6)
    axes = drawing.figure.axes[0]
    assert axes.get_ylim() == (40.0, 0.0)  # y grows downwards, as on a slide
    assert "0.00 to 1.00" in drawing.alt


def test_overlapping_patches_are_as_large_as_their_steps():
    _, _, corners = colours(slide_map(grid(step=5, size=10), [MapLayer(name="a", values=np.zeros(16))]))
    np.testing.assert_allclose(np.ptp(corners[:, :, 0], axis=1), 5)
    _, _, alone = colours(slide_map(grid(n=1), [MapLayer(name="a", values=np.zeros(1))]))
    np.testing.assert_allclose(np.ptp(alone[:, :, 0], axis=1), 10)


def test_classes_have_colours_of_their_own():
    values = np.array(["a", "b"] * 8, dtype=object)
    found, _, _ = colours(slide_map(grid(), [MapLayer(name="kind", values=values, classes=("a", "b", "c"))]))
    assert len(np.unique(found, axis=0)) == 2
    to_bytes(slide_map(grid(), [MapLayer(name="kind", values=values, classes=("a", "b"))]).figure, kind="png")


def test_the_held_out_score_stands_on_a_map_and_greys_out_what_is_not_above_chance():
    values = np.linspace(0, 1, 16)
    shown = MapLayer(name="count", values=values, score="held-out R² = 0.71 (internal)")
    hidden = dataclasses.replace(shown, score="held-out R² = −0.23 (internal)", established=False)
    drawing = slide_map(grid(), [shown, hidden])
    vivid, grey = (colours(drawing, panel)[0][:, :3] for panel in (0, 1))
    assert np.ptp(grey, axis=1).max() < 1e-6  # red, green and blue are equal
    assert np.ptp(vivid, axis=1).max() > 0.3  # the control
    titles = [axes.get_title("left") for axes in drawing.figure.axes[:2]]
    assert "held-out R² = 0.71" in titles[0]
    assert "held-out R² = −0.23" in titles[1]
    assert "not above chance" in titles[1]
    assert "count (held-out R² = −0.23 (internal), not above chance)" in drawing.alt
    classes = MapLayer(
        name="kind", values=np.array(["a", "b"] * 8, dtype=object), classes=("a", "b"), established=False
    )
    found = colours(slide_map(grid(), [classes]))[0][:, :3]
    assert np.ptp(found, axis=1).max() < 1e-6
    assert len(np.unique(found, axis=0)) == 2


@pytest.mark.parametrize("established", [True, False])
def test_a_contact_sheet_has_the_score_and_is_grey_where_nothing_is_established(established):
    pixels, read = np.full((8, 8, 3), 200, np.uint8), np.linspace(-1, 1, 4).reshape(2, 2)
    patches = [Shown(name="p", pixels=pixels, map=read, read=0.0, measured="3")]
    drawing = contact_sheet(
        patches,
        patches,
        concept="count",
        layer="mixed10",
        unit="",
        level=0.0,
        number=1,
        decoded="R² = −0.23 [−0.40, −0.05]",
        established=established,
    )
    assert "held-out R² = −0.23 [−0.40, −0.05]" in drawing.figure.get_suptitle()
    assert ("not established" in drawing.figure.get_suptitle()) != established
    [image] = [im for axes in drawing.figure.axes for im in axes.images if im.get_array().shape == (2, 2)][:1]
    shades = image.cmap(image.norm(read))[..., :3]
    assert (np.ptp(shades, axis=-1).max() < 1e-6) != established


def test_held_out_scores_are_those_of_the_run_that_wrote_the_checkpoint(checkpoint, tmp_path):
    record = load_record(checkpoint.parents[1])
    run = next(run for run in record.runs if run.name == "guided")
    tasks = load_checkpoint(checkpoint).module.tasks
    found = held_out_scores(checkpoint, tasks)
    assert set(found) == {"probability_normal", "probability_tumor", "count_predicted", "grade_predicted"}
    assert found["count_predicted"].text == f"held-out R² = {number(run.concepts['count']['head'])} (internal)"
    assert found["count_predicted"].above_chance == (run.concepts["count"]["head"] > 0.05)
    assert f"AUC = {number(run.metrics['internal']['auc'])}" in found["probability_tumor"].text
    alone = tmp_path / "checkpoints" / "guided-seed0"
    shutil.copytree(checkpoint, alone)
    assert held_out_scores(alone, tasks) == {}  # no record beside it: nothing is known


def test_one_scale_serves_all_slides_and_names_do_not_collide(tmp_path):
    place = grid()
    table = pd.DataFrame(
        {"patch_id": [f"p{i}" for i in range(32)], "x": [*place.x] * 2, "y": [*place.y] * 2, "size": 10}
    )
    table["image"] = ["a/one.png"] * 16 + ["b/one.png"] * 16
    table.loc[3, "x"] = np.nan
    frame = pd.DataFrame({"count": np.arange(32.0)})
    paths = write_maps(frame, PatchTable(table, Path(tmp_path)), ["count"], tmp_path / "maps")
    assert [p.name for p in paths] == ["one.png", "one-2.png"]
    assert all(p.stat().st_size > 5000 for p in paths)


@pytest.fixture(scope="module")
def checkpoint(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "run"
    options = {"unfreeze": (), "trunk": (8,), "epochs": 2, "warmup": 1}
    run_guide(study, encourage=["count", "grade"], discourage=["center"], **options, out=folder)
    return folder / "checkpoints" / "guided-seed0"


@pytest.fixture(scope="module")
def mosaic(table, study, tmp_path_factory):
    """A table of windows of two images, made of the small study's patches."""
    folder = tmp_path_factory.mktemp("mosaic")
    data, rows = load_table(Path(study).parent / "patches.csv"), []
    for name in ("one", "two"):
        image = np.zeros((192, 288, 3), np.uint8)
        for k in range(6):
            y, x = 96 * (k // 3), 96 * (k % 3)
            image[y : y + 96, x : x + 96] = data.pixels(k)
            rows.append({"patch_id": f"{name}{k}", "image": f"{name}.png", "x": x, "y": y, "size": 96})
        Image.fromarray(image).save(folder / f"{name}.png")
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_the_command_draws_a_picture_per_image(checkpoint, mosaic, tmp_path):
    maps = tmp_path / "maps"
    args = ["predict", str(checkpoint), "--table", str(mosaic), "--out", str(tmp_path / "p.csv"), "--map", str(maps)]
    args += ["--qupath", str(tmp_path / "viewer")]
    result = CliRunner().invoke(app, [*args, "--json", str(tmp_path / "r.json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    given = pd.read_csv(tmp_path / "p.csv").set_index("patch_id")
    for feature in json.loads((tmp_path / "viewer" / "two.png.geojson").read_text())["features"]:
        row, about = given.loc[feature["properties"]["name"]], feature["properties"]["measurements"]
        assert feature["geometry"]["coordinates"][0][2] == [row["x"] + 96, row["y"] + 96]
        assert about["probability_tumor"] == row["probability_tumor"]
        assert next(about[name] for name in about if name.startswith("count_predicted")) == row["count_predicted"]
    refused = CliRunner().invoke(app, args)
    assert "qupath: " in refused.output
    assert "exists and is not an empty folder" in refused.output
    assert sorted(p.name for p in maps.iterdir()) == ["one.png", "two.png"]
    assert json.loads((tmp_path / "r.json").read_text())["maps"] == str(maps)
    # The tissue is in the picture: without its file the picture is another, and still drawn.
    data = load_table(mosaic)
    elsewhere = dataclasses.replace(data, folder=tmp_path)
    frame = pd.read_csv(tmp_path / "p.csv")
    bare = write_maps(frame, elsewhere, ["probability_tumor", "count_predicted"], tmp_path / "bare")[0]
    whole = write_maps(frame, data, ["probability_tumor", "count_predicted"], tmp_path / "whole")[0]
    with Image.open(whole) as one, Image.open(bare) as other:
        assert one.size[0] > other.size[0]


def test_a_table_without_places_is_refused_before_the_work(checkpoint, study, tmp_path):
    table = str(Path(study).parent / "patches.csv")
    args = [
        "predict",
        str(checkpoint),
        "--table",
        table,
        "--out",
        str(tmp_path / "p.csv"),
        "--map",
        str(tmp_path / "m"),
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert (
        "map: a map needs columns that say where patches lie; the table has no x, y, size, slide or image."
        in result.output
    )
    assert not (tmp_path / "p.csv").exists()
