"""A small made folder of features per slide, and the table of its slides."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from conceptkit.synthetic import write_trident

WIDTH = 8


def write_stamp(path: Path, features, coords, encoder="ctranspath"):
    """Write one slide's file with the datasets and attributes of STAMP."""
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = features, coords
        file.attrs.update({"extractor": encoder, "unit": "um", "tile_size_um": 256.0, "tile_size_px": 224})


def slide_study(folder: Path, slides=24, patients=12, width=WIDTH, seed=0, encoder="uni_v1"):
    """Write ``folder/features`` and ``folder/slides.csv``; return the table and slide → features (n, width).

    Of each slide, the mean of the features encodes ``age``; ``noise`` depends on nothing.
    """
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "slide": [f"S{i:02d}" for i in range(slides)],
            "patient": [f"P{i % patients:02d}" for i in range(slides)],
            "center": [f"C{i % patients % 3}" for i in range(slides)],
            "age": rng.normal(60, 10, slides).round(2),
            "noise": rng.normal(size=slides).round(4),
        }
    )
    direction = rng.normal(size=width)
    (folder / "features").mkdir()
    found = {}
    for slide, age in zip(frame["slide"], frame["age"], strict=True):
        n = int(rng.integers(5, 15))
        found[slide] = (rng.normal(size=(n, width)) + np.outer(np.ones(n), direction * (age - 60) / 10)).astype(
            np.float32
        )
        coords = np.stack([512 * np.arange(n), 512 * rng.integers(0, 40, n)], axis=1)
        write_trident(folder / "features" / f"{slide}.h5", found[slide], coords, encoder)
    frame.to_csv(folder / "slides.csv", index=False)
    return frame, found
