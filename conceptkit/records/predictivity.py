"""The result of ``predictivity``: how well concept values by themselves predict the main label."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from conceptkit.records.base import RowsRecord, frame_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class PredictivityRow:
    """The AUC of one set of columns on one split."""

    inputs: tuple[str, ...]
    role: str
    """``random`` (random numbers), ``concept``, ``growing`` set, or ``confounder`` (a discouraged column by itself)"""
    split: str
    auc: float
    """Mean over seeds"""
    sd: float
    """Over seeds"""
    low: float
    """95 % interval over groups of the mean over seeds"""
    high: float
    n_groups: int
    seeds: tuple[float, ...]
    """AUC of each seed, in their order"""


@dataclass(frozen=True, kw_only=True, repr=False)
class PredictivityRecord(RowsRecord):
    """The result of ``predictivity``: one row per set of columns and split."""

    schema: ClassVar[str] = "conceptkit/predictivity/1"
    rows: tuple[PredictivityRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table, their inputs joined by a plus."""
        return frame_of({**dataclasses.asdict(row), "inputs": " + ".join(row.inputs)} for row in self.rows)
