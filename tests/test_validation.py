"""Held-out validation against an independent statement in scikit-learn, on made-up and on real tissue."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import KFold, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.probe import crossfit, permutation, ridge
from conceptkit.probe.controls import RANDOM_CONCEPTS, SHUFFLES, random_concepts, shuffled_values
from conceptkit.probe.folds import make_folds
from conceptkit.probe.perceptron import held_out_mlp
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import batches, check_activations, check_varying, make_target
from conceptkit.probe.validation import held_out, held_out_each, validate


def pipeline(alpha):
    return make_pipeline(StandardScaler(), Ridge(alpha))


def left_out_alpha(X, y, groups):
    """The penalty of least error on groups left out one by one, columns standardised by all of these rows."""
    Z = StandardScaler().fit_transform(X)
    error = np.zeros(len(ALPHAS))
    for inner, outer in LeaveOneGroupOut().split(Z, groups=groups):
        for i, alpha in enumerate(ALPHAS):
            error[i] += ((Ridge(alpha).fit(Z[inner], y[inner]).predict(Z[outer]) - y[outer]) ** 2).sum()
    return ALPHAS[int(np.argmin(error))]


def nested_r2(X, y, groups, folds=5):
    """The score written out: ridge with its penalty chosen in the training part, patients never on both sides."""
    predicted = np.empty(len(y))
    for train, test in make_folds(len(X), np.unique(groups, return_inverse=True)[1], folds):
        assert not set(groups[train]) & set(groups[test])
        alpha = left_out_alpha(X[train], y[train], groups[train])
        predicted[test] = pipeline(alpha).fit(X[train], y[train]).predict(X[test])
    return r2_score(y, predicted)


def clustered(n_groups=15, per_group=12, d=30, seed=0):
    """Activations and a concept that both have a part shared by the rows of a patient."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    X = 1.5 * rng.normal(size=(n_groups, d))[groups] + rng.normal(size=(len(groups), d))
    y = (
        X @ rng.normal(size=d) / np.sqrt(d)
        + 1.5 * rng.normal(size=n_groups)[groups]
        + 0.5 * rng.normal(size=len(groups))
    )
    shuffled = rng.permutation(len(groups))
    # Two-digit names: groups of one size go to folds in the order of their names, and names are sorted as text.
    return X[shuffled], 40 + 3 * y[shuffled], 10 + groups[shuffled]


def continuous(y, groups, name="count"):
    return make_target(name, "continuous", y, groups)


def test_it_is_the_independent_statement():
    X, y, groups = clustered()
    [result] = validate(X, [continuous(y, groups)], n_resamples=50)
    assert result.score == pytest.approx(nested_r2(X, y, groups), abs=1e-6)
    assert result.score == r2_score(y, result.predicted)
    assert result.score_low < result.score < result.score_high
    # What flatters, and by how much the patients matter here.
    assert result.score_in_sample > result.score_patchwise > result.score + 0.1


def test_in_sample_and_patchwise_are_the_independent_statements():
    X, y, groups = clustered()
    [result] = validate(X, [continuous(y, groups)], n_resamples=50, seed=3)
    assert result.alpha == left_out_alpha(X, y, groups)
    assert result.score_in_sample == pytest.approx(r2_score(y, pipeline(result.alpha).fit(X, y).predict(X)), abs=1e-9)
    # As an analysis that knows of no patients does it: one penalty by leaving out rows, then plain folds.
    alpha = RidgeCV(alphas=ALPHAS).fit(StandardScaler().fit_transform(X), y).alpha_
    predicted = cross_val_predict(pipeline(alpha), X, y, cv=KFold(5, shuffle=True, random_state=3))
    assert result.score_patchwise == pytest.approx(r2_score(y, predicted), abs=1e-9)


def test_without_groups_rows_are_the_unit():
    X, y, _ = clustered()
    target = continuous(y, None)
    assert target.n_groups == len(y)
    [result] = validate(X, [target], n_resamples=50)
    predicted = np.empty(len(y))
    for train, test in KFold(5, shuffle=True, random_state=0).split(X):  # the folds are assigned by seed
        predicted[test] = ck.RegressionConceptVector().fit(X[train], y[train]).predict(X[test])
    np.testing.assert_allclose(result.predicted, predicted)


