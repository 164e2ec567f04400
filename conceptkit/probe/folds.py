"""Cross-validation folds that never split a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from conceptkit.errors import InputError, check_at_least
from conceptkit.probe.ridge import Split


def make_folds(
    n: int,
    groups: NDArray[np.intp] | None,
    folds: int,
    *,
    seed: int = 0,
    strata: Sequence[NDArray[Any]] = (),
    what: str = "the rows",
) -> list[Split]:
    """Assign rows to ``folds`` held-out parts at random, without splitting a group.

    Shuffled groups are assigned from the largest to the smallest, each to the fold with the fewest rows: of its
    combination of strata, then of its first stratum, then of all. The order of patient ids therefore has no influence.

    Parameters
    ----------
    n : number of rows
    groups : (n,) numbers 0 … g − 1; ``None``: independent rows
    folds : number of held-out parts, at least 2
    strata : (n,) values of each stratification column, the most important first
    what : name of the rows in an error

    Raises
    ------
    InputError
        when there are fewer groups (or rows) than folds
    """
    check_at_least("folds", folds, 2)
    available = n if groups is None else len(np.unique(groups))
    if available < folds:
        unit, advice = "rows", ""
        if groups is not None:
            unit, advice = "groups", "; use fewer folds, or smaller groups such as slides (patients are then mixed)"
        raise InputError(f"folds: {folds} folds need at least {folds} {unit}, {what} have {available}{advice}.")
    if groups is None and not strata:
        return list(KFold(folds, shuffle=True, random_state=seed).split(np.zeros(n)))
    rng = np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(n)
        order = order[np.lexsort([_codes(values)[order] for values in reversed(strata)])]
        fold_of = np.empty(n, dtype=np.intp)
        fold_of[order] = np.arange(n) % folds
    else:
        numbers = np.unique(groups, return_inverse=True)[1]
        fold_of = _dealt(numbers, folds, rng, [level_of_groups(values, numbers) for values in strata])[numbers]
    return [(np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)) for k in range(folds)]


def _codes(values: NDArray[Any]) -> NDArray[np.intp]:
    return np.unique(values, return_inverse=True)[1]


def level_of_groups(values: NDArray[Any], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the level (g,) of each group, numbered; each mixture of levels within a group is a level of its own."""
    codes = _codes(values)
    pairs = np.unique(np.stack([groups, codes]), axis=1)
    ends = np.cumsum(np.bincount(pairs[0]))[:-1]
    return _codes(np.array(["+".join(map(str, levels)) for levels in np.split(pairs[1], ends)]))


def _dealt(
    groups: NDArray[np.intp], folds: int, rng: np.random.Generator, strata: Sequence[NDArray[np.intp]]
) -> NDArray[np.intp]:
    """Return the fold (g,) of each group; see :func:`make_folds`."""
    sizes = np.bincount(groups)
    levels = [np.zeros(len(sizes), dtype=np.intp)]  # all groups, then finer and finer strata
    for values in strata:
        levels.append(_codes(levels[-1] * (int(values.max()) + 1) + values))
    held = [np.zeros((int(level.max()) + 1, folds)) for level in levels]
    fold_of = np.empty(len(sizes), dtype=np.intp)
    order = rng.permutation(len(sizes))
    for g in order[np.argsort(-sizes[order], kind="stable")]:
        counts = [rows[level[g]] for rows, level in zip(held, levels, strict=True)]  # of each fold, by stratum
        fold_of[g] = np.lexsort(counts)[0]
        for count in counts:
            count[fold_of[g]] += sizes[g]
    return fold_of


def unseen_levels(values: NDArray[Any], splits: Sequence[Split]) -> dict[str, int]:
    """Return level → number of folds with the level in the held-out part only, for names (n,), empty if unknown."""
    unseen = (np.setdiff1d(values[test], np.append(values[train], "")) for train, test in splits)
    return Counter(str(level) for levels in unseen for level in levels)


def inner_folds(groups: NDArray[np.intp] | None, n: int, folds: int) -> list[Split]:
    """Split the rows of one training part to choose a penalty, in at most as many folds as there are groups."""
    count = min(folds, n) if groups is None else max(2, min(folds, len(np.unique(groups))))
    return make_folds(n, groups, count, what="a training part")


def leave_out_folds(levels: NDArray[Any], argument: str, most: int | None = None) -> list[Split]:
    """Hold out each level of a column (n,) in turn, such as a center; several together above ``most`` levels.

    Raises :class:`InputError` when there is only one level.
    """
    names, codes = np.unique(levels, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"leave_out: {argument} needs at least 2 levels, all rows are of {str(names[0])!r}.")
    if most is not None and len(names) > most:
        return make_folds(len(levels), codes, most)
    return [(np.flatnonzero(codes != k), np.flatnonzero(codes == k)) for k in range(len(names))]
