"""What the table alone shows is said before any activation is read; one impossible concept stops no other."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import write_study

import conceptkit as ck
from conceptkit.commands.probe_arrays import probe_arrays
from conceptkit.errors import InputError
from conceptkit.evaluate.intervals import LEAST_LOW, r2_interval
from conceptkit.features import activations
from conceptkit.models.backbones import open_backbone
from conceptkit.models.checkpoints import save_checkpoint
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.guide import run_guide
from conceptkit.records import to_json
from conceptkit.report.verdicts import probe_verdicts
from conceptkit.tables.patches import PatchTable


class Read(Exception):  # noqa: N818  # what a run reaches that the table lets pass
    """Activations or pixels were read."""


@pytest.fixture
def nothing_read(monkeypatch):
    def read(*given, **options):
        raise Read

    monkeypatch.setattr(activations, "gather", read)
    monkeypatch.setattr(activations, "read_pixels", read)
    monkeypatch.setattr(PatchTable, "pixels", read)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    backbone = open_backbone("mini_inception")
    tasks = [
        Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
        Task(name="center", kind="categorical", classes=("A", "B", "C", "D"), adversarial=True),
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GuidedModel(backbone.module, 256, tasks, trunk=(8,)).eval()
    folder = tmp_path_factory.mktemp("guided") / "checkpoint"
    save_checkpoint(model, backbone, folder)
    return folder


def probe(study, checkpoint, concepts, folds, out):
    ck.run_probe(study, concepts=concepts, folds=folds, out=out)


def attribute(study, checkpoint, concepts, folds, out):
    ck.Attribute(model=str(checkpoint), layers=["mixed10"], concepts=concepts, folds=folds).run(study, out=out)


def audit(study, checkpoint, concepts, folds, out):
    ck.Audit(checkpoint=checkpoint, concept=concepts[0], folds=folds).run(study=study, out=out)


def guide(study, checkpoint, concepts, folds, out):
    run_guide(study, encourage=concepts, discourage=[], folds=folds, out=out)


def bags(study, checkpoint, concepts, folds, out):
    options = {"by": "patient", "label": "bag_label", "encourage": concepts, "discourage": []}
    ck.Bags(**options, folds=folds).run(study, out=out)


def grid(study, checkpoint, concepts, folds, out):
    ck.Grid(ablate="; ".join(concepts), folds=folds).run(study, out=out)


RUNS = [probe, attribute, audit, guide, bags, grid]


@pytest.fixture(scope="module")
def bagged(table, tmp_path_factory):
    """The small study with a label that patients have."""
    number = table.groupby("split").patient.transform(lambda own: pd.factorize(own)[0])
    return write_study(tmp_path_factory.mktemp("bags"), table.assign(bag_label=np.where(number % 2, "yes", "no")))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("concepts", "folds", "words"),
    [
        (["void"], 3, "concept: void has no value"),
        (["constant"], 3, "concept: constant (is constant|has one value only)"),
        (["only"], 3, "concept: only (has one class only|needs two classes)"),
        (["count"], 50, "folds: 50 folds need at least 50 groups"),
    ],
)
def test_what_the_table_shows_is_refused_before_anything_is_read(
    run, concepts, folds, words, bagged, checkpoint, nothing_read, tmp_path
):
    with pytest.raises(InputError, match=words):
        run(bagged, checkpoint, concepts, folds, tmp_path / "run")
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize("run", [one for one in RUNS if one is not audit])
def test_one_impossible_concept_stops_no_other(run, bagged, checkpoint, nothing_read, tmp_path):
    with pytest.raises(Read):
        run(bagged, checkpoint, ["void", "count"], 3, tmp_path / "run")


def with_lone_center(table):
    """The table, whose centers have one patient each in the internal split but for two."""
    internal = table[table.split == "internal"]
    kept = internal.groupby("center").patient.min().to_dict()
    drop = (table.split == "internal") & table.center.isin(["C", "D"]) & (table.patient != table.center.map(kept))
    return table[~drop]


def test_guiding_says_first_what_it_cannot_learn_and_read(table, nothing_read, tmp_path):
    study = write_study(tmp_path, with_lone_center(table))
    said = []
    options = {"encourage": ["count", "void"], "discourage": ["center"], "folds": 3}
    with pytest.raises(Read):
        run_guide(study, **options, out=tmp_path / "run", notify=said.append)
    (text,) = said
    assert "\nSkipped: concept: void has no value among the training rows" in text
    assert "\nRead on the internal rows, center: " in text
    assert "each of these classes is in one group only: C, D." in text
    outline = ck.Guide(encourage=["count", "void"], discourage=["center"], dry_run=True).run(study)
    assert any("Skipped: concept: void" in note for note in outline.notes)
    assert "void" not in json.dumps(outline.to_dict()["branches"])


def test_a_discouraged_concept_of_one_patient_per_center_is_said_first(table, nothing_read, tmp_path):
    internal = table.split == "internal"
    kept = table[internal].groupby("center").patient.min()
    study = write_study(tmp_path, table[~internal | table.patient.isin(kept)])
    said = []
    with pytest.raises(Read):
        run_guide(study, discourage=["center"], folds=3, out=tmp_path / "run", notify=said.append)
    assert "center cannot be read on the internal rows: concept: center has the class 'A' in one group only" in said[0]


@pytest.mark.parametrize("concept", ["latent:2", "latent:2+mixed10"])
def test_folds_are_counted_before_latent_domains_are_read(concept, study, checkpoint, nothing_read, tmp_path):
    with pytest.raises(InputError, match="50 folds need at least 50 groups, the internal rows have 8"):
        run_guide(study, discourage=[concept], folds=50, out=tmp_path / "run")
    with pytest.raises(InputError, match="no column 'nothing'"):
        run_guide(study, encourage=["nothing"], discourage=[concept], folds=3, out=tmp_path / "run")
    with pytest.raises(InputError, match="50 folds need at least 50 groups"):
        ck.Audit(checkpoint=checkpoint, concept=concept, folds=50).run(study=study, out=tmp_path / "run")


def test_models_of_a_grid_with_an_impossible_concept_are_skipped(study, nothing_read, tmp_path):
    cells = ck.Grid(ablate="count; void; count, -center", dry_run=True).run(study).cells
    assert {name for cell in cells for name in cell.encourage} == {"count", "random target"}
    assert {name for cell in cells for name in cell.discourage} == {"center"}
    said = []
    with pytest.raises(Read):
        ck.Grid(ablate="count; void", folds=3).run(study, out=tmp_path / "grid", notify=said.append)
    assert "Skipped: concept: void has no value among the training rows" in "".join(said)
    measured = (
        ck.Grid(ablate=None, affinity=True, encourage=["count", "void"], discourage=["center"], dry_run=True)
        .run(study)
        .cells
    )
    assert [cell.name for cell in measured if cell.encourage or cell.discourage] == []
    with pytest.raises(InputError, match="ablate: no model is left without void"):
        ck.Grid(ablate="count, void", dry_run=True).run(study)


def test_predictivity_goes_on_without_a_column_that_does_not_vary(table, tmp_path):
    study = write_study(tmp_path, table)
    record = ck.Predictivity(concepts=["count", "void", "only"], alone=[], seeds=(0,)).run(study, out=tmp_path / "p")
    assert record.settings["concepts"] == ["count"]
    assert [note for note in record.notes if note.startswith("Skipped: concept: void has no value")]
    assert [note for note in record.notes if note.startswith("Skipped: concept: only has one class only")]
    with pytest.raises(InputError, match="void has no value"):
        ck.Predictivity(concepts=["void"], alone=[], seeds=(0,)).run(study, out=tmp_path / "q")


# Bare arrays


def arrays(n=60, d=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), np.repeat(np.arange(n // 6), 6)


FEW = {"folds": 3, "permutations": 0, "n_resamples": 50}


def test_arrays_skip_concepts_and_lone_classes():
    X, groups = arrays()
    classes = np.where(groups == 0, "lone", np.where(groups % 2, "a", "b"))
    concepts = {"y": X[:, 0] + groups, "void": np.full(60, np.nan), "c": classes}
    record = probe_arrays(X, concepts, groups, **FEW)
    assert [row.concept for row in record.rows] == ["y", "c"]
    assert record.rows[1].n == 54
    assert record.settings["concepts"] == ["y", "c"]
    assert "c: 6 rows skipped, as each of these classes is in one group only: lone." in record.notes
    assert "Skipped: concept: void has no value in any of the 60 rows." in record.notes
    with pytest.raises(InputError, match="11 folds need at least 11 groups"):
        probe_arrays(X, concepts, groups, **{**FEW, "folds": 11})


def test_a_concept_among_the_features_is_refused_or_noted():
    X, groups = arrays()
    y = X[:, 1] + groups
    frame = pd.DataFrame(X, columns=["a", "b", "c", "count"])
    with pytest.raises(InputError, match=r"X: column 'count' is the concept 'count'"):
        probe_arrays(frame, {"count": y}, groups, **FEW)
    partly = np.where(np.arange(60) % 3, X[:, 1], np.nan)
    with pytest.raises(InputError, match=r"X\['l'\]: column 'b' is the concept 'area'"):
        probe_arrays({"l": frame.astype("float32")}, {"area": partly}, groups, ids=np.arange(60)[::-1], **FEW)
    grades = frame.assign(a=np.arange(60) % 3)
    with pytest.raises(InputError, match=r"X: column 'a' is the concept 'grade'"):
        probe_arrays(grades, {"grade": np.arange(60) % 3}, groups, categorical=["grade"], **FEW)
    assert probe_arrays(frame, {"area": y}, groups, **FEW).notes == ()
    noted = probe_arrays(X, {"area": X[:, 1]}, groups, **FEW).notes
    assert noted[0].startswith("Feature 1 (counted from 0) of X equals the concept area in every row")


def test_whole_numbers_are_the_same_groups_in_every_type():
    X, groups = arrays()
    y = X[:, 1] + groups
    rows = [
        probe_arrays(X, {"y": y}, given, **FEW).rows[0]
        for given in (
            groups,
            groups.astype(float),
            pd.Series(groups, dtype="Int64"),
            [1.0 * g if i % 2 else int(g) for i, g in enumerate(groups)],
        )
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert rows[0].n_groups == 10
    with pytest.raises(InputError, match=r"groups: it holds '0' and '0.0'"):
        probe_arrays(X, {"y": y}, [f"{g}.0" if i % 2 else str(g) for i, g in enumerate(groups)], **FEW)
    with pytest.raises(InputError, match="groups: 9007199254740992 is too large to be exact as float64"):
        probe_arrays(X, {"y": y}, groups + 2.0**53, **FEW)
    assert probe_arrays(X, {"y": y}, groups + 2**53, **FEW).rows[0].n_groups == 10


# Intervals that say nothing


def nearly_exact(seed):
    """Four patients; features tell what confounders leave of a concept, far more exactly in some patients."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(4), 10)
    confounder, X = rng.normal(size=40), rng.normal(size=(40, 3))
    left = X[:, 0] + 0.02 * rng.normal(size=40) * np.exp(2 * rng.normal(size=4))[groups]
    return X, confounder, left, groups


