"""Label masks of many programs: read as the labels that were written, or refused."""

from __future__ import annotations

import json
import zipfile

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.pathology.masks import check_mask_rows, read_mask, read_mask_row


def blocks(height=40, width=60, step=6, first=1):
    """Squares of 4 x 4 pixels, each its own label."""
    y, x = np.indices((height, width))
    labels = first + (y // step) * (width // step) + x // step
    return np.where((y % step < 4) & (x % step < 4), labels, 0)


LABELS = blocks()
CLASSES = np.where(LABELS > 0, LABELS % 3 + 1, 0)
GREY = Image.fromarray(LABELS.astype(np.uint8))


def tiff(values, **options):
    return lambda path: tifffile.imwrite(path, values, **options)


def pillow(image, **options):
    return lambda path: image.save(path, **options)


def indexed(colours):
    """Return a palette image whose index k has the colour ``colours[k]``."""
    image = Image.fromarray(LABELS.astype(np.uint8))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.asarray(colours, dtype=np.uint8).tobytes())
    return image


NOISE = np.random.default_rng(0).integers(0, 256, (256, 3))
NOISE[:, 0] = np.arange(256)  # no two colours alike

READ = {
    "float.tif": tiff(LABELS.astype(np.float32)),
    "double.tif": tiff(LABELS.astype(np.float64), byteorder=">"),
    "imagej.tif": tiff(LABELS.astype(np.float32), imagej=True),
    "int64.tif": tiff(LABELS.astype(np.int64)),
    "uint64.tif": tiff(LABELS.astype(np.uint64), byteorder=">", compression="zlib"),
    "uint32_big_endian.tif": tiff(LABELS.astype(np.uint32), byteorder=">"),
    "big.tif": tiff(LABELS.astype(np.uint16), bigtiff=True, tile=(16, 16)),
    "white_is_zero.tif": tiff(LABELS.astype(np.uint8), photometric="miniswhite"),
    "rgb.tif": tiff(np.repeat(LABELS[..., None], 3, axis=2).astype(np.uint16), photometric="rgb"),
    "lzw.tif": pillow(Image.fromarray(LABELS.astype(np.uint16)), compression="tiff_lzw"),
    "grey.png": pillow(GREY),
    "deep.png": pillow(Image.fromarray(LABELS.astype(np.uint16))),
    "rgb.png": pillow(GREY.convert("RGB")),
    "opaque.png": pillow(GREY.convert("RGBA")),
    "grey.bmp": pillow(GREY),
    "colours.png": pillow(indexed(NOISE)),
    "greys.png": pillow(indexed(np.repeat(np.arange(256)[:, None], 3, axis=1))),
    "a.npy": lambda path: np.save(path, LABELS),
    "float.npy": lambda path: np.save(path, LABELS.astype(np.float16)),
    "column.npy": lambda path: np.save(path, LABELS[..., None]),
    "first.npy": lambda path: np.save(path, LABELS[None]),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(LABELS.astype(">i4"))),
    "one.npz": lambda path: np.savez_compressed(path, anything=LABELS.astype(np.float32)),
    "named.npz": lambda path: np.savez(path, image=np.zeros((40, 60, 3)), inst_map=LABELS),
    "hovernet.mat": lambda path: savemat(path, {"inst_map": LABELS.astype(float), "type_map": CLASSES}),
}


@pytest.mark.parametrize("name", READ)
def test_labels_are_those_that_were_written(name, tmp_path):
    READ[name](tmp_path / name)
    found = read_mask(tmp_path / name)
    assert found.dtype.kind in "iu"
    np.testing.assert_array_equal(found, LABELS)


def test_of_a_bilevel_mask_it_must_be_known_what_is_background(tmp_path):
    one = LABELS == 9
    Image.fromarray(one).save(tmp_path / "a.tif", compression="group4")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif") > 0, one)
    Image.fromarray(one).save(tmp_path / "a.tif", compression="group4", tiffinfo={262: 0})
    with pytest.raises(InputError, match="0 is white in it, and whether white is the background is unknown"):
        read_mask(tmp_path / "a.tif")


