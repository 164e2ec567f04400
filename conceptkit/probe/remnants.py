"""Fresh linear, non-linear and kernel probes of a concept, before and after linear erasure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from conceptkit.evaluate.clustering import group_means, jackknife_units
from conceptkit.evaluate.intervals import Interval, accuracy_interval, r2_interval, refit_inflation
from conceptkit.evaluate.scores import Floats, auc
from conceptkit.families import PROBES
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.crossfit import deleted_errors, each_fold, read_fold
from conceptkit.probe.erasure import fit_eraser, indicators
from conceptkit.probe.perceptron import Perceptron
from conceptkit.probe.permutation import draw_orders, level_of, p_value
from conceptkit.probe.region import ConceptRegion
from conceptkit.probe.regression import RegressionConceptVector
from conceptkit.probe.ridge import ALPHAS, Split, factorise
from conceptkit.probe.targets import Target
from conceptkit.probe.testing import Blocks, Tested, choose_tests, combine_tests, permutation_tests

Groups = NDArray[np.intp] | None


def fit_linear(X: Floats, y: NDArray[Any], groups: Groups, classes: bool) -> Any:
    """Fit a ridge or logistic vector."""
    vector = ConceptActivationVector() if classes else RegressionConceptVector()
    return vector.fit(X, y, groups=groups)


def fit_mlp(X: Floats, y: NDArray[Any], groups: Groups, classes: bool) -> Any:
    """Fit a perceptron with one hidden layer of 64 units."""
    return Perceptron(classes=classes).fit(X, y)


def fit_kernel(X: Floats, y: NDArray[Any], groups: Groups, classes: bool) -> Any:
    """Fit a probe with a radial kernel."""
    if not classes:
        return ConceptRegion().fit(X, y, groups=groups)
    return make_pipeline(StandardScaler(), SVC(kernel="rbf", class_weight="balanced")).fit(X, y)


@dataclass(frozen=True)
class Remnant:
    """Held-out score of one fresh probe."""

    predicted: NDArray[Any]
    """(n,) out-of-fold predictions, values or class numbers"""
    score: float
    interval: Interval
    tested: Tested


def read_remnants(
    X: Floats,
    target: Target,
    readers: Iterable[str] = PROBES,
    *,
    erased: bool = False,
    folds: int = 5,
    permutations: int = 1000,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Remnant]:
    """Decode a concept from activations by fresh probes of each kind, cross-validated by group.

    The linear probe has the permutation test of :func:`conceptkit.probe.validation.validate`, which refits every
    permuted concept. That costs too much for the others: their p comes from :func:`permuted_agreement`.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    permutations : of the concept's values, at the level at which it varies
    """
    splits = target.folds(folds)
    refits = _refitted(X, target, splits, erased)
    remnants = {}
    for reader in readers:
        predicted = held_out_by(X, target, reader, erased=erased, folds=folds)
        interval = _interval(target, predicted, refits, X.shape[1], reader == "linear", n_resamples, seed)
        if reader != "linear":
            tested = permuted_agreement(target, predicted, splits, permutations, seed)
        elif erased:
            # After erasure a linear fit to the training part is constant for every permutation whose concept is erased
            # before the fit, and so the statistic is the same for all of them.
            tested = dataclasses.replace(_untested(target), p=1.0 if permutations else math.nan)
        else:
            tests = permutation_tests([target], permutations, ALPHAS, seed)
            [tested] = tests.finish(X, splits, each_fold(X, splits, tests.in_fold) if tests.by_row else [])
        remnants[reader] = Remnant(predicted, target.score(predicted), interval, tested)
    return remnants


def read_remnant(X: Floats, target: Target, reader: str, **options: Any) -> Remnant:
    """Decode a concept by one fresh probe, see :func:`read_remnants`."""
    return read_remnants(X, target, [reader], **options)[reader]


def _erased_columns(target: Target) -> Floats:
    """Return the columns (n, k) that are erased: the values, or an indicator of each class."""
    classes = target.kind == "categorical"
    return indicators(target.y.astype(np.intp), target.n_classes) if classes else target.columns


def _refitted(X: Floats, target: Target, splits: Sequence[Split], erased: bool) -> tuple[Floats, Floats]:
    """Return predictions (n, c) of a ridge regression on the same folds, and its error (u, c) without each unit."""
    Y, units, Z = target.columns, jackknife_units(target.clusters), _erased_columns(target)
    predicted, deleted = np.empty_like(Y), np.zeros((int(units.max()) + 1, Y.shape[1]))
    for split in splits:
        train, test = split
        A = fit_eraser(X[train], Z[train])(X) if erased else X
        reading = read_fold(factorise(A, train), split, Y, target.groups, ALPHAS)
        predicted[test] = reading.predicted
        deleted += deleted_errors(reading, split, Y, units)
    return predicted, deleted


def _interval(
    target: Target,
    predicted: NDArray[Any],
    refits: tuple[Floats, Floats],
    n_columns: int,
    linear: bool,
    n_resamples: int,
    seed: int,
) -> Interval:
    """Return the interval of ``probe``, which is exact for a linear probe of a continuous concept.

    The other probes are not refitted: their standard error is enlarged by the factor by which refitting enlarges that
    of a ridge regression on the same folds.
    """
    units, inflation = jackknife_units(target.clusters), 1.0
    if target.kind == "categorical" or not linear:
        inflation = refit_inflation(target.columns, refits[0], refits[1].sum(1), units)
    if target.kind == "categorical":
        codes = target.y.astype(np.intp)
        return accuracy_interval(
            codes, predicted, units, target.n_classes, inflation=inflation, n_resamples=n_resamples, seed=seed
        )
    deleted, y = refits[1][:, 0], target.y.astype(np.float64)
    if not linear:
        errors = (y - predicted) ** 2
        deleted = errors.sum() - np.bincount(units, weights=errors)
    return r2_interval(
        y,
        predicted,
        target.clusters,
        deleted,
        units,
        n_columns=n_columns,
        inflation=inflation,
        n_resamples=n_resamples,
        seed=seed,
    )


def held_out_by(X: Floats, target: Target, reader: str, *, erased: bool = False, folds: int = 5) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a fresh probe."""
    classes, Z = target.kind == "categorical", _erased_columns(target)
    out = np.empty(len(X), dtype=np.intp if classes else np.float64)
    for train, test in target.folds(folds):
        A, B = X[train], X[test]
        if erased:
            eraser = fit_eraser(A, Z[train])
            A, B = eraser(A), eraser(B)
        groups = None if target.groups is None else target.groups[train]
        present = np.unique(target.y[train])
        if classes and len(present) == 1:
            out[test] = present[0]
            continue
        out[test] = PROBES[reader](A, target.y[train], groups, classes).predict(B)
    return out


