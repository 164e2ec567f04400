"""Grids: many guided networks with their controls, trained from one cache, kept one by one, compared in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit._checks import InputError, check_at_least, check_at_most, check_choice, check_place, check_seeds
from conceptkit.patches import PatchTable
from conceptkit.pathology.engines import Engine, run_jobs, usable_processors
from conceptkit.records import Affinity, GridCell, GridRecord, PatchLevel
from conceptkit.study import Study
from conceptkit.workflow.context import names_kept, write_context
from conceptkit.workflow.grid_plan import (
    PAPER,
    PAPER_WEIGHTINGS,
    RANDOM_TARGET,
    SECOND_NETWORK,
    is_trained,
    plan_cells,
)
from conceptkit.workflow.guide_setup import Wish, balance_notes
from conceptkit.workflow.latent import refuse_latent
from conceptkit.workflow.opening import Progress, open_study, versions
from conceptkit.workflow.splits import count_splits

if TYPE_CHECKING:
    from conceptkit.guide.reading import TrainedRun
    from conceptkit.workflow.grid_folder import KeptRun
    from conceptkit.workflow.grid_run import GridSpec
    from conceptkit.workflow.guide_bench import Bench

PROTOCOLS = ("groups", "paper")
"""How models are compared: over groups alone, or by the paper's resamples of patches too"""

APPEARS_WITHIN = 10.0
"""Seconds within which the folder of a run that another machine finished has to be seen here"""

PATCH_LEVEL_NOTE = (
    "Protocol paper: resamples of patches, two-sided Wilcoxon on paired resamples. It takes the patches of one patient "
    "as independent, so that its p says nothing of new patients."
)


