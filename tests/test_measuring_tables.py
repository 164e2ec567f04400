"""Measuring the patches of a patch table: images with windows, HDF5 rows, masks, and what is at fault."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.images import decoding
from conceptkit.pathology import measuring, measuring_tables
from conceptkit.pathology.images import read_quality, tiff_quality
from conceptkit.pathology.measures import measure
from conceptkit.pathology.measuring_tables import is_patch_table
from conceptkit.pathology.outliers import outlier_note
from conceptkit.tables.patches import load_table

CMU, TCGA = "cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    blocks = np.where(rng.integers(0, 4, (5, 8, 8)), np.arange(1, 65).reshape(8, 8), 0)
    labels = np.kron(blocks, np.ones((1, 4, 4), int)).astype(np.uint16)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["patches"] = pixels
    for k in range(5):
        Image.fromarray(labels[k]).save(tmp_path / f"m{k}.png")
        Image.fromarray(pixels[k]).save(tmp_path / f"i{k}.png")
    rows = "".join(f"p{k},f.h5,patches,{k},0.5,m{k}.png,00{k}\n" for k in range(5))
    (tmp_path / "t.csv").write_text("patch_id,h5,key,row,mpp,mask,patient\n" + rows)
    return tmp_path, pixels, labels


@pytest.mark.parametrize("workers", [1, 2])
def test_values_are_those_of_the_patches(folder, workers):
    path, pixels, labels = folder
    made = run_measure(
        path / "t.csv", out=path / "deep" / "m.csv", workers=workers, names=["core", "hematoxylin", "blur"]
    )
    expected = measure(pixels, labels, 0.5, names=["core", "hematoxylin", "blur"])
    table = pd.read_csv(path / "deep" / "m.csv", dtype={"patient": str})
    assert list(table["patch_id"]) == [f"p{k}" for k in range(5)]
    assert list(table["patient"]) == [f"00{k}" for k in range(5)]
    assert set(table["h5"]) == {"../f.h5"}
    assert table["mask"][1] == "../m1.png"
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5)
    assert made.skipped == ()


def test_a_bad_row_is_told_or_listed(folder):
    path, *_ = folder
    text = (path / "t.csv").read_text().replace("p2,f.h5,patches,2", "p2,f.h5,patches,9").replace("m4.png", "none.png")
    (path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match="patch p2: row 9"):
        run_measure(path / "bad.csv", out=path / "m.csv")
    made = run_measure(path / "bad.csv", out=path / "m.csv", skip_bad=True)
    assert [what for what, _ in made.skipped] == ["p2", "p4"]
    assert list(made.table["patch_id"]) == ["p0", "p1", "p3"]


def count_calls(monkeypatch, module, name, stop_at=None):
    """Note what a module's function is asked for, and interrupt it at one call."""
    measured, seen = getattr(module, name), []

    def noted(job):
        seen.append(job)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return measured(job)

    monkeypatch.setattr(module, name, noted)
    return seen


