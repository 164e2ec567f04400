"""Intervals for the score of fitted models on new groups: the studentised bootstrap over groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.resampling import Resamples, draw_groups, r2_sums
from conceptkit.evaluate.scores import Floats, auc, confusion, recall_mean

FEW_GROUPS = 10
"""Minimum number of groups of an interval without a warning."""

TRIED_GROUPS = 30
"""Below this number of groups the coverage is less certain: 0.87 to 0.98 in simulations of 8 to 12 groups."""

LEAST_LOW = -10.0
"""An interval of R² with a lower end below this is reported as not estimable."""

MANY_COLUMNS = 2
"""Columns per group above which the interval was too wide, not too narrow, in simulations."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN where it is not estimable."""

    low: float
    high: float
    note: str | None = None
    """Caveat of the interval"""


NO_INTERVAL = Interval(np.nan, np.nan)


def coverage_note(n_groups: int, n_columns: int | None = None, *, effective: float | None = None) -> str | None:
    """Return the caveat of an interval over few groups, or of R² over many columns; ``None`` without one.

    Parameters
    ----------
    n_columns : of the activations, for the interval of R²; ``None`` for other intervals
    effective : effective number of groups (:func:`effective_number`); ``n_groups`` by default
    """
    worth = n_groups if effective is None else min(round(effective), n_groups)
    of = f"{n_groups} groups" if worth == n_groups else f"{n_groups} groups of unequal size, worth {worth} equal ones"
    if worth < FEW_GROUPS:
        only = " only" if worth == n_groups else ""
        return f"the interval rests on {of}{only} and may cover far less than 95 %"
    if worth < TRIED_GROUPS:
        return f"the interval rests on {of}; below {TRIED_GROUPS} it is less certain to cover 95 %"
    if n_columns is not None and n_columns >= MANY_COLUMNS * n_groups:
        return "the layer has many more channels than groups: the interval may be somewhat too wide, not too narrow"
    return None


def student_reach(effective: float) -> float:
    """Return the 97.5 % quantile of Student's t with ``effective`` − 1 degrees of freedom, at least 1."""
    return float(stdtrit(max(effective - 1, 1), 0.975))


def student_p(difference: float, error: float, effective: float) -> float:
    """Return the two-sided p of a difference of 0, for the distribution of :func:`student_reach`."""
    if error == 0:
        return float(difference == 0)
    return 2 * float(stdtr(max(effective - 1, 1), -abs(difference) / error))


def _noted(groups: NDArray[np.intp], n_columns: int | None = None) -> str | None:
    return coverage_note(int(groups.max()) + 1, n_columns, effective=effective_number(groups))


def studentised_interval(estimate: float, error: float, drawn: Floats, drawn_error: Floats) -> tuple[float, float]:
    """Return the 95 % bootstrap-t interval (Efron and Tibshirani, 1993, chapter 12).

    Parameters
    ----------
    estimate, error : the statistic and its standard error
    drawn, drawn_error : (n_resamples,) the same in each resample; resamples without a value are skipped
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (drawn - estimate) / drawn_error
    ratio = ratio[np.isfinite(ratio)]
    if not ratio.size or not np.isfinite(estimate) or not np.isfinite(error):
        return float("nan"), float("nan")
    low, high = np.quantile(ratio, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(estimate - high * error), float(estimate - low * error)


def jackknife_error(deleted: Floats) -> float:
    """Return the standard error from the statistic without each unit (u,)."""
    kept = deleted[np.isfinite(deleted)]
    u = len(kept)
    if u < 2:
        return float("nan")
    return float(np.sqrt((u - 1) / u * np.sum((kept - kept.mean()) ** 2)))


def r2_interval(
    y: Floats,
    predicted: Floats,
    groups: NDArray[np.intp],
    deleted: Floats,
    units: NDArray[np.intp],
    *,
    n_columns: int | None = None,
    about_mean: bool = True,
    inflation: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the interval for the R² on new groups of models fitted on this number of rows.

    It is computed on θ = log(1 − R²) = log SSE − log SST. The standard error comes from the delete-one-group jackknife
    with refitted models, and so includes the variation of the training groups; the shape comes from the bootstrap over
    groups, studentised by the infinitesimal jackknife.

    Parameters
    ----------
    y, predicted : (n,) values and out-of-fold predictions
    groups : (n,) numbers 0 … g − 1
    deleted : (u,) squared out-of-fold error with each unit deleted from training and scored rows
    units : (n,) numbers 0 … u − 1: the groups, or unions of them
    n_columns : of the activations, for the note
    about_mean : whether SST is taken about the mean of y; about 0 otherwise, as for a partial R²
    inflation : factor of the standard error, for models that ``deleted`` does not refit

    Returns
    -------
    NaN ends where the lower end would be below :data:`LEAST_LOW`
    """
    u = len(deleted)
    sums = r2_sums(y, predicted, units, u, center=about_mean)
    if not about_mean:
        sums[:, 1] = 0.0
    total = sums.sum(0)
    estimate = float(_log_unexplained(total[None])[0])
    rest = total - sums
    rest[:, 3] = deleted
    error = inflation * jackknife_error(_log_unexplained(rest))
    draws = draw_groups(u, n_resamples=n_resamples, seed=seed)
    drawn: Floats = draws.astype(np.float64) @ sums  # (n_resamples, 4)
    n, first, second, residual = drawn.T
    mean = first / n
    spread = second - first * mean
    with np.errstate(divide="ignore", invalid="ignore"):
        share = sums[:, 3] / residual[:, None]
        share -= (sums[:, 2] - 2 * mean[:, None] * sums[:, 1] + mean[:, None] ** 2 * sums[:, 0]) / spread[:, None]
        drawn_error = np.sqrt((draws * share**2).sum(1))
    most, least = studentised_interval(estimate, error, _log_unexplained(drawn), drawn_error)[::-1]
    with np.errstate(over="ignore"):
        low, high = float(-np.expm1(most)), float(-np.expm1(least))
    if low < LEAST_LOW:
        return Interval(np.nan, np.nan, f"the interval is not estimable: it would begin at R² = {low:.4g}")
    return Interval(low, high, _noted(groups, n_columns))


