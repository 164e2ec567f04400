"""What ``guide`` says about networks whose main head reads predicted concepts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Odds:
    """One column that the main head of a bottleneck reads, next to the same regression on true values.

    Predictions have errors, which move these ratios: they say how the network decides, not how a concept acts.
    """

    run: str
    concept: str
    """A concept, or ``concept: class`` with the share of a class."""
    predicted: float
    """Odds ratio of the second class per unit of the predicted concept (1 for a share), geometric mean over seeds."""
    true: float
    """The same by a logistic regression of the label on the true values of training rows."""
    deviation: float
    """Standard deviation of the true values of training rows."""

    @property
    def per_deviation(self) -> tuple[float, float]:
        """Return both ratios per standard deviation of the true values."""
        return self.predicted**self.deviation, self.true**self.deviation


@dataclass(frozen=True, kw_only=True)
class TrueValues:
    """The AUC of a bottleneck on rows with a true value of its concepts, and that with true values."""

    run: str
    concepts: tuple[str, ...]
    split: str
    metric: str
    """``auc``, or ``auc_weighted`` of rows weighted by center and label."""
    predicted: float
    """With all concepts as predicted."""
    true: float
    """With true values of ``concepts``."""
    mean: float
    """Of an intervention true − predicted; of leakage predicted − true. Averaged over seeds, as the others."""
    low: float
    high: float
    n_groups: int


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What was measured on the bottlenecks of a run of ``guide``."""

    through: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Training rows and patients: ``labelled``, and with a value of each concept (``count``, ``count patients``)."""
    odds: tuple[Odds, ...] = ()
    interventions: tuple[TrueValues, ...] = ()
    """True values of one concept, or of all, in place of the predicted ones; the main head stays."""
    leakage: tuple[TrueValues, ...] = ()
    """Against a logistic regression of the label on true values of training rows: what predictions say more."""
    residual: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Run with a residual path → split → its share of the decision: cov(part, logit) / var(logit), mean over seeds."""
