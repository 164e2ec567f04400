"""What ``audit`` found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.records.base import Record, common_fields, read_fields

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What one kind of fresh probe reads of the concept at one place, on groups it was not fitted on."""

    layer: str
    """``input`` for plain pixel statistics, a layer's name, or ``logit`` for the main task's output."""
    probe: str
    """``linear``, ``mlp`` or ``kernel``."""
    erased: bool
    """Whether the concept was erased first (LEACE), fitted in each training part."""
    n: int
    n_groups: int
    """Equal to ``n`` where no group was named."""
    width: int
    """Numbers per row that were read from."""
    metric: str
    """``r2`` or ``balanced_accuracy``."""
    score: float
    low: float
    high: float
    chance: float
    p: float
    """Permutation p of all tests of the row: the one test, or twice the smaller of ``p_between`` and ``p_within``."""
    permuted: str
    """At which level values were permuted: ``rows``, ``within`` groups, whole ``groups``, or ``groups and within``."""
    interval_note: str | None = None
    p_between: float | None = None
    """Permutation p on group means, whole groups permuted; ``None`` where values vary within groups only."""
    p_within: float | None = None
    """Permutation p within groups, of a concept that varies at both levels."""
    decided_by: str | None = None
    """The test with the smaller p: ``between``, ``within`` or ``rows``."""
    assumed: str | None = None
    """What the tests take as exchangeable."""


@dataclass(frozen=True, kw_only=True)
class AuditLayer:
    """What holds of a layer as a whole."""

    layer: str
    a_distance: float
    """Proxy A-distance between the classes, 0 alike to 2 apart, by linear probes; NaN for a continuous concept."""
    label_auc: float
    """AUC of a fresh linear probe of the main label."""
    label_auc_erased: float
    """The same after the concept was erased: the difference is what erasure costs."""


@dataclass(frozen=True, kw_only=True)
class AuditLevel:
    """The main task within one class of the concept."""

    level: str
    n: int
    """Rows with a label."""
    auc: float
    """NaN where they are of one class."""


@dataclass(frozen=True, kw_only=True)
class AuditRecord(Record):
    """The result of ``audit``: what is left of a concept from a network's input to its logit."""

    schema: ClassVar[str] = "conceptkit/audit/1"
    concept: str
    kind: str
    """``continuous`` or ``categorical``."""
    discouraged: bool
    """Whether the network was trained not to know it."""
    head: float | None
    """Score of the network's own head of the concept on the same rows; ``None`` where it has none."""
    rows: tuple[AuditRow, ...]
    layers: tuple[AuditLayer, ...]
    levels: tuple[AuditLevel, ...] = ()
    auc: float
    """Of the main task over all rows."""

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table, one per layer, probe and whether the concept was erased."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.rows])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        kinds = {"rows": AuditRow, "layers": AuditLayer, "levels": AuditLevel}
        parts = {name: tuple(read_fields(kind, one) for one in values[name]) for name, kind in kinds.items()}
        fields: dict[str, Any] = {**common_fields(values), **parts}
        if fields["auc"] is None:
            fields["auc"] = float("nan")
        return cls(**fields)
