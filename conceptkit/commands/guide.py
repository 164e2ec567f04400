"""Guiding: a baseline and a guided network trained under the same conditions, and compared."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conceptkit.errors import InputError
from conceptkit.families import ARMS
from conceptkit.features.own_files import LAYER
from conceptkit.guide.arms import Conditions, choose_arms
from conceptkit.guide.bench import ALIKE, PatchBench, Places, Spaces
from conceptkit.guide.bottleneck_reading import Read, bottleneck_of, interventions, read_bottleneck
from conceptkit.guide.building import build_model
from conceptkit.guide.contrast import GUIDED, NONE, Contrast, announced
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.feature_bench import FeatureBench
from conceptkit.guide.forecast import forecast, lines
from conceptkit.guide.goals import Goal, concept_names, read_goals
from conceptkit.guide.latent import Latent, is_latent, with_latent
from conceptkit.guide.outline import GuidePlan, Outline, branches, trained_parameters, unfrozen
from conceptkit.guide.plan import Plan, make_plan
from conceptkit.guide.reading import (
    BOTTLENECKS,
    Reading,
    TrainedRun,
    check_read_folds,
    compared_pairs,
    declare,
    paired_differences,
)
from conceptkit.guide.search import Trial
from conceptkit.guide.selection import Choice, candidate_arms, choices, select, training_centers
from conceptkit.guide.setup import Setup, balance_notes, set_up, signed_names
from conceptkit.guide.training import check_processes
from conceptkit.models.adapter import check_export, export_onnx
from conceptkit.models.backbones import weights_setting
from conceptkit.models.checkpoints import MARKS, load_checkpoint
from conceptkit.options.base import Notify, Progress
from conceptkit.options.guide import Guide
from conceptkit.pathology.disturbances import disturbed
from conceptkit.records import GuideRecord
from conceptkit.records.guide import BASELINE, Headroom, Selection, reference_of
from conceptkit.runs.opening import UNFINISHED, header, in_own_folder, open_source, run_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

DISTURBED_SEED = 0
"""Seed of the disturbances of patches: the same in every run, so that runs can be compared"""

WITH_TEST = "with_test"
"""Mark of networks before whose training evaluation rows were looked at"""


@dataclass(frozen=True)
class _Opened:
    """The study, its table with disturbed patches and latent domains, and the goals."""

    study: Study
    table: PatchTable
    stated: list[Goal]
    """As options name them"""
    goals: list[Goal]
    """With the column of latent domains"""
    latent: Latent | None

    @property
    def notes(self) -> list[str]:
        return [self.latent.note()] if self.latent else []


def guide(
    options: Guide,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> GuideRecord | GuidePlan | Outline:
    """Train a baseline and a guided network under the same conditions, and measure what guiding changed.

    A dry run returns the outline, ``plan`` what can be known before the training."""
    if options.plan:
        return _plan(options, study, progress=progress, notify=notify)
    if not options.dry_run:
        return _guide(options, study, out=out, progress=progress, notify=notify)
    opened = _open(study, options, None)
    setup = _set_up(opened, options)
    if notify is not None:
        notify(setup.trains)
    return _outline(opened, setup, options)


def _plan(options: Guide, study: Any, *, progress: Progress | None, notify: Notify | None) -> GuidePlan:
    opened = _open(study, options, progress)
    setup = _set_up(opened, options)
    bench = _bench(opened, setup, options, _engine(options, None), progress)
    if not options.with_test:  # not even their pixels are read
        bench = dataclasses.replace(bench, plan=setup.plan.without_evaluation)
    found, said = _forecast(bench, setup.plan, options)
    if notify is not None:
        notify(found.verdict)
        notify("\n".join(said))
    record = header(options, opened.study, Path(), [*setup.notes, *opened.notes])
    shared = {name: record[name] for name in ("study", "synthetic", "group", "notes")}
    return GuidePlan(**shared, **vars(found))


def _forecast(bench: PatchBench, plan: Plan, options: Guide) -> tuple[Headroom, list[str]]:
    """Return what is known before the training, and the sentences below its verdict."""
    found = forecast(bench, plan, _conditions(bench, options, _seeds(options)[0]), with_test=options.with_test)
    return found, lines(found, bench.study.group)


def _candidates(bench: PatchBench, arms: Sequence[str], options: Guide) -> list[Choice]:
    """Return the candidates of a selection; refuse what cannot be selected before anything is computed."""
    setup = bench.setup
    if options.layer and setup.X is None:
        if not setup.through:
            raise InputError("layer: lists layers of --features, or with --select those that --through reads; set one.")
        for layer in options.layer:
            setup.backbone.layer(layer)
    training_centers(bench)
    strengths = options.strength or (setup.training.strength,)
    augments = options.augment or (setup.training.augment,)
    given, of_store = _conditions(bench, options, 0), setup.X is not None
    return choices(arms, options.layer or (None,), strengths, augments, given, of_store=of_store)


def _select(
    opened: _Opened, bench: PatchBench, candidates: Sequence[Choice], options: Guide
) -> tuple[Selection, PatchBench, list[str]]:
    """Return the selection among candidates, the bench with the chosen options, and the arms to train."""
    of_store = bench.setup.X is not None
    benches = {candidates[0].layer if of_store else None: bench}

    def bench_of(layer: str | None) -> PatchBench:
        layer = layer if of_store else None
        if layer not in benches:
            own = options.replace(layer=(layer,))
            benches[layer] = _bench(opened, _set_up(opened, own), own, bench.engine, bench.progress)
        return benches[layer]

    def conditions(own: PatchBench, choice: Choice) -> Conditions:
        setup = _chosen(own.setup, choice)
        given = _conditions(own, options, _seeds(options)[0])
        return dataclasses.replace(given, options=setup.training, through=setup.through)

    found = select(candidates, bench_of, conditions, bench.progress)
    best = next(choice for choice in candidates if choice.name == found.chosen)
    chosen = bench_of(best.layer)
    chosen.setup = _chosen(chosen.setup, best)
    reference = reference_of([choice.arm for choice in candidates])
    others = [BASELINE] if best.arm == reference else [reference]
    return found, chosen, list(dict.fromkeys([*others, best.arm]))


def _chosen(setup: Setup, choice: Choice) -> Setup:
    """Return a setup with the options of a candidate."""
    training = dataclasses.replace(setup.training, strength=choice.strength, augment=choice.augment)
    through = setup.through
    if setup.X is None and choice.layer is not None:
        through = tuple(dataclasses.replace(task, layer=choice.layer) for task in through)
    return dataclasses.replace(setup, training=training, through=through)


def _outline(opened: _Opened, setup: Setup, options: Guide) -> Outline:
    network = build_model(setup.backbone, setup.tasks, setup.training, seed=0)
    numbers = trained_parameters(network, setup.training)
    return Outline(
        study=opened.study.name,
        model=setup.backbone.name,
        recipe=options.recipe,
        settings=dataclasses.asdict(setup.training),
        unfrozen=unfrozen(network, setup.backbone, setup.training),
        trunk=network.trunk_widths,
        branches=branches(network, setup.training),
        trainable_before_heads=numbers["before_heads"],
        trainable_heads=numbers["heads"],
        trainable_loss_weights=numbers["loss_weights"],
        rows={name: len(rows) for name, rows in setup.plan.rows.items()},
        trains=setup.trains,
        notes=(*setup.notes, *opened.notes),
    )


@in_own_folder("guide")
def _guide(
    options: Guide, study: Any, *, out: str | Path | None, progress: Progress | None, notify: Notify | None
) -> GuideRecord:
    engine = _engine(options, out)
    folder = run_folder(out, options.name)
    opened = _open(study, options, progress)
    setup = _set_up(opened, options)
    if options.export is not None:
        check_export(setup.backbone.module, options.export)
    check_processes(setup.training, setup.tasks, engine)
    bench = _bench(opened, setup, options, engine, progress)
    reading = bench.reading
    given = _conditions(bench, options, _seeds(options)[0])
    named = candidate_arms(given) if options.select and options.arms is None else options.arms
    arms, skipped = choose_arms(named, given)
    bench.copies = max(0, *(options.augment or ()), *(ARMS[name].make(given).options.augment for name in arms))
    candidates = _candidates(bench, arms, options) if options.select else []
    if notify is not None:  # what the table shows, before a pixel is read
        notify("\n".join([setup.trains, _named(arms), *skipped, *setup.skipped, *reading.notes]))
    found, of_plan = _forecast(bench, setup.plan, options)
    if notify is not None:
        notify("\n".join([found.verdict, *of_plan]))
    selection = None
    if candidates:
        selection, bench, arms = _select(opened, bench, candidates, options)
        setup, reading = bench.setup, bench.reading
        chosen = f"Selected {selection.chosen} among {len(selection.candidates)} candidates."
        skipped = [chosen, *skipped]
        if notify is not None:
            notify(chosen)
    runs = [run for run, _ in compared_pairs(arms)]
    leading = next((name for name in BOTTLENECKS if name in runs), GUIDED)
    primary, said = declare(options.primary, runs, setup.plan, reading, default=leading)
    if notify is not None:
        notify("\n".join([*said, *announced(primary)]))
    wanted, unset = interventions(options.intervene, setup.through, opened.table, setup.plan)
    trials = bench.search(options.search, _seeds(options)[0]) if options.search else ()
    trained, spaces, read = _train(bench, arms, options, folder, wanted)
    notes = [*_notes(bench, options, opened, trials), _named(arms), *skipped, *said, *unset]
    record = _record(bench, options, opened, notes, trials, trained, folder, primary, arms, found, selection)
    record = dataclasses.replace(record, bottleneck=bottleneck_of(bench, setup.through, read)) if read else record
    if engine.first:
        at = np.searchsorted(bench.used, bench.evaluated)
        bench.write_context(folder, trained, {run.label: run.trunk[at] for run in trained}, spaces)
        record.save(folder)
        if options.export is not None:
            name = f"{'guided' if 'guided' in arms else 'baseline'}-seed{_seeds(options)[0]}"
            export_onnx(load_checkpoint(folder / "checkpoints" / name).module, options.export)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return record


def _bench(
    opened: _Opened, setup: Setup, options: Guide, engine: TrainingEngine, progress: Progress | None
) -> PatchBench:
    encouraged, discouraged = signed_names(setup.tasks)
    names = list(dict.fromkeys([*encouraged, *(task.name for task in setup.through)])), discouraged
    reading = Reading.of(opened.table, opened.study, setup.plan, *names, options.folds, options.within)
    make = PatchBench if setup.X is None else FeatureBench
    return make(opened.table, opened.study, setup.plan, reading, engine, progress, setup=setup)


def _seeds(options: Guide) -> tuple[int, ...]:
    return (options.seed,) if options.seeds is None else options.seeds


def _set_up(opened: _Opened, options: Guide) -> Setup:
    setup = set_up(
        opened.study,
        opened.table,
        opened.goals,
        options,
        _seeds(options),
        transductive=options.transductive,
        allow_leakage=options.allow_leakage,
    )
    if not options.with_test:
        return setup
    plan = dataclasses.replace(setup.plan, marks=(*setup.plan.marks, WITH_TEST))
    return dataclasses.replace(setup, plan=plan, notes=[*setup.notes, MARKS[WITH_TEST]])


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
    for name in ("residual", "intervene"):
        if getattr(options, name) is not None and not options.through:
            raise InputError(f"{name}: is of a bottleneck; name its concepts with --through.")
    if options.residual == 0:
        raise InputError("residual: must be above 0; without a penalty the main head reads everything.")
    return engine


def _open(study: Any, options: Guide, progress: Progress | None) -> _Opened:
    opened, table = open_source(options, study)
    table = disturbed(table, options.disturb, seed=DISTURBED_SEED) if options.disturb else table
    both = options.encourage, options.discourage
    stated = read_goals(*((opened.encourage, opened.discourage) if both == (None, None) else both), options.through)
    others = [goal for goal in stated if not is_latent(goal)]
    if len(others) < len(stated):  # before latent domains are read from pixels or activations, which takes time
        plan = make_plan(opened, table, concepts=concept_names(others), allow_leakage=options.allow_leakage)
        check_read_folds(table, opened, plan, options.folds)
    table, goals, latent = with_latent(table, opened, stated, progress=progress)
    return _Opened(opened, table, stated, goals, latent)


def _conditions(bench: PatchBench, options: Guide, seed: int) -> Conditions:
    setup = bench.setup
    more = {"through": setup.through, "continued": setup.origin is not None, "residual": options.residual}
    more["joint"] = options.bottleneck == "joint"
    return Conditions.of(bench.data, bench.plan, setup.tasks, setup.kept, setup.training, seed, **more)


def _named(arms: Sequence[str]) -> str:
    return f"Arms: {'; '.join(f'{name} ({ARMS[name].meaning})' for name in arms)}."


def _train(
    bench: PatchBench, arms: Sequence[str], options: Guide, folder: Path, wanted: Sequence[tuple[str, ...]]
) -> tuple[list[TrainedRun], dict[str, Spaces], list[Read]]:
    """Train all networks.

    Returns
    -------
    their runs; of the first seed, the features that figures show; of bottlenecks, what else is read
    """
    trained, spaces, read = [], {}, []
    for seed, name in itertools.product(_seeds(options), arms):
        arm = ARMS[name].make(_conditions(bench, options, seed))
        first = seed == _seeds(options)[0]
        if arm.fit is not None:
            trained += [arm.fit(bench, arm)] if first else []  # nothing of it depends on the seed
            continue
        places = Places(
            folder / "checkpoints" / arm.label,
            state=folder / UNFINISHED / f"{arm.label}-{bench.digest(arm)}.ckpt",
            logs=folder / "logs" / arm.label if options.log else None,
        )
        outcome = bench.train(arm, places)
        trained.append(outcome.run)
        read += [found] if (found := read_bottleneck(bench, arm, outcome, wanted)) else []
        if first:
            spaces[arm.label] = bench.spaces(outcome)
    return trained, spaces, read


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


def _network(options: Guide, study: Study, setup: Setup) -> dict[str, Any]:
    """Return network and weights as they open again; of features, the adapter that training continues, if any."""
    if setup.X is None:
        return {"model": study.model_name, "weights": weights_setting(setup.backbone, study.weights)}
    return {"model": str(options.model or LAYER), "weights": None if setup.origin is None else options.weights}


def _record(
    bench: PatchBench,
    options: Guide,
    opened: _Opened,
    notes: Sequence[str],
    trials: Sequence[Trial],
    trained: Sequence[TrainedRun],
    folder: Path,
    primary: Contrast | None,
    arms: Sequence[str],
    found: Headroom,
    selection: Selection | None,
) -> GuideRecord:
    study, setup, plan, reading = bench.study, bench.setup, bench.plan, bench.reading
    return GuideRecord(
        **header(
            options,
            study,
            folder,
            notes,
            primary=str(primary or NONE),
            arms=list(arms),
            **_network(options, study, setup),
            weights_sha256=setup.backbone.fingerprint(),
            label=study.label,
            classes=list(plan.classes),
            encourage=[goal.name for goal in opened.stated if not goal.discouraged and not goal.through],
            discourage=[goal.name for goal in opened.stated if goal.discouraged],
            seeds=list(_seeds(options)),
            n_resamples=0,
            rows={name: len(rows) for name, rows in plan.rows.items()},
            engine=dataclasses.asdict(bench.engine),
            latent=None if opened.latent is None else dataclasses.asdict(opened.latent),
            search=[dataclasses.asdict(trial) for trial in trials],
            layers={task.name: task.layer for task in [*setup.tasks, *setup.through] if task.layer is not None},
            **dataclasses.asdict(setup.training),
        ),
        encourage=reading.encourage,
        discourage=reading.discourage,
        units={k: v for k, v in study.units.items() if k in {*reading.encourage, *reading.discourage}},
        evaluated_on=reading.where,
        effective_groups=reading.endpoints.effective(plan),
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading, primary=primary)),
        selection=selection,
        **vars(found),
    )
