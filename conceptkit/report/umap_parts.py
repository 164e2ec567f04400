"""The patches and the networks' spaces on the page: reference next to guided (the paper's Figure 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from conceptkit.records import EMBEDDINGS_FILE, GridRecord, GuideRecord
from conceptkit.report.contents import trained_concepts
from conceptkit.report.embedding import NEIGHBOURS, Embeddings, Projection, project, read_embeddings
from conceptkit.report.part import Part
from conceptkit.report.patches import HINT, guide_patches
from conceptkit.report.predictions import Predictions
from conceptkit.report.umap_figures import umap_figure
from conceptkit.report.wording import number, with_unit

TRUNK = "trunk's end"
"""The only layer in files of earlier versions"""

LAYERS_MOST = 2
"""Layers whose spaces are laid out"""

TITLE = "Patches, and the networks' spaces side by side"


def umap_parts(
    record: GuideRecord | GridRecord, folder: Path, *, seed: int, names: Sequence[str], predictions: Predictions | None
) -> list[Part]:
    """Return the part with the patch browser, the UMAPs among its views, and their drawings for print.

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
    spaces = {layer: project(features[layer], seed=seed) for layer in layers}
    colours, size = _colours(record, embeddings), _size(record, embeddings)
    # every layer by class; the last one by center too
    rows = [(layer, colours[0]) for layer in layers] + [(layers[-1], colour) for colour in colours[1:]]
    drawings = []
    for layer, colour in rows:
        drawing = umap_figure(embeddings, spaces[layer], layer=layer, colour=colour, size=size)
        words = " ".join(f"{one.run}: {_trust(one)}" for one in spaces[layer])
        drawings.append(dataclasses.replace(drawing, caption=f"{layer}, colour: {colour}. {words}"))
    trust = [_trust(one) for layer in layers for one in spaces[layer]]
    patches = guide_patches(embeddings, predictions, chosen, spaces, trust)
    return [Part(title=TITLE, text=_text(record, embeddings, size, seed), drawings=drawings, patches=patches)]


def _trust(projection: Projection) -> str:
    said = f"Trustworthiness {number(projection.trustworthiness)}, neighbourhood preservation "
    return projection.note or f"{said}{number(projection.preservation)} (k = {NEIGHBOURS})."


def _text(record: GuideRecord | GridRecord, embeddings: Embeddings, size: str | None, seed: int) -> str:
    n, saved = len(embeddings.patch_ids), embeddings.n_saved
    rows = f"{n} of the {saved} held-out patches, drawn at random" if n < saved else f"All {n} held-out patches"
    bigger = f" In print, a larger point has a larger {with_unit(size, record.units)}." if size else ""
    return (
        f"{rows} (seed {seed}). Each network has a space of its own and is laid out by itself; the later ones start "
        "from the first and are turned onto it, so that the same patches lie near the same place where the spaces "
        f"allow.{bigger} A UMAP shows which patches are near each other; distances between clouds have no meaning. The "
        f"numbers below show how many neighbours on the page are neighbours in the network. {HINT}"
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
