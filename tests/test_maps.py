"""Maps: each prediction lies where its patch does, on one scale for all slides, beside the tissue."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.patches import PatchTable, load_table
from conceptkit.report.drawing import to_bytes
from conceptkit.report.slide_maps import MapLayer, Place, slide_map
from conceptkit.workflow.guiding import run_guide
from conceptkit.workflow.mapping import write_maps


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
    run_guide(study, encourage=["count", "grade"], discourage=["center"], options=options, out=folder)
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
    result = CliRunner().invoke(app, [*args, "--json", str(tmp_path / "r.json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
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
        "map: a map needs columns that say where patches lie; the table lacks x, y, size, slide or image."
        in result.output
    )
    assert not (tmp_path / "p.csv").exists()
