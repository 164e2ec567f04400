"""What ``guide`` trained and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.records.base import Record, common_fields, read_fields

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class GuideRun:
    """One trained network: what it predicts, and what can be read from it."""

    name: str
    """``baseline``, ``guided``, or the name of a grid's cell."""
    seed: int
    checkpoint: str
    """Folder of the checkpoint, as seen from where the command ran."""
    metrics: Mapping[str, Mapping[str, float]]
    """Split, and ``overall`` for all evaluation splits together → the main task's ``auc``, ``auc_within_COLUMN``,
    ``f1`` and ``balanced_accuracy`` at the ``threshold`` chosen on validation, ``f1_at_half``, ``brier``, ``ece``."""
    concepts: Mapping[str, Mapping[str, float | None]]
    """Encouraged concept → ``probe`` (fresh probe, held-out) and ``head`` (the run's own head); ``None``: not there."""
    leakage: Mapping[str, Mapping[str, float | None]]
    """Discouraged concept → ``linear`` and ``mlp`` (fresh probes, held-out) and ``chance``."""
    history: tuple[Mapping[str, float], ...] = ()
    """One entry per epoch: ``epoch`` and, for each task, its raw losses (``train/count``, ``val/count``) and its weight
    (``weight/count``)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference between two runs, averaged over seeds, with a 95 % interval over groups."""

    run: str
    against: str
    split: str
    metric: str
    """``auc`` of the main task, ``auc_within_center`` within the levels of that column; ``probe:count``, the score of a
    fresh probe of the encouraged concept ``count``; ``linear:center`` and ``mlp:center``, those of a fresh linear and
    non-linear probe of the discouraged one."""
    mean: float
    low: float
    high: float
    n_groups: int


@dataclass(frozen=True, kw_only=True)
class GuideRecord(Record):
    """The result of ``guide``: trained runs and their paired differences."""

    schema: ClassVar[str] = "conceptkit/guide/1"
    encourage: tuple[str, ...]
    discourage: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    """Concept → unit, where it is known."""
    evaluated_on: str = "internal"
    """The rows on which ``concepts`` and ``leakage`` are read."""
    runs: tuple[GuideRun, ...]
    differences: tuple[Difference, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return every number as a tidy table with columns run, seed, what, name, metric, value."""
        import pandas as pd

        rows = [
            {"run": run.name, "seed": run.seed, "what": what, "name": name, "metric": metric, "value": value}
            for run in self.runs
            for what, values in (("split", run.metrics), ("concept", run.concepts), ("leakage", run.leakage))
            for name, metrics in values.items()
            for metric, value in metrics.items()
        ]
        return pd.DataFrame(rows, columns=["run", "seed", "what", "name", "metric", "value"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        common = common_fields(values)
        runs = tuple(read_fields(GuideRun, {**run, "history": tuple(run["history"])}) for run in values["runs"])
        differences = tuple(read_fields(Difference, d) for d in values["differences"])
        lists = {key: tuple(common[key]) for key in ("encourage", "discourage")}
        fields: dict[str, Any] = {**common, **lists, "runs": runs, "differences": differences}
        return cls(**fields)
