"""Endpoints of guiding: weighted scores over unseen centers, the primary contrast, p and q, the kernel probe."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
from report_records import difference, guide_record, guide_run
from rich.console import Console
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from conceptkit.cli.console import show_record
from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import MOST_UNITS
from conceptkit.evaluate.paired import Scored, paired_interval
from conceptkit.evaluate.scores import auc, balanced_accuracy, brier, calibration_error
from conceptkit.evaluate.weighted import empty_cells, row_weights, scored_weighted
from conceptkit.guide.contrast import Contrast
from conceptkit.guide.endpoints import UNSEEN, Endpoints
from conceptkit.guide.plan import make_plan
from conceptkit.guide.reading import Reading, _ranked, compared_pairs, declare
from conceptkit.probe.kernel import held_out_kernel
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import held_out
from conceptkit.records import GuideRecord
from conceptkit.tables.patches import load_table
from conceptkit.tables.study import Study

SHARES = np.array([0.9, 0.5, 0.2])
"""Share of tumor by center"""


def rows(classes=2, n=240, groups=24, seed=0):
    """Labels that depend on the center, groups nested in centers, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, groups, n))
    group = np.unique(group, return_inverse=True)[1]
    center = (group * 3) // (group.max() + 1)
    y = (rng.random(n) < SHARES[center]).astype(int) + (classes > 2) * rng.integers(0, 2, n)
    score = np.round(rng.random((n, classes)) + 0.4 * np.eye(classes)[y], 1)
    score /= score.sum(1, keepdims=True)
    return y, (score[:, 1] if classes == 2 else score), group, center


def slow_weights(y, center):
    """The formula, row by row."""
    share = lambda which: np.mean(which)  # noqa: E731
    return np.array(
        [share(center == c) * share(y == k) / share((center == c) & (y == k)) for c, k in zip(center, y, strict=True)]
    )


def slow_auc(y, score, center):
    """Weighted pairs: each positive with each negative, the pair weighing the product; classes one against the rest."""
    w = slow_weights(y, center)
    columns = {1: score} if score.ndim == 1 else dict(enumerate(score.T))
    areas = []
    for k, column in columns.items():
        positive, negative = np.flatnonzero(y == k), np.flatnonzero(y != k)
        won = total = 0.0
        for i in positive:
            for j in negative:
                won += w[i] * w[j] * ((column[i] > column[j]) + 0.5 * (column[i] == column[j]))
                total += w[i] * w[j]
        areas.append(won / total)
    return np.mean(areas)


def slow_others(y, score, center, threshold):
    """The other scores as weighted means over rows."""
    w = slow_weights(y, center)
    predicted = (score > threshold).astype(int) if score.ndim == 1 else score.argmax(1)
    hits = predicted == y
    both = np.stack([1 - score, score], 1) if score.ndim == 1 else score
    square = ((both - np.eye(both.shape[1])[y]) ** 2).sum(1) / (2 if score.ndim == 1 else 1)
    top, true = (score, y == 1) if score.ndim == 1 else (score.max(1), hits)
    bins = np.minimum((top * 10).astype(int), 9)
    gap = sum(abs(np.sum((w * (true - top))[bins == b])) for b in range(10)) / w.sum()
    recall = [np.average(hits[y == k], weights=w[y == k]) for k in np.unique(y)]
    return {"balanced_accuracy": np.mean(recall), "brier": np.average(square, weights=w), "ece": gap}


# --- weighted scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_scores_are_those_of_weighted_pairs_and_rows(classes):
    y, score, group, center = rows(classes)
    found = scored_weighted(y, score, group, center, threshold=0.45)
    np.testing.assert_allclose(row_weights(y, center), slow_weights(y, center))
    assert found["auc"].value == pytest.approx(slow_auc(y, score, center))
    for name, value in slow_others(y, score, center, 0.45).items():
        assert found[name].value == pytest.approx(value), name
    assert found["auc"].value != pytest.approx(auc(y, score), abs=0.002)  # the control: the weights matter
    for g in (0, 11, 23):
        kept = group != g
        assert found["auc"].deleted[g] == pytest.approx(slow_auc(y[kept], score[kept], center[kept]))
        for name, value in slow_others(y[kept], score[kept], center[kept], 0.45).items():
            assert found[name].deleted[g] == pytest.approx(value), name


