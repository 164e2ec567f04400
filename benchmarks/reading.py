"""How long a trained network is read with the endpoints by center and the kernel probe, and without both.

    python benchmarks/reading.py                  # the embedded study; asked: at most 1.5 times as long

The trunk is a random ReLU layer of 64 units on the pooled output of mixed10. Both ways alternate in one process, so
that other load on the machine affects both; the ratio is that of the medians of processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from unittest import mock

import numpy as np

import conceptkit as ck
from conceptkit.features.sources import open_features
from conceptkit.guide import reading as module
from conceptkit.guide.endpoints import Endpoints
from conceptkit.guide.plan import make_plan
from conceptkit.guide.reading import Reading, paired_differences, read_run
from conceptkit.models.guided import MAIN, Task
from conceptkit.tables.patches import load_table

MOST = 1.5
CONCEPTS = ("area", "count"), ("center",)


def read(plan, reading, trunk, name, seed):
    """Read one network, as after its training."""
    rng = np.random.default_rng([seed, len(name)])
    weights = rng.normal(size=(trunk.shape[1], 64)) / np.sqrt(trunk.shape[1])
    hidden = np.maximum(trunk @ weights, 0).astype(np.float32)
    logits = hidden[:, :1].astype(np.float64) + plan.codes[plan.used][:, None]
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes)]
    return read_run(name, seed, Path("none"), [], tasks, {MAIN: logits}, hidden, plan, reading)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    study = ck.embedded_study("null")
    table = load_table(study.table)
    plan = make_plan(study, table, concepts=("area", "count", "center"))
    reading = Reading.of(table, study, plan, *CONCEPTS, 5)
    source = open_features(table, study, layers=["mixed10"])
    trunk = np.asarray(source.read(plan.used, ["mixed10"])["mixed10"], np.float64)
    trunk = (trunk - trunk.mean(0)) / (trunk.std(0) + 1e-9)

    def once():
        start = time.process_time()
        runs = [read(plan, reading, trunk, name, 0) for name in ("baseline", "guided")]
        paired_differences(runs, plan, reading)
        return time.process_time() - start

    before = dataclasses.replace(reading, endpoints=Endpoints())
    times = {"with": [], "without": []}
    with_all = reading
    for _ in range(given.rounds):
        reading = with_all
        times["with"].append(once())
        reading = before
        with mock.patch.object(module, "held_out_kernel", lambda X, target, **_: np.zeros(len(X), np.intp)):
            times["without"].append(once())
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratio = medians["with"] / medians["without"]
    print(f"two networks read and compared: {medians['with']:.2f} s, without {medians['without']:.2f} s of processor")
    print(f"ratio {ratio:.2f}, asked at most {MOST}: {'ok' if ratio <= MOST else 'TOO SLOW'}")


if __name__ == "__main__":
    main()
