"""Grids: which networks they hold, their controls, their tables, and that an interrupted one goes on to the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from recorded_options import forgotten
from sklearn.metrics import roc_auc_score
from small_study import write_study
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands import grid as grids
from conceptkit.commands.grid import outline_grid, run_grid
from conceptkit.errors import InputError
from conceptkit.files.atomic import held
from conceptkit.grid import plan as grid_plan
from conceptkit.grid import request as grid_request
from conceptkit.grid import run as grid_run
from conceptkit.grid import training as grid_training
from conceptkit.grid.columns import altered, random_values
from conceptkit.grid.folder import claim
from conceptkit.grid.plan import PAPER_MODELS, folder_name, read_models
from conceptkit.guide.concept_network import Column, design, fit_concept_network
from conceptkit.jobs import Engine
from conceptkit.options.grid import Grid
from conceptkit.records import GridCell, load_record, to_json
from conceptkit.tables.patches import PatchTable

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,)}
SEEDS = (0, 3)
WANTED = {"ablate": "count, -center", "options": OPTIONS, "weightings": ["vanilla"], "seeds": SEEDS, "folds": 2}


@pytest.fixture(scope="module")
def grid(study, tmp_path_factory):
    """A grid with all controls and both curves."""
    return run_grid(
        study,
        **WANTED,
        noise=[0.5],
        fraction=[0.5],
        affinity=True,
        protocol="paper",
        out=tmp_path_factory.mktemp("grids") / "all",
    )


@pytest.fixture(scope="module")
def plain(study, tmp_path_factory):
    """The least grid, uninterrupted."""
    return run_grid(study, **WANTED, controls=False, out=tmp_path_factory.mktemp("grids") / "plain")


def names(record):
    return [cell.name for cell in record.cells]


def same_numbers(one, other):
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame(), check_exact=True)
    assert one.differences == other.differences


# --- which networks ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_papers_grid_is_the_papers(embedded):
    cells = outline_grid(embedded, ablate="paper")
    models = [c for c in cells if c.number]
    assert len(models) == 16
    for weighting in ("vanilla", "uncertainty"):
        own = {c.number: (c.encourage, c.discourage) for c in models if c.weighting == weighting}
        assert own == PAPER_MODELS
    assert {c.name for c in models if c.discourage} == {
        f"{name}, {weighting}"
        for weighting in ("vanilla", "uncertainty")
        for name in (
            *("− center", "count − center", "area + count − center"),
            "area + count + contrast − center",
        )
    }
    assert [c.control for c in cells if c.control] == [
        *("random target", "shuffled concept") * 2,
        "confounder only",
    ]
    assert len({c.name for c in cells}) == len({folder_name(c, 0) for c in cells}) == len(cells)


def test_inception_has_the_papers_second_network_beside_it(embedded):
    cells = outline_grid(embedded, ablate="paper", model="inception_v3")
    second = {c.number: c for c in cells if c.model == "resnet50"}
    assert set(second) == {"R1", "R8"}
    assert {c.weighting for c in second.values()} == {"uncertainty"}
    assert second["R8"].encourage == ("area", "count", "contrast")
    assert not [c for c in outline_grid(embedded, ablate="paper") if c.model == "resnet50"]


def test_pairs_are_all_of_one_and_two(embedded):
    study = dataclasses.replace(embedded, encourage=("area", "count"), discourage=("center",))
    assert read_models("pairs", study)[1] == [
        *((("area",), ()), (("count",), ()), ((), ("center",))),
        *((("area", "count"), ()), (("area",), ("center",)), (("count",), ("center",))),
    ]


def test_a_list_is_read_from_text_a_file_and_the_study(embedded, tmp_path):
    wanted = [(("count",), ("center",)), (("area", "count@mixed10"), ())]
    lines = ["main", "count,-center", "area, count@mixed10"]
    (tmp_path / "models.txt").write_text("# ours\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    study = dataclasses.replace(embedded, grid=tuple(lines))
    for text in (";".join(lines), str(tmp_path / "models.txt"), "study"):
        assert read_models(text, study) == ("list", wanted)


def test_the_study_file_names_a_grid(study, table, tmp_path):
    path = write_study(tmp_path, table)
    path.write_text(
        path.read_text(encoding="utf-8") + '\n[grid]\nmodels = ["count", "count, -center"]\n', encoding="utf-8"
    )
    assert [c.name for c in outline_grid(path, ablate="study", controls=False)] == [
        *("main, uncertainty-bounded", "count, uncertainty-bounded", "count − center, uncertainty-bounded"),
    ]


def test_names_of_cells_make_folders_of_their_own():
    cells = [
        GridCell(name="a-b, vanilla"),
        GridCell(name="a + b, vanilla"),
        GridCell(name="a − b, vanilla"),
        GridCell(name="a/b, vanilla"),
        GridCell(name="ä, vanilla"),
        GridCell(name="x" * 300),
    ]
    folders = {folder_name(cell, 0) for cell in cells}
    assert len(folders) == len(cells)
    assert all(len(name) < 130 and "/" not in name for name in folders)


def test_the_noise_curve_and_its_multimodal_control_differ_in_nothing_else(embedded):
    """Two weightings: both points belong to the last, and neither discourages or weighs rows."""
    study = dataclasses.replace(embedded, encourage=("count",), discourage=("center",))
    cells = outline_grid(study, ablate="paper", noise=[0.5], fraction=[0.5])
    learned, multimodal, scarce = [c for c in cells if c.curve]
    assert learned.name == "count, noise 0.5, uncertainty"
    assert learned.discourage == multimodal.discourage == ()
    assert scarce.discourage == ("center",)  # the control: the other curve is of the study's guided network
    assert multimodal.name.endswith("uncertainty")
    assert multimodal.base == "main, uncertainty"
    assert next(c.name for c in cells if not c.encourage) == "main, vanilla"  # the first single task is another


# --- values of the controls --------------------------------------------------------------------------------------

AT = {"train": np.arange(60), "val": np.arange(60, 80), "internal": np.arange(80, 120)}


def values_with_gaps():
    values = np.random.default_rng(0).normal(size=120)
    values[::7] = np.nan
    return values


def test_a_shuffled_concept_keeps_its_values_in_each_split():
    values = values_with_gaps()
    found = altered(GridCell(name="s", control="shuffled concept"), values, AT, 0)
    for rows in AT.values():
        assert np.sort(found[rows]) == pytest.approx(np.sort(values[rows]), nan_ok=True)
        assert np.isnan(found[rows]).tolist() == np.isnan(values[rows]).tolist()
    known = np.isfinite(values)
    assert abs(np.corrcoef(values[known], found[known])[0, 1]) < 0.25
    assert not np.array_equal(
        altered(GridCell(name="s", control="shuffled concept"), values, AT, 1), found, equal_nan=True
    )


def test_noise_exchanges_its_share_of_the_values():
    values = values_with_gaps()
    for level in (0.0, 0.3, 1.0):
        found = altered(GridCell(name="n", curve="noise", level=level), values, AT, 0)
        assert np.sort(found[AT["train"]]) == pytest.approx(np.sort(values[AT["train"]]), nan_ok=True)
        known = np.isfinite(values)
        assert np.mean(found[known] != values[known]) == pytest.approx(level, abs=0.05)


def test_a_fraction_keeps_whole_rows_and_the_smaller_lies_in_the_larger():
    values = np.random.default_rng(0).normal(size=120)
    words = np.array([*"ab"] * 60, dtype=object)
    kept = {}
    for level in (0.1, 0.5, 1.0):
        cell = GridCell(name="f", curve="fraction", level=level)
        found = altered(cell, values, AT, 0)
        kept[level] = set(np.flatnonzero(np.isfinite(found)).tolist())
        for name in ("train", "val"):
            assert np.isfinite(found[AT[name]]).sum() == round(level * len(AT[name]))
        assert np.isfinite(found[AT["internal"]]).all()
        other = altered(cell, words, AT, 0)
        assert {i for i, v in enumerate(other) if v is not None} == kept[level]
    assert kept[0.1] < kept[0.5] < kept[1.0]


def test_a_fraction_that_leaves_nothing_is_told():
    values = np.full(120, np.nan)
    values[:2] = 1.0
    with pytest.raises(InputError, match=r"concept-fraction: 0\.01 leaves no training row with a value"):
        altered(GridCell(name="f", curve="fraction", level=0.01), values, AT, 0)


def test_random_values_are_another_seeds_others():
    assert np.array_equal(random_values(50, 1), random_values(50, 1))
    assert abs(np.corrcoef(random_values(500, 1), random_values(500, 2))[0, 1]) < 0.15


# --- the record --------------------------------------------------------------------------------------------------


def test_all_cells_are_there_with_their_controls(grid):
    assert names(grid) == [
        "main, vanilla",
        "count − center, vanilla",
        "main, uncertainty",
        "random target, vanilla",
        "count shuffled, vanilla",
        "confounder only: center",
        "count, noise 0.5, vanilla",
        "multimodal: main with count as input, noise 0.5, vanilla",
        "count − center, fraction 0.5, vanilla",
    ]
    assert [c.control for c in grid.cells][2:6] == [
        "single task",
        "random target",
        "shuffled concept",
        "confounder only",
    ]
    assert grid.failed == {}
    for cell in grid.cells:
        own = [run.seed for run in grid.runs if run.name == cell.name]
        assert own == ([0] if cell.control == "confounder only" else list(SEEDS))
    for run in grid.runs:
        assert set(run.metrics) == {"train", "val", "internal", "external", "overall"}
        assert set(run.metrics["internal"]) >= {"auc", "auc_within_center", "f1", "f1_at_half", "brier", "ece"}


def test_a_control_has_a_head_of_its_own_and_none_of_the_concept(grid):
    runs = {run.name: run for run in grid.runs}
    assert runs["count − center, vanilla"].concepts["count"]["head"] is not None
    assert runs["count shuffled, vanilla"].concepts["count"]["head"] is None
    assert "train/count, shuffled" in runs["count shuffled, vanilla"].history[0]
    assert "train/random target" in runs["random target, vanilla"].history[0]


def test_the_confounder_predicts_by_the_training_rows_share(grid, table):
    train = table[table.split == "train"]
    share = (train.label == "tumor").groupby(train.center).mean()
    everywhere = (train.label == "tumor").mean()
    run = next(run for run in grid.runs if run.name.startswith("confounder"))
    for split in ("train", "internal", "external"):
        rows = table[table.split == split]
        score = rows.center.map(share).fillna(everywhere)
        assert run.metrics[split]["auc"] == pytest.approx(roc_auc_score(rows.label == "tumor", score))
    assert run.metrics["train"]["auc"] > 0.55  # the label is confounded there
    assert run.metrics["external"]["auc"] == pytest.approx(0.5)  # a center that training never saw
    assert run.metrics["train"]["auc_within_center"] == pytest.approx(0.5)


PAPER_TABLE_1 = {"train": [(31108, 8036), (25137, 5998), (38962, 2982), (25698, 1496)]}
PAPER_TABLE_1["internal"] = [(0, 500), (274, 999), (483, 0), (458, 0)]
"""Split → (normal, tumor) patches of Camelyon17's centers 0 to 3; the paper's Table 1"""


def test_on_the_papers_own_split_the_center_alone_scores_0925(monkeypatch):
    rows = [
        (split, str(center), label)
        for split, counts in PAPER_TABLE_1.items()
        for center, own in enumerate(counts)
        for label, n in enumerate(own)
        for _ in range(n)
    ]
    split, center, label = map(np.array, zip(*rows, strict=True))
    at = {name: np.flatnonzero(split == name) for name in PAPER_TABLE_1}
    plan = SimpleNamespace(used=np.arange(len(rows)), codes=label, rows=at, classes=("normal", "tumor"))
    monkeypatch.setattr("conceptkit.grid.run.split_scores", lambda probability, plan, reading: {})
    found = grid_run.confounder_run(GridCell(name="c"), center.astype(object), plan, None, 0).probability
    inside = at["internal"]
    assert roc_auc_score(label[inside], found[inside]) == pytest.approx(0.925, abs=5e-4)


def test_tables_4_to_6_are_those_of_the_runs(grid):
    table4, table5, table6 = grid.table4(), grid.table5(), grid.table6()
    assert list(table4.cell) == names(grid)
    own = [run.metrics["external"]["auc"] for run in grid.runs if run.name == "count − center, vanilla"]
    row = table4.set_index("cell").loc["count − center, vanilla"]
    assert row["external"] == pytest.approx(np.mean(own))
    assert row["external sd"] == pytest.approx(np.std(own, ddof=1))
    base = table4.set_index("cell").loc["main, vanilla", "external"]
    assert row["external difference"] == pytest.approx(row["external"] - base)
    assert row["external difference low"] <= row["external difference"] <= row["external difference high"]
    assert row["external groups"] == 4
    inside = [run.metrics["internal"]["auc_within_center"] for run in grid.runs if run.name == row.name]
    assert row["internal within center"] == pytest.approx(np.mean(inside))
    assert row["internal within center sd"] == pytest.approx(np.std(inside, ddof=1))
    assert set(table5.split) == {"internal", "external", "overall"}
    f1 = table5[(table5.cell == "main, vanilla") & (table5.split == "internal")].f1.item()
    assert f1 == pytest.approx(np.mean([r.metrics["internal"]["f1"] for r in grid.runs if r.name == "main, vanilla"]))
    read = table6[(table6.cell == "count − center, vanilla")]
    assert set(zip(read.concept, read.reader, strict=True)) == {
        *(("count", "probe"), ("count", "head"), ("center", "linear"), ("center", "mlp")),
    }
    assert set(read[read.concept == "center"].role) == {"discouraged"}


def test_each_cell_is_compared_with_the_single_task_of_its_weighting_and_with_vanilla(grid):
    pairs = {(d.run, d.against) for d in grid.differences}
    assert ("count − center, vanilla", "main, vanilla") in pairs
    assert ("main, uncertainty", "main, vanilla") in pairs
    assert ("confounder only: center", "main, vanilla") in pairs
    assert not [pair for pair in pairs if pair[0] == "main, vanilla"]


def test_the_papers_protocol_is_labelled_as_patch_level(grid):
    assert {p.resamples for p in grid.patch_level} == {50}
    assert {p.split for p in grid.patch_level} == {"internal", "external", "overall"}
    assert any("says nothing of new patients" in note for note in grid.notes)


def test_curves_and_affinities_are_frames(grid):
    noise = grid.curve("noise")
    assert set(zip(noise.level, noise.multimodal, strict=True)) == {(0.5, False), (0.5, True)}
    assert set(grid.curve("fraction").level) == {0.5}
    matrix = grid.affinity_matrix()
    assert list(matrix.index) == list(matrix.columns) == ["main", "count", "center"]
    assert np.isfinite(matrix.to_numpy()).all()
    assert matrix.loc["main", "main"] > 0  # a step down its own gradient
    assert matrix.loc["center", "center"] < 0  # a discouraged task's step raises its loss


def test_every_option_stands_in_the_settings(plain):
    assert forgotten(Grid, load_record(plain.folder).settings) == {"weighting"}  # it is the cells'


@pytest.mark.long
def test_a_multimodal_control_builds_on_the_single_task_of_its_own_weighting(plain, study, tmp_path, monkeypatch):
    shutil.copytree(plain.folder, tmp_path / "two")
    read = []

    def noted(folder, cell, seed, load=grid_run.load_run):
        read.append(cell.name)
        return load(folder, cell, seed)

    monkeypatch.setattr(grid_run, "load_run", noted)
    wanted = {**WANTED, "weightings": ["vanilla", "uncertainty"], "noise": [0.5], "controls": False}
    found = run_grid(study, **wanted, out=tmp_path / "two")
    assert read == ["main, uncertainty"] * len(SEEDS)
    cell = next(c for c in found.cells if c.control == "multimodal")
    assert found.reference(cell) == "main, uncertainty"
    assert found.difference(cell, "external", "auc").against == "main, uncertainty"
    # The folder was extended: what it held of the same concepts stayed, digit by digit.
    before = plain.to_frame()
    after = found.to_frame()
    after = after[after.cell.isin(names(plain))].reset_index(drop=True)
    pd.testing.assert_frame_equal(after.drop(columns="level"), before.drop(columns="level"), check_exact=True)


def test_affinities_and_curves_are_drawn(grid):
    assert len(grid.plot()) == 3
    for name in ("affinity", "concept-noise", "concept-fraction"):
        assert b"</svg>" in (grid.folder / f"{name}.svg").read_bytes()


def test_the_splits_are_counted_beside_the_scores(grid, table):
    rows = [row for row in grid.splits if row["center"] != "all"]
    assert sum(row["patches"] for row in rows) == len(table)


def test_the_saved_record_is_the_same(grid):
    loaded = load_record(grid.folder)
    same_numbers(loaded, grid)
    assert loaded.cells == grid.cells
    assert loaded.patch_level == grid.patch_level
    assert to_json(loaded.to_dict()) == (grid.folder / "record.json").read_text(encoding="utf-8")
    assert list(loaded.to_frame().columns)[-4:] == ["what", "name", "metric", "value"]


def test_what_the_report_draws_lies_beside_it(grid):
    with h5py.File(grid.folder / "embeddings.h5") as file:
        assert "main, vanilla-seed0" in file["features"]
    assert (grid.folder / "context.h5").is_file()
    assert not (grid.folder / "cache").exists()
    run = next(run for run in grid.runs if run.name == "main, vanilla")
    assert (Path(run.checkpoint) / "checkpoint.json").is_file()


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_grid_goes_on_to_the_same_table(plain, study, tmp_path):
    out = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "conceptkit", "guide", "--study", str(study), "--ablate", "count, -center"),
        *("--weightings", "vanilla", "--no-controls", "--seeds", "0,3", "--folds", "2", "--out", str(out)),
        *("--epochs", "2", "--warmup", "1", "--trunk", "8"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finished = []
    until = time.monotonic() + 300
    while not finished and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        finished = list(out.glob("runs/*/run.json"))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    assert 0 < len(finished) < 4
    assert not (out / "record.json").exists()
    # What is left is shared out to processes, which give the same numbers.
    resumed = run_grid(study, **WANTED, controls=False, out=out, engine=Engine(workers=2))
    same_numbers(resumed, plain)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


def test_a_folder_is_extended_by_seeds_and_by_a_model_of_the_same_concepts(plain, study, tmp_path):
    out = tmp_path / "more"
    shutil.copytree(plain.folder, out)
    before = written(out)
    found = run_grid(study, **{**WANTED, "seeds": (0, 3, 5)}, controls=False, out=out)
    assert len(found.runs) == 6
    found = run_grid(study, **{**WANTED, "ablate": "count; count, -center"}, controls=False, out=out)
    assert names(found) == ["main, vanilla", "count, vanilla", "count − center, vanilla"]
    assert {path: time for path, time in written(out).items() if path in before} == before
    assert len(written(out)) == 8
    # The control: a model of another concept would be read for it, and the runs that are there were not.
    refused(
        study, r"holds runs of another grid \(concepts was .*; name another folder", out, ablate="area; count, -center"
    )


def begun(plain, out):
    """A folder that holds the two single tasks, of the plain grid's four runs."""
    shutil.copytree(plain.folder, out)
    for seed in SEEDS:
        shutil.rmtree(out / "runs" / f"count-not-center-vanilla-seed{seed}")
    return out


