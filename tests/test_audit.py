"""The audit: fresh probes find what is left of a concept, and say so; erasure is the reference for gone."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from small_study import TAKEN, small_table, write_study
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands.report import write_report
from conceptkit.errors import InputError
from conceptkit.evaluate.scores import balanced_accuracy
from conceptkit.options.guide import run_guide
from conceptkit.probe.remnants import (
    a_distance,
    cost_of_erasure,
    permuted_agreement,
    read_remnant,
    read_remnants,
    scores_within,
)
from conceptkit.probe.targets import make_target
from conceptkit.records import AuditRecord, load_record, to_json
from conceptkit.records.audit import AuditRow
from conceptkit.report.audit_tables import PROBES as WORDS
from conceptkit.report.audit_tables import audit_tables, audit_verdicts, holm, readers, remnant_table
from conceptkit.report.judging import MARKS
from conceptkit.report.table import shown
from conceptkit.report.wording import interval

DRAWS = 80
"""Data sets of the simulation of all probes; each costs 12 small fits"""


def some_rows(n_groups=40, per=10, d=8, shift=2.0, seed=0, curved=False):
    """Centers 'a' and 'b' by patient; a shift of the mean, or of the spread alone (which no straight line reads)."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per)
    center = np.arange(n_groups) % 2
    X = rng.normal(size=(len(groups), d)) + 0.3 * rng.normal(size=(n_groups, d))[groups]
    code = center[groups]
    if curved:
        X[:, :4] *= np.where(code == 1, 1 + shift, 1.0)[:, None]
    else:
        X[:, 0] += shift * code
    values = np.array(["ab"[c] for c in code], dtype=object)
    return X, make_target("center", "categorical", values, groups), rng


def test_each_probe_finds_what_is_of_its_kind():
    X, target, _ = some_rows()
    for reader in ("linear", "mlp", "kernel"):
        found = read_remnant(X, target, reader, permutations=199)
        assert found.score > (0.65 if reader == "mlp" else 0.75)
        assert found.tested.p == 1 / 200
        assert found.interval.low < found.score < found.interval.high
        assert found.tested.permuted == "groups"
        assert found.score == pytest.approx(balanced_accuracy(target.y, found.predicted, 2))
    X, target, _ = some_rows(curved=True)
    assert read_remnant(X, target, "linear", permutations=0).score < 0.6
    assert read_remnant(X, target, "kernel", permutations=0).score > 0.75


def test_after_erasure_the_linear_probe_is_inside_its_permutations():
    X, target, _ = some_rows()
    linear = read_remnant(X, target, "linear", erased=True, permutations=199)
    assert linear.tested.p > 0.05
    assert abs(linear.score - 0.5) < 0.12
    X, target, _ = some_rows(curved=True, shift=3.0)
    assert read_remnant(X, target, "kernel", erased=True, permutations=0).score > 0.75  # only what is linear goes


def test_a_value_is_read_and_erased_too():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), 10)
    X = rng.normal(size=(300, 6))
    target = make_target("size", "continuous", X @ np.arange(6.0) + rng.normal(size=300), groups)
    for reader in ("linear", "mlp", "kernel"):
        assert read_remnant(X, target, reader, permutations=0).score > 0.6
    assert read_remnant(X, target, "linear", erased=True, permutations=0).score < 0.05
    assert read_remnant(X, target, "linear", permutations=99).tested.permuted == "within"


@pytest.mark.parametrize("level", ["groups", "within"])
def test_p_is_calibrated_where_nothing_is_left(level):
    """Share of p below 0.05 over data sets without a relation, by the probes' own held-out predictions."""
    hits = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(16), 8)
        X = rng.normal(size=(128, 5)) + rng.normal(size=(16, 5))[groups]
        if level == "groups":
            values = np.array(["ab"[c] for c in rng.permutation(np.arange(16) % 2)[groups]], dtype=object)
            target = make_target("c", "categorical", values, groups)
        else:
            target = make_target("c", "continuous", rng.normal(size=128), groups)
        hits.append(read_remnant(X, target, "linear", folds=4, permutations=99, n_resamples=10).tested.p < 0.05)
    assert np.mean(hits) <= 0.1  # 0.05 plus two standard errors of 80 draws


