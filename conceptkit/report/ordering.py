"""The order in which people expect names."""

from __future__ import annotations

import re


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key by which C2 comes before C10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]
