"""One run of a grid: a cell and a seed, trained and read in whichever process, and kept in its folder."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.grid.columns import (
    altered,
    altered_task,
    control_task_name,
    random_target_task,
    random_values,
)
from conceptkit.grid.folder import keep_run, kept_inputs, load_run, run_path
from conceptkit.grid.plan import CONFOUNDER, MULTIMODAL, RANDOM_TARGET
from conceptkit.guide.setup import Wish, set_up
from conceptkit.records import GridCell, GuideRun
from conceptkit.runs.opening import open_study
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.guide.bench import Bench, Spaces
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.plan import Plan
    from conceptkit.guide.reading import Reading, TrainedRun
    from conceptkit.models.guided import Task

CACHE = "cache"
"""Folder, within the grid's, of what the frozen part of each network makes of the rows"""

DIVERGED = "diverged"
"""Folder, within the grid's, of the last good checkpoints of runs whose losses ended up not finite"""


@dataclass(frozen=True)
class GridSpec:
    """All that a process has to know of a grid to train any of its runs."""

    study: Study
    categorical: tuple[str, ...]
    folder: Path
    """Absolute; every process has to see it, and the table, under the same path"""
    wishes: tuple[Wish, ...]
    """Of all cells together"""
    recipe: str
    options: Mapping[str, Any]
    seeds: tuple[int, ...]
    folds: int
    within: tuple[str, ...]
    device: str
    weights: Mapping[str, str | None]
    """Network → its weights, as they were named"""


@dataclass(frozen=True)
class GridJob:
    """One run."""

    spec: GridSpec
    cell: GridCell
    seed: int
    threads: int | None = None
    """Of a process that shares its machine with others; ``None`` leaves the number as it is"""


_one_at_a_time = threading.Lock()  # a worker of Dask's may have several threads, and a bench serves one network
_benches: dict[tuple[str, str], Bench] = {}
"""Of the grid that this process works on: (folder, network) → bench; a network is opened once per process"""


def bench_of(spec: GridSpec, model: str) -> Bench:
    """Return this process' bench for a network of the grid."""
    from conceptkit.guide.bench import Bench
    from conceptkit.guide.engine import TrainingEngine
    from conceptkit.guide.reading import Reading

    key = (str(spec.folder), model)
    if key not in _benches:
        for other in [k for k in _benches if k[0] != key[0]]:
            del _benches[other]
        meant, data = open_study(spec.study, None, model, spec.weights[model], None, spec.categorical)
        setup = set_up(meant, data, spec.wishes, spec.recipe, spec.options, spec.seeds)
        if setup.origin is not None:
            raise InputError(f"model: a grid starts from a plain network, {model} is a checkpoint of a guided one.")
        reading = Reading.of(data, meant, setup.plan, *_read(spec.wishes), spec.folds, spec.within)
        place = spec.folder / CACHE / model.replace("/", "-")
        _benches[key] = Bench(
            data,
            meant,
            setup,
            reading,
            TrainingEngine(device=spec.device),
            keep_inputs=lambda make: kept_inputs(place, make),
        )
    return _benches[key]


def forget(spec: GridSpec) -> None:
    """Let go of a grid's benches, and of the mapped files with them."""
    for key in [k for k in _benches if k[0] == str(spec.folder)]:
        del _benches[key]


def _read(wishes: tuple[Wish, ...]) -> tuple[list[str], list[str]]:
    """Return the concepts that are read from every network: encouraged somewhere, discouraged somewhere."""
    found: tuple[list[str], list[str]] = ([], [])
    for wish in wishes:
        if wish.concept not in found[wish.discouraged]:
            found[wish.discouraged].append(wish.concept)
    return found


def train_run(job: GridJob) -> None:
    """Train and read one run, and keep it in the grid's folder."""
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with _one_at_a_time:
        _train_run(job)


def _train_run(job: GridJob) -> None:
    spec, cell, seed = job.spec, job.cell, job.seed
    bench = bench_of(spec, cell.model)
    tasks, columns = cell_tasks(bench, cell, seed)
    training = cell_training(bench, cell)
    final = run_path(spec.folder, cell, seed)
    state = final.parent.parent / "states" / f"{final.name}.ckpt"
    state.parent.mkdir(parents=True, exist_ok=True)

    def make(partial: Path) -> tuple[TrainedRun, Spaces | None, NDArray[np.intp]]:
        run, spaces = bench.train(
            cell.name,
            tasks,
            training,
            seed=seed,
            checkpoint=partial / "checkpoint",
            seen_as=final / "checkpoint",
            rescued=spec.folder / DIVERGED / final.name,
            state=state,
            columns=columns,
            draw=seed == spec.seeds[0],
        )
        return run, spaces, bench.drawn

    keep_run(spec.folder, cell, seed, make)
    state.unlink(missing_ok=True)


def cell_training(bench: Bench, cell: GridCell) -> TrainingOptions:
    """Return the options of a cell: the grid's, with the cell's weighting.

    Where the recipe weighs some tasks in a way of their own and the cell asks for what it weighs the others by, the
    recipe is followed.
    """
    from conceptkit.guide.weighting import parse_weighting

    training = bench.setup.training
    stated, own = parse_weighting(training.weighting)
    wanted, named = parse_weighting(cell.weighting)
    if own and not named and stated == wanted:
        return training
    return dataclasses.replace(training, weighting=cell.weighting)