def test_who_only_knows_the_center_has_one_half():
    y, _, group, center = rows(n=600)
    for knows in (SHARES[center], -SHARES[center], (center == 1) * 1.0):
        assert scored_weighted(y, knows, group, center)["auc"].value == pytest.approx(0.5, abs=1e-12)
    assert auc(y, SHARES[center]) > 0.75  # the control: without weights the center earns an AUC
    three, _, group, center = rows(3, n=900)
    knows = np.eye(3)[np.array([2, 0, 1])[center]]
    assert scored_weighted(three, knows, group, center)["auc"].value == pytest.approx(0.5, abs=1e-12)
    assert abs(auc(three, knows) - 0.5) > 0.05


def test_of_one_center_they_are_the_plain_scores():
    y, score, group, _ = rows()
    found = scored_weighted(y, score, group, np.zeros_like(y), threshold=0.5)
    assert found["auc"].value == pytest.approx(roc_auc_score(y, score))
    assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy(y, (score > 0.5).astype(int), 2))
    assert found["brier"].value == pytest.approx(brier(y, score))
    assert found["ece"].value == pytest.approx(calibration_error(y, score))
    assert found["auc"].effective == pytest.approx(len(y) ** 2 / np.sum(np.bincount(group) ** 2.0))


def test_an_empty_cell_refuses_all_scores():
    y, score, group, center = rows()
    y[center == 2] = 0
    assert empty_cells(y, center) == [(2, 1)]
    for one in scored_weighted(y, score, group, center).values():
        assert np.isnan(one.value)
        assert np.isnan(one.effective)
    alone = rows()[0]
    alone[center == 2] = 0
    alone[np.flatnonzero(group == group[center == 2][0])[0]] = 1  # the only tumor of center 2 lies in one group
    found = scored_weighted(alone, score, group, center)["auc"]
    assert np.isfinite(found.value)
    assert np.flatnonzero(np.isnan(found.deleted)).tolist() == [group[center == 2][0]]
    interval = paired_interval([found], [found])
    assert np.isnan([interval.low, interval.p]).all()


def test_many_groups_are_deleted_several_at_a_time_and_counted_all():
    y, score, group, center = rows(n=2000, groups=350)
    found = scored_weighted(y, score, group, center)["auc"]
    assert len(found.deleted) == MOST_UNITS
    interval = paired_interval([found], [Scored(0.5, np.full(MOST_UNITS, 0.5), found.sizes)])
    assert interval.n_groups == group.max() + 1
    weight = np.bincount(group, weights=slow_weights(y, center))
    assert interval.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum())


# --- p and q -----------------------------------------------------------------------------------------------------


def test_p_is_that_of_the_interval():
    rng = np.random.default_rng(0)
    inside = 0
    for k in range(60):
        values = rng.normal(0.4, 1, 12)
        without = (values.sum() - values) / 11
        interval = paired_interval([Scored(values.mean(), without)], [Scored(0.0, np.zeros(12))])
        assert interval.p == pytest.approx(ttest_1samp(values, 0).pvalue)  # the jackknife of a mean is the t test
        assert (interval.p < 0.05) == (interval.low > 0 or interval.high < 0)
        inside += interval.p < 0.05
        if k < 5:  # fewer degrees of freedom where groups are unequal
            sizes = np.array([30.0] + [1.0] * 11)
            wide = paired_interval([Scored(values.mean(), without, sizes)], [Scored(0.0, np.zeros(12))])
            effective = sizes.sum() ** 2 / (sizes**2).sum()
            t = values.mean() / (values.std(ddof=1) / np.sqrt(12))
            assert wide.p == pytest.approx(2 * student.sf(abs(t), max(effective - 1, 1)))
    assert 5 < inside < 55  # the control: both cases occur


def test_the_primary_difference_comes_first_and_the_others_have_q():
    made = [
        dataclasses.replace(difference(metric, 0.1), p=p)
        for metric, p in [("auc", 0.03), ("auc_weighted", 0.2), ("probe:count", 0.001), ("mlp:center", None)]
    ]
    first, *others = _ranked(made, Contrast("guided", "internal", "auc_weighted"))
    assert (first.metric, first.primary, first.q) == ("auc_weighted", True, None)
    assert not any(d.primary for d in others)
    np.testing.assert_allclose([d.q for d in others[:2]], multipletests([0.03, 0.001], method="fdr_bh")[1])
    assert others[2].q is None
    unranked = _ranked(made, None)
    assert [d.metric for d in unranked] == [d.metric for d in made]
    np.testing.assert_allclose([d.q for d in unranked[:3]], multipletests([0.03, 0.2, 0.001], method="fdr_bh")[1])


def test_records_of_earlier_versions_stay_readable():
    body = json.loads(json.dumps(guide_record().to_dict()))
    for d in body["differences"]:
        for key in ("n_effective", "p", "q", "primary"):
            del d[key]
    again = GuideRecord.from_dict(body)
    assert again.primary is None
    assert [d.mean for d in again.differences] == [d.mean for d in guide_record().differences]


