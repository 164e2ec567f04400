"""`nuclei train` and `nuclei score`: numbers against the definitions, patients kept apart, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.nuclei import split
from conceptkit.errors import InputError
from conceptkit.options import COMMANDS
from conceptkit.options.nuclei import NucleiScore, NucleiTrain
from conceptkit.pathology import nucleus_training
from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.annotated import open_annotated
from conceptkit.pathology.compact import load_compact, save_compact
from conceptkit.pathology.compact_network import CompactNetwork
from conceptkit.pathology.hematoxylin import segment
from tests.test_nuclei import drawn_tissue


@pytest.fixture
def listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["image,mask,mpp,patient,organ"]
    for k in range(3):
        image, labels = drawn_tissue(0.25, 40, seed=k, number=16)
        Image.fromarray(image).save(f"i{k}.png")
        Image.fromarray(labels.astype(np.uint16)).save(f"m{k}.png")
        rows.append(f"i{k}.png,m{k}.png,0.25,p{k},{'lung' if k else 'colon'}")
    Path("images.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    save_compact(CompactNetwork().state_dict(), {"threshold": 0.5, "apart": 1.25}, Path("start.safetensors"))
    return tmp_path


def change(line, column, value):
    table = pd.read_csv("images.csv", dtype=str)
    table.loc[line, column] = value
    table.to_csv("images.csv", index=False)


def call(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_scores_are_the_definitions(listed):
    scored = NucleiScore(images="images.csv", nuclei="hematoxylin", by="organ", patch_size=80, out="s.csv").run()
    expected = []
    for k in range(3):
        image, labels = np.asarray(Image.open(f"i{k}.png")), np.asarray(Image.open(f"m{k}.png")).astype(int)
        found = segment(image, 0.25)
        expected.append(agreement(found, labels))
    assert scored.rows["aji"].tolist() == [e.aji for e in expected]
    assert scored.rows["f1"].tolist() == [e.dq for e in expected]
    assert scored.groups[""]["pq"] == pytest.approx(np.mean([e.pq for e in expected]))
    assert scored.groups["lung"]["dice"] == pytest.approx(np.mean([e.dice for e in expected[1:]]))
    counts = []
    for k in range(3):
        found, labels = segment(np.asarray(Image.open(f"i{k}.png")), 0.25), np.asarray(Image.open(f"m{k}.png"))
        for y in (0, 80):
            for x in (0, 80):
                cut = np.s_[y : y + 80, x : x + 80]
                counts.append([len(set(np.unique(a[cut])) - {0}) for a in (found, labels)])
    one, two = np.array(counts, dtype=float).T
    assert scored.groups[""]["r"] == pytest.approx(np.corrcoef(one, two)[0, 1])
    assert scored.groups[""]["bias"] == pytest.approx(one.sum() / two.sum() - 1)
    assert len(pd.read_csv("s.csv")) == 3


def test_the_command_line_prints_and_draws_scores(listed):
    words = ["--nuclei", "hematoxylin", "--by", "organ", "--figure", "f.png", "--json", "s.json", "--patch-size", 80]
    result = call("nuclei", "score", "images.csv", *words)
    assert result.exit_code == 0, result.output
    assert "count bias" in result.output
    assert "lowest AJI: i" in result.output
    written = json.loads(Path("s.json").read_text())
    assert written["schema"] == "conceptkit/nuclei-score/1"
    assert [g["group"] for g in written["groups"]] == ["colon", "lung"]
    with Image.open("f.png") as figure:
        assert figure.size == (4 * 84, 3 * 84)


def test_images_without_nuclei_have_no_scores(listed):
    Image.fromarray(np.zeros((160, 160), np.uint16)).save("m0.png")
    scored = NucleiScore(images="images.csv", nuclei="hematoxylin").run()
    assert np.isnan(scored.rows["aji"][0])
    assert scored.groups[""]["aji"] == pytest.approx(scored.rows["aji"][1:].mean())
    assert scored.notes == ("1 images have no annotated nuclei (i0): they have no scores.",)
    assert scored.to_dict()["images"][0]["aji"] is None


def test_training_keeps_patients_apart_and_writes_weights(listed, monkeypatch):
    monkeypatch.setattr(nucleus_training, "CROP", 64)
    monkeypatch.setattr(nucleus_training, "EVERY", 5)
    monkeypatch.setattr(nucleus_training, "THRESHOLDS", (0.4, 0.5))
    monkeypatch.setattr(nucleus_training, "APARTS", (1.5,))
    words = ["--from", "start.safetensors", "--out", "w.safetensors", "--steps", 5, "--device", "cpu"]
    result = call("nuclei", "train", "images.csv", *words, "--json", "t.json")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("t.json").read_text())
    assert len(written["validation"]) == 1
    assert sorted(written["training"] + written["validation"]) == ["i0", "i1", "i2"]
    assert load_compact(Path("w.safetensors")).threshold in nucleus_training.THRESHOLDS
    assert not Path("w.safetensors.parts").exists()
    assert "validation images" in result.output
    scored = call("nuclei", "score", "images.csv", "--nuclei-weights", "w.safetensors")
    assert scored.exit_code == 0, scored.output


def test_types_are_learned_and_given_where_masks_have_them(listed, monkeypatch):
    for name, value in {"CROP": 64, "EVERY": 40, "THRESHOLDS": (0.5,), "APARTS": (1.5,)}.items():
        monkeypatch.setattr(nucleus_training, name, value)
    for k in range(3):
        image, labels = np.asarray(Image.open(f"i{k}.png")).copy(), np.asarray(Image.open(f"m{k}.png"))
        brown = (labels > 0) & (labels % 2 == 0)
        image[brown] = image[brown][:, ::-1]
        Image.fromarray(image).save(f"i{k}.png")
        pairs = [f"{n},{'dead' if n % 2 == 0 else 'neoplastic'}" for n in np.unique(labels[labels > 0])[:-1]]
        Path(f"t{k}.csv").write_text("\n".join(["label,type", *pairs]) + "\n")
    table = pd.read_csv("images.csv", dtype=str).assign(types=[f"t{k}.csv" for k in range(3)])
    table.to_csv("images.csv", index=False)
    given = {"images": "images.csv", "start": "start.safetensors", "out": "w.safetensors", "device": "cpu"}
    trained = NucleiTrain(**given, steps=40).run()
    assert trained.types == ("dead", "neoplastic")
    assert trained.recall > 0.85
    assert NucleiTrain(**given, steps=1).run().recall < 0.8  # the control: not trained
    again = NucleiTrain(**{**given, "start": "w.safetensors"}, steps=1).run()
    assert again.types == trained.types
    with pytest.raises(InputError, match="maskrcnn learns no types"):
        NucleiTrain(**{**given, "start": "maskrcnn"}, type_names="1=dead,2=neoplastic").run()
    Path("t0.csv").write_text("label,type\n1,dead\n")
    table[:2].assign(types="t0.csv").to_csv("images.csv", index=False)
    with pytest.raises(InputError, match=r"types: at least two types .* got dead only"):
        NucleiTrain(**given).run()


def test_patients_are_split_and_not_images():
    held_out = split(["a", "a", "b", "b", "c"], 0.2, 0)
    assert len(held_out) == 1
    assert split(["a", "b"], 0.9, 0) < {"a", "b"}
    with pytest.raises(InputError, match=r"images: at least two patients are needed.*got 3 image\(s\) of 1\."):
        split(["a", "a", "a"], 0.2, 0)


def class_map():
    labels = np.asarray(Image.open("m0.png"))
    Image.fromarray((labels > 0).astype(np.uint8) + (labels > 8)).save("m0.png")


def large():
    y, x = np.indices((160, 160))
    Image.fromarray((np.hypot(y - 80, x - 80) < 70).astype(np.uint8)).save("m0.png")
    change(0, "mpp", "1.5")


def dark():
    image = np.random.default_rng(0).integers(4, 13, (160, 160, 3)).astype(np.uint8)
    image[np.asarray(Image.open("m0.png")) > 0] = (30, 60, 140)
    Image.fromarray(image).save("i0.png")


def half_size():
    Image.fromarray(np.asarray(Image.open("m0.png"))[::2, ::2]).save("m0.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (class_map, "mask: m0.png is not a label image: it has 2 labels in"),
        (large, "mask: the median nucleus of m0.png has 15"),
        (dark, "image: i0 is dark (median 11 of 255), as fluorescence is"),
        (lambda: change(0, "mpp", "2.5"), "nuclei: the image has 2.5 microns per pixel"),
        (half_size, "mask: m0.png has 80 x 80 pixels, its image i0.png has 160 x 160."),
        (lambda: change(0, "mask", ""), "mask: a path is needed, got none for i0 in images.csv."),
        (lambda: change(slice(1, 2), "patient", "p0"), "images: at least two patients are needed"),
    ],
)
def test_what_cannot_be_trained_on(listed, spoil, message):
    spoil()
    result = call(
        "nuclei", "train", "images.csv", "--from", "start.safetensors", "--out", "w.safetensors", "--steps", 1
    )
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_one_image_is_not_enough(listed):
    Path("images.csv").write_text("image,mask,mpp\ni0.png,m0.png,0.25\n")
    with pytest.raises(InputError, match=r"at least two patients are needed.*got 1 image\(s\) of 1\."):
        NucleiTrain(images="images.csv", start="start.safetensors", out="w.safetensors").run()


def test_lists_and_columns_that_are_wrong(listed):
    with pytest.raises(InputError, match=r"by: 'organs' is not a column; near names: organ"):
        NucleiScore(images="images.csv", nuclei="hematoxylin", by="organs").run()
    Path("plain.csv").write_text("image\ni0.png\n")
    with pytest.raises(InputError, match=r"plain.csv: a column mask is needed"):
        open_annotated(Path("plain.csv"))
    with pytest.raises(InputError, match=r"out: must end in \.safetensors, got w\.pt\."):
        NucleiTrain(images="images.csv", out="w.pt").run()


def test_tissue_of_any_stain_is_not_taken_for_fluorescence():
    from conceptkit.pathology.annotated import check_bright

    for strength in (0.4, 1.0, 1.8):
        check_bright(drawn_tissue(0.25, 40, strength=strength)[0], "i")
    grey = np.where(np.arange(3600).reshape(60, 60) % 7 == 0, 200, 0).astype(np.uint8)
    with pytest.raises(InputError, match="as fluorescence is"):
        check_bright(np.repeat(grey[..., None], 3, axis=-1), "i")
    half = drawn_tissue(0.25, 40)[0].copy()
    half[:, :100] = 0  # the black of a slide's outside
    check_bright(half, "i")


def test_subcommands_are_commands():
    assert {"nuclei train", "nuclei score"} < set(COMMANDS)
    result = call("nuclei")
    assert "train" in result.output
    assert "score" in result.output
