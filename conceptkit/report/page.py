"""One self-contained page from saved records: it opens offline and asks no network for anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from conceptkit._checks import InputError
from conceptkit.records import EMBEDDINGS_FILE, GuideRecord, ProbeRecord, load_record, write_atomically
from conceptkit.report import figures
from conceptkit.report.embedding import NEIGHBOURS, Embeddings, project, read_embeddings
from conceptkit.report.tables import (
    Table,
    Verdict,
    difference_kind,
    groups_word,
    guide_verdicts,
    number,
    numeric_columns,
    probe_verdicts,
    run_names,
    shown,
    tables,
    with_unit,
)

SYNTHETIC = "Synthetic tissue, generated: not real histology."
"""What stands above every number that was made on generated patches."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One titled piece of a section; the template has one way to show each ``kind``."""

    kind: str
    """``table``, ``pictures``, ``umap`` or ``note``."""
    title: str
    text: str = ""
    body: Any = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything the page says of one run folder."""

    anchor: str
    title: str
    study: str
    synthetic: bool
    verdicts: Sequence[Verdict]
    notes: Sequence[str]
    parts: Sequence[Part]
    provenance: Sequence[tuple[str, str]]


def write_page(runs: Sequence[Path], out: Path, *, seed: int = 0) -> Path:
    """Write the report of one or more runs as one HTML file.

    Parameters
    ----------
    runs
        Run folders (or record files) that ``probe`` or ``guide`` wrote, in the order in which they are to be read.
        No model, image or slide is opened: all comes from the records and the features saved beside them.
    out
        The HTML file. It is written in one step; an older one is replaced.
    seed
        Seed of the rows drawn for the UMAP and of its layout.

    Returns
    -------
    Path
        ``out``.

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
    sections = [
        _section(record, folder, title, f"run{i + 1}", seed, plots)
        for i, (record, folder, title) in enumerate(zip(records, folders, _titles(records, folders), strict=True))
    ]
    text = _render(sections, plots)
    # a name read from a file system may hold what UTF-8 cannot
    write_atomically(out, text.encode("utf-8", "replace").decode("utf-8"))
    return out


def _titles(records: Sequence[ProbeRecord | GuideRecord], folders: Sequence[Path]) -> list[str]:
    """Return ``Probe`` or ``Guide`` where there is one of it, and the folder's name with it where there are several."""
    kinds = ["Probe" if isinstance(record, ProbeRecord) else "Guide" for record in records]
    names = [folder.resolve().name for folder in folders]
    return [k if kinds.count(k) == 1 else f"{k}: {name}" for k, name in zip(kinds, names, strict=True)]


def _section(
    record: ProbeRecord | GuideRecord, folder: Path, title: str, anchor: str, seed: int, plots: dict[str, Any]
) -> Section:
    found = [_table_part(table) for table in tables(record)]
    if isinstance(record, ProbeRecord):
        verdicts, parts = probe_verdicts(record), [_probe_part(record), *found]
    else:
        verdicts = guide_verdicts(record)
        parts = [*found, _difference_part(record), _training_part(record)]
        parts.append(_umap_part(record, folder, anchor, seed, plots))
    return Section(
        anchor=anchor,
        title=title,
        study=record.study,
        synthetic=record.synthetic,
        verdicts=verdicts,
        notes=record.notes,
        parts=[part for part in parts if part is not None],
        provenance=_provenance(record, folder),
    )


# --- the parts of a section --------------------------------------------------------------------------------------


def _table_part(table: Table) -> Part:
    cells = shown(table)
    if cells.empty:
        return Part(kind="note", title=table.title, text="Nothing of this was recorded.")
    numeric = numeric_columns(table)
    body = {"columns": [(name, name in numeric) for name in cells.columns], "rows": cells.to_numpy().tolist()}
    return Part(kind="table", title=table.title, text=table.caption, body=body)


