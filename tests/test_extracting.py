"""Extraction: one call from a network and images to a store, whatever happens on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands.extract import as_table, find_layers
from conceptkit.errors import InputError
from conceptkit.models.backbones import Preprocessing, from_module, open_backbone, same_architecture
from conceptkit.models.inference import Reader, pooled_activations
from conceptkit.tables.patches import load_table

ROOT = Path(__file__).parents[1]
SIDE, N = 64, 11


def paint(path, i, seed=0, side=SIDE):
    rng = np.random.default_rng([seed, i])
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def table(tmp_path):
    for i in range(N):
        paint(tmp_path / f"{i:02d}.jpg", i)
    pd.DataFrame({"image": [f"{i:02d}.jpg" for i in range(N)]}).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def extract(table, **options):
    known = {"layers": ["mixed10"], "store": table.parent / "store.h5", "batch_size": 4, "device": "cpu"}
    return ck.extract(options.pop("model", "mini_inception"), table, **{**known, **options})


@pytest.fixture
def passes(monkeypatch):
    """Return the number of images of every batch that is computed."""
    call, seen = Reader.__call__, []
    monkeypatch.setattr(Reader, "__call__", lambda self, pixels: seen.append(len(pixels)) or call(self, pixels))
    return seen


def expected(table, layer="mixed10", pool="gap"):
    data, network = load_table(table), open_backbone("mini_inception")
    pixels = np.stack([data.pixels(i) for i in range(len(data))])
    return pooled_activations(network.module, network.preprocessing(pixels), [layer], pool=pool)[layer].numpy()


def test_activations_are_read_lazily_beside_their_names(table):
    found = extract(table, layers=["mixed3", "mixed10"])
    assert found.patch_ids == tuple(f"{i:02d}.jpg" for i in range(N))
    assert (len(found), found.rows_written, found.skipped) == (N, N, ())
    for layer in ("mixed3", "mixed10"):
        want = expected(table, layer)
        assert found[layer].shape == want.shape
        np.testing.assert_allclose(found[layer][2:7], want[2:7], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found[layer][2:7], np.asarray(found[layer])[2:7])
    with pytest.raises(InputError, match="layer: name one of mixed3, mixed10 before slicing"):
        found[:3]


def test_a_second_call_computes_nothing(table, passes):
    first = extract(table)[:]
    assert passes == [4, 4, 3]
    again = extract(table)
    assert (again.rows_written, passes) == (0, [4, 4, 3])
    np.testing.assert_array_equal(again[:], first)


@pytest.mark.parametrize("change", ["pixels", "touch", "sly"])
def test_one_changed_image(table, passes, change):
    before = extract(table)[:]
    path = table.parent / "05.jpg"
    stat, content = path.stat(), path.read_bytes()
    if change == "pixels":
        paint(path, 5, seed=1)
    elif change == "sly":  # other bytes of the same size and time
        path.write_bytes(content[:-40] + bytes(38) + content[-2:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if change == "sly" else 10**9)))
    passes.clear()
    extract(table)
    assert passes == ([1] if change == "pixels" else [])
    after = extract(table, verify=True)
    assert passes == ([] if change == "touch" else [1])
    others = np.delete(np.arange(N), 5)
    np.testing.assert_array_equal(after[others], before[others])
    fresh = extract(table, store=table.parent / "fresh.h5")
    np.testing.assert_array_equal(after[:], fresh[:])


def test_rows_of_a_resumed_gap_are_bitwise_the_same(table):
    whole = extract(table)
    values = whole[:]
    with h5py.File(whole.path, "r+") as file:
        for row in (1, 6, 10):
            file["values"]["mixed10"][row] = -1
            file["state"][row] = 0
    again = extract(table)
    assert again.rows_written == 3
    np.testing.assert_array_equal(again[:], values)


def test_images_without_a_table(table):
    data = load_table(table)
    pixels = np.stack([data.pixels(i) for i in range(N)])
    of_table = extract(table)[:]
    of_array = ck.extract("mini_inception", pixels, layers=["mixed10"], batch_size=4, device="cpu")
    np.testing.assert_array_equal(of_array[:], of_table)
    assert of_array.patch_ids == tuple(f"{i:02d}" for i in range(N))
    files = [table.parent / f"{i:02d}.jpg" for i in (7, 2)]
    of_files = ck.extract("mini_inception", files, layers=["mixed10"], batch_size=4, device="cpu")
    np.testing.assert_array_equal(of_files[:], of_table[[7, 2]])
    changed = pixels.copy()
    changed[3] = 255 - changed[3]
    of_changed = ck.extract("mini_inception", changed, layers=["mixed10"], batch_size=4, device="cpu")
    assert of_changed.rows_written == 1  # the store in the cache knows the others
    for strange, told in ((pixels[..., 0], r"\(n, h, w, 3\) uint8"), ([], "at least one name"), (3, "got a int")):
        with pytest.raises(InputError, match=f"images: .*{told}"):
            as_table(strange)
    with pytest.raises(InputError, match="table: there are no rows to extract"):
        as_table(pixels[:0])


def test_half_precision_and_other_pools(table):
    half = extract(table, dtype="float16", store=table.parent / "half.h5")
    np.testing.assert_array_equal(half[:], extract(table)[:].astype(np.float16))
    flat = extract(table, pool="flatten", store=table.parent / "flat.h5")
    np.testing.assert_allclose(flat[:], expected(table, pool="flatten"), rtol=1e-2, atol=1e-4)


# What may go wrong


def test_a_bad_image_ends_the_run_or_is_listed(table):
    data = (table.parent / "06.jpg").read_bytes()
    (table.parent / "06.jpg").write_bytes(data[: len(data) // 2])
    (table.parent / "00.jpg").write_bytes(b"no image")
    paint(table.parent / "09.jpg", 9, side=SIDE + 8)
    with pytest.raises(InputError, match=r"patch 00\.jpg: .* cannot be read as an image"):
        extract(table)
    found = extract(table, on_error="skip")
    assert [name for name, _ in found.skipped] == ["00.jpg", "06.jpg", "09.jpg"]
    assert "06.jpg cannot be read as an image (image file is truncated" in found.skipped[1][1]
    assert "this table has 64×64 and 72×72 pixels" in found.skipped[2][1]
    assert found.patch_ids == tuple(f"{i:02d}.jpg" for i in range(N) if i not in (0, 6, 9))
    assert len(found[:]) == N - 3
    for i in (0, 6, 9):
        paint(table.parent / f"{i:02d}.jpg", i)
    mended = extract(table)
    assert (mended.rows_written, mended.skipped) == (3, ())
    np.testing.assert_array_equal(mended[:], extract(table, store=table.parent / "fresh.h5")[:])


def test_what_was_finished_before_a_bad_image_is_kept(table, passes):
    (table.parent / "09.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"patch 09\.jpg"):
        extract(table)
    with pytest.raises(InputError, match=r"3 of the 11 rows of .* are missing; extract again"):
        ck.extract.__globals__["open_activations"](table.parent / "store.h5")
    paint(table.parent / "09.jpg", 9)
    assert extract(table).rows_written == 3


def test_all_images_bad(table):
    for i in range(N):
        (table.parent / f"{i:02d}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"patch 00\.jpg: .* cannot be read as an image"):
        extract(table, on_error="skip")
    assert not (table.parent / "store.h5").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": ["mixed9"]}, r"layers \['mixed10'\] instead of \['mixed9'\]"),
        ({"model": "resnet10t", "weights": "random", "layers": ["layer4"]}, "architecture 'mini_inception' instead of"),
        ({"weights": "random"}, r"weights '[0-9a-f]{12}…' instead of '[0-9a-f]{12}…'"),
        ({"pool": "max"}, "pool 'gap' instead of 'max'"),
        ({"batch_size": 5}, "batch_size 4 instead of 5"),
        ({"autocast": "bf16"}, "autocast None instead of 'bf16'"),
        ({"dtype": "float16"}, "dtype 'float32' instead of 'float16'"),
    ],
)
def test_a_store_of_something_else_is_refused_or_made_anew(table, options, told):
    before = extract(table)[:]
    with pytest.raises(InputError, match=rf"store: .*store\.h5 was made with .*{told}.*--refresh computes it again"):
        extract(table, **options)
    np.testing.assert_array_equal(extract(table)[:], before)
    assert extract(table, refresh=True, **options).rows_written == N


def test_other_pixels_than_the_network_wants(table):
    extract(table)
    network = open_backbone("mini_inception")
    network.module.preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, size=96)
    other = from_module(network.module)
    with pytest.raises(InputError, match=r"preprocessing .*'size': None.* instead of .*'size': 96"):
        extract(table, model=other)


def test_an_older_or_broken_store(table):
    path = table.parent / "store.h5"
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "conceptkit/activations/1"
    with pytest.raises(InputError, match="has the schema of an earlier version, this version reads"):
        extract(table)
    assert extract(table, refresh=True).rows_written == N
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"store: .* cannot be opened \(.*truncated.*\); --refresh computes it again"):
        extract(table)
    assert extract(table, refresh=True).rows_written == N


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"on_error": "warn"}, "on_error: 'warn' is not known"),
        ({"engine": "spark"}, "engine: 'spark' is not known"),
        ({"engine": "dask"}, "scheduler: the engine dask needs the address of one"),
        ({"layers": []}, "layer: at least one name is needed"),
        ({"layers": ["mixed10", "mixed10"]}, "layer: mixed10 given more than once"),
        ({"layers": ["mixed99"]}, "layer: the network has no layer 'mixed99'"),
        ({"pool": "cls"}, "pool: cls needs a class token"),
        ({"dtype": "int8"}, "dtype: 'int8' is not known"),
        ({"model": 3}, "model: must be .* torch module, got 3"),
        ({"model": nn.Conv2d(3, 4, 1), "weights": "random"}, "weights: a network that was built already has its own"),
        ({"model": "vit_tiny_patch16_224", "weights": "imagenet.safetensors"}, "weights: must be imagenet, random"),
        ({"model": "inception_v3", "weights": "random"}, "model: the network does not take patches of 64×64 pixels"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(table, options, told):
    with pytest.raises(InputError, match=told) as error:
        extract(table, **options)
    assert "\n" not in str(error.value)
    assert not (table.parent / "store.h5").exists()


def test_a_folder_is_no_store(table):
    with pytest.raises(InputError, match="is a folder; name a file"):
        extract(table, store=table.parent)


KILLS = """
import os, random, signal, sys, time
import torch, timm, h5py, pandas
from conceptkit.features import activations
from conceptkit.models import checkpoints
from conceptkit.models import inference
from conceptkit.models import mini_inception
from conceptkit.commands import extract as extracting
from conceptkit.features import sharding
from conceptkit.features import cluster
torch.set_num_threads(1)
clock = random.Random(int(sys.argv[3]))
for batches in (0, 1, 2, 3):
    told, notify = os.pipe()
    if (child := os.fork()) == 0:
        def say(*_): os.write(notify, b".")
        say()
        extracting.extract(
            "mini_inception", sys.argv[1], layers=["mixed3", "mixed10"], store=sys.argv[2], batch_size=4, device="cpu",
            progress=say,
        )
        os._exit(0)
    for _ in range(batches + 1):
        os.read(told, 1)
    time.sleep(clock.uniform(0, 0.3 if batches == 0 else 0.03))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    done = h5py.File(sys.argv[2])["state"][:].sum() if os.path.exists(sys.argv[2]) else -1
    print(os.WIFSIGNALED(status), done)
