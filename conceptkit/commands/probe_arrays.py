"""Probing bare arrays: features of any origin, without a study, a network or an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from conceptkit.commands.given_arrays import (
    check_features,
    check_same_order,
    given_column,
    given_columns,
    given_features,
    given_labels,
)
from conceptkit.errors import InputError, check_choice
from conceptkit.options.probe_arrays import ArrayProbe
from conceptkit.probe.adjustment import ceiling
from conceptkit.probe.ridge import ALPHAS
from conceptkit.probe.rows import (
    PAPER_NOTE,
    BaselineScores,
    Layer,
    RowOptions,
    add_random_network,
    check_protocol,
    probe_rows,
)
from conceptkit.probe.usable import usable_targets
from conceptkit.records import ProbeRecord
from conceptkit.runs.context import LEFT_OUT_PARTS
from conceptkit.runs.opening import versions

_BASELINES = ("pixels", "random_network")


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    """The arguments of :func:`probe_arrays` that hold data."""

    X: Any
    concepts: Any
    groups: Any
    baseline_features: Any
    ids: Any
    centers: Any
    nested: Any
    adjust: Any
    leave_out: Any
    repeat: Mapping[str, Any]


def probe_arrays(
    X: ArrayLike | Mapping[str, ArrayLike],
    concepts: pd.DataFrame | Mapping[str, ArrayLike],
    groups: ArrayLike | None = None,
    *,
    baseline_features: ArrayLike | Mapping[str, Any] | None = None,
    ids: ArrayLike | None = None,
    centers: ArrayLike | None = None,
    nested: ArrayLike | None = None,
    adjust: pd.DataFrame | Mapping[str, ArrayLike] | None = None,
    leave_out: ArrayLike | None = None,
    repeat: Mapping[str, ArrayLike] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> ProbeRecord:
    """Measure how well concepts are decoded from features, held out by group.

    Parameters
    ----------
    X : (n, d) features, or layer → (n, d)
    concepts : columns of n values, as a mapping or a dataframe (pandas, polars, Arrow); numbers are continuous; text,
        booleans and categories are classes; NaN, ``None`` and ``NA`` are missing; dates are refused
    groups : (n,) patients or slides, never split; ``None``: rows are treated as independent
    baseline_features : what the features are compared with: (n, k) raw pixel and colour statistics, or a mapping with
        ``pixels`` and ``random_network``, the latter (n, d), a list of such, or layer → either
    ids : (n,) unique names by which rows are ordered first, so that no result depends on the order given
    centers : (n,) centers: groups are permuted within them, the folds are stratified by them, and each is held out for
        one more score; missing values share a center of their own
    nested : (n,) units nested in the groups, such as slides of patients: rows are permuted within them only
    adjust : columns of confounders, for a partial R²
    leave_out : (n,) levels each of which is held out in turn, for one more score; ``None`` for the centers, of which
        several are held out together where there are more than ten
    repeat : concept → (n,) repeated measurement, for the reliability ceiling
    progress : called with batches done and batches to do
    options : the fields of :class:`conceptkit.options.probe_arrays.ArrayProbe`: ``folds``, ``permutations`` and others

    Returns
    -------
    the same record that :func:`conceptkit.run_probe` gives; its rows may be read like dicts

    Raises
    ------
    InputError
        when something cannot be used
    """
    given = _Arrays(
        X=X,
        concepts=concepts,
        groups=groups,
        baseline_features=baseline_features,
        ids=ids,
        centers=centers,
        nested=nested,
        adjust=adjust,
        leave_out=leave_out,
        repeat=repeat or {},
    )
    return _measured(ArrayProbe(**options), given, progress)


def _measured(options: ArrayProbe, given: _Arrays, progress: Callable[[int, int], None] | None) -> ProbeRecord:
    adjust = {} if given.adjust is None else given_columns("adjust", given.adjust)
    check_protocol(options.protocol, list(adjust), given.leave_out)
    in_rows = ("X", "concepts", "groups", "adjust", "centers", "nested", "leave_out")
    check_same_order(**{name: getattr(given, name) for name in in_rows})
    features = _features(given.X, options.layer)
    n = len(next(iter(features.values())))
    order = _order(given.ids, n)
    named = _concepts(given.concepts, n, options.categorical, given.repeat, order)
    groups = None if given.groups is None else given_labels("groups", given.groups, n)[order]
    centers = None if given.centers is None else given_column("centers", given.centers, n, categorical=True)[order]
    nested = None if given.nested is None else given_labels("nested", given.nested, n)[order]
    targets, skipped = usable_targets(
        named,
        lambda name: (_kind(named[name]), named[name]),
        groups,
        options.folds if options.protocol != "paper" else None,
        {"centers": centers, "nested": nested, "seed": options.random_state},
    )
    levels = None if given.leave_out is None else given_column("leave_out", given.leave_out, n, categorical=True)[order]
    pixels, random = _baselines(given.baseline_features, list(features))
    row_options = RowOptions(
        folds=options.folds,
        alphas=ALPHAS if options.alphas is None else _penalties(options.alphas),
        permutations=options.permutations,
        n_resamples=options.n_resamples,
        seed=options.random_state,
        protocol=options.protocol,
        pixels=None if pixels is None else pixels[order],
        confounders={name: given_column(f"adjust[{name!r}]", column, n)[order] for name, column in adjust.items()},
        terms=options.adjust_terms,
        leave_out=_left_out(levels, centers, options.protocol),
        leave_out_parts=LEFT_OUT_PARTS if given.leave_out is None else None,
        ceilings=_ceilings(given.repeat, named, n, order),
    )
    layers, controls = _ordered(features, random, order, n)
    same = _same(given.X, layers, named)
    of_random: BaselineScores = {}
    for network in controls:
        add_random_network(of_random, network, targets, row_options)
    rows = probe_rows(layers, targets, row_options, random=of_random, progress=progress)
    return ProbeRecord(
        study="arrays",
        group=None if groups is None else "groups",
        notes=(*([PAPER_NOTE] if options.protocol == "paper" else []), *_group_notes(groups), *same, *skipped),
        settings={
            "command": "probe_arrays",
            **options.settings(),
            "layers": list(features),
            "groups": groups is not None,
            "ids": given.ids is not None,
            "baseline_features": [
                name for name, there in (("pixels", pixels), ("random_network", random)) if _given(there)
            ],
            "leave_out": levels is not None,
            "repeat": list(given.repeat),
            "concepts": [target.name for target in targets],
            "alphas": row_options.alphas.tolist(),
            "adjust": list(adjust),
            "centers": centers is not None,
            "nested": None if nested is None else "nested",
            "seed": options.random_state,
        },
        versions=versions(),
        rows=rows,
    )


def _same(X: Any, layers: Sequence[Layer], concepts: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return notes on features that equal a concept."""
    notes = []
    for layer in layers:
        where, values = (f"X[{layer.name!r}]", X[layer.name]) if isinstance(X, Mapping) else ("X", X)
        notes += check_features(where, values, layer.X, concepts)
    return notes


