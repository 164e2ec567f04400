"""Rows of a probe record from features and targets, for studies and for arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice
from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.evaluate.paired import Refits, Scored, gain_interval, scored_balanced_accuracy, scored_r2
from conceptkit.files.matrix import rows_of
from conceptkit.probe.adjustment import adjusted_score
from conceptkit.probe.folds import leave_out_folds, unseen_levels
from conceptkit.probe.space import Fit
from conceptkit.probe.targets import Target, batches, check_activations, check_varying
from conceptkit.probe.validation import Validated, Validation, held_out, held_out_each, validate
from conceptkit.records import Note, ProbeRow

PROTOCOLS = ("cross-validated", "paper")
"""``paper``: least squares, fitted and scored on the same rows, as Table 6 of Graziani et al. (2023)."""

PAPER_NOTE = Note(
    "protocol",
    "Protocol of the paper: least squares fitted and scored on the same rows. These scores are in-sample: they are "
    "comparable with published ones, and do not show what holds for other patients.",
)

_NAMED = 5
"""Maximum number of centers named in a note"""


def check_protocol(protocol: str, adjust: Collection[str], leave_out: object) -> None:
    """Raise :class:`InputError` for an unknown protocol, or options that are not available with it."""
    check_choice("protocol", protocol, PROTOCOLS)
    given = [name for name, used in (("adjust", len(adjust)), ("leave_out", leave_out is not None)) if used]
    if protocol == "paper" and given:
        raise InputError(
            f"protocol: {' and '.join(given)} not available with `--protocol paper`, which scores the rows of its fit; "
            "use cross-validated."
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Features of one layer."""

    name: str
    X: Any
    """(n, d), an array or a :class:`conceptkit.files.matrix.FileMatrix`"""
    model: str
    weights: str
    encoder: str | None = None
    """Name of the encoder, where several are compared"""

    @property
    def place(self) -> str:
        """Name of the layer, unique among several encoders."""
        return place_of(self.name, self.encoder)


def place_of(layer: str, encoder: str | None) -> str:
    """Return the name of a layer, with that of the encoder if it has one."""
    return layer if encoder is None else f"{layer} of {encoder}"


BaselineScores = dict[tuple[str, str], list[Scored]]
"""Place of a layer and concept → held-out score of each randomly initialised network"""

PlacedRefits = dict[tuple[str, str], Refits]
"""Place of a layer and concept → what paired differences between encoders need"""