def permuted_agreement(
    target: Target, predicted: NDArray[Any], splits: Sequence[Split], permutations: int, seed: int
) -> Tested:
    """Test held-out predictions (n,) against permutations of the concept's values, at the level at which it varies.

    Predictions of different folds are not independent: two rows in different folds each trained the other's prediction.
    For predictions that are linear in the training values, each such pair counts twice in the statistic but once in its
    permutations, so that its variance without a relation is twice theirs. The statistic is therefore divided by √2
    before the comparison. For other probes this is an approximation.
    """
    read = np.asarray(predicted, dtype=np.float64)[:, None]
    if target.kind == "categorical":
        read = dataclasses.replace(target, y=predicted.astype(np.intp)).columns
    fold_of = np.empty(len(read), dtype=np.intp)
    for k, (_, test) in enumerate(splits):
        fold_of[test] = k
    level = level_of(target)
    tests = choose_tests(target, level, permutations)
    p = {name: _agreement(target.columns, read, one, fold_of, permutations, seed) for name, one in tests.items()}
    return combine_tests(target, level, tests, p, permutations)


def _agreement(
    values: Floats, read: Floats, blocks: Blocks, fold_of: NDArray[np.intp], permutations: int, seed: int
) -> float:
    """Return p of the sum of products of values and predictions, the latter centred by fold and stratum."""
    if blocks.units is not None:
        first = np.unique(blocks.units, return_index=True)[1]
        values, read, fold_of = group_means(values, blocks.units), group_means(read, blocks.units), fold_of[first]
    strata = np.zeros(len(values), dtype=np.intp) if blocks.strata is None else blocks.strata
    values = values - group_means(values, strata)[strata]
    cells = np.unique(strata * (int(fold_of.max()) + 1) + fold_of, return_inverse=True)[1]
    read = read - group_means(read, cells)[cells]
    orders = draw_orders(len(values), permutations, seed, strata).of()
    losses = -np.einsum("bnc,nc->b", values[orders], read)
    losses[0] *= math.sqrt(0.5) if losses[0] < 0 else 1.0
    return float(p_value(losses[:, None])[0])


