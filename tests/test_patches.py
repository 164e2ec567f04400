"""The patch table: what its columns mean, where its pixels come from, and what it refuses."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.tables.patches import RESERVED, PatchTable, load_table


@pytest.fixture
def write(tmp_path):
    """Return a writer of table.csv in a folder of its own."""

    def write(text, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_text(text, encoding=encoding)
        return path

    write.folder = tmp_path
    return write


def image(folder, name="a.png", height=30, width=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return pixels


# Columns


def test_every_column_that_is_not_reserved_is_a_concept(write):
    header = [*RESERVED, "count", "grade", "center"]
    row = ["p", "a.png", "s", "h", "k", "0", "0", "0", "8", "0.5", "m", "1", "train", "g", "007", "3", "high", "1"]
    table = load_table(write(",".join(header) + "\n" + ",".join(row) + "\n"))
    assert table.concept_names == ["count", "grade", "center"]


def test_kinds_follow_the_type_except_where_the_house_says_categorical(write):
    table = load_table(
        write(
            "patch_id,center,patient,label,count,grade,benign,half\n"
            "p1,1,007,0,3,high,True,1.5\n"
            "p2,2,7,1,4,low,False,\n"
            "p3,,7,,5,,True,2.5\n"
        )
    )
    assert [table.kind(n) for n in ("center", "patient", "label", "grade", "benign")] == ["categorical"] * 5
    assert [table.kind(n) for n in ("count", "half")] == ["continuous"] * 2
    assert table.concept("center").values.tolist() == ["1", "2", None]
    assert table.concept("patient").values.tolist() == ["007", "7", "7"]
    assert table.groups("patient").tolist() == ["007", "7", "7"]
    assert table.concept("grade").values.tolist() == ["high", "low", None]
    assert table.concept("benign").values.tolist() == ["True", "False", "True"]
    np.testing.assert_array_equal(table.concept("half").values, [1.5, np.nan, 2.5])
    assert table.concept("half").values.dtype == np.float64


def test_declared_kind_overrides_the_type(write):
    path = write("patch_id,grade,benign,word\np1,3,True,x\np2,,False,y\np3,2,True,z\n")
    table = load_table(path, kinds={"grade": "categorical", "benign": "continuous"})
    assert table.concept("grade").values.tolist() == ["3", None, "2"]  # not 3.0, which the gap makes of it
    assert table.concept("benign").values.tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(InputError, match="concept: word is declared continuous but holds 'x'"):
        table.with_kinds({"word": "continuous"}).concept("word")
    with pytest.raises(InputError, match="kind of grade: 'ordinal' is not known; near names: categorical"):
        load_table(path, kinds={"grade": "ordinal"})
    with pytest.raises(InputError, match="kind: the table has no column 'grades'; near names: grade"):
        load_table(path, kinds={"grades": "categorical"})


def test_parquet_has_the_same_meaning_as_csv(tmp_path):
    frame = pd.DataFrame({"patch_id": ["b", "a"], "center": [1, 2], "count": [1.0, np.nan], "patient": ["007", "7"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    tables = [load_table(tmp_path / name) for name in ("t.parquet", "t.csv")]
    for name in ("center", "count", "patient"):
        a, b = (t.concept(name) for t in tables)
        assert a.kind == b.kind
        pd.testing.assert_series_equal(pd.Series(a.values), pd.Series(b.values))
    assert [t.patch_ids for t in tables] == [["a", "b"], ["a", "b"]]


def test_whole_numbers_of_few_values_are_pointed_out(write):
    rows = "".join(f"p{i},{i % 3},{i % 2},{i},{i % 3 + 0.5}\n" for i in range(12))
    table = load_table(write("patch_id,grade,present,count,half\n" + rows))
    assert "--categorical grade" in table.looks_categorical("grade")
    for name in ("present", "count", "half"):  # two values, many values, no whole numbers
        assert table.looks_categorical(name) is None
    assert table.with_kinds({"grade": "continuous"}).looks_categorical("grade") is None
    assert table.with_kinds({"grade": "categorical"}).looks_categorical("grade") is None


def test_missing_column_is_told_with_near_names(write):
    table = load_table(write("patch_id,contrast,count\na,1,2\n"))
    with pytest.raises(InputError, match="concept: the table has no column 'contrasst'; near names: contrast"):
        table.concept("contrasst")
    with pytest.raises(InputError, match="group: the table has no column 'patient'"):
        table.groups("patient")


@pytest.mark.parametrize("name", ["patch_id", "x", "split"])
def test_a_place_cannot_be_probed(write, name):
    table = load_table(write("patch_id,x,split,count\na,1,train,2\n"))
    with pytest.raises(InputError, match=f"concept: {name} .* cannot be probed"):
        table.concept(name)


def test_a_row_without_a_group_is_refused(write):
    table = load_table(write("patch_id,patient\na,1\nb,\nc,\n"))
    assert table.groups(None) is None
    with pytest.raises(InputError, match="group: every row needs a patient, 2 of 3 have none"):
        table.groups("patient")


# Names of rows


def test_names_are_built_from_the_place_and_rows_sorted_by_them(write):
    table = load_table(write("image,x,y,size,count\nb.png,0,0,8,1\na.png,8,0,8,2\na.png,0,0,8,3\n"))
    assert table.patch_ids == ["a.png|0|0|8", "a.png|8|0|8", "b.png|0|0|8"]
    assert table.concept("count").values.tolist() == [3, 2, 1]


def test_names_of_hdf5_rows(write):
    assert load_table(write("h5,key,row,count\nf.h5,k,1,1\nf.h5,k,0,1\n")).patch_ids == ["f.h5|k|0", "f.h5|k|1"]


def test_the_order_of_the_file_does_not_matter(write):
    lines = [f"p{i},{i * i}" for i in range(9)]
    straight = load_table(write("patch_id,count\n" + "\n".join(lines), "a.csv"))
    shuffled = load_table(write("patch_id,count\n" + "\n".join(lines[::-1]), "b.csv"))
    pd.testing.assert_frame_equal(straight.frame, shuffled.frame)


def test_numeric_names_stay_as_they_are_written(write):
    assert load_table(write("patch_id,count\n010,1\n9,2\n")).patch_ids == ["010", "9"]


def test_select_keeps_kinds_and_takes_masks_and_numbers(write):
    table = load_table(write("patch_id,grade\na,1\nb,2\nc,3\n"), kinds={"grade": "categorical"})
    assert table.select(np.array([2, 0])).patch_ids == ["c", "a"]
    masked = table.select(np.array([False, True, False]))
    assert masked.patch_ids == ["b"]
    assert masked.kind("grade") == "categorical"


# What is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("patch_id,count,count\na,1,2\n", "column count occurs more than once"),
        ("\npatch_id,count,count\na,1,2\n", "column count occurs more than once"),  # pandas skips empty lines
        ("patch_id,count\na,1\na,2\n", "patch_id must be unique, 'a' occurs more than once"),
        ("image,count\na.png,1\na.png,2\n", "patch_id must be unique, 'a.png' occurs more than once"),
        ("patch_id,count\na,1\n,2\n", "every row needs a patch_id, 1 have none"),
        ("patch_id,count\n", "has no rows"),
        (f"patch_id,count\n{'a' * 5000},1\n", "patch_id 'aaa.* cannot be kept: a name has at most 4096 bytes"),
        ("patch_id,count\na\0,1\n", "patch_id 'a.x00' in .* cannot be kept"),
        ("", "cannot be read as a table"),
        ("count\n1\n", "needs a column patch_id, or one of image, slide, h5 to build it from"),
        ("slide,x,y\ns.svs,0,0\n", "column slide needs x, y, size; size is missing"),
        ("patch_id,h5,row\na,f.h5,0\n", "column h5 needs key, row; key is missing"),
        # More cells than names: pandas would take the first column for the index, and shift all the others.
        ("patch_id,count\na,1,2\nb,1,2\n", "cannot be read as a table"),
        ("patch_id,count\na,1\nb,1,2\n", "cannot be read as a table"),
    ],
)
def test_broken_tables_are_told_in_one_sentence(write, text, sentence):
    with pytest.raises(InputError, match=sentence) as told:
        load_table(write(text))
    assert str(told.value).startswith("table: ")
    assert "\n" not in str(told.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"table: file .* not found"):
        load_table(tmp_path / "absent.csv")
    for name in ("t.csv", "t.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR\x80" * 20)
        with pytest.raises(InputError, match="cannot be read as a table"):
            load_table(tmp_path / name)


def test_an_empty_first_line_changes_nothing(write):
    assert load_table(write("\npatch_id,patient\na,007\n")).groups("patient").tolist() == ["007"]


def test_byte_order_mark_is_no_part_of_the_first_name(write):
    table = load_table(write("patch_id,patient\na,007\n", encoding="utf-8-sig"))
    assert list(table.frame.columns) == ["patch_id", "patient"]
    assert table.groups("patient").tolist() == ["007"]


# Pixels


def test_windows_are_what_pillow_crops(write):
    image(write.folder)
    table = load_table(write("image,x,y,size\na.png,0,0,8\na.png,32,22,8\na.png,5,7,16\n"))
    with Image.open(write.folder / "a.png") as opened:
        for row, record in table.frame.iterrows():
            x, y, size = record["x"], record["y"], record["size"]
            expected = np.asarray(opened.crop((x, y, x + size, y + size)))
            np.testing.assert_array_equal(table.pixels(row), expected)


def test_without_a_window_the_whole_image_is_meant(write):
    pixels = image(write.folder)
    grey = Image.fromarray(pixels[..., 0])
    grey.save(write.folder / "grey.png")
    table = load_table(write("image,x,y,size\na.png,,,\ngrey.png,,,\n"))
    np.testing.assert_array_equal(table.pixels(0), pixels)
    np.testing.assert_array_equal(table.pixels(1), np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        ("33,0,8", "window x=33, y=0, size=8 lies outside the image of 40×30 pixels"),
        ("0,23,8", "lies outside"),
        ("-1,0,8", "lies outside"),
        ("0,0,0", "size must be at least 1 pixel, got 0"),
        ("0,,8", "a window needs whole numbers in x, y and size"),
        ("0,a,8", "a window needs whole numbers in x, y and size"),
        ("0,1.5,8", "a window needs whole numbers in x, y and size"),
        ("0,inf,8", "a window needs whole numbers in x, y and size"),
    ],
)
def test_windows_that_are_none(write, window, sentence):
    image(write.folder)
    table = load_table(write(f"patch_id,image,x,y,size\nfirst,a.png,{window}\n"))
    with pytest.raises(InputError, match=f"patch first: .*{sentence}"):
        table.pixels(0)


def test_images_that_are_missing_truncated_or_none(write):
    image(write.folder, "whole.png", 200, 200)
    whole = (write.folder / "whole.png").read_bytes()
    (write.folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (write.folder / "text.png").write_text("no image")
    table = load_table(write("patch_id,image\na,cut.png\nb,text.png\nc,absent.png\nd,\n"))
    for row, sentence in enumerate(
        ["cannot be read as an image", "cannot be read as an image", "not found", "column image is empty"]
    ):
        with pytest.raises(InputError, match=f"patch {'abcd'[row]}: .*{sentence}") as told:
            table.pixels(row)
        assert "\n" not in str(told.value)


def test_an_image_too_large_to_decode_is_told(write, monkeypatch):
    image(write.folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # beyond twice of it Pillow takes an image for an attack
    table = load_table(write("image\na.png\n"))
    with pytest.raises(InputError, match="cannot be read as an image"):
        table.pixels(0)


def test_a_changed_image_is_read_anew(write):
    first = image(write.folder)
    table = load_table(write("image\na.png\n"))
    np.testing.assert_array_equal(table.pixels(0), first)
    second = image(write.folder, seed=1)
    os.utime(write.folder / "a.png", ns=(1, 1))  # a change within the clock's grain would look like none
    np.testing.assert_array_equal(table.pixels(0), second)


def test_hdf5_rows(write):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with h5py.File(write.folder / "f.h5", "w") as file:
        file["deep/patches"] = pixels
        file["floats"] = pixels.astype(float)
    table = load_table(
        write(
            "patch_id,h5,key,row\n"
            "a,f.h5,deep/patches,2\nb,f.h5,deep/patches,0\n"
            "c,f.h5,deep/patches,3\nd,f.h5,absent,0\ne,f.h5,floats,0\nf,f.h5,deep,0\ng,f.h5,deep/patches,-1\n"
            "h,f.h5,deep/patches,\ni,table.csv,k,0\n"
        )
    )
    np.testing.assert_array_equal(table.pixels(0), pixels[2])
    np.testing.assert_array_equal(table.pixels(1), pixels[0])
    for row, sentence in [
        (2, "row 3 of 'deep/patches' .* cannot be read"),
        (3, "row 0 of 'absent' .* cannot be read"),
        (4, "needs height × width × 3 bytes, 'floats' .* holds float64"),
        (5, "row 0 of 'deep' .* cannot be read"),
        (6, "row must be a whole number from 0 on, got -1"),
        (7, "row must be a whole number from 0 on, got nan"),
        (8, "cannot be read"),
    ]:
        with pytest.raises(InputError, match=f"patch {'abcdefghi'[row]}: .*{sentence}"):
            table.pixels(row)


def test_slides_are_read_as_openslide_reads_them(shared_data, write):
    import openslide

    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    places = [(0, 0), (1000, 500), (2156, 2903)]
    rows = "".join(f"{slide},{x},{y},64\n" for x, y in places)
    table = load_table(write("slide,x,y,size\n" + rows))
    with openslide.OpenSlide(slide) as opened:
        for row, record in table.frame.iterrows():
            region = opened.read_region((record["x"], record["y"]), 0, (64, 64))
            np.testing.assert_array_equal(table.pixels(row), np.asarray(region)[..., :3])


def test_outside_the_slide_is_white(shared_data, write):
    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    table = load_table(write(f"slide,x,y,size\n{slide},-100,-100,64\n"))
    assert (table.pixels(0) == 255).all()


def test_a_broken_slide_is_told(write):
    (write.folder / "s.svs").write_bytes(b"no slide")
    table = load_table(write("patch_id,slide,x,y,size\na,s.svs,0,0,8\nb,s.svs,,,\n"))
    with pytest.raises(InputError, match=r"patch a: .* cannot be read as a slide"):
        table.pixels(0)
    with pytest.raises(InputError, match="patch b: a patch of a slide needs x, y and size"):
        table.pixels(1)


def test_a_table_without_pixels_says_so(write):
    table = load_table(write("patch_id,count\na,1\n"))
    assert table.location is None
    assert table.identities() == [""]
    with pytest.raises(InputError, match="needs one of the columns image, slide, h5 to find pixels; it has patch_id"):
        table.pixels(0)


# Identities


def test_identities_change_with_the_file_and_with_the_place(write):
    for name in ("a.png", "b.png"):
        image(write.folder, name)
    path = write("image,x,y,size,count\na.png,0,0,8,1\na.png,8,0,8,1\nb.png,0,0,8,1\n")
    before = load_table(path).identities()
    assert len(set(before)) == 3
    assert load_table(path).identities() == before
    write("image,x,y,size,count\na.png,0,0,8,9\na.png,8,0,8,9\nb.png,0,0,8,9\n")
    assert load_table(path).identities() == before  # no concept is part of it
    os.utime(write.folder / "a.png", ns=(1, 1))
    touched = load_table(path).identities()
    assert [a == b for a, b in zip(before, touched, strict=True)] == [False, False, True]
    (write.folder / "b.png").unlink()
    assert load_table(path).identities()[2] != before[2]


@pytest.mark.parametrize("values", [["b", "a", "b"], [2, 10, 2], [2.0, 1.5, 2.0], [True, False, True], [True, 1, "a"]])
def test_groups_are_the_texts_of_their_values(tmp_path, values):
    """True and 1 are equal in Python, and two groups."""
    found = PatchTable(pd.DataFrame({"patch_id": list("abc"), "patient": values}), tmp_path).groups("patient")
    assert found.tolist() == [{2.0: "2", 1.5: "1.5"}.get(v, str(v)) for v in values]
