"""Remedies against the center in features, fitted on training rows, and what they cost: scores before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

from conceptkit.errors import InputError
from conceptkit.evaluate.paired import Scored, scored_auc_within, scored_balanced_accuracy, scored_r2
from conceptkit.evaluate.scores import Floats
from conceptkit.families import PROBES
from conceptkit.probe.classification import ConceptActivationVector
from conceptkit.probe.erasure import fit_eraser, indicators
from conceptkit.probe.folds import make_folds

Codes = NDArray[np.intp]

_BARYCENTER_STEPS = 50
"""Maximum number of steps to the barycenter; usually ten are enough"""

Change = Callable[[Floats, Codes], Floats]
"""From features (m, d) and centers (m,) to the changed features (m, d)"""

Fit = Callable[[Floats, Codes, Codes], Change]
"""From training features (n, d), labels (n,) and centers (n,) to the change of any rows"""


@dataclass(frozen=True)
class Remedy:
    """A member of the family."""

    make: Callable[..., Any]
    """A :data:`Fit`; of a remedy of pixels, function from reference patches (n, h, w, 3) to one from a patch and its
    name to the changed patch"""
    meaning: str
    transductive: bool = False
    """Whether it needs the center of each new row"""
    pixels: bool = False
    """Whether it changes patches, before features are computed"""
    augments: bool = False
    """Whether the changed rows are added to training parts, instead of replacing rows"""

    def fit(self, X: Floats, label: Codes, center: Codes) -> Change:
        """Return the change of features; none for a remedy of pixels, whose features are changed already."""
        made: Change = nothing.make(X, label, center) if self.pixels else self.make(X, label, center)
        return made


def as_remedy(meaning: str, **facts: bool) -> Callable[[Callable[..., Any]], Remedy]:
    """Return a decorator that makes a :class:`Remedy` of a function; ``facts`` are its fields that are true."""
    return lambda make: Remedy(make, meaning, **facts)


@as_remedy("features as they are")
def nothing(X: Floats, label: Codes, center: Codes) -> Change:
    """Change nothing."""
    return lambda A, of: A


@as_remedy("LEACE of the center, with Ledoit and Wolf's shrinkage")
def leace(X: Floats, label: Codes, center: Codes) -> Change:
    """Erase what a linear probe decodes of the center, by the smallest change."""
    eraser = fit_eraser(X, indicators(center, int(center.max()) + 1), shrinkage=float(ledoit_wolf_shrinkage(X)))
    return lambda A, of: eraser(A)


@as_remedy("mean of each center removed", transductive=True)
def centring(X: Floats, label: Codes, center: Codes) -> Change:
    """Subtract the mean of each center; that of a new center is the mean of its new rows."""
    means = {k: X[center == k].mean(0) for k in np.unique(center)}
    level: Floats = X.mean(0)

    def change(A: Floats, of: Codes) -> Floats:
        own = {k: means.get(k, A[of == k].mean(0)) for k in np.unique(of)}
        return np.asarray(A - np.stack([own[k] for k in of]) + level)

    return change


@as_remedy("means and covariances of all centers made equal (quadratic LEACE)", transductive=True)
def qleace(X: Floats, label: Codes, center: Codes) -> Change:
    """Move each center, by the smallest change, to one mean and one covariance: the Wasserstein barycenter of all.

    Covariances are Ledoit and Wolf's. A new center is moved by the mean and covariance of its new rows. Every fit takes
    time of order d³ for each center.

    Source
    ------
    Belrose et al., 2023 (quadratic LEACE); Álvarez-Esteban et al., 2016, for the barycenter of Gaussians
    """
    names, counts = np.unique(center, return_counts=True)
    spreads = {k: _spread(X[center == k]) for k in names}
    level, target = X.mean(0), sum(n * spreads[k] for k, n in zip(names, counts, strict=True)) / len(X)
    for _ in range(_BARYCENTER_STEPS):
        root, inverse = _roots(target)
        middle = sum(n * _roots(root @ spreads[k] @ root)[0] for k, n in zip(names, counts, strict=True)) / len(X)
        before, target = target, inverse @ middle @ middle @ inverse
        if np.abs(target - before).max() <= 1e-9 * np.abs(target).max():
            break

    def moved(A: Floats, spread: Floats) -> Floats:
        root, inverse = _roots(spread)
        return np.asarray(A @ (inverse @ _roots(root @ target @ root)[0] @ inverse) + level)

    means = {k: X[center == k].mean(0) for k in names}

    def change(A: Floats, of: Codes) -> Floats:
        out = np.empty_like(A)
        for k in np.unique(of):
            rows = A[of == k]
            mean, spread = (means[k], spreads[k]) if k in means else (rows.mean(0), _spread(rows))
            out[of == k] = moved(rows - mean, spread)
        return out

    return change


def _spread(rows: Floats) -> Floats:
    """Return the covariance (d, d) of the rows of a center."""
    if len(rows) < 2 or not np.ptp(rows, axis=0).any():
        raise InputError("remedies: qleace needs two rows that differ, of each center in every training part.")
    covariance: Floats = ledoit_wolf(rows)[0]
    # a constant column has no scale of its own
    return np.asarray(covariance + 1e-9 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))


def _roots(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the square root of a positive definite matrix, and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    root = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


@as_remedy("ComBat, fitted with labels and applied without", transductive=True)
def combat(X: Floats, label: Codes, center: Codes) -> Change:
    """Fit ComBat with the label as covariate; a new center is fitted to the corrected training rows, without labels.

    Source
    ------
    Johnson et al., 2007; Fortin et al., 2018; computed by combatlearn
    """
    try:
        from combatlearn.core import ComBatModel
    except ImportError:
        raise InputError(
            "remedies: combat needs the package combatlearn; run pip install 'conceptkit[combat]'."
        ) from None
    names, counts = np.unique(center, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        raise InputError("remedies: combat needs two centers and two rows of each in every training part.")
    varies = X.std(0) > 0

    def fitted(A: Floats, batch: NDArray[Any], covariates: NDArray[Any] | None, **how: Any) -> Any:
        frame = None if covariates is None else pd.DataFrame({"label": covariates.astype(str)})
        model = ComBatModel(method="fortin", **how)
        return model.fit(pd.DataFrame(A), batch=pd.Series(batch), discrete_covariates=frame)

    def applied(model: Any, A: Floats, batch: NDArray[Any]) -> Floats:
        return np.asarray(model.transform(pd.DataFrame(A), batch=pd.Series(batch)), dtype=np.float64)

    trained = fitted(X[:, varies], center.astype(str), label)
    reference = applied(trained, X[:, varies], center.astype(str))

    def change(A: Floats, of: Codes) -> Floats:
        out, known = A.copy(), np.isin(of, names)
        if known.any():
            out[np.ix_(known, varies)] = applied(trained, A[known][:, varies], of[known].astype(str))
        for one in np.unique(of[~known]):
            new = A[of == one][:, varies]
            if len(new) < 2:
                raise InputError("remedies: combat needs at least two rows of a new center.")
            batch = np.array(["training"] * len(reference) + ["new"] * len(new))
            later = fitted(np.vstack([reference, new]), batch, None, reference_batch="training")
            out[np.ix_(of == one, varies)] = applied(later, new, batch[len(reference) :])
        return out

    return change


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is known of the rows whose features are changed."""

    label: Codes
    """(n,) class numbers 0 … k − 1"""
    center: Codes
    """(n,)"""
    patient: Codes
    """(n,) numbers 0 … g − 1"""
    concepts: Mapping[str, Floats]
    """Continuous concept → (n,) values, NaN where missing"""


