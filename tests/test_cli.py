"""The command line: JSON that is all of standard output, help, completion, and results that stay."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from command_calls import call, sentence
from PIL import Image
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app, console
from conceptkit.commands import probe as probing
from conceptkit.errors import InputError
from conceptkit.options import COMMANDS, GROUPS
from conceptkit.options.base import name_list
from conceptkit.records import ProbeRecord, load_record
from conceptkit.registry import load
from conceptkit.tables.study import load_study

QUICK = ("--permutations", "0")

TINY = ("--epochs", "2", "--warmup", "1", "--trunk", "8")

PROBE_ROW = {
    *("model", "weights", "layer", "concept", "kind", "n", "n_groups", "folds", "metric", "score"),
    *("score_low", "score_high", "score_in_sample", "score_patchwise", "score_random_network", "chance", "alpha"),
}


@pytest.fixture
def here(study, tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def probed(study, tmp_path_factory):
    """A finished run of ``probe --json -``: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("probed") / "run"
    command = ["probe", "--study", study, "--concept", "count,grade", *QUICK, "--out", folder, "--json", "-"]
    return folder, call(*command)


@pytest.fixture(scope="module")
def guided(study, tmp_path_factory):
    """The same of ``guide``, as a process of its own: libraries that write to the stream itself show there."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    command = [sys.executable, "-m", "conceptkit", "guide", "--study", str(study), *TINY, "--out", str(folder)]
    return folder, subprocess.run([*command, "--json", "-"], capture_output=True, text=True, check=False)


# --- JSON --------------------------------------------------------------------------------------------------------


def test_probe_prints_one_object_and_tells_people_elsewhere(probed):
    folder, result = probed
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert list(body)[:2] == ["schema", "study"]
    assert (body["schema"], body["study"]) == ("conceptkit/probe/1", "small")
    assert len(body["rows"]) == 2
    for row in body["rows"]:
        assert set(row) >= PROBE_ROW
    assert body == json.loads((folder / "record.json").read_text())
    for words in ("Study small", "held out", "grade has 4 whole-numbered values", "run saved in"):
        assert words in result.stderr


def test_guide_prints_one_object_and_tells_people_elsewhere(guided):
    folder, result = guided
    assert result.returncode == 0, result.stderr
    body = json.loads(result.stdout)
    assert list(body)[:2] == ["schema", "study"]
    assert (body["schema"], body["study"]) == ("conceptkit/guide/1", "small")
    assert [run["name"] for run in body["runs"]] == ["baseline", "balanced", "guided"]
    for run in body["runs"]:
        assert set(run) >= {"name", "seed", "checkpoint", "metrics", "concepts", "leakage"}
        assert set(run["metrics"]) == {"train", "val", "internal", "external", "overall"}
        assert all(set(m) >= {"auc", "f1", "balanced_accuracy"} for m in run["metrics"].values())
        assert set(run["concepts"]["count"]) >= {"probe", "head"}
        assert set(run["leakage"]["center"]) >= {"linear", "mlp", "chance"}
    for d in body["differences"]:
        assert set(d) >= {"run", "against", "split", "metric", "mean", "low", "high", "n_groups"}
    assert body == json.loads((folder / "record.json").read_text())
    said = " ".join(result.stderr.split())  # lines are broken anywhere
    for words in ("Encouraged concepts", "Main task", "Discouraged concepts: what is left", "run saved in"):
        assert words in said
    assert "linear:center" not in result.stderr  # a key is no word
    assert "\r" not in result.stderr  # no progress bar in a pipe


def test_report_prints_one_object(probed, guided, here):
    result = call("report", probed[0], guided[0], "-o", "page.html", "--json", "-")
    body = json.loads(result.stdout)
    assert body["schema"] == "conceptkit/report/1"
    assert body["study"] == "small"
    assert body["path"] == "page.html"
    assert "report written to page.html" in result.stderr
    page = (here / "page.html").read_text()
    for words in ("What each layer encodes", "Encouraged concepts", "Main task", "center (MLP probe)"):
        assert words in page


def test_verify_holds_until_a_record_changes(probed, guided, here):
    call("report", probed[0], guided[0], "-o", "page.html")
    checked = call("verify", "page.json")
    assert checked.exit_code == 0, checked.output
    assert "computed again from the saved predictions" in " ".join(checked.stdout.split())
    path = here / probed[0] / "record.json"
    before = path.read_text()
    body = json.loads(before)
    body["rows"][0]["score"] += 0.1
    try:
        path.write_text(json.dumps(body))
        refused = call("verify", "page.json", "--json", "-")
    finally:
        path.write_text(before)
    assert refused.exit_code == 1
    found = json.loads(refused.stdout)
    assert not found["holds"]
    assert "the record" in found["claims"][0]["how"]


def write_images(folder):
    """Write two images with two nuclei each, one image that is smaller than a tile, and their list."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[4:10, 4:10], mask[40:50, 40:50] = 1, 2
    Image.fromarray(mask).save(folder / "mask.png")
    for name, size in (("a.png", 64), ("b.png", 64), ("c.png", 16)):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / name)
    path = folder / "images.csv"
    path.write_text("image,mask,patient\na.png,mask.png,p\nb.png,mask.png,q\nc.png,,q\n")
    return path


