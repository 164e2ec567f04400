"""How well the center is read from patches as they are, and after stain normalisation; see docs/limits.md.

python benchmarks/stain_and_center.py            the embedded study: two minutes
python benchmarks/stain_and_center.py DATA       and MoNuSeg, in DATA/monuseg: some minutes

Fresh linear and kernel probes, cross-validated by patient, on 34 statistics of colour and texture and on a pooled layer
of a network. *Per patch*: each patch by its own statistics, as the paper has it; *per patient*: by those of all patches
of the patient. The reference is one patch. MoNuSeg: the centers that have two patients or more; as centers sent organs,
kidney and breast are read by themselves too, where the organ says nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import adjusted_rand_score

import conceptkit as ck
from conceptkit.commands.extract import as_table
from conceptkit.families import STAIN
from conceptkit.features.activations import read_activations
from conceptkit.models.backbones import Backbone, open_backbone
from conceptkit.pathology.domains import propose_domains, stain_profile
from conceptkit.probe.controls import pixel_statistics
from conceptkit.probe.remnants import read_remnant
from conceptkit.probe.targets import make_target

PERMUTATIONS = 199

SIDE, STEP = 224, 250
"""Of MoNuSeg's tiles, and from one to the next"""


def normalised(images: np.ndarray, patients: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is done → patches (n, h, w, 3)."""
    found = {"raw": images}
    for name, method in STAIN.items():
        fitted = method.fit(reference)
        found[f"{name}, per patch"] = fitted.transform(images)
        slides = images.copy()
        for patient in np.unique(patients):
            own = patients == patient
            slides[own] = fitted.transform(images[own], source=fitted.measure(images[own]))
        found[f"{name}, per patient"] = slides
    return found


def read(
    title: str,
    variants: dict[str, np.ndarray],
    centers: np.ndarray,
    patients: np.ndarray,
    backbone: Backbone,
    layer: str,
    parts: dict[str, tuple[np.ndarray, int]],
) -> None:
    """Print a table of balanced accuracies, a row per variant and a column per part of the rows and kind of feature."""
    print(f"\n### {title}\n", flush=True)
    target = {
        name: make_target("center", "categorical", centers[rows], patients[rows]) for name, (rows, _) in parts.items()
    }
    for name, one in target.items():
        print(
            f"{name}: {one.n_groups} patients, {len(one.y)} patches, {one.n_classes} centers, chance {one.chance:.2f}"
        )
    columns = [f"{name}, {kind}" for name in parts for kind in ("pixels", layer)]
    print("\n| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for variant, images in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            network = read_activations(as_table(images), backbone, [layer], cache=Path(folder))[layer]
        features = {"pixels": pixel_statistics(images), "network": network.astype(np.float64)}
        cells = []
        for name, (rows, folds) in parts.items():
            for X in features.values():
                best = ""
                for reader in ("linear", "kernel"):
                    one = read_remnant(X[rows], target[name], reader, folds=folds, permutations=PERMUTATIONS)
                    ends = f"[{one.interval.low:.2f}, {one.interval.high:.2f}]"
                    best += f"{reader} {one.score:.2f} {ends} p {one.tested.p:.3f}; "
                cells.append(best.rstrip("; "))
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


def embedded() -> None:
    """Read the center of the embedded study's evaluation patches, where it says nothing of the label."""
    study = ck.embedded_study("null")
    data = study.load_table()
    data = data.select(data.frame["split"].isin(["internal", "external"]).to_numpy())
    images = np.stack([data.pixels(i) for i in range(len(data))])
    centers, patients = data.concept("center").values, data.groups("patient")
    assert patients is not None
    reference = images[int(np.flatnonzero(centers == "B")[0])]
    everything = {"all": (np.arange(len(data)), 5)}
    variants = normalised(images, patients, reference)
    read(
        "Embedded study (synthetic)",
        variants,
        centers,
        patients,
        open_backbone("mini_inception"),
        "mixed10",
        everything,
    )


def monuseg(folder: Path) -> None:
    """Read the center of real tissue, and say how well domains that are proposed agree with it."""
    table = pd.read_csv(folder / "monuseg" / "images.csv")
    tiles, rows = [], []
    for record in table.to_dict("records"):
        image = np.asarray(Image.open(folder / "monuseg" / record["image"]).convert("RGB"))
        for y in range(0, 1000, STEP):
            for x in range(0, 1000, STEP):
                tiles.append(image[y : y + SIDE, x : x + SIDE])
                rows.append((record["center"], record["patient"], record["organ"]))
    images = np.stack(tiles)
    centers, patients, organs = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    profiles = np.stack([stain_profile(image) for image in images])
    numbers = np.unique(patients.astype(str), return_inverse=True)[1]
    for k in (3, 5, 7, 18):
        codes = propose_domains(profiles, np.ones(len(images), dtype=bool), numbers, k).codes
        told = [adjusted_rand_score(column[codes >= 0].astype(str), codes[codes >= 0]) for column in (centers, organs)]
        print(f"{k} latent domains of MoNuSeg: adjusted Rand index with center {told[0]:.2f}, with organ {told[1]:.2f}")
    held = table.groupby("center")["patient"].nunique()
    kept = np.isin(centers, held.index[held >= 2].to_numpy())
    images, centers, patients, organs = images[kept], centers[kept], patients[kept], organs[kept]
    parts = {"all": (np.arange(len(images)), len(np.unique(patients.astype(str))))}
    for organ in ("kidney", "breast"):
        own = np.flatnonzero(organs == organ)
        parts[organ] = (own, len(np.unique(patients[own].astype(str))))
    of = pd.Series(organs).groupby(centers).first()
    print(f"who knows the organ alone: balanced accuracy {of.nunique() / len(of):.2f} over all centers")
    reference = np.load(folder / "authors" / "normalizing_patch.npy")
    weights = str(folder / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors")
    backbone = open_backbone("mobilenetv2_100", weights)
    read("MoNuSeg", normalised(images, patients, reference), centers, patients, backbone, "blocks.4", parts)


if __name__ == "__main__":
    embedded()
    if len(sys.argv) > 1:
        monuseg(Path(sys.argv[1]))
