"""Concept vectors: coverage of their intervals in new patients, and the speed of applying them.

Each of 400 data sets has K patients with 10 to 60 patches, features with an offset of each patient, and a concept whose
errors have an offset and a spread of each patient. The vector and its interval come from the K patients by the code of
``probe``; 50 new patients are predicted. The control takes all held-out errors as exchangeable, a patch as a unit: the
usual conformal interval. Endpoints, for K = 9, 12, 20, 50: mean over data sets of the share of patches of new patients
within each interval, every patient with the same weight; hierarchical at least 0.90 minus two standard errors, the
control below 0.90 by more than two.

The second table, added after the first was read, has errors that patients share: an offset three times as large and
a spread a third as large; same endpoints.

    python benchmarks/vectors.py coverage     # seeds 0 … 399
    python benchmarks/vectors.py shared       # seeds 400 … 599, errors that patients share
    python benchmarks/vectors.py speed        # 200,000 × 1,536 float32 in memory, one thread
"""

from __future__ import annotations

import sys
import time

import numpy as np

from conceptkit.probe.space import Space
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate
from conceptkit.probe.vectors import ConceptVector, Facts, Origin, apply_vectors

DATA_SETS = 400
NEW = 50
WIDTH = 12


def patients(k: int, rng: np.random.Generator, shared: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, d), concept (n,) and patient (n,) of k patients."""
    patient = np.repeat(np.arange(k), rng.integers(10, 61, k))
    X = rng.normal(size=(len(patient), WIDTH)) + 0.7 * rng.normal(size=(k, WIDTH))[patient]
    spread = np.exp(0.4 * rng.normal(size=k))[patient]
    y = X @ np.linspace(1, 0.1, WIDTH) + shared * rng.normal(size=k)[patient]
    y += spread / shared * rng.normal(size=len(patient))
    return X, y, patient


def one(k: int, seed: int, shared: float = 1.0) -> tuple[float, float]:
    """Return the coverage in new patients of the interval, and of the control's."""
    rng = np.random.default_rng([k, seed])
    X, y, patient = patients(k, rng, shared)
    target = make_target("concept", "continuous", y, patient, seed=seed)
    (found,) = validate(X, [target], permutations=0, n_resamples=2, keep=True)
    assert found.fit is not None
    Z, truth, of = patients(NEW, rng, shared)
    error = np.abs(truth - Z @ found.fit.weights[:, 0] - found.fit.intercepts[0])
    held_out = np.sort(np.abs(y - found.predicted))
    control = held_out[min(int(np.ceil(0.9 * (len(y) + 1))) - 1, len(y) - 1)]
    share = [np.bincount(of, error <= reach) / np.bincount(of) for reach in (found.fit.reach, control)]
    return float(share[0].mean()), float(share[1].mean())


def coverage(numbers: tuple[int, ...] = (9, 12, 20, 50), seeds: range = range(DATA_SETS), shared: float = 1.0) -> None:
    """Print the coverage for each number of patients."""
    print("| patients | hierarchical | patch as unit |\n| --- | --- | --- |")
    for k in numbers:
        found = np.array([one(k, seed, shared) for seed in seeds])
        mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(seeds))
        cells = [f"{m:.3f} ± {2 * e:.3f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {k} | {cells[0]} | {cells[1]} |", flush=True)


def speed() -> None:
    """Print patches per second of processor time, for four concepts with intervals and leverage."""
    n, d, rng = 200_000, 1536, np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    space = Space(mean=np.zeros(d), scale=np.ones(d), whitening=rng.normal(size=(d, 16)) / np.sqrt(d), limit=2.0)
    facts = Facts(
        **{"layer": "features", "concept": "count", "kind": "continuous", "classes": (), "unit": "", "metric": "r2"},
        **{"score": 0.5, "score_low": 0.4, "score_high": 0.6, "chance": 0.0, "n": n, "n_groups": 50, "alpha": 1.0},
        **{"reach": 1.0, "coverage": 0.9, "limit": 2.0},
    )
    vectors = [
        ConceptVector(
            facts=facts,
            origin=Origin(source="files", model="features", weights="X.npy"),
            direction=rng.normal(size=(1, d)) / np.sqrt(d),
            slope=np.ones(1),
            intercept=np.zeros(1),
            pattern=np.zeros((1, d)),
            space=space,
        )
        for _ in range(4)
    ]
    W = rng.standard_normal((d, 20), dtype=np.float32)
    for name, run in {
        "one product (n, d) × (d, 20)": lambda: X @ W,
        "predictions, intervals, leverage": lambda: used(),
    }.items():

        def used() -> None:
            applied = apply_vectors(vectors, X)
            for raw, vector in zip(applied.raw, vectors, strict=True):
                _ = raw[:, 0] - vector.facts.reach, raw[:, 0] + vector.facts.reach

        times = []
        for _ in range(3):
            begun = time.process_time()
            run()
            times.append(time.process_time() - begun)
        print(f"{name}: {n / min(times):,.0f} patches a second and core")


if __name__ == "__main__":
    if sys.argv[1] == "shared":
        coverage((12, 20), range(400, 600), 3.0)
    else:
        {"coverage": coverage, "speed": speed}[sys.argv[1]]()
