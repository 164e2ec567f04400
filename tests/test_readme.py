"""What the README says is so: its Python lines run, its links lead somewhere, and every command is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

import conceptkit as ck
from conceptkit.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_lines_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # For time: 24 patients of the embedded study.
    monkeypatch.setattr(ck, "embedded_study", lambda *_: ck.load_study(study))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    exec(compile(code, "README.md", "exec"), {})  # the lines that a reader copies
    assert "mixed10" in capsys.readouterr().out
    assert "count" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 6
    assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/command-line.md"])
def test_every_command_is_named(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:conceptkit )?([a-z]+)(?: [A-Z][A-Z …]*| [a-z]+\.json)?`", text)) | set(
        re.findall(r"^conceptkit ([a-z]+)", text, re.M)
    )
    assert set(get_command(app).commands) - named == set()  # type: ignore[attr-defined]


def test_commands_named_in_the_table_exist() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", README, re.M)
    assert len(rows) > 5
    commands = {name for row in rows for name in re.findall(r"`([a-z]+)`", row)}
    assert commands - set(get_command(app).commands) == set()  # type: ignore[attr-defined]
