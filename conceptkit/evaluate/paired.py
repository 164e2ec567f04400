"""Paired differences of two models' scores on the same rows, with intervals that hold for few groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import effective_size
from conceptkit.evaluate.intervals import LEAST_LOW, coverage_note, jackknife_error, student_p, student_reach
from conceptkit.evaluate.resampling import r2_sums
from conceptkit.evaluate.scores import Floats, auc, balanced_accuracy, confusion, r2, recall_mean


@dataclass(frozen=True)
class Scored:
    """A score of one model, and its score without each group."""

    value: float
    deleted: Floats
    """(g,) the score without the rows of each group, or of each union of groups; NaN where it is undefined"""
    sizes: Floats | None = None
    """Rows of each group, or their weight; ``None``: equal sizes. They may be more than the units of ``deleted``"""

    @property
    def effective(self) -> float:
        """Return the number of equal groups with this information (Kish, 1965)."""
        return float(len(self.deleted)) if self.sizes is None else effective_size(self.sizes)


@dataclass(frozen=True)
class PairedInterval:
    """A difference with its 95 % interval."""

    mean: float
    low: float
    high: float
    n_groups: int
    note: str | None = None
    """Caveat of the interval"""
    effective: float = float("nan")
    """Effective number of groups (Kish)"""
    p: float = float("nan")
    """Two-sided p of Student's test; below 0.05 exactly where the interval excludes 0"""


@dataclass(frozen=True)
class Refits:
    """A held-out score with what its paired difference to that of other features needs."""

    score: Scored
    """R² with each unit deleted from training parts and scored rows; balanced accuracy of fixed predictions"""
    unexplained: Scored
    """log(1 − R²) with each unit deleted from training parts and scored rows; of classes that of their indicators"""
    fixed: Floats | None = None
    """Of classes: (u,) ``unexplained`` of fixed predictions without the scored rows of each unit"""


def paired_interval(first: Sequence[Scored], second: Sequence[Scored], *, inflation: float = 1.0) -> PairedInterval:
    """Return the mean difference ``first − second`` over pairs of models, with Student's 95 % interval over groups.

    The difference is averaged over the pairs (the seeds) first, so the interval is that of the average. With D the
    difference and D₋ᵢ that without group i, the standard error is √((g−1)/g · Σᵢ(D₋ᵢ − D̄₋)²), and the interval
    D ± t(k−1)·error with Kish's effective number k of groups, which is g for groups of equal size. The p of D = 0 is
    that of D/error for the same distribution.

    Parameters
    ----------
    first, second : models scored on the same rows and groups, in pairs
    inflation : factor of the standard error, for the variation of models that ``deleted`` does not refit

    Returns
    -------
    NaN ends where a score is undefined without one of the groups, such as an AUC whose positives all lie in one group

    Source
    ------
    Obuchowski, 1997, whose cluster-robust variance of an AUC this is to first order; Efron and Tibshirani, 1993,
    chapter 11, for the jackknife, which needs no correction for the number of groups
    """
    pairs = list(zip(first, second, strict=True))
    mean = float(np.mean([a.value - b.value for a, b in pairs]))
    deleted = np.mean([a.deleted - b.deleted for a, b in pairs], axis=0)  # (g,)
    g = len(deleted)
    n_groups, effective = g if first[0].sizes is None else len(first[0].sizes), first[0].effective
    if g < 2 or not np.isfinite(deleted).all() or not np.isfinite(mean):
        why = "no interval: it needs two groups of each class"
        return PairedInterval(mean, float("nan"), float("nan"), n_groups, why, effective)
    error = inflation * jackknife_error(deleted)
    reach = student_reach(effective) * error
    note, p = coverage_note(n_groups, effective=effective), student_p(mean, error, effective)
    return PairedInterval(mean, mean - reach, mean + reach, n_groups, note, effective, p)


def refit_difference(first: Refits, second: Refits) -> PairedInterval:
    """Return the score of ``first`` − that of ``second``, with an interval for models of new groups.

    Values: the standard error is the delete-one-group jackknife of the difference of R², with the models of both
    refitted without the group; p is that of the difference of log(1 − R²), in which the variance of the concept
    cancels. Classes: the jackknife of fixed predictions, widened by the factor by which refitting enlarges the error of
    the difference of log(1 − R²) of the class indicators.

    Parameters
    ----------
    first, second : scored on the same rows, folds and units
    """
    if first.fixed is None or second.fixed is None:
        p = paired_interval([first.unexplained], [second.unexplained]).p
        return dataclasses.replace(estimable(paired_interval([first.score], [second.score])), p=p)
    refitted, fixed = (
        jackknife_error(one - other)
        for one, other in ((first.unexplained.deleted, second.unexplained.deleted), (first.fixed, second.fixed))
    )
    inflation = refitted / fixed if fixed > 0 and np.isfinite(refitted) else 1.0
    return paired_interval([first.score], [second.score], inflation=max(1.0, inflation))


