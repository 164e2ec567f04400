"""One figure of the report: its style, its files and its text alternative."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
"""Okabe and Ito's colours, safe for the colour-blind; their yellow is darkened, as it vanishes on white."""

INK, FAINT = "#222222", "#767676"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure and its words."""

    name: str
    """Short name, fit for a file."""
    alt: str
    """What is seen, with its numbers."""
    caption: str
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in here: our sizes, names taken literally (no ``$`` mathematics), the same bytes every time."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.hashsalt": "conceptkit",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # a name in a script that the font lacks shows as boxes in the figure; the table beneath has it in full
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*", category=UserWarning)
        # seaborn 0.13.2 still calls matplotlib by a name that it is about to lose
        warnings.filterwarnings("ignore", message="vert: bool was deprecated", category=DeprecationWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, on white in either theme."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def to_bytes(figure: Figure, *, kind: str = "svg", dpi: int = 110) -> bytes:
    """Return the figure as a file's bytes; ``kind`` is ``svg``, ``pdf`` or ``png``."""
    with styled():
        buffer = io.BytesIO()
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dated)
    return buffer.getvalue()


def to_data_uri(figure: Figure, *, kind: str = "svg", dpi: int = 110) -> str:
    """Return the figure as a data URI of an SVG or PNG."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64," + base64.b64encode(to_bytes(figure, kind=kind, dpi=dpi)).decode()


def file_name(text: str, *, most: int = 80, otherwise: str = "slide") -> str:
    """Return a slide's or concept's name as that of a file, cut to ``most``; ``otherwise`` when nothing is left."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:most] or otherwise


def short(text: str, most: int = 24) -> str:
    """Return ``text`` on one line, its middle left out when it is longer than ``most`` characters."""
    text = " ".join(text.split()) or "(empty)"
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[-(most - most // 2 - 1) :]


def apart(names: Sequence[str], most: int = 24) -> list[str]:
    """Return each name as :func:`short` does, and yet different from the others wherever the names differ.

    Of names that cutting the middles makes alike what tells them apart is kept, with words before it where there is
    room: the words that all of these begin and end with go. Those that stay alike are numbered.
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
