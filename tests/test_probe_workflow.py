"""run_probe: what its record holds, which rows it takes, and the real line from images to held-out scores."""

from __future__ import annotations

import dataclasses
import json
import re
import weakref

import numpy as np
import pytest
from small_study import write_study

import conceptkit as ck
from conceptkit.commands import probe as probing
from conceptkit.commands.probe import _missing_by_label
from conceptkit.errors import InputError
from conceptkit.records import ProbeRecord, load_record
from conceptkit.tables.study import load_study


@pytest.fixture(scope="module")
def record(study, tmp_path_factory):
    """One run over two layers and concepts of both kinds, one of them with gaps."""
    return ck.run_probe(
        study,
        layers=["mixed4", "mixed2"],
        concepts=["count", "center", "partial", "grade"],
        out=tmp_path_factory.mktemp("runs") / "run",
        permutations=0,
    )


def row_of(record, concept, layer="mixed2"):
    (row,) = (r for r in record.rows if (r.concept, r.layer) == (concept, layer))
    return row


# --- the record --------------------------------------------------------------------------------------------------


def test_there_is_one_row_for_each_layer_and_concept_in_the_order_asked_for(record):
    concepts = ["count", "center", "partial", "grade"]
    assert [(r.layer, r.concept) for r in record.rows] == [(la, c) for la in ("mixed4", "mixed2") for c in concepts]
    assert {(r.model, r.weights, r.folds) for r in record.rows} == {("mini_inception", "bundled", 5)}
    assert len(record.to_frame()) == 8


def test_every_option_stands_in_the_settings(record):
    assert set(ck.Probe().settings()) <= set(load_record(record.folder).settings)


def test_the_record_is_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.rows[0].score = 1.0


def test_the_saved_record_is_the_same(record):
    loaded = load_record(record.folder)
    assert isinstance(loaded, ProbeRecord)
    assert loaded == dataclasses.replace(record, settings=loaded.settings)
    # JSON knows lists alone
    assert loaded.settings == json.loads(json.dumps(record.settings))
    assert loaded.folder == record.folder


def test_scores_lie_in_their_intervals_and_beside_their_controls(record):
    for row in record.rows:
        assert row.score_low <= row.score <= row.score_high
        assert row.score <= row.score_in_sample
        assert row.alpha > 0
        assert np.isfinite([row.score_patchwise, row.score_random_network]).all()


def test_an_integer_column_that_may_be_classes_is_pointed_out(record):
    assert row_of(record, "grade").metric == "r2"
    assert [n for n in record.notes if "--categorical grade" in n]
    assert not [n for n in record.notes if "--categorical count" in n]


def test_a_second_run_gives_the_same_numbers(record, study, tmp_path):
    concepts = ["count", "center", "partial", "grade"]
    again = ck.run_probe(study, layers=["mixed2"], concepts=concepts, out=tmp_path / "run", permutations=0)
    assert again.rows == tuple(row_of(record, concept) for concept in concepts)


# --- kinds of concept --------------------------------------------------------------------------------------------


def test_center_is_scored_by_balanced_accuracy_beside_chance(record, table):
    row = row_of(record, "center")
    assert (row.kind, row.metric) == ("categorical", "balanced_accuracy")
    assert row.chance == pytest.approx(1 / table.center.nunique())
    assert row.score > row.chance + 0.2  # stain and blur differ between centers


def test_a_number_is_taken_as_classes_when_asked_for(study, tmp_path):
    record = ck.run_probe(study, concepts=["grade"], categorical=["grade"], out=tmp_path / "run", permutations=0)
    row = row_of(record, "grade")
    assert (row.kind, row.chance) == ("categorical", 0.25)
    assert abs(row.score - row.chance) < 0.15  # the grades were given by turns: there is nothing to read
    assert not [n for n in record.notes if "--categorical" in n]


# --- rows --------------------------------------------------------------------------------------------------------