def test_packed_greys_keep_their_order(tmp_path):
    """Programs that make a palette of a grey image may number its greys in any order."""
    order = np.random.default_rng(0).permutation(256)
    greys = np.empty(256, dtype=np.uint8)
    greys[order] = np.arange(256)
    image = Image.frombytes("P", GREY.size, order[LABELS].astype(np.uint8).tobytes())
    image.putpalette(np.repeat(greys[:, None], 3, axis=1).tobytes())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), LABELS)


MANY = blocks(200, 200)  # more nuclei than 8 bits have numbers
FRAMES = {"save_all": True, "append_images": [Image.fromarray(LABELS.astype(np.uint8)[::-1])]}

REFUSED = {
    "classes.png": (
        pillow(Image.fromarray(CLASSES.astype(np.uint8))),
        "3 labels in 70 separate pieces, so this looks ",
    ),
    "two_classes.npy": (lambda path: np.save(path, np.where(LABELS, LABELS % 2 + 1, 0)), "looks like a class map"),
    "binary.png": (pillow(Image.fromarray(np.uint8(LABELS > 0) * 255)), "one label in 70 .* looks like a binary mask"),
    "binary.npy": (lambda path: np.save(path, LABELS > 0), "looks like a binary mask"),
    "two.npy": (lambda path: np.save(path, np.isin(LABELS, (3, 9))), "one label in 2 separate pieces"),
    "renumbered.png": (pillow(Image.fromarray(MANY.astype(np.uint8))), "nuclei share labels; save the mask with 16"),
    "clipped.png": (pillow(Image.fromarray(MANY.clip(0, 255).astype(np.uint8))), "nuclei share labels"),
    "borders.png": (
        pillow(Image.fromarray(np.where(np.roll(LABELS, 2, axis=1) * (LABELS == 0), 255, LABELS).astype(np.uint8))),
        "its label 255 lies in 70 separate pieces, as a class or a border does",
    ),
    "halves.tif": (tiff(LABELS.astype(np.float32) / 2), "values are not whole numbers"),
    "missing.npy": (lambda path: np.save(path, np.where(LABELS, LABELS, np.nan)), "values are not whole numbers"),
    "negative.tif": (tiff(LABELS - 1), "at least 0, got -1"),
    "colours.png": (pillow(Image.fromarray(NOISE.astype(np.uint8)[LABELS % 256])), "it has colours"),
    "colours.npy": (lambda path: np.save(path, NOISE[LABELS % 256]), "it has colours"),
    "see_through.png": (
        pillow(Image.merge("LA", [GREY, Image.fromarray(np.uint8(LABELS > 9) * 255)])),
        "it has colours",
    ),
    "jpeg.tif": (pillow(GREY, compression="jpeg"), "compressed as JPEG"),
    "a.webp": (pillow(GREY, lossless=True), "is a WEBP"),
    "a.jp2": (pillow(GREY), "is a JPEG2000"),
    "frames.gif": (pillow(GREY, **FRAMES), "several frames"),
    "maps.tif": (tiff(np.stack([LABELS, CLASSES]).astype(np.uint16)), "more than one page"),
    "maps.npy": (
        lambda path: np.save(path, np.dstack([LABELS, CLASSES])),
        r"is not a label image \(int64 of shape \(40",
    ),
    "several.npz": (lambda path: np.savez(path, a=LABELS, b=CLASSES), r"2 arrays \(a, b\), and which is"),
    "both.npz": (lambda path: np.savez(path, mask=LABELS, inst_map=LABELS), "and which is the label mask"),
    "pickle.npz": (lambda path: np.savez(path, a=np.array([{}], dtype=object)), "is a pickle"),
    "text.npz": (lambda path: path.write_text("no archive"), "cannot be read"),
    "text.npy": (lambda path: path.write_text("no array"), "cannot be read"),
    "words.npy": (lambda path: np.save(path, np.full((4, 4), "a")), "is not a label image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_label_mask_is_refused(name, tmp_path):
    write, sentence = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=sentence) as caught:
        read_mask(tmp_path / name)
    assert str(caught.value).startswith(f"mask: {tmp_path / name} ")
    assert "\n" not in str(caught.value)


def test_a_header_cannot_ask_for_memory(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((4, 4), np.uint8))
    data = (tmp_path / "small.npy").read_bytes().replace(b"(4, 4), }          ", b"(40000, 40000), }  ")
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="too large for one mask"):
            read_mask(tmp_path / name)


