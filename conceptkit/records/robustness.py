"""The result of ``robustness``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from conceptkit.records.base import RowsRecord
from conceptkit.records.probe import EncoderDifference, ProbeRow
from conceptkit.records.remedies import RemedyRow


@dataclass(frozen=True, kw_only=True)
class RobustnessRow:
    """One index of one layer."""

    encoder: str | None = None
    """Name of the encoder, where several are compared or it was given with a name."""
    model: str
    weights: str
    layer: str
    index: str
    """``RI``, ``MaRI``, ``CRoMa``, ``CRoMa tail``, ``CRoMa below 0``, ``APD``, ``nIPD``, ``label kNN`` or
    ``center kNN``."""
    value: float
    """NaN where no row counts."""
    low: float | None = None
    """Lower end of the 95 % interval over patients, the centers fixed."""
    high: float | None = None
    centers_low: float | None = None
    """Lower end of the 95 % interval over centers, from ten centers on."""
    centers_high: float | None = None
    sd: float | None = None
    """Of APD: standard deviation over repeats."""
    n: int
    """Rows of the cohort."""
    n_rows: int | None = None
    """Rows that count: with an informative neighbour (RI, MaRI), or all typed neighbours (CRoMa)."""
    n_patients: int | None = None
    """Patients of these rows."""
    k: int | None = None
    """Number of neighbours, of RI, MaRI and kNN."""
    tau: float | None = None
    """Temperature of MaRI."""
    chance: float | None = None
    """Of RI and MaRI, the value of features that know neither label nor center."""
    without_center: Mapping[str, float] = field(default_factory=dict)
    """Center → the index without its rows."""
    interval_note: str | None = None
    """Caveat of the interval; ``None`` without one."""


@dataclass(frozen=True, kw_only=True)
class RobustnessDifference:
    """The paired difference of an index between two encoders, with a 95 % interval over patients."""

    encoder: str
    against: str
    layer: str
    against_layer: str
    index: str
    mean: float
    """Index of ``encoder`` − index of ``against``."""
    low: float
    high: float
    p: float | None
    """Two-sided, of no difference."""
    q: float | None = None
    """``p`` adjusted by Benjamini and Hochberg over all differences of indices of the call."""
    n_groups: int
    """Patients."""
    interval_note: str | None = None


@dataclass(frozen=True, kw_only=True)
class RobustnessCell:
    """Rows and patients of one label at one center."""

    center: str
    label: str
    n_rows: int
    n_patients: int


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustnessRecord(RowsRecord):
    """The result of ``robustness``: one row per layer and index."""

    schema: ClassVar[str] = "conceptkit/robustness/1"
    rows: tuple[RobustnessRow, ...]
    probes: tuple[ProbeRow, ...] = ()
    """Fresh probes of the label, the center and the concepts, held out by patient."""
    differences: tuple[RobustnessDifference, ...] = ()
    """Of indices, between encoders."""
    probe_differences: tuple[EncoderDifference, ...] = ()
    """Of the probes' scores, between encoders."""
    cells: tuple[RobustnessCell, ...] = ()
    """Rows and patients of each label at each center."""
    remedies: tuple[RemedyRow, ...] = ()
    """Scores after remedies against the center, with ``--remedies``."""