def test_measure_prints_one_object(here):
    images = write_images(here / "images")
    result = call("measure", images, "--out", "patches.csv", "--patch-size", "32", "--json", "-")
    assert result.exit_code == 1  # something was skipped
    body = json.loads(result.stdout)
    assert (body["schema"], body["study"]) == ("conceptkit/measure/1", "images")
    assert (body["rows_written"], body["path"]) == (8, "patches.csv")
    assert [s["what"] for s in body["skipped"]] == ["c"]
    assert "less than a tile" in body["skipped"][0]["reason"]
    assert "8 patches written to patches.csv" in result.stderr
    assert len(pd.read_csv("patches.csv")) == 8


def test_demo_prints_one_object_and_says_that_it_is_synthetic(study, here, monkeypatch):
    from conceptkit.commands import report as reporting

    # The demonstration itself takes minutes; what is tried here is that it hands all three on.
    options = {"epochs": 2, "warmup": 1, "trunk": (8,), "through": ["count"]}
    small = load_study(study).replace(synthetic=True)
    run_probe, run_guide = reporting.run_probe, reporting.run_guide
    monkeypatch.setattr(reporting, "embedded_study", lambda *_: small)
    less = {"layers": ["mixed2"], "concepts": ["count"], "permutations": 0}
    monkeypatch.setattr(reporting, "run_probe", lambda s, **given: run_probe(s, **{**given, **less}))
    monkeypatch.setattr(reporting, "run_guide", lambda s, **given: run_guide(s, **{**given, **options}))
    result = call("demo", "--out", "all", "--json", "-")
    body = json.loads(result.stdout)
    assert (body["schema"], body["study"], body["path"]) == ("conceptkit/demo/1", "small", "all/report.html")
    assert body["probe"]["schema"] == "conceptkit/probe/1"
    assert body["guide"]["schema"] == body["null"]["schema"] == "conceptkit/guide/1"
    assert {run["name"] for run in body["null"]["runs"]} == {"balanced", "through-balanced"}
    assert result.stderr.startswith("Embedded study: synthetic tissue")
    assert "not real histology" in (here / "all" / "report.html").read_text()


def test_json_into_a_file(study, here):
    result = call("probe", "--study", study, *QUICK, "--out", "run", "--json", "sub/result.json")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads(Path("sub/result.json").read_text()) == json.loads(Path("run/record.json").read_text())


def test_without_json_people_read_standard_output(probed, here):
    result = call("report", probed[0], "-o", "page.html")
    assert result.stdout == "report written to page.html\nclaims written to page.json\n"
    assert result.stderr == ""


def test_the_folder_of_all_runs_is_told_from_a_run(probed, here):
    Path("runs/probe-001").mkdir(parents=True)
    shutil.copy(probed[0] / "record.json", "runs/probe-001")
    refused = call("report", "runs")
    assert refused.exit_code == 2
    assert "runs holds no record.json; name a run in it: runs/probe-001." in refused.stderr
    assert "name a run folder" in call("report", "runs/probe-001/nothing").stderr


def test_a_page_is_not_written_over_a_record(probed, here):
    shutil.copytree(probed[0], "run")
    told = sentence(call("report", "run", "-o", "run/record.json"))
    assert told == "out: must end in .html, got 'run/record.json'."
    assert isinstance(load_record(Path("run")), ProbeRecord)


def test_every_command_ends_its_help_with_an_example_that_it_understands():
    commands = dict(typer.main.get_command(app).commands)
    del commands["adapt"]
    for group in GROUPS:
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    examples = {name: load(place).example for name, place in COMMANDS.items()}
    assert set(examples) == set(commands)
    for name, example in examples.items():
        arguments = shlex.split(example)[len(name.split()) :]
        assert f"{example} ".startswith(f"{name} ")
        assert f"Example: conceptkit {example}" == commands[name].epilog
        commands[name].make_context(name, arguments)  # parsed, not run
    with pytest.raises(typer.exceptions.TyperException):
        commands["probe"].make_context("probe", ["--no-such-option"])


