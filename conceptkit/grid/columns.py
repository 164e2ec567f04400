"""Concept values of a grid's controls and curves: random, shuffled, exchanged in part, or kept in part."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.grid.plan import FRACTION, NOISE, RANDOM_TARGET, SHUFFLED
from conceptkit.guide.arms import scaled, shuffle
from conceptkit.models.guided import Task
from conceptkit.records import GridCell

Rows = dict[str, NDArray[np.intp]]
"""Split → positions of its rows"""


def altered(cell: GridCell, values: NDArray[Any], at: Rows, seed: int) -> NDArray[Any]:
    """Return the values (n,) of a concept as a cell trains on them.

    Parameters
    ----------
    values : (n,) numbers with NaN where missing, or objects with ``None`` where missing
    at : split → positions
    seed : of the run; another seed draws other rows

    Raises
    ------
    InputError
        when a fraction leaves no training row
    """
    out = values.copy()
    known = _known(values)
    if cell.control == SHUFFLED:
        out = shuffle(out, at, seed)
    if cell.curve == NOISE and cell.level:
        for k, rows in enumerate(at.values()):
            own = rows[known[rows]]
            rng = np.random.default_rng([seed, 2, k])
            _exchange(out, rng.permutation(own)[: round(cell.level * len(own))], rng)
    if cell.curve == FRACTION and cell.level is not None:
        for k, name in enumerate(("train", "val")):
            # One order for all concepts and fractions: an annotated image keeps all of its values.
            order = np.random.default_rng([seed, 3, k]).permutation(at[name])
            out[order[max(round(cell.level * len(order)), 1) :]] = np.nan if values.dtype.kind == "f" else None
        if not _known(out)[at["train"]].any():
            raise InputError(f"concept-fraction: {cell.level:g} leaves no training row with a value.")
    return out


def altered_task(cell: GridCell, task: Task, values: NDArray[Any], at: Rows) -> Task:
    """Return a task scaled by the training rows of a cell; one of shuffled values has another name."""
    if cell.control == SHUFFLED:  # its head has not learned the concept
        task = dataclasses.replace(task, name=f"{task.name}, shuffled")
    return scaled(task, values, at)


def random_target_task(values: NDArray[np.float64], at: Rows) -> Task:
    """Return the task of a random target."""
    return scaled(Task(name=RANDOM_TARGET, kind="continuous"), values, at)


def _exchange(values: NDArray[Any], rows: NDArray[np.intp], rng: np.random.Generator) -> None:
    values[rows] = values[rng.permutation(rows)]


def _known(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.array([v is not None and v == v for v in values], dtype=bool)
