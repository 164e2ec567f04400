"""Rows that are too many for memory: two passes give what the exact probe gives at the same penalty."""

from __future__ import annotations

import numpy as np
import pytest
from slide_features import slide_study

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.features import own_files
from conceptkit.files import matrix as file_matrix
from conceptkit.files.matrix import ReadMatrix
from conceptkit.probe import block_permutations, blocks, crossfit
from conceptkit.probe.crossfit import cross_predict_at, deleted_errors, each_fold, pooled, read_fold
from conceptkit.probe.folds import leave_out_folds, make_folds
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import make_target, values_of
from conceptkit.probe.testing import permutation_tests
from conceptkit.probe.validation import held_out, validate
from conceptkit.synthetic import write_trident

K, EACH, D = 40, 30, 24


@pytest.fixture(scope="module")
def rows():
    """Features and targets of 40 patients; one concept varies between patients only."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(K), EACH)
    of_patient = rng.normal(size=(K, D))
    X = (rng.normal(size=(K * EACH, D)) * np.linspace(3, 0.1, D) + of_patient[groups]).astype(np.float32)
    X[:, 5] = groups % 7 == 3  # constant in most patients
    values = {
        "strong": X @ rng.normal(size=D) * 0.2 + rng.normal(size=len(X)),
        "weak": 0.2 * X[:, 0] + rng.normal(size=len(X)) * 3,
        "of patients": (of_patient @ rng.normal(size=D) * 0.3 + rng.normal(size=K))[groups],
    }
    return X, [make_target(name, "continuous", y, groups.astype(str)) for name, y in values.items()]


def lazy(X, folder):
    return ReadMatrix(lambda rows: X[rows], *X.shape, folder)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("most_units", [200, 15])
def test_at_one_penalty_all_is_as_if_refitted(rows, tmp_path, monkeypatch, most_units, shuffled):
    X, targets = rows
    monkeypatch.setattr(blocks, "_ROWS", 100)
    monkeypatch.setattr(blocks, "MOST_UNITS", most_units)
    monkeypatch.setattr(file_matrix, "HELD", 0)
    Y, groups, t = values_of(targets), targets[0].groups, len(targets)
    if shuffled:  # rows of a patient do not follow one another
        order = np.random.default_rng(1).permutation(len(X))
        X, Y, groups = X[order], Y[order], groups[order]
    splits, alpha = make_folds(len(X), groups, 5), np.array([100.0])
    mix = np.concatenate([np.eye(t), [[1.0], [-2.0], [0.5]]], axis=1)
    found = blocks.probe_blocks(lazy(X, tmp_path), Y, mix, t, groups, splits, alpha, 0)

    def work(basis, split):
        reading = read_fold(basis, split, Y, groups, alpha)
        return reading.predicted, deleted_errors(reading, split, Y, found.units)

    parts = each_fold(X, splits, work)
    predicted = pooled(splits, [part[0] for part in parts])
    np.testing.assert_allclose(found.predicted, predicted, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.deleted, sum(part[1] for part in parts), rtol=1e-5)
    mixed = cross_predict_at(X, Y, make_folds(len(X), None, 5), np.repeat(alpha, t))
    np.testing.assert_allclose(found.patchwise, mixed, rtol=0, atol=1e-10)
    y = Y @ mix
    expected = 1 - ((y - predicted @ mix) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-10)
    assert len(found.deleted) == (K if most_units > K else 10)  # one unit of each block
    assert max(len(np.unique(found.units[groups == g])) for g in range(K)) == 1
    others = np.argsort(np.random.default_rng(2).permutation(len(found.deleted)))  # the control: other units
    assert not np.allclose(found.deleted, sum(part[1] for part in parts)[others], rtol=1e-5)


def test_vectors_are_those_of_rows_in_memory(rows, tmp_path):
    X, targets = rows
    how = {"keep": True, "controls": False, "permutations": 0, "alphas": np.array([100.0]), "n_resamples": 20}
    for ours, held in zip(validate(lazy(X, tmp_path), targets, **how), validate(X, targets, **how), strict=True):
        for name in ("weights", "intercepts", "patterns", "reach", "coverage", "predicted", "agreement"):
            np.testing.assert_allclose(getattr(ours.fit, name), getattr(held.fit, name), rtol=1e-6, atol=1e-9)
        space, expected = ours.fit.space, held.fit.space
        assert space.limit == pytest.approx(expected.limit, rel=1e-6)
        np.testing.assert_allclose(space.leverage(X), expected.leverage(X), rtol=1e-6)
        assert not np.allclose(space.leverage(X[::-1]), expected.leverage(X), rtol=1e-6)  # the control: other rows


def test_permutations_are_those_of_rows_in_memory(rows, tmp_path, monkeypatch):
    X, targets = rows
    monkeypatch.setattr(block_permutations, "_ROWS", 70)  # several cells at a time, and parts of a cell
    groups = targets[0].groups
    y = values_of(targets)[:, :2]
    names, nested = (np.char.zfill(v.astype(str), 3) for v in (groups, groups * 2 + np.arange(len(groups)) % 2))
    some = [make_target(f"c{i}", "continuous", y[:, i], names, nested=nested) for i in range(2)]
    splits, tests = make_folds(len(X), groups, 5), permutation_tests([*targets[:1], *some], 30, ALPHAS, 0)
    assert [len(found) for found in (tests.rows, tests.whole_units, tests.levels_of_means)] == [2, 1, 2]
    levels = tests.levels_of_means
    found = blocks.probe_blocks(lazy(X, tmp_path), y, np.eye(2), 2, groups, splits, ALPHAS, 0, levels)
    means = dict(zip([one.tobytes() for one in levels], found.means, strict=True))
    losses = sum(tests.in_blocks(lazy(X, tmp_path), splits, found.folds, means))
    expected = sum(each_fold(X, splits, tests.in_fold))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(losses[1:] - expected[0]).max() > 0.1 * np.abs(expected).max()  # the control: other orders
    for level, mean in zip(levels, found.means, strict=True):
        np.testing.assert_allclose(
            mean, [X[level == u].mean(0, dtype=float) for u in range(len(mean))], rtol=1e-9, atol=1e-9
        )


def test_penalties_are_those_of_left_out_blocks(rows, tmp_path):
    X, targets = rows
    Y, groups, t = values_of(targets), targets[0].groups, len(targets)
    splits = make_folds(len(X), groups, 5)
    found = blocks.probe_blocks(lazy(X, tmp_path), Y, np.eye(t), t, groups, splits, ALPHAS, 0)
    layout = blocks._Layout.of(groups, splits, 0)
    of_row = layout.block[layout.unit]
    for k, (train, _) in enumerate(splits):
        scale = X[train].astype(np.float64).std(0)
        error = np.zeros((len(ALPHAS), t))
        for block in np.unique(of_row[train]):
            rest, held = train[of_row[train] != block], train[of_row[train] == block]
            mean, level = X[rest].mean(0, dtype=np.float64), Y[rest].mean(0)
            Z, A = (X[rest] - mean) / scale, (X[held] - mean) / scale
            for i, alpha in enumerate(ALPHAS):
                w = np.linalg.solve(Z.T @ Z + alpha * np.eye(D), Z.T @ (Y[rest] - level))
                error[i] += ((Y[held] - level - A @ w) ** 2).sum(0)
        np.testing.assert_array_equal(found.alpha_folds[k], ALPHAS[error.argmin(0)])
    assert len(np.unique(found.alpha_folds)) > 1


def test_scores_are_near_those_of_left_out_patients(rows, tmp_path):
    X, targets = rows
    options = {"folds": 5, "permutations": 20, "controls": True}
    exact, found = validate(X, targets, **options), validate(lazy(X, tmp_path), targets, **options)
    assert abs(found[2].score - exact[2].score) < 0.05  # of 40 values, of which a block leaves out several at a time
    for one, other in zip(exact[:2], found[:2], strict=True):
        assert other.score == pytest.approx(one.score, abs=0.005)
        assert other.score_low == pytest.approx(one.score_low, abs=0.05)
        assert other.score_in_sample == pytest.approx(one.score_in_sample, abs=0.002)
        assert other.score_patchwise == pytest.approx(one.score_patchwise, abs=0.002)
        assert other.score_shuffled == pytest.approx(one.score_shuffled, abs=0.01)
        assert other.score_random_concept == pytest.approx(one.score_random_concept, abs=0.05)
        assert other.p == one.p


def test_held_out_levels_in_two_passes(rows, tmp_path):
    X, targets = rows
    groups = targets[0].groups
    levels = np.array([f"C{g % 4}" for g in groups])
    splits, alpha = leave_out_folds(levels, "center", None), np.array([100.0])
    exact = held_out(X, targets, splits=splits, alphas=alpha)
    found = held_out(lazy(X, tmp_path), targets, splits=splits, alphas=alpha)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10)
    two = np.flatnonzero(groups < 2)
    with pytest.raises(InputError, match="at least 2 groups in a training part"):
        blocks._Layout.of(groups[two], make_folds(len(two), groups[two], 2), 0)


def test_a_probe_of_large_files_reads_each_row_twice(tmp_path, monkeypatch):
    frame, found = slide_study(tmp_path, 30, 15)
    del frame
    arguments = {"features": tmp_path / "features", "per": "patch", "concepts": ["age", "noise"], "permutations": 0}
    exact = ck.Probe(**arguments).run(tmp_path / "slides.csv", out=tmp_path / "exact")
    count, chosen = [0], own_files._chosen

    def counted(opened, at, path):
        count[0] += len(at)
        return chosen(opened, at, path)

    monkeypatch.setattr(own_files, "_chosen", counted)
    monkeypatch.setattr(own_files, "HELD", 0)
    monkeypatch.setattr(own_files, "copies_of", lambda X, part: {})  # which reads a sample
    monkeypatch.setattr(crossfit, "factorise", None)
    record = ck.Probe(**arguments).run(tmp_path / "slides.csv", out=tmp_path / "run")
    n = sum(map(len, found.values()))
    # the first block again and one row, to see that features vary; the centers held out, in two passes of their own
    assert count[0] <= 5 * n + 1
    for row, other in zip(record.rows, exact.rows, strict=True):
        assert row.score == pytest.approx(other.score, abs=0.03)
        assert row.score_leave_out == pytest.approx(other.score_leave_out, abs=0.03)
    again = ck.Probe(**arguments).run(tmp_path / "slides.csv", out=tmp_path / "again")
    assert again.settings["weights_sha256"] == record.settings["weights_sha256"]
    X = found["S03"].copy()
    X[2, 2] = np.inf
    write_trident(tmp_path / "features" / "S03.h5", X, np.stack([np.arange(len(X))] * 2, axis=1))
    with pytest.raises(InputError, match=r"S03\.h5 has NaN or infinity in row 2 of"):
        ck.Probe(**arguments).run(tmp_path / "slides.csv", out=tmp_path / "other")
