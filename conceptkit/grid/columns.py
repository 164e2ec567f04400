"""Concept values as a grid's controls and curves have them: random, shuffled, exchanged in part, or kept in part."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.grid.plan import FRACTION, NOISE, RANDOM_TARGET, SHUFFLED
from conceptkit.records import GridCell

if TYPE_CHECKING:
    from conceptkit.models.guided import Task

Rows = dict[str, NDArray[np.intp]]
"""Split → positions of its rows"""


def altered(cell: GridCell, values: NDArray[Any], at: Rows, seed: int) -> NDArray[Any]:
    """Return a concept's values (n,) as the cell has them.

    Parameters
    ----------
    values : (n,) numbers with NaN where missing, or objects with ``None`` where missing
    at : split → positions
    seed : of the run: another seed draws other rows

    Raises
    ------
    InputError
        when a fraction leaves no training row
    """
    out = values.copy()
    known = _known(values)
    if cell.control == SHUFFLED:
        for k, rows in enumerate(at.values()):
            _exchange(out, rows[known[rows]], np.random.default_rng([seed, 1, k]))
    if cell.curve == NOISE and cell.level:
        for k, rows in enumerate(at.values()):
            own = rows[known[rows]]
            rng = np.random.default_rng([seed, 2, k])
            _exchange(out, rng.permutation(own)[: round(cell.level * len(own))], rng)
    if cell.curve == FRACTION and cell.level is not None:
        for k, name in enumerate(("train", "val")):
            # One order for all concepts and fractions: an annotated image has all its values, and stays annotated.
            order = np.random.default_rng([seed, 3, k]).permutation(at[name])
            out[order[max(round(cell.level * len(order)), 1) :]] = np.nan if values.dtype.kind == "f" else None
        if not _known(out)[at["train"]].any():
            raise InputError(f"concept-fraction: {cell.level:g} leaves no training row with a value.")
    return out


def random_values(n: int, seed: int) -> NDArray[np.float64]:
    """Return a value (n,) per row that no image can tell."""
    return np.random.default_rng([seed, 4]).normal(size=n)


def altered_task(task: Task, values: NDArray[Any], at: Rows) -> Task:
    """Return a task scaled by the training rows that the cell has, and named so that no reading takes it for others."""
    if task.kind != "continuous":
        return task
    own = values[at["train"]][np.isfinite(values[at["train"]])]
    return dataclasses.replace(task, mean=float(own.mean()), deviation=float(own.std()) or 1.0)


def control_task_name(cell: GridCell, concept: str) -> str:
    """Return the name of a control's task: its head has not learned the concept that it stands for."""
    return f"{concept}, shuffled" if cell.control == SHUFFLED else concept


def random_target_task(values: NDArray[np.float64], at: Rows) -> Task:
    """Return the task of a random-valued target."""
    from conceptkit.models.guided import Task

    own = values[at["train"]]
    return Task(name=RANDOM_TARGET, kind="continuous", mean=float(own.mean()), deviation=float(own.std()))


def _exchange(values: NDArray[Any], rows: NDArray[np.intp], rng: np.random.Generator) -> None:
    values[rows] = values[rng.permutation(rows)]


def _known(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.array([v is not None and v == v for v in values], dtype=bool)
