"""Robustness to centers: indices, probes and paired differences between encoders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from conceptkit.commands.probe import encoder_notes, encoder_settings, opened_encoders
from conceptkit.commands.remedies import chosen_remedies, remedy_rows
from conceptkit.errors import InputError, check_place
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.features.encoders import Encoder, is_several
from conceptkit.features.pixel_remedies import with_changed_pixels
from conceptkit.files.matrix import rows_of
from conceptkit.models.inference import choose_device
from conceptkit.options.base import Notify, Progress
from conceptkit.options.robustness import Robustness
from conceptkit.probe.encoders import encoder_differences, layer_pairs
from conceptkit.probe.neighbours import Cohort, find_neighbours, make_cohort
from conceptkit.probe.remedies import Remedy
from conceptkit.probe.robustness import RobustnessIndices, candidates_of, indices_of
from conceptkit.probe.robustness_intervals import over_centers, over_patients
from conceptkit.probe.rows import Layer, PlacedRefits, RowOptions, place_of, probe_rows
from conceptkit.probe.shortcut import Shortcut, shortcut_susceptibility
from conceptkit.probe.targets import Target
from conceptkit.records.probe import EncoderDifference, ProbeRow
from conceptkit.records.remedies import RemedyRow
from conceptkit.records.robustness import RobustnessCell, RobustnessDifference, RobustnessRecord, RobustnessRow
from conceptkit.report.card import write_cards
from conceptkit.runs.context import LEFT_OUT_PARTS, center_column, placed_in, table_targets, text_of
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
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

_Row = TypeVar("_Row", RobustnessDifference, RemedyRow)


@in_own_folder("robustness")
def robustness(
    options: Robustness,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> RobustnessRecord:
    """Check, read features, search neighbours, probe, compare, record."""
    device = choose_device(options.device)
    plan = _plan(options, study)
    folder = run_folder(out, options.name)
    _check_card(options.card)
    remedies = chosen_remedies(options.remedies, has_pixels=options.features is None)
    encoders = opened_encoders(options, plan.table, plan.study)
    layers = _layers(encoders, plan, progress)
    pairs = layer_pairs(layers, options.against)
    measured = {layer.place: _measured(layer, plan, options, progress) for layer in layers}
    notes = [*encoder_notes(plan.study, encoders), *plan.notes, *_repeated_notes(layers, plan.cohort)]
    rows: list[RobustnessRow] = []
    for layer in layers:
        rows += _index_rows(layer, measured[layer.place])
        shortcut, note = _shortcut(layer, plan, options, progress)
        rows += _shortcut_rows(layer, plan.cohort, shortcut)
        notes += [] if note is None or note in notes else [note]
    probes, probe_differences = _probes(layers, pairs, plan, options, progress)
    record = RobustnessRecord(
        **header(
            options,
            plan.study,
            folder,
            notes,
            **encoder_settings(options, encoders),
            label=plan.label,
            center=plan.center,
            device=str(device),
            n_resamples=N_RESAMPLES,
        ),
        rows=tuple(rows),
        probes=probes,
        differences=_differences(pairs, measured),
        probe_differences=probe_differences,
        cells=tuple(_cells(plan.cohort)),
        remedies=_adjusted(tuple(_remedy_rows(remedies, layers, plan, options, progress))),
    )
    record.save(folder)
    if options.card is not None:
        write_cards(record, folder, Path(options.card))
    return record


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is measured, checked against the table before anything is read."""

    study: Study
    table: PatchTable
    label: str
    center: str
    rows: NDArray[np.intp]
    """Row numbers of the table with label, center and patient"""
    cohort: Cohort
    targets: list[list[Target]]
    """Label and concepts; the center, which is not held out itself. Their rows are numbered as in ``rows``"""
    levels: NDArray[Any]
    """(n,) center of each row"""
    notes: tuple[str, ...]


