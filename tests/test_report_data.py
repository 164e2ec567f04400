"""What the report shows of the data and of predictions: against plain statements of the same, and in odd cases."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from report_records import (
    NASTY,
    Read,
    guide_record,
    probe_record,
    saved,
    write_context,
    write_embeddings,
)
from sklearn.metrics import brier_score_loss, roc_auc_score

from conceptkit.errors import InputError
from conceptkit.report.data_figures import (
    LEVELS_MOST,
    center_figures,
    class_figures,
    left_out_of_figures,
    levels,
    sample_figure,
)
from conceptkit.report.data_parts import data_parts, split_table
from conceptkit.report.page import write_page
from conceptkit.report.predictions import brier, calibration, calibration_error, read_predictions, score
from conceptkit.report.run_context import Context, read_context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    found = read_context(write_context(tmp_path))
    assert found is not None
    return found


def test_a_context_is_read_as_it_was_written(context: Context) -> None:
    assert NASTY in context.concepts  # its slash went through HDF5
    assert np.isnan(context.concepts["count"][0])
    members = context.fold_members()["count"]
    assert len(members) == 5
    flat = [group for part in members for group in part]
    assert len(flat) == len(set(flat)) == 6  # no patient in two folds
    assert read_context(Path("nowhere")) is None


def test_the_split_table_counts_patches_and_patients(context: Context) -> None:
    frame = split_table(context, "patient").frame
    for split in ("train", "internal"):
        rows = frame[frame.split == split]
        total = rows[rows.center == "all"].iloc[0]
        assert total["patches"] == (context.splits == split).sum()
        parts = rows[rows.center != "all"]
        assert list(parts.center) == ["C1", "C2", "C10"]  # C2 before C10
        assert parts["patches"].sum() == total["patches"]
        assert parts["of tumor"].sum() == total["of tumor"]
        assert total["patients"] == len(set(context.groups[context.splits == split]))
    assert "rows" not in split_table(context, None).frame.columns


def test_figures_say_their_medians(context: Context) -> None:
    first = class_figures(context)[0]
    assert first.alt.startswith(f"{NASTY} by class")
    count = next(d for d in class_figures(context) if d.alt.startswith("count (nuclei)"))
    values = context.concepts["count"][(context.labels == "tumor") & np.isfinite(context.concepts["count"])]
    assert f"tumor median {np.median(values):.2f} of {len(values)}" in count.alt
    boxes = next(d for d in center_figures(context) if d.alt.startswith("count"))
    here = (context.centers == "C10") & (context.labels == "normal") & np.isfinite(context.concepts["count"])
    assert f"C10, normal {np.median(context.concepts['count'][here]):.2f}" in boxes.alt
    assert context.samples is not None
    mean = (context.samples.histograms[0, 0] * (np.arange(64) * 4 + 2)).sum()
    assert f"C1 {mean:.0f}, " in sample_figure(context.samples).alt


@pytest.mark.parametrize(("centers", "patients"), [(("one",), 1), (tuple(f"center {i:02d}" for i in range(12)), 40)])
def test_one_patient_and_twelve_centers(tmp_path: Path, centers: tuple[str, ...], patients: int) -> None:
    found = read_context(write_context(tmp_path, centers=centers, patients=patients))
    assert found is not None
    parts = data_parts(found, "patient", set())
    assert [part.title for part in parts][:3] == ["Patches of the run", "Samples and colours", "Concepts by class"]
    assert len(center_figures(found)) == (0 if len(centers) == 1 else 2)


def test_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    few = read_context(write_context(tmp_path / "few"))
    assert few is not None
    assert left_out_of_figures(few) == ""
    centers = tuple(f"H{i:02d}" for i in range(18))
    many = read_context(write_context(tmp_path / "many", centers=centers, patients=2, n=18 * 2 * 6 - 12))
    assert many is not None
    said = left_out_of_figures(many)
    drawn = levels(many.centers)
    others = ", ".join(c for c in centers if c not in drawn)
    assert said == f"Of 18 centers the 15 with most patches are drawn; not drawn: {others}."
    part = next(p for p in data_parts(many, "patient", set()) if p.title == "Concepts by center and class")
    assert said in part.text
    many = dataclasses.replace(few, concepts={f"k{i}": np.arange(len(few.labels), dtype=float) for i in range(14)})
    assert left_out_of_figures(many) == "Of 14 concepts the first 12 are drawn; not drawn: k12, k13."


def test_without_classes_boxes_are_by_center_alone(context: Context) -> None:
    bare = dataclasses.replace(context, labels=np.array([""] * len(context.labels)))
    assert [p.title for p in data_parts(bare, "patient", set())][-1] == "Concepts by center"
    (first, *_) = center_figures(bare)
    assert "(none)" not in first.alt
    assert first.figure.legends == []
    assert center_figures(context)[0].figure.legends  # the control


def test_many_centers_and_none_at_all(tmp_path: Path) -> None:
    names = np.array([f"c{i}" for i in range(40)] + [""] * 5)
    assert len(levels(names)) == LEVELS_MOST
    assert levels(np.array(["", ""])) == []
    empty = tmp_path / "empty"
    write_context(empty, centers=("",))
    with h5py.File(empty / "context.h5", "a") as file:
        del file["rows/label"], file["samples"]
        file.create_dataset("rows/label", data=[""] * 240, dtype=h5py.string_dtype())
    found = read_context(empty)
    assert [part.title for part in data_parts(found, None, set())] == ["Patches of the run"]


def test_what_one_section_shows_the_next_does_not_repeat(context: Context) -> None:
    seen: set[str] = set()
    assert data_parts(context, "patient", seen)
    assert data_parts(context, "patient", seen) == []


def test_a_broken_context_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_context(tmp_path)
    with h5py.File(tmp_path / "context.h5", "a") as file:
        del file["rows/group"]
    with pytest.raises(InputError, match="cannot be read as a run's context"):
        read_context(tmp_path)
    with h5py.File(tmp_path / "context.h5", "a") as file:
        file.attrs["schema"] = "conceptkit/context/9"
    with pytest.raises(InputError, match="has schema"):
        read_context(tmp_path)


# --- predictions -------------------------------------------------------------------------------------------------


def test_scores_agree_with_scikit_learn(tmp_path: Path) -> None:
    write_embeddings(tmp_path)
    predictions = read_predictions(tmp_path)
    assert predictions is not None
    probability = predictions.probabilities["baseline-seed0"]
    found = score(predictions, "baseline-seed0", "internal")
    assert found is not None
    assert found.auc == pytest.approx(roc_auc_score(predictions.codes, probability))
    assert found.brier == pytest.approx(brier_score_loss(predictions.codes, probability))
    assert found.low < found.auc < found.high
    assert found.n_groups == 23
    assert score(predictions, "guided-seed0", "nowhere") is None
    perfect = dataclasses.replace(predictions, probabilities={"r": predictions.codes.astype(float)})
    best = score(perfect, "r", "internal")
    assert best is not None
    assert best.auc == 1
    assert np.isnan(best.low)  # no group's absence changes it: nothing to judge by


def test_calibration_tells_honest_probabilities_from_exaggerated_ones() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    y = (rng.uniform(size=p.size) < p).astype(int)
    assert calibration_error(y, p) < 0.02
    exaggerated = np.where(p > 0.5, 0.99, 0.01)
    assert calibration_error(y, exaggerated) > 0.2
    predicted, observed, counts = calibration(y, p)
    assert counts.sum() == p.size
    np.testing.assert_allclose(predicted, observed, atol=0.04)
    several = np.stack([1 - p, p], axis=1)
    assert brier(y, several) == pytest.approx(2 * brier(y, p))


def test_a_page_shows_data_predictions_and_where_all_came_from(tmp_path: Path) -> None:
    run = saved(guide_record(seeds=(0,)), tmp_path / "guide")
    write_embeddings(run)
    write_context(run)
    text = write_page([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert NASTY not in text
    read = Read(text)
    for said in ("Main task, network by network", "Calibration", "Samples and colours", "Concepts by class"):
        assert said in read.text, said
    assert "fold 1 of count patient0, patient10 fold 2 of count patient2" in read.text
    assert f"conceptkit guide {NASTY}" in read.text
    assert all(read.alts)


def test_an_older_run_without_these_files_still_has_its_page(tmp_path: Path) -> None:
    run = saved(probe_record(), tmp_path / "probe")
    assert "Patches of the run" not in Read(write_page([run], tmp_path / "p.html").read_text(encoding="utf-8")).text


def test_the_report_opens_without_torch_networks_or_slides(tmp_path: Path) -> None:
    run = saved(guide_record(), tmp_path / "guide")
    write_embeddings(run, n=12)
    write_context(run)
    code = (
        "import sys; from pathlib import Path; from conceptkit.commands.report import write_report;"
        "write_report([sys.argv[1]], sys.argv[2], csv=sys.argv[3]);"
        "assert not {'torch', 'timm', 'openslide', 'lightning'} & set(sys.modules)"
    )
    arguments = [sys.executable, "-c", code, run, tmp_path / "out.html", tmp_path / "csv"]
    subprocess.run(list(map(str, arguments)), check=True, cwd=Path(__file__).parents[1], timeout=60)
