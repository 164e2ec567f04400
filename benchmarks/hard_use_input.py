"""Wild input for hard_use.py: seeded files and options, most of them broken, and what a command may make of each."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Random = np.random.Generator

NASTY = (
    *("<script>run()</script>", "../../outside", "/outside/absolute", "=cmd|' /C calc'!A0", "C:\\patches\\a.png"),
    *("\\\\server\\share\\a", "naïve ünïcode 组织", "a\u202eb", "x" * 5000, "", " ", ".", "..", "-1", "nan", "inf"),
    *("1e999", "0x10", "1_000", "3,5", "None", "null", "{{7*7}}", "${HOME}", "`touch canary`", "$(touch canary)"),
    *("a\nb", "a\tb", "[red]", "[/]", "%s%n", "\ufeffa", "'", '"', "a/b", "CON", "٣", "1" * 5000),
)
"""Texts that are names, numbers or neither"""


@dataclass
class Case:
    """One call of the command line."""

    argv: list[str]
    folder: Path
    """``folder/in`` holds its files, ``folder/out`` takes what it writes"""
    check: Callable[[str], str | None] = lambda out: None
    """Told standard output of a call that ended well, returns what was lost or ``None``"""
    notes: list[str] = field(default_factory=list)

    @property
    def given(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"


# --- what is mutated -------------------------------------------------------------------------------------------------


def write_bench(folder: Path, data: Path) -> None:
    """Write small real files of every kind that conceptkit reads, from the shared data where it has them."""
    import h5py
    import pandas as pd
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    import conceptkit as ck

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    whole = Image.open(sorted((data / "monuseg" / "images").iterdir())[0]).convert("RGB")
    mask = Image.open(sorted((data / "monuseg" / "masks").iterdir())[0])
    ids = [f"p{k // 3}-{k % 3}" for k in range(48)]
    tiles = []
    for k in range(48):
        box = (40 * (k % 12), 40 * (k // 12), 40 * (k % 12) + 64, 40 * (k // 12) + 64)
        tiles.append(np.asarray(whole.crop(box)))
        if k < 3:
            Image.fromarray(tiles[-1]).save(folder / f"{k}.jpg", quality=90)
            Image.fromarray(tiles[-1]).save(folder / f"{k}.png")
            Image.fromarray(tiles[-1]).save(folder / f"{k}.tif", compression="tiff_lzw" if k else None)
            mask.crop(box).save(folder / f"{k}-mask.png")
    with h5py.File(folder / "patches.h5", "w") as file:
        file["patches"] = np.stack(tiles)
    X = rng.normal(size=(48, 6)).astype(np.float32)
    table = pd.DataFrame(
        {
            "patch_id": ids,
            "h5": "patches.h5",
            "key": "patches",
            "row": np.arange(48),
            "patient": [f"p{k // 3}" for k in range(48)],
            "center": [f"c{k // 3 % 2}" for k in range(48)],
            "label": ["tumor" if k % 2 else "normal" for k in range(48)],
            "split": [("train", "train", "val", "internal")[k // 3 % 4] for k in range(48)],
            "count": X[:, 0].round(3),
            "area": X[:, 1].round(3),
        }
    )
    table.to_csv(folder / "patches.csv", index=False)
    table.to_parquet(folder / "patches.parquet", index=False)
    np.save(folder / "features.npy", X)
    with h5py.File(folder / "features.h5", "w") as file:
        file["features"], file["coords"] = X, np.stack([np.arange(48) * 64, np.zeros(48, int)], axis=1)
    (folder / "conceptkit.toml").write_text(
        'name = "bench"\ntable = "patches.csv"\nmodel = "mini_inception"\nweights = "bundled"\nlayers = ["mixed0"]\n'
        'group = "patient"\n[concepts]\nprobe = ["count"]\nencourage = ["count"]\ndiscourage = ["center"]\n'
        'kind = {count = "continuous"}\n[splits]\nread = "internal"\n'
    )
    study = ck.load_study(folder / "conceptkit.toml")
    ck.run_probe(study, features=folder / "features.npy", permutations=0, folds=2, out=folder / "probed")
    options = {"epochs": 1, "warmup": 0, "trunk": (8,), "unfreeze": ()}
    ck.run_guide(study, **options, folds=2, out=folder / "guided")
    from conceptkit.commands.extract import extract

    extract("mini_inception", folder / "patches.csv", layers=["mixed0"], store=folder / "store.h5", device="cpu")
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "weights.safetensors")
    torch.save(state, folder / "weights.pt")
    shutil.copy(data / "wsi" / "cmu-1-small-region.svs", folder / "slide.svs")
    square = [[100.5, 100], [1500, 120], [1400, 1700], [90, 1600], [100.5, 100]]
    shape = {"type": "Polygon", "coordinates": [square]}
    geojson = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": shape, "properties": {}}]}
    (folder / "slide.geojson").write_text(json.dumps(geojson))
    points = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(square[:4]))
    drawn = f'<Annotation Name="a" Type="Polygon" PartOfGroup="t"><Coordinates>{points}</Coordinates></Annotation>'
    (folder / "slide.xml").write_text(f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>")


def mutate(content: bytes, rng: Random) -> bytes:
    """Return the bytes with something of what disks, networks and liars do to them."""
    kind = rng.integers(0, 9)
    n = len(content)
    if n == 0:
        return bytes(rng.bytes(16))
    at = int(rng.integers(0, n))
    if kind == 0:
        return content[:at]  # cut off
    if kind == 1:
        return content[: int(rng.integers(0, min(64, n)))]  # hardly begun
    if kind == 2:  # a bit here and there
        out = bytearray(content)
        for k in rng.integers(0, n, size=int(rng.integers(1, 30))):
            out[k] ^= 1 << int(rng.integers(0, 8))
        return bytes(out)
    if kind == 3:  # a block never written
        return content[:at] + bytes(min(4096, n - at)) + content[at + 4096 :]
    if kind == 4:  # a block twice
        return content[:at] + content[max(0, at - 512) : at] + content[at:]
    if kind == 5:
        return content[:at] + rng.bytes(int(rng.integers(1, 200))) + content[at:]
    if kind in (6, 7):  # a header that lies: a number in the first bytes is huge, zero or negative
        out = bytearray(content)
        place = int(rng.integers(0, max(1, min(n - 4, 256))))
        out[place : place + 4] = struct.pack(
            rng.choice(["<i", ">i"]), int(rng.choice([-1, 0, 1, 2**31 - 1, 2**24, 65535]))
        )
        return bytes(out)
    return rng.bytes(n if n < 100_000 else 1000)


def _mutated(case: Case, bench: Path, name: str, rng: Random, *, as_name: str | None = None) -> Path:
    path = case.given / (as_name or name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mutate((bench / name).read_bytes(), rng))
    return path


def _take(case: Case, bench: Path, *names: str) -> None:
    for name in names:
        if (bench / name).is_dir():
            shutil.copytree(bench / name, case.given / name)
        else:
            shutil.copy(bench / name, case.given / name)


# --- families --------------------------------------------------------------------------------------------------------


def images(case: Case, bench: Path, rng: Random) -> None:
    """One broken image or mask among three, measured or extracted."""
    _take(case, bench, *(f"{k}.{kind}" for k in range(3) for kind in ("jpg", "png", "tif")), *_masks())
    kind = str(rng.choice(["jpg", "png", "tif"]))
    names = [f"{k}.{kind}" for k in range(3)]
    what = rng.integers(0, 10)
    if what < 5:
        _mutated(case, bench, names[0], rng)
    elif what == 5:
        (case.given / names[0]).write_bytes(
            png_of(*[(30_000, 30_000), (1, 2**31 - 1), (13_000, 13_000)][rng.integers(3)])
        )
    elif what == 6:
        shutil.copy(bench / f"1.{rng.choice(['jpg', 'png', 'tif'])}", case.given / names[0])  # another kind's name
    elif what == 7:
        odd_image(case.given / "0.png", rng)
        names[0] = "0.png"
    else:
        _mutated(case, bench, "0-mask.png", rng)
    with_masks = what > 7 or rng.random() < 0.5
    rows = [["image", "patient", "mpp", *(["mask"] if with_masks else [])]]
    for k, name in enumerate(names):
        rows.append([name, f"p{k}", "0.25", *([f"{k}-mask.png"] if with_masks else [])])
    _write_csv(case.given / "images.csv", rows)
    if rng.random() < 0.3:
        case.argv = [
            "extract",
            "--model",
            "mini_inception",
            "--layer",
            "mixed0",
            "--table",
            str(case.given / "images.csv"),
        ]
        case.argv += ["--out", str(case.out / "s.h5"), "--on-error", "skip", "--device", "cpu", "--json", "-"]
        case.check = lambda out: _all_rows(json.loads(out), 3)
    else:
        case.argv = ["measure", str(case.given / "images.csv"), "--out", str(case.out / "t.csv"), "--patch-size", "32"]
        case.argv += ["--on-error", str(rng.choice(["skip", "fail"])), "--workers", "1", "--json", "-"]
        if rng.random() < 0.2:
            case.argv += ["--nuclei", "hematoxylin"]
        case.check = lambda out: _all_images(case, json.loads(out), 3)


def _masks() -> list[str]:
    return [f"{k}-mask.png" for k in range(3)]


def png_of(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it has so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def odd_image(path: Path, rng: Random) -> None:
    """Write an image that is whole, but not of the usual kind."""
    from PIL import Image

    pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    kind = rng.integers(0, 7)
    if kind == 0:
        Image.fromarray(pixels > 128).save(path)
    elif kind == 1:
        Image.fromarray(pixels.astype(np.uint16) * 256).save(path)
    elif kind == 2:
        Image.fromarray(pixels).convert("P").save(path)
    elif kind == 3:
        Image.fromarray(np.dstack([pixels] * 4)).save(path)
    elif kind == 4:
        Image.fromarray(pixels[:1, :1]).save(path)
    elif kind == 5:
        Image.fromarray(pixels).convert("LA").save(path)
    else:
        frames = [Image.fromarray(pixels)] * 3
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def slides(case: Case, bench: Path, rng: Random) -> None:
    """A broken slide beside a good one."""
    what = rng.integers(0, 6)
    if what < 4:
        _mutated(case, bench, "slide.svs", rng, as_name="bad.svs")
    elif what == 4:
        (case.given / "bad.svs").write_bytes((bench / "1.tif").read_bytes())
    else:
        (case.given / "bad.svs").write_bytes(png_of(30_000, 30_000))
    good = bench / "slide.svs"
    case.argv = ["tile", str(case.given / "bad.svs"), str(good), "--out", str(case.out / "t.csv"), "--size", "512"]
    case.argv += ["--export", str(rng.choice(["none", "png", "h5"])), "--workers", "1", "--json", "-"]
    if rng.random() < 0.3:
        case.argv += ["--mpp", str(rng.choice(["0.5", "-1", "nan", "inf", "0", "1e-9", "1e9"]))]
    if rng.random() < 0.3:
        case.argv += ["--tile-mpp", str(rng.choice(["0.5", "2", "-1", "nan", "1e9", "1e-9"]))]
    case.check = lambda out: _all_slides(case, json.loads(out), ["bad", "slide"])


def annotations(case: Case, bench: Path, rng: Random) -> None:
    """Broken XML or GeoJSON."""
    kind = str(rng.choice(["xml", "geojson"]))
    path = case.given / f"slide.{kind}"
    text = (bench / path.name).read_text()
    what = rng.integers(0, 10)
    if what < 4:
        _mutated(case, bench, path.name, rng)
    elif what < 6:  # another number
        number = str(rng.choice(["1500", "1400", "1600", "1700"]))
        other = str(rng.choice(["nan", "NaN", "inf", "Infinity", "1e999", "-1e30", '"a"', "null", "1,5", "9" * 400]))
        path.write_text(text.replace(number, other.strip('"') if kind == "xml" else other, 1))
    elif what == 6:
        deep = 200_000
        path.write_text("<a>" * deep if kind == "xml" else "[" * deep)
    elif what == 7:
        entities = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10 if k else "lol" * 10}">' for k in range(12))
        outside = '<!ENTITY x SYSTEM "file:///etc/passwd">'
        body = text.replace('Name="a"', 'Name="a">&e11;&x;</Annotation><Annotation Name="b"')
        path.write_text(f"<!DOCTYPE a [{entities}{outside}]>{body}" if kind == "xml" else '{"features": [null, 3, {}]}')
    elif what == 8:
        names = {"Polygon": "Circle", "ASAP_Annotations": "b"} if kind == "xml" else {"Polygon": "Circle"}
        for old, new in names.items():
            if rng.random() < 0.6:
                text = text.replace(old, new)
        path.write_text(text)
    else:
        path.write_text(text.replace("100", "700"))
    case.argv = ["tile", str(bench / "slide.svs"), "--out", str(case.out / "t.csv"), "--size", "512", "--json", "-"]
    case.argv += ["--annotations", str(case.given), "--workers", "1"]
    case.check = lambda out: _all_slides(case, json.loads(out), ["slide"])


def tables(case: Case, bench: Path, rng: Random) -> None:
    """A patch table as spreadsheets, people and accidents leave it."""
    _take(case, bench, "patches.h5", "features.npy")
    rows = list(csv.reader((bench / "patches.csv").open(newline="")))
    header = rows[0]
    options: dict[str, Any] = {}
    text: str | None = None
    for _ in range(int(rng.integers(1, 3))):
        what = rng.integers(0, 16)
        column = int(rng.integers(0, len(header)))
        line = int(rng.integers(1, len(rows)))
        odd = str(rng.choice(NASTY))
        if what == 0:
            options["encoding"] = str(rng.choice(["utf-8-sig", "utf-16", "latin-1", "cp1252"]))
            rows[line][-1:] = ["Zürich"]
        elif what == 1:
            options["delimiter"] = str(rng.choice([";", "\t", "|"]))
        elif what == 2:
            place = header.index("count") if "count" in header else column
            for row in rows[1:]:
                row[place:] = [cell.replace(".", ",") if k == 0 else cell for k, cell in enumerate(row[place:])]
        elif what == 3:
            header[column] = str(rng.choice(header))
        elif what == 4:
            header[column] = odd
        elif what in (5, 6, 7):
            rows[line][column : column + 1] = [odd]
        elif what == 8:
            rows[line][column : column + 1] = ["x" * 10**6]
        elif what == 9:
            rows[line] += ["more"] * int(rng.integers(1, 4))
        elif what == 10:
            rows[line] = rows[line][: int(rng.integers(0, len(header)))]
        elif what == 11:
            text = _csv_text(rows, options)
            at = int(rng.integers(0, len(text)))
            text = text[:at] + str(rng.choice(["\0", '"', "\r", "\x1a", "\x0b", "\u2028"])) + text[at:]
        elif what == 12:
            for row in rows[1:]:
                row[column : column + 1] = [odd]
        elif what == 13:
            for row in rows:
                del row[column : column + 1]
            header = rows[0]
        elif what == 14:
            rows.insert(line, list(rows[line]))
        else:
            place = header.index("count") if "count" in header else column
            number = rng.choice(
                ["inf", "-inf", "1e400", "nan", "1e-400", "9" * 30, "Infinity", "-0", "+5", " 5 ", "5 µm"]
            )
            rows[line][place : place + 1] = [str(number)]
    path = case.given / "patches.csv"
    body = text if text is not None else _csv_text(rows, options)
    content = body.encode(options.get("encoding", "utf-8"), "replace")
    path.write_bytes(mutate(content, rng) if rng.random() < 0.1 else content)
    command = rng.integers(0, 4)
    if command < 2:
        case.argv = ["probe", "--table", str(path), "--features", str(case.given / "features.npy"), "--folds", "2"]
        case.argv += ["--permutations", "0", "--out", str(case.out / "run"), "--json", "-"]
        case.check = lambda out: _table_kept(path) or _probed_rows(path, json.loads(out))
    elif command == 2:
        case.argv = ["splits", "--table", str(path), "--json", "-"]
        case.check = lambda out: _table_kept(path)
    else:
        case.argv = [
            "measure",
            str(path),
            "--out",
            str(case.out / "t.csv"),
            "--measure",
            "jpeg_quality,blur,brightness",
        ]
        case.argv[-1] = "nuisances"
        case.argv += ["--on-error", "skip", "--workers", "1", "--json", "-"]
        case.check = lambda out: _table_kept(path) or _measured_rows(path, case, json.loads(out))


def image_lists(case: Case, bench: Path, rng: Random) -> None:
    """A list of images whose cells are names from elsewhere; what is found is kept as files."""
    _take(case, bench, "0.png", "1.png", "2.png")
    rows = [["image", "image_id", "patient", "mpp", "note"]]
    rows += [[f"{k}.png", f"i{k}", f"p{k}", "0.25", "a"] for k in range(3)]
    for _ in range(int(rng.integers(1, 4))):
        rows[int(rng.integers(0, 4))][int(rng.integers(0, 5))] = str(rng.choice(NASTY))
    _write_csv(case.given / "images.csv", rows)
    case.argv = ["measure", str(case.given / "images.csv"), "--out", str(case.out / "t.csv"), "--patch-size", "32"]
    case.argv += ["--nuclei", "hematoxylin", "--masks-out", str(case.out / "masks"), "--on-error", "skip"]
    case.argv += ["--workers", "1", "--json", "-"]
    case.check = lambda out: _all_images(case, json.loads(out), 3)


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


def options(case: Case, bench: Path, rng: Random) -> None:
    """A good call with one or two options that are not."""
    import typer

    from conceptkit.cli import app

    study = ["--study", str(bench / "conceptkit.toml")]
    checkpoint = str(bench / "guided" / "checkpoints" / "guided-seed0")
    good = {
        "probe": [*study, "--features", str(bench / "features.npy"), "--permutations", "0", "--folds", "2"],
        "guide": [*study, "--unfreeze", "none", "--trunk", "8", "--epochs", "1", "--warmup", "0", "--dry-run"],
        "predict": [checkpoint, "--table", str(bench / "patches.csv"), "--out", str(case.out / "p.csv")],
        "predictivity": [*study, "--concept", "count", "--seeds", "1"],
        "attribute": [*study, "--layer", "mixed0", "--concept", "count"],
        "audit": [checkpoint, *study, "--concept", "count"],
        "tile": [str(bench / "slide.svs"), "--out", str(case.out / "t.csv"), "--size", "512"],
        "measure": [str(bench / "patches.csv"), "--out", str(case.out / "m.csv"), "--measure", "nuisances"],
        "splits": study,
        "extract": [*study, "--layer", "mixed0", "--out", str(case.out / "s.h5")],
        "layers": ["--model", "mini_inception", "--size", "64"],
        "report": [str(bench / "probed"), "-o", str(case.out / "page.html")],
        "init": [str(case.out / "new")],
        "status": [str(bench / "probed")],
    }
    command = str(rng.choice(sorted(good)))
    argv = list(good[command])
    known = [
        p for p in typer.main.get_command(app).commands[command].params if p.opts and p.param_type_name == "option"
    ]
    if command in ("probe", "guide", "predictivity", "attribute", "audit"):
        argv += ["--out", str(case.out / "run")]
    for _ in range(int(rng.integers(1, 3))):
        option = known[int(rng.integers(0, len(known)))]
        if option.name in ("device", "debug", "json", "help", "engine", "devices", "nodes"):
            continue
        argv.append(str(rng.choice([*option.opts, *option.secondary_opts])))
        if not option.is_flag:
            argv.append(
                str(rng.choice([*NASTY, "0", "1", "2", "-5", "99999999999999999999", "1,2", ",", ";", "a=b", "count"]))
            )
    # A place that the user names may be written to: it has to lie where the campaign works.
    case.argv = [command, *(str(case.out / "absolute") if a == "/outside/absolute" else a for a in argv)]
    case.notes.append("places named by the user")


FAMILIES: dict[str, tuple[Callable[[Case, Path, Random], None], int]] = {
    "options": (options, 190),
    "images and masks": (images, 90),
    "lists of images": (image_lists, 40),
    "slides": (slides, 40),
    "annotations": (annotations, 50),
    "tables (CSV)": (tables, 130),
    "tables (Parquet)": (parquet, 30),
    "study files": (studies, 70),
    "stores": (stores, 60),
    "features and pixels (HDF5, npy)": (hdf5, 60),
    "weights": (weights, 40),
    "checkpoints": (checkpoints, 60),
    "run folders": (records, 70),
    "heaps of HDF5": (heaps, 60),
}
"""Name → how a case is made, and how many are"""


# --- what must not be lost -------------------------------------------------------------------------------------------


def _csv_text(rows: list[list[str]], options: dict[str, Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=options.get("delimiter", ","), lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    path.write_text(_csv_text(rows, {}), encoding="utf-8", errors="replace")


def _all_rows(body: dict[str, Any], n: int) -> str | None:
    got = body["rows"] + len(body["skipped"])
    return None if got == n else f"{got} of {n} rows accounted for"


def _all_images(case: Case, body: dict[str, Any], n: int) -> str | None:
    lines = list(csv.DictReader((case.out / "t.csv").open(newline="", encoding="utf-8")))
    got = len({line["image"] + "|" + line["patch_id"].rpartition("_x")[0] for line in lines}) + len(body["skipped"])
    return None if got == n else f"{got} of {n} images accounted for"


def _all_slides(case: Case, body: dict[str, Any], stems: list[str]) -> str | None:
    lines = list(csv.DictReader((case.out / "t.csv").open(newline="", encoding="utf-8")))
    got = {line["group"] for line in lines} | {Path(s["what"]).stem for s in body["skipped"]}
    return None if got == set(stems) else f"{sorted(got)} of {stems} accounted for"


def _plain_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV as the standard library does."""
    csv.field_size_limit(10**8)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return [row for row in csv.DictReader(stream) if any(v for v in row.values())]