def _features(X: Any, layer: str) -> dict[str, NDArray[Any]]:
    """Return layer → features (n, d)."""
    if not isinstance(X, Mapping):
        return {layer: given_features("X", X)}
    if not X:
        raise InputError("X: at least one layer is needed, got none.")
    return {name: given_features(f"X[{name!r}]", values) for name, values in X.items()}


def _concepts(
    given: Any, n: int, categorical: Sequence[str], repeat: Mapping[str, Any], order: NDArray[np.intp]
) -> dict[str, NDArray[Any]]:
    """Return concept → values (n,) in the order of the rows."""
    named = {
        name: given_column(f"concepts[{name!r}]", column, n, categorical=name in categorical)[order]
        for name, column in given_columns("concepts", given).items()
    }
    if not named:
        raise InputError("concepts: at least one column is needed, got none.")
    if unknown := [name for name in (*categorical, *repeat) if name not in named]:
        raise InputError(f"concepts: there is no column {unknown[0]!r}; known: {', '.join(named)}.")
    return named


def _ceilings(
    repeat: Mapping[str, Any], named: Mapping[str, NDArray[Any]], n: int, order: NDArray[np.intp]
) -> dict[str, tuple[str, float, int]]:
    """Return concept → name, reliability and rows of its repeated measurement."""
    ceilings = {}
    for name, values in repeat.items():
        second = given_column(f"repeat[{name!r}]", values, n)[order]
        if "categorical" in (_kind(named[name]), _kind(second)):
            raise InputError(f"repeat: {name} and its repeated measurement must both be continuous.")
        ceilings[name] = (f"repeated {name}", *ceiling(named[name], second))
    return ceilings


