"""Probing bare arrays: features of any origin, without a study, a network or an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conceptkit._checks import InputError, check_at_least, check_choice
from conceptkit.records import ProbeRecord
from conceptkit.workflow.opening import N_RESAMPLES, versions

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.workflow.probe_rows import Layer

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
    concepts : columns of n values; numbers are continuous, text and booleans classes; NaN and ``None`` are missing
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
    from conceptkit.probe.targets import make_target
    from conceptkit.workflow.context import LEFT_OUT_PARTS
    from conceptkit.workflow.probe_rows import (
        PAPER_NOTE,
        Asked,
        BaselineScores,
        add_random_network,
        check_protocol,
        probe_rows,
    )

    check_protocol(protocol, () if adjust is None else [str(name) for name in adjust], leave_out)
    check_at_least("permutations", permutations, 0)
    features = {k: _features(f"X[{k!r}]", v) for k, v in X.items()} if isinstance(X, Mapping) else {}
    if not isinstance(X, Mapping):
        features = {layer: _features("X", X)}
    if not features:
        raise InputError("X: at least one layer is needed, got none.")
    n = len(next(iter(features.values())))
    order = _order(ids, n)
    named = {str(name): _column(f"concepts[{name!r}]", column, n)[order] for name, column in concepts.items()}
    if not named:
        raise InputError("concepts: at least one column is needed, got none.")
    unknown = [name for name in (*categorical, *(repeat or {})) if name not in named]
    if unknown:
        raise InputError(f"concepts: there is no column {unknown[0]!r}; known: {', '.join(named)}.")
    of = None if groups is None else _groups(groups, n)[order]
    check_choice("adjust_terms", adjust_terms, TERMS)
    placing = {
        "centers": None if centers is None else _classes(_column("centers", centers, n)[order]),
        "nested": None if nested is None else _groups(nested, n, "nested")[order],
    }
    targets = []
    for name, column in named.items():
        kind = "categorical" if name in categorical or not _is_numeric(column) else "continuous"
        numbers = _numbers(column) if kind == "continuous" else _classes(column)
        targets.append(make_target(name, kind, numbers, of, **placing, seed=random_state))
    ceilings = {}
    for name, values in (repeat or {}).items():
        second = _numbers(_column(f"repeat[{name!r}]", values, n)[order])
        ceilings[name] = (f"repeated {name}", *ceiling(_numbers(named[name]), second))
    given = () if adjust is None else adjust.items()
    confounders = {str(name): _column(f"adjust[{name!r}]", column, n)[order] for name, column in given}
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
        confounders={k: _numbers(v) if _is_numeric(v) else _classes(v) for k, v in confounders.items()},
        terms=adjust_terms,
        leave_out=_left_out(leave_out, placing["centers"], order, protocol),
        leave_out_parts=LEFT_OUT_PARTS if leave_out is None else None,
        ceilings=ceilings,
    )
    layers, controls = _ordered(features, random, order, n)
    of_random: BaselineScores = {}
    for network in controls:
        add_random_network(of_random, network, targets, asked)
    rows = probe_rows(layers, targets, asked, random=of_random, progress=progress)
    notes = [] if groups is not None else ["No groups: rows were taken as independent."]
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
            "concepts": list(named),
            "folds": folds,
            "alphas": asked.alphas.tolist(),
            "permutations": permutations,
            "adjust": list(confounders),
            "adjust_terms": adjust_terms,
            "center": None if centers is None else "centers",
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


def _features(argument: str, given: ArrayLike) -> NDArray[Any]:
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InputError(f"{argument}: must be numbers of shape (n, d), got {array.dtype} of shape {array.shape}.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _column(argument: str, given: Any, n: int) -> NDArray[Any]:
    array = np.asarray(given)
    if array.shape != (n,):
        raise InputError(f"{argument}: must have one value for each of the {n} rows, got shape {array.shape}.")
    return array


def _groups(given: ArrayLike, n: int, argument: str = "groups") -> NDArray[Any]:
    labels = _classes(_column(argument, given, n))
    missing = sum(label is None for label in labels)
    if missing:
        raise InputError(f"{argument}: every row needs a group, {missing} of {n} have none.")
    return labels


def _left_out(
    given: ArrayLike | None, centers: NDArray[Any] | None, order: NDArray[np.intp], protocol: str
) -> tuple[str, NDArray[Any]] | None:
    """Return the name and levels that are held out: those given, or else the centers where there are several."""
    if given is not None:
        return "leave_out", _classes(_column("leave_out", given, len(order))[order])
    if centers is None or protocol == "paper" or len({name for name in centers if name is not None}) < 2:
        return None
    return "centers", centers


def _order(ids: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if ids is None:
        return np.arange(n)
    names = _column("ids", ids, n).astype(str)
    if len(np.unique(names)) < n:
        raise InputError(f"ids: must be unique, {n - len(np.unique(names))} of {n} repeat another.")
    return np.argsort(names, kind="stable")


def _penalties(given: ArrayLike) -> NDArray[np.float64]:
    alphas = np.atleast_1d(np.asarray(given, dtype=np.float64))
    if alphas.ndim != 1 or not len(alphas) or not (alphas > 0).all() or not np.isfinite(alphas).all():
        raise InputError(f"alphas: must be positive numbers, got {given!r}.")
    return alphas


def _is_numeric(column: NDArray[Any]) -> bool:
    if column.dtype.kind in "fiu":
        return True
    if column.dtype.kind != "O":
        return False
    kept = [v for v in column if v is not None and v == v]
    return all(isinstance(v, int | float | np.number) and not isinstance(v, bool | np.bool_) for v in kept)


def _numbers(column: NDArray[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in column], dtype=np.float64)


def _classes(column: NDArray[Any]) -> NDArray[Any]:
    """Return text, ``None`` where missing; 3.0, which a column with gaps makes of 3, is 3."""

    def name(value: Any) -> str | None:
        if value is None or value != value:
            return None
        if isinstance(value, float | np.floating) and float(value).is_integer():
            return str(int(value))
        return str(value)

    return np.array([name(v) for v in column], dtype=object)


def _baselines(given: Any, layers: Sequence[str]) -> tuple[NDArray[Any] | None, dict[str, list[NDArray[Any]]]]:
    """Return pixel statistics, and layer → features of random networks."""
    if given is None:
        return None, {}
    if not isinstance(given, Mapping):
        return _features("baseline_features", given), {}
    for name in given:
        check_choice("baseline_features", str(name), _BASELINES)
    pixels = None if "pixels" not in given else _features("baseline_features['pixels']", given["pixels"])
    random = given.get("random_network")
    if random is None:
        return pixels, {}
    by_layer: Mapping[str, Any] = random if isinstance(random, Mapping) else dict.fromkeys(layers, random)
    where = "baseline_features['random_network']"
    return pixels, {
        name: [_features(where, z) for z in (value if isinstance(value, list | tuple) else [value])]
        for name, value in by_layer.items()
    }


def _ordered(
    features: Mapping[str, NDArray[Any]], random: Mapping[str, list[NDArray[Any]]], order: NDArray[np.intp], n: int
) -> tuple[list[Layer], Iterator[dict[str, NDArray[Any]]]]:
    """Return the layers in the order of rows, and layer → features of random networks, one after the other."""
    from conceptkit.workflow.probe_rows import Layer

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
