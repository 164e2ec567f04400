"""The result of ``bags``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from conceptkit.records.guide import GuideRecord


@dataclass(frozen=True, kw_only=True)
class BagScore:
    """How well one network predicts the label of the bags of one split."""

    run: str
    seed: int
    split: str
    auc: float
    low: float
    high: float
    n: int
    """Bags that were scored."""
    n_groups: int
    interval_note: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionScore(BagScore):
    """Whether one network attends to the patches that make a bag positive.

    ``auc`` is the share of pairs of a positive and another patch of one bag in which the positive one has more
    attention, over the bags that hold both.
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class BagsRecord(GuideRecord):
    """The result of ``bags``: trained networks on bags, their differences, and their attention."""

    schema: ClassVar[str] = "conceptkit/bags/1"
    by: str
    """Column that names the bag of each patch."""
    label_rule: str
    """How a bag's label is derived, in words."""
    n_bags: Mapping[str, int] = field(default_factory=dict)
    """Split → bags."""
    patches_per_bag: tuple[int, float, int] = (0, 0.0, 0)
    """Least, median and most."""
    scores: tuple[BagScore, ...] = ()
    attention: tuple[AttentionScore, ...] = ()
    """Empty where patches have no label of their own, and for means."""
