"""Whether vectors mean their concepts: planted misaligned vectors of equal R² are caught, aligned ones pass."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score

import conceptkit as ck
from conceptkit.attribution.localisation import average_precision, covered, localise
from conceptkit.errors import InputError
from conceptkit.evaluate.scores import r2
from conceptkit.probe.meaning import entanglement, judged
from conceptkit.probe.space import agreement
from conceptkit.records.meaning import Meaning
from conceptkit.report.meaning_tables import meaning_verdicts


def patients(n_patients=30, per=25, *, seed=0, related=0.7):
    """Two concepts with correlation ``related``, and the number of each row's patient."""
    rng = np.random.default_rng(seed)
    n, patient = n_patients * per, np.repeat(np.arange(n_patients), per)
    count = rng.normal(size=n) + 0.4 * rng.normal(size=n_patients)[patient]
    area = related * count + np.sqrt(1 - related**2) * rng.normal(size=n)
    return count, area, patient, rng


def calibrated(raw, y):
    """The prediction of y that raw gives by least squares: no R² is lost by its scale."""
    return LinearRegression().fit(raw[:, None], y).predict(raw[:, None])


def planted(seed=0, n_patients=30):
    """An aligned prediction of count and one that reads area, of exactly equal R²."""
    count, area, patient, rng = patients(n_patients, seed=seed)
    noise = rng.normal(size=len(count))
    noise -= LinearRegression().fit(np.column_stack([count, area]), noise).predict(np.column_stack([count, area]))
    score = np.corrcoef(count, area)[0, 1] ** 2
    aligned = count + noise / noise.std() * count.std() * np.sqrt((1 - score) / score)
    return count, area, patient, calibrated(aligned, count), calibrated(area, count)


def meaning_of(fields, **more):
    return judged(Meaning(layer="l", concept="count", verdict="undecided", **fields, **more), at_nuclei=True)


# --- entanglement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_vector_that_reads_another_concept_is_caught_at_equal_r2(seed):
    count, area, patient, aligned, misaligned = planted(seed)
    assert r2(count, misaligned) == pytest.approx(r2(count, aligned), abs=1e-9)
    verdicts = [meaning_of(entanglement(p, count, {"area": area}, patient)).verdict for p in (aligned, misaligned)]
    assert verdicts == ["aligned", "correlated"]


def test_the_partial_score_is_that_of_residuals():
    count, area, patient, aligned, _ = planted()
    found = entanglement(aligned, count, {"area": area}, patient)
    residual = [v - LinearRegression().fit(area[:, None], v).predict(area[:, None]) for v in (aligned, count)]
    assert found["partial"] == pytest.approx(np.corrcoef(*residual)[0, 1] ** 2, abs=1e-12)
    assert found["own"] == pytest.approx(np.corrcoef(aligned, count)[0, 1] ** 2, abs=1e-12)
    assert found["cross"] == pytest.approx(np.corrcoef(aligned, area)[0, 1] ** 2, abs=1e-12)
    assert found["partial"] == pytest.approx(found["expected"], abs=1e-9)  # the errors are independent
    deleted = []
    for g in range(30):
        kept = patient != g
        again = entanglement(aligned[kept], count[kept], {"area": area[kept]}, patient[kept] - (patient[kept] > g))
        deleted.append(np.arctanh(np.sqrt(again["partial"])))
    error = np.sqrt(29 / 30 * np.sum((np.array(deleted) - np.mean(deleted)) ** 2))
    reach = np.arctanh(np.sqrt(found["partial_high"])) - np.arctanh(np.sqrt(found["partial"]))
    assert reach / error == pytest.approx(2.045, abs=0.01)  # Student's t of 29 degrees of freedom


