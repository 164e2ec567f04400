"""Guiding: a baseline and a guided network trained alike, and what guiding changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_at_least, check_distinct, near_names
from conceptkit.patches import PatchTable
from conceptkit.records import GuideRecord
from conceptkit.study import Study
from conceptkit.workflow.opening import N_RESAMPLES, Progress, at_stage, notes_on, open_study, run_folder, versions

if TYPE_CHECKING:
    from conceptkit.guide.inputs import Inputs
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.outline import Outline
    from conceptkit.guide.plan import Plan
    from conceptkit.models.backbones import Backbone
    from conceptkit.models.guided import GuidedModel, Task


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
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> GuideRecord:
    """Train a baseline and a guided network alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    encourage, discourage : concepts the guided network is to know, and not to know, as ``CONCEPT`` or
        ``CONCEPT@LAYER``; ``None`` for the study's
    table, model, weights, group, categorical : as for :func:`run_probe`
    recipe : ``ours``, ``paper`` or ``paper-code``: what options are where ``options`` does not name them
    options : how both are trained: fields of :class:`conceptkit.guide.training.TrainingOptions` by name
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
    from conceptkit.guide.building import build_model
    from conceptkit.guide.embeddings import write_embeddings
    from conceptkit.guide.engine import Engine
    from conceptkit.guide.inputs import inputs_for, prepare_inputs
    from conceptkit.guide.objective import encode
    from conceptkit.guide.reading import Reading, TrainedRun, paired_differences, read_run
    from conceptkit.guide.training import predict, train
    from conceptkit.models.checkpoints import save_checkpoint

    folder = run_folder(out, "guide")
    meant, data = open_study(study, table, model, weights, group, categorical)
    setup = _set_up(meant, data, encourage, discourage, recipe, options, seeds)
    plan, training, backbone, tasks = setup.plan, setup.training, setup.backbone, setup.tasks
    encouraged = [task.name for task in tasks[1:] if not task.adversarial]
    discouraged = [task.name for task in tasks[1:] if task.adversarial]
    reading = Reading.of(data, meant, plan, encouraged, discouraged, folds)
    notes = [*setup.notes, *reading.notes]

    used = plan.used
    part = data.select(used)
    at = {name: np.searchsorted(used, rows) for name, rows in plan.rows.items()}
    columns = {task.name: part.concept(task.name).values for task in tasks[1:]}
    columns[tasks[0].name] = part.concept(meant.label).values
    targets = {task.name: encode(task, list(columns[task.name])) for task in tasks}
    arms: dict[str, list[Task]] = {"baseline": tasks[: setup.kept]}
    if len(tasks) > setup.kept:
        arms["guided"] = tasks
    shared: Inputs | None = None
    trained: list[TrainedRun] = []
    for seed in seeds:
        for name, own in arms.items():
            network = build_model(backbone, own, training, seed=seed, origin=setup.origin)
            if shared is None:
                pixels = _pixel_batches(part, 32, progress)
                shared = prepare_inputs(network, backbone, pixels, batch_size=32, device=device, cache=training.cache)
                if shared.preprocessing is not None and training.cache != "off":
                    notes.append("Nothing was cached: the network trains its first layer, or its code cannot be cut.")
            # One cut serves all runs: it lies where training begins, which is the same in each.
            inputs = inputs_for(network, shared)
            stage = f"training {name}, seed {seed}"
            result = train(
                network,
                inputs,
                targets,
                at,
                training,
                seed=seed,
                engine=Engine(device=device),
                progress=None if progress is None else at_stage(progress, stage),
            )
            checkpoint = folder / "checkpoints" / f"{name}-seed{seed}"
            save_checkpoint(result.model, backbone, checkpoint)
            outputs, trunk = predict(result.model, inputs_for(result.model, shared))
            raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 0, 1)
            trained.append(read_run(name, seed, checkpoint, result.history, own, raw, trunk.numpy(), plan, at, reading))
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 1, 1)
    notes.append("Baseline and guided networks share data, order, seeds, options and the weighting of losses.")
    if training.balance_main and any(task.adversarial and task.kind == "categorical" for task in tasks):
        notes.append(
            "The main loss of the guided network, and of it alone, weighs rows towards independence of label and "
            f"{', '.join(t.name for t in tasks if t.adversarial and t.kind == 'categorical')} (balance_main "
            f"{training.balance_main:g}): part of what discouraging does; --balance-main 0 leaves it out."
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
            "seeds": list(seeds),
            "folds": folds,
            "n_resamples": N_RESAMPLES,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            "recipe": recipe,
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
        differences=tuple(paired_differences(trained, plan, reading, n_resamples=N_RESAMPLES)),
    )
    evaluated = np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))
    place = np.searchsorted(used, evaluated)
    trunks = {f"{run.record.name}-seed{run.record.seed}": run.trunk[place] for run in trained}
    write_embeddings(folder, data, meant, evaluated, trunks)
    record.save(folder)
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
) -> Outline:
    """Return what :func:`run_guide` would train, without training: branches, signs, losses, parameters.

    Raises
    ------
    InputError
        where :func:`run_guide` would
    """
    from conceptkit.guide.building import build_model
    from conceptkit.guide.outline import Outline, branches, count, trained_parameters

    meant, data = open_study(study, table, model, weights, group, categorical)
    setup = _set_up(meant, data, encourage, discourage, recipe, options, (0,))
    network = build_model(setup.backbone, setup.tasks, setup.training, seed=0)
    numbers = trained_parameters(network, setup.training)
    layers = {name: setup.backbone.layer(name) for name in setup.training.unfreeze}
    return Outline(
        study=meant.name,
        model=setup.backbone.name,
        recipe=recipe,
        settings=dataclasses.asdict(setup.training),
        unfrozen={name: count(network.backbone.get_submodule(layer)) for name, layer in layers.items()},
        trunk=network.trunk_widths,
        branches=branches(network),
        trainable_before_heads=numbers["before_heads"],
        trainable_heads=numbers["heads"],
        trainable_loss_weights=numbers["loss_weights"],
        rows={name: len(rows) for name, rows in setup.plan.rows.items()},
        notes=tuple(setup.notes),
    )


