"""Maps that lie on the slide: every level of the pyramid, by readers that did not write it, and the picture."""

from __future__ import annotations

import struct

import numpy as np
import openslide
import pandas as pd
import pytest
from command_calls import call
from PIL import Image
from slide_files import SCN_CORNER, tissue, write_scn, write_slide

from conceptkit.pathology.viewers.overlays import TILE, factor_for, write_map
from conceptkit.pathology.viewers.shapes import Canvas, canvas_of
from conceptkit.report.slide_maps import MapLayer, Place, map_on_tissue, scale_length


def levels(path, tmp_path):
    """Every level of a BigTIFF by libtiff: a copy for each, whose first page is that level."""
    data = path.read_bytes()
    order = "<" if data[:2] == b"II" else ">"
    assert struct.unpack(f"{order}H", data[2:4])[0] == 43
    [first] = struct.unpack(f"{order}Q", data[8:16])
    [number] = struct.unpack(f"{order}Q", data[first : first + 8])
    found = [first]
    for k in range(number):
        tag, kind, count, value = struct.unpack(f"{order}HHQQ", data[first + 8 + 20 * k :][:20])
        if tag == 330:
            assert kind in (13, 16, 18)
            size, letter = (4, "I") if kind == 13 else (8, "Q")
            place = value if count * size > 8 else first + 8 + 20 * k + 12
            found += struct.unpack(f"{order}{count}{letter}", data[place : place + count * size])
    for k, place in enumerate(found):
        copy = tmp_path / f"level{k}.tif"
        copy.write_bytes(data[:8] + struct.pack(f"{order}Q", place) + data[16:])
        with Image.open(copy) as image:
            yield np.asarray(image)


def marked(canvas, size):
    """A patch in the bottom-right corner, in red, and a blue one in the middle."""
    x, y = canvas.width - size, canvas.height - size
    boxes = np.array([[x, y, x + size, y + size], [x // 2, y // 3, x // 2 + size, y // 3 + size]], dtype=np.float64)
    return boxes, np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)


def off_by(image, colour, box, scale):
    """The distance of a marker's edges from where they belong, in pixels of a level."""
    y, x = np.nonzero((image == colour).all(axis=-1))
    edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return np.abs(edges - np.minimum(box / scale, [image.shape[1], image.shape[0]] * 2)).max()


@pytest.mark.parametrize(("width", "height", "size"), [(100_003, 80_001, 448), (5_001, 7_777, 512), (900, 700, 96)])
def test_a_marker_in_the_corner_is_found_at_every_level(tmp_path, width, height, size):
    canvas = Canvas(tmp_path / "slide", width, height, mpp=0.25)
    boxes, colours = marked(canvas, size)
    factor = write_map(tmp_path / "m.ome.tif", canvas, boxes, colours, name="count")
    seen = list(levels(tmp_path / "m.ome.tif", tmp_path))
    assert factor == factor_for(np.array([size]))
    assert size / factor >= 16
    assert max(seen[-1].shape) <= TILE
    for k, image in enumerate(seen):
        scale = factor * 2**k
        assert image.shape == (-(-height // scale), -(-width // scale), 3)
        for box, colour in zip(boxes, colours, strict=True):
            assert off_by(image, colour, box, scale) <= 1
    # the control: a map stretched to whole pixels would be seen to lie elsewhere
    wrong = boxes[0] * np.array([seen[0].shape[1] * factor / width, 1] * 2) + 2 * factor
    assert off_by(seen[0], colours[0], wrong, factor) > 1


def test_openslide_reads_it_and_its_scale(tmp_path):
    canvas = Canvas(tmp_path / "slide", 4000, 3000, mpp=0.5)
    boxes, colours = marked(canvas, 128)
    factor = write_map(tmp_path / "m.ome.tif", canvas, boxes, colours, name="count")
    with openslide.OpenSlide(tmp_path / "m.ome.tif") as opened:
        assert opened.dimensions == (4000 // factor, 3000 // factor)
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.5 * factor)
        x, y = (boxes[0, :2] / factor).astype(int)
        assert np.asarray(opened.read_region((x, y), 0, (2, 2)).convert("RGB")).tolist() == [[[255, 0, 0]] * 2] * 2
        assert np.asarray(opened.read_region((x - 2, y), 0, (2, 1)).convert("RGB")).tolist() == [[[255, 255, 255]] * 2]


def test_on_the_shared_slide(shared_data, tmp_path):
    canvas = canvas_of(shared_data / "wsi" / "cmu-1-small-region.svs", slide=True, crop=True)
    boxes, colours = marked(canvas, 96)
    factor = write_map(tmp_path / "m.ome.tif", canvas, boxes, colours, name="count")
    seen = list(levels(tmp_path / "m.ome.tif", tmp_path))
    for k, image in enumerate(seen):
        assert off_by(image, colours[0], boxes[0], factor * 2**k) <= 1


def test_the_command_draws_maps_in_the_scanned_area(tmp_path):
    path = write_scn(tmp_path)
    left, top = SCN_CORNER
    rows = [
        {"patch_id": f"{x}|{y}", "slide": path.name, "x": left + x, "y": top + y, "size": 64, "kind": "ab"[x % 128 > 0]}
        for x in range(0, 512, 64)
        for y in range(0, 768, 64)
    ]
    pd.DataFrame(rows).assign(count=lambda t: t["x"] + t["y"]).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "out"
    result = call("qupath", tmp_path / "t.csv", "--out", out, "--map", "count,kind")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (out / "maps").iterdir()) == [
        f"case.scn-{c}{e}" for c in ("count", "kind") for e in (".ome.tif", ".png")
    ]
    factor = factor_for(np.array([64]))
    image = next(levels(out / "maps" / "case.scn-count.ome.tif", tmp_path))
    painted = (image != 255).any(axis=-1)
    assert painted.shape == (768 // factor, 1024 // factor)
    assert painted[:, : 512 // factor].all()
    assert not painted[:, 512 // factor :].any()
    with Image.open(out / "maps" / "case.scn-kind.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 500
    assert (pixels.std(axis=-1) > 20).mean() > 0.2  # blue and orange over the tissue


def test_a_bar_has_a_round_length():
    assert scale_length(4000, 0.5) == (400, "200 µm")
    assert scale_length(100_000, 0.25) == (8000, "2 mm")
    assert scale_length(600, None) == (100, "100 pixels (scale unknown)")
    place = Place(name="s", x=np.array([0.0, 50.0]), y=np.zeros(2), size=np.full(2, 50.0))
    drawing = map_on_tissue(place, MapLayer(name="type", values=np.array(["a", "b"]), classes=("a", "b")), mpp=0.5)
    axes, bar = drawing.figure.axes
    assert [text.get_text() for text in axes.texts] == ["5 µm"]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["a", "b"]
    line = axes.lines[0].get_xdata()
    assert (line[1] - line[0]) * 0.5 == pytest.approx(5)


def test_a_map_of_one_slide_among_others_uses_one_scale(tmp_path):
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif", [tissue(256, 256)])
    table = pd.DataFrame(
        {"patch_id": ["a1", "b1"], "slide": ["a.tif", "b.tif"], "x": 0, "y": 0, "size": 128, "count": [0.0, 1.0]}
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    assert call("qupath", tmp_path / "t.csv", "--out", tmp_path / "out", "--map", "count").exit_code == 0
    first, second = (next(levels(tmp_path / "out" / "maps" / f"{n}.tif-count.ome.tif", tmp_path))[2, 2] for n in "ab")
    assert (first != second).any()