@pytest.mark.parametrize("seed", [0, 3])
def test_an_interval_that_begins_far_below_zero_is_not_estimable(seed):
    X, confounder, left, groups = nearly_exact(seed)
    options = {"folds": 3, "permutations": 0, "n_resamples": 200}
    concepts = {"plain": left, "adjusted": confounder + 0.1 * left}
    record = probe_arrays(X, concepts, groups, adjust={"z": confounder}, **options)
    plain, adjusted = record.rows
    assert adjusted.score_adjusted > 0.9
    assert adjusted.score_adjusted_low is None
    assert adjusted.score_adjusted_high is None
    assert [note for note in adjusted.notes if note.startswith("adjusted for z: interval not estimable (")]
    assert plain.score > 0.9
    assert np.isnan([plain.score_low, plain.score_high]).all()
    assert plain.interval_note.startswith("the interval is not estimable: it would begin at R² = -")
    saved = json.loads(to_json(record.to_dict()))["rows"][0]
    assert (saved["score_low"], saved["score_high"]) == (None, None)
    assert "nan" not in " ".join(verdict.text for verdict in probe_verdicts(record)).lower()


def test_an_interval_just_above_the_limit_keeps_its_ends():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    y = rng.normal(size=120)
    predicted = y + 2.0 * rng.normal(size=120)
    deleted = np.array([((y - predicted) ** 2)[groups != g].sum() for g in range(12)])
    found = r2_interval(y, predicted, groups, deleted, groups, n_resamples=200)
    assert LEAST_LOW < found.low < -5 < found.high
