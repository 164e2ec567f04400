"""One figure of the report: its style, its files and its text alternative."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
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
        # names in a script that the font does not cover appear as boxes; the table below shows them in full
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*", category=UserWarning)
        # seaborn 0.13.2 still calls matplotlib by a name that it is about to lose
        warnings.filterwarnings("ignore", message="vert: bool was deprecated", category=DeprecationWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches, white in both themes."""
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
