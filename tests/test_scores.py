"""Scores against scikit-learn's, on what hypothesis comes up with and on the cases that have no score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from conceptkit.evaluate.scores import (
    auc,
    balanced_accuracy,
    best_threshold,
    calibration_error,
    confusion,
    f1,
    main_task_scores,
    r2,
    recall_mean,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(2, 50), st.floats(1e-3, 1e3), st.floats(-1e4, 1e4))
def test_r2(seed, n, scale, offset):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) * scale + offset
    predicted = y + rng.normal(size=n) * scale
    # Both subtract means of up to 1e4 from values of a spread of 1e-3: nine digits are left of sixteen.
    assert r2(y, predicted) == pytest.approx(metrics.r2_score(y, predicted), rel=1e-6, abs=1e-6)


def test_r2_of_the_mean_is_zero_and_of_a_constant_is_none():
    y = np.array([1.0, 2.0, 6.0])
    assert r2(y, np.full(3, 3.0)) == 0
    assert r2(y, y) == 1
    assert np.isnan(r2(np.ones(3), np.ones(3)))


@given(seeds, st.integers(2, 40), st.integers(2, 4))
def test_class_scores(seed, n, k):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(0, k, n)])  # every class occurs
    predicted = rng.integers(0, k, n + k)
    np.testing.assert_array_equal(confusion(y, predicted, k), metrics.confusion_matrix(y, predicted, labels=range(k)))
    assert balanced_accuracy(y, predicted, k) == pytest.approx(metrics.balanced_accuracy_score(y, predicted))
    average = "binary" if k == 2 else "macro"
    assert f1(y, predicted, k) == pytest.approx(metrics.f1_score(y, predicted, average=average, zero_division=0))


def test_a_class_that_does_not_occur_is_left_out_of_the_recall():
    y, predicted = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    assert balanced_accuracy(y, predicted, 4) == 0.75
    assert recall_mean(np.zeros((3, 2, 2))).tolist() == [0, 0, 0]


def test_f1_without_any_positive_is_zero():
    assert f1(np.zeros(3, int), np.zeros(3, int), 2) == 0


@given(seeds, st.integers(2, 60), st.integers(1, 5))
def test_auc_of_two_classes_with_ties(seed, n, levels):
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1], rng.integers(0, 2, n)])
    score = rng.integers(0, levels + 1, n + 2) / 3.0  # few levels: many ties
    assert auc(y, score) == pytest.approx(metrics.roc_auc_score(y, score), abs=1e-12)


@given(seeds, st.integers(3, 60), st.integers(3, 5))
def test_auc_of_many_classes_is_the_mean_of_one_against_the_rest(seed, n, k):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(0, k, n)])
    score = np.round(rng.dirichlet(np.ones(k), n + k), 1) + 0.01
    score /= score.sum(1, keepdims=True)
    expected = metrics.roc_auc_score(y, score, multi_class="ovr", average="macro")
    assert auc(y, score) == pytest.approx(expected, abs=1e-12)


def test_auc_of_one_class_is_none():
    assert np.isnan(auc(np.ones(3, int), np.arange(3.0)))
    assert np.isnan(auc(np.ones(3, int), np.eye(3)))


def test_auc_does_not_depend_on_the_scale_of_the_score():
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, 100), rng.normal(size=100)
    assert auc(y, score) == auc(y, np.exp(3 * score))
    assert auc(y, score) == pytest.approx(1 - auc(y, -score))


def test_main_task_scores():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 50), rng.random(50)
    expected = {
        "auc": metrics.roc_auc_score(y, p),
        "f1": metrics.f1_score(y, p > 0.3),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, p > 0.3),
        "brier": metrics.brier_score_loss(y, p),
        "ece": calibration_error(y, p),
        "threshold": 0.3,
        "f1_at_half": metrics.f1_score(y, p > 0.5),
    }
    assert main_task_scores(y, p, threshold=0.3) == pytest.approx(expected)
    y, p = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    expected = {
        "auc": metrics.roc_auc_score(y, p, multi_class="ovr"),
        "f1": metrics.f1_score(y, p.argmax(1), average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, p.argmax(1)),
        "brier": np.mean(((p - np.eye(3)[y]) ** 2).sum(1)),
        "ece": calibration_error(y, p),
    }
    assert main_task_scores(y, p) == pytest.approx(expected)


def test_calibration_error_is_the_gap_in_each_bin():
    rng = np.random.default_rng(1)
    p = rng.random(400)
    y = (rng.random(400) < p**2).astype(int)
    expected = 0.0
    for low in np.arange(10) / 10:
        here = (p >= low) & (p < low + 0.1)
        expected += here.mean() * abs(y[here].mean() - p[here].mean())
    assert calibration_error(y, p) == pytest.approx(expected)
    sure = np.array([0.0, 1.0, 1.0])
    assert calibration_error(np.array([0, 1, 1]), sure) == 0
    assert calibration_error(np.array([1, 0, 0]), sure) == 1  # the control
    three = np.eye(3)[[0, 1, 2]]
    assert calibration_error(np.array([0, 1, 1]), three) == pytest.approx(1 / 3)


@given(seeds, st.integers(2, 40))
def test_no_other_threshold_gives_a_higher_f1(seed, n):
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1], rng.integers(0, 2, n)])
    p = np.round(rng.random(n + 2), 1)  # with ties, and at the ends of the range
    best = best_threshold(y, p)
    assert 0 <= best <= 1 or p.min() == 0
    found = metrics.f1_score(y, p > best)
    assert found == pytest.approx(max(metrics.f1_score(y, p > cut, zero_division=0) for cut in [-1, *p]))
