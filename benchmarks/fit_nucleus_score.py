"""Fit the score of conceptkit.pathology.nucleus_score on ten MoNuSeg images and print it as Python.

python benchmarks/fit_nucleus_score.py FOLDER, where FOLDER holds images.csv, images/ and masks/. The ten are every
third image of the list from the second on; what benchmarks/concepts.py scores are the other twenty.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from conceptkit.pathology import hematoxylin
from conceptkit.pathology.nucleus_score import terms
from conceptkit.pathology.regions import candidates

SIZES = {"smallest": hematoxylin.SMALLEST, "largest": hematoxylin.LARGEST, "hole": hematoxylin.HOLE}

FITTED_ON = slice(1, None, 3)


def overlaps(level, drawn):
    """Largest overlap over union of each region with a nucleus."""
    number = drawn.max() + 1
    areas = np.bincount(drawn.ravel(), minlength=number)
    under = drawn.ravel()[level.pixels]
    pairs, counts = np.unique(level.owner[under > 0] * number + under[under > 0], return_counts=True)
    region, nucleus = pairs // number, pairs % number
    best = np.zeros(len(level.area))
    np.maximum.at(best, region, counts / (level.area[region] + areas[nucleus] - counts))
    return best


def main(folder):
    with (folder / "images.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))[FITTED_ON]
    features, targets = [], []
    for row in rows:
        with Image.open(folder / row["image"]) as image, Image.open(folder / row["mask"]) as mask:
            fields = hematoxylin.prepare(np.asarray(image.convert("RGB")), float(row["mpp"]))
            drawn = np.asarray(mask).astype(np.int64)[::2, ::2]
        for level in candidates(fields, thresholds=np.linspace(0.1, 0.9, 14), **SIZES):
            features.append(level.features)
            targets.append(overlaps(level, drawn))
    x, y = np.concatenate(features), np.concatenate(targets)
    low, high = np.quantile(x, (0.005, 0.995), axis=0)
    design = terms(x, low, high)
    penalty = 1e-3 * len(x) * np.eye(design.shape[1])
    penalty[0, 0] = 0
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    r2 = 1 - ((design @ weights - y) ** 2).mean() / y.var()
    print(f"# {len(rows)} images, {len(y)} regions, R² {r2:.3f}")
    for name, values in (("LOW", low), ("HIGH", high), ("WEIGHTS", weights)):
        print(f"{name} = ({', '.join(f'{v:.4g}' for v in values)})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
