"""Jobs on processes and on Dask: errors stay with their job, and a killed worker loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from conceptkit.commands.measure import run_measure
from conceptkit.commands.tile import run_tile
from conceptkit.errors import InputError
from conceptkit.jobs import Engine, run_jobs


def square(number):
    if number == 3:
        raise InputError("number: 3 is not wanted.")
    if number == 4:
        raise KeyError("four\nlines")
    return number**2


def die_once(job):
    """Kill the own process the first time; the mark tells the second."""
    number, mark = job
    if mark is not None and not Path(mark).exists():
        Path(mark).write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number


def die(job):
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def note_and_sleep(folder):
    (Path(folder) / f"{os.getpid()}.pid").write_text("")
    time.sleep(120)


def results(function, jobs, engine):
    return {o.index: o for o in run_jobs(function, jobs, engine)}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_stay_with_their_job(workers):
    found = results(square, list(range(6)), Engine(workers=workers))
    assert {k: o.result for k, o in found.items()} == {0: 0, 1: 1, 2: 4, 3: None, 4: None, 5: 25}
    assert found[3].error == "number: 3 is not wanted."
    assert found[4].error == "failed with KeyError: 'four\\nlines'"
    assert results(square, [], Engine(workers=workers)) == {}


def test_a_killed_process_loses_nothing(tmp_path):
    jobs = [(k, str(tmp_path / "mark") if k == 2 else None) for k in range(8)]
    found = results(die_once, jobs, Engine(workers=2))
    assert {k: o.result for k, o in found.items()} == {k: k for k in range(8)}
    assert (tmp_path / "mark").exists()  # control: it did die


def test_a_job_that_always_kills_is_given_up_alone():
    found = results(die, list(range(4)), Engine(workers=2))
    assert {k: o.result for k, o in found.items()} == {0: 0, 1: None, 2: 2, 3: 3}
    assert "took down its worker 3 times" in found[1].error


def test_workers_end_with_a_killed_command(tmp_path):
    """A command that is killed leaves no workers behind, which would go on with what nobody waits for."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_engines as t\n"
        "if __name__ == '__main__':\n"
        "    list(t.run_jobs(t.note_and_sleep, [sys.argv[2]] * 2, t.Engine(workers=2)))\n"
    )
    script = tmp_path / "command.py"
    script.write_text(code)
    command = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)])
    until = time.monotonic() + 60
    while len(pids := [int(p.stem) for p in tmp_path.glob("*.pid")]) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(pids) == 2
    command.kill()
    command.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_engines_are_named_rightly():
    with pytest.raises(InputError, match="engine: 'cluster' is not known"):
        Engine("cluster")
    with pytest.raises(InputError, match="scheduler: must be given with --engine dask"):
        Engine("dask")
    with pytest.raises(InputError, match="scheduler: must be given with --engine dask"):
        Engine(scheduler="tcp://x:1")
    with pytest.raises(InputError, match="workers: must be at least 1"):
        Engine(workers=0)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_dask_worker_loses_nothing(tmp_path):
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", local_directory=str(tmp_path)
    ) as cluster:
        jobs = [(k, str(tmp_path / "mark") if k == 2 else None) for k in range(10)]
        found = results(die_once, jobs, Engine("dask", scheduler=cluster.scheduler_address))
    assert {k: o.result for k, o in found.items()} == {k: k for k in range(10)}
    assert (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tile_and_measure_on_a_cluster_that_loses_a_worker(shared_data, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    from distributed import LocalCluster

    slides = tmp_path / "slides"
    slides.mkdir()
    for k in range(4):
        shutil.copy(shared_data / "wsi" / "cmu-1-small-region.svs", slides / f"s{k}.svs")
    names, options, killed = ["contrast", "lab_l"], {"export": "h5", "size": 448}, []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", local_directory=str(tmp_path / "w")
    ) as cluster:
        monkeypatch.chdir(tmp_path)  # after the workers began: they stand in another folder
        dask = {"engine": "dask", "scheduler": cluster.scheduler_address}

        def kill(stage, done, total):
            if done >= 1 and stage not in killed and done < total:
                killed.append(stage)
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

        monkeypatch.setattr("conceptkit.commands.tile.same_slides", lambda paths, facts: {})  # copies count here
        tiled = run_tile(["slides"], out="many.csv", progress=kill, **options, **dask)
        measured = run_measure("many.csv", out="measured.csv", names=names, progress=kill, **dask)
    assert killed == ["cutting slides", "measuring patches"]  # control: a worker did die in each
    assert tiled.skipped == measured.skipped == ()
    assert not (tmp_path / "many.csv.parts").exists()
    whole = run_tile([slides / "s0.svs"], out=tmp_path / "alone.csv", **options).table
    expected = run_measure(tmp_path / "alone.csv", out=tmp_path / "m.csv", names=names).table[names]
    for k in range(4):
        rows = measured.table[measured.table["group"] == f"s{k}"]
        assert len(rows) == len(whole)
        pd.testing.assert_frame_equal(rows[names].reset_index(drop=True), expected)


def test_a_scheduler_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("conceptkit.jobs._TIMEOUT", "1s")
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    with pytest.raises(InputError, match="scheduler: nowhere-at-all:1 does not answer"):
        results(square, [1], Engine("dask", scheduler="nowhere-at-all:1"))
