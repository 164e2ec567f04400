"""A study small enough for tests: some patients of the embedded one, and columns in which something is odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import conceptkit as ck

TAKEN = {"train": (2, 8), "val": (1, 6), "internal": (2, 8), "external": (4, 6)}
"""Split → patients per center, patches per patient."""

STUDY_FILE = """
name = "small"
table = "patches.csv"
model = "mini_inception"
weights = "bundled"
layers = ["mixed2"]
group = "patient"

[concepts]
probe = ["count"]
encourage = ["count"]
discourage = ["center"]
"""


def small_table(embedded: ck.Study) -> pd.DataFrame:
    """Return some 150 rows of 24 patients; pixels stay in the embedded study's own file."""
    rows = pd.read_csv(embedded.table)
    kept = []
    for split, (patients, patches) in TAKEN.items():
        for _, center in rows[rows.split == split].groupby("center"):
            for patient in sorted(center.patient.unique())[:patients]:
                own = center[center.patient == patient]
                kept += [own[own.label == label].head(patches // 2) for label in ("normal", "tumor")]
    table = pd.concat(kept).reset_index(drop=True)
    table["h5"] = str(embedded.table.parent / "patches.h5")
    by_patient = table.patient.map({p: i for i, p in enumerate(sorted(table.patient.unique()))})
    return table.assign(
        partial=table["count"].where(by_patient % 2 == 0),  # only every other patient has a value
        grade=np.arange(len(table)) % 4,
        constant=1.5,
        void=np.nan,
        only="x",
    )


def write_study(folder: Path, table: pd.DataFrame) -> Path:
    """Write table and study file into ``folder`` and return the study file."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "patches.csv", index=False)
    (folder / "conceptkit.toml").write_text(STUDY_FILE, encoding="utf-8")
    return folder / "conceptkit.toml"
