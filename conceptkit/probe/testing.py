"""Which permutation tests a batch of targets gets, and their p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.folds import level_of_groups
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

COARSE = 0.01
"""Above this smallest p the test within centers is so coarse that the test across centers is reported beside it."""


@dataclass(frozen=True)
class Tested:
    """The permutation test of one target."""

    permuted: str
    """As :attr:`conceptkit.probe.permutation.Level.permuted`"""
    icc: float
    p: float
    """Of all tests together: of two, twice the smaller p, at most 1; not a number without permutations"""
    p_between: float
    """On group means, whole groups permuted; not a number for a concept that is not tested there"""
    p_within: float
    """Within groups, for a concept that varies at both levels; not a number otherwise"""
    p_across_centers: float
    """As ``p_between``, but permuted across centers; where the test within centers is coarse"""
    p_min: float
    """The smallest value that ``p`` could have taken"""
    decided_by: str | None
    """``rows``, ``within`` or ``between``: the test with the smaller p; ``None`` without permutations"""
    assumed: str | None
    """What the tests take as exchangeable"""


@dataclass(frozen=True)
class Blocks:
    """Units that are permuted, and the strata within which they are."""

    units: NDArray[np.intp] | None
    """(n,) numbers of the units; ``None``: rows"""
    strata: NDArray[np.intp] | None
    """(u,) stratum of each unit, or (n,) of each row; ``None``: permuted freely"""
    said: str
    """As of a sentence: ``groups within each center``"""

    def smallest(self, target: Target, permutations: int) -> float:
        """Return the smallest p that can be attained by permuting a target so."""
        columns = target.columns if self.units is None else group_means(target.columns, self.units)
        return smallest_p(columns, permutations, self.strata)


def blocks_between(target: Target) -> Blocks:
    """Return how whole groups are permuted: within centers where these are known and leave anything to permute."""
    groups = target.clusters
    if target.centers is None:
        return Blocks(groups, None, "groups")
    strata = level_of_groups(target.centers, groups)
    if _moves(group_means(target.columns, groups), strata):
        return Blocks(groups, strata, "groups within each center")
    return Blocks(groups, None, "groups across centers, as the concept does not vary within any center")


def blocks_within(target: Target) -> Blocks:
    """Return what is permuted beside whole groups, or without groups.

    Rows, within the nested units or else within the groups, and within centers; whole nested units within their groups
    where the concept is constant in each of them.
    """
    if target.nested is not None and target.groups is not None and _constant(target.columns, target.nested):
        first = np.unique(target.nested, return_index=True)[1]
        cells = _crossed(target.groups, target.centers)
        assert cells is not None
        return Blocks(target.nested, cells[first], "nested units within each group")
    inner, said = (target.groups, "group") if target.nested is None else (target.nested, "nested unit")
    cells = _crossed(inner, target.centers)
    if inner is not None:
        return Blocks(None, cells, f"rows within each {said}")
    if cells is None:
        return Blocks(None, None, "rows")
    if _moves(target.columns, cells):
        return Blocks(None, cells, "rows within each center")
    return Blocks(None, None, "rows across centers, as the concept does not vary within any center")


def _crossed(inner: NDArray[np.intp] | None, centers: NDArray[np.str_] | None) -> NDArray[np.intp] | None:
    """Return numbers (n,) of the combinations of inner unit and center."""
    if centers is None:
        return inner
    codes: NDArray[np.intp] = np.unique(centers, return_inverse=True)[1]
    if inner is None:
        return codes
    crossed: NDArray[np.intp] = np.unique(inner * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    return crossed


def _constant(columns: Floats, units: NDArray[np.intp]) -> bool:
    return bool(np.allclose(columns, group_means(columns, units)[units], rtol=1e-12, atol=0.0))


def _moves(columns: Floats, strata: NDArray[np.intp]) -> bool:
    """Return whether any permutation within strata changes the values (u, c)."""
    return not _constant(columns, strata)


@dataclass(frozen=True)
class _Rows:
    """Targets whose rows are permuted in the same orders."""

    at: list[int]
    """Their numbers in the batch"""
    columns: Floats
    """(n, c) values, centred over all rows or by cell"""
    owner: NDArray[np.intp]
    """(c,) number of the target, within these, that each column belongs to"""
    orders: Orders
    cells: NDArray[np.intp] | None
    """(n,) within which rows are permuted"""


@dataclass(frozen=True)
class Permutations:
    """The permutation tests of targets on the same rows."""

    targets: Sequence[Target]
    levels: Sequence[Level]
    alphas: Floats
    number: int
    seed: int
    within: Sequence[Blocks | None]
    """What is permuted within groups, or without groups; ``None`` for a target that is constant in each group"""
    rows: Sequence[_Rows]
    """Targets that are tested row by row, those with the same orders together"""

    @property
    def numbers(self) -> range:
        """Return the numbers of the targets."""
        return range(len(self.targets))

    @property
    def by_row(self) -> list[int]:
        """Return the targets that are tested row by row, in the order of the columns of :meth:`in_fold`."""
        return [i for some in self.rows for i in some.at]

    def in_fold(self, basis: Eigenbasis, split: Split) -> Floats:
        """Return one fold's losses (permutations + 1, t') of the targets tested row by row."""
        if not self.rows:
            return np.zeros((0, 0))
        return np.concatenate(
            [
                row_losses(basis, split, some.columns, some.owner, some.orders, self.alphas, some.cells)
                for some in self.rows
            ],
            axis=1,
        )

    def finish(self, X: NDArray[Any], splits: Sequence[Split], parts: Sequence[Floats]) -> list[Tested]:
        """Return the tests of all targets from the losses of all folds."""
        within = dict(zip(self.by_row, p_value(np.sum(parts, axis=0)).tolist(), strict=True)) if self.by_row else {}
        by_unit = {i: one for i, one in enumerate(self.within) if one is not None and one.units is not None}
        within |= self._of_units(X, splits, by_unit)
        whole = [i for i, level in enumerate(self.levels) if self.number and level.name == "groups"]
        between = {i: blocks_between(self.targets[i]) for i in whole}
        coarse = {i: one for i, one in between.items() if self._is_coarse(i, one)}
        p_between = self._of_units(X, splits, between)
        p_across = self._of_units(X, splits, {i: Blocks(one.units, None, "groups") for i, one in coarse.items()})
        return [
            self._tested(
                i, between.get(i), p_between.get(i, math.nan), within.get(i, math.nan), p_across.get(i, math.nan)
            )
            for i in range(len(self.targets))
        ]

    def _is_coarse(self, i: int, blocks: Blocks) -> bool:
        return blocks.strata is not None and blocks.smallest(self.targets[i], self.number) > COARSE

    def _of_units(self, X: NDArray[Any], splits: Sequence[Split], blocks: dict[int, Blocks]) -> dict[int, float]:
        """Return the p of targets whose units are permuted whole; those with the same units and strata together."""
        alike: dict[bytes, list[int]] = {}
        for i, one in blocks.items():
            key = b"" if one.strata is None else one.strata.tobytes()
            alike.setdefault(np.asarray(one.units).tobytes() + key, []).append(i)
        found: dict[int, float] = {}
        for at in alike.values():
            units, strata = blocks[at[0]].units, blocks[at[0]].strata
            assert units is not None
            columns, owner = _stacked([self.targets[i].columns for i in at])
            orders = draw_orders(int(units.max()) + 1, self.number, self.seed, strata).of()
            losses = group_losses(X, units, columns, owner, splits, orders, self.alphas, strata)
            found |= dict(zip(at, p_value(losses).tolist(), strict=True))
        return found

    def _tested(
        self, i: int, between: Blocks | None, p_between: float, p_inner: float, p_across_centers: float
    ) -> Tested:
        target, level, within = self.targets[i], self.levels[i], self.within[i]
        p = {"between": p_between, "rows" if level.name == "rows" else "within": p_inner}
        used = {"between": between, "rows" if level.name == "rows" else "within": within}
        tests = {name: (p[name], one) for name, one in used.items() if one is not None}
        least = [one.smallest(target, self.number) for _, one in tests.values()]
        return Tested(
            permuted=level.permuted,
            icc=level.icc,
            p=together([p for p, _ in tests.values()]),
            p_between=p_between,
            p_within=p_inner if len(tests) > 1 else math.nan,
            p_across_centers=p_across_centers,
            p_min=together(least),
            decided_by=min(tests, key=lambda name: tests[name][0]) if tests else None,
            assumed=" and ".join(one.said for _, one in tests.values()) or None,
        )


def together(p: Sequence[float]) -> float:
    """Return the p of several tests of one hypothesis: the smallest times their number, at most 1 (Bonferroni)."""
    return min(1.0, len(p) * min(p)) if p else math.nan


def permutation_tests(targets: Sequence[Target], permutations: int, alphas: Floats, seed: int) -> Permutations:
    """Prepare the tests of targets on the same rows; none for ``permutations`` of 0."""
    levels = [level_of(target) for target in targets]
    within = [
        blocks_within(target) if permutations and (level.both or level.name != "groups") else None
        for target, level in zip(targets, levels, strict=True)
    ]
    alike: dict[bytes, list[int]] = {}
    for i, one in enumerate(within):
        if one is not None and one.units is None:
            alike.setdefault(b"" if one.strata is None else one.strata.tobytes(), []).append(i)
    rows = []
    for at in alike.values():
        blocks = within[at[0]]
        cells = None if blocks is None else blocks.strata
        columns, owner = _stacked([targets[i].columns for i in at])
        columns = columns - (columns.mean(0) if cells is None else group_means(columns, cells)[cells])
        rows.append(_Rows(at, columns, owner, draw_orders(len(columns), permutations, seed, cells), cells))
    return Permutations(targets, levels, alphas, permutations, seed, within, rows)


def _stacked(columns: Sequence[Floats]) -> tuple[Floats, NDArray[np.intp]]:
    return np.concatenate(columns, axis=1), np.repeat(np.arange(len(columns)), [c.shape[1] for c in columns])
