"""The record of a grid: all finished runs, compared, with the files that its report draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conceptkit.commands.splits import count_splits
from conceptkit.errors import InputError
from conceptkit.evaluate.patch_level import compare_patches, patch_resamples
from conceptkit.grid.folder import is_kept
from conceptkit.grid.kept import KeptRun, load_run
from conceptkit.grid.plan import is_trained, models_of
from conceptkit.grid.request import GridRequest
from conceptkit.grid.run import GridSpec, bench_of, computed_runs
from conceptkit.guide.affinity import measure_affinity
from conceptkit.guide.bench import PatchBench
from conceptkit.guide.contrast import NONE, Contrast
from conceptkit.guide.embeddings import drawn_rows
from conceptkit.guide.endpoints import evaluated
from conceptkit.guide.reading import TrainedRun, declare, paired_differences
from conceptkit.guide.setup import ONLY_BASELINE, balance_notes
from conceptkit.models.backbones import weights_setting
from conceptkit.options.base import Progress
from conceptkit.records import Affinity, GridCell, GridRecord, Note, PatchLevel
from conceptkit.records.grid import reference_cell
from conceptkit.report.drawing import to_bytes
from conceptkit.report.grid_figures import grid_figures
from conceptkit.runs.opening import header

PATCH_LEVEL_NOTE = (
    "Protocol paper: resamples of patches, two-sided Wilcoxon on paired resamples. It takes the patches of one patient "
    "as independent, so that its p does not describe new patients."
)


def write_grid_record(
    spec: GridSpec,
    request: GridRequest,
    folder: Path,
    failed: dict[str, str],
    progress: Progress | None,
    primary: Contrast | None,
    said: Sequence[Note],
) -> GridRecord:
    """Make the record of all finished runs, and write it with the files of its report.

    Parameters
    ----------
    failed : run → why it failed; what is computed from a failed run is added
    primary, said : the contrast that was declared before the training, and notes on it
    """
    bench, options = bench_of(spec, str(spec.study.model)), spec.options
    kept = [
        load_run(folder, cell, seed)
        for cell in request.cells
        if is_trained(cell)
        for seed in options.seeds
        if is_kept(folder, cell, seed)
    ]
    trained = _with_computed(spec, request, [run.trained for run in kept], failed)
    study, reading, counted = bench.study, bench.reading, count_splits(bench.study)
    paper = options.protocol == "paper"
    notes = (
        *(note for note in bench.setup.notes if note != ONLY_BASELINE),
        *reading.notes,
        *said,
        *bench.notes,
        *balance_notes(bench.setup.training, bench.setup.tasks),
        *request.notes,
        *(note for note in counted.notes if Note.of(note).kind == "confounded"),
        *(Note("failed", f"{run} failed: {why}") for run, why in failed.items()),
        "Thresholds and epochs were chosen on validation rows only.",
        *([PATCH_LEVEL_NOTE] if paper else []),
    )
    record = GridRecord(
        **header(request.options, study, folder, notes, primary=str(primary or NONE), **_settings(request, bench)),
        grid=request.grid,
        cells=request.cells,
        runs=tuple(run.record for run in trained),
        units={k: v for k, v in study.units.items() if k in {*reading.encourage, *reading.discourage}},
        evaluated_on=reading.where,
        effective_groups=reading.endpoints.effective(bench.plan),
        failed=failed,
        splits=counted.rows,
        affinity=tuple(_affinities(spec, bench, progress)) if options.affinity else (),
    )
    pairs = _pairs(record.cells)
    record = dataclasses.replace(
        record,
        differences=tuple(paired_differences(trained, bench.plan, reading, pairs=pairs, primary=primary)),
        patch_level=tuple(_patch_level(trained, bench, pairs)) if paper else (),
    )
    _write_context(folder, bench, kept, trained)
    for drawing in grid_figures(record):
        (folder / f"{drawing.name}.svg").write_bytes(to_bytes(drawing.figure))
    record.save(folder)
    return record


def _with_computed(
    spec: GridSpec, request: GridRequest, trained: list[TrainedRun], failed: dict[str, str]
) -> list[TrainedRun]:
    """Return the runs with those that are computed from them, in the order of the cells."""
    for cell in request.cells:
        if not is_trained(cell):
            try:
                trained += computed_runs(spec, cell, request.cells)
            except InputError as error:  # the network that it is computed from failed
                failed[cell.name] = str(error)
    order = {cell.name: k for k, cell in enumerate(request.cells)}
    return sorted(trained, key=lambda run: order[run.record.name])


def _settings(request: GridRequest, bench: PatchBench) -> dict[str, Any]:
    """Return what the options leave to the study, the recipe and the network."""
    study, plan = bench.study, bench.plan
    return {
        "ablate": models_of(request.options),
        "model": study.model,
        "weights": weights_setting(bench.setup.backbone, study.weights),
        "weights_sha256": bench.setup.backbone.fingerprint(),
        "label": study.label,
        "classes": list(plan.classes),
        "train": study.splits.train,
        "val": study.splits.val,
        "within": list(bench.reading.strata),
        "encourage": [goal.name for goal in request.goals if not goal.discouraged],
        "discourage": [goal.name for goal in request.goals if goal.discouraged],
        "rows": {name: len(rows) for name, rows in plan.rows.items()},
        "groups": {name: len(np.unique(plan.groups[rows])) for name, rows in plan.rows.items()},
        **{k: v for k, v in dataclasses.asdict(bench.setup.training).items() if k != "weighting"},
    }


def declared_contrast(
    bench: PatchBench, cells: Sequence[GridCell], text: str | None
) -> tuple[Contrast | None, list[Note]]:
    """Return the primary contrast of a grid; by default that of its only model, and none with several models."""
    models = [cell.name for cell in cells if (cell.encourage or cell.discourage) and not (cell.control or cell.curve)]
    runs = list(dict.fromkeys(name for name, _ in _pairs(cells)))
    default = models[0] if len(models) == 1 else None
    return declare(text, runs, bench.plan, bench.reading, default=default)


def _pairs(cells: Sequence[GridCell]) -> list[tuple[str, str]]:
    """Return which cells are compared: each with the single task of its own weighting, and with that of vanilla."""
    single = [c for c in cells if not (c.encourage or c.discourage or c.balanced_by) and c.weighting == "vanilla"]
    pairs: dict[tuple[str, str], None] = {}
    for cell in cells:
        vanilla = next((c.name for c in single if c.model in (cell.model or c.model,)), None)
        for other in (reference_cell(cell, cells), vanilla):
            if other is not None and other != cell.name:
                pairs[cell.name, other] = None
    return list(pairs)


def _patch_level(
    trained: Sequence[TrainedRun], bench: PatchBench, pairs: Sequence[tuple[str, str]]
) -> Iterable[PatchLevel]:
    """Compare by resamples of pooled patches; a run of one seed is compared with every seed of the other."""
    plan = bench.plan
    by_name: dict[str, list[TrainedRun]] = {}
    for run in trained:
        by_name.setdefault(run.record.name, []).append(run)
    for split, rows in evaluated(plan).items():
        y, place = plan.codes[rows], np.searchsorted(plan.used, rows)
        resamples = patch_resamples(y)
        for name, against in pairs:
            if name not in by_name or against not in by_name:
                continue
            first, second = ([run.probability[place] for run in by_name[n]] for n in (name, against))
            compared = compare_patches(y, first, second, resamples)
            yield PatchLevel(
                run=name,
                against=against,
                split=split,
                mean=float(compared.first.mean()),
                sd=float(compared.first.std(ddof=1)),
                difference=float((compared.first - compared.second).mean()),
                p=compared.p,
                resamples=len(resamples),
            )


def _affinities(spec: GridSpec, bench: PatchBench, progress: Progress | None) -> Iterable[Affinity]:
    """Measure the effect of each task's step on the others' losses, mean and SD over seeds."""
    tasks, seeds, by_seed = bench.setup.tasks, spec.options.seeds, []
    for k, seed in enumerate(seeds):
        network = bench.build(tasks, bench.setup.training, seed)
        inputs, targets = bench.inputs(network), bench.targets(tasks)
        by_seed.append(measure_affinity(network, inputs, targets, bench.at, seed=seed, device=spec.options.device))
        if progress is not None:
            progress("affinity", k + 1, len(seeds))
    values = np.stack(by_seed)  # (seeds, tasks, tasks)
    for i, step in enumerate(tasks):
        for j, on in enumerate(tasks):
            spread = float(values[:, i, j].std(ddof=1)) if len(seeds) > 1 else float("nan")
            yield Affinity(step=step.name, on=on.name, value=float(values[:, i, j].mean()), sd=spread)


def _write_context(folder: Path, bench: PatchBench, kept: Sequence[KeptRun], trained: Sequence[TrainedRun]) -> None:
    """Write the features of one seed's networks, the predictions, and the patches themselves."""
    n = len(bench.evaluated)
    trunks, spaces = {}, {}
    for run in kept:
        if run.trunk is not None:
            trunk = np.zeros((n, run.trunk.shape[1]), np.float32)
            trunk[drawn_rows(n)] = run.trunk  # figures show no other row
            trunks[run.trained.label], spaces[run.trained.label] = trunk, run.spaces
    bench.write_context(folder, trained, trunks, spaces)
