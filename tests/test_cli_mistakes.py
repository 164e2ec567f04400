"""Mistakes on the command line: each ends with one sentence and leaves every file as it was."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from command_calls import call, contents, sentence
from PIL import Image
from small_study import write_study

TINY = ("--epochs", "2", "--warmup", "1", "--trunk", "8")


@pytest.fixture(scope="module")
def odd(study, table, tmp_path_factory):
    """A folder of things that are wrong, and of an earlier run."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copy(study, folder)
    write_study(folder, table)

    def write(name, **changes):
        table.assign(**changes).to_csv(folder / name, index=False)

    text = (folder / "patches.csv").read_text()
    (folder / "twice.csv").write_text(text.replace("contrast,correlation", "contrast,contrast", 1))
    (folder / "semicolons.csv").write_text(text.replace(",", ";"))
    (folder / "latin.csv").write_bytes("patch_id,fläche\np1,2\n".encode("latin-1"))
    n = len(table)
    write("one-center.csv", center="A")
    write("one-label.csv", label="tumor")
    write("words.csv", count=["n.d.", *table["count"].astype(str)[1:]])
    write("straddle.csv", patient=["P1" if i in (0, n - 1) else p for i, p in enumerate(table.patient)])
    write("no-group.csv", patient=[None, *table.patient[1:]])
    write("infinite.csv", count=[np.inf, *table["count"][1:]])
    table.drop(columns="split").to_csv(folder / "no-split.csv", index=False)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])
    places = table.drop(columns=["h5", "key", "row"])
    places.assign(image=["cut.png", *["whole.png"] * (n - 1)]).to_csv(folder / "cut.csv", index=False)
    (folder / "cut-images.csv").write_text("image\nwhole.png\ncut.png\n")
    (folder / "file").write_text("a file")
    (folder / "earlier.csv").write_text("an earlier table")
    (folder / "broken").mkdir()
    (folder / "broken" / "record.json").write_text("[1]")
    (folder / "earlier").mkdir()
    (folder / "earlier" / "record.json").write_text('{"schema": "conceptkit/probe/1"}')
    return folder


PROBE = "probe --study conceptkit.toml"

TABLE = "--model mini_inception --weights bundled --layer mixed2 --concept count"

GUIDE = f"guide --study conceptkit.toml {' '.join(TINY)}"

