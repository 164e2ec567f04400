"""Slides in folders: found at any depth, each slide once, and nothing else taken for a slide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import openslide
import pandas as pd
import pytest
import slide_files
from PIL import Image
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.tile import run_tile
from conceptkit.errors import InputError
from conceptkit.pathology.adapters.coords import coords_table
from conceptkit.pathology.finding import find_slides, same_slides, slide_facts
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.tiling import Tiling, tile_slide


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two different slides."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("one", "two")):
        image = slide_files.tissue(600, 400, seed=seed)
        slide_files.write_slide(folder / f"{name}.tif", [image, slide_files.reduced(image, 2)])
    return folder


def copied(made, folder, *names):
    """Copies of the slide ``one`` (or ``two``, where the name says so) under other names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / ("two.tif" if "two" in name else "one.tif"), folder / name)
    return folder


def names_in(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_slides_are_found_at_any_depth_and_nothing_else(made, tmp_path):
    copied(made, tmp_path, "0a1b/one.tif", "9f/logs/two.svs", "plain", "case.svs.partial", "deep/other.tif.tmp")
    copied(made, tmp_path, ".trash/hidden.tif", "__MACOSX/x.tif", "._one.tif")
    (tmp_path / "cut.svs").write_bytes(b"cut off")
    (tmp_path / "gone.ndpi").symlink_to(tmp_path / "nowhere.ndpi")
    for other in (
        "0a1b/one.xml",
        "one.geojson",
        "one.json",
        "annotations.txt",
        "0a1b/one.parcel",
        "a.png.tmp",
    ):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("<ImageScope/>")
    Image.new("RGB", (64, 64)).save(tmp_path / "thumbnail.png")
    # An MRXS slide is a file and a folder of its data.
    (tmp_path / "m.mrxs").write_bytes(b"")
    copied(made, tmp_path, "m/Data0000.tif")
    slides, notes = find_slides([tmp_path])
    assert names_in(slides, tmp_path) == ["0a1b/one.tif", "9f/logs/two.svs", "cut.svs", "gone.ndpi", "m.mrxs", "plain"]
    assert notes == ["Passed over case.svs.partial, other.tif.tmp: the name says that the file is unfinished."]
    again, _ = find_slides([tmp_path, tmp_path / "0a1b", tmp_path / "0a1b" / "one.tif"])
    assert again == slides  # named twice


def test_links_are_followed_once(made, tmp_path):
    copied(made, tmp_path, "store/one.tif", "real.tif")
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "store")
    (folder / "linked-again").symlink_to(tmp_path / "store")
    (folder / "circle").symlink_to(folder)
    (folder / "file.tif").symlink_to(tmp_path / "real.tif")
    slides, _ = find_slides([folder])
    assert names_in(slides, folder) == ["file.tif", "linked/one.tif"]


def test_a_folder_without_slides_is_refused(made, tmp_path):
    copied(made, tmp_path, "one.tif.part")
    with pytest.raises(InputError, match="and its sub-folders have no slide that OpenSlide can read"):
        find_slides([tmp_path])
    with pytest.raises(InputError, match="at least one is needed"):
        find_slides([])


def test_one_slide_under_several_names_is_cut_once(made, tmp_path):
    folder = copied(made, tmp_path / "s", "a/patient1.tif", "b/patient2.tif", "two.tif")
    (folder / "patient3.tif").symlink_to(folder / "two.tif")
    result = CliRunner().invoke(
        app,
        [
            *("tile", str(folder), "--out", str(tmp_path / "t.csv"), "--size", "64", "--workers", "1"),
            *("--json", str(tmp_path / "r.json")),
        ],
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "t.csv")
    assert set(table["group"]) == {"patient1", "patient3"}
    alone = run_tile([made], out=tmp_path / "alone.csv", size=64).table
    assert len(table) == len(alone)
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["copies"] == [
        {"what": str(folder / "b/patient2.tif"), "same_as": str(folder / "a/patient1.tif")},
        {"what": str(folder / "two.tif"), "same_as": str(folder / "patient3.tif")},
    ]
    assert "Left out 2 files that open as the same slide as another file" in " ".join(written["notes"])


