"""Data and networks in the forms that people have them: each form gives the numbers of the file, or one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import conceptkit as ck
from conceptkit.commands.extract import as_table
from conceptkit.errors import InputError
from conceptkit.models.backbones import open_backbone
from conceptkit.models.checkpoints import load_checkpoint, open_model
from conceptkit.options import COMMANDS
from conceptkit.options.base import RecordCommand as Recorded
from conceptkit.options.base import StudyCommand, described
from conceptkit.options.extract import Extract
from conceptkit.registry import load
from conceptkit.runs.opening import find_study
from conceptkit.tables.study import load_study

NETWORK = {"model": "mini_inception", "layers": "mixed2"}
PROBE = {**NETWORK, "concepts": "count", "permutations": 0, "group": "patient"}
TRAINING = {"epochs": 2, "warmup": 1, "trunk": (8,), "folds": 2}


class Arrow:
    """A table that hands out Arrow and nothing else, as polars does beside its own methods."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        self.columns = list(frame.columns)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def in_polars(frame: pd.DataFrame):
    polars = pytest.importorskip("polars")
    return polars.from_arrow(pyarrow.Table.from_pandas(frame, preserve_index=False))


FORMS = {
    "frame": lambda frame, folder: frame,
    "shuffled frame": lambda frame, folder: frame.sample(frac=1, random_state=0),
    "indexed frame": lambda frame, folder: frame.set_index("patch_id"),
    "polars": lambda frame, folder: in_polars(frame),
    "arrow": lambda frame, folder: Arrow(frame),
    "table's path": lambda frame, folder: str(folder / "patches.csv"),
    "folder": lambda frame, folder: folder,
    "study file": lambda frame, folder: folder / "conceptkit.toml",
    "study": lambda frame, folder: ck.load_study(folder),
    "study of a frame": lambda frame, folder: ck.Study(name="own", table=frame),
}


@pytest.fixture(scope="module")
def of_file(study, tmp_path_factory):
    """The record of the table's file."""
    return ck.Probe(table=study.parent / "patches.csv", **PROBE).run(out=tmp_path_factory.mktemp("forms") / "file")


def same(record, other):
    pd.testing.assert_frame_equal(record.to_frame(), other.to_frame(), check_exact=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_study_gives_the_numbers_of_the_file(form, of_file, table, study, tmp_path):
    record = ck.run_probe(FORMS[form](table, study.parent), **PROBE, out=tmp_path / "run")
    same(record, of_file)
    in_memory = form in ("frame", "shuffled frame", "indexed frame", "polars", "arrow", "study of a frame")
    assert record.settings["table"] == ("dataframe" if in_memory else "patches.csv")


@pytest.mark.parametrize("form", ["frame", "polars", "arrow"])
def test_a_table_in_memory_may_be_an_option(form, of_file, table, study, tmp_path):
    record = ck.Probe(table=FORMS[form](table, study.parent), **PROBE).run(out=tmp_path / "run")
    same(record, of_file)
    of_study = ck.Probe(table=table.assign(count=0.5 * table["count"]), **PROBE).run(study, out=tmp_path / "other")
    assert of_study.settings["table"] == "dataframe"
    assert not of_study.to_frame().equals(record.to_frame())


def test_a_table_in_memory_is_read_like_its_file(tmp_path):
    frame = pd.DataFrame({" image ": [" b.png", "a.png"], "patient": [7, 8], "Label": ["x", "y"]}, index=[5, 3])
    frame.to_parquet(tmp_path / "t.parquet")
    read, of_file = load_study(frame).load_table(), load_study(tmp_path / "t.parquet").load_table()
    pd.testing.assert_frame_equal(read.frame, of_file.frame)
    assert read.patch_ids == ["a.png", "b.png"]
    assert read.frame.patient.tolist() == ["8", "7"]
    assert read.notes == of_file.notes
    for part in ("saved index", "Blanks", "case-sensitive"):
        assert part in " ".join(read.notes)
    assert read.folder == Path.cwd()


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**62), 2**62), st.none() | st.floats(width=32), st.none() | st.text("ab 7", max_size=3)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_table_in_memory_equals_its_parquet_file(tmp_path_factory, rows):
    frame = pd.DataFrame(rows, columns=["whole", "number", "words"])
    frame = frame.assign(patch_id=[f"p{i}" for i in range(len(rows))])
    path = tmp_path_factory.mktemp("same") / "t.parquet"
    frame.to_parquet(path)
    pd.testing.assert_frame_equal(load_study(frame).load_table().frame, load_study(path).load_table().frame)