def refits_of_r2(
    y: Floats, predicted: Floats, deleted: Floats, units: NDArray[np.intp], *, score: Scored | None = None
) -> Refits:
    """Return R² and log(1 − R²) with each unit deleted; with ``score``, of classes, that score and indicators' log.

    Parameters
    ----------
    y, predicted : (n,) or (n, c) values and out-of-fold predictions; of classes their c indicators
    deleted : (u,) squared out-of-fold error with each unit deleted from training and scored rows
    units : (n,) numbers 0 … u − 1
    score : balanced accuracy of fixed predictions
    """
    each = [r2_sums(*pair, units, len(deleted)) for pair in zip(_columns(y), _columns(predicted), strict=True)]
    sums = np.stack(each)  # (c, u, 4)
    whole = sums.sum(1, keepdims=True)
    total, without = (_spread(part) for part in (whole, whole - sums))  # (1,), (u,)
    fixed = whole[..., 3].sum(0) - sums[..., 3].sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, *shares = whole[..., 3].sum(0) / total, deleted / without, fixed / without
        log, *logs = (np.log(one) for one in (share, *shares))
    sizes = _sizes(units)
    of_r2 = Scored(1.0 - float(share[0]), 1.0 - shares[0], sizes)
    unexplained = Scored(float(log[0]), logs[0], sizes)
    return Refits(of_r2, unexplained) if score is None else Refits(score, unexplained, logs[1])


def _spread(sums: Floats) -> Floats:
    """Return the sum over columns of Σ(y − ȳ)², from sums (c, u, 4) of :func:`.resampling.r2_sums`; NaN for 0."""
    n, first, second, _ = np.moveaxis(sums, -1, 0)
    spread: Floats = (second - first**2 / np.maximum(n, 1)).sum(0)
    return np.where(spread > 0, spread, np.nan)


def _columns(values: Floats) -> Floats:
    return np.asarray(values.reshape(len(values), -1).T)


def estimable(found: PairedInterval) -> PairedInterval:
    """Return a difference of two R², with NaN ends where its interval would extend beyond ±:data:`LEAST_LOW`."""
    if not max(-found.low, found.high) > -LEAST_LOW:
        return found
    nan, ends = float("nan"), f"{found.low:.4g} to {found.high:.4g}"
    return dataclasses.replace(
        found, low=nan, high=nan, p=nan, note=f"the interval is not estimable: it would be {ends}"
    )


def gain_interval(
    own: Scored, ends: tuple[float, float], chance: float, rivals: Sequence[Sequence[Scored]]
) -> tuple[float, float, float]:
    """Return the gain of a score over the best of chance and its rivals, with the ends of a 95 % interval.

    A gain over the best baseline is a gain over each: every number is the smallest one over the baselines.

    Parameters
    ----------
    own, ends : the score, and the ends of its 95 % interval
    rivals : the models of each baseline, over which the mean is taken
    """
    paired = [paired_interval([own] * len(rival), rival) for rival in rivals if rival]
    gain = min([own.value - chance, *(one.mean for one in paired)])
    low = float(np.min([ends[0] - chance, *(one.low for one in paired)]))
    return gain, low, float(np.min([ends[1] - chance, *(one.high for one in paired)]))


def mean_interval(scored: Sequence[Scored]) -> PairedInterval:
    """Return the mean of AUCs over models with the interval of :func:`paired_interval`, clipped to 0 … 1."""
    zero = Scored(0.0, np.zeros(len(scored[0].deleted)))
    found = paired_interval(scored, [zero] * len(scored))
    low, high = np.clip((found.low, found.high), 0.0, 1.0).tolist()
    return dataclasses.replace(found, low=low, high=high)


def scored_auc(y: NDArray[np.intp], score: Floats, groups: NDArray[np.intp]) -> Scored:
    """Return the AUC of class numbers y (n,) and scores (n,) or (n, k), see ``auc``, and that without each group."""
    n_groups = int(groups.max()) + 1
    if score.ndim == 1:
        return Scored(auc(y, score), _auc_without_each(y == 1, score, groups, n_groups), _sizes(groups))
    each = [_auc_without_each(y == k, score[:, k], groups, n_groups) for k in range(score.shape[1]) if (y == k).any()]
    deleted = np.mean(each, axis=0) if len(each) > 1 else np.full(n_groups, np.nan)
    return Scored(auc(y, score), deleted, _sizes(groups))


def _sizes(groups: NDArray[np.intp]) -> Floats:
    return np.bincount(groups).astype(np.float64)


