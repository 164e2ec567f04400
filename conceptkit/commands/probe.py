"""Probing: from a study, layers and concepts to a record of held-out scores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.commands.cohort_notes import notes_of_new_centers, run_of_checkpoint
from conceptkit.commands.meaning import Tested, measure_meaning
from conceptkit.errors import InputError, check_distinct
from conceptkit.features.encoders import Encoder, is_several, open_encoders
from conceptkit.features.sources import PIXELS, PixelFeatures
from conceptkit.features.store_files import size_text
from conceptkit.models.checkpoints import is_checkpoint
from conceptkit.models.inference import choose_device
from conceptkit.models.linear_algebra import algebra_on
from conceptkit.options.base import Notify, Progress
from conceptkit.options.probe import Probe
from conceptkit.options.robustness import Robustness
from conceptkit.probe.adjustment import ceiling
from conceptkit.probe.encoders import encoder_differences, layer_pairs
from conceptkit.probe.linear_algebra import computed_by
from conceptkit.probe.rows import (
    PAPER_NOTE,
    BaselineScores,
    Layer,
    PlacedRefits,
    RowOptions,
    add_random_network,
    check_protocol,
    place_of,
    probe_rows,
)
from conceptkit.probe.space import Fit
from conceptkit.probe.targets import Target, check_activations
from conceptkit.probe.vectors import ConceptVector, make_vector, save_vectors
from conceptkit.records import Note
from conceptkit.records.meaning import Meaning
from conceptkit.records.probe import EncoderDifference, ProbeRecord, ProbeRow
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
    code_note,
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
    encoders = opened_encoders(options, plan.table, plan.study)
    fits: dict[tuple[str, str], Fit] = {}
    with computed_by(algebra_on(device)):
        rows, differences = _probe_features(options, plan, encoders, fits, notify, progress)
    meanings = _meanings(options, plan, encoders, fits, rows, progress) if options.meaning else ()
    record = ProbeRecord(
        **header(
            options,
            plan.study,
            folder,
            (*encoder_notes(plan.study, encoders), *plan.notes, *_new_centers(plan, encoders)),
            **encoder_settings(options, encoders),
            concepts=plan.concepts,
            adjust=list(plan.confounders),
            center=plan.center or options.center,
            repeat=dict(options.repeat or {}),
            device=str(device),
            n_resamples=N_RESAMPLES,
        ),
        rows=rows,
        differences=differences,
        meanings=meanings,
    )
    kept = names_kept(plan.study, plan.table, plan.concepts)
    predicted = _best_predictions(plan, rows, fits)
    at = folder, plan.table, plan.study, plan.rows
    write_context(*at, concepts=kept, targets=plan.placed, folds=options.folds, predicted=predicted)
    if fits:
        save_vectors(_vectors(plan, encoders, rows, fits), folder)
    record.save(folder)
    return record


def _meanings(
    options: Probe,
    plan: _Plan,
    encoders: Sequence[Encoder],
    fits: Mapping[tuple[str, str], Fit],
    rows: Sequence[ProbeRow],
    progress: Progress | None,
) -> tuple[Meaning, ...]:
    """Test the vectors of continuous concepts, encoder by encoder."""
    found: list[Meaning] = []
    for one in encoders:
        own = [row for row in rows if row.encoder == one.name]
        given = Tested(
            table=plan.table,
            features=one.features,
            targets=plan.targets,
            fits={(row.layer, row.concept): fits[place_of(row.layer, one.name), row.concept] for row in own},
            rows=own,
            batch_size=options.batch_size,
            device=options.device,
            seed=options.seed,
        )
        stage = place_of("testing what vectors mean", one.name)
        tested = measure_meaning(given, None if progress is None else at_stage(progress, stage))
        found += [dataclasses.replace(meaning, layer=place_of(meaning.layer, one.name)) for meaning in tested]
    return tuple(found)


def _best_predictions(
    plan: _Plan, rows: Sequence[ProbeRow], fits: Mapping[tuple[str, str], Fit]
) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return concept → the place where its score is highest, and the held-out predictions of all rows there."""
    found: dict[str, tuple[str, NDArray[Any]]] = {}
    for target in plan.placed:
        own = [row for row in rows if row.concept == target.name and np.isfinite(row.score)]
        if not own:
            continue
        best = max(own, key=lambda row: row.score)
        place = place_of(best.layer, best.encoder)
        fit = fits.get((place, target.name))
        if fit is None:  # the protocol of the paper holds nothing out
            continue
        classes = target.kind == "categorical"
        values = np.full(len(plan.rows), "", dtype=object) if classes else np.full(len(plan.rows), np.nan)
        values[target.rows] = [target.classes[int(k)] for k in fit.predicted] if classes else fit.predicted
        found[target.name] = place, values
    return found


