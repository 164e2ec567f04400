"""Computations on the factorised training part of each fold, in parallel over folds."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.ridge import (
    Eigenbasis,
    Moments,
    Response,
    Split,
    factorise,
    gathered,
    part_moments,
    part_products,
    predict_at,
    training_moments,
)
from conceptkit.probe.search import by_unit, choose_alpha, exact_residuals

T = TypeVar("T")
U = TypeVar("U")

_SHIFTS = 2**24
"""Changes of predictions by deleted units that are held at a time (128 MiB)"""


def _in_threads(jobs: Iterable[Callable[[], T]], count: int) -> list[T]:
    """Run ``count`` jobs in parallel, each with its share of the BLAS threads, because factorisations scale badly.

    A job is created when a thread is free, so that few are in memory. When BLAS has one thread (``OMP_NUM_THREADS=1``),
    the jobs run one after the other.
    """
    threads = max([int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"], default=1)
    if threads == 1:
        return [job() for job in jobs]
    lock, numbered = threading.Lock(), enumerate(jobs)
    done: dict[int, T] = {}

    def work() -> None:
        nonlocal numbered
        try:
            while True:
                with lock:
                    number, job = next(numbered, (-1, None))
                if job is None:
                    return
                done[number] = job()
        except BaseException:
            numbered = enumerate(())  # the other threads finish their current job and start no new one
            raise

    with threadpool_limits(max(1, threads // count)), ThreadPoolExecutor(min(threads, count)) as pool:
        for ended in [pool.submit(work) for _ in range(min(threads, count))]:
            ended.result()
    return [done[number] for number in range(len(done))]


def _fold_jobs(
    splits: Sequence[Split], parts: Sequence[Moments] | None, one: Callable[[Split, Moments | None], T]
) -> Iterator[Callable[[], T]]:
    moments = [None] * len(splits) if parts is None else training_moments(parts)
    for split, of_split in zip(splits, moments, strict=True):
        yield functools.partial(one, split, of_split)


def _basis_jobs(
    X: NDArray[Any], splits: Sequence[Split], parts: Sequence[Moments] | None, work: Callable[[Eigenbasis, Split], T]
) -> Iterator[Callable[[], T]]:
    return _fold_jobs(splits, parts, lambda split, moments: work(factorise(X, split[0], moments), split))


def each_fold(X: NDArray[Any], splits: Sequence[Split], work: Callable[[Eigenbasis, Split], T]) -> list[T]:
    """Return ``work(basis, split)`` for each fold, with ``basis`` the factorised training part."""
    return _in_threads(_basis_jobs(X, splits, part_moments(X, splits), work), len(splits))


def each_fold_and_all(
    X: NDArray[Any],
    splits: Sequence[Split],
    work: Callable[[Eigenbasis, Split], T],
    of_all: Callable[[Eigenbasis], U],
) -> tuple[list[T], U]:
    """Return the result of :func:`each_fold`, and ``of_all(basis)`` for all rows, computed in parallel with it."""
    parts = part_moments(X, splits)
    last: list[Callable[[], Any]] = [lambda: of_all(factorise(X, moments=None if parts is None else gathered(parts)))]
    *each, whole = _in_threads(itertools.chain(_basis_jobs(X, splits, parts, work), last), len(splits) + 1)
    return each, whole


def pooled(splits: Sequence[Split], parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return out-of-fold values (n, …) in the order of rows, given those of each held-out part."""
    out = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for (_, test), part in zip(splits, parts, strict=True):
        out[test] = part
    return out


def cross_predict_at(X: NDArray[Any], Y: Floats, splits: Sequence[Split], alpha: Floats) -> Floats:
    """Return out-of-fold predictions (n, t) of targets Y (n, t), each at a known penalty (t,).

    Products of rows and targets are computed once per held-out part; those of a training part are sums of these.
    """
    moments_of = part_moments(X, splits)
    level = Y.mean(0)
    centred = Y - level  # for precise products
    parts = [] if moments_of is None else [part_products(X, test, centred) for _, test in splits]

    def one(split: Split, moments: Moments | None) -> Floats:
        train, test = split
        if moments is None:
            return factorise(X, train).fit(Y[train], alpha).predict(test)
        others = [part for (_, held), part in zip(splits, parts, strict=True) if held is not test]
        products = np.stack([part.total for part in others]).T @ np.stack([p.mean - moments.mean for p in others])
        for part in others:
            products += part.products
        return np.asarray(predict_at(X, test, products, centred[train].mean(0), alpha, moments) + level)

    return pooled(splits, _in_threads(_fold_jobs(splits, moments_of, one), len(splits)))