def _plan(options: Robustness, study: Any) -> _Plan:
    several = is_several(options.features, options.model)
    study, table = open_source(options.replace(model=None) if several else options, study, opens_model=not several)
    if several:  # the study's own network is not among them
        study = dataclasses.replace(study, model=None, weights=None)
    label, center = options.label or study.label, center_column(table, options.center)
    if center is None:
        raise InputError("center: robustness compares centers, and the table has no column center; set `--center`.")
    if study.group is None:
        raise InputError("group: robustness never compares rows of one patient; set `--group` to the patients' column.")
    if label == center:
        raise InputError(f"label: {label} is the column of the centers; set `--label` to a biological label.")
    table.column("label", label)
    table = table.with_kinds({label: "categorical", center: "categorical"})
    names = {name: text_of(table, argument, name) for argument, name in (("label", label), ("center", center))}
    groups, keep = table.groups(study.group), split_rows(table, study, options.split)
    assert groups is not None  # of a group column
    known = keep & np.array([a is not None and b is not None for a, b in zip(*names.values(), strict=True)])
    if not known.any():
        raise InputError(f"label: no row has both {label} and {center}.")
    rows = np.flatnonzero(known)
    cohort = make_cohort(names[label][rows], names[center][rows], groups[rows])
    candidates_of(options.neighbours, len(rows))
    notes = [*notes_on(study, table, [label, center, *options.concepts]), *_cohort_notes(cohort, label)]
    if dropped := int(keep.sum()) - len(rows):
        notes.insert(0, f"{dropped} rows without {label} or {center} are left out.")
    placing = {**placed_in(table, study, center=center), "seed": options.seed}
    targets: list[list[Target]] = []
    for concepts in ([label, *options.concepts], [center]):
        try:
            found, skipped = table_targets(table, concepts, known, groups, options.folds, placing)
        except InputError as error:
            found, skipped = [], [f"Not probed: {error}"]
        targets.append([dataclasses.replace(one, rows=np.searchsorted(rows, one.rows)) for one in found])
        notes += skipped
    return _Plan(
        study=study,
        table=table,
        label=label,
        center=center,
        rows=rows,
        cohort=cohort,
        targets=targets,
        levels=names[center][rows],
        notes=tuple(notes),
    )


def _layers(encoders: Sequence[Encoder], plan: _Plan, progress: Progress | None) -> list[Layer]:
    layers = []
    for one in encoders:
        stage = place_of("reading activations", one.name)
        values = one.read(plan.rows, progress=None if progress is None else at_stage(progress, stage))
        model, weights = one.features.name, one.features.made_by
        layers += [Layer(name=n, X=X, model=model, weights=weights, encoder=one.name) for n, X in values.items()]
    return layers


def _remedy_rows(
    remedies: Mapping[str, Remedy], layers: Sequence[Layer], plan: _Plan, options: Robustness, progress: Progress | None
) -> Iterator[RemedyRow]:
    """Yield the price of every remedy at every layer."""
    if not remedies:
        return
    other: dict[str, dict[str, Any]] = {}
    for name, remedy in remedies.items():
        if remedy.pixels:
            changed = with_changed_pixels(plan.table, name, remedy, seed=options.seed)
            found = _layers(opened_encoders(options, changed, plan.study), plan, progress)
            other[name] = {one.place: one.X for one in found}
    concepts = {}
    for target in plan.targets[0]:
        if target.kind == "continuous":
            concepts[target.name] = np.full(len(plan.rows), np.nan)
            concepts[target.name][target.rows] = target.y
    for layer in layers:
        changed_here = {name: found[layer.place] for name, found in other.items()}
        yield from remedy_rows(
            layer.X,
            remedies,
            changed_here,
            plan.cohort,
            concepts,
            candidates=candidates_of(options.neighbours, len(plan.rows)),
            nearest=options.nearest,
            folds=options.folds,
            seed=options.seed,
            place={"encoder": layer.encoder or layer.model, "layer": layer.name},
            progress=None if progress is None else at_stage(progress, f"remedies at {layer.place}"),
        )