def _untested(target: Target) -> Tested:
    return combine_tests(target, level_of(target), {}, {}, 0)


def a_distance(X: Floats, target: Target, *, reader: str = "linear", folds: int = 5) -> float:
    """Return the proxy A-distance 2(1 − 2ε) between the classes of a concept, averaged over pairs.

    ε is the held-out balanced error of a fresh probe of the two: 0 means chance, 2 no error. Negative estimates, which
    are noise, are kept.

    Source
    ------
    Ben-David et al., A theory of learning from different domains, 2010
    """
    distances = []
    for one, other in itertools.combinations(range(target.n_classes), 2):
        rows = np.flatnonzero((target.y == one) | (target.y == other))
        kept = target.on(rows)
        pair = dataclasses.replace(kept, y=(kept.y == other).astype(np.intp), classes=("one", "other"))
        parts = min(folds, pair.n_groups)
        if parts < 2:
            continue
        distances.append(2 * (1 - 2 * (1 - pair.score(held_out_by(X[rows], pair, reader, folds=parts)))))
    return float(np.mean(distances)) if distances else math.nan


def cost_of_erasure(
    X: Floats, target: Target, label: NDArray[np.intp], n_classes: int, *, folds: int = 5
) -> tuple[float, float]:
    """Return the AUC of a fresh linear probe for the main label, before and after the concept is erased.

    ``label`` (n,) are class numbers of the main task, −1 where unlabelled.
    """
    Z, known = _erased_columns(target), label >= 0
    scores = np.full((2, len(X), n_classes), np.nan)
    for train, test in target.folds(folds):
        eraser = fit_eraser(X[train], Z[train])
        on = train[known[train]]
        present = np.unique(label[on])
        if len(present) < n_classes:
            return math.nan, math.nan
        groups = None if target.groups is None else target.groups[on]
        changes: tuple[Callable[[Floats], Floats], ...] = (np.asarray, eraser)
        for k, change in enumerate(changes):
            vector = ConceptActivationVector().fit(change(X[on]), label[on], groups=groups)
            decided = vector.decision_function(change(X[test]))
            scores[k, test] = np.stack([-decided, decided], 1) if decided.ndim == 1 else decided
    before, after = (auc(label[known], s[known][:, 1] if n_classes == 2 else s[known]) for s in scores)
    return before, after


def scores_within(label: NDArray[np.intp], score: Floats, levels: Sequence[Any]) -> dict[str, tuple[int, float]]:
    """Return level → number of rows and AUC of the main task among them, NaN if they have one class.

    Labels (n,) are −1 where unlabelled, scores (n,) or (n, k), and levels (n,) text, ``None`` where missing.
    """
    names = np.array([None if v is None else str(v) for v in levels], dtype=object)
    rows_of = {
        level: np.flatnonzero((names == level) & (label >= 0)) for level in sorted({v for v in names if v is not None})
    }
    return {level: (len(at), auc(label[at], score[at]) if len(at) else math.nan) for level, at in rows_of.items()}