def test_one_bar_goes_over_the_whole_grid(plain, study, tmp_path):
    told = []
    run_grid(
        study, **WANTED, controls=False, out=begun(plain, tmp_path / "begun"), progress=lambda *of: told.append(of)
    )
    bar = "grid of 4 runs, epochs"
    inside = [k for k, (stage, _, _) in enumerate(told) if stage == bar]
    # Between its first step and its last no other bar is drawn.
    assert inside == list(range(inside[0], inside[-1] + 1))
    steps = [at for stage, at, _ in told if stage == bar]
    assert {of for stage, _, of in told if stage == bar} == {4 * OPTIONS["epochs"]}
    assert steps[0] == 2 * OPTIONS["epochs"]  # the runs that were there are done
    assert steps == sorted(steps)
    assert set(steps) == {4, 5, 6, 7, 8}  # epoch by epoch, where training is in this process


def test_the_bar_advances_by_a_run_as_each_is_finished(plain, study, tmp_path, monkeypatch):
    """As with several processes, of which nothing is heard while they train."""
    out = begun(plain, tmp_path / "begun")

    def trained_elsewhere(job):
        name = folder_name(job.cell, job.seed)
        shutil.copytree(plain.folder / "runs" / name, out / "runs" / name)

    monkeypatch.setattr(grid_training, "train_run", trained_elsewhere)
    told = []
    run_grid(study, **WANTED, controls=False, out=out, progress=lambda *of: told.append(of))
    assert [of for of in told if of[0].startswith("grid of")] == [("grid of 4 runs, epochs", at, 8) for at in (4, 6, 8)]


