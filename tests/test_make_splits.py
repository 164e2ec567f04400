"""Splits that are made: the best of all, patients and centers intact, demands that conflict, what shortcut remains."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.evaluate.shortcuts import center_auc, center_shortcut
from conceptkit.options.study import Splits
from conceptkit.tables.splitting import Demands, assign, mean_deviation


def demands(patients, counts, shares, **changes):
    given = {"tolerance": 1.0, "classes": {}, "balance": {"label": counts}, **changes}
    return Demands(shares=shares, patients=np.asarray(patients, float), **given)


@pytest.mark.parametrize("seed", range(3))
def test_no_split_of_all_is_better(seed):
    rng = np.random.default_rng(seed)
    patients, counts = rng.integers(1, 9, 8), rng.integers(0, 9, (8, 3)).astype(float)
    shares = {"train": 0.5, "val": 0.2, "test": 0.3}
    one = demands(patients, counts, shares)
    found = assign(one, seed=seed)

    def deviation(part):  # a loop over everything that is counted
        total = 0.0
        for block in (patients[:, None], counts):
            for column in block.T:
                wanted = [s * column.sum() for s in shares.values()]
                got = [column[np.array(part) == k].sum() for k in range(3)]
                total += np.mean([abs(g - w) / w for g, w in zip(got, wanted, strict=True)]) / block.shape[1] / 2
        return total

    every = [p for p in itertools.product(range(3), repeat=8) if len(set(p)) == 3]
    best = min(map(deviation, every))
    assert found.deviation == pytest.approx(deviation(found.part)) == mean_deviation(one, found.part)
    assert best <= found.deviation + 1e-9 <= best + 0.002 + 2e-9  # the solver stops at a gap of 0.001
    assert found.gap <= 0.002
    assert found.deviation < np.median([deviation(rng.permutation(found.part)) for _ in range(20)])


def test_more_patients_than_the_program_has_room_for_are_dealt():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 20, (1500, 1)), (1500, 4)).astype(float)
    rare = np.isin(np.arange(1500), rng.choice(1500, 5, replace=False))
    one = demands(np.ones(1500), counts, {str(k): 0.2 for k in range(5)}, classes={"rare": rare}, tolerance=0.01)
    found = assign(one)
    assert found.deviation < 0.005
    assert found.gap == found.deviation  # the bound is 0
    assert mean_deviation(one, rng.permutation(found.part)) > 0.01
    assert sorted(found.part[rare]) == list(range(5))
    assert abs(np.bincount(found.part) - 300).max() <= 3


def table(n=120, centers=6, **changes):
    """Patients of several patches and mixed labels; the label follows the center."""
    rng = np.random.default_rng(0)
    center = np.arange(n) % centers
    rows = np.repeat(np.arange(n), rng.integers(1, 5, n))
    rate = np.linspace(0.1, 0.9, centers)
    columns = {
        "patch_id": [f"p{k}" for k in range(len(rows))],
        "patient": [f"P{k}" for k in rows],
        "center": [f"c{k}" for k in center[rows]],
        "label": np.where(rng.random(len(rows)) < rate[center[rows]], "tumor", "normal"),
        "count": rng.normal(size=n)[rows],
    }
    return pd.DataFrame({**columns, **changes})


@pytest.mark.parametrize("preserve", [False, True])
def test_patients_and_on_request_centers_are_intact(tmp_path, preserve):
    frame = table()
    out = tmp_path / "new.csv"
    made = Splits(make="train=0.5,val=0.5", preserve_centers=preserve, balance="count", out=out).run(frame)
    written = pd.read_csv(out)
    assert written.drop(columns="split").equals(frame.sort_values("patch_id").reset_index(drop=True))
    assert (written.groupby("patient")["split"].nunique() == 1).all()
    assert (written.groupby("center")["split"].nunique() == (1 if preserve else 2)).all()
    shares = written.groupby("split")["label"].value_counts(normalize=True)
    for part in made.parts:
        assert part.patches == (written["split"] == part.name).sum()
        assert part.labels["tumor"] == pytest.approx(shares[part.name, "tumor"])
        assert part.shortcut.auc > part.shortcut.high  # the label does follow the center
    assert abs(made.parts[0].labels["tumor"] - made.parts[1].labels["tumor"]) < (0.2 if preserve else 0.02)
    assert "2 of 2 parts" in " ".join(made.notes)


def test_folds_do_not_depend_on_the_order_of_rows_and_differ_by_seed():
    frame = table()
    folds = [Splits(make="3", seed=seed).run(frame).frame.set_index("patch_id")["fold"].to_dict() for seed in (0, 1)]
    assert set(folds[0].values()) == {1, 2, 3}
    assert folds[0] != folds[1]
    assert folds[0] == Splits(make="3").run(frame[::-1]).frame.set_index("patch_id")["fold"].to_dict()


def test_centers_that_share_patients_stay_together():
    frame = table()
    frame.loc[frame["patient"] == "P0", "center"] = ["c0", *["c1"] * 9][: (frame["patient"] == "P0").sum()]
    assert frame[frame["patient"] == "P0"]["center"].nunique() == 2
    made = Splits(make="2", preserve_centers=True, tolerance=1).run(frame)
    assert made.frame[made.frame["center"].isin(["c0", "c1"])]["fold"].nunique() == 1
    assert any("Centers c0, c1 stay together" in note for note in made.notes)


TUMOR_AT_ONE = {"label": np.where(table()["center"] == "c0", "tumor", "normal")}
CONFLICTS = [
    ({"make": "7", "preserve_centers": True}, {}, "7 parts need at least 7 centers that share no patient.*has 6"),
    ({"make": "2", "preserve_centers": True}, TUMOR_AT_ONE, "label tumor occurs in 1 centers"),
    ({"make": "200"}, {}, "200 parts need at least 200 patients, the table has 120"),
    ({"make": "2", "preserve_centers": True, "tolerance": 0.05}, {"n": 130, "centers": 3}, "no split has .* smallest"),
    ({"make": "x"}, {}, "number of folds, or shares"),
    ({"make": "1"}, {}, "at least 2 folds"),
    ({"make": "a=0.5,b=0.4"}, {}, "sum to 1, got 0.9"),
    ({"make": "a=0.5,a=0.5"}, {}, "a given more than once"),
    ({"make": "2", "balance": "same"}, {"same": 1.0}, "same value in every row"),
    ({"make": "2", "preserve_centers": True, "center": "none"}, {}, "name the column with --center"),
    ({"make": "2", "column": "label"}, {}, "has a column label already"),
]


@pytest.mark.parametrize(("options", "changes", "words"), CONFLICTS)
def test_demands_that_conflict_are_named_in_a_sentence(options, changes, words):
    with pytest.raises(InputError, match=words) as error:
        Splits(**options).run(table(**changes))
    assert str(error.value).endswith(".")
    assert str(error.value).count(". ") == 0


def test_the_tolerance_that_a_conflict_offers_is_the_smallest_that_works():
    frame = table(n=130, centers=3)  # 44, 43, 43 patients in halves: 86 of 65 at best
    with pytest.raises(InputError, match=r"centers in one part each.*--tolerance 0\.33 is the smallest") as error:
        Splits(make="2", preserve_centers=True, tolerance=0.05).run(frame)
    assert "label" not in str(error.value)  # no part of the conflict
    assert Splits(make="2", preserve_centers=True, tolerance=0.33).run(frame).parts
    with pytest.raises(InputError, match="no split has"):
        Splits(make="2", preserve_centers=True, tolerance=0.29).run(frame)


def test_nothing_is_overwritten_without_being_asked(tmp_path):
    path = tmp_path / "t.csv"
    table().to_csv(path, index=False)
    before = path.read_text()
    command = ["splits", "--table", str(path), "--make", "2"]
    refused = CliRunner().invoke(app, [*command, "--out", str(path)])
    assert refused.exit_code == 2
    assert path.read_text() == before
    result = CliRunner().invoke(app, [*command, "--out", str(path), "--overwrite", "--json", "-"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["schema"] == "conceptkit/made-splits/1"
    assert [part["name"] for part in told["parts"]] == ["1", "2"]
    assert "fold" in pd.read_csv(path)
    assert CliRunner().invoke(app, [*command, "--out", str(tmp_path / "new.csv")]).exit_code == 2  # column fold
    assert CliRunner().invoke(app, ["splits", "--table", str(path), "--out", "x.csv"]).exit_code == 2  # no --make


def test_paths_are_those_of_the_new_folder(tmp_path):
    frame = table().assign(image=[f"pixels/{k}.png" for k in range(len(table()))])
    frame.to_csv(tmp_path / "t.csv", index=False)
    Splits(make="2", out=tmp_path / "sub" / "new.csv").run(tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "sub" / "new.csv")["image"].str.startswith("../pixels/").all()


def test_the_auc_of_centers_is_that_of_their_rates():
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        centers, labels = rng.integers(0, 7, 300), rng.integers(0, classes, 300)
        counts = np.zeros((7, classes))
        np.add.at(counts, (centers, labels), 1)
        rates = (counts / counts.sum(1, keepdims=True))[centers]
        expected = np.mean([roc_auc_score(labels == k, rates[:, k]) for k in range(classes)])
        assert center_auc(counts) == pytest.approx(expected)
    assert np.isnan(center_auc(np.array([[3.0, 0.0], [2.0, 0.0]])))


def test_the_chance_level_is_exceeded_by_chance_in_one_of_twenty_and_by_a_shortcut():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 20)
    centers = (np.arange(60) % 8)[patients]
    own = rng.beta(0.5, 0.5, (80, 60))  # patients' rates differ, so that rows are dependent
    above = naive = 0
    for k in range(80):
        labels = (rng.random(1200) < own[k][patients]).astype(int)
        found = center_shortcut(centers, labels, patients, draws=100, seed=k)
        above += found.auc > found.high
        naive += found.auc > center_shortcut(centers, labels, np.arange(1200), draws=20, seed=k).high
    assert above <= 10  # 4 expected
    assert naive > 40  # permuting rows takes dependent rows for a shortcut
    labels = (rng.random(1200) < np.where(centers < 4, 0.8, 0.2)).astype(int)
    found = center_shortcut(centers, labels, patients)
    assert found.auc > found.high + 0.1


@pytest.mark.long
@pytest.mark.parametrize("preserve", [False, True])
def test_five_thousand_patients_of_forty_centers_take_less_than_a_minute(preserve):
    frame = table(n=5000, centers=40)
    began = time.monotonic()
    made = Splits(make="5", balance="count", preserve_centers=preserve).run(frame)
    assert time.monotonic() - began < 60
    assert made.deviation < (0.03 if preserve else 0.01)
