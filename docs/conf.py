"""Sphinx configuration: MyST pages, and the API from the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import conceptkit

sys.path.insert(0, str(Path(__file__).parent))

project = "conceptkit"
copyright = "2026, the conceptkit developers"
author = "The conceptkit developers"
version = release = conceptkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "run_blocks", "derived"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated"]
html_static_path = ["_static"]
html_theme = "furo"
html_title = f"conceptkit {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the signatures
autodoc_preserve_defaults = True
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_ivar = False

_SECTIONS = {"Parameters", "Attributes"}
_attributes: dict[str, list[str]] = {}
_ONE_LINE = re.compile(r"^([\w*][\w*, ]*) : (.+)$")


def meaning_not_type(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn ``name : meaning`` into ``name`` with its meaning below; numpydoc would take the meaning for a type."""
    if what == "attribute":
        _attributes[name] = list(lines)
    section, out = "", []
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and re.fullmatch("-{3,}", lines[i + 1].strip()):
            section = line.strip()
        found = _ONE_LINE.match(line) if section in _SECTIONS else None
        out += [found[1], f"    {found[2]}"] if found else [line]
    lines[:] = out


def attribute_as_written(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Give an attribute's sentence back: napoleon takes what stands before a colon in it for a type."""
    lines[:] = _attributes.pop(name, lines)


def setup(app: object) -> None:
    # Before and after 500, where napoleon reads the docstring.
    app.connect("autodoc-process-docstring", meaning_not_type, priority=400)
    app.connect("autodoc-process-docstring", attribute_as_written, priority=600)
