"""Probing: from a study, layers and concepts to a record of held-out scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_distinct
from conceptkit.records import ProbeRecord, ProbeRow
from conceptkit.study import Study
from conceptkit.synthetic import cache_folder
from conceptkit.workflow.opening import N_RESAMPLES, Progress, notes_on, open_study, run_folder, split_rows, versions

if TYPE_CHECKING:
    from conceptkit.models.backbones import Backbone

RANDOM_NETWORKS = 3
"""Networks of random weights whose mean score is the control."""


def run_probe(
    study: Study | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    split: str | None = None,
    pool: str = "gap",
    folds: int = 5,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> ProbeRecord:
    """Measure how well concepts are read from layers of a network, on patients that the vectors have not seen.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    layers, concepts : names; ``None`` for the study's
    table, model, weights, group : instead of the study's; a model without weights means ``imagenet``
    categorical : concepts to take as classes whatever their type
    split : the only split whose rows are used; ``None`` for all rows
    pool : ``gap``, ``max`` or ``flatten``
    folds : of the cross-validation
    seed : of the resamples, the shuffled patch-wise folds and the random networks
    device : ``auto``, ``cpu``, ``cuda``, …
    batch_size : images per forward pass
    out : run folder; ``None`` for the next free ``runs/probe-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used; nothing is written then
    """
    from conceptkit.models.activations import read_activations
    from conceptkit.models.checkpoints import open_model, random_control
    from conceptkit.probe.validation import batches, check_activations, held_out, make_target, validate

    meant, data = open_study(study, table, model, weights, group, categorical)
    folder = run_folder(out, "probe")
    layers = list(layers or meant.layers)
    concepts = list(concepts or meant.concepts or data.concept_names)
    check_distinct("layer", layers)
    check_distinct("concept", concepts)
    keep = split_rows(data, meant, split)
    groups = data.groups(meant.group)
    targets = []
    for name in concepts:
        concept = data.concept(name)
        missing: Any = np.nan if concept.kind == "continuous" else None
        targets.append(make_target(name, concept.kind, np.where(keep, concept.values, missing), groups))
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    notes = notes_on(meant, data, concepts)
    backbone = open_model(meant.model, meant.weights, seed=seed)
    rows = np.unique(np.concatenate([t.rows for t in targets]))
    place = np.full(len(data), -1)
    place[rows] = np.arange(len(rows))

    def activations(network: Backbone, what: str) -> dict[str, NDArray[np.float32]]:
        return read_activations(
            data,
            network,
            layers,
            cache=cache_folder(),
            rows=rows,
            pool=pool,
            batch_size=batch_size,
            device=device,
            progress=None if progress is None else lambda done, todo: progress(what, done, todo),
        )

    trained = activations(backbone, "reading activations")
    controls = []
    for i in range(RANDOM_NETWORKS):
        control = random_control(meant.model, backbone, seed=seed + 1 + i)
        controls.append(activations(control, f"random network {i + 1} of {RANDOM_NETWORKS}"))
    found: list[ProbeRow] = []
    parts = batches(targets)
    for done, (layer, part) in enumerate((layer, part) for layer in layers for part in parts):
        if progress is not None:
            progress("probing", done, len(layers) * len(parts))
        at = place[part[0].rows]
        X = trained[layer][at].astype(np.float64)
        check_activations(X, layer)
        results = validate(X, part, folds=folds, n_resamples=N_RESAMPLES, seed=seed)
        random_scores = []
        for control_activations in controls:
            Z = control_activations[layer][at].astype(np.float64)
            check_activations(Z, f"{layer} of a random network")
            predicted = held_out(Z, part, folds=folds)
            random_scores.append([t.score(p) for t, p in zip(part, predicted, strict=True)])
        for target, result, random_score in zip(part, results, np.mean(random_scores, axis=0), strict=True):
            found.append(
                ProbeRow(
                    model=backbone.name,
                    weights=backbone.weights,
                    layer=layer,
                    concept=target.name,
                    kind=target.kind,
                    n=len(target.y),
                    n_groups=target.n_groups,
                    folds=folds,
                    metric=target.metric,
                    score=result.score,
                    score_low=result.low,
                    score_high=result.high,
                    score_in_sample=result.in_sample,
                    score_patchwise=result.patchwise,
                    score_random_network=float(random_score),
                    chance=target.chance,
                    alpha=result.alpha,
                )
            )
    if progress is not None:
        progress("probing", len(layers) * len(parts), len(layers) * len(parts))
    order = {key: i for i, key in enumerate((layer, concept) for layer in layers for concept in concepts)}
    record = ProbeRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=notes,
        settings={
            "command": "probe",
            "table": meant.table.name,
            "model": meant.model,
            "weights": backbone.weights,
            "weights_sha256": backbone.fingerprint(),
            "layers": layers,
            "concepts": concepts,
            "split": split,
            "pool": pool,
            "folds": folds,
            "seed": seed,
            "batch_size": batch_size,
            "n_resamples": N_RESAMPLES,
        },
        versions=versions(),
        folder=folder,
        rows=tuple(sorted(found, key=lambda row: order[row.layer, row.concept])),
    )
    record.save(folder)
    return record
