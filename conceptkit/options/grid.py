"""Options of ``grid``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conceptkit.options.guide import Guide


@dataclass(frozen=True, kw_only=True)
class Grid(Guide):
    """Train a grid of networks with its controls."""

    ablate: str | None = "paper"
    weightings: Sequence[str] | None = None
    controls: bool = True
    noise: Sequence[float] = ()
    fraction: Sequence[float] = ()
    affinity: bool = False
    protocol: str = "groups"
    seeds: Sequence[int] = (0, 1, 2)
