"""The study file: what it says, what it refuses, and which study a command finds."""

from __future__ import annotations

from pathlib import Path

import pytest

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.runs.opening import find_study
from conceptkit.tables.study import SplitNames, load_study, table_study

WHOLE = """
name = "colon"
table = "tables/patches.csv"
model = "resnet50"
weights = "imagenet"
layers = ["conv5_block3_out", "layer3"]
group = "patient"
label = "tumor"

[concepts]
probe = ["count", "area"]
encourage = ["count"]
discourage = ["center"]
kind = {grade = "categorical"}
unit = {area = "µm²"}

[splits]
column = "part"
train = "a"
val = "b"
read = "c"
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="conceptkit.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    write.folder = tmp_path
    return write


def test_a_whole_study(write):
    study = load_study(write(WHOLE))
    assert study == ck.Study(
        name="colon",
        table=write.folder / "tables" / "patches.csv",
        model="resnet50",
        weights="imagenet",
        layers=("conv5_block3_out", "layer3"),
        concepts=("count", "area"),
        encourage=("count",),
        discourage=("center",),
        group="patient",
        label="tumor",
        kinds={"grade": "categorical"},
        units={"area": "µm²"},
        splits=SplitNames(column="part", train="a", val="b", read="c"),
    )
    assert not study.synthetic


def test_a_folder_stands_for_its_study_file(write):
    write('table = "t.csv"')
    study = load_study(write.folder)
    assert study.name == write.folder.name
    assert study.table == write.folder / "t.csv"
    assert study.splits == SplitNames()
    assert study.label == "label"


def test_kinds_of_the_study_reach_its_table(write):
    (write.folder / "t.csv").write_text("patch_id,grade\na,1\nb,2\n")
    study = load_study(write('table = "t.csv"\n[concepts]\nkind = {grade = "categorical"}'))
    assert study.load_table().kind("grade") == "categorical"


def test_names_may_be_given_as_one_text(write):
    assert load_study(write('table = "t.csv"\nlayers = "mixed9, mixed10"')).layers == ("mixed9", "mixed10")


def test_files_beside_the_study_are_meant_and_other_names_are_names(write):
    (write.folder / "net.safetensors").touch()
    (write.folder / "checkpoint").mkdir()
    study = load_study(write('table = "t.csv"\nmodel = "checkpoint"\nweights = "net.safetensors"'))
    assert study.model == str(write.folder / "checkpoint")
    assert study.weights == str(write.folder / "net.safetensors")
    study = load_study(write('table = "t.csv"\nmodel = "resnet50"\nweights = "imagenet"'))
    assert (study.model, study.weights) == ("resnet50", "imagenet")


def test_absolute_paths_stay(write, tmp_path_factory):
    table = tmp_path_factory.mktemp("elsewhere") / "t.csv"
    assert load_study(write(f"table = '{table}'")).table == table


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('table = "t"\nlayer = ["a"]', "unknown key 'layer'; near names: layers"),
        ('table = "t"\n[concepts]\nencourag = ["a"]', "unknown key 'concepts.encourag'; near names: encourage"),
        ('table = "t"\n[splits]\nvalidation = "v"', "unknown key 'splits.validation'; (near names|known): "),
        ('name = "x"', "has no table; write a line such as table = "),
        ("table = 3", "table in .* must be text, got 3"),
        ('table = ""', "table in .* must be text, got ''"),
        ('table = "t"\nmodel = ["a"]', "model in .* must be text"),
        ('table = "t"\nlayers = 3', "layers in .* must be a list of names, got 3"),
        ('table = "t"\nlayers = [3]', "layers in .* must be a list of names"),
        ('table = "t"\nconcepts = ["count"]', r"concepts in .* must be a section \[concepts\]"),
        ('table = "t"\n[concepts]\nprobe = {a = 1}', "concepts.probe in .* must be a list of names"),
        ('table = "t"\n[concepts]\nkind = ["a"]', 'concepts.kind in .* must be name = "text" pairs'),
        ('table = "t"\n[concepts]\nunit = {a = 1}', 'concepts.unit in .* must be name = "text" pairs'),
        ('table = "t"\n[splits]\ntrain = 1', 'splits in .* must be name = "text" pairs'),
        ("table = ", "is not a TOML file"),
    ],
)
def test_what_is_refused(write, text, sentence):
    with pytest.raises(InputError, match=sentence) as told:
        load_study(write(text))
    assert str(told.value).startswith("study: ")


def test_missing_and_unreadable_study(write):
    with pytest.raises(InputError, match=r"file .*absent\.toml not found"):
        load_study(write.folder / "absent.toml")
    with pytest.raises(InputError, match=r"file .*conceptkit\.toml not found"):
        load_study(write.folder)
    (write.folder / "bytes.toml").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="is not a TOML file"):
        load_study(write.folder / "bytes.toml")


def test_a_bare_table_makes_a_study(write):
    plain = table_study(write("patch_id,count\na,1\n", "plain.csv"))
    assert (plain.name, plain.group, plain.model, plain.synthetic) == ("plain", None, None, False)
    assert table_study(write("patch_id,patient\na,1\n", "p.csv")).group == "patient"
    assert table_study(write("patch_id,patient,group\na,1,2\n", "g.csv")).group == "group"


def test_replace_changes_only_what_is_named(write):
    study = load_study(write(WHOLE))
    changed = study.replace(model="vit", group=None)
    assert changed.model == "vit"
    assert changed.group == "patient"
    assert study.model == "resnet50"


def test_which_study_is_found(write, monkeypatch, embedded, few_patients, tmp_path_factory):
    write("patch_id,patient,count\na,1,2\n", "t.csv")
    other = write('name = "other"\ntable = "o.csv"', "other.toml")
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    assert find_study() == find_study("embedded:shortcut")
    assert find_study().name == "embedded:shortcut"
    assert find_study().synthetic
    write('name = "here"\ntable = "h.csv"')
    monkeypatch.chdir(write.folder)
    assert find_study().name == "here"
    assert find_study(table="t.csv").name == "t"
    assert find_study(other).name == "other"
    assert find_study(str(other)).name == "other"
    assert find_study(embedded) is embedded
    both = find_study(other, table="t.csv")
    assert (both.name, both.table) == ("other", Path("t.csv"))
    moved = find_study(embedded, table="t.csv")
    assert moved.table == Path("t.csv")
    assert not moved.synthetic  # another table is not generated tissue
