"""How often intervals of a paired difference exclude 0 when there is none: Student's over groups, and the percentile's.

    python benchmarks/intervals.py                    # 1,000 data sets for each case, some minutes
    python benchmarks/intervals.py --sets 200 --groups 30

Two models have the same true AUC and correlated scores; patients differ in both, and in how far each model is off.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from conceptkit.evaluate.paired import paired_interval, scored_auc, scored_balanced_accuracy, scored_r2
from conceptkit.evaluate.resampling import draw_groups, percentile_interval

PATCHES = 10
BOUNDS = (0.03, 0.07)


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
    given = parser.parse_args()
    start = time.process_time()
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
    print(f"asked at 30 groups: {BOUNDS[0]} to {BOUNDS[1]}; {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
