"""A row per nucleus: against scikit-image and slower statements, once per nucleus on slides, streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.measure import perimeter_crofton, regionprops

from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.pathology.measures import measure
from conceptkit.pathology.nuclei import Found
from conceptkit.pathology.nucleus_rows import COLUMNS, Kept, NucleusTable, Place, nucleus_rows, perimeters
from tests.slide_files import write_slide
from tests.test_nuclei import drawn_tissue


def rows_of(image, labels, mpp=0.25, **options):
    found = Found(labels, options.pop("confidence", {}), options.pop("types", {}))
    place = options.pop("place", Place("s"))
    return nucleus_rows(image, found, mpp, place, lambda x, y: ["p"] * len(x), **options).to_pandas()


def test_shapes_agree_with_scikit_image():
    image, labels = drawn_tissue(0.25, 60, number=25)
    rows = rows_of(image, labels)
    assert list(rows) == list(COLUMNS)
    for row, props in zip(rows.itertuples(), regionprops(labels), strict=True):
        y, x = props.centroid
        assert (row.x, row.y) == pytest.approx((x + 0.5, y + 0.5))
        assert (row.x_um, row.y_um) == pytest.approx(((x + 0.5) / 4, (y + 0.5) / 4))
        assert row.area_um2 == pytest.approx(props.area / 16)
        assert row.major_um == pytest.approx(props.axis_major_length / 4)
        assert row.minor_um == pytest.approx(props.axis_minor_length / 4)
        circular = 4 * np.pi * props.area / perimeter_crofton(np.pad(props.image, 1), 4) ** 2
        assert row.circularity == pytest.approx(min(1, circular), abs=0.02)
        y0, x0, y1, x1 = props.bbox
        assert row.touches_edge == (min(y0, x0) == 0 or max(y1, x1) == len(labels))


def test_the_perimeter_of_a_disc():
    y, x = np.indices((200, 200))
    disc = (np.hypot(y - 100, x - 100) < 80).astype(int)
    assert perimeters(disc, np.array([1]))[0] == pytest.approx(2 * np.pi * 80, rel=0.01)
    assert perimeters(disc * 3, np.array([3]))[0] == perimeters(disc, np.array([1]))[0]


def test_texture_of_one_nucleus_is_that_of_the_measure():
    image, labels = drawn_tissue(0.25, 40, number=1)
    rows = rows_of(image, labels)
    expected = measure(image[None], labels[None], names=["nuclei_contrast", "nuclei_homogeneity", "hematoxylin"])
    assert rows["contrast"][0] == pytest.approx(expected["nuclei_contrast"][0])
    assert rows["homogeneity"][0] == pytest.approx(expected["nuclei_homogeneity"][0])
    assert rows["hematoxylin"][0] == pytest.approx(expected["hematoxylin"][0])


def test_neighbours_and_what_is_unknown():
    labels = np.zeros((60, 200), dtype=np.int32)
    for label, x in enumerate((10, 50, 70, 170), start=1):
        labels[20:26, x : x + 6] = label
    image = np.full((60, 200, 3), 150, np.uint8)
    rows = rows_of(image, labels, confidence={2: 0.9}, types={3: "inflammatory"})
    assert rows["neighbour_um"].tolist() == [10, 5, 5, 25]
    assert rows["neighbours3_um"][0] == pytest.approx((40 + 60 + 160) / 3 / 4)
    assert rows["confidence"].isna().tolist() == [True, False, True, True]
    assert rows["type"].isna().tolist() == [True, True, False, True]
    without = rows_of(image, np.where(labels < 3, labels, 0), np.nan)
    assert without[["x_um", "area_um2", "neighbour_um", "neighbours3_um"]].isna().all(axis=None)
    assert (without["area_px"] == 36).all()
    assert len(rows_of(image, np.zeros_like(labels))) == 0


def test_outlines_enclose_their_nucleus_on_the_slide():
    image, labels = drawn_tissue(0.25, 40, number=9)
    rows = rows_of(image, labels, place=Place("s", 1000, 2000, 2.0), contours=True)
    for row in rows.itertuples():
        x, y = np.array(list(row.contour)).T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert area == pytest.approx(4 * row.area_px, rel=0.1)
        assert x.min() < row.x < x.max()
        assert y.min() < row.y < y.max()


@pytest.fixture
def listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        image, labels = drawn_tissue(0.25, 40, seed=k, number=14)
        Image.fromarray(image).save(f"i{k}.png")
        Image.fromarray(labels.astype(np.uint16)).save(f"m{k}.png")
    Path("images.csv").write_text("image,mask,mpp,patient\ni0.png,m0.png,0.25,a\ni1.png,m1.png,0.25,b\n")
    return tmp_path


def test_rows_of_a_list_of_images(listed):
    table = run_measure("images.csv", out="t.csv", patch_size=64, nuclei_out="n.parquet").table
    rows = pd.read_parquet("n.parquet")
    assert set(rows["slide"]) == {"i0", "i1"}
    inside = rows.dropna(subset="patch")
    assert set(inside["patch"]) <= set(table["patch_id"])
    for row in inside.itertuples():
        patch = table.set_index("patch_id").loc[row.patch]
        assert patch["x"] <= row.x < patch["x"] + 64
        assert patch["y"] <= row.y < patch["y"] + 64
    outside = rows[rows["patch"].isna()]
    assert ((outside["x"] >= 128) | (outside["y"] >= 128)).all()


def test_nuclei_of_patches_left_out_have_no_row(listed):
    options = {"patch_size": 64, "nuclei_out": "n.parquet"}
    table = run_measure("images.csv", out="t.csv", exclude="count<3", **options).table
    assert (table["count"] >= 3).all()
    assert set(pd.read_parquet("n.parquet")["patch"]) <= set(table["patch_id"])


def test_a_run_that_gains_rows_is_not_taken_as_finished(listed):
    Path("bad.csv").write_text("image,mask,mpp\ni0.png,m0.png,0.25\nnone.png,m1.png,0.25\n")
    run_measure("bad.csv", out="t.csv", patch_size=64, skip_bad=True)
    run_measure("bad.csv", out="t.csv", patch_size=64, skip_bad=True, nuclei_out="n.parquet")
    assert set(pd.read_parquet("n.parquet")["slide"]) == {"i0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nuclei_out": "n.csv"}, "nuclei-out: must end in .parquet, got n.csv."),
        ({"contours": True}, "contours: needs --nuclei-out FILE."),
    ],
)
def test_rows_that_cannot_be_written(listed, options, message):
    with pytest.raises(InputError) as caught:
        run_measure("images.csv", out="t.csv", patch_size=64, **options)
    assert str(caught.value) == message


def test_rows_need_nuclei(listed):
    Path("plain.csv").write_text("image,mpp\ni0.png,0.25\n")
    with pytest.raises(InputError, match=r"nuclei-out: needs nuclei; set --nuclei, or give masks in plain.csv\."):
        run_measure("plain.csv", out="t.csv", patch_size=64, nuclei_out="n.parquet")


@pytest.mark.parametrize("step", [96, 64])
def test_a_nucleus_of_a_slide_is_counted_once(tmp_path, monkeypatch, step):
    """Whether tiles only touch or overlap; a control counts those of overlapping tiles twice."""
    monkeypatch.chdir(tmp_path)
    image, _ = drawn_tissue(0.5, 224, number=150)
    image = image[:448, :448]
    write_slide(Path("s.tif"), [image], mpp=0.5)
    places = range(0, 448 - 96 + 1, step)
    tiles = pd.DataFrame([(f"p{x}-{y}", "s.tif", x, y, 96, 0.5) for x in places for y in places])
    tiles.columns = ["patch_id", "slide", "x", "y", "size", "mpp"]
    tiles.to_csv("tiles.csv", index=False)
    table = run_measure("tiles.csv", out="t.csv", nuclei="hematoxylin", nuclei_out="n.parquet", masks_out="m").table
    rows = pd.read_parquet("n.parquet")
    points = rows[["x", "y"]].to_numpy()
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert apart.min() > 4
    covered = max(places) + 96
    Image.fromarray(image[:covered, :covered]).save("whole.png")
    Path("whole.csv").write_text("image,mpp\nwhole.png,0.5\n")
    run_measure("whole.csv", out="w.csv", patch_size=covered, nuclei="hematoxylin", nuclei_out="w.parquet")
    assert len(rows) == pytest.approx(len(pd.read_parquet("w.parquet")), rel=0.08)
    assert table["count"].sum() > 1.2 * len(rows)  # the control: a patch counts what its edge cuts
    for patch, mask in zip(table["patch_id"], table["mask"], strict=True):
        labels = np.asarray(Image.open(mask))
        assert labels.shape == (96, 96)
        assert labels.max() == table.set_index("patch_id").loc[patch, "count"]


def test_many_rows_are_joined_without_being_held(tmp_path):
    image, labels = drawn_tissue(0.25, 40, number=14)
    part = nucleus_rows(image, Found(labels), 0.25, Place("s"), lambda x, y: ["p"] * len(x))
    kept = Kept(tmp_path)
    for key in ("a", "b"):
        kept.write(key, [part] * 2000)
    table = NucleusTable(tmp_path / "n.parquet")
    assert table.join(kept, ["a", "b"]) == 4000 * part.num_rows
    groups = pq.ParquetFile(tmp_path / "n.parquet").metadata
    assert max(groups.row_group(k).num_rows for k in range(groups.num_row_groups)) < 70_000
