"""Probing bare arrays: features of any origin, without a study, a network or an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conceptkit.commands.given_arrays import (
    check_features,
    check_same_order,
    given_column,
    given_columns,
    given_features,
    given_labels,
)
from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.records import ProbeRecord
from conceptkit.runs.opening import N_RESAMPLES, versions

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.probe.rows import Layer

_BASELINES = ("pixels", "random_network")


def probe_arrays(
    X: ArrayLike | Mapping[str, ArrayLike],
    concepts: pd.DataFrame | Mapping[str, ArrayLike],
    groups: ArrayLike | None = None,
    *,
    folds: int = 5,
    alphas: ArrayLike | None = None,
    permutations: int = 1000,
    baseline_features: ArrayLike | Mapping[str, Any] | None = None,
    random_state: int = 0,
    ids: ArrayLike | None = None,
    categorical: Sequence[str] = (),
    centers: ArrayLike | None = None,
    nested: ArrayLike | None = None,
    adjust: pd.DataFrame | Mapping[str, ArrayLike] | None = None,
    adjust_terms: str = "linear",
    leave_out: ArrayLike | None = None,
    repeat: Mapping[str, ArrayLike] | None = None,
    protocol: str = "cross-validated",
    n_resamples: int = N_RESAMPLES,
    layer: str = "features",
    progress: Callable[[int, int], None] | None = None,
) -> ProbeRecord:
    """Measure how well concepts are read from features, on groups that the vectors have not seen.

    Parameters
    ----------
    X : (n, d) features, or layer → (n, d)
    concepts : columns of n values, as a mapping or a dataframe (pandas, polars, Arrow); numbers are continuous; text,
        booleans and categories are classes; NaN, ``None`` and ``NA`` are missing; dates are refused
    groups : (n,) patients or slides, never split; ``None``: rows are taken as independent
    folds : of the cross-validation
    alphas : penalties to choose from; ``None`` for 20 values from 0.1 to 10⁶
    permutations : of each concept, for p; 0 for none
    baseline_features : what the features have to beat: (n, k) raw pixel and colour statistics, or a mapping with
        ``pixels`` and ``random_network``, the latter (n, d), a list of such, or layer → either
    random_state : seed of all that is drawn
    ids : (n,) unique names by which rows are ordered first, so that no result depends on the order given
    categorical : concepts to take as classes whatever their type
    centers : (n,) centers: groups are permuted within them, the folds are stratified by them, and each is held out for
        one more score; missing values share a center of their own
    nested : (n,) units nested in the groups, such as slides of patients: rows are permuted within them only
    adjust : columns of confounders, for a partial R²
    adjust_terms : ``linear``, or ``quadratic``: squares and pairwise interactions of the confounders too
    leave_out : (n,) levels each of which is held out in turn, for one more score; ``None`` for the centers, of which
        several are held out together where there are more than ten
    repeat : concept → (n,) repeated measurement, for the reliability ceiling
    protocol : ``cross-validated``, or ``paper``: least squares fitted and scored on the same rows
    n_resamples : bootstrap resamples behind each interval
    layer : name of the features in the result, when X is one array
    progress : told of batches done and batches to do

    Returns
    -------
    the same record that :func:`conceptkit.run_probe` gives; its rows may be read like dicts

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.probe.adjustment import TERMS, ceiling
    from conceptkit.probe.ridge import ALPHAS
    from conceptkit.probe.rows import (
        PAPER_NOTE,
        Asked,
        BaselineScores,
        add_random_network,
        check_protocol,
        probe_rows,
    )
    from conceptkit.probe.usable import usable_targets
    from conceptkit.runs.context import LEFT_OUT_PARTS

    given = {} if adjust is None else given_columns("adjust", adjust)
    check_protocol(protocol, list(given), leave_out)
    check_at_least("permutations", permutations, 0)
    check_same_order(
        X=X, concepts=concepts, groups=groups, adjust=adjust, centers=centers, nested=nested, leave_out=leave_out
    )
    if isinstance(X, Mapping):
        features = {k: given_features(f"X[{k!r}]", v) for k, v in X.items()}
    else:
        features = {layer: given_features("X", X)}
    if not features:
        raise InputError("X: at least one layer is needed, got none.")
    n = len(next(iter(features.values())))
    order = _order(ids, n)
    columns = given_columns("concepts", concepts)
    named = {
        name: given_column(f"concepts[{name!r}]", column, n, categorical=name in categorical)[order]
        for name, column in columns.items()
    }
    if not named:
        raise InputError("concepts: at least one column is needed, got none.")
    unknown = [name for name in (*categorical, *(repeat or {})) if name not in named]
    if unknown:
        raise InputError(f"concepts: there is no column {unknown[0]!r}; known: {', '.join(named)}.")
    of = None if groups is None else given_labels("groups", groups, n)[order]
    check_choice("adjust_terms", adjust_terms, TERMS)
    placing = {
        "centers": None if centers is None else given_column("centers", centers, n, categorical=True)[order],
        "nested": None if nested is None else given_labels("nested", nested, n)[order],
    }
    targets, skipped = usable_targets(
        named,
        lambda name: (_kind(named[name]), named[name]),
        of,
        folds if protocol != "paper" else None,
        {**placing, "seed": random_state},
    )
    ceilings = {}
    for name, values in (repeat or {}).items():
        second = given_column(f"repeat[{name!r}]", values, n)[order]
        if "categorical" in (_kind(named[name]), _kind(second)):
            raise InputError(f"repeat: {name} and its repeated measurement must both be continuous.")
        ceilings[name] = (f"repeated {name}", *ceiling(named[name], second))
    confounders = {name: given_column(f"adjust[{name!r}]", column, n)[order] for name, column in given.items()}
    levels = None if leave_out is None else given_column("leave_out", leave_out, n, categorical=True)[order]
    pixels, random = _baselines(baseline_features, list(features))
    asked = Asked(
        model="arrays",
        weights="given",
        folds=folds,
        alphas=ALPHAS if alphas is None else _penalties(alphas),
        permutations=permutations,
        n_resamples=n_resamples,
        seed=random_state,
        protocol=protocol,
        pixels=None if pixels is None else pixels[order],
        confounders=confounders,
        terms=adjust_terms,
        leave_out=_left_out(levels, placing["centers"], protocol),
        leave_out_parts=LEFT_OUT_PARTS if leave_out is None else None,
        ceilings=ceilings,
    )
    layers, controls = _ordered(features, random, order, n)
    same = [
        note
        for each in layers
        for where, own in [(f"X[{each.name!r}]", X[each.name]) if isinstance(X, Mapping) else ("X", X)]
        for note in check_features(where, own, each.X, named)
    ]
    of_random: BaselineScores = {}
    for network in controls:
        add_random_network(of_random, network, targets, asked)
    rows = probe_rows(layers, targets, asked, random=of_random, progress=progress)
    notes = [] if groups is not None else ["No groups: rows were taken as independent."]
    notes += [*same, *skipped]
    if of is not None and (few := len(np.unique(of))) < 10:
        notes.append(f"Only {few} groups: the intervals, which resample them, are not to be trusted.")
    if protocol == "paper":
        notes.insert(0, PAPER_NOTE)
    return ProbeRecord(
        study="arrays",
        group=None if groups is None else "groups",
        notes=tuple(notes),
        settings={
            "command": "probe_arrays",
            "layers": list(features),
            "layer": layer,
            "groups": groups is not None,
            "ids": ids is not None,
            "categorical": list(categorical),
            "baseline_features": [
                name for name, there in (("pixels", pixels), ("random_network", random)) if _given(there)
            ],
            "leave_out": leave_out is not None,
            "repeat": list(repeat or {}),
            "random_state": random_state,
            "concepts": [target.name for target in targets],
            "folds": folds,
            "alphas": asked.alphas.tolist(),
            "permutations": permutations,
            "adjust": list(confounders),
            "adjust_terms": adjust_terms,
            "centers": centers is not None,
            "nested": None if nested is None else "nested",
            "protocol": protocol,
            "seed": random_state,
            "n_resamples": n_resamples,
        },
        versions=versions(),
        rows=rows,
    )


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
    from conceptkit.probe.rows import Layer

    moved = not np.array_equal(order, np.arange(n))  # a copy is made only where rows really move
    networks = [
        {name: random[name][i] for name in features if len(random.get(name, ())) > i}
        for i in range(max(len(random.get(name, ())) for name in features))
    ]
    for name, X in [*features.items(), *(item for network in networks for item in network.items())]:
        if len(X) != n:
            raise InputError(f"X: every layer needs the same {n} rows, {name} has {len(X)}.")
    return (
        [Layer(name=name, X=X[order] if moved else X) for name, X in features.items()],
        ({name: Z[order] if moved else Z for name, Z in network.items()} for network in networks),
    )