@dataclass(frozen=True)
class Priced:
    """What a remedy leaves of the center, and what it costs."""

    scores: Mapping[str, Scored]
    """Measure → held-out score, and that without each patient; fits are not repeated without them"""
    corrected: Floats
    """(n, d) features, each row changed by the remedy fitted without its fold"""


def price(
    X: Floats,
    remedy: Remedy,
    rows: Rows,
    *,
    copies: Floats | None = None,
    probes: Iterable[str] = PROBES,
    folds: int = 5,
    seed: int = 0,
) -> Priced:
    """Score fresh probes on features changed by a remedy that is fitted in each training part only.

    ``center linear``, ``center mlp``, ``center kernel``: balanced accuracy of the center, held out by patient. ``label
    AUC within centers``: held out by patient, over pairs of rows of one center. ``label AUC unseen centers``: the same
    for rows of each center, with probe and remedy fitted on the other centers; from three centers on. ``R² CONCEPT``:
    held out by patient.

    Parameters
    ----------
    X : (n, d) features; of a remedy of pixels those of the changed patches
    copies : (n, d) features of changed patches, which are added to the training parts
    probes : of the center

    Raises
    ------
    InputError
        when there are fewer patients than folds, or a remedy cannot be fitted
    """
    parts = make_folds(len(X), rows.patient, folds, seed=seed, strata=[rows.label, rows.center])
    n_centers, corrected = int(rows.center.max()) + 1, np.empty_like(X, dtype=np.float64)
    centers = {kind: np.empty(len(X), np.intp) for kind in probes}
    concepts = {name: np.full(len(X), np.nan) for name in rows.concepts}
    decided: Floats | None = None
    for train, test in parts:
        A, B, at = _changed(X, remedy, rows, train, test, copies)
        corrected[test] = B
        for kind, predicted in centers.items():
            predicted[test] = PROBES[kind](A, rows.center[at], rows.patient[at], True).predict(B)
        for name, values in rows.concepts.items():
            known = np.isfinite(values[at])
            probe = PROBES["linear"](A[known], values[at][known], rows.patient[at][known], False)
            concepts[name][test] = probe.predict(B)
        decided = _decided(decided, A, B, at, test, rows)
    scores = {
        f"center {kind}": scored_balanced_accuracy(rows.center, predicted, rows.patient, n_centers)
        for kind, predicted in centers.items()
    }
    assert decided is not None
    scores["label AUC within centers"] = scored_auc_within(rows.label, decided, rows.patient, rows.center)
    if n_centers > 2:
        unseen: Floats | None = None
        for k in range(n_centers):
            train, test = np.flatnonzero(rows.center != k), np.flatnonzero(rows.center == k)
            A, B, at = _changed(X, remedy, rows, train, test, copies)
            unseen = _decided(unseen, A, B, at, test, rows)
        assert unseen is not None
        scores["label AUC unseen centers"] = scored_auc_within(rows.label, unseen, rows.patient, rows.center)
    for name, read in concepts.items():
        known = np.isfinite(rows.concepts[name])
        groups = np.unique(rows.patient[known], return_inverse=True)[1]
        scores[f"R² {name}"] = scored_r2(rows.concepts[name][known], read[known], groups)
    return Priced(scores, corrected)