def test_one_nucleus_in_pieces_is_a_mask_and_several_are_not(tmp_path):
    """The window of a real mask may hold one nucleus alone, or one that the border cuts in two."""

    def read(labels):
        np.save(tmp_path / "a.npy", labels)
        return read_mask(tmp_path / "a.npy")

    for labels in (
        np.zeros((9, 9), int),
        LABELS == 9,
        np.where(LABELS == 9, 255, 0),
        np.where(LABELS % 30 == 9, 7, 0)[:, :12],
    ):
        assert read(labels).shape == labels.shape
    halves_of_one = np.zeros((20, 30), int)
    halves_of_one[5:15, 5:14] = halves_of_one[5:15, 16:25] = 1
    fragment = np.zeros((20, 30), int)
    fragment[:, :12] = fragment[3:6, 26:] = 1
    for labels in (halves_of_one, fragment, fragment * 255):
        np.testing.assert_array_equal(read(labels), labels)
    far = np.zeros((20, 40), int)
    far[5:15, :9] = far[5:15, 25:35] = 1
    with pytest.raises(InputError, match="looks like a binary mask"):
        read(far)
    cut = np.where(np.isin(LABELS, (9, 10)), 17, 0)  # two pieces, under a number that no binary mask has
    assert np.unique(read(cut)).tolist() == [0, 17]
    with pytest.raises(InputError, match="one label in 3 separate pieces"):
        read(np.where(np.isin(LABELS, (9, 10, 40)), 17, 0))
    halves = np.where(LABELS % 2, LABELS, np.maximum(LABELS - 1, 0))  # two pieces per label are not too many
    assert len(np.unique(read(halves))) < len(np.unique(LABELS))
    touching = np.kron(np.eye(2, dtype=int), np.full((3, 3), 5))  # at a corner
    assert read(touching).max() == 5


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["u1", "u2", "u4", "u8", "i2", "i4", "i8", "f4", "f8"]),
    suffix=st.sampled_from(["tif", "npy", "npz"]),
    order=st.sampled_from("<>"),
    step=st.integers(5, 9),
    first=st.sampled_from([1, 50, 30_000, 70_000, 2**31 + 5, 2**40]),
    extra=st.sampled_from(["none", "first", "last"]),
)
def test_labels_of_every_type(kind, suffix, order, step, first, extra, tmp_path):
    dtype = np.dtype(kind).newbyteorder(order)
    labels = blocks(30, 30, step, first)
    top = int(labels.max())
    if (dtype.kind == "f" and top > 2 ** (24 if dtype.itemsize == 4 else 53)) or (
        dtype.kind != "f" and top > np.iinfo(dtype).max
    ):
        return
    values = labels.astype(dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, values.astype(kind), byteorder=order)
    else:
        values = {"none": values, "first": values[None], "last": values[..., None]}[extra]
        (np.save if suffix == "npy" else np.savez)(path, values)
    found = read_mask(path)
    np.testing.assert_array_equal(found, labels)
    if suffix == "tif":
        np.testing.assert_array_equal(found, tifffile.imread(path))


# HoVer-Net's contours


def contour(left, top, right, bottom):
    """Return the corners of a nucleus whose pixels go from (left, top) to (right, bottom), as OpenCV lists them."""
    return [[left, top], [left, bottom], [right, bottom], [right, top]]


def hovernet(path, contours, mag=None, **more):
    nuclei = {str(k): {"bbox": None, "centroid": [0, 0], "contour": c, "type": 1} for k, c in enumerate(contours, 1)}
    path.write_text(json.dumps({"mag": mag, "nuc": nuclei, **more}))
    return path


