"""The scripts in examples/ run, at a small size."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from small_study import small_table

import conceptkit as ck
from conceptkit.records import load_record

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One random network, no layout, and an empty current folder."""
    monkeypatch.chdir(tmp_path)


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_checkerboards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = example("checkerboard").main(["--out", str(tmp_path / "run"), "--sources", "20", "--epochs", "4"])
    assert page.exists()
    table = pd.read_csv(tmp_path / "run" / "patches.csv")
    by_class = table.groupby(["split", "label"])["checkerboard"].mean()
    assert by_class["train", "angular"] > by_class["train", "round"] + 3  # the shortcut of the training rows
    assert abs(by_class["internal", "angular"] - by_class["internal", "round"]) < 3  # which evaluation does not have
    probed = load_record(tmp_path / "run" / "probe").to_frame().set_index(["layer", "concept"])["score"]
    assert probed["mixed2", "checkerboard"] > 0.5
    assert "linear:checkerboard" in capsys.readouterr().out


def test_the_embedded_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = example("embedded_study")
    # what the example calls, on some of its patients and for two epochs
    small_table(ck.embedded_study("null")).to_csv(tmp_path / "few.csv", index=False)
    few: dict[str, Any] = {"table": tmp_path / "few.csv", "folds": 2}
    options = {"epochs": 2, "warmup": 1, "trunk": (8,)}
    monkeypatch.setattr(ck, "run_probe", functools.partial(ck.run_probe, permutations=0, **few))
    monkeypatch.setattr(ck, "run_guide", functools.partial(ck.run_guide, **options, **few))
    script.main()
    said = capsys.readouterr().out
    assert "guided, seed 0" in said
    assert "guided - balanced, internal, linear:center" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("What each layer encodes of each concept", "Encouraged concepts, before and after"):
        assert title in page


def paper_layout(folder: Path, study: ck.Study) -> list[str]:
    """Write the embedded study's patches as the authors' files: five centers, patients in one split each."""
    table = study.load_table()
    frame = table.frame
    numbers = {name: k for k, name in enumerate(sorted(frame.center.unique()))}
    lines = []
    with h5py.File(folder / "patches.h5", "w") as patches, h5py.File(folder / "concepts.h5", "w") as concepts:
        for center, number in numbers.items():
            for p, patient in enumerate(sorted(frame[frame.center == center].patient.unique())[:6]):
                for label in ("normal", "tumor"):
                    rows = np.flatnonzero(((frame.patient == patient) & (frame.label == label)).to_numpy())[:2]
                    if not len(rows):
                        continue
                    entry = f"{label}/level7/centre{number}/patient{number * 100 + p:03d}/node0/patches"
                    patches[f"cam17/{entry}"] = np.stack([table.pixels(int(row)) for row in rows])
                    for k in range(len(rows)):
                        concepts[f"cam17/{entry}/{k}/ncount"] = np.array([b"0.5"])
                        lines.append(f"cam17, {entry}, {k}, train")
    (folder / "lists.csv").write_text("\n".join(lines) + "\n")
    named = {"--patches": "patches.h5", "--concepts": "concepts.h5", "--lists": "lists.csv"}
    return [part for option, file in named.items() for part in (option, str(folder / file))]


@pytest.mark.long
def test_the_papers_experiment(tmp_path: Path, embedded: ck.Study) -> None:
    script = example("camelyon_experiment")
    small = ["--model", "mini_inception", "--weights", "bundled", "--layer", "mixed2", "--recipe", "ours"]
    small += ["--models", "count", "--epochs", "2", "--seeds", "0", "--permutations", "0"]
    small += ["--out", str(tmp_path / "run")]
    arguments = [*paper_layout(tmp_path, embedded), *small]
    page = script.main(arguments)
    text = page.read_text(encoding="utf-8")
    for title in ("The main label from concept values only", "AUC of the main task by network", "Patches of the run"):
        assert title in text
    table = pd.read_csv(tmp_path / "run" / "patches.csv", dtype={"patient": str})
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert set(table[table.center == 4]["split"]) == {"external"}
    assert {p.suffix for p in (tmp_path / "run" / "tables").iterdir()} == {".tex"}
    assert script.main(arguments) == page  # what is finished is kept


def test_patients_stay_together() -> None:
    script = example("camelyon_experiment")
    table = pd.DataFrame({"center": ["0"] * 20 + ["4"] * 4, "patient": [f"p{i // 2}" for i in range(24)]})
    split = script.patient_splits(table)
    assert (split.groupby(table["patient"]).nunique() == 1).all()
    assert (split[table.center == "4"] == "external").all()
    assert split.value_counts().to_dict() == {"train": 12, "val": 4, "internal": 4, "external": 4}
