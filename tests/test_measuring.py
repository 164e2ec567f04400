"""From a list of images to a patch table: on small made-up images, and on real ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.families import MEASURES
from conceptkit.pathology.hematoxylin import segment
from conceptkit.pathology.maskrcnn import MaskRCNN
from conceptkit.pathology.measuring import Segmentation, measure_images, write_table
from conceptkit.pathology.measuring_tables import measure_table
from conceptkit.pathology.texture import haralick, luma

MONUSEG = Path(__file__).parents[1].parent / "shared" / "data" / "monuseg"
real = pytest.mark.skipif(not MONUSEG.is_dir(), reason="the MoNuSeg images are not beside the repository")


def rgb(height=40, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def nuclei(height=40, width=40, dtype=np.uint16):
    """Blocks of 7 x 5 pixels, each its own label."""
    y, x = np.indices((height, width))
    labels = 1 + (y // 7) * 10 + x // 5
    return np.where((y % 7 < 5) & (x % 5 < 3), labels, 0).astype(dtype)


@pytest.fixture
def study(tmp_path):
    """A folder with images a and b of 40 x 40 pixels and their masks; returns a writer of the list."""
    for k, name in enumerate("ab"):
        Image.fromarray(rgb(seed=k)).save(tmp_path / f"{name}.png")
        Image.fromarray(nuclei()).save(tmp_path / f"{name}_mask.png")

    def write(text="image,mask,mpp,patient\na.png,a_mask.png,0.5,p1\nb.png,b_mask.png,0.5,p2\n"):
        path = tmp_path / "images.csv"
        path.write_text(text, encoding="utf-8")
        return path

    write.folder = tmp_path
    write.out = tmp_path / "tables" / "table.csv"
    return write


BESIDE = "36% of the images' pixels lie beside whole tiles of 16, on the right and at the bottom, and were not used."
"""40 x 40 pixels hold 2 x 2 tiles: 1,600 − 1,024 of 1,600"""


def run(study, text=None, **options):
    path = study() if text is None else study(text)
    return measure_images(path, **{"out": study.out, "patch_size": 16, **options})


def test_columns_tiles_and_values(study):
    seen = []
    measured = run(study, progress=lambda done, total: seen.append((done, total)))
    table = measured.table
    assert list(table.columns) == [
        *("patch_id", "image", "x", "y", "size", "mpp", "mask", "patient"),
        *("count", "area_px", "area_um2", "contrast", "correlation"),
    ]
    assert seen == [(1, 2), (2, 2)]
    assert measured.skipped == ()
    assert measured.notes == (BESIDE,)
    assert list(table["patch_id"][:4]) == ["a_x0_y0", "a_x16_y0", "a_x0_y16", "a_x16_y16"]  # 40 = 2 x 16 + a rest
    assert len(table) == 8
    assert list(table["patient"]) == ["p1"] * 4 + ["p2"] * 4
    assert set(table["image"]) == {"../a.png", "../b.png"}
    for row in table.itertuples():
        window = np.s_[row.y : row.y + row.size, row.x : row.x + row.size]
        pixels = rgb(seed="ab".index(row.patch_id[0]))[window]
        mask = nuclei()[window]
        areas = [(mask == label).sum() for label in np.unique(mask) if label]
        assert row.count == len(areas)
        np.testing.assert_allclose(row.area_px, np.mean(areas))
        np.testing.assert_allclose(row.area_um2, np.mean(areas) * 0.25)
        assert row.contrast == haralick(luma(pixels[None])).contrast[0]


def test_paths_lead_from_the_table_to_the_files(study):
    measured = run(study)
    for column in ("image", "mask"):
        for path in measured.table[column]:
            assert (study.out.parent / path).resolve().is_file()
    here = run(study, out=study.folder / "t.csv")
    assert set(here.table["image"]) == {"a.png", "b.png"}


def test_paths_hold_where_the_folder_is_a_link(study, tmp_path):
    elsewhere = tmp_path / "deep" / "deeper"
    elsewhere.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    for path in run(study, out=link / "t.csv").table["image"]:
        assert (link / path).is_file()
    Image.fromarray(rgb()).save(elsewhere.parent / "up.png")
    (link / "list.csv").write_text("image\n../up.png\n")
    measured = measure_images(link / "list.csv", out=study.out, patch_size=16)
    assert (study.out.parent / measured.table["image"][0]).resolve() == (elsewhere.parent / "up.png").resolve()


def test_numbers_of_the_whole_image_stay_behind(study):
    measured = run(
        study,
        "image,nuclei_count,organ,label,center,split,grade,empty\na.png,478,lung,1,007,0,,\nb.png,12,,0,3,,2.5,\n",
    )
    assert [c for c in measured.table if c not in MEASURES] == [
        *("patch_id", "image", "x", "y", "size", "organ", "label", "center", "split"),
    ]
    row = measured.table.drop_duplicates("image").set_index("image")
    assert list(row["center"]) == ["007", "3"]
    assert list(row["label"]) == ["1", "0"]
    assert row["organ"].isna().tolist() == [False, True]
    assert "nuclei_count, grade, empty" in measured.notes[0]
    assert "empty or hold numbers of the whole image" in measured.notes[0]


def test_no_word_of_borders_where_tiles_fill_the_images(study):
    assert run(study, patch_size=20).notes == ()
    for name in "ab":
        Image.fromarray(rgb()[:32, :32]).save(study.folder / f"{name}.png")
        Image.fromarray(nuclei()[:32, :32]).save(study.folder / f"{name}_mask.png")
    assert run(study).notes == ()


def test_without_a_patient_the_reader_is_told(study):
    assert any("patient or group" in note for note in run(study, "image\na.png\n").notes)
    assert not any("patient or group" in note for note in run(study, "image,group\na.png,g\n").notes)


def test_a_missing_mask_or_mpp_leaves_measures_empty_and_is_noted_once(study):
    Image.fromarray(rgb()).save(study.folder / "c.png")
    measured = run(study, "image,mask,mpp,patient\na.png,,0.5,p\nb.png,b_mask.png,,p\nc.png,a_mask.png,1,p\n")
    a, b, c = (measured.table[k : k + 4] for k in (0, 4, 8))
    assert a[["count", "area_px", "area_um2", "mask"]].isna().all(axis=None)
    assert b[["count", "area_px"]].notna().all(axis=None)
    assert b[["area_um2", "mpp"]].isna().all(axis=None)
    assert c.notna().all(axis=None)
    assert measured.table["contrast"].notna().all()
    assert measured.notes == (
        "No mask for 1 of 3 images (a): count, area_px, area_um2 empty there.",
        "No mpp for 1 of 3 images (b): area_um2 empty there.",
        BESIDE,
    )


def test_measures_that_no_image_allows(study):
    measured = run(study, "image,patient\na.png,p\n")
    assert list(measured.table.columns[-2:]) == ["contrast", "correlation"]
    assert not {"mask", "mpp"} & set(measured.table)
    assert "count (needs mask)" in measured.notes[0]
    with pytest.raises(InputError, match="names: count needs mask"):
        run(study, "image\na.png\n", names=["count"])
    assert list(run(study, names=["area_px"]).table.columns[-2:]) == ["patient", "area_px"]


def test_images_of_other_modes_are_read_as_rgb(study):
    folder = study.folder
    image = Image.fromarray(rgb())
    with_alpha = image.copy()
    with_alpha.putalpha(255)
    palette = image.quantize(64)
    forms = {"rgba": with_alpha, "grey": image.convert("L"), "palette": palette}
    for name, form in forms.items():
        # A palette with transparency: Pillow warns of it, and warnings are errors here.
        form.save(folder / f"{name}.png", **({"transparency": bytes(range(64))} if form is palette else {}))
    measured = run(study, "image\n" + "".join(f"{name}.png\n" for name in forms))
    contrast = measured.table.groupby("image", sort=False)["contrast"].first()
    rgba = {name: form.convert("RGBA") for name, form in forms.items()}
    rgba["palette"].putalpha(Image.fromarray(np.asarray(palette)))  # opacity k of the colour k, on white
    white = Image.new("RGBA", (40, 40), "white")
    shown = [np.asarray(Image.alpha_composite(white, form).convert("RGB")) for form in rgba.values()]
    expected = [haralick(luma(form[None, :16, :16])).contrast[0] for form in shown]
    np.testing.assert_array_equal(contrast, expected)


@pytest.mark.parametrize("kind", ["u1.png", "u2.png", "u1.tif", "u2.tif", "i4.tif", "u4.tif"])
def test_label_images_of_any_width(study, kind):
    dtype = np.dtype(kind[:2])
    labels = nuclei(dtype=dtype)
    if dtype.itemsize == 4:
        labels = np.where(labels, labels.astype(np.int64) + 70_000, 0).astype(dtype)
    if kind == "u4.tif":
        labels[labels == labels.max()] = 4_000_000_000  # beyond a signed 32-bit integer
        import tifffile

        tifffile.imwrite(study.folder / "mask.tif", labels)
    else:
        Image.fromarray(labels).save(study.folder / f"mask.{kind[-3:]}")
    measured = run(study, f"image,mask\na.png,mask.{kind[-3:]}\n")
    np.testing.assert_array_equal(measured.table["count"], run(study).table["count"][:4])


def test_more_than_65535_labels(study):
    labels = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    Image.fromarray(labels).save(study.folder / "many.tif")
    Image.fromarray(rgb(300, 300)).save(study.folder / "large.png")
    measured = run(study, "image,mask\nlarge.png,many.tif\n", patch_size=300, names=["count"])
    assert measured.table["count"].tolist() == [300 * 300 - 1]


def test_a_print_resolution_counts_as_unknown(study):
    """300, 96 and 72 dots per inch give 84.67, 264.58 and 352.78 microns per pixel."""
    text = "image_id,image,mask,mpp\n" + "".join(
        f"{v},a.png,a_mask.png,{v}\n" for v in (84.67, 264.58, 352.78, 0.5, 10)
    )
    measured = run(study, text)
    table = measured.table.assign(image_id=measured.table["patch_id"].str.split("_x").str[0]).set_index("image_id")
    assert table["mpp"].isna().groupby(level=0).all().to_dict() == {
        "84.67": True,
        "264.58": True,
        "352.78": True,
        "0.5": False,
        "10": False,
    }
    assert (table["area_um2"].isna() == table["mpp"].isna()).all()
    assert measured.notes[0] == (
        "mpp is above 10 µm per pixel in 3 of 5 rows (84.67 for 84.67), as a print resolution such as 300 dpi gives; "
        "it counts as unknown there."
    )
    only = run(study, "image,mask,mpp\na.png,a_mask.png,84.67\n")
    assert not {"mpp", "area_um2"} & set(only.table.columns)
    write_table(measured.table.drop(columns=["area_um2"]).fillna({"mpp": 84.67}), study.out)
    again = measure_table(study.out, out=study.out.with_name("again.csv"), names=["area_um2"])
    assert again.notes[0].startswith("mpp is above 10 µm per pixel in 12 of 20 rows (84.67 for 264.58_x0_y0)")
    assert again.table["mpp"].isna().sum() == again.table["area_um2"].isna().sum() == 12
    write_table(measured.table.drop(columns=["area_um2"]).assign(mpp=84.67), study.out)
    with pytest.raises(InputError, match="area_um2 needs mask and mpp"):
        measure_table(study.out, out=study.out.with_name("again.csv"), names=["area_um2"])


def test_nuclei_are_not_looked_for_where_pixels_are_too_large(study):
    method = Segmentation(method="hematoxylin")
    text = "image_id,image,mpp\nfar,a.png,2.01\nnear,b.png,2\n"
    with pytest.raises(InputError, match=r"the image has 2\.01 microns per pixel, and nuclei can be found up to 2;"):
        run(study, text, nuclei=method)
    measured = run(study, text, nuclei=method, on_error="skip")
    assert [who for who, _ in measured.skipped] == ["far"]
    assert set(measured.table["image"]) == {"../b.png"}


def test_no_image_is_enlarged_beyond_the_largest_that_can_be_read():
    large = np.broadcast_to(np.uint8(200), (4000, 4000, 3))
    for method in (segment, MaskRCNN(torch.nn.Identity(), 0.25, torch.device("cpu")).segment):
        with pytest.raises(InputError, match=r"the image would have \d+ x \d+ pixels at the resolution"):
            method(large, 2.0)


def test_a_mask_beside_an_image_that_is_stored_turned(study):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(rgb()).save(study.folder / "turned.png", exif=exif)
    upright = run(study, "image,patient\nturned.png,p\n").table
    Image.fromarray(rgb()[::-1, ::-1]).save(study.folder / "upright.png")
    expected = run(study, "image,patient\nupright.png,p\n").table
    assert upright["contrast"].tolist() == expected["contrast"].tolist()
    with pytest.raises(InputError, match="whether its mask is turned as well is unknown; save the image upright"):
        run(study, "image,mask,patient\nturned.png,a_mask.png,p\n")


def test_an_image_smaller_than_a_tile_is_left_out_with_its_reason(study):
    Image.fromarray(rgb(15, 60)).save(study.folder / "flat.png")
    measured = run(study, "image,patient\nflat.png,p\na.png,p\n")
    assert [what for what, _ in measured.skipped] == ["flat"]
    assert "60 x 15 pixels" in measured.skipped[0][1]
    assert set(measured.table["image"]) == {"../a.png"}
    with pytest.raises(InputError, match="no image gave a tile"):
        run(study, "image\nflat.png\n")


BAD_LISTS = {
    "images,mask\na.png,\n": "column image is needed",
    "image,organ,organ\na.png,x,y\n": "column organ is there more than once",
    "image\n": "at least one row",
    "": "column image is needed",
    "image,mask\na.png\n": "line 2 has 1 cells",
    "image\na.png,b\n": "line 2 has 2 cells",
    "image\na.png\na.png\n": "image_id a is there more than once",
    "image_id,image\ns,a.png\ns,b.png\n": "image_id s is there more than once",
    "image,x\na.png,5\n": "column x belongs to a patch table",
    "image,contrast\na.png,5\n": "column contrast bears the name of a measure",
    'image\n"a.png\n': "cannot be read as CSV",
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])  # a broken list is never skipped
@pytest.mark.parametrize(("text", "sentence"), BAD_LISTS.items(), ids=BAD_LISTS.values())
def test_a_bad_list_is_told_in_one_sentence(study, text, sentence, on_error):
    with pytest.raises(InputError, match=sentence) as caught:
        run(study, text, on_error=on_error)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text(study):
    (study.folder / "images.csv").write_bytes(b"image\n\xff\xfe\n")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        measure_images(study.folder / "images.csv", out=study.out)
    with pytest.raises(InputError, match="does not exist"):
        measure_images(study.folder / "none.csv", out=study.out)
    with pytest.raises(InputError, match="is a folder; name a CSV file"):
        measure_images(study.folder, out=study.out)
    (study.folder / "images.csv").write_text("image;mask;mpp\na.png;;0.5\n")
    with pytest.raises(InputError, match="cells must be separated by commas, the first line is 'image;mask;mpp'"):
        measure_images(study.folder / "images.csv", out=study.out)


def test_a_byte_order_mark_and_blank_lines_do_no_harm(study):
    assert len(run(study, "\ufeffimage,patient\n\na.png, p1 \n\n").table) == 4


def damage(folder):
    """Files that must be refused, by name."""
    image, mask = Image.fromarray(rgb()), nuclei()
    image.save(folder / "whole.jpg")
    for name, source in {"cut.jpg": "whole.jpg", "cut.png": "a.png", "cut_mask.png": "a_mask.png"}.items():
        data = (folder / source).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "nothing.png").write_bytes(b"")
    Image.fromarray(np.full((40, 40), 999, dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(nuclei(40, 39)).save(folder / "narrow.png")
    image.save(folder / "colour.png")
    Image.fromarray(mask.astype(np.float32) / 2).save(folder / "halves.tif")
    Image.fromarray(mask > 0).save(folder / "bits.png")
    Image.fromarray(((mask > 0) * 255).astype(np.uint8)).save(folder / "binary.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / "lossy.jpg")
    Image.fromarray(mask.astype(np.int32) - 1).save(folder / "negative.tif")
    page = Image.fromarray(mask)
    page.save(folder / "pages.tif", save_all=True, append_images=[page])


BAD_ROWS = {
    "cut.jpg,,": "image: .*cannot be read",
    "cut.png,,": "image: .*cannot be read",
    "text.png,,": "is not an image",
    "nothing.png,,": "is not an image",
    "none.png,,": "does not exist",
    ",,": "image: a path is needed",
    "tables,,": "cannot be read",
    "deep.png,,": "more than 8 bits per channel",
    "a.png,cut_mask.png,": "mask: .*cannot be read",
    "a.png,none.png,": "mask: .*does not exist",
    "a.png,narrow.png,": "narrow.png has 39 x 40 pixels, its image a.png has 40 x 40",
    "a.png,colour.png,": "not a label image",
    "a.png,halves.tif,": "its values are not whole numbers",
    "a.png,bits.png,": "not a label image",
    "a.png,binary.png,": "one label in 48 separate pieces",
    "a.png,lossy.jpg,": "is a JPEG",
    "a.png,negative.tif,": "at least 0, got -1",
    "a.png,pages.tif,": "more than one page",
    "a.png,a_mask.png,0": "mpp: must be at least 0.01 microns per pixel, or empty, got 0",
    "a.png,a_mask.png,-0.5": "mpp",
    "a.png,,nan": "mpp",
    "a.png,,inf": "mpp",
    "a.png,,fine": "mpp",
}


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS.items(), ids=BAD_ROWS)
def test_a_bad_image_is_told_in_one_sentence_or_skipped(study, row, sentence):
    damage(study.folder)
    (study.folder / "tables").mkdir()
    text = f"image_id,image,mask,mpp\nbad,{row}\ngood,b.png,b_mask.png,0.5\n"
    with pytest.raises(InputError, match=sentence) as caught:
        run(study, text)
    assert "\n" not in str(caught.value)
    measured = run(study, text, on_error="skip")
    assert measured.skipped == (("bad", str(caught.value)),)
    assert set(measured.table["image"]) == {"../b.png"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch_size": 7}, "patch_size: must be at least 8"),
        ({"names": ["contrst"]}, "near names: contrast"),
        ({"on_error": "ignore"}, "on_error"),
        ({"out": Path("table.xlsx")}, "out: must end in .csv or .parquet"),
    ],
)
def test_bad_options(study, options, sentence):
    with pytest.raises(InputError, match=sentence):
        run(study, **options)


def test_the_list_is_never_overwritten(study):
    with pytest.raises(InputError, match="the list of images itself"):
        run(study, out=study.folder / "images.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_written_table_reads_back_to_the_last_bit(study, suffix):
    table = run(study, "image,mask,mpp,organ\na.png,a_mask.png,0.2527,lung\nb.png,,,\n").table
    out = study.folder / "new" / "folder" / f"table{suffix}"
    write_table(table, out)
    read = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert os.listdir(out.parent) == [out.name]
    assert out.stat().st_mode & 0o044


def test_a_failed_write_leaves_the_old_table(study, monkeypatch):
    out = study.folder / "table.csv"
    out.write_text("old")

    def half(self, path, **_):
        Path(path).write_text("half a ta")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(OSError, match="disk full"):
        write_table(pd.DataFrame({"a": [1]}), out)
    assert out.read_text() == "old"
    assert not [p for p in study.folder.iterdir() if p.name.startswith(".table")]


def test_a_folder_is_no_table(study):
    (study.folder / "t.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_table(pd.DataFrame({"a": [1]}), study.folder / "t.csv")


@pytest.fixture(scope="module")
def monuseg(tmp_path_factory):
    out = tmp_path_factory.mktemp("monuseg") / "table.csv"
    return measure_images(MONUSEG / "images.csv", out=out)


@real
def test_monuseg_gives_480_tiles_of_30_images(monuseg):
    table = monuseg.table
    assert len(table) == 480
    assert table["image"].nunique() == 30
    assert table["patch_id"].is_unique
    assert table.groupby("image").size().eq(16).all()
    assert "nuclei_count" not in table
    assert "nuclei_count" in monuseg.notes[0]
    assert table["count"].notna().all()
    assert {"organ", "patient", "center", "mpp"} <= set(table)


@real
def test_monuseg_tiles_agree_with_loops_over_nuclei(monuseg):
    listed = pd.read_csv(MONUSEG / "images.csv").set_index("image_id")
    rows = monuseg.table.sample(12, random_state=0)
    shifted = 0
    for row in rows.itertuples():
        with Image.open(MONUSEG / listed.loc[row.patch_id.rsplit("_x", 1)[0], "mask"]) as image:
            mask = np.asarray(image)
        window = mask[row.y : row.y + 224, row.x : row.x + 224]
        areas = [(window == label).sum() for label in np.unique(window) if label != 0]
        assert row.count == len(areas)
        np.testing.assert_allclose(row.area_px, np.mean(areas), rtol=1e-12)
        np.testing.assert_allclose(row.area_um2, np.mean(areas) * row.mpp**2, rtol=1e-12)
        swapped = mask[row.x : row.x + 224, row.y : row.y + 224]  # control: rows and columns exchanged
        shifted += row.x != row.y and len(np.unique(swapped)) != len(np.unique(window))
    assert shifted > 0


@real
def test_monuseg_tiles_hold_the_nuclei_of_their_image(monuseg):
    listed = pd.read_csv(MONUSEG / "images.csv").set_index("image_id")
    table = monuseg.table.assign(image_id=monuseg.table["patch_id"].str.rsplit("_x", n=1).str[0])
    for image_id, tiles in list(table.groupby("image_id"))[:5]:
        with Image.open(MONUSEG / listed.loc[image_id, "mask"]) as image:
            mask = np.asarray(image)
        inside = mask[:896, :896]
        # A nucleus on a border counts in each tile that it touches; its pixels count once.
        assert tiles["count"].sum() >= len(np.unique(inside)) - 1
        np.testing.assert_allclose((tiles["count"] * tiles["area_px"]).sum(), (inside > 0).sum())
        assert len(np.unique(mask)) - 1 == listed.loc[image_id, "nuclei_count"]
