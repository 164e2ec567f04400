"""Texts and names are plain English: words that nobody uses for software appear nowhere."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from pathlib import Path

import pytest

from conceptkit.options import COMMANDS
from conceptkit.options.base import described
from conceptkit.registry import load

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "conceptkit").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]

WORDS = {
    r"anew|afresh": "again",
    r"told|tells?|telling": "encodes, predicts; is called with; names",
    r"lack(s|ed|ing)?": "is missing; has no; without",
    r"wish(es|ed)?": "targets; options",
    r"meant": "is; stands for",
    r"bears?": "has; supports",
    r"thereof|therein|thereby|wherein|whereof|hereby": "of it; in it",
    r"asked( for| of)?": "requested; selected; options",
    r"alone": "only; by itself",
    r"knows? (of|nothing|not)|known to|(has|have) to know": "encodes; needs to know",
    r"so many": "number of",
    r"cannot be had|could be had|can be had|is to be had": "is not available",
    r"beside|beneath": "besides, next to; below",
    r"suffices?|brings it|(stands?|is|are) there more": "is enough; installs it; occurs",
    r"turn(s|ed)? round": "reverse",
    r"nobody|no one|no one's": "who does it; no",
    r"(can|to) be trusted": "is reliable",
    r"of yours?( own)?|of one's own": "your",
    r"(take|takes|taken) (\w+ )?as independent|says? nothing of": "treat as independent; says nothing about",
    r"(?<!there )(is|are|was|were) (no|none)(?! (longer|more|less|larger|smaller|lower|higher|better))": "is not a",
}
"""Words to avoid → what to write"""

NAMES = {"meant", "asked", "wish", "wishes", "tell", "tells", "told", "lacking", "lacks", "lack", "alone", "beneath"}
"""Words that are part of no name"""

ALLOWED = {("conceptkit/options/predictivity.py", "alone"), ("conceptkit/commands/predictivity.py", "alone")}
"""File, text around a match: an option and its key in records keep their name"""

AVOID = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS), re.IGNORECASE)
CODE = re.compile(r"(`+)(?:.|\n)+?\1")
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*$|<!--.*?-->", re.MULTILINE | re.DOTALL)


def blank(match):
    """Spaces for the text of a match; its line ends stay."""
    return re.sub(r"[^\n]", " ", match[0])


def avoided(text, start=1):
    """Line and surroundings of each word in a text that has to be avoided."""
    text = CODE.sub(blank, text)
    for match in AVOID.finditer(re.sub(r"\s", " ", text)):
        around = text[max(match.start() - 40, 0) : match.end() + 40]
        yield start + text.count("\n", 0, match.start()), " ".join(around.split())


def texts(source):
    """Line and text of every literal, docstring and comment of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and token.start[0] == comments[-1][0] + comments[-1][1].count("\n") + 1:
                first, text = comments.pop()
                comments.append((first, f"{text}\n{token.string}"))
            else:
                comments.append((token.start[0], token.string))
    yield from comments


def names(source):
    """Line and name of every identifier of a module with a word in it that has to be avoided."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string)
            if NAMES & {part.lower() for part in parts}:
                yield token.start[0], token.string


def allowed(path, around):
    return any(path.relative_to(ROOT).as_posix() == file and text in around for file, text in ALLOWED)


def listed(path, places):
    found = sorted({(line, around) for line, around in places if not allowed(path, around)})
    return [f"{path.relative_to(ROOT)}:{line}: {around}" for line, around in found]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_texts_and_names_of_a_module_are_plain(path):
    source = path.read_text()
    places = [place for line, text in texts(source) for place in avoided(text, line)]
    found = listed(path, [*places, *names(source)])
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_text_of_a_page_is_plain(path):
    found = listed(path, avoided(FENCE.sub(blank, path.read_text())))
    assert not found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_plain(command):
    made = load(COMMANDS[command])
    helps = [made.__doc__ or "", *(option.help for option in described(made))]
    assert not [place for text in helps for place in avoided(text)]


def test_words_are_found_in_texts_comments_and_names():
    source = '''"""A file that
    lacks."""
x = f"is {1} no {2}"  # what was
# meant
def tell_all(y="layer alone"): ...
z = "is no longer `told` and ``meant``"
'''
    lines = sorted(line for start, text in texts(source) for line, _ in avoided(text, start))
    assert lines == [2, 4, 5]
    assert list(names(source)) == [(5, "tell_all")]
