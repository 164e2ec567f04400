"""The report's sentences and tables: what they claim, and what their numbers are."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import (
    difference,
    guide_record,
    guide_run,
    noted_rows,
    probe_record,
    probe_row,
)
from rich.console import Console

from conceptkit.cli.console import show_record
from conceptkit.records import GuideRun, ProbeRecord, ProbeRow
from conceptkit.report import (
    contents,
    figures,
    guide_tables,
    probe_tables,
    sections,
    table,
    verdicts,
    wording,
)
from conceptkit.report.first_screen import headline
from conceptkit.report.judging import Mark, Verdict
from conceptkit.report.page import write_page

# --- numbers and sentences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.714, "0.71"), (-0.05, "−0.05"), (-0.001, "0.00"), (math.nan, "–"), (None, "–"), (math.inf, "–"), (3, "3.00")],
)
def test_a_number_has_a_true_minus_and_a_missing_one_is_a_dash(value: object, expected: str) -> None:
    assert wording.number(value) == expected


def test_rounding_moves_no_end_of_an_interval_onto_zero() -> None:
    assert wording.interval(0.05, 0.02, 0.08) == "0.05 [0.02, 0.08]"
    assert wording.interval(0.05, 0.002, 0.08) == "0.050 [0.002, 0.080]"
    assert wording.interval(0.05, math.nan, math.nan) == "0.05"
    assert wording.interval(math.nan, 0.1, 0.2) == "–"
    assert wording.interval(0.0217, -0.0006, 0.0434, signed=True) == "+0.022 [−0.001, 0.043]"
    assert wording.interval(0.22083, 0.000002, 0.99969) == "0.22 [0.00, 1.00]"  # three decimals would show no more
    assert wording.interval(0.0217, -0.0001, 0.0434, most=5, signed=True) == "+0.0217 [−0.0001, 0.0434]"
    assert wording.interval(0.5, 0.0, 0.9) == "0.50 [0.00, 0.90]"  # an end that is 0


def test_a_mere_number_has_no_unit() -> None:
    units = {"area": "µm²", "correlation": "1", "odd": ""}
    assert [wording.with_unit(name, units) for name in ("area", "correlation", "odd", "new")] == [
        "area (µm²)",
        "correlation",
        "odd",
        "new",
    ]


def one_verdict(row: ProbeRow, group: str | None = "patient") -> Verdict:
    (verdict,) = verdicts.probe_verdicts(ProbeRecord(study="s", group=group, rows=(row,)))
    return verdict


def test_an_established_concept_is_told_with_its_interval() -> None:
    verdict = one_verdict(probe_row(score_low=0.63, score_high=0.81))
    assert verdict == Verdict(
        text="mixed10 encodes count: held-out R² = 0.71 [0.63, 0.81] (44 patients).", mark="established"
    )


def test_a_random_split_above_the_interval_is_the_caveat() -> None:
    assert "random split (patients mixed) would give 0.80" in one_verdict(probe_row(score_high=0.79)).text


def test_a_concept_that_could_not_be_scored_is_open() -> None:
    verdict = one_verdict(probe_row(score=math.nan))
    assert verdict == Verdict(text="count could not be scored at any layer.", mark="open")


def noted_record() -> ProbeRecord:
    return probe_record(rows=noted_rows(), notes=("Of the record.",))


def test_what_rows_have_to_say_is_told_once_with_whom_it_concerns() -> None:
    assert contents.notes_of(noted_record()) == [
        "Of the record.",
        "Every score: the interval rests on 7 groups only.",
        "area: ceiling: if errors are equal and independent.",
        "count at b: adjusted for center: not estimable <b>.",
    ]
    assert contents.notes_of(guide_record(notes=("One.",))) == ["One."]
    assert contents.notes_of(probe_record(rows=(probe_row(interval_note="few"),))) == ["count: few."]


def test_what_rows_have_to_say_is_printed_and_on_the_page(tmp_path: Path) -> None:
    record = noted_record()
    assert "adjusted" not in probe_tables.probe_table(record).frame.columns
    stream = io.StringIO()
    show_record(Console(file=stream, width=200), record)
    record.save(tmp_path)
    page = write_page([tmp_path], tmp_path / "page.html").read_text()
    for note in contents.notes_of(record):
        assert stream.getvalue().count(note) == 1
        assert page.count(html.escape(note)) == 1


def test_the_auc_of_classes_is_in_the_table_with_its_interval() -> None:
    auc = {"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
    center = probe_row("a", "center", 0.5, kind="categorical", metric="balanced_accuracy", chance=0.25)
    classes = probe_tables.probe_table(probe_record(rows=(probe_row("a"), dataclasses.replace(center, **auc))))
    assert table.shown(classes)["AUC"].tolist() == ["–", "0.80 [0.70, 0.90]"]
    assert "AUC: " in classes.caption
    without = probe_tables.probe_table(probe_record(rows=(probe_row("a"), center)))
    assert not [c for c in without.frame.columns if "AUC" in c]
    assert "AUC: " not in without.caption


def test_what_is_the_same_in_every_row_is_said_once_on_the_page_and_kept_in_files() -> None:
    rows = (probe_row("mixed0"), probe_row("mixed10", n=690))
    scores = probe_tables.probe_table(ProbeRecord(study="s", group="patient", rows=rows))
    assert "Every score uses 44 patients, 5 folds." in scores.caption
    cells = table.shown(scores)
    assert not {"groups", "folds"} & set(cells.columns)
    assert cells["rows"].tolist() == ["704", "690"]  # these differ
    assert scores.frame["folds"].tolist() == [5, 5]  # what the CSV has


def test_a_difference_is_filled_only_where_its_interval_leaves_zero_out() -> None:
    nothing = dataclasses.replace(difference("f1", 0.05), low=math.nan, high=math.nan)
    record = guide_record(differences=(difference("probe:count", 0.05), difference("auc", 0.01), nothing))
    drawing = figures.difference_figure(record)
    assert drawing is not None
    points = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() != "white" for line in points] == [True, False, False]


def test_no_control_hides_behind_the_score() -> None:
    same = {f"score_{name}": 0.7 for name in ("in_sample", "patchwise", "random_network", "pixels", "random_concept")}
    rows = tuple(probe_row(layer, score=0.7, **same) for layer in ("mixed0", "mixed2"))
    [drawing] = figures.probe_figures(ProbeRecord(study="s", group="patient", rows=rows))
    axes = drawing.figure.axes[0]
    drawn = [line for line in axes.lines if line.get_marker() in list("ov^sDx")]
    points = [(round(x, 3), round(y, 3)) for line in drawn for x, y in line.get_xydata()]
    assert len(points) == 12
    assert len(set(points)) == 12


def test_without_groups_the_sentence_says_that_rows_were_taken_as_independent() -> None:
    text = one_verdict(probe_row(), group=None).text
    assert "treated as independent" in text
    assert "random split" not in text


def test_a_change_is_claimed_only_where_the_interval_leaves_zero_out() -> None:
    texts = [v.text for v in verdicts.guide_verdicts(guide_record())]
    assert texts[0] == (
        "Guiding raised the probe score of count on internal by 0.05 [0.02, 0.08], from 0.66 to 0.71 (23 patients)."
    )
    assert texts[-1].startswith("No clear change in 2 results (23 patients): probe score of area on internal +0.01 [")
    [few] = [v for v in verdicts.guide_verdicts(guide_record()) if "external" in v.text]
    assert few.text.startswith("Open whether guiding lowered the AUC on external: −0.03 [−0.05, −0.01]")
    assert "3 patients are too few" in few.text
    assert few.mark == "open"


def test_levels_that_contradict_the_paired_difference_are_left_out() -> None:
    record = guide_record(differences=(difference("probe:count", -0.05),))
    assert "from" not in verdicts.guide_verdicts(record)[0].text


def test_an_auc_within_the_only_center_is_not_said_again() -> None:
    for mean, sentences in ((-0.03, 1), (-0.02, 2)):
        for half in (0.03, math.nan):  # of two patients there is no interval
            pooled = difference("auc", -0.03, half, split="external")
            within = difference("auc_within_center", mean, half, split="external")
            found = verdicts.guide_verdicts(guide_record(differences=(pooled, within)))
            assert sum(v.text.count("AUC") for v in found) == sentences


def leakage_verdict(linear: float | None, mlp: float | None, chance: float = 0.25, n_groups: int = 23) -> Verdict:
    before, after = guide_run("baseline", 0), guide_run("guided", 0)
    leakage = {"center": {"linear": linear, "mlp": mlp, "chance": chance}}
    after = GuideRun(**{**vars(after), "leakage": leakage})
    read = difference("mlp:center", -0.1, n_groups=n_groups)
    return verdicts.guide_verdicts(guide_record(runs=(before, after), differences=(read,)))[0]


def leakage_text(linear: float | None, mlp: float | None, chance: float = 0.25) -> str:
    return leakage_verdict(linear, mlp, chance).text


def test_leakage_of_few_patients_is_open_and_its_bound_is_said() -> None:
    few, many = leakage_verdict(0.26, 0.66, n_groups=9), leakage_verdict(0.26, 0.66, n_groups=10)
    assert (few.mark, many.mark) == ("open", "associated")
    assert "9 patients are too few" in few.text
    assert "conceptkit audit" in many.text
    near = leakage_verdict(0.26, 0.26, n_groups=10)
    assert near.mark == "open"  # a score near chance, without a test, proves no absence
    assert "does not prove" in near.text
    uncounted = verdicts.guide_verdicts(guide_record(differences=(difference("auc", 0.1),)))[0]
    assert uncounted.mark == "open"  # the number of patients is not known
    assert "number of patients not recorded" in uncounted.text


def test_leakage_is_judged_by_the_better_of_the_two_probes() -> None:
    assert leakage_text(0.61, 0.66).startswith(
        "center is still decodable from the guided network: balanced accuracy = 0.61 (linear probe), 0.66 (MLP probe), "
        "chance 0.25; baseline 0.80 (23 patients)."
    )
    assert "not shown to be decodable" in leakage_text(0.27, 0.29)
    assert "still decodable" in leakage_text(0.20, 0.31)
    assert "still decodable" in leakage_text(0.31, None)
    assert "R² = 0.02 (linear probe)" in leakage_text(0.02, 0.03, chance=0.0)
    assert "was not measured" in leakage_text(None, None)


def test_the_headline_has_findings_first_and_counts_the_rest() -> None:
    def one(mark: Mark, name: str, **more: Any) -> Verdict:
        return Verdict(text=f"{name}.", mark=mark, **more)

    first = one("open", "primary", primary=True)
    unclear = [one("open", "no change in 22", count=22), one("open", "open a"), one("open", "open b")]
    found = [one("associated", "b"), one("established", "a")]
    said = headline([*unclear, *found, first])
    assert [v.text for v in said] == [
        "primary.",
        "a.",
        "b.",
        "24 results without a clear effect: see the tables.",
    ]
    assert said[-1].count == 24
    many = headline([one("established", str(k)) for k in range(9)] + unclear)
    assert [v.text for v in many[:4]] == ["0.", "1.", "2.", "3."]
    assert many[-1].text == "5 further findings and 24 results without a clear effect: see the tables."
    short = [*found, one("open", "c")]
    assert {v.text for v in headline(short)} == {"a.", "b.", "c."}  # what fits is said
    assert headline([one("open", "x"), one("open", "y")]) == [one("open", "x"), one("open", "y")]
    # the control: as before, all results of guiding in a row
    assert len(headline(verdicts.guide_verdicts(guide_record()))) <= 5


# --- tables ------------------------------------------------------------------------------------------------------


def test_tables_average_over_seeds() -> None:
    record = guide_record(seeds=(0, 1, 2))
    frame = guide_tables.main_task_table(record).frame
    row = frame[(frame["split"] == "external") & (frame["run"] == "guided")].iloc[0]
    values = [run.metrics["external"]["auc"] for run in record.runs if run.name == "guided"]
    assert row["AUC"] == pytest.approx(np.mean(values))
    assert row["AUC sd"] == pytest.approx(np.std(values, ddof=1))
    assert row["seeds"] == 3
    text = table.shown(guide_tables.main_task_table(record))["AUC"].iloc[0]
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", text)
    assert "±" not in table.shown(guide_tables.main_task_table(guide_record()))["AUC"].iloc[0]


def test_the_gain_stands_beside_its_interval_and_the_caption_names_the_estimand() -> None:
    gain = {"r2_above_baseline": 0.3, "r2_above_baseline_low": 0.11, "r2_above_baseline_high": 0.47}
    record = probe_record(rows=(probe_row(**gain), probe_row(concept="area")))
    cells = table.shown(probe_tables.control_table(record))["gain over baselines"]
    assert cells.tolist() == ["0.30 [0.11, 0.47]", "–"]
    assert "same centers" not in probe_tables.probe_table(record).caption
    known = probe_tables.probe_table(dataclasses.replace(record, settings={"center": "center"}))
    assert "95 % interval for new patients of the same centers" in known.caption


def test_the_comparison_pairs_each_concept_with_its_difference() -> None:
    cells = table.shown(guide_tables.comparison_table(guide_record()))
    assert list(cells.columns) == ["concept", "baseline probe", "guided probe", "guided head", "difference", "verdict"]
    assert cells.to_numpy().tolist() == [
        ["count", "0.66", "0.71", "0.72", "+0.05 [0.02, 0.08]", "established"],
        ["area (µm²)", "0.50", "0.50", "0.48", "+0.01 [−0.02, 0.04]", "open"],
    ]


def test_a_grid_of_runs_gets_a_row_each() -> None:
    record = guide_record(runs=tuple(guide_run(name, 0) for name in ("baseline", "guided", "count+center")))
    cells = table.shown(guide_tables.comparison_table(record))
    assert cells["run"].tolist() == ["guided", "count+center"] * 2
    assert cells["difference"].tolist()[1] == "–"
    assert cells["verdict"].tolist() == ["established", "–", "open", "–"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_no_cell_ever_shows_nan(seeds: tuple[int, ...]) -> None:
    runs = [
        GuideRun(
            **{
                **vars(guide_run(name, s)),
                "concepts": {"count": {"probe": None}},
                "metrics": {"internal": {"auc": None}},
            }
        )
        for s in seeds
        for name in ("baseline", "guided")
    ]
    empty = probe_row(
        score=math.nan, score_low=math.nan, score_high=math.nan, alpha=math.nan, score_random_network=None
    )
    lost = difference("auc", math.nan)
    records = [guide_record(runs=tuple(runs), differences=(lost,)), ProbeRecord(study="s", rows=(empty,))]
    for record in records:
        for one in sections.KINDS[type(record)].tables(record):
            cells = table.shown(one).to_numpy().ravel().tolist()
            assert not [c for c in cells if re.search("nan|None", c)]
    # what no row has needs no column; what some row lacks is a dash
    assert "held out" not in table.shown(probe_tables.probe_table(records[1])).columns  # type: ignore[arg-type]
    some = ProbeRecord(study="s", rows=(empty, probe_row(score=0.5, score_random_network=None)))
    assert table.shown(probe_tables.probe_table(some))["held out"].tolist() == ["–", "0.50 [0.42, 0.57]"]
