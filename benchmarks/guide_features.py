"""How long guide takes on features: two arms, 20 epochs. Endpoints, stated before the first run: the seconds of the
command, and the largest resident memory, for N rows of WIDTH float32 features in a .npy file.

    python benchmarks/guide_features.py [N] [WIDTH]     # default 100000 1536; the aim is at most 300 s
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import conceptkit as ck

SPLITS = ["train", "train", "train", "val", "internal", "external"]


def main(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    patient = np.arange(n) % max(n // 100, 24)
    label = rng.integers(0, 2, n)
    count = rng.normal(size=n) + label
    split = np.array(SPLITS)[patient % len(SPLITS)]
    frame = pd.DataFrame({"patch_id": [f"p{k:07d}" for k in range(n)], "patient": patient.astype(str), "split": split})
    frame["center"] = np.where(split == "external", "x", np.array(["a", "b", "c"])[patient % 3])
    frame["label"], frame["count"] = np.array(["normal", "tumor"])[label], count
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        X = rng.normal(size=(n, width)).astype(np.float32)
        X[:, 0] += label
        X[:, 1] += count
        np.save(folder / "f.npy", X)
        del X
        frame.assign(row=range(n)).to_csv(folder / "patches.csv", index=False)
        start, busy = time.perf_counter(), time.process_time()
        how = {
            "group": "patient",
            "epochs": 20,
            "arms": "baseline,guided",
            "encourage": "count",
            "discourage": "center",
        }
        record = ck.run_guide(folder / "patches.csv", features=folder / "f.npy", **how, out=folder / "run")
        print(f"{n} x {width}: {time.perf_counter() - start:.0f} s, {time.process_time() - busy:.0f} s of processor")
        print({run.name: round(run.metrics["external"]["auc"], 3) for run in record.runs})
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], "100000", "1536"][:2] if len(sys.argv) < 3 else sys.argv[1:3]))