def test_of_copies_the_one_with_annotations_is_kept(made, tmp_path):
    folder = copied(made, tmp_path / "s", "a.tif", "b.tif")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "b.json").write_text(
        json.dumps({"positive": [{"name": "p", "vertices": [[0, 0], [600, 0], [600, 400], [0, 400]]}], "negative": []})
    )
    tiled = run_tile([folder], out=tmp_path / "t.csv", size=64, annotations=tmp_path / "drawn")
    assert set(tiled.table["group"]) == {"b"}
    assert set(tiled.table["label"]) == {"tumor"}


def test_every_file_of_a_dicom_series_opens_as_one_slide(tmp_path):
    for seed, name in enumerate(("case-a", "case-b")):
        image = slide_files.tissue(600, 400, seed=seed)
        slide_files.write_dicom(tmp_path / "s" / name, image, (1, 2, 4), series=f"1.2.3.{seed}")
    for name in ("1", "2", "3"):  # series of one folder each, whose files have the same names, cannot be told apart
        (tmp_path / "s" / "case-b" / f"{name}.dcm").rename(tmp_path / "s" / "case-b" / f"b{name}.dcm")
    with openslide.OpenSlide(tmp_path / "s" / "case-a" / "3.dcm") as opened:
        assert opened.level_dimensions == ((600, 400), (300, 200), (150, 100))  # control: a file of it is all of it
    tiled = run_tile([tmp_path / "s"], out=tmp_path / "t.csv", size=64)
    assert set(tiled.table["group"]) == {"1", "b1"}
    assert not tiled.table.duplicated(["slide", "x", "y"]).any()
    assert [(Path(copy).name, Path(kept).name) for copy, kept in tiled.copies] == [
        ("2.dcm", "1.dcm"),
        ("3.dcm", "1.dcm"),
        ("b2.dcm", "b1.dcm"),
        ("b3.dcm", "b1.dcm"),
    ]


def test_without_a_digest_bytes_are_compared(made, tmp_path, monkeypatch):
    folder = copied(made, tmp_path, "a.tif", "b.tif", "two.tif", "c.tif")
    data = bytearray((folder / "c.tif").read_bytes())
    data[-1] ^= 1  # of the same length
    (folder / "c.tif").write_bytes(data)

    class Without(openslide.OpenSlide):
        @property
        def properties(self):
            return {k: v for k, v in super().properties.items() if k != "openslide.quickhash-1"}

    slides, _ = find_slides([folder])
    with_digest = same_slides(slides, slide_facts(slides))
    monkeypatch.setattr(openslide, "OpenSlide", Without)
    copies = same_slides(slides, slide_facts(slides))
    assert {c.name: k.name for c, k in copies.items()} == {"b.tif": "a.tif"}
    assert len(with_digest) >= 1


def test_pyramids_that_share_their_coarsest_level_are_different_slides(made, tmp_path):
    image = slide_files.tissue(600, 400)
    coarse = [slide_files.reduced(image, 4)]
    slide_files.write_slide(tmp_path / "a.tif", [image, *coarse])
    other = slide_files.tissue(664, 400, seed=5)
    slide_files.write_slide(tmp_path / "b.tif", [other, *coarse])
    slides, _ = find_slides([tmp_path])
    facts = slide_facts(slides)
    assert len({facts[path].identity[0] for path in slides}) == 1  # control: the digest alone takes them for one
    assert same_slides(slides, facts) == {}


def test_different_slides_of_one_name_are_refused_unless_one_is_broken(made, tmp_path):
    folder = copied(made, tmp_path, "a/one.tif")
    (folder / "b").mkdir()
    (folder / "b" / "one.tif").write_bytes(b"cut off")
    tiled = run_tile([folder / "a", folder / "b"], out=tmp_path / "t.csv", size=64)
    assert [name for name, _ in tiled.skipped] == ["one.tif"]
    shutil.copy(made / "two.tif", folder / "b" / "one.tif")
    with pytest.raises(InputError, match=r"one is the name of more than one slide \(.*a/one.tif, .*b/one.tif\)"):
        run_tile([folder / "a", folder / "b"], out=tmp_path / "u.csv", size=64)


# Coords


def coords(path, places=((0, 0), (128, 64)), **attributes):
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=np.array(places)).attrs.update(patch_size=64, **attributes)
    return path