def test_contours_are_filled(tmp_path):
    path = hovernet(tmp_path / "a.json", [contour(2, 3, 5, 9), contour(40, 30, 59, 39), [[20, 20]], [[7, 1], [9, 1]]])
    labels = np.zeros((40, 60), int)
    labels[3:10, 2:6], labels[30:40, 40:60], labels[20, 20], labels[1, 7:10] = 1, 2, 3, 4
    np.testing.assert_array_equal(read_mask(path, (40, 60)), labels)
    assert not read_mask(hovernet(path, []), (40, 60)).any()
    with pytest.raises(InputError, match="contours, which need an image"):
        read_mask(path)


def boundary(nucleus):
    """Follow the boundary of a region clockwise, as OpenCV does: x and y of each of its pixels in turn."""
    steps = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)]
    region = np.pad(nucleus, 1)
    at = start = tuple(int(v) for v in np.argwhere(region)[0])
    found, back, first = [], 0, None
    while True:
        turns = [(back + k) % 8 for k in range(1, 9)]
        turn = next(t for t in turns if region[at[0] + steps[t][0], at[1] + steps[t][1]])
        following = (at[0] + steps[turn][0], at[1] + steps[turn][1])
        if (at, following) == first:
            return found
        first = first or (start, following)
        found.append([at[1] - 1, at[0] - 1])
        at, back = following, (turn + 4) % 8


