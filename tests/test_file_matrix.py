"""A matrix that lies in a file is read as the array it was."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.features import own_files as own_features
from conceptkit.files import matrix as file_matrix
from conceptkit.files.matrix import FileMatrix, gather, in_blocks, rows_of
from conceptkit.probe import ridge, validation

X = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)


def put_away(X, folder):
    return gather(len(X), in_blocks(*X.shape, X.__getitem__), folder)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(file_matrix, "HELD", 0)
    monkeypatch.setattr(file_matrix, "_BLOCK", 40)


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_matrix, "HELD", 0)
        return put_away(X, tmp_path_factory.mktemp("away"))


positions = st.lists(st.integers(-50, 49), max_size=60).map(lambda v: np.array(v, dtype=np.intp))
slices = st.builds(
    slice, *(st.none() | st.integers(-60, 60) for _ in range(2)), st.none() | st.integers(-3, 3).filter(bool)
)
masks = st.lists(st.booleans(), min_size=50, max_size=50).map(np.array)


@given(key=positions | slices | masks | st.integers(-50, 49), then=slices)
def test_rows_are_those_of_the_array(away, key, then):
    np.testing.assert_array_equal(away[key], X[key])
    if not isinstance(key, int):
        part = away.rows(key)
        assert isinstance(part, FileMatrix)
        assert part.shape == X[key].shape
        np.testing.assert_array_equal(part[then], X[key][then])
        np.testing.assert_array_equal(np.asarray(part, dtype=np.float64), X[key].astype(np.float64))


@given(columns=slices)
def test_columns_are_those_of_the_array(away, columns):
    np.testing.assert_array_equal(away[:, columns], X[:, columns])


@given(order=st.permutations(range(50)), size=st.integers(1, 60), dtype=st.sampled_from([np.float16, np.float32]))
def test_rows_that_come_in_any_order(away, tmp_path_factory, order, size, dtype):
    """Files of several slides hold rows that lie apart in the table."""
    values, at = X.astype(dtype), np.array(order)
    parts = [(at[i : i + size], values[at[i : i + size]]) for i in range(0, 50, size)]
    for folder, kind in ((tmp_path_factory.getbasetemp(), FileMatrix), (None, np.ndarray)):
        found = gather(50, parts, folder)
        assert isinstance(found, kind)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[:], values)
        np.testing.assert_array_equal(found[[3, 4, 40]], values[[3, 4, 40]])


def test_beyond_its_rows_it_has_none(away):
    with pytest.raises(IndexError):
        away[np.array([50])]


def test_several_threads_read_at_once(away):
    keys = [np.random.default_rng(k).integers(0, 50, 30) for k in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for key, found in zip(keys, pool.map(away.__getitem__, keys), strict=True):
            np.testing.assert_array_equal(found, X[key])


def test_nothing_is_left_behind_and_small_ones_stay(tmp_path, monkeypatch):
    matrix = put_away(X, tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []  # the file has no name
    assert rows_of(matrix, np.arange(50)) is matrix
    assert isinstance(rows_of(matrix, np.arange(10)), FileMatrix)
    monkeypatch.setattr(file_matrix, "HELD", X.size)
    assert isinstance(put_away(X, tmp_path / "not made"), np.ndarray)
    assert not (tmp_path / "not made").exists()


def test_a_full_disk_is_a_sentence(away, tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(file_matrix.tempfile, "TemporaryFile", lambda **how: Full())
    with pytest.raises(InputError, match=r"has no room for 0\.0 GB of rows .*CONCEPTKIT_CACHE"):
        put_away(X, tmp_path)
    assert away.new_file(50, [(np.arange(50), X)]) is None  # what can be made anew is
    monkeypatch.undo()
    np.testing.assert_array_equal(away.new_file(50, [(np.arange(50), X)])[:], X)


def test_a_probe_reads_the_same_from_a_file(study, tmp_path, monkeypatch, one_random_network):
    """Continuous and categorical concepts, leave-out and all controls: the records are the same to the last bit.

    Many rows of few columns have a method of their own, see tests/test_blocks.py.
    """
    monkeypatch.setattr(validation, "is_many", lambda X, splits: False)
    asked = {"layers": ["mixed2"], "concepts": ["count", "partial", "center"], "permutations": 19}
    put = []
    monkeypatch.setattr(own_features, "gather", lambda *a: pytest.fail("a network's activations come another way"))
    real = file_matrix.gather
    monkeypatch.setattr("conceptkit.features.activations.gather", lambda *a: put.append(real(*a)) or put[-1])
    monkeypatch.setattr(ridge, "_KEPT", 0)
    beside, real_beside = [], FileMatrix.new_file
    monkeypatch.setattr(FileMatrix, "new_file", lambda *a: beside.append(real_beside(*a)) or beside[-1])
    found = ck.run_probe(study, **asked, leave_out="center", out=tmp_path / "away")
    assert {type(matrix) for matrix in beside} == {FileMatrix}  # coordinates lie in files too
    monkeypatch.setattr(FileMatrix, "new_file", lambda *a: None)
    full = ck.run_probe(study, **asked, leave_out="center", out=tmp_path / "no room beside")
    assert found.to_frame().equals(full.to_frame())
    monkeypatch.undo()
    monkeypatch.setattr("conceptkit.features.activations.gather", lambda *a: put.append(real(*a)) or put[-1])
    assert {type(matrix) for matrix in put} == {FileMatrix}
    expected = ck.run_probe(study, **asked, leave_out="center", out=tmp_path / "held")
    assert isinstance(put[-1], np.ndarray)
    assert found.to_frame().equals(expected.to_frame())


def test_given_features_are_put_away_too(tmp_path, monkeypatch):
    import pandas as pd

    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 65)).astype(np.float32)
    np.save(tmp_path / "f.npy", features)
    table = pd.DataFrame(
        {"patch_id": [f"p{i:02d}" for i in range(60)], "row": range(60), "patient": np.arange(60) // 5}
    )
    table.assign(a=features[:, 0] + rng.normal(size=60)).to_csv(tmp_path / "t.csv", index=False)
    how = {"table": tmp_path / "t.csv", "features": tmp_path / "f.npy", "concepts": ["a"], "group": "patient"}
    found = ck.run_probe(**how, permutations=19, out=tmp_path / "one")
    monkeypatch.setattr(file_matrix, "HELD", 2**27)
    assert found.to_frame().equals(ck.run_probe(**how, permutations=19, out=tmp_path / "two").to_frame())
