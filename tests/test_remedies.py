"""Remedies: the center goes, the label stays, nothing is fitted on rows that are scored, labels never leak."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from combatlearn.core import ComBatModel
from pandas import DataFrame, Series
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf

from conceptkit.errors import InputError
from conceptkit.evaluate.paired import paired_interval
from conceptkit.families import REMEDIES
from conceptkit.features.pixel_remedies import with_changed_pixels
from conceptkit.probe.erasure import fit_eraser, indicators
from conceptkit.probe.folds import make_folds
from conceptkit.probe.remedies import Rows, price
from conceptkit.synthetic import embedded_study


def cohort(seed=0, patients=48, each=6, d=12, centers=4):
    """Features with a shift per center, a direction of the label and one of a concept; labels follow the center."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    center = patient % centers
    rate = np.linspace(0.2, 0.8, centers)[center]
    label = (rng.random(len(patient)) < rate).astype(np.intp)
    concept = rng.normal(size=len(patient))
    shifts = 2 * np.linalg.qr(rng.normal(size=(d, centers)))[0].T
    directions = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    X = shifts[center] + np.outer(2.0 * label, directions[0]) + np.outer(concept, directions[1])
    X = X + rng.normal(size=X.shape) + rng.normal(size=(patients, d))[patient] * 0.3
    return X, Rows(label=label, center=center, patient=patient, concepts={"size": concept})


def test_leace_removes_the_center_and_keeps_the_label():
    X, rows = cohort()
    before, after = (price(X, REMEDIES[name], rows) for name in ("nothing", "leace"))
    assert set(before.scores) == {
        *(f"center {kind}" for kind in ("linear", "mlp", "kernel")),
        *("label AUC within centers", "label AUC unseen centers", "R² size"),
    }
    assert before.scores["center linear"].value > 0.7
    assert after.scores["center linear"].value < 0.4  # chance 0.25
    assert after.scores["label AUC unseen centers"].value > before.scores["label AUC unseen centers"].value - 0.02
    change = paired_interval([after.scores["center linear"]], [before.scores["center linear"]])
    assert change.high < -0.3
    assert np.array_equal(before.corrected, X)
    # by hand: the rows of a fold are changed by the map of the others
    train, test = make_folds(len(X), rows.patient, 5, strata=[rows.label, rows.center])[2]
    by_hand = REMEDIES["leace"].fit(X[train], rows.label[train], rows.center[train])(X[test], rows.center[test])
    assert np.allclose(after.corrected[test], by_hand)


def test_quadratic_leace_removes_what_differs_in_spread_only_and_leace_does_not():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(80), 10)
    center = patient % 4
    turns = [np.linalg.qr(rng.normal(size=(5, 5)))[0] * np.geomspace(0.2, 3, 5) for _ in range(4)]
    X = np.einsum("nj,nij->ni", rng.normal(size=(800, 5)), np.stack(turns)[center]) + 7
    label = (X[:, 0] > 7).astype(np.intp)
    rows = Rows(label=label, center=center, patient=patient, concepts={})
    found = {name: price(X, REMEDIES[name], rows, probes=["kernel"]) for name in ("nothing", "leace", "qleace")}
    kernel = {name: one.scores["center kernel"].value for name, one in found.items()}
    assert kernel["leace"] > 0.5
    assert kernel["qleace"] < 0.35 < kernel["nothing"]  # chance 0.25
    assert found["qleace"].scores["label AUC within centers"].value > 0.9
    change = REMEDIES["qleace"].fit(X, label, center)
    assert np.allclose([change(X, center)[center == k].mean(0) for k in range(4)], X.mean(0))
    before = [ledoit_wolf(X[center == k])[0] for k in range(4)]
    maps = [change(X[center == k].mean(0) + np.eye(5), np.full(5, k)) - X.mean(0) for k in range(4)]
    after = [A.T @ one @ A for A, one in zip(maps, before, strict=True)]
    assert np.allclose(after, after[0], atol=1e-6)
    assert np.ptp(before, axis=0).max() > 1
    # the barycenter S is the mean of (S^½ S_k S^½)^½ (Agueh and Carlier, 2011)
    root = sqrtm(after[0])
    assert np.allclose(np.mean([sqrtm(root @ one @ root) for one in before], axis=0), after[0], atol=1e-6)
    with pytest.raises(InputError, match="qleace needs two rows that differ"):
        REMEDIES["qleace"].fit(X * 0, label, center)


