"""A slide, its tables, and files as QuPath writes them, for tests."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import shapely
from command_calls import call
from slide_files import tissue, write_slide

SIZE = 128


def write_place(folder):
    """A folder with a slide, a patch table of twelve tiles, and nuclei in two of them."""
    write_slide(folder / "case a.tif", [tissue(700, 500)])
    rng = np.random.default_rng(0)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(4) * SIZE, np.arange(3) * SIZE))
    table = pd.DataFrame({"patch_id": [f"t{k:02d}" for k in range(12)], "slide": "case a.tif", "x": x, "y": y})
    table = table.assign(size=SIZE, side=SIZE, mpp=0.5, patient="007", label=["tumor", "normal", None] * 4)
    table["count"] = rng.integers(0, 9, 12)
    table["area_um2"] = rng.normal(30, 5, 12)
    table.loc[3, "area_um2"] = np.nan
    table["inked"] = rng.random(12) < 0.5
    table["seen/by"] = ["A, B", "é: ü"] * 6
    table.to_csv(folder / "patches.csv", index=False)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    nuclei = [
        {
            **{"slide": "case a.tif", "patch": f"t0{k % 2}", "x": 20.5 + 9 * k, "y": 30.25},
            **{"area_um2": 12.5 + k, "type": ["Tumor", "Immune cells", None][k % 3], "touches_edge": k == 0},
            "contour": None
            if k == 5
            else np.stack([20.5 + 9 * k + 4 * np.cos(angle), 30.25 + 3 * np.sin(angle)], 1).round(2).tolist(),
        }
        for k in range(6)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nuclei), folder / "nuclei.parquet")
    return folder


def exported(place, tmp_path, *more, table="patches.csv"):
    """Export a table, and return the folder."""
    out = tmp_path / "out"
    result = call("qupath", place / table, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return out


def features(path):
    """The features of a GeoJSON file by name or id, with shapely's geometries."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["type"] == "FeatureCollection"
    return {f["properties"].get("name", f["id"]): (f, shapely.geometry.shape(f["geometry"])) for f in found["features"]}


def annotation(classification, ring, **more):
    about = {"objectType": "annotation", **more}
    about["classification"] = {"name": classification, "color": [0, 0, 0]}
    ring = [*ring, ring[0]]
    return {"type": "Feature", "id": "x", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": about}


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def write_tsv(path, rows, separator="\t"):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(
            ["Image", "Object ID", "Object type", "Name", "Classification", "Centroid X µm", "Smoothed: count"]
        )
        writer.writerows(rows)
