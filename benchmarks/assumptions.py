"""Whether p, intervals and partial R² do what they say where groups are few, unequal, nested or in centers.

    python benchmarks/assumptions.py                    # all parts, about an hour on two cores
    python benchmarks/assumptions.py null --sets 200    # one part, fewer data sets

Every part prints the figure beside the control that must fail. Data set k of a case is drawn with seed k; those of
coverage and gain with seed FIRST + k, which was fixed before either was run.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.intervals import jackknife_error, r2_interval, student_reach
from conceptkit.evaluate.paired import Scored, gain_interval, paired_interval, scored_r2
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
from conceptkit.probe.adjustment import adjusted_score
from conceptkit.probe.crossfit import deleted_errors, each_fold, jackknife_units, read_fold
from conceptkit.probe.remnants import read_remnant
from conceptkit.probe.ridge import ALPHAS, factorise
from conceptkit.probe.targets import make_target
from conceptkit.probe.testing import permutation_tests
from conceptkit.probe.validation import Validation

COLUMNS = 12
FIRST = 510_000
"""Seed of the first data set of coverage and gain"""

FRESH = 10**6
"""What is added to the seed of a data set for the fresh groups that its models are scored on"""


def report(what, *values):
    print(f"{what:<74}" + "".join(f"{v:>16}" for v in values), flush=True)


def sizes_of(n_groups, rows, unequal):
    """Rows of each group: equal, or one group with half of all rows."""
    if not unequal:
        return np.full(n_groups, rows)
    half = n_groups * rows // 2
    return np.array([half, *np.full(n_groups - 1, max(2, half // (n_groups - 1)))])


def as_concept(latent, kind, rng):
    """Make a concept of a standard normal value: itself, a count, or one that is 0 in half of the rows."""
    if kind == "count":
        return rng.poisson(np.exp(1.0 + 0.5 * latent)).astype(float)
    if kind == "zeros":
        return np.where(latent > 0, np.expm1(latent), 0.0)
    return latent


def drawn(seed, n_groups, *, rows=12, unequal=False, kind="normal", icc=0.3, related=0.0):
    """Activations and a concept with shared parts by group; ``related`` is the share of its variance that X tells."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), sizes_of(n_groups, rows, unequal))

    def part(columns):
        shared = rng.normal(size=(n_groups, columns))[groups]
        return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(groups), columns))

    X, own = part(COLUMNS), part(1)[:, 0]
    latent = np.sqrt(related) * X[:, :4].sum(1) / 2 + np.sqrt(1 - related) * own
    return X, as_concept(latent, kind, rng), groups


def p_of(X, y, groups, seed, *, permutations=199, kind="continuous", **placed):
    target = make_target("c", kind, y, groups, seed=seed, **placed)
    splits = target.folds(5)
    tests = permutation_tests([target], permutations, ALPHAS, seed)
    return tests.finish(X, splits, each_fold(X, splits, tests.in_fold) if tests.by_row else [])[0]


def share(found, name):
    values = np.array([getattr(t, name) for t in found])
    return f"{np.mean(values[np.isfinite(values)] <= 0.05):.3f}" if np.isfinite(values).any() else "–"


def null(sets):
    """Share of p ≤ 0.05 without any relation."""
    report(f"p ≤ 0.05 without a relation ({sets} sets)", "p", "between", "within", "smaller of two")
    for kind in ("normal", "count", "zeros"):
        for n_groups in (8, 12, 30, 100):
            for unequal in (False, True):
                found = [p_of(*drawn(k, n_groups, unequal=unequal, kind=kind), k) for k in range(sets)]
                found = [t for t in found if np.isfinite(t.p_within)]
                naive = np.mean([min(t.p_between, t.p_within) <= 0.05 for t in found] or [np.nan])
                case = f"  {kind}, {n_groups} groups, {'one of half the rows' if unequal else 'equal'}"
                report(case, share(found, "p"), share(found, "p_between"), share(found, "p_within"), f"{naive:.3f}")


def power(sets):
    """Share of p ≤ 0.05 where a relation is there: within and between groups, 128 columns."""
    report(f"p ≤ 0.05 with a relation ({sets} sets)", "p", "between", "within")
    for n_groups in (12, 30):
        found = []
        for k in range(sets):
            rng = np.random.default_rng(k)
            groups = np.repeat(np.arange(n_groups), 30)
            X = 0.7 * rng.normal(size=(n_groups, 128))[groups] + rng.normal(size=(len(groups), 128))
            y = 0.35 * X[:, :10].sum(1) + 0.8 * rng.normal(size=n_groups)[groups] + 0.8 * rng.normal(size=len(groups))
            found.append(p_of(X, y, groups, k))
        report(
            f"  {n_groups} groups of 30 rows", share(found, "p"), share(found, "p_between"), share(found, "p_within")
        )