def _check_card(card: str | Path | None) -> None:
    if card is None:
        return
    folder = Path(card)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"card: {folder} must be a missing or empty folder.")
    check_place("card", folder / "a card")


def _cells(cohort: Cohort) -> Iterator[RobustnessCell]:
    for c, center in enumerate(cohort.centers):
        for k, label in enumerate(cohort.labels):
            here = (cohort.center == c) & (cohort.label == k)
            patients = len(np.unique(cohort.patient[here]))
            yield RobustnessCell(center=center, label=label, n_rows=int(here.sum()), n_patients=patients)


def _cohort_notes(cohort: Cohort, label: str) -> Iterator[str]:
    """Yield what the cohort does not allow; refuse one that holds no evidence at all."""
    has = np.zeros((len(cohort.centers), len(cohort.labels)), bool)
    has[cohort.center, cohort.label] = True
    if not (has.sum(1) > 1).any():
        raise InputError(
            f"label: every center has rows of one {label} only, so that biology and hospital cannot be separated."
        )
    if not (has.sum(0) > 1).any():
        raise InputError(
            f"label: every {label} occurs at one center only, so that no row has its label at another center."
        )
    for k in np.flatnonzero(has.sum(0) == 1):
        yield (
            f"{label} {cohort.labels[k]} occurs at center {cohort.centers[int(np.argmax(has[:, k]))]} only: its rows "
            "have no neighbour of their label elsewhere, which lowers RI and MaRI, and have no CRoMa."
        )
    if len(cohort.centers) < 3:
        yield "Two centers only: the indices describe this pair, and without one center there is nothing to compare."
    counts = np.bincount(cohort.center_of_patient, minlength=len(cohort.centers))
    if single := [cohort.centers[c] for c in np.flatnonzero(counts == 1)]:
        yield (
            f"One patient only at center {', '.join(single)}: its rows have no neighbour of their own center, and "
            "intervals over patients take it together with another center."
        )
    pairs = np.unique(np.stack([cohort.patient, cohort.center]), axis=1)
    if several := int((np.bincount(pairs[0]) > 1).sum()):
        yield f"{several} patients have rows at several centers; intervals count each at the first of them."


def _repeated_notes(layers: Sequence[Layer], cohort: Cohort) -> Iterator[str]:
    """Yield a note where rows of different patients have the same features."""
    for layer in layers:
        of: dict[bytes, set[int]] = {}
        X = rows_of(layer.X, np.arange(len(cohort.patient)))
        for row, patient in zip(X, cohort.patient.tolist(), strict=True):
            of.setdefault(row.tobytes(), set()).add(patient)
        if same := sum(len(patients) > 1 for patients in of.values()):
            yield (
                f"{layer.place}: {same} feature vectors occur in several patients, at distance 0 of each other; check "
                "whether images were copied."
            )


def _measured(layer: Layer, plan: _Plan, options: Robustness, progress: Progress | None) -> RobustnessIndices:
    candidates = candidates_of(options.neighbours, len(plan.rows))
    step = None if progress is None else at_stage(progress, f"neighbours at {layer.place}")
    found = find_neighbours(layer.X, plan.cohort, k=max(candidates), m=options.nearest, progress=step)
    return indices_of(found, candidates)


