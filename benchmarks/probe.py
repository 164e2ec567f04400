"""Speed and statistics of the probe, measured in one run: python benchmarks/probe.py [--quick] [--layers N] [PART…].

Parts: gram, himalaya, permutations, wide, arrays, study, null, coverage, coverage_classes. Each speed part does the
same work on both sides, in the same process, one after the other, and prints what it did. A loop that would take hours
is timed on some of its identical steps, and the number of steps is printed. Threads are those of OMP_NUM_THREADS. On a
machine that others use too, ``--clock cpu`` with OMP_NUM_THREADS=1 gives ratios that do not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ALPHAS = np.logspace(-1, 6, 20)

clock: Callable[[], float] = time.perf_counter
"""Wall time, or the process's CPU time."""

layers_timed = 3
"""Layers that ``study`` measures."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds by the clock chosen, and the result."""
    start = clock()
    result = work()
    return clock() - start, result


def peak() -> float:
    """Return this process's peak resident memory in GB; unlike getrusage's, it does not hold the parent's."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1e6


def report(what: str, *values: str) -> None:
    print(f"| {what:<58} | " + " | ".join(f"{v:>14}" for v in values) + " |", flush=True)


def against(ours: float, theirs: float, least: float, quick: bool) -> tuple[str, str]:
    """Return the ratio, and the bound with its mark; small sizes are held to none."""
    ratio = theirs / ours
    return f"{ratio:.1f}×", "small sizes" if quick else f"≥ {least:g}× {mark(ratio >= least)}"


def mark(holds: bool) -> str:
    return "✓" if holds else "✗"


def clustered(rng: np.random.Generator, n_groups: int, per_group: int, d: int, icc: float) -> np.ndarray:
    shared = np.repeat(rng.normal(size=(n_groups, d)), per_group, axis=0)
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(n_groups * per_group, d))


def features(n: int, d: int, t: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return activations with a decaying spectrum, targets and groups, made without a second copy of X."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    X *= np.linspace(1.0, 0.05, d)
    Y = X[:, : min(d, 200)] @ rng.standard_normal((min(d, 200), t)) / 10 + rng.standard_normal((n, t))
    return X, Y, np.arange(n) % groups


# --- against a scikit-learn loop ---------------------------------------------------------------------------------


def loop(X: np.ndarray, Y: np.ndarray, splits: list[Any], alphas: np.ndarray, most: int | None = None) -> float:
    """Return the seconds of StandardScaler + Ridge for every fold and penalty, of ``most`` such fits scaled to all."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    todo = [(split, alpha) for split in splits for alpha in alphas]
    some = todo if most is None else todo[:: max(1, len(todo) // most)][:most]
    start = clock()
    for (train, test), alpha in some:
        scaler = StandardScaler().fit(X[train])
        Ridge(alpha).fit(scaler.transform(X[train]), Y[train]).predict(scaler.transform(X[test]))
    return (clock() - start) * len(todo) / len(some)


def path(X: np.ndarray, Y: np.ndarray, splits: list[Any], alphas: np.ndarray) -> np.ndarray:
    """Return the held-out squared error (a, t) of every penalty: ours, for the same work as :func:`loop`."""
    from conceptkit.probe.crossfit import each_fold

    def work(basis: Any, split: Any) -> np.ndarray:
        train, test = split
        return np.stack(
            [((basis.fit(Y[train], np.full(Y.shape[1], a)).predict(test) - Y[test]) ** 2).sum(0) for a in alphas]
        )

    return np.sum(each_fold(X, splits, work), axis=0)


def gram(quick: bool) -> None:
    """n = 50,000, d = 2,048, 5 folds, 20 penalties, 4 targets; penalties of all folds on both sides, none nested."""
    from conceptkit.probe.folds import make_folds

    n = 10_000 if quick else 50_000
    # Ours in a process of its own, so that its peak memory is its own.
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import probe as b; "
        f"b.clock = time.{clock.__name__}; from conceptkit.probe.folds import make_folds; "
        f"X, Y, g = b.features({n}, 2048, 4, 200); before = b.peak(); "
        "seconds, _ = b.timed(lambda: b.path_shared(X, Y, make_folds(len(X), g, 5), b.ALPHAS)); "
        "print(seconds, b.peak(), before)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], check=True, capture_output=True, text=True
    )
    ours, most, before = (float(v) for v in found.stdout.split())
    X, Y, groups = features(n, 2048, 4, 200)
    theirs = loop(X, Y, make_folds(n, groups, 5), ALPHAS, most=3)
    report(
        f"5 folds × 20 α × 4 targets, n={n:,}, d=2,048",
        f"{ours:.1f} s",
        f"{theirs:.0f} s",
        *against(ours, theirs, 30, quick),
    )
    report("  peak memory, of which before (X)", f"{most:.2f} GB", f"{before:.2f} GB", "", f"≤ 2 GB {mark(most <= 2)}")


def path_shared(X: np.ndarray, Y: np.ndarray, splits: list[Any], alphas: np.ndarray) -> np.ndarray:
    """Return what :func:`path` does: each target once into the eigenbasis, all penalties as columns of one product."""
    from conceptkit.probe.crossfit import each_fold
    from conceptkit.probe.ridge import RidgeFit

    def work(basis: Any, split: Any) -> np.ndarray:
        train, test = split
        mean, t = Y[train].mean(0), Y.shape[1]
        moments = basis.response(Y[train]).moments
        c = moments[:, None, :] / (basis.spectrum[:, None, None] + alphas[:, None])  # (r, a, t)
        fit = RidgeFit(basis, np.tile(mean, len(alphas)), c.reshape(len(c), -1))
        weights, intercept = fit.coefficients()
        error = np.zeros(len(alphas) * t)
        for i in range(0, len(test), 2048):
            rows = test[i : i + 2048]
            error += ((X[rows] @ weights + intercept - np.tile(Y[rows], len(alphas))) ** 2).sum(0)
        return error.reshape(len(alphas), t)

    return np.sum(each_fold(X, splits, work), axis=0)


def himalaya(quick: bool) -> None:
    """RidgeCV of himalaya at n = 10,000: the same folds and penalties, per target, in float64."""
    try:
        from himalaya.ridge import RidgeCV
    except ImportError:
        print("himalaya is not installed (pip install himalaya): part left out")
        return
    from conceptkit.probe.folds import make_folds

    n, d = (4000, 1024) if quick else (10_000, 2048)
    X, Y, groups = features(n, d, 4, 100)
    splits = make_folds(n, groups, 5)
    ours, _ = timed(lambda: path_shared(X, Y, splits, ALPHAS))
    theirs, _ = timed(lambda: RidgeCV(alphas=ALPHAS, cv=splits, fit_intercept=True).fit(X, Y))
    report(f"himalaya RidgeCV, n={n:,}, d={d:,}", f"{ours:.1f} s", f"{theirs:.1f} s", *against(ours, theirs, 8, quick))


def permutations(quick: bool) -> None:
    """1,000 permutations of one concept at n = 5,000, d = 2,048: α chosen anew for each, and α fixed."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    from conceptkit.probe.crossfit import cross_predict_at, each_fold
    from conceptkit.probe.folds import make_folds
    from conceptkit.probe.permutation import draw_orders, row_losses

    n, d, b = (2000, 512, 200) if quick else (5000, 2048, 1000)
    X, Y, groups = features(n, d, 1, 100)
    y = Y[:, 0] - Y.mean()
    splits = make_folds(n, groups, 5)
    orders = draw_orders(n, b, 0)
    owner = np.zeros(1, dtype=np.intp)
    ours, _ = timed(
        lambda: each_fold(X, splits, lambda basis, s: row_losses(basis, s, y[:, None], owner, orders, ALPHAS, None))
    )
    permuted = y[orders.of()].T

    def multi_target(alphas: np.ndarray) -> None:
        for train, test in splits:
            scaler = StandardScaler().fit(X[train])
            Z, held = scaler.transform(X[train]), scaler.transform(X[test])
            for alpha in alphas:
                model = Ridge(alpha).fit(Z, permuted[train])
                ((permuted[train] - model.predict(Z)) ** 2).sum(0)  # what a choice of α inside the part needs
                ((permuted[test] - model.predict(held)) ** 2).sum(0)

    some = ALPHAS[::5]
    theirs = timed(lambda: multi_target(some))[0] * len(ALPHAS) / len(some)
    what = f"{b:,} permutations, α anew, n={n:,}, d={d:,}"
    report(what, f"{ours:.1f} s", f"{theirs:.1f} s", *against(ours, theirs, 6, quick))

    def fixed() -> None:
        for train, test in splits:
            scaler = StandardScaler().fit(X[train])
            Ridge(100.0).fit(scaler.transform(X[train]), permuted[train]).predict(scaler.transform(X[test]))

    ours, _ = timed(lambda: cross_predict_at(X, permuted, splits, np.full(b + 1, 100.0)))
    theirs, _ = timed(fixed)
    report(f"{b:,} permutations, α fixed", f"{ours:.1f} s", f"{theirs:.1f} s", *against(ours, theirs, 1.5, quick))


def wide(quick: bool) -> None:
    """n = 500, d = 131,072: flattened maps, nested penalties on both sides (5 outer folds, groups left out inside)."""
    from conceptkit.probe.crossfit import cross_predict
    from conceptkit.probe.folds import make_folds

    n, d, g = (200, 32_768, 20) if quick else (500, 131_072, 50)
    X, Y, groups = features(n, d, 1, g)
    splits = make_folds(n, groups, 5)
    ours, _ = timed(lambda: cross_predict([X], 1, Y, groups, splits, ALPHAS))
    inner = [
        (train[groups[train] != h], train[groups[train] == h]) for train, _ in splits for h in np.unique(groups[train])
    ]
    theirs = loop(X, Y, inner, ALPHAS, most=4) + loop(X, Y, splits, ALPHAS[:1], most=2)
    fits = len(inner) * len(ALPHAS) + len(splits)
    what = f"nested, n={n}, d={d:,} ({fits:,} fits, 6 timed)"
    report(what, f"{ours:.1f} s", f"{theirs:.0f} s", *against(ours, theirs, 100, quick))


def arrays(quick: bool) -> None:
    """``probe_arrays`` with all controls at n = 20,000, d = 2,048, 4 concepts of 200 groups, no permutations."""
    import conceptkit as ck

    n, d = (4000, 512) if quick else (20_000, 2048)
    X, Y, groups = features(n, d, 4, 200)
    concepts = {f"c{i}": Y[:, i] for i in range(4)}
    probing = functools.partial(ck.probe_arrays, {"layer": X}, concepts, groups, permutations=0)  # imports scikit-learn
    seconds, _ = timed(probing)
    gram, G = timed(lambda: X.T @ X)
    eigen, _ = timed(lambda: np.linalg.eigh(G))
    what = f"all controls, n={n:,}, d={d:,} (Gram {gram:.2f} s, eigenvectors {eigen:.2f} s)"
    report(what, f"{seconds:.1f} s", "", "", "small sizes" if quick else f"≤ 20 s on two cores {mark(seconds <= 20)}")


def study(quick: bool) -> None:
    """11 layers × 6 concepts with all controls and 1,000 permutations at n = 5,000, d = 2,048, features given.

    Once with as many random networks as ``probe`` reads by default and once with a single one; ``--layers`` are
    measured, and the time of 11 is taken from theirs.
    """
    import conceptkit as ck
    from conceptkit.commands.probe import RANDOM_NETWORKS

    n, d, layers = (1000, 256, 2) if quick else (5000, 2048, layers_timed)
    X, Y, groups = features(n, d, 6, 100)
    Y += 0.5 * np.random.default_rng(1).normal(size=(100, 6))[groups]
    # Every layer is given the same arrays: what they hold does not change the time.
    untrained = [np.random.default_rng(3 + i).normal(size=(n, d)) for i in range(RANDOM_NETWORKS)]
    pixels = np.random.default_rng(2).normal(size=(n, 34))
    concepts = {f"c{i}": Y[:, i] for i in range(6)}
    given = {f"layer{i}": X for i in range(layers)}
    for networks in (RANDOM_NETWORKS, 1):
        baselines = {"pixels": pixels, "random_network": untrained[:networks]}
        probing = functools.partial(ck.probe_arrays, given, concepts, groups, baseline_features=baselines)
        seconds, _ = timed(probing)
        every = seconds * 11 / layers
        report(
            f"11 layers × 6 concepts, {networks} random networks ({layers} layers: {seconds:.0f} s)",
            f"{every:.0f} s",
            f"n={n:,}",
            f"d={d:,}",
            "small sizes" if quick else f"≤ 300 s {mark(every <= 300)}",
        )
    report("  peak memory", f"{peak():.2f} GB", "", "", "")


# --- statistics --------------------------------------------------------------------------------------------------


def null(quick: bool) -> None:
    """The share of p < 0.05 without any relation; seeds 0 … 999."""
    from conceptkit.probe.crossfit import each_fold
    from conceptkit.probe.folds import make_folds
    from conceptkit.probe.targets import make_target
    from conceptkit.probe.testing import permutation_tests

    def tested(X: np.ndarray, y: np.ndarray, groups: np.ndarray | None, seed: int) -> Any:
        target = make_target("c", "continuous", y, groups)
        splits = make_folds(len(y), target.groups, 5)
        tests = permutation_tests([target], 199, ALPHAS, seed)
        return tests.finish(X, splits, each_fold(X, splits, tests.in_fold))[0]

    sets = 100 if quick else 1000
    rows, groups_p, within = [], [], []
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        rows.append(tested(rng.normal(size=(80, 10)), rng.normal(size=80), None, seed).p)
        X, y = clustered(rng, 20, 30, 10, 0.8), clustered(rng, 20, 30, 1, 0.8)[:, 0]
        found = tested(X, y, np.repeat(np.arange(20), 30), seed)
        groups_p.append(found.p)
        within.append(found.p_within)
    for name, p in (("independent rows", rows), ("clustered, groups", groups_p), ("clustered, within", within)):
        share = np.mean(np.asarray(p) <= 0.05)
        report(f"share of p ≤ 0.05 in {sets:,} null data sets, {name}", f"{share:.3f}", "", "", "0.035–0.065")


def coverage(quick: bool) -> None:
    """The coverage of the interval: of what the folds' models reach in the population; 0.92 to 0.98 is meant."""
    from sklearn.linear_model import Ridge

    from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
    from conceptkit.probe.folds import make_folds
    from conceptkit.probe.targets import make_target
    from conceptkit.probe.validation import validate

    sets = 40 if quick else 300
    for icc in (0.3, 0.8):
        for n_groups in (30, 60, 100):
            for d in (20, 200):
                runs = []
                for seed in range(sets):
                    rng = np.random.default_rng(seed)
                    X = clustered(rng, n_groups, 20, d, icc)
                    beta = np.zeros(d)
                    beta[:10] = np.sqrt(0.05)
                    y = X @ beta + np.sqrt(0.5) * clustered(rng, n_groups, 20, 1, icc)[:, 0]
                    groups = np.repeat(np.arange(n_groups), 20)
                    target = make_target("c", "continuous", y, groups)
                    [found] = validate(X, [target], n_resamples=1000, seed=seed)
                    draws = draw_groups(n_groups, n_resamples=1000, seed=seed)
                    plain = percentile_interval(r2_resampled(y, found.predicted, groups, draws))
                    errors = []
                    for (train, _), alpha in zip(make_folds(len(y), groups, 5), found.alpha_folds, strict=True):
                        scale = X[train].std(0)
                        model = Ridge(alpha).fit(X[train] / scale, y[train])
                        errors.append(0.5 + ((model.coef_ / scale - beta) ** 2).sum() + model.intercept_**2)
                    runs.append((found.score_low, found.score_high, *plain, 1 - np.mean(errors)))
                low, high, plain_low, plain_high, reached = np.array(runs).T
                truth = reached.mean()
                ours = np.mean((low <= truth) & (truth <= high))
                plainly = np.mean((plain_low <= truth) & (truth <= plain_high))
                what = f"coverage, {n_groups} groups, d={d}, ICC {icc}, R² {truth:.2f} ({sets} sets)"
                report(what, f"{ours:.3f}", f"{plainly:.3f} plain", "", "0.92–0.98")


def coverage_classes(quick: bool) -> None:
    """The coverage of the intervals of AUC and balanced accuracy: of what the folds' models reach on fresh groups."""
    from conceptkit.evaluate.scores import auc, balanced_accuracy
    from conceptkit.probe.categorical import _classify
    from conceptkit.probe.folds import make_folds
    from conceptkit.probe.ridge import factorise
    from conceptkit.probe.targets import make_target
    from conceptkit.probe.validation import validate

    sets, fresh_groups = (20, 50) if quick else (300, 300)
    for icc in (0.3, 0.8):
        for n_groups in (30, 60, 100):
            for d in (20, 200):
                runs = []
                for seed in range(sets):
                    rng = np.random.default_rng(seed)
                    X = clustered(rng, n_groups + fresh_groups, 20, d, icc)
                    beta = np.zeros(d)
                    beta[:10] = np.sqrt(0.05)
                    latent = X @ beta + np.sqrt(0.5) * clustered(rng, n_groups + fresh_groups, 20, 1, icc)[:, 0]
                    y = (latent > 0).astype(int)
                    n = n_groups * 20
                    groups, fresh = np.repeat(np.arange(n_groups), 20), np.arange(n, len(y))
                    target = make_target("c", "categorical", y[:n].astype(str), groups)
                    [found] = validate(X[:n], [target], n_resamples=1000, seed=seed)
                    reached = []
                    for train, _ in make_folds(n, groups, 5):
                        scores, _, _ = _classify(factorise(X, train), (train, fresh), y, 2, groups[train], "c")
                        reached.append(
                            (auc(y[n:], scores[:, 1] - scores[:, 0]), balanced_accuracy(y[n:], scores.argmax(1), 2))
                        )
                    runs.append(
                        (found.auc_low, found.auc_high, found.score_low, found.score_high, *np.mean(reached, axis=0))
                    )
                auc_low, auc_high, low, high, area, accuracy = np.array(runs).T
                held = np.mean((auc_low <= area.mean()) & (area.mean() <= auc_high))
                right = np.mean((low <= accuracy.mean()) & (accuracy.mean() <= high))
                what = f"coverage, {n_groups} groups, d={d}, ICC {icc}, AUC {area.mean():.2f} ({sets} sets)"
                report(what, f"{held:.3f} AUC", f"{right:.3f} accuracy", "", "0.92–0.98")


PARTS = {f.__name__: f for f in (gram, himalaya, permutations, wide, arrays, study, null, coverage, coverage_classes)}


def main() -> None:
    global clock, layers_timed
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument(
        "--layers", type=int, default=layers_timed, help="how many of the 11 study measures (default 3)"
    )
    given = parser.parse_args()
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    if not 1 <= given.layers <= 11:
        parser.error(f"layers: must be from 1 to 11, got {given.layers}")
    layers_timed = given.layers
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    print(f"clock: {given.clock}, threads: {os.environ.get('OMP_NUM_THREADS', 'all')}, load {os.getloadavg()[0]:.1f}")
    report("what", "ours", "other", "ratio", "bound")
    for name in given.parts or PARTS:
        PARTS[name](given.quick)


if __name__ == "__main__":
    main()