def _group_notes(groups: NDArray[Any] | None) -> list[str]:
    if groups is None:
        return ["No groups: rows were treated as independent."]
    few = len(np.unique(groups))
    return [f"Only {few} groups: the intervals, which resample them, are unreliable below 10."] if few < 10 else []


def _given(baseline: Any) -> bool:
    return baseline is not None and len(baseline) > 0


def _kind(values: NDArray[Any]) -> str:
    return "continuous" if values.dtype.kind == "f" else "categorical"


def _left_out(
    given: NDArray[Any] | None, centers: NDArray[Any] | None, protocol: str
) -> tuple[str, NDArray[Any]] | None:
    """Return the name and levels that are held out: those given, or else the centers where there are several."""
    if given is not None:
        return "leave_out", given
    if centers is None or protocol == "paper" or len({name for name in centers if name is not None}) < 2:
        return None
    return "centers", centers


def _order(ids: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if ids is None:
        return np.arange(n)
    names = given_labels("ids", ids, n).astype(str)
    if len(np.unique(names)) < n:
        raise InputError(f"ids: must be unique, {n - len(np.unique(names))} of {n} repeat another.")
    return np.argsort(names, kind="stable")


def _penalties(given: ArrayLike) -> NDArray[np.float64]:
    alphas = np.atleast_1d(np.asarray(given, dtype=np.float64))
    if alphas.ndim != 1 or not len(alphas) or not (alphas > 0).all() or not np.isfinite(alphas).all():
        raise InputError(f"alphas: must be positive numbers, got {given!r}.")
    return alphas


def _baselines(given: Any, layers: Sequence[str]) -> tuple[NDArray[Any] | None, dict[str, list[NDArray[Any]]]]:
    """Return pixel statistics, and layer → features of random networks."""
    if given is None:
        return None, {}
    if not isinstance(given, Mapping):
        return given_features("baseline_features", given), {}
    for name in given:
        check_choice("baseline_features", str(name), _BASELINES)
    pixels = None if "pixels" not in given else given_features("baseline_features['pixels']", given["pixels"])
    random = given.get("random_network")
    if random is None:
        return pixels, {}
    by_layer: Mapping[str, Any] = random if isinstance(random, Mapping) else dict.fromkeys(layers, random)
    where = "baseline_features['random_network']"
    return pixels, {
        name: [given_features(where, z) for z in (value if isinstance(value, list | tuple) else [value])]
        for name, value in by_layer.items()
    }


def _ordered(
    features: Mapping[str, NDArray[Any]], random: Mapping[str, list[NDArray[Any]]], order: NDArray[np.intp], n: int
) -> tuple[list[Layer], Iterator[dict[str, NDArray[Any]]]]:
    """Return the layers in the order of rows, and layer → features of random networks, one after the other."""
    moved = not np.array_equal(order, np.arange(n))  # a copy is made only where rows really move
    networks = [
        {name: random[name][i] for name in features if len(random.get(name, ())) > i}
        for i in range(max(len(random.get(name, ())) for name in features))
    ]
    for name, X in [*features.items(), *(item for network in networks for item in network.items())]:
        if len(X) != n:
            raise InputError(f"X: every layer needs the same {n} rows, {name} has {len(X)}.")
    return (
        [Layer(name=name, X=X[order] if moved else X, model="arrays", weights="given") for name, X in features.items()],
        ({name: Z[order] if moved else Z for name, Z in network.items()} for network in networks),
    )
