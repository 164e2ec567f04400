"""The command robustness: what it measures of known features, what it refuses, and its cards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from test_robustness import drawn

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.probe.neighbours import make_cohort
from conceptkit.probe.shortcut import STRENGTHS, _schedule, complete_table, shortcut_susceptibility
from conceptkit.records import load_record
from conceptkit.report.comparing import comparison_parts
from conceptkit.report.robustness_tables import robustness_verdicts

QUICK: dict[str, Any] = {"label": "tumor", "group": "patient", "neighbours": (5, 11), "repeats": 0, "folds": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table, and features that follow biology (good) and the center (bad)."""
    folder = tmp_path_factory.mktemp("robustness")
    X, label, center, patient = drawn(7, patients=24, rows=6)
    table = pd.DataFrame({"row": np.arange(len(X)), "image": [f"{i}.png" for i in range(len(X))]})
    table["patient"], table["center"], table["tumor"] = [f"P{p}" for p in patient], [f"H{c}" for c in center], label
    table["area"] = X[:, 0]
    table.to_csv(folder / "patches.csv", index=False)
    np.save(folder / "good.npy", X + 3.0 * np.eye(12)[label])
    np.save(folder / "bad.npy", X + 6.0 * np.eye(12)[4 + center])
    return folder


@pytest.fixture(scope="module")
def record(place: Path) -> ck.RobustnessRecord:
    features = {"good": str(place / "good.npy"), "bad": str(place / "bad.npy")}
    command = ck.Robustness(features=features, concepts="area", card=place / "cards", **QUICK)
    return command.run(place / "patches.csv", out=place / "run")


def test_indices_and_probes_tell_biology_from_hospital(place: Path, record: ck.RobustnessRecord) -> None:
    value = {(row.encoder, row.index): row.value for row in record.rows}
    assert value["good", "RI"] > 0.8 > 0.2 > value["bad", "RI"]
    assert value["good", "CRoMa"] > 0 > value["bad", "CRoMa"]
    assert {(row.encoder, row.concept) for row in record.probes} == {
        (encoder, concept) for encoder in ("good", "bad") for concept in ("tumor", "center", "area")
    }
    [label] = [row for row in record.probes if (row.encoder, row.concept) == ("good", "tumor")]
    assert label.score_leave_out is not None  # for centers that were not trained on
    [ri] = [d for d in record.differences if d.index == "RI"]
    assert ri.low > 0
    assert ri.p is not None
    assert ri.p < 0.05
    assert {d.concept for d in record.probe_differences} == {"tumor", "center", "area"}
    assert load_record(place / "run").rows == record.rows
    said = [one.text for one in robustness_verdicts(record) if one.mark == "established"]
    assert any("In good, near rows follow biology" in text for text in said)
    assert any("In bad, near rows follow the hospital" in text for text in said)


def test_a_card_of_each_encoder(place: Path, record: ck.RobustnessRecord) -> None:
    names = {path.name for path in (place / "cards").iterdir()}
    assert names == {"good.html", "good.md", "bad.html", "bad.md"}
    text = (place / "cards" / "good.md").read_text(encoding="utf-8")
    assert text.startswith("# Robustness of good\n")
    assert re.search(r"\| good \| [^|]*\| ", text)
    assert "| bad |" not in text.split("## Paired")[0]
    assert "Robustness of bad" in (place / "cards" / "bad.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"card: .* must be a missing or empty folder"):
        ck.Robustness(card=place / "cards", **QUICK).run(place / "patches.csv", out=place / "again")


def test_remedies_of_several_encoders_are_priced_apart(place: Path, tmp_path: Path) -> None:
    features = {"good": str(place / "good.npy"), "bad": str(place / "bad.npy")}
    command = ck.Robustness(features=features, remedies=("leace",), card=tmp_path / "cards", **QUICK)
    found = command.run(place / "patches.csv", out=tmp_path / "run").remedies
    value = {(row.encoder, row.remedy): row.value for row in found if row.measure == "center linear"}
    assert value["bad", "nothing"] > 0.9 > 0.6 > value["bad", "leace"]
    changes = [row for row in found if row.p is not None]
    assert {(row.encoder, row.remedy) for row in changes} == {("good", "leace"), ("bad", "leace")}
    assert np.allclose([row.q for row in changes], false_discovery_control([row.p for row in changes]))
    for name, other in (("good", "bad"), ("bad", "good")):
        card = (tmp_path / "cards" / f"{name}.md").read_text(encoding="utf-8")
        prices = card.split("## Remedies and their price")[1].split("\n## ")[0]
        [shown] = re.findall(r"\| leace \| center linear \| ([\d.]+) \|", prices)
        assert float(shown) == pytest.approx(value[name, "leace"], abs=0.006)
        assert f"| {other} |" not in prices


def test_features_that_know_neither_give_no_verdict(place: Path, tmp_path: Path) -> None:
    """Noise has a CRoMa above 0, as more rows share the label elsewhere than another label at the same center."""
    np.save(tmp_path / "noise.npy", np.random.default_rng(5).normal(size=(144, 12)))
    command = ck.Robustness(features=str(tmp_path / "noise.npy"), **QUICK)
    found = command.run(place / "patches.csv", out=tmp_path / "run")
    by = {row.index: row for row in found.rows}
    assert by["CRoMa"].low > 0
    assert by["RI"].low > 0.5  # verdicts against 0 and 0.5 would be wrong
    assert by["RI"].low < by["RI"].chance < by["RI"].high
    assert not [one.text for one in robustness_verdicts(found) if one.mark == "established"]


def _with(column: str, change: Callable[[pd.DataFrame], Any]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{column: change(table)})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_with("center", lambda t: "H0"), {}, "center: robustness compares rows of several centers"),
        (_with("tumor", lambda t: t.center), {}, "label: every center has rows of one tumor only"),
        (lambda t: t.drop(columns="center"), {}, "center: robustness compares centers, and the table has no"),
        (lambda t: t, {"label": "center"}, "label: center is the column of the centers"),
        (lambda t: t, {"group": None}, "group: robustness never compares rows of one patient"),
        (lambda t: t, {"neighbours": 500}, "neighbours: must be from 1 to 143 for 144 rows, got 500"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    place: Path, tmp_path: Path, change: Any, options: dict[str, Any], message: str
) -> None:
    table = change(pd.read_csv(place / "patches.csv").rename(columns={"patient": "who"}))
    with pytest.raises(InputError, match=message):
        ck.Robustness(features=str(place / "good.npy"), **{**QUICK, "group": "who", **options}).run(table, out=tmp_path)


