"""Predicting with the vectors of a probe: concepts of patches in their units, with intervals for new patients."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.commands.cohort_notes import notes_of_new_centers
from conceptkit.commands.maps import PREDICTED, HeldOut, check_maps, write_maps
from conceptkit.commands.qupath import check_export, export_patches
from conceptkit.commands.tile import run_tile
from conceptkit.commands.vector_network import check_same
from conceptkit.errors import InputError, check_choice
from conceptkit.features.feature_rows import rows_of_features
from conceptkit.features.sources import Features, open_features
from conceptkit.features.store_reading import is_store, open_activations
from conceptkit.options.base import Progress
from conceptkit.options.predict import Predict
from conceptkit.probe.vectors import Applied, ConceptVector, apply_vectors, load_vectors
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE
from conceptkit.report.wording import number
from conceptkit.runs.opening import at_stage, find_study
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable, as_table
from conceptkit.tables.resolution import ALIKE, microns_per_pixel
from conceptkit.tables.study import Study, table_study

MANY = 0.2
"""Share of patches out of range from which a note doubts that the vectors suit them"""


@dataclass(frozen=True)
class VectorPredictions:
    """Predictions of a probe's vectors, before they are written."""

    frame: pd.DataFrame
    """One row per patch, with :data:`conceptkit.commands.predict.CARRIED` columns"""
    study: str
    concepts: dict[str, dict[str, Any]]
    """Concept → ``unit``, ``score`` and ``coverage``"""


def predict_vectors(
    options: Predict, study: Any, carried: Sequence[str], progress: Progress | None
) -> VectorPredictions:
    """Predict the concepts of a probe's vectors on patches; draw maps where they are requested.

    Parameters
    ----------
    carried : columns of the table that are copied

    Raises
    ------
    InputError
        when there are no such vectors, they suit neither the features nor the patches, or a patch cannot be read
    """
    vectors = _chosen(options)
    origin = vectors[0].origin
    for vector in vectors:
        vector.check_intervals()
    study, table, skipped, notes = _patches(options, study, vectors[0], progress)
    if options.maps is not None:
        check_maps(table, Path(options.maps))
    check_export(table.frame.columns, options.qupath)
    features = _features(options, study, table, vectors[0])
    check_same(origin, features.origin(), features.made_by)
    notes += _check_size(vectors[0], table)
    layer = origin.layer
    step = None if progress is None else at_stage(progress, "reading activations")
    X = features.read(np.arange(len(table)), [layer], progress=step)[layer]
    applied = apply_vectors(vectors, X)
    place: dict[str, Any] = {"patch_id": table.patch_ids}
    place |= {name: table.frame[name].to_numpy() for name in carried if name in table.frame}
    frame = pd.DataFrame({**place, **_columns(vectors, applied)})
    frame.attrs["skipped"] = skipped
    frame.attrs["notes"] = [
        *notes,
        *features.notes(),
        *_range_notes(applied),
        *notes_of_new_centers(str(options.probe), table, frame),
    ]
    if options.maps is not None:
        named = {vector.facts.concept + PREDICTED: vector for vector in vectors}
        write_maps(
            frame,
            table,
            list(named),
            Path(options.maps),
            units={name: vector.facts.unit for name, vector in named.items()},
            scores={name: held_out_text(vector) for name, vector in named.items()},
        )
    if options.qupath is not None:
        more = {name: table.frame[name].to_numpy() for name in ("image", study.label) if name in table.frame}
        units = {vector.facts.concept + PREDICTED: vector.facts.unit for vector in vectors}
        export_patches(frame.assign(**more), table.folder, options.qupath, units=units)
    return VectorPredictions(frame, study.name, {vector.facts.concept: _stated(vector) for vector in vectors})


def held_out_text(vector: ConceptVector) -> HeldOut:
    """Return the held-out score of a vector for the title of its map."""
    facts = vector.facts
    name = {"r2": "R²", "balanced_accuracy": "balanced accuracy"}.get(facts.metric, facts.metric)
    ends = f" [{number(facts.score_low)}, {number(facts.score_high)}]" if np.isfinite(facts.score_low) else ""
    return HeldOut(f"held-out {name} = {number(facts.score)}{ends}", facts.score > facts.chance + READABLE_ABOVE_CHANCE)


def _chosen(options: Predict) -> list[ConceptVector]:
    """Return the vectors of one layer and of the requested concepts."""
    vectors = load_vectors(str(options.probe))
    if options.layer is None and len(vectors.layers) > 1:
        raise InputError(f"layer: the probe has several; set --layer to one of {', '.join(vectors.layers)}.")
    layer = check_choice("layer", options.layer or vectors.layers[0], vectors.layers)
    known = [concept for at, concept in vectors if at == layer]
    return [vectors[layer, concept] for concept in options.concepts or known]


def _patches(
    options: Predict, study: Any, vector: ConceptVector, progress: Progress | None
) -> tuple[Study, PatchTable, list[tuple[str, str]], list[str]]:
    """Return study and table of the patches, what is skipped with the reason, and notes."""
    if options.slides:
        if options.table is not None or study is not None:
            raise InputError("slides: the patches are cut from the slides; leave out --table and --study.")
        tiled, notes = _tiled(options, vector, progress)
        cut = table_study(tiled.path)
        return cut, cut.load_table(), tiled.skipped, notes
    if options.table is None and study is None and options.features is not None:
        path = Path(options.features)
        frame = (
            pd.DataFrame({"patch_id": open_activations(path).patch_ids}) if is_store(path) else rows_of_features(path)
        )
        bare = dataclasses.replace(table_study(as_table(frame)), name=path.name)
        return bare, bare.load_table(), [], []
    found = find_study(study, options.table)
    return found, found.load_table(), [], []


