"""Predictivity: what concept values alone tell of the main label."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from recorded_options import forgotten
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.guide import concept_network
from conceptkit.options.predictivity import Predictivity
from conceptkit.records import load_record
from conceptkit.tables.study import Study

PATIENTS = {"train": 24, "val": 12, "internal": 24, "external": 12}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A label that depends on ``a`` and ``b``, not on ``none``; tumor's share is the center's, internally too."""
    rng = np.random.default_rng(0)
    rows = []
    for split, n in PATIENTS.items():
        for patient in range(n):
            center = "E" if split == "external" else "ABC"[patient % 3]
            share = {"A": 0.85, "B": 0.5, "C": 0.15, "E": 0.5}[center]
            for _ in range(8):
                rows.append(
                    {"patient": f"{split}{patient}", "split": split, "center": center, "y": rng.random() < share}
                )
    frame = pd.DataFrame(rows)
    y = frame.pop("y").to_numpy().astype(float)
    frame["label"] = np.where(y > 0, "tumor", "normal")
    frame["a"] = y + rng.normal(size=len(y))
    frame["b"] = y + rng.normal(size=len(y))
    frame["none"] = rng.normal(size=len(y))
    frame["gaps"] = frame.a.where(rng.random(len(y)) < 0.7)
    path = tmp_path_factory.mktemp("predictivity") / "t.csv"
    frame.assign(patch_id=[f"p{i:04d}" for i in range(len(frame))]).to_csv(path, index=False)
    return Study(
        name="s", table=path, group="patient", encourage=("a",), concepts=("b", "none"), discourage=("center",)
    )


@pytest.fixture(scope="module")
def record(study, tmp_path_factory):
    return ck.Predictivity(seeds=[0, 1, 2]).run(study, out=tmp_path_factory.mktemp("runs") / "run")


def row(record, *inputs, split="internal"):
    return next(r for r in record.rows if r.inputs == inputs and r.split == split)


def test_the_small_network_is_the_papers():
    """Table 3: 20 units, Adam at 0.01, patience 15."""
    assert (concept_network.UNITS, concept_network.LEARNING_RATE, concept_network.PATIENCE) == (20, 0.01, 15)


def test_every_option_stands_in_the_settings(record):
    assert forgotten(Predictivity, load_record(record.folder).settings) == set()


def test_all_sets_are_there(record):
    assert list(dict.fromkeys((r.role, r.inputs) for r in record.rows)) == [
        ("random", ("random",)),
        *(("concept", (name,)) for name in ("a", "b", "none")),
        *(("growing", names) for names in (("a", "b"), ("a", "b", "none"))),
        ("confounder", ("center",)),
    ]
    assert {r.split for r in record.rows} == {"internal", "external", "overall"}


def test_what_tells_the_label_scores_and_what_does_not_does_not(record):
    assert abs(row(record, "random", split="overall").auc - 0.5) < 0.06
    assert abs(row(record, "none", split="external").auc - 0.5) < 0.15
    single = row(record, "a", split="external")
    assert 0.65 < single.low < single.auc < single.high < 0.9
    assert row(record, "a", "b", split="external").auc > single.auc + 0.03
    assert single.n_groups == PATIENTS["external"]


def test_one_number_ranks_as_itself(record, study):
    """A single concept that is higher in tumor ranks rows as its own value does, whatever network is between."""
    rows = pd.read_csv(study.table)
    rows = rows[rows.split == "internal"]
    assert row(record, "a").auc == pytest.approx(roc_auc_score(rows.label == "tumor", rows.a), abs=0.01)
    assert row(record, "a").seeds == pytest.approx([row(record, "a").auc] * 3, abs=0.01)


def test_a_center_alone_ranks_as_its_share_of_tumor_in_training(record, study):
    rows = pd.read_csv(study.table)
    share = (rows.label == "tumor")[rows.split == "train"].groupby(rows.center).mean()
    internal = rows[rows.split == "internal"]
    expected = roc_auc_score(internal.label == "tumor", internal.center.map(share))
    assert row(record, "center").auc == pytest.approx(expected)
    assert expected > 0.65
    assert row(record, "center", split="external").auc == pytest.approx(0.5)  # no center that training saw


def test_missing_values_are_no_reason_to_leave_a_row_out(study, tmp_path):
    found = ck.Predictivity(concepts=["gaps"], alone=[], seeds=[0]).run(study, out=tmp_path / "run")
    assert 0.6 < row(found, "gaps", split="overall").auc < 0.75
    assert np.isnan(row(found, "gaps").sd)


def test_the_saved_record_is_the_same(record):
    loaded = load_record(record.folder)
    pd.testing.assert_frame_equal(loaded.to_frame(), record.to_frame())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "seeds: need at least one and no repeats"),
        ({"concepts": ["aa"]}, "concept: the table has no column 'aa'"),
        ({"concepts": ["a", "a"]}, "concept: a given more than once"),
        ({"concepts": ["label"]}, "concept: label is the main label itself"),
        ({"alone": ["centre"]}, "concept: the table has no column 'centre'; near names: center"),
        ({"seeds": [-1]}, "seeds: must be at least 0"),
    ],
)
def test_mistakes_are_told(study, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        ck.Predictivity(**{"seeds": [0], **changes}).run(study, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(study, tmp_path):
    path = tmp_path / "conceptkit.toml"
    path.write_text(f'name = "s"\ntable = "{study.table}"\ngroup = "patient"\n', encoding="utf-8")
    arguments = [
        "predictivity",
        "--study",
        str(path),
        "--concept",
        "a,b",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["schema"] == "conceptkit/predictivity/1"
    for words in ("a + b", "confounder", "internal", "run saved in"):
        assert words in result.stderr
