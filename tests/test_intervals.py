"""The interval's parts against loops, and its coverage of what fitted models reach on fresh groups."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import GroupKFold

from conceptkit.evaluate.intervals import (
    accuracy_interval,
    auc_interval,
    coverage_note,
    jackknife_error,
    r2_interval,
    refit_inflation,
    studentised_interval,
)
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, r2_resampled
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    deleted = (values.sum() - values) / 39
    assert jackknife_error(deleted) == pytest.approx(values.std(ddof=1) / np.sqrt(40))
    assert np.isnan(jackknife_error(deleted[:1]))


def test_the_studentised_interval_of_a_mean_is_students():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    draws = rng.integers(0, 50, (20000, 50))
    mean, error = values[draws].mean(1), values[draws].std(1, ddof=1) / np.sqrt(50)
    low, high = studentised_interval(values.mean(), values.std(ddof=1) / np.sqrt(50), mean, error)
    reach = 2.01 * values.std(ddof=1) / np.sqrt(50)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.03)


def readings(n_groups=40, per_group=6, seed=0, shared=0.6):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    y = rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
    return y, 0.7 * y + shared * rng.normal(size=n_groups)[groups] + 0.4 * rng.normal(size=len(groups)), groups


def test_without_refitting_it_is_the_bootstrap_t_written_out():
    y, predicted, groups = readings()
    total = ((y - predicted) ** 2).sum()
    deleted = np.array([total - ((y - predicted)[groups == g] ** 2).sum() for g in range(40)])
    found = r2_interval(y, predicted, groups, deleted, groups, n_resamples=200, seed=2)

    def statistic(rows):
        return np.log(1 - r2_score(y[rows], predicted[rows]))

    members = [np.flatnonzero(groups == g) for g in range(40)]
    estimate = statistic(np.arange(240))
    ratios = []
    for draw in draw_groups(40, n_resamples=200, seed=2):
        drawn = [m for m, times in zip(members, draw, strict=True) for _ in range(times)]
        without = [statistic(np.concatenate(drawn[:i] + drawn[i + 1 :])) for i in range(40)]
        ratios.append((statistic(np.concatenate(drawn)) - estimate) / jackknife_error(np.array(without)))
    error = jackknife_error(np.array([statistic(np.concatenate(members[:i] + members[i + 1 :])) for i in range(40)]))
    least, most = np.quantile(ratios, [0.025, 0.975])
    # The resamples' errors are linearised there, groups are deleted one by one here.
    expected = [1 - np.exp(estimate - least * error), 1 - np.exp(estimate - most * error)]
    assert [found.low, found.high] == pytest.approx(expected, abs=0.04)


def test_refitting_widens_the_interval_as_models_do():
    y, predicted, groups = readings()
    total = ((y - predicted) ** 2).sum()
    own = np.array([((y - predicted)[groups == g] ** 2).sum() for g in range(40)])
    plain = r2_interval(y, predicted, groups, total - own, groups)
    wide = r2_interval(y, predicted, groups, total - 2 * own + own.mean(), groups)
    assert wide.high - wide.low > 1.5 * (plain.high - plain.low)
    assert refit_inflation(y[:, None], predicted[:, None], total - own, groups) == pytest.approx(1, abs=0.01)
    assert refit_inflation(y[:, None], predicted[:, None], total - 2 * own + own.mean(), groups) > 1.5
    twice = np.concatenate([y[:20], y[:20]])[:, None]  # two units that are alike: no error, and nothing to inflate
    assert refit_inflation(twice, 0.9 * twice, np.array([2.0, 3.0]), np.repeat([0, 1], 20)) == 1.0


def test_intervals_of_classes_hold_the_score_and_stay_between_0_and_1():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    y = rng.integers(0, 3, 240)
    predicted = np.where(rng.random(240) < 0.7, y, rng.integers(0, 3, 240))
    found = accuracy_interval(y, predicted, groups, 3)
    score = balanced_accuracy_score(y, predicted)
    assert found.low < score < found.high < 1
    wider = accuracy_interval(y, predicted, groups, 3, inflation=1.5)
    assert wider.low < found.low < found.high < wider.high
    perfect = accuracy_interval(y, y, groups, 3)
    assert 0.9 < perfect.low <= perfect.high <= 1 or np.isnan(perfect.low)
    positive = (y == 1).astype(int)
    area = auc_interval(positive, positive + rng.normal(size=240), groups, groups)
    assert 0.5 < area.low < area.high < 1


def test_few_groups_are_pointed_out():
    assert "9 groups only" in coverage_note(9)
    assert "29 groups" in coverage_note(29)
    assert coverage_note(30) is None


def test_many_columns_per_group_are_pointed_out_where_that_was_measured():
    found = validate_of(n_groups=30, d=60)
    assert "too wide, not too narrow" in found.interval_note
    assert validate_of(n_groups=30, d=59).interval_note is None  # the control
    assert "29 groups" in validate_of(n_groups=29, d=60).interval_note
    assert coverage_note(100, 200) == found.interval_note


def validate_of(n_groups, d):
    rng = np.random.default_rng(0)
    target = make_target("c", "continuous", rng.normal(size=2 * n_groups), np.repeat(np.arange(n_groups), 2))
    [found] = validate(rng.normal(size=(2 * n_groups, d)), [target], n_resamples=50)
    return found


# Coverage. The larger study, over groups, columns and intra-class correlations, is in benchmarks/probe.py.


def study(seed, n_groups=30, per_group=10, d=20, icc=0.8, share=0.5):
    """A data set of clustered rows, its interval, and the R² of its folds' models in the whole population."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)

    def draw(columns):
        shared = rng.normal(size=(n_groups, columns))[groups]
        return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(groups), columns))

    X = draw(d)
    beta = np.zeros(d)
    beta[:10] = np.sqrt(share / 10)
    y = X @ beta + np.sqrt(1 - share) * draw(1)[:, 0]
    target = make_target("c", "continuous", y, groups)
    [found] = validate(X, [target], n_resamples=400, seed=seed)
    plain = percentile_interval(r2_resampled(y, found.predicted, groups, draw_groups(n_groups, n_resamples=400)))
    reached = []
    for (train, _), alpha in zip(GroupKFold(5).split(X, groups=groups), found.alpha_folds, strict=True):
        scale = X[train].std(0)
        model = Ridge(alpha).fit(X[train] / scale, y[train])
        # Columns have unit variance and mean 0 in the population, so that the error there is known exactly.
        reached.append((1 - share) + ((model.coef_ / scale - beta) ** 2).sum() + model.intercept_**2)
    return found, plain, 1 - np.mean(reached)


@pytest.mark.long
def test_the_interval_covers_where_the_percentile_bootstrap_does_not():
    runs = [study(seed) for seed in range(100)]
    truth = np.mean([reached for *_, reached in runs])
    covered = np.mean([found.score_low <= truth <= found.score_high for found, *_ in runs])
    plainly = np.mean([low <= truth <= high for _, (low, high), _ in runs])
    # 100 data sets tell a coverage to ±0.03; the stated band of 0.92 to 0.98 is tried with more in the benchmark.
    assert covered >= 0.90
    assert plainly < 0.88
