"""Slides: tissue, annotations, tiles, and the tile command on the two real slides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import openslide
import pandas as pd
import pytest
from annotation_texts import asap_xml, corners, shape
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands import tile as tiling
from conceptkit.commands.tile import run_tile
from conceptkit.errors import InputError
from conceptkit.families import STAIN
from conceptkit.pathology.slides import open_slide
from conceptkit.pathology.stain import Macenko, lab_statistics
from conceptkit.pathology.tiling import Tiling, read_tiles, tile_slide
from conceptkit.pathology.tissue import share_of_tiles, tissue_mask
from conceptkit.tables.patches import load_table

PINK = (210, 130, 180)


# Tissue


def picture(height=100, width=120):
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), (243, 243, 245), dtype=np.uint8)
    image[20:70, 30:90] = PINK
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def test_tissue_is_found_and_glass_ink_and_black_are_not():
    image = picture()
    image[80:95, 5:25] = (20, 110, 40)  # green marker
    image[:, 110:] = (5, 5, 5)  # the edge of the scan
    image[40:43, 50:53] = 245  # a small hole is tissue
    image[5, 5] = PINK  # dust
    mask = tissue_mask(image)
    expected = np.zeros(mask.shape, bool)
    expected[20:70, 30:90] = True
    assert (mask != expected).mean() < 0.02
    assert not mask[80:95, 5:25].any()
    assert not mask[:, 112:].any()
    assert mask[40:43, 50:53].all()


def test_a_slide_full_of_tissue_and_one_without():
    assert tissue_mask(np.full((40, 40, 3), PINK, np.uint8)).all()
    assert not tissue_mask(np.full((40, 40, 3), 244, np.uint8)).any()


def test_shares_of_boxes_are_sums_over_fine_pixels():
    rng = np.random.default_rng(1)
    mask = rng.random((12, 15)) > 0.5
    fine = np.kron(mask, np.ones((10, 10)))
    fine = np.pad(fine, ((0, 50), (0, 50)))
    corner = rng.integers(0, 120, (40, 2))
    boxes = np.concatenate([corner, corner + rng.integers(3, 40, (40, 2))], axis=1) / 10
    expected = [
        fine[round(y0 * 10) : round(y1 * 10), round(x0 * 10) : round(x1 * 10)].mean() for x0, y0, x1, y1 in boxes
    ]
    np.testing.assert_allclose(share_of_tiles(mask, boxes), expected, atol=1e-9)


# Slides


CMU, TCGA = "cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"


@pytest.fixture
def wsi(shared_data):
    return shared_data / "wsi"


def test_slides_say_what_they_are(wsi):
    with open_slide(wsi / CMU) as slide:
        assert (slide.width, slide.height, slide.mpp) == (2220, 2967, 0.499)
    with open_slide(wsi / TCGA) as slide:
        assert slide.mpp is None
    with open_slide(wsi / TCGA, mpp=0.25) as slide:
        assert slide.mpp == 0.25
        picture_, scale = slide.picture()
        assert scale == 32
        assert picture_.shape == (112, 139, 3)
        with openslide.OpenSlide(wsi / TCGA) as opened:
            thumbnail = np.asarray(opened.get_thumbnail((139, 112)).convert("RGB").resize((139, 112)))
        assert np.abs(picture_.astype(float) - thumbnail).mean() < 6


def test_tiles_of_a_real_slide(wsi):
    table = tile_slide(wsi / CMU, Tiling())
    assert set(table["size"]) == set(table["side"]) == {224}
    assert set(table["mpp"]) == {0.499}
    assert (table["x"] % 224 == 0).all()
    assert (table["x"] + 224 <= 2220).all()
    assert 40 < len(table) < 117  # 9 x 13 whole tiles, not all tissue
    assert (table["tissue_share"] >= 0.5).all()
    every = tile_slide(wsi / CMU, Tiling(tissue=0))
    assert len(table) < len(every) <= 117
    half = tile_slide(wsi / CMU, Tiling(overlap=112))
    assert len(half) > 3 * len(table)
    coarse = tile_slide(wsi / CMU, Tiling(mpp=0.998))
    assert set(coarse["size"]) == {448}
    assert set(coarse["side"]) == {224}
    assert set(coarse["mpp"]) == {0.998}


def test_what_cannot_be_tiled(wsi, tmp_path):
    with pytest.raises(InputError, match=r"are unknown \(it states none\); give them by --mpp"):
        tile_slide(wsi / TCGA, Tiling(mpp=0.5))
    with pytest.raises(InputError, match=r"0\.1 would be finer"):
        tile_slide(wsi / CMU, Tiling(mpp=0.1))
    with pytest.raises(InputError, match="less than a tile"):
        tile_slide(wsi / CMU, Tiling(side=4000))
    with pytest.raises(InputError, match="no tile with a tissue share"):
        tile_slide(wsi / CMU, Tiling(side=1900, tissue=1))
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    with pytest.raises(InputError, match="cannot be read as a slide"):
        tile_slide(tmp_path / "bad.svs", Tiling())
    cut = tmp_path / "cut.svs"
    cut.write_bytes((wsi / CMU).read_bytes()[:400_000])
    with pytest.raises(InputError, match="cannot be read as a slide"):
        tile_slide(cut, Tiling())
    with pytest.raises(InputError, match="not found"):
        tile_slide(tmp_path / "none.svs", Tiling())
    for options, sentence in (
        ({"side": 4}, "size: must be at least 8"),
        ({"overlap": 224}, "overlap: must be at least 0 and less"),
        ({"tissue": 2}, "tissue: must be a share"),
        ({"mpp": -1}, "tile-mpp: must be a positive"),
        ({"slide_mpp": 0}, "mpp: must be a positive"),
    ):
        with pytest.raises(InputError, match=sentence):
            Tiling(**options)


def test_the_table_reads_the_pixels_of_the_slide(wsi, tmp_path):
    tiled = run_tile([wsi], out=tmp_path / "tiles.csv")
    assert tiled.skipped == ()
    assert not (tmp_path / "tiles.csv.parts").exists()
    assert set(tiled.table["group"]) == {Path(CMU).stem, Path(TCGA).stem}
    table = load_table(tmp_path / "tiles.csv")
    assert table.concept_names == []
    row = len(table) // 2
    record = table.frame.iloc[row]
    with openslide.OpenSlide(tmp_path / record["slide"]) as opened:
        region = opened.read_region((record["x"], record["y"]), 0, (224, 224))
    np.testing.assert_array_equal(table.pixels(row), np.asarray(region)[..., :3])
    assert any("--mpp" in note for note in tiled.notes)


def test_a_coarser_resolution_is_read_from_the_slide(wsi, tmp_path):
    run_tile([wsi / TCGA], out=tmp_path / "t.csv", mpp=0.25, tile_mpp=0.5)
    table = load_table(tmp_path / "t.csv")
    pixels = table.pixels(3)
    assert pixels.shape == (224, 224, 3)
    x, y = table.frame.loc[3, ["x", "y"]]
    with openslide.OpenSlide(wsi / TCGA) as opened:
        full, beside = (
            np.asarray(opened.read_region((int(x) + d, int(y)), 0, (448, 448)).convert("RGB").resize((224, 224)), float)
            for d in (0, 24)
        )
    difference = np.abs(pixels - full).mean()  # it is read from level 1, which the scanner made in its own way
    assert difference < 10
    assert difference < np.abs(pixels - beside).mean() / 2  # control: another place


@pytest.mark.parametrize("kind", ["png", "h5"])
@pytest.mark.parametrize("options", [{}, pytest.param({"overlap": 100}, marks=pytest.mark.long), {"tile_mpp": 0.998}])
def test_exported_pixels_are_those_of_the_slide(wsi, tmp_path, kind, options):
    in_slide = run_tile([wsi / CMU], out=tmp_path / "a.csv", size=128, **options)
    exported = run_tile([wsi / CMU], out=tmp_path / "deep" / "b.csv", size=128, export=kind, **options)
    assert list(in_slide.table["patch_id"]) == list(exported.table["patch_id"])
    assert "slide" not in exported.table
    here, there = load_table(tmp_path / "a.csv"), load_table(tmp_path / "deep" / "b.csv")
    for row in range(0, len(here), 37):
        difference = np.abs(here.pixels(row).astype(int) - there.pixels(row))
        assert difference.max() <= (0 if not options.get("tile_mpp") else 2)


def test_stain_is_normalised_where_pixels_are_kept(wsi, tmp_path, shared_data):
    reference = shared_data / "authors" / "normalizing_patch.npy"
    run_tile([wsi / CMU], out=tmp_path / "raw.csv", export="h5", size=512)
    run_tile([wsi / CMU], out=tmp_path / "same.csv", export="h5", size=512, stain="reinhard", stain_reference=reference)
    tables = [load_table(tmp_path / f"{n}.csv") for n in ("raw", "same")]
    # Of all tiles together: one tile is changed by the slide's stain, not by its own.
    raw, same = (lab_statistics(np.stack([t.pixels(k) for k in range(len(t))])).mean for t in tables)
    target = lab_statistics(np.load(reference)[None]).mean
    assert np.abs(raw - target).max() > 5
    assert np.abs(same - target).max() < 1.5
    with pytest.raises(InputError, match="name --export png or h5"):
        run_tile([wsi / CMU], out=tmp_path / "t.csv", stain="reinhard", stain_reference=reference)
    with pytest.raises(InputError, match=r"stain-reference: an image or \.npy"):
        run_tile([wsi / CMU], out=tmp_path / "t.csv", export="h5", stain="reinhard")


def test_a_slides_stain_is_that_of_its_tiles_not_of_its_thumbnail(wsi, tmp_path, shared_data):
    reference = np.load(shared_data / "authors" / "normalizing_patch.npy")
    raw = np.stack([*read_all(wsi / CMU)])
    with open_slide(wsi / CMU) as slide:
        thumbnail = slide.picture()[0][None]
    spread, amounts = {}, {}
    for stain in STAIN:
        options = {"export": "h5", "stain": stain, "stain_reference": shared_data / "authors" / "normalizing_patch.npy"}
        run_tile([wsi / CMU], out=tmp_path / f"{stain}.csv", **options)
        with h5py.File(tmp_path / f"{stain}_tiles" / f"{Path(CMU).stem}.h5") as file:
            made = file["patches"][:]
        method = STAIN[stain].fit(reference)
        by_thumbnail = method.transform(raw, source=method.measure(thumbnail))
        spread[stain] = [lab_statistics(tiles).sd for tiles in (reference[None], made, by_thumbnail)]
        by_all = method.transform(raw, source=method.measure(raw))
        amounts[stain] = [np.abs(tiles.astype(float) - by_all).mean() for tiles in (made, by_thumbnail)]
    target, made_sd, thumbnail_sd = spread["reinhard"]
    np.testing.assert_allclose(made_sd, target, rtol=0.1)
    assert thumbnail_sd[2] > 1.7 * target[2]  # control: what was exported before
    # 32 of 48 tiles do as all of them; by the thumbnail, hematoxylin is 1.75 times too strong.
    for by_some, wrong in amounts.values():
        assert by_some < 0.25 * wrong
    strength, blurred = (Macenko.measure(tiles).most for tiles in (raw, thumbnail))
    assert strength[0] / blurred[0] > 1.7


def read_all(path):
    table = tile_slide(path, Tiling())
    with open_slide(path) as slide:
        yield from read_tiles(slide, table["x"].to_numpy(), table["y"].to_numpy(), size=224, side=224)


def test_labels_by_the_share_of_tumor(wsi, tmp_path):
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / f"{Path(CMU).stem}.xml").write_text(
        asap_xml([("Tumor", corners(0, 0, 1500)), ("_2", corners(0, 0, 300))])
    )
    tiled = run_tile([wsi], out=tmp_path / "t.csv", annotations=folder)
    table = load_table(tmp_path / "t.csv").frame
    cmu = table[table["group"] == Path(CMU).stem]
    inside = (cmu["x"] + 224 <= 1500) & (cmu["y"] + 224 <= 1500) & ((cmu["x"] >= 300) | (cmu["y"] >= 300))
    assert (cmu["label"][inside] == "tumor").all()
    assert (cmu["label"][(cmu["x"] >= 1500) | (cmu["y"] >= 1500)] == "normal").all()
    half = cmu[(cmu["x"] == 1344) & (cmu["y"] == 672)].iloc[0]
    assert half["tumor_share"] == pytest.approx(156 / 224, abs=0.02)
    assert table[table["group"] != Path(CMU).stem]["label"].isna().all()
    assert any("No annotations for 1 of 2 slides" in note for note in tiled.notes)
    strict = run_tile([wsi / CMU], out=tmp_path / "s.csv", annotations=folder, tumor=0.9).table
    between = strict[strict["tumor_share"].between(0.01, 0.89)]
    assert len(between)
    assert between["label"].isna().all()


def test_annotations_are_found_by_name_and_counted_by_class(wsi, tmp_path):
    folder = tmp_path / "drawn"
    folder.mkdir()
    named = folder / f"{Path(CMU).stem.upper()}.geojson"  # capitals do not part slides, nor annotations from them
    named.write_text(json.dumps([shape(corners(0, 0, 1000), name="Tumor"), shape(corners(0, 1000, 1900), name="Fat")]))
    options = {"out": tmp_path / "t.csv", "annotations": folder}
    every = run_tile([wsi / CMU], **options)
    assert any("counted as tumor: Tumor, Fat; use --tumor-class" in note for note in every.notes)
    one = run_tile([wsi / CMU], **options, tumor_class=["tumor"])
    assert not any("counted as tumor" in note for note in one.notes)
    assert (one.table["label"] == "tumor").sum() < (every.table["label"] == "tumor").sum()
    with pytest.raises(InputError, match=r"tumor-class: no annotation is of tumour; near names: Tumor"):
        run_tile([wsi / CMU], **options, tumor_class="tumour")
    published = {"positive": [], "negative": [{"name": "a", "vertices": corners(0, 0, 500)}]}
    named.with_suffix(".json").write_text(json.dumps(published))
    shutil.copy(wsi / TCGA, tmp_path / "other.svs")
    (folder / "other.json").write_text(json.dumps({"positive": [{"vertices": corners(0, 0, 500)}], "negative": []}))
    (folder / "other.xml").write_text(asap_xml([("Tumor", corners(0, 0, 20_000))]))
    both = run_tile([tmp_path / "other.svs"], **options).table
    assert (both["label"] == "tumor").all()  # of XML and JSON the first


def test_a_bad_slide_is_listed_and_the_others_finish(wsi, tmp_path):
    (tmp_path / "bad.svs").write_bytes((wsi / CMU).read_bytes()[:300_000])
    out = tmp_path / "t.csv"
    tiled = run_tile([tmp_path / "bad.svs", wsi / CMU], out=out, workers=2)
    assert [what for what, _ in tiled.skipped] == ["bad.svs"]
    assert len(tiled.table) > 40
    shutil.copy(wsi / TCGA, tmp_path / "bad.svs")  # mended: the good one is not cut again
    again = run_tile([tmp_path / "bad.svs", wsi / CMU], out=out)
    assert again.resumed == 1
    assert again.skipped == ()
    assert set(again.table["group"]) == {"bad", Path(CMU).stem}
    (tmp_path / "worse.svs").write_bytes(b"x")
    with pytest.raises(InputError, match="no slide gave a tile"):
        run_tile([tmp_path / "worse.svs"], out=tmp_path / "u.csv")


def test_a_cut_off_slide_in_a_folder_is_listed_too(wsi, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(wsi / CMU, folder / "good.svs")
    (folder / "Cut.TIF").write_bytes((wsi / CMU).read_bytes()[:300_000])
    (folder / "empty.ndpi").write_bytes(b"")
    (folder / "notes.txt").write_text("no slide, and nobody takes it for one")
    (folder / "._good.svs").write_bytes(b"what a Mac writes beside its files")
    tiled = run_tile([folder], out=tmp_path / "t.csv")
    assert [what for what, _ in tiled.skipped] == ["Cut.TIF", "empty.ndpi"]
    assert set(tiled.table["group"]) == {"good"}
    call = CliRunner().invoke(app, ["tile", str(folder), "--out", str(tmp_path / "t.csv"), "--workers", "1"])
    assert call.exit_code == 1
    assert "skipped Cut.TIF" in call.output


def test_an_interrupted_run_is_taken_up_where_it_was_left(wsi, tmp_path, monkeypatch):
    cut = tiling.tile_one
    seen = []

    def stop(job):
        seen.append(job.slide.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return cut(job)

    monkeypatch.setattr(tiling, "tile_one", stop)
    out = tmp_path / "t.csv"
    with pytest.raises(KeyboardInterrupt):
        run_tile([wsi], out=out)
    assert not out.exists()  # nothing that looks whole
    monkeypatch.setattr(tiling, "tile_one", lambda job: seen.append(job.slide.name) or cut(job))
    tiled = run_tile([wsi], out=out)
    assert seen == [CMU, TCGA, TCGA]
    assert tiled.resumed == 1
    whole = run_tile([wsi], out=tmp_path / "whole.csv")
    pd.testing.assert_frame_equal(tiled.table, whole.table)
    changed = run_tile([wsi], out=out, size=256)  # control: another option is another table
    assert changed.resumed == 0


def test_names_must_tell_slides_apart(wsi, tmp_path):
    (tmp_path / "sub").mkdir()
    shutil.copy(wsi / TCGA, tmp_path / "sub" / CMU)
    with pytest.raises(InputError, match="is the name of more than one slide"):
        run_tile([wsi / CMU, tmp_path / "sub"], out=tmp_path / "t.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="have no slide that OpenSlide can read"):
        run_tile([tmp_path / "empty"], out=tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"annotations: .* has none named as"):
        run_tile([wsi / CMU], out=tmp_path / "t.csv", annotations=tmp_path / "empty")


def test_the_command(wsi, tmp_path):
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    call = [
        *("tile", str(wsi / CMU), str(tmp_path / "bad.svs"), "--out", str(tmp_path / "t.csv")),
        *("--workers", "1", "--json", str(tmp_path / "r.json")),
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["schema"] == "conceptkit/tile/1"
    assert told["rows_written"] == len(pd.read_csv(tmp_path / "t.csv"))
    assert told["skipped"][0]["what"] == "bad.svs"
    wrong = CliRunner().invoke(app, ["tile", str(wsi / CMU), "--out", str(tmp_path / "t.xlsx")])
    assert wrong.exit_code == 2
    measured = CliRunner().invoke(
        app,
        [
            *("measure", str(tmp_path / "t.csv"), "--out", str(tmp_path / "m.csv"), "--workers", "1"),
            *("--nuclei", "hematoxylin", "--measure", "count,area_um2,lab_l"),
        ],
    )
    assert measured.exit_code == 0, measured.output
    table = pd.read_csv(tmp_path / "m.csv")
    assert table["count"].between(0, 400).all()
    assert 10 < table["area_um2"].median() < 80
    assert (tmp_path / table["slide"][0]).resolve() == (wsi / CMU).resolve()


def test_h5_rows_carry_places(wsi, tmp_path):
    run_tile([wsi / CMU], out=tmp_path / "t.csv", export="h5")
    with h5py.File(tmp_path / "t_tiles" / f"{Path(CMU).stem}.h5") as file:
        assert file["patches"].shape[0] == file["coords"].shape[0]
    assert [p.name for p in (tmp_path / "t_tiles").iterdir()] == [f"{Path(CMU).stem}.h5"]
