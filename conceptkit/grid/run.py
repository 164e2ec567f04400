"""One run of a grid: a cell and a seed, trained and read in any process, and kept in the grid's folder."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.grid.columns import altered, altered_task, random_target_task
from conceptkit.grid.folder import CHECKPOINT, run_path
from conceptkit.grid.kept import KeptRun, keep_run, kept_inputs, load_run
from conceptkit.grid.plan import BALANCED, CONFOUNDER, RANDOM, RANDOM_TARGET
from conceptkit.guide.arms import random_values
from conceptkit.guide.bench import Arm, PatchBench, Places
from conceptkit.guide.concept_network import Column, design, fit_concept_network
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.feature_bench import FeatureBench
from conceptkit.guide.goals import Goal, concept_names, read_goals
from conceptkit.guide.plan import Plan
from conceptkit.guide.reading import Reading, TrainedRun, split_scores
from conceptkit.guide.setup import set_up
from conceptkit.guide.training import predict
from conceptkit.guide.weighting import parse_weighting
from conceptkit.models.checkpoints import inside, load_checkpoint
from conceptkit.models.guided import Task
from conceptkit.options.grid import Grid
from conceptkit.options.training import TrainingOptions
from conceptkit.records import GridCell, GuideRun
from conceptkit.runs.opening import open_study
from conceptkit.tables.study import Study

CACHE, STATES = "cache", "states"
"""Folders, in the grid's, of the output of each network's frozen part, and of unfinished trainings"""

DIVERGED = "diverged"
"""Folder, in the grid's, of the last good checkpoints of runs that diverged"""


@dataclass(frozen=True)
class GridSpec:
    """All that a process needs to train any run of a grid."""

    study: Study
    options: Grid
    """Without a weighting of the losses, which each cell has"""
    folder: Path
    """Absolute; every process must see it, and the table, under the same path"""
    goals: tuple[Goal, ...]
    """Of all cells together"""
    weights: Mapping[str, str | None]
    """Network → name of its weights"""


@dataclass(frozen=True)
class GridJob:
    """One run."""

    spec: GridSpec
    cell: GridCell
    seed: int
    threads: int | None = None
    """Number of threads of a process that shares its machine with others; ``None`` leaves it unchanged"""


_one_at_a_time = threading.Lock()  # a Dask worker may have several threads, and a bench serves one network
_benches: dict[tuple[str, str], PatchBench] = {}
"""(folder, network) → bench of the grid that this process works on; a network is opened once per process"""


def bench_of(spec: GridSpec, model: str) -> PatchBench:
    """Return this process' bench of one network of the grid."""
    key = (str(spec.folder), model)
    if key not in _benches:
        for other in [k for k in _benches if k[0] != key[0]]:
            del _benches[other]
        options = spec.options
        study, table = open_study(spec.study, None, model, spec.weights[model], None, options.categorical)
        setup = set_up(study, table, spec.goals, options, options.seeds)
        if setup.origin is not None:
            raise InputError(f"model: a grid starts from a plain network; {model} is a checkpoint of a guided one.")
        encourage, discourage = (concept_names([g for g in spec.goals if g.discouraged is d]) for d in (False, True))
        reading = Reading.of(table, study, setup.plan, encourage, discourage, options.folds, options.within)
        place = spec.folder / CACHE / model.replace("/", "-")
        make_bench = PatchBench if setup.X is None else FeatureBench
        _benches[key] = make_bench(
            table,
            study,
            setup.plan,
            reading,
            TrainingEngine(device=options.device),
            setup=setup,
            keep_inputs=lambda make: kept_inputs(place, make),
            copies=setup.training.augment,
        )
    return _benches[key]


def forget(spec: GridSpec) -> None:
    """Release the benches of a grid, and their mapped files."""
    for key in [k for k in _benches if k[0] == str(spec.folder)]:
        del _benches[key]


def train_run(job: GridJob) -> None:
    """Train and read one run, and keep it in the grid's folder."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with _one_at_a_time:
        _train_run(job)


def _train_run(job: GridJob) -> None:
    spec, cell, seed = job.spec, job.cell, job.seed
    bench = bench_of(spec, cell.model)
    tasks, columns = cell_tasks(bench, cell, seed)
    by = tuple(task for task in bench.setup.tasks if task.adversarial and task.name in cell.balanced_by)
    arm = Arm(cell.name, tasks, cell_training(bench, cell), seed, columns, by if cell.control == BALANCED else None)
    final = run_path(spec.folder, cell, seed)
    state = spec.folder / STATES / f"{final.name}.ckpt"

    def make(partial: Path) -> KeptRun:
        places = Places(
            partial / CHECKPOINT,
            recorded=final / CHECKPOINT,
            rescued=spec.folder / DIVERGED / final.name,
            state=state,
        )
        outcome = bench.train(arm, places)
        if seed != spec.options.seeds[0]:
            return KeptRun(outcome.run, None, {})
        return KeptRun(outcome.run, outcome.run.trunk[bench.drawn], bench.spaces(outcome))

    keep_run(spec.folder, cell, seed, make)
    state.unlink(missing_ok=True)


def cell_training(bench: PatchBench, cell: GridCell) -> TrainingOptions:
    """Return the options of a cell: the grid's, with the cell's weighting.

    A recipe that weighs single tasks in ways of their own is followed where the cell has the recipe's weighting of the
    other tasks.
    """
    training = bench.setup.training
    stated, own = parse_weighting(training.weighting)
    wanted, named = parse_weighting(cell.weighting)
    if own and not named and stated == wanted:
        return training
    return dataclasses.replace(training, weighting=cell.weighting)


def cell_tasks(bench: PatchBench, cell: GridCell, seed: int) -> tuple[list[Task], dict[str, NDArray[Any]]]:
    """Return the tasks of a cell, the main task first, and the values that replace the table's."""
    main, *others = bench.setup.tasks
    if cell.control == RANDOM:
        values = random_values(len(bench.used), seed)
        return [main, random_target_task(values, bench.at)], {RANDOM_TARGET: values}
    tasks, columns = [main], {}
    for goal in read_goals(cell.encourage, cell.discourage):
        task = next(t for t in others if Goal(t.name, t.layer, t.adversarial) == goal)
        if not goal.discouraged and (cell.control or cell.curve):
            values = altered(cell, bench.values(goal.concept), bench.at, seed)
            task = altered_task(cell, task, values, bench.at)
            columns[task.name] = values
        tasks.append(task)
    return tasks, columns