@pytest.mark.parametrize("name", ["centring", "combat", "qleace"])
def test_methods_that_know_the_center_of_new_rows_are_marked(name):
    X, rows = cohort()
    found = price(X, REMEDIES[name], rows, probes=["linear"])
    assert REMEDIES[name].transductive
    assert found.scores["center linear"].value < 0.5
    assert found.scores["label AUC within centers"].value > 0.8


def test_labels_of_scored_rows_do_not_leak_through_combat():
    """Labels follow the center and X holds nothing of them: within centers nothing can be predicted."""
    clean, leaked = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(48), 4)
        center = patient % 4
        label = (rng.random(192) < np.linspace(0.1, 0.9, 4)[center]).astype(np.intp)
        X = rng.normal(size=(192, 100)) + center[:, None]
        rows = Rows(label=label, center=center, patient=patient, concepts={})
        clean.append(price(X, REMEDIES["combat"], rows, probes=()).scores["label AUC within centers"].value)
        # the control that must fail: ComBat of all rows, applied with their labels, before the cross-validation
        given = {"batch": Series(center), "discrete_covariates": DataFrame({"label": label.astype(str)})}
        of_all = ComBatModel(method="fortin").fit(DataFrame(X), **given).transform(DataFrame(X), **given).to_numpy()
        leaked.append(price(of_all, REMEDIES["nothing"], rows, probes=()).scores["label AUC within centers"].value)
    assert abs(np.mean(clean) - 0.5) < 0.06
    assert np.mean(leaked) > 0.6


def test_shrinkage_erases_exactly_and_holds_for_new_patients_in_wide_layers():
    left = {0.0: [], 0.9: []}
    for seed in range(5):
        X, rows = cohort(seed, d=300)
        Z, train = indicators(rows.center, 4), rows.patient < 24

        def means(A, which, of=rows.center):
            found = np.stack([A[of[which] == k].mean(0) for k in range(4)])
            return found - found.mean(0)

        shifts = np.linalg.svd(means(X[train], train))[2][:3]
        for shrinkage, values in left.items():
            eraser = fit_eraser(X[train], Z[train], shrinkage=shrinkage)
            A = eraser(X[train])
            assert abs((A - A.mean(0)).T @ (Z[train] - Z[train].mean(0))).max() < 1e-6 * len(A)
            values.append(((means(eraser(X[~train]), ~train) @ shifts.T) ** 2).sum())
    assert np.mean(left[0.9]) < 0.1 * np.mean(left[0.0])


def test_bad_input_is_a_sentence():
    X, rows = cohort()
    one_center = dataclasses.replace(rows, label=(rows.center == 0).astype(np.intp))
    with pytest.raises(InputError, match="rows of each label"):
        price(X, REMEDIES["nothing"], one_center)
    with pytest.raises(InputError, match="two rows of each"):
        REMEDIES["combat"].fit(X[:5], rows.label[:5], np.array([0, 0, 0, 0, 1]))


def test_changed_pixels_are_read_and_are_not_taken_for_the_plain_ones():
    table = embedded_study().load_table().select(np.arange(40))
    for name in ("reinhard", "macenko", "restained"):
        changed = with_changed_pixels(table, name, REMEDIES[name])
        assert not np.array_equal(changed.pixels(3), table.pixels(3))
        assert np.array_equal(changed.pixels(3), with_changed_pixels(table, name, REMEDIES[name]).pixels(3))
        assert not set(changed.identities()) & set(table.identities())
        assert changed.digest(3) != table.digest(3)  # by which stores decide whether to compute again
