"""Wild files for hard_use.py: Parquet, studies, stores, HDF5, weights, checkpoints and records, most of them broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from hard_use_case import NASTY, Case, Random, _all_rows, _mutated, _page_is_safe, _probed_rows, _take, mutate


def parquet(case: Case, bench: Path, rng: Random) -> None:
    """A Parquet table, its bytes or its types changed."""
    import pandas as pd

    _take(case, bench, "patches.h5", "features.npy")
    path = case.given / "patches.parquet"
    if rng.random() < 0.6:
        _mutated(case, bench, "patches.parquet", rng)
    else:
        frame = pd.read_parquet(bench / "patches.parquet")
        name = str(rng.choice(frame.columns))
        odd: list[Any] = [
            [[1, 2]] * len(frame),
            [{"a": 1}] * len(frame),
            [b"\xff\x00"] * len(frame),
            pd.date_range("2020", periods=len(frame)),
            [np.inf] * len(frame),
            [2**63 - 1] * len(frame),
            [True, None] * (len(frame) // 2),
            pd.Categorical(["a", "b"] * (len(frame) // 2)),
            ["<script>"] * len(frame),
        ]
        frame[name] = odd[int(rng.integers(0, len(odd)))]
        frame.to_parquet(path, index=False)
    case.argv = ["probe", "--table", str(path), "--features", str(case.given / "features.npy"), "--folds", "2"]
    case.argv += ["--permutations", "0", "--out", str(case.out / "run"), "--json", "-"]


def studies(case: Case, bench: Path, rng: Random) -> None:
    """A study file with keys and values that are not meant."""
    _take(case, bench, "patches.csv", "patches.h5", "features.npy")
    text = (bench / "conceptkit.toml").read_text()
    what = rng.integers(0, 9)
    if what == 0:
        text = mutate(text.encode(), rng).decode("utf-8", "replace")
    elif what == 1:
        key = str(rng.choice(["name", "table", "model", "layers", "group", "probe", "encourage", "kind", "read"]))
        text = text.replace(f"{key} =", f"{key[:-1]}e{key[-1]} =", 1)  # misspelt
    elif what == 2:
        text = text.replace(
            "= ", f"= {rng.choice(['1', '[]', '{}', '1.5', 'true', '1979-05-27', '[1, 2]', '[[[1]]]'])} #", 1
        )
    elif what == 3:
        text = text.replace('"count"', json.dumps(str(rng.choice(NASTY))))
    elif what == 4:
        text = text.replace('"patches.csv"', json.dumps(str(rng.choice([n for n in NASTY if "\n" not in n]))))
    elif what == 5:
        text = text.replace('"mini_inception"', json.dumps(str(rng.choice([*NASTY, "os:getcwd", "os:abort"]))))
    elif what == 6:
        text += str(rng.choice(["x = " + "[" * 3000, "x = " + "1" * 5000, "[[a]]\n[a]\n", "x = 1e999999", "[a]\n" * 3]))
    elif what == 7:
        text = text.replace('"patient"', json.dumps(str(rng.choice(NASTY))))
    else:
        extra = str(rng.choice(['colour = "red"', "seeds = 3", "[surprise]\na = 1", '__class__ = "x"', '"" = "x"']))
        text = extra + "\n" + text if rng.random() < 0.5 else text + "\n" + extra
    path = case.given / "conceptkit.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    named = ["--study", str(path)]
    command = rng.integers(0, 3)
    if command == 0:
        case.argv = ["probe", *named, "--features", str(case.given / "features.npy"), "--permutations", "0"]
        case.argv += ["--folds", "2", "--out", str(case.out / "run"), "--json", "-"]
    elif command == 1:
        case.argv = ["guide", *named, "--unfreeze", "none", "--trunk", "8", "--epochs", "1", "--dry-run", "--json", "-"]
    else:
        case.argv = ["splits", *named, "--json", "-"]


def stores(case: Case, bench: Path, rng: Random) -> None:
    """A broken or foreign store, to be finished."""
    path = case.out / "store.h5"
    if rng.random() < 0.65:
        path.write_bytes(mutate((bench / "store.h5").read_bytes(), rng))
    else:
        shutil.copy(bench / "store.h5", path)
        spoil_store(path, rng)
    case.argv = ["extract", "--table", str(bench / "patches.csv"), "--model", "mini_inception", "--layer", "mixed0"]
    case.argv += ["--out", str(path), "--device", "cpu", "--json", "-"]
    if rng.random() < 0.4:
        case.argv.append("--refresh")
    case.check = lambda out: _all_rows(json.loads(out), 48)


def spoil_store(path: Path, rng: Random) -> None:
    """Change what a store holds, in a file that HDF5 finds whole."""
    import h5py

    with h5py.File(path, "r+") as file:
        what = rng.integers(0, 10)
        name = str(rng.choice(["patch_ids", "stamps", "digests", "state", "values"]))
        if what == 0:
            del file[name]
        elif what == 1:
            if rng.integers(0, 2):
                del file.attrs["schema"]
            else:
                del file["provenance"]
        elif what == 2:
            del file["provenance"]
            file["provenance"] = np.bytes_(rng.choice(["{", "[]", "null", "[" * 100_000, '{"a": 1}']))
        elif what == 3:
            del file[name]
            file.create_dataset(name, (2**40,), np.uint8, chunks=(2**20,))
        elif what == 4:
            del file["values"]
            file.create_group("values/mixed0")
        elif what == 5:
            del file["patch_ids"]
            file["patch_ids"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif what == 6:
            del file["state"]
            file["state"] = np.array([b"\x80\x04code"] * 48, dtype=np.void)
        elif what == 7:
            file["state"][:] = rng.integers(0, 256, 48)
        elif what == 8:
            del file["stamps"]
            file.create_dataset("stamps", (48,), h5py.ref_dtype)
        else:
            file.attrs["schema"] = rng.integers(0, 9, 3)


def hdf5(case: Case, bench: Path, rng: Random) -> None:
    """Features, or pixels, in an HDF5 or NumPy file that is broken or of another make."""
    import h5py

    _take(case, bench, "patches.csv", "patches.h5", "features.npy", "features.h5")
    table = case.given / "patches.csv"
    probe = ["probe", "--table", str(table), "--folds", "2", "--permutations", "0", "--out", str(case.out / "run")]
    what = rng.integers(0, 10)
    if what < 2:
        path = _mutated(case, bench, "features.npy", rng)
    elif what < 4:
        path = _mutated(case, bench, "features.h5", rng)
    elif what == 4:
        path = case.given / "features.npy"
        odd = [np.array([{"a": 1}] * 48), np.zeros((48, 0)), np.full((48, 2), np.nan), np.full((48, 2), np.inf)]
        odd += [np.array(["a"] * 48), np.zeros(48), np.zeros((48, 2, 2)), np.zeros((48, 2), complex)]
        odd += [np.zeros(48, dtype=[("a", "f4")]), np.full((48, 3), 1e300)]
        np.save(path, odd[int(rng.integers(0, len(odd)))], allow_pickle=True)
    elif what == 5:
        path = case.given / "features.h5"
        with h5py.File(path, "w") as file:
            kind = rng.integers(0, 6)
            if kind == 0:
                file.create_dataset("features", (48, 2**34), np.float32, chunks=(1, 2**20), compression="gzip")
            elif kind == 1:
                file.create_group("features")
            elif kind == 2:
                file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == 3:
                file.create_dataset("features", (48, 2), h5py.ref_dtype)
            elif kind == 4:
                file["features"] = h5py.SoftLink("/features")
            else:
                file["features"] = 3.0
    else:  # pixels
        path = None
        if what < 8:
            _mutated(case, bench, "patches.h5", rng)
        else:
            with h5py.File(case.given / "patches.h5", "w") as file:
                kind = rng.integers(0, 4)
                if kind == 0:  # 12 GB in every row, of a few bytes on disk
                    shape, chunk = (48, 2**16, 2**16, 3), (1, 2**11, 2**11, 3)
                    file.create_dataset("patches", shape, np.uint8, chunks=chunk, compression="gzip")
                elif kind == 1:
                    file.create_dataset("patches", (48, 64, 64, 3), np.float32)
                elif kind == 2:
                    file.create_dataset("patches", (20, 64, 64, 3), np.uint8)
                else:
                    file.create_dataset("patches", (48, 0, 0, 3), np.uint8)
        case.argv = [
            "extract",
            "--table",
            str(table),
            "--model",
            "mini_inception",
            "--layer",
            "mixed0",
            "--device",
            "cpu",
        ]
        case.argv += ["--out", str(case.out / "s.h5"), "--on-error", "skip", "--json", "-"]
        case.check = lambda out: _all_rows(json.loads(out), 48)
    if path is not None:
        case.argv = [*probe, "--features", str(path), "--json", "-"]
        case.check = lambda out: _probed_rows(table, json.loads(out))


def weights(case: Case, bench: Path, rng: Random) -> None:
    """A weights file that is broken, lies, or would run code."""
    import torch
    from safetensors.torch import load_file, save_file

    kind = str(rng.choice(["safetensors", "pt"]))
    path = case.given / f"weights.{kind}"
    what = rng.integers(0, 8)
    if what < 4:
        _mutated(case, bench, path.name, rng)
    elif what == 4 and kind == "pt":
        path.write_bytes(stranger(case.folder / "canary"))
    elif kind == "pt":
        odd = [3, [1], {"state_dict": 3}, {"state_dict": {"a": "b"}}, {1: torch.zeros(2)}, {"a": torch.zeros(1)}, None]
        torch.save(odd[int(rng.integers(0, len(odd)))], path)
    else:
        state = load_file(bench / "weights.safetensors")
        metadata: dict[str, str] = {}
        if what == 5:
            metadata = {
                str(rng.choice(["num_classes", "mean", "std", "pad_type", "architecture"])): str(rng.choice(NASTY))
            }
        elif what == 6:
            metadata = {"num_classes": str(rng.choice(["1000000000000", "-3", "0", "nan"]))}
        else:
            name = sorted(state)[int(rng.integers(0, len(state)))]
            state[name] = (
                torch.atleast_1d(state[name].to(torch.float64))[..., :1]
                if rng.random() < 0.5
                else torch.full_like(state[name], 9)
            )
        save_file(state, path, metadata={k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()})
    case.argv = ["extract", "--table", str(bench / "patches.csv"), "--model", "test_resnet", "--weights", str(path)]
    case.argv += ["--layer", "layer1", "--out", str(case.out / "s.h5"), "--device", "cpu", "--json", "-"]
    case.check = lambda out: _all_rows(json.loads(out), 48)


def stranger(canary: Path) -> bytes:
    """Return a pickle that would write a file when it is opened."""
    import pickle

    class Opened:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(canary), "w"))

    return pickle.dumps({"state_dict": Opened()})


def checkpoints(case: Case, bench: Path, rng: Random) -> None:
    """A stranger's checkpoint."""
    folder = case.given / "checkpoint"
    shutil.copytree(bench / "guided" / "checkpoints" / "guided-seed0", folder)
    description = folder / "checkpoint.json"
    what = rng.integers(0, 4)
    if what == 0:
        (folder / "weights.safetensors").write_bytes(mutate((folder / "weights.safetensors").read_bytes(), rng))
    elif what == 1:
        description.write_bytes(mutate(description.read_bytes(), rng))
    else:
        description.write_text(json.dumps(spoil(json.loads(description.read_text()), rng)))
        if rng.random() < 0.05:
            description.write_text("[" * 200_000)
    if rng.random() < 0.7:
        case.argv = ["predict", str(folder), "--table", str(bench / "patches.csv"), "--out", str(case.out / "p.csv")]
        case.argv += ["--device", "cpu", "--json", "-"]
        case.check = lambda out: None if json.loads(out)["rows_written"] == 48 else "rows"
    else:
        case.argv = ["layers", "--model", str(folder), "--size", "64", "--json", "-"]