def _picture(drawing: figures.Drawing) -> dict[str, Any]:
    source = Markup(figures.to_data_uri(drawing.figure))  # base64 of our own: nothing in it to escape
    width = round(float(drawing.figure.get_figwidth()) * 96)
    return {"source": source, "alt": drawing.alt, "caption": drawing.caption, "width": width}


def _probe_part(record: ProbeRecord) -> Part | None:
    drawings = figures.probe_figures(record)
    text = (
        "The blue line is what held-out data support. The other lines are controls: what a network with random weights "
        "allows already, and what one would have claimed by scoring the rows of the fit"
        + (
            f" or by letting rows of one {groups_word(record.group, 1)} lie on both sides of a fold."
            if record.group
            else "."
        )
    )
    return (
        Part(kind="pictures", title="By layer", text=text, body=[_picture(d) for d in drawings]) if drawings else None
    )


def _difference_part(record: GuideRecord) -> Part | None:
    drawing = figures.difference_figure(record)
    if drawing is None:
        return None
    there = {difference_kind(d) for d in record.differences}
    colours = ", ".join(words for kind, (_, words) in figures.DIFFERENCE_COLOURS.items() if kind in there)
    text = (
        f"{colours[:1].upper()}{colours[1:]}; bars are 95 % intervals, points filled where these leave 0 out. "
        "Higher is better for what is encouraged and for the main task, lower for what is discouraged."
    )
    return Part(kind="pictures", title="Differences at a glance", text=text, body=[_picture(drawing)])


def _training_part(record: GuideRecord) -> Part:
    drawings = figures.training_figures(record)
    if not drawings:
        return Part(kind="note", title="Training", text="No training history was saved.")
    text = "Raw losses, before weighting, one line per seed; beneath them the weight of the task in the total."
    return Part(kind="pictures", title="Training", text=text, body=[_picture(d) for d in drawings])


def _umap_part(record: GuideRecord, folder: Path, anchor: str, seed: int, plots: dict[str, Any]) -> Part:
    """Return the UMAP part; its interactive plots are put into ``plots`` by key, for one script at the page's end."""
    title = "The networks' spaces, side by side"
    chosen = _runs_to_draw(record)
    embeddings = read_embeddings(folder, runs=list(chosen), seed=seed)
    if embeddings is None:
        return Part(
            kind="note", title=title, text=f"This run saved no {EMBEDDINGS_FILE}, so there is nothing to lay out."
        )
    features = {chosen[run]: X for run, X in embeddings.features.items() if len(X) > 2}
    if not features:
        text = (
            f"{EMBEDDINGS_FILE} holds no features of these runs, or fewer than three rows: there is nothing to lay out."
        )
        return Part(kind="note", title=title, text=text)
    projections = project(features, seed=seed)
    colours, size = _colours(record, embeddings), _size(record, embeddings)
    drawn = figures.umap_plots(embeddings, projections, colours=colours, size=size)
    rows = []
    for i, (colour, line) in enumerate(zip(colours, drawn, strict=True)):
        keys = [f"{anchor}-{i}-{j}" for j in range(len(line))]
        plots.update(zip(keys, line, strict=True))
        static = figures.umap_figure(embeddings, projections, colour=colour, size=size)
        beneath = [
            p.note
            or f"Trustworthiness {number(p.trustworthiness)}, neighbourhood preservation {number(p.preservation)} "
            f"(k = {NEIGHBOURS})."
            for p in projections
        ]
        row = {
            "colour": colour,
            "plots": [
                {"key": key, "run": p.run, "beneath": words}
                for key, p, words in zip(keys, projections, beneath, strict=True)
            ],
            "source": Markup(figures.to_data_uri(static.figure, kind="png", dpi=150)),
            "alt": static.alt,
        }
        rows.append(row)
    return Part(kind="umap", title=title, text=_umap_text(record, embeddings, size, seed), body=rows)