def centers(sets):
    """Share of p ≤ 0.05 where centers move activations and concept independently; permuted freely as the control."""
    report(f"centers that move both, no relation ({sets} sets)", "p", "freely")
    for n_groups, n_centers, moved in ((40, 5, 0.5), (40, 5, 1.0), (100, 10, 1.0), (30, 18, 1.0)):
        found, free = [], []
        for k in range(sets):
            rng = np.random.default_rng(k)
            center = np.arange(n_groups) % n_centers
            groups = np.repeat(np.arange(n_groups), 5)
            X = moved * rng.normal(size=(n_centers, COLUMNS))[center] + rng.normal(size=(n_groups, COLUMNS))
            y = moved * rng.normal(size=n_centers)[center] + rng.normal(size=n_groups)
            names = np.array([f"c{c:02d}" for c in center], dtype=object)[groups]
            X = X[groups] + 0.5 * rng.normal(size=(len(groups), COLUMNS))
            found.append(p_of(X, y[groups], groups, k, centers=names))
            free.append(p_of(X, y[groups], groups, k))
        report(f"  {n_groups} groups in {n_centers} centers, moved by {moved}", share(found, "p"), share(free, "p"))
    report(f"slides of patients, no relation ({sets} sets)", "nested", "slides as groups", "rows in patients")
    for noise in (0.0, 0.5):
        nested, slides, rows = [], [], []
        for k in range(sets):
            rng = np.random.default_rng(k)
            patient = np.repeat(np.arange(20), 3)
            slide = np.repeat(np.arange(60), 5)
            X = 0.7 * rng.normal(size=(20, COLUMNS))[patient] + rng.normal(size=(60, COLUMNS))
            y = (0.7 * rng.normal(size=20)[patient] + rng.normal(size=60))[slide] + noise * rng.normal(size=300)
            X = X[slide] + 0.5 * rng.normal(size=(300, COLUMNS))
            nested.append(p_of(X, y, patient[slide], k, nested=slide))
            slides.append(p_of(X, y, slide, k))
            rows.append(p_of(X, y, patient[slide], k))
        case = "  a value per slide" if not noise else "  values that vary within slides"
        report(case, share(nested, "p"), share(slides, "p"), share(rows, "p"))


def interval_and_truth(X, y, groups, fresh, of_fresh, seed):
    """The interval of R² of ``probe``, the percentile's, the R² of the models on fresh rows, and the score."""
    target = make_target("c", "continuous", y, groups, seed=seed)
    units = jackknife_units(target.clusters)
    deleted, splits = np.zeros(int(units.max()) + 1), target.folds(5)
    readings, predicted, true = cross_fitted(X, target, splits, fresh, of_fresh)
    for reading, split in zip(readings, splits, strict=True):
        deleted += deleted_errors(reading, split, y[:, None], units)[:, 0]
    found = r2_interval(y, predicted, target.clusters, deleted, units, n_resamples=1000, seed=seed)
    draws = draw_groups(target.n_groups, n_resamples=1000, seed=seed)
    plain = percentile_interval(r2_resampled(y, predicted, target.clusters, draws))
    return found.low, found.high, *plain, true, scored_r2(y, predicted, units)


def cross_fitted(X, target, splits, fresh, of_fresh):
    """The readings of the folds, their held-out predictions, and the mean R² of their models on fresh rows."""
    readings, predicted, error = [], np.empty(len(X)), 0.0
    for split in splits:
        reading = read_fold(factorise(X, split[0]), split, target.columns, target.groups, ALPHAS)
        predicted[split[1]] = reading.predicted[:, 0]
        weights, intercept = reading.response.fit(reading.alpha).coefficients()
        error += np.mean((of_fresh - fresh @ weights[:, 0] - intercept[0]) ** 2) / len(splits)
        readings.append(reading)
    return readings, predicted, 1 - error / of_fresh.var()


