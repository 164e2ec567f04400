"""How near the change per unit comes to the truth, and how often its interval holds it; see docs/attribution.md.

python benchmarks/attribution.py redrawn CHECKPOINT    patches drawn again with more or larger nuclei: some minutes
python benchmarks/attribution.py coverage              simulated derivatives: a minute
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.stats import t as student

import conceptkit as ck
from conceptkit.attribution.directions import fit_concept, patterns
from conceptkit.attribution.outputs import Output, choose_outputs
from conceptkit.attribution.sensitivity import pooled_gradients
from conceptkit.evaluate.resampling import draw_groups
from conceptkit.models.activations import read_activations, read_pixels
from conceptkit.models.checkpoints import open_model
from conceptkit.probe.adjustment import design
from conceptkit.probe.targets import make_target
from conceptkit.synthetic import CENTERS, MPP, PATIENT_SPREAD, TISSUES, Shift, cache_folder, draw_patch

LAYER = "mixed10"
FACTORS = {"area": 0.2, "nuclei": 0.25}
"""What is changed → by how much its logarithm goes down and up"""

PATIENTS = 100
"""Patients per center and class, one patch each"""


def redrawn(checkpoint: str) -> None:
    """Print the change of the logit per unit, by drawing patches again and by derivatives."""
    study = ck.embedded_study()
    data = study.load_table()
    rows = np.flatnonzero((data.frame["split"] == study.splits.read).to_numpy())
    backbone = open_model(checkpoint)
    batches = [backbone.preprocessing(read_pixels(data, rows[i : i + 60])) for i in range(0, len(rows), 60)]
    (output,) = choose_outputs(backbone.module, batches[0][:2])
    for kind in FACTORS:
        _true_change(kind, backbone, output)
    X = read_activations(data, backbone, [LAYER], cache=cache_folder(), rows=rows)[LAYER].astype(float)
    G = pooled_gradients(backbone.module, backbone.layer(LAYER), [output], batches)[0].mean(0)
    for name, other in (("area", "count"), ("count", "area")):
        target = make_target(name, "continuous", data.concept(name).values[rows], data.groups(study.group)[rows])
        at = target.rows
        held = {n: data.concept(n).values[rows][at] for n in (other, "label", "center")}
        fitted = fit_concept(X[at], target, design(held))
        w = fitted.found.vectors[:, 0]
        print(
            f"{name}: pattern {G @ patterns(X[at], target.columns)[:, 0]:+.4f}, {', '.join(held)} held fixed "
            f"{G @ fitted.found.patterns[:, 0]:+.4f}, step along the vector {G @ (w / (w @ w)):+.4f}"
        )


def _true_change(kind: str, backbone: ck.models.backbones.Backbone, output: Output) -> None:
    logits, visible = [], []
    for sign in (-1, 1):
        drawn = [
            draw_patch(np.random.default_rng([6, k, i]), TISSUES[label], center, _shift(k, i, kind, sign))
            for k, center in enumerate(CENTERS.values())
            for label in ("normal", "tumor")
            for i in range(PATIENTS)
        ]
        sizes = [np.bincount(patch.nuclei.ravel())[1:] for patch in drawn]
        seen = [s[s > 0] for s in sizes]
        visible.append([[len(s) for s in seen], [s.mean() * MPP**2 if len(s) else np.nan for s in seen]])
        pixels = np.stack([patch.pixels for patch in drawn])
        with torch.no_grad():
            parts = [output.forward(backbone.preprocessing(pixels[i : i + 60])) for i in range(0, len(pixels), 60)]
        logits.append(torch.cat(parts).numpy())
    count, area = np.nanmean(np.array(visible[1]) - np.array(visible[0]), axis=1)
    moved = area if kind == "area" else count
    change = (logits[1] - logits[0]) / moved
    error = change.std(ddof=1) / np.sqrt(len(change))
    print(f"{kind} drawn again: {change.mean():+.4f} ± {error:.4f} per unit (count {count:+.2f}, area {area:+.2f} µm²)")


def _shift(center: int, patient: int, kind: str, sign: int) -> Shift:
    own = np.random.default_rng([5, center, patient])
    names = {"nuclei": "nuclei", "area": "area", "hematoxylin": "stain", "eosin": "stain"}
    values = {name: PATIENT_SPREAD[spread] * own.standard_normal() for name, spread in names.items()}
    values[kind] += sign * FACTORS[kind]
    return Shift(**values)


def coverage(sets: int = 300, width: int = 20) -> None:
    """Print how often the interval of the change per unit holds its mean over many data sets."""
    fixed = np.random.default_rng(0)
    mixing, folds = fixed.normal(size=(width, width)), fixed.normal(size=(width, 30))
    weights, offsets = fixed.normal(size=30), fixed.normal(size=30)

    def data(seed: int, groups: int, each: int, icc: float) -> tuple[np.ndarray, ...]:
        rng, of = np.random.default_rng(seed), np.repeat(np.arange(groups), each)

        def drawn(columns: int) -> np.ndarray:
            shared = rng.normal(size=(groups, columns))[of]
            return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(of), columns))

        Z = drawn(width)
        X = Z @ mixing
        G = ((X @ folds / np.sqrt(width) + offsets > 0) * weights) @ folds.T
        return X, G, Z[:, :1] + 0.5 * drawn(1), of

    def change(X: np.ndarray, G: np.ndarray, y: np.ndarray) -> float:
        return float(G.mean(0) @ patterns(X, y)[:, 0])

    for groups, each, icc in ((10, 10, 0.3), (20, 10, 0.3), (36, 10, 0.3), (36, 10, 0.8), (100, 5, 0.3)):
        truth = np.mean([change(*data(10**6 + seed, groups, each, icc)[:3]) for seed in range(1500)])
        held = []
        for seed in range(sets):
            X, G, y, of = data(seed, groups, each, icc)
            again = []
            for draw in draw_groups(groups, n_resamples=100):
                rows = np.repeat(np.arange(len(X)), draw[of])
                again.append(change(X[rows], G[rows], y[rows]))
            reach = student.ppf(0.975, groups - 1) * np.std(again, ddof=1)
            held.append(abs(change(X, G, y) - truth) <= reach)
        print(f"{groups} groups of {each}, intra-class correlation {icc}: {np.mean(held):.3f}", flush=True)


if __name__ == "__main__":
    {"redrawn": redrawn, "coverage": coverage}[sys.argv[1]](*sys.argv[2:])