def test_the_digest_of_a_table_follows_its_content():
    frame = pd.DataFrame({"patch_id": ["a", "b"], "count": [1.0, np.nan], "label": ["x", None]})
    digest = load_study(frame).table_digest()
    assert load_study(frame.copy()).table_digest() == digest
    others = [
        frame.assign(count=[1.0, 2.0]),
        frame.assign(label=["x", "y"]),
        frame.rename(columns={"count": "size_px"}),
        frame.assign(count=[1, 2]),
        frame.iloc[::-1],
    ]
    assert len({load_study(other).table_digest() for other in others} | {digest}) == len(others) + 1


def test_a_later_change_of_the_frame_does_not_reach_the_study():
    frame = pd.DataFrame({"patch_id": ["a", "b"], "count": [1.0, 2.0]})
    opened = load_study(frame)
    frame.loc[0, "count"] = 9.0
    assert opened.load_table().frame["count"].tolist() == [1.0, 2.0]


def test_names_of_a_study_may_be_text_or_lists():
    study = ck.Study(name="s", table="t.csv", layers="mixed2, mixed4", concepts=["count"], discourage="center")
    assert (study.layers, study.concepts, study.discourage) == (("mixed2", "mixed4"), ("count",), ("center",))
    assert study.table == Path("t.csv")


# --- what cannot be used -----------------------------------------------------------------------------------------

WRONG = {
    "list": [1, 2],
    "number": 5,
    "float": float("nan"),
    "bytes": b"patches.csv",
    "dict": {"table": "patches.csv"},
    "series": pd.Series([1.0]),
    "array": np.zeros((2, 2)),
    "class": pd.DataFrame,
    "true": True,
}


def refused(call, *words):
    """Check that a call is refused in whole sentences."""
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert re.fullmatch(r"[\w ()@:.-]+: \S.*[.]", text, re.DOTALL), text
    assert "\n" not in text
    for word in words:
        assert word in text, text


ON_A_STUDY = [name for name, place in COMMANDS.items() if issubclass(load(place), StudyCommand | Recorded)]


def made(command):
    """A command with every option that it needs."""
    cls = load(COMMANDS[command])
    needed = [one.name for one in described(cls) if one.required or (command, one.name) == ("predict", "checkpoint")]
    return cls(**dict.fromkeys(needed, "x"))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("command", ON_A_STUDY)
def test_a_study_of_another_type_is_refused_by_every_command(command, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: made(command).run(WRONG[wrong]), "study", "must be", "got a")
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("wrong", WRONG)
def test_other_types_are_refused_by_the_functions(wrong, tmp_path):
    value = WRONG[wrong]
    for call in (ck.load_study, find_study, ck.run_probe, ck.run_guide, lambda study: ck.predict("x", study)):
        refused(lambda call=call: call(value), "study")
    refused(lambda: ck.Study(name="s", table=value), "table: must be")
    refused(lambda: ck.Probe(table=value), "table: must be")
    if wrong != "dict":  # names of several encoders
        refused(lambda: ck.Probe(model=value), "model: must be")
        refused(lambda: ck.Probe(features=value), "features: must be a path")
    refused(lambda: ck.Study(name="s", table="t.csv", model=value), "model: must be")
    refused(lambda: ck.Audit(checkpoint=value, concept="count"), "checkpoint: must be a path")
    refused(lambda: ck.Probe().run(out=value), "out: must be a path")
    refused(lambda: ck.Study(name=value, table="t.csv"), "name: must be text")
    if wrong != "array":
        refused(lambda: ck.extract("mini_inception", value, layers="mixed2"), "images: must be")