@dataclass(frozen=True)
class _Tiled:
    path: Path
    skipped: list[tuple[str, str]]


def _tiled(options: Predict, vector: ConceptVector, progress: Progress | None) -> tuple[_Tiled, list[str]]:
    """Cut slides as the patches of the probe were; the table stays in the cache folder."""
    origin = vector.origin
    if origin.source != "network":
        raise InputError(
            f"slides: the vectors were fitted on {origin.model} without its network; name --features of these slides."
        )
    if origin.finest is None or origin.coarsest is None or origin.side is None:
        raise InputError(
            "slides: the patches of the probe have no mpp, so none can be cut like them; name a --table of patches."
        )
    if origin.coarsest > origin.finest * (1 + ALIKE):
        raise InputError(
            f"slides: the patches of the probe have {origin.finest:.4g} to {origin.coarsest:.4g} µm per pixel; name a "
            "--table of patches of these resolutions."
        )
    mpp = float(np.sqrt(origin.finest * origin.coarsest))
    key = hashlib.sha256("\n".join([*map(str, options.slides), f"{mpp:.6g} {origin.side}"]).encode()).hexdigest()[:24]
    path = cache_folder() / "tiles" / f"{key}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    tiled = run_tile(options.slides, out=path, size=origin.side, tile_mpp=mpp, progress=progress)
    note = f"Slides were cut into tiles of {origin.side} pixels of {mpp:.4g} µm, as the patches of the probe."
    return _Tiled(path, list(tiled.skipped)), [note]


def _features(options: Predict, study: Study, table: PatchTable, vector: ConceptVector) -> Features:
    """Open the features of the patches: those of the options, of the table, or of the network of the probe."""
    origin = vector.origin
    given = options.features is not None or "features" in table.frame.columns
    if origin.source != "network" and not given:
        raise InputError(
            f"features: the vectors were fitted on {origin.model} ({origin.weights}); name --features of the same "
            "encoder."
        )
    if origin.source == "network" and options.features is None:
        study = dataclasses.replace(study, model=origin.model, weights=origin.weights)
        return open_features(
            table,
            study,
            layers=[origin.layer],
            pool=origin.pool,
            batch_size=options.batch_size,
            device=options.device,
        )
    files = None if "features" in table.frame.columns else options.features
    layers = [origin.layer] if origin.source != "files" else None
    return open_features(table, dataclasses.replace(study, model=None), layers=layers, features=files, pool=origin.pool)


def _check_size(vector: ConceptVector, table: PatchTable) -> list[str]:
    """Return notes on patches whose size cannot be compared with those of the probe; refuse another."""
    origin, mpp = vector.origin, microns_per_pixel(table)
    if origin.finest is None or origin.coarsest is None:
        return ["RESOLUTION: the probe does not state its µm per pixel, so it was not compared with these patches."]
    cut = f"cut them at {origin.finest:.4g} µm per pixel" + (
        f" with {origin.side} pixels a side" if origin.side else ""
    )
    far = (mpp < origin.finest / (1 + ALIKE)) | (mpp > origin.coarsest * (1 + ALIKE))
    if far.any():
        ends = f"{origin.finest:.4g}" + (f" to {origin.coarsest:.4g}" if origin.coarsest > origin.finest else "")
        raise InputError(
            f"table: {int(far.sum())} of {len(mpp)} patches have {mpp[far].min():.4g} to {mpp[far].max():.4g} µm per "
            f"pixel, those of the probe {ends}; {cut}."
        )
    if origin.side is not None and origin.source == "network" and table.location is not None:
        side = table.pixels(0).shape[0]
        if side != origin.side:
            raise InputError(f"table: patches have {side} pixels a side, those of the probe {origin.side}; {cut}.")
    unknown = int(np.isnan(mpp).sum())
    if unknown:
        return [f"RESOLUTION: {unknown} of {len(mpp)} patches have no mpp to compare with that of the probe."]
    return []


def _columns(vectors: Sequence[ConceptVector], applied: Applied) -> dict[str, NDArray[Any]]:
    """Return the columns of predictions, and whether a patch is out of range."""
    columns: dict[str, NDArray[Any]] = {}
    for at, vector in enumerate(vectors):
        facts, found = vector.facts, applied.predicted(vector, at)
        columns[facts.concept + PREDICTED] = found
        if facts.kind == "continuous":
            columns[f"{facts.concept}_low"], columns[f"{facts.concept}_high"] = found - facts.reach, found + facts.reach
        else:
            columns[f"{facts.concept}_set"] = _sets(vector.possible(applied.raw[at]), facts.classes)
    return {**columns, "out_of_range": applied.out_of_range}


def _sets(possible: NDArray[np.bool_], classes: Sequence[str]) -> NDArray[Any]:
    """Return the classes (n,) that are possible (n, k), joined by a bar."""
    kinds, at = np.unique(possible, axis=0, return_inverse=True)
    names = ["|".join(name for name, there in zip(classes, kind, strict=True) if there) for kind in kinds]
    return np.asarray(names, dtype=object)[at.ravel()]


def _range_notes(applied: Applied) -> list[str]:
    share = float(applied.out_of_range.mean())
    if share <= MANY:
        return []
    return [
        f"OUT OF RANGE: {share:.0%} of the patches are unlike those of the probe (1 % is usual): another scanner, "
        "stain, tissue or encoder. Their predictions are extrapolations, and the intervals do not hold for them."
    ]


def _stated(vector: ConceptVector) -> dict[str, Any]:
    return {"unit": vector.facts.unit, "score": vector.facts.score, "coverage": vector.facts.coverage}
