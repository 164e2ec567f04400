"""One titled piece of a section: words, and tables, drawings or interactive plots beneath them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conceptkit.report.drawing import Drawing
from conceptkit.report.table import Table, shown


@dataclass(frozen=True, kw_only=True)
class PlotRow:
    """Interactive plots side by side, and the drawing that stands for them in print and without scripts."""

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
    """True: shown when it is asked for"""


def table_part(table: Table) -> Part:
    """Return a table as a part; a sentence in its place when it has no row."""
    if shown(table).empty:
        return Part(title=table.title, text="Nothing of this was recorded.")
    return Part(title=table.title, text=table.caption, table=table)


def saved_pictures(folder: Path, names: Sequence[str]) -> list[SavedPicture]:
    """Return the PNG pictures of these names in a run folder; those that are not there, or elsewhere, are left out."""
    found = []
    for name in names:
        path = folder / Path(name).name
        if path.suffix == ".png" and path.is_file():
            words = path.stem.replace("-", " ")
            found.append(
                SavedPicture(alt=f"Patches with the highest and lowest predictions: {words}", content=path.read_bytes())
            )
    return found
