"""Probing: from a study, layers and concepts to a record of held-out scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_choice, check_distinct
from conceptkit.features.store_files import size_text
from conceptkit.options.base import Progress
from conceptkit.records import ProbeRecord
from conceptkit.runs.context import (
    LEFT_OUT_PARTS,
    center_column,
    default_concepts,
    names_kept,
    placed_in,
    table_targets,
    text_of,
    write_context,
)
from conceptkit.runs.opening import (
    N_RESAMPLES,
    in_own_folder,
    notes_on,
    open_study,
    run_folder,
    split_rows,
    versions,
)
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.models.backbones import Backbone

RANDOM_NETWORKS = 3
"""Networks of random weights whose mean score is the control."""

STAIN = "stain"
"""Stands for every column of stain measures among the confounders."""


@in_own_folder("probe")
def run_probe(
    study: Study | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    features: str | Path | None = None,
    group: str | None = None,
    center: str | None = None,
    nested: str | None = None,
    categorical: Sequence[str] = (),
    split: str | None = None,
    pool: str = "gap",
    folds: int = 5,
    permutations: int = 1000,
    adjust: Sequence[str] = (),
    adjust_terms: str = "linear",
    leave_out: str | None = None,
    repeat: Mapping[str, str] | None = None,
    protocol: str = "cross-validated",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> ProbeRecord:
    """Measure how well concepts are read from layers of a network, on patients that the vectors have not seen.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    layers, concepts : names; ``None`` for the study's
    table, model, weights, group : instead of the study's; a model without weights means ``imagenet``
    features : an activation store that ``extract`` wrote, of which ``layers`` names some (``None``: all), or a file of
        features of one's own (HDF5 of TRIDENT or CLAM, ``.npy``, Parquet), instead of a network
    center : column of the centers: groups are permuted within them, the folds are stratified by them, and each is held
        out for one more score. ``None`` for the column ``center`` where the table has it, ``none`` for no centers
    nested : column of units nested in the groups, such as slides of patients: rows are permuted within them only
    categorical : concepts to take as classes whatever their type
    split : the only split whose rows are used; ``None`` for all rows
    pool : ``gap``, ``max``, ``flatten``, ``cls`` or ``tokens``
    folds : of the cross-validation
    permutations : of each concept, for p; 0 for none
    adjust : confounders (columns) for a partial R²; ``stain`` stands for every stain measure of the table
    adjust_terms : ``linear``, or ``quadratic``: squares and pairwise interactions of the confounders too
    leave_out : column each of whose levels is held out in turn, for one more score; ``None`` for the centers, of which
        several are held out together where there are more than ten
    repeat : concept → column of its repeated measurement, for the reliability ceiling
    protocol : ``cross-validated``, or ``paper``: least squares fitted and scored on the same rows
    seed : of the folds, the resamples, the permutations and the randomly initialised networks
    device : ``auto``, ``cpu``, ``cuda``, …
    batch_size : images per forward pass
    out : run folder; ``None`` for the next free ``runs/probe-NNN``
    notify : told in a sentence how much room the activations will take, before they are read
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used; nothing is written then
    """
    from conceptkit.features.activations import read_activations, readable_layers
    from conceptkit.features.own_files import (
        LAYER,
        chosen_layers,
        has_own_features,
        open_own_store,
        read_features,
        read_store,
        with_features,
    )
    from conceptkit.features.pixels import read_pixel_statistics
    from conceptkit.models.checkpoints import checkpoint_notes, open_model, random_control
    from conceptkit.models.inference import choose_device
    from conceptkit.probe.adjustment import TERMS
    from conceptkit.probe.rows import (
        PAPER_NOTE,
        Asked,
        BaselineScores,
        Layer,
        add_random_network,
        check_protocol,
        probe_rows,
    )
    from conceptkit.probe.targets import check_activations

    check_protocol(protocol, adjust, leave_out)
    check_at_least("permutations", permutations, 0)
    check_at_least("seed", seed, 0)
    where = choose_device(device)
    meant, data = open_study(study, table, model, weights, group, categorical)
    folder = run_folder(out, "probe")
    store = None if features is None else open_own_store(features)
    if features is not None and store is None:
        data = with_features(data, features)
    own = store is None and (features is not None or has_own_features(data, meant.model))
    if store is not None:
        layers, pool = chosen_layers(store, layers), str(store.provenance.get("pool"))
    else:
        layers = list(layers or meant.layers) if not own else [LAYER]
    chosen = bool(concepts or meant.concepts)
    concepts = list(concepts or meant.concepts or default_concepts(data, meant))
    check_distinct("layer", layers)
    check_distinct("concept", concepts)
    check_choice("adjust_terms", adjust_terms, TERMS)
    keep = split_rows(data, meant, split)
    groups = data.groups(meant.group)
    center = center_column(data, center)
    placing = placed_in(data, meant, center=center, nested=nested)
    usable_folds = folds if protocol != "paper" else None
    targets, skipped = table_targets(data, concepts, keep, groups, usable_folds, {**placing, "seed": seed})
    concepts = [target.name for target in targets]
    aside = (data.aside_note,) if data.aside_note and not chosen else ()
    notes = (*notes_on(meant, data, concepts), *aside, *skipped)
    confounders = _confounders(data, adjust, concepts)
    if own_adjusted := [name for name in confounders if name in concepts]:
        notes = (*notes, f"Not adjusted for itself: {', '.join(own_adjusted)}.")
    left_out = center if leave_out is None and protocol != "paper" and _has_several(placing, keep) else leave_out
    held_out_column = None if left_out is None else (left_out, text_of(data, "leave_out", left_out))
    ceilings = _ceilings(data, repeat or {}, concepts, keep)
    if meant.model is None and features is None and not own:
        raise InputError("model: none is named, neither by --model nor in the study.")
    notes += tuple(note for name in concepts if (note := _missing_by_label(data, meant, name, keep)))
    if protocol == "paper":
        notes = (PAPER_NOTE, *notes)
    rows = np.unique(np.concatenate([t.rows for t in targets]))
    place = np.full(len(data), -1)
    place[rows] = np.arange(len(rows))

    def say_size(size: int) -> None:
        if notify is not None:
            more = f", and as much for each of {RANDOM_NETWORKS} random networks" if RANDOM_NETWORKS else ""
            notify(f"Activations will take {size_text(size)} in {cache_folder()}{more}.")

    def activations(
        network: Backbone, what: str, notify_size: Callable[[int], None] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        return read_activations(
            data,
            network,
            list(layers or ()),
            cache=cache_folder(),
            rows=rows,
            pool=pool,
            batch_size=batch_size,
            device=device,
            away=cache_folder(),
            notify=notify_size,
            progress=None if progress is None else lambda done, todo: progress(what, done, todo),
        )

    backbone: Backbone | None = None
    if store is not None:
        trained = read_store(data, store, layers, rows, away=cache_folder())
        made = store.provenance
        name, made_by, digest = str(made.get("architecture")), store.path.name, str(made.get("weights"))
    elif own:
        given = read_features(data, rows, away=cache_folder())
        name, made_by, digest = LAYER, given.name, given.digest()
        trained = {LAYER: given.X}
        notes = (*notes, *given.notes)
    else:
        backbone = open_model(str(meant.model), meant.weights, seed=seed)
        layers, on_layers = readable_layers(data, backbone, layers, pool)
        notes = (*checkpoint_notes(backbone, data), *on_layers, *notes)
        name, made_by, digest = backbone.name, backbone.weights, backbone.fingerprint()
        trained = activations(backbone, "reading activations", say_size)
        for layer in layers:  # before as much is read of each random network
            check_activations(trained[layer], layer)
    pixels = read_pixel_statistics(
        data,
        rows,
        cache=cache_folder(),
        progress=None if progress is None else lambda done, todo: progress("pixel statistics", done, todo),
    )
    asked = Asked(
        model=name,
        weights=made_by,
        folds=folds,
        permutations=permutations,
        n_resamples=N_RESAMPLES,
        seed=seed,
        protocol=protocol,
        pixels=pixels,
        confounders={name: values[rows] for name, values in confounders.items()},
        terms=adjust_terms,
        leave_out=None if held_out_column is None else (held_out_column[0], held_out_column[1][rows]),
        leave_out_parts=LEFT_OUT_PARTS if leave_out is None else None,
        ceilings=ceilings,
    )
    placed = [dataclasses.replace(target, rows=place[target.rows]) for target in targets]
    of_random: BaselineScores = {}
    if backbone is not None:
        for i in range(RANDOM_NETWORKS):
            control = random_control(str(meant.model), backbone, seed=seed + 1 + i)
            what = f"random network {i + 1} of {RANDOM_NETWORKS}"
            add_random_network(of_random, activations(control, what), placed, asked)  # one at a time in memory
    found = probe_rows(
        [Layer(name=layer, X=trained[layer]) for layer in layers],
        placed,
        asked,
        random=of_random,
        progress=None if progress is None else lambda done, todo: progress("probing", done, todo),
    )
    record = ProbeRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=notes,
        settings={
            "command": "probe",
            "table": meant.table.name,
            "model": LAYER if own else meant.model if store is None else name,
            "weights": made_by,
            "weights_sha256": digest,
            "features": None if features is None else Path(features).name,
            "group": meant.group,
            "categorical": list(categorical),
            "layers": layers,
            "concepts": concepts,
            "split": split,
            "pool": pool,
            "folds": folds,
            "permutations": permutations,
            "adjust": list(confounders),
            "adjust_terms": adjust_terms,
            "center": center,
            "nested": nested,
            "leave_out": left_out,
            "repeat": dict(repeat or {}),
            "protocol": protocol,
            "seed": seed,
            "device": str(where),
            "batch_size": batch_size,
            "n_resamples": N_RESAMPLES,
        },
        versions=versions(),
        folder=folder,
        rows=found,
    )
    write_context(
        folder,
        data,
        meant,
        rows,
        concepts=names_kept(meant, data, concepts),
        targets=placed,
        folds=folds,
    )
    record.save(folder)
    return record


def _has_several(placing: Mapping[str, Any], keep: NDArray[np.bool_]) -> bool:
    """Return whether the rows have centers to hold out."""
    centers = placing["centers"]
    return centers is not None and len({name for name in centers[keep] if name is not None}) > 1


def _confounders(data: PatchTable, adjust: Sequence[str], concepts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return confounder → (n,) numbers, or text with ``None`` where missing; ``stain`` is every stain measure."""
    names: list[str] = []
    for name in adjust:
        stains = [str(c) for c in data.frame.columns if str(c).startswith(f"{STAIN}_")]
        if name != STAIN or name in data.frame.columns:
            names.append(name)
        elif stains:
            names += stains
        else:
            raise InputError(
                f"adjust: the table has no stain measures (columns that begin with {STAIN}_); "
                "conceptkit measure IMAGES.csv --measure core,nuisances takes them."
            )
    if names:
        check_distinct("adjust", names)
    for name in names:
        data.column("adjust", name)
    if len(names) == 1 and list(concepts) == names:
        raise InputError(f"adjust: {names[0]} is probed itself; a concept cannot be adjusted for itself.")
    return {name: data.concept(name).values for name in names}


