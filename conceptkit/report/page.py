"""One self-contained page from saved records, which opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from conceptkit.errors import InputError
from conceptkit.records import Record, load_record, write_atomically
from conceptkit.report.drawing import Drawing, to_data_uri
from conceptkit.report.files import write_csv, write_figures, write_latex
from conceptkit.report.judging import LEGEND
from conceptkit.report.part import SavedPicture
from conceptkit.report.sections import KINDS, Section, section
from conceptkit.report.table import Table, numeric_columns, shown

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
) -> Path:
    """Write the report of one or more runs as one HTML file.

    Parameters
    ----------
    runs : run folders (or record files), in the order of the page; no model, image or slide is opened
    out : the HTML file, written in one step; an older one is replaced
    seed : of the rows drawn for the UMAP and of its layout
    latex, csv, figures : folders for the tables as LaTeX and as CSV, and for the figures as SVG and PDF

    Raises
    ------
    InputError
        when no run is given, a run cannot be read, or ``out`` is a folder.
    """
    if not runs:
        raise InputError("runs: at least one run folder is needed, got none.")
    if out.is_dir():
        raise InputError(f"out: must be a file to write, got the folder {out}.")
    folders = [Path(run) if Path(run).is_dir() else Path(run).parent for run in runs]
    records = [load_record(Path(run)) for run in runs]
    plots: dict[str, Any] = {}
    seen: set[str] = set()
    sections = [
        section(record, folder, title=title, anchor=f"run{i + 1}", seed=seed, plots=plots, seen=seen)
        for i, (record, folder, title) in enumerate(zip(records, folders, _titles(records, folders), strict=True))
    ]
    for write, place in ((write_latex, latex), (write_csv, csv), (write_figures, figures)):
        if place is not None:
            write(sections, place)
    write_sections(sections, out, plots)
    return out


def write_sections(sections: Sequence[Section], out: Path, plots: Mapping[str, Any] | None = None) -> None:
    """Write sections as one HTML file, with the interactive plots that they name."""
    text = _render(sections, plots or {})
    # a name read from a file system may hold what UTF-8 cannot
    write_atomically(out, text.encode("utf-8", "replace").decode("utf-8"))


def _titles(records: Sequence[Record], folders: Sequence[Path]) -> list[str]:
    """Return ``Probe`` or ``Guide`` where there is one of it, and the folder's name with it where there are several."""
    kinds = [KINDS[type(record)].title for record in records]
    names = [folder.resolve().name for folder in folders]
    return [k if kinds.count(k) == 1 else f"{k}: {name}" for k, name in zip(kinds, names, strict=True)]


def _render(sections: Sequence[Section], plots: Mapping[str, Any]) -> str:
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(cells=_cells, drawn=_picture, saved=_saved, zip=zip)
    synthetic = [section.title for section in sections if section.synthetic]
    banner = SYNTHETIC if synthetic else ""
    if synthetic and len(synthetic) < len(sections):
        banner += f" This holds for: {', '.join(synthetic)}."
    script, divs = _bokeh(plots)
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(section.study for section in sections)),
        banner=banner,
        legend=LEGEND,
        sections=sections,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=script,
        divs=divs,
    )


def _cells(table: Table) -> dict[str, Any]:
    cells, numeric = shown(table), numeric_columns(table)
    return {"columns": [(name, name in numeric) for name in cells.columns], "rows": cells.to_numpy().tolist()}


def _picture(drawing: Drawing, *, kind: str = "svg", dpi: int = 110) -> dict[str, Any]:
    source = Markup(to_data_uri(drawing.figure, kind=kind, dpi=dpi))  # base64 of our own: nothing in it to escape
    width = round(float(drawing.figure.get_figwidth()) * 96)
    return {"source": source, "alt": drawing.alt, "caption": drawing.caption, "width": width}


def _saved(picture: SavedPicture) -> dict[str, Any]:
    source = Markup("data:image/png;base64," + base64.b64encode(picture.content).decode())
    return {"source": source, "alt": picture.alt, "caption": "", "width": 900}


def _bokeh(plots: Mapping[str, Any]) -> tuple[Markup, dict[str, Markup]]:
    """Return Bokeh's own code with the plots' data, and the element of each plot; nothing without plots."""
    if not plots:
        return Markup(""), {}
    script, divs = components(dict(plots), wrap_script=True)
    # the widgets, tables and mathematics of Bokeh would triple the page
    code = Resources(mode="inline", components=["bokeh"]).render_js()
    return Markup(code + script), {key: Markup(div) for key, div in divs.items()}
