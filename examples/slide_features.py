"""Made-up features per slide, as TRIDENT writes them, of two encoders, and a clinical table of the slides.

    python examples/slide_features.py FOLDER [--slides 120] [--patients 60] [--seed 0]

``FOLDER/features_uni_v1`` and ``FOLDER/features_conch_v15`` hold an HDF5 file per slide, of the same patches, and
``FOLDER/slides.csv`` its patient, center, grade, msi and age. Both encoders encode msi and the center in part, the
first one msi better than the second, and neither grade nor age.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

ENCODERS = {"uni_v1": (64, 2.5), "conch_v15": (48, 1.0)}
"""Encoder → number of features, and how far the classes of msi lie apart, in standard deviations of a patient"""


def write_trident(path: Path, features, coords, encoder="uni_v1", magnification=20):
    """Write one slide's file with the datasets and attributes of TRIDENT."""
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["features"].attrs.update({"name": path.stem, "encoder": encoder, "savetodir": str(path.parent)})
        file["coords"].attrs.update(
            {
                "patch_size": 256,
                "patch_size_level0": 512,
                "level0_magnification": 40,
                "target_magnification": magnification,
                "overlap": 0,
            }
        )


def write_slides(folder: Path, slides: int = 120, patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Write the folders of both encoders and the table, and return the table."""
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
        place = folder / f"features_{encoder}"
        place.mkdir(parents=True)
        mixing, direction = rng.normal(size=(64, width)) / 8, rng.normal(size=width) / 4
        signal = apart * (table["msi"].to_numpy() == "high") + rng.normal(size=patients)[patient]
        for i, row in enumerate(table.itertuples()):
            hidden = of_center[patient[i] % 3] + of_patient[patient[i]] + rng.normal(size=(number[i], 64))
            noise = rng.normal(size=(number[i], width))
            X = hidden @ mixing + noise + signal[i] * direction
            coords = 512 * np.stack([np.arange(number[i]) % 8, np.arange(number[i]) // 8], axis=1)
            write_trident(place / f"{row.slide}.h5", X.astype(np.float16), coords, encoder)
    table.to_csv(folder / "slides.csv", index=False)
    return table


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=120)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = write_slides(given.folder, given.slides, given.patients, given.seed)
    print(f"{len(table)} slides of {table['patient'].nunique()} patients in {given.folder}")


if __name__ == "__main__":
    main()
