"""Slides of an embedded study, and made-up features of slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from conceptkit.tables.patches import PatchTable

SLIDE = "made_slide"
"""Column of :func:`with_slides`"""

SLIDE_PATCHES = 5
"""Patches per slide, about"""


def with_slides(table: PatchTable) -> PatchTable:
    """Return the study's table with each patient's patches on slides, with and without tumor, ``made_slide``.

    A patient of the evaluation splits has tumor in exactly half of its patches, so that patients as bags have no label
    of their own; slides have. A patient has one slide for every five patches, of which as large a part holds tumor as
    its patches are, but at least one and not all. Tumor patches are dealt to these in turn, normal ones to all of its
    slides, those without tumor first.
    """
    frame = table.frame
    names = np.full(len(frame), None, dtype=object)
    for patient, rows in frame.groupby("patient", sort=True).indices.items():
        tumor = frame["label"].to_numpy()[rows] == "tumor"
        slides = max(2, len(rows) // SLIDE_PATCHES)
        held = min(max(round(slides * tumor.mean()), 1), slides - 1)
        names[rows[tumor]] = [f"{patient}-S{slides - held + i % held + 1}" for i in range(int(tumor.sum()))]
        names[rows[~tumor]] = [f"{patient}-S{i % slides + 1}" for i in range(int((~tumor).sum()))]
    return replace(table, frame=frame.assign(**{SLIDE: names}))


ENCODERS: Mapping[str, tuple[int, float]] = {"uni_v1": (64, 2.5), "conch_v15": (48, 1.0)}
"""Made-up encoder → number of features, and how far the classes of ``msi`` lie apart, in deviations of a patient"""


def write_slide_features(folder: str | Path, slides: int = 120, patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Write made-up features per slide, as TRIDENT writes them, of two encoders, and a clinical table; return it.

    ``folder/features_uni_v1`` and ``folder/features_conch_v15`` hold an HDF5 file per slide, of the same patches, and
    ``folder/slides.csv`` its patient, center, grade, msi and age. Both encode msi and the center in part, the first one
    msi better than the second, and neither grade nor age.
    """
    rng = np.random.default_rng(seed)
    patient = np.arange(slides) % patients
    table = pd.DataFrame(
        {
            "slide": [f"S{i:03d}" for i in range(slides)],
            "patient": [f"P{i:03d}" for i in patient],
            "center": np.array(["North", "South", "West"])[patient % 3],
            "grade": rng.integers(1, 4, patients)[patient],
            "msi": np.where(rng.random(patients) < 0.3, "high", "stable")[patient],
            "age": rng.normal(64, 11, patients).round()[patient],
        }
    )
    of_center, of_patient = rng.normal(size=(3, 64)) / 10, rng.normal(size=(patients, 64)) / 3
    number = rng.integers(20, 60, slides)
    for encoder, (width, apart) in ENCODERS.items():
        place = Path(folder) / f"features_{encoder}"
        place.mkdir(parents=True)
        mixing, direction = rng.normal(size=(64, width)) / 8, rng.normal(size=width) / 4
        signal = apart * (table["msi"].to_numpy() == "high") + rng.normal(size=patients)[patient]
        for i, slide in enumerate(table["slide"]):
            hidden = of_center[patient[i] % 3] + of_patient[patient[i]] + rng.normal(size=(number[i], 64))
            X = hidden @ mixing + rng.normal(size=(number[i], width)) + signal[i] * direction
            coords = 512 * np.stack([np.arange(number[i]) % 8, np.arange(number[i]) // 8], axis=1)
            write_trident(place / f"{slide}.h5", X.astype(np.float16), coords, encoder)
    table.to_csv(Path(folder) / "slides.csv", index=False)
    return table


def write_trident(path: Path, features: Any, coords: Any, encoder: str = "uni_v1", magnification: int = 20) -> None:
    """Write the file of one slide with the datasets and attributes of TRIDENT, for patches of 256 pixels."""
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["features"].attrs.update({"name": path.stem, "encoder": encoder, "savetodir": str(path.parent)})
        scanned = {"level0_magnification": 40, "patch_size_level0": 256 * 40 // magnification}
        file["coords"].attrs.update({"patch_size": 256, "overlap": 0, "target_magnification": magnification, **scanned})