def _ceilings(
    data: PatchTable, repeat: Mapping[str, str], concepts: Sequence[str], keep: NDArray[np.bool_]
) -> dict[str, tuple[str, float, int]]:
    from conceptkit.probe.adjustment import ceiling

    found = {}
    for name, other in repeat.items():
        if name not in concepts:
            raise InputError(f"repeat: {name} is not among the concepts that are probed ({', '.join(concepts)}).")
        data.column("repeat", other)
        first, second = data.concept(name), data.concept(other)
        if first.kind != "continuous" or second.kind != "continuous":
            raise InputError(f"repeat: {name} and {other} must both be continuous.")
        found[name] = (other, *ceiling(first.values[keep], second.values[keep]))
    return found


def _missing_by_label(data: PatchTable, meant: Study, name: str, keep: NDArray[np.bool_]) -> str | None:
    """Return a sentence when a concept is missing in much more rows of one label than of another."""
    if meant.label not in data.frame.columns or name == meant.label:
        return None
    labels = text_of(data, "label", meant.label)
    missing = data.frame[name].isna().to_numpy()
    known = np.array([label is not None for label in labels]) & keep
    classes = np.unique(labels[known].astype(str))
    if not missing[known].any() or len(classes) < 2:
        return None
    shares = {str(c): float(missing[known & (labels == c)].mean()) for c in classes}
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    # A tenth of the rows: what is left then no longer stands for both classes.
    if shares[most] - shares[least] < 0.1:
        return None
    return (
        f"{name} is missing in {shares[most]:.0%} of the rows of {meant.label} {most} and in {shares[least]:.0%} of "
        f"{least}: its scores hold for the rows that have it, and say less of the others."
    )
