"""Guiding: a baseline and a guided network trained alike, and what guiding changed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit.errors import InputError, check_at_least
from conceptkit.guide.latent import is_latent, with_latent
from conceptkit.guide.setup import Wish, balance_notes, read_wishes, set_up
from conceptkit.options.base import Progress
from conceptkit.records import GuideRecord
from conceptkit.runs.context import names_kept, write_context
from conceptkit.runs.opening import UNFINISHED, in_own_folder, open_study, run_folder, versions
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.guide.outline import Outline
    from conceptkit.models.guided import Task


DISTURBED_SEED = 0
"""Of what is done to the patches: the same in every run, so that runs can be compared."""


@in_own_folder("guide")
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
    recipe: str = "ours",
    options: Mapping[str, Any] | None = None,
    folds: int = 5,
    within: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "32",
    log: Sequence[str] = (),
    disturb: Sequence[str] = (),
    search: int = 0,
    transductive: bool = False,
    allow_leakage: bool = False,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> GuideRecord:
    """Train a baseline and a guided network alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    encourage, discourage : concepts the guided network is to know, and not to know, as ``CONCEPT`` or
        ``CONCEPT@LAYER``; ``None`` for the study's. ``latent:3`` discourages three domains that are proposed from the
        stain of the training rows, where no center is known; ``latent:3+LAYER`` from features of the network there too
    table, model, weights, group, categorical : as for :func:`run_probe`
    recipe : ``ours``, ``paper`` or ``paper-code``: what options are where ``options`` does not name them
    options : how both are trained: fields of :class:`conceptkit.guide.training.TrainingOptions` by name
    folds : of the cross-validation that reads concepts from the trained networks
    within : columns within whose levels AUCs are taken too, beside the discouraged categories and the center
    seeds : one baseline and one guided network per seed
    device : ``auto``, ``cpu``, ``cuda``, …
    devices, nodes, precision, log : see :class:`conceptkit.guide.engine.TrainingEngine`; logs lie in ``logs`` of the
        run folder. Of several machines the first writes, the others return the same record
    disturb : names of :data:`conceptkit.families.DISTURBANCES`: every patch is disturbed once, by a
        seeded amount that becomes the concept ``made_NAME``
    search : options of the trunk that are tried on the baseline's validation loss; 0 for none
    transductive : whether rows of the evaluation splits train the concepts
    allow_leakage : whether groups may have rows in several splits
    out : run folder; ``None`` for the next free ``runs/guide-NNN``, which several machines cannot find together. A
        folder that a killed run left is gone on with
    notify : receives, before the training, what will be trained and which concepts and classes are skipped, a line each
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.guide.bench import Bench, Spaces
    from conceptkit.guide.embeddings import write_embeddings
    from conceptkit.guide.engine import TrainingEngine
    from conceptkit.guide.plan import make_plan
    from conceptkit.guide.reading import Reading, TrainedRun, check_read_folds, paired_differences
    from conceptkit.guide.training import check_processes
    from conceptkit.pathology.disturbances import disturbed

    engine = TrainingEngine(device=device, devices=devices, nodes=nodes, precision=precision, loggers=tuple(log))
    if nodes > 1 and out is None:
        raise InputError("nodes: several machines need one run folder that all of them see; name it by --out.")
    engine.check()
    check_at_least("search", search, 0)
    check_at_least("folds", folds, 2)
    folder = run_folder(out, "guide")
    meant, data = open_study(study, table, model, weights, group, categorical)
    data = disturbed(data, disturb, seed=DISTURBED_SEED) if disturb else data
    wishes = _wishes(meant, encourage, discourage)
    others = [wish.concept for wish in wishes if not is_latent(wish)]
    if len(others) < len(wishes):  # the domains are read from pixels, or from activations
        check_read_folds(data, meant, make_plan(meant, data, concepts=others, allow_leakage=allow_leakage), folds)
    data, wishes, latent = with_latent(data, meant, wishes, progress=progress)
    setup = set_up(meant, data, wishes, recipe, options, seeds, transductive=transductive, allow_leakage=allow_leakage)
    plan, backbone, tasks = setup.plan, setup.backbone, setup.tasks
    check_processes(setup.training, tasks, engine)
    encouraged = [task.name for task in tasks[1:] if not task.adversarial]
    discouraged = [task.name for task in tasks[1:] if task.adversarial]
    reading = Reading.of(data, meant, plan, encouraged, discouraged, folds, within)
    if notify is not None:
        notify("\n".join([setup.trains, *setup.skipped, *reading.notes]))
    notes = [*setup.notes, *([latent.note()] if latent else []), *reading.notes]
    bench = Bench(data, meant, setup, reading, engine, progress)
    tried = bench.search(search, seeds[0]) if search else ()
    training = bench.setup.training
    used = plan.used
    arms: dict[str, list[Task]] = {"baseline": tasks[: setup.kept]}
    if len(tasks) > setup.kept:
        arms["guided"] = tasks
    spaces: dict[str, Spaces] = {}
    trained: list[TrainedRun] = []
    for seed in seeds:
        for name, own in arms.items():
            checkpoint = folder / "checkpoints" / f"{name}-seed{seed}"
            # The pictures are of one seed; the numbers are of all.
            run, seen = bench.train(
                name,
                own,
                training,
                seed=seed,
                checkpoint=checkpoint,
                draw=seed == seeds[0],
                state=folder / UNFINISHED / f"{name}-seed{seed}-{bench.digest(own, training, seed)}.ckpt",
                log_to=folder / "logs" / f"{name}-seed{seed}" if log else None,
            )
            trained.append(run)
            if seen is not None:
                spaces[f"{name}-seed{seed}"] = seen
    notes += bench.notes
    notes.append("Baseline and guided networks share data, order, seeds, options and the weighting of losses.")
    notes += balance_notes(training, tasks)
    if disturb:
        notes.append(f"Every patch was disturbed once, by a seeded amount: {', '.join(disturb)}.")
    if tried:
        notes.append(
            f"trunk {','.join(map(str, training.trunk))}, dropout {training.dropout:g}, l2 {training.l2:g} and lr "
            f"{training.lr:g} were chosen of {len(tried)} sets by the baseline's validation loss, for all networks."
        )
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
            "classes": list(plan.classes),
            "group": meant.group,
            "categorical": list(categorical),
            "encourage": [wish.name for wish in wishes if not wish.discouraged],
            "discourage": [wish.name for wish in wishes if wish.discouraged],
            "seeds": list(seeds),
            "folds": folds,
            "within": list(within),
            "device": device,
            "devices": devices,
            "nodes": nodes,
            "precision": precision,
            "log": list(log),
            "n_resamples": 0,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            "recipe": recipe,
            "engine": dataclasses.asdict(engine),
            "disturb": list(disturb),
            "latent": None if latent is None else dataclasses.asdict(latent),
            "search": [dataclasses.asdict(trial) for trial in tried],
            "transductive": transductive,
            "allow_leakage": allow_leakage,
            "layers": {task.name: task.layer for task in tasks if task.layer is not None},
            **dataclasses.asdict(training),
        },
        versions=versions(),
        folder=folder,
        encourage=tuple(encouraged),
        discourage=tuple(discouraged),
        units={k: v for k, v in meant.units.items() if k in {*encouraged, *discouraged}},
        evaluated_on=reading.where,
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading)),
    )
    if not engine.first:
        return record
    evaluated = bench.evaluated
    place = np.searchsorted(used, evaluated)
    trunks = {f"{run.record.name}-seed{run.record.seed}": run.trunk[place] for run in trained}
    probabilities = {f"{run.record.name}-seed{run.record.seed}": run.probability[place] for run in trained}
    write_embeddings(
        folder, data, meant, evaluated, trunks, spaces=spaces, probabilities=probabilities, classes=plan.classes
    )
    read = {**reading.concepts, **reading.leaks}
    write_context(
        folder,
        data,
        meant,
        used,
        concepts=names_kept(meant, data, [*encouraged, *discouraged, *meant.concepts]),
        targets=[
            dataclasses.replace(target, rows=np.searchsorted(used, reading.split_rows[target.rows]))
            for target in read.values()
        ],
        folds=folds,
    )
    record.save(folder)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return record


