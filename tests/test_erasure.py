"""Erasure: what it takes away, what it leaves, and that it is the smallest change."""

from __future__ import annotations

import numpy as np
import pytest

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import balanced_accuracy
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.erasure import fit_eraser, indicators


def some_rows(n=300, d=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 2 * rng.normal(size=(classes, d))[codes] + 5
    return X, codes, rng


def explained(X, Z, weights=None):
    """Share of Z that least squares with an intercept explains."""
    root = np.sqrt(np.ones(len(X)) if weights is None else weights)[:, None]
    A = np.column_stack([np.ones(len(X)), X]) * root
    B = Z * root
    fitted = A @ np.linalg.lstsq(A, B, rcond=None)[0]
    constant = root @ np.linalg.lstsq(root, B, rcond=None)[0]
    return 1 - ((B - fitted) ** 2).sum() / ((B - constant) ** 2).sum()


def test_no_linear_probe_beats_a_constant_afterwards():
    X, codes, _ = some_rows()
    Z = indicators(codes, 3)
    erased = fit_eraser(X, Z)(X)
    assert explained(X, Z) > 0.3
    assert abs(explained(erased, Z)) < 1e-9
    assert np.linalg.norm(np.mean([X[codes == c].mean(0) - erased[codes == c].mean(0) for c in range(3)])) > 0
    for c in range(3):  # equal class means: the theorem's condition
        np.testing.assert_allclose(erased[codes == c].mean(0), erased.mean(0), atol=1e-9)


def test_a_value_is_erased_and_another_left():
    X, _, rng = some_rows()
    z = X @ rng.normal(size=12) + rng.normal(size=300)
    other = X @ rng.normal(size=12)
    erased = fit_eraser(X, z[:, None])(X)
    assert abs(explained(erased, z[:, None])) < 1e-9
    assert explained(erased, other[:, None]) > 0.5


def test_it_is_the_smallest_change_of_its_kind():
    """Against the oblique alternatives: any other map that makes X and Z uncorrelated moves the rows further."""
    X, codes, rng = some_rows()
    Z = indicators(codes, 3)
    eraser = fit_eraser(X, Z)
    moved = ((eraser(X) - X) ** 2).sum()
    centred = X - X.mean(0)
    cross = centred.T @ (Z - Z.mean(0))
    left = np.linalg.svd(cross, full_matrices=False)[0][:, :2]
    orthogonal = X - centred @ left @ left.T
    assert abs(explained(orthogonal, Z)) < 1e-9
    assert moved < ((orthogonal - X) ** 2).sum()
    # To the solution the maps N with N Σ_xz = 0 may be added: each of them only adds to the change.
    for _ in range(5):
        null = rng.normal(size=(12, 12)) @ (np.eye(12) - left @ left.T)
        other = X.mean(0) + centred @ (eraser.matrix + 0.01 * null).T
        assert abs(explained(other, Z)) < 1e-9
        assert ((other - X) ** 2).sum() > moved


def test_weighted_rows_are_erased_as_weighted():
    X, codes, rng = some_rows()
    Z = indicators(codes, 3)
    weights = rng.uniform(0.2, 3, 300)
    erased = fit_eraser(X, Z, weights)(X)
    assert abs(explained(erased, Z, weights)) < 1e-9
    assert explained(erased, Z) > 1e-4
    doubled = np.r_[np.arange(300), np.arange(100)]
    counted = fit_eraser(X, Z, np.r_[np.full(100, 2.0), np.ones(200)])
    np.testing.assert_allclose(fit_eraser(X[doubled], Z[doubled]).matrix, counted.matrix, atol=1e-9)


def test_directions_without_spread_and_few_rows():
    X, codes, _ = some_rows(n=20, d=12)
    X = np.column_stack([X, np.full(20, 3.0), X[:, 0]])
    erased = fit_eraser(X, indicators(codes, 3))(X)
    assert np.isfinite(erased).all()
    np.testing.assert_allclose(erased[:, 12], 3.0)
    for c in range(3):
        np.testing.assert_allclose(erased[codes == c].mean(0), erased.mean(0), atol=1e-8)


def test_dead_units_get_no_rounding_errors_to_read():
    X, codes, _ = some_rows(n=400, d=12)
    dead = np.column_stack([X, np.zeros((400, 5))])
    erased = fit_eraser(dead, indicators(codes, 3))(dead)
    assert (erased[:, 12:] == 0).all()
    assert np.mean(ConceptActivationVector().fit(dead, codes).predict(dead) == codes) > 0.6
    read = ConceptActivationVector().fit(erased, codes).predict(erased)
    assert balanced_accuracy(codes, read, 3) == pytest.approx(1 / 3, abs=0.02)


def test_nothing_to_erase_changes_nothing():
    X, _, rng = some_rows()
    z = rng.normal(size=300)
    z -= np.column_stack([np.ones(300), X]) @ np.linalg.lstsq(np.column_stack([np.ones(300), X]), z, rcond=None)[0]
    np.testing.assert_allclose(fit_eraser(X, z[:, None])(X), X, atol=1e-9)
    np.testing.assert_allclose(fit_eraser(X, np.ones((300, 1)))(X), X, atol=1e-9)


@pytest.mark.parametrize("X", [np.zeros((1, 2)), np.array([[1.0, np.inf], [0.0, 1.0]])], ids=["one row", "infinite"])
def test_what_cannot_be_erased(X):
    with pytest.raises(InputError, match=r"^erasure: "):
        fit_eraser(X, np.ones((len(X), 1)))
