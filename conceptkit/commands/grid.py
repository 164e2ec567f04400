"""Grids: many guided networks with their controls, trained from one cache, kept one by one, compared in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conceptkit.commands.grid_record import write_grid_record
from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import held
from conceptkit.grid.folder import claim, note_plan, remove_partial
from conceptkit.grid.plan import is_trained
from conceptkit.grid.request import GridRequest, read_request
from conceptkit.grid.run import GridSpec, bench_of, forget, remove_cache
from conceptkit.grid.training import train_missing
from conceptkit.jobs import Engine
from conceptkit.options.base import Progress
from conceptkit.options.grid import Grid
from conceptkit.records import GridCell, GridRecord
from conceptkit.runs.opening import versions
from conceptkit.tables.study import Study


def run_grid(
    study: Study | str | Path | None = None,
    *,
    engine: Engine | None = None,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GridRecord:
    """Train a grid of networks with its controls; an interrupted grid is resumed.

    Parameters
    ----------
    study : as for :func:`run_guide`
    engine : where runs are trained; ``None`` for one after the other in this process
    out : the grid's folder, which a second call with the same settings resumes; ``None`` for the next free
        ``runs/grid-NNN``
    notify : receives before the training what will be trained and which concepts are skipped, one line each
    progress : receives counts of the work
    options : fields of :class:`conceptkit.options.grid.Grid`

    Raises
    ------
    InputError
        when an option cannot be used, the folder is another grid's, or another process works on it
    """
    chosen, engine = Grid(**options), engine or Engine()
    folder = grid_folder(out)
    request = read_request(study, chosen)
    spec = _spec(request, chosen, folder)
    try:
        bench = bench_of(spec, str(request.study.model))
        request = _without_missing_networks(spec, request)
        if notify is not None:
            notify("\n".join([bench.setup.trains, *request.skipped, *bench.reading.notes]))
        with held(folder):
            networks = dict.fromkeys(cell.model for cell in request.cells if cell.model)
            digests = {name: bench_of(spec, name).setup.backbone.fingerprint() for name in networks}
            claim(folder, _common(spec), digests)
            remove_partial(folder)
            note_plan(folder, sum(is_trained(cell) for cell in request.cells) * len(chosen.seeds))
            failed = train_missing(spec, request.cells, engine, progress)
            record = write_grid_record(spec, request, folder, failed, engine, progress)
            remove_cache(folder)
    finally:
        forget(spec)
    return record


def outline_grid(study: Study | str | Path | None = None, **options: Any) -> list[GridCell]:
    """Return the cells of :func:`run_grid`, without training; it refuses the same mistakes."""
    return list(read_request(study, Grid(**options)).cells)


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


def _spec(request: GridRequest, options: Grid, folder: Path) -> GridSpec:
    study = request.study
    second = dict.fromkeys(request.second, _weights_of_second(study))
    # Without a weighting, so that the recipe's is known; each cell has one. The recipe ours has none.
    training = {name: value for name, value in options.options.items() if name != "weighting"}
    training |= {"weighting": "vanilla"} if options.recipe == "ours" else {}
    return GridSpec(
        study=study,
        options=dataclasses.replace(options, options=training),
        folder=folder.absolute(),
        goals=request.goals,
        weights={str(study.model): study.weights, **second},
    )


def _weights_of_second(study: Study) -> str | None:
    return study.weights if study.weights in (None, "imagenet", "random") else "imagenet"


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
        "table_sha256": hashlib.sha256(study.table.read_bytes()).hexdigest(),
        "model": study.model,
        "label": study.label,
        "group": study.group,
        "kinds": {**study.kinds, **dict.fromkeys(options.categorical, "categorical")},
        "splits": dataclasses.asdict(study.splits),
        "recipe": options.recipe,
        "concepts": sorted([list(goal) for goal in spec.goals], key=str),  # models may name them in any order
        "folds": options.folds,
        "within": list(options.within),
        **dataclasses.asdict(bench.setup.training),
    }
