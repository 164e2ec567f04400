"""From features and targets to the rows of a probe record, for studies and for bare arrays alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.evaluate.paired import Scored, gain_interval, scored_balanced_accuracy, scored_r2
from conceptkit.evaluate.scores import Floats
from conceptkit.files.matrix import rows_of
from conceptkit.probe.adjustment import adjusted_score
from conceptkit.probe.crossfit import jackknife_units
from conceptkit.probe.folds import leave_out_folds
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.targets import Target, batches, check_activations, check_varying
from conceptkit.probe.validation import Validated, held_out, held_out_each, validate
from conceptkit.records import ProbeRow

PROTOCOLS = ("cross-validated", "paper")
"""``paper``: least squares, fitted and scored on the same rows, as Table 6 of Graziani et al. (2023)."""

PAPER_NOTE = (
    "Protocol of the paper: least squares fitted and scored on the same rows. These scores are in-sample: they are "
    "comparable with published ones, and no evidence of what holds on other patients."
)

_NAMED = 5
"""Centers that one note names"""


def check_protocol(protocol: str, adjust: Collection[str], leave_out: object) -> None:
    """Raise :class:`InputError` for a protocol that is not known, or that has no place for what is asked."""
    check_choice("protocol", protocol, PROTOCOLS)
    asked = [name for name, given in (("adjust", len(adjust)), ("leave_out", leave_out is not None)) if given]
    if protocol == "paper" and asked:
        raise InputError(
            f"protocol: paper scores the rows of its fit, so that {' and '.join(asked)} cannot be had with it; "
            "use cross-validated."
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The features of one layer, one row per row of the table that is probed."""

    name: str
    X: Any
    """(n, d), an array or a :class:`conceptkit.files.matrix.FileMatrix`"""


