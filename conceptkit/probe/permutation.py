"""Permutation tests at the level at which a concept varies, permuted targets being so many more columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.alpha import left_out_error
from conceptkit.probe.ridge import Eigenbasis, Split, factorise
from conceptkit.probe.targets import Target

BOTH_LEVELS = 0.1
"""Above this intra-class correlation a concept is a matter of the group too, and is tested on group means."""

_ROWS_AT_ONCE = 2048
_COLUMNS_AT_ONCE = 1024


@dataclass(frozen=True)
class Orders:
    """Orders of n rows, the first of which leaves all in place; kept as places within groups, in as few bytes as do."""

    places: NDArray[np.unsignedinteger[Any]]
    """(b, n) which of its group's rows each row takes its value from"""
    members: NDArray[np.int32]
    """(n,) row numbers, group after group"""
    starts: NDArray[np.int32]
    """(n,) where the members of each row's group begin"""

    def __len__(self) -> int:
        return len(self.places)

    def of(self, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.int32]:
        """Return the row numbers (b, len(rows)) that ``rows`` take their values from."""
        return self.members[self.starts[rows] + self.places[:, rows]]


@dataclass(frozen=True)
class Level:
    """At which level a concept is permuted."""

    name: str
    """``rows`` without groups; ``within`` groups; ``groups``: whole ones"""
    both: bool
    """True when what varies within groups is tested as well"""
    icc: float

    @property
    def permuted(self) -> str:
        """Return what is permuted: ``rows``, ``within``, ``groups``, or ``groups and within`` for both tests."""
        return f"{self.name} and within" if self.both else self.name


def level_of(target: Target) -> Level:
    """Return the level at which a concept varies."""
    if target.groups is None:
        return Level("rows", False, float("nan"))
    icc = target.icc
    columns, groups = target.columns, target.groups
    constant = np.allclose(columns, group_means(columns, groups)[groups], rtol=1e-12, atol=0.0)
    if constant or target.n_groups == len(target.y):
        return Level("groups", False, icc)
    return Level("groups", True, icc) if icc > BOTH_LEVELS else Level("within", False, icc)


