"""RI, MaRI and CRoMa against the package croma and against deleting each patient; their intervals in a simulation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from conceptkit.errors import InputError
from conceptkit.probe.neighbours import make_cohort
from conceptkit.probe.robustness import INDICES, RobustnessIndices, evidence_chance, robustness_indices
from conceptkit.probe.robustness_intervals import over_centers, over_patients, strata_of, stratified_error


def drawn(seed: int, *, patients: int = 24, centers: int = 4, rows: int = 8, mixed: bool = True) -> list[NDArray[Any]]:
    """Return features, labels, centers and patients; with ``mixed`` a patient has rows of both labels."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rows)
    center = patient % centers
    label = rng.integers(0, 2, len(patient)) if mixed else (patient // centers) % 2
    X = rng.normal(size=(len(patient), 12)) + 0.8 * rng.normal(size=(patients, 12))[patient]
    X += rng.normal(size=(centers, 12))[center] + 1.2 * rng.normal(size=(2, 12))[label]
    order = rng.permutation(len(X))
    return [values[order] for values in (X, label, center, patient)]


@pytest.mark.parametrize("seed", range(4))
def test_indices_equal_croma(seed: int) -> None:
    croma = pytest.importorskip("croma")
    X, label, center, patient = drawn(seed, patients=24 + 8 * seed, rows=8 - seed, mixed=seed % 2 == 0)
    manifest = pd.DataFrame({"sample_id": np.arange(len(X)).astype(str), "image_path": "none"})
    manifest["label"], manifest["center"], manifest["group_id"] = label, center, patient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without an informative neighbour
        ri, mari = (
            one.compute(X, manifest, confounder_column="center", k_candidates=[5, 11, 21])
            for one in (croma.RI, croma.MaRI)
        )
    margin = croma.CRoMa.compute(X, manifest, confounder_column="center")
    ours = robustness_indices(X, label, center, patient)
    expected = dict(zip(INDICES, (ri.value, mari.value, margin.value, margin.ltm_alpha, margin.f0), strict=True))
    for name, value in expected.items():
        assert ours.indices[name].value == pytest.approx(value, abs=1e-12)
    assert (ours.k, ours.indices["RI"].n_rows) == (ri.k, round(ri.support * len(X)))
    assert ours.tau == pytest.approx(mari.tau, abs=1e-12)


@pytest.mark.parametrize("mixed", [False, True])
def test_values_without_a_unit_are_those_of_the_other_rows(mixed: bool) -> None:
    X, label, center, patient = drawn(5, patients=15, centers=3, mixed=mixed)
    whole = robustness_indices(X, label, center, patient)
    for unit, codes in (("patient", whole.cohort.patient), ("center", whole.cohort.center)):
        for one in range(codes.max() + 1):
            kept = codes != one
            rest = robustness_indices(X[kept], label[kept], center[kept], patient[kept], k=whole.k, tau=whole.tau)
            for name, index in rest.indices.items():
                without = getattr(whole.indices[name], f"without_{unit}")
                assert without[one] == pytest.approx(index.value, abs=1e-12)


def _cohort(rng: np.random.Generator, means: list[NDArray[Any]]) -> RobustnessIndices:
    """Return the indices of 4 centers, 6 patients in each, and 12 rows of each patient, which resemble each other."""
    center, label, patient = np.repeat(np.arange(4), 6), np.tile(np.arange(6) % 2, 4), np.repeat(np.arange(24), 12)
    X = (rng.normal(size=(24, 8)) + means[0][center] + means[1][label])[patient] + rng.normal(size=(288, 8))
    return robustness_indices(X, label[patient], center[patient], patient, k=11)


def test_intervals_over_patients_cover_and_those_of_independent_rows_do_not() -> None:
    """The share of intervals that hold the mean over cohorts; benchmarks/robustness_coverage.py has the study."""
    rng = np.random.default_rng(28)
    means = [0.5 * rng.normal(size=(4, 8)), 0.8 * rng.normal(size=(2, 8))]
    cohorts = [_cohort(rng, means) for _ in range(40)]
    for name in ("RI", "CRoMa", "CRoMa tail"):
        truth = np.mean([one.indices[name].value for one in cohorts])
        found = [over_patients(one.indices[name], one.cohort) for one in cohorts]
        assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.88
    shares = np.array([one.indices["CRoMa below 0"].value for one in cohorts])
    binomial = 1.96 * np.sqrt(shares * (1 - shares) / len(cohorts[0].cohort.label))
    assert np.mean(np.abs(shares - shares.mean()) <= binomial) < 0.8


def test_differences_are_paired() -> None:
    X, label, center, patient = drawn(3)
    noise = np.random.default_rng(0).normal(size=X.shape)
    one, same, other = (robustness_indices(Z, label, center, patient, k=11) for Z in (X, X, X + 0.1 * noise))
    paired = over_patients(one.indices["RI"], one.cohort, other.indices["RI"])
    single = over_patients(one.indices["RI"], one.cohort)
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    zero = over_patients(one.indices["RI"], one.cohort, same.indices["RI"])
    assert (zero.mean, zero.low, zero.high, zero.p) == (0, 0, 0, 1)


def test_centers_have_an_interval_from_ten_on() -> None:
    for centers, has in ((8, False), (12, True)):
        found = robustness_indices(*drawn(1, patients=36, centers=centers))
        assert (over_centers(found.indices["RI"]) is not None) == has
        assert np.isfinite(found.indices["RI"].without_center).all()


def test_chance_is_the_index_of_noise_whatever_the_numbers_of_rows() -> None:
    rng = np.random.default_rng(1)
    found, chances = [], []
    for seed in range(20):
        _, label, center, patient = drawn(seed, patients=18, centers=3, rows=7)
        keep = (center > 0) | (label > 0) | (rng.random(len(label)) < 0.3)
        X = rng.normal(size=(int(keep.sum()), 12))
        one = robustness_indices(X, label[keep], center[keep], patient[keep], k=5).indices["RI"]
        found.append(one.value)
        chances.append(one.chance)
    assert np.mean(found) == pytest.approx(np.mean(chances), abs=0.03)
    assert abs(np.mean(found) - 0.5) > 0.1


def test_chance_counts_rows_of_other_patients() -> None:
    _, label, center, patient = drawn(2, patients=9, centers=3, rows=5)
    other = patient[:, None] != patient
    same_label, same_center = (codes[:, None] == codes for codes in (label, center))
    types = (same_label & ~same_center & other, ~same_label & same_center & other)
    label_only, center_only = ((one.sum(1) / other.sum(1)).sum() for one in types)
    found = evidence_chance(make_cohort(label, center, patient))
    assert found == pytest.approx(label_only / (label_only + center_only))


def test_the_stratified_error_is_that_of_welch() -> None:
    """Of a difference of two means, the strata's jackknife is Welch's test exactly."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=9), 1 + 4 * rng.normal(size=5)
    deleted = np.r_[
        [np.delete(a, i).mean() - b.mean() for i in range(9)], [a.mean() - np.delete(b, i).mean() for i in range(5)]
    ]
    error, freedom = stratified_error(deleted, np.repeat([0, 1], [9, 5]))
    welch = ttest_ind(a, b, equal_var=False)
    assert (a.mean() - b.mean()) / error == pytest.approx(welch.statistic)
    assert freedom == pytest.approx(welch.df)
    assert abs(freedom - 12) > 5  # units less strata, which the interval would be too short with


def test_centers_of_one_patient_share_a_stratum() -> None:
    patient = np.arange(9)
    center = [0, 0, 0, 1, 1, 2, 3, 4, 4]
    strata = strata_of(make_cohort(patient % 2, center, patient))
    assert strata[5] == strata[6]
    assert len(np.unique(strata)) == 4
    alone = strata_of(make_cohort(patient[:6] % 2, center[:6], patient[:6]))
    assert alone[5] == alone[4] != alone[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, label, center, patient: (X, label, center * 0, patient), "center: robustness compares rows of sev"),
        (lambda X, label, center, patient: (X, label * 0, center, patient), "label: robustness compares rows of sever"),
        (lambda X, label, center, patient: (X * 0 + 1, label, center, patient), "features: all rows are equal"),
        (lambda X, label, center, patient: (X * 0, label, center, patient), "features: 192 rows hold only zeros"),
        (lambda X, label, center, patient: (X * np.nan, label, center, patient), "features: must be finite"),
        (lambda X, label, center, patient: (X[1:], label, center, patient), "features: must have one row for each"),
    ],
)
def test_bad_input_is_one_sentence(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        robustness_indices(*change(*drawn(0)))
