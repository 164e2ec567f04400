"""Permutation tests at the level at which a concept varies, with permuted targets as additional columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.alpha import best_alpha, left_out_error
from conceptkit.probe.linear_algebra import product
from conceptkit.probe.ridge import Eigenbasis, Split, factorise
from conceptkit.probe.targets import Target

BOTH_LEVELS = 0.1
"""Intra-class correlation above which a concept is also tested on group means."""

_ROWS_AT_ONCE = 2048
_COLUMNS_AT_ONCE = 1024


@dataclass(frozen=True)
class Orders:
    """Orders of n rows, the first of which is the original one; stored compactly as places within groups."""

    places: NDArray[np.unsignedinteger[Any]]  # (b, n) place in its group of the row that each row takes its value from
    members: NDArray[np.int32]  # (n,) row numbers, group after group
    starts: NDArray[np.int32]  # (n,) first member of each row's group

    def __len__(self) -> int:
        return len(self.places)

    def of(self, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.int32]:
        """Return the row numbers (b, len(rows)) from which ``rows`` take their values."""
        return self.members[self.starts[rows] + self.places[:, rows]]


@dataclass(frozen=True)
class Level:
    """Level at which a concept is permuted."""

    name: str
    """``rows`` without groups; ``within`` groups; ``groups``: whole groups"""
    both: bool
    """Whether the variation within groups is tested as well"""
    icc: float

    @property
    def permuted(self) -> str:
        """What is permuted: ``rows``, ``within``, ``groups``, or ``groups and within`` for both tests."""
        return f"{self.name} and within" if self.both else self.name


def is_constant(columns: Floats, units: NDArray[np.intp]) -> bool:
    """Return whether values (n, c) are constant within each unit, so that permutations within them change nothing."""
    return bool(np.allclose(columns, group_means(columns, units)[units], rtol=1e-12, atol=0.0))


def level_of(target: Target) -> Level:
    """Return the level at which a concept varies."""
    icc = target.icc
    if target.groups is None:
        return Level("rows", False, icc)
    if is_constant(target.columns, target.groups) or target.n_groups == len(target.y):
        return Level("groups", False, icc)
    return Level("groups", True, icc) if icc > BOTH_LEVELS else Level("within", False, icc)


def draw_orders(n: int, permutations: int, seed: int, groups: NDArray[np.intp] | None = None) -> Orders:
    """Draw permutations of rows, within groups (n,) if given."""
    numbers = np.zeros(n, dtype=np.intp) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    members = np.argsort(numbers, kind="stable").astype(np.int32)
    places = np.empty((permutations + 1, n), dtype=np.min_scalar_type(int(sizes.max(initial=1)) - 1))
    for rows, own in each_order(numbers, permutations, seed):
        places[:, rows] = own
    return Orders(places, members, (np.cumsum(sizes) - sizes)[numbers].astype(np.int32))


def each_order(
    groups: NDArray[np.intp], permutations: int, seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.unsignedinteger[Any]]]]:
    """Yield the rows (k,) of each group, and the place (b, k) in it of the row that each takes its value from.

    Groups come in the order of their numbers; the first order is the original one.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    dtype = np.min_scalar_type(int(sizes.max(initial=1)) - 1)
    for rows in members:
        own = np.arange(len(rows), dtype=dtype)
        drawn = rng.permuted(np.broadcast_to(own, (permutations, len(rows))), axis=1)
        yield rows, np.concatenate([own[None], drawn])


def smallest_p(columns: Floats, permutations: int, groups: NDArray[np.intp] | None = None) -> float:
    """Return the smallest possible p, which is limited by the number of distinct permutations."""
    parts = [columns] if groups is None else [columns[groups == g] for g in np.unique(groups)]
    logarithm = 0.0
    for part in parts:
        _, counts = np.unique(part, axis=0, return_counts=True)
        logarithm += math.lgamma(len(part) + 1) - sum(math.lgamma(c + 1) for c in counts.tolist())
    distinct = math.exp(min(logarithm, 50.0))
    return max(1.0 / (permutations + 1), 1.0 / distinct)


def p_value(losses: Floats) -> Floats:
    """Return p (t,) of held-out losses (permutations + 1, t): the share that is at most the first, including it."""
    slack = 1e-5 * np.abs(losses[0])  # permutations that change nothing count, despite rounding
    return np.asarray((losses <= losses[0] + slack).sum(0) / len(losses))


