"""Each adapter on a small file of the exact published layout, and on the real ones that are here."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.pathology.adapters.camelyon import complete
from conceptkit.pathology.adapters.coords import coords_table
from conceptkit.pathology.adapters.image_folder import image_folder
from conceptkit.pathology.adapters.pannuke import TYPES, pannuke
from conceptkit.pathology.adapters.paper_hdf5 import MEASURES, paper_table, read_concepts
from conceptkit.pathology.measuring import write_table
from conceptkit.tables.patches import load_table

# ImageFolder


def test_a_folder_per_class(shared_data, tmp_path):
    found = image_folder(shared_data / "kather24", out=tmp_path / "t.csv", mpp=0.495)
    write_table(found.table, tmp_path / "t.csv")
    table = load_table(tmp_path / "t.csv")
    assert len(table) == 24
    listed = pd.read_csv(shared_data / "kather24" / "index.csv")
    assert dict(zip(table.patch_ids, table.frame["label"], strict=True)) == dict(
        zip(listed["file"], listed["tissue_class"], strict=True)
    )
    assert table.pixels(0).shape == (150, 150, 3)
    with pytest.raises(InputError, match=r"mpp: must be microns per pixel from 0\.01 to 10, got 84\.67"):
        image_folder(shared_data / "kather24", out=tmp_path / "t.csv", mpp=84.67)
    with pytest.raises(InputError, match="folder: must be a folder"):
        image_folder(tmp_path / "none", out=tmp_path / "t.csv")
    with pytest.raises(InputError, match="holds no image in a folder per class"):
        image_folder(tmp_path, out=tmp_path / "t.csv")


# Camelyon


def tiles(*names, drawn=()):
    rows = [
        {"group": n, "x": k, "tumor_share": s if n in drawn else np.nan, "label": v if n in drawn else None}
        for n in names
        for k, (s, v) in enumerate(((0.0, "normal"), (0.3, None), (0.9, "tumor")))
    ]
    return pd.DataFrame(rows)


def test_camelyon17_and_16(tmp_path):
    (tmp_path / "stage_labels.csv").write_text(
        "patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\npatient_039_node_2.tif,macro\n"
        "patient_099_node_4.tif,micro\n"
    )
    names = ("patient_000_node_0", "patient_039_node_2", "patient_099_node_4", "normal_017", "tumor_073", "test_001")
    found = complete(
        tiles(*names, drawn=("patient_039_node_2", "tumor_073")), stage_labels=tmp_path / "stage_labels.csv"
    )
    slides = found.table.groupby("group").first()
    assert slides["center"].to_dict() == dict(
        zip(names, ("0", "1", "4", "camelyon16", "camelyon16", "camelyon16"), strict=True)
    )
    assert slides.loc["patient_039_node_2", "patient"] == "039"
    assert slides.loc["patient_099_node_4", "stage"] == "micro"
    labels = found.table.groupby("group")["label"].agg(lambda v: v.isna().tolist() and [x if x == x else "" for x in v])
    assert list(labels["patient_000_node_0"]) == ["normal"] * 3
    assert list(labels["normal_017"]) == ["normal"] * 3
    assert [x or "" for x in labels["tumor_073"]] == ["normal", "", "tumor"]
    assert found.table[found.table["group"] == "patient_099_node_4"]["label"].isna().all()  # tumor, but nothing drawn
    assert "8 of 18 tiles have no label" in found.notes[0]
    with pytest.raises(InputError, match="slide: must be named as in Camelyon17"):
        complete(tiles("slide_1"))
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must be a CSV with the columns patient and stage"):
        complete(tiles("tumor_073"), stage_labels=tmp_path / "s.csv")


# PanNuke


def fold(folder, number, n=3, tissue=("Breast", "Colon", "Breast")):
    """A fold as it is unpacked: Fold 1/images/fold1/images.npy, …"""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (n, 256, 256, 3)).astype(np.float64)
    masks = np.zeros((n, 256, 256, 6))
    masks[0, 5:20, 5:20, 0] = 7  # neoplastic, in the top left corner alone
    masks[0, 100:120, 100:120, 1] = 3
    masks[2, 120:140, 120:140, 0] = 1  # neoplastic in every crop
    masks[2, 150:160, 150:160, 4] = 2
    masks[2, 60:70, 60:70, 4] = 9
    masks[..., 5] = masks[..., :5].sum(axis=-1) == 0
    place = folder / f"Fold {number}"
    for kind, name, array in (
        ("images", "images", images),
        ("images", "types", np.array(tissue)),
        ("masks", "masks", masks),
    ):
        inner = place / kind / f"fold{number}"
        inner.mkdir(parents=True, exist_ok=True)
        np.save(inner / f"{name}.npy", array)
    return place, images, masks


def test_pannuke(tmp_path):
    places = {k: fold(tmp_path, k) for k in (1, 2, 3)}
    out = tmp_path / "t" / "pannuke.csv"
    found = pannuke([p[0] for p in places.values()], out=out)
    write_table(found.table, out)
    table = load_table(out)
    frame = table.frame
    assert frame.groupby("split").size().to_dict() == {"external": 2, "train": 20}
    assert set(frame["center"]) == {"pannuke"}
    assert set(frame["tissue"]) == {"Breast"}
    assert set(frame[frame["split"] == "external"]["crop"]) == {"center"}
    rows = frame.set_index("patch_id")
    assert rows.loc["fold1_00000_top_left", "label"] == "tumor"
    assert rows.loc["fold1_00000_bottom_right", "label"] == "normal"  # its neoplastic nucleus lies outside
    assert rows.loc["fold3_00000_center", "label"] == "tumor"  # 16 to 20 are inside
    assert rows.loc["fold2_00002_center", [f"{t}_count" for t in TYPES]].tolist() == [1, 0, 0, 0, 2]
    row = int(frame.index[frame["patch_id"] == "fold2_00002_bottom_right"][0])
    np.testing.assert_array_equal(table.pixels(row), places[2][1][2][32:, 32:].astype(np.uint8))
    with h5py.File(out.parent / "pannuke.csv.h5") as file:
        mask = file["masks"][int(rows.loc["fold2_00002_center", "row"])]
    assert len(np.unique(mask)) == 4
    assert set(frame["mpp"]) == {0.25}
    measured = run_measure(out, out=tmp_path / "m.csv").table.set_index("patch_id")
    one = measured.loc["fold2_00002_center"]
    assert (one["count"], one["area_px"]) == (3, (20 * 20 + 2 * 10 * 10) / 3)
    assert one["area_um2"] == pytest.approx(200 / 16)
    assert measured["count"].tolist() == measured[[f"{t}_count" for t in TYPES]].sum(axis=1).tolist()
    assert (tmp_path / measured["mask"].iloc[0]).is_file()  # as seen from the new table
    every = pannuke([places[1][0]], out=tmp_path / "u.csv", tissue="all").table
    assert set(every["tissue"]) == {"Breast", "Colon"}


def test_pannuke_whole_images_are_one_row_each(tmp_path):
    places = {k: fold(tmp_path, k) for k in (1, 2)}
    found = pannuke([p[0] for p in places.values()], out=tmp_path / "t.csv", patch_size=256, training=1)
    assert found.table.groupby("group").size().unique().tolist() == [1]
    assert found.table["crop"].unique().tolist() == ["center"]
    assert "training rows hold 1." in found.notes[1]
    with h5py.File(tmp_path / "t.csv.h5") as file:
        assert len(file["images"]) == len(found.table)
        np.testing.assert_array_equal(file["images"][0], places[1][1][0].astype(np.uint8))


def test_pannuke_arrays_of_another_range_or_kind(tmp_path):
    place, images, masks = fold(tmp_path, 1)
    for name, values, sentence in (
        ("images", images / 255, r"images of fold 1 must hold values from 0 to 255, got 0 to 1"),
        ("images", images * 300, r"must hold values from 0 to 255"),
        (
            "masks",
            np.kron(np.arange(64).reshape(8, 8) % 2, np.ones((32, 32)))[None, ..., None] + 0 * masks,
            "class map",
        ),
    ):
        path = next(place.rglob(f"{name}.npy"))
        kept = path.read_bytes()
        np.save(path, values)
        with pytest.raises(InputError, match=sentence):
            pannuke([place], out=tmp_path / "new" / "t.csv")
        assert not (tmp_path / "new").exists()
        path.write_bytes(kept)


def test_pannuke_that_is_not(tmp_path):
    place, *_ = fold(tmp_path, 1)
    for options, sentence in (
        ({"tissue": "Brain"}, "tissue: fold 1 has no 'Brain'; it has Breast, Colon"),
        ({"patch_size": 300}, "patch_size: must be at most 256"),
        ({"crop": "middle"}, "crop: 'middle' is not known"),
    ):
        with pytest.raises(InputError, match=sentence):
            pannuke([place], out=tmp_path / "t.csv", **options)
    (place / "masks" / "fold1" / "masks.npy").unlink()
    with pytest.raises(InputError, match=r"must hold one masks\.npy, got 0"):
        pannuke([place], out=tmp_path / "t.csv")


# The paper's HDF5


def test_the_authors_own_files(shared_data, tmp_path):
    folder = shared_data / "authors"
    lists = sorted(folder.glob("*.csv"))
    found = paper_table(folder / "demo_concept_measures.h5py", lists=lists, out=tmp_path / "t.csv")
    table = found.table
    raw = read_concepts(folder / "demo_concept_measures.h5py")
    assert len(raw) == 50
    row = table.set_index("patch_id").loc["all500/normal/level7/centre0/patient017/node2/patches/392"]
    assert row["full_contrast"] == 0.77678077696
    assert (row["label"], row["center"], row["patient"]) == ("normal", "0", "017")
    assert (table[table["patch_id"].str.startswith("cam16")]["center"] == "camelyon16").all()
    assert table["patch_id"].is_unique
    # No row that any list tags validation or test is one of training.
    for path in lists:
        for line in path.read_text().splitlines():
            db, entry, number, tag = (c.strip() for c in line.split(","))
            if tag != "train":
                assert table.set_index("patch_id").loc[f"{db}/{entry}/{number}", "split"] in ("val", "internal")
    notes = " ".join(found.notes)
    assert "nuclei_contrast: its standard deviation is 0.0004" in notes
    assert "full_contrast" not in notes  # control
    assert "lines repeat a patch" in notes


def paper_files(folder):
    patches = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    entry = "tumor/level7/centre3/patient066/node2/patches"
    with h5py.File(folder / "patches.h5py", "w") as file:
        file[f"all500/{entry}"] = patches
    with h5py.File(folder / "concepts.h5py", "w") as file:
        for number in (0, 3):
            for k, name in enumerate(MEASURES):
                if not (number == 3 and name == "narea"):
                    file[f"all500/{entry}/{number}/{name}"] = np.array([str(k + number / 10).encode()])
    (folder / "train.csv").write_text(f"all500, {entry}, 0, train\nall500, {entry}, 3, train\n")
    (folder / "val.csv").write_text(f"all500, {entry}, 3, validation\nall500, {entry}, 4, test\n")
    return patches


def test_the_layout_with_pixels_and_what_is_missing(tmp_path):
    patches = paper_files(tmp_path)
    found = paper_table(
        tmp_path / "concepts.h5py",
        lists=[tmp_path / "train.csv", tmp_path / "val.csv"],
        out=tmp_path / "t.csv",
        patches=tmp_path / "patches.h5py",
    )
    write_table(found.table, tmp_path / "t.csv")
    table = load_table(tmp_path / "t.csv")
    assert table.frame["split"].tolist() == ["train", "val", "internal"]
    np.testing.assert_array_equal(table.pixels(1), patches[3])
    narea = table.concept("narea").values
    assert narea[0] == 1
    assert np.isnan(narea[1:]).all()  # missing, and not 1.0
    assert "1 patches stand in lists of several splits and were kept out of training." in found.notes
    (tmp_path / "bad.csv").write_text("all500, x, 1\n")
    with pytest.raises(InputError, match=r"line 1 of .* must be db, entry_path, patch_no, split"):
        paper_table(tmp_path / "concepts.h5py", lists=[tmp_path / "bad.csv"], out=tmp_path / "t.csv")
    with pytest.raises(InputError, match="is not the paper's file of measures"):
        paper_table(tmp_path / "train.csv", out=tmp_path / "t.csv")


# TRIDENT and CLAM


def test_coords_of_trident_and_clam(shared_data, tmp_path):
    slides = shared_data / "wsi"
    stem = "cmu-1-small-region"
    places = np.array([[0, 0], [448, 896], [1000, 300]])
    with h5py.File(tmp_path / f"{stem}_patches.h5", "w") as file:
        data = file.create_dataset("coords", data=places)
        data.attrs.update(
            patch_size=224, patch_size_level0=448, level0_magnification=40, target_magnification=20, overlap=0
        )
    with h5py.File(tmp_path / f"{stem}.h5", "w") as file:
        data = file.create_dataset("coords", data=places)
        data.attrs.update(patch_size=256, patch_level=0, downsample=np.array([1.0, 1.0]), name=stem)
        file["features"] = np.zeros((3, 8))
    for name, size, side in ((f"{stem}_patches.h5", 448, 224), (f"{stem}.h5", 256, 256)):
        found = coords_table([tmp_path / name], slides=slides, out=tmp_path / "t.csv")
        write_table(found.table, tmp_path / "t.csv")
        table = load_table(tmp_path / "t.csv")
        assert set(table.frame["size"]) == {size}
        assert table.pixels(0).shape == (side, side, 3)
        assert table.frame["mpp"].to_numpy() == pytest.approx(0.499 * size / side)  # of the patch, not of the slide
        assert sorted(zip(table.frame["x"], table.frame["y"], strict=True)) == sorted(map(tuple, places.tolist()))


def test_coords_of_a_slide_that_does_not_say_its_resolution(shared_data, tmp_path):
    stem = "tcga-cr-7395-01a-01-ts1"
    for told, expected in (({"target_mpp": 0.5}, {0.5}), ({}, None)):
        with h5py.File(tmp_path / f"{stem}.h5", "w") as file:
            file.create_dataset("coords", data=np.zeros((2, 2), int)).attrs.update(patch_size=256, **told)
        table = coords_table([tmp_path / f"{stem}.h5"], slides=shared_data / "wsi", out=tmp_path / "t.csv").table
        assert (set(table["mpp"]) if "mpp" in table else None) == expected


@pytest.mark.parametrize(
    ("coords", "attributes", "sentence"),
    [
        (np.zeros((3, 3)), {"patch_size": 256}, "must be n x 2"),
        (np.zeros((3, 2)), {}, "do not say their patch_size"),
        (np.zeros((3, 2)), {"patch_size": 256, "patch_level": 1}, "level 1 without its downsample"),
        (None, {}, "holds no coords"),
    ],
)
def test_coords_that_are_none(tmp_path, coords, attributes, sentence):
    (tmp_path / "a.svs").write_bytes(b"")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if coords is not None:
            file.create_dataset("coords", data=coords).attrs.update(attributes)
    with pytest.raises(InputError, match=sentence):
        coords_table([tmp_path / "a.h5"], slides=tmp_path, out=tmp_path / "t.csv")
    with pytest.raises(InputError, match="there is none named b"):
        coords_table([Path("b.h5")], slides=tmp_path, out=tmp_path / "t.csv")


# The command line


def adapt(*arguments):
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_the_command_writes_what_the_function_returns(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    result = adapt("classes", tmp_path, "--mpp", 0.5, "--out", tmp_path / "t.csv", "--json", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    table = load_table(tmp_path / "t.csv")
    assert list(table.frame["label"]) == ["a", "a", "b"]
    assert table.pixels(2).shape == (8, 8, 3)
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["schema"] == "conceptkit/adapt/1"
    assert written["rows_written"] == 3
    assert any("No patient" in note for note in written["notes"])


def test_the_command_completes_tiles_in_their_own_folder(tmp_path):
    frame = tiles("patient_021_node_1").assign(patch_id=["p0", "p1", "p2"], slide="patient_021_node_1.tif", y=0, size=8)
    frame.drop(columns=["tumor_share", "label"]).to_csv(tmp_path / "tiles.csv", index=False)
    (tmp_path / "stage_labels.csv").write_text("patient,stage\npatient_021_node_1.tif,negative\n")
    labels = ("--stage-labels", tmp_path / "stage_labels.csv")
    result = adapt("camelyon", tmp_path / "tiles.csv", *labels, "--out", tmp_path / "patches.csv")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "patches.csv")
    assert set(found["label"]) == {"normal"}
    assert set(found["center"]) == {1}
    elsewhere = adapt("camelyon", tmp_path / "tiles.csv", *labels, "--out", tmp_path / "sub" / "patches.csv")
    assert elsewhere.exit_code == 2
    assert "must lie in the folder of" in elsewhere.output
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("classes", "nowhere", "--out", "t.csv"), "folder: must be a folder"),
        (("classes", ".", "--mpp", "0", "--out", "t.csv"), "mpp: must be microns per pixel from"),
        (("coords", "a.h5", "--slides", "nowhere", "--out", "t.csv"), "slides: must be a folder"),
        (("pannuke", "nowhere", "--out", "t.csv"), "nowhere"),
        (("paper", "nowhere.h5", "--out", "t.csv"), "nowhere.h5"),
        (("camelyon", "nowhere.csv", "--out", "t.csv"), "there is no file nowhere.csv"),
        (("classes", ".", "--out", "t.txt"), "out: must end in"),
    ],
)
def test_mistakes_of_the_command_end_in_a_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = adapt(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
