"""Features of one's own: each row finds its own in the file, and is probed without any network."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.features.own_files import read_features
from conceptkit.features.sources import StoreFeatures
from conceptkit.files import matrix as file_matrix
from conceptkit.models import backbones, checkpoints
from conceptkit.tables.patches import load_table

N, D = 60, 6


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def concepts(matrix):
    """Six patients; count can be read from the features, noise cannot."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "patch_id": [f"p{i:02d}" for i in rng.permutation(N)],
            "patient": [f"P{i % 6}" for i in range(N)],
            "count": matrix @ np.arange(1, D + 1) + rng.normal(size=N) / 10,
            "noise": rng.normal(size=N),
        }
    )


def write_table(folder, frame):
    frame.to_csv(folder / "table.csv", index=False)
    return load_table(folder / "table.csv")


def trident(folder, concepts, matrix, **datasets):
    """Two slides' files, rows in an order of their own, as TRIDENT and CLAM write them."""
    rng = np.random.default_rng(2)
    frame = concepts.assign(slide=[f"S{i % 2}" for i in range(N)], x=256 * (np.arange(N) % 7), y=512 * np.arange(N))
    for slide, part in frame.groupby("slide"):
        order = rng.permutation(part.index.to_numpy())
        with h5py.File(folder / f"{slide}.h5", "w") as file:
            file["features"] = matrix[order]
            file["coords"] = frame.loc[order, ["x", "y"]].to_numpy()
    return frame.assign(features=frame["slide"] + ".h5")


def in_order(table, concepts, matrix):
    """The matrix in the order of the table's rows."""
    place = {name: i for i, name in enumerate(concepts["patch_id"])}
    return matrix[[place[name] for name in table.patch_ids]]


