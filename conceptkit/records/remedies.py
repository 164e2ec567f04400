"""What remedies against the center came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RemedyRow:
    """One score after one remedy, and the paired difference to the same score without it."""

    encoder: str | None = None
    layer: str
    remedy: str
    transductive: bool
    """Whether the remedy needs the center of each new row; such remedies are compared apart."""
    measure: str
    """``center linear``, ``center mlp``, ``center kernel`` (balanced accuracy); ``label AUC within centers``, ``label
    AUC unseen centers``; ``R² CONCEPT``; or an index of robustness."""
    value: float
    difference: float | None = None
    """After − before; ``None`` of ``nothing``."""
    low: float | None = None
    """Lower end of the difference's 95 % interval over patients."""
    high: float | None = None
    p: float | None = None
    q: float | None = None
    """p adjusted for all differences of the run (Benjamini and Hochberg)."""
    n_groups: int
    """Patients."""
    interval_note: str | None = None
