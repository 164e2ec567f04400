"""Extraction by several processes: torchrun's ranks and a Dask cluster give what a single process gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.features.sharding import Ranks, _share

ROOT = Path(__file__).parents[1]
SIDE, N, BATCH = 64, 83, 16
"""At sixteen images and more per pass the number of threads does not change the last bits."""


def paint(path, i, seed=0):
    rng = np.random.default_rng([seed, i])
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    for i in range(N):
        paint(folder / f"{i:02d}.jpg", i)
    pd.DataFrame({"image": [f"{i:02d}.jpg" for i in range(N)]}).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def extract(table, store, **options):
    return ck.extract(
        "mini_inception", table, layers=["mixed3", "mixed10"], store=store, batch_size=BATCH, device="cpu", **options
    )


@pytest.fixture(scope="module")
def single(table, tmp_path_factory):
    store = tmp_path_factory.mktemp("single") / "store.h5"
    extract(table, store)
    return store


def command(table, store, *options):
    arguments = ["-m", "conceptkit", "extract", "--table", str(table), "--model", "mini_inception"]
    arguments += ["--layer", "mixed3,mixed10", "--batch-size", str(BATCH), "--device", "cpu", "--out", str(store)]
    return [*arguments, *options]


def torchrun(table, store, *options, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [*launcher, *command(table, store, *options)]
    return subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def two_ranks(table, store, *options):
    """The same without the launcher, which takes as long to start as a rank: codes, and all that both printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, *command(table, store, *options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], "".join(printed)


def test_rows_are_shared_by_batches():
    rows = np.arange(100, 183)
    shares = [_share(rows, Ranks(rank, 3, rank), BATCH) for rank in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), rows)
    assert [len(share) % BATCH for share in shares] == [0, 0, 83 % BATCH]  # a single batch is padded
    assert len(_share(rows[:1], Ranks(1, 2, 1), BATCH)) == 0


def test_torchrun_gives_the_same_file(table, single, tmp_path):
    store = tmp_path / "store.h5"
    done = torchrun(table, store, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert store.read_bytes() == single.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "shard" in p.name] == []
    assert f"{N} rows written" in done.stderr
    assert done.stderr.count("rows written") == 1  # one rank speaks


@pytest.mark.long
def test_torchrun_finishes_what_is_left_and_lists_what_is_bad(table, single, tmp_path):
    store = tmp_path / "store.h5"
    store.write_bytes(single.read_bytes())
    with h5py.File(store, "r+") as file:
        file["values"]["mixed3"][20:60] = -1
        file["state"][20:60] = 0
    # What a killed rank left: a shard with some of the missing rows.
    left = tmp_path / "store.h5.shard1of2"
    extract(table, left)
    with h5py.File(left, "r+") as file:
        file["state"][25:] = 0
    broken = tmp_path / "store.h5.shard0of2"
    broken.write_bytes(b"half a file")
    codes, printed = two_ranks(table, store, "--on-error", "skip")
    assert codes == [0, 0], printed
    assert printed.count("35 rows written") == 1
    assert store.read_bytes() == single.read_bytes()
    assert not left.exists()
    assert not broken.exists()


@pytest.mark.long
def test_a_mistake_of_one_rank_is_told_once_and_work_is_kept(table, single, tmp_path):
    for i in range(N):
        (tmp_path / f"{i:02d}.jpg").write_bytes((table.parent / f"{i:02d}.jpg").read_bytes())
    (tmp_path / "table.csv").write_text(table.read_text())
    (tmp_path / "70.jpg").write_bytes(b"no image")
    store = tmp_path / "store.h5"
    codes, printed = two_ranks(tmp_path / "table.csv", store)
    assert 0 not in codes
    assert "Error: patch 70.jpg" in printed
    with h5py.File(store) as file:
        assert 48 <= file["state"][:].sum() < N
    _, printed = two_ranks(tmp_path / "table.csv", store, "--on-error", "skip", "--json", str(tmp_path / "out.json"))
    assert "skipped 70.jpg" in printed
    values, whole = ck.extract.__globals__["open_activations"](store), h5py.File(single)["values"]["mixed10"][:]
    np.testing.assert_array_equal(values["mixed10"][:], np.delete(whole, 70, axis=0))


# Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="dask and distributed are not installed")
    with (
        pytest.MonkeyPatch.context() as patch,
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0") as started,
    ):
        patch.setenv("OMP_NUM_THREADS", "1")
        yield started


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the cluster's own start and end
def test_a_cluster_is_given_a_few_parts_at_a_time(table, single, tmp_path, cluster, monkeypatch):
    import distributed

    out, most = set(), []

    def submit(client, *args, own=distributed.Client.submit, **options):
        future = own(client, *args, **options)
        out.add(future.key)
        most.append(len(out))
        return future

    def release(future, own=distributed.Future.release):
        out.discard(future.key)
        own(future)

    monkeypatch.setattr(distributed.Client, "submit", submit)
    monkeypatch.setattr(distributed.Future, "release", release)
    monkeypatch.setattr("conceptkit.features.cluster.BATCHES_AT_ONCE", 1)
    monkeypatch.setattr("conceptkit.features.cluster.PARTS_PER_WORKER", 1)
    store = tmp_path / "store.h5"
    extract(table, store, engine="dask", scheduler=cluster.scheduler_address)
    assert store.read_bytes() == single.read_bytes()
    assert len(most) > 4  # the control: there were more parts than may be out
    assert max(most) == 4  # two workers of two threads, one part each


@pytest.mark.filterwarnings("ignore")  # of the cluster's own start and end
def test_a_cluster_gives_the_same_file(table, single, tmp_path, cluster):
    store = tmp_path / "store.h5"
    found = extract(table, store, engine="dask", scheduler=cluster.scheduler_address)
    assert found.rows_written == N
    assert store.read_bytes() == single.read_bytes()
    assert extract(table, store, engine="dask", scheduler=cluster.scheduler_address).rows_written == 0
    images = np.stack([np.asarray(Image.open(table.parent / f"{i:02d}.jpg")) for i in range(20)])
    images[3] = 0
    of_array = extract(images, tmp_path / "array.h5", engine="dask", scheduler=cluster.scheduler_address)
    whole = h5py.File(single)["values"]["mixed10"][:20]
    np.testing.assert_array_equal(of_array["mixed10"][:3], whole[:3])
    assert not np.array_equal(of_array["mixed10"][3], whole[3])
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    files = [table.parent / "00.jpg", bad]
    with pytest.raises(InputError, match=r"bad\.jpg cannot be read as an image"):
        extract(files, tmp_path / "files.h5", engine="dask", scheduler=cluster.scheduler_address)


def test_a_scheduler_that_does_not_answer(table, tmp_path, monkeypatch):
    monkeypatch.setattr("conceptkit.features.cluster.PATIENCE", 1)
    pytest.importorskip("distributed", reason="dask and distributed are not installed")
    for address in ("nonsense", "tcp://127.0.0.1:1"):
        with pytest.raises(InputError, match="scheduler: no Dask scheduler answers at"):
            extract(table, tmp_path / "store.h5", engine="dask", scheduler=address)


def test_dask_that_is_not_installed(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"dask is not installed; pip install 'conceptkit\[dask\]' installs it"):
        extract(table, tmp_path / "store.h5", engine="dask", scheduler="tcp://127.0.0.1:1")
