"""Activation stores: what counts as there, what is refused, and what a killed process leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from conceptkit._checks import InputError
from conceptkit.stores import SCHEMA, ActivationStore

N, WIDTH = 12, 5
PROVENANCE = {"architecture": "net", "layer": "mixed10", "pool": "gap", "preprocessing": {"mean": [0.5], "std": [1.0]}}
IDS = [f"p{i:02d}" for i in range(N)]


def digests(changed=()):
    return [f"{i + (100 if i in changed else 0):032x}" for i in range(N)]


VALUES = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)


def opened(path, **options):
    known = {"provenance": PROVENANCE, "patch_ids": IDS, "identities": digests(), "width": WIDTH}
    return ActivationStore(path, **{**known, **options})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "store.h5"


@pytest.fixture
def full(path):
    with opened(path) as store:
        store.write(np.arange(N), VALUES)
    return path


def test_what_is_written_is_read_in_any_order(path):
    with opened(path) as store:
        rows = np.array([7, 2, 5])
        store.write(rows, VALUES[rows])
        np.testing.assert_array_equal(store.read(np.array([5, 7, 5])), VALUES[[5, 7, 5]])
        assert store.read(rows).dtype == np.float32


def test_a_new_store_is_allocated_whole_and_holds_nothing(path):
    with opened(path) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), np.arange(N))
        size = path.stat().st_size
        assert size >= N * WIDTH * 4
        store.write(np.arange(N), VALUES)
    assert path.stat().st_size == size  # a write changes values alone, so that a kill cannot leave half a layout
    assert [p.name for p in path.parent.iterdir()] == ["store.h5"]


def test_only_rows_that_are_there_can_be_read(path):
    with opened(path) as store:
        store.write(np.array([1, 3]), VALUES[[1, 3]])
        np.testing.assert_array_equal(store.missing(np.array([3, 2, 1, 0])), [2, 0])
        with pytest.raises(InputError, match="lacks 2 of the 3 rows asked for"):
            store.read(np.array([0, 1, 2]))
    with opened(path) as store:
        np.testing.assert_array_equal(store.missing(np.array([3, 2, 1, 0])), [2, 0])
        np.testing.assert_array_equal(store.read(np.array([3])), VALUES[[3]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"provenance": {**PROVENANCE, "layer": "mixed9"}}, "was made with layer 'mixed10' instead of 'mixed9'"),
        (
            {"provenance": {**PROVENANCE, "pool": "max", "architecture": "other"}},
            "architecture 'net' instead of 'other'; pool 'gap' instead of 'max'",
        ),
        ({"provenance": {**PROVENANCE, "extra": 1}}, "extra None instead of 1"),
        ({"patch_ids": [*IDS[:-1], "other"]}, "was made for another table, whose patch_ids differ"),
        ({"patch_ids": IDS[:-1], "identities": digests()[:-1]}, "was made for another table"),
        ({"patch_ids": [IDS[1], IDS[0], *IDS[2:]]}, "was made for another table"),
    ],
)
def test_a_store_of_something_else_is_refused(full, options, sentence):
    with pytest.raises(InputError, match=sentence) as told:
        opened(full, **options)
    assert str(told.value).startswith("store: ")
    with opened(full) as store:  # a refusal changes nothing, and leaves no lock
        np.testing.assert_array_equal(store.read(np.arange(N)), VALUES)


def test_another_schema_is_refused(full):
    with h5py.File(full, "r+") as file:
        file.attrs["schema"] = "conceptkit/activations/99"
    with pytest.raises(InputError, match=f"has schema 'conceptkit/activations/99', this version reads {SCHEMA!r}"):
        opened(full)
    with h5py.File(full, "w"):
        pass
    with pytest.raises(InputError, match="has schema None"):
        opened(full)


def test_a_changed_patch_invalidates_its_row_alone(full):
    with opened(full, identities=digests(changed=[4])) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), [4])
        others = np.delete(np.arange(N), 4)
        np.testing.assert_array_equal(store.read(others), VALUES[others])
        store.write(np.array([4]), VALUES[[0]])
    with opened(full, identities=digests(changed=[4])) as store:
        np.testing.assert_array_equal(store.read(np.array([4])), VALUES[[0]])
    with opened(full) as store:  # the old pixels again: what is kept belongs to the new ones
        np.testing.assert_array_equal(store.missing(np.arange(N)), [4])


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_truncated_or_strange_file_is_told(full, share):
    whole = full.read_bytes()
    full.write_bytes(whole[: int(len(whole) * share)] or b"no HDF5 file")
    with pytest.raises(
        InputError, match=r"store: .*store\.h5 cannot be opened \(.*\); remove it to compute it anew"
    ) as told:
        opened(full)
    assert "\n" not in str(told.value)


def start(code, path):
    """Run ``code`` in a process of its own, with ``path`` and this file's store at hand."""
    before = (
        "import sys, time; from pathlib import Path; import numpy as np;"
        "from conceptkit.stores import ActivationStore; path = Path(sys.argv[1]);"
        f"n = int(sys.argv[2]); ids = [f'p{{i:02d}}' for i in range(n)]; PROVENANCE = {PROVENANCE!r};"
        "store = ActivationStore(path, provenance=PROVENANCE, patch_ids=ids,"
        f" identities=[f'{{i:032x}}' for i in range(n)], width={WIDTH});"
    )
    return subprocess.Popen(
        [sys.executable, "-c", before + "print('open', flush=True)\n" + code, str(path), "400"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )


def opened_large(path):
    ids = [f"p{i:02d}" for i in range(400)]
    return opened(path, patch_ids=ids, identities=[f"{i:032x}" for i in range(400)])


def test_a_store_in_use_is_told(path):
    process = start("time.sleep(60)", path)
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="is in use by another process; wait for it to finish"):
            opened_large(path)
    finally:
        process.kill()
        process.communicate()
    with opened_large(path) as store:  # the lock dies with its process
        assert len(store.missing(np.arange(400))) == 400


def test_after_a_kill_only_finished_rows_count_and_hold_their_values(path):
    # Row i holds i everywhere; rows are written in an order of their own, three at a time.
    process = start(
        "order = np.random.default_rng(1).permutation(n)\n"
        "for i in range(0, n, 3):\n"
        "    rows = order[i : i + 3]\n"
        f"    store.write(rows, np.repeat(rows[:, None], {WIDTH}, axis=1).astype(np.float32))\n"
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
        np.testing.assert_array_equal(store.read(done), np.repeat(done[:, None], WIDTH, axis=1))
        store.write(missing, np.repeat(missing[:, None], WIDTH, axis=1).astype(np.float32))
        assert len(store.missing(np.arange(400))) == 0