def test_a_run_that_is_not_in_the_folder_is_a_failure(plain, study, tmp_path, monkeypatch):
    """As with workers of Dask's that see another disk under the folder's path."""
    begun(plain, tmp_path / "elsewhere")
    monkeypatch.setattr(grid_training, "train_run", lambda job: None)
    monkeypatch.setattr(grid_training, "APPEARS_WITHIN", 0.0)
    found = run_grid(study, **WANTED, controls=False, out=tmp_path / "elsewhere")
    assert list(found.failed) == ["count − center, vanilla, seed 0", "count − center, vanilla, seed 3"]
    for why in found.failed.values():
        assert "workers must see that folder under this path" in why
    assert plain.failed == {}  # the control


def test_changed_images_and_weights_are_noticed(tmp_path):
    frame = pd.DataFrame({"patch_id": ["a", "b"], "image": ["a.png", "b.png"]})
    for name in frame.image:
        (tmp_path / name).write_bytes(b"1")
    first = PatchTable(frame, tmp_path).files_digest()
    assert PatchTable(frame, tmp_path).files_digest() == first
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))  # times of change are kept: a study may be moved
    assert PatchTable(frame, tmp_path.with_name("moved")).files_digest() == first
    (tmp_path / "b.png").write_bytes(b"22")
    assert PatchTable(frame, tmp_path).files_digest() != first
    claim(tmp_path, {"images_sha256": first}, {"inception_v3": "a"})
    with pytest.raises(InputError, match=r"another grid \(images_sha256 was"):
        claim(tmp_path, {"images_sha256": "other"}, {"inception_v3": "a"})
    claim(tmp_path, {"images_sha256": first}, {"inception_v3": "a", "resnet50": "b"})  # had been left out before
    claim(tmp_path, {"images_sha256": first}, {"inception_v3": "a"})
    with pytest.raises(InputError, match="weights_sha256 of resnet50 was b, is c"):
        claim(tmp_path, {"images_sha256": first}, {"inception_v3": "a", "resnet50": "c"})


