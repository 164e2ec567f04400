"""Families of named members: conceptkit's own, and those that other packages add."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conceptkit import registry
from conceptkit.errors import InputError, check_choice
from conceptkit.registry import Registry

PLUGIN = Path(__file__).parent / "plugin"


def fresh(**more):
    return Registry("shapes", {"circle": len, "square": abs}, **more)


def installed(monkeypatch, folder, entries, code="", name="some-package"):
    """Install a package with entry points ``NAME = MODULE:OBJECT`` of the group conceptkit.shapes."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[conceptkit.shapes]\n" + entries)
    (folder / f"{name.replace('-', '_')}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    registry._installed.cache_clear()


@pytest.fixture(autouse=True)
def _forget():
    yield
    registry._installed.cache_clear()


def test_a_decorator_adds_a_member():
    shapes = fresh()

    @shapes.register("star")
    def star(x):
        return x

    assert shapes["star"] is star
    assert list(shapes) == ["circle", "square", "star"]
    with pytest.raises(InputError, match="'star' is taken"):
        shapes.register("star")(len)


def test_a_family_whose_members_are_more_than_functions():
    made = fresh(make=lambda name, function, **about: lambda: (name, function, about))
    made.register("star", unit="px")(len)
    assert made["star"]() == ("star", len, {"unit": "px"})


def test_a_missing_name_is_refused_with_near_names():
    with pytest.raises(InputError, match="shape: 'circel' is not known; near names: circle"):
        check_choice("shape", "circel", fresh())
    with pytest.raises(KeyError):
        fresh()["circel"]


def test_a_member_of_the_wrong_type_is_refused():
    with pytest.raises(InputError, match=r"conceptkit\.shapes: 'star' must be a function, got int"):
        fresh()["star"] = 3
    with pytest.raises(InputError, match="must be a dict, got int"):
        Registry("shapes", {}, member=dict)["star"] = 3


def test_another_package_adds_a_member_that_loads_on_first_use(monkeypatch, tmp_path):
    code = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nstar = sum\n"
    installed(monkeypatch, tmp_path, "star = some_package:star\n", code)
    shapes = fresh()
    assert list(shapes) == ["circle", "square", "star"]
    assert len(shapes) == 3
    assert "circle" in shapes
    assert not (tmp_path / "some_package.ran").exists()
    assert shapes["star"] is sum
    assert (tmp_path / "some_package.ran").exists()


@pytest.mark.parametrize(
    ("entries", "code", "sentence"),
    [
        ("star = some_package:star", "1 / 0", "'star' of some-package failed to load: ZeroDivisionError"),
        ("star = some_package:moon", "", "'star' of some-package failed to load: AttributeError"),
        ("star = some_package:star", "star = 3", "'star' must be a function, got int"),
        ("circle = some_package:star", "star = sum", "'circle' of some-package has a built-in member's name"),
    ],
)
def test_a_package_that_does_not_work_is_named(monkeypatch, tmp_path, entries, code, sentence):
    installed(monkeypatch, tmp_path, entries, code)
    sys.modules.pop("some_package", None)
    with pytest.raises(InputError, match=sentence):
        _ = fresh()["star"] if entries.startswith("star") else list(fresh())


def test_two_packages_with_the_same_name_are_refused(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path / "a", "star = some_package:star")
    installed(monkeypatch, tmp_path / "b", "star = other_package:star", name="other-package")
    with pytest.raises(InputError, match="both have 'star'"):
        list(fresh())


# The package of tests/plugin through the command line: each family once


def command(*arguments, folder):
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "conceptkit", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_measure_and_a_nucleus_method_of_another_package(tmp_path):
    pixels = np.full((64, 64, 3), 200, dtype=np.uint8)
    pixels[4:10, 4:10] = pixels[20:26, 40:46] = 20
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text("image,patient\na.png,p\n")
    command(
        *("measure", "images.csv", "--out", "t.csv", "--patch-size", 64, "--nuclei", "dark"),
        *("--measure", "redness,count"),
        folder=tmp_path,
    )
    (row,) = pd.read_csv(tmp_path / "t.csv").to_dict("records")
    assert row["count"] == 2
    assert row["redness"] == pytest.approx(pixels[..., 0].mean())


def test_weighting_method_recipe_and_schedule_of_another_package(study, tmp_path):
    command(
        *("guide", "--study", study, "--encourage", "count", "--discourage", "center", "--recipe", "short"),
        *("--unfreeze", "none", "--out", "run"),
        folder=tmp_path,
    )
    settings = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["settings"]
    assert settings["recipe"] == "short"
    options = settings.get("options", settings)
    assert (options["weighting"], options["method"], options["reversal"]) == ("halved", "spread", "late")


def test_a_stain_method_of_another_package(tmp_path, shared_data):
    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    Image.fromarray(np.full((8, 8, 3), 120, dtype=np.uint8)).save(tmp_path / "reference.png")
    command(
        *("tile", slide, "--out", "t.csv", "--export", "png", "--stain", "brighten"),
        *("--stain-reference", "reference.png"),
        folder=tmp_path,
    )
    table = pd.read_csv(tmp_path / "t.csv")
    tiles = [np.asarray(Image.open(tmp_path / path)) for path in table["image"]]
    assert abs(np.mean(tiles) - 120) < 5