def _vectors(
    plan: _Plan, encoders: Sequence[Encoder], rows: Sequence[ProbeRow], fits: Mapping[tuple[str, str], Fit]
) -> list[ConceptVector]:
    """Return the vectors of the rows, with the features, classes and units that they apply to."""
    size = Resolution()
    with contextlib.suppress(InputError):  # features of slides or images that have since been moved
        size = resolution_of(plan.table.select(plan.rows))
    origins = {one.name: one.features.origin() for one in encoders}
    classes = {target.name: target.classes for target in plan.targets}
    found = []
    for row in rows:
        place = place_of(row.layer, row.encoder)
        origin = dataclasses.replace(origins[row.encoder], layer=row.layer, **dataclasses.asdict(size))
        unit = plan.study.units.get(row.concept, "")
        found.append(make_vector(row, fits[place, row.concept], origin, place, classes=classes[row.concept], unit=unit))
    return found


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
    several = is_several(options.features, options.model)
    study, table = open_source(options.replace(model=None) if several else options, study, opens_model=not several)
    if several:  # the study's own network is not among them
        study = dataclasses.replace(study, model=None, weights=None)
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
    encoders: Sequence[Encoder],
    fits: dict[tuple[str, str], Fit],
    notify: Notify | None,
    progress: Progress | None,
) -> tuple[tuple[ProbeRow, ...], tuple[EncoderDifference, ...]]:
    """Read the features, those of random networks and pixel statistics, probe them, and compare encoders.

    The vectors are added to ``fits``.
    """

    def step(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else at_stage(progress, stage)

    def say_size(size: int) -> None:
        if notify is not None:
            more = f", and as much for each of {RANDOM_NETWORKS} random networks" if RANDOM_NETWORKS else ""
            notify(f"Activations will take {size_text(size)} in {cache_folder()}{more}.")

    rows, placed, leave_out = plan.rows, plan.placed, plan.leave_out
    layers = []
    for one in encoders:
        values = one.read(rows, on_size=say_size, progress=step(place_of("reading activations", one.name)))
        model, weights = one.features.name, one.features.made_by
        layers += [Layer(name=n, X=X, model=model, weights=weights, encoder=one.name) for n, X in values.items()]
    pairs = layer_pairs(layers, options.against)
    for layer in layers:  # before as much is read of each random network
        check_activations(layer.X, layer.place)
    row_options = RowOptions(
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
    for one in encoders:
        for i, control in enumerate(one.features.random_controls(RANDOM_NETWORKS)):  # one at a time in memory
            read = step(place_of(f"random network {i + 1} of {RANDOM_NETWORKS}", one.name))
            add_random_network(  # without a name here, by which the features would stay in memory
                of_random,
                {place_of(name, one.name): Z for name, Z in control.read(rows, progress=read).items()},
                placed,
                row_options,
            )
    refits: PlacedRefits = {}
    found = probe_rows(
        layers, placed, row_options, random=of_random, fits=fits, refits=refits, progress=step("probing")
    )
    return found, encoder_differences(pairs, placed, refits)


def _new_centers(plan: _Plan, encoders: Sequence[Encoder]) -> Iterator[str]:
    """Yield how centers differ from those that a guided network was trained on, where one is probed."""
    for one in encoders:
        if is_checkpoint(one.features.model):
            yield from notes_of_new_centers(run_of_checkpoint(one.features.model), plan.table.select(plan.rows))


def opened_encoders(options: Probe | Robustness, table: PatchTable, study: Study) -> list[Encoder]:
    """Open the encoders that the options of a command name."""
    return open_encoders(
        table,
        study,
        features=options.features,
        model=options.model,
        weights=None if options.weights is None else str(options.weights),
        layers=options.layers,
        against=options.against,
        pool=options.pool,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )


def encoder_notes(study: Study, encoders: Sequence[Encoder]) -> tuple[str, ...]:
    """Return the notes on the features, each with the name of its encoder if it has one."""
    notes = []
    for one in encoders:
        named = () if one.name is None else code_note(dataclasses.replace(study, model=one.features.model))
        own = (*named, *one.features.notes())
        notes += [note if one.name is None else Note(Note.of(note).kind, f"{one.name}: {note}") for note in own]
    return tuple(notes)


def encoder_settings(options: Any, encoders: Sequence[Encoder]) -> dict[str, Any]:
    """Return what a record states of the origin of its features."""
    each = {
        one.name: {**one.features.settings(), "layers": list(one.features.layers), "pool": one.features.pool}
        for one in encoders
    }
    return each.get(None, {"encoders": each})


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