def _place(layer: Layer) -> dict[str, Any]:
    return {"encoder": layer.encoder, "model": layer.model, "weights": layer.weights, "layer": layer.name}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _index_rows(layer: Layer, found: RobustnessIndices) -> Iterator[RobustnessRow]:
    cohort = found.cohort
    n = len(cohort.label)
    for name, index in found.indices.items():
        patients, centers = over_patients(index, cohort), over_centers(index)
        evidence = name in ("RI", "MaRI")
        yield RobustnessRow(
            **_place(layer),
            index=name,
            value=index.value,
            low=_known(patients.low),
            high=_known(patients.high),
            centers_low=None if centers is None else centers.low,
            centers_high=None if centers is None else centers.high,
            n=n,
            n_rows=index.n_rows,
            n_patients=index.n_patients,
            k=found.k if evidence else None,
            tau=found.tau if name == "MaRI" else None,
            chance=_known(index.chance),
            without_center=dict(zip(cohort.centers, index.without_center.tolist(), strict=True)),
            interval_note=patients.note,
        )
    for name, value in (("label kNN", found.knn_label), ("center kNN", found.knn_center)):
        yield RobustnessRow(**_place(layer), index=name, value=value, n=n, k=found.k)


def _shortcut(
    layer: Layer, plan: _Plan, options: Robustness, progress: Progress | None
) -> tuple[Shortcut | None, str | None]:
    """Return APD and nIPD, or why there are none."""
    if not options.repeats:
        return None, None
    step = None if progress is None else at_stage(progress, f"growing shortcut at {layer.place}")
    try:
        how = {"repeats": options.repeats, "seed": options.seed}
        return shortcut_susceptibility(layer.X, plan.cohort, **how, progress=step), None
    except InputError as error:
        return None, f"No APD and nIPD: {str(error).partition(': ')[2]}"


def _shortcut_rows(layer: Layer, cohort: Cohort, found: Shortcut | None) -> Iterator[RobustnessRow]:
    if found is None:
        return
    note = "APD and nIPD have no interval over patients; SD is over repeats, which hold out other patients"
    for name, value, sd in (("APD", found.apd, _known(found.apd_sd)), ("nIPD", found.nipd, None)):
        yield RobustnessRow(**_place(layer), index=name, value=value, sd=sd, n=len(cohort.label), interval_note=note)


def _adjusted(rows: tuple[_Row, ...]) -> tuple[_Row, ...]:
    """Return rows with q, their p adjusted for all of them."""
    q = adjust_for_many([one.p for one in rows])
    return tuple(dataclasses.replace(one, q=_known(value)) for one, value in zip(rows, q, strict=True))


def _differences(
    pairs: Sequence[tuple[Layer, Layer]], measured: dict[str, RobustnessIndices]
) -> tuple[RobustnessDifference, ...]:
    found = []
    for one, other in pairs:
        ours, theirs = measured[one.place], measured[other.place]
        for name, index in ours.indices.items():
            paired = over_patients(index, ours.cohort, theirs.indices[name])
            found.append(
                RobustnessDifference(
                    encoder=str(one.encoder),
                    against=str(other.encoder),
                    layer=one.name,
                    against_layer=other.name,
                    index=name,
                    mean=paired.mean,
                    low=paired.low,
                    high=paired.high,
                    p=_known(paired.p),
                    n_groups=paired.n_groups,
                    interval_note=paired.note,
                )
            )
    return _adjusted(tuple(found))


def _probes(
    layers: Sequence[Layer],
    pairs: Sequence[tuple[Layer, Layer]],
    plan: _Plan,
    options: Robustness,
    progress: Progress | None,
) -> tuple[tuple[ProbeRow, ...], tuple[EncoderDifference, ...]]:
    """Probe label, concepts and center at every layer, held out by patient, and compare encoders."""
    rows: list[ProbeRow] = []
    refits: PlacedRefits = {}
    how = RowOptions(
        folds=options.folds,
        permutations=0,
        controls=False,
        n_resamples=N_RESAMPLES,
        seed=options.seed,
        leave_out=(plan.center, plan.levels),
        leave_out_parts=LEFT_OUT_PARTS,
    )
    for targets in plan.targets:
        if targets:
            step = None if progress is None else at_stage(progress, f"probing {targets[0].name}")
            rows += probe_rows(layers, targets, how, refits=refits, progress=step)
    return tuple(rows), encoder_differences(pairs, [one for targets in plan.targets for one in targets], refits)