def test_the_interval_resamples_groups():
    X, y, groups = clustered()
    [result] = validate(X, [continuous(y, groups)], seed=1)
    [patchwise] = validate(X, [continuous(y, None)], seed=1)
    assert result.score_low < result.score < result.score_high
    assert result.score_high - result.score_low > 2 * (patchwise.score_high - patchwise.score_low)
    assert "15 groups" in result.interval_note
    [few] = validate(X, [continuous(y, groups // 3)], folds=3)
    assert "not estimable" in few.interval_note  # six groups leave no more to say
    numbers = np.unique(groups, return_inverse=True)[1]
    [unequal] = validate(X, [continuous(y, np.where(numbers < 5, 0, numbers))], folds=3)
    assert "11 groups of unequal size, worth 6 equal ones" in unequal.interval_note  # 15² / (5² + 10) is 6.4


def test_the_same_seed_gives_the_same_numbers():
    X, y, groups = clustered()
    first, again, other = (validate(X, [continuous(y, groups)], n_resamples=50, seed=s)[0] for s in (5, 5, 6))
    assert (first.score_low, first.score_high, first.score_patchwise) == (
        again.score_low,
        again.score_high,
        again.score_patchwise,
    )
    assert (first.score_low, first.score_high, first.score_patchwise) != (
        other.score_low,
        other.score_high,
        other.score_patchwise,
    )
    assert first.score == other.score


def test_targets_together_are_the_same_as_alone():
    X, y, groups = clustered()
    targets = [continuous(y, groups), continuous(X[:, 0], groups, "first")]
    together = validate(X, targets, n_resamples=50)
    for target, result in zip(targets, together, strict=True):
        [alone] = validate(X, [target], n_resamples=50)
        assert (result.score, result.score_low, result.alpha) == pytest.approx(
            (alone.score, alone.score_low, alone.alpha), rel=1e-9
        )


def test_targets_are_sorted_into_those_that_share_their_rows():
    values = np.array([1.0, 2.0, np.nan, 4.0])
    a, b, c = (
        make_target(n, "continuous", v, None) for n, v in (("a", values), ("b", 2 * values), ("c", np.arange(4.0)))
    )
    d = make_target("d", "categorical", np.array(["x", "y", None, "x"], dtype=object), None)
    assert [[t.name for t in part] for part in batches([a, c, b, d])] == [["a", "b"], ["c"], ["d"]]


def test_a_permuted_concept_is_not_read():
    X, y, groups = clustered()
    rng = np.random.default_rng(0)
    held, inside = [], []
    for _ in range(5):
        [result] = validate(X, [continuous(rng.permutation(y), groups)], n_resamples=50)
        held.append(result.score)
        inside.append(result.score_in_sample)
    assert max(held) < 0.08
    assert np.mean(inside) > np.mean(held)


def test_classes():
    X, y, groups = clustered()
    words = np.where(y > np.quantile(y, 0.7), "high", "low").astype(object)
    target = make_target("grade", "categorical", words, groups)
    assert target.classes == ("high", "low")
    assert target.chance == 0.5
    [result] = validate(X, [target], n_resamples=50)
    predicted = np.empty(len(y), dtype=object)
    for train, test in target.folds(5):
        vector = ck.ConceptActivationVector().fit(X[train], words[train].astype(str), groups[train])
        predicted[test] = vector.predict(X[test])
    expected = balanced_accuracy_score(words.astype(str), predicted.astype(str))
    assert result.score == pytest.approx(expected)
    assert result.score_low <= result.score <= result.score_high
    assert result.score_in_sample > result.score
    rng = np.random.default_rng(1)
    shuffled = [make_target("grade", "categorical", rng.permutation(words), groups) for _ in range(5)]
    null = [target.score(p) for target, p in zip(shuffled, held_out(X, shuffled), strict=True)]
    # One score of 180 rows strays from chance by 0.05 as a rule, the mean of five by half of it.
    assert np.mean(null) == pytest.approx(0.5, abs=0.07)
    assert max(null) < result.score


def test_random_concepts_are_read_as_columns_of_their_own_would_be():
    X, y, groups = clustered()
    targets = [continuous(y, groups), continuous(np.round(y) % 3, groups, "other")]
    results = validate(X, targets, n_resamples=50, controls=True, seed=3)
    assert abs(targets[0].icc - targets[1].icc) > 0.1
    for target, result in zip(targets, results, strict=True):
        drawn = [continuous(column, groups) for column in random_concepts(target, RANDOM_CONCEPTS, 3).T]
        scores = [t.score(p) for t, p in zip(drawn, held_out(X, drawn), strict=True)]
        assert result.score_random_concept == pytest.approx(np.mean(scores), abs=1e-9)
        shuffled = [continuous(column, groups) for column in shuffled_values(target, SHUFFLES, 3).T]
        scores = [t.score(p) for t, p in zip(shuffled, held_out(X, shuffled), strict=True)]
        assert result.score_shuffled == pytest.approx(np.mean(scores), abs=1e-9)


def test_several_matrices_are_read_as_each_by_itself(monkeypatch):
    X, y, groups = clustered()
    others = [X, X[:, :20] + 1.0, X**3]
    targets = [continuous(y, groups), continuous(np.round(y) % 3, groups, "other")]
    made = []

    def one_after_the_other():
        for number, matrix in enumerate(others):
            made.append(number)
            yield matrix

    for threads in (1, 2, 3):
        one = {"user_api": "blas", "num_threads": threads}
        monkeypatch.setattr(crossfit, "threadpool_info", lambda one=one: [one])
        together = held_out_each(one_after_the_other(), len(others), targets)
        for matrix, read in zip(others, together, strict=True):
            for one, alone in zip(read, held_out(matrix, targets), strict=True):
                np.testing.assert_allclose(one, alone, rtol=1e-10)
    assert made == [0, 1, 2] * 3


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fault_in_a_thread_ends_all_of_them(monkeypatch, threads):
    monkeypatch.setattr(crossfit, "threadpool_info", lambda: [{"user_api": "blas", "num_threads": threads}])
    X, y, groups = clustered()
    taken = []

    def broken():
        for number in range(20):
            taken.append(number)
            if number == 1:
                raise InputError("features: the second matrix is broken.")
            yield X

    with pytest.raises(InputError, match="the second matrix is broken"):
        held_out_each(broken(), 20, [continuous(y, groups)])
    assert taken == [0, 1]
    begun = []

    def job(number):
        begun.append(number)
        raise ValueError("in the job")

    with pytest.raises(ValueError, match="in the job"):
        crossfit._in_threads((functools.partial(job, i) for i in range(50)), 50)
    assert len(begun) <= threads


def test_the_perceptron_reads_what_is_not_linear():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2))
    groups = np.repeat(np.arange(20), 30)
    words = np.where(X[:, 0] * X[:, 1] > 0, "a", "b").astype(object)  # no line tells them apart
    target = make_target("xor", "categorical", words, groups)
    predicted = held_out_mlp(X, target)
    assert target.score(predicted) > 0.85
    assert target.score(held_out(X, [target])[0]) < 0.6
    np.testing.assert_array_equal(predicted, held_out_mlp(X, target))
    y = 1000 + 50 * X[:, 0] ** 2
    assert continuous(y, groups).score(held_out_mlp(X, continuous(y, groups))) > 0.7


# What is refused


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("continuous", np.full(6, np.nan), "concept: count has no value in any of the 6 rows"),
        ("continuous", np.array([3.0, 3.0, np.nan]), r"concept: count is constant \(3 in all 2 rows\)"),
        ("continuous", np.array([1.0, np.inf, 2.0, -np.inf]), "concept: count must be finite, 2 rows are infinite"),
        ("categorical", np.array([None, None], dtype=object), "concept: count has no value in any of the 2 rows"),
        ("categorical", np.array(["a", None, "a"], dtype=object), r"one class only \('a' in all 2 rows\)"),
    ],
)
def test_concepts_that_cannot_be_probed(kind, values, sentence):
    with pytest.raises(InputError, match=sentence):
        make_target("count", kind, values, None)