def test_contours_of_round_and_dented_nuclei_give_their_pixels(tmp_path):
    noise = np.random.default_rng(0).normal(size=(120, 120))
    dense = ndimage.gaussian_filter(noise, 3)
    labels, number = ndimage.label(ndimage.binary_fill_holes(dense > dense.mean() + dense.std() / 2), np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    kept = [k for k in range(1, number + 1) if sizes[k] > 9]
    expected = sum(np.where(labels == k, n, 0) for n, k in enumerate(kept, 1))
    path = hovernet(tmp_path / "a.json", [boundary(labels == k) for k in kept])
    np.testing.assert_array_equal(read_mask(path, (120, 120)), expected)
    assert len(kept) > 20


def test_contours_of_another_image_or_resolution_are_refused(tmp_path):
    far = [contour(2, 3, 5, 9), contour(50, 30, 58, 38)]
    path = tmp_path / "a.json"
    for mag, mpp in ((None, None), (None, 0.5), (40, 0.25), (40, 0.22), (20, 0.5), (40, None)):
        assert read_mask(hovernet(path, far, mag), (40, 60), mpp).max() == 2
    with pytest.raises(InputError, match=r"contours of 40x, about 0\.25 microns per pixel, and its image has 0\.5"):
        read_mask(hovernet(path, far, 40), (40, 60), 0.5)
    near = [contour(2, 3, 5, 9), contour(20, 10, 28, 18)]
    with pytest.raises(InputError, match="resolution of the image is unknown; give its mpp"):
        read_mask(hovernet(path, near, 20), (40, 60))
    with pytest.raises(InputError, match=r"to \(58, 38\), outside the image of 60 x 30 pixels"):
        read_mask(hovernet(path, far), (30, 60))
    for text, sentence in (
        ('{"type": "FeatureCollection", "features": []}', "must be JSON of HoVer-Net"),
        ('{"nuc": {"1": {"bbox": []}}}', "must be JSON of HoVer-Net"),
        ('{"nuc": {"1": {"contour": [[1, NaN]]}}}', "must be JSON of HoVer-Net"),
        ('{"nuc": {"1": {"contour": [1, 2, 3]}}}', "must be JSON of HoVer-Net"),
        ('{"nuc": ', "cannot be read as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=sentence):
            read_mask(path, (40, 60))


def test_contours_are_measured_in_lists_and_tables(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    hovernet(tmp_path / "a.json", [contour(2, 3, 5, 9), contour(40, 30, 59, 39)], mag=40)
    (tmp_path / "list.csv").write_text("image,mask,mpp,patient\na.png,a.json,0.25,p\n")
    listed = run_measure(tmp_path / "list.csv", out=tmp_path / "m.csv", patch_size=20).table
    assert listed["count"].tolist() == [1, 0, 0, 0, 0, 1]
    rows = [f"p{x}{y},a.png,{x},{y},20,a.json,0.25" for y in (0, 20) for x in (0, 20, 40)]
    (tmp_path / "table.csv").write_text("\n".join(["patch_id,image,x,y,size,mask,mpp", *rows]))
    table = run_measure(tmp_path / "table.csv", out=tmp_path / "n.csv").table.sort_values(["y", "x"])
    assert table["area_px"].fillna(0).tolist() == listed["area_px"].fillna(0).tolist()


# HDF5


def test_rows_are_judged_together(tmp_path):
    """A patch may hold one nucleus in several pieces; a dataset of patches does not."""
    path = tmp_path / "a.h5"
    pieces = np.where(np.isin(LABELS, (9, 10, 40)), 17, 0)
    with h5py.File(path, "w") as file:
        file["masks"] = np.stack([pieces, LABELS, LABELS]).astype(np.float32)[..., None]
    check_mask_rows(path)
    assert read_mask_row(path, 0).dtype == np.int64
    np.testing.assert_array_equal(read_mask_row(path, 0), pieces)
    with h5py.File(path, "w") as file:
        file["masks"] = np.stack([CLASSES] * 3)
    with pytest.raises(InputError, match="have 9 labels in 210 separate pieces, so this looks like a class map"):
        check_mask_rows(path)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    with h5py.File(path, "a") as file:
        file["patches"] = np.zeros((3, 40, 60, 3), np.uint8)
    (tmp_path / "t.csv").write_text(
        "patch_id,h5,key,row,mask\n" + "".join(f"{k},a.h5,patches,{k},a.h5\n" for k in range(3))
    )
    with pytest.raises(InputError, match="looks like a class map"):
        run_measure(tmp_path / "t.csv", out=tmp_path / "m.csv")


@pytest.mark.parametrize("folder", ["monuseg", "dsb2018_color"])
def test_real_masks_are_masks_and_their_classes_are_not(folder, shared_data, tmp_path):
    for path in sorted((shared_data / folder / "masks").glob("*.png"))[:12]:
        labels = read_mask(path)
        assert len(np.unique(labels)) > 2
        Image.fromarray(np.where(labels > 0, labels % 2 + 1, 0).astype(np.uint8)).save(tmp_path / "classes.png")
        with pytest.raises(InputError, match="looks like a class map"):
            read_mask(tmp_path / "classes.png")


@pytest.mark.parametrize(("kind", "first"), [("float16", 2047), ("float32", 2**24 - 1)])
def test_float_labels_that_their_type_cannot_tell_apart_are_refused(tmp_path, kind, first):
    labels = np.zeros((8, 8), dtype=np.int64)
    labels[0, 0], labels[3, 3], labels[6, 6] = 1, 2, first
    np.save(tmp_path / "exact.npy", labels.astype(kind))
    assert np.array_equal(read_mask(tmp_path / "exact.npy"), labels)
    labels[3, 3], labels[6, 6] = first + 1, first + 2  # the type rounds both to one value
    np.save(tmp_path / "rounded.npy", labels.astype(kind))
    with pytest.raises(InputError, match=f"{kind} keeps whole numbers apart only below {first + 1}; save the labels"):
        read_mask(tmp_path / "rounded.npy")


@pytest.mark.parametrize("kind", ["class map", "binary mask", "instances as floats"])
def test_measure_counts_nuclei_and_refuses_classes(kind, tmp_path):
    labels = np.zeros((64, 64), int)
    for number in range(16):
        row, column = divmod(number, 4)
        labels[16 * row + 2 : 16 * row + 10, 16 * column + 2 : 16 * column + 10] = number + 1
    masks = {
        "class map": np.where(labels, labels % 3 + 1, 0),
        "binary mask": (labels > 0) * 255,
        "instances as floats": labels.astype(np.float32),
    }
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "i.png")
    tifffile.imwrite(tmp_path / "m.tif", masks[kind].astype(np.float32 if "floats" in kind else np.uint8))
    (tmp_path / "list.csv").write_text("image,mask\ni.png,m.tif\n")
    if kind == "instances as floats":
        table = run_measure(tmp_path / "list.csv", out=tmp_path / "t.csv", patch_size=64).table
        assert table["count"].tolist() == [16]
    else:
        with pytest.raises(InputError, match=f"looks like a {kind}"):
            run_measure(tmp_path / "list.csv", out=tmp_path / "t.csv", patch_size=64)
