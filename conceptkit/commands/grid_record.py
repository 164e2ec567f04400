"""The record of a grid: all runs that are there, compared, beside what its report draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit.commands.splits import count_splits
from conceptkit.errors import InputError
from conceptkit.grid.plan import is_trained
from conceptkit.guide.setup import balance_notes
from conceptkit.options.base import Progress
from conceptkit.records import Affinity, GridCell, GridRecord, PatchLevel
from conceptkit.runs.context import names_kept, write_context
from conceptkit.runs.opening import versions

if TYPE_CHECKING:
    from conceptkit.grid.folder import KeptRun
    from conceptkit.grid.run import GridSpec
    from conceptkit.guide.bench import Bench
    from conceptkit.guide.reading import TrainedRun

PATCH_LEVEL_NOTE = (
    "Protocol paper: resamples of patches, two-sided Wilcoxon on paired resamples. It takes the patches of one patient "
    "as independent, so that its p says nothing of new patients."
)


def write_grid_record(
    spec: GridSpec,
    folder: Path,
    bench: Bench,
    cells: Sequence[GridCell],
    *,
    grid: str,
    failed: dict[str, str],
    notes: Sequence[str],
    affinity: bool,
    protocol: str,
    given: Mapping[str, Any],
    progress: Progress | None,
) -> GridRecord:
    """Make the record of all runs that are there, and write it with what its report shows.

    Parameters
    ----------
    grid : its name
    failed : run → why it failed; what is computed from a failed run is added
    notes : what has to be said beside what the bench and the splits say
    affinity, protocol : as for :func:`conceptkit.run_grid`
    given : further options of that function, for the settings
    """
    from conceptkit.grid.folder import is_kept, load_run
    from conceptkit.grid.run import computed_runs
    from conceptkit.guide.reading import paired_differences
    from conceptkit.report.drawing import to_bytes
    from conceptkit.report.grid_figures import grid_figures

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
            "classes": list(plan.classes),
            "train": meant.splits.train,
            "val": meant.splits.val,
            "seeds": list(spec.seeds),
            "folds": spec.folds,
            "within": list(reading.strata),
            "protocol": protocol,
            "affinity": affinity,
            "group": meant.group,
            "categorical": list(spec.categorical),
            "device": spec.device,
            **given,
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
        inputs, targets = bench.inputs(network), bench.targets(tasks)
        found.append(measure_affinity(network, inputs, targets, bench.at, seed=seed, device=spec.device))
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
