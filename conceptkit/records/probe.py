"""The result of ``probe``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from conceptkit.records.base import RowsRecord
from conceptkit.records.meaning import Meaning
from conceptkit.records.texts import Note


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a concept was probed."""

    encoder: str | None = None
    """Name of the encoder, where several are compared or it was given with a name."""
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


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The numbers of one validation: score, interval, penalties, controls and permutation tests.

    The validation fills them once; NaN and ``None`` both stand for a number that does not apply.
    """

    score: float
    """Held-out score of the pooled out-of-fold predictions, no group on both sides of a fold."""
    score_low: float
    """Lower end of the 95 % interval from resampling groups."""
    score_high: float
    """Upper end of the 95 % interval from resampling groups."""
    score_in_sample: float
    """Training fit: score on the rows that the vector was fitted on; for comparison only."""
    score_patchwise: float
    """Held-out score of a random split, with rows of one patient on both sides."""
    alpha: float
    """Penalty of the vector fitted on all rows, chosen by leave-one-group-out error."""
    alpha_folds: tuple[float, ...] = ()
    """Penalty chosen inside each training part."""
    cosine: float | None = None
    """Mean cosine between the directions that the folds found, in the original activation space."""
    interval_note: str | None = None
    """Caveat of the interval; ``None`` without one."""
    auc: float | None = None
    """Of categorical concepts: held-out AUC, for several classes the mean over one against the rest."""
    auc_low: float | None = None
    auc_high: float | None = None
    score_shuffled: float | None = None
    """Held-out score of the concept's values in another order, mean of 5."""
    score_random_concept: float | None = None
    """Held-out score of random concepts with the same intra-class correlation, mean of 20."""
    selectivity: float | None = None
    """``score`` − the larger of ``score_random_concept`` and ``chance``."""
    icc: float | None = None
    """Intra-class correlation of the concept; ``None`` without groups."""
    permuted: str | None = None
    """At which level values were permuted for ``p``: ``rows``, ``within`` groups, whole ``groups``,
    or ``groups and within``."""
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

    def numbers(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(ProbeScore)}


@dataclass(frozen=True, kw_only=True)
class ProbeRow(ProbeScore, _Place):
    """How well one concept is decoded from one layer of one network."""

    score_random_network: float | None
    """Held-out score of the same architecture, randomly initialised, mean of 3 seeds; ``None`` without a network."""
    chance: float
    """Score by chance: 0 for R², one over the number of classes for balanced accuracy."""
    protocol: str = "cross-validated"
    """``cross-validated``, or ``paper (in-sample)``: least squares fitted and scored on the same rows."""
    score_pixels: float | None = None
    """Held-out score of raw pixel and colour statistics; ``None`` without pixels."""
    r2_above_baseline: float | None = None
    """``score`` − the best of chance, ``score_random_network`` and ``score_pixels``."""
    r2_above_baseline_low: float | None = None
    """Lower end of its 95 % interval: the lowest of the paired intervals of the gain over each baseline."""
    r2_above_baseline_high: float | None = None
    """Upper end of its 95 % interval: the lowest of the upper ends."""
    permutations: int = 0
    q: float | None = None
    """``p`` adjusted by Benjamini and Hochberg over everything probed in the call."""
    adjusted_for: tuple[str, ...] = ()
    """Confounders taken out of concept and activations in ``score_adjusted``."""
    score_adjusted: float | None = None
    """Held-out partial R² given the confounders; ``None`` without confounders, or if not estimable (see ``notes``)."""
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
    """Notes on this row, each a :class:`conceptkit.records.Note`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(Note.of, self.notes)))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "float | None" and value is not None and not math.isfinite(value):
                object.__setattr__(self, f.name, None)

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> list[str]:
        """Return the names of the values, so that ``row[name]`` and ``dict(row)`` work."""
        return [f.name for f in dataclasses.fields(self)]


@dataclass(frozen=True, kw_only=True)
class EncoderDifference:
    """The paired difference of one concept's score between two encoders, with a 95 % interval over groups."""

    encoder: str
    against: str
    layer: str
    against_layer: str
    """Layer of ``against``; another name than ``layer`` where layers are compared in their order."""
    concept: str
    metric: str
    """``r2`` or ``balanced_accuracy``."""
    mean: float
    """Score of ``encoder`` − score of ``against``."""
    low: float
    high: float
    p: float | None
    """Two-sided, of no difference: of R², by the difference of log(1 − R²)."""
    q: float | None = None
    """``p`` adjusted by Benjamini and Hochberg over all differences of the call."""
    n_groups: int
    interval_note: str | None = None
    """Caveat of the interval; ``None`` without one."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbeRecord(RowsRecord):
    """The result of ``probe``: one row per layer and concept."""

    schema: ClassVar[str] = "conceptkit/probe/1"
    rows: tuple[ProbeRow, ...]
    meanings: tuple[Meaning, ...] = ()
    """Whether the vectors of continuous concepts mean their concepts, with ``--meaning``"""
    differences: tuple[EncoderDifference, ...] = ()
    """Between encoders on the same rows and folds."""
