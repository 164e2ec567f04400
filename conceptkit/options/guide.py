"""Options of ``guide``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Train a baseline and a guided network alike, and measure what guiding changed."""

    encourage: Sequence[str] | None = None
    discourage: Sequence[str] | None = None
    table: str | Path | None = None
    model: str | None = None
    weights: str | None = None
    group: str | None = None
    categorical: Sequence[str] = ()
    recipe: str = "ours"
    options: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 5
    within: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32"
    log: Sequence[str] = ()
    disturb: Sequence[str] = ()
    search: int = 0
    transductive: bool = False
    allow_leakage: bool = False
