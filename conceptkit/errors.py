"""One wording for a user's mistakes: the argument, the rule, the value received."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


class InputError(ValueError):
    """A plain mistake in what the user gave, told in one sentence that names the argument, the rule and the value."""


_FEW = 6
"""Up to so many names an error lists them all."""


def near_names(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """Return the end of a sentence that offers the names nearest to ``name``, and all names when they are few."""
    # a name that has a comma stands in quotes, as it is written in a list
    names = [f'"{k}"' if "," in k else k for k in dict.fromkeys(str(k) for k in known)]
    if not names:
        return "there is none to choose from"
    by_case = {n.lower(): n for n in reversed(names)}
    close = [by_case[c] for c in difflib.get_close_matches(name.lower(), list(by_case), n=most, cutoff=0.5)]
    if not close:  # nuclear_area has a word of area_px
        words = {word for word in re.split(r"[\W_]+", name.lower()) if len(word) > 2}
        close = [n for n in names if words & set(re.split(r"[\W_]+", n.lower()))][:most]
    if close:
        others = [n for n in names if n not in close] if len(names) <= _FEW else []
        return "near names: " + ", ".join(close) + ("; also " + ", ".join(others) if others else "")
    if len(names) <= 12:
        return "known: " + ", ".join(names)
    return f"known: {', '.join(names[:8])} … ({len(names)} in all)"


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, or else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def check_place(argument: str, path: Path) -> None:
    """Raise :class:`InputError` when nothing can be written at ``path``: told before the work, not after it."""
    above = next((p for p in path.absolute().parents if p.exists()), None)
    if above is None or not above.is_dir():
        raise InputError(f"{argument}: {path} cannot be made, as {above or 'its drive'} is no folder.")
    if not os.access(path if path.is_dir() else above, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: {path} cannot be made, as nothing may be written into {above}.")


def check_at_most(argument: str, value: float, most: float) -> None:
    """Raise :class:`InputError` unless ``value`` is a number of at most ``most``."""
    if not value <= most:
        raise InputError(f"{argument}: must be at most {most}, got {value}.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise :class:`InputError` unless there is at least one seed, none twice and none below 0."""
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"seeds: need at least one and no repeats, got {list(seeds)}.")
    for seed in seeds:
        check_at_least("seeds", seed, 0)


def check_distinct(argument: str, values: Sequence[str]) -> None:
    """Raise :class:`InputError` when ``values`` is empty or holds a name twice."""
    if not values:
        raise InputError(f"{argument}: at least one name is needed, got none.")
    repeated = sorted({v for v in values if values.count(v) > 1})
    if repeated:
        raise InputError(f"{argument}: {', '.join(repeated)} given more than once.")