def coverage(sets):
    """How often the interval of R² holds what the models reach on fresh groups, of the percentile's as well."""
    report(f"coverage of the interval of R² ({sets} sets)", "ours", "percentile", "true R²", "not estimable")
    for kind in ("normal", "count", "zeros"):
        for n_groups in (8, 12, 20, 30, 60, 100):
            for unequal in (False, True):
                runs = []
                for k in range(FIRST, FIRST + sets):
                    X, y, groups = drawn(k, n_groups, unequal=unequal, kind=kind, related=0.4)
                    fresh, of_fresh, _ = drawn(FRESH + k, 200, rows=4, kind=kind, related=0.4)
                    runs.append(interval_and_truth(X, y, groups, fresh, of_fresh, k)[:5])
                low, high, plain_low, plain_high, true = np.array(runs).T
                truth, some = true.mean(), np.isfinite(low)  # an interval that is not estimable covers nothing
                ours, theirs = (np.mean((a <= truth) & (truth <= b)) for a, b in ((low, high), (plain_low, plain_high)))
                case = f"  {kind}, {n_groups} groups, {'one of half the rows' if unequal else 'equal'}"
                report(case, f"{ours:.3f}", f"{theirs:.3f}", f"{truth:.2f}", f"{1 - some.mean():.3f}")


GAINS = {
    # case → noise on the features of the network, of three random networks and of the pixels
    "all equally good": (0.5, 0.5, 0.5),
    "random networks are the best baseline": (0.0, 1.0, 2.0),
    "chance is the best baseline": (0.0, 9.0, 9.0),
}


def gain(sets):
    """How often the interval of the gain over the best baseline holds the true gain; unpaired scores as the control."""
    report(f"coverage of the interval of the gain ({sets} sets)", "ours", "low too high", "unpaired", "true gain")
    for name, noises in GAINS.items():
        for n_groups in (8, 12, 30, 60):
            for unequal in (False, True):
                runs = [gained(k, n_groups, unequal, noises) for k in range(FIRST, FIRST + sets)]
                ends, plain, true = (np.array(one) for one in zip(*runs, strict=True))
                own, *baselines = true.mean(0)
                truth = own - max(0.0, *baselines)
                held = [np.mean((e[:, 0] <= truth) & (truth <= e[:, 1])) for e in (ends, plain)]
                case = f"  {name}, {n_groups} groups, {'one of half the rows' if unequal else 'equal'}"
                report(case, f"{held[0]:.3f}", f"{np.mean(ends[:, 0] > truth):.3f}", f"{held[1]:.3f}", f"{truth:.2f}")


def gained(seed, n_groups, unequal, noises):
    """The gain's interval, that of two unpaired scores, and the true R² of network, random networks and pixels."""
    X, y, groups = drawn(seed, n_groups, unequal=unequal, related=0.4)
    fresh, of_fresh, _ = drawn(FRESH + seed, 200, rows=4, related=0.4)
    rng, target = np.random.default_rng([seed, 1]), make_target("c", "continuous", y, groups, seed=seed)
    units, splits, scored, true = jackknife_units(target.clusters), target.folds(5), [], []
    noisy = [[one + noises[0] * rng.normal(size=one.shape) for one in (X, fresh)]]
    noisy += [[one + n * rng.normal(size=one.shape) for one in (X, fresh)] for n in (*[noises[1]] * 3, noises[2])]
    for Z, of in noisy[1:]:
        _, predicted, reached = cross_fitted(Z, target, splits, of, of_fresh)
        scored.append(scored_r2(y, predicted, units))
        true.append(reached)
    low, high, *_, reached, own = interval_and_truth(noisy[0][0], y, groups, noisy[0][1], of_fresh, seed)
    ends = gain_interval(own, (low, high), 0.0, [scored[:3], scored[3:]])[1:]
    best = max([Scored(0.0, np.zeros(len(own.deleted))), *scored], key=lambda one: one.value)
    reach = student_reach(effective_number(target.clusters)) * np.hypot(
        *map(jackknife_error, (own.deleted, best.deleted))
    )
    plain = own.value - best.value - reach, own.value - best.value + reach
    return ends, plain, (reached, float(np.mean(true[:3])), true[3])


