"""What a training encourages and discourages: concepts, with the layer that a head reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from conceptkit.errors import InputError, check_distinct


class Goal(NamedTuple):
    """One concept that a network is trained to encode, or not to encode."""

    concept: str
    layer: str | None
    """Layer whose output the head reads; ``None`` for the end of the trunk"""
    discouraged: bool
    through: bool = False
    """Whether it is a concept of a bottleneck"""

    @classmethod
    def of(cls, text: str, *, discouraged: bool, through: bool = False) -> Goal:
        """Return the goal of ``CONCEPT`` or ``CONCEPT@LAYER``."""
        concept, at, layer = text.partition("@")
        if at and not (concept and layer):
            raise InputError(f"concept: must be CONCEPT or CONCEPT@LAYER, got {text!r}.")
        return cls(concept, layer or None, discouraged, through)

    @property
    def name(self) -> str:
        """Return the concept as an option names it, such as ``count@mixed5``."""
        return self.concept if self.layer is None else f"{self.concept}@{self.layer}"


def read_goals(
    encourage: Iterable[str] | None, discourage: Iterable[str] | None, through: Iterable[str] | None = None
) -> list[Goal]:
    """Return the goals of options, encouraged ones first, those of a bottleneck last.

    A concept of a bottleneck may be encouraged too. :class:`InputError` when an option repeats a concept, or one is
    discouraged and wanted.
    """
    goals = [Goal.of(text, discouraged=False) for text in encourage or ()]
    goals += [Goal.of(text, discouraged=True) for text in discourage or ()]
    if goals:
        check_distinct("encourage and discourage", [goal.concept for goal in goals])
    read = [Goal.of(text, discouraged=False, through=True) for text in through or ()]
    if read:
        check_distinct("through", [goal.concept for goal in read])
    discouraged = {goal.concept for goal in goals if goal.discouraged}
    for goal in read:
        if goal.concept in discouraged:
            raise InputError(
                f"through: {goal.concept} is discouraged too; drop it from one of the two, as the main head reads it."
            )
    return [*goals, *read]


def concept_names(goals: Sequence[Goal]) -> list[str]:
    """Return the concepts of goals, each once."""
    return list(dict.fromkeys(goal.concept for goal in goals))
