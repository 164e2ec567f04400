"""Permutation tests of a batch of targets, and their p."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.block_permutations import cell_losses
from conceptkit.probe.blocks import Fold, fold_numbers
from conceptkit.probe.crossfit import each_fold
from conceptkit.probe.folds import level_of_groups
from conceptkit.probe.permutation import (
    Level,
    Orders,
    draw_orders,
    each_order,
    group_losses,
    is_constant,
    level_of,
    p_value,
    row_losses,
    smallest_p,
)
from conceptkit.probe.ridge import Eigenbasis, Split
from conceptkit.probe.targets import Target

COARSE = 0.01
"""Smallest p of the test within centers above which the test across centers is reported as well."""


@dataclass(frozen=True)
class Tested:
    """The permutation tests of one target; NaN for a test that was not run."""

    permuted: str
    """As :attr:`conceptkit.probe.permutation.Level.permuted`"""
    icc: float
    p: float
    """Of all tests: with two tests twice the smaller p, at most 1"""
    p_between: float
    """On group means, with whole groups permuted"""
    p_within: float
    """Within groups, for a concept that varies at both levels"""
    p_across_centers: float
    """As ``p_between``, but permuted across centers, where the test within centers is coarse"""
    p_min: float
    """Smallest possible ``p``"""
    decided_by: str | None
    """Test with the smaller p: ``rows``, ``within`` or ``between``; ``None`` without permutations"""
    assumed: str | None
    """What the tests assume to be exchangeable"""


@dataclass(frozen=True)
class Blocks:
    """Units that are permuted, and the strata within which they are permuted."""

    units: NDArray[np.intp] | None
    """(n,) numbers of the units; ``None``: rows"""
    strata: NDArray[np.intp] | None
    """(u,) stratum of each unit, or (n,) of each row; ``None``: permuted freely"""
    description: str
    """In words: ``groups within each center``"""

    def smallest(self, target: Target, permutations: int) -> float:
        """Return the smallest possible p."""
        columns = target.columns if self.units is None else group_means(target.columns, self.units)
        return smallest_p(columns, permutations, self.strata)


def blocks_between(target: Target) -> Blocks:
    """Return how whole groups are permuted: within centers if the concept varies within any."""
    groups = target.clusters
    if target.centers is None:
        return Blocks(groups, None, "groups")
    strata = level_of_groups(target.centers, groups)
    if not is_constant(group_means(target.columns, groups), strata):
        return Blocks(groups, strata, "groups within each center")
    return Blocks(groups, None, "groups across centers, as the concept does not vary within any center")


def blocks_within(target: Target) -> Blocks:
    """Return what is permuted within groups, or without groups.

    Rows, within the nested units or else the groups, and within centers; whole nested units within their groups when
    the concept is constant in each of them.
    """
    inner, unit = (target.groups, "group") if target.nested is None else (target.nested, "nested unit")
    if target.nested is not None and target.groups is not None and is_constant(target.columns, target.nested):
        first = np.unique(target.nested, return_index=True)[1]
        cells = _crossed(target.groups, target.centers)
        return Blocks(target.nested, cells[first], "nested units within each group")
    if inner is not None:
        return Blocks(None, _crossed(inner, target.centers), f"rows within each {unit}")
    if target.centers is None:
        return Blocks(None, None, "rows")
    cells = np.unique(target.centers, return_inverse=True)[1]
    if not is_constant(target.columns, cells):
        return Blocks(None, cells, "rows within each center")
    return Blocks(None, None, "rows across centers, as the concept does not vary within any center")


def _crossed(inner: NDArray[np.intp], centers: NDArray[np.str_] | None) -> NDArray[np.intp]:
    """Return numbers (n,) of the combinations of inner unit and center."""
    if centers is None:
        return inner
    codes: NDArray[np.intp] = np.unique(centers, return_inverse=True)[1]
    return np.asarray(np.unique(inner * (int(codes.max()) + 1) + codes, return_inverse=True)[1].astype(np.intp))


def choose_tests(target: Target, level: Level, permutations: int) -> dict[str, Blocks]:
    """Return the tests of a target at its level by name, ``between``, ``within`` or ``rows``."""
    tests = {}
    if permutations and level.name == "groups":
        tests["between"] = blocks_between(target)
    if permutations and (level.name != "groups" or level.both):
        tests["rows" if level.name == "rows" else "within"] = blocks_within(target)
    return tests


def combine_tests(
    target: Target,
    level: Level,
    tests: Mapping[str, Blocks],
    p: Mapping[str, float],
    permutations: int,
    p_across: float = math.nan,
) -> Tested:
    """Return the result of the tests of a target, from the p of each."""
    return Tested(
        permuted=level.permuted,
        icc=level.icc,
        p=together([p[name] for name in tests]),
        p_between=p.get("between", math.nan),
        p_within=p["within"] if len(tests) > 1 else math.nan,
        p_across_centers=p_across,
        p_min=together([blocks.smallest(target, permutations) for blocks in tests.values()]),
        decided_by=min(tests, key=lambda name: p[name]) if tests else None,
        assumed=" and ".join(blocks.description for blocks in tests.values()) or None,
    )


def together(p: Sequence[float]) -> float:
    """Return the p of several tests of one hypothesis: the smallest times their number, at most 1 (Bonferroni)."""
    return min(1.0, len(p) * min(p)) if p else math.nan


@dataclass(frozen=True)
class _Rows:
    """Targets whose rows are permuted in the same orders."""

    at: list[int]  # their numbers in the batch
    columns: Floats  # (n, c) values, centred over all rows or by cell
    owner: NDArray[np.intp]  # (c,) number of the target, within these, of each column
    number: int  # of permutations
    seed: int
    cells: NDArray[np.intp] | None  # (n,) within which rows are permuted

    @functools.cached_property
    def orders(self) -> Orders:
        """Return the orders; those of a million rows are not drawn together."""
        return draw_orders(len(self.columns), self.number, self.seed, self.cells)


@dataclass(frozen=True)
class Permutations:
    """The permutation tests of targets on the same rows."""

    targets: Sequence[Target]
    levels: Sequence[Level]
    tests: Sequence[Mapping[str, Blocks]]
    alphas: Floats
    number: int
    seed: int
    rows: Sequence[_Rows]

    @property
    def by_row(self) -> list[int]:
        """Numbers of the targets that are tested row by row, in the order of the columns of :meth:`in_fold`."""
        return [i for some in self.rows for i in some.at]

    def in_fold(self, basis: Eigenbasis, split: Split) -> Floats:
        """Return one fold's losses (permutations + 1, t') of the targets tested row by row."""
        losses = [
            row_losses(basis, split, some.columns, some.owner, some.orders, self.alphas, some.cells)
            for some in self.rows
        ]
        return np.concatenate(losses, axis=1) if losses else np.zeros((0, 0))

    def in_blocks(
        self, X: NDArray[Any], splits: Sequence[Split], folds: Sequence[Fold], means: Mapping[bytes, Floats]
    ) -> list[Floats]:
        """Return losses (permutations + 1, t') that add up, of rows that are too many for memory."""
        if any(some.cells is None for some in self.rows):
            return each_fold(X, splits, self.in_fold)
        of = fold_numbers(splits)
        losses = []
        for some in self.rows:
            cells = np.asarray(some.cells)
            orders = each_order(cells, some.number, some.seed)
            args = some.columns, some.owner, cells, means[cells.tobytes()], orders, self.alphas
            losses.append(cell_losses(X, of, folds, *args))
        return [np.concatenate(losses, axis=1) if losses else np.zeros((0, 0))]

    @property
    def whole_units(self) -> list[NDArray[np.intp]]:
        """Numberings (n,) of units that are permuted as wholes."""
        whole = [blocks.units for tests in self.tests for blocks in tests.values() if blocks.units is not None]
        return list({units.tobytes(): units for units in whole}.values())

    @property
    def levels_of_means(self) -> list[NDArray[np.intp]]:
        """Numberings (n,) of units and cells whose mean rows the tests need."""
        every = [*self.whole_units, *(some.cells for some in self.rows if some.cells is not None)]
        return list({numbers.tobytes(): numbers for numbers in every}.values())

    def finish(
        self,
        X: NDArray[Any],
        splits: Sequence[Split],
        parts: Sequence[Floats],
        means: Mapping[bytes, Floats] | None = None,
    ) -> list[Tested]:
        """Return the tests of all targets, given the losses of all folds, and mean rows of units where these are known.

        ``means`` are those of :attr:`levels_of_means`, by the bytes of their numbers.
        """
        known = means or {units.tobytes(): unit_means(X, units) for units in self.whole_units}
        whole = {
            (i, name): blocks
            for i, tests in enumerate(self.tests)
            for name, blocks in tests.items()
            if blocks.units is not None
        }
        across = {
            (i, "across"): Blocks(one.units, None, "groups") for (i, _), one in whole.items() if self._coarse(i, one)
        }
        p = self._of_units(known, splits, whole) | self._of_units(known, splits, across)
        if self.by_row:
            for i, value in zip(self.by_row, p_value(np.sum(parts, axis=0)).tolist(), strict=True):
                p[i, "rows" if self.levels[i].name == "rows" else "within"] = value
        return [
            combine_tests(
                target, level, tests, {name: p[i, name] for name in tests}, self.number, p.get((i, "across"), math.nan)
            )
            for i, (target, level, tests) in enumerate(zip(self.targets, self.levels, self.tests, strict=True))
        ]

    def _coarse(self, i: int, blocks: Blocks) -> bool:
        between = blocks is self.tests[i].get("between")
        return between and blocks.strata is not None and blocks.smallest(self.targets[i], self.number) > COARSE

    def _of_units(
        self, means: Mapping[bytes, Floats], splits: Sequence[Split], tests: Mapping[tuple[int, str], Blocks]
    ) -> dict[tuple[int, str], float]:
        """Return the p of tests that permute whole units; those with the same units and strata are run together."""
        alike: dict[bytes, list[tuple[int, str]]] = {}
        for key, blocks in tests.items():
            alike.setdefault(np.asarray(blocks.units).tobytes() + _bytes(blocks.strata), []).append(key)
        p: dict[tuple[int, str], float] = {}
        for keys in alike.values():
            units, strata = np.asarray(tests[keys[0]].units), tests[keys[0]].strata
            columns, owner = _stacked([self.targets[i].columns for i, _ in keys])
            orders = draw_orders(int(units.max()) + 1, self.number, self.seed, strata).of()
            losses = group_losses(means[units.tobytes()], units, columns, owner, splits, orders, self.alphas, strata)
            p |= dict(zip(keys, p_value(losses).tolist(), strict=True))
        return p


def unit_means(X: NDArray[Any], units: NDArray[np.intp]) -> Floats:
    """Return the mean rows (u, d) of units numbered 0 … u − 1."""
    return np.stack([X[units == u].mean(0, dtype=np.float64) for u in range(int(units.max()) + 1)])


def permutation_tests(targets: Sequence[Target], permutations: int, alphas: Floats, seed: int) -> Permutations:
    """Prepare the tests of targets on the same rows; none for ``permutations`` of 0."""
    levels = [level_of(target) for target in targets]
    tests = [choose_tests(target, level, permutations) for target, level in zip(targets, levels, strict=True)]
    alike: dict[bytes, tuple[list[int], NDArray[np.intp] | None]] = {}
    for i, each in enumerate(tests):
        for blocks in each.values():
            if blocks.units is None:
                alike.setdefault(_bytes(blocks.strata), ([], blocks.strata))[0].append(i)
    rows = []
    for at, cells in alike.values():
        columns, owner = _stacked([targets[i].columns for i in at])
        columns = columns - (columns.mean(0) if cells is None else group_means(columns, cells)[cells])
        rows.append(_Rows(at, columns, owner, permutations, seed, cells))
    return Permutations(targets, levels, tests, alphas, permutations, seed, rows)


def _bytes(strata: NDArray[np.intp] | None) -> bytes:
    return b"" if strata is None else strata.tobytes()


def _stacked(columns: Sequence[Floats]) -> tuple[Floats, NDArray[np.intp]]:
    return np.concatenate(columns, axis=1), np.repeat(np.arange(len(columns)), [c.shape[1] for c in columns])
