"""The documentation's own machinery: blocks that run, blocks that fail, and pages that say what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from conceptkit.cli import app

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent

pytest.importorskip("sphinx", reason="needs the extra docs (pip install '.[docs]')")
sys.path.insert(0, str(DOCS))

import run_blocks  # noqa: E402


def test_a_python_block_shows_what_it_prints_and_its_last_value(tmp_path: Path) -> None:
    assert run_blocks._python("x = 2\nprint('a')\nx + 1", tmp_path, "page") == "a\n3\n"
    assert run_blocks._python("x", tmp_path, "page") == "2\n"  # the namespace of the page goes on
    with pytest.raises(NameError):
        run_blocks._python("x", tmp_path, "another page")


def test_a_shell_block_that_fails_says_so(tmp_path: Path) -> None:
    assert run_blocks._shell("echo a; pwd", tmp_path, "page").splitlines() == ["a", str(tmp_path)]
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_blocks._shell("exit 3", tmp_path, "page")
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_blocks._shell("false | true", tmp_path, "page")


@pytest.mark.parametrize(
    ("block", "limit", "sentence"),
    [
        ("{run} shell\nsleep 60 | cat", "0.5", "it took longer than 0.5 s; CONCEPTKIT_DOCS_LIMIT sets another limit"),
        ("{run} python\nimport time; time.sleep(60)", "0.5", "it took longer than 0.5 s"),
        ("{run} shell\nexit 3", "", "exit code 3"),
        ("{run} shell\ntrue", "soon", "CONCEPTKIT_DOCS_LIMIT must be a number of seconds above 0, got 'soon'"),
    ],
)
def test_a_block_that_fails_is_named_without_a_traceback(tmp_path, block, limit, sentence) -> None:
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS)!r})\nextensions = ['myst_parser', 'run_blocks']\n"
    )
    (tmp_path / "index.md").write_text(f"# Title\n\n```{{run}} shell\ntrue\n```\n\n```{block}\n```\n")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-qW", "-b", "html", str(tmp_path), str(tmp_path / "_build")],
        env={**os.environ, "CONCEPTKIT_DOCS_LIMIT": limit, "CONCEPTKIT_DOCS_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"the block at line 7 of index failed: {sentence}" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 50


def calls() -> list[tuple[str, str, list[str]]]:
    """Every call of the command line in the pages: page, command, options."""
    found = []
    for path in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]:
        if "_build" in path.parts:
            continue
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
            for line in block.splitlines() if language in ("", "bash", "{run} shell") else ():
                call = re.match(r"\s*(?:.*-m )?conceptkit (\w+)(.*)", line.split("#")[0])
                if call:
                    found.append((path.name, call[1], re.findall(r"(?<=\s)--[a-z][a-z-]*", call[2])))
    return found


def test_commands_and_options_in_the_pages_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]

    def options(command) -> set[str]:
        own = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        return own.union(*(options(below) for below in getattr(command, "commands", {}).values()))

    known = {name: options(command) for name, command in commands.items()}
    seen = calls()
    assert len(seen) > 40
    wrong = [(page, name) for page, name, _ in seen if name not in known]
    wrong += [(page, name, o) for page, name, options in seen if name in known for o in options if o not in known[name]]
    assert wrong == []


def test_every_citation_is_in_the_bibliography() -> None:
    labels = set(re.findall(r"^\((\w+)\)=$", (DOCS / "references.md").read_text(encoding="utf-8"), re.M))
    cited = {
        key
        for path in DOCS.rglob("*.md")
        for key in re.findall(r"\]\(#([a-z]+\d{4}[a-z]?)\)", path.read_text(encoding="utf-8"))
    }
    assert cited - labels == set()
    assert cited
