"""Resolution: a checkpoint predicts at the microns per pixel and the field of view that it was trained on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands.maps import _title
from conceptkit.errors import InputError
from conceptkit.models.backbones import open_backbone
from conceptkit.models.checkpoints import DESCRIPTION, checkpoint_notes, load_checkpoint, save_checkpoint
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.guide import run_guide
from conceptkit.tables.patches import PatchTable, load_table
from conceptkit.tables.resolution import Resolution, at_resolution, mixture_notes, resolution_of

FINE = Resolution(finest=0.25, coarsest=0.25, side=64)
TASKS = (
    Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
    Task(name="count", kind="continuous", mean=12.5, deviation=3.25),
)


@pytest.fixture(scope="module")
def network():
    backbone = open_backbone("mini_inception")
    torch.manual_seed(0)
    return GuidedModel(backbone.module, 256, TASKS, trunk=(8,), dropout=0.0).eval(), backbone


@pytest.fixture
def checkpoint(network, tmp_path):
    def save(trained_on=FINE):
        save_checkpoint(*network, tmp_path / "checkpoint", trained_on=trained_on)
        return tmp_path / "checkpoint"

    return save


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 512 pixels at 0.125 µm per pixel."""
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb")
    return path, pixels


def of_slide(slide, **columns):
    rows = {
        "patch_id": ["a", "b"],
        "slide": [slide[0].name] * 2,
        "x": [64, 200],
        "y": [0, 128],
        "size": 128,
        "side": 64,
    }
    return PatchTable(pd.DataFrame({**rows, "mpp": 0.25, **columns}), slide[0].parent)


def image_table(folder, mpp, side=64):
    for name in "ab":
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (side, side, 3), np.uint8)).save(
            folder / f"{name}.png"
        )
    frame = pd.DataFrame({"patch_id": ["a", "b"], "image": ["a.png", "b.png"]})
    if mpp is not None:
        frame["mpp"] = mpp
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_patches_of_a_slide_are_read_as_the_checkpoint_was_trained(slide):
    """Coarse tiles of 64 µm are read as windows of 16 µm around their middle: those of a table cut so."""
    coarse = of_slide(slide, x=[0, 0], y=[0, 0], size=512, mpp=1.0, side=64)
    read, notes = at_resolution(coarse, FINE)
    assert read.frame[["x", "y", "size", "side"]].iloc[0].tolist() == [192, 192, 128, 64]
    assert read.frame["mpp"].tolist() == [0.25, 0.25]
    expected = slide[1][192:320, 192:320].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(read.pixels(0) - expected).max() <= 1
    assert "64 pixels of 0.25 µm, 16 µm a side" in notes[0]
    assert "conceptkit tile --tile-mpp 0.25 --size 64" in notes[0]
    same, none = at_resolution(of_slide(slide), FINE)  # the control: what is read so already stays
    pd.testing.assert_frame_equal(same.frame, of_slide(slide).frame)
    assert none == ()


def test_predictions_of_a_slide_do_not_depend_on_how_it_was_cut(slide, checkpoint):
    tables = {}
    for name, columns in {
        "fine": {"x": [192, 192], "y": [192, 192]},
        "coarse": {"x": [0, 0], "y": [0, 0], "size": 512, "mpp": 1.0},
    }.items():
        path = slide[0].parent / f"{name}.csv"
        of_slide(slide, **columns).frame.to_csv(path, index=False)
        tables[name] = ck.predict(checkpoint(), table=path)
    fine, coarse = tables["fine"], tables["coarse"]
    assert "count_predicted" in coarse
    assert "count" not in coarse
    pd.testing.assert_frame_equal(coarse.drop(columns="mpp"), fine.drop(columns="mpp"))
    assert any("were read again" in note for note in coarse.attrs["notes"])
    assert fine.attrs["notes"] == []


def test_a_slide_that_is_coarser_than_the_training_is_refused(slide):
    with pytest.raises(InputError, match=r"s.tif has 0.5 µm per pixel at its highest magnification, .* 0.25; predict"):
        at_resolution(of_slide(slide, size=64, mpp=0.5), FINE)


