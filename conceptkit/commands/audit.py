"""Auditing: whether a concept is really gone from a network, from its input to its logit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_distinct
from conceptkit.evaluate.scores import auc, balanced_accuracy
from conceptkit.guide.goals import Goal
from conceptkit.guide.latent import with_latent
from conceptkit.records.audit import AuditLayer, AuditLevel, AuditRecord, AuditRow
from conceptkit.report.judging import SIGNIFICANT
from conceptkit.runs.context import center_column, placed_in, table_targets
from conceptkit.runs.opening import (
    Progress,
    at_stage,
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
    from conceptkit.models.guided import Task
    from conceptkit.probe.targets import Target

ALL = "all"
"""Stands for every row that the network was not trained on."""

INPUT, LOGIT = "input", "logit"
"""Places that are no layers: plain pixel statistics, and the main task's output."""

INNER = "backbone."
"""Begins the names of a guided network's own backbone."""

BLOCKS = 3
"""Blocks of the backbone that are audited by default, evenly spaced, the last one among them."""


@in_own_folder("audit")
def run_audit(
    checkpoint: str | Path,
    concept: str,
    *,
    study: Study | str | Path | None = None,
    layers: Sequence[str] | None = None,
    table: str | Path | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    split: str | None = None,
    folds: int = 5,
    permutations: int = 1000,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AuditRecord:
    """Read a concept by fresh linear, non-linear and kernel probes at every place of a guided network.

    Parameters
    ----------
    checkpoint : folder that ``guide`` wrote
    concept : column of the table, or ``latent:3`` for domains proposed from stain, as :func:`run_guide` has them
    study, table, group, categorical : as for :func:`run_probe`
    layers : names; ``None`` for blocks of the backbone and the trunk. Input and logit are always there
    split : the split whose rows are used; ``None`` for all rows outside training and validation, ``all`` too
    folds : of the cross-validation of the probes, by group
    permutations : of the concept's values; the linear probe is fitted again to each
    seed : of what is drawn
    device, batch_size, out, progress : as for :func:`run_probe`

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.features.activations import read_activations
    from conceptkit.features.pixels import read_pixel_statistics
    from conceptkit.models.checkpoints import checkpoint_notes, is_checkpoint, load_checkpoint
    from conceptkit.models.guided import MAIN, GuidedModel
    from conceptkit.models.inference import choose_device
    from conceptkit.probe.folds import make_folds
    from conceptkit.probe.permutation import level_of
    from conceptkit.probe.remnants import READERS, a_distance, cost_of_erasure, read_remnant, scores_within
    from conceptkit.probe.targets import check_activations

    check_at_least("permutations", permutations, 0)
    check_at_least("seed", seed, 0)
    if not is_checkpoint(checkpoint):
        raise InputError(f"checkpoint: {checkpoint} is no folder that guide wrote; name one with a checkpoint.json.")
    meant, data = open_study(study, table, None, None, group, categorical, opens_model=False)
    folder = run_folder(out, "audit")
    backbone = load_checkpoint(checkpoint)
    model = backbone.module
    if not isinstance(model, GuidedModel):
        raise InputError(f"checkpoint: {checkpoint} holds no guided network.")
    tasks = {task.name: task for task in model.tasks}
    keep, groups = _rows(data, meant, split), data.groups(meant.group)
    numbers = None if groups is None else np.unique(groups[keep].astype(str), return_inverse=True)[1]
    make_folds(int(keep.sum()), numbers, folds)  # before latent domains are read from pixels, or from activations
    data, (goal,), latent = with_latent(data, meant, [Goal(concept, None, discouraged=True)], progress=progress)
    concept = goal.concept
    data.column("concept", concept)
    if concept == meant.label:
        raise InputError(f"concept: {concept} is the main task itself.")
    center = center_column(data, None)
    placing = {**placed_in(data, meant, center=center), "seed": seed}
    (target,), skipped = table_targets(data, [concept], keep, groups, folds, placing)
    rows = target.rows
    names = list(layers) if layers else _default_layers(backbone)
    check_distinct("layer", names)
    head = f"heads.{MAIN}"
    activations = read_activations(
        data,
        backbone,
        [*names, head],
        cache=cache_folder(),
        rows=rows,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else at_stage(progress, "reading activations"),
    )
    logits = activations.pop(head).astype(np.float64)
    places: dict[str, NDArray[np.float64]] = {}
    statistics = read_pixel_statistics(data, rows, cache=cache_folder())
    if statistics is not None:
        places[INPUT] = statistics
    places |= {name: activations[name].astype(np.float64) for name in names}
    places[LOGIT] = logits
    label = _label_codes(data, meant, tasks[MAIN], rows)
    n_classes = len(tasks[MAIN].classes)
    score = logits[:, 0] if logits.shape[1] == 1 else logits
    found: list[AuditRow] = []
    whole: list[AuditLayer] = []
    notes = [*checkpoint_notes(backbone, data), *notes_on(meant, data, [concept]), *skipped]
    notes += [latent.note()] if latent else []
    for k, (place, X) in enumerate(places.items()):
        check_activations(X, place)
        if progress is not None:
            progress("probing", k, len(places))
        for erased in (False, True) if place != LOGIT else (False,):
            for reader in READERS:
                one = read_remnant(X, target, reader, erased=erased, folds=folds, permutations=permutations, seed=seed)
                found.append(
                    AuditRow(
                        layer=place,
                        probe=reader,
                        erased=erased,
                        n=len(rows),
                        n_groups=target.n_groups,
                        width=X.shape[1],
                        metric=target.metric,
                        score=one.score,
                        low=one.low,
                        high=one.high,
                        chance=target.chance,
                        p=one.p,
                        permuted=one.permuted,
                        interval_note=one.note,
                        p_between=one.p_between if math.isfinite(one.p_between) else None,
                        p_within=one.p_within if math.isfinite(one.p_within) else None,
                        decided_by=one.decided_by,
                    )
                )
        before, after = cost_of_erasure(X, target, label, n_classes, folds=folds) if place != LOGIT else (np.nan,) * 2
        distance = a_distance(X, target, folds=folds) if target.kind == "categorical" else float("nan")
        whole.append(AuditLayer(layer=place, a_distance=distance, label_auc=before, label_auc_erased=after))
    if progress is not None:
        progress("probing", len(places), len(places))
    wide = [name for name, X in places.items() if X.shape[1] > len(rows) / 5]
    if wide:
        notes.append(
            f"Erasure is uncertain at {', '.join(wide)}: more than a fifth as many numbers as rows, so that what is "
            "fitted on some patients does not hold for others."
        )
    # Holm multiplies the least p, 1 / (permutations + 1), by the number of probes; two levels have doubled it.
    least = len(READERS) * (2 if level_of(target).both else 1) / SIGNIFICANT
    if 0 < permutations < least:
        notes.append(
            f"{permutations} permutations are too few for any probe to reach significance: set {least:.0f} or more."
        )
    labelled = label >= 0
    own = list(data.concept(concept).values[rows])
    levels = scores_within(label, score, own) if target.kind == "categorical" else {}
    record = AuditRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=tuple(notes),
        settings={
            "command": "audit",
            "table": meant.table.name,
            "checkpoint": str(checkpoint),
            "weights_sha256": backbone.fingerprint(),
            "group": meant.group,
            "categorical": list(categorical),
            "concept": concept,
            "layers": list(places),
            "split": split or ALL,
            "center": center,
            "folds": folds,
            "permutations": permutations,
            "seed": seed,
            "device": str(choose_device(device)),
            "batch_size": batch_size,
        },
        versions=versions(),
        folder=folder,
        concept=concept,
        kind=target.kind,
        discouraged=concept in tasks and tasks[concept].adversarial,
        head=_head_score(data, backbone, target, tasks.get(concept), batch_size, device),
        rows=tuple(found),
        layers=tuple(whole),
        levels=tuple(AuditLevel(level=k, n=n, auc=value) for k, (n, value) in levels.items()),
        auc=auc(label[labelled], score[labelled]) if labelled.any() else float("nan"),
    )
    record.save(folder)
    return record


def _rows(data: PatchTable, meant: Study, split: str | None) -> NDArray[np.bool_]:
    """Return the rows that the network was not trained on, or those of one split."""
    if split not in (None, ALL):
        return split_rows(data, meant, split)
    if meant.splits.column not in data.frame.columns:
        return np.ones(len(data), dtype=bool)
    column = data.frame[meant.splits.column]
    outside = (column.notna() & ~column.astype("str").isin([meant.splits.train, meant.splits.val])).to_numpy(dtype=bool)
    if not outside.any():
        raise InputError(
            f"split: no row lies outside {meant.splits.train} and {meant.splits.val}; name one by --split."
        )
    return outside


def _default_layers(backbone: Backbone) -> list[str]:
    """Return some direct parts of the backbone that give maps, evenly spaced by depth, and the trunk."""
    import torch

    from conceptkit.models.layers import list_layers

    side = backbone.preprocessing.size or 224
    met = list_layers(backbone.module, backbone.aliases, torch.zeros(1, 3, side, side))
    names = [one.name.removeprefix(INNER) for one in met if one.name.startswith(INNER) and len(one.shape or ()) == 3]
    blocks = [name for name in names if "." not in name]
    step = max(1, len(blocks) // BLOCKS)
    return [*blocks[::-1][::step][:BLOCKS][::-1], "trunk"]


def _label_codes(data: PatchTable, meant: Study, main: Task, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    if meant.label not in data.frame.columns:
        return np.full(len(rows), -1)
    values = data.with_kinds({meant.label: "categorical"}).concept(meant.label).values[rows]
    number = {name: code for code, name in enumerate(main.classes)}
    return np.array([-1 if v is None else number.get(str(v), -1) for v in values])


def _head_score(
    data: PatchTable,
    backbone: Backbone,
    target: Target,
    task: Task | None,
    batch_size: int,
    device: str,
) -> float | None:
    """Return the score of the network's own head, over rows of a class that it has; ``None`` without a head."""
    from conceptkit.features.activations import read_activations
    from conceptkit.models.guided import CONTINUOUS

    if task is None or task.kind != target.kind:
        return None
    name = f"heads.{task.name}"
    read = read_activations(
        data, backbone, [name], cache=cache_folder(), rows=target.rows, batch_size=batch_size, device=device
    )[name].astype(np.float64)
    if task.kind == CONTINUOUS:
        return target.score(read[:, 0] * task.deviation + task.mean)
    number = {name: code for code, name in enumerate(task.classes)}
    known = np.array([number.get(target.classes[code], -1) for code in target.y.astype(np.intp)])
    rows = known >= 0
    return balanced_accuracy(known[rows], read[rows].argmax(1), len(task.classes)) if rows.any() else None
