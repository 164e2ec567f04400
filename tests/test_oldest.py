"""The oldest versions that are tried are those that pyproject.toml allows."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_constraints_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = {*project["dependencies"], *(line for extra in extras for line in extra)}
    assert [line for line in asked if ">=" not in line] == []
    pinned = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    assert pinned == sorted({line.replace(">=", "==") for line in asked}, key=str.lower)
