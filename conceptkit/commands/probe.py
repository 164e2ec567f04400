"""Probing: from a study, layers and concepts to a record of held-out scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_choice, check_distinct
from conceptkit.features.store_files import size_text
from conceptkit.records import ProbeRecord
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
    Progress,
    at_stage,
    in_own_folder,
    notes_on,
    open_study,
    run_folder,
    split_rows,
    versions,
)
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.features.sources import Features
    from conceptkit.probe.targets import Target
    from conceptkit.records.probe import ProbeRow

RANDOM_NETWORKS = 3
"""Networks of random weights whose mean score is the control."""

STAIN = "stain"
"""Stands for every column of stain measures among the confounders."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options of :func:`run_probe`, which describes them."""

    layers: Sequence[str] | None
    concepts: Sequence[str] | None
    table: str | Path | None
    model: str | None
    weights: str | None
    features: str | Path | None
    group: str | None
    center: str | None
    nested: str | None
    categorical: Sequence[str]
    split: str | None
    pool: str
    folds: int
    permutations: int
    adjust: Sequence[str]
    adjust_terms: str
    leave_out: str | None
    repeat: Mapping[str, str] | None
    protocol: str
    seed: int
    device: str
    batch_size: int

    def check(self) -> None:
        """Raise :class:`InputError` for a value that no table allows."""
        from conceptkit.probe.adjustment import TERMS
        from conceptkit.probe.rows import check_protocol

        check_protocol(self.protocol, self.adjust, self.leave_out)
        check_at_least("permutations", self.permutations, 0)
        check_at_least("seed", self.seed, 0)
        check_choice("adjust_terms", self.adjust_terms, TERMS)