def test_rows_permuted_one_by_one_would_mislead():
    """The control: predictions that know the patient, not the center, look significant when rows are permuted."""
    rng = np.random.default_rng(0)
    naive, honest = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(10), 30)
        code = rng.permutation(np.arange(10) % 2)[groups]
        predicted = rng.integers(0, 2, 10)[groups]
        values = np.array(["ab"[c] for c in code], dtype=object)
        by_group = make_target("c", "categorical", values, groups)
        splits = by_group.folds(5)
        honest.append(permuted_agreement(by_group, predicted, splits, 99, 0).p < 0.05)
        by_row = dataclasses.replace(by_group, groups=None)
        naive.append(permuted_agreement(by_row, predicted, splits, 99, 0).p < 0.05)
    assert np.mean(naive) > 0.25
    assert np.mean(honest) < 0.15


def test_the_distance_is_0_alike_and_2_apart():
    assert abs(a_distance(*some_rows(shift=0.0)[:2])) < 0.5
    assert a_distance(*some_rows(shift=12.0)[:2]) > 1.9


def test_erasure_costs_what_the_label_owes_to_the_concept():
    X, target, rng = some_rows(shift=3.0)
    by_center = np.where(rng.random(len(X)) < 0.9, target.y, 1 - target.y)
    by_other = (X[:, 1] > 0).astype(np.intp)
    before, after = cost_of_erasure(X, target, by_center, 2)
    assert before > 0.75
    assert after < 0.6
    before, after = cost_of_erasure(X, target, by_other, 2)
    assert before > 0.95
    assert after > before - 0.02


def test_scores_within_levels_leave_out_what_is_missing():
    label = np.array([0, 1, 0, 1, 1, 1, -1])
    score = np.array([0.1, 0.9, 0.8, 0.2, 0.5, 0.4, 0.3])
    found = scores_within(label, score, ["a", "a", "b", "b", "c", "c", None])
    assert found["a"] == (2, 1.0)
    assert found["b"] == (2, 0.0)
    assert found["c"][0] == 2
    assert np.isnan(found["c"][1])