def test_rows_without_a_value_are_left_out_and_groups_numbered_anew():
    target = continuous(np.array([1.0, np.nan, 3.0, 4.0]), np.array(["p9", "p1", "p7", "p9"], dtype=object))
    assert target.rows.tolist() == [0, 2, 3]
    assert target.y.tolist() == [1, 3, 4]
    assert target.groups.tolist() == [1, 0, 1]
    assert target.n_groups == 2


def test_fewer_groups_than_folds():
    X, y, groups = clustered(n_groups=4)
    with pytest.raises(InputError, match="5 folds need at least 5 groups, the rows with count have 4"):
        validate(X, [continuous(y, groups)])


def test_a_class_of_one_patient_cannot_be_probed():
    _, _, groups = clustered()
    with pytest.raises(InputError, match="concept: site has the class 'b' in one group only"):
        make_target("site", "categorical", np.where(groups < 24, "a", "b").astype(object), groups)


def test_a_class_that_a_training_part_lacks_needs_more_folds():
    X = np.zeros((8, 2))
    words = np.array(["a"] * 4 + ["b"] * 4, dtype=object)
    target = make_target("site", "categorical", words, np.repeat(np.arange(4), 2))
    halves = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]
    with pytest.raises(InputError, match="concept: site has one class only in one training part"):
        held_out(X, [target], splits=halves)


def test_activations_must_be_finite():
    X = np.zeros((5, 3))
    check_activations(X, "mixed10")
    X[1, 1], X[3, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="activations: mixed10 must be finite, 2 of 5 rows hold NaN or infinity"):
        check_activations(X, "mixed10")
    X[:] = 7.0
    with pytest.raises(InputError, match="activations: mixed10 must vary between rows, all 3 columns are constant"):
        check_varying(X, "mixed10")


@pytest.mark.parametrize("within", [True, False], ids=["patients", "rows alone"])
def test_rows_taken_up_in_blocks_are_validated_alike(within, monkeypatch):
    """As on many rows, where no coordinates are kept: score, interval, controls and p are those of all at once."""
    X, y, groups = clustered()
    target = continuous(y, groups if within else None)
    how = {"folds": 4, "alphas": ALPHAS, "n_resamples": 99, "permutations": 49, "controls": True, "seed": 0}
    [expected] = validate(X, [target], **how)
    monkeypatch.setattr(ridge, "_KEPT", 0)
    monkeypatch.setattr(ridge, "_BLOCK", 200)
    monkeypatch.setattr(ridge, "_MOMENTS_BLOCK", 200)
    monkeypatch.setattr(permutation, "_ROWS_AT_ONCE", 20)
    [found] = validate(X, [target], **how)
    for name, value in vars(expected).items():
        if name == "refits":
            np.testing.assert_allclose(found.refits.score.deleted, value.score.deleted, rtol=1e-8)
        elif isinstance(value, str | dict) or value is None:
            assert getattr(found, name) == value
        else:
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-8, err_msg=name)