def audit(sets):
    """p of the audit's probes without a relation; how often its intervals hold the mean score of all sets."""
    report(f"audit, 30 groups of 4 rows ({sets} sets)", "p ≤ 0.05", "covers", "percentile")
    for kind, reader in (("continuous", "linear"), ("categorical", "linear"), ("continuous", "kernel")):
        p, runs = [], []
        for k in range(sets):
            rng = np.random.default_rng(k)
            groups = np.repeat(np.arange(30), 4)
            X = rng.normal(size=(30, 8))[groups] + 0.5 * rng.normal(size=(120, 8))
            value = rng.normal(size=30)
            y = value[groups] if kind == "continuous" else np.where(value > np.median(value), "a", "b")[groups]
            null_target = make_target("c", kind, y.astype(object) if kind == "categorical" else y, groups, seed=k)
            p.append(read_remnant(X, null_target, reader, permutations=199, n_resamples=20, seed=k).tested.p)
            if kind == "continuous":
                some = make_target("c", kind, X[:, 0] + 0.7 * value[groups], groups, seed=k)
                found = read_remnant(X, some, reader, permutations=0, n_resamples=1000, seed=k)
                draws = draw_groups(30, n_resamples=1000, seed=k)
                plain = percentile_interval(r2_resampled(some.y.astype(float), found.predicted, some.clusters, draws))
                runs.append((found.interval.low, found.interval.high, *plain, found.score))
        covers = ["–", "–"]
        if runs:
            low, high, plain_low, plain_high, score = np.array(runs).T
            ends = ((low, high), (plain_low, plain_high))
            covers = [f"{np.mean((a <= score.mean()) & (score.mean() <= b)):.3f}" for a, b in ends]
        report(f"  {kind}, {reader}", f"{np.mean(np.array(p) <= 0.05):.3f}", *covers)


def paired(sets):
    """How often the interval of a paired difference of R² misses 0 where two readings are equally good."""
    report(f"paired interval misses 0 ({sets} sets)", "Kish", "by count")
    for n_groups in (8, 12, 30, 100):
        for unequal in (False, True):
            missed = np.zeros(2)
            groups = np.repeat(np.arange(n_groups), sizes_of(n_groups, 12, unequal))
            for k in range(sets):
                rng = np.random.default_rng(k)
                y = rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
                off = [0.7 * rng.normal(size=n_groups)[groups] + 0.5 * rng.normal(size=len(groups)) for _ in range(2)]
                first, second = (scored_r2(y, y + one, groups) for one in off)
                pairs = ((first, second), (Scored(first.value, first.deleted), second))
                missed += [not (i := paired_interval([a], [b])).low <= 0 <= i.high for a, b in pairs]
            case = f"  {n_groups} groups, {'one of half the rows' if unequal else 'equal'}"
            report(case, *(f"{one:.3f}" for one in missed / sets))


def partial(sets):
    """Partial R² (mean of the sets), with the confounders' own R²."""
    report(f"partial R² ({min(sets, 50)} sets)", "partial", "confounders")

    def run(case, make, **how):
        found = []
        for k in range(min(sets, 50)):
            X, y, confounders, groups = make(np.random.default_rng(k))
            target = make_target("c", "continuous", y, groups, seed=k)
            one = adjusted_score(X, target, confounders, target.folds(5), Validation(n_resamples=20), **how)
            found.append((one.score, one.confounders))
        report(f"  {case}", *(f"{v:.3f}" for v in np.mean(found, axis=0)))

    def encoded(rng, extra=0, error=0.0):
        w = rng.normal(size=100)
        y = w + 0.8 * rng.normal(size=100)
        X = np.column_stack([y + 0.35 * rng.normal(size=100), rng.normal(size=(100, 8))])
        noise = {f"n{i}": rng.normal(size=100) for i in range(extra)}
        return X, y, {"w": w + error * rng.normal(size=100), **noise}, np.repeat(np.arange(20), 5)

    def squared(rng):
        w = rng.normal(size=400)
        X = np.column_stack([w, w**2, rng.normal(size=(400, 5))])
        return X, w**2 + 0.3 * rng.normal(size=400), {"w": w}, np.repeat(np.arange(40), 10)

    def confounded(rng, error=0.0):
        w = rng.normal(size=400)
        X = np.column_stack([w + 0.2 * rng.normal(size=400), rng.normal(size=(400, 8))])
        return X, w + 0.8 * rng.normal(size=400), {"w": w + error * rng.normal(size=400)}, np.repeat(np.arange(40), 10)

    run("encoded, one confounder", encoded)
    run("encoded, 25 irrelevant confounders beside it", lambda rng: encoded(rng, 25))
    run("a square, linear terms (the control)", squared)
    run("a square, quadratic terms", squared, terms="quadratic")
    run("nothing but the confounder", confounded)
    run("nothing but the confounder, measured with as much error (a limit)", lambda rng: confounded(rng, 1.0))


PARTS = {f.__name__: f for f in (null, power, centers, coverage, gain, audit, paired, partial)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--sets", type=int, default=400)
    given = parser.parse_args()
    for name in given.parts or PARTS:
        start = time.process_time()
        PARTS[name](given.sets)
        print(f"  {time.process_time() - start:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
