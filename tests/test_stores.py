"""Activation stores: what counts as there, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from store_rows import IDS, LAYER, PROVENANCE, VALUES, WIDTH, N, digests, opened, rows_of, write

from conceptkit.errors import InputError
from conceptkit.features.store_files import SCHEMA, Rows, predicted_bytes
from conceptkit.features.store_reading import open_activations
from conceptkit.features.stores import ActivationStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "store.h5"


@pytest.fixture
def full(path):
    with opened(path) as store:
        write(store, np.arange(N), VALUES)
    return path


def test_what_is_written_is_read_in_any_order(path):
    with opened(path) as store:
        rows = np.array([7, 2, 5])
        write(store, rows, VALUES[rows])
        np.testing.assert_array_equal(store.read(LAYER, np.array([5, 7, 5])), VALUES[[5, 7, 5]])
        assert store.read(LAYER, rows).dtype == np.float32


def test_a_new_store_is_allocated_whole_and_holds_nothing(path):
    with opened(path) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), np.arange(N))
        size = path.stat().st_size
        assert size >= N * WIDTH * 4
        write(store, np.arange(N), VALUES)
    assert path.stat().st_size == size  # a write changes values alone, so that a kill cannot leave half a layout
    assert [p.name for p in path.parent.iterdir()] == ["store.h5"]


def test_only_rows_that_are_there_can_be_read(path):
    with opened(path) as store:
        write(store, [1, 3], VALUES[[1, 3]])
        np.testing.assert_array_equal(store.missing(np.array([3, 2, 1, 0])), [2, 0])
        with pytest.raises(InputError, match="2 of 3 rows are missing"):
            store.read(LAYER, np.array([0, 1, 2]))
    with opened(path) as store:
        np.testing.assert_array_equal(store.missing(np.array([3, 2, 1, 0])), [2, 0])
        np.testing.assert_array_equal(store.read(LAYER, np.array([3])), VALUES[[3]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"provenance": {**PROVENANCE, "layer": "mixed9"}}, "was made with layer 'mixed10' instead of 'mixed9'"),
        (
            {"provenance": {**PROVENANCE, "pool": "max", "architecture": "other"}},
            "architecture 'net' instead of 'other'; pool 'gap' instead of 'max'",
        ),
        ({"provenance": {**PROVENANCE, "extra": 1}}, "extra None instead of 1"),
        ({"rows": rows_of([*IDS[:-1], "other"])}, "was made for another table, whose patch_ids differ"),
        ({"rows": rows_of(IDS[:-1])}, "was made for another table"),
        ({"rows": rows_of([IDS[1], IDS[0], *IDS[2:]])}, "was made for another table"),
        ({"dtype": "float16"}, "dtype 'float32' instead of 'float16'"),
        ({"provenance": {**PROVENANCE, "weights": "a" * 64}}, "weights None instead of 'aaaaaaaaaaaa…'"),
    ],
)
def test_a_store_of_something_else_is_refused(full, options, sentence):
    with pytest.raises(InputError, match=sentence) as told:
        opened(full, **options)
    assert str(told.value).startswith("store: ")
    with opened(full) as store:  # a refusal changes nothing, and leaves no lock
        np.testing.assert_array_equal(store.read(LAYER, np.arange(N)), VALUES)


def test_another_schema_is_refused(full):
    with h5py.File(full, "r+") as file:
        file.attrs["schema"] = np.bytes_("conceptkit/activations/99")
    with pytest.raises(InputError, match=f"has schema 'conceptkit/activations/99', this version reads {SCHEMA!r}"):
        opened(full)
    with h5py.File(full, "w"):
        pass
    with pytest.raises(InputError, match="has no schema, this version reads"):
        opened(full)


def test_a_changed_patch_invalidates_its_row_alone(full):
    changed = digests(changed=[4])
    with opened(full, rows=rows_of(stamps=changed)) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), [4])
        others = np.delete(np.arange(N), 4)
        np.testing.assert_array_equal(store.read(LAYER, others), VALUES[others])
        write(store, [4], VALUES[[0]], changed)
    with opened(full, rows=rows_of(stamps=changed)) as store:
        np.testing.assert_array_equal(store.read(LAYER, np.array([4])), VALUES[[0]])
    with opened(full) as store:  # the old pixels again: what is kept belongs to the new ones
        np.testing.assert_array_equal(store.missing(np.arange(N)), [4])


def test_a_file_that_was_only_touched_is_looked_at_once(full):
    looked = []
    touched = digests(changed=[2, 7])
    rows = Rows(patch_ids=IDS, stamps=touched, digest=lambda row: looked.append(row) or digests()[row])
    for expected in ([2, 7], []):
        looked.clear()
        with opened(full, rows=rows) as store:
            assert len(store.missing(np.arange(N))) == 0
        assert looked == expected


def test_verify_looks_at_every_row(full):
    sly = rows_of(stamps=digests(), contents=digests(changed=[3]))  # new bytes of the old size and time
    with opened(full, rows=sly) as store:
        assert len(store.missing(np.arange(N))) == 0  # the control: the stamp is trusted
    with opened(full, rows=sly, verify=True) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), [3])


@pytest.mark.parametrize(
    "options",
    [{"provenance": {**PROVENANCE, "pool": "max"}}, {"rows": rows_of(IDS[:-2])}, {"dtype": "float16"}, {}],
)
def test_refresh_begins_anew_only_where_something_differs(full, options):
    with opened(full, refresh=True, **options) as store:
        n = len(options["rows"].patch_ids) if "rows" in options else N
        assert len(store.missing(np.arange(n))) == (n if options else 0)
    for broken in (b"no HDF5 file", full.read_bytes()[:500]):
        full.write_bytes(broken)
        with opened(full, refresh=True) as store:
            assert len(store.missing(np.arange(N))) == N
    assert [p.name for p in full.parent.iterdir()] == ["store.h5"]


def test_half_precision(path):
    with opened(path, dtype="float16") as store:
        write(store, np.arange(N), VALUES)
        found = store.read(LAYER, np.arange(N))
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, VALUES.astype(np.float16))
        large = VALUES.copy()
        large[3, 2] = 1e5
        with pytest.raises(InputError, match=r"dtype: float16 cannot hold the 1e\+05 of layer mixed10"):
            write(store, np.arange(N), large)
    assert path.stat().st_size < 2 * 10_000


def test_rows_that_were_skipped_are_neither_there_nor_forgotten(path):
    with opened(path) as store:
        write(store, np.arange(3, N), VALUES[3:])
        store.skip(np.array([1]))
    with pytest.raises(InputError, match=f"2 of the {N} rows of .* are missing; extract again"):
        open_activations(path)
    with opened(path) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), [0, 1, 2])
        write(store, [0, 2], VALUES[[0, 2]])
    found = open_activations(path)
    assert found.patch_ids == (*IDS[:1], *IDS[2:])
    assert [name for name, _ in found.skipped] == [IDS[1]]
    np.testing.assert_array_equal(found[:], np.delete(VALUES, 1, axis=0))


def test_a_finished_store_is_read_lazily(full, monkeypatch):
    found = open_activations(full)
    assert (len(found), found.path, list(found.layers)) == (N, full, [LAYER])
    rows = found[LAYER]
    assert (rows.shape, rows.dtype, len(rows)) == ((N, WIDTH), np.float32, N)
    for key in (3, -1, slice(2, 9, 3), slice(None), [5, 0, 5], np.arange(N) % 2 == 0):
        np.testing.assert_array_equal(rows[key], VALUES[key])
        np.testing.assert_array_equal(found[key], VALUES[key])
    np.testing.assert_array_equal(np.asarray(rows), VALUES)
    with pytest.raises(InputError, match="layer: 'mixed9' is not known; near names: mixed10"):
        found["mixed9"]
    with opened(full) as store:  # nothing is held open
        store.read(LAYER, np.arange(N))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_size_is_known_before(tmp_path, dtype):
    for n, widths in ((300, {"a": 64}), (2000, {"a": 512, "b.c": 96})):
        ids = [f"slide{i:05d}" for i in range(n)]
        path = tmp_path / f"{n}{dtype}.h5"
        rows = rows_of(ids, stamps=[f"{i:032x}" for i in range(n)])
        with ActivationStore(path, provenance={}, rows=rows, widths=lambda w=widths: w, dtype=dtype):
            pass
        assert path.stat().st_size == pytest.approx(predicted_bytes(ids, widths, dtype), rel=0.06)


def test_a_store_larger_than_the_disk_is_not_begun(path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"store: .*store\.h5 needs \d+\.\d kB, and 1\.0 kB are free"):
        opened(path)
    assert list(path.parent.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_was_done(full, monkeypatch):
    with opened(full, rows=rows_of(stamps=digests(changed=[5, 6]))) as store:

        class Full:
            def __getattr__(self, name):
                return getattr(store_file, name)

            def __getitem__(self, key):
                if key == "values":
                    raise OSError(28, "No space left on device")
                return store_file[key]

        store_file = store._file
        store._file = Full()
        with pytest.raises(InputError, match=r"the disk of .* is full; make room and run the same command again"):
            write(store, [5, 6], VALUES[[5, 6]])
        store._file = store_file
    with opened(full, rows=rows_of(stamps=digests(changed=[5, 6]))) as store:
        np.testing.assert_array_equal(store.missing(np.arange(N)), [5, 6])
        others = np.delete(np.arange(N), [5, 6])
        np.testing.assert_array_equal(store.read(LAYER, others), VALUES[others])
