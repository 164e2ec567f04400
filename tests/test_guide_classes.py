"""Main tasks and concepts of three classes, from the table to predictions and the page."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from small_study import write_study

import conceptkit as ck

CLASSES = ["few", "many", "some"]
"""Of the main label, in the order of the network's nodes"""

OPTIONS = {"epochs": 12, "warmup": 2, "trunk": (16,), "unfreeze": ()}

SIZES = ["large", "middle", "small"]


@pytest.fixture(scope="module")
def three(table):
    """The small study with three classes of the count to tell apart, and three of the area as a concept."""
    count = pd.qcut(table["count"], 3, labels=["few", "some", "many"]).astype(str)
    size = pd.qcut(table["area"], 3, labels=["small", "middle", "large"]).astype(str)
    return table.assign(label=count, size3=size.where(np.arange(len(table)) % 7 > 0))


@pytest.fixture(scope="module")
def record(three, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return ck.run_guide(
        write_study(folder / "study", three), encourage=["size3"], discourage=["center"], **OPTIONS, out=folder / "run"
    )


@pytest.fixture(scope="module")
def predicted(record, three):
    path = record.folder.parent / "study" / "patches.csv"
    frame = ck.predict(record.folder / "checkpoints" / "guided-seed0", table=path)
    return frame.set_index("patch_id").loc[three.patch_id]


def test_probabilities_are_of_all_classes_and_the_record_scores_them(record, predicted, three):
    shares = predicted[[f"probability_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    guided = next(run for run in record.runs if run.name == "guided")
    for split in ("internal", "external"):
        rows = (three.split == split).to_numpy()
        y = three.label[rows].map(CLASSES.index).to_numpy()
        metrics = guided.metrics[split]
        assert metrics["auc"] == pytest.approx(roc_auc_score(y, shares[rows], multi_class="ovr"), abs=1e-6)
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, shares[rows].argmax(1)))
    assert guided.metrics["internal"]["auc"] > 0.6  # count is what the bundled network knows best


def test_a_concept_of_three_classes_is_predicted_by_name(record, predicted, three):
    assert set(predicted["size3_predicted"]) <= set(SIZES)
    assert len(set(predicted["size3_predicted"])) > 1
    history = next(run for run in record.runs if run.name == "guided").history
    kept = min(history[OPTIONS["warmup"] :], key=lambda epoch: epoch["val/main"] + epoch["val/size3"])
    rows = ((three.split == "val") & three.size3.notna()).to_numpy()
    hits = balanced_accuracy_score(three.size3[rows], predicted["size3_predicted"][rows])
    assert hits == pytest.approx(kept["score/size3"])  # what training saw of the epoch that was kept


def test_what_is_kept_for_the_page_has_a_column_per_class(record, predicted, tmp_path):
    with h5py.File(record.folder / "embeddings.h5") as file:
        assert list(file["predictions"].attrs["classes"]) == CLASSES
        assert file["predictions/probability/guided-seed0"].shape[1] == 3
    page = ck.write_report([record.folder], tmp_path / "page.html").read_text(encoding="utf-8")
    for name in CLASSES:
        assert name in page