@in_own_folder("probe")
def run_probe(
    study: Study | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    features: str | Path | None = None,
    group: str | None = None,
    center: str | None = None,
    nested: str | None = None,
    categorical: Sequence[str] = (),
    split: str | None = None,
    pool: str = "gap",
    folds: int = 5,
    permutations: int = 1000,
    adjust: Sequence[str] = (),
    adjust_terms: str = "linear",
    leave_out: str | None = None,
    repeat: Mapping[str, str] | None = None,
    protocol: str = "cross-validated",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> ProbeRecord:
    """Measure how well concepts are read from layers of a network, on patients that the vectors have not seen.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    layers, concepts : names; ``None`` for the study's
    table, model, weights, group : instead of the study's; a model without weights means ``imagenet``
    features : an activation store that ``extract`` wrote, of which ``layers`` names some (``None``: all), or a file of
        features of one's own (HDF5 of TRIDENT or CLAM, ``.npy``, Parquet), instead of a network
    center : column of the centers: groups are permuted within them, the folds are stratified by them, and each is held
        out for one more score. ``None`` for the column ``center`` where the table has it, ``none`` for no centers
    nested : column of units nested in the groups, such as slides of patients: rows are permuted within them only
    categorical : concepts to take as classes whatever their type
    split : the only split whose rows are used; ``None`` for all rows
    pool : ``gap``, ``max``, ``flatten``, ``cls`` or ``tokens``
    folds : of the cross-validation
    permutations : of each concept, for p; 0 for none
    adjust : confounders (columns) for a partial R²; ``stain`` stands for every stain measure of the table
    adjust_terms : ``linear``, or ``quadratic``: squares and pairwise interactions of the confounders too
    leave_out : column each of whose levels is held out in turn, for one more score; ``None`` for the centers, of which
        several are held out together where there are more than ten
    repeat : concept → column of its repeated measurement, for the reliability ceiling
    protocol : ``cross-validated``, or ``paper``: least squares fitted and scored on the same rows
    seed : of the folds, the resamples, the permutations and the randomly initialised networks
    device : ``auto``, ``cpu``, ``cuda``, …
    batch_size : images per forward pass
    out : run folder; ``None`` for the next free ``runs/probe-NNN``
    notify : told in a sentence how much room the activations will take, before they are read
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used; nothing is written then
    """
    given = {k: v for k, v in locals().items() if k not in ("study", "out", "notify", "progress")}
    return _probe(_Options(**given), study, run_folder(out, "probe"), notify, progress)


def _probe(
    options: _Options,
    study: Study | str | Path | None,
    folder: Path,
    notify: Callable[[str], None] | None,
    progress: Progress | None,
) -> ProbeRecord:
    """Check and plan, read features, probe, record."""
    from conceptkit.features.sources import open_features
    from conceptkit.models.inference import choose_device

    options.check()
    device = choose_device(options.device)
    plan = _plan(options, study)
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
    rows = _probe_features(options, plan, features, notify, progress)
    settings = {
        **dataclasses.asdict(options),
        **features.settings(),
        "command": "probe",
        "table": plan.study.table.name,
        "features": None if options.features is None else Path(options.features).name,
        "group": plan.study.group,
        "categorical": list(options.categorical),
        "layers": list(features.layers),
        "concepts": plan.concepts,
        "pool": features.pool,
        "adjust": list(plan.confounders),
        "center": plan.center,
        "leave_out": None if plan.leave_out is None else plan.leave_out[0],
        "repeat": dict(options.repeat or {}),
        "device": str(device),
        "n_resamples": N_RESAMPLES,
    }
    record = ProbeRecord(
        study=plan.study.name,
        synthetic=plan.study.synthetic,
        group=plan.study.group,
        notes=(*features.notes(), *plan.notes),
        settings=settings,
        versions=versions(),
        folder=folder,
        rows=rows,
    )
    kept = names_kept(plan.study, plan.table, plan.concepts)
    write_context(folder, plan.table, plan.study, plan.rows, concepts=kept, targets=plan.placed, folds=options.folds)
    record.save(folder)
    return record


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


def _plan(options: _Options, given: Study | str | Path | None) -> _Plan:
    """Return what is probed; refuse what the table does not have."""
    from conceptkit.probe.rows import PAPER_NOTE

    study, table = open_study(given, options.table, options.model, options.weights, options.group, options.categorical)
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
    options: _Options,
    plan: _Plan,
    features: Features,
    notify: Callable[[str], None] | None,
    progress: Progress | None,
) -> tuple[ProbeRow, ...]:
    """Read the features, those of random networks and pixel statistics, and probe them."""
    from conceptkit.features.sources import PIXELS, PixelFeatures
    from conceptkit.probe.rows import Asked, BaselineScores, Layer, add_random_network, probe_rows
    from conceptkit.probe.targets import check_activations

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
    asked = Asked(
        model=features.name,
        weights=features.made_by,
        folds=options.folds,
        permutations=options.permutations,
        n_resamples=N_RESAMPLES,
        seed=options.seed,
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
        add_random_network(of_random, control.read(rows, progress=read), placed, asked)
    layers = [Layer(name=layer, X=X) for layer, X in values.items()]
    return probe_rows(layers, placed, asked, random=of_random, progress=step("probing"))


def _has_several(placing: Mapping[str, Any], keep: NDArray[np.bool_]) -> bool:
    """Return whether the rows have centers to hold out."""
    centers = placing["centers"]
    return centers is not None and len({name for name in centers[keep] if name is not None}) > 1


def _confounders(data: PatchTable, adjust: Sequence[str], concepts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return confounder → (n,) numbers, or text with ``None`` where missing; ``stain`` is every stain measure."""
    names: list[str] = []
    for name in adjust:
        stains = [str(c) for c in data.frame.columns if str(c).startswith(f"{STAIN}_")]
        if name != STAIN or name in data.frame.columns:
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
        data.column("adjust", name)
    if len(names) == 1 and list(concepts) == names:
        raise InputError(f"adjust: {names[0]} is probed itself; a concept cannot be adjusted for itself.")
    return {name: data.concept(name).values for name in names}


def _ceilings(
    data: PatchTable, repeat: Mapping[str, str], concepts: Sequence[str], keep: NDArray[np.bool_]
) -> dict[str, tuple[str, float, int]]:
    from conceptkit.probe.adjustment import ceiling

    found = {}
    for name, other in repeat.items():
        if name not in concepts:
            raise InputError(f"repeat: {name} is not among the concepts that are probed ({', '.join(concepts)}).")
        data.column("repeat", other)
        first, second = data.concept(name), data.concept(other)
        if first.kind != "continuous" or second.kind != "continuous":
            raise InputError(f"repeat: {name} and {other} must both be continuous.")
        found[name] = (other, *ceiling(first.values[keep], second.values[keep]))
    return found


def _missing_by_label(data: PatchTable, meant: Study, name: str, keep: NDArray[np.bool_]) -> str | None:
    """Return a sentence when a concept is missing in much more rows of one label than of another."""
    if meant.label not in data.frame.columns or name == meant.label:
        return None
    labels = text_of(data, "label", meant.label)
    missing = data.frame[name].isna().to_numpy()
    known = np.array([label is not None for label in labels]) & keep
    classes = np.unique(labels[known].astype(str))
    if not missing[known].any() or len(classes) < 2:
        return None
    shares = {str(c): float(missing[known & (labels == c)].mean()) for c in classes}
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    # A tenth of the rows: what is left then no longer stands for both classes.
    if shares[most] - shares[least] < 0.1:
        return None
    return (
        f"{name} is missing in {shares[most]:.0%} of the rows of {meant.label} {most} and in {shares[least]:.0%} of "
        f"{least}: its scores hold for the rows that have it, and say less of the others."
    )
