"""Targets of a probe: one concept on the rows with a value, with their groups and centers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import intraclass_correlation
from conceptkit.evaluate.scores import Floats, balanced_accuracy, r2
from conceptkit.files.matrix import ReadMatrix
from conceptkit.probe.folds import make_folds
from conceptkit.probe.ridge import Split

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Target:
    """One concept on the rows with a value."""

    name: str
    kind: str
    """``continuous`` or ``categorical``"""
    rows: NDArray[np.intp]
    """(n,) row numbers in the table"""
    y: Floats | NDArray[np.intp]
    """(n,) values, or class numbers 0 … k − 1"""
    groups: NDArray[np.intp] | None
    """(n,) group numbers 0 … g − 1; ``None``: independent rows"""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers"""
    centers: NDArray[np.str_] | None = None
    """(n,) names of centers, empty where unknown; ``None``: not recorded, or only one"""
    nested: NDArray[np.intp] | None = None
    """(n,) numbers of units nested in the groups, such as slides of patients"""
    labels: NDArray[np.str_] | None = None
    """(n,) main labels, by which the folds are stratified"""
    seed: int = 0
    """Seed of the assignment of groups to folds"""

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for a continuous concept."""
        return len(self.classes)

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "r2" if self.kind == "continuous" else "balanced_accuracy"

    @property
    def chance(self) -> float:
        """Score without any information."""
        return 0.0 if self.kind == "continuous" else 1.0 / self.n_classes

    @property
    def clusters(self) -> NDArray[np.intp]:
        """Units to resample (n,): the groups, or the rows."""
        return np.arange(len(self.y)) if self.groups is None else self.groups

    @property
    def n_groups(self) -> int:
        """Number of units to resample."""
        return int(self.clusters.max()) + 1

    @property
    def columns(self) -> Floats:
        """The concept as numbers (n, c): its values, or an indicator of each class (of two, only of the second)."""
        if self.kind == "continuous":
            return self.y.astype(np.float64)[:, None]
        indicators = np.eye(self.n_classes)[self.y.astype(np.intp)]
        return indicators[:, 1:] if self.n_classes == 2 else indicators

    @property
    def icc(self) -> float:
        """Intra-class correlation; NaN without groups, or with one row in each."""
        return float("nan") if self.groups is None else intraclass_correlation(self.columns, self.groups)

    def folds(self, folds: int) -> list[Split]:
        """Return folds stratified by center and by class or label, without splitting a group."""
        labels = self.labels if self.kind == "continuous" else self.y
        strata = [values for values in (self.centers, labels) if values is not None]
        what = f"the rows with {self.name}"
        return make_folds(len(self.y), self.groups, folds, seed=self.seed, strata=strata, what=what)

    def on(self, at: NDArray[np.intp]) -> Target:
        """Return the target on some of its rows, with groups and nested units renumbered."""
        return dataclasses.replace(
            self,
            rows=self.rows[at],
            y=self.y[at],
            groups=None if self.groups is None else np.unique(self.groups[at], return_inverse=True)[1],
            nested=None if self.nested is None else np.unique(self.nested[at], return_inverse=True)[1],
            centers=None if self.centers is None else self.centers[at],
            labels=None if self.labels is None else self.labels[at],
        )

    def score(self, predicted: NDArray[Any]) -> float:
        """Return the score of predictions (n,) for all rows."""
        if self.kind == "continuous":
            return r2(self.y.astype(np.float64), predicted)
        return balanced_accuracy(self.y.astype(np.intp), predicted, self.n_classes)


def make_target(
    name: str,
    kind: str,
    values: NDArray[Any],
    groups: NDArray[Any] | None,
    *,
    centers: NDArray[Any] | None = None,
    nested: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    seed: int = 0,
) -> Target:
    """Select the rows with a value, and number classes and groups.

    Parameters
    ----------
    values : (n,) float with NaN where missing, or objects with ``None`` where missing
    groups : (n,) group labels, or ``None``
    centers : (n,) text, ``None`` where missing: permutations stay within centers, folds are stratified by them
    nested : (n,) labels of units nested in the groups, such as slides of patients: permutations stay within them
    labels : (n,) text, ``None`` where missing: the main label, by which the folds are also stratified

    Raises
    ------
    InputError
        when the concept is empty, constant, has infinite values, or a class in one group only
    """
    present = ~np.isnan(values) if kind == "continuous" else np.array([v is not None for v in values], dtype=bool)
    rows = np.flatnonzero(present)
    if not rows.size:
        raise InputError(f"concept: {name} has no value in any of the {len(values)} rows.")
    kept = values[rows]
    numbers = _numbered(groups, rows)
    placed: dict[str, Any] = {
        "centers": _text(centers, rows),
        "nested": _nested(name, nested, numbers, rows),
        "labels": _text(labels, rows),
        "seed": seed,
    }
    if kind == "continuous":
        y: Any = kept.astype(np.float64)
        if not np.isfinite(y).all():
            raise InputError(f"concept: {name} must be finite, {int((~np.isfinite(y)).sum())} rows are infinite.")
        if np.ptp(y) == 0:
            raise InputError(f"concept: {name} is constant ({y[0]:g} in all {len(y)} rows); there is nothing to learn.")
        return Target(name, kind, rows, y, numbers, **placed)
    classes, y = np.unique(kept.astype(str), return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"concept: {name} has one class only ({str(classes[0])!r} in all {len(y)} rows).")
    for code, held in enumerate(classes):
        if numbers is not None and len(np.unique(numbers[y == code])) < 2:
            raise InputError(
                f"concept: {name} has the class {str(held)!r} in one group only, which cannot be in the training and "
                "the held-out part. Remove the concept or these rows, or set another `--group`."
            )
    return Target(name, kind, rows, y, numbers, tuple(str(c) for c in classes), **placed)


def _numbered(labels: NDArray[Any] | None, rows: NDArray[np.intp]) -> NDArray[np.intp] | None:
    return None if labels is None else np.unique(labels[rows].astype(str), return_inverse=True)[1]


def _text(names: NDArray[Any] | None, rows: NDArray[np.intp]) -> NDArray[np.str_] | None:
    """Return names (n,) as text, empty where missing; ``None`` if all are equal."""
    if names is None:
        return None
    text = np.array(["" if v is None or v != v else str(v) for v in names[rows]], dtype=str)
    return text if len(np.unique(text)) > 1 else None


def _nested(
    name: str, nested: NDArray[Any] | None, groups: NDArray[np.intp] | None, rows: NDArray[np.intp]
) -> NDArray[np.intp] | None:
    """Return numbers (n,) of nested units; refuse units in several groups."""
    numbers = _numbered(nested, rows)
    if numbers is None:
        return None
    if groups is None:
        raise InputError(f"nested: {name} has no groups for the units to be nested in; set the group column too.")
    pairs = np.unique(np.stack([numbers, groups]), axis=1)
    several = int((np.bincount(pairs[0]) > 1).sum())
    if several:
        raise InputError(
            f"nested: every unit must lie in one group, {several} of {int(numbers.max()) + 1} have rows in several; "
            "set the larger unit as the group and the smaller one as nested."
        )
    return numbers


def check_activations(X: NDArray[Any], name: str) -> None:
    """Raise :class:`InputError` when activations (n, d) hold NaN or infinity."""
    if isinstance(X, ReadMatrix):  # refuses them whenever it reads
        return
    # In blocks: a mask of all values would take a quarter of the memory of X.
    blocks = (X[i : i + _ROWS_AT_ONCE] for i in range(0, len(X), _ROWS_AT_ONCE))
    bad = sum(int((~np.isfinite(block).all(axis=1)).sum()) for block in blocks)
    if bad:
        raise InputError(f"activations: {name} must be finite, {bad} of {len(X)} rows hold NaN or infinity.")


def check_varying(X: NDArray[Any], name: str) -> None:
    """Raise :class:`InputError` when no column of activations (n, d) varies."""
    blocks = (X[i : i + _ROWS_AT_ONCE] for i in range(0, len(X), _ROWS_AT_ONCE))
    if not any((block != X[:1]).any() for block in blocks):
        raise InputError(f"activations: {name} must vary between rows, all {X.shape[1]} columns are constant.")


def batches(targets: Sequence[Target]) -> list[list[Target]]:
    """Sort targets into lists with the same folds, which share factorisations.

    Continuous targets share folds if they share rows; those of a categorical one are stratified by its classes.
    """
    alike: dict[tuple[str, bytes], list[Target]] = {}
    for target in targets:
        classes = b"" if target.kind == "continuous" else target.y.tobytes()
        alike.setdefault((target.kind, target.rows.tobytes() + classes), []).append(target)
    return list(alike.values())


def values_of(targets: Sequence[Target]) -> Floats:
    """Return the continuous values (n, t)."""
    return np.stack([t.y.astype(np.float64) for t in targets], axis=1)
