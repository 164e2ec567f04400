"""The report: what its sentences claim, what its page escapes, and that a browser shows it without a network."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from report_records import (
    NASTY,
    Read,
    difference,
    guide_record,
    guide_run,
    noted_rows,
    probe_record,
    probe_row,
    saved,
    write_context,
    write_embeddings,
)
from rich.console import Console

from conceptkit.cli.console import show_record
from conceptkit.errors import InputError
from conceptkit.records import GuideRun, ProbeRecord, ProbeRow
from conceptkit.report import (
    contents,
    figures,
    guide_tables,
    probe_tables,
    sections,
    table,
    umap_figures,
    verdicts,
    wording,
)
from conceptkit.report import drawing as drawing_of
from conceptkit.report.embedding import _turned_onto, nearest, project, read_embeddings, squared_distances
from conceptkit.report.judging import Verdict
from conceptkit.report.page import write_page


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a probe and a guide run of three seeds, every name of which tries to be a script."""
    folder = tmp_path_factory.mktemp("report")
    nasty = {"study": NASTY, "group": NASTY, "synthetic": True, "notes": (NASTY,), "settings": {NASTY: [NASTY]}}
    probe = saved(probe_record(**nasty), folder / "probe")
    guide = saved(guide_record(seeds=(0, 1, 2), count=NASTY, **nasty), folder / "guide")
    write_embeddings(guide)
    write_context(guide)
    return write_page([probe, guide], folder / "report.html")


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
    assert "taken as independent" in text
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


# --- layouts -----------------------------------------------------------------------------------------------------


def test_neighbours_by_matrix_product_are_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 7)) + 1.0
    X[5] = X[9]  # a duplicate must not push a row off its own first place
    brute = np.sqrt(((X[:, None] - X[None]) ** 2).sum(axis=2))
    squared = squared_distances(X)
    np.testing.assert_allclose(np.sqrt(squared), brute, atol=1e-6)
    indices, distances = nearest(squared, 8)
    assert (indices[:, 0] == np.arange(60)).all()
    np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :8], atol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_turning_one_picture_onto_another_keeps_its_distances() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(40, 2))
    turn = np.array([[0.0, 1.0], [1.0, 0.0]])  # a mirror as well as a turn
    xy = target @ turn + 5
    turned = _turned_onto(xy, target)
    np.testing.assert_allclose(turned, target, atol=1e-9)
    noisy = xy + rng.normal(size=xy.shape)
    np.testing.assert_allclose(squared_distances(_turned_onto(noisy, target)), squared_distances(noisy), atol=1e-6)