def test_rows_without_a_value_are_left_out_and_folds_made_on_the_rest(record, study, table, tmp_path):
    row, labelled = row_of(record, "partial"), table[table.partial.notna()]
    assert 0 < len(labelled) < len(table)
    assert (row.n, row.n_groups) == (len(labelled), labelled.patient.nunique())
    assert (row_of(record, "count").n, row_of(record, "count").n_groups) == (len(table), table.patient.nunique())
    rest = ck.run_probe(
        write_study(tmp_path / "rest", labelled), concepts=["count"], out=tmp_path / "run", permutations=0
    )
    alone = row_of(rest, "count")
    # The pixels' places in batches differ, so the activations may differ in their last bits.
    for name in ("score", "score_low", "score_high", "score_in_sample", "score_patchwise", "score_random_network"):
        assert getattr(row, name) == pytest.approx(getattr(alone, name), abs=1e-3), name
    filled = write_study(tmp_path / "filled", table.assign(partial=table.partial.fillna(1.0)))
    guessed = ck.run_probe(filled, concepts=["partial"], out=tmp_path / "filled-run", permutations=0)
    assert row.score - row_of(guessed, "partial").score > 0.2  # the control: guessing a value costs the score


def test_only_the_rows_of_a_split_are_used_when_it_is_named(study, table, tmp_path):
    record = ck.run_probe(study, concepts=["count"], split="internal", out=tmp_path / "run", permutations=0)
    row, part = row_of(record, "count"), table[table.split == "internal"]
    assert (row.n, row.n_groups) == (len(part), part.patient.nunique())
    assert record.settings["split"] == "internal"
    alone = ck.run_probe(
        write_study(tmp_path / "part", part), concepts=["count"], out=tmp_path / "part-run", permutations=0
    )
    assert row.score == pytest.approx(row_of(alone, "count").score, abs=1e-3)


def test_without_groups_the_result_itself_says_so(study, tmp_path, table):
    bare = tmp_path / "bare.csv"
    table.drop(columns="patient").to_csv(bare, index=False)
    record = ck.run_probe(
        table=bare, model="mini_inception", layers=["mixed2"], concepts=["count"], out=tmp_path / "run", permutations=0
    )
    row = row_of(record, "count")
    assert record.group is None
    assert row.n_groups == row.n == len(table)
    assert [n for n in record.notes if "rows were treated as independent" in n]


# --- what is asked for beside the score ----------------------------------------------------------------------------


def test_confounders_held_out_centers_and_repeats_go_through_the_study(table, tmp_path):
    rng = np.random.default_rng(0)
    stain = {f"stain_{name}": rng.normal(size=len(table)) + (table.center == table.center[0]) for name in ("h", "e")}
    patient = table.patient.where(table.index != 0, table.patient.iloc[-1])  # a patient of two centers
    study = write_study(tmp_path / "s", table.assign(**stain, patient=patient, again=table["count"] + 1, flat=1.0))
    options = {"concepts": ["count"], "permutations": 0, "leave_out": "center"}
    record = ck.run_probe(study, adjust=["grade", "stain"], repeat={"count": "again"}, out=tmp_path / "a", **options)
    row = row_of(record, "count")
    assert row.adjusted_for == ("grade", "stain_h", "stain_e")
    assert row.score_adjusted_low < row.score_adjusted < row.score_adjusted_high
    assert (row.leave_out, row.repeated_as, row.ceiling) == ("center", "again", pytest.approx(1))
    assert row.score_leave_out is not None
    assert [n for n in row.notes if "leave-out center: 1 of" in n and "both sides" in n]
    assert record.settings["adjust"] == ["grade", "stain_h", "stain_e"]
    plain = row_of(ck.run_probe(study, repeat={"count": "flat"}, out=tmp_path / "b", **options), "count")
    assert (plain.adjusted_for, plain.score_adjusted, plain.ceiling) == ((), None, None)
    assert [n for n in plain.notes if "ceiling: not estimable" in n]
    for name in ("score", "score_leave_out"):
        assert plain[name] == row[name]  # neither is moved by what else is asked


