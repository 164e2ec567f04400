"""``embedded:shortcut`` has the properties that docs/embedded-study.md states; each with a control."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import f_oneway
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.api import Logit, add_constant

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.models.mini_inception import MEAN, STD, load_mini_inception
from conceptkit.probe.controls import pixel_statistics
from conceptkit.runs.opening import find_study
from conceptkit.synthetic import null, shortcut
from conceptkit.synthetic.patch import MPP, visible_nuclei


@pytest.fixture(scope="module")
def drawn():
    """A third of the study's patients, another seed: the table, and pixels (n, 96, 96, 3)."""
    with pytest.MonkeyPatch.context() as patch:
        plan = {split: {c: -(-n // 3) for c, n in patients.items()} for split, patients in shortcut.PLAN.items()}
        patch.setattr(shortcut, "PLAN", plan)
        rows, patches = zip(*shortcut.generate(seed=7), strict=True)
    table = pd.DataFrame([{**row, **patch.concepts()} for row, patch in zip(rows, patches, strict=True)])
    return table, np.stack([patch.pixels for patch in patches])


@torch.no_grad()
def features(pixels, **weights):
    """The mean of ``mixed10`` (n, 256)."""
    model = load_mini_inception(**weights).eval()
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / STD[0]
    return torch.cat([model(part) for part in x.split(100)]).double().numpy()


@pytest.fixture(scope="module")
def features_of(drawn):
    return {
        "tissue": features(drawn[1], weights="tissue"),
        "random": features(drawn[1], pretrained=False, seed=0),
        "pixels": pixel_statistics(drawn[1]),
    }


def decoded(X, table, concept):
    """Held-out R² by patient."""
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    return cross_val_score(ridge, X, table[concept], groups=table["patient"], cv=GroupKFold(5), scoring="r2").mean()


@pytest.mark.parametrize(("concept", "least"), [("count", 0.75), ("area", 0.6)])
def test_the_network_decodes_what_pixel_statistics_and_random_networks_do_not(drawn, features_of, concept, least):
    scores = {name: decoded(X, drawn[0], concept) for name, X in features_of.items()}
    assert scores["tissue"] >= least
    assert scores["pixels"] <= scores["tissue"] - 0.2
    assert scores["random"] <= scores["tissue"] - 0.2
    # The control: of embedded:null the pixel statistics tell the number of nuclei.
    if concept == "count":
        plan = {"train": (4, 20)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(null, "PLAN", plan)
            rows, patches = zip(*null.generate(), strict=True)
        table = pd.DataFrame([{**row, **patch.concepts()} for row, patch in zip(rows, patches, strict=True)])
        assert decoded(pixel_statistics(np.stack([p.pixels for p in patches])), table, "count") > least


def test_the_network_works_on_every_unseen_center(drawn, features_of):
    """Features lie where those of training centers do; the control is the eosin of center H in version 1."""
    table, _ = drawn
    train = (table["split"] == "train").to_numpy()
    scaler = StandardScaler().fit(features_of["tissue"][train])
    ridge = RidgeCV(alphas=np.logspace(-1, 5, 13))
    ridge.fit(scaler.transform(features_of["tissue"][train]), table["count"][train])

    def judged(X, count):
        Z = scaler.transform(X)
        return np.median(np.sqrt((Z**2).mean(1))), r2_score(count, ridge.predict(Z))

    for center in "EFGH":
        rows = (table["center"] == center).to_numpy()
        distance, score = judged(features_of["tissue"][rows], table["count"][rows])
        assert distance < 2
        assert score >= 0.75
    first = dataclasses.replace(shortcut.UNSEEN["H"], eosin=(0.03, 0.94, 0.02))
    pixels, counts = [], []
    for i in range(20):
        rng = np.random.default_rng([5, i])
        labels, fibres = shortcut.draw_nuclei(rng, rng.standard_normal(2))
        pixels.append(shortcut.stained(rng, labels, first, np.zeros(2), fibres))
        counts.append(len(visible_nuclei(labels)))
    distance, score = judged(features(np.stack(pixels), weights="tissue"), counts)
    assert distance > 4
    assert score < 0


def fall(X, table):
    """AUC of a linear probe of the label on validation patients minus that on unseen centers."""
    tumor = (table["label"] == "tumor").to_numpy()
    train, val, external = ((table["split"] == split).to_numpy() for split in ("train", "val", "external"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(X[train], tumor[train])
    seen, unseen = (roc_auc_score(tumor[rows], probe.decision_function(X[rows])) for rows in (val, external))
    return seen - unseen


def test_a_probe_of_pixel_statistics_falls_on_unseen_centers(drawn, features_of):
    table, _ = drawn
    assert fall(features_of["pixels"], table) >= 0.1
    assert fall(table[["count", "area"]].to_numpy(), table) < 0.1  # the control: the true concepts carry over


def test_the_label_follows_from_the_true_concepts():
    """Logistic regression finds the slopes; with sufficiency 0 there are none."""
    for sufficiency, slope in ((1.0, shortcut.SLOPE / np.sqrt(2)), (0.0, 0.0)):
        rows, tumor = [], np.arange(800) % 2 == 0
        for i, wanted in enumerate(tumor):
            rng = np.random.default_rng([3, i])
            labels, fibres = shortcut._draw_cause(rng, rng.standard_normal(2), sufficiency, tumor=bool(wanted))
            sizes = visible_nuclei(labels) * MPP**2
            rows.append((len(sizes), sizes.mean(), fibres))
        means, sds = np.array([*shortcut.CAUSES.values(), (0.5, 12**-0.5)]).T
        fit = Logit(tumor.astype(float), add_constant((np.array(rows) - means) / sds)).fit(disp=False)
        assert (abs(fit.params[1:3] - slope) < 3 * fit.bse[1:3]).all()
        assert abs(fit.params[3] - shortcut.SLOPE * np.sqrt(1 - sufficiency)) < 3 * fit.bse[3]


def test_within_a_class_nuclei_are_independent_of_the_center(drawn):
    train = drawn[0][drawn[0]["split"] == "train"]
    for concept in ("count", "area"):
        for _, rows in train.groupby("label"):
            assert f_oneway(*[own[concept] for _, own in rows.groupby("center")]).pvalue > 0.01
    # The control: over both classes the concepts differ between centers, as the label does.
    assert min(f_oneway(*[own[c] for _, own in train.groupby("center")]).pvalue for c in ("count", "area")) < 0.01


def test_evaluation_is_balanced_and_training_is_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcut, "stained", lambda *_: None)
        patch.setattr(shortcut, "_draw_cause", lambda *_, **__: (None, 0.0))
        table = pd.DataFrame([row for row, _ in shortcut.generate()])
    share = (table["label"] == "tumor").groupby([table["split"], table["center"]]).mean()
    assert (share["internal"] == 0.5).all()
    assert (share["external"] == 0.5).all()
    assert np.allclose(share["train"], [0.9, 0.7, 0.3, 0.1], atol=0.01)
    assert share["external"].index.tolist() == list("EFGH")
    sizes = table[table["split"] == "train"].groupby("center")["patient"].nunique()
    assert sizes.nunique() == 4
    assert sizes.sum() == 240
    assert (table.groupby("patient")["split"].nunique() == 1).all()


def test_a_study_is_named(embedded):
    assert find_study("embedded:null") == embedded
    for name, mistake in (("nil", "no embedded study 'nil'; choose from null, shortcut"), ("null", "sufficiency")):
        with pytest.raises(InputError, match=mistake):
            ck.embedded_study(name, sufficiency=0.5)
    with pytest.raises(InputError, match="confounding: must lie between 0 and 1, got 2"):
        ck.embedded_study("shortcut", confounding=2)