def computed_runs(spec: GridSpec, cell: GridCell, cells: Sequence[GridCell]) -> list[TrainedRun]:
    """Return the runs of a cell for which no network is trained."""
    seeds = spec.options.seeds
    if cell.control == CONFOUNDER:
        bench = next(iter(bench for key, bench in _benches.items() if key[0] == str(spec.folder)))
        return [confounder_run(cell, bench.values(cell.discourage[0]), bench.plan, bench.reading, seeds[0])]
    single = next(c for c in cells if c.name == cell.base)
    return [multimodal_run(spec, cell, single, seed) for seed in seeds]


def _computed(
    cell: GridCell, seed: int, probability: Floats, plan: Plan, reading: Reading, history: tuple[Any, ...] = ()
) -> TrainedRun:
    record = GuideRun(
        name=cell.name,
        seed=seed,
        checkpoint="",
        metrics=split_scores(probability, plan, reading),
        concepts={},
        leakage={},
        history=history,
    )
    return TrainedRun(record, probability, np.empty((0, 0), np.float32), {})


def confounder_run(cell: GridCell, values: NDArray[Any], plan: Plan, reading: Reading, seed: int) -> TrainedRun:
    """Predict the label only by the share of each class among training rows of the same value.

    Parameters
    ----------
    values : (n used rows,) of the discouraged concept; a continuous one is binned at the training rows' quintiles. A
        value that no training row has gets the shares over all of them
    """
    codes = plan.codes[plan.used]
    train = np.searchsorted(plan.used, plan.rows["train"])
    train = train[codes[train] >= 0]
    keys = pd.Series(values)
    if values.dtype.kind == "f":
        edges = np.quantile(values[train][np.isfinite(values[train])], [0.2, 0.4, 0.6, 0.8])
        keys = pd.Series(np.searchsorted(edges, values)).where(np.isfinite(values))
    indicators = pd.DataFrame(np.eye(len(plan.classes))[codes[train]])
    shares = indicators.groupby(keys.iloc[train].to_numpy()).mean()
    found = shares.reindex(keys).to_numpy()
    found = np.where(np.isnan(found), indicators.mean().to_numpy(), found)
    return _computed(cell, seed, found[:, 1] if len(plan.classes) == 2 else found, plan, reading)


def multimodal_run(spec: GridSpec, cell: GridCell, single: GridCell, seed: int) -> TrainedRun:
    """Predict the label from the single-task network's trunk and the concept values, as noisy as the cell's.

    Concept values are an input here, so every row needs them, and every row has their noise.
    """
    bench = bench_of(spec, cell.model)
    plan = bench.plan
    run = load_run(spec.folder, single, seed).trained.record
    _, network = inside(load_checkpoint(Path(run.checkpoint)))
    if network is None:
        raise RuntimeError("a grid's checkpoint holds a guided network")
    start = bench.build(bench.setup.tasks[:1], cell_training(bench, single), seed)
    start.load_state_dict(network.state_dict())
    trunk = predict(start, bench.inputs(start), device=spec.options.device)[1].numpy().astype(np.float64)
    columns = [Column("continuous", trunk[:, k]) for k in range(trunk.shape[1])]
    for goal in read_goals(cell.encourage, None):
        concept = bench.data.concept(goal.concept)
        columns.append(Column(concept.kind, altered(cell, concept.values[bench.used], bench.at, seed)))
    at, codes = bench.at, plan.codes[plan.used]
    X = design(columns, at["train"])
    probability = fit_concept_network(X, codes, at["train"], at["val"], n_classes=len(plan.classes), seed=seed)
    return _computed(cell, seed, probability, plan, bench.reading, history=({"epoch": 0.0},))


def remove_cache(folder: Path) -> None:
    """Remove what can be computed again."""
    for name in (CACHE, STATES):
        shutil.rmtree(folder / name, ignore_errors=True)