def test_an_interrupted_table_is_taken_up_where_it_was_left(folder, monkeypatch):
    path, *_ = folder
    monkeypatch.setattr(measuring_tables, "_CHUNK", 2)
    options = {"out": path / "m.csv", "names": ["core", "blur"]}
    with monkeypatch.context() as patch:
        count_calls(patch, measuring_tables, "measure_rows", stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            run_measure(path / "t.csv", **options)
    assert not (path / "m.csv").exists()  # nothing that looks whole
    (path / "t.csv").write_text((path / "t.csv").read_text().replace("patient", "group"))  # says nothing of pixels
    seen, progress = count_calls(monkeypatch, measuring_tables, "measure_rows"), []
    made = run_measure(path / "t.csv", progress=lambda *told: progress.append(told[1:]), **options)
    assert made.resumed == 4
    assert progress == [(4, 5), (5, 5)]
    assert [len(job.rows) for job in seen] == [1]
    assert not (path / "m.csv.parts").exists()
    pd.testing.assert_frame_equal(made.table, run_measure(path / "t.csv", **options).table)
    assert len(seen) == 4  # control: what was finished is measured anew


def test_what_was_measured_before_a_bad_row_is_kept(folder, monkeypatch):
    path, _, labels = folder
    monkeypatch.setattr(measuring_tables, "_CHUNK", 1)
    (path / "m3.png").unlink()
    for _ in range(2):
        with pytest.raises(InputError, match=r"mask: .*m3\.png does not exist"):
            run_measure(path / "t.csv", out=path / "m.csv", names="count")
    Image.fromarray(labels[3]).save(path / "m3.png")  # mended
    Image.fromarray(np.zeros_like(labels[0])).save(path / "m0.png")  # changed
    made = run_measure(path / "t.csv", out=path / "m.csv", names="count")
    assert made.resumed == 2
    assert made.table["count"][0] == 0
    assert run_measure(path / "t.csv", out=path / "m.csv", names="area_px").resumed == 0


def test_interrupted_images_are_taken_up_where_they_were_left(folder, monkeypatch):
    path, *_ = folder
    (path / "list.csv").write_text("image,mask\n" + "".join(f"i{k}.png,m{k}.png\n" for k in range(3)))
    options = {"out": path / "m.csv", "patch_size": 16, "nuclei": "hematoxylin", "masks_out": path / "masks"}
    with monkeypatch.context() as patch:
        count_calls(patch, measuring, "measure_image", stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            run_measure(path / "list.csv", **options)
    (path / "masks" / "i1.png").unlink()
    made = run_measure(path / "list.csv", **options)
    assert made.resumed == 1  # of two, one's nuclei are to be written again
    assert sorted(p.name for p in (path / "masks").iterdir()) == ["i0.png", "i1.png", "i2.png"]
    pd.testing.assert_frame_equal(made.table, run_measure(path / "list.csv", **options).table)


def test_a_mask_of_another_size_is_told(folder):
    path, *_ = folder
    Image.fromarray(np.ones((31, 32), np.uint16)).save(path / "m3.png")
    with pytest.raises(InputError, match=r"mask: m3\.png has 32 x 31 pixels, patch p3 has 32 x 32"):
        run_measure(path / "t.csv", out=path / "m.csv")


def test_windows_take_their_part_of_the_images_mask(folder):
    path, _, labels = folder
    (path / "w.csv").write_text("patch_id,image,x,y,size,mask\na,i0.png,8,4,16,m0.png\n")
    made = run_measure(path / "w.csv", out=path / "m.csv", names="count")
    assert made.table["count"][0] == len(np.unique(labels[0][4:20, 8:24])) - (0 in labels[0][4:20, 8:24])


def test_masks_in_hdf5_are_those_of_the_same_row(folder):
    path, pixels, labels = folder
    with h5py.File(path / "f.h5", "a") as file:
        file["masks"] = labels
    text = (path / "t.csv").read_text()
    for k in range(5):
        text = text.replace(f"m{k}.png", "f.h5")
    (path / "h.csv").write_text(text)
    made = run_measure(path / "h.csv", out=path / "m.csv").table
    np.testing.assert_allclose(made["area_px"], measure(pixels, labels, 0.5, names=["area_px"])["area_px"])
    with h5py.File(path / "g.h5", "w") as file:
        file["masks"] = labels > 0
    (path / "b.csv").write_text(text.replace(",f.h5,0", ",g.h5,0"))
    with pytest.raises(InputError, match="must hold whole numbers"):
        run_measure(path / "b.csv", out=path / "n.csv")
    with h5py.File(path / "g.h5", "w") as file:
        file["masks"] = labels[:2]
    with pytest.raises(InputError, match="has 2 rows, got row 2"):
        run_measure(path / "b.csv", out=path / "n.csv")
    with h5py.File(path / "g.h5", "w") as file:
        file["other"] = labels
    with pytest.raises(InputError, match="holds no label images in a dataset masks"):
        run_measure(path / "b.csv", out=path / "n.csv")


def test_found_nuclei_take_the_place_of_masks(folder):
    path, *_ = folder
    made = run_measure(path / "t.csv", out=path / "m.csv", nuclei="hematoxylin", names="count")
    assert "Nuclei were found by hematoxylin" in made.notes[0]
    kept = run_measure(
        path / "t.csv", out=path / "m.csv", nuclei="hematoxylin", names="count", masks_out=path / "masks"
    )
    assert all((path / name).is_file() for name in kept.table["mask"])


def test_outliers_that_rule_a_measure_are_told(tmp_path):
    rng = np.random.default_rng(0)
    strength = np.linspace(4, 12, 30)[:, None, None, None]
    pixels = (128 + strength * rng.uniform(-1, 1, (30, 32, 32, 3))).astype(np.uint8)
    pixels[7] = 255 * rng.integers(0, 2, (32, 32, 1))  # as a page of print among the patches
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["patches"] = pixels

    def listed(name, rows):
        lines = "".join(f"p{k},f.h5,patches,{k}\n" for k in rows)
        (tmp_path / name).write_text("patch_id,h5,key,row\n" + lines)
        return tmp_path / name

    every = listed("t.csv", range(30))
    given = ["measure", str(every), "--out", str(tmp_path / "m.csv"), "--measure", "contrast", "--workers", "1"]
    result = CliRunner().invoke(app, [*given, "--json", "-"])
    assert result.exit_code == 0, result.output
    values = pd.read_csv(tmp_path / "m.csv")["contrast"].to_numpy()
    assert outlier_note("contrast", values) in json.loads(result.stdout)["notes"]
    clean = run_measure(listed("u.csv", [k for k in range(30) if k != 7]), out=tmp_path / "n.csv", names=["contrast"])
    assert not any("rule its standard deviation" in note for note in clean.notes)  # control


def test_the_jpeg_quality_of_images(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for quality in (40, 80):
        noise.save(tmp_path / f"q{quality}.jpg", quality=quality)
    noise.save(tmp_path / "none.png")
    rows = "a,q40.jpg,0,0,32\nb,q40.jpg,32,0,32\nc,q80.jpg,0,0,32\nd,none.png,0,0,32\n"
    (tmp_path / "t.csv").write_text("patch_id,image,x,y,size\n" + rows)
    made = run_measure(tmp_path / "t.csv", out=tmp_path / "m.csv", names=["jpeg_quality", "blur"]).table
    np.testing.assert_array_equal(made["jpeg_quality"], [40, 40, 80, np.nan])
    assert made["blur"].notna().all()


@pytest.mark.parametrize("big", [False, True])
def test_the_jpeg_quality_within_a_tiff(tmp_path, big):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "tables.tif", compression="jpeg", quality=63, big_tiff=big)
    assert tiff_quality(tmp_path / "tables.tif") == read_quality(tmp_path / "tables.tif") == 63
    whole = io.BytesIO()
    noise.save(whole, format="JPEG", quality=41)
    tags = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    head = b"II*\0\x08\0\0\0"
    tags[259], tags[273] = 7, 0  # a strip that is a whole JPEG, right after the directory
    (tmp_path / "strip.tif").write_bytes(head + tags.tobytes(8) + whole.getvalue())
    assert tiff_quality(tmp_path / "strip.tif") == 41
    noise.save(tmp_path / "plain.tif", big_tiff=big)
    noise.save(tmp_path / "photo.jpg", quality=63)
    for name in ("plain.tif", "photo.jpg", "nothing.svs"):  # a slide that is no TIFF says nothing of its tiles
        assert np.isnan(tiff_quality(tmp_path / name))


def test_the_jpeg_quality_of_slides(shared_data, tmp_path):
    rows = [f"p{k},{shared_data / 'wsi' / name},0,0,64\n" for k, name in enumerate((CMU, TCGA))]
    (tmp_path / "t.csv").write_text("patch_id,slide,x,y,size\n" + "".join(rows))
    made = run_measure(tmp_path / "t.csv", out=tmp_path / "m.csv", names=["jpeg_quality"]).table
    np.testing.assert_array_equal(made["jpeg_quality"], [30, np.nan])  # the first says so itself, JPEG 2000 has none


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tiff_that_is_damaged_has_no_quality(tmp_path, rest, at, change):
    noise = Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8))
    whole = io.BytesIO()
    noise.save(whole, format="TIFF", compression="jpeg", quality=63)
    real = whole.getvalue()
    for content in (b"II*\0" + rest, b"MM\0*" + rest, b"II+\0" + rest, real[:at] + change + real[at + len(change) :]):
        (tmp_path / "t.svs").write_bytes(content)
        quality = tiff_quality(tmp_path / "t.svs")
        assert np.isnan(quality) or 1 <= quality <= 100