def test_the_reference_is_the_balanced_network_where_there_is_one():
    assert compared_pairs(["baseline", "guided"]) == [("guided", "baseline")]
    three = compared_pairs(["baseline", "balanced", "guided", "random"])
    assert three == [("guided", "balanced"), ("random", "balanced"), ("balanced", "baseline")]


# --- unseen centers and the primary contrast ---------------------------------------------------------------------

CENTERS = {"train": "AB", "val": "AC", "internal": "AB", "mixed": "ADE", "external": "DE"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function from changes of a table to the plan and the reading of it."""
    folder = tmp_path_factory.mktemp("endpoints")
    drawn = [
        {"patient": f"{split}-{p}", "split": split, "center": centers[p % len(centers)], "label": "nt"[i % 2]}
        for split, centers in CENTERS.items()
        for p in range(12)
        for i in range(4)
    ]
    frame = pd.DataFrame(drawn).assign(patch_id=[f"p{i}" for i in range(len(drawn))])

    def make(change=lambda table: table, discourage=("center",)):
        path = folder / f"{np.random.default_rng().integers(1 << 40)}.csv"
        change(frame.copy()).to_csv(path, index=False)
        study, table = Study(name="s", table=path, group="patient"), load_table(path)
        plan = make_plan(study, table)
        return table, plan, Reading.of(table, study, plan, (), discourage, 3)

    return make


def test_unseen_centers_are_those_of_no_training_or_validation_row(opened):
    table, plan, reading = opened()
    ends = reading.endpoints
    assert ends.unseen == UNSEEN
    names = table.frame.center.to_numpy()
    assert set(names[ends.rows[UNSEEN]]) == {"D", "E"}
    assert set(table.frame.split.to_numpy()[ends.rows[UNSEEN]]) == {"mixed", "external"}
    assert list(ends.splits(plan)) == ["internal", "mixed", "external", "overall", UNSEEN]
    _, plan, reading = opened(lambda t: t[t.split != "mixed"])
    assert reading.endpoints.unseen == "external"  # no second name for the rows of one split
    assert UNSEEN not in reading.endpoints.splits(plan)
    in_validation = opened(lambda t: t.assign(center=t.center.where(t.split != "val", "D")))[2].endpoints
    assert set(names[in_validation.rows[UNSEEN]]) == {"E"}
    without = Endpoints.of(*opened(lambda t: t.drop(columns="center"), ())[:2])
    assert (without.rows, without.unseen, without.notes) == ({}, "", ())


def test_rows_without_a_center_are_left_out_and_noted(opened):
    change = lambda t: t.assign(center=t.center.mask(t.patient == "external-0"))  # noqa: E731
    reading = opened(change)[2]
    assert [n for n in reading.notes if "have no center" in n] == [
        "4 rows of external have no center and are not part of its weighted scores."
    ]
    assert len(reading.endpoints.rows["external"]) == 44


def test_the_default_contrast_is_declared_or_falls_back_with_a_note(opened):
    _, plan, reading = opened()
    assert declare(None, ["guided"], plan, reading) == (Contrast("guided", UNSEEN, "auc_weighted"), [])
    assert declare(None, ["other"], plan, reading) == (None, [])
    assert declare("none", ["guided"], plan, reading) == (None, [])
    _, plan, seen = opened(lambda t: t.assign(center="A"), ())
    contrast, [note] = declare(None, ["guided"], plan, seen)
    assert str(contrast) == "guided:internal:auc"
    assert note == "The primary contrast is the AUC on internal, as no split has a center that training does not have."
    one_class = lambda t: t.assign(label=t.label.mask((t.center == "E") & (t.split != "val"), "n"))  # noqa: E731
    _, plan, refused = opened(one_class)
    contrast, [note] = declare(None, ["guided"], plan, refused)
    assert str(contrast) == "guided:internal:auc"
    assert note.endswith("as its weighted AUC is not defined on unseen.")
    [doubt] = [n for n in refused.notes if " external:" in n]
    assert doubt.kind == "confounded"
    assert doubt == "Weighted scores are not defined on external: there is no row of t in center E."
    with pytest.raises(InputError, match="auc_weighted is not defined on external, as there is no row of t in center"):
        declare("guided:external:auc_weighted", ["guided"], plan, refused)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gided:external:auc", "primary, run: 'gided' is not known; near names: guided"),
        ("guided", "primary: must be RUN:SPLIT:METRIC or none, nothing follows 'guided'"),
        ("guided:extern:auc", "primary, split: 'extern' is not known; near names: external"),
        ("guided:external", "primary: must be RUN:SPLIT:METRIC or none, nothing follows 'external'"),
        ("guided:external:auk", "primary: 'auk' is not known; near names: auc"),
        ("guided:external:mlp:center", "primary: 'mlp:center' is not known"),
    ],
)
def test_a_contrast_that_is_not_compared_is_refused(opened, text, sentence):
    _, plan, reading = opened()
    with pytest.raises(InputError, match=sentence):
        declare(text, ["guided", "random"], plan, reading)


def test_names_with_colons_are_read_from_what_is_compared(opened):
    _, plan, reading = opened()
    runs = ["a, x=fixed", "a, x=fixed:0.1"]
    contrast, _ = declare("a, x=fixed:0.1:internal:kernel:center", runs, plan, reading)
    assert contrast == Contrast("a, x=fixed:0.1", "internal", "kernel:center")


# --- kernel probe ------------------------------------------------------------------------------------------------


def test_the_kernel_probe_reads_what_a_linear_one_cannot():
    rng = np.random.default_rng(1)
    X, patients = rng.normal(size=(400, 6)), np.repeat(np.arange(40), 10).astype(str)
    same = np.where(X[:, 0] * X[:, 1] > 0, "same", "other").astype(object)
    target = make_target("same", "categorical", same, patients)
    assert target.score(held_out_kernel(X, target)) > 0.75
    assert target.score(held_out(X, [target])[0]) < 0.6
    ring = make_target("ring", "continuous", X[:, 0] ** 2 + X[:, 1] ** 2 + 0.3 * rng.normal(size=400), patients)
    assert ring.score(held_out_kernel(X, ring)) > 0.6
    assert ring.score(held_out(X, [ring])[0]) < 0.1
    chance = make_target("chance", "categorical", rng.permutation(same), patients)
    assert abs(chance.score(held_out_kernel(X, chance)) - 0.5) < 0.12  # the control


def test_the_kernel_probe_loses_little_where_a_linear_one_is_right():
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(30), 8)
    X = rng.normal(size=(240, 20)) + rng.normal(size=(30, 20))[patients]
    y = X @ rng.normal(size=20) + rng.normal(size=240)
    target = make_target("y", "continuous", y, patients.astype(str))
    linear, kernel = target.score(held_out(X, [target])[0]), target.score(held_out_kernel(X, target))
    assert linear > 0.85
    assert kernel > linear - 0.05


# --- terminal ----------------------------------------------------------------------------------------------------


def printed(record):
    console = Console(width=100, highlight=False, file=io.StringIO())
    show_record(console, record)
    return console.file.getvalue()


def test_the_terminal_is_led_by_the_primary_contrast_and_no_table_is_split():
    weighted = {f"{m}_weighted": 0.7 for m in ("auc", "balanced_accuracy", "brier", "ece")}
    runs = [guide_run(name, 0) for name in ("baseline", "guided")]
    runs = [dataclasses.replace(r, metrics={**r.metrics, "external": r.metrics["external"] | weighted}) for r in runs]
    scores = ("auc_weighted", "auc", "balanced_accuracy_weighted", "brier_weighted", "ece_weighted", "kernel:center")
    made = [
        dataclasses.replace(difference(m, -0.0123, 0.01, "external"), p=0.01, q=0.02, n_effective=19.4) for m in scores
    ]
    made[0] = dataclasses.replace(made[0], primary=True, q=None)
    text = printed(guide_record(runs=tuple(runs), differences=tuple(made), effective_groups={"external": 19.4}))
    lines = text.splitlines()
    assert lines[0].startswith("● Primary contrast, weighted AUC on external: lower, −0.012 [−0.022, −0.002] (guided")
    assert "23 patients, effective number 19.4; p = 0.010" in " ".join(lines[:2])
    assert max(map(len, lines)) <= 100
    at = next(k for k, line in enumerate(lines) if line.startswith("Paired differences: guided against baseline"))
    assert all(name in " ".join(lines[at : at + 4]) for name in ("what", "split", "difference", "q", "verdict"))
    table = [line for line in lines[at:] if line.startswith("│")][: len(scores)]
    assert sum("●" in line for line in table) == len(scores)
    assert sum("23 (19.4)" in line for line in table) == len(scores)
    assert "effective" in text
    assert "19.4" in text


def test_a_secondary_difference_needs_q_as_well():
    one = dataclasses.replace(difference("auc", 0.05), p=0.03, q=0.2)
    assert "Open whether guiding raised the AUC" in printed(guide_record(differences=(one,), discourage=()))
    sure = dataclasses.replace(one, q=0.04)
    assert "Guiding raised the AUC" in printed(guide_record(differences=(sure,), discourage=()))
