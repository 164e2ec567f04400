"""Nuclei by their hematoxylin: drawn tissue of known nuclei, other resolutions and stains, and real images."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from skimage.draw import ellipse

from conceptkit import families
from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.pathology import nuclei
from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.hematoxylin import segment
from conceptkit.pathology.masks import read_mask
from conceptkit.pathology.measuring import Segmentation, measure_images
from conceptkit.pathology.nuclei import write_labels
from conceptkit.pathology.regions import FEATURES, Fields, best_set, candidates, describe, drawn

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def drawn_tissue(mpp=0.25, size_um=80, seed=0, number=36, strength=1.0, h=HEMATOXYLIN):
    """An image of elliptic nuclei on stroma, and its labels, at a resolution."""
    rng = np.random.default_rng(seed)
    side = round(size_um / mpp)
    labels = np.zeros((side, side), dtype=np.int32)
    for label in range(1, number + 1):
        y, x = rng.uniform(0, side, 2)
        radii = rng.uniform(2.8, 4.2, 2) / mpp
        rows, columns = ellipse(y, x, *radii, shape=labels.shape, rotation=rng.uniform(0, np.pi))
        free = labels[rows, columns] == 0
        if free.all():  # nuclei here do not touch
            labels[rows, columns] = label
    field = ndimage.gaussian_filter(rng.normal(size=labels.shape), 1 / mpp)
    eosin = 0.35 + 0.05 * field / field.std()
    blue = 0.08 + 0.5 * ndimage.gaussian_filter((labels > 0).astype(float), 0.2 / mpp)
    blue = blue + 0.02 * rng.normal(size=labels.shape)
    density = strength * (blue[..., None] * h / np.linalg.norm(h) + eosin[..., None] * EOSIN)
    return np.clip(255 * 10**-density, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("mpp", [0.25, 0.37, 0.5, 0.97])
def test_drawn_nuclei_are_found_at_every_resolution(mpp):
    image, labels = drawn_tissue(mpp)
    found = agreement(segment(image, mpp), labels)
    assert found.dice > 0.85
    assert found.aji > 0.7
    assert abs(found.found - found.drawn) <= 0.1 * found.drawn


def test_a_wrong_resolution_is_worse():
    image, labels = drawn_tissue(0.5)
    assert agreement(segment(image, 0.1), labels).aji < agreement(segment(image, 0.5), labels).aji - 0.2


@pytest.mark.parametrize(
    ("strength", "h"), [(0.6, HEMATOXYLIN), (1.6, HEMATOXYLIN), (1.0, np.array([0.55, 0.78, 0.30]))]
)
def test_other_stains(strength, h):
    image, labels = drawn_tissue(strength=strength, h=h, seed=3)
    assert agreement(segment(image, 0.25), labels).aji > 0.65


def test_touching_nuclei_are_parted():
    image = np.full((120, 160, 3), (230, 170, 210), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for x in (57, 85):  # 14 px wide to either side: they touch
        image[ellipse(60, x, 20, 14, shape=image.shape[:2])] = (90, 50, 140)
    image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    assert segment(image, 0.25).max() == 2


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 120, 180)])
def test_empty_patches_hold_no_nucleus(colour):
    assert segment(np.full((64, 48, 3), colour, dtype=np.uint8)).max() == 0


def test_stroma_and_noise_hold_hardly_any():
    rng = np.random.default_rng(0)
    noisy = np.clip(np.array([232, 170, 205]) + rng.normal(0, 5, (224, 224, 3)), 0, 255).astype(np.uint8)
    assert segment(noisy, 0.25).max() == 0


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (65, 224)])
def test_odd_and_tiny_images_keep_their_size(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for mpp in (None, 0.25, 0.3, 1.0):
        labels = segment(image, mpp)
        assert labels.shape == shape
        assert len(np.unique(labels)) - (0 in labels) == labels.max()


def test_regions_are_described_as_by_scikit_image():
    from skimage.measure import regionprops

    _, labels = drawn_tissue(0.5, seed=5)
    dark = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    fields = Fields(dark, dark * 2, dark * 0.5)
    number = int(labels.max())
    ours = describe(labels, number, fields)
    for region in regionprops(labels, intensity_image=dark):
        row = dict(zip(FEATURES, ours.features[region.label - 1], strict=True))
        assert ours.area[region.label - 1] == region.area
        assert row["mean"] == pytest.approx(region.intensity_mean, rel=1e-5)
        assert row["spread"] == pytest.approx(dark[labels == region.label].std(), rel=1e-4)
        tensor = region.inertia_tensor + np.eye(2) / 12
        assert row["ellipse"] == pytest.approx(region.area / (4 * np.pi * np.sqrt(np.linalg.det(tensor))), rel=1e-6)
        mask = np.pad(labels == region.label, 1)
        sides = sum((mask & ~np.roll(mask, s, axis=a)).sum() for a in (0, 1) for s in (1, -1))
        if not np.pad(labels, 1)[0].any() and region.bbox[0] > 0 and region.bbox[1] > 0:
            inside = region.bbox[2] < labels.shape[0] and region.bbox[3] < labels.shape[1]
            if inside:  # at the border of the image there is nothing to compare with
                assert row["circularity"] == pytest.approx(16 * region.area / sides**2)


def test_the_best_set_is_the_best_of_all_sets():
    rng = np.random.default_rng(2)
    dark = ndimage.gaussian_filter(rng.random((24, 24)), 1.5).astype(np.float32)
    dark = (dark - dark.min()) / np.ptp(dark)
    fields = Fields(dark, dark, dark)
    levels = candidates(fields, thresholds=np.linspace(0.4, 0.9, 5), smallest=3, largest=200, hole=2)

    def score(features):
        return np.abs(np.sin(features @ np.arange(1.0, 11.0)))  # any score will do

    regions = [
        (
            set(level.pixels[level.owner == k].tolist()),
            level.area[k] ** 0.4 * max(score(level.features[[k]])[0] - 0.2, 0),
        )
        for level in levels
        for k in range(len(level.area))
    ]
    assert 6 < len(regions) < 60

    def best(rest):
        if not rest:
            return 0.0
        pixels, value = rest[0]
        return max(best(rest[1:]), value + best([r for r in rest[1:] if not r[0] & pixels]))

    labels = drawn(best_set(levels, score, dark.shape, least=0.2, power=0.4), dark.shape)
    shown = [set(np.flatnonzero(labels == k).tolist()) for k in range(1, labels.max() + 1)]
    worth = {frozenset(p): v for p, v in regions}
    total = sum(max(v for p, v in regions if p == pixels) for pixels in shown)
    assert all(frozenset(p) in worth for p in shown)
    separate = {}  # regions of different trees do not meet, so that each is searched on its own
    for pixels, value in regions:
        root = next((k for k in separate if k >= pixels), None)
        if root is None:
            separate[frozenset(pixels)] = [(pixels, value)]
        else:
            separate[root].append((pixels, value))
    assert total == pytest.approx(sum(best(tree) for tree in separate.values()))


def test_methods_and_names():
    assert set(families.NUCLEI) == {"compact", "hematoxylin", "maskrcnn"}
    with pytest.raises(InputError, match="near names: hematoxylin"):
        nuclei.open_method("hematoxilin")
    with pytest.raises(InputError, match="nuclei-weights: maskrcnn needs the checkpoint"):
        nuclei.open_method("maskrcnn")
    with pytest.raises(InputError, match="hematoxylin takes none"):
        nuclei.open_method("hematoxylin", weights="w.safetensors")
    with pytest.raises(InputError, match="images: must be uint8"):
        nuclei.find_in(np.zeros((4, 4)), segment)
    assert nuclei.mask_name("TCGA-18_5592.x") == "TCGA-18_5592.x.png"
    for bad in ("../up", "a/b", "", ".hidden", "a\\b", "a\0b", "x" * 300, "a:b"):
        with pytest.raises(InputError, match="plain file name"):
            nuclei.mask_name(bad)


def test_masks_are_16_bit_and_have_a_limit(tmp_path):
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    nuclei.write_labels(labels, tmp_path / "deep" / "m.png")
    with Image.open(tmp_path / "deep" / "m.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m.png"]
    with pytest.raises(InputError, match="65535 labels"):
        nuclei.write_labels(np.array([[70_000]]), tmp_path / "n.png")


@pytest.fixture
def study(tmp_path):
    for k in range(2):
        image, labels = drawn_tissue(seed=k)
        Image.fromarray(image).save(tmp_path / f"i{k}.png")
        Image.fromarray(labels.astype(np.uint16)).save(tmp_path / f"m{k}.png")
    (tmp_path / "list.csv").write_text(
        "image_id,image,mask,mpp,patient\nfirst,i0.png,m0.png,0.25,p1\nsecond,i1.png,m1.png,0.25,p2\n"
    )
    return tmp_path


def test_a_named_method_overrides_the_masks_and_keeps_its_own(study):
    out = study / "t" / "table.csv"
    given = run_measure(study / "list.csv", out=study / "given.csv", patch_size=160)
    found = run_measure(
        study / "list.csv", out=out, patch_size=160, nuclei="hematoxylin", masks_out=study / "masks", names="all"
    )
    assert sorted(p.name for p in (study / "masks").iterdir()) == ["first.png", "second.png"]
    with Image.open(study / "masks" / "first.png") as image:
        labels = np.asarray(image)
    assert labels.shape == (320, 320)
    assert (out.parent / found.table["mask"][0]).resolve() == (study / "masks" / "first.png").resolve()
    assert "Nuclei were found by hematoxylin" in " ".join(found.notes)
    assert np.corrcoef(found.table["count"], given.table["count"])[0, 1] > 0.9
    first = found.table.iloc[0]
    window = labels[first.y : first.y + 160, first.x : first.x + 160]
    assert first["count"] == len(np.unique(window)) - 1
    assert "jpeg_quality" in found.table
    assert found.table["jpeg_quality"].isna().all()  # PNG files have none
    again = measure_images(study / "list.csv", out=out, patch_size=160, nuclei=Segmentation(method="hematoxylin"))
    assert "mask" not in again.table


def test_no_name_of_a_table_says_where_to_write(study):
    (study / "evil.csv").write_text("image_id,image\n../evil,i0.png\n")
    with pytest.raises(InputError, match="plain file name"):
        run_measure(study / "evil.csv", out=study / "t.csv", nuclei="hematoxylin", masks_out=study / "masks")
    (study / "twice.csv").write_text("image_id,image\na,i0.png\nA,i1.png\n")
    with pytest.raises(InputError, match="only in capitals"):
        run_measure(study / "twice.csv", out=study / "t.csv", nuclei="hematoxylin", masks_out=study / "masks")
    assert not (study / "masks").exists()
    with pytest.raises(InputError, match="needs --nuclei"):
        run_measure(study / "list.csv", out=study / "t.csv", masks_out=study / "masks")


def test_real_images(shared_data):
    """Three of the images that the score was not fitted on; benchmarks/concepts.py scores all twenty."""
    folder = shared_data / "monuseg"
    listed = pd.read_csv(folder / "images.csv").iloc[[0, 15, 29]]
    scores = []
    for row in listed.itertuples():
        with Image.open(folder / row.image) as image, Image.open(folder / row.mask) as mask:
            scores.append(agreement(segment(np.asarray(image.convert("RGB")), 0.25), np.asarray(mask).astype(int)))
    assert np.mean([s.aji for s in scores]) > 0.5
    assert np.mean([s.dice for s in scores]) > 0.76
    assert np.mean([s.pq for s in scores]) > 0.45


# Images of 20x


def at_20x(image, folder):
    """Measure an image as it is, 0.25 µm per pixel, and as a scanner of 20x had seen it; then the latter as of 40x.

    Lanczos, as the method's own reduction is a mean of 2 x 2 pixels: by that both images would be the same.
    """
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.LANCZOS)
    Image.fromarray(image).save(folder / "at40.png")
    small.save(folder / "at20.png")
    found = {}
    for name, mpp, side in (("at40", 0.25, height), ("at20", 0.5, height // 2), ("ignored", 0.25, height // 2)):
        source = "at40" if name == "at40" else "at20"
        (folder / "list.csv").write_text(f"image,mpp\n{source}.png,{mpp}\n")
        out = folder / f"{name}.csv"
        table = run_measure(
            folder / "list.csv", out=out, patch_size=side, names=["count", "area_um2"], nuclei="hematoxylin"
        ).table
        found[name] = table[["count", "area_um2"]].to_numpy()[0]
    return found["at40"], found["at20"], found["ignored"]


# Lanczos rings by a few grey levels at edges, as the mean of 2 x 2 does not: a nucleus in twenty may be told from its
# neighbours in one and not in the other, and rims may move by 0.15 pixels of 0.5 µm, which is 5 % of the area of a
# nucleus of 30 µm² (120 pixels, a rim of 39).
WITHIN = 0.05


def test_20x_gives_the_same_nuclei_in_microns(tmp_path):
    image, labels = drawn_tissue(0.25, size_um=112, seed=1, number=70)
    at40, at20, ignored = at_20x(image, tmp_path)
    drawn = len(np.unique(labels)) - 1
    assert abs(at40[0] - drawn) <= 0.1 * drawn
    np.testing.assert_allclose(at20, at40, rtol=WITHIN)
    assert abs(ignored[1] / at40[1] - 1) > 0.5  # control: without the right mpp a fourth of the area


def test_20x_of_a_real_image_gives_the_same_nuclei_in_microns(shared_data, tmp_path):
    path = shared_data / "monuseg" / "images" / "TCGA-21-5784-01Z-00-DX1.jpg"
    with Image.open(path) as picture:
        at40, at20, ignored = at_20x(np.asarray(picture.convert("RGB")), tmp_path)
    np.testing.assert_allclose(at20, at40, rtol=WITHIN)
    assert (np.abs(ignored / at40 - 1) > 0.3).all()  # control: nuclei are merged, and measured in wrong pixels


# Label images of other programs


def test_hovernets_mat_files_are_read(tmp_path):
    from scipy.io import savemat

    labels = np.zeros((6, 8), dtype=np.int32)
    labels[1:3, 1:4], labels[4:, 5:] = 1, 7
    # as the network writes them, and as CoNSeP's annotators did: whole numbers kept as floats
    for kind in (np.int32, np.float64):
        savemat(tmp_path / "a.mat", {"inst_map": labels.astype(kind), "inst_type": np.array([[1], [2]])})
        found = read_mask(tmp_path / "a.mat")
        assert found.dtype.kind == "i"
        np.testing.assert_array_equal(found, labels)
    savemat(tmp_path / "half.mat", {"inst_map": labels / 2})
    savemat(tmp_path / "other.mat", {"type_map": labels})
    (tmp_path / "broken.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:150])
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["inst_map"] = labels
    with (tmp_path / "new.mat").open("r+b") as file:  # the header that MATLAB puts before its HDF5
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    for name, sentence in (
        ("half", "is not a label image"),
        ("other", "has no variable inst_map"),
        ("broken", "cannot be read"),
        ("new", "version 7.3"),
        ("none", "does not exist"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_mask(tmp_path / f"{name}.mat")


def test_cellposes_pickle_is_refused_and_its_png_read(tmp_path):
    labels = np.zeros((6, 8), dtype=np.uint16)
    labels[1:3, 1:4], labels[4:, 5:] = 1, 2
    np.save(tmp_path / "a_seg.npy", {"masks": labels}, allow_pickle=True)
    with pytest.raises(InputError, match=r"is a pickle, as Cellpose's _seg.npy.* save the labels as PNG or TIFF"):
        read_mask(tmp_path / "a_seg.npy")
    write_labels(labels, tmp_path / "a_cp_masks.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a_cp_masks.png"), labels)
