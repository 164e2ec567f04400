"""Activation stores on a full disk, in use by two processes, and after one was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_rows import IDS, LAYER, VALUES, WIDTH, N, digests, opened, rows_of, write

from conceptkit.errors import InputError
from conceptkit.features import store_files
from conceptkit.features.sharding import absorb_shards
from conceptkit.features.store_reading import is_store, open_activations


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "store.h5"


@pytest.fixture
def full(path):
    with opened(path) as store:
        write(store, np.arange(N), VALUES)
    return path


ROOT = Path(__file__).parents[1]

FULL = "is full; make room and run the same command again, finished rows are kept"


def under_limit(code, path):
    """Run code in a process whose files may not grow, which for it is a full disk; return what it printed."""
    before = (
        "import os, resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "sys.path.insert(0, 'tests'); import test_store_processes as t\n"
        "path, large = Path(sys.argv[1]), t.rows_of([f'p{i:03d}' for i in range(400)])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
    )
    command = [sys.executable, "-c", before + code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be set aside here")
def test_a_full_disk_is_met_before_the_work(path):
    told = under_limit("limit(4000)\ntry: t.opened(path)\nexcept t.InputError as error: print(error)\n", path)
    assert FULL in told
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_met_in_the_midst_of_the_work(path):
    told = under_limit(
        "del os.posix_fallocate\n"  # as on a file system that promises nothing
        "store = t.opened(path, rows=large)\n"
        "limit(path.stat().st_size - 4000)\n"
        "values = np.arange(400 * t.WIDTH, dtype=np.float32).reshape(400, t.WIDTH)\n"
        "try:\n"
        "    for i in range(0, 400, 8): t.write(store, range(i, i + 8), values[i : i + 8]); print(i)\n"
        "except t.InputError as error: print(error)\n"
        "store.close()\n",
        path,
    )
    *done, sentence = told.splitlines()
    assert FULL in sentence
    with opened_large(path) as store:
        missing = store.missing(np.arange(400))
        assert 0 < len(missing) < 400
        np.testing.assert_array_equal(missing, np.arange(int(done[-1]) + 8, 400))
        expected = np.arange(400 * WIDTH, dtype=np.float32).reshape(400, WIDTH)[: missing[0]]
        np.testing.assert_array_equal(store.read(LAYER, np.arange(missing[0])), expected)


def test_what_a_killed_process_left_is_removed(path):
    path.parent.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [path.parent / f".store.h5.{socket.gethostname()}.{pid}.new" for pid in (dead.pid, os.getppid())]
    for file in left:
        file.write_bytes(b"half")
    with opened(path):
        assert not left[0].exists()
        assert left[1].exists()  # its process is alive


def test_shards_are_taken_over(path):
    whole = opened(path)
    order = np.random.default_rng(3).permutation(N)
    for number, part in enumerate((order[:5], order[5:11])):
        ids, marks = [IDS[i] for i in part], [digests()[i] for i in part]
        with opened(path.parent / f"shard{number}.h5", rows=rows_of(ids, stamps=marks)) as shard:
            shard.write(np.arange(len(part)), {LAYER: VALUES[part]}, marks)
        whole.absorb(shard.path)
    np.testing.assert_array_equal(whole.missing(np.arange(N)), order[11:])
    np.testing.assert_array_equal(whole.read(LAYER, order[:11]), VALUES[order[:11]])
    whole.close()


@pytest.mark.parametrize("kept", [None, b"{", b"[]"], ids=["none", "no JSON", "no mapping"])
def test_a_shard_whose_provenance_is_damaged_is_told(path, kept):
    with opened(path.parent / "shard.h5") as shard:
        pass
    with h5py.File(shard.path, "r+") as file:
        del file["provenance"]
        if kept is not None:
            file["provenance"] = np.bytes_(kept)
    with opened(path) as whole, pytest.raises(InputError, match=r"shard\.h5 is broken"):
        whole.absorb(shard.path)


def on_a_full_disk(*rows, **marks):
    raise InputError("store: the disk is full.")


def test_only_a_broken_shard_is_removed_without_being_taken_over(path, monkeypatch):
    with opened(path.parent / "store.h5.shard0") as shard:
        shard.write(np.arange(N), {LAYER: VALUES}, digests())
    with opened(path) as whole:
        with monkeypatch.context() as patch:
            patch.setattr(whole, "write", on_a_full_disk)
            with pytest.raises(InputError, match="the disk is full"):
                absorb_shards(path, whole)
        assert shard.path.exists()
        absorb_shards(path, whole)
        assert not shard.path.exists()
        assert not len(whole.missing(np.arange(N)))
        shard.path.write_bytes(b"half")
        absorb_shards(path, whole)
        assert not shard.path.exists()


@pytest.mark.parametrize("kind", ["link", "external data", "huge"])
def test_a_provenance_that_lies_elsewhere_is_refused(full, tmp_path, kind):
    (tmp_path / "theirs").write_bytes(b'{"a": 1}')
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["provenance"] = np.bytes_(b"{}")
    with h5py.File(full, "r+") as file:
        del file["provenance"]
        if kind == "link":
            file["provenance"] = h5py.ExternalLink(str(tmp_path / "theirs.h5"), "/provenance")
        elif kind == "huge":
            file.create_dataset("provenance", (), "S200000000")
        else:  # only what has a shape may lie in another file
            file.create_dataset("provenance", (1,), "S8", external=[(str(tmp_path / "theirs"), 0, 8)])
    for reading in (opened, open_activations):
        with pytest.raises(InputError, match=r"is broken \(provenance (is not a dataset in the file|holds)"):
            reading(full)


def test_whether_a_file_is_a_store_is_told_of_damaged_ones_too(full):
    whole, rng = full.read_bytes(), np.random.default_rng(0)
    assert is_store(full)
    found = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, 4000, 3):
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        full.write_bytes(damaged)
        found.add(is_store(full))
    assert found == {True, False}


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_truncated_or_strange_file_is_told(full, share):
    whole = full.read_bytes()
    full.write_bytes(whole[: int(len(whole) * share)] or b"no HDF5 file")
    with pytest.raises(
        InputError, match=r"store: .*store\.h5 cannot be opened \(.*\); --refresh computes it again"
    ) as told:
        opened(full)
    assert "\n" not in str(told.value)


def start(code, path):
    """Run ``code`` in a process of its own, with ``path`` and this file's store at hand."""
    before = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "sys.path.insert(0, 'tests'); import test_store_processes as t\n"
        "store, n = t.opened_large(Path(sys.argv[1])), 400\n"
        "print('open', flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", before + code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def opened_large(path):
    return opened(path, rows=rows_of([f"p{i:03d}" for i in range(400)]))