def run_grid(
    study: Study | str | Path | None = None,
    *,
    ablate: str | None = "paper",
    weightings: Sequence[str] | None = None,
    controls: bool = True,
    noise: Sequence[float] = (),
    fraction: Sequence[float] = (),
    affinity: bool = False,
    protocol: str = "groups",
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
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    engine: Engine | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> GridRecord:
    """Train a grid of networks with its controls; one that was interrupted goes on where it was.

    Parameters
    ----------
    study, table, model, weights, group, categorical, recipe, options, folds, within, device : as for
        :func:`run_guide`
    ablate : ``paper``, ``pairs``, ``study``, a file with a model per line, or models such as ``count; count, -center``;
        ``None`` for curves and affinities alone
    weightings : of the losses, each of which every model is trained with; ``None`` for vanilla and uncertainty in the
        paper's grid, and for the one of ``options`` otherwise
    controls : whether random target, shuffled concept, single task with uncertainty and confounder only are run too
    noise : shares of concept values exchanged among rows, for a curve beside a multimodal control
    fraction : shares of training and validation rows that keep their concept values, for a curve
    affinity : whether the effect of each task's step on the others' losses is measured
    protocol : ``groups``, or ``paper`` for its patch-level comparison beside that
    encourage, discourage : concepts of pairs, curves and affinities; ``None`` for the study's
    seeds : of each network
    engine : where runs are trained; ``None`` for one after the other in this process
    out : the grid's folder, which a second call with the same settings goes on with; ``None`` for the next free
        ``runs/grid-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used, the folder is another grid's, or another process works on it
    """
    from conceptkit.workflow.grid_folder import claim, is_kept, locked, note_plan, remove_partial
    from conceptkit.workflow.grid_run import GridJob, GridSpec, bench_of, forget, remove_cache, train_run

    engine = engine or Engine()
    check_choice("protocol", protocol, PROTOCOLS)
    _check_given(noise, fraction, seeds, recipe, options)
    folder = grid_folder(out)
    meant, data = open_study(study, table, model, weights, group, categorical)
    meant = _with_wishes(meant, encourage, discourage)
    network = _network(meant, curves=bool(noise or fraction or affinity))
    given = dict(options or {})
    stated = given.pop("weighting", None)
    weightings = _weightings(ablate, weightings, stated)
    second, notes = _second_networks(ablate, meant)
    grid, cells = plan_cells(
        ablate,
        meant,
        model=network,
        second=second,
        weightings=weightings,
        controls=controls,
        noise=noise,
        fraction=fraction,
        encourage=meant.encourage,
        discourage=meant.discourage,
    )
    curves = bool(noise or fraction or affinity)
    wishes = _wishes(cells, meant if curves else None)
    _check_columns(data, grid, wishes)
    spec = GridSpec(
        study=meant,
        categorical=tuple(categorical),
        folder=folder.absolute(),
        wishes=wishes,
        recipe=recipe,
        options=_with_recipe_weighting(given, recipe),
        seeds=tuple(seeds),
        folds=folds,
        within=tuple(within),
        device=device,
        weights={network: meant.weights, **dict.fromkeys(second, _weights_of_second(meant))},
    )
    try:
        bench = bench_of(spec, network)
        for name in second:
            try:
                bench_of(spec, name)
            except InputError as error:
                cells = [cell for cell in cells if cell.model != name]
                notes.append(f"Models R1 and R8 were left out: {error}")
        _check_weightings(wishes, cells)
        with locked(folder):
            networks = dict.fromkeys(cell.model for cell in cells if cell.model)
            weights_of = {name: bench_of(spec, name).setup.backbone.fingerprint() for name in networks}
            claim(folder, _common(spec, bench, meant), weights_of)
            remove_partial(folder)
            note_plan(folder, sum(is_trained(cell) for cell in cells) * len(seeds))
            threads = _threads(engine)
            todo = [
                GridJob(spec, cell, seed, threads)
                for cell in cells
                if is_trained(cell)
                for seed in seeds
                if not is_kept(folder, cell, seed)
            ]
            failed = _train(spec, todo, cells, engine, train_run, progress)
            record = _collect(spec, folder, bench, grid, cells, failed, notes, affinity, protocol, progress)
            remove_cache(folder)
    finally:
        forget(spec)
    return record


def outline_grid(
    study: Study | str | Path | None = None,
    *,
    ablate: str | None = "paper",
    weightings: Sequence[str] | None = None,
    controls: bool = True,
    noise: Sequence[float] = (),
    fraction: Sequence[float] = (),
    affinity: bool = False,
    protocol: str = "groups",
    encourage: Sequence[str] | None = None,
    discourage: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    recipe: str = "ours",
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[GridCell]:
    """Return the cells that :func:`run_grid` would train or compute, without training; it refuses the same mistakes."""
    check_choice("protocol", protocol, PROTOCOLS)
    _check_given(noise, fraction, seeds, recipe, options)
    meant, data = open_study(study, table, model, weights, group, categorical)
    meant = _with_wishes(meant, encourage, discourage)
    network = _network(meant, curves=bool(noise or fraction or affinity))
    weightings = _weightings(ablate, weightings, dict(options or {}).get("weighting"))
    second, _ = _second_networks(ablate, meant)
    grid, cells = plan_cells(
        ablate,
        meant,
        model=network,
        second=second,
        weightings=weightings,
        controls=controls,
        noise=noise,
        fraction=fraction,
        encourage=meant.encourage,
        discourage=meant.discourage,
    )
    wishes = _wishes(cells, meant if noise or fraction or affinity else None)
    _check_columns(data, grid, wishes)
    _check_weightings(wishes, cells)
    return cells


def _check_given(
    noise: Sequence[float],
    fraction: Sequence[float],
    seeds: Sequence[int],
    recipe: str,
    options: Mapping[str, Any] | None,
) -> None:
    """Refuse what can be told to be wrong before a table is read, in a dry run as in a run."""
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.recipes import RECIPES

    for name, levels in (("concept-noise", noise), ("concept-fraction", fraction)):
        for level in levels:
            check_at_least(name, level, 0)
            check_at_most(name, level, 1)
            if name == "concept-fraction" and level == 0:
                raise InputError(f"{name}: must be above 0, got 0; a model without the concept is in the grid anyway.")
        if len(set(levels)) < len(levels):
            raise InputError(f"{name}: no level may be given twice, got {', '.join(f'{v:g}' for v in levels)}.")
    check_seeds(seeds)
    check_choice("recipe", recipe, RECIPES)
    TrainingOptions(**(options or {})).check()


def _network(meant: Study, *, curves: bool) -> str:
    """Return the network, and refuse a study that names no network, or no concept where curves need one."""
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    if curves and not meant.encourage:
        raise InputError("encourage: curves and affinities need a concept to encourage, none is named.")
    return meant.model


def _check_columns(data: PatchTable, grid: str, wishes: Iterable[Wish]) -> None:
    """Refuse concepts that the table does not have."""
    argument = "ablate" if grid != "none" else "encourage"
    for wish in wishes:
        refuse_latent(argument, wish.concept, "in a grid")
        data.column(argument, wish.concept)


def _with_wishes(meant: Study, encourage: Sequence[str] | None, discourage: Sequence[str] | None) -> Study:
    if encourage is None and discourage is None:
        return meant
    return dataclasses.replace(meant, encourage=tuple(encourage or ()), discourage=tuple(discourage or ()))


def _weightings(ablate: str | None, given: Sequence[str] | None, stated: str | None) -> tuple[str, ...]:
    """Return the weightings of a grid: those given, else that of the options, else the paper's or ours."""
    if given is not None:
        if not given:
            raise InputError("weightings: at least one is needed, got none.")
        return tuple(dict.fromkeys(given))
    if stated is not None:
        return (stated,)
    return PAPER_WEIGHTINGS if ablate == PAPER else ("uncertainty-bounded",)


def grid_folder(out: str | Path | None) -> Path:
    """Return the folder to write into, which may hold the beginning of the same grid."""
    if out is None:
        number = 1
        while (Path("runs") / f"grid-{number:03d}").exists():
            number += 1
        out = Path("runs") / f"grid-{number:03d}"
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder.")
    check_place("out", folder)
    return folder


def _second_networks(ablate: str | None, meant: Study) -> tuple[list[str], list[str]]:
    """Return the paper's other networks, where its first one is in use, and what has to be said otherwise."""
    if ablate != PAPER:
        return [], []
    if str(meant.model).split(".")[0] == "inception_v3":
        return list(SECOND_NETWORK), []
    return [], [
        f"Models R1 and R8 are ResNet50's beside InceptionV3's; {meant.model} is neither, so they are left out."
    ]


def _weights_of_second(meant: Study) -> str | None:
    return meant.weights if meant.weights in (None, "imagenet", "random") else "imagenet"


def _wishes(cells: Iterable[GridCell], curves: Study | None) -> tuple[Wish, ...]:
    """Return what all cells wish for, each once; that of curves and affinities too."""
    from conceptkit.guide.plan import read_wish

    found: dict[Wish, None] = {}
    for cell in cells:
        if not is_trained(cell) or cell.control == RANDOM_TARGET:
            continue
        for names, discouraged in ((cell.encourage, False), (cell.discourage, True)):
            found |= {Wish(*read_wish(name), discouraged): None for name in names}
    if curves is not None:
        found |= {Wish(*read_wish(name), False): None for name in curves.encourage}
        found |= {Wish(*read_wish(name), True): None for name in curves.discourage}
    # Encouraged ones first, as read_wishes has them.
    return tuple(sorted(found, key=lambda wish: wish.discouraged))


def _with_recipe_weighting(options: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Return the options without a weighting, so that the recipe's own stays known; ``ours`` has none."""
    return options if recipe != "ours" else {**options, "weighting": "vanilla"}


def _check_weightings(wishes: Iterable[Wish], cells: Iterable[GridCell]) -> None:
    """Refuse a weighting that is not known before anything is trained."""
    from conceptkit._checks import near_names
    from conceptkit.guide.weighting import Weighting, parse_weighting
    from conceptkit.models.guided import MAIN, Task

    known = [MAIN, *dict.fromkeys(wish.concept for wish in wishes)]
    for text in dict.fromkeys(cell.weighting for cell in cells if is_trained(cell)):
        for name in parse_weighting(text)[1]:
            if name not in known:
                raise InputError(f"weightings: there is no task {name!r}; {near_names(name, known)}.")
        Weighting([Task(name=MAIN, kind="categorical")], text)


def _common(spec: GridSpec, bench: Bench, meant: Study) -> dict[str, Any]:
    """Return what all runs of one folder must have in common for their table to be one."""
    training = dataclasses.asdict(bench.setup.training)
    return {
        "conceptkit": versions()["conceptkit"],
        "torch": versions()["torch"],
        "study": meant.name,
        "table": meant.table.name,
        "images_sha256": bench.data.files_digest(),
        "table_sha256": hashlib.sha256(meant.table.read_bytes()).hexdigest(),
        "model": meant.model,
        "label": meant.label,
        "group": meant.group,
        "kinds": {**meant.kinds, **dict.fromkeys(spec.categorical, "categorical")},
        "splits": dataclasses.asdict(meant.splits),
        "recipe": spec.recipe,
        "concepts": sorted([list(wish) for wish in spec.wishes], key=str),  # in whatever order models name them
        "folds": spec.folds,
        "within": list(spec.within),
        **training,
    }


def _train(
    spec: GridSpec,
    todo: Sequence[Any],
    cells: Sequence[GridCell],
    engine: Engine,
    function: Any,
    progress: Progress | None,
) -> dict[str, str]:
    """Train what is not there yet, and return run → why it failed."""
    from conceptkit.workflow.grid_run import bench_of

    if not todo:
        return {}
    for model in dict.fromkeys(job.cell.model for job in todo):
        bench = bench_of(spec, model)  # the cut's values are computed once, here, and mapped by every process
        bench.progress = progress
        bench.inputs(bench.build(bench.setup.tasks[:1], bench.setup.training, 0))
        bench.progress = None
    runs = sum(is_trained(cell) for cell in cells) * len(spec.seeds)
    epochs = bench.setup.training.epochs
    done = runs - len(todo)
    stage = f"grid of {runs} runs, epochs"

    def tell(within: int = 0) -> None:
        if progress is not None:
            progress(stage, min(done * epochs + within, runs * epochs), runs * epochs)

    tell()
    if engine.name == "processes" and engine.workers == 1 and progress is not None:
        for model in dict.fromkeys(job.cell.model for job in todo):
            bench_of(spec, model).progress = lambda stage, at, of: tell(at) if stage.startswith("training") else None
    failed: dict[str, str] = {}
    missed = False
    for outcome in run_jobs(function, todo, engine):
        done += 1
        tell()
        job = todo[outcome.index]
        error = outcome.error
        if error is None and not _appears(spec.folder, job.cell, job.seed, 0.0 if missed else APPEARS_WITHIN):
            missed = True  # the next would not appear either: it is not waited for
            error = f"its worker finished it, but not in {spec.folder}: workers must see that folder under this path."
        if error is not None:
            failed[f"{job.cell.name}, seed {job.seed}"] = error
    if len(failed) == runs:
        raise InputError(f"guide: no run of the grid could be trained: {next(iter(failed.values()))}")
    return failed


def _appears(folder: Path, cell: GridCell, seed: int, within: float) -> bool:
    """Return whether a run that was finished is seen in the folder within so many seconds, as shared disks are slow."""
    from conceptkit.workflow.grid_folder import is_kept

    until = time.monotonic() + within
    while not is_kept(folder, cell, seed):
        if time.monotonic() >= until:
            return False
        time.sleep(0.5)
    return True


def _threads(engine: Engine) -> int | None:
    """Return the threads of each process of this machine's pool, so that together they have its processors."""
    cores = usable_processors()
    workers = engine.workers or cores
    if engine.name != "processes" or workers == 1:
        return None
    return max(1, min(cores // workers, int(os.environ.get("OMP_NUM_THREADS") or cores)))


def _collect(
    spec: GridSpec,
    folder: Path,
    bench: Bench,
    grid: str,
    cells: list[GridCell],
    failed: dict[str, str],
    notes: list[str],
    affinity: bool,
    protocol: str,
    progress: Progress | None,
) -> GridRecord:
    """Make the record of all runs that are there, and write it with what its report shows."""
    from conceptkit.guide.reading import paired_differences
    from conceptkit.report.drawing import to_bytes
    from conceptkit.report.grid_figures import grid_figures
    from conceptkit.workflow.grid_folder import is_kept, load_run
    from conceptkit.workflow.grid_run import computed_runs

    meant, reading, plan = bench.meant, bench.reading, bench.setup.plan
    kept: list[KeptRun] = [
        load_run(folder, cell, seed)
        for cell in cells
        if is_trained(cell)
        for seed in spec.seeds
        if is_kept(folder, cell, seed)
    ]
    trained: list[TrainedRun] = [run.trained for run in kept]
    for cell in cells:
        if not is_trained(cell):
            try:
                trained += computed_runs(spec, cell, cells)
            except InputError as error:  # the network that it builds on failed
                failed[cell.name] = str(error)
    order = {cell.name: k for k, cell in enumerate(cells)}
    trained.sort(key=lambda run: order[run.record.name])
    record = GridRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        settings={
            "command": "guide",
            "ablate": grid,
            "table": meant.table.name,
            "model": meant.model,
            "weights": bench.setup.backbone.weights,
            "weights_sha256": bench.setup.backbone.fingerprint(),
            "label": meant.label,
            "train": meant.splits.train,
            "val": meant.splits.val,
            "seeds": list(spec.seeds),
            "folds": spec.folds,
            "within": list(reading.strata),
            "protocol": protocol,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            "groups": {name: len(np.unique(plan.groups[rows])) for name, rows in plan.rows.items()},
            "recipe": spec.recipe,
            **{k: v for k, v in dataclasses.asdict(bench.setup.training).items() if k != "weighting"},
        },
        versions=versions(),
        folder=folder,
        grid=grid,
        cells=tuple(cells),
        runs=tuple(run.record for run in trained),
        units={k: v for k, v in meant.units.items() if k in {*reading.encourage, *reading.discourage}},
        evaluated_on=reading.where,
        failed=failed,
    )
    counted = count_splits(meant)
    notes = [
        *(note for note in bench.setup.notes if "No concept was encouraged" not in note),
        *reading.notes,
        *bench.notes,
        *balance_notes(bench.setup.training, bench.setup.tasks),
        *notes,
        *(note for note in counted.notes if note.startswith("Split ")),
        *(f"{run} failed: {why}" for run, why in failed.items()),
        "Thresholds and epochs were chosen on validation rows; internal and external rows had no say.",
    ]
    pairs = _pairs(record)
    record = dataclasses.replace(
        record,
        splits=counted.rows,
        differences=tuple(paired_differences(trained, plan, reading, pairs=pairs)),
        patch_level=tuple(_patch_level(trained, bench, pairs)) if protocol == "paper" else (),
        affinity=tuple(_affinities(spec, bench, progress)) if affinity else (),
        notes=(*notes, PATCH_LEVEL_NOTE) if protocol == "paper" else tuple(notes),
    )
    _write_pictures(folder, bench, kept, trained)
    for drawing in grid_figures(record):
        (folder / f"{drawing.name}.svg").write_bytes(to_bytes(drawing.figure))
    record.save(folder)
    return record


def _pairs(record: GridRecord) -> list[tuple[str, str]]:
    """Return which cells are compared: each with the single task of its weighting, and with that of vanilla."""
    single = [c for c in record.cells if not (c.encourage or c.discourage) and c.weighting]
    pairs: dict[tuple[str, str], None] = {}
    for cell in record.cells:
        against = record.reference(cell)
        vanilla = next(
            (c.name for c in single if c.weighting == "vanilla" and c.model in (cell.model or c.model,)), None
        )
        for other in (against, vanilla):
            if other is not None and other != cell.name:
                pairs[cell.name, other] = None
    return list(pairs)


def _patch_level(trained: Sequence[TrainedRun], bench: Bench, pairs: Sequence[tuple[str, str]]) -> Iterable[PatchLevel]:
    """Compare by resamples of pooled patches; what has one seed only stands beside every seed of the other."""
    from conceptkit.evaluate.patch_level import compare_patches, patch_resamples
    from conceptkit.guide.reading import evaluated

    plan = bench.setup.plan
    by_name: dict[str, list[TrainedRun]] = {}
    for run in trained:
        by_name.setdefault(run.record.name, []).append(run)
    for split, rows in evaluated(plan).items():
        y, place = plan.codes[rows], np.searchsorted(plan.used, rows)
        resamples = patch_resamples(y)
        for name, against in pairs:
            if name not in by_name or against not in by_name:
                continue
            both = [[run.probability[place] for run in by_name[n]] for n in (name, against)]
            found = compare_patches(y, both[0], both[1], resamples)
            yield PatchLevel(
                run=name,
                against=against,
                split=split,
                mean=float(found.first.mean()),
                sd=float(found.first.std(ddof=1)),
                difference=float((found.first - found.second).mean()),
                p=found.p,
                resamples=len(resamples),
            )


def _affinities(spec: GridSpec, bench: Bench, progress: Progress | None) -> Iterable[Affinity]:
    """Measure what each task's step does to each other's loss, mean and SD over seeds."""
    from conceptkit.guide.affinity import measure_affinity

    setup = bench.setup
    tasks, found = setup.tasks, []
    for k, seed in enumerate(spec.seeds):
        network = bench.build(tasks, setup.training, seed)
        found.append(measure_affinity(network, bench.inputs(network), bench.targets(tasks), bench.at, seed=seed))
        if progress is not None:
            progress("affinity", k + 1, len(spec.seeds))
    values = np.stack(found)  # (seeds, tasks, tasks)
    for i, step in enumerate(tasks):
        for j, on in enumerate(tasks):
            own = values[:, i, j]
            spread = float(own.std(ddof=1)) if len(own) > 1 else float("nan")
            yield Affinity(step=step.name, on=on.name, value=float(own.mean()), sd=spread)


def _write_pictures(folder: Path, bench: Bench, kept: Sequence[KeptRun], trained: Sequence[TrainedRun]) -> None:
    """Write what the report draws: features of one seed's networks, predictions, and the patches themselves."""
    from conceptkit.guide.embeddings import drawn_rows, write_embeddings

    rows, plan, reading = bench.evaluated, bench.setup.plan, bench.reading
    place = np.searchsorted(bench.used, rows)
    trunks, spaces = {}, {}
    for run in kept:
        if run.trunk is not None:
            name = f"{run.trained.record.name}-seed{run.trained.record.seed}"
            trunks[name] = np.zeros((len(rows), run.trunk.shape[1]), np.float32)
            trunks[name][drawn_rows(len(rows))] = run.trunk  # the other rows are not drawn
            spaces[name] = run.spaces
    probabilities = {f"{r.record.name}-seed{r.record.seed}": r.probability[place] for r in trained}
    write_embeddings(
        folder, bench.data, bench.meant, rows, trunks, spaces=spaces, probabilities=probabilities, classes=plan.classes
    )
    wanted = [*reading.encourage, *reading.discourage, *bench.meant.concepts]
    write_context(
        folder,
        bench.data,
        bench.meant,
        bench.used,
        concepts=names_kept(bench.meant, bench.data, wanted),
        targets=[
            dataclasses.replace(target, rows=np.searchsorted(bench.used, reading.split_rows[target.rows]))
            for target in {**reading.concepts, **reading.leaks}.values()
        ],
        folds=reading.folds,
    )