def refit_inflation(y: Floats, predicted: Floats, deleted: Floats, units: NDArray[np.intp]) -> float:
    """Return the factor, at least 1, by which refitting enlarges the standard error of log(1 − R²).

    ``y`` and ``predicted`` are (n, c); ``deleted`` and ``units`` as for :func:`r2_interval`, summed over columns.
    """
    u = len(deleted)
    error = np.bincount(units, weights=((y - predicted) ** 2).sum(1), minlength=u)
    spread = np.bincount(units, weights=((y - y.mean(0)) ** 2).sum(1), minlength=u)
    with np.errstate(divide="ignore", invalid="ignore"):
        scored = np.log(error.sum() - error) - np.log(spread.sum() - spread)
        refitted = np.log(deleted) - np.log(spread.sum() - spread)
        ratio = float(np.divide(jackknife_error(refitted), jackknife_error(scored)))
    return max(1.0, ratio) if np.isfinite(ratio) else 1.0  # two equal units have no error to compare with


def _log_unexplained(sums: Floats) -> Floats:
    """Return log SSE − log SST from sums (…, 4) of :func:`conceptkit.evaluate.resampling.r2_sums`."""
    n, first, second, residual = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = np.log(residual) - np.log(np.maximum(second - first**2 / n, 0.0))
    return np.where(np.isfinite(out), out, np.nan)


def accuracy_interval(
    y: NDArray[np.intp],
    predicted: NDArray[np.intp],
    groups: NDArray[np.intp],
    n_classes: int,
    *,
    inflation: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the interval for the balanced accuracy on new groups, in the same way on its logit.

    Parameters
    ----------
    y, predicted : (n,) class numbers
    groups : (n,) numbers 0 … g − 1
    inflation : factor of the standard error for the variation of the training groups; no model is refitted here
    """
    g, n = int(groups.max()) + 1, len(y)
    tables = np.zeros((g, n_classes, n_classes))
    np.add.at(tables, (groups, y, predicted), 1.0)
    draws = draw_groups(g, n_resamples=n_resamples, seed=seed)
    drawn = (draws @ tables.reshape(g, -1)).reshape(-1, n_classes, n_classes)
    estimate = float(recall_mean(confusion(y, predicted, n_classes)))
    deleted = recall_mean(tables.sum(0) - tables)
    low, high = studentised_interval(
        float(_logit(np.array(estimate), n)),
        inflation * jackknife_error(_logit(deleted, n)),
        _logit(recall_mean(drawn), n),
        _accuracy_errors(tables, draws, drawn, n),
    )
    return Interval(float(_logistic(low)), float(_logistic(high)), _noted(groups))


def _accuracy_errors(tables: Floats, draws: Resamples, drawn: Floats, n: int) -> Floats:
    """Return the infinitesimal jackknife error of the logit of balanced accuracy in each resample."""
    k = tables.shape[1]
    of_class = drawn.sum(-1)  # (R, k)
    occurring = of_class > 0
    hits = np.diagonal(drawn, axis1=-2, axis2=-1)
    recall = np.divide(hits, of_class, out=np.zeros_like(of_class), where=occurring)
    weight = np.divide(1.0, of_class, out=np.zeros_like(of_class), where=occurring) / np.maximum(
        occurring.sum(1, keepdims=True), 1
    )
    own_hits, own = np.diagonal(tables, axis1=-2, axis2=-1), tables.sum(-1)  # (g, k)
    influence = sum(weight[:, c, None] * (own_hits[:, c] - recall[:, c, None] * own[:, c]) for c in range(k))  # (R, g)
    score = np.clip(recall_mean(drawn), 0.5 / n, 1 - 0.5 / n)
    return np.asarray(np.sqrt((draws * influence**2).sum(1)) / (score * (1 - score)))


def auc_interval(
    y: NDArray[np.intp], score: Floats, groups: NDArray[np.intp], units: NDArray[np.intp], *, inflation: float = 1.0
) -> Interval:
    """Return the interval for the AUC on new groups: Student's t on its logit, with the delete-one-group jackknife.

    Parameters
    ----------
    y : (n,) class numbers
    score : (n,) or (n, k) out-of-fold scores
    units : (n,) numbers 0 … u − 1: the groups, or unions of them
    """
    u, n = int(units.max()) + 1, len(y)
    deleted = np.array([auc(y[units != i], score[units != i]) for i in range(u)])
    estimate = float(_logit(np.array(auc(y, score)), n))
    error = inflation * jackknife_error(_logit(deleted, n))
    reach = student_reach(effective_number(units)) * error
    return Interval(float(_logistic(estimate - reach)), float(_logistic(estimate + reach)), _noted(groups))


def _logit(share: Floats, n: int) -> Floats:
    """Return the logit of a share clipped to half a row from 0 and 1."""
    clipped = np.clip(share, 0.5 / n, 1 - 0.5 / n)
    return np.log(clipped / (1 - clipped))


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + np.exp(-value)) if np.isfinite(value) else float("nan")
