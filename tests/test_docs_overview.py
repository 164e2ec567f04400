"""The overview for coding agents names every command with its options, and the built documentation serves it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.options import COMMANDS
from conceptkit.options.base import described
from conceptkit.registry import load

DOCS = Path(__file__).parents[1] / "docs"

pytest.importorskip("sphinx", reason="needs the extra docs (pip install '.[docs]')")
sys.path.insert(0, str(DOCS))

import derived  # noqa: E402


def parts(text: str) -> dict[str, str]:
    """Command → its part of the overview."""
    return dict(re.findall(r"^## conceptkit ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def missing(text: str) -> list[str]:
    """Options of the real command line that the overview does not give, and those that it gives twice."""
    wrong = []
    found = parts(text)
    for name in COMMANDS:
        command = get_command(app)
        for word in name.split():
            command = command.commands[word]  # type: ignore[attr-defined]
        known = {one.name for one in described(load(COMMANDS[name]))}
        flags = {option for p in command.params if p.name in known for option in p.opts if option.startswith("--")}
        given = re.findall(r"--[a-z][a-z0-9-]*", "\n".join(re.findall(r"^- `([^`]+)`", found.get(name, ""), re.M)))
        wrong += [f"{name} {flag}" for flag in flags if given.count(flag) != 1]
    return wrong


def test_the_overview_gives_every_option_once() -> None:
    text = derived.overview()
    assert list(parts(text)) == list(COMMANDS)
    assert missing(text) == []
    assert missing(text.replace("- `--concept`", "- `--koncept`", 1)) == ["probe --concept"]


def test_every_public_object_has_its_example() -> None:
    found = derived.examples()
    assert set(ck.__all__) - set(found) == set()
    assert all(f"ck.{name}" in text for name, text in found.items())


def test_the_built_documentation_has_the_overview_and_the_page_of_a_block(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS)!r})\nextensions = ['myst_parser', 'run_blocks', 'derived']\n"
    )
    (tmp_path / "index.md").write_text(
        "# Title\n\n```{run} picture\n:from: z/later\n:pictures: a.svg\n:alt: a\n```\n\n```{toctree}\nz/later\n```\n"
    )
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "later.md").write_text(
        "# Later\n\n```{run} shell\n:pictures: a.svg\n:alt: a\n:report: r.html\n"
        "echo '<p>here</p>' > r.html; echo '<svg xmlns=\"http://www.w3.org/2000/svg\"/>' > a.svg\n```\n"
    )
    site = tmp_path / "_build"
    subprocess.run([sys.executable, "-m", "sphinx", "-qW", "-b", "html", str(tmp_path), str(site)], check=True)
    assert (site / "llms.txt").read_text(encoding="utf-8") == derived.overview()
    assert (site / "reports" / "z-later.html").read_text(encoding="utf-8") == "<p>here</p>\n"
    assert 'href="../reports/z-later.html"' in (site / "z" / "later.html").read_text(encoding="utf-8")
    assert "a.svg" in (site / "index.html").read_text(encoding="utf-8")
