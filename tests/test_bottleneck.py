"""The concept bottleneck: heads by ridge, a main head on out-of-fold predictions, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.preprocessing import StandardScaler
from small_study import write_study

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.guide.frozen import WEAK
from conceptkit.models.adapter import export_onnx
from conceptkit.models.checkpoints import load_checkpoint
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import ALPHAS

ARMS = "baseline,through,through-balanced,components,hybrid,through-random,through-shuffled"
OPTIONS = {"discourage": "center", "epochs": 1, "warmup": 1}


def write(folder, table):
    """A study without images whose features hold the count, the tumor label and the center, with noise."""
    rng = np.random.default_rng(0)
    center = pd.get_dummies(table.center).to_numpy(float)
    X = np.column_stack([table.label == "tumor", (table["count"] - 20) / 10, center, rng.normal(size=(len(table), 12))])
    X = ((X + 0.5 * rng.normal(size=X.shape)) * 5 + 100).astype(np.float32)
    frame = pd.DataFrame(X, columns=[f"f{k}" for k in range(X.shape[1])]).assign(patch_id=table.patch_id)
    train = np.flatnonzero((table.split == "train").to_numpy())
    table = table.assign(label=table.label.mask(np.isin(np.arange(len(table)), train[::3])))  # few main labels
    table.loc[train[1::5], "count"] = np.nan
    table["tissue"] = pd.cut(table.grade + 2 * rng.normal(size=len(table)), 3, labels=["x", "y", "z"]).astype(str)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "f.parquet")
    write_study(folder, table.drop(columns=["h5", "key", "row"]))
    text = (folder / "conceptkit.toml").read_text().replace('model = "mini_inception"\nweights = "bundled"\n', "")
    (folder / "conceptkit.toml").write_text(text.replace('encourage = ["count"]\n', ""))
    return X, table


@pytest.fixture(scope="module")
def place(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bottleneck")
    return folder, *write(folder, table)


def guide(folder, **options):
    return ck.run_guide(folder, features=folder / "f.parquet", **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def record(place):
    folder = place[0]
    more = {"through": "count,grade", "residual": 10.0, "arms": ARMS, "export": folder / "a.onnx"}
    return guide(folder, **more, out=folder / "run")


def opened(record, name):
    folder = record.folder / "checkpoints" / f"{name}-seed0"
    tasks = json.loads((folder / "checkpoint.json").read_text())["tasks"]
    return {k: v.astype(np.float64) for k, v in load_file(folder / "weights.safetensors").items()}, tasks


def best_ridge(Z, y, groups):
    """The penalty of least left-out error, by fitting again without each patient."""
    errors = [
        ((cross_val_predict(Ridge(alpha=a), Z, y, groups=groups, cv=LeaveOneGroupOut()) - y) ** 2).sum() for a in ALPHAS
    ]
    return Ridge(alpha=ALPHAS[int(np.argmin(errors))]).fit(Z, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_heads_are_ridge_regressions_and_the_main_head_learns_from_left_out_patients(place):
    """Refitted by scikit-learn, fold by fold; a head on predictions of the rows themselves has other weights."""
    folder, X, table = place
    made = guide(folder, through="count", arms="through", out=folder / "plain")
    w, [_, task] = opened(made, "through")
    own = np.flatnonzero((table.split == "train").to_numpy())
    x = (X[own].astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]
    y = (table["count"].to_numpy()[own] - task["mean"]) / task["deviation"]
    groups = np.unique(table.patient.to_numpy()[own], return_inverse=True)[1]
    labels = np.array([{"normal": 0, "tumor": 1}.get(v, -1) for v in table.label.to_numpy()[own]])
    known = np.isfinite(y)
    scaler = StandardScaler().fit(x[known])
    whole = best_ridge(scaler.transform(x[known]), y[known], groups[known])
    expected = whole.predict(scaler.transform(x))
    head = x @ w["heads.count.weight"][0] + w["heads.count.bias"]
    np.testing.assert_allclose(head, expected, atol=1e-5)
    left_out = np.full(len(own), np.nan)
    parts = min(10, len(np.unique(groups)) // 2)
    at = np.flatnonzero(known)
    for train, test in make_folds(len(at), groups[at], parts, seed=0, strata=[labels[at]]):
        scaler = StandardScaler().fit(x[at[train]])
        fitted = best_ridge(scaler.transform(x[at[train]]), y[at[train]], groups[at[train]])
        rows = np.isin(groups, groups[at[test]])
        left_out[rows] = fitted.predict(scaler.transform(x[rows]))

    def slope(columns):
        rows = labels >= 0
        Z = StandardScaler().fit(columns[rows, None])
        share = np.bincount(labels[rows]) / rows.sum()
        model = LogisticRegression(C=WEAK, tol=1e-8)
        fit = model.fit(Z.transform(columns[rows, None]), labels[rows], (1 - share)[labels[rows]])
        return fit.coef_[0, 0] / Z.scale_[0]

    found = w["heads.main.weight"].item()
    assert slope(left_out) == pytest.approx(found, rel=1e-3)
    assert abs(slope(expected) / found - 1) > 1e-2


def test_the_checkpoint_decides_by_its_predicted_concepts_only(place, record):
    folder, X, table = place
    X = X[np.argsort(table.patch_id.to_numpy())]
    w, tasks = opened(record, "through-balanced")
    assert [task["name"] for task in tasks if task["through"]] == ["count", "grade"]
    x = (X.astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]
    out = {name: x @ w[f"heads.{name}.weight"].T + w[f"heads.{name}.bias"] for name in ("count", "grade")}
    read = np.hstack([out["count"], out["grade"]])
    assert w["heads.main.weight"].shape == (1, 2)
    frame = ck.predict(record.folder / "checkpoints" / "through-balanced-seed0", folder, features=folder / "f.parquet")
    logit = read @ w["heads.main.weight"].T + w["heads.main.bias"]
    np.testing.assert_allclose(frame.probability_tumor, expit(logit[:, 0]), atol=1e-5)
    np.testing.assert_allclose(frame.count_predicted, read[:, 0] * tasks[1]["deviation"] + tasks[1]["mean"], rtol=1e-4)


def test_classes_enter_as_shares_and_the_graph_for_other_programs_agrees(place):
    folder, X, table = place
    made = guide(folder, through="tissue,count", arms="hybrid", residual=3.0, out=folder / "classes")
    checkpoint = made.folder / "checkpoints" / "hybrid-seed0"
    w, _ = opened(made, "hybrid")
    x = (X.astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]
    share = softmax(x @ w["heads.tissue.weight"].T + w["heads.tissue.bias"], axis=1)
    read = np.hstack([share[:, 1:], x @ w["heads.count.weight"].T + w["heads.count.bias"]])
    logit = read @ w["heads.main.weight"].T + w["heads.main.bias"] + x @ w["residual.weight"].T
    frame = ck.predict(checkpoint, folder, features=folder / "f.parquet").set_index("patch_id")
    np.testing.assert_allclose(frame.probability_tumor[table.patch_id], expit(logit[:, 0]), atol=1e-5)
    graph = onnxruntime.InferenceSession(export_onnx(load_checkpoint(checkpoint).module, folder / "c.onnx"))
    np.testing.assert_allclose(graph.run(["main"], {"features": X})[0], logit, atol=1e-4)
    assert made.bottleneck.odds == ()  # the concepts do not decide by themselves
    assert all(0 < share < 1 for share in made.bottleneck.residual["hybrid"].values())


def by_pairs(y, score):
    up, down = score[y][:, None], score[~y][None]
    return float(((up > down) + 0.5 * (up == down)).mean())


def test_true_values_take_the_place_of_predictions_and_leakage_is_the_rest(place, record):
    folder, X, table = place
    w, tasks = opened(record, "through")
    x = (X.astype(np.float64) - w["backbone.mean"]) / w["backbone.deviation"]
    read = np.hstack([x @ w[f"heads.{name}.weight"].T + w[f"heads.{name}.bias"] for name in ("count", "grade")])
    true = np.stack([(table[t["name"]] - t["mean"]) / t["deviation"] for t in tasks[1:]], axis=1)
    rows = ((table.split == "external") & table.label.notna() & np.isfinite(true).all(1)).to_numpy()
    y = (table.label == "tumor").to_numpy()[rows]
    for names in (("count",), ("count", "grade")):
        own = read.copy()
        own[:, : len(names)] = true[:, : len(names)]
        [found] = [
            one for one in record.bottleneck.interventions
            if (one.run, one.concepts, one.split, one.metric) == ("through", names, "external", "auc")
        ]  # fmt: skip
        # Two logits that float32 reverses change the AUC by half a pair.
        assert found.true == pytest.approx(by_pairs(y, (own @ w["heads.main.weight"].T)[rows, 0]), abs=5e-3)
        assert found.predicted == pytest.approx(by_pairs(y, (read @ w["heads.main.weight"].T)[rows, 0]), abs=5e-3)
        assert found.mean == pytest.approx(found.true - found.predicted)
        assert found.low < found.mean < found.high
    assert len({round(one.mean, 3) for one in record.bottleneck.interventions}) > 6
    for row in record.bottleneck.leakage:
        assert row.mean == pytest.approx(row.predicted - row.true)
    [odds] = [o for o in record.bottleneck.odds if (o.run, o.concept) == ("through", "count")]
    assert np.log(odds.predicted) == pytest.approx(w["heads.main.weight"][0, 0] / tasks[1]["deviation"], rel=1e-5)
    assert record.bottleneck.rows["labelled"] == ((table.split == "train") & table.label.notna()).sum()
    assert record.bottleneck.rows["count"] == ((table.split == "train") & table["count"].notna()).sum()
    assert any("training rows have no label: they train the concepts only" in note for note in record.notes)
    again = ck.load_record(record.folder)
    assert again.bottleneck == record.bottleneck
    page = ck.write_report([record.folder], folder / "page.html").read_text(encoding="utf-8")
    assert "Bottleneck: odds ratios of the main head" in page


def test_predicted_concepts_carry_what_their_values_do_not_only_where_there_is_more(place, record):
    """The count's features hold no label, so that its predictions leak little; the control reads the label's own."""
    found = {run.name: run.metrics["external"]["auc"] for run in record.runs}
    assert found["through-random"] < found["hybrid"]
    pairs = {(d.run, d.against) for d in record.differences}
    assert {("through-balanced", "components"), ("through-balanced", "through-random")} <= pairs
    leakage = {run.name: run.leakage["center"]["linear"] for run in record.runs}
    assert leakage["through"] < leakage["baseline"]  # the features hold the center, two columns hold less of it


@pytest.mark.usefixtures("one_random_network")
def test_a_frozen_layer_and_a_joint_training(study, tmp_path):
    """Concepts are read at a layer before every trained one; jointly, their heads and the main head are one network."""
    frozen = {"through": "count@mixed2,grade", "arms": "baseline,through,components", "unfreeze": "mixed10"}
    made = ck.run_guide(study, **frozen, epochs=1, warmup=1, discourage="center", out=tmp_path / "frozen")
    assert made.settings["layers"] == {"count": "mixed2"}
    network = made.folder / "checkpoints" / "through-seed0"
    read = ck.predict(network, study)
    assert np.isfinite(read.count_predicted).all()
    probed = ck.run_probe(study, model=str(network), layers=["trunk"], concepts=["count"], permutations=0)
    assert len(probed.rows) == 1
    joint = {"through": "count", "bottleneck": "joint", "arms": "through", "trunk": (8,), "unfreeze": ()}
    made = ck.run_guide(study, **joint, epochs=2, warmup=1, discourage="center", out=tmp_path / "joint")
    assert [set(entry) >= {"train/count", "train/main"} for entry in made.runs[0].history] == [True, True]
    w, _ = opened(made, "through")
    assert w["heads.main.weight"].shape == (1, 1)
    assert w["trunk.0.0.weight"].shape[0] == 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"through": "void"}, "through: void has no value among the training rows"),
        ({"through": "constant"}, "through: constant has one value"),
        ({"through": "center", "discourage": "center"}, "through: center is discouraged too"),
        ({"through": "count,count"}, "through: "),
        ({"through": "label"}, "label is the main task itself"),
        ({"residual": 1.0}, "residual: is of a bottleneck"),
        ({"through": "count", "intervene": "grade"}, "intervene: 'grade'"),
        ({"through": "trained", "intervene": "trained"}, "intervene: no evaluation row has a value of trained"),
        ({"through": "count", "residual": 0.0}, "residual: must be above 0"),
        ({"arms": "through"}, "arms: through needs --through"),
        ({"through": "count", "arms": "hybrid"}, "arms: hybrid needs --residual"),
        ({"through": "few"}, "through: few has values of 2 training patients"),
    ],
)
def test_what_cannot_be_a_bottleneck_is_one_sentence(place, tmp_path, options, sentence):
    folder, _, table = place
    train = table.split == "train"
    known = table.patient.isin(sorted(table.patient[train].unique())[:2])
    values = np.arange(len(table), dtype=float)
    table.assign(trained=np.where(train, values, np.nan), few=np.where(known, values, np.nan)).drop(
        columns=["h5", "key", "row"]
    ).to_csv(tmp_path / "patches.csv", index=False)
    with pytest.raises(InputError) as error:
        guide(folder, table=str(tmp_path / "patches.csv"), out=tmp_path / "run", **options)
    assert sentence in str(error.value)
    assert str(error.value).count(". ") == 0