def test_coords_look_for_slides_only(made, tmp_path):
    slides = copied(made, tmp_path / "s", "deep/one.tif", "two.tif")
    for other in ("deep/one.xml", "one.geojson", "two.xml"):  # by name after the slides: one of them was taken
        (slides / other).write_text("<ImageScope/>")
    (slides / "one.zip").write_bytes(b"PK")
    files = [coords(tmp_path / f"{name}.h5") for name in ("one_patches", "two")]
    table = coords_table(files, slides=slides, out=tmp_path / "t.csv").table
    assert list(dict.fromkeys(table["slide"])) == ["s/deep/one.tif", "s/two.tif"]
    assert set(table["mpp"]) == {0.5}


def test_coords_with_two_candidates_are_refused(made, tmp_path):
    slides = copied(made, tmp_path / "s", "a/one.tif", "b/one.tif")
    file = coords(tmp_path / "one.h5")
    table = coords_table([file], slides=slides, out=tmp_path / "t.csv").table  # a copy of itself is no doubt
    assert set(table["slide"]) == {"s/a/one.tif"}
    shutil.copy(made / "two.tif", slides / "one.svs")
    with pytest.raises(
        InputError, match=r"one is the name of more than one slide \(.*a/one.tif, .*one.svs\); keep one"
    ):
        coords_table([file], slides=slides, out=tmp_path / "t.csv")
    (slides / "one.svs").unlink()
    with pytest.raises(InputError, match=r"are of the same slide, one\.tif; give one of them"):
        coords_table([file, coords(tmp_path / "one_patches.h5")], slides=slides, out=tmp_path / "t.csv")


def test_coords_of_one_slide_under_two_names_are_read_once(made, tmp_path):
    slides = copied(made, tmp_path / "s", "a.tif", "b.tif", "two.tif")
    files = [coords(tmp_path / f"{name}.h5") for name in ("a", "b", "two")]
    found = coords_table(files, slides=slides, out=tmp_path / "t.csv")
    assert list(dict.fromkeys(found.table["group"])) == ["a", "two"]
    assert any("b.tif (as a.tif)" in note for note in found.notes)


def test_coords_of_a_padded_level_lie_where_their_pixels_were_read(tmp_path):
    image = slide_files.tissue(4_000, 700)
    (tmp_path / "s").mkdir()
    path = slide_files.write_slide(
        tmp_path / "s" / "one.tif", [image, *(slide_files.padded(slide_files.reduced(image, f), 128) for f in (2, 4))]
    )
    with openslide.OpenSlide(path) as opened:
        theirs = opened.level_downsamples[2]
        seen = np.asarray(opened.read_region((900, 100), 2, (64, 64)).convert("RGB"), float)
    assert abs(theirs / 4 - 1) > 0.02
    file = coords(tmp_path / "one.h5", [(0, 0), (900, 100)], patch_level=2, downsample=np.array([theirs, theirs]))
    found = coords_table([file], slides=tmp_path / "s", out=tmp_path / "t.csv")
    row = found.table.iloc[1]
    assert (row["size"], row["side"], row["mpp"], row["row"]) == (256, 64, 2.0, 1)
    with open_slide(path) as slide:
        read = slide.region(int(row["x"]), int(row["y"]), 256, 256, scale=4).astype(float)
        unmoved = slide.region(900, 100, 256, 256, scale=4).astype(float)
    assert np.abs(read - seen).mean() < 4 < np.abs(unmoved - seen).mean()
    assert any("Coords of one are of a coarser level" in note for note in found.notes)


# What a slide states of itself


