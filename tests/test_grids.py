"""Grids: their controls, their tables, and that an interrupted one is resumed with the same result."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from recorded_options import forgotten
from sklearn.metrics import roc_auc_score
from small_study import write_study
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands import grid as grids
from conceptkit.errors import InputError
from conceptkit.files.atomic import held
from conceptkit.grid import plan as grid_plan
from conceptkit.grid import request as grid_request
from conceptkit.grid import run as grid_run
from conceptkit.grid import training as grid_training
from conceptkit.grid.folder import claim
from conceptkit.grid.plan import folder_name
from conceptkit.options.grid import Grid
from conceptkit.records import load_record, to_json
from conceptkit.tables.patches import PatchTable

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,)}
SEEDS = (0, 3)
WANTED = {"ablate": "count, -center", **OPTIONS, "weightings": ["vanilla"], "seeds": SEEDS, "folds": 2}


@pytest.fixture(scope="module")
def grid(study, tmp_path_factory):
    """A grid with all controls and both curves."""
    return ck.Grid(**WANTED, noise=[0.5], fraction=[0.5], affinity=True, protocol="paper").run(
        study, out=tmp_path_factory.mktemp("grids") / "all"
    )


@pytest.fixture(scope="module")
def plain(study, tmp_path_factory):
    """The least grid, uninterrupted."""
    return ck.Grid(**WANTED, controls=False).run(study, out=tmp_path_factory.mktemp("grids") / "plain")


def names(record):
    return [cell.name for cell in record.cells]


def same_numbers(one, other):
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame(), check_exact=True)
    assert one.differences == other.differences


# --- which networks ----------------------------------------------------------------------------------------------


def test_all_cells_are_there_with_their_controls(grid):
    assert names(grid) == [
        "main, vanilla",
        "main balanced by center, vanilla",
        "count − center, vanilla",
        "main, uncertainty",
        "random target, vanilla",
        "count shuffled, vanilla",
        "confounder only: center",
        "count, noise 0.5, vanilla",
        "multimodal: main with count as input, noise 0.5, vanilla",
        "count − center, fraction 0.5, vanilla",
    ]
    assert [c.control for c in grid.cells][1:7] == [
        "balanced",
        "",
        "baseline",
        "random",
        "shuffled",
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


def test_tables_4_to_6_are_those_of_the_runs(grid):
    table4, table5, table6 = grid.table4(), grid.table5(), grid.table6()
    assert list(table4.cell) == names(grid)
    own = [run.metrics["external"]["auc"] for run in grid.runs if run.name == "count − center, vanilla"]
    row = table4.set_index("cell").loc["count − center, vanilla"]
    assert row["external"] == pytest.approx(np.mean(own))
    assert row["external sd"] == pytest.approx(np.std(own, ddof=1))
    base = table4.set_index("cell").loc["main balanced by center, vanilla", "external"]
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
        *(("count", "probe"), ("count", "head"), ("center", "linear"), ("center", "mlp"), ("center", "kernel")),
    }
    assert set(read[read.concept == "center"].role) == {"discouraged"}


def test_each_cell_is_compared_with_the_single_task_of_its_weighting_and_with_vanilla(grid):
    pairs = {(d.run, d.against) for d in grid.differences}
    assert ("count − center, vanilla", "main balanced by center, vanilla") in pairs
    assert ("main, uncertainty", "main, vanilla") in pairs
    assert ("confounder only: center", "main, vanilla") in pairs
    assert not [pair for pair in pairs if pair[0] == "main, vanilla"]


def test_the_papers_protocol_is_labelled_as_patch_level(grid):
    assert {p.resamples for p in grid.patch_level} == {50}
    assert {p.split for p in grid.patch_level} == {"internal", "external", "overall"}
    assert any("does not describe new patients" in note for note in grid.notes)


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
    settings = load_record(plain.folder).settings
    assert forgotten(Grid, settings) == set()
    assert ck.from_settings(settings) == Grid(**WANTED, controls=False, **resolved(settings))


def resolved(settings):
    """What a grid takes from its study and its recipe, as its settings state it."""
    given = {*WANTED, "controls", "weighting"}
    return {name: value for name, value in settings.items() if name in Grid().settings() and name not in given}


@pytest.mark.long
def test_a_multimodal_control_builds_on_the_single_task_of_its_own_weighting(plain, study, tmp_path, monkeypatch):
    shutil.copytree(plain.folder, tmp_path / "two")
    read = []

    def noted(folder, cell, seed, load=grid_run.load_run):
        read.append(cell.name)
        return load(folder, cell, seed)

    monkeypatch.setattr(grid_run, "load_run", noted)
    wanted = {**WANTED, "weightings": ["vanilla", "uncertainty"], "noise": [0.5], "controls": False}
    found = ck.Grid(**wanted).run(study, out=tmp_path / "two")
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
    assert len(grid.plot().subfigs) == 4  # differences, affinities and two curves
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
    assert 0 < len(finished) < 6
    assert not (out / "record.json").exists()
    # What is left is shared out to processes, which give the same numbers.
    resumed = ck.Grid(**WANTED, controls=False, workers=2).run(study, out=out)
    same_numbers(resumed, plain)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


def test_a_folder_is_extended_by_seeds_and_by_a_model_of_the_same_concepts(plain, study, tmp_path):
    out = tmp_path / "more"
    shutil.copytree(plain.folder, out)
    before = written(out)
    found = ck.Grid(**{**WANTED, "seeds": (0, 3, 5)}, controls=False).run(study, out=out)
    assert len(found.runs) == 9
    found = ck.Grid(**{**WANTED, "ablate": "count; count, -center"}, controls=False).run(study, out=out)
    balanced = "main balanced by center, vanilla"
    assert names(found) == ["main, vanilla", "count, vanilla", balanced, "count − center, vanilla"]
    assert {path: time for path, time in written(out).items() if path in before} == before
    assert len(written(out)) == 11
    # The control: a model of another concept would be read for it, and the runs that are there were not.
    refusal = r"holds runs of another grid \(concepts was .*; name another folder"
    refused(study, refusal, out, ablate="area; count, -center")


def begun(plain, out):
    """A folder that holds the single tasks, four of the plain grid's six runs."""
    shutil.copytree(plain.folder, out)
    for seed in SEEDS:
        shutil.rmtree(out / "runs" / f"count-not-center-vanilla-seed{seed}")
    return out


