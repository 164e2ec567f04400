"""The door to features: every kind keeps the same contract, and commands take any kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import PIXELS, NetworkFeatures, PixelFeatures, open_features

KINDS = ("network", "store", "file", "pixels")


@pytest.fixture(scope="module")
def store_file(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "a.h5"
    ck.extract("mini_inception", ck.load_study(study).table, layers=["mixed2", "mixed4"], store=path, device="cpu")
    return path


@pytest.fixture(scope="module")
def opened(study, store_file, tmp_path_factory):
    """One source of each kind, of the same table."""
    own = ck.load_study(study)
    table, folder = own.load_table(), tmp_path_factory.mktemp("sources")
    values = np.random.default_rng(0).normal(size=(len(table), 5)).astype(np.float32)
    np.save(folder / "f.npy", values)
    numbered = dataclasses.replace(table, frame=table.frame.assign(row=np.arange(len(table))))
    return {
        "network": open_features(table, own, layers=["mixed2", "mixed4"], device="cpu"),
        "store": open_features(table, own, features=store_file),
        "file": open_features(numbered, own, features=folder / "f.npy"),
        "pixels": PixelFeatures(table),
    }


@pytest.fixture(params=KINDS)
def features(request, opened):
    return opened[request.param]


def test_rows_come_in_the_order_of_the_call(features):
    whole = features.read(np.arange(len(features.table)))
    some = np.array([7, 0, 3])
    assert tuple(whole) == features.layers
    for layer, X in features.read(some).items():
        np.testing.assert_array_equal(np.asarray(X), np.asarray(whole[layer])[some])


def test_some_layers_are_read_by_name(features):
    last = features.layers[-1]
    assert list(features.read(np.arange(4), [last])) == [last]


def test_what_a_record_states(features):
    features.read(np.arange(6))
    assert features.settings() == {
        "model": features.model,
        "weights": features.made_by,
        "weights_sha256": features.digest(),
    }
    assert all(isinstance(note, str) for note in features.notes())
    assert features.name
    assert features.pool


def test_gradients_and_random_controls_need_a_network(features):
    if isinstance(features, NetworkFeatures):
        controls = list(features.random_controls(2))
        values = [np.asarray(one.read(np.arange(4))["mixed2"]) for one in (features, *controls)]
        assert not any(np.array_equal(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert [one.made_by for one in controls] == ["random:1", "random:2"]
        assert features.network().name == "mini_inception"
    else:
        assert list(features.random_controls(2)) == []
        with pytest.raises(InputError, match="holds features only"):
            features.network()


def test_a_store_gives_what_its_network_gives(opened):
    rows = np.array([5, 2])
    network, store = (opened[kind].read(rows) for kind in ("network", "store"))
    for layer in ("mixed2", "mixed4"):
        np.testing.assert_array_equal(network[layer], store[layer])
    assert opened["network"].digest() == opened["store"].digest()


def test_a_table_without_pixels_has_no_pixel_statistics(opened):
    table = opened["pixels"].table
    bare = dataclasses.replace(table, frame=table.frame[["patch_id"]])
    assert opened["pixels"].layers == (PIXELS,)
    assert PixelFeatures(bare).layers == ()
    assert PixelFeatures(bare).read(np.arange(3)) == {}


def test_what_cannot_be_opened_is_refused(opened, study):
    own, table = ck.load_study(study), opened["network"].table
    nothing = dataclasses.replace(own, model=None)
    with pytest.raises(InputError, match="model: no model given"):
        open_features(table, nothing)
    with pytest.raises(InputError, match="layer: at least one name"):
        open_features(table, dataclasses.replace(own, layers=()))
    with pytest.raises(InputError, match=f"layer: 'mixed2' is not known; .*{LAYER}"):
        open_features(table, own, layers=["mixed2"], features="f.npy")


def test_bags_read_a_store(study, opened, store_file, tmp_path):
    store = opened["store"]
    found = ck.Bags(
        features=store_file,
        layer="mixed4",
        by="patient",
        label="count",
        encourage=["area"],
        discourage=[],
        epochs=1,
        warmup=0,
        batch_size=8,
    ).run(study, out=tmp_path / "run")
    assert (found.settings["model"], found.settings["layer"]) == ("mini_inception", "mixed4")
    assert found.settings["weights_sha256"] == store.digest()
    checkpoint, table = found.folder / "checkpoints" / "baseline-seed0", study.parent / "patches.csv"
    of_store = ck.predict(checkpoint, table=table, features=store_file)
    assert np.isfinite(of_store.filter(like="probability").to_numpy()).all()
    with pytest.raises(InputError, match="set --features"):  # the store names its file, not the weights of a network
        ck.predict(checkpoint, table=table)


def test_settings_of_a_probe_of_a_store_repeat_it(study, store_file, tmp_path, monkeypatch):
    monkeypatch.chdir(study.parent)  # where the settings find the table
    command = ck.Probe(features=store_file, layers="mixed4", concepts=["count"], permutations=0, repeat="count=area")
    record = command.run(study, out=tmp_path / "first")
    again = ck.from_settings(record.settings).run(study, out=tmp_path / "again")
    assert again.to_frame().equals(record.to_frame())
    assert (record.settings["features"], record.settings["layers"]) == (str(store_file), ["mixed4"])
