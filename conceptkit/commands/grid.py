"""Grids: many guided networks with their controls, trained from one cache, kept one by one, compared in one table."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.commands.grid_record import declared_contrast, write_grid_record
from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import held
from conceptkit.grid.folder import claim, note_plan, remove_partial
from conceptkit.grid.plan import is_trained
from conceptkit.grid.request import GridRequest, read_request
from conceptkit.grid.run import GridSpec, bench_of, forget, remove_cache
from conceptkit.grid.training import train_missing
from conceptkit.guide.contrast import announced
from conceptkit.jobs import Engine
from conceptkit.options.base import Notify, Progress
from conceptkit.options.grid import Grid
from conceptkit.records import GridCell, GridRecord
from conceptkit.runs.opening import versions
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class GridOutline:
    """The cells that a grid would train or compute."""

    study: str
    cells: tuple[GridCell, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        cells = [dataclasses.asdict(cell) for cell in self.cells]
        return {"schema": "conceptkit/grid-outline/1", "study": self.study, "cells": cells}


def grid(
    options: Grid,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> GridRecord | GridOutline:
    """Train a grid of networks with its controls; an interrupted grid is resumed. A dry run returns the outline.

    Parameters
    ----------
    out : the grid's folder, which the same command resumes; ``None`` for the next free ``runs/grid-NNN``
    notify : receives before the training what will be trained and which concepts are skipped
    """
    engine = Engine(name=options.engine, workers=options.workers, scheduler=options.scheduler)
    folder = grid_folder(out)
    request = read_request(study, options)
    if options.dry_run:
        return GridOutline(request.study.name, request.cells)
    if notify is not None:
        notify(f"Each finished run is kept in {folder}; the same command with --out {folder} resumes the grid.")
    spec = _spec(request, folder)
    try:
        bench = bench_of(spec, str(request.study.model))
        request = _without_missing_networks(spec, request)
        primary, said = declared_contrast(bench, request.cells, options.primary)
        if notify is not None:
            notify("\n".join([bench.setup.trains, *request.skipped, *bench.reading.notes, *said, *announced(primary)]))
        with held(folder):
            networks = dict.fromkeys(cell.model for cell in request.cells if cell.model)
            digests = {name: bench_of(spec, name).setup.backbone.fingerprint() for name in networks}
            claim(folder, _common(spec), digests)
            remove_partial(folder)
            note_plan(folder, sum(is_trained(cell) for cell in request.cells) * len(options.seeds))
            failed = train_missing(spec, request.cells, engine, progress)
            record = write_grid_record(spec, request, folder, failed, progress, primary, said)
            remove_cache(folder)
    finally:
        forget(spec)
    return record


def grid_folder(out: str | Path | None) -> Path:
    """Return the folder to write into, which may hold a part of the same grid."""
    if out is None:
        numbered = (Path("runs") / f"grid-{number:03d}" for number in itertools.count(1))
        out = next(folder for folder in numbered if not folder.exists())
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder.")
    check_place("out", folder)
    return folder


def _spec(request: GridRequest, folder: Path) -> GridSpec:
    study, options = request.study, request.options
    second = dict.fromkeys(request.second, _weights_of_second(study))
    return GridSpec(
        study=study,
        # Each cell has a weighting. Without one here that of the recipe is known; the recipe ours has none.
        options=options.replace(weighting="vanilla" if options.recipe == "ours" else None),
        folder=folder.absolute(),
        goals=request.goals,
        weights={str(study.model): study.weights, **second},
    )


def _weights_of_second(study: Study) -> str | None:
    return study.weights if (study.weights or "random").partition(":")[0] in ("imagenet", "random") else "imagenet"


def _without_missing_networks(spec: GridSpec, request: GridRequest) -> GridRequest:
    """Return the request without the paper's other networks that cannot be opened, and a note on each."""
    for name in request.second:
        try:
            bench_of(spec, name)
        except InputError as error:
            request = dataclasses.replace(
                request,
                cells=tuple(cell for cell in request.cells if cell.model != name),
                notes=(*request.notes, f"Models R1 and R8 were skipped: {error}"),
            )
    return request


def _common(spec: GridSpec) -> dict[str, Any]:
    """Return what all runs of one folder must have in common for their table to be one."""
    bench = bench_of(spec, str(spec.study.model))
    study, options = bench.study, spec.options
    return {
        "conceptkit": versions()["conceptkit"],
        "torch": versions()["torch"],
        "study": study.name,
        "table": study.table.name,
        "images_sha256": bench.data.files_digest(),
        "table_sha256": study.table_digest(),
        "model": study.model,
        "label": study.label,
        "group": study.group,
        "kinds": {**study.kinds, **dict.fromkeys(options.categorical, "categorical")},
        "splits": dataclasses.asdict(study.splits),
        "recipe": options.recipe,
        "concepts": sorted([list(goal) for goal in spec.goals], key=str),  # models may name them in any order
        "folds": options.folds,
        "within": list(options.within),
        "primary": options.primary,
        **dataclasses.asdict(bench.setup.training),
    }
