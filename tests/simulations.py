"""Simulated data sets, and bounds of what a share of them may be."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from conceptkit.probe.crossfit import each_fold
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import make_target
from conceptkit.probe.testing import permutation_tests


def p_of(X, y, groups, *, seed=0, permutations=99, kind="continuous", **placed):
    target = make_target("c", kind, y, groups, **placed)
    splits = target.folds(5)
    tests = permutation_tests([target], permutations, ALPHAS, seed)
    return tests.finish(X, splits, each_fold(X, splits, tests.in_fold) if tests.by_row else [])[0]


def shares(found, *names, level=0.05):
    return [float(np.mean([getattr(t, name) <= level for t in found])) for name in names]


FIRST = 730_000
"""Seed of the first data set of every simulation"""

POWER = 0.8


def seeds(n):
    return range(FIRST, FIRST + n)


def highest(n, level=0.05):
    """The share of n data sets that one in a thousand choices of seeds exceeds, where the rate is ``level``."""
    return float(binom.ppf(0.999, n, level)) / n


def lowest(n, level):
    """The share of n data sets that one in a thousand choices of seeds falls below, where the rate is ``level``."""
    return float(binom.ppf(0.001, n, level)) / n


def two_levels(seed, *, related, n_groups=12, per=15, d=64):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per)
    X = 0.7 * rng.normal(size=(n_groups, d))[groups] + rng.normal(size=(len(groups), d))
    y = 2 * rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
    return X, y + (1.2 * X[:, :4].sum(1) if related else 0), groups


def in_centers(seed, *, n_groups=40, n_centers=5, per=3, d=8, moved=1.0):
    """Activations and a concept without any relation, but centers that move both."""
    rng = np.random.default_rng(seed)
    center = np.arange(n_groups) % n_centers
    groups = np.repeat(np.arange(n_groups), per)
    X = (moved * rng.normal(size=(n_centers, d))[center] + rng.normal(size=(n_groups, d)))[groups]
    y = (moved * rng.normal(size=n_centers)[center] + rng.normal(size=n_groups))[groups]
    return X + 0.3 * rng.normal(size=X.shape), y, groups, np.array(list("vwxyz"))[center][groups].astype(object)