@pytest.mark.long
def test_a_grid_of_two_networks(study, tmp_path, monkeypatch):
    """R1 and R8 with something tiny in ResNet50's place; where its weights cannot be had they are left out."""
    tiny = "mini_inception"
    monkeypatch.setattr(grid_plan, "PAPER_MODELS", {"1": ((), ()), "8": (("count",), ("center",))})
    wanted = {**WANTED, "ablate": "paper", "weightings": ["uncertainty"], "seeds": [0], "controls": False}

    def with_second(name, weights):
        monkeypatch.setattr(grid_plan, "SECOND_NETWORK", {name: ("1", "8")})
        monkeypatch.setattr(grid_request, "_second_networks", lambda ablate, study: ([name], []))
        monkeypatch.setattr(grids, "_weights_of_second", lambda study: weights)

    with_second("resnet18", "random")
    found = run_grid(study, **wanted, out=tmp_path / "two")
    assert [(c.number, c.name, c.model) for c in found.cells] == [
        ("1", "main, uncertainty", tiny),
        ("8", "count − center, uncertainty", tiny),
        ("R1", "main, resnet18, uncertainty", "resnet18"),
        ("R8", "count − center, resnet18, uncertainty", "resnet18"),
    ]
    assert len(found.runs) == 4
    assert found.failed == {}
    assert found.reference(found.cells[3]) == "main, resnet18, uncertainty"
    opened = {run.name: (Path(run.checkpoint) / "checkpoint.json").read_text(encoding="utf-8") for run in found.runs}
    assert {name for name, text in opened.items() if "resnet18" in text} == {c.name for c in found.cells[2:]}
    assert set(json.loads((found.folder / "grid.json").read_text())["networks"]) == {tiny, "resnet18"}
    with_second("resnet18", str(tmp_path / "none.safetensors"))
    found = run_grid(study, **wanted, out=tmp_path / "two")  # where the runs of the first network are kept
    assert [c.number for c in found.cells] == ["1", "8"]
    assert any(
        note.startswith("Models R1 and R8 were left out: ") and "none.safetensors" in note for note in found.notes
    )


