"""What numbers show: one rule from an interval and a test to a mark and a sentence, for every kind of result."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from conceptkit.evaluate.intervals import FEW_GROUPS
from conceptkit.report.wording import as_float, counted, is_finite, number

Mark = Literal["established", "associated", "open"]
Side = Literal["above", "covers", "below", "missing"]

MARKS: Mapping[Mark, str] = {"established": "●", "associated": "◐", "open": "○"}
"""Mark → its symbol, from strong to weak"""

LEGEND = (
    "● established: the interval excludes chance (of a difference, 0), the test (a permutation test, or q of a "
    "secondary difference) agrees where there is one, and no control reaches the interval. ◐ associated: there is a "
    "relation of unknown size or source. ○ open: no relation is shown; this does not prove that there is none."
)

SIGNIFICANT = 0.05
"""A p or q below this is significant."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One result in words: the answer, its number and the caveat that changes its reading."""

    text: str
    mark: Mark
    primary: bool = False
    """Whether it is of the contrast that was declared before the run"""
    count: int = 1
    """Number of results that it sums up"""


def verdict(mark: Mark, answer: str, *caveats: str) -> Verdict:
    """Return the answer and the first caveat that is not empty, a sentence each."""
    said = [answer, *[caveat for caveat in caveats if caveat][:1]]
    return Verdict(text=" ".join(f"{sentence}." for sentence in said), mark=mark)


def side_of(value: object, low: object, high: object, reference: float = 0.0) -> Side:
    """Return where an interval lies; it includes the value, which a bootstrap interval need not contain."""
    if not (is_finite(value) and is_finite(low) and is_finite(high)):
        return "missing"
    ends = as_float(value), as_float(low), as_float(high)
    if min(ends) > reference:
        return "above"
    return "below" if max(ends) < reference else "covers"


def is_significant(p: object, least: object = None) -> bool | None:
    """Return whether a p or q is significant; ``None`` where nothing was tested.

    Parameters
    ----------
    p : p or q
    least : the smallest p that the number of permutations allows; a test that cannot reach 0.05 shows nothing
    """
    if not is_finite(p) or (is_finite(least) and as_float(least) >= SIGNIFICANT):
        return None
    return as_float(p) < SIGNIFICANT


def mark_of(side: Side, significant: bool | None, *, few: bool, sought: Collection[str] = ("above",)) -> Mark:
    """Return what an interval and a test show together.

    Parameters
    ----------
    side : where the interval lies
    significant : by the test; ``None`` without one
    few : whether the interval rests on too few groups
    sought : sides on which the interval shows a relation; two for a difference
    """
    if side in sought and not few and significant is not False:
        return "established"
    return "associated" if significant else "open"


def are_few(n_groups: int, group: str | None) -> bool:
    """Return whether the groups are too few to trust an interval over them."""
    return group is not None and n_groups < FEW_GROUPS


def few_words(n_groups: int, group: str | None) -> str:
    """Return the caveat of an interval over few groups; empty where they are enough."""
    if not are_few(n_groups, group):
        return ""
    return f"{counted(group, n_groups)} {'is' if n_groups == 1 else 'are'} too few for a reliable interval"


def p_words(p: object, name: str = "p") -> str:
    """Return ``q = 0.008``, with enough digits to show on which side of 0.05 it lies."""
    value = as_float(p)
    if value < 0.001:
        return f"{name} < 0.001"
    text = number(value, digits=2 if value >= 0.1 else 3)
    return f"{name} = {number(value, digits=4) if text == '0.050' else text}"