def draw_orders(n: int, permutations: int, seed: int, groups: NDArray[np.intp] | None = None) -> Orders:
    """Draw permutations of rows; within groups when these are given (n,)."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(n, dtype=np.intp) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    members = np.argsort(numbers, kind="stable").astype(np.int32)
    ends = np.cumsum(sizes)
    places = np.empty((permutations + 1, n), dtype=np.min_scalar_type(int(sizes.max(initial=1)) - 1))
    for size, end in zip(sizes, ends, strict=True):
        rows, own = members[end - size : end], np.arange(size, dtype=places.dtype)
        places[0, rows] = own
        places[1:, rows] = rng.permuted(np.broadcast_to(own, (permutations, size)), axis=1)
    return Orders(places, members, (ends - sizes)[numbers].astype(np.int32))


def smallest_p(columns: Floats, permutations: int, groups: NDArray[np.intp] | None = None) -> float:
    """Return the smallest p that can be attained, however strong the relation: few groups allow few permutations."""
    parts = [columns] if groups is None else [columns[groups == g] for g in np.unique(groups)]
    logarithm = 0.0
    for part in parts:
        _, counts = np.unique(part, axis=0, return_counts=True)
        logarithm += math.lgamma(len(part) + 1) - sum(math.lgamma(c + 1) for c in counts.tolist())
    distinct = math.exp(min(logarithm, 50.0))
    return max(1.0 / (permutations + 1), 1.0 / distinct)


def p_value(losses: Floats) -> Floats:
    """Return p (t,) of held-out losses (permutations + 1, t): the share that are at most the first, itself included."""
    slack = 1e-5 * np.abs(losses[0])  # permutations that change nothing must count, whatever their rounding
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
    """Return the held-out loss (permutations + 1, t) of one fold, the same statistic for every order.

    The loss is Σ(y − ȳ − f)² − Σ(y − ȳ)², ȳ being the training mean and f what is read beyond it: negative when the
    reading helps. It is summed as Σ(f² − 2(y − ȳ)f), which keeps its digits where a heavy penalty leaves little of f.

    The penalty of each target and order is that of least generalised cross-validation in the training part
    (Golub et al., 1979), which is closed in the eigenbasis. Within groups, values come centred by group, and so are
    predictions: what a group has in common is then no part of the statistic. Single precision suffices.

    Parameters
    ----------
    columns : (n, c) values, centred over all rows or by group
    owner : (c,) number of the target that each column belongs to
    groups : (n,) for the test within groups; ``None``: rows are permuted freely
    """
    train, test = split
    values = np.ascontiguousarray(columns.T, dtype=np.float32)  # (c, n)
    c, b, n = len(values), len(orders), len(train)
    M = np.empty((c * b, len(basis.spectrum)), dtype=np.float32)
    first, second = np.zeros((c, b)), np.zeros((c, b))
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = train[start : start + _ROWS_AT_ONCE]
        block = np.take(values, orders.of(rows), axis=1)  # (c, b, rows)
        first += block.sum(2, dtype=np.float64)
        second += np.einsum("cbn,cbn->cb", block, block)
        A = basis.coordinates(rows).astype(np.float32)
        if start == 0:
            np.matmul(block.reshape(c * b, -1), A, out=M)
        else:
            M += block.reshape(c * b, -1) @ A
    mean = first / n
    alpha = _by_gcv(M, second - n * mean**2, basis.spectrum, owner, alphas, n)  # (c, b)
    for solutions, penalty in zip(M.reshape(c, b, -1), alpha.astype(np.float32), strict=True):
        solutions /= basis.spectrum.astype(np.float32) + penalty[:, None]
    if groups is not None:
        mean[:] = 0.0
    loss = np.zeros((c, b))
    for rows in _in_whole_groups(test, groups):
        held = basis.coordinates(rows)
        if groups is not None:
            numbers = np.unique(groups[rows], return_inverse=True)[1]
            held = held - group_means(held, numbers)[numbers]
        A = held.astype(np.float32)
        truth = np.take(values, orders.of(rows), axis=1) - mean[:, :, None].astype(np.float32)
        read = (M @ A.T).reshape(truth.shape)
        truth *= -2.0
        truth += read
        loss += np.einsum("cbn,cbn->cb", truth, read)
    return _by_owner(loss, owner).T


def _in_whole_groups(rows: NDArray[np.intp], groups: NDArray[np.intp] | None) -> Iterator[NDArray[np.intp]]:
    """Yield rows some thousand at a time, those of a group together."""
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


def _by_gcv(
    M: NDArray[np.float32], total: Floats, spectrum: Floats, owner: NDArray[np.intp], alphas: Floats, n: int
) -> Floats:
    """Return penalties (c, b) of least RSS / (n − 1 − tr H)², the columns of a target sharing theirs."""
    s = 1.0 / (spectrum + alphas[:, None])  # (a, r)
    explains = (2 * s - spectrum * s**2).T.astype(np.float32)
    explained = np.stack([(m * m) @ explains for m in M.reshape(*total.shape, -1)])
    residual = total[:, :, None] - explained
    freedom = np.maximum(n - 1 - (spectrum * s).sum(1), 1e-9 * n)
    score = _by_owner(np.maximum(residual, 0.0), owner) / freedom**2  # (t, b, a)
    order = np.argsort(-alphas, kind="stable")
    chosen: Floats = alphas[order][score[..., order].argmin(-1)]
    return chosen[owner]


def _by_owner(values: Floats, owner: NDArray[np.intp]) -> Floats:
    """Return sums over the columns of each target: (c, …) to (t, …)."""
    out = np.zeros((int(owner.max()) + 1, *values.shape[1:]))
    np.add.at(out, owner, values)
    return out


def group_losses(
    X: NDArray[Any],
    groups: NDArray[np.intp],
    columns: Floats,
    owner: NDArray[np.intp],
    splits: Sequence[Split],
    orders: NDArray[np.int32],
    alphas: Floats,
    strata: NDArray[np.intp] | None = None,
) -> Floats:
    """Return the held-out loss (permutations + 1, t) of group means read from mean activations; see `row_losses`.

    Groups stay in their folds. The penalty is the one of least leave-one-group-out error, chosen for every order.

    Parameters
    ----------
    X : (n, d) activations
    groups : (n,) numbers 0 … g − 1
    columns : (n, c) values
    owner : (c,) number of the target that each column belongs to
    orders : (permutations + 1, g) which group each takes its mean from
    strata : (g,) numbers of the strata within which ``orders`` permute; values and activations are then taken about
        their stratum's means, since what the strata have in common is not tested
    """
    means = group_means(columns, groups)  # (g, c)
    centers = np.stack([X[groups == g].mean(0, dtype=np.float64) for g in range(len(means))])
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
            pooled = _by_owner(error.transpose(2, 0, 1), owner)  # (t, a, k)
            order = np.argsort(-alphas, kind="stable")
            alpha = alphas[order][pooled[:, order].argmin(1)]  # (t, k)
            fit = response.fit(alpha[owner].T.ravel())
            read = fit.predict(test) - fit.target_mean
            loss = (read * (read - 2 * (Y[test] - fit.target_mean))).sum(0).reshape(k, -1)
            out[start : start + step] += _by_owner(loss.T, owner).T
    return out
