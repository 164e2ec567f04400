"""The concept bottleneck: heads by ridge, a main head on out-of-fold predictions, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.preprocessing import StandardScaler
from small_study import write_study

import conceptkit as ck
from conceptkit.guide.frozen import INVERSE_PENALTIES
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

    def slopes(columns):
        rows = labels >= 0
        Z = StandardScaler().fit(columns[rows, None])
        share = np.bincount(labels[rows]) / rows.sum()
        fits = [
            LogisticRegression(C=c, tol=1e-8).fit(
                Z.transform(columns[rows, None]), labels[rows], (1 - share)[labels[rows]]
            )
            for c in INVERSE_PENALTIES
        ]
        return np.array([fit.coef_[0, 0] / Z.scale_[0] for fit in fits])

    found = w["heads.main.weight"].item()
    assert np.abs(slopes(left_out) / found - 1).min() < 1e-3
    assert np.abs(slopes(expected) / found - 1).min() > 1e-2


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
