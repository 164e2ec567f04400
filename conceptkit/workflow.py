"""What the commands and the Python functions come to: the only place where the rooms are wired together."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_distinct
from conceptkit.patches import PatchTable
from conceptkit.records import RECORD_FILE, GuideRecord, ProbeRecord, ProbeRow
from conceptkit.study import STUDY_FILE, Study, load_study, table_study
from conceptkit.synthetic import cache_folder, embedded_study

if TYPE_CHECKING:
    from conceptkit.models.backbones import Backbone
    from conceptkit.models.guided import Task
    from conceptkit.pathology.measuring import Measured

Progress = Callable[[str, int, int], None]
"""Told the stage of the work, how much of it is done, and how much there is."""

RANDOM_NETWORKS = 3
"""Networks of random weights whose mean score is the control."""

N_RESAMPLES = 2000
"""Bootstrap resamples of groups behind each interval."""


def find_study(study: Study | str | Path | None = None, table: str | Path | None = None) -> Study:
    """Return the study that is meant: the one given, a bare table's, the current folder's, or the embedded one."""
    if isinstance(study, Study):
        found = study
    elif study is not None:
        found = load_study(study)
    elif table is not None:
        return table_study(Path(table))
    else:
        found = load_study(STUDY_FILE) if Path(STUDY_FILE).is_file() else embedded_study()
    return found if table is None else found.replace(table=Path(table), synthetic=False)


def run_probe(
    study: Study | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    split: str | None = None,
    pool: str = "gap",
    folds: int = 5,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> ProbeRecord:
    """Measure how well concepts are read from layers of a network, on patients that the vectors have not seen.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    layers, concepts : names; ``None`` for the study's
    table, model, weights, group : instead of the study's; a model without weights means ``imagenet``
    categorical : concepts to take as classes whatever their type
    split : the only split whose rows are used; ``None`` for all rows
    pool : ``gap``, ``max`` or ``flatten``
    folds : of the cross-validation
    seed : of the resamples, the shuffled patch-wise folds and the random networks
    device : ``auto``, ``cpu``, ``cuda``, …
    batch_size : images per forward pass
    out : run folder; ``None`` for the next free ``runs/probe-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used; nothing is written then
    """
    from conceptkit.models.activations import read_activations
    from conceptkit.models.checkpoints import open_model, random_control
    from conceptkit.probe.validation import batches, check_activations, held_out, make_target, validate

    meant, data = _open(study, table, model, weights, group, categorical)
    folder = _run_folder(out, "probe")
    layers = list(layers or meant.layers)
    concepts = list(concepts or meant.concepts or data.concept_names)
    check_distinct("layer", layers)
    check_distinct("concept", concepts)
    keep = _split_rows(data, meant, split)
    groups = data.groups(meant.group)
    targets = []
    for name in concepts:
        concept = data.concept(name)
        missing: Any = np.nan if concept.kind == "continuous" else None
        targets.append(make_target(name, concept.kind, np.where(keep, concept.values, missing), groups))
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    notes = _notes(meant, data, concepts)
    backbone = open_model(meant.model, meant.weights, seed=seed)
    rows = np.unique(np.concatenate([t.rows for t in targets]))
    place = np.full(len(data), -1)
    place[rows] = np.arange(len(rows))

    def activations(network: Backbone, what: str) -> dict[str, NDArray[np.float32]]:
        return read_activations(
            data,
            network,
            layers,
            cache=cache_folder(),
            rows=rows,
            pool=pool,
            batch_size=batch_size,
            device=device,
            progress=None if progress is None else lambda done, todo: progress(what, done, todo),
        )

    trained = activations(backbone, "reading activations")
    controls = []
    for i in range(RANDOM_NETWORKS):
        control = random_control(meant.model, backbone, seed=seed + 1 + i)
        controls.append(activations(control, f"random network {i + 1} of {RANDOM_NETWORKS}"))
    found: list[ProbeRow] = []
    parts = batches(targets)
    for done, (layer, part) in enumerate((layer, part) for layer in layers for part in parts):
        if progress is not None:
            progress("probing", done, len(layers) * len(parts))
        at = place[part[0].rows]
        X = trained[layer][at].astype(np.float64)
        check_activations(X, layer)
        results = validate(X, part, folds=folds, n_resamples=N_RESAMPLES, seed=seed)
        random_scores = []
        for control_activations in controls:
            Z = control_activations[layer][at].astype(np.float64)
            check_activations(Z, f"{layer} of a random network")
            predicted = held_out(Z, part, folds=folds)
            random_scores.append([t.score(p) for t, p in zip(part, predicted, strict=True)])
        for target, result, random_score in zip(part, results, np.mean(random_scores, axis=0), strict=True):
            found.append(
                ProbeRow(
                    model=backbone.name,
                    weights=backbone.weights,
                    layer=layer,
                    concept=target.name,
                    kind=target.kind,
                    n=len(target.y),
                    n_groups=target.n_groups,
                    folds=folds,
                    metric=target.metric,
                    score=result.score,
                    score_low=result.low,
                    score_high=result.high,
                    score_in_sample=result.in_sample,
                    score_patchwise=result.patchwise,
                    score_random_network=float(random_score),
                    chance=target.chance,
                    alpha=result.alpha,
                )
            )
    if progress is not None:
        progress("probing", len(layers) * len(parts), len(layers) * len(parts))
    order = {key: i for i, key in enumerate((layer, concept) for layer in layers for concept in concepts)}
    record = ProbeRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=notes,
        settings={
            "command": "probe",
            "table": meant.table.name,
            "model": meant.model,
            "weights": backbone.weights,
            "weights_sha256": backbone.fingerprint(),
            "layers": layers,
            "concepts": concepts,
            "split": split,
            "pool": pool,
            "folds": folds,
            "seed": seed,
            "batch_size": batch_size,
            "n_resamples": N_RESAMPLES,
        },
        versions=_versions(),
        folder=folder,
        rows=tuple(sorted(found, key=lambda row: order[row.layer, row.concept])),
    )
    record.save(folder)
    return record


def run_measure(
    images: str | Path,
    *,
    out: str | Path,
    patch_size: int = 224,
    names: Sequence[str] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Cut images into patches, measure the concepts of each, and write the patch table.

    Parameters
    ----------
    images : CSV, one row per image: ``image``, and where known ``mask``, ``mpp``, ``patient``, …
    out : the table to write, ``.csv`` or ``.parquet``
    patch_size : side of a patch, in pixels
    names : measures to take; ``None`` for all that the images allow
    skip_bad : list a bad image in the result and go on, instead of ending there

    Raises
    ------
    InputError
        when something that was given cannot be used; an earlier table stays as it was
    """
    from conceptkit.pathology.measuring import measure_images, write_table

    measured = measure_images(
        Path(images),
        out=Path(out),
        patch_size=patch_size,
        names=names,
        on_error="skip" if skip_bad else "raise",
        progress=None if progress is None else lambda done, todo: progress("measuring images", done, todo),
    )
    write_table(measured.table, Path(out))
    return measured