def test_one_bar_goes_over_the_whole_grid(plain, study, tmp_path):
    told = []
    out = begun(plain, tmp_path / "begun")
    ck.Grid(**WANTED, controls=False).run(study, out=out, progress=lambda *of: told.append(of))
    bar = "grid of 6 runs, epochs"
    inside = [k for k, (stage, _, _) in enumerate(told) if stage == bar]
    # Between its first step and its last no other bar is drawn.
    assert inside == list(range(inside[0], inside[-1] + 1))
    steps = [at for stage, at, _ in told if stage == bar]
    assert {of for stage, _, of in told if stage == bar} == {6 * OPTIONS["epochs"]}
    assert steps[0] == 4 * OPTIONS["epochs"]  # the runs that were there are done
    assert steps == sorted(steps)
    assert set(steps) == {8, 9, 10, 11, 12}  # epoch by epoch, where training is in this process


def test_the_bar_advances_by_a_run_as_each_is_finished(plain, study, tmp_path, monkeypatch):
    """As with several processes, of which nothing is heard while they train."""
    out = begun(plain, tmp_path / "begun")

    def trained_elsewhere(job):
        name = folder_name(job.cell, job.seed)
        shutil.copytree(plain.folder / "runs" / name, out / "runs" / name)

    monkeypatch.setattr(grid_training, "train_run", trained_elsewhere)
    told = []
    ck.Grid(**WANTED, controls=False).run(study, out=out, progress=lambda *of: told.append(of))
    bar = "grid of 6 runs, epochs"
    assert [of for of in told if of[0].startswith("grid of")] == [(bar, at, 12) for at in (8, 10, 12)]


def test_a_run_that_is_not_in_the_folder_is_a_failure(plain, study, tmp_path, monkeypatch):
    """As with workers of Dask's that see another disk under the folder's path."""
    begun(plain, tmp_path / "elsewhere")
    monkeypatch.setattr(grid_training, "train_run", lambda job: None)
    monkeypatch.setattr(grid_training, "APPEARS_WITHIN", 0.0)
    found = ck.Grid(**WANTED, controls=False).run(study, out=tmp_path / "elsewhere")
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
    found = ck.Grid(**wanted).run(study, out=tmp_path / "two")
    assert [(c.number, c.name, c.model) for c in found.cells] == [
        ("1", "main, uncertainty", tiny),
        ("", "main balanced by center, uncertainty", tiny),
        ("8", "count − center, uncertainty", tiny),
        ("R1", "main, resnet18, uncertainty", "resnet18"),
        ("", "main balanced by center, uncertainty, resnet18", "resnet18"),
        ("R8", "count − center, resnet18, uncertainty", "resnet18"),
    ]
    assert len(found.runs) == 6
    assert found.failed == {}
    assert found.reference(found.cells[5]) == "main balanced by center, uncertainty, resnet18"
    opened = {run.name: (Path(run.checkpoint) / "checkpoint.json").read_text(encoding="utf-8") for run in found.runs}
    assert {name for name, text in opened.items() if "resnet18" in text} == {c.name for c in found.cells[3:]}
    assert set(json.loads((found.folder / "grid.json").read_text())["networks"]) == {tiny, "resnet18"}
    with_second("resnet18", str(tmp_path / "none.safetensors"))
    found = ck.Grid(**wanted).run(study, out=tmp_path / "two")  # where the runs of the first network are kept
    assert [c.number for c in found.cells] == ["1", "", "8"]
    skipped = "Models R1 and R8 were skipped: "
    assert any(note.startswith(skipped) and "none.safetensors" in note for note in found.notes)