def _umap_text(record: GuideRecord, embeddings: Embeddings, size: str | None, seed: int) -> str:
    n, saved = len(embeddings.patch_ids), embeddings.n_saved
    rows = f"{n} of the {saved} held-out patches, drawn at random" if n < saved else f"All {n} held-out patches"
    bigger = f" A larger point has a larger {with_unit(size, record.units)}." if size else ""
    return (
        f"{rows} (seed {seed}). Each network has a space of its own and is laid out by itself; the later ones start "
        "from the first and are turned onto it, so that the same patches lie near the same place where the spaces "
        f"allow.{bigger} A UMAP shows who is near whom; distances between clouds mean nothing. The numbers beneath say "
        "how far neighbours on the page are neighbours in the network."
    )


def _runs_to_draw(record: GuideRecord) -> dict[str, str]:
    """Return saved name → title of one run per name, with a seed that all names share where there is one."""
    seeds = {name: [run.seed for run in record.runs if run.name == name] for name in run_names(record)}
    if not seeds:
        return {}
    shared = [s for s in next(iter(seeds.values())) if all(s in other for other in seeds.values())]
    chosen = {name: shared[0] if shared else own[0] for name, own in seeds.items()}
    return {f"{name}-seed{s}": f"{name}, seed {s}" for name, s in chosen.items()}


def _colours(record: GuideRecord, embeddings: Embeddings) -> list[str]:
    texts = [name for name, values in embeddings.concepts.items() if values.dtype.kind == "U"]
    discouraged = [name for name in [*record.discourage, "center"] if name in texts]
    return ["label", *list(dict.fromkeys(discouraged))[:1]]


def _size(record: GuideRecord, embeddings: Embeddings) -> str | None:
    numbers = [name for name, values in embeddings.concepts.items() if values.dtype.kind != "U"]
    return next((name for name in [*record.encourage, *numbers] if name in numbers), None)


# --- provenance --------------------------------------------------------------------------------------------------


def _provenance(record: ProbeRecord | GuideRecord, folder: Path) -> list[tuple[str, str]]:
    """Return name and value of all that is needed to make the numbers again."""
    lines = [("run", folder.resolve().name), ("schema", record.schema), ("study", record.study)]
    lines.append(("patches", "synthetic" if record.synthetic else "as the study's table names them"))
    lines.append(("never split across folds", record.group or "nothing: rows were taken as independent"))
    if isinstance(record, GuideRecord):
        lines += [(f"run {run.name}, seed {run.seed}", run.checkpoint or "–") for run in record.runs]
        lines += [
            ("encouraged", ", ".join(record.encourage) or "–"),
            ("discouraged", ", ".join(record.discourage) or "–"),
        ]
        lines.append(("concepts and leakage read on", record.evaluated_on))
    lines += [(f"setting {key}", value) for key, value in _flat(record.settings)]
    return lines + [(f"version of {key}", value) for key, value in _flat(record.versions)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out.append((f"{prefix}{key}", "–" if value is None else text))
    return out


# --- the page ----------------------------------------------------------------------------------------------------


def _render(sections: Sequence[Section], plots: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    synthetic = [section.title for section in sections if section.synthetic]
    banner = SYNTHETIC if synthetic else ""
    if synthetic and len(synthetic) < len(sections):
        banner += f" This holds for: {', '.join(synthetic)}."
    script, divs = _bokeh(plots)
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(section.study for section in sections)),
        banner=banner,
        sections=sections,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=script,
        divs=divs,
    )


def _bokeh(plots: Mapping[str, Any]) -> tuple[Markup, dict[str, Markup]]:
    """Return Bokeh's own code with the plots' data, and the element of each plot; nothing without plots."""
    if not plots:
        return Markup(""), {}
    from bokeh.embed import components
    from bokeh.resources import Resources

    script, divs = components(dict(plots), wrap_script=True)
    # the widgets, tables and mathematics of Bokeh would triple the page
    code = Resources(mode="inline", components=["bokeh"]).render_js()
    return Markup(code + script), {key: Markup(div) for key, div in divs.items()}
