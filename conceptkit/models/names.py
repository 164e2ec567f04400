"""What the name of a model says: a network of a source, or a function of the user."""

from __future__ import annotations

import re

SOURCES = ("hf-hub:", "local-dir:")
"""Beginnings of names of networks that timm opens from a hub or a folder."""


def is_factory(model: str) -> bool:
    """Return whether ``model`` names a user's function, as ``package.module:factory``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model) is not None and not model.startswith(SOURCES)
