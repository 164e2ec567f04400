"""Types of nuclei: read from the published layouts, refused where unclear, and measured against plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from conceptkit.commands.measure import run_measure
from conceptkit.errors import InputError
from conceptkit.pathology.measures import measure
from conceptkit.pathology.typed_masks import LAYOUTS, read_types, type_names
from conceptkit.pathology.typed_measures import TYPES

NAMES = LAYOUTS["consep"]


def discs(centres, side=160, radius=6):
    labels = np.zeros((side, side), np.int32)
    y, x = np.indices(labels.shape)
    for label, (cy, cx) in enumerate(centres, start=1):
        labels[np.hypot(y - cy, x - cx) < radius] = label
    return labels


CENTRES = [(20, 20), (20, 60), (60, 20), (120, 120), (130, 40), (90, 90)]
KINDS = {1: "neoplastic", 2: "lymphocyte", 3: "neoplastic", 4: "plasma", 5: "connective"}


def test_layouts_are_read(tmp_path):
    labels = discs(CENTRES)
    savemat(tmp_path / "h.mat", {"inst_map": labels, "inst_type": np.array([[4], [2], [4], [2], [5], [1]])})
    expected = {1: "neoplastic", 2: "inflammatory", 3: "neoplastic", 4: "inflammatory", 5: "connective", 6: "other"}
    assert read_types(tmp_path / "h.mat", NAMES) == expected
    savemat(tmp_path / "l.mat", {"inst_map": labels * 2, "id": [[4], [2], [12]], "class": [[3], [1], [6]]})
    assert read_types(tmp_path / "l.mat", LAYOUTS["lizard"]) == {4: "lymphocyte", 2: "neutrophil", 12: "connective"}
    nuclei = {str(k): {"contour": [[1, 1], [4, 1], [4, 4]], "type": k % 3} for k in (7, 9, 3)}
    (tmp_path / "n.json").write_text(json.dumps({"mag": 40, "nuc": nuclei}))
    assert read_types(tmp_path / "n.json", LAYOUTS["pannuke"]) == {1: "neoplastic"}  # 0 is no type
    (tmp_path / "c.csv").write_text("label,class\n3,Lymphocyte\n8,2\n")
    assert read_types(tmp_path / "c.csv", {"2": "dead"}) == {3: "Lymphocyte", 8: "dead"}
    savemat(tmp_path / "p.mat", {"inst_map": labels})
    assert read_types(tmp_path / "p.mat", NAMES) == {}
    assert read_types(tmp_path / "m.png") == {}


@pytest.mark.parametrize(
    ("write", "names", "message"),
    [
        (
            lambda p: savemat(p, {"inst_map": discs(CENTRES), "inst_type": [[1], [2]]}),
            NAMES,
            "2 types for labels up to 6",
        ),
        (lambda p: savemat(p, {"inst_type": [[1], [9]]}), NAMES, "has a type 9, which --type-names does not name"),
        (lambda p: savemat(p, {"inst_type": [[1], [2]]}), None, "holds types as numbers; name them with --type-names"),
        (lambda p: p.write_text("x"), NAMES, "cannot be read"),
        (lambda p: None, NAMES, "does not exist"),
    ],
)
def test_types_that_are_unclear_are_refused(tmp_path, write, names, message):
    path = tmp_path / "t.mat"
    write(path)
    with pytest.raises(InputError, match=message):
        read_types(path, names)


@pytest.mark.parametrize("text", ["label,kind\n1,a\n", "label,type\nx,a\n", "label,type\n1,a\n1,b\n"])
def test_tables_of_types_that_are_wrong(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=r"types: .*t\.csv"):
        read_types(tmp_path / "t.csv")


def test_names_of_types():
    assert type_names("1=a, 2 = b") == {"1": "a", "2": "b"}
    assert type_names("lizard")["3"] == "lymphocyte"
    with pytest.raises(InputError, match=r"type-names: must be pannuke, consep, lizard or pairs"):
        type_names("connsep")


def test_measures_are_plain_loops():
    labels = discs(CENTRES)
    image = np.full((160, 160, 3), 180, np.uint8)
    names = [f"{g}_{m}" for g in TYPES for m in ("count", "density_mm2", "share", "area_um2")]
    values = measure(
        image[None], labels[None], 0.5, names=[*names, "infiltration_30um", "inflammatory_distance_um"], types=KINDS
    )
    for group, members in TYPES.items():
        own = [k for k, kind in KINDS.items() if kind in members]
        assert values[f"{group}_count"][0] == len(own)
        assert values[f"{group}_share"][0] == pytest.approx(len(own) / 5)  # the sixth has no type
        assert values[f"{group}_density_mm2"][0] == pytest.approx(len(own) / (0.08 * 0.08))
        areas = [(labels == k).sum() / 4 for k in own]
        assert values[f"{group}_area_um2"][0] == pytest.approx(np.mean(areas) if own else np.nan, nan_ok=True)
    apart = np.array(
        [[np.hypot(a - c, b - d) / 2 for c, d in (CENTRES[1], CENTRES[3])] for a, b in (CENTRES[0], CENTRES[2])]
    )
    assert values["infiltration_30um"][0] == pytest.approx((apart <= 30).sum(axis=1).mean())
    assert values["inflammatory_distance_um"][0] == pytest.approx(apart.min(axis=1).mean())


def test_patches_without_one_of_the_types():
    labels = np.stack([discs(CENTRES[:1]), discs(CENTRES[:2]) // 2 * 2, np.zeros((160, 160), np.int32)])
    images = np.full((3, 160, 160, 3), 180, np.uint8)
    names = ["infiltration_30um", "inflammatory_distance_um", "neoplastic_share"]
    values = measure(images, labels, 0.5, names=names, types=KINDS)
    np.testing.assert_array_equal(values["infiltration_30um"], [0, np.nan, np.nan])
    np.testing.assert_array_equal(values["inflammatory_distance_um"], [np.nan] * 3)
    np.testing.assert_array_equal(values["neoplastic_share"], [1, 0, np.nan])


def test_a_list_with_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = discs(CENTRES)
    Image.fromarray(np.full((160, 160, 3), 180, np.uint8)).save("i.png")
    Image.fromarray(labels.astype(np.uint16)).save("m.png")
    savemat("m.mat", {"inst_map": labels, "inst_type": np.array([[4], [2], [4], [2], [5], [1]])})
    Path("t.csv").write_text("label,type\n" + "".join(f"{k},{v}\n" for k, v in KINDS.items()))
    Path("a.csv").write_text("image,mask,mpp\ni.png,m.mat,0.5\n")
    Path("b.csv").write_text("image,mask,mpp,types\ni.png,m.png,0.5,t.csv\n")
    options = {
        "out": "t.parquet",
        "patch_size": 160,
        "names": "neoplastic_count,inflammatory_count",
        "nuclei_out": "n.parquet",
    }
    for name, more in (("a.csv", {"type_names": "consep"}), ("b.csv", {})):
        table = run_measure(name, **options, **more).table
        assert table[["neoplastic_count", "inflammatory_count"]].to_numpy().tolist() == [[2, 2]]
        types = pd.read_parquet("n.parquet")["type"]
        assert (types == "neoplastic").sum() == 2
    with pytest.raises(InputError, match=r"names: neoplastic_count needs types; no row of a\.csv has it"):
        run_measure("a.csv", **options)
