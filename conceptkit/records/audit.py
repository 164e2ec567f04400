"""The result of ``audit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conceptkit.records.base import RowsRecord


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """How well one kind of fresh probe decodes the concept at one place, held out by group."""

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
    """Features per row."""
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
    """Distance between classes and cost of erasure at one layer."""

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


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditRecord(RowsRecord):
    """The result of ``audit``: how decodable a concept is from a network's input to its logit."""

    schema: ClassVar[str] = "conceptkit/audit/1"
    concept: str
    kind: str
    """``continuous`` or ``categorical``."""
    discouraged: bool
    """Whether the network was trained to discourage it."""
    head: float | None
    """Score of the network's own head of the concept on the same rows; ``None`` where it has none."""
    rows: tuple[AuditRow, ...]
    layers: tuple[AuditLayer, ...]
    levels: tuple[AuditLevel, ...] = ()
    auc: float
    """Of the main task over all rows."""
