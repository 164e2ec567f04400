"""Options of ``bags``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bags:
    """Train attention over the patches of slides or patients, guided by concepts of the whole bag."""

    by: str | None = None
    encourage: Sequence[str] | None = None
    discourage: Sequence[str] | None = None
    label: str | None = None
    positive: str | None = None
    share: float = 0.0
    layer: str | None = None
    features: str | Path | None = None
    table: str | Path | None = None
    model: str | None = None
    weights: str | None = None
    group: str | None = None
    categorical: Sequence[str] = ()
    attention: str = "gated"
    embedding: int = 64
    hidden: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 5
    within: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    device: str = "auto"
    batch_size: int = 16
