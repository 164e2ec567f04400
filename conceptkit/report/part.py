"""One titled part of a section: a text, and a table, drawings or the patch browser below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.report.drawing import Drawing
from conceptkit.report.table import Table, shown


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
    patches: Mapping[str, Any] | None = None
    """What the patch browser shows, as JSON; the drawings then are for print and for browsers without scripts"""
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