def test_a_test_split_with_centers_of_one_class_is_warned_of(table, plain, tmp_path):
    one = table.copy()
    one.loc[(one.split == "internal") & (one.center == "A"), "label"] = "tumor"
    path = write_study(tmp_path / "study", one)
    found = run_grid(path, **{**WANTED, "seeds": [0]}, controls=False, out=tmp_path / "out")
    (note,) = [note for note in found.notes if note.startswith("Split ")]
    assert "internal" in note
    assert "A" in note
    assert not [note for note in plain.notes if note.startswith("Split internal")]  # the control


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_of_dask_train_the_same(plain, study, tmp_path):
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    from distributed import LocalCluster

    shutil.copytree(plain.folder, tmp_path / "dask")
    for path in list((tmp_path / "dask" / "runs").iterdir())[:2]:
        shutil.rmtree(path)
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", local_directory=str(tmp_path)
    ) as cluster:
        engine = Engine("dask", scheduler=cluster.scheduler_address)
        same_numbers(run_grid(study, **WANTED, controls=False, out=tmp_path / "dask", engine=engine), plain)


def test_a_run_that_fails_is_noted_and_takes_no_other_with_it(plain, study, tmp_path, monkeypatch):
    shutil.copytree(plain.folder, tmp_path / "some")
    shutil.rmtree(next((tmp_path / "some" / "runs").glob("count-not-center-vanilla-seed3")))

    def fail(job):
        raise InputError("guide: the loss of main is not finite.")

    monkeypatch.setattr(grid_training, "train_run", fail)
    found = run_grid(study, **WANTED, controls=False, out=tmp_path / "some")
    assert found.failed == {"count − center, vanilla, seed 3": "guide: the loss of main is not finite."}
    assert "count − center, vanilla, seed 3 failed: guide: the loss of main is not finite." in found.notes
    assert len(found.runs) == 3
    with pytest.raises(InputError, match="no run of the grid could be trained: guide: the loss of main"):
        run_grid(study, **WANTED, controls=False, out=tmp_path / "none")


