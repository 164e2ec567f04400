"""Time and memory of the export to QuPath and of the way back: each call as a process of its own.

    python benchmarks/qupath.py [--tiles 100000] [--nuclei 500000] [--folder F] [--only tiles,nuclei]

Made-up input, drawn with seed 0: a slide of one level, tiles of 224 pixels with 20 columns of numbers, and nuclei with
contours of 24 vertices and 12 measures. Endpoints: wall time, seconds of work, and peak memory (resident, imports
included) of ``conceptkit qupath`` and of ``conceptkit adapt qupath``. Bounds: 10 s and 300 MB for the tiles, 60 s for
the nuclei, and twice the time of the bound for the way back. Ratio within the run: seconds of work of each call to
those of reading and writing as many of the same objects by the ``json`` module.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import tifffile
from rich.console import Console
from rich.table import Table

SIDE, MEASURES, NUCLEUS_MEASURES, VERTICES = 224, 20, 12, 24


def write_slide(folder: Path, side: int) -> Path:
    """Write a slide of glass: a pyramid that states 0.25 µm per pixel."""
    path = folder / "slide.tif"
    tile = np.full((1024, 1024, 3), 240, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, factor in enumerate((1, 16)):
            size = -(-side // factor)
            number = (-(-size // 1024)) ** 2
            resolution = (1e4 / 0.25 / factor,) * 2
            more = {} if level == 0 else {"subfiletype": 1}
            file.write(
                (tile for _ in range(number)),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(1024, 1024),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                resolution=resolution,
                resolutionunit="CENTIMETER",
                **more,
            )
    return path


def write_tiles(folder: Path, n: int, slide: Path, across: int) -> Path:
    """Write a patch table of n tiles."""
    rng = np.random.default_rng(0)
    k = np.arange(n)
    x, y = SIDE * (k % across), SIDE * (k // across)
    table = {"patch_id": [f"slide_x{a}_y{b}" for a, b in zip(x, y, strict=True)], "slide": slide.name, "x": x, "y": y}
    table |= {"size": SIDE, "side": SIDE, "mpp": 0.25, "label": np.where(rng.random(n) < 0.3, "tumor", "normal")}
    table |= {f"concept_{m}": rng.normal(size=n) for m in range(MEASURES)}
    path = folder / "tiles.parquet"
    pd.DataFrame(table).to_parquet(path, index=False)
    return path


def write_nuclei(folder: Path, n: int, slide: Path, side: int) -> Path:
    """Write a table of n nuclei with contours, in parts."""
    rng = np.random.default_rng(0)
    path, writer = folder / "nuclei.parquet", None
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    for start in range(0, n, 50_000):
        m = min(50_000, n - start)
        centre = rng.uniform(50, side - 50, (m, 2))
        radius = rng.uniform(8, 20, (m, 1)) * (1 + 0.1 * rng.normal(size=(m, VERTICES)))
        points = centre[:, None] + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        values = pyarrow.array(np.round(points, 1).ravel())
        pairs = pyarrow.ListArray.from_arrays(np.arange(0, 2 * m * VERTICES + 1, 2, dtype=np.int32), values)
        contour = pyarrow.ListArray.from_arrays(np.arange(0, m * VERTICES + 1, VERTICES, dtype=np.int32), pairs)
        columns = {"slide": [slide.name] * m, "x": centre[:, 0], "y": centre[:, 1]}
        columns |= {f"measure_{k}": rng.normal(size=m).round(4) for k in range(NUCLEUS_MEASURES)}
        columns |= {"type": rng.choice(["neoplastic", "inflammatory", "connective"], m), "contour": contour}
        table = pyarrow.table(columns)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


RUN = """
import os, runpy, sys
try:
    runpy.run_module("conceptkit", run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as out:
        out.write(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
"""The program, and its peak memory when it has ended: that of ``wait4`` counts what the process was forked from."""


def call(words: list[str], folder: Path) -> tuple[float, float, float]:
    """Run the program; return seconds of wall time and of work, and peak megabytes (0 unless it is ``RUN``)."""
    began = time.perf_counter()
    peak = folder / "peak.txt"
    peak.write_text("0")
    process = os.posix_spawnp(sys.executable, [sys.executable, *words], {**os.environ, "PEAK": str(peak)})
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {status}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, int(peak.read_text()) / 1024


PLAIN = """
import json, sys, time
with open(sys.argv[1], encoding="utf-8") as stream:
    lines = [line.rstrip(",\\n") for line, _ in zip(stream, range(20_001))][1:]
began = time.process_time()
features = [json.loads(line) for line in lines]
with open(sys.argv[2], "w", encoding="utf-8") as stream:
    for feature in features:
        stream.write(json.dumps(feature))
with open(sys.argv[3], "w") as stream:
    stream.write(str((time.process_time() - began) / len(features)))
"""
"""Seconds of work for one object that is read and written by the ``json`` module, of the first 20,000."""


def main() -> None:
    """Print each endpoint beside its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--nuclei", type=int, default=500_000)
    parser.add_argument("--only", default="tiles,nuclei")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    across = int(np.ceil(np.sqrt(options.tiles)))
    side = max(SIDE * across, 4096)
    slide = write_slide(folder, side)
    shown = Table(title="Export to QuPath, and back")
    for name in ("call", "wall s", "work s", "MB", "against json", "bound", ""):
        shown.add_column(name, justify="left" if name == "call" else "right")
    for part, write, number, most, memory in (
        ("tiles", lambda n: write_tiles(folder, n, slide, across), options.tiles, 10, 300),
        ("nuclei", lambda n: write_nuclei(folder, n, slide, side), options.nuclei, 60, None),
    ):
        if part not in options.only.split(","):
            continue
        source = write(number)
        out, back = folder / f"exported-{part}", folder / f"back-{part}.parquet"
        shutil.rmtree(out, ignore_errors=True)
        there = call(["-c", RUN, "qupath", str(source), "--out", str(out)], folder)
        script = folder / "plain.py"
        script.write_text(PLAIN, encoding="utf-8")
        call(
            [str(script), str(out / "slide.tif.geojson"), str(folder / "plain.json"), str(folder / "plain.txt")], folder
        )
        plain = float((folder / "plain.txt").read_text()) * number
        extra = []
        if part == "nuclei":  # nuclei come back next to a table of tiles
            extra = ["--table", str(write_tiles(folder, 1000, slide, across))]
        again = call(["-c", RUN, "adapt", "qupath", str(out), "--out", str(back), *extra], folder)
        for name, (wall, work, megabytes), bound in (("export", there, most), ("back", again, 2 * most)):
            limit = memory if name == "export" else None
            good = wall <= bound and (limit is None or megabytes <= limit)
            shown.add_row(
                f"{name}, {number:,} {part}",
                f"{wall:.1f}",
                f"{work:.1f}",
                f"{megabytes:.0f}",
                f"{work / plain:.2f}",
                f"{bound} s" + (f", {limit} MB" if limit else ""),
                "✓" if good else "✗",
            )
    Console(width=120).print(shown)
    print(json.dumps({"tiles": options.tiles, "nuclei": options.nuclei, "folder": str(folder)}))


if __name__ == "__main__":
    main()
