"""The networks' spaces on the page: baseline next to guided at two layers (the paper's Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptkit.records import EMBEDDINGS_FILE, GridRecord, GuideRecord
from conceptkit.report.contents import trained_concepts
from conceptkit.report.embedding import NEIGHBOURS, Embeddings, Projection, project, read_embeddings
from conceptkit.report.part import Part, PlotRow
from conceptkit.report.umap_figures import umap_figure
from conceptkit.report.wording import number, with_unit

Plots = dict[str, Any]
"""Key of a plot → Bokeh's plot"""

TRUNK = "trunk's end"
"""The only layer in files of earlier versions"""

LAYERS_MOST = 2
"""Layers whose spaces are laid out"""

TITLE = "The networks' spaces, side by side"


def umap_parts(
    record: GuideRecord | GridRecord, folder: Path, *, anchor: str, seed: int, plots: Plots, names: Sequence[str]
) -> list[Part]:
    """Return the UMAP part; its interactive plots are put into ``plots`` by key.

    Parameters
    ----------
    names : of the runs to draw, the reference first
    """
    chosen = _runs_to_draw(record, names)
    embeddings = read_embeddings(folder, runs=list(chosen), seed=seed)
    if embeddings is None:
        return [Part(title=TITLE, text=f"This run saved no {EMBEDDINGS_FILE}, so no space is shown.")]
    features = {
        layer: {chosen[run]: X for run, X in spaces.items() if len(X) > 2}
        for layer, spaces in (embeddings.layers or {TRUNK: embeddings.features}).items()
    }
    layers = [layer for layer, spaces in features.items() if spaces][:LAYERS_MOST]
    if not layers:
        text = f"{EMBEDDINGS_FILE} holds no features of these runs, or fewer than three rows."
        return [Part(title=TITLE, text=text)]
    spaces = [project(features[layer], seed=seed) for layer in layers]
    colours, size = _colours(record, embeddings), _size(record, embeddings)
    # every layer by class; the last one by center too
    rows = [(s, colours[0]) for s in range(len(layers))] + [(len(layers) - 1, colour) for colour in colours[1:]]
    from conceptkit.report.umap_plots import umap_plots  # Bokeh takes 0.6 s, and every command reads the sections

    drawn = umap_plots(embeddings, spaces, rows, size=size)
    shown = []
    for i, ((s, colour), line) in enumerate(zip(rows, drawn, strict=True)):
        keys = [f"{anchor}-{i}-{j}" for j in range(len(line))]
        plots.update(zip(keys, line, strict=True))
        shown.append(
            PlotRow(
                heading=f"{layers[s]}, colour: {colour}",
                keys=keys,
                titles=[p.run for p in spaces[s]],
                captions=[_trust(p) for p in spaces[s]],
                drawing=umap_figure(embeddings, spaces[s], layer=layers[s], colour=colour, size=size),
            )
        )
    return [Part(title=TITLE, text=_text(record, embeddings, size, seed), plots=shown)]


def _trust(projection: Projection) -> str:
    said = f"Trustworthiness {number(projection.trustworthiness)}, neighbourhood preservation "
    return projection.note or f"{said}{number(projection.preservation)} (k = {NEIGHBOURS})."


def _text(record: GuideRecord | GridRecord, embeddings: Embeddings, size: str | None, seed: int) -> str:
    n, saved = len(embeddings.patch_ids), embeddings.n_saved
    rows = f"{n} of the {saved} held-out patches, drawn at random" if n < saved else f"All {n} held-out patches"
    bigger = f" A larger point has a larger {with_unit(size, record.units)}." if size else ""
    return (
        f"{rows} (seed {seed}). Each network has a space of its own and is laid out by itself; the later ones start "
        "from the first and are turned onto it, so that the same patches lie near the same place where the spaces "
        f"allow.{bigger} A UMAP shows which patches are near each other; distances between clouds have no meaning. The "
        "numbers below show how many neighbours on the page are neighbours in the network."
    )


def _runs_to_draw(record: GuideRecord | GridRecord, names: Sequence[str]) -> dict[str, str]:
    """Return saved name → title of one run per name, with a seed that all names share where there is one."""
    seeds = {name: [run.seed for run in record.runs if run.name == name] for name in names}
    if not seeds:
        return {}
    shared = [s for s in next(iter(seeds.values())) if all(s in other for other in seeds.values())]
    chosen = {name: shared[0] if shared else own[0] for name, own in seeds.items()}
    return {f"{name}-seed{s}": f"{name}, seed {s}" for name, s in chosen.items()}


def _colours(record: GuideRecord | GridRecord, embeddings: Embeddings) -> Sequence[str]:
    texts = [name for name, values in embeddings.concepts.items() if values.dtype.kind == "U"]
    discouraged = [name for name in [*trained_concepts(record)[1], "center"] if name in texts]
    return ["label", *list(dict.fromkeys(discouraged))[:1]]


def _size(record: GuideRecord | GridRecord, embeddings: Embeddings) -> str | None:
    numbers = [name for name, values in embeddings.concepts.items() if values.dtype.kind != "U"]
    return next((name for name in [*trained_concepts(record)[0], *numbers] if name in numbers), None)