def spoil(value: Any, rng: Random) -> Any:
    """Return a JSON value with one of its parts, anywhere, changed."""
    places: list[tuple[Any, Any]] = []

    def walk(v: Any) -> None:
        for key in v if isinstance(v, dict) else range(len(v)) if isinstance(v, list) else ():
            places.append((v, key))
            walk(v[key])

    walk(value)
    holder, key = places[int(rng.integers(0, len(places)))]
    if rng.random() < 0.2:
        del holder[key]
    else:
        odd = [
            None,
            -1,
            0,
            1e999,
            10**30,
            10**9,
            [],
            {},
            [[]],
            True,
            "os:abort",
            "os:getcwd",
            "../x",
            3.5,
            "mini_inception",
        ]
        odd += [*NASTY[:4]]
        holder[key] = odd[int(rng.integers(0, len(odd)))]
    return value


def records(case: Case, bench: Path, rng: Random) -> None:
    """A stranger's run folder, reported."""
    kind = str(rng.choice(["probed", "guided"]))
    _take(case, bench, kind)
    folder = case.given / kind
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    record = folder / "record.json"
    what = rng.integers(0, 5)
    arrays = [p for p in (folder / "context.h5", folder / "embeddings.h5") if p.is_file()]
    if what == 0:
        record.write_bytes(mutate(record.read_bytes(), rng))
    elif what == 1 and arrays:
        path = arrays[int(rng.integers(0, len(arrays)))]
        path.write_bytes(mutate(path.read_bytes(), rng))
    else:
        record.write_text(json.dumps(spoil(json.loads(record.read_text()), rng)))
        if rng.random() < 0.05:
            record.write_text("[" * 200_000)
    if rng.random() < 0.75:
        case.argv = [
            "report",
            str(folder),
            "-o",
            str(case.out / "page.html"),
            "--csv",
            str(case.out / "csv"),
            "--json",
            "-",
        ]
        case.check = lambda out: _page_is_safe(case.out / "page.html")
    else:
        case.argv = ["status", str(folder), "--json", "-"]


