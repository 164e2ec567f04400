"""One wording for a user's mistakes: the argument, the rule, the value received."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """A plain mistake in what the user gave, told in one sentence that names the argument, the rule and the value."""


def near_names(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """Return the end of a sentence that offers the names nearest to ``name``, or all names when they are few."""
    names = list(dict.fromkeys(str(k) for k in known))
    if not names:
        return "there is none to choose from"
    by_case = {n.lower(): n for n in reversed(names)}
    close = [by_case[c] for c in difflib.get_close_matches(name.lower(), list(by_case), n=most, cutoff=0.5)]
    if close:
        return "near names: " + ", ".join(close)
    if len(names) <= 12:
        return "known: " + ", ".join(names)
    return f"known: {', '.join(names[:8])} … ({len(names)} in all)"


def check_choice(argument: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` when it is one of ``known``; raise :class:`InputError` with the near names otherwise."""
    names = list(known)
    if value not in names:
        raise InputError(f"{argument}: {value!r} is not known; {near_names(value, names)}.")
    return value


def check_at_least(argument: str, value: float, least: float) -> None:
    """Raise :class:`InputError` unless ``value`` is a number of at least ``least``."""
    if not value >= least:
        raise InputError(f"{argument}: must be at least {least}, got {value}.")


def check_distinct(argument: str, values: Sequence[str]) -> None:
    """Raise :class:`InputError` when ``values`` is empty or holds a name twice."""
    if not values:
        raise InputError(f"{argument}: at least one name is needed, got none.")
    repeated = sorted({v for v in values if values.count(v) > 1})
    if repeated:
        raise InputError(f"{argument}: {', '.join(repeated)} given more than once.")
