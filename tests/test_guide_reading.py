"""Reading trained networks: which rows are read, fresh probes, the network's own head, paired differences."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, r2_score, roc_auc_score

from conceptkit.errors import InputError
from conceptkit.guide.plan import make_plan
from conceptkit.guide.reading import Reading, paired_differences, read_run
from conceptkit.models.guided import MAIN, Task
from conceptkit.tables.patches import load_table
from conceptkit.tables.study import SplitNames, Study

PATIENTS = {"train": 4, "val": 2, "internal": 12, "external": 6}
WIDTH = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Study, table, plan, and a trunk that knows ``count`` well, ``center`` somewhat and ``noise`` not at all."""
    rng = np.random.default_rng(0)
    rows = []
    for split, n in PATIENTS.items():
        for patient in range(n):
            for i in range(6):
                center = "E" if split == "external" else "ABCD"[patient % 4]
                rows.append({"patient": f"{split}-{patient}", "split": split, "center": center, "label": "nt"[i % 2]})
    frame = pd.DataFrame(rows)
    n = len(frame)
    frame["patch_id"] = [f"p{i:03d}" for i in rng.permutation(n)]
    frame["count"], frame["noise"] = rng.normal(10, 3, n), rng.normal(size=n)
    frame["gaps"] = frame["count"].where(frame.patient != "internal-3")
    frame["few"] = frame["count"].where(frame.patient.isin(["internal-0", "internal-1"]))
    frame["flat"] = frame["count"].where(frame.split == "train", 1.0)
    path = tmp_path_factory.mktemp("reading") / "t.csv"
    frame.sample(frac=1, random_state=1).to_csv(path, index=False)
    study = Study(name="s", table=path, group="patient")
    data = load_table(path)
    plan = make_plan(study, data)
    table = data.frame.iloc[plan.used]
    trunk = rng.normal(size=(len(plan.used), WIDTH)).astype(np.float32)
    trunk[:, 0] += (table["count"].to_numpy() - 10) / 3 * 3
    trunk[:, 1] += 3 * (table.center == "A")
    trunk[:, 2] += 3 * (table.center == "B")
    return study, data, plan, trunk


def reading_of(made, *, encourage=("count",), discourage=("center",), folds=4, **changes):
    study, data, plan, _ = made
    return Reading.of(data, study.replace(**changes), plan, encourage, discourage, folds)


def main_task(plan):
    return Task(name=MAIN, kind="categorical", classes=plan.classes)


def read(made, reading, *, name="guided", seed=0, logits=None, heads=(), raw=None, trunk=None):
    _, _, plan, known = made
    logits = np.zeros((len(plan.used), 1)) if logits is None else logits
    trunk = known if trunk is None else trunk
    outputs = {MAIN: logits, **(raw or {})}
    tasks = [main_task(plan), *heads]
    return read_run(name, seed, Path("c"), [], tasks, outputs, trunk, plan, reading)


# --- which rows, which concepts ----------------------------------------------------------------------------------


def test_concepts_are_read_on_the_internal_rows(made):
    _, data, plan, _ = made
    reading = reading_of(made)
    assert reading.where == "internal"
    assert reading.split_rows.tolist() == plan.rows["internal"].tolist()
    assert (data.frame.split.to_numpy()[reading.split_rows] == "internal").all()
    assert reading.notes == ()


def test_without_such_a_split_all_evaluation_rows_are_read(made):
    _, data, _, _ = made
    reading = reading_of(made, splits=SplitNames(read="elsewhere"))
    assert set(reading.where.split(" + ")) == {"internal", "external"}
    assert set(data.frame.split.to_numpy()[reading.split_rows]) == {"internal", "external"}
    assert (np.diff(reading.split_rows) > 0).all()
    assert reading.leaks["center"].chance == pytest.approx(1 / 5)  # A to D, and the external E
    assert reading_of(made).leaks["center"].chance == pytest.approx(1 / 4)


def test_a_concept_that_cannot_be_read_there_is_noted_and_stays_without(made):
    reading = reading_of(made, encourage=["count", "few", "flat"], discourage=["center"])
    assert list(reading.concepts) == ["count"]
    assert len(reading.notes) == 2
    assert reading.notes[0].startswith("few cannot be read on the internal rows: ")
    assert "4 folds need at least 4 groups" in reading.notes[0]
    assert reading.notes[1].startswith("flat cannot be read on the internal rows: ")
    run = read(made, reading).record
    assert run.concepts["few"] == run.concepts["flat"] == {"probe": None, "head": None}
    assert run.concepts["count"]["probe"] is not None


