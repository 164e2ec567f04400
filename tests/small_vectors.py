"""Features of patients with a concept, and a probe of them, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import conceptkit as ck

DIRECTION = np.random.default_rng(99).normal(size=24)


def features_of(patients=14, patches=12, *, seed=0):
    """Return a table and features (n, 24): patients differ, and concepts follow a fixed direction."""
    rng = np.random.default_rng(seed)
    n, patient = patients * patches, np.repeat(np.arange(patients), patches)
    X = (rng.normal(size=(n, 24)) + 0.5 * rng.normal(size=(patients, 24))[patient] + 3).astype(np.float32)
    grade = np.digitize(X[:, :4].sum(1) + rng.normal(size=n), [11, 13])
    table = pd.DataFrame(
        {
            "patch_id": [f"p{seed}_{i:04d}" for i in range(n)],
            "patient": [f"P{seed}_{p:02d}" for p in patient],
            "row": np.arange(n),
            "count": X @ DIRECTION + 2 * rng.normal(size=n) + rng.normal(size=patients)[patient],
            "grade": np.array(["low", "mid", "high"])[grade],
            "flag": np.where(X[:, 5] + rng.normal(size=n) > 3, "yes", "no"),
            "mpp": 0.5,
        }
    )
    return table, X


def write_features(folder: Path, table, X, name="features"):
    """Write table and features, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)
    np.save(folder / f"{name}.npy", X)
    return folder / f"{name}.csv", folder / f"{name}.npy"


def probed(folder: Path, table, X, **options):
    """Probe and return the run folder."""
    csv, npy = write_features(folder, table, X, "probed")
    chosen = {"concepts": ["count", "grade", "flag"], "group": "patient", "permutations": 0, **options}
    return ck.run_probe(str(csv), features=str(npy), out=folder / "run", **chosen).folder