def no_network(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a network was opened")

    monkeypatch.setattr(backbones, "open_backbone", fail)
    monkeypatch.setattr(checkpoints, "open_backbone", fail)


def test_files_of_slides_are_joined_by_coords(tmp_path, concepts, matrix):
    table = write_table(tmp_path, trident(tmp_path, concepts, matrix))
    assert table.location is None  # slide is a name here, its pixels are not there
    assert table.concept_names == ["count", "noise"]
    found = read_features(table, np.arange(N))
    np.testing.assert_array_equal(found.X, in_order(table, concepts, matrix))
    assert found.name == "2 files"
    some = np.array([40, 3, 17])
    np.testing.assert_array_equal(read_features(table, some).X, found.X[some])
    without_ids = write_table(tmp_path, trident(tmp_path, concepts, matrix).drop(columns="patch_id"))
    assert without_ids.patch_ids[0] == "S0|0|0"


def test_coords_that_are_no_numbers_are_refused_only_where_they_are_read(tmp_path, concepts, matrix):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = matrix
        file["coords"] = np.array([(i, i) for i in range(N)], dtype=[("x", int), ("y", int)])
    by_row = write_table(tmp_path, concepts.assign(row=np.arange(N), features="f.h5"))
    assert read_features(by_row, np.arange(N)).X.shape == (N, D)
    by_place = write_table(tmp_path, concepts.assign(x=np.arange(N), y=np.arange(N), features="f.h5"))
    with pytest.raises(InputError, match=r"features: coords of .*f\.h5 must hold numbers, got"):
        read_features(by_place, np.arange(N))


@pytest.mark.parametrize("kind", ["h5", "clam", "npy", "parquet", "parquet by row"])
def test_one_file_for_all(tmp_path, concepts, matrix, kind, monkeypatch):
    frame = concepts.assign(row=np.arange(N))
    path = tmp_path / f"features.{kind.split()[0].replace('clam', 'h5')}"
    if kind in ("h5", "clam"):
        with h5py.File(path, "w") as file:
            file["features"] = matrix[None] if kind == "clam" else matrix
    elif kind == "npy":
        np.save(path, matrix)
    else:
        numbers = pd.DataFrame(matrix, columns=[f"f{i}" for i in range(D)])
        if kind == "parquet":
            numbers = numbers.assign(patch_id=concepts["patch_id"]).sample(frac=1, random_state=0)
            frame = frame.drop(columns="row")
        numbers.to_parquet(path)
    table = write_table(tmp_path, frame.assign(features=path.name))
    expected = in_order(table, concepts, matrix)
    whole = read_features(table, np.arange(N))
    np.testing.assert_array_equal(whole.X, expected)
    monkeypatch.setattr(file_matrix, "_BLOCK", 3 * D)
    monkeypatch.setattr(file_matrix, "HELD", 0)
    for rows in (np.arange(N), np.arange(N)[::-1], np.array([7, 8, 9, 2, 2, 30, 5])):
        in_file = read_features(table, rows, away=tmp_path)
        assert isinstance(in_file.X, file_matrix.FileMatrix)
        np.testing.assert_array_equal(in_file.X[:], expected[rows])
        assert in_file.digest() == read_features(table, rows).digest()
    assert read_features(table, np.arange(N)).digest() == whole.digest() != in_file.digest()


def test_a_table_is_probed_by_its_features(tmp_path, concepts, matrix, monkeypatch):
    write_table(tmp_path, trident(tmp_path, concepts, matrix))

    no_network(monkeypatch)
    record = ck.run_probe(
        table=tmp_path / "table.csv", concepts=["count", "noise"], folds=3, permutations=0, out=tmp_path / "run"
    )
    rows = {row.concept: row for row in record.rows}
    assert rows["count"].score > 0.9
    assert rows["noise"].score < 0.3  # the control
    assert {(r.model, r.layer, r.weights, r.score_random_network) for r in record.rows} == {
        ("features", "features", "2 files", None)
    }
    assert record.group == "patient"


def test_the_command_takes_a_file(tmp_path, concepts, matrix):
    np.save(tmp_path / "mine.npy", matrix)
    write_table(tmp_path, concepts.assign(row=np.arange(N)))
    arguments = ["probe", "--table", str(tmp_path / "table.csv"), "--features", str(tmp_path / "mine.npy")]
    options = ["--concept", "count", "--folds", "3", "--permutations", "0", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, *options, "--json", "-"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["settings"]["weights"] == "mine.npy"
    assert values["rows"][0]["score"] > 0.9
    write_table(tmp_path, concepts)
    refused = CliRunner().invoke(app, [*arguments, *options[:-1], str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "features: a .npy file has no names: the table needs a column row" in refused.stderr


def broken(folder, frame, kind):
    path = folder / "S0.h5"
    if kind == "absent":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "other":
        with h5py.File(path, "w") as file:
            file["embeddings"] = np.zeros((3, D))
    elif kind == "flat":
        with h5py.File(path, "r+") as file:
            n = len(file["features"])
            del file["features"]
            file["features"] = np.zeros(n)
    elif kind == "wide":
        with h5py.File(folder / "S1.h5", "r+") as file:
            n = len(file["features"])
            del file["features"]
            file["features"] = np.zeros((n, D + 1))
    elif kind == "moved":
        frame = frame.assign(x=frame["x"] + (frame["patch_id"] == "p07") * 1)
    elif kind == "twice":
        with h5py.File(path, "r+") as file:
            file["coords"][1] = file["coords"][0]
    elif kind == "row":
        frame = frame.assign(row=np.arange(len(frame)))
    elif kind == "empty":
        frame = frame.assign(features=[None, *frame["features"][1:]])
    elif kind == "text":
        (folder / "S0.csv").write_text("a")
        frame = frame.assign(features="S0.csv")
    return frame


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("absent", r"file .*S0\.h5 not found"),
        ("truncated", r"S0\.h5 cannot be read \("),
        ("other", "no dataset features, only embeddings"),
        ("flat", r"must hold \(n, d\) numbers, got \(30,\)"),
        ("wide", r"S1\.h5 has 7 columns, the files before it 6"),
        ("moved", r"has no coords x=\d+, y=\d+ for patch p07"),
        ("twice", "has the same coords more than once"),
        ("row", r"names row 3\d of .*, which has 30"),
        ("empty", "every row needs a file, 1 have none"),
        ("text", r"must be .h5, .hdf5, .pt, .pth, .npy, .parquet, .pq, got S0\.csv"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, concepts, matrix, kind, told):
    frame = broken(tmp_path, trident(tmp_path, concepts, matrix), kind)
    with pytest.raises(InputError, match=f"features: .*{told}") as error:
        read_features(write_table(tmp_path, frame), np.arange(N))
    assert "\n" not in str(error.value)


def test_parquet_that_lacks_a_patch(tmp_path, concepts, matrix):
    table = write_table(tmp_path, concepts.assign(features="f.parquet"))
    numbers = pd.DataFrame(matrix, columns=[f"f{i}" for i in range(D)]).assign(patch_id=concepts["patch_id"])
    numbers[numbers["patch_id"] != "p11"].to_parquet(tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"features: .*f\.parquet has no row for patch p11"):
        read_features(table, np.arange(N))
    pd.concat([numbers, numbers[:1]]).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"features: patch_id must be unique, 'p\d\d' repeats"):
        read_features(table, np.arange(N))


# Stores of ours


@pytest.fixture(scope="module")
def store(study, tmp_path_factory):
    """Two layers of the small study, extracted once."""
    path = tmp_path_factory.mktemp("store") / "a.h5"
    table = study.parent / "patches.csv"
    return ck.extract("mini_inception", table, layers=["mixed2", "mixed4"], store=path, device="cpu")


QUICK = {"concepts": ["count", "partial"], "permutations": 0}


def test_a_store_is_probed_without_its_network(study, store, tmp_path, monkeypatch, one_random_network):
    direct = ck.run_probe(study, layers=["mixed2", "mixed4"], out=tmp_path / "direct", device="cpu", **QUICK)
    no_network(monkeypatch)
    record = ck.run_probe(study, features=store.path, out=tmp_path / "run", **QUICK)
    assert [(r.layer, r.concept) for r in record.rows] == [(r.layer, r.concept) for r in direct.rows]
    for row, other in zip(record.rows, direct.rows, strict=True):
        assert (row.score, row.score_low, row.score_pixels) == (other.score, other.score_low, other.score_pixels)
        assert (row.score_random_network, row.model, row.weights) == (None, "mini_inception", "a.h5")
    assert record.settings["weights_sha256"] == direct.settings["weights_sha256"]
    with pytest.raises(AssertionError, match="a network was opened"):  # the control
        ck.run_probe(study, out=tmp_path / "other", **QUICK)


def test_layers_of_a_store_are_chosen_and_rows_found_by_name(study, store, table, tmp_path, monkeypatch):
    no_network(monkeypatch)
    shuffled = table.sample(frac=0.9, random_state=1)
    shuffled.to_csv(tmp_path / "table.csv", index=False)
    features = StoreFeatures(load_table(tmp_path / "table.csv"), store, ["mixed4"])
    found = features.read(np.array([5, 3]))
    place = [store.patch_ids.index(load_table(tmp_path / "table.csv").patch_ids[i]) for i in (5, 3)]
    np.testing.assert_array_equal(found["mixed4"], store["mixed4"][:][place])
    arguments = ["probe", "--study", study, "--features", store.path, "--layer", "mixed4", "--permutations", "0"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "run"), "--json", "-"])
    assert result.exit_code == 0, result.output
    assert {row["layer"] for row in json.loads(result.stdout)["rows"]} == {"mixed4"}


def test_a_store_of_other_rows_is_refused(store, table, tmp_path):
    def probed(frame, **options):
        frame.to_csv(tmp_path / "table.csv", index=False)
        ck.run_probe(table=tmp_path / "table.csv", features=store.path, out=tmp_path / "run", **QUICK, **options)

    known = table.patch_id.iloc[3]
    with pytest.raises(InputError, match=r"has no row for patch new \(1 of \d+ are missing\); extract from this table"):
        probed(table.replace({"patch_id": {known: "new"}}))
    moved = table.copy()
    moved.loc[3, "row"] = table.loc[4, "row"]  # the pixels of another patch
    with pytest.raises(InputError, match=rf"another image of patch {known} \(1 of \d+ have changed\); extract again"):
        probed(moved)
    with pytest.raises(InputError, match="layer: 'mixed3' is not known"):
        probed(table, layers=["mixed3"])
    with h5py.File(tmp_path / "part.h5", "w") as file, h5py.File(store.path, "r") as whole:
        for name in whole:
            whole.copy(name, file)
        file.attrs.update(whole.attrs)
        file["state"][:2] = 0
    with pytest.raises(InputError, match=r"2 of the \d+ rows of .* are missing; extract again"):
        ck.run_probe(table=tmp_path / "table.csv", features=tmp_path / "part.h5", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