def test_one_fold_is_a_mistake_and_no_note(made):
    with pytest.raises(InputError, match="folds: must be at least 2, got 1"):
        reading_of(made, folds=1)


# --- one run -----------------------------------------------------------------------------------------------------


def test_the_main_task_is_scored_on_every_split(made):
    _, data, plan, _ = made
    logits = np.random.default_rng(3).normal(size=(len(plan.used), 1)) + plan.codes[plan.used][:, None]
    run = read(made, reading_of(made), logits=logits).record
    split = data.frame.split.to_numpy()[plan.used]
    y, score = plan.codes[plan.used], logits[:, 0]
    assert set(run.metrics) == {*PATIENTS, "overall"}
    threshold = run.metrics["val"]["threshold"]
    cut = np.log(threshold / (1 - threshold))
    for name, metrics in run.metrics.items():
        here = np.isin(split, ["internal", "external"]) if name == "overall" else split == name
        assert metrics["threshold"] == threshold
        assert metrics["auc"] == pytest.approx(roc_auc_score(y[here], score[here]))
        assert metrics["f1"] == pytest.approx(f1_score(y[here], score[here] > cut))
        assert metrics["f1_at_half"] == pytest.approx(f1_score(y[here], score[here] > 0))
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[here], score[here] > cut))
        assert metrics["brier"] == pytest.approx(brier_score_loss(y[here], 1 / (1 + np.exp(-score[here]))))


def test_the_threshold_is_chosen_on_validation_rows_alone(made):
    _, data, plan, _ = made
    logits = np.random.default_rng(3).normal(size=(len(plan.used), 1)) + plan.codes[plan.used][:, None]
    split = data.frame.split.to_numpy()[plan.used]
    y, score = plan.codes[plan.used], logits[:, 0]
    val = split == "val"
    first = read(made, reading_of(made), logits=logits).record.metrics
    best = max(f1_score(y[val], score[val] > cut) for cut in [score.min() - 1, *score[val]])
    assert first["val"]["f1"] == pytest.approx(best)
    other = logits.copy()
    other[~val] -= 2
    shifted = read(made, reading_of(made), logits=other).record.metrics
    assert shifted["internal"]["threshold"] == first["internal"]["threshold"]
    assert shifted["internal"]["f1"] != first["internal"]["f1"]  # the control


def test_a_score_that_tells_the_center_alone_is_worth_nothing_within_centers(made):
    _, data, plan, _ = made
    frame = data.frame.iloc[plan.used]
    center = frame.center.to_numpy()
    share = {c: plan.codes[plan.used][center == c].mean() for c in "ABCDE"}
    by_center = np.array([share[c] for c in center])[:, None]
    metrics = read(made, reading_of(made), logits=by_center).record.metrics
    assert all(m["auc_within_center"] == pytest.approx(0.5) for m in metrics.values())
    patient = frame.patient.to_numpy()
    logits = np.random.default_rng(5).normal(size=(len(center), 1)) + plan.codes[plan.used][:, None]
    inside = read(made, reading_of(made, discourage=[]), logits=logits).record.metrics["internal"]["auc_within_center"]
    here = np.isin(patient, [p for p in patient if p.startswith("internal")])
    pairs = [
        (logits[i, 0] > logits[j, 0]) + 0.5 * (logits[i, 0] == logits[j, 0])
        for i in np.flatnonzero(here & (plan.codes[plan.used] == 1))
        for j in np.flatnonzero(here & (plan.codes[plan.used] == 0))
        if center[i] == center[j]
    ]
    assert inside == pytest.approx(np.mean(pairs))


def test_only_classes_are_levels_to_be_within(made):
    study, data, plan, _ = made
    with pytest.raises(InputError, match="within: count must be categorical"):
        Reading.of(data, study, plan, ["count"], ["center"], 4, within=["count"])


def test_fresh_probes_find_what_is_there_and_nothing_else(made):
    run = read(made, reading_of(made, encourage=["count", "noise"])).record
    assert run.concepts["count"]["probe"] > 0.8
    assert run.concepts["noise"]["probe"] < 0.1
    assert run.leakage["center"]["linear"] > 0.4
    assert run.leakage["center"]["chance"] == pytest.approx(0.25)


