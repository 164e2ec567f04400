"""The result of ``attribute``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from conceptkit.records.base import RowsRecord, frame_of
from conceptkit.records.texts import Note

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score along a concept vector, with its refits and controls."""

    value: float
    """NaN where the score is not defined, as a ratio to a spread of zero."""
    refits_mean: float
    """Mean over vectors fitted on resamples of the groups."""
    refits_sd: float
    null_low: float
    """2.5 % quantile of the scores of shuffled concepts."""
    null_high: float
    """97.5 % quantile of these."""
    outside: float
    """Share of the refits whose score lies outside of these two."""
    p: float
    """Share of shuffled concepts at least as far from indifference, the concept itself included."""
    q: float
    """``p`` adjusted by Benjamini and Hochberg over this score of everything attributed in the call."""
    low: float = math.nan
    """Lower end of the 95 % interval over groups, of ``sign_count`` and ``magnitude``; inside [0, 1]."""
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class AttributeRow:
    """How one output depends on one concept at one layer, over some of the images."""

    model: str
    weights: str
    layer: str
    concept: str
    concept_class: str | None
    """Class of the vector, for a categorical concept."""
    kind: str
    """``continuous`` or ``categorical``."""
    target: str
    """The output: a class of the main task, the number of a class, or a concept that a head predicts."""
    among: str
    """``all`` images, or those of this label."""
    n: int
    """Images that were differentiated."""
    n_groups: int
    """Groups among them; equal to ``n`` where no group was named."""
    n_fit: int
    """Rows that vector and pattern were fitted on."""
    metric: str
    """``r2`` or ``balanced_accuracy``."""
    score: float
    """How well the concept is decoded at the layer, held out by group."""
    per_unit: float
    """Change of the output per unit of the concept, along its pattern; of a categorical concept from the mean of all
    other classes to that of the class."""
    per_unit_low: float
    """Lower end of the 95 % interval from resampling groups."""
    per_unit_high: float
    per_sd: float | None
    """Change of the output per standard deviation of the concept; ``None`` for a categorical one."""
    per_sd_low: float | None
    per_sd_high: float | None
    sd: float | None
    """Standard deviation of the concept over the ``n_fit`` rows, in its unit."""
    unit: str
    """Unit of the concept; empty where none is known."""
    round_step: float
    """A round number of units near the standard deviation, for which ``per_unit`` is shown; 1 for a class."""
    per_unit_p: float
    """Share of shuffled concepts whose change of the output is at least as large, the concept itself included."""
    per_unit_q: float
    interval_note: str | None
    """Caveat of the intervals; ``None`` without one."""
    scores: Mapping[str, Score]
    """``sign_count``, ``magnitude``, ``mean`` and ``relevance`` along the vector; the last for continuous concepts."""
    alpha: float
    """Penalty of the vector."""
    cosine: float
    """Mean cosine between the vector and those of the refits."""
    agreement: float
    """Share of the images at which vector and pattern agree on whether the output rises."""
    zero_gradients: int
    """Images at which the output does not change with the layer at all."""
    permuted: str
    """At which level values were shuffled: ``rows``, ``within`` groups, whole ``groups``, or ``groups and within``."""
    permutations: int
    refits: int
    """Resamples on which vector and pattern could be fitted again."""
    adjusted_for: tuple[str, ...] = ()
    """Confounders that the pattern holds fixed."""
    score_low: float | None = None
    """Lower end of the 95 % interval of ``score``, as of ``probe``; ``None``: not recorded."""
    score_high: float | None = None
    chance: float | None = None
    """Score by chance: 0 for R², one over the number of classes for balanced accuracy."""
    same_derivative: bool = False
    """Whether the derivative is the same at every image, so that ``sign_count`` is 0 or 1 for any direction."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of this row has to know, each a :class:`conceptkit.records.Note`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(Note.of, self.notes)))


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What the outputs become when activations are moved along the pattern of a concept."""

    layer: str
    concept: str
    concept_class: str | None
    n: int
    """Images that were moved."""
    steps: tuple[float, ...]
    """How far: in standard deviations of the concept, or in distances between the class and the others."""
    outputs: Mapping[str, tuple[float, ...]]
    """Output → its mean over the images at each step."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AttributeRecord(RowsRecord):
    """The result of ``attribute``: one row per layer, concept (and class of it), output and set of images."""

    schema: ClassVar[str] = "conceptkit/attribute/1"
    rows: tuple[AttributeRow, ...]
    moved: tuple[Moved, ...] = ()
    figures: tuple[str, ...] = ()
    """Names of the pictures in the run folder."""

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table; scores in columns such as ``sign_count``, ``sign_count_p``."""
        flat = []
        for row in self.rows:
            values = dataclasses.asdict(row)
            for name, score in values.pop("scores").items():
                values[name] = score.pop("value")
                values |= {f"{name}_{key}": value for key, value in score.items()}
            flat.append(values)
        return frame_of(flat)