MISTAKES = [
    # columns
    (f"{PROBE} --concept cuont", ["concept", "'cuont'", "near names: count"]),
    (f"{PROBE} --group patiant", ["group", "'patiant'", "near names: patient"]),
    (f"{PROBE} --categorical centre", ["categorical", "'centre'", "near names: center"]),
    (f"{PROBE} --concept split", ["concept", "split", "cannot be probed"]),
    (f"{PROBE} --concept count,count", ["concept", "count", "more than once"]),
    (f"probe --table no-split.csv --split train {TABLE}", ["split", "no column 'split'"]),
    (f"{PROBE} --split internl", ["split", "'internl'", "internal"]),
    (f"probe --table twice.csv {TABLE}", ["table", "contrast", "more than once"]),
    (f"probe --table semicolons.csv {TABLE}", ["table", "separated by commas", "';'"]),
    (f"probe --table latin.csv {TABLE}", ["table", "latin.csv", "UTF-8"]),
    (f"probe --table gone.csv {TABLE}", ["table", "gone.csv"]),
    (f"probe --table . {TABLE}", ["table", "folder"]),
    (f"probe --table no-group.csv {TABLE}", ["group", "1 of"]),
    ("probe --study gone.toml", ["study", "gone.toml"]),
    # concepts that nothing can be learned of
    (f"{PROBE} --concept constant", ["concept", "constant", "1.5"]),
    (f"{PROBE} --concept void", ["concept", "void", "no value"]),
    (f"{PROBE} --concept only", ["concept", "only", "one class", "'x'"]),
    (f"probe --table one-center.csv {TABLE.replace('count', 'center')}", ["concept", "center", "one class", "'A'"]),
    (f"probe --table infinite.csv {TABLE}", ["concept", "count", "finite"]),
    (f"{PROBE} --folds 25", ["folds", "25", "24"]),
    (f"{PROBE} --folds 1", ["folds", "at least 2", "1"]),
    # networks and pixels
    (f"{PROBE} --layer mixed11", ["layer", "'mixed11'", "near names: mixed1"]),
    (f"{PROBE} --layer mixed2,mixed2", ["layer", "mixed2", "more than once"]),
    (f"{PROBE} --model mini_inceptoin", ["model", "'mini_inceptoin'", "near names: mini_inception"]),
    (f"{PROBE} --model resnet18 --weights gone.pt", ["weights", "gone.pt"]),
    (f"{PROBE} --model broken", ["model", "broken", "checkpoint.json"]),
    (f"probe --table cut.csv {TABLE}", ["cut.png", "cannot be read"]),
    # options
    (f"{PROBE} --pool mean", ["pool", "'mean'", "near names: max; also gap, flatten"]),
    (f"{PROBE} --device gpu", ["device", "'gpu'"]),
    (f"{PROBE} --out earlier", ["out", "earlier", "holds an earlier run"]),
    (f"{PROBE} --out file", ["out", "file", "name a folder"]),
    (f"{PROBE} --out file/run", ["out", "file/run", "is not a folder"]),
    (f"{PROBE} --json .", ["json", "'.'"]),
    (f"{PROBE} --json file/result.json", ["json", "file/result.json"]),
    (f"{PROBE} --folds five", ["--folds", "integer", "'five'"]),
    (f"{PROBE} --leyer mixed2", ["--leyer"]),
    ("prob", ["'prob'", "'probe'"]),
    ("report", ["RUN"]),
    # guided training
    (f"{GUIDE} --encourage cuont", ["concept", "'cuont'", "near names: count"]),
    (f"{GUIDE} --encourage count --discourage count", ["encourage and discourage", "count", "more than once"]),
    (f"{GUIDE} --encourage label", ["label", "main task"]),
    (f"{GUIDE} --encourage constant", ["concept", "constant"]),
    (f"{GUIDE} --encourage count --table words.csv", ["concept", "count", "'n.d.'", "--categorical count"]),
    (f"{GUIDE} --weighting uncertain", ["weighting", "'uncertain'", "near names: uncertainty"]),
    (f"{GUIDE} --reversal rampp", ["reversal", "'rampp'", "near names: ramp; also"]),
    (f"{GUIDE} --unfreeze mixed99", ["layer", "'mixed99'", "near names: mixed9"]),
    (f"{GUIDE} --epochs 0", ["epochs", "at least 1", "0"]),
    (f"{GUIDE} --lr 0", ["lr", "above 0"]),
    (f"{GUIDE} --lr fast", ["--lr", "'fast'"]),
    (f"{GUIDE} --trunk 8,wide", ["trunk", "'wide'"]),
    (f"{GUIDE} --seeds 1,1", ["seeds", "[1, 1]"]),
    (f"{GUIDE} --folds 1", ["folds", "at least 2"]),
    (f"{GUIDE} --device tpu", ["device", "'tpu'"]),
    (f"{GUIDE} --out earlier", ["out", "earlier", "holds an earlier run"]),
    (f"{GUIDE} --table straddle.csv", ["group", "'P1'", "'train'", "'external'"]),
    (f"{GUIDE} --table one-label.csv", ["label", "two classes", "'tumor'"]),
    (f"{GUIDE} --table no-split.csv", ["split", "no column 'split'"]),
    # measuring and reporting
    ("measure cut-images.csv --out earlier.csv --patch-size 96", ["image", "cut.png", "cannot be read"]),
    ("measure gone.csv --out earlier.csv", ["images", "gone.csv"]),
    ("measure cut-images.csv --out cut-images.csv", ["out", "the list of images itself"]),
    ("measure cut-images.csv --out new.txt", ["out", ".csv or .parquet", "new.txt"]),
    ("measure cut-images.csv --out file/new.csv", ["out", "file/new.csv"]),
    ("measure cut-images.csv --out new.csv --measure cuont", ["'cuont'", "near names: count"]),
    ("measure cut-images.csv --out new.csv --on-error ignore", ["on_error", "'ignore'", "fail, skip"]),
    ("report gone", ["run", "gone", "record.json"]),
    ("report broken", ["run", "broken/record.json", "no JSON object"]),
    ("report earlier", ["run", "earlier/record.json", "has no 'study'"]),
    ("report broken -o broken/record.json", ["run"]),
    ("demo --out file", ["out", "file", "name a folder"]),
    ("demo --seed -1 --out new", ["seed", "at least 0", "-1"]),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_ends_with_one_sentence_and_changes_nothing(command, words, odd, monkeypatch):
    monkeypatch.chdir(odd)
    before = contents(odd)
    told = sentence(call(*command.split()))
    for word in words:
        assert word in told
    after = contents(odd)
    if command == "measure cut-images.csv --out earlier.csv --patch-size 96":
        # What was finished before the fault is kept in a folder of its own: whole.png, if its process was quicker.
        parts = {path for path in after if path.parent == odd / "earlier.csv.parts"}
        assert len(parts) <= 1
        after = {path: held for path, held in after.items() if path not in parts}
    assert after == before


def test_activations_that_are_not_numbers_are_refused(odd, table, monkeypatch, tmp_path):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet").state_dict()
    name = next(k for k in reversed(state) if k.startswith("layer4") and k.endswith("weight"))
    state[name].fill_(float("nan"))
    save_file(state, tmp_path / "broken.safetensors")
    monkeypatch.chdir(odd)
    network = ["--model", "test_resnet", "--weights", tmp_path / "broken.safetensors"]
    told = sentence(call(*PROBE.split(), *network, "--layer", "layer4", "--split", "val", "--folds", "2"))
    assert re.fullmatch(r"activations: layer4 must be finite, (\d+) of \1 rows hold NaN or infinity\.", told)