@dataclass(frozen=True)
class _Setup:
    """What is trained, on what, and how."""

    plan: Plan
    tasks: list[Task]
    """The main task first"""
    kept: int
    """How many of them the baseline has too: the main task, and what a checkpoint knows already"""
    backbone: Backbone
    origin: GuidedModel | None
    """The guided network whose training goes on"""
    training: TrainingOptions
    notes: list[str]


def _set_up(
    meant: Study,
    data: PatchTable,
    encourage: Sequence[str] | None,
    discourage: Sequence[str] | None,
    recipe: str,
    options: Mapping[str, Any] | None,
    seeds: Sequence[int],
) -> _Setup:
    """Read the wishes and refuse what cannot be trained."""
    from conceptkit.guide.building import build_model
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.plan import concept_task, make_plan, read_wish
    from conceptkit.guide.prefix import frozen_layers
    from conceptkit.guide.recipes import recipe_options
    from conceptkit.guide.weighting import parse_weighting
    from conceptkit.models.checkpoints import inside, open_model
    from conceptkit.models.guided import MAIN, Task

    if encourage is None and discourage is None:
        encourage, discourage = meant.encourage, meant.discourage
    wishes = [(*read_wish(text), False) for text in encourage or ()]
    wishes += [(*read_wish(text), True) for text in discourage or ()]
    names = [name for name, _, _ in wishes]
    if names:
        check_distinct("encourage and discourage", names)
    for name in names:
        if name in (meant.label, MAIN):
            raise InputError(f"encourage and discourage: {name} is the main task itself.")
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"seeds: need at least one and no repeats, got {list(seeds)}.")
    for seed in seeds:
        check_at_least("seeds", seed, 0)
    notes = list(notes_on(meant, data, [*names, meant.label]))
    plan = make_plan(meant, data)
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes)]
    tasks += [
        concept_task(data, name, plan.rows["train"], adversarial=adversarial, layer=layer)
        for name, layer, adversarial in wishes
    ]
    if not wishes:
        notes.append("No concept was encouraged or discouraged: only the baseline was trained.")
    backbone, origin = inside(open_model(meant.model, meant.weights, seed=seeds[0]))
    kept = 1
    if origin is not None:
        tasks = _continued(origin, backbone, tasks)
        kept = len(origin.tasks)
        notes.append(
            f"Training of {meant.model} goes on: trunk, heads and scales are kept, in the baseline with the tasks it "
            "had, in the guided network with what was added."
        )
    discouraged = [name for name, _, adversarial in wishes if adversarial]
    given = dict(options or {})
    set_by_recipe = {k: v for k, v in recipe_options(recipe, backbone, discouraged).items() if k not in given}
    if origin is not None:
        set_by_recipe |= {k: v for k, v in _shape(origin).items() if k not in given}
    training = TrainingOptions(**{**set_by_recipe, **given})
    training.check()
    for name in parse_weighting(training.weighting)[1]:
        known = [task.name for task in tasks]
        if name not in known:
            raise InputError(f"weighting: there is no task {name!r}; {near_names(name, known)}.")
    if not training.unfreeze and "unfreeze" not in given:
        notes.append(f"The last block of {meant.model} is not known by name: only trunk and heads were trained.")
    if recipe != "ours":
        stated = ", ".join(f"{k} {_shown(v)}" for k, v in set_by_recipe.items())
        notes.append(f"Recipe {recipe} set: {stated}.")
    if training.epochs <= training.warmup and len(tasks) > 1:
        notes.append(
            f"epochs {training.epochs} end no later than the schedule of {training.warmup} epochs (warmup): the last "
            "state is kept whatever its validation loss, and the discouragement never reached its strength."
        )
    frozen = frozen_layers(build_model(backbone, tasks, training, seed=0, origin=origin))
    for task in tasks:
        if task.layer is not None and backbone.layer(task.layer) in frozen:
            raise InputError(
                f"{'discourage' if task.adversarial else 'encourage'}: {task.name}@{task.layer} lies before every "
                f"layer that is trained, so that nothing would change; unfreeze {task.layer} or a layer before it."
            )
    return _Setup(plan, tasks, kept, backbone, origin, training, notes)