def run_guide(
    study: Study | str | Path | None = None,
    *,
    encourage: Sequence[str] | None = None,
    discourage: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> GuideRecord:
    """Train a baseline and a guided network alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    encourage, discourage : concepts the guided network is to know, and not to know; ``None`` for the study's
    table, model, weights, group, categorical : as for :func:`run_probe`
    options : how both are trained: fields of :class:`conceptkit.guide.training.TrainingOptions` by name; by default the
        last block of a known backbone is trained with the trunk
    folds : of the cross-validation that reads concepts from the trained networks
    seeds : one baseline and one guided network per seed
    device : ``auto``, ``cpu``, ``cuda``, …
    out : run folder; ``None`` for the next free ``runs/guide-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.guide.embeddings import write_embeddings
    from conceptkit.guide.objective import encode
    from conceptkit.guide.plan import concept_task, make_plan
    from conceptkit.guide.reading import Reading, TrainedRun, paired_differences, read_run
    from conceptkit.guide.training import (
        Inputs,
        TrainingOptions,
        build_model,
        predict,
        prepare_inputs,
        remaining_part,
        train,
    )
    from conceptkit.models.checkpoints import open_model, save_checkpoint
    from conceptkit.models.guided import MAIN, Task
    from conceptkit.models.layers import last_block

    meant, data = _open(study, table, model, weights, group, categorical)
    folder = _run_folder(out, "guide")
    if encourage is None and discourage is None:
        encourage, discourage = meant.encourage, meant.discourage
    encourage, discourage = list(encourage or ()), list(discourage or ())
    check_distinct("encourage and discourage", [*encourage, *discourage])
    plan = make_plan(meant, data)
    notes = list(_notes(meant, data, [*encourage, *discourage]))
    main = Task(name=MAIN, kind="categorical", classes=plan.classes)
    extra = [
        concept_task(data, name, plan.rows["train"], adversarial=name in discourage)
        for name in (*encourage, *discourage)
    ]
    for task in extra:
        if task.name in (meant.label, MAIN):
            raise InputError(f"encourage and discourage: {task.name} is the main task itself.")
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"seeds: need at least one and no repeats, got {list(seeds)}.")
    backbone = open_model(meant.model, meant.weights, seed=seeds[0])
    block = last_block(backbone.module, backbone.architecture)
    if block is None and "unfreeze" not in (options or {}):
        notes.append(f"The last block of {meant.model} is not known by name: only trunk and heads were trained.")
    training = TrainingOptions(**{"unfreeze": (block,) if block else (), **(options or {})})
    training.check()
    reading = Reading.of(data, meant, plan, encourage, discourage, folds)
    notes += reading.notes

    used = plan.used
    part = data.select(used)
    at = {name: np.searchsorted(used, rows) for name, rows in plan.rows.items()}
    columns = {task.name: part.concept(task.name).values for task in extra}
    columns[MAIN] = part.concept(meant.label).values
    targets = {task.name: encode(task, list(columns[task.name])) for task in (main, *extra)}
    arms: dict[str, list[Task]] = {"baseline": [main]}
    if extra:
        arms["guided"] = [main, *extra]
    tensors: Any = None
    trained: list[TrainedRun] = []
    for seed in seeds:
        for name, tasks in arms.items():
            network = build_model(backbone, tasks, training, seed=seed)
            if tensors is None:
                pixels = _pixel_batches(part, 32, progress)
                tensors = prepare_inputs(network, backbone, pixels, batch_size=32, device=device)
            inputs = Inputs(tensors, remaining_part(network))
            stage = f"training {name}, seed {seed}"
            result = train(
                network,
                inputs,
                targets,
                at,
                training,
                seed=seed,
                device=device,
                progress=None if progress is None else _stage(progress, stage),
            )
            checkpoint = folder / "checkpoints" / f"{name}-seed{seed}"
            save_checkpoint(result.model, backbone, checkpoint)
            outputs, trunk = predict(result.model, Inputs(tensors, remaining_part(result.model)))
            raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 0, 1)
            trained.append(
                read_run(name, seed, checkpoint, result.history, tasks, raw, trunk.numpy(), plan, at, reading)
            )
            if progress is not None:
                progress(f"reading {name}, seed {seed}", 1, 1)
    if not extra:
        notes.append("No concept was encouraged or discouraged: only the baseline was trained.")
    notes.append("Baseline and guided networks share data, order, seeds, options and the weighting of losses.")
    record = GuideRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=tuple(notes),
        settings={
            "command": "guide",
            "table": meant.table.name,
            "model": meant.model,
            "weights": backbone.weights,
            "weights_sha256": backbone.fingerprint(),
            "label": meant.label,
            "seeds": list(seeds),
            "folds": folds,
            "n_resamples": N_RESAMPLES,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            **dataclasses.asdict(training),
        },
        versions=_versions(),
        folder=folder,
        encourage=tuple(encourage),
        discourage=tuple(discourage),
        units={k: v for k, v in meant.units.items() if k in {*encourage, *discourage}},
        evaluated_on=reading.where,
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading, n_resamples=N_RESAMPLES)),
    )
    evaluated = np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))
    place = np.searchsorted(used, evaluated)
    trunks = {f"{run.record.name}-seed{run.record.seed}": run.trunk[place] for run in trained}
    write_embeddings(folder, data, meant, evaluated, trunks)
    record.save(folder)
    return record


def write_report(runs: Sequence[str | Path | ProbeRecord | GuideRecord], out: str | Path = "report.html") -> Path:
    """Write one offline HTML page from run folders.

    Parameters
    ----------
    runs : run folders, or records that were just made
    out : the page

    Returns
    -------
    its path

    Raises
    ------
    InputError
        when a folder holds no record that can be read
    """
    from conceptkit.report.page import write_page

    folders = []
    for run in runs:
        if isinstance(run, ProbeRecord | GuideRecord):
            if run.folder is None:
                raise InputError("run: this record was not saved to a run folder.")
            folders.append(run.folder)
        else:
            folders.append(Path(run))
    return write_page(folders, Path(out))


def run_demo(
    out: str | Path = "runs/demo", *, seed: int = 0, progress: Progress | None = None
) -> tuple[ProbeRecord, GuideRecord, Path]:
    """Probe, guide and report on the embedded study.

    Parameters
    ----------
    out : folder for the two runs and the page; what an earlier demo left there is replaced
    seed : of training and resamples

    Returns
    -------
    the probe's record, the guide's record, the page
    """
    folder = Path(out)
    for name in ("probe", "guide"):
        if (folder / name / RECORD_FILE).exists():
            shutil.rmtree(folder / name)
    study = embedded_study()
    layers = ["mixed2", "mixed4", "mixed7", "mixed10"]
    probed = run_probe(study, layers=layers, seed=seed, out=folder / "probe", progress=progress)
    guided = run_guide(study, seeds=[seed], out=folder / "guide", progress=progress)
    return probed, guided, write_report([probed, guided], folder / "report.html")


def _open(
    study: Study | str | Path | None,
    table: str | Path | None,
    model: str | None,
    weights: str | None,
    group: str | None,
    categorical: Sequence[str],
) -> tuple[Study, PatchTable]:
    """Return the study with what was named instead of its own, and its table."""
    meant = find_study(study, table)
    if model is not None and weights is None:
        meant = dataclasses.replace(meant, weights=None)  # the study's weights are another model's
    meant = meant.replace(model=model, weights=weights, group=group)
    data = meant.load_table().with_kinds(dict.fromkeys(categorical, "categorical"))
    data.groups(meant.group)
    return meant, data


def _run_folder(out: str | Path | None, command: str) -> Path:
    """Return the folder to write into, which holds no record yet."""
    if out is None:
        number = 1
        while (Path("runs") / f"{command}-{number:03d}").exists():
            number += 1
        return Path("runs") / f"{command}-{number:03d}"
    folder = Path(out)
    if (folder / RECORD_FILE).exists():
        raise InputError(f"out: {folder} holds an earlier run; name another folder, or remove it first.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder.")
    return folder


def _split_rows(data: PatchTable, meant: Study, split: str | None) -> NDArray[np.bool_]:
    """Return which rows belong to the split; all of them when none is named."""
    if split is None:
        return np.ones(len(data), dtype=bool)
    column = data.column("split", meant.splits.column).astype("str")
    chosen = (column == split).to_numpy(dtype=bool)
    if not chosen.any():
        known = ", ".join(sorted(column.unique()))
        raise InputError(f"split: no row has {meant.splits.column} {split!r}; known: {known}.")
    return chosen


def _notes(meant: Study, data: PatchTable, concepts: Iterable[str]) -> tuple[str, ...]:
    """Return what a reader of the numbers has to know."""
    notes = []
    if meant.synthetic:
        notes.append("Synthetic tissue, generated by conceptkit: these numbers say nothing of real histology.")
    if meant.group is None:
        notes.append("No group column: rows were taken as independent, which patches of one patient are not.")
    elif (n := data.frame[meant.group].nunique()) < 10:
        notes.append(f"Only {n} groups: the intervals, which resample them, are not to be trusted.")
    notes += [note for name in concepts if (note := data.looks_categorical(name))]
    return tuple(notes)


def _versions() -> dict[str, str]:
    names = ("conceptkit", "torch", "timm", "numpy", "scikit-learn", "lightning", "umap-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _stage(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, todo: progress(stage, done, todo)


def _pixel_batches(data: PatchTable, size: int, progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    from conceptkit.models.activations import read_pixels

    for start in range(0, len(data), size):
        yield read_pixels(data, np.arange(start, min(start + size, len(data))))
        if progress is not None:
            progress("frozen part of the network", min(start + size, len(data)), len(data))