def test_the_command_prints_the_tables_of_a_finished_grid(plain, study):
    arguments = [
        "guide",
        "--study",
        str(study),
        "--ablate",
        "count, -center",
        "--weightings",
        "vanilla",
        "--folds",
        "2",
    ]
    arguments += ["--no-controls", "--seeds", "0,3", "--epochs", "2", "--warmup", "1", "--trunk", "8"]
    arguments += ["--out", str(plain.folder)]
    result = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["schema"] == "conceptkit/grid/1"
    for words in ("Patches by split", "AUC of the main task by network", "count − center", "discouraged"):
        assert words in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0
    assert "count − center, vanilla" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "2"], "workers: goes with a grid; name one by --ablate"),
        (["--weightings", "vanilla"], "weightings: goes with a grid"),
        (["--protocol", "paper"], "protocol: goes with a grid"),
        (["--concept-noise", "a"], "concept-noise: must be numbers separated by commas, got 'a'"),
        (["--ablate", "count", "--engine", "dask"], "scheduler: goes with --engine dask"),
        (["--ablate", "count", "--seeds", "1,1"], "seeds: need at least one and no repeats"),
        (["--affinity", "--encourage", ""], "encourage: curves and affinities need a concept"),
    ],
)
def test_options_that_make_no_grid_are_told(study, tmp_path, arguments, words):
    result = CliRunner().invoke(app, ["guide", "--study", str(study), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transductive"],
        ["--allow-leakage"],
        ["--search", "1"],
        ["--devices", "2"],
        ["--nodes", "2"],
        ["--precision", "bf16"],
        ["--log", "csv"],
        ["--disturb", "blur"],
        ["--seed", "1"],
    ],
    ids=lambda words: words[0],
)
def test_options_of_a_pair_of_networks_are_not_dropped_in_a_grid(study, arguments):
    wanted = ["guide", "--study", str(study), "--ablate", "count", "--dry-run"]
    result = CliRunner().invoke(app, [*wanted, *arguments])
    assert result.exit_code == 2
    name = arguments[0].removeprefix("--")
    assert f"{name}: is for a single pair of networks, not for a grid" in " ".join(result.stderr.split())