def test_a_store_in_use_is_waited_for_and_what_was_written_is_used(path, caplog):
    """The lock is a real process'; it is let go of only after this process has said that it waits."""
    process = start(
        f"t.write(store, np.arange(5), np.ones((5, {WIDTH}), np.float32))\nsys.stdin.readline()\nstore.close()", path
    )
    assert process.stdout.readline() == "open\n"

    def let_go(record):
        if record.getMessage().startswith("Waiting"):
            process.stdin.write("\n")
            process.stdin.flush()
        return True

    with caplog.at_level("WARNING", logger="conceptkit"):
        caplog.handler.addFilter(let_go)
        try:
            with opened_large(path) as store:
                assert store.missing(np.arange(400)).tolist() == list(range(5, 400))
        finally:
            caplog.handler.removeFilter(let_go)
            process.communicate()
    waiting, free = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(rf"Waiting for {re.escape(str(path))}, which process {process.pid} uses \(.*\)\.", waiting)
    assert re.fullmatch(rf"{re.escape(str(path))} is free after \d+ s\.", free)


def test_waiting_is_said_again_and_ends_when_the_holder_is_killed(path, caplog, monkeypatch):
    monkeypatch.setattr(store_files, "SAY_EVERY", 0.3)
    process = start("time.sleep(60)", path)
    assert process.stdout.readline() == "open\n"

    def kill(record):
        if "so far" in record.getMessage():
            process.kill()
        return True

    with caplog.at_level("WARNING", logger="conceptkit"):
        caplog.handler.addFilter(kill)
        try:
            with opened_large(path) as store:
                assert len(store.missing(np.arange(400))) == 400
        finally:
            caplog.handler.removeFilter(kill)
            process.kill()
            process.communicate()
    assert sum("so far" in record.getMessage() for record in caplog.records) >= 1
    assert "is free after" in caplog.records[-1].getMessage()


def test_a_store_in_use_may_be_left_alone(path):
    process = start("time.sleep(60)", path)
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(store_files.HeldError, match=rf"is in use by process {process.pid}; wait for it to finish"):
            store_files.open_file(path, "r", wait=False)
    finally:
        process.kill()
        process.communicate()


def test_after_a_kill_only_finished_rows_count_and_hold_their_values(path):
    # Row i holds i everywhere; rows are written in an order of their own, three at a time.
    process = start(
        "order = np.random.default_rng(1).permutation(n)\n"
        "for i in range(0, n, 3):\n"
        "    rows = order[i : i + 3]\n"
        f"    t.write(store, rows, np.repeat(rows[:, None], {WIDTH}, axis=1).astype(np.float32))\n"
        "    print(i, flush=True)\n"
        "    time.sleep(0.002)\n",
        path,
    )
    try:
        told = [process.stdout.readline() for _ in range(30)]
        time.sleep(0.005)  # some way into a later write
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    last = int([*told, *rest.split()][-1])
    assert last + 3 < 400  # it was killed before the end
    order = np.random.default_rng(1).permutation(400)
    with opened_large(path) as store:
        missing = store.missing(np.arange(400))
        done = np.setdiff1d(np.arange(400), missing)
        # All that was reported is there; the write under way may have been finished, no other begun.
        assert set(order[: last + 3]) <= set(done) <= set(order[: last + 6])
        np.testing.assert_array_equal(store.read(LAYER, done), np.repeat(done[:, None], WIDTH, axis=1))
        write(store, missing, np.repeat(missing[:, None], WIDTH, axis=1).astype(np.float32))
        assert len(store.missing(np.arange(400))) == 0
