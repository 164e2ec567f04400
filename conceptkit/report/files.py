"""The report for a paper: every table as LaTeX and CSV, every figure as SVG and PDF, a file each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from conceptkit.records import write_atomically
from conceptkit.report.drawing import Drawing, to_bytes
from conceptkit.report.sections import Section
from conceptkit.report.table import Table
from conceptkit.report.table_files import to_csv, to_latex


def write_latex(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write each table as ``RUN-TABLE.tex`` and return the paths."""
    return [_write(folder / f"{name}.tex", to_latex(table, label=name)) for name, table in _tables(sections)]


def write_csv(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write each table's numbers as ``RUN-TABLE.csv`` and return the paths."""
    return [_write(folder / f"{name}.csv", to_csv(table)) for name, table in _tables(sections)]


def write_figures(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write each figure as ``RUN-FIGURE.svg`` and ``.pdf`` and return the paths."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in _drawings(sections):
        for kind in ("svg", "pdf"):
            path = folder / f"{name}.{kind}"
            path.write_bytes(to_bytes(drawing.figure, kind=kind, dpi=300))
            paths.append(path)
    return paths


def _tables(sections: Sequence[Section]) -> Iterator[tuple[str, Table]]:
    for stem, section in zip(_stems(sections), sections, strict=True):
        for part in section.parts:
            if part.table is not None:
                yield f"{stem}-{part.table.name}", part.table


def _drawings(sections: Sequence[Section]) -> Iterator[tuple[str, Drawing]]:
    for stem, section in zip(_stems(sections), sections, strict=True):
        for part in section.parts:
            for drawing in part.drawings:
                yield f"{stem}-{slug(drawing.name)}", drawing


def _stems(sections: Sequence[Section]) -> list[str]:
    """Return what the files of each section begin with, no two alike."""
    stems = [slug(section.title) for section in sections]
    return [s if stems.count(s) == 1 else f"{s}-{i + 1}" for i, s in enumerate(stems)]


def slug(text: str) -> str:
    """Return ``text`` as part of a file's name: letters, digits, points and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "run"


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path