@dataclass(frozen=True, kw_only=True)
class RowOptions(Validation):
    """Options for all concepts and layers."""

    permutations: int = 1000
    controls: bool = True
    protocol: str = "cross-validated"
    pixels: NDArray[Any] | None = None
    """(n, k) raw pixel and colour statistics"""
    confounders: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Name → (n,) numbers, or text with ``None`` where missing"""
    terms: str = "linear"
    """Terms of the confounders, one of :data:`conceptkit.probe.adjustment.TERMS`"""
    leave_out: tuple[str, NDArray[Any]] | None = None
    """Name and (n,) levels, ``None`` where missing"""
    leave_out_parts: int | None = None
    """Maximum number of parts in which levels are held out; ``None``: one for each level"""
    ceilings: Mapping[str, tuple[str, float, int]] = field(default_factory=dict)
    """Concept → its repeated measurement, their correlation, and the number of rows with both"""


def add_random_network(
    scores: BaselineScores, features: Mapping[str, Any], targets: Sequence[Target], options: RowOptions
) -> None:
    """Append the scores of one randomly initialised network, place of a layer → features (n, d), to ``scores``."""
    named = {f"{layer} of a random network": Z for layer, Z in features.items()}
    for part in batches(targets):
        for layer, each in zip(features, _baselines(named, part, options), strict=True):
            for target, score in zip(part, each, strict=True):
                scores.setdefault((layer, target.name), []).append(score)


def probe_rows(
    layers: Sequence[Layer],
    targets: Sequence[Target],
    options: RowOptions,
    *,
    random: Mapping[tuple[str, str], Sequence[Scored]] | None = None,
    fits: dict[tuple[str, str], Fit] | None = None,
    refits: PlacedRefits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ProbeRow, ...]:
    """Probe every target at every layer: one row each, by layer, with q over all of them.

    Parameters
    ----------
    layers : features of the rows that ``targets`` number
    random : scores gathered by :func:`add_random_network`
    fits : receives the vectors by place of the layer and concept, if the options keep them
    refits : filled for :func:`conceptkit.probe.encoders.encoder_differences`
    progress : receives the number of batches done and in total
    """
    parts = batches(targets)
    rows: dict[tuple[str, str], ProbeRow] = {}
    report = progress or (lambda done, total: None)
    for i, part in enumerate(parts):
        pixels: Sequence[Scored | None] = [None] * len(part)
        if options.pixels is not None:
            [pixels] = _baselines({"pixel statistics": options.pixels}, part, options)
        for j, layer in enumerate(layers):
            report(i * len(layers) + j, len(layers) * len(parts))
            X = rows_of(layer.X, part[0].rows)
            check_activations(X, layer.place)
            check_varying(X, layer.place)
            fields = _in_sample_fields if options.protocol == "paper" else _held_out_fields
            for target, values, pixel in zip(part, fields(X, part, options), pixels, strict=True):
                place, of_refits = (layer.place, target.name), values.pop("refits")
                if refits is not None and of_refits is not None:
                    refits[place] = of_refits
                values |= _gain_fields(values, (random or {}).get(place, ()), pixel)
                if (fit := values.pop("fit", None)) is not None and fits is not None:
                    fits[place] = fit
                values |= {"encoder": layer.encoder, "model": layer.model, "weights": layer.weights}
                rows[place] = ProbeRow(layer=layer.name, **values)
    report(len(layers) * len(parts), len(layers) * len(parts))
    ordered = [rows[layer.place, target.name] for layer in layers for target in targets]
    q = adjust_for_many([row.p for row in ordered])
    return tuple(dataclasses.replace(row, q=value) for row, value in zip(ordered, q, strict=True))


def scored(target: Target, predicted: NDArray[Any]) -> Scored:
    """Return the score of predictions (n,), and that without each jackknife unit."""
    units = jackknife_units(target.clusters)
    if target.kind == "continuous":
        return scored_r2(target.y.astype(np.float64), predicted, units)
    return scored_balanced_accuracy(target.y.astype(np.intp), predicted, units, target.n_classes)


def _held_out_fields(X: NDArray[Any], part: Sequence[Target], options: RowOptions) -> Iterator[dict[str, Any]]:
    """Yield the values of the row of each target without its baselines, with its :class:`Scored` as ``own``."""
    centers = part[0].centers
    unseen = {} if centers is None else unseen_levels(centers, part[0].folds(options.folds))
    each = zip(part, validate(X, part, options), _left_out(X, part, options), strict=True)
    for target, result, left_out in each:
        parts = [
            _common_fields(target, options),
            _score_fields(target, result, options),
            {"notes": _center_notes(result, unseen, options.folds)},
            _adjusted_fields(X, target, options),
            left_out,
        ]
        notes = tuple(note for values in parts for note in values.pop("notes", ()))
        merged = {name: value for values in parts for name, value in values.items()}
        own = {"own": scored(target, result.predicted), "refits": result.refits, "fit": result.fit}
        yield {**merged, "notes": notes, **own}


def _in_sample_fields(X: NDArray[Any], part: Sequence[Target], options: RowOptions) -> Iterator[dict[str, Any]]:
    """Yield the values of the row of each target by the protocol of the paper."""
    for target in part:
        score = _least_squares_r2(X, target)
        yield {
            **_common_fields(target, options),
            "folds": 1,
            "metric": "r2_in_sample",
            "score": score,
            "score_low": math.nan,
            "score_high": math.nan,
            "score_in_sample": score,
            "score_patchwise": math.nan,
            "chance": 0.0,
            "alpha": 0.0,
            "protocol": "paper (in-sample)",
            "interval_note": "an in-sample score has no interval for other patients",
            "own": None,
            "refits": None,
        }


def _common_fields(target: Target, options: RowOptions) -> dict[str, Any]:
    values: dict[str, Any] = {
        "concept": target.name,
        "kind": target.kind,
        "n": len(target.y),
        "n_groups": target.n_groups,
        "notes": (),
    }
    if target.name not in options.ceilings:
        return values
    repeated, r, n = options.ceilings[target.name]
    note = (
        f"ceiling: r = {r:.3f} between {target.name} and {repeated} on {n} rows; this is the highest possible R² if "
        "both measurements have equal and independent errors."
    )
    if not math.isfinite(r):
        note = (
            f"ceiling: not estimable, as {target.name} or {repeated} does not vary on the {n} rows with both, or there "
            "are fewer than 3."
        )
    return values | {"repeated_as": repeated, "ceiling": r, "notes": (Note("ceiling", note),)}


def _score_fields(target: Target, result: Validated, options: RowOptions) -> dict[str, Any]:
    return {
        **result.numbers(),
        "folds": options.folds,
        "metric": target.metric,
        "chance": target.chance,
        "permutations": options.permutations,
        "permuted": result.permuted if options.permutations else None,
    }


def _center_notes(result: Validated, unseen: Mapping[str, int], folds: int) -> Iterator[Note]:
    """Yield notes on folds that train without a center, and on coarse tests within centers."""
    if unseen:
        names, counts = list(unseen), set(unseen.values())
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        plural, each = ("s", "each") if len(names) > 1 else ("", "it")
        yield Note(
            "centers",
            f"center{plural} {', '.join(names[:_NAMED])}{more}: {'up to ' if len(counts) > 1 else ''}{max(counts)} of "
            f"{folds} folds score {each} without a training row of it; that part of the score is for an unseen center.",
        )
    if result.p_across_centers is not None and math.isfinite(result.p_across_centers):
        yield Note(
            "centers",
            f"p is primary and permutes groups within centers, with few possible permutations (smallest p "
            f"{result.p_min:.2g}). p_across_centers = {result.p_across_centers:.2g} permutes groups across centers; it "
            "is valid only if no center differs from the others in both concept and activations.",
        )


def _least_squares_r2(X: NDArray[Any], target: Target) -> float:
    """Return R² of ordinary least squares on the rows of the fit."""
    A = np.asarray(X, dtype=np.float64)
    A = np.column_stack([np.ones(len(A)), A - A.mean(0)])
    weights = np.linalg.lstsq(A, target.y, rcond=None)[0]
    return target.score(A @ weights)


def _baselines(features: Mapping[str, Any], part: Sequence[Target], options: RowOptions) -> list[list[Scored]]:
    """Return the held-out score of each target of a batch from each of the named features (n, d)."""

    def each() -> Iterator[Any]:
        for name, given in features.items():
            Z = rows_of(given, part[0].rows)
            check_activations(Z, name)
            yield Z

    if options.protocol == "paper":
        return [[Scored(_least_squares_r2(Z, target), np.zeros(0)) for target in part] for Z in each()]
    predicted = held_out_each(each(), len(features), part, folds=options.folds, alphas=options.alphas)
    return [[scored(target, p) for target, p in zip(part, one, strict=True)] for one in predicted]


def _gain_fields(values: dict[str, Any], networks: Sequence[Scored], pixels: Scored | None) -> dict[str, Any]:
    """Return the baselines, and the gain over the best of chance, the random networks and the pixels."""
    own = values.pop("own")
    fields: dict[str, Any] = {
        "score_random_network": float(np.mean([one.value for one in networks])) if networks else None,
        "score_pixels": None if pixels is None else pixels.value,
    }
    if own is not None:
        rivals = [networks, [] if pixels is None else [pixels]]
        ends = values["score_low"], values["score_high"]
        gain, low, high = gain_interval(own, ends, values["chance"], rivals)
        fields |= {
            "r2_above_baseline": gain,
            "r2_above_baseline_low": low,
            "r2_above_baseline_high": high,
        }
    return fields


def _left_out(X: NDArray[Any], part: Sequence[Target], options: RowOptions) -> list[dict[str, Any]]:
    """Return the score of each target on held-out levels of a column, and a note."""
    # By default centers are held out: the center itself cannot be predicted then.
    center = options.leave_out_parts is not None
    if options.leave_out is None or (center and options.leave_out[0] in [target.name for target in part]):
        return [{} for _ in part]
    name, levels = options.leave_out
    levels = levels[part[0].rows]
    present = np.flatnonzero([level is not None for level in levels])
    levels = levels[present].astype(str)
    try:
        kept = [_on(target, present) for target in part]
        splits = leave_out_folds(levels, name, options.leave_out_parts)
        predicted = held_out(rows_of(X, present), kept, alphas=options.alphas, splits=splits)
    except InputError as error:
        return [
            {"leave_out": name, "notes": (Note("leave_out", f"leave-out {name}: not estimable ({error})"),)}
            for _ in part
        ]
    several = len(np.unique(levels))
    split = _split_groups(kept[0].groups, levels)
    remarks = [f"leave-out {name}: {split}."] if split else []
    if several > len(splits):
        remarks.append(f"leave-out {name}: the {several} levels were held out in {len(splits)} parts.")
    out = []
    for target, p in zip(kept, predicted, strict=True):
        unknown = _class_in_one_level(target, levels)
        note = f"leave-out {name}: not estimable ({unknown})" if unknown else " ".join(remarks)
        score = None if unknown else target.score(p)
        out.append({"leave_out": name, "score_leave_out": score, "notes": (Note("leave_out", note),) if note else ()})
    return out


def _class_in_one_level(target: Target, levels: NDArray[Any]) -> str | None:
    """Return a sentence when a class has rows in one level only and is unknown when that level is held out."""
    for number, label in enumerate(target.classes):
        present = np.unique(levels[target.y == number])
        if len(present) == 1:
            return f"class {label} has rows in {present[0]} only, and is unknown when that is held out"
    return None


def _split_groups(groups: NDArray[np.intp] | None, levels: NDArray[Any]) -> str | None:
    """Return a sentence when groups have rows in several levels, and so on both sides of a fold."""
    if groups is None:
        return None
    pairs = np.unique(np.stack([groups, np.unique(levels, return_inverse=True)[1]]), axis=1)
    several = int((np.bincount(pairs[0]) > 1).sum())
    if not several:
        return None
    return f"{several} of {len(np.unique(groups))} groups have rows in several levels, and were on both sides of a fold"


def _adjusted_fields(X: NDArray[Any], target: Target, options: RowOptions) -> dict[str, Any]:
    """Return the partial R² of a target given the confounders, with notes."""
    here = {name: values[target.rows] for name, values in options.confounders.items() if name != target.name}
    if not here:
        note = f"adjusted: not estimable, as {target.name} is the only confounder itself."
        return {"notes": (Note("adjusted", note),)} if options.confounders else {}
    present = np.flatnonzero(np.all([_is_present(values) for values in here.values()], axis=0))
    fields: dict[str, Any] = {"adjusted_for": tuple(here)}
    notes, names = [], ", ".join(here)
    if len(present) < len(target.y):
        notes.append(f"adjusted on the {len(present)} of {len(target.y)} rows that have every confounder.")
    try:
        kept = _on(target, present)
        confounders = {name: values[present] for name, values in here.items()}
        result = adjusted_score(
            rows_of(X, present), kept, confounders, kept.folds(options.folds), options, terms=options.terms
        )
        fields |= {
            "score_adjusted": result.score,
            "score_adjusted_low": result.interval.low,
            "score_adjusted_high": result.interval.high,
            "score_confounders": result.confounders,
        }
        if math.isfinite(result.score) and not math.isfinite(result.interval.low):
            why = f" ({result.interval.note})" if result.interval.note else ""
            notes.append(
                f"adjusted for {names}: interval not estimable{why}, as the confounders leave too little of "
                f"{target.name} unexplained, or too few groups are left."
            )
        notes += [] if result.note is None else [f"adjusted for {names}: {result.note}"]
    except InputError as error:
        notes.append(f"adjusted for {names}: not estimable ({error})")
    return fields | {"notes": [Note("adjusted", note) for note in notes]}


def _is_present(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return np.asarray(np.isfinite(values))
    return np.array([v is not None for v in values], dtype=bool)


def _on(target: Target, rows: NDArray[np.intp]) -> Target:
    """Return the target on some of its rows; refuse a target that is constant there."""
    if len(rows) < 2 or len(np.unique(target.y[rows])) < 2:
        raise InputError(f"concept: {target.name} does not vary on the {len(rows)} rows that are left.")
    return target.on(rows)