def test_a_test_split_with_centers_of_one_class_is_warned_of(table, plain, tmp_path):
    one = table.copy()
    one.loc[(one.split == "internal") & (one.center == "A"), "label"] = "tumor"
    path = write_study(tmp_path / "study", one)
    found = ck.Grid(**{**WANTED, "seeds": [0]}, controls=False).run(path, out=tmp_path / "out")
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
        engine = {"engine": "dask", "scheduler": cluster.scheduler_address}
        same_numbers(ck.Grid(**WANTED, controls=False, **engine).run(study, out=tmp_path / "dask"), plain)


def test_a_run_that_fails_is_noted_and_takes_no_other_with_it(plain, study, tmp_path, monkeypatch):
    shutil.copytree(plain.folder, tmp_path / "some")
    shutil.rmtree(next((tmp_path / "some" / "runs").glob("count-not-center-vanilla-seed3")))

    def fail(job):
        raise InputError("guide: the loss of main is not finite.")

    monkeypatch.setattr(grid_training, "train_run", fail)
    found = ck.Grid(**WANTED, controls=False).run(study, out=tmp_path / "some")
    assert found.failed == {"count − center, vanilla, seed 3": "guide: the loss of main is not finite."}
    assert "count − center, vanilla, seed 3 failed: guide: the loss of main is not finite." in found.notes
    assert len(found.runs) == 5
    with pytest.raises(InputError, match="no run of the grid could be trained: guide: the loss of main"):
        ck.Grid(**WANTED, controls=False).run(study, out=tmp_path / "none")


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


def refused(study, words, out, **changes):
    with pytest.raises(InputError, match=words):
        ck.Grid(**{**WANTED, **changes}).run(study, out=out)


def test_the_folder_of_another_study_options_or_version_is_left_as_it_is(plain, table, study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*") if path.is_file()}
    changed = table.copy()
    changed.loc[0, "count"] += 1
    other = write_study(tmp_path / "study", changed)
    refused(other, "holds runs of another grid \\(table_sha256 was .*; name another folder", plain.folder)
    refused(study, "\\(epochs was 2, is 3\\)", plain.folder, epochs=3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.copytree(plain.folder, tmp_path / "old")
    body = json.loads((tmp_path / "old" / "grid.json").read_text(encoding="utf-8"))
    (tmp_path / "old" / "grid.json").write_text(json.dumps({**body, "conceptkit": "0.0.1"}), encoding="utf-8")
    refused(study, "another grid \\(conceptkit was 0.0.1, is ", tmp_path / "old")
    (tmp_path / "old" / "grid.json").write_text(json.dumps({**body, "schema": "conceptkit/grid-folder/0"}))
    refused(study, "holds a grid of another version", tmp_path / "old")
    (tmp_path / "old" / "grid.json").unlink()
    refused(study, "holds an earlier run that is not a grid", tmp_path / "old")


def test_a_run_that_cannot_be_read_is_named(plain, study, tmp_path):
    shutil.copytree(plain.folder, tmp_path / "broken")
    path = next((tmp_path / "broken" / "runs").glob("*/run.json"))
    path.write_text("{", encoding="utf-8")
    refused(
        study,
        f"{path.parent.name} cannot be read .*; remove it to train the run again",
        tmp_path / "broken",
        controls=False,
    )


def test_two_processes_on_one_grid_are_told(plain, study):
    with held(plain.folder):
        refused(study, "out: process .* works on .*; wait for it", plain.folder)
    ck.Grid(**WANTED, controls=False).run(study, out=plain.folder)  # the control: it is let go of


def test_a_checkpoint_is_no_start_of_a_grid(plain, study, tmp_path):
    checkpoint = next(run.checkpoint for run in plain.runs)
    refused(study, "model: a grid starts from a plain network", tmp_path / "out", model=checkpoint)


# --- the small network -------------------------------------------------------------------------------------------
