"""Guiding: a baseline and a guided network trained alike, and what guiding changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_distinct
from conceptkit.patches import PatchTable
from conceptkit.records import GuideRecord
from conceptkit.study import Study
from conceptkit.workflow.opening import N_RESAMPLES, Progress, at_stage, notes_on, open_study, run_folder, versions

if TYPE_CHECKING:
    from conceptkit.models.guided import Task


def run_guide(
    study: Study | str | Path | None = None,
    *,
    encourage: Sequence[str] | None = None,
    discourage: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> GuideRecord:
    """Train a baseline and a guided network alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    encourage, discourage : concepts the guided network is to know, and not to know; ``None`` for the study's
    table, model, weights, group, categorical : as for :func:`run_probe`
    options : how both are trained: fields of :class:`conceptkit.guide.training.TrainingOptions` by name; by default the
        last block of a known backbone is trained with the trunk
    folds : of the cross-validation that reads concepts from the trained networks
    seeds : one baseline and one guided network per seed
    device : ``auto``, ``cpu``, ``cuda``, …
    out : run folder; ``None`` for the next free ``runs/guide-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.guide.embeddings import write_embeddings
    from conceptkit.guide.objective import encode
    from conceptkit.guide.plan import concept_task, make_plan
    from conceptkit.guide.reading import Reading, TrainedRun, paired_differences, read_run
    from conceptkit.guide.training import (
        Inputs,
        TrainingOptions,
        build_model,
        predict,
        prepare_inputs,
        remaining_part,
        train,
    )
    from conceptkit.models.checkpoints import open_model, save_checkpoint
    from conceptkit.models.guided import MAIN, Task
    from conceptkit.models.layers import last_block

    meant, data = open_study(study, table, model, weights, group, categorical)
    folder = run_folder(out, "guide")
    if encourage is None and discourage is None:
        encourage, discourage = meant.encourage, meant.discourage
    encourage, discourage = list(encourage or ()), list(discourage or ())
    check_distinct("encourage and discourage", [*encourage, *discourage])
    plan = make_plan(meant, data)
    notes = list(notes_on(meant, data, [*encourage, *discourage]))
    main = Task(name=MAIN, kind="categorical", classes=plan.classes)
    extra = [
        concept_task(data, name, plan.rows["train"], adversarial=name in discourage)
        for name in (*encourage, *discourage)
    ]
    for task in extra:
        if task.name in (meant.label, MAIN):
            raise InputError(f"encourage and discourage: {task.name} is the main task itself.")
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"seeds: need at least one and no repeats, got {list(seeds)}.")
    backbone = open_model(meant.model, meant.weights, seed=seeds[0])
    block = last_block(backbone.module, backbone.architecture)
    if block is None and "unfreeze" not in (options or {}):
        notes.append(f"The last block of {meant.model} is not known by name: only trunk and heads were trained.")
    training = TrainingOptions(**{"unfreeze": (block,) if block else (), **(options or {})})
    training.check()
    reading = Reading.of(data, meant, plan, encourage, discourage, folds)
    notes += reading.notes

    used = plan.used
    part = data.select(used)
    at = {name: np.searchsorted(used, rows) for name, rows in plan.rows.items()}
    columns = {task.name: part.concept(task.name).values for task in extra}
    columns[MAIN] = part.concept(meant.label).values
    targets = {task.name: encode(task, list(columns[task.name])) for task in (main, *extra)}
    arms: dict[str, list[Task]] = {"baseline": [main]}
    if extra:
        arms["guided"] = [main, *extra]
    tensors: Any = None
    trained: list[TrainedRun] = []
    for seed in seeds:
        for name, tasks in arms.items():
            network = build_model(backbone, tasks, training, seed=seed)
            if tensors is None:
                pixels = _pixel_batches(part, 32, progress)
                tensors = prepare_inputs(network, backbone, pixels, batch_size=32, device=device)
            inputs = Inputs(tensors, remaining_part(network))
            stage = f"training {name}, seed {seed}"
            result = train(
                network,
                inputs,
                targets,
                at,
                training,
                seed=seed,
                device=device,
                progress=None if progress is None else at_stage(progress, stage),
            )
            checkpoint = folder / "checkpoints" / f"{name}-seed{seed}"
            save_checkpoint(result.model, backbone, checkpoint)
            outputs, trunk = predict(result.model, Inputs(tensors, remaining_part(result.model)))
            raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 0, 1)
            trained.append(
                read_run(name, seed, checkpoint, result.history, tasks, raw, trunk.numpy(), plan, at, reading)
            )
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 1, 1)
    if not extra:
        notes.append("No concept was encouraged or discouraged: only the baseline was trained.")
    notes.append("Baseline and guided networks share data, order, seeds, options and the weighting of losses.")
    record = GuideRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=tuple(notes),
        settings={
            "command": "guide",
            "table": meant.table.name,
            "model": meant.model,
            "weights": backbone.weights,
            "weights_sha256": backbone.fingerprint(),
            "label": meant.label,
            "seeds": list(seeds),
            "folds": folds,
            "n_resamples": N_RESAMPLES,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            **dataclasses.asdict(training),
        },
        versions=versions(),
        folder=folder,
        encourage=tuple(encourage),
        discourage=tuple(discourage),
        units={k: v for k, v in meant.units.items() if k in {*encourage, *discourage}},
        evaluated_on=reading.where,
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading, n_resamples=N_RESAMPLES)),
    )
    evaluated = np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))
    place = np.searchsorted(used, evaluated)
    trunks = {f"{run.record.name}-seed{run.record.seed}": run.trunk[place] for run in trained}
    write_embeddings(folder, data, meant, evaluated, trunks)
    record.save(folder)
    return record


def _pixel_batches(data: PatchTable, size: int, progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    from conceptkit.models.activations import read_pixels

    for start in range(0, len(data), size):
        yield read_pixels(data, np.arange(start, min(start + size, len(data))))
        if progress is not None:
            progress("frozen part of the network", min(start + size, len(data)), len(data))