def test_a_slides_patch_is_read_once_where_nothing_is_resampled(shared_data, tmp_path, monkeypatch):
    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    read = []
    real = decoding._from_slide
    monkeypatch.setattr(decoding, "_from_slide", lambda *a: read.append(a[1]) or real(*a))

    def measured(side, options=""):
        rows = "".join(
            f"p{k},{slide},{x},{y},224,{side},0.499\n" for k, (x, y) in enumerate(((1228, 900), (1028, 1600)))
        )
        (tmp_path / "t.csv").write_text("patch_id,slide,x,y,size,side,mpp\n" + rows)
        read.clear()
        out = tmp_path / f"m{side}{options}.csv"
        return run_measure(tmp_path / "t.csv", out=out, nuclei="hematoxylin", names=["count", "contrast"]).table

    once = measured(224)
    assert len(read) == 2
    measured(112)
    assert len(read) == 4  # control: here the patch is read for itself
    table = load_table(tmp_path / "m224.csv")
    alone = measure(np.stack([table.pixels(k) for k in range(2)]), names=["contrast"])["contrast"]
    np.testing.assert_allclose(once["contrast"], alone, rtol=1e-6)
    assert (once["count"] > 0).all()


def test_what_cannot_be_measured(folder):
    path, *_ = folder
    for options, sentence in (
        ({"out": path / "t.csv"}, "is the table itself"),
        ({"names": "jpeg_quality"}, "jpeg_quality needs file"),
        ({"names": "cuont"}, "near names: count"),
    ):
        with pytest.raises(InputError, match=sentence):
            run_measure(path / "t.csv", **{"out": path / "m.csv"} | options)
    (path / "taken.csv").write_text((path / "t.csv").read_text().replace("patient", "count"))
    with pytest.raises(InputError, match="column count has the name of a measure"):
        run_measure(path / "taken.csv", out=path / "m.csv")


def test_which_files_are_patch_tables(tmp_path):
    for header, expected in (
        ("slide,x,y,size", True),
        ("h5,key,row", True),
        ("patch_id,image", True),
        ("image,mask,mpp", False),
        ("slide,image", False),
    ):
        (tmp_path / "t.csv").write_text(header + "\n")
        assert is_patch_table(tmp_path / "t.csv") == expected
    assert not is_patch_table(tmp_path / "none.csv")