def test_too_few_rows_fall_back_to_principal_components_with_a_note() -> None:
    X = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    (projection,) = project({"baseline": X})
    assert projection.method == "PCA"
    assert "too few" in projection.note
    centred = X - X.mean(axis=0)
    left, values, _ = np.linalg.svd(centred)
    np.testing.assert_allclose(np.abs(projection.xy), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    with pytest.raises(InputError, match="finite"):
        project({"baseline": np.full((20, 3), np.nan, np.float32)})


def test_rows_are_drawn_by_seed(tmp_path: Path) -> None:
    write_embeddings(tmp_path, n=50)
    whole, some = read_embeddings(tmp_path), read_embeddings(tmp_path, rows_most=20, seed=1)
    again, other = (read_embeddings(tmp_path, rows_most=20, seed=s) for s in (1, 2))
    assert whole is not None
    assert some is not None
    assert again is not None
    assert other is not None
    assert len(some.patch_ids) == 20
    assert some.n_saved == 50
    assert (some.patch_ids == again.patch_ids).all()
    assert (some.patch_ids != other.patch_ids).any()
    at = [whole.patch_ids.tolist().index(i) for i in some.patch_ids]
    np.testing.assert_array_equal(some.features["guided-seed0"], whole.features["guided-seed0"][at])
    np.testing.assert_array_equal(some.concepts["count"], whole.concepts["count"][at])
    assert read_embeddings(tmp_path / "nowhere") is None


def _other_schema(file: h5py.File) -> None:
    file.attrs["schema"] = "conceptkit/embeddings/9"


def _no_labels(file: h5py.File) -> None:
    del file["label"]


def _short_labels(file: h5py.File) -> None:
    del file["label"]
    file.create_dataset("label", data=["a"], dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("harm", "said"), [(_other_schema, "has schema"), (_no_labels, "label"), (_short_labels, "holds 1 rows of /label")]
)
def test_a_broken_features_file_is_told_in_one_sentence(tmp_path: Path, harm: Any, said: str) -> None:
    path = write_embeddings(tmp_path)
    with h5py.File(path, "a") as file:
        harm(file)
    with pytest.raises(InputError, match=said) as caught:
        read_embeddings(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_features_file_is_told(tmp_path: Path) -> None:
    path = write_embeddings(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as saved features"):
        read_embeddings(tmp_path)


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["$\\frac{$ and _x", "核の数", "a" * 300, "_hidden", ""])
def test_any_name_can_be_drawn(name: str) -> None:
    rows = tuple(probe_row(f"{name}{i}", name, score=0.3) for i in range(30))
    drawings = figures.probe_figures(ProbeRecord(study="s", rows=rows))
    drawings += figures.training_figures(guide_record(count=name))
    for drawing in drawings:
        assert drawing_of.to_data_uri(drawing.figure).startswith("data:image/svg+xml;base64,")


def test_a_figure_is_the_same_twice_and_says_its_numbers() -> None:
    first, again = (figures.probe_figures(probe_record())[0] for _ in range(2))
    assert drawing_of.to_bytes(first.figure) == drawing_of.to_bytes(again.figure)
    assert re.search(r"mixed10 0\.\d\d \[0\.\d\d, 0\.\d\d\] established, random network 0\.\d\d", first.alt)
    assert drawing_of.to_bytes(first.figure, kind="pdf").startswith(b"%PDF")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["mixed0", "mixed10"], ("", ["mixed0", "mixed10"], "")),
        (["a.1.x", "a.2.x"], ("a.", ["1", "2"], ".x")),
        (["a.1", "a.1.x"], ("a.", ["1", "1.x"], "")),
        (["a", "a.b"], ("", ["a", "a.b"], "")),
        (["a.b", "a.b"], ("a.", ["b", "b"], "")),
        (["a.b"], ("", ["a.b"], "")),
    ],
)
def test_long_layer_names_keep_what_tells_them_apart(layers: list[str], expected: tuple[str, list[str], str]) -> None:
    assert figures._told_apart(layers) == expected


def test_rare_classes_are_drawn_together() -> None:
    values = [f"C{i:02d}" for i in range(20) for _ in range(30 - i)] + [""]
    classes = umap_figures.categories(values)
    assert len(classes) == umap_figures.CATEGORIES_MOST
    assert classes[-1][0] == "7 others"
    assert sum(len(rows) for _, rows in classes) == len(values)
    looks = {(drawing_of.COLOURS[k % 8], umap_figures.marker(k)) for k in range(umap_figures.CATEGORIES_MOST)}
    assert len(looks) == umap_figures.CATEGORIES_MOST
    assert [name for name, _ in umap_figures.categories(["C10", "C9", "2", "C", "10"])] == ["2", "10", "C", "C9", "C10"]


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_holds_all_and_asks_for_nothing(whole_page: Path) -> None:
    read = Read(whole_page.read_text(encoding="utf-8"))
    assert all(a.startswith(("data:", "#")) or a == "@image" for a in read.addresses)
    assert not {"iframe", "object", "embed", "form"} & set(read.tags)
    assert read.alts
    assert all(read.alts)
    for said in (
        "Synthetic tissue, generated: not real histology.",
        "mixed10 encodes count: held-out R² = ",
        "center is still decodable from the guided network",
        "Encouraged concepts, before and after",
        "Discouraged concepts: what is left",
        "Paired differences",
        "Training",
        "Trustworthiness 0.",
        "Provenance",
    ):
        assert said in read.text, said
    assert not re.search(r"\b(nan|None)\b", read.text)


def test_names_never_become_markup(whole_page: Path) -> None:
    text = whole_page.read_text(encoding="utf-8")
    read = Read(text)
    assert NASTY not in text
    assert NASTY in read.text  # and yet they are shown as they are
    plain = saved(probe_record(("count",)), whole_page.parent / "plain")
    without = Read(write_page([plain], whole_page.parent / "plain.html").read_text(encoding="utf-8"))
    # the one script of the head; Bokeh adds its code, its log level and its plots
    assert without.tags.count("script") == 1
    assert read.tags.count("script") == 4


