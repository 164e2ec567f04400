"""What is left of a concept: fresh linear, non-linear and kernel probes, before and after linear erasure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.intervals import accuracy_interval
from conceptkit.evaluate.resampling import draw_groups, percentile_interval
from conceptkit.evaluate.scores import Floats, auc, balanced_accuracy, r2
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.erasure import fit_eraser, indicators
from conceptkit.probe.perceptron import Perceptron
from conceptkit.probe.permutation import draw_orders, level_of
from conceptkit.probe.region import ConceptRegion
from conceptkit.probe.regression import RegressionConceptVector
from conceptkit.probe.targets import Target

Fit = Callable[[Floats, NDArray[Any], "NDArray[np.intp] | None", bool], Any]
"""From training activations (n, d), values or class numbers (n,), groups (n,) and whether they are classes to something
that predicts"""


def _linear(X: Floats, y: NDArray[Any], groups: NDArray[np.intp] | None, classes: bool) -> Any:
    vector = ConceptActivationVector() if classes else RegressionConceptVector()
    return vector.fit(X, y, groups=groups)


def _mlp(X: Floats, y: NDArray[Any], groups: NDArray[np.intp] | None, classes: bool) -> Any:
    return Perceptron(classes=classes).fit(X, y)


def _kernel(X: Floats, y: NDArray[Any], groups: NDArray[np.intp] | None, classes: bool) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if not classes:
        return ConceptRegion().fit(X, y, groups=groups)
    return make_pipeline(StandardScaler(), SVC(kernel="rbf", class_weight="balanced")).fit(X, y)


READERS: Mapping[str, Fit] = {"linear": _linear, "mlp": _mlp, "kernel": _kernel}
"""Name → fresh probe: ridge or logistic vector; one hidden layer of 64 units; a radial kernel"""


@dataclass(frozen=True)
class Remnant:
    """What one kind of probe reads on held-out groups."""

    predicted: NDArray[Any]
    """(n,) out-of-fold predictions, values or class numbers"""
    score: float
    low: float
    high: float
    note: str | None
    """What has to be said of the interval"""
    p: float
    """Share of permutations of the concept's values that agree with the predictions at least as well, this one
    included"""
    permuted: str
    """``rows``, ``within`` groups or whole ``groups``"""


def read_remnant(
    X: Floats,
    target: Target,
    reader: str,
    *,
    erased: bool = False,
    folds: int = 5,
    permutations: int = 1000,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Remnant:
    """Read a concept from activations by a fresh probe, cross-validated by group.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    reader : one of :data:`READERS`
    erased : whether the concept is erased first (LEACE), fitted in each training part and applied to both
    permutations : of the concept's values against the held-out predictions, at the level at which it varies; the
        probes are not fitted again, as their predictions cannot know a value that was permuted
    """
    predicted = held_out_by(X, target, reader, erased=erased, folds=folds)
    score = target.score(predicted)
    p, permuted = permuted_agreement(target, predicted, permutations, seed)
    note = None
    if target.kind == "continuous":
        draws = draw_groups(target.n_groups, n_resamples=n_resamples, seed=seed)
        low, high = percentile_interval(target.resampled(predicted, draws))
    else:
        found = accuracy_interval(
            target.y.astype(np.intp), predicted, target.clusters, target.n_classes, n_resamples=n_resamples, seed=seed
        )
        low, high, note = found.low, found.high, found.note
    return Remnant(predicted, score, low, high, note, p, permuted)


def held_out_by(X: Floats, target: Target, reader: str, *, erased: bool = False, folds: int = 5) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a fresh probe, no group on both sides of a fold."""
    classes = target.kind == "categorical"
    Z = indicators(target.y.astype(np.intp), target.n_classes) if classes else target.columns
    out = np.empty(len(X), dtype=np.intp if classes else np.float64)
    for train, test in target.folds(folds):
        A, B = X[train], X[test]
        if erased:
            eraser = fit_eraser(A, Z[train])
            A, B = eraser(A), eraser(B)
        groups = None if target.groups is None else target.groups[train]
        present = np.unique(target.y[train])
        if classes and len(present) == 1:  # a fold's training part may lack all classes but one
            out[test] = present[0]
            continue
        out[test] = READERS[reader](A, target.y[train], groups, classes).predict(B)
    return out


