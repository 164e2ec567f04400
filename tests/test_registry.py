"""Families of named members: conceptkit's own, and those that other packages add."""

from __future__ import annotations

import sys

import pytest

from conceptkit import registry
from conceptkit.errors import InputError
from conceptkit.registry import Registry


def fresh(**more):
    return Registry("shapes", {"circle": "builtins:len", "square": "builtins:abs"}, **more)


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


def test_a_built_in_member_loads_on_first_use(monkeypatch, tmp_path):
    (tmp_path / "slow_shapes.py").write_text("star = sum\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shapes = Registry("shapes", {"star": "slow_shapes:star"})
    assert list(shapes) == ["star"]
    assert "star" in shapes
    assert shapes.check("shape", "star") == "star"
    assert "slow_shapes" not in sys.modules
    assert shapes["star"] is sum
    assert "slow_shapes" in sys.modules


def test_a_missing_name_is_refused_with_near_names():
    for refuse in (fresh().check, fresh().choose):
        with pytest.raises(InputError, match="shape: 'circel' is not known; near names: circle"):
            refuse("shape", "circel")
    assert fresh().choose("shape", "circle") is len
    with pytest.raises(KeyError):
        fresh()["circel"]


def test_a_member_that_is_replaced_comes_back(monkeypatch):
    shapes = fresh()
    with monkeypatch.context() as patch:
        patch.setitem(shapes, "circle", sum)
        assert shapes["circle"] is sum
    assert shapes["circle"] is len
    assert list(shapes) == ["circle", "square"]


def test_a_member_of_the_wrong_type_is_refused():
    with pytest.raises(InputError, match=r"conceptkit\.shapes: 'star' must be a function, got int"):
        fresh()["star"] = 3
    with pytest.raises(InputError, match="must be a dict, got int"):
        Registry("shapes", {}, member="builtins:dict")["star"] = 3


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
