"""run_guide: its record, its checkpoints, and that evaluation rows have no say in the training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from recorded_options import forgotten
from safetensors.numpy import load_file
from small_study import write_study

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.models.backbones import open_backbone
from conceptkit.options.guide import Guide
from conceptkit.records import GuideRecord, load_record
from conceptkit.report.guide_tables import main_task_table

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,)}


@pytest.fixture(scope="module")
def record(study, tmp_path_factory):
    """One pair of runs, as the study file says: count encouraged, center discouraged."""
    return ck.run_guide(study, **OPTIONS, out=tmp_path_factory.mktemp("runs") / "run")


def weights(record, name):
    return load_file(record.folder / "checkpoints" / f"{name}-seed0" / "weights.safetensors")


def differing(a, b):
    assert set(a) == set(b)
    return [key for key in a if not np.array_equal(a[key], b[key])]


# --- the record --------------------------------------------------------------------------------------------------


def test_both_runs_are_recorded_with_all_that_is_read_of_them(record):
    assert [(run.name, run.seed) for run in record.runs] == [("baseline", 0), ("balanced", 0), ("guided", 0)]
    assert (record.encourage, record.discourage) == (("count",), ("center",))
    assert (record.study, record.group, record.evaluated_on) == ("small", "patient", "internal")
    for run in record.runs:
        assert set(run.metrics) == {"train", "val", "internal", "external", "overall"}
        for metrics in run.metrics.values():
            assert set(metrics) >= {"auc", "f1", "balanced_accuracy"}
            assert all(0 <= value <= 1 for value in metrics.values())
        assert set(run.concepts) == {"count"}
        assert run.concepts["count"]["probe"] <= 1
        assert run.leakage["center"]["chance"] == pytest.approx(0.25)  # the external center is not among these rows
        for probe in ("linear", "mlp", "kernel"):
            assert 0 <= run.leakage["center"][probe] <= 1
        assert [epoch["epoch"] for epoch in run.history] == [1, 2]
    baseline, _, guided = record.runs
    assert baseline.concepts["count"]["head"] is None  # it has no such head
    assert guided.concepts["count"]["head"] is not None
    assert {key for key in guided.history[0] if key.startswith("val/")} == {"val/main", "val/count", "val/center"}


def test_differences_are_paired_and_are_those_of_the_scores(record):
    _, balanced, guided = record.runs
    found = {(d.split, d.metric): d for d in record.differences if d.run == "guided"}
    expected = {
        ("internal", "auc"): guided.metrics["internal"]["auc"] - balanced.metrics["internal"]["auc"],
        ("external", "auc"): guided.metrics["external"]["auc"] - balanced.metrics["external"]["auc"],
        ("internal", "probe:count"): guided.concepts["count"]["probe"] - balanced.concepts["count"]["probe"],
        ("internal", "linear:center"): guided.leakage["center"]["linear"] - balanced.leakage["center"]["linear"],
        ("internal", "mlp:center"): guided.leakage["center"]["mlp"] - balanced.leakage["center"]["mlp"],
    }
    assert set(found) >= set(expected)
    for key, value in expected.items():
        assert found[key].mean == pytest.approx(value), key
        assert found[key].low <= found[key].mean <= found[key].high
        assert (found[key].run, found[key].against) == ("guided", "balanced")


def test_the_settings_say_how_it_was_made(record, table):
    settings = record.settings
    assert {k: settings[k] for k in ("epochs", "warmup", "seeds", "label")} == {
        **{"epochs": 2, "warmup": 1, "seeds": [0], "label": "label"}
    }
    assert settings["rows"] == table.split.value_counts().to_dict()
    assert settings["weights"] == "bundled"


def test_f1_is_shown_with_its_class(record):
    assert record.settings["classes"] == ["normal", "tumor"]
    assert main_task_table(record).caption.endswith(" F1 is that of tumor.")


def test_every_option_stands_in_the_settings(record):
    assert forgotten(Guide, load_record(record.folder).settings) == set()


def test_the_record_is_frozen_and_the_saved_one_is_the_same(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.runs = ()
    loaded = load_record(record.folder)
    assert isinstance(loaded, GuideRecord)
    assert loaded == dataclasses.replace(record, settings=loaded.settings)
    # JSON knows lists alone
    assert loaded.settings == json.loads(json.dumps(record.settings))


def test_the_settings_of_a_record_make_its_numbers_again(record, study, tmp_path):
    command = ck.from_settings(load_record(record.folder).settings).replace(table=None)  # a name without its folder
    again = command.run(study, out=tmp_path / "again")
    assert [run.metrics for run in again.runs] == [run.metrics for run in record.runs]
    assert again.differences == record.differences


def test_a_mistake_leaves_an_earlier_run_as_it_was(record, study):
    before = {p: p.read_bytes() for p in record.folder.rglob("*") if p.is_file()}
    for mistake in ({}, {"discourage": ["center"], "encourage": ["center"]}, {"lr": -1.0}):
        with pytest.raises(InputError):
            ck.run_guide(study, out=record.folder, **mistake)
    assert {p: p.read_bytes() for p in record.folder.rglob("*") if p.is_file()} == before


def test_the_same_seed_gives_the_same_bytes(record, study, tmp_path):
    again = ck.run_guide(study, **OPTIONS, out=tmp_path / "again")

    def text(folder):  # which names its checkpoints by the folder that was given, and holds no time
        return (folder / "record.json").read_text(encoding="utf-8").replace(str(folder), "RUN")

    assert text(again.folder) == text(record.folder)
    for name in ("baseline", "guided"):
        place = Path("checkpoints") / f"{name}-seed0" / "weights.safetensors"
        assert (again.folder / place).read_bytes() == (record.folder / place).read_bytes()
    assert weights(record, "guided").keys() != weights(record, "baseline").keys()  # the control: two networks


# --- who has a say -----------------------------------------------------------------------------------------------


def test_evaluation_rows_never_influence_training(record, table, tmp_path):
    changed = table.copy()
    rng = np.random.default_rng(0)
    for split in ("internal", "external"):
        rows = changed.index[changed.split == split]
        changed.loc[rows, "label"] = changed.loc[rows, "label"].map({"tumor": "normal", "normal": "tumor"})
        changed.loc[rows, "count"] = rng.normal(size=len(rows))
        changed.loc[rows, "row"] = rng.permutation(changed.loc[rows, "row"])  # the pixels too
    other = ck.run_guide(write_study(tmp_path / "study", changed), **OPTIONS, out=tmp_path / "run")
    for name in ("baseline", "guided"):
        assert differing(weights(record, name), weights(other, name)) == []
    for ours, theirs in zip(record.runs, other.runs, strict=True):
        assert ours.history == theirs.history
        for split in ("train", "val"):
            assert ours.metrics[split] == theirs.metrics[split]
        assert ours.metrics["internal"] != theirs.metrics["internal"]


def test_training_rows_do(record, table, tmp_path):
    changed = table.copy()
    rows = changed.index[changed.split == "train"]
    changed.loc[rows[0], "count"] += 20
    other = ck.run_guide(write_study(tmp_path / "study", changed), **OPTIONS, out=tmp_path / "run")
    assert differing(weights(record, "guided"), weights(other, "guided"))
    # The baseline knows nothing of concepts.
    assert differing(weights(record, "baseline"), weights(other, "baseline")) == []


def test_only_the_last_block_is_trained_with_the_trunk(record):
    start = {f"backbone.{k}": v.numpy() for k, v in open_backbone("mini_inception").module.state_dict().items()}
    for name in ("baseline", "guided"):
        kept = {key: value for key, value in weights(record, name).items() if key in start}
        moved = {key.split(".")[1] for key in differing(kept, start)}
        assert moved == {"mixed10"}


# --- what comes after --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_probed_like_any_network(record, study, tmp_path):
    guided = next(run for run in record.runs if run.name == "guided")
    options = {"permutations": 0}
    probed = ck.run_probe(study, model=guided.checkpoint, layers=["mixed2", "trunk"], out=tmp_path / "run", **options)
    assert [(row.layer, row.concept, row.weights) for row in probed.rows] == [
        ("mixed2", "count", "trained"),
        ("trunk", "count", "trained"),
    ]
    assert all(row.score_random_network is not None for row in probed.rows)
    plain = ck.run_probe(study, layers=["mixed2"], out=tmp_path / "plain", **options)
    # mixed2 was frozen: what it knows of count cannot have changed.
    assert probed.rows[0].score == pytest.approx(plain.rows[0].score, abs=1e-6)


def test_the_page_shows_both_runs_without_a_network(record, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("the page opened a network"))
    page = ck.write_report([record.folder], tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("baseline, seed 0", "guided, seed 0", "Encouraged concepts", "what is left", "count", "center"):
        assert words in page


def test_the_trunks_of_evaluation_rows_are_kept_for_the_page(record, table):
    evaluated = table[table.split.isin(["internal", "external"])]
    with h5py.File(record.folder / "embeddings.h5") as file:
        assert sorted(file["patch_id"].asstr()[:]) == sorted(evaluated.patch_id)
        assert set(file["features"]) == {"baseline-seed0", "balanced-seed0", "guided-seed0"}
        assert file["features/guided-seed0"].shape == (len(evaluated), 8)


def test_checkpoints_lie_in_the_run_folder(record):
    for run in record.runs:
        assert Path(run.checkpoint) == record.folder / "checkpoints" / f"{run.name}-seed{run.seed}"
        assert (Path(run.checkpoint) / "checkpoint.json").is_file()