def _auc_without_each(positive: NDArray[np.bool_], score: Floats, groups: NDArray[np.intp], n_groups: int) -> Floats:
    """Return the AUC without each group (g,), in O(n log n).

    From the correctly ranked pairs (positive, negative), those with either row in the group are subtracted; those with
    both rows in it are subtracted twice and therefore added back.
    """
    losses = _wins(~positive, -score)  # positives ranked above each row
    wins = np.where(positive, _wins(positive, score), losses)  # correctly ranked pairs with the row
    inside = np.zeros(n_groups)
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(n_groups + 1))
    for g in range(n_groups):
        own = order[starts[g] : starts[g + 1]]
        if len(own) > 1:
            inside[g] = _wins(positive[own], score[own])[positive[own]].sum()
    n_positive = positive.sum() - np.bincount(groups[positive], minlength=n_groups)
    n_negative = (~positive).sum() - np.bincount(groups[~positive], minlength=n_groups)
    won = wins[positive].sum() - np.bincount(groups, weights=wins, minlength=n_groups) + inside
    pairs = n_positive.astype(float) * n_negative
    return np.asarray(np.divide(won, pairs, out=np.full(n_groups, np.nan), where=pairs > 0))


def _wins(positive: NDArray[np.bool_], score: Floats) -> Floats:
    """Return the number of negatives (n,) ranked below each row, ties counting one half."""
    negatives = np.sort(score[~positive])
    below, not_above = (np.searchsorted(negatives, score, side=side) for side in ("left", "right"))
    return (below + not_above) / 2.0


def scored_auc_within(y: NDArray[np.intp], score: Floats, groups: NDArray[np.intp], strata: NDArray[np.intp]) -> Scored:
    """Return the AUC within strata, see :func:`auc_within`, and that without each group."""
    n_groups = int(groups.max()) + 1
    if score.ndim > 1:
        rest = (groups != g for g in range(n_groups))
        deleted = np.array([auc_within(y[kept], score[kept], strata[kept]) for kept in rest])
        return Scored(auc_within(y, score, strata), deleted, _sizes(groups))
    total, weight = np.zeros(n_groups), np.zeros(n_groups)
    for stratum in np.unique(strata[strata >= 0]):
        here = strata == stratum
        positive = y[here] == 1
        own = _auc_without_each(positive, score[here], groups[here], n_groups)
        counts = [which.sum() - np.bincount(groups[here][which], minlength=n_groups) for which in (positive, ~positive)]
        pairs = counts[0].astype(float) * counts[1]
        total += np.where(pairs > 0, own * pairs, 0.0)
        weight += pairs
    deleted = np.divide(total, weight, out=np.full(n_groups, np.nan), where=weight > 0)
    return Scored(auc_within(y, score, strata), deleted, _sizes(groups))


def auc_within(y: NDArray[np.intp], score: Floats, strata: NDArray[np.intp]) -> float:
    """Return the share of correctly ranked pairs of unequal class, among pairs of the same stratum.

    A score that encodes only the stratum has 0.5. NaN without such a pair.

    Parameters
    ----------
    y : (n,) class numbers
    score : (n,) or (n, k); for more than two classes the mean over one class against the rest
    strata : (n,) numbers, −1 where unknown: these rows are skipped
    """
    if score.ndim > 1:
        each = [auc_within((y == k).astype(np.intp), score[:, k], strata) for k in range(score.shape[1])]
        known = [a for a in each if np.isfinite(a)]
        return float(np.mean(known)) if len(known) > 1 else float("nan")
    won = pairs = 0.0
    for stratum in np.unique(strata[strata >= 0]):
        own = y[strata == stratum]
        n = float((own == 1).sum()) * float((own != 1).sum())
        if n:
            won += n * auc((own == 1).astype(np.intp), score[strata == stratum])
            pairs += n
    return won / pairs if pairs else float("nan")


def scored_r2(y: Floats, predicted: Floats, groups: NDArray[np.intp]) -> Scored:
    """Return R² of predictions, and that without each group; no model is refitted."""
    g = int(groups.max()) + 1
    sums = r2_sums(y, predicted, groups, g)
    n, first, second, residual = (sums.sum(0) - sums).T
    spread = second - first**2 / np.maximum(n, 1)
    deleted = 1.0 - np.divide(residual, spread, out=np.full(g, np.nan), where=spread > 0)
    return Scored(r2(y, predicted), deleted, _sizes(groups))


def scored_balanced_accuracy(
    y: NDArray[np.intp], predicted: NDArray[np.intp], groups: NDArray[np.intp], n_classes: int
) -> Scored:
    """Return the balanced accuracy, and that without each group; NaN where a class is only in that group."""
    g = int(groups.max()) + 1
    tables = np.zeros((g, n_classes, n_classes))
    np.add.at(tables, (groups, y, predicted), 1.0)
    rest = confusion(y, predicted, n_classes) - tables
    occurring = np.bincount(y, minlength=n_classes) > 0
    whole = ((rest.sum(-1) > 0) | ~occurring).all(-1)
    deleted = np.where(whole, recall_mean(rest), np.nan)
    return Scored(balanced_accuracy(y, predicted, n_classes), deleted, _sizes(groups))