def cell_tasks(bench: Bench, cell: GridCell, seed: int) -> tuple[list[Task], dict[str, NDArray[Any]]]:
    """Return the tasks of a cell, the main task first, and the values that are not the table's."""
    from conceptkit.guide.plan import read_wish

    setup, at = bench.setup, bench.at
    tasks, columns = [setup.tasks[0]], {}
    if cell.control == RANDOM_TARGET:
        values = random_values(len(bench.used), seed)
        tasks.append(random_target_task(values, at))
        return tasks, {RANDOM_TARGET: values}
    for names, adversarial in ((cell.encourage, False), (cell.discourage, True)):
        for text in names:
            concept, layer = read_wish(text)
            task = next(t for t in setup.tasks[1:] if (t.name, t.layer, t.adversarial) == (concept, layer, adversarial))
            if not adversarial and (cell.control or cell.curve):
                values = altered(cell, bench.values(concept), at, seed)
                task = dataclasses.replace(altered_task(task, values, at), name=control_task_name(cell, concept))
                columns[task.name] = values
            tasks.append(task)
    return tasks, columns


def computed_runs(spec: GridSpec, cell: GridCell, cells: Sequence[GridCell]) -> list[TrainedRun]:
    """Return the runs of a cell for which no network is trained."""
    if cell.control == CONFOUNDER:
        bench = next(iter(bench for key, bench in _benches.items() if key[0] == str(spec.folder)))
        return [confounder_run(cell, bench.values(cell.discourage[0]), bench.setup.plan, bench.reading, spec.seeds[0])]
    if cell.control == MULTIMODAL:
        single = next(c for c in cells if c.name == cell.base)
        return [multimodal_run(spec, cell, single, seed) for seed in spec.seeds]
    raise RuntimeError(f"{cell.name} is trained")


def confounder_run(cell: GridCell, values: NDArray[Any], plan: Plan, reading: Reading, seed: int) -> TrainedRun:
    """Predict the label by the share of each class among training rows of the same value, and by nothing else.

    Parameters
    ----------
    values : (n used rows,) of the discouraged concept; a continuous one is cut at the training rows' quintiles. What
        training rows do not have is given the share over all of them
    """
    from conceptkit.guide.reading import TrainedRun, split_scores

    codes = plan.codes[plan.used]
    train = np.searchsorted(plan.used, plan.rows["train"])
    train = train[codes[train] >= 0]
    if values.dtype.kind == "f":
        own = values[train][np.isfinite(values[train])]
        edges = np.quantile(own, [0.2, 0.4, 0.6, 0.8])
        keys = [None if not np.isfinite(v) else int(np.searchsorted(edges, v)) for v in values]
    else:
        keys = list(values)
    indicators = np.eye(len(plan.classes))[codes[train]]
    everywhere = indicators.mean(0)
    shares = {}
    for key in {keys[i] for i in train} - {None}:
        shares[key] = indicators[[keys[i] == key for i in train]].mean(0)
    found = np.stack([shares.get(key, everywhere) for key in keys])
    probability = found[:, 1] if len(plan.classes) == 2 else found
    record = GuideRun(
        name=cell.name,
        seed=seed,
        checkpoint="",
        metrics=split_scores(probability, plan, reading),
        concepts={},
        leakage={},
    )
    return TrainedRun(record, probability, np.empty((0, 0), np.float32), {})


def multimodal_run(spec: GridSpec, cell: GridCell, single: GridCell, seed: int) -> TrainedRun:
    """Predict the label from the single-task network's trunk and the concept values together, as noisy as the cell's.

    Concept values are an input here, so that they are needed of every row, and their noise is in every row.
    """
    from conceptkit.guide.concept_network import Column, design, fit_concept_network
    from conceptkit.guide.plan import read_wish
    from conceptkit.guide.reading import TrainedRun, split_scores
    from conceptkit.guide.training import predict
    from conceptkit.models.checkpoints import inside, load_checkpoint

    bench = bench_of(spec, cell.model)
    plan = bench.setup.plan
    run = load_run(spec.folder, single, seed).trained.record
    _, network = inside(load_checkpoint(Path(run.checkpoint)))
    if network is None:
        raise RuntimeError("a grid's checkpoint holds a guided network")
    start = bench.build(bench.setup.tasks[:1], cell_training(bench, single), seed)
    start.load_state_dict(network.state_dict())
    trunk = predict(start, bench.inputs(start), device=spec.device)[1].numpy().astype(np.float64)
    columns = [Column("continuous", trunk[:, k]) for k in range(trunk.shape[1])]
    for text in cell.encourage:
        concept = bench.data.concept(read_wish(text)[0])
        values = altered(cell, concept.values[bench.used], bench.at, seed)
        columns.append(Column(concept.kind, values))
    at, codes = bench.at, plan.codes[plan.used]
    X = design(columns, at["train"])
    probability = fit_concept_network(X, codes, at["train"], at["val"], n_classes=len(plan.classes), seed=seed)
    record = GuideRun(
        name=cell.name,
        seed=seed,
        checkpoint="",
        metrics=split_scores(probability, plan, bench.reading),
        concepts={},
        leakage={},
        history=({"epoch": 0.0},),
    )
    return TrainedRun(record, probability, np.empty((0, 0), np.float32), {})


def remove_cache(folder: Path) -> None:
    """Remove what can be computed anew."""
    for name in (CACHE, "states"):
        shutil.rmtree(folder / name, ignore_errors=True)
