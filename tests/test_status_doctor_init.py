"""The three commands around a study: begin it, watch it, and see what the installation can do."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from report_records import grid_record, guide_record, probe_record, saved
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit import jobs as engines
from conceptkit.cli import app
from conceptkit.commands import doctor
from conceptkit.commands.init import start_study
from conceptkit.commands.status import read_status
from conceptkit.errors import InputError
from conceptkit.grid.folder import note_plan


def call(*arguments: object) -> tuple[int, dict, str]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "-"])
    body = json.loads(result.stdout) if result.stdout else {}
    return result.exit_code, body, result.stderr


# --- init --------------------------------------------------------------------------------------------------------


def patches(folder: Path, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"image": ["a.png", "b.png"], "patient": ["p", "q"], "label": ["normal", "tumor"], "count": [3.5, 4.25]}
    pd.DataFrame({**rows, **columns}).to_csv(folder / "patches.csv", index=False)
    return folder


def test_init_writes_a_study_that_loads(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ name'
    folder = patches(tmp_path / "study", center=["C1", "C2"], split=["train", "test"], **{odd: [1.5, 2.5]})
    code, body, said = call("init", folder)
    assert code == 0
    assert body["schema"] == "conceptkit/init/1"
    assert body["table"] == "patches.csv"
    assert "no value of the column split stands for val" in said
    study = ck.load_study(folder)
    assert study.group == "patient"
    assert study.label == "label"
    assert study.concepts == ("count", odd)
    assert "center is not in the list for probe. concept: center has the class 'C1' in one group only" in said
    assert study.splits.train == "train"
    assert study.splits.read == "test"
    text = (folder / "conceptkit.toml").read_text()
    assert '# discourage = ["center"]' in text
    assert tomllib.loads(text.replace("# discourage", "discourage"))["concepts"]["discourage"] == ["center"]


def test_what_init_writes_can_be_probed(tmp_path: Path) -> None:
    """A center of one patient, and a column that does not vary, would stop the probe of all others."""
    rows = range(12)
    columns = {
        "image": [f"{i}.png" for i in rows],
        "patient": [f"p{i // 2}" for i in rows],
        "label": ["normal", "tumor"] * 6,
        "count": [float(i % 5) for i in rows],
        "center": ["A", "A", "B", "B"] * 3,
        "scanner": ["one" if i < 2 else "two" for i in rows],
        "flat": [1.5] * 12,
    }
    patches(tmp_path, **columns)
    started = start_study(tmp_path)
    assert ck.load_study(tmp_path).concepts == ("count", "center")
    left_out = [note for note in started.notes if "not in the list for probe" in note]
    assert [note.split()[0] for note in left_out] == ["flat", "scanner"]


def test_init_says_what_is_missing(tmp_path: Path) -> None:
    folder = patches(tmp_path)
    pd.read_csv(folder / "patches.csv").drop(columns=["patient", "label"]).to_csv(folder / "patches.csv", index=False)
    notes = " ".join(start_study(folder).notes)
    assert "no column of patients" in notes
    assert "no column holds the main label" in notes
    assert "no split column" in notes
    assert ck.load_study(folder).group is None


def test_init_without_a_table_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").touch()
    (tmp_path / "clinical.csv").write_text("age\n3\n")
    started = start_study(tmp_path)
    assert started.table is None
    said = " ".join(started.notes)
    assert "conceptkit tile slides/*.svs --tile-mpp 0.5 --out tiles.csv" in said
    assert "clinical.csv does not say where pixels are" in said
    assert tomllib.loads((tmp_path / "conceptkit.toml").read_text())["table"] == "patches.csv"


def small_slides(folder: Path, embedded: ck.Study) -> None:
    """Write six slides of four tiles each, of synthetic tissue at half a micron per pixel."""
    folder.mkdir()
    table = embedded.load_table()
    for k in range(6):
        pixels = [table.pixels(32 * k + i) for i in range(25)]
        glass = np.concatenate([np.concatenate(pixels[i : i + 5], axis=1) for i in range(0, 25, 5)])
        scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / f"case-{k}.tif", glass[:448, :448], tile=(64, 64), photometric="rgb", **scale)


def test_the_steps_of_init_lead_from_slides_to_a_probe(
    tmp_path: Path, embedded: ck.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_slides(tmp_path / "slides", embedded)
    monkeypatch.chdir(tmp_path)
    steps = [note.removeprefix("next: ") for note in start_study(".").notes if note.startswith("next: ")]
    assert [step.split()[1] for step in steps] == ["tile", "measure"]
    quick = ["--layer", "mixed2", "--model", "mini_inception", "--weights", "bundled", "--permutations", "9"]
    for words in (*(step.split()[1:] for step in steps), ["probe", *quick, "--out", "run"]):
        named = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        if words[0] != "probe":
            named += ["--workers", "1"]
        result = CliRunner().invoke(app, named)
        assert result.exit_code == 0, result.output
    record = ck.load_record("run")
    assert record.group == "group"
    assert {row.concept for row in record.rows} == {"count", "area_px", "contrast", "correlation"}
    assert {row.n_groups for row in record.rows} == {6}


def test_init_never_overwrites_and_does_not_choose_between_tables(tmp_path: Path) -> None:
    folder = patches(tmp_path / "a")
    start_study(folder)
    with pytest.raises(InputError, match="exists already"):
        start_study(folder)
    other = patches(tmp_path / "b")
    (other / "more.csv").write_bytes((other / "patches.csv").read_bytes())
    with pytest.raises(InputError, match=r"more\.csv, patches\.csv could all be the patch table"):
        start_study(other)
    assert start_study(other, table=other / "more.csv").table == "more.csv"
    with pytest.raises(InputError, match="is a file; name a folder"):
        start_study(other / "more.csv")


# --- status ------------------------------------------------------------------------------------------------------


def test_a_finished_run_of_each_kind(tmp_path: Path) -> None:
    for record, kind, done, total in (
        (probe_record(), "probe", 28, 28),
        (guide_record(seeds=(0, 1)), "guide", 4, 4),
        (grid_record(), "grid", 8, 9),
    ):
        found = read_status(saved(record, tmp_path / kind))
        assert (found.state, found.kind, found.done, found.total) == ("finished", kind, done, total)
    assert found.failed == {"8 vanilla-seed0": "its loss was not finite"}


def test_a_grid_that_is_worked_on_and_one_that_was_killed(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    run = tmp_path / "grid"
    (run / "runs" / "a-seed0").mkdir(parents=True)
    (run / "runs" / ".b-seed0.123").mkdir()
    (run / "grid.json").write_text("{}")
    (run / "runs" / "a-seed0" / "run.json").write_text("{}")
    log = run / "runs" / ".b-seed0.123" / "logs" / "csv" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step,train/main,val/main\n1,1,0.7,0.8\n2,2,0.5,0.6\n3,3,0.4")
    with (run / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        found = read_status(run)
        assert (found.state, found.kind, found.done) == ("running", "grid", 1)
        assert "1 in training" in found.notes
        assert found.trainings[0].epoch == 3
        assert found.trainings[0].losses["val/main"] == 0.6  # of the last whole line
    stopped = read_status(run)
    assert stopped.state == "stopped"
    assert stopped.total is None  # of a version that noted no plan
    assert any("to continue" in note for note in stopped.notes)
    code, body, said = call("status", run)
    assert code == 0
    assert body["schema"] == "conceptkit/status/1"
    assert "epoch 3" in said


def test_a_grid_says_how_many_runs_are_left_and_for_how_long(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    note_plan(tmp_path, 7)
    (tmp_path / "grid.json").write_text("{}")
    began = time.time() - 1200
    os.utime(tmp_path / "plan.json", (began, began))
    with (tmp_path / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert read_status(tmp_path).minutes_left is None  # no run to judge by
        for name, minutes in (("earlier", -60), ("a", 4), ("b", 10)):
            kept = tmp_path / "runs" / f"{name}-seed0" / "run.json"
            kept.parent.mkdir(parents=True)
            kept.write_text("{}")
            os.utime(kept, (began + 60 * minutes,) * 2)
        found = read_status(tmp_path)
        assert (found.done, found.total, found.unit) == (3, 7, "runs")
        assert found.minutes_left == pytest.approx(10 / 2 * 4)  # the earlier command's run does not count for speed
        assert "3 of 7 runs finished, about 20 minutes left" in call("status", tmp_path)[2]
    (tmp_path / "plan.json").write_text("{")
    stopped = read_status(tmp_path)
    assert (stopped.state, stopped.total, stopped.minutes_left) == ("stopped", None, None)


def test_a_guide_run_without_a_lock_goes_by_the_clock(tmp_path: Path) -> None:
    kept = tmp_path / "checkpoints" / "baseline-seed0"
    kept.mkdir(parents=True)
    (kept / "checkpoint.json").write_text("{}")
    assert read_status(tmp_path).state == "running"
    long_ago = time.time() - 3600
    os.utime(kept / "checkpoint.json", (long_ago, long_ago))
    assert read_status(tmp_path).state == "stopped"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert read_status(empty).state == "empty"
    with pytest.raises(InputError, match="there is no folder"):
        read_status(tmp_path / "nowhere")


def test_a_run_that_has_written_nothing_but_holds_its_folder_is_running(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert read_status(tmp_path).state == "running"
    assert read_status(tmp_path).state == "empty"  # the control: the lock of a process that was killed is free


def test_a_guide_run_counts_the_trainings_that_have_begun(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    states = tmp_path / "unfinished"
    states.mkdir()
    for name in ("baseline-seed0-0123abcd", "guided-seed0-0123abcd"):
        (states / f"{name}.ckpt").touch()
    with (tmp_path / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        found = read_status(tmp_path)
        assert (found.state, found.kind, found.done, found.notes) == ("running", "guide", 0, ("2 in training",))
        kept = tmp_path / "checkpoints" / "baseline-seed0" / "checkpoint.json"
        kept.parent.mkdir(parents=True)
        kept.write_text("{}")
        assert read_status(tmp_path).notes == ("1 in training",)  # a state is kept beside its checkpoint until the end
    stopped = read_status(tmp_path)
    assert (stopped.state, stopped.done) == ("stopped", 1)
    assert f"run the same command with --out {tmp_path} to continue" in stopped.notes


def test_stores_and_tiles(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "store.h5", "w") as file:
        file["state"] = np.array([1, 1, 0, 1], dtype=np.uint8)
    found = read_status(tmp_path / "store.h5")
    assert (found.kind, found.done, found.total, found.state) == ("store", 3, 4, "running")
    parts = tmp_path / "tiles.csv.parts"
    parts.mkdir()
    (parts / "a.parquet").touch()
    assert (read_status(tmp_path / "tiles.csv").kind, read_status(tmp_path / "tiles.csv").done) == ("tiles", 1)
    parts = tmp_path / "measured.csv.parts"
    parts.mkdir()
    for name, rows in (("a", 64), ("b", 10)):
        pd.DataFrame({"count": np.zeros(rows)}).to_parquet(parts / f"{name}.parquet")
    measuring = read_status(tmp_path / "measured.csv")
    assert (measuring.kind, measuring.done, measuring.unit) == ("measures", 74, "patches")
    parts = tmp_path / "tiled.csv.parts"
    parts.mkdir()
    pd.DataFrame({"x": np.zeros(9), "side": 224}).to_parquet(parts / "a.parquet")
    tiling = read_status(tmp_path / "tiled.csv")
    assert (tiling.kind, tiling.done, tiling.unit) == ("tiles", 1, "slides")
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    with pytest.raises(InputError, match="is not an activation store"):
        read_status(tmp_path / "other.h5")


# --- doctor ------------------------------------------------------------------------------------------------------


def test_doctor_finds_this_installation_usable() -> None:
    code, body, said = call("doctor", "--offline")
    assert (code, body["usable"]) == (0, True), said
    names = [finding["name"] for finding in body["findings"]]
    assert {"Python", "packages", "torch", "CUDA", "OpenSlide", "cache folder", "dask"} <= set(names)
    assert "hub" not in names  # told to stay offline
    for finding in body["findings"]:
        if finding["state"] != "good":
            assert finding["disables"] or finding["found"]


def test_processors_are_counted_where_the_system_knows_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.usable_processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert engines.usable_processors() == 7
    assert doctor._processors().found.startswith("7 usable")
    run = engines.run_jobs(abs, [-1], engines.Engine(name="processes"))  # counts its workers itself
    assert [outcome.result for outcome in run] == [1]


def test_doctor_says_what_is_missing_without_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor.importlib.metadata.version

    def without(name: str) -> str:
        if name == "torchjd":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without)
    finding = next(f for f in doctor.examine(offline=True).findings if f.name == "torchjd")
    assert finding.state == "less"
    assert "--weighting" in finding.disables
    assert "conceptkit[jd]" in finding.remedy


def test_doctor_tells_what_a_broken_library_disables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    finding = doctor._openslide()
    assert finding.state == "less"
    assert "whole slides" in finding.disables

    def broken() -> doctor.Finding:
        raise RuntimeError("libfoo.so: cannot open")

    monkeypatch.setattr(doctor, "_torch", broken)
    code, body, said = call("doctor", "--offline")
    assert code == 1
    assert not body["usable"]
    assert "libfoo.so" in said


def test_doctor_says_when_the_hub_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = doctor._hub()
    assert finding.state == "less"
    assert "downloading weights" in finding.disables


def test_init_takes_a_column_slide_alone_for_no_table_and_folders_for_classes(tmp_path):
    for name in ("tumor/1.tif", "stroma/1.tif"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "index.csv").write_text("file,slide\ntumor/1.tif,A\n")
    started = start_study(tmp_path)
    assert started.table is None
    assert any("conceptkit adapt classes" in note for note in started.notes)
    assert any(note.startswith("index.csv does not say where pixels are") for note in started.notes)
