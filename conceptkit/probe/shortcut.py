"""How much a probe for the label loses when its training rows tie label and center: APD and nIPD, by croma."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.files.matrix import rows_of
from conceptkit.probe.neighbours import Cohort

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Cramér's V between label and center in the training rows, from balanced to each label in its own centers"""

MOST_ROWS = 200
"""Maximum number of training rows of one label in one center"""

VALIDATION = 0.15
"""Rows that choose the penalty, as a share of the training rows"""

TEST_SHARE = 1 / 3
"""Share of the patients of each center whose rows are predicted"""


@dataclass(frozen=True)
class Shortcut:
    """Balanced accuracies of probes of the label on the same balanced test rows."""

    accuracies: Floats
    """(strengths, repeats)"""
    apd: float
    """Mean relative change of the accuracy, by the mean over confounded strengths"""
    nipd: float
    """Area of the change relative to the accuracy above chance, over Cramér's V; NaN for a baseline at chance"""
    apd_sd: float
    """Over repeats"""


def shortcut_susceptibility(
    X: Any,
    cohort: Cohort,
    *,
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Shortcut:
    """Return APD and nIPD of features (n, d), by the sweep and the reductions of the package croma.

    In every repeat a third of the patients of each center is held out. The probe of the label is trained on as many
    rows each time, while the association of label and center grows from none to total, and predicts the same rows,
    balanced over labels and centers. Which centers get which label is drawn in each repeat.

    Raises
    ------
    InputError
        when croma is not installed, or no two centers have two labels with enough rows of several patients
    """
    try:
        from croma import downstream
    except ImportError:
        raise InputError(
            "croma: not installed, and APD and nIPD need it: pip install 'conceptkit[robustness]'."
        ) from None
    centers, labels = complete_table(cohort)
    numbers = {one: i for i, one in enumerate(labels)}
    columns = []
    for i in range(repeats):
        rng = np.random.default_rng([seed, i])
        order = rng.permutation(centers)
        pools = _pools(cohort, order, labels, rng)
        n_base, cells = _sized(pools, min(len(centers), len(labels)))
        rows = np.concatenate([cell for line in cells for cell in line])
        place = {center: k for k, center in enumerate(order)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, on steps of the solver
            columns.append(
                downstream.probe_sweep_over_test_sets(
                    rows_of(X, rows),
                    np.array([place[one] for one in cohort.center[rows]]),
                    np.array([numbers[one] for one in cohort.label[rows]]),
                    schedule=_schedule(n_base, len(centers), len(labels)),
                    iterations=1,
                    validation_fraction=VALIDATION,
                    arrange_slides=lambda slides, _: slides,
                )["in_domain"]
            )
        if progress is not None:
            progress(i + 1, repeats)
    accuracies = np.hstack(columns)
    chance, each = 1 / len(labels), [downstream.apd(column) for column in columns]
    area = downstream.nipd(accuracies, STRENGTHS, chance) if accuracies[0].mean() > chance else math.nan
    spread = float(np.std(each, ddof=1)) if repeats > 1 else math.nan
    return Shortcut(accuracies=accuracies, apd=downstream.apd(accuracies), nipd=float(area), apd_sd=spread)


def complete_table(cohort: Cohort) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return centers and labels that all occur together with several patients, as many of one as divide the other.

    The label in the fewest centers is dropped until two centers have all labels that are left; then the centers or
    labels of the fewest rows until the larger number is a multiple of the smaller, so that V can reach 1.
    """
    shape = len(cohort.centers), len(cohort.labels)
    pairs = np.unique(np.stack([cohort.center, cohort.label, cohort.patient]), axis=1)
    patients, rows = np.zeros(shape, int), np.zeros(shape, int)
    np.add.at(patients, (pairs[0], pairs[1]), 1)
    np.add.at(rows, (cohort.center, cohort.label), 1)
    has = (patients >= 2) & (rows >= 4)
    labels = np.argsort(-has.sum(0), kind="stable")
    while len(labels) >= 2:
        centers = np.flatnonzero(has[:, labels].all(1))
        if len(centers) >= 2:
            few = min(len(centers), len(labels))
            kept = [len(one) // few * few for one in (centers, labels)]
            centers = centers[np.argsort(-rows[centers].sum(1), kind="stable")][: kept[0]]
            return np.sort(centers), np.sort(labels[: kept[1]])
        labels = labels[:-1]
    raise InputError(
        "label: APD and nIPD need two centers with two labels each, of two patients and four rows or more, and there "
        "are none."
    )


def _pools(
    cohort: Cohort, centers: NDArray[np.intp], labels: NDArray[np.intp], rng: np.random.Generator
) -> list[list[tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Return the rows to train on and to test on, of each center and label, patient by patient."""
    for _ in range(100):  # a draw may leave a label of a center without patients on one side
        draw = rng.permutation(cohort.n_patients)
        held = np.zeros(cohort.n_patients, bool)
        for center in centers:
            own = np.unique(cohort.patient[cohort.center == center])
            own = own[np.argsort(draw[own])]
            held[own[: max(1, round(TEST_SHARE * len(own)))]] = True
        found = [[tuple(_ordered(cohort, c, lab, draw, held)) for lab in labels] for c in centers]
        if all(len(part) for line in found for cell in line for part in cell):
            return found  # type: ignore[return-value]
    raise InputError("label: APD and nIPD need patients of each label of each center on both sides of a split.")


def _ordered(
    cohort: Cohort, center: int, label: int, draw: NDArray[np.intp], held: NDArray[np.bool_]
) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of a cell to train on and to test on, one of each patient in turn."""
    here = np.flatnonzero((cohort.center == center) & (cohort.label == label))
    patient = cohort.patient[here]
    order = np.argsort(patient, kind="stable")
    turn = np.empty(len(here), int)
    starts = np.r_[0, np.flatnonzero(np.diff(patient[order])) + 1]
    turn[order] = np.arange(len(here)) - np.repeat(starts, np.diff([*starts, len(here)]))
    order = np.lexsort((draw[patient], turn))
    for part in (~held, held):
        yield here[order][part[patient[order]]]


def _sized(
    pools: list[list[tuple[NDArray[np.intp], NDArray[np.intp]]]], parts: int
) -> tuple[int, list[list[NDArray[np.intp]]]]:
    """Return the rows of a cell at V = 0, and each cell cut to the rows that train, choose the penalty, and test."""
    least = min(len(train) for line in pools for train, _ in line)
    tested = min(len(test) for line in pools for _, test in line)
    steps = len(STRENGTHS) - 1
    n_base = int(min(MOST_ROWS, (least - 1.5) / (1 + VALIDATION)) / parts / steps) * steps
    if n_base == 0:
        needed = math.ceil(steps * parts * (1 + VALIDATION) + 1.5)
        raise InputError(
            f"label: APD and nIPD need {needed} rows of each label in each center to train on, and one has {least}."
        )
    cells = [[_cut(train, test, n_base * parts, tested) for train, test in line] for line in pools]
    return n_base, cells


def _cut(train: NDArray[np.intp], test: NDArray[np.intp], most: int, tested: int) -> NDArray[np.intp]:
    return np.concatenate([train[: most + round(VALIDATION * most) + 1], test[:tested]])  # croma skips one row


def _schedule(n_base: int, n_centers: int, n_labels: int) -> list[tuple[list[tuple[int, int, int]], int]]:
    """Return, for each strength, the rows of each center and label; their sum is the same for all."""
    parts = min(n_centers, n_labels)
    return [
        (
            [
                (i, j, round(n_base * (1 + (parts - 1) * v if i % parts == j % parts else 1 - v)))
                for i in range(n_centers)
                for j in range(n_labels)
            ],
            n_base * parts,
        )
        for v in STRENGTHS
    ]
