"""Predictions of networks on the evaluation rows: read from a run folder, and scored with intervals by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.intervals import auc_interval
from conceptkit.evaluate.scores import auc
from conceptkit.records import EMBEDDINGS_FILE
from conceptkit.report.run_context import reading

BINS = 10
"""Of a calibration curve: as many rows in each"""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predicted probabilities of the main task on all evaluation rows."""

    classes: tuple[str, ...]
    codes: NDArray[np.intp]
    """(n,) class numbers, −1 where unlabelled"""
    splits: NDArray[np.str_]
    """(n,)"""
    groups: NDArray[np.intp]
    """(n,) group numbers"""
    probabilities: Mapping[str, Floats]
    """Run (``name-seedN``) → (n,) of class 1, or (n, k)"""


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """One run's main task on one split."""

    auc: float
    low: float
    high: float
    brier: float
    """Mean squared error of the probabilities, 0 at best; over all classes for more than two"""
    calibration_error: float
    """Mean distance of predicted and observed share over bins of equally many rows"""
    n: int
    n_groups: int


def read_predictions(folder: Path) -> Predictions | None:
    """Read the predictions of a guide run; ``None`` when none were saved.

    Raises
    ------
    InputError
        when they cannot be read
    """
    path = folder / EMBEDDINGS_FILE
    if not path.is_file():
        return None
    with reading(path, "saved predictions") as file:
        if "predictions" not in file:
            return None
        saved = file["predictions"]
        classes = tuple(map(str, saved.attrs["classes"]))
        number = {name: i for i, name in enumerate(classes)}
        groups = np.asarray(saved["group"].asstr()[...], dtype=str)
        return Predictions(
            classes=classes,
            codes=np.array([number.get(label, -1) for label in saved["label"].asstr()[...]], dtype=np.intp),
            splits=np.asarray(saved["split"].asstr()[...], dtype=str),
            groups=np.unique(groups, return_inverse=True)[1].astype(np.intp),
            probabilities={run: np.asarray(p[...], dtype=float) for run, p in saved["probability"].items()},
        )


def score(predictions: Predictions, run: str, split: str) -> SplitScore | None:
    """Return how well a run does on a split; ``None`` where a class is missing."""
    here = (predictions.splits == split) & (predictions.codes >= 0)
    y, probability = predictions.codes[here], predictions.probabilities[run][here]
    if len(np.unique(y)) < 2:
        return None
    groups = np.unique(predictions.groups[here], return_inverse=True)[1].astype(np.intp)
    ends = auc_interval(y, probability, groups, groups)
    n_groups = int(groups.max()) + 1
    area = auc(y, probability)
    # There is no interval for one group, or for an area so near to 1 that no group changes it.
    known = ends.low < area < ends.high
    return SplitScore(
        auc=area,
        low=float(ends.low) if known else math.nan,
        high=float(ends.high) if known else math.nan,
        brier=brier(y, probability),
        calibration_error=calibration_error(y, probability),
        n=len(y),
        n_groups=n_groups,
    )


def brier(y: NDArray[np.intp], probability: Floats) -> float:
    """Return the mean squared error of probabilities (n,) of class 1, or (n, k) summed over classes."""
    if probability.ndim == 1:
        return float(np.mean((probability - y) ** 2))
    return float(np.mean(((probability - np.eye(probability.shape[1])[y]) ** 2).sum(axis=1)))


def calibration_error(y: NDArray[np.intp], probability: Floats) -> float:
    """Return the mean distance of predicted and observed share, weighted by rows."""
    predicted, observed, counts = calibration(y, probability)
    return float(np.average(np.abs(predicted - observed), weights=counts))


def calibration(y: NDArray[np.intp], probability: Floats, *, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Return mean prediction, observed share and number of rows in bins of equally many rows.

    For two classes of class 1; for more of the predicted class, whether it is the true one.
    """
    p = probability if probability.ndim == 1 else probability.max(axis=1)
    hit: NDArray[Any] = y == 1 if probability.ndim == 1 else probability.argmax(axis=1) == y
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    predicted = np.array([p[part].mean() for part in parts])
    observed = np.array([hit[part].mean() for part in parts])
    return predicted, observed, np.array([len(part) for part in parts], dtype=float)