@pytest.fixture(scope="module")
def checkpoints(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    options = {"unfreeze": (), "trunk": (16,), "epochs": 6, "warmup": 1}
    run_guide(study, encourage=["count"], discourage=["center"], **options, out=folder)
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def record(study, checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return ck.Audit(
        checkpoint=checkpoints / "guided-seed0", concept="center", layers=["mixed10", "trunk"], permutations=99
    ).run(study=study, out=out)


def test_the_record_holds_every_place_and_loads_back(record):
    assert [one.layer for one in record.layers] == ["input", "mixed10", "trunk", "logit"]
    assert {row.probe for row in record.rows} == {"linear", "mlp", "kernel"}
    assert not any(row.erased for row in record.rows if row.layer == "logit")
    assert record.discouraged
    assert record.head is not None
    assert {one.level for one in record.levels} >= {"A", "B"}
    loaded = load_record(record.folder)
    assert isinstance(loaded, AuditRecord)
    assert to_json(loaded.to_dict()) == to_json(record.to_dict())
    assert len(record.to_frame()) == len(record.rows)
    for table in audit_tables(record):
        assert len(shown(table))


def test_nested_slides_go_through_the_study(table, checkpoints, tmp_path):
    slides = table.patient.astype(str) + "-" + (np.arange(len(table)) % 2).astype(str)
    path = write_study(tmp_path / "s", table.assign(block=slides))
    options = {"layers": ["trunk"], "permutations": 19, "folds": 3}
    record = ck.Audit(checkpoint=checkpoints / "guided-seed0", concept="count", nested="block", **options).run(
        path, out=tmp_path / "a"
    )
    assert record.settings["nested"] == "block"
    tested = [row for row in record.rows if not (row.erased and row.probe == "linear")]
    assert {row.assumed for row in tested} == {"groups within each center and rows within each nested unit"}
    assert {row.permuted for row in tested} == {"groups and within"}
    with pytest.raises(InputError, match="nested: every unit must lie in one group"):
        ck.Audit(checkpoint=checkpoints / "guided-seed0", concept="count", nested="center", **options).run(
            path, out=tmp_path / "b"
        )


def test_the_page_has_a_section_of_it(record, tmp_path):
    page = write_report([record.folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert audit_verdicts(record)[0].text.split(":")[0] in page
    assert "what erasing it costs" in page


def at_trunk(record, *, erased=False):
    return {row.probe: row for row in record.rows if row.layer == "trunk" and row.erased == erased}


@pytest.fixture(scope="module")
def confounded(embedded, tmp_path_factory):
    """Networks trained where the label depends on the center, and the audits of them on 36 other patients."""
    folder = tmp_path_factory.mktemp("confounded")
    taken = {"train": (3, 8), "val": (1, 6), "internal": (9, 4), "external": (2, 4)}
    with pytest.MonkeyPatch.context() as patch:
        for split, counts in taken.items():
            patch.setitem(TAKEN, split, counts)
        rows = small_table(embedded)
    path = write_study(folder / "study", rows)
    options = {"unfreeze": (), "trunk": (24,), "epochs": 15, "warmup": 2, "weighting": "vanilla"}
    run = run_guide(path, encourage=[], discourage=["center"], **options, out=folder / "run")
    audits = {
        name: ck.Audit(
            checkpoint=run.folder / "checkpoints" / f"{name}-seed0",
            concept="center",
            layers=["trunk"],
            split="internal",
            permutations=199,
        ).run(study=path, out=folder / name)
        for name in ("baseline", "guided")
    }
    return rows, audits


def test_a_network_whose_adversary_is_at_chance_is_called_still_readable(confounded):
    rows, audits = confounded
    train = rows[rows.split == "train"]
    assert np.ptp((train.label == "tumor").groupby(train.center).mean()) > 0.3  # the label is confounded there
    record = audits["guided"]
    fresh = at_trunk(record)["linear"]
    assert record.discouraged
    assert abs(record.head - fresh.chance) < 0.1  # its own adversary, on patients that it has not seen
    assert fresh.score > record.head + 0.15
    verdict = audit_verdicts(record)[0]
    assert re.match(r"center can still be decoded from trunk \(p [<=] [\d.]+\): balanced accuracy = ", verdict.text)
    assert f"own adversary ({record.head:.2f}) does not show that it is gone" in verdict.text
    # The control: the network that was not guided has no adversary, and nothing is "still" readable from it.
    assert audits["baseline"].head is None
    assert audit_verdicts(audits["baseline"])[0].text.startswith("center can be decoded from trunk")


@pytest.mark.parametrize("name", ["baseline", "guided"])
def test_erasure_takes_what_is_linear_from_a_networks_layer(confounded, name):
    record = confounded[1][name]
    assert at_trunk(record)["linear"].p < 0.01  # the control: before
    after = at_trunk(record, erased=True)["linear"]
    assert after.n_groups == 36
    assert after.p > 0.05
    assert after.score < after.chance + 0.1
    table = remnant_table(record)
    own = table.frame[(table.frame.layer == "trunk") & (table.frame.probe == "linear")]
    assert own["erased p"].item() == after.p
    assert "erased p" in shown(table)


def test_no_probe_that_reads_is_no_proof_of_absence(record):
    gone = dataclasses.replace(record, rows=tuple(dataclasses.replace(r, p=0.6) for r in record.rows))
    assert "center is not shown to be decodable from trunk" in audit_verdicts(gone)[0].text


def test_the_input_tells_the_center(record):
    plain = next(r for r in record.rows if r.layer == "input" and r.probe == "linear" and not r.erased)
    assert plain.score > 0.8


def rows_of(target, found):
    more = {"layer": "trunk", "erased": False, "n": 1, "n_groups": 1, "width": 1, "metric": target.metric}
    return [
        AuditRow(
            **more,
            probe=k,
            score=r.score,
            low=r.interval.low,
            high=r.interval.high,
            chance=target.chance,
            p=r.tested.p,
            permuted=r.tested.permuted,
        )
        for k, r in found.items()
    ]


def test_the_luckiest_of_three_probes_is_corrected():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # the worked example: 3·0.01, 2·0.03, its max
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    row = AuditRow(
        layer="trunk",
        probe="mlp",
        erased=False,
        n=99,
        n_groups=30,
        width=1,
        metric="balanced_accuracy",
        score=0.6,
        low=0.52,
        high=0.7,
        chance=0.5,
        p=0.03,
        permuted="groups",
    )
    three = [row, *(dataclasses.replace(row, probe=name, p=0.4) for name in ("linear", "kernel"))]
    assert readers(three) == []
    assert [(r.probe, p) for r, p in readers([row])] == [("mlp", 0.03)]  # the control: alone it is what it says
    unknown = [dataclasses.replace(r, p=float("nan")) for r in three]
    assert len(readers(unknown)) == 3  # without permutations: clearly above chance


def test_three_independent_ps_are_believed_no_more_often_than_one():
    """Over p-values that are uniform, as where nothing is left; the control is what three uncorrected ones do."""
    p = np.random.default_rng(0).uniform(size=(4000, 3))
    assert np.mean([min(holm(row)) < 0.05 for row in p.tolist()]) == pytest.approx(0.05, abs=0.01)
    assert (p < 0.05).any(axis=1).mean() > 0.12


def test_where_nothing_is_left_no_place_is_called_readable():
    """Share of places called readable, and of each probe's p below 0.05, over data sets without a relation."""
    called, single = [], []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(16), 4)
        X = rng.normal(size=(64, 4)) + rng.normal(size=(16, 4))[groups]
        values = np.array(["ab"[c] for c in rng.permutation(np.arange(16) % 2)[groups]], dtype=object)
        target = make_target("c", "categorical", values, groups)
        found = read_remnants(X, target, folds=4, permutations=99, n_resamples=10)
        called.append(bool(readers(rows_of(target, found))))
        single.append([one.tested.p < 0.05 for one in found.values()])
    reach = 0.05 + 2 * np.sqrt(0.05 * 0.95 / DRAWS)
    assert np.mean(called) <= reach
    assert (np.mean(single, axis=0) <= reach).all()
    # The control: believing any of the three is wrong more often than the correction is.
    assert np.any(single, axis=1).mean() > np.mean(called)


@pytest.mark.parametrize(("permutations", "marks"), [(199, {"●", "○"}), (19, {"○"})])
def test_the_command_says_the_verdict(checkpoints, study, tmp_path, permutations, marks):
    out = tmp_path / "a"
    args = ["audit", str(checkpoints / "baseline-seed0"), "--concept", "count", "--layer", "mixed10"]
    args += ["--study", str(study), "--permutations", str(permutations), "--out", str(out)]
    result = CliRunner().invoke(app, args, catch_exceptions=False, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    record = load_record(out)
    rows = [row for row in record.rows if not row.erased]
    by_place = {name: [row for row in rows if row.layer == name] for name in ("mixed10", "logit")}
    said = {}
    for name, here in by_place.items():
        line = next(one for one in result.output.splitlines() if one[:1] in MARKS.values() and name in one)
        said[name] = line[0]
        # By the numbers of the record: Holm over the three probes, the interval above chance, enough groups.
        sure = [r for r, p in zip(here, holm([r.p for r in here]), strict=True) if p < 0.05 and r.low > r.chance]
        best = max(sure or here, key=lambda row: row.score)
        assert line[0] == ("●" if sure else "○")
        numbers = f"R² = {interval(best.score, best.low, best.high)} ({WORDS[best.probe]} probe), chance 0.00"
        assert numbers in " ".join(result.output.split())  # long sentences are broken into lines
    assert set(said.values()) == marks  # 19 permutations reach no p below 0.05 over three probes
    table = [re.split(r"\s*[│┃|]\s*", line.strip(" │┃")) for line in result.output.splitlines()]
    for row in rows:
        cells = next(one for one in table if one[:2] == [row.layer, WORDS[row.probe]])
        assert cells[2:4] == [interval(row.score, row.low, row.high), f"{row.p:.4f}"]


MISTAKES = {
    "no checkpoint": (["nowhere", "--concept", "center"], "is not a `guide` checkpoint"),
    "unknown concept": (["GUIDED", "--concept", "centre"], "center"),
    "the label": (["GUIDED", "--concept", "label"], "is the main task itself"),
    "unknown layer": (["GUIDED", "--concept", "center", "--layer", "mixed11"], "mixed10"),
    "too many folds": (["GUIDED", "--concept", "center", "--layer", "trunk", "--folds", "500"], "folds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(checkpoints, study, tmp_path, name):
    args, words = MISTAKES[name]
    args = [str(checkpoints / "guided-seed0") if a == "GUIDED" else a for a in args]
    args += ["--study", str(study), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["audit", *args])
    assert result.exit_code == 2
    assert words in result.output
    assert not (tmp_path / "out" / "record.json").exists()


def test_a_concept_of_one_class_is_refused():
    with pytest.raises(InputError, match="one class only"):
        make_target("center", "categorical", np.array(["a"] * 10, dtype=object), None)
