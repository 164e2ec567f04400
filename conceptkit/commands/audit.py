"""Auditing: whether a concept is really gone from a network, from its input to its logit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_distinct
from conceptkit.evaluate.scores import auc, balanced_accuracy
from conceptkit.families import PROBES
from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import (
    PIXELS,
    TRUNK,
    Features,
    NetworkFeatures,
    PixelFeatures,
    open_features,
)
from conceptkit.guide.goals import Goal
from conceptkit.guide.latent import with_latent
from conceptkit.models.backbones import Backbone
from conceptkit.models.checkpoints import TRAINED, is_adapter_folder, is_checkpoint, load_checkpoint
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task
from conceptkit.models.inference import choose_device
from conceptkit.models.layers import list_layers
from conceptkit.options.audit import Audit
from conceptkit.options.base import Notify, Progress
from conceptkit.probe.folds import make_folds
from conceptkit.probe.permutation import level_of
from conceptkit.probe.remnants import Remnant, a_distance, cost_of_erasure, read_remnants, scores_within
from conceptkit.probe.targets import Target, check_activations
from conceptkit.records.audit import AuditLayer, AuditLevel, AuditRecord, AuditRow
from conceptkit.report.judging import SIGNIFICANT
from conceptkit.runs.context import center_column, placed_in, table_targets
from conceptkit.runs.opening import at_stage, header, in_own_folder, notes_on, open_source, run_folder, split_rows
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

ALL = "all"
"""Stands for every row that the network was not trained on."""

INPUT, LOGIT = "input", "logit"
"""Places other than layers: plain pixel statistics, and the output of the main task."""

LOGIT_LAYER = f"heads.{MAIN}"
"""The layer that is the place of the logit"""

INNER = "backbone."
"""Begins the names of a guided network's own backbone."""

BLOCKS = 3
"""Blocks of the backbone that are audited by default, evenly spaced, the last one among them."""