"""


@pytest.fixture
def one_thread():
    """Compute with one thread, as the child that is compared with does: at 4 images a pass threads change last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_any_moment_is_finished_by_the_next(tmp_path, seed, one_thread):
    n = 50
    for i in range(n):
        paint(tmp_path / f"{i:02d}.jpg", i)
    pd.DataFrame({"image": [f"{i:02d}.jpg" for i in range(n)]}).to_csv(tmp_path / "table.csv", index=False)
    store = tmp_path / "store.h5"
    told = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "table.csv"), str(store), str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout
    killed, done = zip(*(line.split() for line in told.splitlines()), strict=True)
    assert set(killed) == {"True"}
    done = [int(d) for d in done]
    assert sorted(done) == done
    assert 0 < done[-1] < n
    with pytest.raises(InputError, match=f"{n - done[-1]} of the {n} rows of"):
        ck.extract.__globals__["open_activations"](store)
    layers = ["mixed3", "mixed10"]
    finished = extract(tmp_path / "table.csv", layers=layers)
    assert finished.rows_written == n - done[-1]
    whole = extract(tmp_path / "table.csv", layers=layers, store=tmp_path / "whole.h5")
    for layer in layers:
        np.testing.assert_array_equal(finished[layer][:], whole[layer][:])
    assert store.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(".new")]


