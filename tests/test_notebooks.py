"""Notebooks are what their pages say, and run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs (pip install '.[docs]')")
pytest.importorskip("sphinx", reason="needs the extra docs (pip install '.[docs]')")
sys.path.insert(0, str(ROOT / "docs"))

import notebooks  # noqa: E402
import run_blocks  # noqa: E402

CHEAPEST = "encoder_and_hospitals"
"""The notebook that runs in the suite; the others are marked long"""


def test_notebooks_are_up_to_date() -> None:
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.ipynb")}
    made = {name: nbformat.writes(notebooks.notebook(page)) + "\n" for name, page in notebooks.NOTEBOOKS.items()}
    assert {name for name in files.keys() | made.keys() if files.get(name) != made.get(name)} == set()


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_links_of_a_notebook_lead_somewhere(name: str) -> None:
    cells = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    targets = re.findall(r"(?<!\!)\[[^\]]*\]\((\.\.[^)#]+)", text)
    assert targets
    assert [target for target in targets if not (ROOT / "examples" / target).exists()] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == CHEAPEST else pytest.mark.long) for n in notebooks.NOTEBOOKS]
)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    cells = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4).cells
    page = (ROOT / "docs" / f"{notebooks.NOTEBOOKS[name]}.md").read_text(encoding="utf-8")
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(code) == len(re.findall(r"^```\{run\} (?:shell|python)$", page, re.M)) > 0
    for cell in code:
        magic, _, rest = cell.source.partition("\n")
        if magic == "%%bash":
            run_blocks._shell(rest, tmp_path, name)
        else:
            run_blocks._python(cell.source, tmp_path, f"notebook {name}")
    for cell in cells:  # what the text shows has been made
        shown = re.findall(r"\]\((?!\.\.|\w+:)([^)#]+\.(?:svg|png|html))\)", cell.source)
        assert [file for file in shown if not (tmp_path / file).exists()] == []
