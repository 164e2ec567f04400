"""One titled part of a section: a text, and a table, drawings or interactive plots beneath it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conceptkit.report.drawing import Drawing
from conceptkit.report.table import Table, shown


@dataclass(frozen=True, kw_only=True)
class PlotRow:
    """Interactive plots side by side, and the drawing for print and for browsers without scripts."""

    heading: str
    keys: Sequence[str]
    """Keys of the plots"""
    titles: Sequence[str]
    beneath: Sequence[str]
    """A sentence beneath each plot"""
    drawing: Drawing


@dataclass(frozen=True, kw_only=True)
class SavedPicture:
    """A picture that a command wrote into its run folder."""

    alt: str
    content: bytes
    """PNG"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One titled piece of a section."""

    title: str
    text: str = ""
    table: Table | None = None
    drawings: Sequence[Drawing] = ()
    pictures: Sequence[SavedPicture] = ()
    plots: Sequence[PlotRow] = ()
    folded: bool = False
    """True: shown on a click"""


def table_part(table: Table) -> Part:
    """Return a table as a part; without a row, a sentence."""
    if shown(table).empty:
        return Part(title=table.title, text="Not recorded.")
    return Part(title=table.title, text=table.caption, table=table)


def saved_pictures(folder: Path, names: Sequence[str]) -> list[SavedPicture]:
    """Return the PNG pictures of these names in a run folder; missing ones and paths elsewhere are skipped."""
    found = []
    for name in names:
        path = folder / Path(name).name
        if path.suffix == ".png" and path.is_file():
            words = path.stem.replace("-", " ")
            found.append(
                SavedPicture(alt=f"Patches with the highest and lowest predictions: {words}", content=path.read_bytes())
            )
    return found
