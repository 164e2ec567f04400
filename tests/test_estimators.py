"""The two concept vectors: good scikit-learn citizens, right in their units, and honest about groups."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from conceptkit import ConceptActivationVector, ConceptRegion, RegressionConceptVector
from conceptkit._checks import InputError
from conceptkit.probe.folds import make_folds
from conceptkit.probe.logistic import PENALTIES
from conceptkit.probe.ridge import ALPHAS


@parametrize_with_checks(
    [
        RegressionConceptVector(),
        ConceptRegion(),
        ConceptActivationVector(alphas=[1.0, 100.0]),
        ConceptActivationVector(method="mean-difference"),
    ]
)
def test_scikit_learn_takes_it_for_its_own(estimator, check):
    check(estimator)


def planted(n=2000, d=512, r_squared=0.8, seed=0):
    """A concept that grows along one direction of the activations, with noise for the given R²."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    direction = rng.normal(size=d)
    signal = X @ direction
    y = signal + rng.normal(size=n) * signal.std() * np.sqrt(1 / r_squared - 1)
    return X, y, direction / np.linalg.norm(direction)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Regression concept vectors


def test_a_planted_direction_is_found():
    X, y, direction = planted()
    vector = RegressionConceptVector().fit(X, y)
    # Least squares comes to 1/√(1 + (1/0.8 − 1)·512/1488) = 0.96 at this size.
    assert cosine(vector.direction_, direction) >= 0.95
    assert np.linalg.norm(vector.direction_) == pytest.approx(1)
    # The control: of a concept that has nothing to do with the activations nothing is found.
    shuffled = np.random.default_rng(1).permutation(y)
    assert abs(cosine(RegressionConceptVector().fit(X, shuffled).coef_, direction)) < 0.2


def test_coefficients_follow_the_units_of_activations_and_concept():
    X, y, _ = planted(200, 10)
    unit = np.geomspace(1e-3, 1e3, 10)
    plain = RegressionConceptVector().fit(X, y)
    scaled = RegressionConceptVector().fit(X * unit + 7, y)
    np.testing.assert_allclose(scaled.coef_, plain.coef_ / unit, rtol=1e-6)
    np.testing.assert_allclose(scaled.predict(X * unit + 7), plain.predict(X), rtol=1e-6)
    np.testing.assert_allclose(RegressionConceptVector().fit(X, 60 * y).coef_, 60 * plain.coef_, rtol=1e-6)


def test_predict_and_project_mean_what_they_say():
    X, y, _ = planted(200, 10)
    vector = RegressionConceptVector().fit(X, y)
    np.testing.assert_allclose(vector.predict(X), X @ vector.coef_ + vector.intercept_)
    np.testing.assert_allclose(vector.project(X), X @ vector.coef_ / np.linalg.norm(vector.coef_))
    # A step of length 1 along the direction moves the projection by 1, and the concept by the vector's length.
    step = X + vector.direction_
    np.testing.assert_allclose(vector.project(step) - vector.project(X), 1)
    np.testing.assert_allclose(vector.predict(step) - vector.predict(X), np.linalg.norm(vector.coef_))


def left_out_errors(X, y, groups):
    """Squared error of left-out groups at each penalty, written out."""
    Z = StandardScaler().fit_transform(X)
    return [
        sum(
            ((Ridge(alpha).fit(Z[train], y[train]).predict(Z[test]) - y[test]) ** 2).sum()
            for train, test in LeaveOneGroupOut().split(Z, groups=groups)
        )
        for alpha in ALPHAS
    ]


def test_regression_is_scikit_learns_with_the_penalty_of_left_out_rows():
    X, y, _ = planted(80, 30, 0.4)
    vector = RegressionConceptVector().fit(X, y)
    Z = StandardScaler().fit_transform(X)
    assert vector.alpha_ == RidgeCV(alphas=ALPHAS).fit(Z, y).alpha_
    np.testing.assert_allclose(vector.predict(X), Ridge(vector.alpha_).fit(Z, y).predict(Z))


