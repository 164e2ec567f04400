"""Time, memory and passes of a probe of features in a file per slide, beside reading once and one Gram matrix.

    python benchmarks/feature_files.py [--rows 1000000] [--columns 1536] [--patients 1000] [--folder F]

Made-up input (seed 0): an HDF5 file per patient as TRIDENT writes it, float16, and a table of patches with four
concepts that the features encode in part. ``conceptkit probe`` runs as a process of its own: five folds, 20 penalties
chosen by at most ten blocks of patients, all controls, no permutations.

Endpoints, fixed before the first run: peak resident memory at most 3 GB; every row read at most twice; seconds of work
at most 6 times the limit, which is reading all files once and one Gram matrix in float64, measured in the same run.
With ``--exact``, R² of each concept within 0.005 of the probe that chooses penalties by leave-one-patient-out, on
40,000 rows of 256 columns and 200 patients. The files are deleted afterwards.
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

CONCEPTS = ("a", "b", "c", "d")
HIDDEN = 64


def write(folder: Path, n: int, d: int, patients: int) -> None:
    """Write the files and the table."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir()
    mixing = (rng.normal(size=(HIDDEN, d)) / 8).astype(np.float32)
    tables = []
    for patient, rows in enumerate(np.array_split(np.arange(n), patients)):
        hidden = rng.normal(size=(1, HIDDEN)) + rng.normal(size=(len(rows), HIDDEN))
        X = hidden.astype(np.float32) @ mixing + rng.standard_normal((len(rows), d), dtype=np.float32)
        coords = np.stack([256 * (rows % 1000), 256 * (rows // 1000)], axis=1)
        with h5py.File(folder / "features" / f"S{patient:04d}.h5", "w") as file:
            file["features"], file["coords"] = X.astype(np.float16), coords
            file["features"].attrs["encoder"] = "made_up"
        values = hidden[:, : len(CONCEPTS)] + rng.normal(size=(len(rows), len(CONCEPTS))) * (0.3, 1, 3, 10)
        table = pd.DataFrame({"patch_id": [f"p{i:07d}" for i in rows], "x": coords[:, 0], "y": coords[:, 1]})
        table = table.assign(slide=f"S{patient:04d}", patient=f"P{patient:04d}")
        tables.append(table.assign(**dict(zip(CONCEPTS, values.T, strict=True))))
    pd.concat(tables).to_parquet(folder / "patches.parquet")


def limit(folder: Path, d: int) -> tuple[float, float]:
    """Return the seconds of work of reading all files once, and of one Gram matrix of their rows in float64."""
    read = gram = 0.0
    total = np.zeros((d, d))
    for path in sorted((folder / "features").iterdir()):
        start = time.process_time()
        with h5py.File(path) as file:
            X = file["features"][:]
        read += time.process_time() - start
        block = X.astype(np.float64)
        start = time.process_time()
        total += block.T @ block
        gram += time.process_time() - start
    return read, gram


def probe(folder: Path) -> tuple[float, float, int, list[float]]:
    """Run the probe in a process of its own; return seconds of work, peak memory in GB, rows read, and each R²."""
    receiver, sender = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        import conceptkit as ck
        from conceptkit.features import own_files

        rows, chosen = [0], own_files._chosen

        def counted(opened, at, path):
            rows[0] += len(at)
            return chosen(opened, at, path)

        own_files._chosen = counted
        record = ck.Probe(features=folder / "features", concepts=CONCEPTS, permutations=0).run(
            folder / "patches.parquet", out=folder / "run"
        )
        os.write(sender, repr((rows[0], [row.score for row in record.rows])).encode())
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit("the probe failed")
    count, scores = eval(os.read(receiver, 10_000).decode())  # written above
    print(f"wall time {time.perf_counter() - start:.0f} s")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, count, scores


def exact() -> None:
    """Compare the scores of blocks with those of leave-one-patient-out."""
    from conceptkit.files.matrix import ReadMatrix
    from conceptkit.probe.targets import make_target
    from conceptkit.probe.validation import validate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, 40_000, 256, 200)
        frame = pd.read_parquet(folder / "patches.parquet")
        X = np.concatenate([h5py.File(p)["features"][:] for p in sorted((folder / "features").iterdir())])
        X = X.astype(np.float32)
        targets = [
            make_target(c, "continuous", frame[c].to_numpy(), frame["patient"].to_numpy(dtype=object)) for c in CONCEPTS
        ]
        options = {"folds": 5, "permutations": 0, "controls": False}
        lazy = ReadMatrix(lambda rows: X[rows], *X.shape, folder)
        for one, other in zip(validate(X, targets, **options), validate(lazy, targets, **options), strict=True):
            difference = other.score - one.score
            print(
                f"R² {one.score:.4f} [{one.score_low:.4f}, {one.score_high:.4f}] by leave-one-patient-out, "
                f"{other.score:.4f} [{other.score_low:.4f}, {other.score_high:.4f}] by blocks: "
                f"difference {difference:+.5f} {'✓' if abs(difference) <= 0.005 else '✗'}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--exact", action="store_true")
    given = parser.parse_args()
    if given.exact:
        exact()
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder, given.rows, given.columns, given.patients)
        work, memory, rows, scores = probe(folder)
        read, gram = limit(folder, given.columns)
        size = given.rows * given.columns * 2 / 1e9
    print(
        f"{given.rows} × {given.columns} float16 ({size:.2f} GB), {given.patients} patients; R² {np.round(scores, 4)}"
    )
    ratio, passes = work / (read + gram), rows / given.rows
    print(f"limit: reading {read:.1f} s + Gram matrix {gram:.1f} s; probe {work:.1f} s: {ratio:.1f} × (at most 6)")
    print(f"memory {memory:.2f} GB (at most 3); passes over the rows {passes:.2f} (at most 2)")


if __name__ == "__main__":
    main()
