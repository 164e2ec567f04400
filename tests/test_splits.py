"""The counts behind Tables 1 and 2, and the warnings that belong to them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.splits import count_splits
from conceptkit.pathology.outliers import outlier_note
from conceptkit.tables.study import table_study


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    n = 400
    center = rng.integers(0, 3, n)
    frame = pd.DataFrame(
        {
            "patch_id": [f"p{k}" for k in range(n)],
            "split": np.where(np.arange(n) < 300, "train", "internal"),
            "center": center,
            "label": np.where((rng.random(n) < 0.4) & (center != 2), "tumor", "normal"),
            "patient": [f"{c}{k % 5:02d}" for k, c in enumerate(center)],
            "slide": [f"{c}{k % 7}" for k, c in enumerate(center)],
            "x": 0,
            "y": 0,
            "size": 8,
            "good": rng.normal(size=n),
            "crushed": np.where(np.arange(n) == 7, 1e6, rng.normal(size=n)),
        }
    )
    frame.loc[5, "label"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv", frame


def test_counts_are_those_of_a_loop(table):
    path, frame = table
    counted = count_splits(table_study(path))
    assert counted.columns == ("split", "center", "label", "patches", "patients", "slides")
    seen = 0
    for row in counted.rows:
        part = frame[frame["split"] == row["split"]]
        if row["center"] != "all":
            part = part[part["center"].astype(str) == row["center"]]
            part = part[part["label"].fillna("(none)") == row["label"]]
            seen += row["patches"]
        assert row["patches"] == len(part)
        assert row["patients"] == part["patient"].nunique()
        assert row["slides"] == part["slide"].nunique()
    assert seen == len(frame)
    assert [r["split"] for r in counted.rows if r["center"] == "all"] == ["internal", "train"]


def test_what_a_reader_has_to_know(table):
    notes = " ".join(count_splits(table_study(table[0])).notes)
    assert "Split train: center 2 has one label only" in notes
    assert "crushed: 1 of 400 values lie far out (up to 1e+06" in notes
    assert "good:" not in notes


def test_nodes_of_patients_are_slides(tmp_path):
    rows = "a,0,017,2\nb,0,017,2\nc,0,017,4\nd,0,018,2\ne,camelyon16,tumor_1,\nf,camelyon16,tumor_1,\n"
    (tmp_path / "t.csv").write_text("patch_id,center,patient,node\n" + rows)
    counted = count_splits(table_study(tmp_path / "t.csv"))
    by_center = {row["center"]: (row["patches"], row["patients"], row["slides"]) for row in counted.rows}
    # 017's nodes 2 and 4, and node 2 of another patient; a patient of Camelyon16 has one slide
    assert by_center == {"0": (4, 2, 3), "camelyon16": (2, 1, 1), "all": (6, 3, 4)}


def test_the_command(table, embedded):
    result = CliRunner().invoke(app, ["splits", "--table", str(table[0]), "--json", "-"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["schema"] == "conceptkit/splits/1"
    assert sum(r["patches"] for r in told["rows"] if r["center"] == "all") == 400
    assert CliRunner().invoke(app, ["splits", "--study", "embedded:null"]).exit_code == 0


def test_outliers_and_what_is_none():
    rng = np.random.default_rng(0)
    assert outlier_note("x", rng.normal(size=500)) is None
    assert outlier_note("x", rng.lognormal(sigma=1.0, size=500)) is None  # a tail is no outlier
    assert outlier_note("x", np.r_[rng.normal(size=300), rng.normal(size=200) + 50]) is None  # two groups
    assert outlier_note("x", np.r_[rng.normal(size=5), 1e9]) is None  # too few to say
    assert outlier_note("x", np.full(50, 3.0)) is None
    assert "-1e+08" in str(outlier_note("x", np.r_[rng.normal(size=500), -1e8, np.nan]))