@pytest.mark.parametrize(("mpp", "side"), [(0.499, 64), (0.25, 128), (0.125, 64)])
def test_images_of_another_resolution_or_field_of_view_are_refused(tmp_path, checkpoint, mpp, side):
    table = image_table(tmp_path, mpp, side)
    with pytest.raises(InputError, match=rf"patches have {side} pixels of {mpp} µm a side, .* 64 pixels of 0.25 µm"):
        ck.predict(checkpoint(), table=table, out=tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_one_slide_or_image_that_cannot_be_used_is_skipped_and_named(slide, checkpoint, tmp_path):
    folder = slide[0].parent
    cut_off = folder / "cut.tif"
    cut_off.write_bytes(slide[0].read_bytes()[:5_000])
    frame = of_slide(slide).frame
    others = [
        frame.assign(slide="cut.tif", patch_id=["c", "d"]),
        frame.assign(slide="absent.tif", patch_id=["e", "f"]),
        frame.assign(size=64, mpp=0.5, slide="coarse.tif", patch_id=["g", "h"]),
    ]
    (folder / "coarse.tif").write_bytes(slide[0].read_bytes())
    table = folder / "several.csv"
    pd.concat([*others, frame]).to_csv(table, index=False)
    frame.to_csv(folder / "one.csv", index=False)
    found = ck.predict(checkpoint(), table=table, maps=tmp_path / "maps")
    pd.testing.assert_frame_equal(found, ck.predict(checkpoint(), table=folder / "one.csv"))
    assert sorted(what for what, _ in found.attrs["skipped"]) == ["absent.tif", "coarse.tif", "cut.tif"]
    pd.concat(others).to_csv(table, index=False)
    with pytest.raises(InputError, match="slide"):
        ck.predict(checkpoint(), table=table)


def test_the_command_names_what_it_skips(checkpoint, tmp_path):
    table = image_table(tmp_path, 0.25)
    (tmp_path / "a.png").write_bytes(b"no image")
    arguments = ["predict", str(checkpoint()), "--table", str(table), "--out", str(tmp_path / "p.csv"), "--json", "-"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert [skipped["what"] for skipped in values["skipped"]] == ["a"]
    assert pd.read_csv(tmp_path / "p.csv")["patch_id"].tolist() == ["b"]
    pd.read_csv(table).assign(mpp=[0.25, 0.5]).to_csv(table, index=False)
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    image.save(tmp_path / "a.png")
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "patches of 0.5" in result.stderr) == (1, True)
    assert pd.read_csv(tmp_path / "p.csv")["patch_id"].tolist() == ["a"]


def test_images_nearly_alike_are_predicted_with_a_note(tmp_path, checkpoint):
    frame = ck.predict(checkpoint(), table=image_table(tmp_path, 0.26))
    assert frame.attrs["notes"] == ["Patches have up to 0.26 µm per pixel, the checkpoint was trained at 0.25."]
    assert ck.predict(checkpoint(), table=image_table(tmp_path, 0.25)).attrs["notes"] == []


def test_what_is_not_stated_is_said(tmp_path, checkpoint):
    said = ck.predict(checkpoint(), table=image_table(tmp_path, None)).attrs["notes"]
    assert said == [
        "RESOLUTION: 2 of 2 patches have no mpp, so their resolution was not compared with the 0.25 µm per "
        "pixel of the checkpoint."
    ]
    old = checkpoint()
    description = json.loads((old / DESCRIPTION).read_text())
    del description["patches"]  # as earlier versions wrote it
    (old / DESCRIPTION).write_text(json.dumps(description))
    assert load_checkpoint(old).trained_on is None
    (note,) = ck.predict(old, table=image_table(tmp_path, 0.25)).attrs["notes"]
    assert note.startswith("RESOLUTION: the checkpoint does not state its µm per pixel")
    for wrong in ({"finest": -1.0, "coarsest": 1.0, "side": 3}, {"finest": "a"}, [1]):
        (old / DESCRIPTION).write_text(json.dumps({**description, "patches": wrong}))
        with pytest.raises(InputError, match="cannot be opened"):
            load_checkpoint(old)


def test_a_checkpoint_of_mixed_resolutions_predicts_within_them(tmp_path, checkpoint):
    mixed = Resolution(finest=0.25, coarsest=0.5, side=64)
    assert ck.predict(checkpoint(mixed), table=image_table(tmp_path, 0.4)).attrs["notes"] == []
    with pytest.raises(
        InputError, match=r"patches have 1 to 1 µm per pixel, the checkpoint was trained at 0.25 to 0.5"
    ):
        ck.predict(checkpoint(mixed), table=image_table(tmp_path, 1.0))


def test_a_table_of_several_resolutions_is_said(tmp_path):
    table = load_table(image_table(tmp_path, [0.25, 0.5]))
    assert resolution_of(table) == Resolution(finest=0.25, coarsest=0.5, side=64)
    assert "several resolutions, 0.25 to 0.5 µm" in mixture_notes(table)[0]
    assert mixture_notes(load_table(image_table(tmp_path, [0.25, 0.26]))) == ()
    half = load_table(image_table(tmp_path, [0.25, None]))
    assert resolution_of(half).mpp is None
    assert mixture_notes(half) == ("1 of 2 patches have no mpp: their resolution is unknown.",)


def test_other_commands_say_that_a_checkpoint_reads_another_resolution(tmp_path, checkpoint, network):
    opened = load_checkpoint(checkpoint())
    (note,) = checkpoint_notes(opened, load_table(image_table(tmp_path, 0.5)))
    assert note.startswith(
        "RESOLUTION: 2 of 2 patches have 0.5 to 0.5 µm per pixel, the checkpoint was trained at 0.25"
    )
    assert checkpoint_notes(opened, load_table(image_table(tmp_path, 0.25))) == ()
    assert checkpoint_notes(network[1], load_table(image_table(tmp_path, 0.5))) == ()
    said = []
    found = ck.extract(
        checkpoint(), image_table(tmp_path, 0.5), layers=["mixed0"], store=tmp_path / "s.h5", notify=said.append
    )
    assert note in said
    assert note in found.notes


def test_guide_stores_the_resolution_of_its_training_rows(study, tmp_path):
    options = {"unfreeze": (), "trunk": (8,), "epochs": 1, "warmup": 0}
    run_guide(study, encourage=["count"], **options, out=tmp_path / "run")
    table = load_table(study.parent / "patches.csv")
    opened = load_checkpoint(tmp_path / "run" / "checkpoints" / "guided-seed0")
    assert opened.trained_on == resolution_of(table)
    assert opened.trained_on.side == table.pixels(0).shape[0]


def test_a_map_says_that_its_values_are_predicted():
    assert _title("count_predicted") == "count, predicted"
    assert _title("probability_tumor") == "probability of tumor"
