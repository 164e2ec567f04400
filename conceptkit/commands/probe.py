"""Probing: from a study, layers and concepts to a record of held-out scores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.commands.meaning import Tested, measure_meaning
from conceptkit.errors import InputError, check_distinct
from conceptkit.features.sources import PIXELS, Features, PixelFeatures, open_features
from conceptkit.features.store_files import size_text
from conceptkit.models.inference import choose_device
from conceptkit.options.base import Notify, Progress
from conceptkit.options.probe import Probe
from conceptkit.probe.adjustment import ceiling
from conceptkit.probe.rows import (
    PAPER_NOTE,
    BaselineScores,
    Layer,
    RowOptions,
    add_random_network,
    check_protocol,
    probe_rows,
)
from conceptkit.probe.space import Fit
from conceptkit.probe.targets import Target, check_activations
from conceptkit.probe.vectors import ConceptVector, make_vector, save_vectors
from conceptkit.records.meaning import Meaning
from conceptkit.records.probe import ProbeRecord, ProbeRow
from conceptkit.runs.context import (
    LEFT_OUT_PARTS,
    center_column,
    default_concepts,
    names_kept,
    placed_in,
    table_targets,
    text_of,
    write_context,
)
from conceptkit.runs.opening import (
    N_RESAMPLES,
    at_stage,
    header,
    in_own_folder,
    notes_on,
    open_source,
    run_folder,
    split_rows,
)
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import Resolution, resolution_of
from conceptkit.tables.study import Study

RANDOM_NETWORKS = 3
"""Randomly initialised networks whose mean score is the control."""

STAIN = "stain"
"""Confounder that stands for every column of stain measures."""


@in_own_folder("probe")
def probe(
    options: Probe,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> ProbeRecord:
    """Check and plan, read features, probe, record."""
    check_protocol(options.protocol, options.adjust, options.leave_out)
    if options.meaning and options.protocol == "paper":
        raise InputError(
            "meaning: not available with `--protocol paper`, which holds nothing out; use cross-validated."
        )
    device = choose_device(options.device)
    plan = _plan(options, study)
    folder = run_folder(out, options.name)
    features = open_features(
        plan.table,
        plan.study,
        layers=options.layers,
        features=options.features,
        pool=options.pool,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )
    fits: dict[tuple[str, str], Fit] = {}
    rows = _probe_features(options, plan, features, fits, notify, progress)
    meanings = _meanings(options, plan, features, fits, rows, progress) if options.meaning else ()
    notes = (*features.notes(), *plan.notes)
    record = ProbeRecord(
        **header(
            options,
            plan.study,
            folder,
            notes,
            **features.settings(),
            layers=list(features.layers),
            concepts=plan.concepts,
            pool=features.pool,
            adjust=list(plan.confounders),
            center=plan.center or options.center,
            repeat=dict(options.repeat or {}),
            device=str(device),
            n_resamples=N_RESAMPLES,
        ),
        rows=rows,
        meanings=meanings,
    )
    kept = names_kept(plan.study, plan.table, plan.concepts)
    write_context(folder, plan.table, plan.study, plan.rows, concepts=kept, targets=plan.placed, folds=options.folds)
    if fits:
        save_vectors(_vectors(plan, features, rows, fits), folder)
    record.save(folder)
    return record


def _meanings(
    options: Probe,
    plan: _Plan,
    features: Features,
    fits: Mapping[tuple[str, str], Fit],
    rows: Sequence[ProbeRow],
    progress: Progress | None,
) -> tuple[Meaning, ...]:
    """Test the vectors of continuous concepts."""
    given = Tested(
        table=plan.table,
        features=features,
        targets=plan.targets,
        fits=fits,
        rows=rows,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )
    return measure_meaning(given, None if progress is None else at_stage(progress, "testing what vectors mean"))


def _vectors(
    plan: _Plan, features: Features, rows: Sequence[ProbeRow], fits: Mapping[tuple[str, str], Fit]
) -> list[ConceptVector]:
    """Return the vectors of the rows, with the features, classes and units that they apply to."""
    size = Resolution()
    with contextlib.suppress(InputError):  # features of slides or images that have since been moved
        size = resolution_of(plan.table.select(plan.rows))
    origin = dataclasses.replace(features.origin(), **dataclasses.asdict(size))
    classes = {target.name: target.classes for target in plan.targets}
    return [
        make_vector(
            row,
            fits[row.layer, row.concept],
            origin,
            classes=classes[row.concept],
            unit=plan.study.units.get(row.concept, ""),
        )
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is probed, checked against the table before anything is read."""

    study: Study
    table: PatchTable
    concepts: list[str]
    targets: list[Target]
    rows: NDArray[np.intp]
    """Row numbers of the table that any target has"""
    center: str | None
    confounders: Mapping[str, NDArray[Any]]
    """Name → (n rows of the table,)"""
    leave_out: tuple[str, NDArray[Any]] | None
    """Column and (n rows of the table,) levels that are held out"""
    ceilings: Mapping[str, tuple[str, float, int]]
    notes: tuple[str, ...]

    @property
    def placed(self) -> list[Target]:
        """Return the targets with rows numbered as in :attr:`rows`."""
        return [dataclasses.replace(target, rows=np.searchsorted(self.rows, target.rows)) for target in self.targets]