def test_the_interval_of_the_partial_score_covers_zero_for_a_misaligned_vector():
    missed = 0
    for seed in range(120):
        count, area, patient, _, misaligned = planted(seed + 100, n_patients=12)
        noisy = misaligned + 0.3 * np.random.default_rng(seed).normal(size=len(count))
        found = entanglement(noisy, count, {"area": area}, patient)
        missed += not found["partial_low"] <= 0 <= found["partial_high"]
    assert missed <= 14  # 5 % of 120, and three standard deviations


def test_the_other_concept_is_the_one_that_explains_most():
    count, area, patient, _, misaligned = planted()
    other = np.random.default_rng(1).normal(size=len(count))
    gaps = np.where(np.arange(len(count)) % 3, area, np.nan)
    assert entanglement(misaligned, count, {"other": other, "area": area}, patient)["against"] == "area"
    assert entanglement(misaligned, count, {"other": other, "area": gaps}, patient)["against"] == "area"
    assert entanglement(misaligned, count, {}, patient) == {}
    assert entanglement(misaligned, count, {"constant": np.ones(len(count))}, patient) == {}


def test_nearly_equal_concepts_are_undecided():
    count, _, patient, aligned, _ = planted()
    same = count + 0.05 * np.random.default_rng(1).normal(size=len(count))
    assert meaning_of(entanglement(aligned, count, {"same": same}, patient)).verdict == "undecided"


def test_a_vector_without_any_test_is_undecided_and_an_unstable_one_is_named():
    assert meaning_of({}).verdict == "undecided"
    count, area, patient, aligned, _ = planted()
    fields = entanglement(aligned, count, {"area": area}, patient)
    assert meaning_of(fields, agreement=0.6).verdict == "unstable"
    assert meaning_of(fields, agreement=0.9, changes={"blur": 0.51}).verdict == "unstable"
    assert meaning_of(fields, agreement=0.9, changes={"blur": 0.49}).verdict == "aligned"
    assert meaning_of(fields, agreement=0.9, decoded=False).verdict == "undecided"


# --- localisation ----------------------------------------------------------------------------------------------------


def test_the_area_under_precision_and_recall_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    maps, there = rng.normal(size=(5, 64)), rng.random(64) < 0.3
    expected = [average_precision_score(there, one) for one in maps]
    assert np.allclose(average_precision(maps, there), expected, atol=1e-12)


def test_the_covered_share_is_the_mean_of_the_pixels():
    labels = np.random.default_rng(0).integers(0, 2, (48, 60))
    assert np.allclose(covered(labels, 6, 5), labels.reshape(6, 8, 5, 12).mean((1, 3)))
    assert covered(labels, 7, 7).mean() == pytest.approx(labels.mean())  # positions of broken pixels


def maps_of(kind, seed=0, patches=60, positions=8):
    """Maps whose mean is the same prediction: at the nuclei, or spread over the patch."""
    rng = np.random.default_rng(seed)
    shares = [
        np.where(rng.random((positions, positions)) < 0.25, rng.uniform(0.3, 1, (positions, positions)), 0.0)
        for _ in range(patches)
    ]
    maps = []
    for share in shares:
        noise = 0.3 * rng.normal(size=share.shape)
        own = share if kind == "at nuclei" else rng.permutation(share.ravel()).reshape(share.shape)
        maps.append(own + noise - noise.mean())
    return maps, shares, np.arange(patches) // 5, rng


def test_maps_that_avoid_nuclei_are_caught_at_the_same_predictions():
    verdicts = []
    for kind in ("at nuclei", "elsewhere"):
        maps, shares, patient, rng = maps_of(kind)
        truth = np.array([share.mean() for share in shares])
        assert r2(truth, np.array([one.mean() for one in maps])) > 0.999  # both predict the area as well
        found = localise(maps, [rng.normal(size=(5, 8, 8)) for _ in maps], shares, patient, 0)
        verdicts.append(meaning_of({}, gain_low=found.gain.low, gain_high=found.gain.high).verdict)
        assert found.shifted == pytest.approx(found.random, abs=0.05)
    assert verdicts == ["aligned", "correlated"]