def test_centers_and_nested_slides_go_through_the_study(table, tmp_path):
    slides = table.patient.astype(str) + "-" + (np.arange(len(table)) % 2).astype(str)
    study = write_study(tmp_path / "s", table.assign(block=slides, site=table.center))
    options = {"concepts": ["count", "center"], "permutations": 19}
    record = ck.run_probe(study, nested="block", out=tmp_path / "a", **options)
    row = row_of(record, "count")
    assert row.leave_out == "center"
    assert row.score_leave_out is not None
    itself = row_of(record, "center")  # a held-out center cannot be predicted
    assert (itself.leave_out, itself.score_leave_out) == (None, None)
    assert (row.permuted, itself.permuted) == ("groups and within", "groups")
    assert row.assumed == "groups within each center and rows within each nested unit"
    assert (record.settings["center"], record.settings["nested"]) == ("center", "block")
    named = row_of(ck.run_probe(study, center="site", out=tmp_path / "b", **options), "count")
    assert (named.leave_out, named.score_leave_out, named.score) == ("site", row.score_leave_out, row.score)
    free = row_of(ck.run_probe(study, center="none", out=tmp_path / "c", **options), "count")
    assert (free.leave_out, free.score_leave_out) == (None, None)
    assert free.assumed == "groups and rows within each group"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"adjust": ["stain"]}, "adjust: the table has no stain measures"),
        ({"adjust": ["count"]}, "adjust: count is probed itself"),
        ({"adjust": ["centre"]}, "adjust: .*'centre'"),
        ({"leave_out": "nowhere"}, "leave_out: .*'nowhere'"),
        ({"center": "centre"}, "center: .*'centre'"),
        ({"nested": "center"}, "nested: every unit must lie in one group"),
        ({"adjust_terms": "cubic"}, "adjust_terms: .*'cubic'"),
        ({"leave_out": "only"}, None),
        ({"repeat": {"grade": "partial"}}, "repeat: grade is not among the concepts"),
        ({"repeat": {"count": "center"}}, "repeat: count and center must both be continuous"),
        ({"protocol": "paper", "leave_out": "center"}, "protocol: leave_out not available with .*paper"),
        ({"protocol": "paper", "adjust": ["center"]}, "protocol: adjust not available with .*paper"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(study, table, tmp_path, options, told):
    def run():
        return ck.run_probe(study, concepts=["count"], permutations=0, out=tmp_path / "run", **options)

    if told is None:  # the score stands; the row says why the other one does not
        [note] = row_of(run(), "count").notes
        assert "not estimable (leave_out: only needs at least 2 levels" in note
        return
    bare = write_study(tmp_path / "bare", table[[c for c in table.columns if not c.startswith("stain_")]])
    with pytest.raises(InputError, match=told) as caught:
        ck.run_probe(bare, concepts=["count"], permutations=0, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_papers_protocol_through_the_study(study, tmp_path):
    record = ck.run_probe(study, concepts=["count"], protocol="paper", out=tmp_path / "run")
    row = row_of(record, "count")
    assert (row.protocol, row.metric, row.p) == ("paper (in-sample)", "r2_in_sample", None)
    assert row.score == row.score_in_sample
    assert "in-sample" in record.notes[0]
    held_out = ck.run_probe(study, concepts=["count"], permutations=0, out=tmp_path / "other")
    assert row.score > row_of(held_out, "count").score + 0.05  # the control
    assert not [n for n in held_out.notes if "in-sample" in n]


def test_a_concept_that_one_label_lacks_is_warned_of(table, tmp_path):
    def noted(share):
        gone = (table.label == "tumor") & (np.arange(len(table)) % 100 < 100 * share)
        holes = table.assign(holes=table["count"].where(~gone))
        study = load_study(write_study(tmp_path / f"s{share}", holes))
        return _missing_by_label(study.load_table(), study, "holes", np.ones(len(table), dtype=bool))

    note = noted(0.5)
    assert note.startswith("holes is missing in ")
    assert "of the rows of label tumor and in 0% of normal" in note
    assert noted(0) is None  # the controls: nothing is missing, and hardly anything
    assert noted(0.05) is None


def test_the_size_of_the_cache_is_told_before_it_is_filled(study, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("CONCEPTKIT_CACHE", str(cache))
    seen = []

    def run(name):
        ck.run_probe(
            study,
            concepts=["count"],
            permutations=0,
            out=tmp_path / name,
            notify=lambda sentence: seen.append((sentence, len(list(cache.rglob("activations/*"))))),
        )

    run("a")
    [(sentence, files)] = seen
    size = max(path.stat().st_size for path in cache.rglob("activations/*.h5"))
    told = float(re.match(r"Activations will take ([\d.]+) kB ", sentence).group(1))
    assert told == pytest.approx(size / 1000, rel=0.05)
    assert f"in {cache}, and as much for each of 1 random networks." in sentence
    assert files == 0
    run("b")
    assert len(seen) == 1  # the control: all is there


def test_the_activations_of_random_networks_are_held_one_at_a_time(study, tmp_path, monkeypatch):
    read, held = [], []

    def drawn(data, network, layers, *, rows, **_):
        held.append(sum(values() is not None for values in read))
        values = np.random.default_rng(len(read)).normal(size=(len(rows), 4)).astype(np.float32)
        read.append(weakref.ref(values))
        return dict.fromkeys(layers, values)

    monkeypatch.setattr("conceptkit.features.activations.read_activations", drawn)
    monkeypatch.setattr(probing, "RANDOM_NETWORKS", 3)
    record = ck.run_probe(study, concepts=["count"], permutations=0, out=tmp_path / "run")
    assert held == [0, 1, 1, 1]  # the trained network's own stay; those of the random one before are gone
    assert record.rows[0].score_random_network is not None


# --- folders -----------------------------------------------------------------------------------------------------


def test_an_earlier_run_is_never_written_over(record, study):
    before = (record.folder / "record.json").read_bytes()
    with pytest.raises(InputError, match="holds an earlier run"):
        ck.run_probe(study, concepts=["count"], out=record.folder, permutations=0)
    assert (record.folder / "record.json").read_bytes() == before


def test_runs_are_numbered(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [ck.run_probe(study, permutations=0).folder.as_posix() for _ in range(2)]
    assert folders == ["runs/probe-001", "runs/probe-002"]


def test_a_concept_that_nobody_named_does_not_stop_the_others(table, tmp_path):
    """Of all columns by default those that cannot be probed are left out, and it is said why."""
    few = table[["patch_id", "h5", "key", "row", "patient", "count", "constant", "center"]].copy()
    few["center"] = few["center"].where(few["patient"] != few["patient"].iloc[0], "alone")
    few.to_csv(tmp_path / "t.csv", index=False)
    how = {"table": tmp_path / "t.csv", "model": "mini_inception", "layers": ["mixed2"], "permutations": 0}
    record = ck.run_probe(**how, weights="bundled", group="patient", out=tmp_path / "all")
    assert [row.concept for row in record.rows] == ["count", "center"]
    assert record.rows[1].n == int((few["center"] != "alone").sum())
    said = [note for note in record.notes if note.startswith("Skipped: ") or "rows skipped" in note]
    assert any("constant" in note for note in said)
    assert any("alone" in note for note in said)
    few.drop(columns=["count", "center"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="constant"):
        ck.run_probe(**how, weights="bundled", group="patient", out=tmp_path / "none")


def test_a_number_whose_run_was_killed_at_once_is_taken_again(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed, used = tmp_path / "runs" / "probe-001", tmp_path / "runs" / "probe-002"
    killed.mkdir(parents=True)
    (killed / ".lock").touch()
    used.mkdir()
    (used / "something").touch()
    folders = [ck.run_probe(study, permutations=0).folder.as_posix() for _ in range(2)]
    assert folders == ["runs/probe-001", "runs/probe-003"]


def test_nothing_is_written_for_a_mistake(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no layer 'mixed11'"):
        ck.run_probe(study, layers=["mixed11"], out="run")
    assert list(tmp_path.iterdir()) == []