def test_a_layout_leaves_torchs_threads_as_they_were() -> None:
    code = """
import numpy as np, torch
from conceptkit.report.embedding import lay_out, nearest, squared_distances
X = np.random.default_rng(0).normal(size=(200, 5))
before = torch.get_num_threads()
lay_out(X.astype(np.float32), *nearest(squared_distances(X), 16), None, 0)
print(before, torch.get_num_threads())
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", "1"]  # with two processors numba makes it 2


def test_the_umap_says_how_far_it_can_be_trusted(whole_page: Path) -> None:
    embeddings = read_embeddings(whole_page.parent / "guide", runs=["baseline-seed0", "guided-seed0"])
    assert embeddings is not None
    first = project(embeddings.features, seed=0)
    again = project(embeddings.features, seed=0)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.xy, two.xy)
        assert one.trustworthiness > 0.8
        assert one.preservation > 0.3
    # spaces without room to spread, as dead or one-dimensional trunks leave them, are still laid out
    flat = {"dead": np.zeros((60, 3), np.float32), "line": np.arange(60, dtype=np.float32)[:, None]}
    dead, line = project(flat, seed=0)
    assert "same features" in dead.note
    assert np.isfinite(line.xy).all()
    # the control: a picture of the same rows shuffled keeps nothing
    from sklearn.manifold import trustworthiness

    X = embeddings.features["baseline-seed0"]
    assert first[0].trustworthiness == pytest.approx(trustworthiness(X, first[0].xy, n_neighbors=15), abs=1e-6)
    assert trustworthiness(X, np.random.default_rng(0).permutation(first[0].xy), n_neighbors=15) < 0.6
    # laid onto the first, the second picture lies nearer to it than its mirror image does
    mirrored = first[1].xy * [-1, 1]
    assert ((first[1].xy - first[0].xy) ** 2).sum() < ((mirrored - first[0].xy) ** 2).sum()


def test_missing_pieces_are_said_not_hidden(tmp_path: Path) -> None:
    runs = tuple(GuideRun(**{**vars(guide_run(n, 0)), "history": (), "leakage": {}}) for n in ("baseline", "guided"))
    folder = saved(guide_record(runs=runs, differences=()), tmp_path / "run")
    text = Read(write_page([folder], tmp_path / "out.html").read_text(encoding="utf-8")).text
    assert "No training history was saved." in text
    assert "saved no embeddings.h5" in text
    assert "What is left of center in the guided network was not measured." in text
    assert "No paired difference between runs was recorded." in text
    assert "Synthetic" not in text
    write_embeddings(folder, ("other-seed0",))
    assert "holds no features of these runs" in write_page([folder], tmp_path / "out.html").read_text(encoding="utf-8")
    nothing = saved(guide_record(runs=(), differences=()), tmp_path / "nothing")
    assert "Not recorded." in write_page([nothing], tmp_path / "out.html").read_text(encoding="utf-8")
    no_rows = saved(ProbeRecord(study="s", rows=()), tmp_path / "no_rows")
    assert "This record holds no result." in write_page([no_rows], tmp_path / "out.html").read_text(encoding="utf-8")


def test_runs_of_one_kind_are_told_apart_by_folder(tmp_path: Path) -> None:
    folders = [saved(probe_record(("count",), synthetic=i == 1), tmp_path / f"layer{i}") for i in range(2)]
    text = Read(write_page(folders, tmp_path / "out.html").read_text(encoding="utf-8")).text
    assert "Probe: layer0" in text
    assert "Probe: layer1" in text
    assert "not real histology. This holds for: Probe: layer1." in text


def test_a_mistake_leaves_the_older_page_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("older")
    with pytest.raises(InputError, match="runs: at least one"):
        write_page([], out)
    with pytest.raises(InputError, match=r"record\.json"):
        write_page([tmp_path / "nowhere"], out)
    with pytest.raises(InputError, match="out: must be a file"):
        write_page([saved(probe_record(), tmp_path / "run")], tmp_path)
    assert out.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "run"]


def test_four_thousand_patches_fit_and_are_stored_once(tmp_path: Path, no_layout: None) -> None:
    folder = saved(guide_record(), tmp_path / "run")
    write_embeddings(folder, n=4100, centers=12)
    out = write_page([folder], tmp_path / "out.html")
    text = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 15e6
    assert text.count("data:image/jpeg;base64,") == 4000
    assert text.count("backbone, pooled, colour: label") == 1
    assert "4000 of the 4100 held-out patches" in text


def test_torch_is_never_loaded(tmp_path: Path) -> None:
    folder = saved(guide_record(), tmp_path / "run")
    write_embeddings(folder, n=12)
    code = (
        "import sys; from pathlib import Path; from conceptkit.report.page import write_page;"
        "write_page([Path(sys.argv[1])], Path(sys.argv[2]));"
        "assert not {'torch', 'timm', 'openslide'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    run = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.html")]
    subprocess.run(run, check=True, cwd=root, timeout=60)
