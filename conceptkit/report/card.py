"""A robustness card: one page for each encoder, as HTML and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from conceptkit.records import RobustnessRecord, write_atomically
from conceptkit.report.drawing import file_name
from conceptkit.report.judging import LEGEND, MARKS
from conceptkit.report.page import SYNTHETIC, write_sections
from conceptkit.report.sections import Section, section
from conceptkit.report.table import numeric_columns, shown


def write_cards(record: RobustnessRecord, folder: Path, out: Path) -> list[Path]:
    """Write a card of each encoder of a record, and return the paths.

    Parameters
    ----------
    folder : run folder of the record
    out : folder, which is created
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for encoder in dict.fromkeys(row.encoder or row.model for row in record.rows):
        own = _of(record, encoder)
        page = section(own, folder, title=f"Robustness of {encoder}", anchor="card", seed=0, seen=set())
        path = out / f"{file_name(encoder, otherwise='encoder')}.html"
        headed = dataclasses.replace(page, study=page.title, title=f"Study {page.study}")
        write_sections([headed], [own], path)
        write_atomically(path.with_suffix(".md"), "\n".join(_markdown(page)))
        written += [path, path.with_suffix(".md")]
    return written


def _of(record: RobustnessRecord, encoder: str) -> RobustnessRecord:
    """Return what a record holds of one encoder."""
    return dataclasses.replace(
        record,
        rows=tuple(row for row in record.rows if (row.encoder or row.model) == encoder),
        probes=tuple(row for row in record.probes if (row.encoder or row.model) == encoder),
        differences=tuple(d for d in record.differences if encoder in (d.encoder, d.against)),
        remedies=tuple(row for row in record.remedies if row.encoder == encoder),
        probe_differences=tuple(d for d in record.probe_differences if encoder in (d.encoder, d.against)),
    )


def _markdown(page: Section) -> Iterator[str]:
    yield f"# {page.title}\n"
    yield f"Study: {page.study}.{f' **{SYNTHETIC}**' if page.synthetic else ''}\n"
    yield from (f"- {MARKS[one.mark]} {one.text}" for one in page.verdicts)
    yield f"\n{LEGEND}\n"
    for part in page.parts:
        if part.table is None:
            continue
        cells, numeric = shown(part.table), numeric_columns(part.table)
        yield f"## {part.title}\n"
        if part.text:
            yield f"{part.text}\n"
        yield _line(cells.columns)
        yield _line("---:" if name in numeric else "---" for name in cells.columns)
        yield from (_line(row) for row in cells.to_numpy().tolist())
        yield ""
    if page.notes:
        yield "## Notes\n"
        yield from (f"- {note}" for note in page.notes)
        yield ""
    yield "## How it was made\n"
    yield from (f"- {name}: {value}" for name, value in page.provenance)
    yield ""


def _line(cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"  # type: ignore[attr-defined]
