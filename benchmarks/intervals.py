"""How often intervals of a paired difference exclude 0 when there is none: Student's over groups, and the percentile's.

    python benchmarks/intervals.py                    # 1,000 data sets for each case, some minutes
    python benchmarks/intervals.py --sets 200 --groups 30
    python benchmarks/intervals.py --weighted         # coverage of the difference of two weighted AUCs only

Two models have the same true AUC and correlated scores; patients differ in both, and in how far each model is off. For
weighted AUCs one model also follows the center, which earns it an AUC but no weighted AUC, and the other is noisier.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from conceptkit.evaluate.paired import paired_interval, scored_auc, scored_balanced_accuracy, scored_r2
from conceptkit.evaluate.resampling import draw_groups, percentile_interval
from conceptkit.evaluate.scores import auc
from conceptkit.evaluate.weighted import empty_cells, scored_weighted

PATCHES = 10
BOUNDS = (0.03, 0.07)

COVERAGE = (0.93, 0.98)
CENTERS = {"equal": (1 / 3, 1 / 3, 1 / 3), "unequal": (0.6, 0.25, 0.15)}
"""Shares of the patients"""
PREVALENCE = {"equal": (0.5, 0.5, 0.5), "confounded": (0.8, 0.5, 0.3)}
"""Share of tumor by center"""
SHIFT = 0.8
"""Shift of the score of one model, per unit of prevalence"""


def simulate(rng, n_groups, *, per, share=0.5, classes=2):
    """Labels, groups, and the scores of two models that are equally good on average."""
    groups = np.repeat(np.arange(n_groups), PATCHES)
    if per == "patch":
        y = rng.choice(classes, len(groups), p=_shares(share, classes))
    else:
        of_group = np.repeat(np.arange(classes), np.round(_shares(share, classes) * n_groups).astype(int))
        y = np.resize(of_group, n_groups)[groups]
    patient = rng.normal(size=(n_groups, classes))
    patch = rng.normal(size=(len(groups), classes))
    scores = []
    for _ in range(2):
        own = 0.6 * patient + 0.5 * rng.normal(size=patient.shape)
        score = 1.2 * np.eye(classes)[y] + own[groups] + 0.7 * patch + 0.7 * rng.normal(size=patch.shape)
        scores.append(score[:, 1] - score[:, 0] if classes == 2 else score)
    return y, groups, scores


def simulate_centers(rng, n_groups, *, per, shares, prevalence):
    """Labels, groups, centers, and the scores of a model that follows the center and of one that does not.

    Patients have 4 to 16 patches. Every center has at least two patients of each class where patients have one label.
    """
    counts = np.maximum(np.round(np.array(shares) * n_groups).astype(int), 4)
    center = np.repeat(np.arange(len(counts)), counts)
    groups = np.repeat(np.arange(len(center)), rng.integers(4, 17, len(center)))
    if per == "patch":
        y = (rng.random(len(groups)) < np.array(prevalence)[center][groups]).astype(int)
    else:
        tumor = [np.clip(round(p * n), 2, n - 2) for p, n in zip(prevalence, counts, strict=True)]
        y = np.concatenate([np.arange(n) < t for t, n in zip(tumor, counts, strict=True)]).astype(int)[groups]
    patient, patch = rng.normal(size=len(center)), rng.normal(size=len(groups))
    scores = []
    for shift, noise in ((SHIFT, 0.7), (0.0, 1.0)):
        own = 0.6 * patient + 0.5 * rng.normal(size=len(center)) + shift * np.array(prevalence)[center]
        scores.append(1.2 * y + own[groups] + 0.7 * patch + noise * rng.normal(size=len(groups)))
    return y, groups, center[groups], scores


def weighted_coverage(n_sets, n_groups, *, seed=1, **case):
    """Share of intervals that contain the mean difference of all sets, that mean, the same of plain AUCs, and the mean
    effective number."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < n_sets:
        y, groups, centers, scores = simulate_centers(rng, n_groups, **case)
        if empty_cells(y, centers):
            continue
        both = [scored_weighted(y, 1 / (1 + np.exp(-score)), groups, centers)["auc"] for score in scores]
        interval = paired_interval([both[0]], [both[1]])
        plain = auc(y, scores[0]) - auc(y, scores[1])
        found.append((interval.mean, interval.low, interval.high, plain, interval.effective))
    mean, low, high, plain, effective = np.array(found).T
    return np.mean((low <= mean.mean()) & (mean.mean() <= high)), mean.mean(), plain.mean(), effective.mean()


