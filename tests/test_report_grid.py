"""The report of grids and of concept values alone: the paper's tables, and sentences that claim no more than holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_records import Read, difference, grid_record, guide_run, saved, write_context, write_embeddings

from conceptkit.records import PredictivityRecord
from conceptkit.records.grid import GridCell
from conceptkit.records.predictivity import PredictivityRow
from conceptkit.report import umap_parts
from conceptkit.report.embedding import Projection
from conceptkit.report.grid_figures import curve_figure
from conceptkit.report.grid_tables import curve_table, grid_tables, grid_verdicts, main_table
from conceptkit.report.page import write_page
from conceptkit.report.part import saved_pictures
from conceptkit.report.predictivity_tables import predictivity_table, predictivity_verdicts
from conceptkit.report.table import shown
from conceptkit.report.table_files import to_csv, to_latex


def test_table_4_has_a_row_per_network_with_its_difference() -> None:
    cells = shown(main_table(grid_record()))
    assert cells["network"].tolist() == ["1 vanilla", "3 vanilla", "5 vanilla", "random"]
    assert cells["difference internal"].tolist()[1] == "+0.050 [0.020, 0.080]"
    assert cells["difference internal"].tolist()[0] == "–"
    aucs = [guide_run("guided", seed).metrics["internal"]["auc"] for seed in (0, 1)]
    assert cells["internal"].tolist()[1].startswith(f"{sum(aucs) / 2:.3f} ± ")


def test_the_auc_within_centers_stands_beside_the_pooled_one() -> None:
    record = grid_record()
    inside = [0.61, 0.65]
    runs = [
        dataclasses.replace(
            run, metrics={**run.metrics, "internal": {**run.metrics["internal"], "auc_within_center": inside[run.seed]}}
        )
        for run in record.runs
    ]
    table = main_table(dataclasses.replace(record, runs=tuple(runs)))
    cells = shown(table)
    place = cells.columns.get_loc("internal within center")
    assert cells.columns[place - 1] == "internal"
    assert cells["internal within center"].tolist()[1] == "0.630 ± 0.028"
    assert "external within center" not in cells.columns  # not taken there
    assert "Within center" in table.caption
    assert "internal within center" in to_csv(table).splitlines()[0]
    assert "internal within center" in to_latex(table, label="t4")
    # The control: without such scores nothing is said of them.
    assert not [c for c in shown(main_table(record)).columns if "within" in c]
    assert "Within" not in main_table(record).caption


def test_a_grid_says_how_many_gained_and_what_the_control_gained() -> None:
    texts = [v.text for v in grid_verdicts(grid_record())]
    assert texts[0].startswith("On internal 1 of 2 guided networks raise the AUC over the single task")
    assert "+0.050 [0.020, 0.080] (3 vanilla, 23 patients)" in texts[0]
    assert "largest of 2 differences is biased upwards" in texts[0]
    assert texts[1].startswith("No clear change in 1 result (23 patients): AUC of the control random (random target)")
    assert "on internal +0.020 [−0.010, 0.050]" in texts[1]
    assert texts[-1] == "1 of the grid's networks gave no result."
    assert grid_verdicts(grid_record(differences=(), failed={}))[0].mark == "open"


def test_concepts_read_from_a_network_have_the_verdict_of_their_difference() -> None:
    found = tuple(
        dataclasses.replace(difference("probe:count", mean, n_groups=n), run=cell, against="1 vanilla")
        for cell, mean, n in (("3 vanilla", 0.05, 23), ("5 vanilla", 0.01, 23), ("random", 0.05, 9))
    )
    frame = next(t for t in grid_tables(grid_record(differences=found)) if t.name == "table6").frame
    read = frame[(frame.concept == "count") & (frame.reader == "linear probe")].set_index("network")["verdict"]
    assert read.to_dict() == {"1 vanilla": "", "3 vanilla": "established", "5 vanilla": "open", "random": "open"}


def test_no_table_of_a_grid_shows_nan() -> None:
    for table in grid_tables(grid_record()):
        assert not [c for c in shown(table).to_numpy().ravel().tolist() if c in ("nan", "None")], table.name
    assert [t.name for t in grid_tables(grid_record(affinity=(), patch_level=()))] == [
        "table4",
        "table5",
        "table6",
        "differences",
    ]


def test_a_curve_of_scarce_values_has_its_levels_on_the_axis() -> None:
    levels = (0.01, 0.1, 1.0)
    cells = tuple(
        GridCell(name=f"{level:g}", encourage=("count",), weighting="vanilla", model="m", curve="fraction", level=level)
        for level in levels
    )
    single = GridCell(name="1 vanilla", weighting="vanilla", model="m")
    runs = tuple(dataclasses.replace(guide_run("guided", 0), name=cell.name) for cell in (single, *cells))
    record = grid_record(cells=(single, *cells), runs=runs, differences=())
    drawing = curve_figure(record, "fraction")
    assert drawing is not None
    for axes in drawing.figure.axes:
        labels = [label.get_text() for minor in (False, True) for label in axes.get_xticklabels(minor=minor)]
        assert labels == ["0.01", "0.1", "1"]
    assert shown(curve_table(record, "fraction"))["fraction"].unique().tolist() == ["0.01", "0.1", "1"]


def test_a_page_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def flat(features: dict, *, seed: int) -> tuple[Projection, ...]:
        drawn.extend(features)
        numbers = {"trustworthiness": 0.9, "preservation": 0.3, "method": "UMAP"}
        return tuple(Projection(run=run, xy=X[:, :2].astype(float), **numbers) for run, X in features.items())

    monkeypatch.setattr(umap_parts, "project", flat)
    run = saved(grid_record(), tmp_path / "grid")
    write_embeddings(run, ("1 vanilla-seed0", "3 vanilla-seed0", "5 vanilla-seed0"))
    write_context(run)
    text = Read(write_page([run], tmp_path / "page.html").read_text(encoding="utf-8")).text
    for said in ("AUC of the main task by network", "By the paper's protocol", "Affinities and curves", "Calibration"):
        assert said in text, said
    assert drawn == ["1 vanilla, seed 0", "3 vanilla, seed 0"] * 2  # the reference and the one that gained most


def test_pictures_of_a_run_folder_are_shown_and_none_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"\x89PNG outside")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "map-01.png").write_bytes(b"\x89PNG inside")
    found = saved_pictures(folder, ["map-01.png", "../outside.png", "gone.png", "record.json"])
    assert [picture.content for picture in found] == [b"\x89PNG inside"]
    assert "map 01" in found[0].alt


def test_a_confounder_that_tells_the_label_is_told() -> None:
    common = {"split": "internal", "sd": 0.01, "n_groups": 30, "seeds": (0.6,)}
    rows = (
        PredictivityRow(inputs=("count", "area"), role="growing", auc=0.66, low=0.6, high=0.72, **common),
        PredictivityRow(inputs=("center",), role="confounder", auc=0.92, low=0.9, high=0.95, **common),
        PredictivityRow(inputs=("stain",), role="confounder", auc=0.52, low=0.45, high=0.6, **common),
    )
    said = predictivity_verdicts(PredictivityRecord(study="s", group="patient", rows=rows))
    assert "count + area predict the label on internal: AUC 0.660 [0.600, 0.720]" in said[0].text
    assert "center predicts the label on internal: AUC 0.920 [0.900, 0.950]" in said[1].text
    assert "may rely on it" in said[1].text
    assert said[2].text.startswith("Open whether stain predicts the label on internal: AUC 0.520 [0.450, 0.600]")
    assert said[2].mark == "open"
    one = dataclasses.replace(rows[0], inputs=("count",))
    alone = predictivity_verdicts(PredictivityRecord(study="s", group="patient", rows=(one,)))
    assert "count predicts the label" in alone[0].text


def test_the_spread_over_seeds_is_a_column_only_where_there_are_several() -> None:
    def columns(sd: float) -> list[str]:
        row = {"split": "internal", "auc": 0.6, "low": 0.5, "high": 0.7, "n_groups": 30, "seeds": (0.6,), "sd": sd}
        rows = (PredictivityRow(inputs=("count",), role="concept", **row),)
        return list(predictivity_table(PredictivityRecord(study="s", group="patient", rows=rows)).frame.columns)

    assert "SD over seeds" in columns(0.01)
    assert "SD over seeds" not in columns(float("nan"))