def test_the_cosine_is_between_the_directions_without_each_fold():
    X, y, _ = planted(120, 10, 0.5)
    groups = np.arange(120) % 12
    vector = RegressionConceptVector(folds=4).fit(X, y, groups)
    Z = StandardScaler().fit_transform(X)
    directions = [
        Ridge(vector.alpha_).fit(Z[train], y[train]).coef_ / X.std(0) for train, _ in make_folds(120, groups, 4)
    ]
    pairs = [cosine(a, b) for i, a in enumerate(directions) for b in directions[:i]]
    assert vector.cosine_ == pytest.approx(np.mean(pairs))
    assert vector.cosine_ > 0.9
    # The control: nothing but noise gives the folds little in common.
    noise = RegressionConceptVector(alphas=[0.1]).fit(X, np.random.default_rng(0).normal(size=120), groups)
    assert noise.cosine_ < vector.cosine_
    assert np.isnan(RegressionConceptVector(folds=1).fit(X, y).cosine_)


def by_group(n_groups=12, per_group=15, d=20, seed=0):
    """Activations that carry each group's fingerprint, and a concept that is a matter of the group alone.

    Whoever may look at the same group on both sides wants a weak penalty, to learn the fingerprints.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    X = rng.normal(size=(n_groups, d))[groups] + 0.05 * rng.normal(size=(len(groups), d))
    return X, rng.normal(size=n_groups)[groups], groups


def test_groups_are_respected_when_the_penalty_is_chosen():
    X, y, groups = by_group()
    shuffled = np.random.default_rng(1).permutation(len(y))
    X, y, groups = X[shuffled], y[shuffled], groups[shuffled]
    grouped = RegressionConceptVector().fit(X, y, groups)
    assert grouped.alpha_ == ALPHAS[int(np.argmin(left_out_errors(X, y, groups)))]
    ungrouped = RegressionConceptVector().fit(X, y)
    assert ungrouped.alpha_ < grouped.alpha_ / 10
    names = np.array([f"patient {g:02d}" for g in groups])
    assert RegressionConceptVector().fit(X, y, names).alpha_ == grouped.alpha_


def test_several_concepts_are_the_same_as_one_at_a_time():
    X, y, _ = planted(100, 20, 0.5)
    Y = np.stack([y, X[:, 0] * 100, np.random.default_rng(0).normal(size=100)], axis=1)
    together = RegressionConceptVector().fit(X, Y)
    assert together.coef_.shape == (3, 20)
    for t in range(3):
        alone = RegressionConceptVector().fit(X, Y[:, t])
        assert together.alpha_[t] == alone.alpha_
        np.testing.assert_allclose(together.coef_[t], alone.coef_, rtol=1e-8)
        np.testing.assert_allclose(together.direction_[t], alone.direction_, rtol=1e-8)
        np.testing.assert_allclose(together.predict(X)[:, t], alone.predict(X))
        np.testing.assert_allclose(together.project(X)[:, t], alone.project(X))


def test_a_concept_that_nothing_tells_of_has_a_zero_direction():
    vector = RegressionConceptVector().fit(np.ones((10, 3)), np.arange(10.0))
    assert not vector.coef_.any()
    assert not vector.direction_.any()
    assert vector.predict(np.ones((1, 3))) == pytest.approx(4.5)


# Concept activation vectors


def classes(n=150, d=8, k=2, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + 3
    X[:, :k] += np.eye(k)[y] * 1.5 * X[:, :k].std(0)
    return X, y


def test_the_logistic_vector_is_scikit_learns():
    for k in (2, 3):
        X, y = classes(k=k)
        vector = ConceptActivationVector(alphas=[10.0]).fit(X, y)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8)).fit(X, y)
        # Both stop at a tolerance of their own.
        np.testing.assert_allclose(vector.decision_function(X), model.decision_function(X), rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(vector.coef_.shape, (1 if k == 2 else k, 8))
        assert np.mean(vector.predict(X) == model.predict(X)) > 0.99
        assert np.mean(vector.predict(X) == y) > 0.6


@pytest.mark.parametrize("method", ConceptActivationVector.METHODS)
def test_the_decision_does_not_depend_on_the_units(method):
    for k in (2, 3):
        X, y = classes(k=k)
        unit = np.geomspace(1e-2, 1e2, 8)
        plain = ConceptActivationVector(method=method).fit(X, y)
        scaled = ConceptActivationVector(method=method).fit(X * unit - 5, y)
        # Centring costs the logistic solver's path its last digits.
        np.testing.assert_allclose(scaled.coef_, plain.coef_ / unit, rtol=1e-2, atol=1e-4)
        np.testing.assert_array_equal(scaled.predict(X * unit - 5), plain.predict(X))
        np.testing.assert_allclose(np.linalg.norm(plain.direction_, axis=1), 1)
        np.testing.assert_allclose(
            plain.project(X), np.squeeze(X @ (plain.coef_ / np.linalg.norm(plain.coef_, axis=1, keepdims=True)).T)
        )


def test_mean_difference_by_hand():
    # Standardised, the first column is ±1 by class and the second ∓1, ±1 whatever the class:
    # class means (−1, 0) and (1, 0), so W = (2, 0) and the threshold lies half way, at 0.
    X = np.array([[1.0, 10.0], [1.0, 30.0], [5.0, 10.0], [5.0, 30.0]])  # means 3 and 20, deviations 2 and 10
    vector = ConceptActivationVector(method="mean-difference").fit(X, ["a", "a", "b", "b"])
    np.testing.assert_allclose(vector.coef_, [[2 / 2, 0]], atol=1e-15)
    np.testing.assert_allclose(vector.intercept_, [-3])
    np.testing.assert_allclose(vector.direction_, [[1, 0]], atol=1e-15)
    np.testing.assert_allclose(vector.decision_function(X), [-2, -2, 2, 2])
    np.testing.assert_allclose(vector.project(X), [1, 1, 5, 5])
    assert vector.predict(X).tolist() == ["a", "a", "b", "b"]
    assert vector.alpha_ == 0


def test_mean_difference_sets_each_class_against_the_mean_of_the_others():
    X, y = classes(k=3)
    Z = (X - X.mean(0)) / X.std(0)
    vector = ConceptActivationVector(method="mean-difference").fit(X, y)
    for k in range(3):
        others = np.mean([Z[y == j].mean(0) for j in range(3) if j != k], axis=0)
        np.testing.assert_allclose(vector.coef_[k] * X.std(0), Z[y == k].mean(0) - others)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [570, 30])
    X = rng.normal(size=(600, 3)) + y[:, None]
    rare = np.mean(ConceptActivationVector().fit(X, y).predict(X)[y == 1] == 1)
    plain = np.mean(make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y).predict(X)[y == 1] == 1)
    assert rare > 0.7 > plain


def rare_classes(n=240, k=2, seed=0):
    """Classes of which the first is ten times as frequent as the others."""
    rng = np.random.default_rng(seed)
    y = k - 1 - np.minimum(rng.integers(0, 12, n), k - 1)
    X = rng.normal(size=(n, 8))
    X[:, :k] += np.eye(k)[y]
    return X, y


def held_out_log_loss(X, y, splits, alpha, *, balanced=True):
    k = len(np.unique(y))
    weight = 1 / np.bincount(y) if balanced else np.ones(k)
    total = 0.0
    for train, test in splits:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / alpha, class_weight="balanced", max_iter=2000))
        probability = model.fit(X[train], y[train]).predict_proba(X[test])
        assert probability.shape[1] == k
        total -= (weight[y[test]] * np.log(probability[np.arange(len(test)), y[test]])).sum()
    return total


@pytest.mark.parametrize("k", [2, 3])
def test_the_penalty_of_classes_is_that_of_least_balanced_log_loss(k):
    differ = 0
    for seed in range(8):
        X, y = rare_classes(k=k, seed=seed)
        groups = np.random.default_rng(seed + 100).integers(0, 9, len(y)) if seed % 2 else None
        splits = make_folds(len(X), groups, 3)
        loss = [held_out_log_loss(X, y, splits, alpha) for alpha in PENALTIES]
        assert ConceptActivationVector().fit(X, y, groups).alpha_ == PENALTIES[int(np.argmin(loss))]
        plain = [held_out_log_loss(X, y, splits, alpha, balanced=False) for alpha in PENALTIES]
        differ += int(np.argmin(plain) != np.argmin(loss))
    # The control: were every row to count alike, the frequent class would ask for another penalty in some of the sets.
    assert differ


def test_a_class_that_one_group_holds_alone_does_no_harm():
    X, y = classes(n=90, k=3)
    groups = np.where(y == 2, 0, 1 + np.arange(90) % 5)
    assert ConceptActivationVector().fit(X, y, groups).alpha_ in PENALTIES


def test_names_of_classes_and_of_methods():
    X, y = classes()
    named = ConceptActivationVector(method="mean-difference").fit(X, np.array(["tumor", "normal"])[y])
    assert named.classes_.tolist() == ["normal", "tumor"]
    assert set(named.predict(X)) <= {"normal", "tumor"}
    with pytest.raises(InputError, match="method: 'mean' is not known; near names: mean-difference; also logistic"):
        ConceptActivationVector(method="mean").fit(X, y)
    with pytest.raises(ValueError, match="y: needs at least 2 classes"):
        ConceptActivationVector().fit(X, np.zeros(len(X)))


def test_clones_keep_their_options():
    vector = clone(ConceptActivationVector(method="mean-difference", folds=4))
    assert (vector.method, vector.folds, vector.alphas) == ("mean-difference", 4, None)
    assert clone(RegressionConceptVector(alphas=[1.0], folds=3)).get_params() == {"alphas": [1.0], "folds": 3}


# Concept regions


def ring(n=300, d=3, seed=0):
    """A concept that is high in the middle and falls off on all sides: no line tells of it."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.array([1.0, 10.0, 0.1])[:d] + 5
    Z = (X - X.mean(0)) / X.std(0)
    return X, 40 + 10 * np.exp(-(Z**2).sum(1)) + 0.3 * rng.normal(size=n), np.arange(n) % 20


