"""The plan of a guided training: who trains and who evaluates, and what each task is scaled by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from conceptkit.errors import InputError
from conceptkit.guide.plan import concept_task, make_plan
from conceptkit.guide.setup import unbalanced_notes
from conceptkit.tables.patches import PatchTable, load_table
from conceptkit.tables.study import SplitNames, Study

PATIENTS = {"train": 3, "val": 2, "internal": 2, "external": 1}


def frame():
    """Four rows per patient, two of each class, in a scrambled order."""
    rows = []
    for split, n in PATIENTS.items():
        for patient in range(n):
            for i in range(4):
                label = "tumor" if i % 2 else "normal"
                rows.append({"patient": f"{split}-{patient}", "split": split, "label": label, "count": 10.0 * i})
    table = pd.DataFrame(rows).assign(center=lambda f: np.where(np.arange(len(f)) % 3 == 0, "A", "B"))
    return table.sample(frac=1, random_state=0).assign(patch_id=[f"p{i:03d}" for i in range(len(table))])


@pytest.fixture
def plan_of(tmp_path):
    """Return a function from a table to its plan, and the table as it was loaded."""

    def plan_of(table, *, group="patient", kinds=None, how=None, **changes):
        table.to_csv(tmp_path / "t.csv", index=False)
        study = Study(name="s", table=tmp_path / "t.csv", group=group, **changes)
        data = load_table(study.table, kinds=kinds or {})
        return make_plan(study, data, **(how or {})), data

    return plan_of


def test_rows_go_where_the_table_says(plan_of):
    plan, data = plan_of(frame())
    assert list(plan.rows) == ["train", "val", *[s for s in data.frame.split.unique() if s not in ("train", "val")]]
    for split, rows in plan.rows.items():
        assert (data.frame.split.to_numpy()[rows] == split).all()
        assert len(rows) == 4 * PATIENTS[split]
    assert sorted(plan.evaluation) == ["external", "internal"]
    assert plan.used.tolist() == list(range(len(data)))
    assert plan.classes == ("normal", "tumor")
    assert [plan.classes[c] for c in plan.codes] == data.frame.label.tolist()
    names = data.groups("patient")
    for a in range(len(data)):
        assert ((plan.groups == plan.groups[a]) == (names == names[a])).all()


def test_rows_without_split_or_label_stay_out(plan_of):
    table = frame()
    left, unlabelled = table.index[3], table.index[5]
    table.loc[left, "split"] = None
    table.loc[unlabelled, "label"] = None
    plan, data = plan_of(table)
    at = {str(p): i for i, p in enumerate(data.patch_ids)}
    assert at[table.loc[left, "patch_id"]] not in plan.used
    assert at[table.loc[unlabelled, "patch_id"]] in plan.used  # its concepts still train
    assert plan.codes[at[table.loc[unlabelled, "patch_id"]]] == -1


def test_splits_may_bear_other_names(plan_of):
    table = frame().rename(columns={"split": "part"})
    table["part"] = table["part"].replace({"train": "a", "val": "b", "internal": "c"})
    plan, _ = plan_of(table, splits=SplitNames(column="part", train="a", val="b", read="c"))
    assert sorted(plan.rows) == ["c", "external", "train", "val"]


def test_without_groups_each_row_is_its_own(plan_of):
    plan, data = plan_of(frame().drop(columns="patient"), group=None)
    assert plan.groups.tolist() == list(range(len(data)))


def drop_split(name):
    return lambda t: t[t.split != name]


def all_of(label, split):
    return lambda t: t.assign(label=t.label.where(t.split != split, label))


REFUSED = {
    "no split column": (lambda t: t.drop(columns="split"), "split: the table has no column 'split'"),
    "no training rows": (drop_split("train"), "no row 'train' for train; it has .*'internal'"),
    "no validation rows": (drop_split("val"), "no row 'val' for val"),
    "nothing to evaluate on": (lambda t: t[t.split.isin(["train", "val"])], "no evaluation split besides train"),
    "no label": (lambda t: t.drop(columns="label"), "label: the table has no column 'label'"),
    "one class": (lambda t: t.assign(label="tumor"), "two classes in split 'train', there is only 'tumor'"),
    "one class trains": (all_of("tumor", "train"), "class 'normal' of label does not occur in the training rows"),
    "one class evaluates": (all_of("normal", "external"), "two classes in split 'external', there is only 'normal'"),
    "no label in val": (all_of(None, "val"), "two classes in split 'val', there is no row"),
    "a class of evaluation alone": (all_of("odd", "external"), "class 'odd' of label does not occur in the training"),
    "a patient on both sides": (
        lambda t: t.assign(patient=t.patient.replace({"external-0": "train-0"})),
        "group: patient 'train-0' has rows in splits '.*' and '.*'; a patient in training and evaluation",
    ),
    "a patient in two evaluation splits": (
        lambda t: t.assign(patient=t.patient.replace({"external-0": "internal-0"})),
        "group: patient 'internal-0' has rows in splits",
    ),
    "a row without a patient": (
        lambda t: t.assign(patient=t.patient.where(t.index != t.index[0])),
        "group: every row needs a patient, 1 of",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_make_the_comparison_void_is_refused(plan_of, name):
    change, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        plan_of(change(frame()))


def test_a_patient_whose_other_rows_have_no_split_is_no_matter(plan_of):
    table = frame()
    row = table.index[table.patient == "external-0"][0]
    table.loc[row, ["split", "patient"]] = [None, "train-0"]
    plan, _ = plan_of(table)
    assert len(plan.rows["external"]) == 3


def test_a_label_of_numbers_is_refused_until_it_is_named_as_classes(plan_of):
    table = frame().assign(stage=lambda t: (t.label == "tumor") * 1.0)
    with pytest.raises(InputError, match="label: stage must be categorical; use --categorical stage"):
        plan_of(table, label="stage")
    plan, _ = plan_of(table, label="stage", kinds={"stage": "categorical"})
    assert plan.classes == ("0", "1")


def test_rows_without_split_and_label_train_concepts(plan_of):
    table = frame()
    loose = table.index[table.patient == "train-0"][:2]
    other = table.index[table.patient == "external-0"][:1]
    table.loc[[*loose, *other], ["split", "label"]] = None
    table.loc[loose[1], "count"] = None  # nothing to learn from this one
    plan, data = plan_of(table, how={"concepts": ["count"]})
    at = {str(p): i for i, p in enumerate(data.patch_ids)}
    row = at[table.loc[loose[0], "patch_id"]]
    assert plan.concept_rows.tolist() == [row]
    assert row in plan.training
    assert row in plan.used
    assert row not in plan.rows["train"]
    assert any("1 rows without a split and a label do not train" in note for note in plan.notes)
    assert not len(plan_of(table)[0].concept_rows)  # without concepts they have nothing to teach


def test_evaluation_rows_train_concepts_only_when_asked_for_and_it_is_said(plan_of):
    plan, _ = plan_of(frame(), how={"concepts": ["count"], "transductive": True})
    evaluated = np.concatenate([plan.rows["internal"], plan.rows["external"]])
    assert sorted(plan.concept_rows) == sorted(evaluated)
    assert not set(plan.rows["val"]) & set(plan.training)
    assert plan.scaled_on.tolist() == sorted(plan.rows["train"])
    assert any(note.startswith("TRANSDUCTIVE") for note in plan.notes)
    silent, _ = plan_of(frame(), how={"concepts": ["count"]})
    assert silent.training.tolist() == silent.rows["train"].tolist()
    assert not silent.notes


def test_leakage_is_refused_or_said(plan_of):
    table = frame().assign(patient=lambda t: t.patient.replace({"external-0": "train-0"}))
    with pytest.raises(InputError, match="--allow-leakage"):
        plan_of(table)
    plan, _ = plan_of(table, how={"allow_leakage": True})
    assert any(note.startswith("LEAKAGE: 1 of 7 patients") for note in plan.notes)


# --- tasks -------------------------------------------------------------------------------------------------------


def test_a_continuous_task_is_scaled_by_the_training_rows_alone(plan_of):
    table = frame()
    table["count"] = table["count"].where(table.split == "train", 1e6)
    table.loc[table.index[table.split == "train"][0], "count"] = None
    plan, data = plan_of(table)
    task = concept_task(data, "count", plan.rows["train"], adversarial=False)
    known = table["count"][(table.split == "train") & table["count"].notna()]
    assert (task.kind, task.classes, task.adversarial) == ("continuous", (), False)
    assert task.mean == pytest.approx(known.mean())
    assert task.deviation == pytest.approx(known.std(ddof=0))
    everything = concept_task(data, "count", plan.used, adversarial=False)
    assert everything.mean > 1e4  # the control: the other rows would have been noticed


def test_a_categorical_task_has_the_classes_of_the_training_rows(plan_of):
    plan, data = plan_of(frame().assign(center=lambda t: t.center.where(t.split != "external", "E")))
    task = concept_task(data, "center", plan.rows["train"], adversarial=True)
    assert (task.kind, task.classes, task.adversarial) == ("categorical", ("A", "B"), True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 3.0}, "count has one value only among the training rows"),
        ({"count": None}, "has no value among the training rows"),
        ({"count": np.inf}, "count has infinite values among the training rows"),
        ({"center": "A"}, "center needs two classes among the training rows, there is 1"),
        ({"center": None}, "center needs two classes among the training rows, there is 0"),
    ],
)
def test_a_concept_that_cannot_be_learned_is_refused(plan_of, values, words):
    table = frame()
    for column, value in values.items():
        table[column] = table[column].where(table.split != "train", value)
    plan, data = plan_of(table)
    with pytest.raises(InputError, match=words):
        concept_task(data, next(iter(values)), plan.rows["train"], adversarial=False)


def test_a_name_that_no_module_may_bear_is_refused(tmp_path):
    table = PatchTable(frame().assign(**{"area.um": 1.0}), tmp_path)
    with pytest.raises(InputError, match=r"cannot have a dot in its name, got 'area\.um'"):
        concept_task(table, "area.um", np.arange(4), adversarial=False)


def test_a_center_without_a_label_cannot_be_balanced(plan_of):
    table = frame()
    plan, data = plan_of(table)
    task = concept_task(data, "center", plan.rows["train"], adversarial=True)
    assert unbalanced_notes(data, plan, [task]) == []
    table.loc[(table.center == "A") & (table.split == "train"), "label"] = "normal"
    plan, data = plan_of(table)
    [note] = unbalanced_notes(data, plan, [task])
    assert note.startswith("center A has no training row of the label tumor: reweighting cannot balance A")
