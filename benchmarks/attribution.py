"""How near the change per unit comes to the truth, and how often its interval holds it; see docs/attribution.md.

python benchmarks/attribution.py redrawn CHECKPOINT    patches drawn again with more or larger nuclei: some minutes
python benchmarks/attribution.py coverage              simulated derivatives: a minute
python benchmarks/attribution.py shares [SETS]         intervals of sign count and magnitude: some minutes
python benchmarks/attribution.py null [SETS]           p of concepts without any relation: some minutes per 400 sets
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.stats import t as student

import conceptkit as ck
from conceptkit.attribution.analysis import LEAST_REFITS, analyse
from conceptkit.attribution.directions import fit_concept, patterns
from conceptkit.attribution.outputs import Output, choose_outputs
from conceptkit.attribution.sensitivity import pooled_gradients
from conceptkit.attribution.tcav import SHARES
from conceptkit.evaluate.resampling import draw_groups
from conceptkit.features.activations import read_activations, read_pixels
from conceptkit.models.checkpoints import open_model
from conceptkit.probe.adjustment import design
from conceptkit.probe.targets import make_target
from conceptkit.synthetic import cache_folder
from conceptkit.synthetic.null import CENTERS, PATIENT_SPREAD, TISSUES, Shift, draw_patch
from conceptkit.synthetic.patch import MPP

LAYER = "mixed10"
FACTORS = {"area": 0.2, "nuclei": 0.25}
"""What is changed → by how much its logarithm goes down and up"""

PATIENTS = 100
"""Patients per center and class, one patch each"""


def redrawn(checkpoint: str) -> None:
    """Print the change of the logit per unit, by drawing patches again and by derivatives."""
    study = ck.embedded_study("null")
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


FIRST_SHARES = 520_000
"""Seed of the first data set of shares, fixed before the first run; data set k has this seed + k"""


def shares(sets: str = "300") -> None:
    """Print how often the intervals of the sign count and the magnitude hold their mean over many data sets.

    The derivative of an image is a step along one direction, upward at the share of the images that is wanted, and
    noise; the concept is the activation along that direction with noise. The control is share ± t · SD of the refits.
    """
    print(f"{'coverage of the intervals of shares (' + sets + ' sets)':<58}{'sign count':>12}{'t · SD':>9}{'true':>7}")
    for n_groups in (6, 12, 20, 36):
        for icc in (0.1, 0.7):
            for offset in (0.0, 0.84, 1.64, 2.33):
                found = np.array([_shares(FIRST_SHARES + k, n_groups, icc, offset) for k in range(int(sets))])
                held = []
                for share, low, high, plain_low, plain_high in np.moveaxis(found, 0, -1):
                    truth = share.mean()
                    held.append(
                        [np.mean((a <= truth) & (truth <= b)) for a, b in ((low, high), (plain_low, plain_high))]
                    )
                for name, (ours, plain), share in zip(SHARES, held, found[:, :, 0].mean(0), strict=True):
                    case = f"{n_groups} groups of 8, intra-class correlation {icc}, {name}"
                    print(f"{case:<58}{ours:>12.3f}{plain:>9.3f}{share:>7.2f}", flush=True)


def _shares(seed: int, n_groups: int, icc: float, offset: float) -> list[tuple[float, ...]]:
    """Return each share with its interval and that of ± t · SD, for one data set."""
    rng, of = np.random.default_rng(seed), np.repeat(np.arange(n_groups), 8)

    def drawn(columns: int) -> np.ndarray:
        shared = rng.normal(size=(n_groups, columns))[of]
        return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(of), columns))

    X, upward = drawn(6), drawn(1)[:, 0] + offset
    G = 0.3 * drawn(6)
    G[:, 0] += upward
    target = make_target("concept", "continuous", X[:, 0] + 0.5 * drawn(1)[:, 0], np.array([f"P{g}" for g in of]))
    (found,) = analyse(X, target, G[None], {"all": np.arange(len(X))}, folds=2, permutations=0, seed=seed).found
    out = []
    for name in SHARES:
        one = found.scores[name]
        reach = student.ppf(0.975, n_groups - 1) * one.refits_sd
        out.append((one.value, one.low, one.high, one.value - reach, one.value + reach))
    return out


BOUNDS = (0.03, 0.07)
"""Share of p of at most 0.05 that is wanted, where concepts are shuffled as they vary"""

NULLS = (
    # name, classes (0: continuous), intra-class correlation of the concept, patches of each group
    ("continuous, per patch", 0, 0.0, [6] * 20),
    ("continuous, of patch and group", 0, 0.4, [6] * 20),
    ("continuous, of the group", 0, 1.0, [6] * 20),
    ("2 classes, of patch and group", 2, 0.4, [6] * 20),
    ("2 classes, of the group", 2, 1.0, [6] * 20),
    ("4 classes, of the group (as centers)", 4, 1.0, [6] * 20),
    ("the same, 12 groups", 4, 1.0, [6] * 12),
    ("the same, groups of 2 to 10 patches", 4, 1.0, [2, 4, 6, 8, 10] * 4),
)


def null(sets: str = "400") -> None:
    """Print how often each p is at most 0.05 for concepts that activations and derivatives know nothing of.

    Patches of a group are alike in their activations (intra-class correlation 0.4), and so are derivatives. Concepts of
    the group are shuffled as whole groups; the control treats their rows as independent and must reject too often in
    the change per unit. ``sign_count`` has ties, which count against it, so that it may lie below.
    Of several classes the shares are means over classes. Br is not there: where the held-out R² is not above 0, as
    mostly here, it is 0, and so is that of every shuffle.
    """
    names = ("sign_count", "magnitude", "mean", "per unit")
    print(f"{'share of p ≤ 0.05, ' + sets + ' sets':<40}{'shuffled':>9}" + "".join(f"{name:>12}" for name in names))
    for title, classes, icc, sizes in NULLS:
        grouped = [_null_p(seed, classes, icc, sizes) for seed in range(int(sets))]
        _print_shares(title, grouped, names, wanted=True)
        if icc == 1.0 and classes:
            _print_shares(
                "  rows treated as independent",
                [_null_p(seed, classes, icc, sizes, grouped=False) for seed in range(int(sets))],
                names,
            )


def _null_p(
    seed: int, classes: int, icc: float, sizes: list[int], *, grouped: bool = True
) -> tuple[str, list[list[float]]]:
    """Return the level of shuffling, and p of each score for each class of one data set without any relation."""
    rng, of = np.random.default_rng([8, seed]), np.repeat(np.arange(len(sizes)), sizes)

    def drawn(columns: int, share: float) -> np.ndarray:
        shared = rng.normal(size=(len(sizes), columns))[of]
        return np.sqrt(share) * shared + np.sqrt(1 - share) * rng.normal(size=(len(of), columns))

    X = drawn(6, 0.4) @ rng.normal(size=(6, 6))
    folds = rng.normal(size=(6, 9))
    G = (np.sign(X @ folds) * rng.normal(size=9)) @ folds.T
    values = drawn(1, icc)[:, 0]
    if classes and icc == 1.0:  # as many groups of one class as of another
        values = rng.permutation(np.arange(len(sizes)) % classes)[of]
    elif classes:
        values = np.searchsorted(np.quantile(values, np.arange(1, classes) / classes), values)
    groups = np.array([f"P{g}" for g in of], dtype=object)
    if classes:
        values = np.array([f"C{v}" for v in values], dtype=object)
    target = make_target("concept", "categorical" if classes else "continuous", values, groups if grouped else None)
    found = analyse(
        X,
        target,
        G[None],
        {"all": np.arange(len(X))},
        folds=2,
        refits=LEAST_REFITS,
        permutations=99,
        seed=seed,
    )
    scores = ("sign_count", "magnitude", "mean")
    return found.permuted, [[*(one.scores[name].p for name in scores), one.p] for one in found.found]


def _print_shares(
    title: str, found: list[tuple[str, list[list[float]]]], names: tuple[str, ...], *, wanted: bool = False
) -> None:
    levels = "/".join(dict.fromkeys(level for level, _ in found))
    shares = np.mean([(np.array(p) <= 0.05).mean(0) for _, p in found], axis=0)
    marks = [("✓" if BOUNDS[0] <= share <= BOUNDS[1] else "✗") if wanted else " " for share in shares]
    print(
        f"{title:<40}{levels:>9}" + "".join(f"{s:>10.3f} {m}" for s, m in zip(shares, marks, strict=True)), flush=True
    )


if __name__ == "__main__":
    {"redrawn": redrawn, "coverage": coverage, "shares": shares, "null": null}[sys.argv[1]](*sys.argv[2:])
