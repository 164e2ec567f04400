"""Names that are short and yet different, for figures and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from conceptkit.report.judging import MARKS


def short(text: str, most: int = 24) -> str:
    """Return ``text`` on one line, its middle left out when it is longer than ``most`` characters."""
    text = " ".join(text.split()) or "(empty)"
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[-(most - most // 2 - 1) :]


def apart(names: Sequence[str], most: int = 24) -> list[str]:
    """Return each name as :func:`short` does, and yet different from the others wherever the names differ.

    If names become equal when their middles are cut, the words that all of them start and end with are dropped
    instead, and the part that differs is kept, with words before it if there is room. Names that remain equal are
    numbered.
    """
    lines = [" ".join(name.split()) or "(empty)" for name in names]
    cut = {line: short(line, most) for line in lines}
    for text in dict.fromkeys(cut.values()):
        alike = [line for line in cut if cut[line] == text]
        if len(alike) > 1:
            cut |= _middles(alike, most)
    taken = Counter(cut.values())
    numbers = {line: f" ({k})" for k, line in enumerate(cut, start=1) if taken[cut[line]] > 1}
    return [short(line, most - len(numbers[line])) + numbers[line] if line in numbers else cut[line] for line in lines]


def _middles(lines: Sequence[str], most: int) -> dict[str, str]:
    """Return each line without the words that all begin and all end with, short."""
    words = [line.split(" ") for line in lines]
    first, last = shared_ends(words)
    room = most - 2 - max(len(" ".join(w[first : len(w) - last])) for w in words)
    while first and (room := room - len(words[0][first - 1]) - 1) >= 0:
        first -= 1
    return {
        " ".join(w): short("…" * (first > 0) + " ".join(w[first : len(w) - last]) + "…" * (last > 0), most)
        for w in words
    }


def shared_ends(names: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return how many parts all names begin with and how many they end with; at least one part is left of each."""
    shared = min(map(len, names)) - 1 if len(names) > 1 else 0
    first = next((i for i in range(shared) if len({name[i] for name in names}) > 1), shared)
    shared -= first
    return first, next((i for i in range(shared) if len({name[-1 - i] for name in names}) > 1), shared)


def as_symbols(marks: Sequence[str]) -> list[str]:
    """Return the symbols of marks; other texts as they are."""
    return [next((symbol for mark, symbol in MARKS.items() if mark == text), text) for text in marks]