def _continued(origin: GuidedModel, backbone: Backbone, wanted: list[Task]) -> list[Task]:
    """Return the tasks of a checkpoint, then those that are new to it.

    Raises
    ------
    InputError
        when the main task has other classes, or a wish contradicts what the checkpoint has
    """
    known = {task.name: task for task in origin.tasks}
    main, *wishes = wanted
    if known[main.name].classes != main.classes:
        raise InputError(
            f"label: the checkpoint was trained on the classes {', '.join(known[main.name].classes)}, the table has "
            f"{', '.join(main.classes)}."
        )
    for task in wishes:
        old = known.get(task.name)
        if old is not None and (old.adversarial != task.adversarial or old.kind != task.kind):
            was = "discouraged" if old.adversarial else "encouraged"
            raise InputError(
                f"{'discourage' if task.adversarial else 'encourage'}: {task.name} was {was} in the checkpoint, as a "
                f"{old.kind} concept; train from the plain backbone to turn it round."
            )
    return [*origin.tasks, *(task for task in wishes if task.name not in known)]


def _shape(origin: GuidedModel) -> dict[str, Any]:
    return {"trunk": origin.trunk_widths, "dropout": origin.dropout}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pixel_batches(data: PatchTable, size: int, progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    from conceptkit.models.activations import read_pixels

    for start in range(0, len(data), size):
        yield read_pixels(data, np.arange(start, min(start + size, len(data))))
        if progress is not None:
            progress("frozen part of the network", min(start + size, len(data)), len(data))
