"""``--qupath`` of commands whose results are per patch: the numbers in QuPath are those of the run."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from command_calls import call
from slide_files import write_slide

import conceptkit as ck
from conceptkit.errors import InputError


def measurements(folder):
    """Name of a tile → its measurements, of the one image of a folder."""
    found = json.loads(next(folder.glob("*.geojson")).read_text())["features"]
    return pd.DataFrame({f["properties"]["name"]: f["properties"]["measurements"] for f in found}).T


@pytest.fixture(scope="module")
def mosaic(embedded, tmp_path_factory):
    """A slide of 80 patches of the embedded study, and their table."""
    folder = tmp_path_factory.mktemp("mosaic")
    table = embedded.load_table().select(np.arange(0, 1920, 24))
    frame = table.frame.drop(columns=["h5", "key", "row"])
    frame = frame.assign(slide="s.tif", x=96 * (np.arange(80) % 10), y=96 * (np.arange(80) // 10), size=96)
    glass = np.full((768, 960, 3), 240, np.uint8)
    for k, (x, y) in enumerate(zip(frame["x"], frame["y"], strict=True)):
        glass[y : y + 96, x : x + 96] = table.pixels(k)
    write_slide(folder / "s.tif", [glass])
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_measure(mosaic, tmp_path):
    bare = pd.read_csv(mosaic)[["patch_id", "slide", "x", "y", "size"]].assign(slide="../s.tif")
    (mosaic.parent / "bare").mkdir()
    bare.to_csv(mosaic.parent / "bare" / "t.csv", index=False)
    words = ["measure", mosaic.parent / "bare" / "t.csv", "--measure", "contrast", "--workers", 1]
    result = call(*words, "--out", tmp_path / "m.csv", "--qupath", tmp_path / "q")
    assert result.exit_code == 0, result.output
    expected = pd.read_csv(tmp_path / "m.csv").set_index("patch_id")["contrast"]
    found = measurements(tmp_path / "q")["contrast [grey levels²]"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)


def test_attribute(mosaic, tmp_path):
    """A concept decoded by its vector at a layer, and the change of an output per unit of it, for each patch."""
    options = {"layers": ["layer4"], "concepts": ["count"], "targets": ["3"], "among": ["all"], "group": "patient"}
    numbers = {"maps": 0, "refits": 10, "permutations": 0, "folds": 2}
    chosen = ck.Attribute(
        table=mosaic, model="resnet10t", weights="random", qupath=tmp_path / "q", **options, **numbers
    )
    [row] = chosen.run(out=tmp_path / "run").rows
    found = measurements(tmp_path / "q")
    assert list(found)[-2:] == ["count at layer4", "3 per count at layer4"]
    assert len(found) == row.n == 80
    assert found["3 per count at layer4"].mean() == pytest.approx(row.per_unit, rel=1e-4)
    assert np.corrcoef(found["count at layer4"], found["count [nuclei per patch]"])[0, 1] > 0.3


def test_bags(embedded, tmp_path):
    frame = embedded.load_table().frame.drop(columns=["h5", "key", "row"])
    k = np.arange(len(frame))
    frame = frame.assign(slide="s.tif", x=8 * (k % 44), y=8 * (k // 44), size=8)
    write_slide(tmp_path / "s.tif", [np.full((400, 400, 3), 240, np.uint8)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    features = np.random.default_rng(0).normal(size=(len(frame), 3)).astype(np.float32)
    pd.DataFrame(features, columns=list("abc")).assign(patch_id=frame["patch_id"].array).to_parquet(
        tmp_path / "f.parquet"
    )
    made = ck.Bags(
        table=tmp_path / "t.csv", group="patient", by="patient", label="area", encourage=[], discourage=[],
        features=tmp_path / "f.parquet", epochs=1, warmup=0, qupath=tmp_path / "q",
    ).run(out=tmp_path / "run")  # fmt: skip
    expected = pd.read_csv(made.folder / "attention.csv").set_index("patch_id")["attention_baseline-seed0"]
    found = measurements(tmp_path / "q")["attention_baseline-seed0"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)
    # the run folder gives the same, where its slides are named
    result = call("qupath", made.folder, "--slides", tmp_path, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert (
        next((tmp_path / "again").glob("*.geojson")).read_text() == next((tmp_path / "q").glob("*.geojson")).read_text()
    )


def test_places_are_needed_before_the_work(embedded, tmp_path):
    for command in (ck.Attribute(qupath=tmp_path / "q", model="mini_inception"), ck.Bags(qupath=tmp_path / "q")):
        with pytest.raises(InputError, match="qupath: a viewer needs columns that say where patches lie"):
            command.run(embedded, out=tmp_path / "run")
        assert not (tmp_path / "q").exists()
