"""Reading trained networks: which rows are read, fresh probes, the network's own head, paired differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, r2_score, roc_auc_score

from conceptkit._checks import InputError
from conceptkit.evaluate.resampling import draw_groups
from conceptkit.guide.plan import make_plan
from conceptkit.guide.reading import Reading, paired_differences, read_run
from conceptkit.models.guided import MAIN, Task
from conceptkit.patches import load_table
from conceptkit.study import Splits, Study

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
    at = {split: np.searchsorted(plan.used, rows) for split, rows in plan.rows.items()}
    logits = np.zeros((len(plan.used), 1)) if logits is None else logits
    trunk = known if trunk is None else trunk
    outputs = {MAIN: logits, **(raw or {})}
    tasks = [main_task(plan), *heads]
    return read_run(name, seed, Path("c"), [], tasks, outputs, trunk, plan, at, reading)


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
    reading = reading_of(made, splits=Splits(read="elsewhere"))
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
    assert set(run.metrics) == set(PATIENTS)
    for name, metrics in run.metrics.items():
        here = split == name
        assert metrics["auc"] == pytest.approx(roc_auc_score(y[here], score[here]))
        assert metrics["f1"] == pytest.approx(f1_score(y[here], score[here] > 0))
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[here], score[here] > 0))


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
    differences = found(paired_differences(runs, plan, reading, n_resamples=50))
    assert set(differences) == {
        *((split, "auc") for split in ("internal", "external")),
        *(("internal", metric) for metric in ("probe:count", "linear:center", "mlp:center")),
    }

    def mean(value):
        gains = [value(b.record) - value(a.record) for a, b in zip(runs[::2], runs[1::2], strict=True)]
        return pytest.approx(np.mean(gains))

    assert {(d.run, d.against) for d in differences.values()} == {("guided", "baseline")}
    for split in ("internal", "external"):
        assert differences[split, "auc"].mean == mean(lambda r, s=split: r.metrics[s]["auc"])
        assert differences[split, "auc"].n_groups == PATIENTS[split]
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
    for d in paired_differences([base, same], plan, reading, n_resamples=50):
        assert (d.low, d.mean, d.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert any(d.mean for d in paired_differences([base, other], plan, reading, n_resamples=50))  # the control


def test_intervals_resample_patients_and_pair_the_runs(made):
    """The plain statement: draw patients, take all their rows for both runs, subtract, take the quantiles."""
    _, data, plan, _ = made
    reading = reading_of(made)
    base, other = pair(made, reading)
    n_resamples = 200
    differences = found(paired_differences([base, other], plan, reading, n_resamples=n_resamples))
    frame = data.frame
    rows = plan.rows["internal"]
    patients = np.unique(frame.patient.to_numpy()[rows])
    gains = {"auc": [], "probe:count": []}
    for draw in draw_groups(len(patients), n_resamples=n_resamples):
        chosen = np.concatenate(
            [rows[frame.patient.to_numpy()[rows] == p] for p, k in zip(patients, draw, strict=True) for _ in range(k)]
        )
        place = np.searchsorted(plan.used, chosen)
        y = plan.codes[chosen]
        scores = [roc_auc_score(y, run.probability[place]) for run in (base, other)]
        gains["auc"].append(scores[1] - scores[0])
        count, at = frame["count"].to_numpy()[chosen], np.searchsorted(rows, chosen)
        scores = [r2_score(count, run.fresh["probe:count"][at]) for run in (base, other)]
        gains["probe:count"].append(scores[1] - scores[0])
    for metric, values in gains.items():
        d = differences["internal", metric]
        assert (d.low, d.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-9)
