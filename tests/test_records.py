"""Records: typed notes and metrics, reading and writing, and what a notebook shows of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import time
from io import StringIO
from pathlib import Path
from typing import get_args

import pytest
from matplotlib.figure import Figure
from report_records import difference, grid_record, guide_record, noted_rows, probe_record, probe_row
from rich.console import Console
from test_attribution_tables import attribute_row
from test_verdicts import audit_row

import conceptkit as ck
from conceptkit.cli.console import show_record
from conceptkit.errors import InputError
from conceptkit.records import (
    AttributeRecord,
    AuditRecord,
    Metric,
    Note,
    PredictivityRecord,
    ProbeRecord,
    RobustnessCell,
    RobustnessDifference,
    RobustnessRecord,
    RobustnessRow,
    load_record,
)
from conceptkit.records.bags import AttentionScore, BagScore, BagsRecord
from conceptkit.records.predictivity import PredictivityRow
from conceptkit.records.texts import DOUBTS, NoteKind
from conceptkit.report.contents import notes_of


def bags_record() -> BagsRecord:
    common = {"run": "guided", "seed": 0, "split": "internal", "auc": 0.8, "low": 0.7, "high": 0.9, "n": 9}
    guide = {f.name: getattr(guide_record(), f.name) for f in dataclasses.fields(guide_record())}
    scores = (BagScore(**common, n_groups=20),)
    attention = (AttentionScore(**common, n_groups=20),)
    return BagsRecord(**guide, by="slide", label_rule="any tumor", scores=scores, attention=attention)


def audit_record() -> AuditRecord:
    rows = (audit_row(), audit_row(erased=True))
    values = {"concept": "center", "kind": "categorical", "discouraged": True, "head": None, "layers": (), "auc": 0.9}
    return AuditRecord(study="s", group="patient", rows=rows, **values)


def predictivity_record() -> PredictivityRecord:
    common = {"split": "external", "auc": 0.8, "low": 0.7, "high": 0.9, "n_groups": 20, "sd": 0.0, "seeds": (0.8,)}
    return PredictivityRecord(study="s", rows=(PredictivityRow(inputs=("count",), role="concept", **common),))


def robustness_record() -> RobustnessRecord:
    place = {"encoder": "uni", "model": "uni", "weights": "uni.npy", "layer": "features"}
    ends = {"low": 0.7, "high": 0.9}
    row = RobustnessRow(
        **place, **ends, index="RI", value=0.8, n=90, n_rows=80, n_patients=20, without_center={"A": 0.7}
    )
    pair = {"encoder": "uni", "against": "conch", "layer": "features", "against_layer": "features"}
    difference = RobustnessDifference(**pair, **ends, index="RI", mean=0.8, p=0.01, q=0.02, n_groups=20)
    cell = RobustnessCell(center="A", label="tumor", n_rows=40, n_patients=12)
    return RobustnessRecord(study="s", group="patient", rows=(row,), differences=(difference,), cells=(cell,))


RECORDS = {
    "probe": lambda: probe_record(rows=noted_rows()),
    "guide": guide_record,
    "grid": grid_record,
    "bags": bags_record,
    "audit": audit_record,
    "attribute": lambda: AttributeRecord(study="s", group="patient", rows=(attribute_row(),)),
    "predictivity": predictivity_record,
    "robustness": robustness_record,
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_read_as_it_was_written(kind, tmp_path):
    record = dataclasses.replace(RECORDS[kind](), notes=(Note("leakage", "LEAKAGE: odd."), "Plain."))
    record.save(tmp_path)
    body = json.loads((tmp_path / "record.json").read_text())
    assert body["notes"] == ["LEAKAGE: odd.", "Plain."]
    assert body["note_kinds"] == ["leakage", "note"]
    again = load_record(tmp_path)
    # NaN differs from itself, so that the JSON is compared
    assert json.dumps(again.to_dict(), default=str) == json.dumps(record.to_dict(), default=str)
    assert [note.kind for note in again.notes] == ["leakage", "note"]


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_without_the_typed_forms_is_read_too(kind, tmp_path):
    record = dataclasses.replace(RECORDS[kind](), notes=("LEAKAGE: odd.",))

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("note_kinds", "metric_parts")}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    (tmp_path / "record.json").write_text(ck.records.to_json(plain(record.to_dict())))
    again = load_record(tmp_path)
    assert [(note, note.kind) for note in again.notes] == [("LEAKAGE: odd.", "note")]
    for d in getattr(again, "differences", ()) if kind != "robustness" else ():  # of indices
        assert isinstance(d.metric, Metric)


def test_the_page_of_the_json_names_every_kind_of_note():
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    table = text.partition("### Kinds of notes")[2].partition("## probe")[0]
    assert set(re.findall(r"`(\w+)`", table.partition("| --- | --- |")[2])) - {"probe"} == set(get_args(NoteKind))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("auc", ("auc", "", "", "")),
        ("auc_within_center", ("auc", "", "", "center")),
        ("probe:count", ("score", "probe", "count", "")),
        ("mlp:a:b", ("score", "mlp", "a:b", "")),
        ("probe:", ("probe:", "", "", "")),
        ("odd:thing", ("odd:thing", "", "", "")),
    ],
)
def test_a_metric_has_parts_and_is_its_text(text, parts):
    metric = Metric.of(text)
    assert (metric.name, metric.reader, metric.concept, metric.within) == parts
    assert metric == text == Metric(metric.name, reader=metric.reader, concept=metric.concept, within=metric.within)
    for same in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), difference(text, 0.1).metric):
        assert same.parts == metric.parts


def test_a_note_has_a_kind_that_is_known():
    note = Note("ceiling", "ceiling: r = 1.")
    assert (copy.deepcopy(note).kind, pickle.loads(pickle.dumps(note)).kind) == ("ceiling", "ceiling")
    assert Note.of(note) is note
    assert Note.of("any").kind == "note"
    with pytest.raises(ValueError, match="must be one of"):
        Note("odd", "text")


def test_a_note_of_a_row_keeps_its_kind_and_doubt_is_by_kind_not_by_words():
    record = probe_record(rows=noted_rows(), notes=("LEAKAGE is a word here.",))
    assert [note.kind for note in notes_of(record)] == ["note", "note", "ceiling", "adjusted"]
    assert not [note for note in notes_of(record) if note.kind in DOUBTS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"note_kinds": ["note"], "notes": [3]}, r"record\.notes\[0\] is 3"),
        ({"note_kinds": ["odd"], "notes": ["a"]}, "must be one of"),
        ({"note_kinds": [], "notes": ["a"]}, "notes are 1, their kinds 0"),
        ({"rows": [{"model": "m"}]}, r"record\.rows\[0\] has no 'weights'"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"study": None}, r"record\.study is None"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_its_place(change, said, tmp_path):
    body = ProbeRecord(study="s", rows=()).to_dict()
    (tmp_path / "record.json").write_text(json.dumps({**body, **change}))
    with pytest.raises(InputError, match=said):
        load_record(tmp_path)


# --- notebooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECORDS)
def test_a_notebook_shows_a_short_text_a_table_and_one_figure(kind):
    record = RECORDS[kind]()
    assert len(repr(record)) < 120
    assert record._repr_html_().count("<table") >= 1
    assert isinstance(record.plot(), Figure)
    assert isinstance(ck.plot(record), Figure)


def test_a_hundred_thousand_rows_are_shown_in_seconds():
    row = probe_row()
    rows = tuple(
        dataclasses.replace(row, layer=f"layer{k // 1000}", concept=f"concept{k % 1000}") for k in range(100_000)
    )
    record = ProbeRecord(study="s", group="patient", rows=rows)
    start = time.monotonic()
    figure = record.plot()
    assert figure.axes[0].get_title(loc="left") == "1000 concepts at 100 layers"
    assert figure.axes[0].images[0].get_array().shape == (1000, 100)
    assert "100000 rows" in repr(record)
    assert "first 60 of 100000 rows" in record._repr_html_()
    assert len(record._repr_html_()) < 50_000
    assert time.monotonic() - start < 30


# --- terminal ----------------------------------------------------------------------------------------------------


def printed(record, **options) -> str:
    stream = StringIO()
    show_record(Console(file=stream, width=100, highlight=False), record, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", RECORDS)
def test_tables_fit_a_hundred_columns_and_break_no_word(kind):
    text = printed(RECORDS[kind](), verbose=True)
    lines = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
    assert lines
    assert max(map(len, lines)) <= 100
    cells = [cell.strip() for line in lines if line[0] == "│" for cell in line.strip("│").split("│")]
    assert not [cell for cell in cells if cell == ""]  # a cell that is broken leaves blanks beside its second line
    words = {word for line in lines if line[0] == "┃" for word in line.replace("┃", " ").split()}
    assert words & {"layer", "concept", "network", "encoder", "inputs", "split", "AUC"}


def test_the_controls_come_with_verbose_and_columns_of_dashes_do_not_come():
    record = probe_record(rows=tuple(probe_row(layer, score_random_concept=0.1) for layer in ("a", "b")))
    assert "selectivity" not in printed(record, verbose=True)  # no row has one
    assert "Controls and baselines" not in printed(record)
    assert "Controls and baselines" in printed(record, verbose=True)


def test_long_names_that_differ_stay_different():
    names = [f"Medical Centre of Somewhere-on-the-River, scanner {k} Hamamatsu" for k in range(2)]
    text = printed(probe_record(rows=tuple(probe_row("mixed0", name) for name in names)))
    table = "".join(line for line in text.splitlines() if line.startswith("│"))
    assert "Centre of Somewhere-on-the-River" not in table
    assert "0 Hamamatsu" in table
    assert "1 Hamamatsu" in table
