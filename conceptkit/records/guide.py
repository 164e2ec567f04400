"""The result of ``guide``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from conceptkit.records.base import Record, frame_of
from conceptkit.records.bottleneck import Bottleneck
from conceptkit.records.texts import Metric

if TYPE_CHECKING:
    import pandas as pd

BASELINE, BALANCED = "baseline", "balanced"
"""Runs with which others are compared"""

What = Literal["metrics", "concepts", "leakage"]
"""Which numbers of a run: the main task's by split, those of encouraged and of discouraged concepts"""


def reference_of(names: Sequence[str]) -> str:
    """Return the run that others are compared with: ``balanced`` if there is one, ``baseline``, or the first."""
    return next((name for name in (BALANCED, BASELINE) if name in names), next(iter(names), ""))


@dataclass(frozen=True, kw_only=True)
class GuideRun:
    """One trained network: its scores, and those of fresh probes on it."""

    name: str
    """``baseline``, ``guided``, or the name of a grid's cell."""
    seed: int
    checkpoint: str
    """Folder of the checkpoint, as seen from where the command ran."""
    metrics: Mapping[str, Mapping[str, float]]
    """Split, ``overall`` for all evaluation splits together, and ``unseen`` for the rows of unseen centers where they
    are not one of the splits → the main task's ``auc``, ``auc_within_COLUMN``, ``f1`` and ``balanced_accuracy`` at the
    ``threshold`` chosen on validation, ``f1_at_half``, ``brier``, ``ece``; of evaluation rows with a center also
    ``auc_weighted``, ``balanced_accuracy_weighted``, ``brier_weighted`` and ``ece_weighted``, NaN where a center has no
    row of a class."""
    concepts: Mapping[str, Mapping[str, float | None]]
    """Encouraged concept → ``probe`` (fresh probe, held-out) and ``head`` (the run's own head), or ``None``."""
    leakage: Mapping[str, Mapping[str, float | None]]
    """Discouraged concept → ``linear``, ``mlp`` and ``kernel`` (fresh probes, held-out) and ``chance``."""
    history: tuple[Mapping[str, float], ...] = ()
    """One entry per epoch: ``epoch`` and, for each task, its raw losses (``train/count``, ``val/count``) and its weight
    (``weight/count``)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference between two runs, averaged over seeds, with a 95 % interval over groups."""

    run: str
    against: str
    split: str
    metric: Metric
    """Of the main task, or the score of a fresh probe: ``probe`` of an encouraged concept, ``linear``, ``mlp`` and
    ``kernel`` of a discouraged one."""
    mean: float
    low: float
    high: float
    n_groups: int
    n_effective: float | None = None
    """Effective number of groups (Kish): of their rows, or of their weights for a weighted score."""
    p: float | None = None
    """Two-sided, of no difference, from the error and the distribution of the interval."""
    q: float | None = None
    """p adjusted for all differences of the record but the primary one (Benjamini and Hochberg)."""
    primary: bool = False
    """Whether this is the contrast that was declared before the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", Metric.of(self.metric))


@dataclass(frozen=True, kw_only=True, repr=False)
class RunsRecord(Record):
    """A record of trained networks and their paired differences."""

    runs: tuple[GuideRun, ...]
    differences: tuple[Difference, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    """Concept → unit, where it is known."""
    evaluated_on: str = "internal"
    """The rows on which ``concepts`` and ``leakage`` are measured."""
    effective_groups: Mapping[str, float] = field(default_factory=dict)
    """Split → effective number of groups (Kish) of its weighted rows; NaN where weights are not defined."""

    @property
    def primary(self) -> Difference | None:
        """Return the difference that was declared before the run; ``None`` without one."""
        return next((d for d in self.differences if d.primary), None)

    @property
    def run_names(self) -> list[str]:
        """Return the names of the runs in their order, each once whatever its number of seeds."""
        return list(dict.fromkeys(run.name for run in self.runs))

    def over_seeds(self, name: str, what: What, key: str, metric: str) -> tuple[float, float]:
        """Return mean and SD over the seeds of run ``name``: of a ``metric`` of a split or a concept (``key``)."""
        return mean_sd(getattr(run, what).get(key, {}).get(metric) for run in self.runs if run.name == name)

    def run_rows(self) -> Iterator[tuple[GuideRun, dict[str, Any]]]:
        """Yield every number of every run with its seed, what it is of, name and metric."""
        for run in self.runs:
            for word, what in (("split", "metrics"), ("concept", "concepts"), ("leakage", "leakage")):
                for name, metrics in getattr(run, what).items():
                    for metric, value in metrics.items():
                        yield run, {"seed": run.seed, "what": word, "name": name, "metric": metric, "value": value}


def mean_sd(values: Iterable[float | None]) -> tuple[float, float]:
    """Return mean and sample SD of the finite values; NaN for the SD of fewer than two."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return math.nan, math.nan
    mean = math.fsum(finite) / len(finite)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / (len(finite) - 1)) if len(
        finite
    ) > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """What can be known before a training: how well concepts and features predict the main label, and the power."""

    headroom: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``val``, ``centers_left_out`` (mean over training centers, each predicted by a model of the others) and, with
    ``--with-test``, evaluation splits → AUC of the main label by ``true_concepts``, by ``predicted_concepts`` (held out
    by patient) and by ``frozen_features``; NaN where it is not defined."""
    label_from_discouraged: Mapping[str, float] = field(default_factory=dict)
    """Discouraged concept → AUC of the main label from its values, held out by patient on training rows."""
    effective_patients: Mapping[str, float] = field(default_factory=dict)
    """Effective number of groups (Kish) of ``train`` rows as the main loss weighs them, of ``val``, and of the
    ``evaluation`` rows that the detectable difference is for."""
    detectable_difference: float | None = None
    """Smallest difference in AUC with a power of 0.8 on the evaluation rows; ``None`` if nothing is compared."""
    power: float | None = None
    """Power for a difference of 0.02."""
    verdict: str = ""
    recommended: str = ""
    """Arm that the verdict recommends."""
    with_test: bool = False
    """Whether evaluation rows were looked at before the training."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An arm with its options, scored on training centers that are left out."""

    name: str
    arm: str
    layer: str | None
    strength: float
    augment: int
    auc: float
    """Mean over centers; NaN if a training diverged."""
    centers: Mapping[str, float]
    """Center → AUC within it, of a network that was trained on the others."""
    difference: float
    """Of ``auc`` and that of the reference."""
    error: float
    """Standard error of the difference over patients."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The candidates of a selection, and the chosen one."""

    method: str
    candidates: tuple[Candidate, ...]
    reference: str
    """Name of the candidate that is kept unless another is better by more than a standard error."""
    chosen: str
    """Name of the chosen candidate."""


@dataclass(frozen=True, kw_only=True, repr=False)
class GuideRecord(RunsRecord, Headroom):
    """The result of ``guide``: trained runs and their paired differences."""

    schema: ClassVar[str] = "conceptkit/guide/1"
    encourage: tuple[str, ...]
    discourage: tuple[str, ...]
    selection: Selection | None = None
    """How the arm was chosen; ``None`` without ``--select``."""
    bottleneck: Bottleneck = field(default_factory=Bottleneck)
    """Of the networks that read predicted concepts only; empty without ``--through``."""

    def to_frame(self) -> pd.DataFrame:
        """Return every number as a tidy table with columns run, seed, what, name, metric, value."""
        rows = [{"run": run.name, **row} for run, row in self.run_rows()]
        return frame_of(rows, ["run", "seed", "what", "name", "metric", "value"])