BaselineScores = dict[tuple[str, str], list[Scored]]
"""Layer and concept → the held-out score of each randomly initialised network, and that without each group"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of every concept and layer."""

    model: str
    weights: str
    folds: int = 5
    alphas: Floats = field(default_factory=lambda: ALPHAS)
    permutations: int = 1000
    n_resamples: int = 2000
    seed: int = 0
    protocol: str = "cross-validated"
    pixels: NDArray[Any] | None = None
    """(n, k) raw pixel and colour statistics"""
    confounders: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Name → (n,) numbers, or text with ``None`` where missing"""
    leave_out: tuple[str, NDArray[Any]] | None = None
    """Name and (n,) levels, ``None`` where missing"""
    leave_out_parts: int | None = None
    """Parts in which levels are held out at most; ``None``: each in turn"""
    terms: str = "linear"
    """Of the confounders: ``linear`` or ``quadratic``"""
    ceilings: Mapping[str, tuple[str, float, int]] = field(default_factory=dict)
    """Concept → its repeated measurement, their correlation, and the number of rows that have both"""


def add_random_network(
    scores: BaselineScores, features: Mapping[str, Any], targets: Sequence[Target], asked: Asked
) -> None:
    """Add the held-out scores of one network with random weights, which need not stay in memory after that.

    Parameters
    ----------
    scores : of the networks before it; those of this one are appended
    features : layer → (n, d) on rows 0 … n − 1, as of :class:`Layer`
    targets : their ``rows`` number the same rows
    """
    for part in batches(targets):
        named = {f"{layer} of a random network": Z for layer, Z in features.items()}
        for layer, own in zip(features, _baselines(named, part, asked), strict=True):
            for target, score in zip(part, own, strict=True):
                scores.setdefault((layer, target.name), []).append(score)


def probe_rows(
    layers: Sequence[Layer],
    targets: Sequence[Target],
    asked: Asked,
    *,
    random: Mapping[tuple[str, str], Sequence[Scored]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ProbeRow, ...]:
    """Probe every target at every layer.

    Parameters
    ----------
    layers : features on rows 0 … n − 1
    targets : their ``rows`` number the same rows
    random : what :func:`add_random_network` gathered
    progress : told of batches done and batches to do

    Returns
    -------
    one row per layer and target, in their order, with q over all of them
    """
    parts = batches(targets)
    found: dict[tuple[str, str], ProbeRow] = {}
    done = 0
    for part in parts:
        at = part[0].rows
        pixels: Sequence[Scored | None] = [None] * len(part)
        if asked.pixels is not None:
            [pixels] = _baselines({"pixel statistics": asked.pixels}, part, asked)
        for layer in layers:
            if progress is not None:
                progress(done, len(layers) * len(parts))
            X = rows_of(layer.X, at)
            check_activations(X, layer.name)
            check_varying(X, layer.name)
            for target, (row, own), pixel in zip(part, _batch(X, layer.name, part, asked), pixels, strict=True):
                networks = (random or {}).get((layer.name, target.name), ())
                found[layer.name, target.name] = _against_baselines(row, own, networks, pixel)
            done += 1
    if progress is not None:
        progress(done, len(layers) * len(parts))
    return adjusted_for_many([found[layer.name, target.name] for layer in layers for target in targets])


def _batch(X: NDArray[Any], layer: str, part: Sequence[Target], asked: Asked) -> list[tuple[ProbeRow, Scored | None]]:
    """Return the row of each target without its baselines, and its score without each group."""
    if asked.protocol == "paper":
        return [(_paper_row(X, layer, target, asked), None) for target in part]
    results = validate(
        X,
        part,
        folds=asked.folds,
        alphas=asked.alphas,
        n_resamples=asked.n_resamples,
        permutations=asked.permutations,
        controls=True,
        seed=asked.seed,
    )
    left_out = _left_out(X, part, asked)
    rows: list[tuple[ProbeRow, Scored | None]] = []
    for target, result, (name, score, why) in zip(part, results, left_out, strict=True):
        row = dataclasses.replace(_row(layer, target, result, asked), leave_out=name, score_leave_out=score)
        row = _adjusted(X, target, row, asked)
        row = dataclasses.replace(row, notes=(*row.notes, why)) if why else row
        rows.append((row, scored(target, result.predicted)))
    return rows


def scored(target: Target, predicted: NDArray[Any]) -> Scored:
    """Return the score of predictions (n,), and that without each group (several at a time where they are many)."""
    units = jackknife_units(target.clusters)
    if target.kind == "continuous":
        return scored_r2(target.y.astype(np.float64), predicted, units)
    return scored_balanced_accuracy(target.y.astype(np.intp), predicted, units, target.n_classes)


def _common(layer: str, target: Target, asked: Asked) -> dict[str, Any]:
    repeated = asked.ceilings.get(target.name)
    notes = []
    if repeated is not None and not math.isfinite(repeated[1]):
        notes.append(
            f"ceiling: not estimable, as {target.name} or {repeated[0]} does not vary on the {repeated[2]} rows "
            "that have both, or these are fewer than 3."
        )
    elif repeated is not None:
        notes.append(
            f"ceiling: r = {repeated[1]:.3f} between {target.name} and {repeated[0]} on {repeated[2]} rows; no R² can "
            "be higher if both measurements have equal and independent errors."
        )
    return {
        "model": asked.model,
        "weights": asked.weights,
        "layer": layer,
        "concept": target.name,
        "kind": target.kind,
        "n": len(target.y),
        "n_groups": target.n_groups,
        "repeated_as": None if repeated is None else repeated[0],
        "ceiling": None if repeated is None else _or_none(repeated[1]),
        "notes": tuple(notes),
    }


def _row(layer: str, target: Target, result: Validated, asked: Asked) -> ProbeRow:
    tested = result.tested
    common = _common(layer, target, asked)
    common["notes"] += _center_notes(result)
    return ProbeRow(
        **common,
        folds=asked.folds,
        metric=target.metric,
        score=result.score,
        score_low=result.low,
        score_high=result.high,
        score_in_sample=result.in_sample,
        score_patchwise=result.patchwise,
        score_random_network=None,
        chance=target.chance,
        alpha=result.alpha,
        alpha_folds=result.fold_alphas,
        cosine=_or_none(result.cosine),
        interval_note=result.interval_note,
        auc=_or_none(result.auc),
        auc_low=_or_none(result.auc_low),
        auc_high=_or_none(result.auc_high),
        score_shuffled=_or_none(result.shuffled),
        score_random_concept=_or_none(result.random_concept),
        selectivity=_or_none(result.score - max(result.random_concept, target.chance)),
        icc=_or_none(tested.icc),
        permuted=tested.permuted if asked.permutations else None,
        permutations=asked.permutations,
        p=_or_none(tested.p),
        p_between=_or_none(tested.p_between),
        p_within=_or_none(tested.p_within),
        p_across_centers=_or_none(tested.p_across),
        decided_by=tested.decided_by,
        assumed=tested.assumed,
        p_min=_or_none(tested.p_min),
    )


def _center_notes(result: Validated) -> tuple[str, ...]:
    """Return what has to be said of centers: folds that train without one, tests that are coarse within them."""
    notes = []
    if result.unseen:
        named = list(result.unseen)
        one, counts = len(named) == 1, set(result.unseen.values())
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        notes.append(
            f"center{'' if one else 's'} {', '.join(named[:_NAMED])}{more}: {'up to ' if len(counts) > 1 else ''}"
            f"{max(counts)} of {len(result.fold_alphas)} folds score {'it' if one else 'each'} without a training row "
            f"of it, so that part of the score is for {'a center' if one else 'centers'} that the vector has not seen."
        )
    if math.isfinite(result.tested.p_across):
        notes.append(
            f"p is primary and permutes groups within centers, where few permutations exist (smallest p "
            f"{result.tested.p_min:.2g}). p_across_centers = {result.tested.p_across:.2g} permutes groups across "
            "centers, and holds only if no center differs from the others in both concept and activations."
        )
    return tuple(notes)


def _paper_row(X: NDArray[Any], layer: str, target: Target, asked: Asked) -> ProbeRow:
    nan = float("nan")
    score = _least_squares_r2(X, target)
    return ProbeRow(
        **_common(layer, target, asked),
        folds=1,
        metric="r2_in_sample",
        score=score,
        score_low=nan,
        score_high=nan,
        score_in_sample=score,
        score_patchwise=nan,
        score_random_network=None,
        chance=0.0,
        alpha=0.0,
        protocol="paper (in-sample)",
        interval_note="an in-sample score has no interval for other patients",
    )


def _least_squares_r2(X: NDArray[Any], target: Target) -> float:
    """Return R² of ordinary least squares on the rows that it was fitted on."""
    A = np.asarray(X, dtype=np.float64)
    A = np.column_stack([np.ones(len(A)), A - A.mean(0)])
    weights = np.linalg.lstsq(A, target.y, rcond=None)[0]
    return target.score(A @ weights)


def _baselines(features: Mapping[str, Any], part: Sequence[Target], asked: Asked) -> list[list[Scored]]:
    """Return the held-out score of each target of a batch, read from each of the named features (n, d)."""

    def each() -> Iterator[Any]:
        for name, given in features.items():
            Z = rows_of(given, part[0].rows)
            check_activations(Z, name)
            yield Z

    if asked.protocol == "paper":
        return [[Scored(_least_squares_r2(Z, target), np.zeros(0)) for target in part] for Z in each()]
    read = held_out_each(each(), len(features), part, folds=asked.folds, alphas=asked.alphas)
    return [[scored(target, p) for target, p in zip(part, own, strict=True)] for own in read]


def _against_baselines(
    row: ProbeRow, own: Scored | None, networks: Sequence[Scored], pixels: Scored | None
) -> ProbeRow:
    """Fill in the baselines, and the gain over the best of chance, the random networks and the pixels."""
    row = dataclasses.replace(
        row,
        score_random_network=float(np.mean([one.value for one in networks])) if networks else None,
        score_pixels=None if pixels is None else pixels.value,
    )
    if own is None:
        return row
    rivals = [networks, [] if pixels is None else [pixels]]
    gain, low, high = gain_interval(own, (row.score_low, row.score_high), row.chance, rivals)
    return dataclasses.replace(
        row, r2_above_baseline=gain, r2_above_baseline_low=_or_none(low), r2_above_baseline_high=_or_none(high)
    )


def _left_out(
    X: NDArray[Any], part: Sequence[Target], asked: Asked
) -> list[tuple[str | None, float | None, str | None]]:
    """Return for each target the column that is held out, the score, and what has to be said of either."""
    if asked.leave_out is None:
        return [(None, None, None)] * len(part)
    name, levels = asked.leave_out
    if asked.leave_out_parts is not None and name in [target.name for target in part]:
        return [(None, None, None)] * len(part)  # a center that is held out cannot be predicted
    there = np.flatnonzero([level is not None for level in levels[part[0].rows]])
    out: list[tuple[str | None, float | None, str | None]] = []
    try:
        kept = [_on(target, there) for target in part]
        splits = leave_out_folds(levels[part[0].rows][there].astype(str), name, asked.leave_out_parts)
        predicted = held_out(rows_of(X, there), kept, alphas=asked.alphas, splits=splits)
        notes = [_on_both_sides(kept[0].groups, levels[part[0].rows][there].astype(str), name)]
        several = len(np.unique(levels[part[0].rows][there].astype(str)))
        if several > len(splits):
            notes.append(f"leave-out {name}: the {several} levels were held out in {len(splits)} parts.")
        said = " ".join(note for note in notes if note) or None
        for target, p in zip(kept, predicted, strict=True):
            alone = _in_one_level(target, levels[part[0].rows][there].astype(str))
            score = None if alone else target.score(p)
            out.append((name, score, f"leave-out {name}: not estimable ({alone})" if alone else said))
    except InputError as error:
        out += [(name, None, f"leave-out {name}: not estimable ({error})")] * len(part)
    return out


def _in_one_level(target: Target, levels: NDArray[Any]) -> str | None:
    """Return a sentence where a class has rows in one level alone: with that level left out nothing knows of it."""
    if target.kind == "continuous":
        return None
    for number, label in enumerate(target.classes):
        own = np.unique(levels[target.y == number])
        if len(own) == 1:
            return f"class {label} has rows in {own[0]} alone, and is unknown where that is left out"
    return None


def _on_both_sides(groups: NDArray[np.intp] | None, levels: NDArray[Any], name: str) -> str | None:
    """Return a sentence where groups have rows in several levels: these are fitted on and scored too."""
    if groups is None:
        return None
    pairs = np.unique(np.stack([groups, np.unique(levels, return_inverse=True)[1]]), axis=1)
    spread = int((np.bincount(pairs[0]) > 1).sum())
    if not spread:
        return None
    return (
        f"leave-out {name}: {spread} of {len(np.unique(groups))} groups have rows in several levels, so that rows of "
        "one group were on both sides of a fold."
    )


def _adjusted(X: NDArray[Any], target: Target, row: ProbeRow, asked: Asked) -> ProbeRow:
    if not asked.confounders:
        return row
    here = {name: values[target.rows] for name, values in asked.confounders.items() if name != target.name}
    if not here:
        note = f"adjusted: not estimable, as {target.name} is the only confounder itself."
        return dataclasses.replace(row, notes=(*row.notes, note))
    there = np.flatnonzero(np.all([_is_there(values) for values in here.values()], axis=0))
    notes = list(row.notes)
    if len(there) < len(target.y):
        notes.append(f"adjusted on the {len(there)} of {len(target.y)} rows that have every confounder.")
    nan = float("nan")
    score, low, high, alone = nan, nan, nan, nan
    try:
        kept = _on(target, there)
        found = adjusted_score(
            rows_of(X, there),
            kept,
            {name: values[there] for name, values in here.items()},
            kept.folds(asked.folds),
            terms=asked.terms,
            alphas=asked.alphas,
            n_resamples=asked.n_resamples,
            seed=asked.seed,
        )
        score, low, high, alone = found.score, found.interval.low, found.interval.high, found.confounders
        if math.isfinite(score) and not math.isfinite(low):
            why = f" ({found.interval.note})" if found.interval.note else ""
            notes.append(
                f"adjusted for {', '.join(here)}: interval not estimable{why}, as the confounders leave too little of "
                f"{target.name} unexplained, or too few groups are left."
            )
        notes += [] if found.note is None else [f"adjusted for {', '.join(here)}: {found.note}"]
    except InputError as error:
        notes.append(f"adjusted for {', '.join(here)}: not estimable ({error})")
    return dataclasses.replace(
        row,
        adjusted_for=tuple(here),
        score_adjusted=_or_none(score),
        score_adjusted_low=_or_none(low),
        score_adjusted_high=_or_none(high),
        score_confounders=_or_none(alone),
        notes=tuple(notes),
    )


def _is_there(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        finite: NDArray[np.bool_] = np.isfinite(values)
        return finite
    return np.array([v is not None for v in values], dtype=bool)


def _on(target: Target, there: NDArray[np.intp]) -> Target:
    """Return the target on some of its rows, and refuse one that does not vary there."""
    if len(there) < 2 or len(np.unique(target.y[there])) < 2:
        raise InputError(f"concept: {target.name} does not vary on the {len(there)} rows that are left.")
    return target.on(there)


def adjusted_for_many(rows: Sequence[ProbeRow]) -> tuple[ProbeRow, ...]:
    """Fill in q over all rows that have a p."""
    q = adjust_for_many([row.p for row in rows])
    return tuple(dataclasses.replace(row, q=_or_none(value)) for row, value in zip(rows, q, strict=True))


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
