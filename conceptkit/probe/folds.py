"""Folds of rows in which no group lies on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_at_least
from conceptkit.probe.ridge import Split


def make_folds(
    n: int, groups: NDArray[np.intp] | None, folds: int, *, seed: int | None = None, what: str = "the rows"
) -> list[Split]:
    """Split rows into ``folds`` held-out parts.

    Parameters
    ----------
    n : number of rows
    groups : (n,) group numbers; the folds are then scikit-learn's ``GroupKFold``. ``None``: plain folds
    folds : number of held-out parts, at least 2
    seed : shuffles plain folds; ``None`` leaves the rows in order
    what : names the rows in an error

    Raises
    ------
    InputError
        when there are fewer groups (or rows) than folds
    """
    from sklearn.model_selection import GroupKFold, KFold

    check_at_least("folds", folds, 2)
    available = n if groups is None else len(np.unique(groups))
    if available < folds:
        unit = "rows" if groups is None else "groups"
        said = f"folds: {folds} folds need at least {folds} {unit}, {what} have {available}"
        if groups is None:
            raise InputError(f"{said}.")
        raise InputError(
            f"{said}; take fewer folds or groups that are smaller, such as slides. With patch_id as the group every "
            "patch stands for itself, and the score says nothing of other patients."
        )
    if groups is None:
        return list(KFold(folds, shuffle=seed is not None, random_state=seed).split(np.zeros(n)))
    return list(GroupKFold(folds).split(np.zeros(n), groups=groups))


def inner_folds(groups: NDArray[np.intp] | None, n: int, folds: int) -> list[Split]:
    """Split the rows of one training part again, to choose a penalty: as many folds, or as many as there are groups.

    Raises
    ------
    InputError
        when all rows are of one group, so that none can be left out
    """
    if groups is None:
        return make_folds(n, None, min(folds, n), what="a training part")
    distinct = len(np.unique(groups))
    return make_folds(n, groups, max(2, min(folds, distinct)), what="a training part")


def leave_out_folds(levels: NDArray[Any], argument: str) -> list[Split]:
    """Hold out each level of a column in turn, a center for instance.

    Parameters
    ----------
    levels : (n,) text

    Raises
    ------
    InputError
        when there is one level only
    """
    names = np.unique(levels)
    if len(names) < 2:
        raise InputError(f"leave_out: {argument} needs at least 2 levels, all rows are of {str(names[0])!r}.")
    return [(np.flatnonzero(levels != name), np.flatnonzero(levels == name)) for name in names]