def outline_guide(
    study: Study | str | Path | None = None,
    *,
    encourage: Sequence[str] | None = None,
    discourage: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    recipe: str = "ours",
    options: Mapping[str, Any] | None = None,
    disturb: Sequence[str] = (),
    transductive: bool = False,
    allow_leakage: bool = False,
) -> Outline:
    """Return what :func:`run_guide` would train, without training: branches, signs, losses, parameters.

    Raises
    ------
    InputError
        where :func:`run_guide` would
    """
    from conceptkit.guide.building import build_model
    from conceptkit.guide.outline import Outline, branches, trained_parameters, unfrozen
    from conceptkit.pathology.disturbances import disturbed

    meant, data = open_study(study, table, model, weights, group, categorical)
    data = disturbed(data, disturb, seed=DISTURBED_SEED) if disturb else data
    data, wishes, latent = with_latent(data, meant, _wishes(meant, encourage, discourage))
    setup = set_up(meant, data, wishes, recipe, options, (0,), transductive=transductive, allow_leakage=allow_leakage)
    network = build_model(setup.backbone, setup.tasks, setup.training, seed=0)
    numbers = trained_parameters(network, setup.training)
    return Outline(
        study=meant.name,
        model=setup.backbone.name,
        recipe=recipe,
        settings=dataclasses.asdict(setup.training),
        unfrozen=unfrozen(network, setup.backbone, setup.training),
        trunk=network.trunk_widths,
        branches=branches(network),
        trainable_before_heads=numbers["before_heads"],
        trainable_heads=numbers["heads"],
        trainable_loss_weights=numbers["loss_weights"],
        rows={name: len(rows) for name, rows in setup.plan.rows.items()},
        trains=setup.trains,
        notes=(*setup.notes, *([latent.note()] if latent else [])),
    )


def _wishes(meant: Study, encourage: Sequence[str] | None, discourage: Sequence[str] | None) -> list[Wish]:
    """Return what is wished for, or what the study wishes for when nothing is named."""
    if encourage is None and discourage is None:
        encourage, discourage = meant.encourage, meant.discourage
    return read_wishes(encourage, discourage)