@pytest.mark.parametrize("nothing", ["", " , ", [], {}, {"a": 5}, [nn.Identity(), nn.Identity()], ["a", 5]])
def test_several_encoders_are_named_by_texts(nothing):
    refused(lambda: ck.Probe(model=nothing), "model: must be")
    refused(lambda: ck.Probe(features=nothing), "features: must be a path")


@pytest.mark.parametrize("wrong", [5, {"count": 1}, [1, 2], b"count"])
def test_names_of_another_type_are_refused(wrong):
    refused(lambda: ck.Probe(layers=wrong), "layers: must be")
    refused(lambda: ck.Probe(concepts=wrong), "concepts: must be")
    refused(lambda: ck.Study(name="s", table="t.csv", concepts=wrong), "concepts: must be")


def test_unknown_options_name_the_nearest():
    refused(lambda: ck.run_probe(None, concept="count"), "no option 'concept'", "concepts")
    refused(lambda: ck.run_guide(None, encurage="count"), "encourage")
    refused(lambda: ck.extract("mini_inception", [], layer="mixed2"), "layers")
    refused(lambda: ck.predict("x", batchsize=2), "batch_size")
    refused(lambda: ck.Study(name="s", tabel="t.csv"), "table")
    refused(lambda: ck.Study(name="s"), "table: must be given")


@given(st.one_of(st.integers(), st.floats(), st.binary(max_size=9), st.lists(st.integers(), max_size=3), st.booleans()))
def test_no_value_of_another_type_is_a_type_error(value):
    for call in (ck.load_study, lambda v: ck.Probe(model=v), lambda v: ck.Probe(table=v), lambda v: ck.Probe(group=v)):
        refused(lambda call=call: call(value))


def test_a_folder_of_images_names_the_command_that_makes_a_table(tmp_path):
    (tmp_path / "tumor").mkdir()
    (tmp_path / "tumor" / "a.png").touch()
    refused(lambda: ck.load_study(tmp_path), "conceptkit adapt classes")
    (tmp_path / "bare").mkdir()
    refused(lambda: ck.load_study(tmp_path / "bare"), "not found")


def test_a_table_that_parquet_cannot_hold_names_the_column():
    refused(lambda: ck.load_study(pd.DataFrame({"patch_id": ["a", "b"], "odd": [1, "x"]})), "dataframe", "odd")
    twice = pd.DataFrame([["a", 1, 2]], columns=["patch_id", "count", "count"])
    refused(lambda: ck.load_study(twice), "dataframe", "count")
    refused(lambda: ck.load_study(pd.DataFrame({"count": [1.0]})), "dataframe needs a column patch_id")
    refused(lambda: ck.load_study(pd.DataFrame({"patch_id": []})), "no rows")


# --- networks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def module():
    """The bundled network, as a user has it."""
    return open_backbone("mini_inception").module