def heaps(case: Case, bench: Path, rng: Random) -> None:
    """HDF5 files with texts of variable length whose heaps are damaged, in their bookkeeping or anywhere."""
    import h5py

    if rng.random() < 0.4:
        _take(case, bench, "slide.svs")
        path = case.given / "slide.h5"
        with h5py.File(path, "w") as file:
            file["coords"] = np.array([[512 * k, 0] for k in range(4)])
            file["coords"].attrs.update({"patch_size": 512, "patch_level": 0, "name": "slide", "savetodir": "x" * 300})
        case.argv = ["adapt", "coords", str(path), "--slides", str(case.given), "--out", str(case.out / "t.csv")]
        case.argv += ["--json", "-"]
    else:
        kind = str(rng.choice(["probed", "guided"]))
        _take(case, bench, kind)
        arrays = [p for name in ("context", "embeddings") if (p := case.given / kind / f"{name}.h5").is_file()]
        path = arrays[int(rng.integers(0, len(arrays)))]
        case.argv = ["report", str(case.given / kind), "-o", str(case.out / "page.html"), "--json", "-"]
        case.check = lambda out: _page_is_safe(case.out / "page.html")
    data = bytearray(path.read_bytes())
    starts = [k for k in range(0, len(data), 8) if data[k : k + 4] == b"GCOL"]
    for _ in range(int(rng.integers(1, 4))):
        start = starts[int(rng.integers(0, len(starts)))]
        if rng.random() < 0.3:
            data[start + int(rng.integers(0, 4096))] = int(rng.choice([0, 1, 255]))
            continue
        places = [start + 16]
        while data[places[-1] : places[-1] + 2] != b"\0\0" and places[-1] < start + 4000:
            places.append(
                places[-1] + 16 + -(-int.from_bytes(data[places[-1] + 8 : places[-1] + 16], "little") // 8) * 8
            )
        at = places[-1] if rng.random() < 0.5 else places[int(rng.integers(0, len(places)))]
        size = int(rng.choice(np.array([0, 1, 8, 16, 4096, 2**32, 2**63, 2**64 - 16], dtype=np.uint64)))
        data[at + 8 : at + 16] = size.to_bytes(8, "little")
    path.write_bytes(data)