def test_a_shell_completes_commands_and_options():
    """As bash does it: the script that it is given, and then what that script asks."""
    # a shell calls the installed command, by whose name the completion goes
    started = "import sys; from conceptkit.cli import main; sys.argv[0] = 'conceptkit'; main()"
    command = [sys.executable, "-c", started]
    quiet = {"capture_output": True, "text": True, "check": False}
    name = "_CONCEPTKIT_COMPLETE"
    script = subprocess.run(command, env={**os.environ, name: "source_bash"}, **quiet).stdout
    assert "complete_bash" in script
    assert "conceptkit" in script

    def completed(words: str) -> set[str]:
        asked = {name: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return set(subprocess.run(command, env={**os.environ, **asked}, **quiet).stdout.split())

    assert {"probe", "predict", "predictivity"} <= completed("conceptkit p")
    assert "guide" not in completed("conceptkit p")
    assert "--encourage" in completed("conceptkit guide --en")


def test_debug_shows_the_traceback(here):
    command = [sys.executable, "-m", "conceptkit", "probe", "--table", "gone.csv", "--debug"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "InputError: table: file gone.csv not found." in result.stderr


def test_debug_raises_the_error_itself(here):
    with pytest.raises(InputError, match="gone"):
        call("report", "gone", "--debug")


def test_an_interrupt_and_a_lack_of_memory_are_told(study, here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def too_much(*_, **__):
        raise MemoryError("4 TB")

    monkeypatch.setattr(probing, "probe", interrupted)
    result = call("probe", "--study", study)
    assert (result.exit_code, result.stderr.count("interrupted")) == (130, 1)
    monkeypatch.setattr(probing, "probe", too_much)
    result = call("probe", "--study", study)
    assert result.exit_code == 2
    assert "memory" in result.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told_before_the_work(probed, here):
    here.chmod(0o500)
    try:
        told = sentence(call("report", probed[0], "-o", here / "page.html"))
    finally:
        here.chmod(0o700)
    assert "no permission to write" in told


# --- calls -------------------------------------------------------------------------------------------------------


def test_commands_alone():
    assert call("--version").stdout.strip()
    for command in ("", "probe", "guide", "measure", "report", "demo"):
        result = call(*command.split(), "--help")
        assert result.exit_code == 0
        assert "--help" in result.stdout


def test_a_study_file_in_the_current_folder_is_found(study, monkeypatch, tmp_path):
    monkeypatch.chdir(study.parent)
    body = json.loads(call("probe", *QUICK, "--out", tmp_path / "run", "--json", "-").stdout)
    assert body["study"] == "small"
    assert [(row["layer"], row["concept"]) for row in body["rows"]] == [("mixed2", "count")]


def test_a_command_in_an_empty_folder_says_first_that_it_uses_the_embedded_study(here, few_patients, monkeypatch):
    def refused(options, study, **_):
        raise InputError(f"{study.name}.")

    monkeypatch.setattr(probing, "probe", refused)
    result = call("probe")
    assert result.stdout.startswith("Embedded study: synthetic tissue generated by conceptkit, not real histology.")
    assert "Error: embedded:shortcut." in result.stderr


def test_a_long_run_tells_a_pipe_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress_bars() as notify:
        for done in (1, 2, 3):
            notify("probing", done, 9)
    told = capsys.readouterr()
    assert told.err == "probing: 2 of 9\n"  # at 10 s nothing, at 31 s a line
    assert told.out == ""


def test_a_narrow_table_cuts_no_name(study, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "WIDTH", 60)
    result = call("probe", "--study", study, "--layer", "mixed10", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "…" not in result.stdout


def test_a_name_with_a_comma_stands_in_quotes():
    assert name_list("concept", '"area, mean",c,"say ""so"", twice"') == ["area, mean", "c", 'say "so", twice']
    assert name_list("concept", '5" grid,b') == ['5" grid', "b"]  # a quote within a name is a quote
    assert ck.Probe(repeat='"a, b=c, d"').repeat == {"a, b": "c, d"}
    with pytest.raises(InputError, match="could not be read: field larger"):
        name_list("concept", "a" * 200_000)


def test_the_cache_folder_is_named_by_an_option(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path / "before"))
    result = CliRunner().invoke(app, ["splits", "--cache-dir", str(tmp_path / "named"), "--help"])
    assert "--cache-dir" in result.output
    shown = CliRunner().invoke(app, ["doctor", "--offline", "--cache-dir", str(tmp_path / "named")])
    assert str(tmp_path / "named") in "".join(shown.output.split())
    assert os.environ["CONCEPTKIT_CACHE"] == str(tmp_path / "before")


@pytest.mark.parametrize(("named", "hint"), [((), True), (("--study", "embedded:shortcut"), False)])
def test_the_line_of_synthetic_tissue_says_how_to_set_another_study_where_none_was_named(few_patients, named, hint):
    said = " ".join(call("predictivity", "--concept", "count", *named, "--seeds", "1").stdout.split())
    assert said.startswith("Embedded study: synthetic tissue generated by conceptkit, not real histology.")
    assert ("--study or --table sets another" in said) == hint
