"""What runs keep for their reports: written by the commands themselves, and read back by the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import conceptkit as ck
from conceptkit.guide.embeddings import ROWS_DRAWN, drawn_rows
from conceptkit.report.embedding import read_embeddings
from conceptkit.report.predictions import read_predictions, score
from conceptkit.report.run_context import read_context


@pytest.fixture(scope="module")
def probed(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "probe"
    return ck.run_probe(study, concepts=["count", "partial"], permutations=0, out=out)


@pytest.fixture(scope="module")
def guided(study, tmp_path_factory):
    options = {"epochs": 1, "warmup": 0, "trunk": (16, 8)}
    return ck.run_guide(study, **options, seeds=[0, 1], out=tmp_path_factory.mktemp("kept") / "guide")


def test_a_probe_keeps_rows_folds_and_samples(probed, table):
    context = read_context(probed.folder)
    assert context is not None
    assert len(context.splits) == len(table)
    assert sorted(context.concepts) == ["center", "count", "partial"]
    np.testing.assert_allclose(np.sort(context.concepts["count"]), np.sort(table["count"].to_numpy(dtype=float)))
    for concept, members in context.fold_members().items():
        flat = [patient for part in members for patient in part]
        known = table[table[concept].notna()].patient.astype(str)
        assert sorted(flat) == sorted(known.unique()), concept  # each patient in one fold, and in one alone
    unknown = np.isnan(context.concepts["partial"])
    assert (context.folds["partial"][unknown] == -1).all()
    assert (context.folds["partial"][~unknown] >= 0).all()
    samples = context.samples
    assert samples is not None
    assert samples.centers == tuple(sorted(table.center.unique()))
    np.testing.assert_allclose(samples.histograms.sum(axis=2), 1)
    assert context.made_with["command"] == "called from Python"
    assert len(context.made_with["table's SHA-256"]) == 64


def test_a_guide_run_keeps_both_layers_and_predictions(guided):
    embeddings = read_embeddings(guided.folder)
    assert embeddings is not None
    assert list(embeddings.layers) == ["backbone, pooled", "first dense layer"]
    first = embeddings.layers["first dense layer"]
    assert set(first) == {"baseline-seed0", "balanced-seed0", "guided-seed0"}  # one seed is drawn
    assert first["guided-seed0"].shape == (len(embeddings.patch_ids), 16)
    assert (first["guided-seed0"] >= 0).all()  # behind its ReLU
    predictions = read_predictions(guided.folder)
    assert predictions is not None
    for run in guided.runs:
        for split in ("internal", "external"):
            found = score(predictions, f"{run.name}-seed{run.seed}", split)
            assert found is not None
            assert found.auc == pytest.approx(run.metrics[split]["auc"])
    context = read_context(guided.folder)
    assert context is not None
    assert {"count", "center"} == set(context.folds)
    assert (context.folds["count"][context.splits != "internal"] == -1).all()


def test_a_report_of_both_needs_only_their_folders(probed, guided, study, tmp_path):
    hidden = study.with_name("moved.csv")
    patches = study.parent / "patches.csv"
    patches.rename(hidden)  # neither table nor images are there any more
    try:
        page = ck.write_report([probed.folder, guided.folder], tmp_path / "page.html", csv=tmp_path / "csv")
    finally:
        hidden.rename(patches)
    assert "Samples and colours" in page.read_text(encoding="utf-8")
    splits = pd.read_csv(tmp_path / "csv" / "probe-splits.csv")
    assert {"split", "center", "patches", "of normal", "of tumor", "patients"} <= set(splits.columns)


def test_rows_that_are_drawn_are_few_and_in_order():
    assert (drawn_rows(10) == np.arange(10)).all()
    many = drawn_rows(3 * ROWS_DRAWN)
    assert len(many) == ROWS_DRAWN
    assert (np.diff(many) > 0).all()