class Stated(nn.Module):
    """A small network with a parameter of its own, which nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))
        self.body = nn.Conv2d(3, 4, 3, stride=8)

    def forward(self, x):
        return self.body(x + self.shift).mean((2, 3))


def with_preprocessing(module):
    module.preprocessing = open_backbone("mini_inception").preprocessing
    return module


def test_a_module_is_probed_like_the_network_of_its_name(module, of_file, table, tmp_path):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    options = {**PROBE, "model": with_preprocessing(module)}
    record = ck.Probe(**options).run(table, out=tmp_path / "run")
    ours, named = record.to_frame(), of_file.to_frame()
    for column in ("score", "score_low", "score_high"):
        assert ours[column].tolist() == named[column].tolist()
    assert ours["score_random_network"].notna().all()  # copies with random weights
    assert (record.settings["model"], record.settings["weights"]) == ("MiniInception", "given")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    refused(lambda: ck.from_settings(record.settings), "torch module", "MiniInception")
    again = ck.from_settings({**record.settings, "model": module, "weights": None}).run(table, out=tmp_path / "again")
    same(again, record)


def test_a_part_without_a_random_state_has_a_note_and_no_control(table, tmp_path):
    record = ck.Probe(**{**PROBE, "model": Stated(), "layers": "body"}).run(table, out=tmp_path / "run")
    assert record.to_frame()["score_random_network"].isna().all()
    assert any("Stated" in note and "reset_parameters" in note for note in record.notes)


def test_the_random_copies_differ_and_leave_the_global_state(module):
    from conceptkit.models.checkpoints import random_control

    opened = open_model(module)
    state = torch.random.get_rng_state()
    one, two, again = (random_control("", opened, seed=seed) for seed in (1, 2, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len({opened.fingerprint(), one.fingerprint(), two.fingerprint()}) == 3
    assert one.fingerprint() == again.fingerprint()


def test_a_module_is_guided_attributed_and_extracted(module, study, tmp_path):
    record = ck.run_guide(study, model=with_preprocessing(module), **TRAINING, unfreeze="none", out=tmp_path / "guide")
    assert (record.settings["model"], record.settings["weights"]) == ("MiniInception", "given")
    assert any("cannot be opened" in note for note in record.notes)
    refused(lambda: load_checkpoint(record.folder / "checkpoints" / "guided-seed0"), "package.module:factory")
    few = {"permutations": 0, "refits": 10, "maps": 0, "folds": 2}
    classifier = timm.create_model("resnet10t", num_classes=2)
    attributed = ck.Attribute(model=classifier, layers="layer1", **few).run(study, out=tmp_path / "attribute")
    assert attributed.settings["model"] == "ResNet"
    named = ck.extract("mini_inception", study, layers="mixed2")
    given_module = ck.extract(with_preprocessing(module), study.parent / "patches.csv", layers="mixed2")
    assert np.array_equal(named["mixed2"][:], given_module["mixed2"][:])
    refused(lambda: ck.Grid(model=module, ablate="count").run(study, out=tmp_path / "grid"), "package.module:factory")
    refused(lambda: ck.Probe(model=module, weights="random").run(study, out=tmp_path / "probe"), "weights")


def test_predict_and_extract_take_a_table_in_memory(study, table, tmp_path):
    record = ck.run_guide(study, **TRAINING, unfreeze="none", out=tmp_path / "guide")
    folder = record.folder / "checkpoints" / "guided-seed0"
    of_file = ck.predict(folder, study)
    for form in (ck.predict(folder, table), ck.predict(folder, table=table), ck.predict(folder, study.parent)):
        pd.testing.assert_frame_equal(form, of_file)
    assert as_table(table).patch_ids == as_table(study).patch_ids
    assert Extract(layers="mixed2", model="mini_inception").run(table).study.table.name == "dataframe"


# --- records that repeat -----------------------------------------------------------------------------------------


def repeated(record, study, folder):
    """The record of the settings of a record, as they are on disk."""
    return ck.from_settings(ck.load_record(record.folder).settings).run(study, out=folder)


PROBES = {
    "random": {"weights": "random"},
    "random with a seed": {"weights": "random", "seed": 3},
    "no center": {"center": "none"},
    "left out": {"leave_out": "grade"},
    "centers": {"categorical": "grade", "concepts": "count,grade"},
}


@pytest.mark.parametrize("options", PROBES.values(), ids=PROBES)
def test_settings_of_a_probe_repeat_its_numbers(options, study, tmp_path):
    record = ck.Probe(permutations=5, **options).run(study, out=tmp_path / "first")
    again = repeated(record, study, tmp_path / "again")
    same(again, record)
    assert again.settings == record.settings


def test_a_file_of_weights_is_stated_as_it_was_given(study, tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), tmp_path / "away" / "w.pt")
    monkeypatch.chdir(tmp_path)
    record = ck.Probe(model="resnet10t", weights="away/w.pt", layers="layer1", permutations=0).run(study, out="first")
    assert record.settings["weights"] == "away/w.pt"
    assert record.rows[0].weights == "w.pt"
    same(repeated(record, study, tmp_path / "again"), record)


def test_settings_of_a_record_of_a_frame_repeat_it_on_that_frame_alone(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = ck.Probe(**PROBE).run(table, out="first")
    same(repeated(record, table, tmp_path / "again"), record)
    refused(lambda: repeated(record, None, tmp_path / "none"), "dataframe")


def test_the_name_of_the_own_table_is_that_table_unless_another_file_has_it(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study(study, "patches.csv").table == study.parent / "patches.csv"
    Path("patches.csv").write_text("patch_id,count\na,1\n")
    refused(lambda: find_study(study, "patches.csv"), "table", "another file")
    assert find_study(study, Path.cwd() / "patches.csv").table == Path.cwd() / "patches.csv"


def test_settings_of_other_records_repeat_their_numbers(study, tmp_path):
    guided = ck.run_guide(study, **TRAINING, weights="random", seed=2, out=tmp_path / "guide")
    again = repeated(guided, study, tmp_path / "guide2")
    assert [run.metrics for run in again.runs] == [run.metrics for run in guided.runs]
    assert again.differences == guided.differences
    checkpoint = guided.folder / "checkpoints" / "guided-seed2"

    audited = ck.Audit(checkpoint=checkpoint, concept="count", folds=2, permutations=5).run(
        study, out=tmp_path / "audit"
    )
    again = repeated(audited, study, tmp_path / "audit2")
    same(again, audited)
    assert repr(again.layers) == repr(audited.layers)  # some are NaN

    probed = ck.Probe(model=checkpoint, layers="trunk", permutations=0).run(study, out=tmp_path / "probe")
    same(repeated(probed, study, tmp_path / "probe2"), probed)

    few = {"permutations": 5, "refits": 10, "maps": 0, "folds": 2}
    attributed = ck.Attribute(model=checkpoint, layers="trunk", **few).run(study, out=tmp_path / "attribute")
    same(repeated(attributed, study, tmp_path / "attribute2"), attributed)

    predicted = ck.Predictivity(seeds=1).run(study, out=tmp_path / "predictivity")
    same(repeated(predicted, study, tmp_path / "predictivity2"), predicted)


def test_settings_of_a_grid_repeat_its_numbers(study, tmp_path):
    wanted = {**TRAINING, "ablate": "count", "weightings": "vanilla", "seeds": [1], "controls": False}
    grid = ck.Grid(**wanted, weights="random").run(study, out=tmp_path / "grid")
    again = repeated(grid, study, tmp_path / "grid2")
    same(again, grid)
    assert again.differences == grid.differences


def test_settings_of_bags_repeat_their_numbers(study, table, tmp_path):
    store = ck.extract("mini_inception", study, layers="mixed2", store=tmp_path / "kept" / "s.h5").path
    wanted = {
        "by": "patient",
        "label": "count",
        "encourage": "area",
        "discourage": "",
        "epochs": 1,
        "warmup": 0,
        "folds": 2,
    }
    record = ck.Bags(features=store, layer="mixed2", **wanted).run(study, out=tmp_path / "bags")
    assert record.settings["features"] == str(store)
    again = repeated(record, study, tmp_path / "bags2")
    assert repr(again.differences) == repr(record.differences)  # some ends are NaN
    assert [run.metrics for run in again.runs] == [run.metrics for run in record.runs]