@pytest.mark.parametrize(
    ("x", "y", "doubt"),
    [
        (84.67, 84.67, "it states 84.67 × 84.67 µm per pixel, outside of 0.01 to 10"),
        (0.25, 0.5, "it states 0.25 × 0.5 µm per pixel, which differ by more than 10 %"),
        (0.5, 0.5, ""),
        (10, 10, ""),
    ],
)
def test_an_absurd_resolution_is_unknown_with_a_note(tmp_path, x, y, doubt):
    image = slide_files.tissue(600, 400)
    path = slide_files.write_slide(
        tmp_path / "a.tif", [image], mpp=None, resolution=(1e4 / x, 1e4 / y), resolutionunit=3
    )
    with open_slide(path) as slide:
        assert slide.doubt == doubt
        assert slide.mpp == (None if doubt else pytest.approx(x))
    tiled = run_tile([path], out=tmp_path / "t.csv", size=64)
    assert any(f"a.tif ({doubt})" in note for note in tiled.notes) == bool(doubt)
    assert ("mpp" in tiled.table) != bool(doubt)
    given = run_tile([path], out=tmp_path / "u.csv", size=64, mpp=0.25)
    assert set(given.table["mpp"]) == {0.25}
    assert not any("counts as unknown" in note for note in given.notes)
    file = coords(tmp_path / "a.h5")
    found = coords_table([file], slides=tmp_path, out=tmp_path / "c.csv")
    assert any("counts as unknown" in note for note in found.notes) == bool(doubt)


@pytest.mark.parametrize("thumbnail", ["blank", "half", "none"])
def test_tissue_is_detected_in_the_slide_and_not_in_its_thumbnail(tmp_path, thumbnail, monkeypatch):
    image = slide_files.tissue(1_200, 800)
    path = slide_files.write_slide(tmp_path / "s.tif", [image, slide_files.reduced(image, 4)])
    kept = Image.fromarray(slide_files.reduced(image, 2))
    if thumbnail == "blank":
        kept.paste((243, 243, 243), (0, 0, *kept.size))
    elif thumbnail == "half":
        kept.paste((243, 243, 243), (0, 0, kept.width // 2, kept.height))
    plain = tile_slide(path, Tiling(side=64))
    if thumbnail != "none":
        images = {"thumbnail": kept.convert("RGBA")}
        monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(lambda self: images))
    pd.testing.assert_frame_equal(tile_slide(path, Tiling(side=64)), plain)
    assert len(plain) > 60


def test_a_large_slide_of_one_level_is_announced_or_refused(tmp_path, monkeypatch):
    image = slide_files.tissue(1_600, 1_200)
    (tmp_path / "s").mkdir()
    slide_files.write_slide(tmp_path / "s" / "plain.tif", [image])
    slide_files.write_slide(tmp_path / "s" / "levels.tif", [image, slide_files.reduced(image, 16)])
    said = []

    def tiled():
        said.clear()
        return run_tile([tmp_path / "s"], out=tmp_path / "t.csv", size=128, notify=said.append)

    assert (tiled().skipped, said) == ((), [])
    monkeypatch.setattr("conceptkit.pathology.finding.SLOW_PIXELS", 1e6)
    monkeypatch.setattr("conceptkit.images.pyramid._SEVERAL", 1e5)  # in bands, on several threads
    monkeypatch.setattr("conceptkit.images.pyramid._MOST_READ", 2e5)
    assert tiled().skipped == ()
    (note,) = said
    assert "plain.tif is coarse enough" in note
    assert "2 megapixels" in note
    assert "vips tiffsave" in note
    with open_slide(tmp_path / "s" / "plain.tif") as slide:
        picture, scale = slide.picture()
    expected = Image.fromarray(image).resize((100, 75), Image.Resampling.BOX)
    assert (picture.shape, scale) == ((75, 100, 3), 16)
    assert np.abs(picture.astype(float) - np.asarray(expected)).max() <= 1
    monkeypatch.setattr("conceptkit.pathology.slides.MOST_PIXELS", 1e6)
    shutil.rmtree(tmp_path / "t.parts", ignore_errors=True)
    ((name, reason),) = tiled().skipped
    assert name == "plain.tif"
    assert "too many to read; convert it to a pyramid: vips" in reason


def test_the_small_picture_stays_small(tmp_path, monkeypatch):
    image = slide_files.tissue(1_200, 800)
    path = slide_files.write_slide(tmp_path / "s.tif", [image])
    monkeypatch.setattr("conceptkit.pathology.slides._MOST_PICTURE", 5_000)
    with open_slide(path, mpp=9) as slide:  # at 9 µm per pixel nothing would be reduced
        picture, scale = slide.picture()
    assert picture.shape[0] * picture.shape[1] < 5_500
    assert picture.shape[1] * scale == pytest.approx(1_200, rel=0.02)