def row_losses(
    basis: Eigenbasis,
    split: Split,
    columns: Floats,
    owner: NDArray[np.intp],
    orders: Orders,
    alphas: Floats,
    groups: NDArray[np.intp] | None,
) -> Floats:
    """Return the held-out loss (permutations + 1, t) of one fold, for every order.

    The loss is Σ(y − ȳ − f)² − Σ(y − ȳ)² with the training mean ȳ and predictions ȳ + f: negative when f is useful. It
    is summed as Σ(f² − 2(y − ȳ)f), which is precise when a large penalty makes f small.

    The penalty of each target and order is chosen by generalised cross-validation in the training part (Golub et al.,
    1979), in closed form in the eigenbasis. For a test within groups, values and predictions are centred by group, so
    that differences between groups do not enter. Single precision is enough.

    Parameters
    ----------
    columns : (n, c) values, centred over all rows or by group
    owner : (c,) number of the target of each column
    groups : (n,) for the test within groups; ``None``: rows are permuted freely
    """
    train, test = split
    values = np.ascontiguousarray(columns.T, dtype=np.float32)  # (c, n)
    c, b, n = len(values), len(orders), len(train)
    M = np.zeros((c * b, len(basis.spectrum)), dtype=np.float32)
    first, second = np.zeros((c, b)), np.zeros((c, b))
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = train[start : start + _ROWS_AT_ONCE]
        block = np.take(values, orders.of(rows), axis=1)  # (c, b, rows)
        first += block.sum(2, dtype=np.float64)
        second += np.einsum("cbn,cbn->cb", block, block)
        A = basis.coordinates(rows, np.float32)
        M += product(block.reshape(c * b, -1), A)
    mean = first / n
    alpha = by_gcv(M, second - n * mean**2, basis.spectrum, owner, alphas, n)  # (c, b)
    for solutions, penalty in zip(M.reshape(c, b, -1), alpha.astype(np.float32), strict=True):
        solutions /= basis.spectrum.astype(np.float32) + penalty[:, None]
    if groups is not None:
        mean[:] = 0.0
    loss = np.zeros((c, b))
    for rows in _in_whole_groups(test, groups):
        held = basis.coordinates(rows, np.float32)
        if groups is not None:
            numbers = np.unique(groups[rows], return_inverse=True)[1]
            held = held - group_means(held, numbers)[numbers]
        A = held.astype(np.float32, copy=False)
        truth = np.take(values, orders.of(rows), axis=1) - mean[:, :, None].astype(np.float32)
        read = product(M, A.T).reshape(truth.shape)
        truth *= -2.0
        truth += read
        loss += np.einsum("cbn,cbn->cb", truth, read)
    return by_owner(loss, owner).T


def _in_whole_groups(rows: NDArray[np.intp], groups: NDArray[np.intp] | None) -> Iterator[NDArray[np.intp]]:
    """Yield rows in blocks that never split a group."""
    if groups is None:
        yield from (rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE))
        return
    rows = rows[np.argsort(groups[rows], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(groups[rows])) + 1, len(rows))
    start = 0
    for end, after in zip(ends, [*ends[1:], np.inf], strict=True):
        if after - start > _ROWS_AT_ONCE:
            yield rows[start:end]
            start = end


def by_gcv(
    M: NDArray[np.float32], total: Floats, spectrum: Floats, owner: NDArray[np.intp], alphas: Floats, n: int
) -> Floats:
    """Return penalties (c, b) with the smallest RSS / (n − 1 − tr H)², one for all columns of a target."""
    s = 1.0 / (spectrum + alphas[:, None])  # (a, r)
    explains = (2 * s - spectrum * s**2).T.astype(np.float32)
    explained = np.stack([(m * m) @ explains for m in M.reshape(*total.shape, -1)])
    residual = total[:, :, None] - explained
    freedom = np.maximum(n - 1 - (spectrum * s).sum(1), 1e-9 * n)
    score = by_owner(np.maximum(residual, 0.0), owner) / freedom**2  # (t, b, a)
    return best_alpha(alphas, np.moveaxis(score, -1, 0))[owner]


def by_owner(values: Floats, owner: NDArray[np.intp]) -> Floats:
    """Return sums over the columns of each target, (c, …) to (t, …)."""
    out = np.zeros((int(owner.max()) + 1, *values.shape[1:]))
    np.add.at(out, owner, values)
    return out


def group_losses(
    centers: Floats,
    groups: NDArray[np.intp],
    columns: Floats,
    owner: NDArray[np.intp],
    splits: Sequence[Split],
    orders: NDArray[np.int32],
    alphas: Floats,
    strata: NDArray[np.intp] | None = None,
) -> Floats:
    """Return the held-out loss (permutations + 1, t) of group means on mean activations; see `row_losses`.

    Groups stay in their folds. The penalty is chosen by leave-one-group-out error for every order.

    Parameters
    ----------
    centers : (g, d) mean activations of each group
    groups : (n,) numbers 0 … g − 1
    columns : (n, c) values
    owner : (c,) number of the target of each column
    orders : (permutations + 1, g) group from which each group takes its mean
    strata : (g,) within which ``orders`` permute; values and activations are centred by stratum
    """
    means = group_means(columns, groups)  # (g, c)
    if strata is not None:
        means = means - group_means(means, strata)[strata]
        centers = centers - group_means(centers, strata)[strata]
    b = len(orders)
    out = np.zeros((b, int(owner.max()) + 1))
    for _, held in splits:
        test = np.unique(groups[held])
        train = np.setdiff1d(np.arange(len(means)), test)
        if len(train) < 2:
            continue
        basis = factorise(centers, train)
        step = max(1, _COLUMNS_AT_ONCE // len(owner))
        for start in range(0, b, step):
            some = orders[start : start + step]
            Y = means[some].transpose(1, 0, 2).reshape(len(means), -1)  # (g, b·c)
            k = len(some)
            response = basis.response(Y[train])
            error = left_out_error(response, None, alphas).reshape(len(alphas), k, -1)
            pooled = by_owner(error.transpose(2, 0, 1), owner)  # (t, a, k)
            alpha = best_alpha(alphas, np.moveaxis(pooled, 1, 0))  # (t, k)
            fit = response.fit(alpha[owner].T.ravel())
            read = fit.predict(test) - fit.target_mean
            loss = (read * (read - 2 * (Y[test] - fit.target_mean))).sum(0).reshape(k, -1)
            out[start : start + step] += by_owner(loss.T, owner).T
    return out
