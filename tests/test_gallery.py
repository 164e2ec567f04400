"""The gallery shows what every drawing function of the package draws."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "conceptkit"


def drawing_functions(source: str, module: str) -> Iterator[str]:
    """Yield ``module.function`` of each function that begins a figure."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == "new_figure"
            for call in ast.walk(node)
        ):
            yield f"{module}.{node.name}"


def shown(text: str) -> set[str]:
    """Functions that the gallery names at its pictures."""
    found: set[str] = set()
    for options in re.findall(r"^```\{run\} \w+\n((?::\w+:[^\n]*\n)+)", text, re.M):
        named = dict(re.findall(r"^:(\w+): *(.+)$", options, re.M))
        if "draws" in named:
            assert named.get("pictures"), "functions that draw, without a picture"
            assert len(named["draws"].split(", ")) == len(named["pictures"].split())
            found |= set(named["draws"].split(", "))
    return found


def test_every_drawing_function_is_in_the_gallery() -> None:
    made = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in drawing_functions(path.read_text(encoding="utf-8"), path.stem)
    }
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert made == shown(gallery)
    assert made - shown(gallery.replace("figures._training_figure", "figures.other")) == {"figures._training_figure"}


def test_no_figure_is_begun_in_another_way() -> None:
    others = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bplt\.|(?<!\w)Figure\(|pyplot", path.read_text(encoding="utf-8"))
    }
    assert others == {"drawing.py"}  # where new_figure is