def test_a_region_is_read_where_no_line_is():
    X, y, groups = ring()
    new, truth, _ = ring(seed=1)
    assert ConceptRegion().fit(X, y, groups).score(new, truth) > 0.8
    assert RegressionConceptVector().fit(X, y, groups).score(new, truth) < 0.1
    # The control: of noise nothing is read.
    noise = np.random.default_rng(2).normal(size=300)
    assert ConceptRegion().fit(X, noise, groups).score(new, noise) < 0.05


@pytest.mark.parametrize("grouped", [True, False])
def test_width_and_penalty_of_a_region_are_those_of_the_loop(grouped):
    X, y, groups = ring(60)
    Z = StandardScaler().fit_transform(X)
    distances = ((Z[:, None] - Z) ** 2).sum(-1)
    median = np.median(distances[np.triu_indices(60, 1)])
    splits = list(LeaveOneGroupOut().split(Z, groups=groups if grouped else np.arange(60)))
    best = (np.inf, None, None)
    for width in (0.5, 2.0):
        K = np.exp(-distances / (width * median))
        for alpha in (1.0, 0.1, 0.01):
            error = 0.0
            for train, test in splits:
                # Kernel ridge with a free intercept, as one linear system.
                n = len(train)
                system = np.block(
                    [[K[np.ix_(train, train)] + alpha * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), 0]]
                )
                solved = np.linalg.solve(system, np.append(y[train], 0))
                error += ((K[np.ix_(test, train)] @ solved[:-1] + solved[-1] - y[test]) ** 2).sum()
            best = min(best, (error, width, alpha))
    region = ConceptRegion(alphas=[0.01, 0.1, 1.0], widths=[0.5, 2.0]).fit(X, y, groups if grouped else None)
    assert (region.width_, region.alpha_) == best[1:]


def test_a_region_needs_two_groups():
    X, y, _ = ring(20)
    with pytest.raises(InputError, match="at least 2 groups"):
        ConceptRegion().fit(X, y, np.zeros(20))