@dataclass(frozen=True)
class FoldReading:
    """Predictions of one fold's vectors for its held-out rows."""

    predicted: Floats  # (len(test), t)
    alpha: Floats  # (t,) penalties chosen within the training part
    response: Response

    def first(self, t: int) -> FoldReading:
        """Return the predictions of the first ``t`` targets."""
        return FoldReading(self.predicted[:, :t], self.alpha[:t], self.response.only(slice(t)))


def read_fold(
    basis: Eigenbasis,
    split: Split,
    Y: Floats,
    groups: NDArray[np.intp] | None,
    alphas: Floats,
    mix: Floats | None = None,
) -> FoldReading:
    """Fit targets Y (rows, t) on a training part, choosing penalties within it, and predict the held-out part.

    With ``mix`` (t, t') the targets are the combinations Y @ mix, which cost little more than Y itself.
    """
    train, test = split
    response = basis.response(Y[train])
    alpha = choose_alpha(response, None if groups is None else groups[train], alphas, mix)
    response = response if mix is None else response.mixed(mix)
    return FoldReading(response.fit(alpha).predict(test), alpha, response)


def cross_predict(
    matrices: Iterable[NDArray[Any]],
    count: int,
    Y: Floats,
    groups: NDArray[np.intp] | None,
    splits: Sequence[Split],
    alphas: Floats,
) -> list[Floats]:
    """Return out-of-fold predictions (n, t) of targets Y (n, t) from each of ``count`` matrices (n, d), in parallel."""

    def one(basis: Eigenbasis, split: Split) -> Floats:
        return read_fold(basis, split, Y, groups, alphas).predicted

    jobs = (job for X in matrices for job in _basis_jobs(X, splits, part_moments(X, splits), one))
    predicted = _in_threads(jobs, count * len(splits))
    return [pooled(splits, predicted[i * len(splits) :][: len(splits)]) for i in range(count)]


def mean_cosine(vectors: Sequence[Floats]) -> Floats:
    """Return the mean cosine (t,) between the directions (d, t) of the folds, for each target."""
    stacked = np.stack(list(vectors))  # (k, d, t)
    length = np.linalg.norm(stacked, axis=1, keepdims=True)
    unit = np.divide(stacked, length, out=np.zeros_like(stacked), where=length > 0)
    total = np.einsum("dt,dt->t", unit.sum(0), unit.sum(0))
    own = np.einsum("kdt,kdt->t", unit, unit)
    k = len(stacked)
    return np.asarray((total - own) / (k * (k - 1)))


def deleted_errors(reading: FoldReading, split: Split, Y: Floats, units: NDArray[np.intp]) -> Floats:
    """Return the held-out squared error (u, t) of a fold with each unit deleted from both of its parts.

    The vectors are refitted without the unit in closed form, at the same penalty: without rows g the prediction of a
    held-out row x changes by −H_xg (I − H_gg)⁻¹ e_g. ``units`` (rows,) are numbers 0 … u − 1.
    """
    train, test = split
    basis, alpha = reading.response.basis, reading.alpha
    n_units = int(units.max()) + 1
    left = exact_residuals(reading.response, units[train], alpha)  # (n, t)
    error = Y[test] - reading.predicted
    of_test, of_train = units[test], units[train]
    pulled = np.zeros((len(basis.spectrum), n_units, len(alpha)))
    inside = np.unique(of_train)
    rows_of = [np.flatnonzero(of_train == unit) for unit in inside]
    pulled[:, inside] = by_unit(basis, left, rows_of).reshape(len(pulled), len(inside), -1)
    pulled /= (basis.spectrum[:, None] + alpha)[:, None, :]
    level = np.stack([np.bincount(of_train, one, n_units) for one in left.T]) / len(train)  # (t, u)
    out = np.zeros((n_units, Y.shape[1]))
    for rows in np.array_split(np.arange(len(test)), -(-len(test) * pulled[0].size // _SHIFTS) or 1):
        shifts = basis.linear(test[rows], pulled.reshape(len(pulled), -1)).reshape(len(rows), n_units, -1)
        own = of_test[rows]
        for t in range(len(alpha)):
            squared = (error[rows, t, None] + shifts[:, :, t] + level[t]) ** 2
            squared[np.arange(len(rows)), own] = 0.0  # the unit's own rows are deleted
            out[:, t] += squared.sum(0)
    return out
