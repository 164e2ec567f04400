"""Which permutation tests a batch of targets gets, and their p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.permutation import (
    Level,
    Orders,
    draw_orders,
    group_losses,
    level_of,
    p_value,
    row_losses,
    smallest_p,
)
from conceptkit.probe.ridge import Eigenbasis, Split
from conceptkit.probe.targets import Target


@dataclass(frozen=True)
class Tested:
    """The permutation test of one target."""

    permuted: str
    """``rows``, ``within`` or ``groups``; see :class:`conceptkit.probe.permutation.Level`"""
    icc: float
    p: float
    """At the level of ``permuted``; on group means for ``groups``; not a number without permutations"""
    p_within: float
    """Within groups, for a concept that varies at both levels; not a number otherwise"""
    p_min: float
    """The smallest value that ``p`` could have taken"""


@dataclass(frozen=True)
class Permutations:
    """The permutation tests of targets on the same rows."""

    targets: Sequence[Target]
    levels: Sequence[Level]
    alphas: Floats
    number: int
    seed: int
    columns: Floats
    """(n, c) centred columns of the targets that are tested row by row"""
    owner: NDArray[np.intp]
    """(c,) their target, numbered within these"""
    orders: Orders
    """Of the rows; none when no target is tested row by row"""

    @property
    def by_row(self) -> list[int]:
        """Return the targets that are tested row by row."""
        return [i for i, level in enumerate(self.levels) if self.number and (level.name != "groups" or level.both)]

    def in_fold(self, basis: Eigenbasis, split: Split) -> Floats:
        """Return one fold's losses (permutations + 1, t') of the targets tested row by row."""
        if not self.by_row:
            return np.zeros((0, 0))
        return row_losses(basis, split, self.columns, self.owner, self.orders, self.alphas, self.targets[0].groups)

    def finish(self, X: NDArray[Any], splits: Sequence[Split], parts: Sequence[Floats]) -> list[Tested]:
        """Return the tests of all targets from the losses of all folds."""
        by_row = dict(zip(self.by_row, p_value(np.sum(parts, axis=0)).tolist(), strict=True)) if self.by_row else {}
        whole = [i for i, level in enumerate(self.levels) if self.number and level.name == "groups"]
        by_group: dict[int, float] = {}
        smallest = {i: self._smallest(i) for i in range(len(self.levels))}
        if whole:
            groups = self.targets[0].clusters
            columns, owner = _stacked([self.targets[i].columns for i in whole])
            orders = draw_orders(int(groups.max()) + 1, self.number, self.seed).of()
            losses = group_losses(X, groups, columns, owner, splits, orders, self.alphas)
            by_group = dict(zip(whole, p_value(losses).tolist(), strict=True))
        nan = float("nan")
        return [
            Tested(
                permuted=level.name,
                icc=level.icc,
                p=(by_group if level.name == "groups" else by_row).get(i, nan),
                p_within=by_row.get(i, nan) if level.name == "groups" else nan,
                p_min=smallest[i],
            )
            for i, level in enumerate(self.levels)
        ]

    def _smallest(self, i: int) -> float:
        if not self.number:
            return float("nan")
        target, name = self.targets[i], self.levels[i].name
        if name == "groups":
            return smallest_p(group_means(target.columns, target.clusters), self.number)
        return smallest_p(target.columns, self.number, target.groups)


def permutation_tests(targets: Sequence[Target], permutations: int, alphas: Floats, seed: int) -> Permutations:
    """Prepare the tests of targets on the same rows; none for ``permutations`` of 0."""
    levels = [level_of(target) for target in targets]
    empty = Permutations(
        targets,
        levels,
        alphas,
        permutations,
        seed,
        np.zeros((0, 0)),
        np.zeros(0, dtype=np.intp),
        draw_orders(0, 0, seed),
    )
    if not empty.by_row:
        return empty
    groups = targets[0].groups
    columns, owner = _stacked([targets[i].columns for i in empty.by_row])
    columns = columns - (columns.mean(0) if groups is None else group_means(columns, groups)[groups])
    orders = draw_orders(len(columns), permutations, seed, groups)
    return Permutations(targets, levels, alphas, permutations, seed, columns, owner, orders)


def _stacked(columns: Sequence[Floats]) -> tuple[Floats, NDArray[np.intp]]:
    return np.concatenate(columns, axis=1), np.repeat(np.arange(len(columns)), [c.shape[1] for c in columns])
