"""Options of ``predictivity``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Predictivity:
    """Measure how well concept values predict the main label without any image."""

    concepts: Sequence[str] | None = None
    alone: Sequence[str] | None = None
    table: str | Path | None = None
    group: str | None = None
    categorical: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
