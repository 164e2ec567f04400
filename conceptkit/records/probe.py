"""What ``probe`` found."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.records.base import Record, common_fields, read_fields

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """How well one concept is read from one layer of one network."""

    model: str
    weights: str
    layer: str
    concept: str
    kind: str
    """``continuous`` or ``categorical``."""
    n: int
    """Rows that have a value of the concept."""
    n_groups: int
    """Groups (patients) among them; equal to ``n`` where no group was named."""
    folds: int
    metric: str
    """``r2`` for continuous concepts, ``balanced_accuracy`` for categorical ones."""
    score: float
    """Held-out score of the pooled out-of-fold predictions, no group on both sides of a fold."""
    score_low: float
    """Lower end of the 95 % interval from resampling groups."""
    score_high: float
    """Upper end of the 95 % interval from resampling groups."""
    score_in_sample: float
    """Score on the very rows that the vector was fitted on: what a reader must not take for knowledge."""
    score_patchwise: float
    """Held-out score when groups are ignored and rows of one patient lie on both sides."""
    score_random_network: float | None
    """Held-out score of the same architecture with random weights, mean of 3 seeds; ``None`` without a network."""
    chance: float
    """Score of knowing nothing: 0 for R², one over the number of classes for balanced accuracy."""
    alpha: float
    """Penalty of the vector fitted on all rows, chosen by leave-one-group-out error."""
    alpha_folds: tuple[float, ...] = ()
    """Penalty chosen inside each training part."""
    cosine: float | None = None
    """Mean cosine between the directions that the folds found, in the original activation space."""
    protocol: str = "cross-validated"
    """``cross-validated``, or ``paper (in-sample)``: least squares fitted and scored on the same rows."""
    interval_note: str | None = None
    """What has to be said of the interval; ``None``: nothing."""
    auc: float | None = None
    """Of categorical concepts: held-out AUC, for several classes the mean over one against the rest."""
    auc_low: float | None = None
    auc_high: float | None = None
    score_pixels: float | None = None
    """Held-out score of raw pixel and colour statistics; ``None`` without pixels."""
    score_shuffled: float | None = None
    """Held-out score of the concept's values in another order, mean of 5."""
    score_random_concept: float | None = None
    """Held-out score of random concepts with the same intra-class correlation, mean of 20."""
    selectivity: float | None = None
    """``score`` − the larger of ``score_random_concept`` and ``chance``."""
    r2_above_baseline: float | None = None
    """``score`` − the best of chance, ``score_random_network`` and ``score_pixels``."""
    r2_above_baseline_low: float | None = None
    """Lower end of its 95 % interval: the lowest of the paired intervals of the gain over each baseline."""
    r2_above_baseline_high: float | None = None
    """Upper end of its 95 % interval: the lowest of the upper ends."""
    icc: float | None = None
    """Intra-class correlation of the concept; ``None`` without groups."""
    permuted: str | None = None
    """At which level values were permuted for ``p``: ``rows``, ``within`` groups, whole ``groups``,
    or ``groups and within``."""
    permutations: int = 0
    p: float | None = None
    """Permutation p of all tests of the row: the test at that level, or twice the smaller of ``p_between`` and
    ``p_within``, at most 1."""
    p_between: float | None = None
    """Permutation p on group means, whole groups permuted; ``None`` where values vary within groups only."""
    p_within: float | None = None
    """Permutation p within groups, of a concept that varies at both levels."""
    p_across_centers: float | None = None
    """As ``p_between``, but permuted across centers: secondary, where few permutations exist within centers."""
    decided_by: str | None = None
    """The test with the smaller p: ``between``, ``within`` or ``rows``."""
    assumed: str | None = None
    """What the tests take as exchangeable."""
    p_min: float | None = None
    """The smallest value that ``p`` could have taken."""
    q: float | None = None
    """``p`` adjusted by Benjamini and Hochberg over everything probed in the call."""
    adjusted_for: tuple[str, ...] = ()
    """Confounders taken out of concept and activations in ``score_adjusted``."""
    score_adjusted: float | None = None
    """Held-out partial R² given the confounders; ``None`` when not asked for, or not estimable (``notes`` says why)."""
    score_adjusted_low: float | None = None
    score_adjusted_high: float | None = None
    score_confounders: float | None = None
    """Held-out R² of the confounders without the activations."""
    leave_out: str | None = None
    """Column each of whose levels was held out in turn for ``score_leave_out``."""
    score_leave_out: float | None = None
    """Score of the pooled predictions of held-out levels."""
    repeated_as: str | None = None
    """The repeated measurement of this concept."""
    ceiling: float | None = None
    """Pearson r of the two measurements: the highest R² that can be reached if their errors are equal and
    independent."""
    notes: tuple[str, ...] = ()
    """Sentences a reader of this row has to know."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> list[str]:
        """Return the names of the values: a row can be read like a dict of the JSON, and made one by ``dict(row)``."""
        return [f.name for f in dataclasses.fields(self)]


@dataclass(frozen=True, kw_only=True)
class ProbeRecord(Record):
    """The result of ``probe``: one row per layer and concept."""

    schema: ClassVar[str] = "conceptkit/probe/1"
    rows: tuple[ProbeRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table, one row per layer and concept."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(r) for r in self.rows])

    def plot(self) -> list[Figure]:
        """Draw the score by layer with its interval and its controls: one matplotlib figure per network and concept."""
        # The report room lies above this one: a record is drawn by it, and knows nothing of how.
        figures = importlib.import_module("conceptkit.report.figures")
        return [drawing.figure for drawing in figures.probe_figures(self)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        rows = tuple(read_fields(ProbeRow, row) for row in values["rows"])
        fields: dict[str, Any] = {**common_fields(values), "rows": rows}
        return cls(**fields)
