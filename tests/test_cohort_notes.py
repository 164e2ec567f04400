"""A new center in concept terms: what lies beyond every training center is named, chance is not."""

from __future__ import annotations

import re

import numpy as np

from conceptkit.commands.cohort_notes import Training, cohort_notes, read_training


def cohort(rng, patients, area=100.0, stain=0.5, each=10, spread=4.0):
    """Patches of patients: mean of each patient around the center's, patches around that."""
    own = np.repeat(rng.normal(0, spread, patients), each)
    n = patients * each
    return {
        "area": area + own + rng.normal(0, 8, n),
        "stain": np.abs(stain + 0.01 * own + rng.normal(0, 0.03, n)),
        "texture": rng.normal(size=n),
    }


def training(rng, areas=(95.0, 100.0, 105.0), patients=12, **how):
    parts = [cohort(rng, patients, area, **how) for area in areas]
    concepts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    centers = np.repeat([f"c{k}" for k in range(len(areas))], patients * 10)
    return Training(concepts, centers, np.repeat(np.arange(len(areas) * patients).astype(str), 10))


def test_what_lies_beyond_every_training_center_is_named():
    rng = np.random.default_rng(0)
    values = cohort(rng, 10, area=128.0, stain=0.7)
    patients = np.repeat(np.arange(10).astype(str), 10)
    [note] = cohort_notes(training(rng), values, None, patients)
    assert "the cohort lies beyond all 3 training centers" in note
    assert re.search(r"area 2[0-9]% above c2 \(128\.\d, there 10\d", note)
    assert "stain" in note
    assert "texture" not in note
    share = int(note.rsplit("% of its patches", 1)[0].rsplit(" ", 1)[-1])
    assert share > 50
    # the same patches as one of two centers, the other one known
    centers = np.array(["c1"] * 50 + ["new"] * 50, dtype=object)
    [note] = cohort_notes(training(rng), values, centers, patients)
    assert "center new lies" in note
    assert cohort_notes(training(rng), values, np.full(100, "c1", dtype=object), patients) == []


def test_a_cohort_like_the_others_is_rarely_named_and_patches_are_not_patients():
    by_patient = by_patch = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        old, values = training(rng, areas=(100.0,) * 3, spread=12.0), cohort(rng, 6, spread=12.0)
        by_patient += bool(cohort_notes(old, values, None, np.repeat(np.arange(6).astype(str), 10)))
        naive = Training(old.concepts, old.centers, np.full(len(old.centers), ""))
        by_patch += bool(cohort_notes(naive, values, None, None))
    assert by_patient <= 6 < by_patch  # the control fails the bound


def test_nothing_is_said_without_what_it_needs(tmp_path):
    rng = np.random.default_rng(0)
    values = cohort(rng, 1, area=200.0)
    assert cohort_notes(training(rng), values, None, np.full(10, "P")) == []  # one patient
    bare = training(rng)
    assert cohort_notes(Training(bare.concepts, np.full(360, ""), bare.patients), values, None, None) == []
    assert cohort_notes(bare, {"other": values["area"]}, None, None) == []
    assert read_training(tmp_path) is None
