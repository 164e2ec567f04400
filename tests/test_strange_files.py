"""Files of strangers that benchmarks/hard_use.py made: code, nesting, sizes and heaps that must not be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.features.store_files import Rows
from conceptkit.features.store_reading import open_activations
from conceptkit.features.stores import ActivationStore
from conceptkit.files import hdf5 as _hdf5
from conceptkit.models import backbones, downloads
from conceptkit.models.checkpoints import load_checkpoint, save_checkpoint
from conceptkit.models.guided import GuidedModel, Task
from conceptkit.pathology.annotations import read_annotations
from conceptkit.records import load_record
from conceptkit.runs.opening import open_study
from conceptkit.tables.patches import load_table

DEEP = "[" * 200_000


def test_nesting_without_end_is_a_mistake_like_any_other(tmp_path):
    for name, read in (
        ("a.geojson", read_annotations),
        ("record.json", load_record),
        ("conceptkit.toml", ck.load_study),
        ("checkpoint.json", lambda path: load_checkpoint(path.parent)),
    ):
        path = tmp_path / name
        path.write_text(("x = " if name.endswith("toml") else "") + DEEP)
        with pytest.raises(InputError):
            read(path)


def test_numbers_without_end(tmp_path):
    (tmp_path / "conceptkit.toml").write_text("x = " + "1" * 5000)
    with pytest.raises(InputError, match="not a TOML file"):
        ck.load_study(tmp_path)
    (tmp_path / "a.json").write_text('{"type": "Polygon", "coordinates": [[[' + "9" * 400 + ", 1], [1, 2], [3, 4]]]}")
    with pytest.raises(InputError, match="not GeoJSON"):
        read_annotations(tmp_path / "a.json")


def test_a_study_file_does_not_say_which_code_is_run(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patches.csv").write_text("patch_id,image\na,a.png\n")
    (tmp_path / "conceptkit.toml").write_text('table = "patches.csv"\nmodel = "theirs:make"\nweights = "own"\n')
    options = (None, None, None, ())
    with pytest.raises(InputError, match="names theirs:make, code that opening it would run"):
        open_study("conceptkit.toml", None, *options)
    with pytest.raises(InputError, match="theirs:make@folder"):
        open_study(ck.load_study("conceptkit.toml").replace(model="theirs:make@folder"), None, *options)
    assert not Path("canary").exists()
    meant, _ = open_study("conceptkit.toml", None, "theirs:make", None, None, ())  # its reader named it
    assert (meant.model, meant.weights) == ("theirs:make", "own")
    built = ck.Study(name="own", table=Path("patches.csv"), model="theirs:make")
    assert open_study(built, None, *options)[0].model == "theirs:make"  # the study is the reader's own


@pytest.fixture
def store(tmp_path):
    """A finished store of four rows."""
    with own_store(tmp_path / "store.h5") as kept:
        kept.write(np.arange(4), {"layer": np.ones((4, 3), np.float32)}, ["d"] * 4)
    return tmp_path / "store.h5"


def own_store(path, width=3, **options):
    rows = Rows(patch_ids=list("abcd"), stamps=["s"] * 4, digest=lambda row: "d")
    return ActivationStore(path, provenance={"a": 1}, rows=rows, widths=lambda: {"layer": width}, **options)


def outside(file, path, kind):
    del file["stamps"]
    if kind == "link":
        file["stamps"] = h5py.ExternalLink(str(path), "/stamps")
    elif kind == "data":
        file.create_dataset("stamps", (4,), "S32", external=[(str(path), 0, 128)])
    else:
        layout = h5py.VirtualLayout((4,), "S32")
        layout[:] = h5py.VirtualSource(str(path), "stamps", (4,))
        file.create_virtual_dataset("stamps", layout)


@pytest.mark.parametrize("kind", ["link", "data", "virtual"])
def test_a_store_never_writes_into_another_file(store, tmp_path, kind):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["stamps"] = np.array([b"theirs"] * 4, "S32")
    before = (tmp_path / "theirs.h5").read_bytes()
    with h5py.File(store, "r+") as file:
        outside(file, tmp_path / "theirs.h5", kind)
    for reading in (own_store, open_activations):
        with pytest.raises(InputError, match="stamps is not a dataset in the file"):
            reading(store)
    own_store(store, refresh=True).close()
    assert (tmp_path / "theirs.h5").read_bytes() == before


def changed_schema(file):
    file.attrs["schema"] = np.arange(3)


def deep_provenance(file):
    del file["provenance"]
    file["provenance"] = np.bytes_("[" * 100_000)


def huge_state(file):
    del file["state"]
    file.create_dataset("state", (2**40,), np.uint8, chunks=(2**20,))


def opaque_state(file):
    del file["state"]
    file["state"] = np.array([b"code"] * 4, dtype=np.void)


def no_values(file):
    del file["values"]


@pytest.mark.parametrize("spoil", [changed_schema, deep_provenance, huge_state, opaque_state, no_values])
def test_a_spoilt_store_is_told_and_made_anew(store, spoil):
    with h5py.File(store, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match="--refresh computes it again"):
        own_store(store)
    with own_store(store, refresh=True) as kept:
        assert len(kept.missing(np.arange(4))) == 4


def test_rows_of_another_width_are_not_written(store):
    with own_store(store) as kept, pytest.raises(InputError, match="has 3 values a row for layer layer"):
        kept.write(np.arange(2), {"layer": np.ones((2, 5), np.float32)}, ["d"] * 2)


def test_pixels_are_not_read_before_their_number_is_known(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as file:  # 12 GB a row, in a few bytes
        file.create_dataset("k", (2, 2**16, 2**16, 3), np.uint8, chunks=(1, 2**11, 2**11, 3), compression="gzip")
        file.create_group("group")
    pd.DataFrame({"h5": "p.h5", "key": ["k", "group"], "row": 0}).to_csv(tmp_path / "t.csv", index=False)
    table = load_table(tmp_path / "t.csv")
    for row in range(2):
        with pytest.raises(InputError, match=r"holds uint8 of shape|cannot be read"):
            table.pixels(row)


def test_a_name_that_no_file_can_have(tmp_path):
    (tmp_path / "t.csv").write_text(f"patch_id,image\na,{'x' * 5000}\n")
    table = load_table(tmp_path / "t.csv")
    assert len(table.identities()) == 1
    with pytest.raises(InputError, match="not found"):
        table.pixels(0)


def test_parquet_text_that_is_no_text_is_refused(tmp_path):
    frame = pd.DataFrame({"patch_id": ["a", "needle"], "image": "x.png", "c": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "t.parquet", compression=None)
    assert load_table(tmp_path / "t.parquet").patch_ids[1] == "needle"
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole.replace(b"needle", b"ne\xff\xfele"))
    with pytest.raises(InputError, match="cannot be read as a table"):
        load_table(tmp_path / "t.parquet")


def test_a_parquet_column_of_bytes_or_lists_is_refused(tmp_path):
    for odd in ([b"\xff"] * 2, [[1, 2]] * 2):
        pd.DataFrame({"patch_id": ["a", "b"], "image": "x.png", "c": odd}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(InputError, match="column c holds"):
            load_table(tmp_path / "t.parquet")


def write_features(path, kind):
    with h5py.File(path, "w") as file:
        if kind == "group":
            file.create_group("features")
        elif kind == "loop":
            file["features"] = h5py.SoftLink("/features")
        else:
            file.create_dataset("features", (2, 2), h5py.ref_dtype)


@pytest.mark.parametrize("kind", ["group", "loop", "references"])
def test_features_that_are_none(tmp_path, kind):
    from conceptkit.features.own_files import read_features

    write_features(tmp_path / "f.h5", kind)
    pd.DataFrame({"patch_id": ["a", "b"], "row": [0, 1], "features": "f.h5"}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="features: "):
        read_features(load_table(tmp_path / "t.csv"), np.arange(2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file of timm's smallest network."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("metadata", [{"num_classes": "1000000000000"}, {"pad_type": "<script>"}])
def test_metadata_that_lie(weights, tmp_path, metadata):
    save_file(load_file(weights), tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="metadata of"):
        backbones.open_backbone("test_resnet", str(tmp_path / "w.safetensors"))


def test_a_state_dict_without_names(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="does not hold a dictionary of tensors by name"):
        backbones.open_backbone("test_resnet", str(tmp_path / "w.pt"))


def test_a_download_is_held_against_its_hash(weights, tmp_path):
    content = weights.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    for name in (hashlib.sha256(content).hexdigest(), git):
        (tmp_path / name).write_bytes(content)
        link = tmp_path / f"link-{name[:4]}"
        link.symlink_to(name)
        downloads.check_hash(link)
        (tmp_path / name).write_bytes(content[:-1] + b"\0")
        with pytest.raises(InputError, match="is not what was published"):
            downloads.check_hash(link)
    plain = tmp_path / f"resnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    plain.write_bytes(content)
    downloads.check_hash(plain)
    plain.write_bytes(content[1:])
    with pytest.raises(InputError, match="remove it to download it again"):
        downloads.check_hash(plain)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint's folder."""
    backbone = backbones.open_backbone("mini_inception", "random")
    folder = tmp_path_factory.mktemp("checkpoint") / "own"
    tasks = [Task(name="main", kind="categorical", classes=("a", "b")), Task(name="count", kind="continuous")]
    save_checkpoint(GuidedModel(backbone.module, 192, tasks, trunk=(4,), dropout=0.0), backbone, folder)
    load_checkpoint(folder)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"trunk": [100_000, 100_000]},
        {"width": 10**9},
        {"preprocessing": {"mean": [0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": None}},
        {"preprocessing": {"mean": [0.5] * 3, "std": [0.5, {}, 0.5], "size": None}},
        {"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 10**6}},
        {"tasks": [{"name": "main", "kind": "categorical", "classes": ["a", "b"], "deviation": "wide"}]},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_checkpoint_that_lies_is_never_built(checkpoint, tmp_path, change):
    description = json.loads((checkpoint / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**description, **change}))
    (tmp_path / "weights.safetensors").write_bytes((checkpoint / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="cannot be opened"):
        load_checkpoint(tmp_path)


def test_a_record_of_other_types(tmp_path):
    record = ck.ProbeRecord(study="s", rows=())
    record.save(tmp_path)
    assert load_record(tmp_path) == record
    body = record.to_dict()
    for key, value in (("notes", [3]), ("group", {}), ("settings", []), ("study", None), ("synthetic", "no")):
        (tmp_path / "record.json").write_text(json.dumps({**body, key: value}))
        with pytest.raises(InputError, match=rf"is not a valid conceptkit/probe/1 record: .*{key}"):
            load_record(tmp_path)


def in_time(code, *arguments):
    """What another Python says within a minute; a loop within a library ends with the process only."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def heap_without_size(path):
    """Let free space of the first global heap say that it has no size: HDF5 walks on the spot."""
    data = bytearray(path.read_bytes())
    start = data.index(b"GCOL")
    at = start + 16
    while data[at : at + 2] != b"\0\0":
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)


@pytest.fixture
def texts(tmp_path):
    """A file with texts of variable length."""
    with h5py.File(tmp_path / "texts.h5", "w") as file:
        file.attrs["schema"] = "conceptkit/activations/2"
        file.create_dataset("state", data=np.ones(30, np.uint8))
        file.create_dataset("patch_ids", data=[f"n{i}" for i in range(30)], dtype=h5py.string_dtype())
        file.create_group("values")
    return tmp_path / "texts.h5"


def test_a_damaged_heap_is_told_before_hdf5_walks_it(texts):
    with _hdf5.open_hdf5(texts) as file:
        assert file["patch_ids"].asstr()[7] == "n7"
    heap_without_size(texts)
    code = """if True:
        import sys
        from pathlib import Path
        from conceptkit.files.hdf5 import open_hdf5
        try:
            open_hdf5(Path(sys.argv[1]))["patch_ids"].asstr()[:]
        except OSError as error:
            print(error)"""
    assert in_time(code, texts) == "the heap of its texts is damaged\n"


def test_a_store_has_no_heap_and_reads_none(store, texts):
    assert b"GCOL" not in store.read_bytes()
    heap_without_size(texts)
    code = """if True:
        import sys
        from pathlib import Path
        from conceptkit.errors import InputError
        from conceptkit.features.store_reading import is_store, open_activations
        print(is_store(Path(sys.argv[1])))
        try:
            open_activations(Path(sys.argv[1]))
        except InputError as error:
            print(error)"""
    assert re.fullmatch(
        r"True\nstore: .*texts.h5 has the schema of an earlier version, this version reads .*\n",
        in_time(code, texts),
    )


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_heap_that_is_let_through_keeps_hdf5(texts, data):
    """Every byte that is let through is one with which HDF5 comes back, with texts or an error of its own."""
    damaged = bytearray(texts.read_bytes())
    start = damaged.index(b"GCOL")
    objects = [start + 16]
    while damaged[objects[-1] : objects[-1] + 2] != b"\0\0":
        size = int.from_bytes(damaged[objects[-1] + 8 : objects[-1] + 16], "little")
        objects.append(objects[-1] + 16 + -(-size // 8) * 8)
    for at in data.draw(st.lists(st.sampled_from([start, *objects[-2:], *objects]), min_size=1, max_size=3)):
        size = data.draw(st.sampled_from([0, 1, 8, 16, 40, 4096, 2**32, 2**63, 2**64 - 16, 2**64 - 8]))
        damaged[at + 8 : at + 16] = size.to_bytes(8, "little")
        if data.draw(st.booleans()):
            damaged[at : at + 2] = bytes(2)
    place = texts.with_name("damaged.h5")
    place.write_bytes(damaged)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            with _hdf5.open_hdf5(place) as file:
                file["patch_ids"].asstr()[:]
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