@in_own_folder("audit")
def audit(
    options: Audit,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> AuditRecord:
    """Decode a concept by fresh linear, non-linear and kernel probes at every place of a network, or from features."""
    opens = options.checkpoint is None and options.features is None
    study, table = open_source(options, study, opens_model=opens)
    folder = run_folder(out, options.name)
    _check_source(options)
    keep, groups = _rows(table, study, options.split), table.groups(study.group)
    numbers = None if groups is None else np.unique(groups[keep].astype(str), return_inverse=True)[1]
    # Before latent domains are computed from pixels or activations, and the network, which reads an image, is opened.
    make_folds(int(keep.sum()), numbers, options.folds)
    goals = [Goal(options.concept, None, discouraged=True)]
    table, (goal,), latent = with_latent(table, study, goals, progress=progress)
    concept = goal.concept
    table.column("concept", concept)
    if concept == study.label:
        raise InputError(f"concept: {concept} is the main task itself.")
    center = center_column(table, None)
    placing = {**placed_in(table, study, center=center, nested=options.nested), "seed": options.seed}
    (target,), skipped = table_targets(table, [concept], keep, groups, options.folds, placing)
    features, tasks = _open(options, study, table)
    places = _read_places(features, target.rows, progress)
    classes = tasks[MAIN].classes if tasks else _classes(table, study, target.rows)
    label = _label_codes(table, study, classes, target.rows)
    score = _scores(places[LOGIT]) if tasks else np.full(len(label), np.nan)
    rows, costs = _probe_places(options, places, target, label, len(classes), progress)
    labelled = (label >= 0) & bool(tasks)
    levels = {}
    if target.kind == "categorical" and tasks:
        levels = scores_within(label, score, list(table.concept(concept).values[target.rows]))
    record = AuditRecord(
        **header(
            options,
            study,
            folder,
            (
                *features.notes(),
                *notes_on(study, table, [concept]),
                *skipped,
                *([latent.note()] if latent else []),
                *_limits(options, places, target),
            ),
            weights_sha256=features.digest(),
            layers=[name for name in features.layers if name != LOGIT_LAYER],
            split=options.split or ALL,
            center=center,
            device=str(choose_device(options.device)),
        ),
        concept=concept,
        kind=target.kind,
        discouraged=concept in tasks and tasks[concept].adversarial,
        head=_head_score(features, target, tasks.get(concept)),
        rows=rows,
        layers=costs,
        levels=tuple(AuditLevel(level=k, n=n, auc=value) for k, (n, value) in levels.items()),
        auc=auc(label[labelled], score[labelled]) if labelled.any() else float("nan"),
    )
    record.save(folder)
    return record


def _check_source(options: Audit) -> None:
    """Refuse options that name no network or features, before anything is read."""
    if options.layers is not None:
        check_distinct("layer", options.layers)
    if options.checkpoint is None:
        return
    if options.model is not None:
        raise InputError(f"model: got {options.model} and the checkpoint {options.checkpoint}; name one of them.")
    if not is_checkpoint(options.checkpoint):
        raise InputError(f"checkpoint: {options.checkpoint} is not a `guide` checkpoint; it has no checkpoint.json.")
    if options.features is not None and not is_adapter_folder(options.checkpoint):
        raise InputError(f"features: {options.checkpoint} is a network on images; drop --features, or name an adapter.")


def _open(options: Audit, study: Study, table: PatchTable) -> tuple[Features, dict[str, Task]]:
    """Return the features of all places but the pixel statistics, and the tasks of a guided network by name."""
    if options.checkpoint is None:
        opened = open_features(
            table,
            study,
            layers=options.layers,
            features=options.features,
            batch_size=options.batch_size,
            device=options.device,
            seed=options.seed,
        )
        return opened, _tasks(opened)
    if is_adapter_folder(options.checkpoint):
        layers = [*(options.layers or (LAYER, TRUNK)), LOGIT_LAYER]
        adapter = study.replace(model=str(options.checkpoint), weights=TRAINED)
        opened = open_features(table, adapter, layers=layers, features=options.features)
        return opened, _tasks(opened)
    backbone = load_checkpoint(options.checkpoint)
    layers = [*(options.layers or _default_layers(backbone)), LOGIT_LAYER]
    opened = NetworkFeatures(table, backbone, layers, batch_size=options.batch_size, device=options.device)
    return opened, _tasks(opened)


def _tasks(features: Features) -> dict[str, Task]:
    """Return the tasks of a guided network whose main output is read."""
    if LOGIT_LAYER not in features.layers:
        return {}
    model = features.network().module
    return {task.name: task for task in model.tasks} if isinstance(model, GuidedModel) else {}


def _read_places(
    features: Features, rows: NDArray[np.intp], progress: Progress | None
) -> dict[str, NDArray[np.float64]]:
    """Return place → (n, d) features of the rows there, from pixel statistics to the logit."""
    step = None if progress is None else at_stage(progress, "reading activations")
    found = PixelFeatures(features.table).read(rows) | features.read(rows, progress=step)
    names = {PIXELS: INPUT, LOGIT_LAYER: LOGIT}
    places = {names.get(name, name): np.asarray(X, np.float64) for name, X in found.items()}
    for name, X in places.items():
        check_activations(X, name)
    return places


def _probe_places(
    options: Audit,
    places: Mapping[str, NDArray[np.float64]],
    target: Target,
    label: NDArray[np.intp],
    n_classes: int,
    progress: Progress | None,
) -> tuple[tuple[AuditRow, ...], tuple[AuditLayer, ...]]:
    """Return every fresh probe's score at every place, and what erasing the concept there costs the main task."""
    rows, costs = [], []
    for k, (place, X) in enumerate(places.items()):
        if progress is not None:
            progress("probing", k, len(places))
        for erased in (False, True) if place != LOGIT else (False,):
            found = read_remnants(
                X,
                target,
                erased=erased,
                folds=options.folds,
                permutations=options.permutations,
                seed=options.seed,
            )
            rows += [_row(place, X.shape[1], target, reader, erased, one) for reader, one in found.items()]
        before, after = (np.nan, np.nan)
        if place != LOGIT and n_classes > 1:
            before, after = cost_of_erasure(X, target, label, n_classes, folds=options.folds)
        distance = a_distance(X, target, folds=options.folds) if target.kind == "categorical" else float("nan")
        costs.append(AuditLayer(layer=place, a_distance=distance, label_auc=before, label_auc_erased=after))
    if progress is not None:
        progress("probing", len(places), len(places))
    return tuple(rows), tuple(costs)


def _row(place: str, width: int, target: Target, reader: str, erased: bool, one: Remnant) -> AuditRow:
    tested = one.tested
    return AuditRow(
        layer=place,
        probe=reader,
        erased=erased,
        n=len(target.rows),
        n_groups=target.n_groups,
        width=width,
        metric=target.metric,
        score=one.score,
        low=one.interval.low,
        high=one.interval.high,
        chance=target.chance,
        p=tested.p,
        permuted=tested.permuted,
        interval_note=one.interval.note,
        p_between=tested.p_between if math.isfinite(tested.p_between) else None,
        p_within=tested.p_within if math.isfinite(tested.p_within) else None,
        decided_by=tested.decided_by,
        assumed=tested.assumed,
    )


def _limits(options: Audit, places: Mapping[str, NDArray[np.float64]], target: Target) -> Iterator[str]:
    """Yield notes on what the rows and permutations are too few for."""
    wide = [name for name, X in places.items() if X.shape[1] > len(target.rows) / 5]
    if wide:
        yield (
            f"Erasure is uncertain at {', '.join(wide)}: the width exceeds a fifth of the rows, so that an erasure "
            "fitted on some patients does not hold for others."
        )
    # Holm multiplies the smallest p, 1 / (permutations + 1), by the number of probes; two levels have doubled it.
    least = len(PROBES) * (2 if level_of(target).both else 1) / SIGNIFICANT
    if 0 < options.permutations < least:
        yield (
            f"{options.permutations} permutations are too few for any probe to reach significance: set {least:.0f} "
            "or more."
        )


def _scores(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (n,) of two classes, or (n, c) of more."""
    return logits[:, 0] if logits.shape[1] == 1 else logits


def _rows(table: PatchTable, study: Study, split: str | None) -> NDArray[np.bool_]:
    """Return the rows that the network was not trained on, or those of one split."""
    if split not in (None, ALL):
        return split_rows(table, study, split)
    if study.splits.column not in table.frame.columns:
        return np.ones(len(table), dtype=bool)
    column = table.frame[study.splits.column]
    outside = (column.notna() & ~column.astype("str").isin([study.splits.train, study.splits.val])).to_numpy(dtype=bool)
    if not outside.any():
        raise InputError(
            f"split: no row lies outside {study.splits.train} and {study.splits.val}; name one by --split."
        )
    return outside


def _default_layers(backbone: Backbone) -> list[str]:
    """Return some direct parts of the backbone that give maps, evenly spaced by depth, and the trunk."""
    side = backbone.preprocessing.size or 224
    met = list_layers(backbone.module, backbone.aliases, torch.zeros(1, 3, side, side))
    names = [one.name.removeprefix(INNER) for one in met if one.name.startswith(INNER) and len(one.shape or ()) == 3]
    blocks = [name for name in names if "." not in name]
    step = max(1, len(blocks) // BLOCKS)
    return [*blocks[::-1][::step][:BLOCKS][::-1], "trunk"]


def _classes(table: PatchTable, study: Study, rows: NDArray[np.intp]) -> tuple[str, ...]:
    """Return the classes of the table's label among some rows, none without labels."""
    if study.label not in table.frame.columns:
        return ()
    values = table.with_kinds({study.label: "categorical"}).concept(study.label).values[rows]
    return tuple(sorted({str(v) for v in values if v is not None}))


def _label_codes(table: PatchTable, study: Study, classes: Sequence[str], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    if study.label not in table.frame.columns:
        return np.full(len(rows), -1)
    values = table.with_kinds({study.label: "categorical"}).concept(study.label).values[rows]
    number = {name: code for code, name in enumerate(classes)}
    return np.array([-1 if v is None else number.get(str(v), -1) for v in values])


def _head_score(features: Features, target: Target, task: Task | None) -> float | None:
    """Return the score of the network's own head, over rows of a class that it has; ``None`` without a head."""
    if task is None or task.kind != target.kind:
        return None
    name = f"heads.{task.name}"
    read = np.asarray(features.read(target.rows, [name])[name], np.float64)
    if task.kind == CONTINUOUS:
        return target.score(read[:, 0] * task.deviation + task.mean)
    number = {name: code for code, name in enumerate(task.classes)}
    known = np.array([number.get(target.classes[code], -1) for code in target.y.astype(np.intp)])
    rows = known >= 0
    return balanced_accuracy(known[rows], read[rows].argmax(1), len(task.classes)) if rows.any() else None