def report_weighted(n_sets, sizes):
    """Print the coverage for centers of equal and unequal size, with and without confounding."""
    print(f"\nCoverage of 95 % intervals of the difference of two weighted AUCs, {n_sets} data sets each")
    print(f"{'case':<52}{'groups':>7}{'effective':>11}{'difference':>12}{'unweighted':>12}{'coverage':>10}")
    for per, size, label in itertools.product(("patch", "patient"), CENTERS, PREVALENCE):
        for n_groups in sizes:
            case = {"per": per, "shares": CENTERS[size], "prevalence": PREVALENCE[label]}
            covered, mean, plain, effective = weighted_coverage(n_sets, n_groups, **case)
            mark = "  ok" if COVERAGE[0] <= covered <= COVERAGE[1] else "  OUTSIDE"
            name = f"label per {per}, centers {size}, labels {label}"
            print(
                f"{name:<52}{n_groups:>7}{effective:>11.1f}{mean:>+12.3f}{plain:>+12.3f}{covered:>10.3f}{mark}",
                flush=True,
            )
    print(f"asked: {COVERAGE[0]} to {COVERAGE[1]}")


def _shares(share, classes):
    rest = np.full(classes, (1 - share) / (classes - 1))
    rest[0] = share
    return rest


def percentile(y, groups, scores, *, n_resamples=1000, seed=0):
    """The plain interval: groups drawn with replacement, quantiles of the difference."""
    g = int(groups.max()) + 1
    draws = draw_groups(g, n_resamples=n_resamples, seed=seed).astype(float)
    pairs = np.einsum("rg,rh->rgh", draws, draws)
    gains = []
    for k in [1] if scores[0].ndim == 1 else np.unique(y):
        positive = y == k
        counts = [draws @ np.bincount(groups[which], minlength=g) for which in (positive, ~positive)]
        areas = []
        for score in scores:
            own = score if score.ndim == 1 else score[:, k]
            won = np.zeros((g, g))
            for h in range(g):
                negatives = np.sort(own[(groups == h) & ~positive])
                rank = (np.searchsorted(negatives, own, "left") + np.searchsorted(negatives, own, "right")) / 2
                won[:, h] = np.bincount(groups[positive], weights=rank[positive], minlength=g)
            with np.errstate(invalid="ignore", divide="ignore"):
                areas.append((pairs * won).sum((1, 2)) / (counts[0] * counts[1]))
        gains.append(areas[0] - areas[1])
    return percentile_interval(np.mean(gains, axis=0))


def rejected(n_sets, n_groups, *, per, share=0.5, classes=2, with_percentile=True, seed=1):
    """Shares of data sets whose interval excludes 0: Student's over groups, the plain percentile's."""
    rng = np.random.default_rng(seed)
    found = np.zeros(2)
    for k in range(n_sets):
        y, groups, scores = simulate(rng, n_groups, per=per, share=share, classes=classes)
        interval = paired_interval(*([scored_auc(y, score, groups)] for score in scores))
        found[0] += not interval.low <= 0 <= interval.high
        if with_percentile:
            low, high = percentile(y, groups, scores, seed=k)
            found[1] += not low <= 0 <= high
    return found / n_sets


def rejected_other(n_sets, n_groups, *, what, seed=1):
    """The same for R² or balanced accuracy of two sets of predictions that are equally good on average."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(n_sets):
        groups = np.repeat(np.arange(n_groups), PATCHES)
        patient = rng.normal(size=n_groups)[groups]
        y = patient + rng.normal(size=len(groups))
        off = [0.5 * rng.normal(size=n_groups)[groups] + 0.7 * rng.normal(size=len(groups)) for _ in range(3)]
        both = [y + off[0] + one for one in off[1:]]
        if what == "R²":
            scored = [scored_r2(y, 0.5 * p, groups) for p in both]
        else:
            codes = (y > 0).astype(int)
            scored = [scored_balanced_accuracy(codes, (p > 0).astype(int), groups, 2) for p in both]
        interval = paired_interval(*([one] for one in scored))
        found += not interval.low <= 0 <= interval.high
    return found / n_sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--groups", type=int, nargs="*", default=[30, 12])
    parser.add_argument("--weighted", action="store_true")
    given = parser.parse_args()
    start = time.process_time()
    if given.weighted:
        report_weighted(given.sets, (40, 20))
        print(f"{time.process_time() - start:.0f} s of CPU")
        return
    print(f"Share of 95 % intervals that exclude a true difference of 0, {given.sets} data sets each")
    print(f"{'case':<44}{'groups':>7}{'Student':>9}{'percentile':>12}")
    cases = [(per, share, 2) for per in ("patch", "patient") for share in (0.5, 0.3)] + [("patch", 1 / 3, 3)]
    for per, share, classes in cases:
        for n_groups in given.groups:
            ours, plain = rejected(given.sets, n_groups, per=per, share=share, classes=classes)
            mark = "" if n_groups < 30 else ("  ok" if BOUNDS[0] <= ours <= BOUNDS[1] else "  OUTSIDE")
            case = f"AUC, label per {per}, {classes} classes, {share:.0%}"
            print(f"{case:<44}{n_groups:>7}{ours:>9.3f}{plain:>12.3f}{mark}", flush=True)
    for what in ("R²", "balanced accuracy"):
        for n_groups in given.groups:
            print(f"{what:<44}{n_groups:>7}{rejected_other(given.sets, n_groups, what=what):>9.3f}", flush=True)
    report_weighted(given.sets, (40, 20))
    print(f"asked at 30 groups: {BOUNDS[0]} to {BOUNDS[1]}; {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