def _plan(options: Probe, study: Any) -> _Plan:
    """Return what is probed; refuse what the table does not have."""
    study, table = open_source(options, study)
    paper = options.protocol == "paper"
    chosen = bool(options.concepts or study.concepts)
    concepts = list(options.concepts or study.concepts or default_concepts(table, study))
    check_distinct("concept", concepts)
    keep = split_rows(table, study, options.split)
    center = center_column(table, options.center)
    placing = placed_in(table, study, center=center, nested=options.nested)
    folds, groups = None if paper else options.folds, table.groups(study.group)
    targets, skipped = table_targets(table, concepts, keep, groups, folds, {**placing, "seed": options.seed})
    concepts = [target.name for target in targets]
    aside = (table.aside_note,) if table.aside_note and not chosen else ()
    notes = (*notes_on(study, table, concepts), *aside, *skipped)
    confounders = _confounders(table, options.adjust, concepts)
    if adjusted := [name for name in confounders if name in concepts]:
        notes = (*notes, f"Not adjusted for itself: {', '.join(adjusted)}.")
    default = center if not paper and _has_several(placing, keep) else None
    left_out = default if options.leave_out is None else options.leave_out
    missing = tuple(note for name in concepts if (note := _missing_by_label(table, study, name, keep)))
    return _Plan(
        study=study,
        table=table,
        concepts=concepts,
        targets=targets,
        rows=np.unique(np.concatenate([target.rows for target in targets])),
        center=center,
        confounders=confounders,
        leave_out=None if left_out is None else (left_out, text_of(table, "leave_out", left_out)),
        ceilings=_ceilings(table, options.repeat or {}, concepts, keep),
        notes=((PAPER_NOTE,) if paper else ()) + notes + missing,
    )


