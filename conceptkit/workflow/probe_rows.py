"""From features and targets to the rows of a probe record, for studies and for bare arrays alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_choice
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.evaluate.scores import Floats
from conceptkit.file_matrix import rows_of
from conceptkit.probe.adjustment import adjusted_score
from conceptkit.probe.folds import leave_out_folds, make_folds
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


LEAST_LOW = -10.0
"""An interval of R² that begins below this says nothing: it is not estimable."""


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
    """(n, d), an array or a :class:`conceptkit.file_matrix.FileMatrix`"""


BaselineScores = dict[tuple[str, str], list[float]]
"""Layer and concept → the held-out score of each network with random weights, or of what else was given for it"""


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
    random: Mapping[tuple[str, str], Sequence[float]] | None = None,
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
        pixel_scores: Sequence[float | None] = [None] * len(part)
        if asked.pixels is not None:
            [pixel_scores] = _baselines({"pixel statistics": asked.pixels}, part, asked)
        for layer in layers:
            if progress is not None:
                progress(done, len(layers) * len(parts))
            X = rows_of(layer.X, at)
            check_activations(X, layer.name)
            check_varying(X, layer.name)
            for i, row in enumerate(_batch(X, layer.name, part, asked)):
                of_random = (random or {}).get((layer.name, part[i].name))
                row = dataclasses.replace(
                    row,
                    score_random_network=None if of_random is None else float(np.mean(of_random)),
                    score_pixels=pixel_scores[i],
                )
                found[layer.name, part[i].name] = _above_baseline(row)
            done += 1
    if progress is not None:
        progress(done, len(layers) * len(parts))
    return adjusted_for_many([found[layer.name, target.name] for layer in layers for target in targets])


def _batch(X: NDArray[Any], layer: str, part: Sequence[Target], asked: Asked) -> list[ProbeRow]:
    if asked.protocol == "paper":
        return [_paper_row(X, layer, target, asked) for target in part]
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
    rows = []
    for target, result, (score, why) in zip(part, results, left_out, strict=True):
        row = dataclasses.replace(_row(layer, target, result, asked), score_leave_out=score)
        row = _adjusted(X, target, row, asked)
        rows.append(dataclasses.replace(row, notes=(*row.notes, why)) if why else row)
    return rows


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
    return ProbeRow(
        **_common(layer, target, asked),
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
        selectivity=_or_none(result.score - result.random_concept),
        icc=_or_none(result.icc),
        permuted=result.permuted if asked.permutations else None,
        permutations=asked.permutations,
        p=_or_none(result.p),
        p_within=_or_none(result.p_within),
        p_min=_or_none(result.p_min),
    )


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
    if target.kind != "continuous":
        raise InputError(f"protocol: paper is for continuous concepts, {target.name} is categorical.")
    A = np.asarray(X, dtype=np.float64)
    A = np.column_stack([np.ones(len(A)), A - A.mean(0)])
    weights = np.linalg.lstsq(A, target.y, rcond=None)[0]
    return target.score(A @ weights)


def _baselines(features: Mapping[str, Any], part: Sequence[Target], asked: Asked) -> list[list[float]]:
    """Return the held-out score of each target of a batch, read from each of the named features (n, d).

    They are a control, which no score may do without.
    """

    def each() -> Iterator[Any]:
        for name, given in features.items():
            Z = rows_of(given, part[0].rows)
            check_activations(Z, name)
            yield Z

    if asked.protocol == "paper":
        return [[_least_squares_r2(Z, target) for target in part] for Z in each()]
    read = held_out_each(each(), len(features), part, folds=asked.folds, alphas=asked.alphas)
    return [[float(target.score(p)) for target, p in zip(part, own, strict=True)] for own in read]


def _above_baseline(row: ProbeRow) -> ProbeRow:
    """Fill in what lies above the best of chance, the random network and the pixels."""
    if row.protocol != "cross-validated":
        return row
    baselines = [row.chance, *(s for s in (row.score_random_network, row.score_pixels) if s is not None)]
    return dataclasses.replace(row, r2_above_baseline=row.score - max(baselines))


def _left_out(X: NDArray[Any], part: Sequence[Target], asked: Asked) -> list[tuple[float | None, str | None]]:
    """Return the score on held-out levels of each target, and what has to be said of it or of there being none."""
    if asked.leave_out is None:
        return [(None, None)] * len(part)
    name, levels = asked.leave_out
    there = np.flatnonzero([level is not None for level in levels[part[0].rows]])
    out: list[tuple[float | None, str | None]] = []
    try:
        kept = [_on(target, there) for target in part]
        splits = leave_out_folds(levels[part[0].rows][there].astype(str), name)
        predicted = held_out(rows_of(X, there), kept, alphas=asked.alphas, splits=splits)
        both = _on_both_sides(kept[0].groups, levels[part[0].rows][there].astype(str), name)
        for target, p in zip(kept, predicted, strict=True):
            alone = _in_one_level(target, levels[part[0].rows][there].astype(str))
            score = None if alone else target.score(p)
            out.append((score, f"leave-out {name}: not estimable ({alone})" if alone else both))
    except InputError as error:
        out += [(None, f"leave-out {name}: not estimable ({error})")] * len(part)
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
        return dataclasses.replace(row, leave_out=None if asked.leave_out is None else asked.leave_out[0])
    here = {name: values[target.rows] for name, values in asked.confounders.items() if name != target.name}
    if not here:
        note = f"adjusted: not estimable, as {target.name} is the only confounder itself."
        return dataclasses.replace(
            row, leave_out=None if asked.leave_out is None else asked.leave_out[0], notes=(*row.notes, note)
        )
    there = np.flatnonzero(np.all([_is_there(values) for values in here.values()], axis=0))
    notes = list(row.notes)
    if len(there) < len(target.y):
        notes.append(f"adjusted on the {len(there)} of {len(target.y)} rows that have every confounder.")
    nan = float("nan")
    score, low, high = nan, nan, nan
    try:
        kept = _on(target, there)
        splits = make_folds(len(there), kept.groups, asked.folds, what=f"the rows with {target.name} and confounders")
        found = adjusted_score(
            rows_of(X, there),
            kept,
            {name: values[there] for name, values in here.items()},
            splits,
            alphas=asked.alphas,
            n_resamples=asked.n_resamples,
            seed=asked.seed,
        )
        score, low, high = found.score, found.interval.low, found.interval.high
        if low < LEAST_LOW:
            notes.append(
                f"adjusted for {', '.join(here)}: interval not estimable; it would begin at {low:.0f}, as the "
                f"confounders leave too little of {target.name} unexplained, or too few groups are left."
            )
            low, high = nan, nan
        notes += [] if found.note is None else [f"adjusted for {', '.join(here)}: {found.note}"]
    except InputError as error:
        notes.append(f"adjusted for {', '.join(here)}: not estimable ({error})")
    return dataclasses.replace(
        row,
        leave_out=None if asked.leave_out is None else asked.leave_out[0],
        adjusted_for=tuple(here),
        score_adjusted=_or_none(score),
        score_adjusted_low=_or_none(low),
        score_adjusted_high=_or_none(high),
        notes=tuple(notes),
    )


def _is_there(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        finite: NDArray[np.bool_] = np.isfinite(values)
        return finite
    return np.array([v is not None for v in values], dtype=bool)


def _on(target: Target, there: NDArray[np.intp]) -> Target:
    """Return the target on some of its rows, its groups numbered anew."""
    if len(there) < 2 or len(np.unique(target.y[there])) < 2:
        raise InputError(f"concept: {target.name} does not vary on the {len(there)} rows that are left.")
    groups = None if target.groups is None else np.unique(target.groups[there], return_inverse=True)[1]
    return dataclasses.replace(target, rows=target.rows[there], y=target.y[there], groups=groups)


def adjusted_for_many(rows: Sequence[ProbeRow]) -> tuple[ProbeRow, ...]:
    """Fill in q over all rows that have a p."""
    q = adjust_for_many([row.p for row in rows])
    return tuple(dataclasses.replace(row, q=_or_none(value)) for row, value in zip(rows, q, strict=True))


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
