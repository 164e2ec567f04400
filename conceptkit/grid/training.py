"""Training the unfinished runs of a grid in processes or on a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from conceptkit.errors import InputError
from conceptkit.grid.folder import is_kept
from conceptkit.grid.plan import is_trained
from conceptkit.grid.run import GridJob, GridSpec, bench_of, train_run
from conceptkit.jobs import Engine, run_jobs, usable_processors
from conceptkit.options.base import Progress
from conceptkit.records import GridCell

APPEARS_WITHIN = 10.0
"""Seconds within which the folder of a run that another machine finished must appear here"""


def train_missing(
    spec: GridSpec, cells: Sequence[GridCell], engine: Engine, progress: Progress | None
) -> dict[str, str]:
    """Train the runs that are not in the folder yet, and return run → why it failed.

    Raises
    ------
    InputError
        when no run at all could be trained
    """
    threads = _threads(engine)
    todo = [
        GridJob(spec, cell, seed, threads)
        for cell in cells
        if is_trained(cell)
        for seed in spec.options.seeds
        if not is_kept(spec.folder, cell, seed)
    ]
    if not todo:
        return {}
    for model in dict.fromkeys(job.cell.model for job in todo):
        bench = bench_of(spec, model)  # the frozen part's output is computed once, here, and mapped by every process
        bench.progress = progress
        bench.inputs(bench.build(bench.setup.tasks[:1], bench.setup.training, 0))
        bench.progress = None
    runs = sum(is_trained(cell) for cell in cells) * len(spec.options.seeds)
    epochs = bench.setup.training.epochs
    done = runs - len(todo)
    stage = f"grid of {runs} runs, epochs"

    def count(within: int = 0) -> None:
        if progress is not None:
            progress(stage, min(done * epochs + within, runs * epochs), runs * epochs)

    count()
    if engine.name == "processes" and engine.workers == 1 and progress is not None:
        for model in dict.fromkeys(job.cell.model for job in todo):
            bench_of(spec, model).progress = lambda stage, at, of: count(at) if stage.startswith("training") else None
    failed: dict[str, str] = {}
    missed = False
    for outcome in run_jobs(train_run, todo, engine):
        done += 1
        count()
        job = todo[outcome.index]
        error = outcome.error
        if error is None and not _appears(spec.folder, job.cell, job.seed, 0.0 if missed else APPEARS_WITHIN):
            missed = True  # the next would not appear either, so do not wait for it
            error = f"its worker did not write it into {spec.folder}; workers must see that folder under this path."
        if error is not None:
            failed[f"{job.cell.name}, seed {job.seed}"] = error
    if len(failed) == runs:
        raise InputError(f"guide: no run of the grid could be trained: {next(iter(failed.values()))}")
    return failed


def _appears(folder: Path, cell: GridCell, seed: int, within: float) -> bool:
    """Return whether a finished run appears in the folder within some seconds, as shared disks are slow."""
    until = time.monotonic() + within
    while not is_kept(folder, cell, seed):
        if time.monotonic() >= until:
            return False
        time.sleep(0.5)
    return True


def _threads(engine: Engine) -> int | None:
    """Return the number of threads of each process, so that together they use this machine's processors."""
    cores = usable_processors()
    workers = engine.workers or cores
    if engine.name != "processes" or workers == 1:
        return None
    return max(1, min(cores // workers, int(os.environ.get("OMP_NUM_THREADS") or cores)))