def test_what_limits_the_numbers_is_said(place: Path, tmp_path: Path) -> None:
    table = pd.read_csv(place / "patches.csv")
    table.loc[table.patient == "P0", "center"] = "lone"
    table["tumor"] = table.tumor.astype(str)
    table.loc[table.patient == "P4", "tumor"] = "rare"
    X = np.load(place / "good.npy")
    X[table.index[table.patient == "P1"][0]] = X[table.index[table.patient == "P2"][0]]
    np.save(tmp_path / "copied.npy", X)
    found = ck.Robustness(features=str(tmp_path / "copied.npy"), **QUICK).run(table, out=tmp_path / "run")
    notes = " ".join(found.notes)
    for words in ("One patient only at center lone", "tumor rare occurs at center H0 only", "1 feature vectors occur"):
        assert words in notes
    assert all(np.isfinite(row.value) for row in found.rows)
    pair = table[table.center.isin(["H1", "H2"])]
    two = ck.Robustness(features=str(place / "good.npy"), **QUICK).run(pair, out=tmp_path / "two")
    assert any(note.startswith("Two centers only") for note in two.notes)


def test_a_growing_shortcut_costs_features_of_the_center_only() -> None:
    pytest.importorskip("croma")
    X, label, center, patient = drawn(1, patients=16, centers=2, rows=12)
    cohort = make_cohort(label, center, patient)
    noise = 0.5 * np.random.default_rng(0).normal(size=X.shape)
    biology, hospital = noise + 2 * np.eye(12)[label], noise + 0.4 * np.eye(12)[label] + 2 * np.eye(12)[4 + center]
    clean, biased = (shortcut_susceptibility(Z, cohort, repeats=1) for Z in (biology, hospital))
    assert abs(clean.nipd) < 0.05
    assert biased.nipd < -0.2
    assert clean.accuracies.shape == (len(STRENGTHS), 1)


@pytest.mark.parametrize(("centers", "labels"), [(2, 2), (4, 2), (3, 3), (2, 6)])
def test_the_schedule_has_its_association_and_its_size(centers: int, labels: int) -> None:
    sizes = set()
    for v, (cells, most) in zip(STRENGTHS, _schedule(8, centers, labels), strict=True):
        table = np.zeros((centers, labels))
        for i, j, n in cells:
            table[i, j] = n
        sizes.add(table.sum())
        assert table.max() <= most
        expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
        chi2 = ((table - expected) ** 2 / expected).sum()
        assert np.sqrt(chi2 / table.sum() / (min(centers, labels) - 1)) == pytest.approx(v)
    assert len(sizes) == 1


def test_the_table_of_centers_and_labels_is_complete() -> None:
    center, label = np.repeat(np.arange(3), 16), np.tile(np.repeat([0, 1], 8), 3)
    label[center == 2] = 2
    cohort = make_cohort(label, center, np.repeat(np.arange(24), 2))
    assert [list(one) for one in complete_table(cohort)] == [[0, 1], [0, 1]]


def test_runs_are_compared_by_their_indices(place: Path, record: ck.RobustnessRecord) -> None:
    alone = dataclasses.replace(record, rows=tuple(row for row in record.rows if row.encoder == "bad"))
    [_, indices] = [part.table for part in comparison_parts([record, alone], [place, place], ["both", "one"])]
    assert indices is not None
    shown = indices.frame.set_index("index").loc["RI"]
    value = {row.encoder: row.value for row in record.rows if row.index == "RI"}
    layer = record.rows[0].layer
    assert shown[[f"both, good, {layer}", f"both, bad, {layer}"]].tolist() == [value["good"], value["bad"]]
    assert shown["one"] == value["bad"]
