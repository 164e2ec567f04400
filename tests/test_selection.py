"""Selection by centers left out: what it trains on, what it chooses, what it refuses, and what it costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import write_study

import conceptkit as ck
from conceptkit.cli.guide import guide_or_grid
from conceptkit.errors import InputError
from conceptkit.evaluate.paired import Scored, paired_interval
from conceptkit.guide.bench import Bench
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.plan import Plan
from conceptkit.guide.selection import LEFT_OUT, Choice, chosen_of, without_center
from conceptkit.options.guide import Guide

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,), "unfreeze": (), "select": "leave-one-center-out"}

CANDIDATES = {"arms": ("balanced", "guided"), "strength": (0.3, 1.0), "augment": (0, 1)}


@pytest.fixture(scope="module")
def rows(study):
    return pd.read_csv(study.parent / "patches.csv")


@pytest.fixture(scope="module")
def selected(study, tmp_path_factory):
    """A selection, and (center, rows that trained, rows that stopped the training, rows that were scored) of each."""
    seen = []
    train = Bench.train

    def spied(bench, arm, places):
        names = bench.data.concept("center").values
        seen.append((places.checkpoint, {k: set(names[v]) for k, v in bench.plan.rows.items()}, bench.plan))
        return train(bench, arm, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "train", spied)
        record = ck.run_guide(study, **OPTIONS, **CANDIDATES, out=tmp_path_factory.mktemp("selected") / "run")
    return record, seen


def test_each_center_is_left_out_of_training_and_stopping_and_no_evaluation_row_is_there(selected, rows):
    record, seen = selected
    found = [(centers, plan) for checkpoint, centers, plan in seen if checkpoint is None]
    assert len(found) == 4 * 6  # balanced has no strength
    held = rows.split.isin(("internal", "external")).to_numpy()
    for centers, plan in found:
        [own] = centers[LEFT_OUT]
        assert own not in centers["train"] | centers["val"]
        assert centers["train"] == set("ABCD") - {own}
        assert not held[plan.used].any()
    assert sum(checkpoint is not None for checkpoint, _, _ in seen) == len(record.runs)


def test_the_record_lists_the_candidates_and_the_chosen_arm_is_trained_on_all_centers(selected):
    record, seen = selected
    found = record.selection
    assert [one.name for one in found.candidates][:3] == [
        "balanced, strength 0.3",
        "balanced, strength 0.3, augment 1",
        "guided, strength 0.3",
    ]
    for one in found.candidates:
        assert list(one.centers) == list("ABCD")
        assert one.auc == pytest.approx(np.mean(list(one.centers.values())))
    chosen = next(one for one in found.candidates if one.name == found.chosen)
    assert record.runs[-1].name == chosen.arm
    assert (record.settings["strength"], record.settings["augment"]) == (chosen.strength, chosen.augment)
    assert all(centers["train"] == set("ABCD") for checkpoint, centers, _ in seen if checkpoint is not None)
    assert ck.load_record(record.folder).selection == found


@pytest.mark.long
def test_a_selection_does_not_depend_on_evaluation_rows(selected, rows, tmp_path):
    record, _ = selected
    poisoned, held = rows.copy(), rows.split.isin(("internal", "external"))
    poisoned.loc[held, "label"] = rows.label.map({"normal": "tumor", "tumor": "normal"})[held]
    poisoned.loc[held, "count"] = 1e6 + np.arange(held.sum())
    poisoned.loc[held, "row"] = 0
    again = ck.run_guide(write_study(tmp_path / "poisoned", poisoned), **OPTIONS, **CANDIDATES, out=tmp_path / "run")
    assert again.selection == record.selection
    assert again.verdict == record.verdict
    assert again.runs[-1].metrics["internal"] != record.runs[-1].metrics["internal"]


def test_the_reference_is_kept_unless_another_is_better_by_more_than_its_error():
    deleted = np.array([0.71, 0.69, 0.70, 0.72, 0.68])

    def scored(*means, noise=0.0):
        shift = noise * np.array([1, -1, 1, -1, 0])
        return {center: Scored(mean, mean + deleted - 0.7 + shift) for center, mean in zip("AB", means, strict=True)}

    plain, better, noisy, broken = (Choice(arm, None, 1.0, 0) for arm in ("balanced", "guided", "random", "shuffled"))
    found = {noisy: scored(0.8, 0.9, noise=0.2), plain: scored(0.7, 0.7), broken: {"A": None, "B": None}}
    kept = chosen_of(found)
    assert kept.reference == kept.chosen == "balanced, strength 1"
    row = kept.candidates[0]
    first, second = (list(found[choice].values()) for choice in (noisy, plain))
    each = [paired_interval([one], [other]) for one, other in zip(first, second, strict=True)]
    assert row.difference == pytest.approx(np.mean([one.mean for one in each]))
    errors = [(one.high - one.mean) / 2.7764451 for one in each]  # t of 4 degrees of freedom
    assert row.error == pytest.approx(np.hypot(*errors) / 2)
    assert np.isnan(kept.candidates[2].auc)
    assert chosen_of(found | {better: scored(0.72, 0.72)}).chosen == "guided, strength 1"


def test_inputs_of_some_rows_are_those_rows_and_their_copies():
    whole = Inputs((torch.arange(12.0)[:, None],), None, copies=6 + torch.arange(6)[:, None])
    some = whole.only(np.array([1, 4, 5]))
    device = some.place.device
    assert some.with_copies(0).batch(some.place.new_tensor([0, 2]), device)[0][:, 0].tolist() == [1.0, 5.0]
    drawn = {tuple(some.batch(some.versions(0, epoch), device)[0][:, 0].tolist()) for epoch in range(30)}
    assert {row[0] for row in drawn} == {1.0, 7.0}
    assert {row[2] for row in drawn} == {5.0, 11.0}


def test_rows_without_a_center_stay_in_training_and_evaluation_rows_are_dropped():
    plan = Plan(
        classes=("a", "b"),
        codes=np.zeros(8, dtype=np.intp),
        groups=np.arange(8),
        rows={"train": np.array([0, 1, 2]), "val": np.array([3, 4]), "test": np.array([5, 6])},
        concept_rows=np.array([5, 7]),
    )
    found = without_center(plan, np.array([True, False, False, True, False, True, False, False]))
    assert {name: own.tolist() for name, own in found.rows.items()} == {"train": [1, 2], "val": [4], LEFT_OUT: [0, 3]}
    assert found.concept_rows.tolist() == [7]


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda t: t[(t.split != "train") | (t.center == "A")], {}, "at least two training centers, got 'A' only"),
        (lambda t: t.drop(columns="center"), {"discourage": ()}, "needs a column 'center'"),
        (lambda t: t[(t.split != "val") | (t.center == "A")], {}, "all validation rows are of center 'A'"),
        (None, {"strength": range(13), "arms": "guided"}, "at most 12 candidates, got 13"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_a_training(rows, tmp_path, monkeypatch, change, options, sentence):
    monkeypatch.setattr(Bench, "train", None)
    study = write_study(tmp_path, rows if change is None else change(rows))
    with pytest.raises(InputError, match=f"^select: .*{sentence}"):
        ck.run_guide(study, **{**OPTIONS, **options}, out=tmp_path / "run")


def test_several_values_need_a_selection():
    assert Guide(strength="0.3").overrides() == {"strength": 0.3}
    for name, given in {"strength": "0.3,1", "augment": (0, 2), "layer": "a,b"}.items():
        with pytest.raises(InputError, match=f"^{name}: must be one value without --select"):
            Guide(**{name: given})
        assert len(getattr(Guide(**{name: given}, select=OPTIONS["select"]), name)) == 2
    grid = guide_or_grid(ablate="count", strength=["0.5"], augment=["2"])
    assert (grid.strength, grid.augment) == (0.5, 2)
    with pytest.raises(InputError, match=r"^strength: a grid has one value, got 0\.3, 1"):
        guide_or_grid(ablate="count", strength=["0.3", "1"])