def test_a_probe_sees_no_row_outside_the_read_ones(made):
    _, data, plan, trunk = made
    reading = reading_of(made)
    spoiled = trunk.copy()
    spoiled[data.frame.split.to_numpy()[plan.used] != "internal"] = 1e3
    assert read(made, reading, trunk=spoiled).record.concepts == read(made, reading).record.concepts
    assert read(made, reading, trunk=spoiled).record.leakage == read(made, reading).record.leakage
    spoiled = trunk.copy()
    spoiled[data.frame.split.to_numpy()[plan.used] == "internal", 0] = 0
    assert read(made, reading, trunk=spoiled).record.concepts["count"]["probe"] < 0.2  # the control


def test_a_unit_that_is_silent_on_nearly_all_rows_is_not_read(made):
    _, data, plan, trunk = made
    internal = np.flatnonzero(data.frame.split.to_numpy()[plan.used] == "internal")
    rare = np.zeros((len(trunk), 1), np.float32)
    rare[internal[0]] = 100.0  # one row of 72
    plain = read(made, reading_of(made)).record
    with_rare = read(made, reading_of(made), trunk=np.hstack([trunk, rare])).record
    assert with_rare.concepts == plain.concepts
    assert with_rare.leakage == plain.leakage
    rare[internal[:10]] = np.random.default_rng(0).normal(size=(10, 1)) * 100
    assert read(made, reading_of(made), trunk=np.hstack([trunk, rare])).record.concepts != plain.concepts  # the control
    assert (
        read(made, reading_of(made), trunk=np.zeros_like(trunk)[:, :1] + rare * 0).record.concepts["count"]["probe"]
        <= 0
    )


def test_the_own_head_is_scored_in_the_concepts_unit(made):
    _, data, plan, _ = made
    count = data.concept("gaps").values[plan.used]
    output = np.random.default_rng(4).normal(scale=0.2, size=(len(plan.used), 1)) + (count[:, None] - 12) / 3
    task = Task(name="gaps", kind="continuous", mean=12.0, deviation=3.0)
    output[np.isnan(count)] = 100.0  # rows without a value count for nothing
    run = read(made, reading_of(made, encourage=["gaps"]), heads=[task], raw={"gaps": output}).record
    known = np.isfinite(count) & (data.frame.split.to_numpy()[plan.used] == "internal")
    assert run.concepts["gaps"]["head"] == pytest.approx(r2_score(count[known], output[known, 0] * 3 + 12))
    assert read(made, reading_of(made, encourage=["gaps"])).record.concepts["gaps"]["head"] is None


def test_the_own_head_of_classes_may_know_one_that_is_not_there(made):
    _, data, plan, _ = made
    classes = ("A", "B", "C", "D", "Z")  # Z trains alone: to predict it is wrong, whatever the truth
    here = data.frame.split.to_numpy()[plan.used] == "internal"
    truth = data.frame.center.to_numpy()[plan.used]
    said = np.where(np.arange(len(truth)) % 5 == 0, "Z", np.where(truth == "E", "A", truth))
    output = np.array([[float(c == s) for c in classes] for s in said])
    task = Task(name="center", kind="categorical", classes=classes)
    reading = reading_of(made, encourage=["center"], discourage=[])
    run = read(made, reading, heads=[task], raw={"center": output}).record
    recalls = [np.mean(said[here & (truth == c)] == c) for c in "ABCD"]
    assert run.concepts["center"]["head"] == pytest.approx(np.mean(recalls))
    assert run.concepts["center"]["head"] < 1


# --- differences -------------------------------------------------------------------------------------------------


def pair(made, reading, *, seed=0):
    """A baseline, and a run whose trunk and logits differ from it."""
    _, _, plan, trunk = made
    rng = np.random.default_rng([9, seed])
    y = plan.codes[plan.used][:, None]
    base = read(made, reading, name="baseline", seed=seed, logits=rng.normal(size=y.shape) + y)
    other = trunk + rng.normal(scale=2, size=trunk.shape).astype(np.float32)
    return base, read(made, reading, seed=seed, logits=rng.normal(size=y.shape) + 2 * y, trunk=other)


def found(differences):
    return {(d.split, d.metric): d for d in differences}


