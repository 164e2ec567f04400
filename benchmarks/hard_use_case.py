"""A case of wild input, the bench that it breaks, and whether a command kept what it was given."""

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