def _table_kept(path: Path) -> str | None:
    """Return what a table that was accepted lost of the file's cells."""
    from conceptkit.tables.patches import load_table

    plain = _plain_rows(path)
    frame = load_table(path).frame
    if len(plain) != len(frame):
        return f"{len(frame)} of {len(plain)} rows read"
    if "patch_id" not in plain[0]:
        return None
    place = {name: k for k, name in enumerate(frame["patch_id"])}
    for row in plain:
        if row["patch_id"] not in place:
            return f"patch {row['patch_id'][:40]!r} is gone"
        read = frame.iloc[place[row["patch_id"]]]
        for name, cell in row.items():
            if name is None or name == "":
                return f"cells without a name were dropped: {str(cell)[:40]!r}"
            if name not in read:
                return f"column {name[:40]!r} is gone"
            if not _same(cell or "", read[name]):
                return f"{name[:40]} {cell[:40]!r} was read as {str(read[name])[:40]!r}"
    return None


def _same(cell: str, read: Any) -> bool:
    import pandas as pd

    if pd.isna(read):
        return cell.strip().lower() in ("", "na", "n/a", "nan", "null", "none")
    if isinstance(read, str):
        return read == cell
    if isinstance(read, (bool, np.bool_)):
        return str(read).lower() == cell.lower()
    try:
        return float(cell) == float(read) or bool(np.isclose(float(cell), float(read), rtol=1e-12))
    except ValueError:
        return False


def _probed_rows(path: Path, body: dict[str, Any]) -> str | None:
    """Return what of the rows that have a value was not probed, and not told."""
    plain = _plain_rows(path)
    for row in body["rows"]:
        filled = [r for r in plain if _filled(r.get(row["concept"]), row["kind"])]
        if row["n"] != len(filled):
            return f"{row['concept']}: {row['n']} rows probed of {len(filled)} filled"
    return None


def _filled(cell: str | None, kind: str) -> bool:
    if cell is None or cell == "":
        return False
    return kind == "categorical" or cell.strip().lower() not in ("", "na", "n/a", "nan", "null", "none")


def _measured_rows(path: Path, case: Case, body: dict[str, Any]) -> str | None:
    if "rows_written" not in body or not path.is_file():
        return None
    lines = list(csv.DictReader((case.out / "t.csv").open(newline="", encoding="utf-8")))
    got, n = len(lines) + len(body["skipped"]), len(_plain_rows(path))
    return None if got == n else f"{got} of {n} rows accounted for"


def _page_is_safe(path: Path) -> str | None:
    text = path.read_text(encoding="utf-8")
    return "a name became part of the page" if "<script>run()" in text else None