def _changed(
    X: Floats, remedy: Remedy, rows: Rows, train: Codes, test: Codes, copies: Floats | None
) -> tuple[Floats, Floats, Codes]:
    """Return changed training and test features, and the row of each training feature."""
    # numbered again, as indicators of a center without rows would be constant
    names, center = np.unique(rows.center[train], return_inverse=True)
    place = {name: k for k, name in enumerate(names)}
    of = np.array([place.get(name, len(names) + name) for name in rows.center[test]])
    change = remedy.fit(X[train], rows.label[train], center)
    A, at = change(X[train], center), train
    if copies is not None:
        A, at = np.vstack([A, copies[train]]), np.concatenate([train, train])
    return A, change(X[test], of), at


def _decided(found: Floats | None, A: Floats, B: Floats, at: Codes, test: Codes, rows: Rows) -> Floats:
    """Return the label's scores (n,) or (n, k) with those of the test rows filled in."""
    n_classes = int(rows.label.max()) + 1
    present = np.unique(rows.label[at])
    if len(present) < n_classes:
        raise InputError("remedies: every training part needs rows of each label; a label may be at one center only.")
    decided = ConceptActivationVector().fit(A, rows.label[at], groups=rows.patient[at]).decision_function(B)
    if found is None:
        found = np.full((len(rows.label), *decided.shape[1:]), np.nan)
    found[test] = decided
    return found