# --- refits ----------------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_correlation_of_the_predictions():
    rng = np.random.default_rng(0)
    X, folds = rng.normal(size=(50, 6)), [rng.normal(size=(6, 2)) + 1 for _ in range(4)]
    for t in range(2):
        r = np.corrcoef([X @ W[:, t] for W in folds])
        assert agreement(X, folds)[t] == pytest.approx(r[np.triu_indices(4, 1)].mean(), abs=1e-12)


# --- the command -----------------------------------------------------------------------------------------------------


def arrays(tmp_path, *, hidden):
    """Features in which count lies itself, or only area does."""
    count, area, patient, rng = patients(24, 20, seed=3, related=0.85)
    X = rng.normal(size=(len(count), 12))
    X[:, 0] += 2 * (area if hidden else count)
    X[:, 1] += 2 * area
    table = pd.DataFrame(
        {"patient": patient.astype(str), "row": np.arange(len(count)), "n_cells": count, "size_of_cells": area}
    )
    table.insert(0, "patch_id", [f"p{i:04d}" for i in range(len(count))])
    table.to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    options = {"features": str(tmp_path / "X.npy"), "group": "patient", "permutations": 0, "out": tmp_path / "run"}
    return ck.run_probe(str(tmp_path / "t.csv"), concepts=["n_cells", "size_of_cells"], meaning=True, **options)


@pytest.mark.parametrize(("hidden", "expected"), [(False, "aligned"), (True, "correlated")])
def test_a_probe_of_features_says_what_its_vectors_mean(tmp_path, hidden, expected):
    record = arrays(tmp_path, hidden=hidden)
    (count,) = (one for one in record.meanings if one.concept == "n_cells")
    assert (count.verdict, count.against) == (expected, "size_of_cells")
    assert record.rows[0].score > 0.5  # both are decoded well
    assert ck.load_record(record.folder).meanings == record.meanings
    assert json.loads((record.folder / "record.json").read_text())["meanings"][0]["verdict"] == expected
    words = {"aligned": "means what it says", "correlated": "means something correlated"}[expected]
    assert meaning_verdicts(record)[0].text.startswith(f"The vector of n_cells at features {words}: ")


def test_the_paper_protocol_has_nothing_to_test(tmp_path):
    with pytest.raises(InputError, match=r"^meaning: not available with `--protocol paper`"):
        ck.run_probe(meaning=True, protocol="paper")


def test_images_with_masks_are_localised_and_disturbed(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for k in range(24):
        image, labels = np.full((64, 64, 3), 230, np.uint8), np.zeros((64, 64), np.uint8)
        for nucleus in range(int(rng.integers(1, 9))):
            y, x = rng.integers(6, 58, 2)
            disc = (np.arange(64)[:, None] - y) ** 2 + (np.arange(64) - x) ** 2 < 25
            image[disc], labels[disc] = (90, 60, 140), nucleus + 1
        Image.fromarray(image).save(tmp_path / f"{k}.png")
        Image.fromarray(labels).save(tmp_path / f"{k}_mask.png")
        rows.append(
            {
                "image": f"{k}.png",
                "mask": f"{k}_mask.png",
                "patient": f"P{k % 12}",
                "count": len(np.unique(labels)) - 1.0,
            }
        )
    table = pd.DataFrame(rows).assign(
        darkness=[255.0 - np.asarray(Image.open(tmp_path / f"{k}.png")).mean() for k in range(24)]
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conceptkit.commands.probe.RANDOM_NETWORKS", 0)
        record = ck.run_probe(
            str(tmp_path / "table.csv"),
            model="mini_inception",
            layers=["mixed2"],
            concepts=["count", "darkness"],
            group="patient",
            permutations=0,
            meaning=True,
            out=tmp_path / "run",
        )
    count = record.meanings[0]
    assert set(count.changes) == {"rotation", "hematoxylin", "eosin", "blur", "jpeg"}
    assert count.patches == 24
    assert count.auprc > count.auprc_shifted
    assert count.gain_low is not None
