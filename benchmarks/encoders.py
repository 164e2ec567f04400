"""Coverage of the paired difference between two encoders, and how often a true tie is called a difference.

    python benchmarks/encoders.py                     # 400 data sets for each case, half an hour on one core
    python benchmarks/encoders.py --sets 100 --groups 30

Two encoders are noisy linear views of the same latent features of patches in patients. The truth is the mean over data
sets of what the models of the folds reach on new patients, which follows from the covariance in closed form. Next to
the interval that `probe` reports (patients deleted, models refitted) stand the percentile intervals of the same
predictions with patches and with patients resampled: the first is the control that must fail.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.linear_model import Ridge

from conceptkit.evaluate.paired import paired_interval, refit_difference
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate

PER_GROUP, LATENT = 12, 8
WANTED = (0.93, 0.98)
CASES = (
    # name, features of each encoder, intra-class correlation, noise of each encoder
    ("equal encoders", (24, 24), 0.3, (1.0, 1.0)),
    ("equal encoders", (24, 24), 0.8, (1.0, 1.0)),
    ("equal encoders, wide", (200, 200), 0.3, (1.0, 1.0)),
    ("second is noisier", (24, 24), 0.3, (0.5, 2.0)),
    ("second is noisier", (24, 24), 0.8, (0.5, 2.0)),
    ("second is noisier and wide", (24, 200), 0.3, (0.5, 2.0)),
)


def clustered(rng, n_groups, d, icc):
    """Return standard normal columns with an intra-class correlation, (n_groups · PER_GROUP, d)."""
    of_group = np.repeat(rng.normal(size=(n_groups, d)), PER_GROUP, axis=0)
    return np.sqrt(icc) * of_group + np.sqrt(1 - icc) * rng.normal(size=of_group.shape)


def simulate(seed, n_groups, widths, icc, noises):
    """Return both encoders' features, the concept, its coefficients on the latent features, and their loadings."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng([seed, n_groups])
    loadings = [fixed.normal(size=(LATENT, d)) / np.sqrt(LATENT) for d in widths]
    beta = np.sqrt(np.linspace(1.5, 0.5, LATENT) * 0.6 / LATENT)
    Z = clustered(rng, n_groups, LATENT, icc)
    views = [
        Z @ W + noise * clustered(rng, n_groups, W.shape[1], icc) for W, noise in zip(loadings, noises, strict=True)
    ]
    y = Z @ beta + np.sqrt(0.4) * clustered(rng, n_groups, 1, icc)[:, 0]
    return views, y, beta, loadings


def reached(X, y, splits, alphas, beta, W, noise):
    """Return the R² that the models of the folds reach in the population, whose concept has variance 1."""
    errors = []
    for (train, _), alpha in zip(splits, alphas, strict=True):
        mean, scale = X[train].mean(0), X[train].std(0)
        model = Ridge(alpha).fit((X[train] - mean) / scale, y[train])
        w = model.coef_ / scale
        bias = model.intercept_ - mean @ w
        errors.append(0.4 + ((beta - W @ w) ** 2).sum() + noise**2 * (w @ w) + bias**2)
    return 1 - np.mean(errors)


def one_set(seed, n_groups, widths, icc, noises):
    """Return the truth of one data set, then the ends of each interval and p."""
    views, y, beta, loadings = simulate(seed, n_groups, widths, icc, noises)
    groups = np.repeat(np.arange(n_groups), PER_GROUP)
    target = make_target("c", "continuous", y, groups)
    found = [validate(X, [target], n_resamples=1)[0] for X in views]
    ours = refit_difference(*(one.refits for one in found))
    log = paired_interval(*([one.refits.unexplained] for one in found))
    ends = []
    for units in (np.arange(len(y)), groups):
        draws = draw_groups(int(units.max()) + 1, n_resamples=500, seed=seed)
        gain = np.subtract(*(r2_resampled(y, one.predicted, units, draws) for one in found))
        ends += percentile_interval(gain)
    true = [
        reached(X, y, target.folds(5), one.alpha_folds, beta, W, noise)
        for X, one, W, noise in zip(views, found, loadings, noises, strict=True)
    ]
    unexplained = np.log1p(-np.array(true))
    return [true[0] - true[1], unexplained[0] - unexplained[1], ours.low, ours.high, log.low, log.high, *ends, ours.p]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--groups", type=int, nargs="*", default=[20, 30, 60])
    given = parser.parse_args()
    start = time.process_time()
    print(f"Coverage of 95 % intervals of the difference between encoders, {given.sets} data sets each")
    print(
        f"{'case':<36}{'ICC':>5}{'groups':>7}{'true':>7}{'R²':>7}{'log':>7}{'patches':>9}{'patients':>9}{'p<=.05':>8}"
    )
    for name, widths, icc, noises in CASES:
        for n_groups in given.groups:
            runs = np.array([one_set(seed, n_groups, widths, icc, noises) for seed in range(given.sets)])
            truth, log_truth = runs[:, :2].mean(0)
            covers = [
                np.mean((runs[:, i] <= true) & (true <= runs[:, i + 1]))
                for i, true in ((2, truth), (4, log_truth), (6, truth), (8, truth))
            ]
            mark = "  ok" if all(WANTED[0] <= one <= WANTED[1] for one in covers[:2]) else "  OUTSIDE"
            figures = "".join(f"{one:>{w}.3f}" for one, w in zip(covers, (7, 7, 9, 9), strict=True))
            print(
                f"{name:<36}{icc:>5}{n_groups:>7}{truth:>7.3f}{figures}{np.mean(runs[:, -1] <= 0.05):>8.3f}{mark}",
                flush=True,
            )
    print(f"wanted: {WANTED[0]} to {WANTED[1]}; {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