def _probe_features(
    options: Probe,
    plan: _Plan,
    features: Features,
    fits: dict[tuple[str, str], Fit],
    notify: Notify | None,
    progress: Progress | None,
) -> tuple[ProbeRow, ...]:
    """Read the features, those of random networks and pixel statistics, and probe them; add the vectors to ``fits``."""

    def step(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else at_stage(progress, stage)

    def say_size(size: int) -> None:
        if notify is not None:
            more = f", and as much for each of {RANDOM_NETWORKS} random networks" if RANDOM_NETWORKS else ""
            notify(f"Activations will take {size_text(size)} in {cache_folder()}{more}.")

    rows, placed, leave_out = plan.rows, plan.placed, plan.leave_out
    values = features.read(rows, on_size=say_size, progress=step("reading activations"))
    for layer, X in values.items():  # before as much is read of each random network
        check_activations(X, layer)
    row_options = RowOptions(
        model=features.name,
        weights=features.made_by,
        folds=options.folds,
        permutations=options.permutations,
        n_resamples=N_RESAMPLES,
        seed=options.seed,
        keep=True,
        protocol=options.protocol,
        pixels=PixelFeatures(plan.table).read(rows, progress=step("pixel statistics")).get(PIXELS),
        confounders={name: column[rows] for name, column in plan.confounders.items()},
        terms=options.adjust_terms,
        leave_out=None if leave_out is None else (leave_out[0], leave_out[1][rows]),
        leave_out_parts=LEFT_OUT_PARTS if options.leave_out is None else None,
        ceilings=plan.ceilings,
    )
    of_random: BaselineScores = {}
    for i, control in enumerate(features.random_controls(RANDOM_NETWORKS)):  # one at a time in memory
        read = step(f"random network {i + 1} of {RANDOM_NETWORKS}")
        add_random_network(of_random, control.read(rows, progress=read), placed, row_options)
    layers = [Layer(name=layer, X=X) for layer, X in values.items()]
    return probe_rows(layers, placed, row_options, random=of_random, fits=fits, progress=step("probing"))


def _has_several(placing: Mapping[str, Any], keep: NDArray[np.bool_]) -> bool:
    """Return whether the rows have centers to hold out."""
    centers = placing["centers"]
    return centers is not None and len({name for name in centers[keep] if name is not None}) > 1


def _confounders(table: PatchTable, adjust: Sequence[str], concepts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return confounder → (n,) numbers, or text with ``None`` where missing; ``stain`` is every stain measure."""
    names: list[str] = []
    for name in adjust:
        stains = [str(c) for c in table.frame.columns if str(c).startswith(f"{STAIN}_")]
        if name != STAIN or name in table.frame.columns:
            names.append(name)
        elif stains:
            names += stains
        else:
            raise InputError(
                f"adjust: the table has no stain measures (columns that begin with {STAIN}_); "
                "conceptkit measure IMAGES.csv --measure core,nuisances takes them."
            )
    if names:
        check_distinct("adjust", names)
    for name in names:
        table.column("adjust", name)
    if len(names) == 1 and list(concepts) == names:
        raise InputError(f"adjust: {names[0]} is probed itself; a concept cannot be adjusted for itself.")
    return {name: table.concept(name).values for name in names}


def _ceilings(
    table: PatchTable, repeat: Mapping[str, str], concepts: Sequence[str], keep: NDArray[np.bool_]
) -> dict[str, tuple[str, float, int]]:
    found = {}
    for name, other in repeat.items():
        if name not in concepts:
            raise InputError(f"repeat: {name} is not among the concepts that are probed ({', '.join(concepts)}).")
        table.column("repeat", other)
        first, second = table.concept(name), table.concept(other)
        if first.kind != "continuous" or second.kind != "continuous":
            raise InputError(f"repeat: {name} and {other} must both be continuous.")
        found[name] = (other, *ceiling(first.values[keep], second.values[keep]))
    return found


def _missing_by_label(table: PatchTable, study: Study, name: str, keep: NDArray[np.bool_]) -> str | None:
    """Return a sentence when a concept is missing in much more rows of one label than of another."""
    if study.label not in table.frame.columns or name == study.label:
        return None
    labels = text_of(table, "label", study.label)
    missing = table.frame[name].isna().to_numpy()
    known = np.array([label is not None for label in labels]) & keep
    classes = np.unique(labels[known].astype(str))
    if not missing[known].any() or len(classes) < 2:
        return None
    shares = {str(c): float(missing[known & (labels == c)].mean()) for c in classes}
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    # A tenth of the rows: the remaining rows then represent one class poorly.
    if shares[most] - shares[least] < 0.1:
        return None
    return (
        f"{name} is missing in {shares[most]:.0%} of the rows of {study.label} {most} and in {shares[least]:.0%} of "
        f"{least}: its scores describe only rows that have a value."
    )
