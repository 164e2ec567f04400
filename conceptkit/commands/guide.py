"""Guiding: a baseline and a guided network trained alike, and what guiding changed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conceptkit.errors import InputError, check_at_least
from conceptkit.guide.bench import ALIKE, PatchBench, Spaces, arms_of
from conceptkit.guide.building import build_model
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.goals import Goal, concept_names, read_goals
from conceptkit.guide.latent import Latent, is_latent, with_latent
from conceptkit.guide.outline import Outline, branches, trained_parameters, unfrozen
from conceptkit.guide.plan import make_plan
from conceptkit.guide.reading import Reading, TrainedRun, check_read_folds, paired_differences
from conceptkit.guide.search import Trial
from conceptkit.guide.setup import balance_notes, set_up, signed_names
from conceptkit.guide.training import check_processes
from conceptkit.options.base import Progress
from conceptkit.options.guide import Guide
from conceptkit.pathology.disturbances import disturbed
from conceptkit.records import GuideRecord
from conceptkit.runs.opening import UNFINISHED, in_own_folder, open_study, run_folder, versions
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

DISTURBED_SEED = 0
"""Seed of the disturbances of patches: the same in every run, so that runs can be compared"""


@dataclass(frozen=True)
class _Opened:
    """The study, its table with disturbed patches and latent domains, and the goals."""

    study: Study
    data: PatchTable
    goals: list[Goal]
    latent: Latent | None

    @property
    def notes(self) -> list[str]:
        return [self.latent.note()] if self.latent else []


@in_own_folder("guide")
def run_guide(
    study: Study | str | Path | None = None,
    *,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GuideRecord:
    """Train a baseline and a guided network alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for that of the current folder, or else the embedded one
    out : run folder; ``None`` for the next free ``runs/guide-NNN``. The run of a killed process is resumed. Several
        machines need one folder; the first one writes into it, and all return the same record
    notify : receives before the training what will be trained and which concepts are skipped, one line each
    progress : receives counts of the work
    options : fields of :class:`conceptkit.options.guide.Guide`

    Raises
    ------
    InputError
        when an option cannot be used
    """
    chosen = Guide(**options)
    engine = _engine(chosen, out)
    folder = run_folder(out, "guide")
    opened = _open(study, chosen, progress)
    setup = set_up(opened.study, opened.data, opened.goals, chosen)
    check_processes(setup.training, setup.tasks, engine)
    reading = Reading.of(opened.data, opened.study, setup.plan, *signed_names(setup.tasks), chosen.folds, chosen.within)
    if notify is not None:
        notify("\n".join([setup.trains, *setup.skipped, *reading.notes]))
    bench = PatchBench(opened.data, opened.study, setup.plan, reading, engine, progress, setup=setup)
    trials = bench.search(chosen.search, chosen.seeds[0]) if chosen.search else ()
    trained, spaces = _train(bench, chosen, folder)
    record = _record(bench, chosen, opened, trials, trained, folder)
    if engine.first:
        at = np.searchsorted(bench.used, bench.evaluated)
        bench.write_context(folder, trained, {run.label: run.trunk[at] for run in trained}, spaces)
        record.save(folder)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return record


def outline_guide(study: Study | str | Path | None = None, **options: Any) -> Outline:
    """Return what :func:`run_guide` would train, without training; it refuses the same mistakes."""
    chosen = Guide(**options)
    opened = _open(study, chosen, None)
    setup = set_up(opened.study, opened.data, opened.goals, chosen)
    network = build_model(setup.backbone, setup.tasks, setup.training, seed=0)
    numbers = trained_parameters(network, setup.training)
    return Outline(
        study=opened.study.name,
        model=setup.backbone.name,
        recipe=chosen.recipe,
        settings=dataclasses.asdict(setup.training),
        unfrozen=unfrozen(network, setup.backbone, setup.training),
        trunk=network.trunk_widths,
        branches=branches(network),
        trainable_before_heads=numbers["before_heads"],
        trainable_heads=numbers["heads"],
        trainable_loss_weights=numbers["loss_weights"],
        rows={name: len(rows) for name, rows in setup.plan.rows.items()},
        trains=setup.trains,
        notes=(*setup.notes, *opened.notes),
    )


def _engine(options: Guide, out: str | Path | None) -> TrainingEngine:
    """Return what the training runs on; refuse options that need no table to be refused."""
    engine = TrainingEngine(
        device=options.device,
        devices=options.devices,
        nodes=options.nodes,
        precision=options.precision,
        loggers=tuple(options.log),
    )
    if options.nodes > 1 and out is None:
        raise InputError("nodes: several machines need one run folder that all of them see; set --out.")
    engine.check()
    check_at_least("search", options.search, 0)
    check_at_least("folds", options.folds, 2)
    return engine


def _open(study: Study | str | Path | None, options: Guide, progress: Progress | None) -> _Opened:
    opened, data = open_study(study, options.table, options.model, options.weights, options.group, options.categorical)
    data = disturbed(data, options.disturb, seed=DISTURBED_SEED) if options.disturb else data
    both = options.encourage, options.discourage
    goals = read_goals(*((opened.encourage, opened.discourage) if both == (None, None) else both))
    stated = [goal for goal in goals if not is_latent(goal)]
    if len(stated) < len(goals):  # before latent domains are read from pixels or activations, which takes time
        plan = make_plan(opened, data, concepts=concept_names(stated), allow_leakage=options.allow_leakage)
        check_read_folds(data, opened, plan, options.folds)
    data, goals, latent = with_latent(data, opened, goals, progress=progress)
    return _Opened(opened, data, goals, latent)


def _train(bench: PatchBench, options: Guide, folder: Path) -> tuple[list[TrainedRun], dict[str, Spaces]]:
    """Train all networks, and return their runs and, of the first seed, the features that figures show."""
    setup = bench.setup
    arms = {"baseline": setup.tasks[: setup.kept]}
    if len(setup.tasks) > setup.kept:
        arms["guided"] = setup.tasks
    trained, spaces = [], {}
    for arm, places in arms_of(arms, setup.training, options.seeds, folder):
        places = dataclasses.replace(
            places,
            state=folder / UNFINISHED / f"{arm.label}-{bench.digest(arm)}.ckpt",
            logs=folder / "logs" / arm.label if options.log else None,
        )
        outcome = bench.train(arm, places)
        trained.append(outcome.run)
        if arm.seed == options.seeds[0]:
            spaces[arm.label] = bench.spaces(outcome)
    return trained, spaces


def _notes(bench: PatchBench, options: Guide, opened: _Opened, trials: Sequence[Trial]) -> list[str]:
    setup, training = bench.setup, bench.setup.training
    notes = [*setup.notes, *opened.notes, *bench.reading.notes, *bench.notes, ALIKE]
    notes += balance_notes(training, setup.tasks)
    if options.disturb:
        notes.append(f"Every patch was disturbed once, by a seeded amount: {', '.join(options.disturb)}.")
    if trials:
        notes.append(
            f"trunk {','.join(map(str, training.trunk))}, dropout {training.dropout:g}, l2 {training.l2:g} and lr "
            f"{training.lr:g} are the best of {len(trials)} sets by the baseline's validation loss, for all networks."
        )
    return notes


def _record(
    bench: PatchBench,
    options: Guide,
    opened: _Opened,
    trials: Sequence[Trial],
    trained: Sequence[TrainedRun],
    folder: Path,
) -> GuideRecord:
    study, setup, plan, reading = bench.study, bench.setup, bench.plan, bench.reading
    return GuideRecord(
        study=study.name,
        synthetic=study.synthetic,
        group=study.group,
        notes=tuple(_notes(bench, options, opened, trials)),
        settings={
            "command": "guide",
            "table": study.table.name,
            "model": study.model,
            "weights": setup.backbone.weights,
            "weights_sha256": setup.backbone.fingerprint(),
            "label": study.label,
            "classes": list(plan.classes),
            "group": study.group,
            "categorical": list(options.categorical),
            "encourage": [goal.name for goal in opened.goals if not goal.discouraged],
            "discourage": [goal.name for goal in opened.goals if goal.discouraged],
            "seeds": list(options.seeds),
            "folds": options.folds,
            "within": list(options.within),
            "device": options.device,
            "devices": options.devices,
            "nodes": options.nodes,
            "precision": options.precision,
            "log": list(options.log),
            "n_resamples": 0,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            "recipe": options.recipe,
            "engine": dataclasses.asdict(bench.engine),
            "disturb": list(options.disturb),
            "latent": None if opened.latent is None else dataclasses.asdict(opened.latent),
            "search": [dataclasses.asdict(trial) for trial in trials],
            "transductive": options.transductive,
            "allow_leakage": options.allow_leakage,
            "layers": {task.name: task.layer for task in setup.tasks if task.layer is not None},
            **dataclasses.asdict(setup.training),
        },
        versions=versions(),
        folder=folder,
        encourage=reading.encourage,
        discourage=reading.discourage,
        units={k: v for k, v in study.units.items() if k in {*reading.encourage, *reading.discourage}},
        evaluated_on=reading.where,
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading)),
    )
