"""Concepts that can be probed: classes in several groups, and folds that can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.probe.targets import Target, make_target

Item = TypeVar("Item")
Made = TypeVar("Made")


def usable(items: Iterable[Item], make: Callable[[Item], Made]) -> tuple[list[Made], list[str]]:
    """Return ``make(item)`` for the items that it accepts, and a note on each of the others.

    Raises the first :class:`InputError` when every item is refused.
    """
    made: list[Made] = []
    refused: list[InputError] = []
    for item in items:
        try:
            made.append(make(item))
        except InputError as error:
            refused.append(error)
    if refused and not made:
        raise refused[0]
    return made, [f"Skipped: {error}" for error in dict.fromkeys(map(str, refused))]


def usable_targets(
    concepts: Iterable[str],
    values_of: Callable[[str], tuple[str, NDArray[Any]]],
    groups: NDArray[Any] | None,
    folds: int | None,
    placing: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[Target], list[str]]:
    """Return the concepts that can be probed, and notes on concepts and classes that are skipped.

    ``values_of`` returns the kind and the values of a concept; the other arguments are those of :func:`usable_target`.
    Raises :class:`InputError` when no concept can be probed.
    """

    def make(name: str) -> tuple[Target, str | None]:
        kind, values = values_of(name)
        if folds is None and kind != "continuous":
            raise InputError(f"protocol: paper is for continuous concepts, {name} is categorical.")
        return usable_target(name, kind, values, groups, folds, placing)

    made, skipped = usable(concepts, make)
    return [target for target, _ in made], [*(note for _, note in made if note), *skipped]


def usable_target(
    name: str,
    kind: str,
    values: NDArray[Any],
    groups: NDArray[Any] | None,
    folds: int | None,
    placing: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Target, str | None]:
    """Return a concept as a target, and a note on skipped rows, of classes in one group only.

    Parameters
    ----------
    values, groups : as for :func:`conceptkit.probe.targets.make_target`
    placing : keywords of that function
    folds : of the cross-validation, which are checked here; ``None`` for none

    Raises
    ------
    InputError
        when the concept has too few groups, classes or values
    """
    note = None
    if kind == "categorical" and groups is not None:
        labels = sorted({str(v) for v in values if v is not None})
        held = {label: np.unique(groups[values == label].astype(str)).size for label in labels}
        lone = [label for label, n in held.items() if n < 2]
        if lone and len(labels) - len(lone) >= 2:
            skipped = np.isin(values.astype(str), lone)
            values = values.copy()
            values[skipped] = None
            named = ", ".join(lone[:5]) + (" and others" if len(lone) > 5 else "")
            note = f"{name}: {int(skipped.sum())} rows skipped, as each of these classes is in one group only: {named}."
    target = make_target(name, kind, values, groups, **placing)
    if folds is not None:
        for train, _ in target.folds(folds):
            if target.groups is not None and len(np.unique(target.groups[train])) < 2:
                raise InputError(f"folds: {name} needs at least 3 groups, so that each training part has two.")
            if kind == "categorical" and len(np.unique(target.y[train])) < 2:
                raise InputError(f"concept: {name} has one class only in one training part; set fewer `--folds`.")
    return target, note