# Networks from elsewhere

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2))

def broken():
    raise KeyError("no weights today")

def nothing():
    return None
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "mynetworks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield "mynetworks:small"
    sys.modules.pop("mynetworks", None)


def test_a_factory_of_ones_own(table, factory):
    network = open_backbone(factory)
    assert (network.name, network.weights, network.architecture) == (factory, "own", factory)
    own = extract(table, model=factory, layers=["3"], store=table.parent / "own.h5")
    handed = extract(table, model=network.module, layers=["3"], store=table.parent / "handed.h5")
    np.testing.assert_array_equal(own[:], handed[:])
    drawn = [same_architecture(network, seed=seed).fingerprint() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert network.fingerprint() not in drawn
    state = table.parent / "state.pt"
    torch.save({k: v + 1 for k, v in network.module.state_dict().items()}, state)
    filled = open_backbone(factory, str(state))
    assert filled.weights == "state.pt"
    torch.testing.assert_close(filled.module[0].bias, network.module[0].bias + 1)
    for name, told in (
        ("mynetworks:broken", r"returned no network \(KeyError: 'no weights today'\)"),
        ("mynetworks:nothing", r"returned no network \(TypeError: it returned a NoneType, not a torch module\)"),
        ("mynetworks:absent", r"returned no network \(AttributeError: .*absent"),
        ("nowhere.at.all:small", r"returned no network \(ModuleNotFoundError: No module named 'nowhere'\)"),
    ):
        with pytest.raises(InputError, match=f"model: {name} {told}"):
            open_backbone(name)


def test_a_network_in_a_folder(tmp_path, table):
    from timm.models import create_model, save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = create_model("resnet10t", num_classes=5)
    save_for_hf(module, str(tmp_path / "net"), safe_serialization=True)
    name = f"local-dir:{tmp_path / 'net'}"
    network = open_backbone(name)
    assert (network.architecture, network.weights) == ("resnet10t", "published")
    for key, value in module.state_dict().items():
        torch.testing.assert_close(network.module.state_dict()[key], value)
    assert network.layer("conv5_block1_out") == "layer4.0"
    assert same_architecture(network, seed=1).module.num_classes == 5
    assert open_backbone(name, "random").weights == "random:0"
    assert len(extract(table, model=name, layers=["layer4"])) == N
    with pytest.raises(InputError, match=r"weights: those of local-dir:.*nowhere could not be downloaded"):
        open_backbone(f"local-dir:{tmp_path / 'nowhere'}")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("conceptkit.models.downloads.hub_answers", lambda: False)
    with pytest.raises(InputError, match=r"weights: those of hf-hub:owner/net could not be downloaded \(the hub"):
        open_backbone("hf-hub:owner/net")


def test_layers_are_listed_in_their_order():
    found, side = find_layers("resnet10t")
    names = [layer.name for layer in found]
    assert names.index("layer1.0") < names.index("layer1") < names.index("layer4.0")
    by_name = {layer.name: layer for layer in found}
    assert side == 176
    assert by_name["layer4.0"].aliases == ("conv5_block1_out",)
    assert by_name["layer4.0"].shape == (512, 6, 6)
    assert find_layers("resnet10t", 64)[0][-1].shape == (1000,)
    with pytest.raises(InputError, match="model: the network does not take patches of 40×40 pixels"):
        find_layers("inception_v3", 40)


# The command line


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command(table, tmp_path):
    arguments = ("extract", "--table", table, "--model", "mini_inception", "--layer", "mixed10,mixed3")
    options = ("--out", tmp_path / "s.h5", "--batch-size", 4, "--device", "cpu", "--json", "-")
    result = run(*arguments, *options)
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["schema"] == "conceptkit/extract/1"
    assert (values["rows"], values["rows_written"], values["skipped"]) == (N, N, [])
    assert values["layers"] == {"mixed10": 256, "mixed3": 128}
    assert values["notes"] == []
    assert values["path"] == str(tmp_path / "s.h5")
    assert "s.h5 will take" in result.stderr
    assert f"{N} rows of 384 values, float32" in " ".join(result.stderr.split())  # rich breaks long lines
    assert json.loads(run(*arguments, *options).stdout)["rows_written"] == 0
    (tmp_path / "03.jpg").write_bytes(b"no image")
    failed = run(*arguments, *options)
    assert failed.exit_code == 2
    assert "Error: patch 03.jpg" in failed.stderr
    skipped = run(*arguments, *options, "--on-error", "skip")
    assert skipped.exit_code == 1
    (only,) = json.loads(skipped.stdout)["skipped"]
    assert only["what"] == "03.jpg"
    refused = run(*arguments, *options, "--pool", "max")
    assert refused.exit_code == 2
    assert "pool 'gap' instead of 'max'" in refused.stderr
    assert run(*arguments, *options, "--pool", "max", "--refresh", "--on-error", "skip").exit_code == 1


def test_the_command_says_that_it_runs_code(table, factory, tmp_path):
    options = ("--table", table, "--layer", 3, "--out", tmp_path / "s.h5", "--device", "cpu", "--batch-size", 4)
    result = run("extract", "--model", factory, *options)
    assert result.exit_code == 0
    assert "user code from mynetworks:small" in result.stdout
    listed = run("layers", "--model", factory, "--size", 32)
    assert listed.exit_code == 0
    assert "user code from mynetworks:small" in listed.stdout


def test_an_empty_table(tmp_path):
    (tmp_path / "table.csv").write_text("image\n")
    result = run("extract", "--table", tmp_path / "table.csv", "--model", "mini_inception", "--out", tmp_path / "s.h5")
    assert result.exit_code == 2
    assert "has no rows" in result.stderr


def test_the_list_of_layers():
    result = run("layers", "--model", "mini_inception", "--json", "-")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["schema"] == "conceptkit/layers/1"
    (last,) = [layer for layer in values["layers"] if layer["name"] == "mixed10"]
    assert last == {"name": "mixed10", "aliases": [], "shape": [256, 6, 6], "kind": "BlockE", "returns": "Tensor"}
    assert "256×6×6" in result.stderr
    assert run("layers").exit_code == 2
    near = run("layers", "--model", "resnet1o")
    assert near.exit_code == 2
    assert "near names" in near.stderr
