"""What benchmarks/hard_use.py broke: kills, two processes on one place, lack of memory, other locales."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conceptkit.errors import InputError
from conceptkit.files import atomic as _files
from conceptkit.files import hdf5 as _hdf5
from conceptkit.jobs import Engine, run_jobs
from conceptkit.runs.opening import in_own_folder

DEEP = "[" * 200_000


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --- files that appear whole -----------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "a [1].csv"
    start = _files._start(path)
    dead, alive = tmp_path / f"{start}{dead_process()}.x.new", tmp_path / f"{start}{os.getppid()}.x.new"
    folder = tmp_path / f"{start}{dead_process()}.y.new"
    for left in (dead, alive, folder / "inside"):
        left.parent.mkdir(exist_ok=True)
        left.write_text("half")
    with _files.replacing(path) as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, alive.name])
    assert path.read_text() == "whole"


@pytest.mark.parametrize("writing", [_files.replacing, _hdf5.replacing_hdf5, _files.scratch])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, writing):
    path = tmp_path / "a.h5"
    path.write_text("old")

    def fail():
        with writing(path):
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_name_as_long_as_can_be(tmp_path):
    path = tmp_path / ("ü" * 127)
    with _files.replacing(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


# --- one process at a time -------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from conceptkit.files.atomic import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_works_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "runs" / "one"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {process.pid} on .* works on {folder}"), _files.held(folder):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with _files.held(folder):
        assert (folder / ".lock").is_file()
    assert not (folder / ".lock").exists()


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path):
    with _files.held(tmp_path / "runs" / "one"):
        pass
    assert not list(tmp_path.iterdir())
    with _files.held(tmp_path / "runs"):
        (tmp_path / "runs" / "kept").touch()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["kept"]


def test_two_runs_without_a_name_take_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = []

    @in_own_folder("try")
    def run(*, out=None, deep=1):
        taken.append(str(out))
        if deep:
            run(deep=deep - 1)

    run()
    assert taken == ["runs/try-001", "runs/try-002"]
    with pytest.raises(InputError, match="works on runs/mine"), _files.held(Path("runs/mine")):
        run(out="runs/mine")


# --- memory, and other places ----------------------------------------------------------------------------------------


def starve(job):
    raise MemoryError


def test_a_job_without_memory_ends_in_a_sentence():
    assert [o.error for o in run_jobs(starve, [1], Engine())] == ["memory: not enough for this job."]


def test_json_of_a_locale_without_umlauts_stays_json(monkeypatch):
    from conceptkit.cli.console import write_json_result

    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    write_json_result("-", {"unit": "µm² − 组织"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode("ascii")) == {"unit": "µm² − 组织"}


@pytest.mark.skipif(os.name != "posix", reason="closes the streams by the shell")
def test_a_command_without_any_stream_or_letter(tmp_path):
    command = f"'{sys.executable}' -m conceptkit init '{tmp_path}'"
    (tmp_path / "patches.csv").write_text("patch_id,image,µm²\na,a.png,1\n")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], env=environment, check=False)
    assert done.returncode == 0
    (tmp_path / "conceptkit.toml").unlink()
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