def permuted_agreement(target: Target, predicted: NDArray[Any], permutations: int, seed: int) -> tuple[float, str]:
    """Return p and the level of a permutation test of held-out predictions against the concept's values.

    Whole groups are permuted where the concept is a matter of the group alone: the value of a group is that of its
    rows, and its predictions stay together. Where it varies within groups, values are permuted within them.
    """
    level = level_of(target)
    name = "within" if level.both else level.name
    if not permutations:
        return float("nan"), name
    classes = target.kind == "categorical"
    if name == "groups":
        groups = target.clusters
        first = np.unique(groups, return_index=True)[1]
        orders = draw_orders(target.n_groups, permutations, seed).of()
        values = target.y[first][orders][:, groups]  # (permutations + 1, n)
    else:
        values = target.y[draw_orders(len(target.y), permutations, seed, target.groups).of()]
    if classes:
        scores = [balanced_accuracy(v.astype(np.intp), predicted, target.n_classes) for v in values]
    else:
        scores = [r2(v.astype(np.float64), predicted) for v in values]
    return float(np.mean(np.array(scores) >= scores[0] - 1e-12)), name


def a_distance(X: Floats, target: Target, *, reader: str = "linear", folds: int = 5) -> float:
    """Return the proxy A-distance 2(1 − 2ε) between the classes of a concept, mean over pairs of them.

    ε is the held-out balanced error of a fresh probe that tells the two apart: 0 where it does no better than chance,
    2 where it makes no error. Negative estimates are noise and are kept.

    Source
    ------
    Ben-David et al., A theory of learning from different domains, 2010
    """
    found = []
    for one, other in itertools.combinations(range(target.n_classes), 2):
        rows = np.flatnonzero((target.y == one) | (target.y == other))
        groups = None if target.groups is None else np.unique(target.groups[rows], return_inverse=True)[1]
        pair = Target(
            target.name, target.kind, rows, (target.y[rows] == other).astype(np.intp), groups, ("one", "other")
        )
        parts = min(folds, pair.n_groups)
        if parts < 2:
            continue
        found.append(2 * (1 - 2 * (1 - pair.score(held_out_by(X[rows], pair, reader, folds=parts)))))
    return float(np.mean(found)) if found else float("nan")


def cost_of_erasure(
    X: Floats, target: Target, label: NDArray[np.intp], n_classes: int, *, folds: int = 5
) -> tuple[float, float]:
    """Return how well a fresh linear probe reads the main label (AUC), before and after the concept is erased.

    Parameters
    ----------
    X : (n, d) activations of the target's rows
    label : (n,) class numbers of the main task, −1 where unlabelled
    """
    classes = target.kind == "categorical"
    Z = indicators(target.y.astype(np.intp), target.n_classes) if classes else target.columns
    known = label >= 0
    scores = np.full((2, len(X), n_classes), np.nan)
    for train, test in target.folds(folds):
        eraser = fit_eraser(X[train], Z[train])
        on = train[known[train]]
        present = np.unique(label[on])
        if len(present) < n_classes:
            return float("nan"), float("nan")
        groups = None if target.groups is None else target.groups[on]
        changes: tuple[Callable[[Floats], Floats], ...] = (np.asarray, eraser)
        for k, change in enumerate(changes):
            vector = ConceptActivationVector().fit(change(X[on]), label[on], groups=groups)
            decided = vector.decision_function(change(X[test]))
            scores[k, test] = np.stack([-decided, decided], 1) if decided.ndim == 1 else decided
    found = [auc(label[known], s[known][:, 1] if n_classes == 2 else s[known]) for s in scores]
    return found[0], found[1]


def scores_within(label: NDArray[np.intp], score: Floats, levels: Sequence[Any]) -> dict[str, tuple[int, float]]:
    """Return level → number of rows and AUC of the main task among them; not a number where it has one class.

    Parameters
    ----------
    label : (n,) class numbers, −1 where unlabelled
    score : (n,) or (n, k)
    levels : (n,) text, ``None`` where missing
    """
    found = {}
    names = np.array([None if v is None else str(v) for v in levels], dtype=object)
    for level in sorted({v for v in names if v is not None}):
        rows = np.flatnonzero((names == level) & (label >= 0))
        found[level] = (len(rows), auc(label[rows], score[rows]) if len(rows) else float("nan"))
    return found
