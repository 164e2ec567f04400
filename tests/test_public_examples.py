"""Every public object has an example, and the examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import conceptkit as ck

PAGE = Path(__file__).parents[1] / "docs" / "examples.md"

BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_every_public_object_is_in_an_example() -> None:
    assert set(ck.__all__) - set(re.findall(r"\bck\.(\w+)", "\n".join(BLOCKS))) == set()


def test_the_examples_run(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # For time: some patients and one random network.
    monkeypatch.setattr(ck, "embedded_study", lambda *_: ck.load_study(study))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "examples"}
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec"), names)  # the page's own code, shown to its reader


def test_the_api_page_lists_every_public_object_and_every_record() -> None:
    text = (PAGE.parent / "api.md").read_text(encoding="utf-8")
    records = Path(ck.__file__).parent / "records"
    classes = {name for p in records.glob("*.py") for name in re.findall(r"^class ([A-Z]\w+)", p.read_text(), re.M)}
    listed = set(re.findall(r"auto\w+:: conceptkit[\w.]*\.(\w+)", text))
    assert {*ck.__all__, *classes} - listed - {"__version__", "Record"} == set()
