"""Headroom: what concepts and frozen features say of the main label before anything is trained, and the power."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from conceptkit.evaluate.detectable import Spread, difference_spread
from conceptkit.evaluate.scores import Floats, auc
from conceptkit.evaluate.weighted import empty_cells, row_weights
from conceptkit.guide.frozen import WEAK, choose_inverse, fitted_scores, standardised
from conceptkit.guide.objective import balance_factors, class_weights
from conceptkit.probe.crossfit import read_fold
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import ALPHAS, Split, factorise

Rows = NDArray[np.intp]

CENTERS_LEFT_OUT = "centers_left_out"
"""Name of the AUCs over training centers that are left out in turn"""

FOLDS = 5
"""Parts of the patients for held-out predictions"""


@dataclass(frozen=True)
class Evidence:
    """Rows that train or validate, and evaluation rows only if these may be looked at."""

    codes: Rows
    """(n,) class numbers of the main task, −1 where unlabelled"""
    groups: Rows
    """(n,) group numbers"""
    centers: Rows
    """(n,) numbers of the centers, −1 where unknown"""
    rows: Mapping[str, Rows]
    """``train``, ``val`` and evaluation splits → row numbers. Training rows without a label train concepts"""
    features: Floats
    """(n, d) frozen features from which the label is predicted"""
    concepts: Sequence[tuple[Floats, Floats]] = ()
    """Features (n, d) and the values (n, t) of concepts that are predicted from them, NaN where missing"""
    shortcut: Rows | None = None
    """(n,) classes by which the main loss is balanced, −1 where unknown"""
    balance: float = 0.0
    """Exponent of the balancing weights"""

    @property
    def values(self) -> Floats:
        """Return the values (n, t) of all concepts."""
        return np.concatenate([np.zeros((len(self.codes), 0)), *(values for _, values in self.concepts)], axis=1)

    @property
    def labelled(self) -> Rows:
        """Return the training rows with a label."""
        return self.rows["train"][self.codes[self.rows["train"]] >= 0]

    def weights(self, rows: Rows, *, balance: float | None = None) -> Floats:
        """Return the weights of some labelled rows in the main loss."""
        codes = torch.from_numpy(self.codes[rows])
        weights = class_weights(codes, int(self.codes.max()) + 1)[codes]
        if self.shortcut is not None:
            given = self.balance if balance is None else balance
            weights = weights * balance_factors(torch.from_numpy(self.shortcut[rows]), codes, power=given)
        return np.asarray(weights.double().numpy())


def held_out_centers(given: Evidence) -> Iterator[tuple[int, Rows]]:
    """Yield each training center with its training and validation rows; nothing where there is only one."""
    centers = np.unique(given.centers[given.labelled])
    centers = centers[centers >= 0]
    both = np.concatenate([given.rows["train"], given.rows["val"]])
    for center in centers if len(centers) > 1 else ():
        yield int(center), both[given.centers[both] == center]


def aucs(given: Evidence, *, inverse: float) -> dict[str, dict[str, float]]:
    """Return place → AUC of the label by true concepts, predicted concepts and frozen features.

    Each is a logistic regression, weighted as the main loss is, of training rows with a label. Predicted concepts are
    held out by patient where they train it. All three are scored on the same rows: those with every concept.

    Parameters
    ----------
    inverse : scikit-learn's ``C`` for the frozen features
    """
    train = given.rows["train"]
    found = {}
    for place, rows in given.rows.items():
        if place != "train":
            found[place] = _three(given, train, rows, inverse)
    each = []
    for center, rows in held_out_centers(given):
        scores = _three(given, train[given.centers[train] != center], rows, inverse)
        each += [scores] if np.isfinite(scores["frozen_features"]) else []
    if each:
        found[CENTERS_LEFT_OUT] = {name: float(np.mean([scores[name] for scores in each])) for name in each[0]}
    return found


def _three(given: Evidence, train: Rows, test: Rows, inverse: float) -> dict[str, float]:
    complete = np.asarray(~np.isnan(given.values).any(axis=1))
    own = train[given.codes[train] >= 0]
    test = test[(given.codes[test] >= 0) & complete[test]]
    found = dict.fromkeys(("true_concepts", "predicted_concepts", "frozen_features"), float("nan"))
    whole = len(np.unique(given.codes[own])) == int(given.codes.max()) + 1
    if not whole or len(np.unique(given.codes[test])) < 2:
        return found

    def area(X: Floats, rows: Rows, value: float) -> float:
        if len(np.unique(given.codes[rows])) < len(np.unique(given.codes[own])) or np.isnan(X[rows]).any():
            return float("nan")
        return auc(given.codes[test], fitted_scores(X, given.codes, given.weights(rows), rows, test, value))

    found["frozen_features"] = area(given.features, own, inverse)
    if given.concepts:
        found["true_concepts"] = area(given.values, own[complete[own]], WEAK)
        found["predicted_concepts"] = area(predicted_concepts(given, train, test), own, WEAK)
    return found


def predicted_concepts(given: Evidence, train: Rows, test: Rows | None = None) -> Floats:
    """Return predictions (n, t) of the concepts by ridge regression: of training rows held out by patient.

    Parameters
    ----------
    train : rows whose concept values are used
    test : rows that are predicted by all of them
    """
    out = np.full(given.values.shape, np.nan)
    at = 0
    splits = [*folds_of(train, given.groups), *([] if test is None else [(train, test)])]
    for X, values in given.concepts:
        missing, which = np.unique(np.isnan(values), axis=1, return_inverse=True)
        for pattern, (fit, rows) in itertools.product(range(missing.shape[1]), splits):
            columns = np.flatnonzero(which == pattern)
            known = fit[~missing[fit, pattern]]
            if len(np.unique(given.groups[known])) > 1:
                read = read_fold(factorise(X, known), (known, rows), values[:, columns], given.groups, ALPHAS)
                out[np.ix_(rows, at + columns)] = read.predicted
        at += values.shape[1]
    return out


def folds_of(rows: Rows, groups: Rows) -> list[Split]:
    """Return splits of some row numbers that do not divide a group."""
    count = min(FOLDS, len(np.unique(groups[rows])))
    return [(rows[fit], rows[held]) for fit, held in make_folds(len(rows), groups[rows], count)]


def held_out_scores(
    given: Evidence, X: Floats, rows: Rows, inverse: float, *, balance: float | None = None
) -> Floats | None:
    """Return the logits (n,) or (n, k) of ``rows``, held out by patient; ``None`` if a part has not every class."""
    k = int(given.codes.max()) + 1
    out = np.full((len(given.codes), k) if k > 2 else len(given.codes), np.nan)
    for fit, held in folds_of(rows, given.groups):
        if len(np.unique(given.codes[fit])) < k:
            return None
        weights = given.weights(fit, balance=balance)
        out[held] = fitted_scores(X, given.codes, weights, fit, held, inverse)
    return out


def spread(given: Evidence, *, inverse: float) -> Spread | None:
    """Return the spread of the difference of two models of frozen features, held out by patient on training rows.

    The models are the regression on features and, with concepts, that on predicted concepts; else the same regression
    with the plain main loss. Rows are weighted so that the center does not predict the label, as evaluation rows are.
    """
    rows = given.labelled
    first = held_out_scores(given, given.features, rows, inverse)
    if given.concepts:
        predicted = predicted_concepts(given, given.rows["train"])
        second = None if np.isnan(predicted[rows]).any() else held_out_scores(given, predicted, rows, WEAK)
    else:
        second = held_out_scores(given, given.features, rows, inverse, balance=0.0) if given.balance else None
    if first is None or second is None:
        return None
    weights, centers = np.ones(len(rows)), given.centers[rows]
    if (centers >= 0).all():
        numbers = np.unique(centers, return_inverse=True)[1]
        if not empty_cells(given.codes[rows], numbers):
            weights = row_weights(given.codes[rows], numbers)
    return difference_spread(given.codes[rows], first[rows], second[rows], given.groups[rows], weights)


def penalty(given: Evidence) -> float:
    """Return scikit-learn's ``C`` of the frozen features, chosen on left-out patients of the training rows."""
    rows = given.labelled
    X = standardised(given.features[rows])
    return choose_inverse(X, given.codes[rows], given.weights(rows), given.groups[rows])


def label_from(given: Evidence, columns: Floats) -> float:
    """Return the AUC of the label by a concept's values or class indicators (n, t), held out by patient in training.

    Rows without a value are skipped; NaN where a part of the patients has not every class.
    """
    rows = given.labelled[~np.isnan(columns[given.labelled]).any(1)]
    if len(np.unique(given.codes[rows])) < 2 or len(np.unique(given.groups[rows])) < 2:
        return float("nan")
    scores = held_out_scores(given, columns, rows, WEAK, balance=0.0)
    return float("nan") if scores is None else auc(given.codes[rows], scores[rows])