def test_differences_are_those_of_the_scores_averaged_over_seeds(made):
    _, _, plan, _ = made
    reading = reading_of(made)
    runs = [run for seed in (0, 1) for run in pair(made, reading, seed=seed)]
    differences = found(paired_differences(runs, plan, reading))
    assert set(differences) == {
        *((s, m) for s in ("internal", "external", "overall") for m in ("auc", "auc_within_center")),
        *((s, f"{m}_weighted") for s in ("internal", "external") for m in ("auc", "balanced_accuracy", "brier", "ece")),
        *(("internal", metric) for metric in ("probe:count", "linear:center", "mlp:center", "kernel:center")),
    }

    def mean(value):
        gains = [value(b.record) - value(a.record) for a, b in zip(runs[::2], runs[1::2], strict=True)]
        return pytest.approx(np.mean(gains))

    assert {(d.run, d.against) for d in differences.values()} == {("guided", "baseline")}
    for split in ("internal", "external", "overall"):
        for metric in ("auc", "auc_within_center"):
            assert differences[split, metric].mean == mean(lambda r, s=split, m=metric: r.metrics[s][m])
        wanted = ("internal", "external") if split == "overall" else (split,)
        assert differences[split, "auc"].n_groups == sum(PATIENTS[s] for s in wanted)
    assert differences["internal", "probe:count"].mean == mean(lambda r: r.concepts["count"]["probe"])
    assert differences["internal", "linear:center"].mean == mean(lambda r: r.leakage["center"]["linear"])
    assert differences["internal", "mlp:center"].mean == mean(lambda r: r.leakage["center"]["mlp"])
    for d in differences.values():
        assert d.low <= d.mean <= d.high
        assert d.low < d.high


def test_a_run_against_its_own_double_differs_by_nothing(made):
    _, _, plan, _ = made
    reading = reading_of(made)
    base, other = pair(made, reading)
    same = read(made, reading, logits=np.log(base.probability / (1 - base.probability))[:, None])
    for d in paired_differences([base, same], plan, reading):
        assert (d.low, d.mean, d.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert any(d.mean for d in paired_differences([base, other], plan, reading))  # the control


def test_a_difference_of_r2_has_no_interval_where_one_r2_says_nothing(made):
    _, _, plan, _ = made
    reading = reading_of(made)
    base, other = pair(made, reading)
    known = found(paired_differences([base, other], plan, reading))["internal", "probe:count"]
    thrown = other.fresh["probe:count"].copy()
    thrown[0] += 100 * np.ptp(thrown)  # one patient's prediction is far off
    wild = dataclasses.replace(other, fresh={**other.fresh, "probe:count": thrown})
    d = found(paired_differences([base, wild], plan, reading))
    assert d["internal", "probe:count"].mean < -10
    assert math.isnan(d["internal", "probe:count"].low)
    assert math.isnan(d["internal", "probe:count"].high)
    assert math.isfinite(known.low)  # the control
    assert math.isfinite(d["internal", "linear:center"].low)


def test_intervals_leave_out_patients_and_pair_the_runs(made):
    """The plain statement: leave a patient out, with all rows and for both runs, subtract, and take Student's t."""
    _, data, plan, _ = made
    reading = reading_of(made)
    both = [pair(made, reading, seed=seed) for seed in (0, 1)]
    differences = found(paired_differences([run for pair in both for run in pair], plan, reading))
    frame = data.frame
    rows = plan.rows["internal"]
    patient = frame.patient.to_numpy()[rows]
    at, count = np.searchsorted(plan.used, rows), frame["count"].to_numpy()[rows]
    y, g = plan.codes[rows], len(np.unique(patient))
    scores = {
        "auc": lambda run, kept: roc_auc_score(y[kept], run.probability[at][kept]),
        "probe:count": lambda run, kept: r2_score(count[kept], run.fresh["probe:count"][kept]),
        "linear:center": lambda run, kept: balanced_accuracy_score(
            frame.center.to_numpy()[rows][kept], np.array(list("ABCD"))[run.fresh["linear:center"][kept]]
        ),
    }
    for metric, score in scores.items():
        gains = np.array(
            [np.mean([score(b, patient != p) - score(a, patient != p) for a, b in both]) for p in np.unique(patient)]
        )
        error = np.sqrt((g - 1) / g * ((gains - gains.mean()) ** 2).sum())
        d = differences["internal", metric]
        assert (d.high - d.mean, d.mean - d.low) == pytest.approx((student.ppf(0.975, g - 1) * error,) * 2, abs=1e-9)
