"""Grids: many guided networks with their controls, trained from one cache, kept one by one, compared in one table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptkit.errors import InputError, check_place
from conceptkit.grid.plan import is_trained
from conceptkit.grid.request import read_request
from conceptkit.jobs import Engine
from conceptkit.options.base import Progress
from conceptkit.records import GridCell, GridRecord
from conceptkit.runs.opening import versions
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.grid.run import GridSpec
    from conceptkit.guide.bench import Bench


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
    notify: Callable[[str], None] | None = None,
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
    notify : receives a sentence per network that says what will be trained, before the training
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used, the folder is another grid's, or another process works on it
    """
    from conceptkit.commands.grid_record import write_grid_record
    from conceptkit.grid.folder import claim, locked, note_plan, remove_partial
    from conceptkit.grid.run import GridSpec, bench_of, forget, remove_cache
    from conceptkit.grid.training import train_missing

    folder = grid_folder(out)
    asked = read_request(
        study,
        ablate=ablate,
        weightings=weightings,
        controls=controls,
        noise=noise,
        fraction=fraction,
        affinity=affinity,
        protocol=protocol,
        encourage=encourage,
        discourage=discourage,
        table=table,
        model=model,
        weights=weights,
        group=group,
        categorical=categorical,
        recipe=recipe,
        options=options,
        seeds=seeds,
    )
    cells, notes, meant = list(asked.cells), list(asked.notes), asked.study
    spec = GridSpec(
        study=meant,
        categorical=tuple(categorical),
        folder=folder.absolute(),
        wishes=asked.wishes,
        recipe=recipe,
        options=_without_weighting(options, recipe),
        seeds=tuple(seeds),
        folds=folds,
        within=tuple(within),
        device=device,
        weights={asked.network: meant.weights, **dict.fromkeys(asked.second, _weights_of_second(meant))},
    )
    try:
        bench = bench_of(spec, asked.network)
        for name in asked.second:
            try:
                bench_of(spec, name)
            except InputError as error:
                cells = [cell for cell in cells if cell.model != name]
                notes.append(f"Models R1 and R8 were left out: {error}")
        if notify is not None:
            notify("\n".join([bench.setup.trains, *asked.skipped, *bench.reading.notes]))
        with locked(folder):
            networks = dict.fromkeys(cell.model for cell in cells if cell.model)
            weights_of = {name: bench_of(spec, name).setup.backbone.fingerprint() for name in networks}
            claim(folder, _common(spec, bench, meant), weights_of)
            remove_partial(folder)
            note_plan(folder, sum(is_trained(cell) for cell in cells) * len(seeds))
            failed = train_missing(spec, cells, engine or Engine(), progress)
            record = write_grid_record(
                spec,
                folder,
                bench,
                cells,
                grid=asked.grid,
                failed=failed,
                notes=notes,
                affinity=affinity,
                protocol=protocol,
                given={
                    "weightings": None if weightings is None else list(weightings),
                    "controls": controls,
                    "noise": list(noise),
                    "fraction": list(fraction),
                    "encourage": [wish.name for wish in asked.wishes if not wish.discouraged],
                    "discourage": [wish.name for wish in asked.wishes if wish.discouraged],
                    "engine": dataclasses.asdict(engine or Engine()),
                },
                progress=progress,
            )
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
    asked = read_request(
        study,
        ablate=ablate,
        weightings=weightings,
        controls=controls,
        noise=noise,
        fraction=fraction,
        affinity=affinity,
        protocol=protocol,
        encourage=encourage,
        discourage=discourage,
        table=table,
        model=model,
        weights=weights,
        group=group,
        categorical=categorical,
        recipe=recipe,
        options=options,
        seeds=seeds,
    )
    return list(asked.cells)


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


def _weights_of_second(meant: Study) -> str | None:
    return meant.weights if meant.weights in (None, "imagenet", "random") else "imagenet"


def _without_weighting(options: Mapping[str, Any] | None, recipe: str) -> dict[str, Any]:
    """Return the options without a weighting, so that the recipe's own stays known; ``ours`` has none."""
    others = {name: value for name, value in (options or {}).items() if name != "weighting"}
    return others if recipe != "ours" else {**others, "weighting": "vanilla"}


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
