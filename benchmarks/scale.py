"""Memory and time of extract, probe and report as the table grows: each command as a process of its own.

    python benchmarks/scale.py [--rows 10000 100000] [--only extract,probe,report] [--permutations 1000] [--folder F]

Made-up input: patches of 64 pixels in one HDF5 file, read by ``mini_inception`` at ``mixed2``; 2,048 features in
float32 of patients of 200 patches, and three concepts of which they tell something. The report is that of the probe.
Peak memory is that of the process (resident, imports included), time is wall time and seconds of work; bound: memory
of the larger table at most 1.2 times that of the smaller one plus the Gram matrices (folds and all rows, float64).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

SIDE, COLUMNS, PER_PATIENT, FOLDS = 64, 2048, 200, 5

GRAM_MB = (FOLDS + 1) * COLUMNS**2 * 8 / 1e6

PARTS = ("extract", "probe", "report")


def write_pixels(folder: Path, n: int) -> None:
    """Write n patches of coloured noise, and their table."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / f"pixels{n}.h5", "w") as file:
        pixels = file.create_dataset("patches", (n, SIDE, SIDE, 3), np.uint8, chunks=(1, SIDE, SIDE, 3))
        for i in range(0, n, 1000):
            tint = rng.integers(100, 200, (min(1000, n - i), 1, 1, 3))
            pixels[i : i + 1000] = tint + rng.integers(-40, 40, (len(tint), SIDE, SIDE, 3))
    rows = np.arange(n)
    table = pd.DataFrame(
        {"patch_id": [f"p{i:07d}" for i in rows], "h5": f"pixels{n}.h5", "key": "patches", "row": rows}
    )
    table.to_csv(folder / f"pixels{n}.csv", index=False)


def write_features(folder: Path, n: int) -> None:
    """Write n rows of features, and a table with three concepts."""
    rng = np.random.default_rng(0)
    features = np.lib.format.open_memmap(folder / f"features{n}.npy", "w+", np.float32, (n, COLUMNS))
    mixing = rng.normal(size=(64, COLUMNS)) / 8
    patient = np.arange(n) // PER_PATIENT
    of_patient = rng.normal(size=(patient[-1] + 1, 64))
    concepts = np.empty((n, 3))
    for i in range(0, n, 5000):
        hidden = of_patient[patient[i : i + 5000]] + rng.normal(size=(min(5000, n - i), 64))
        features[i : i + 5000] = hidden @ mixing + rng.normal(size=(len(hidden), COLUMNS))
        concepts[i : i + 5000] = hidden[:, :3] + rng.normal(size=(len(hidden), 3)) * (1, 2, 0.1)
    features.flush()
    table = pd.DataFrame({"patch_id": [f"p{i:07d}" for i in range(n)], "row": np.arange(n)})
    table["patient"] = [f"g{k:05d}" for k in patient]
    table.assign(**dict(zip("abc", concepts.T, strict=True))).to_csv(folder / f"features{n}.csv", index=False)


def commands(folder: Path, n: int, permutations: int) -> dict[str, list[str]]:
    """Return what is run for each part."""
    probe = ["--features", f"features{n}.npy", "--concept", "a,b,c", "--permutations", str(permutations)]
    network = ["--model", "mini_inception", "--weights", "bundled", "--layer", "mixed2"]
    return {
        "extract": ["extract", "--table", f"pixels{n}.csv", *network, "--out", f"store{n}.h5"],
        "probe": ["probe", "--table", f"features{n}.csv", "--group", "patient", *probe, "--out", f"probe{n}"],
        "report": ["report", f"probe{n}", "-o", f"report{n}.html"],
    }


def run(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command to its end; return its seconds, its seconds of work, and its peak resident memory in MB."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sink = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1), os.dup2(sink, 2)
        os.execv(sys.executable, [sys.executable, "-m", "conceptkit", *arguments])
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{(folder / 'said.txt').read_text()[-2000:]}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one is removed afterwards")
    given = parser.parse_args()
    small, large = given.rows
    table = Table(title=f"{small} and {large} rows; Gram matrices {GRAM_MB:.0f} MB")
    for name in ("command", "seconds", "of work", "work per row", "peak MB", "allowed", "", "written MB"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        os.environ["CONCEPTKIT_CACHE"] = str(folder / "cache")
        for part in given.only.split(","):
            found = []
            for n in given.rows:
                if part == "extract":
                    write_pixels(folder, n)
                elif part == "probe":
                    write_features(folder, n)
                found.append(run(commands(folder, n, given.permutations)[part], folder))
            (t1, w1, m1), (t2, w2, m2) = found
            allowed = 1.2 * m1 + (GRAM_MB if part == "probe" else 0)
            out = folder / {"extract": f"store{large}.h5", "probe": f"probe{large}/context.h5"}.get(
                part, f"report{large}.html"
            )
            table.add_row(
                part,
                f"{t1:.0f}, {t2:.0f}",
                f"{w1:.0f}, {w2:.0f}",
                f"{w2 / w1 / (large / small):.2f} ×",
                f"{m1:.0f}, {m2:.0f}",
                f"{allowed:.0f}",
                "✓" if m2 <= allowed else "✗",
                f"{out.stat().st_size / 1e6:.1f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