def test_the_same_grid_without_them_is_planned(study):
    assert CliRunner().invoke(app, ["guide", "--study", str(study), "--ablate", "count", "--dry-run"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concept-noise", "3"], "concept-noise: must be at most 1"),
        (["--concept-fraction", "0.5,0.5"], "concept-fraction: no level may be given twice"),
        (["--seeds", "1,1"], "seeds: need at least one and no repeats"),
        (["--recipe", "nonsense"], "recipe: 'nonsense' is not known"),
        (["--protocol", "nonsense"], "protocol: 'nonsense' is not known"),
        (["--lr", "0"], "lr: must be above 0"),
        (["--weightings", "nonsense"], "weighting: 'nonsense' is not known"),
        (["--affinity", "--encourage", ""], "encourage: curves and affinities need a concept"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "run"])
def test_a_dry_run_refuses_what_the_run_refuses(study, tmp_path, arguments, words, dry):
    wanted = ["guide", "--study", str(study), "--ablate", "count", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*wanted, *arguments, *dry])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(study, words, out, **changes):
    with pytest.raises(InputError, match=words):
        run_grid(study, **{**WANTED, **changes}, out=out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ablate": "count; counts"}, "ablate: the table has no column 'counts'; near names: count"),
        ({"ablate": "count; count"}, "ablate: count given more than once"),
        ({"ablate": "count, -count"}, "ablate: count given more than once"),
        ({"ablate": "label"}, "encourage and discourage: label is the main task itself"),
        ({"ablate": " ; main"}, "ablate: no model is named in ' ; main'"),
        ({"ablate": "study"}, "ablate: the study names no models"),
        ({"seeds": [1, 1]}, r"seeds: need at least one and no repeats, got \[1, 1\]"),
        ({"seeds": []}, "seeds: need at least one and no repeats"),
        ({"weightings": ["vanila"]}, "weighting: 'vanila' is not known; near names: vanilla"),
        ({"weightings": ["vanilla,counts=fixed:1"]}, "weightings: there is no task 'counts'; near names: count"),
        ({"weightings": []}, "weightings: at least one is needed"),
        ({"noise": [1.5]}, "concept-noise: must be at most 1, got 1.5"),
        ({"fraction": [0.0]}, "concept-fraction: must be above 0, got 0"),
        ({"ablate": "count, -latent:3"}, "ablate: latent:3 is proposed for a single pair of networks, not in a grid"),
        (
            {"discourage": ["latent:3"], "encourage": ["count"], "noise": [0.5]},
            "latent:3 is proposed for a single pair",
        ),
        ({"fraction": [0.1, 0.1]}, "concept-fraction: no level may be given twice, got 0.1, 0.1"),
        ({"protocol": "patches"}, "protocol: 'patches' is not known"),
        ({"within": ["count"]}, "within: count must be categorical"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(study, tmp_path, changes, words):
    refused(study, words, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_split_without_positives_is_told(table, tmp_path):
    one = table.copy()
    one.loc[one.split == "external", "label"] = "normal"
    path = write_study(tmp_path / "study", one)
    refused(path, "label: label needs two classes in split 'external', there is only 'normal'", tmp_path / "out")


def test_the_folder_of_another_study_options_or_version_is_left_as_it_is(plain, table, study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*") if path.is_file()}
    changed = table.copy()
    changed.loc[0, "count"] += 1
    other = write_study(tmp_path / "study", changed)
    refused(other, "holds runs of another grid \\(table_sha256 was .*; name another folder", plain.folder)
    refused(study, "\\(epochs was 2, is 3\\)", plain.folder, options={**OPTIONS, "epochs": 3})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.copytree(plain.folder, tmp_path / "old")
    body = json.loads((tmp_path / "old" / "grid.json").read_text(encoding="utf-8"))
    (tmp_path / "old" / "grid.json").write_text(json.dumps({**body, "conceptkit": "0.0.1"}), encoding="utf-8")
    refused(study, "another grid \\(conceptkit was 0.0.1, is ", tmp_path / "old")
    (tmp_path / "old" / "grid.json").write_text(json.dumps({**body, "schema": "conceptkit/grid-folder/0"}))
    refused(study, "holds a grid of another version", tmp_path / "old")
    (tmp_path / "old" / "grid.json").unlink()
    refused(study, "holds an earlier run, which is no grid", tmp_path / "old")


def test_a_run_that_cannot_be_read_is_named(plain, study, tmp_path):
    shutil.copytree(plain.folder, tmp_path / "broken")
    path = next((tmp_path / "broken" / "runs").glob("*/run.json"))
    path.write_text("{", encoding="utf-8")
    refused(
        study, f"{path.parent.name} cannot be read .*; remove it to train the run again", tmp_path / "broken", controls=False
    )


def test_two_processes_on_one_grid_are_told(plain, study):
    with held(plain.folder):
        refused(study, "out: another process works on .*; wait for it or name another folder", plain.folder)
    run_grid(study, **WANTED, controls=False, out=plain.folder)  # the control: it is let go of


def test_a_checkpoint_is_no_start_of_a_grid(plain, study, tmp_path):
    checkpoint = next(run.checkpoint for run in plain.runs)
    refused(study, "model: a grid starts from a plain network", tmp_path / "out", model=checkpoint)


# --- the small network -------------------------------------------------------------------------------------------


def test_columns_become_inputs_by_the_training_rows_measure():
    values = np.array([1.0, 3.0, np.nan, 100.0])
    words = np.array(["a", "b", None, "z"], dtype=object)
    train = np.array([0, 1, 2])
    X = design([Column("continuous", values), Column("categorical", words)], train)
    assert X[:, 0] == pytest.approx([-1, 1, 0, 98])
    assert X[:, 1].tolist() == [0, 0, 1, 0]
    assert X[:, 2:].tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_the_small_network_learns_what_is_no_line():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = fit_concept_network(x, y, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    assert roc_auc_score(y[400:], found[400:]) > 0.95
    again = fit_concept_network(x, y, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    assert np.array_equal(found, again)
    spoiled = y.copy()
    spoiled[400:] = -1  # rows beyond training and validation have no say
    assert np.array_equal(
        found, fit_concept_network(x, spoiled, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    )
