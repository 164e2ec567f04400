"""Time and memory of RI, MaRI and CRoMa, beside the package croma.

    python benchmarks/robustness.py                          # 100,000 × 1,536: hours for croma on two cores
    python benchmarks/robustness.py --rows 10000 --only ours,croma
    python benchmarks/robustness.py --clock cpu              # on a machine that others use: seconds of work

Each runs in its own process, on the same features of 64 bits: rows of patients of five centers with two labels. `ours`
includes what the intervals over patients and the values without each center need; croma computes the indices only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import numpy as np

BOUND, AIM = 2.0, 0.5
ROWS_OF_A_PATIENT = 50


def made(rows, width):
    rng = np.random.default_rng(28)
    patient = np.arange(rows) // ROWS_OF_A_PATIENT
    center, label = patient % 5, rng.integers(0, 2, rows)
    X = rng.normal(size=(rows, width))
    for means, codes, sd in ((patient.max() + 1, patient, 0.3), (5, center, 0.3), (2, label, 0.3)):
        X += sd * rng.normal(size=(means, width))[codes]
    return X, label, center, patient


def ours(X, label, center, patient):
    from conceptkit.probe.robustness import robustness_indices
    from conceptkit.probe.robustness_intervals import over_patients

    found = robustness_indices(X, label, center, patient)
    ends = {name: over_patients(one, found.cohort) for name, one in found.indices.items()}
    return {name: ends[name].mean for name in ("RI", "MaRI", "CRoMa", "CRoMa tail")}


def croma(X, label, center, patient):
    import croma as package
    import pandas as pd

    warnings.simplefilter("ignore")
    manifest = pd.DataFrame({"sample_id": np.arange(len(X)).astype(str), "image_path": "none"})
    manifest["label"], manifest["center"], manifest["group_id"] = label, center, patient
    ri, mari = (
        one.compute(X, manifest, confounder_column="center", k_candidates=[5, 11, 21])
        for one in (package.RI, package.MaRI)
    )
    margin = package.CRoMa.compute(X, manifest, confounder_column="center")
    return {"RI": ri.value, "MaRI": mari.value, "CRoMa": margin.value, "CRoMa tail": margin.ltm_alpha}


def child(name, rows, width):
    data = made(rows, width)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, work = time.perf_counter(), time.process_time()
    values = {"ours": ours, "croma": croma}[name](*data)
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - start,
                "cpu": time.process_time() - work,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "data": base / 2**20,
                "values": values,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--only", default="ours,croma")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.rows, options.width)
        return
    found = {}
    for name in options.only.split(","):
        command = [sys.executable, __file__, "--rows", str(options.rows), "--width", str(options.width)]
        ran = subprocess.run([*command, "--child", name], capture_output=True, text=True, check=True)
        found[name] = one = json.loads(ran.stdout.splitlines()[-1])
        print(
            f"{name:6} {options.rows} × {options.width}: {one['wall']:.1f} s ({one['cpu']:.1f} s of work), peak "
            f"{one['peak']:.2f} GiB, of which {one['data']:.2f} GiB with the features before it began",
            flush=True,
        )
    if len(found) == 2:
        ratio = found["ours"][options.clock] / found["croma"][options.clock]
        apart = max(abs(found["ours"]["values"][name] - value) for name, value in found["croma"]["values"].items())
        mark = "✓" if ratio <= BOUND else "✗"
        print(f"ratio {ratio:.2f} {mark} (at most {BOUND}; aim {AIM}); values differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
