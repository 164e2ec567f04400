"""Whether a concept vector means its concept: one row of a probe's record per vector that was tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MeaningVerdict = Literal["aligned", "correlated", "unstable", "undecided"]

SHARE = 0.5
"""Share of the expected partial score from which a vector means its concept, and below which a correlated one"""

INSEPARABLE = 0.9
"""R² between two concepts from which they cannot be separated"""

LEAST_GAIN = 0.05
"""Gain of the map's AUPRC over shifted maps below which it does not follow the nuclei"""

LEAST_AGREEMENT = 0.7
"""Mean correlation between the predictions of refitted vectors below which a vector is unstable"""

MOST_CHANGE = 0.5
"""Change of the prediction under a disturbance, in standard deviations of the concept, above which it is unstable"""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the vector of a continuous concept was tested for; ``None`` where a test does not apply."""

    layer: str
    concept: str
    verdict: MeaningVerdict
    decoded: bool = True
    """Whether the interval of the held-out score lies above chance; if not, there is no meaning to test"""
    agreement: float | None = None
    """Mean correlation between the predictions of the folds' vectors"""
    against: str | None = None
    """The other probed concept that explains most of the predictions"""
    related: float | None = None
    """R² between the two concepts"""
    own: float | None = None
    """Squared correlation between held-out predictions and the concept"""
    cross: float | None = None
    """Squared correlation between the same predictions and the other concept"""
    partial: float | None = None
    """Squared correlation between predictions and concept with the other concept held fixed; negative if reversed"""
    partial_low: float | None = None
    """Ends of its 95 % interval for new patients"""
    partial_high: float | None = None
    expected: float | None = None
    """What ``partial`` would be for predictions with independent errors"""
    cosine: float | None = None
    """Cosine between the patterns of the two concepts, in standard deviations of the activations"""
    changes: Mapping[str, float] = field(default_factory=dict)
    """Disturbance → root mean square change of the prediction, in standard deviations of the concept"""
    auprc: float | None = None
    """Area under precision and recall of nuclei by the concept map, at the layer's resolution; mean over patients"""
    auprc_shifted: float | None = None
    """The same, of the map moved cyclically at random"""
    auprc_random: float | None = None
    """The same, of the maps of random vectors"""
    gain_low: float | None = None
    """Ends of the 95 % interval of ``auprc`` − ``auprc_shifted``"""
    gain_high: float | None = None
    pointing: float | None = None
    """Share of patches whose highest position lies on nuclei; mean over patients"""
    pointing_shifted: float | None = None
    patches: int = 0
    """Patches with nuclei and without them in some positions, from which the four are"""

    @property
    def share(self) -> tuple[float, float, float] | None:
        """Return the share of the expected partial score, and its ends; ``None`` where it is not tested."""
        ends = (self.partial, self.partial_low, self.partial_high)
        if not self.expected or any(value is None for value in ends):
            return None
        return tuple(value / self.expected for value in ends)  # type: ignore[return-value, operator]
