"""What ``predictivity`` found: how far concept values alone tell the main label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.records.base import Record, common_fields, read_fields

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class PredictivityRow:
    """The AUC of one set of columns on one split."""

    inputs: tuple[str, ...]
    role: str
    """``random`` (a column of chance), ``concept``, ``growing`` set, or ``confounder`` (a discouraged column alone)"""
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


@dataclass(frozen=True, kw_only=True)
class PredictivityRecord(Record):
    """The result of ``predictivity``: one row per set of columns and split."""

    schema: ClassVar[str] = "conceptkit/predictivity/1"
    rows: tuple[PredictivityRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table, their inputs joined by a plus."""
        import pandas as pd

        return pd.DataFrame([{**dataclasses.asdict(row), "inputs": " + ".join(row.inputs)} for row in self.rows])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        rows = tuple(read_fields(PredictivityRow, row) for row in values["rows"])
        fields: dict[str, Any] = {**common_fields(values), "rows": rows}
        return cls(**fields)
