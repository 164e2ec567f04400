"""Arms of guide: what each trains, what it is compared with, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import write_study

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.families import ARMS
from conceptkit.guide.arms import Conditions, shuffle
from conceptkit.guide.inputs import Inputs
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.guide import Guide
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.restaining import restained_at_random

pytestmark = pytest.mark.usefixtures("one_random_network")

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,), "unfreeze": ()}

TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="count", kind="continuous"),
    Task(name="center", kind="categorical", classes=("A", "B"), adversarial=True),
)


@pytest.fixture(scope="module")
def record(study, tmp_path_factory):
    return ck.run_guide(study, **OPTIONS, arms="all", seeds=(0, 1), out=tmp_path_factory.mktemp("arms") / "run")


def test_every_arm_is_a_run_by_its_name_and_is_compared_with_the_balanced_one(record):
    every = [name for name in ARMS if ARMS[name].make.__module__ == "conceptkit.guide.arms"]  # no bottleneck
    networks = [name for name in every if name != "logistic"]
    assert [(run.name, run.seed) for run in record.runs] == [
        *((name, 0) for name in (*networks, "logistic")),
        *((name, 1) for name in networks),
    ]
    assert record.settings["arms"] == every
    assert {(d.run, d.against) for d in record.differences} == {
        *((name, "balanced") for name in every if name not in ("baseline", "balanced")),
        ("balanced", "baseline"),
    }
    assert any(str(note).startswith("Arms: baseline (") for note in record.notes)


def test_logistic_regression_is_scored_like_the_networks_and_has_no_checkpoint(record):
    networks, [logistic] = ([r for r in record.runs if (r.name == "logistic") is is_it] for is_it in (False, True))
    assert (logistic.history, logistic.checkpoint) == ((), "")
    assert logistic.metrics.keys() == networks[0].metrics.keys()
    assert logistic.metrics["internal"].keys() == networks[0].metrics["internal"].keys()
    assert logistic.leakage.keys() == networks[0].leakage.keys()
    assert not (record.folder / "checkpoints" / "logistic-seed0").exists()


def test_controls_score_no_head_of_a_concept_that_they_did_not_learn(record):
    head = {run.name: run.concepts["count"]["head"] for run in record.runs}
    assert head["guided"] is not None
    assert head["random"] is head["shuffled"] is head["balanced"] is None


def conditions(**changed):
    rows = {"train": np.arange(6), "val": np.arange(6, 10)}
    values = {"count": np.arange(10.0), "center": np.array(list("AB") * 5)}
    given = {"tasks": TASKS, "options": TrainingOptions(), "pixels": True, "through": (), **changed}
    more = {"through": given["through"], "residual": 1.0}
    return Conditions(given["tasks"], 1, given["options"], 0, values.__getitem__, rows, 10, given["pixels"], **more)


def test_the_main_loss_is_balanced_in_every_arm_but_the_baseline_or_in_none():
    by = {name: ARMS[name].make(conditions(through=TASKS[1:2])).balanced_by for name in ARMS}
    assert by.pop("baseline") == by.pop("through") == ()
    assert set(by.values()) == {(TASKS[2],)}
    given = conditions(options=TrainingOptions(balance_main=0.0))
    assert ARMS["balanced"].missing(given)
    assert ARMS["guided"].make(given).balanced_by == ()


def test_values_are_shuffled_within_the_rows_of_a_split_and_missing_ones_stay():
    values = np.array([1.0, 2, 3, np.nan, 5, 6, 7, 8, 9, 10])
    found = shuffle(values, conditions().rows, 0)
    assert np.isnan(found[3])
    assert sorted(found[[0, 1, 2, 4, 5]]) == [1, 2, 3, 5, 6]
    assert sorted(found[6:]) == [7, 8, 9, 10]
    assert (found[[0, 1, 2, 4, 5]] != values[[0, 1, 2, 4, 5]]).any()


def test_an_epoch_shows_a_row_or_one_of_its_copies_and_other_rows_as_they_are():
    copies = torch.tensor([[4, 6], [5, 7], [2, 2], [3, 3]])
    inputs = Inputs((torch.arange(8.0)[:, None],), torch.nn.Identity(), copies=copies)
    seen = torch.stack([inputs.versions(0, epoch) for epoch in range(40)])
    assert torch.equal(seen[3], inputs.versions(0, 3))
    assert [set(column.tolist()) for column in seen.T] == [{0, 4, 6}, {1, 5, 7}, {2}, {3}]
    plain = inputs.with_copies(0)
    assert plain.versions(0, 0) is None
    assert len(plain.tensors[0]) == 4


def test_a_restained_copy_depends_on_its_name_and_keeps_glass():
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 220, (8, 8, 3)).astype(np.uint8)
    pixels[:2] = 255
    one, again, other = (restained_at_random(pixels, name) for name in ("a|0", "a|0", "a|1"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert (one[:2] >= 254).all()
    assert np.abs(one[2:].astype(int) - pixels[2:]).mean() > 2


def test_an_unknown_arm_is_refused_with_the_near_name():
    with pytest.raises(InputError, match=r"arms: 'balancd' is not known.*balanced"):
        Guide(arms="baseline,balancd")


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("augmented", {"pixels": False}, "needs the pixels"),
        ("balanced", {"tasks": TASKS[:2]}, "needs a discouraged category"),
        ("guided", {"tasks": TASKS[:1]}, "needs a concept"),
        ("shuffled", {"tasks": (TASKS[0], TASKS[2])}, "needs a concept to encourage"),
        ("components", {}, "needs --through"),
    ],
)
def test_an_arm_that_lacks_something_is_refused_by_name_and_skipped_by_all(name, changed, sentence):
    from conceptkit.guide.arms import choose_arms

    with pytest.raises(InputError, match=rf"^arms: {name} {sentence}"):
        choose_arms((name,), conditions(**changed))
    names, notes = choose_arms(("all",), conditions(**changed))
    assert name not in names
    assert any(f"Arm {name} was skipped" in note for note in notes)


def test_a_center_of_one_patient_and_one_without_training_rows_are_named(study, tmp_path):
    table = pd.read_csv(study.parent / "patches.csv")
    patients = sorted(table[(table.center == "A") & (table.split == "train")].patient.unique())
    table = table[~((table.center == "A") & (table.split == "train") & (table.patient != patients[0]))]
    table = table[~((table.center == "B") & (table.split == "train"))]
    outline = Guide(dry_run=True, **OPTIONS).run(write_study(tmp_path, table))
    notes = " ".join(map(str, outline.notes))
    assert "center A has one patient among the training rows" in notes
    assert "center B has validation rows and no training row" in notes
    assert "center C" not in notes
