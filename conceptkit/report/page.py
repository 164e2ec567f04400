"""One self-contained page from saved records, which opens offline."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from conceptkit.errors import InputError
from conceptkit.records import Record, load_record, write_atomically
from conceptkit.report.claims import SCHEMA, write_claims
from conceptkit.report.comparing import comparison_parts
from conceptkit.report.drawing import Drawing, to_data_uri
from conceptkit.report.files import slug, write_csv, write_figures, write_latex
from conceptkit.report.first_screen import CAUTIONS_MOST, first_picture, headline
from conceptkit.report.judging import LEGEND, Verdict
from conceptkit.report.part import Part, SavedPicture
from conceptkit.report.projector import write_projector
from conceptkit.report.sections import KINDS, Section, section
from conceptkit.report.table import Table, numeric_columns, shown
from conceptkit.report.table_files import csv_parts, latex_parts
from conceptkit.report.wording import is_finite

SYNTHETIC = "Synthetic tissue, generated: not real histology."
"""Banner above numbers that were made on generated patches."""


def write_page(
    runs: Sequence[Path],
    out: Path,
    *,
    seed: int = 0,
    latex: Path | None = None,
    csv: Path | None = None,
    figures: Path | None = None,
    projector: Path | None = None,
) -> Path:
    """Write the report of one or more runs as one HTML file.

    Parameters
    ----------
    runs : run folders (or record files), in the order of the page; no model, image or slide is opened
    out : the HTML file, written in one step; an older one is replaced
    seed : of the rows drawn for the UMAP and of its layout
    latex, csv, figures : folders for the tables as LaTeX and as CSV, and for the figures as SVG and PDF
    projector : folder for the saved features, for the embedding projector of TensorBoard

    Raises
    ------
    InputError
        when no run is given, a run cannot be read, or ``out`` is a folder.
    """
    if not runs:
        raise InputError("runs: at least one run folder is needed, got none.")
    if out.is_dir():
        raise InputError(f"out: must be a file to write, got the folder {out}.")
    claims = out.with_suffix(".json")
    _check_claims(claims)
    folders = [Path(run) if Path(run).is_dir() else Path(run).parent for run in runs]
    records = [load_record(Path(run)) for run in runs]
    seen: set[str] = set()
    sections = [
        section(record, folder, title=title, anchor=f"run{i + 1}", seed=seed, seen=seen)
        for i, (record, folder, title) in enumerate(zip(records, folders, _titles(records, folders), strict=True))
    ]
    for write, place in ((write_latex, latex), (write_csv, csv), (write_figures, figures)):
        if place is not None:
            write(sections, place)
    titles = [one.title for one in sections]
    if projector is not None:
        write_projector(dict(zip(titles, folders, strict=True)), projector)
    compared = comparison_parts(records, folders, titles)
    write_claims(records, folders, claims)
    write_sections(sections, records, out, compared)
    return out


def write_sections(
    sections: Sequence[Section], records: Sequence[Record], out: Path, compared: Sequence[Part] = ()
) -> None:
    """Write the sections of ``records`` as one HTML file, after what compares them."""
    text = _render(sections, records, compared)
    # a name read from a file system may hold what UTF-8 cannot
    write_atomically(out, text.encode("utf-8", "replace").decode("utf-8"))


def _check_claims(path: Path) -> None:
    """Refuse a page whose claims would replace a file of another kind, such as the record of a run."""
    if path.exists() and (path.is_dir() or SCHEMA not in path.read_text(encoding="utf-8", errors="replace")[:200]):
        raise InputError(f"out: its claims would replace {path}, which holds something else; name another page.")


def _titles(records: Sequence[Record], folders: Sequence[Path]) -> list[str]:
    """Return ``Probe`` or ``Guide`` where there is one of it, and the folder's name with it where there are several."""
    kinds = [KINDS[type(record)].title for record in records]
    names = [folder.resolve().name for folder in folders]
    return [k if kinds.count(k) == 1 else f"{k}: {name}" for k, name in zip(kinds, names, strict=True)]


def _render(sections: Sequence[Section], records: Sequence[Record], compared: Sequence[Part]) -> str:
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(cells=_cells, drawn=_picture, saved=_saved, as_json=as_json)
    synthetic = [section.title for section in sections if section.synthetic]
    banner = SYNTHETIC if synthetic else ""
    if synthetic and len(synthetic) < len(sections):
        banner += f" This holds for: {', '.join(synthetic)}."
    style, script = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(section.study for section in sections)),
        banner=banner,
        sections=sections,
        compared=compared,
        questions=list(dict.fromkeys(section.question for section in sections)),
        answers=headline([verdict for section in sections for verdict in _named(section, records)]),
        cautions=list(dict.fromkeys(caution for section in sections for caution in section.cautions))[:CAUTIONS_MOST],
        first_picture=first_picture(records),
        legend=LEGEND,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )


def _named(section: Section, records: Sequence[Record]) -> list[Verdict]:
    """Return the results of a section, with its title where the page has several runs of one kind."""
    if len({type(record) for record in records}) == len(records):
        return list(section.verdicts)
    return [dataclasses.replace(one, text=f"{section.title}: {one.text}") for one in section.verdicts]


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: this one style and this one script by their digests, and pictures inside."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def as_json(value: Any) -> Markup:
    """Return ``value`` as JSON that can stand in a script element: no text of it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _cells(table: Table) -> dict[str, Any]:
    cells, numeric = shown(table), numeric_columns(table)
    names = list(cells.columns)
    keys = [*itertools.takewhile(lambda name: name not in numeric and name != "verdict", names)]
    deciding = next((n for n in names if f"{n} low" in table.frame), next((n for n in names if n in numeric), ""))
    columns = [
        {"name": n, "numeric": n in numeric, "key": n in keys, "deciding": n == deciding and n not in keys}
        for n in names
    ]
    values = [
        table.frame[n].map(lambda v: v if is_finite(v) else None) if n in numeric else [None] * len(cells)
        for n in names
    ]
    files = {"csv": csv_parts(table), "latex": latex_parts(table, label=table.name)}
    rows = [
        list(zip(*pair, strict=True)) for pair in zip(cells.to_numpy().tolist(), zip(*values, strict=True), strict=True)
    ]
    return {"columns": columns, "rows": rows, "files": as_json(files)}


def _picture(drawing: Drawing, *, kind: str = "svg", dpi: int = 110) -> dict[str, Any]:
    source = Markup(to_data_uri(drawing.figure, kind=kind, dpi=dpi))  # base64 of our own: nothing in it to escape
    width = round(float(drawing.figure.get_figwidth()) * 96)
    return {
        "name": slug(drawing.name),
        "source": source,
        "alt": drawing.alt,
        "caption": drawing.caption,
        "width": width,
    }


def _saved(picture: SavedPicture) -> dict[str, Any]:
    source = Markup("data:image/png;base64," + base64.b64encode(picture.content).decode())
    return {"name": "picture", "source": source, "alt": picture.alt, "caption": "", "width": 900}
