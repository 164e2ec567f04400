"""Arms: the networks that ``guide`` trains next to each other, each different from another in one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_distinct
from conceptkit.families import ARMS
from conceptkit.guide.bench import Arm
from conceptkit.guide.frozen import fit_frozen
from conceptkit.guide.plan import Plan
from conceptkit.models.guided import CATEGORICAL, Task
from conceptkit.options.training import TrainingOptions
from conceptkit.tables.patches import PatchTable

ALL = "all"
"""Stands for every arm that can be trained"""

COPIES = 4
"""Re-stained copies of each training patch in the arm ``augmented``"""


@dataclass(frozen=True)
class Conditions:
    """What the arms of one seed have in common."""

    tasks: Sequence[Task]
    """The main task first"""
    kept: int
    """Number of tasks of a single-task network: the main task, and those that a checkpoint has already"""
    options: TrainingOptions
    seed: int
    values: Callable[[str], NDArray[Any]]
    """From a concept to its values (n used rows,)"""
    rows: Mapping[str, NDArray[np.intp]]
    """Split → positions among the used rows"""
    n: int
    """Number of used rows"""
    pixels: bool = True
    """Whether the rows have pixels"""
    through: Sequence[Task] = ()
    """Concepts of a bottleneck"""
    continued: bool = False
    """Whether training continues from a checkpoint, whose trunk is kept"""
    joint: bool = False
    """Whether a bottleneck is trained as a whole"""
    residual: float | None = None
    """Penalty λ of a path past the bottleneck; ``None`` without such an arm"""

    @classmethod
    def of(
        cls,
        data: PatchTable,
        plan: Plan,
        tasks: Sequence[Task],
        kept: int,
        options: TrainingOptions,
        seed: int,
        **more: Any,
    ) -> Conditions:
        """Return the conditions of a table's rows."""
        rows = {name: np.searchsorted(plan.used, own) for name, own in {**plan.rows, "train": plan.training}.items()}
        used = data.select(plan.used)

        def values(concept: str) -> NDArray[Any]:
            return used.concept(concept).values

        return cls(tasks, kept, options, seed, values, rows, len(used), data.location is not None, **more)

    @property
    def balanced_by(self) -> tuple[Task, ...]:
        """Return the discouraged categories by which the main loss is balanced."""
        found = (t for t in self.tasks if t.adversarial and t.kind == CATEGORICAL)
        return tuple(found) if self.options.balance_main else ()

    def arm(self, name: str, tasks: Sequence[Task], **more: Any) -> Arm:
        """Return an arm with the balanced main loss."""
        return Arm(name, tasks, **{"options": self.options, "seed": self.seed, "balanced_by": self.balanced_by, **more})


Missing = Callable[[Conditions], str]
"""From conditions to what an arm needs and does not get, as a clause after its name; empty if nothing is missing"""


@dataclass(frozen=True)
class ArmKind:
    """A member of the family of arms."""

    make: Callable[[Conditions], Arm]
    meaning: str
    missing: Missing
    default: bool = False
    """Whether a plain ``guide`` trains it, where nothing is missing for it"""


def as_arm(
    meaning: str, *, missing: Missing = lambda given: "", default: bool = False
) -> Callable[[Callable[[Conditions], Arm]], ArmKind]:
    """Return a decorator that makes an arm of a function from conditions to what is trained."""
    return lambda make: ArmKind(make, meaning, missing, default)


def no_balance(given: Conditions) -> str:
    """Return what is missing for a balanced main loss; empty if nothing is."""
    return "" if given.balanced_by else "needs a discouraged category and --balance-main above 0"


def _no_concept(given: Conditions) -> str:
    return "" if len(given.tasks) > given.kept else "needs a concept to encourage or discourage"


def _no_encouraged(given: Conditions) -> str:
    wanted = any(not task.adversarial for task in given.tasks[given.kept :])
    return "" if wanted else "needs a concept to encourage"


def _no_pixels(given: Conditions) -> str:
    return "" if given.pixels else "needs the pixels of the patches, and the table does not say where they are"


@as_arm("the main task only, with the plain main loss", default=True)
def baseline(given: Conditions) -> Arm:
    """Return the single-task network."""
    return given.arm("baseline", given.tasks[: given.kept], balanced_by=())


@as_arm("the main task only, with the balanced main loss", missing=no_balance, default=True)
def balanced(given: Conditions) -> Arm:
    """Return the single-task network whose main loss is that of the guided one."""
    return given.arm("balanced", given.tasks[: given.kept])


@as_arm("the main task only, with re-stained copies of the training patches", missing=_no_pixels)
def augmented(given: Conditions) -> Arm:
    """Return the single-task network with stain augmentation."""
    options = dataclasses.replace(given.options, augment=given.options.augment or COPIES)
    return given.arm("augmented", given.tasks[: given.kept], options=options)


@as_arm("the main task and the concepts", missing=_no_concept, default=True)
def guided(given: Conditions) -> Arm:
    """Return the guided network."""
    return given.arm("guided", given.tasks)


@as_arm("guided, with a random target in place of each encouraged concept", missing=_no_encouraged)
def random_target(given: Conditions) -> Arm:
    """Return the guided network whose encouraged values nothing predicts."""
    columns, tasks = {}, list(given.tasks)
    for k, task in enumerate(tasks):
        if k >= given.kept and not task.adversarial:
            name = f"{task.name}, random"
            columns[name] = random_values(given.n, given.seed, k)
            tasks[k] = scaled(Task(name=name, kind="continuous", layer=task.layer), columns[name], given.rows)
    return given.arm("random", tasks, columns=columns)


@as_arm("guided, with the values of each encouraged concept shuffled among the rows of a split", missing=_no_encouraged)
def shuffled(given: Conditions) -> Arm:
    """Return the guided network whose encouraged values belong to other rows."""
    columns, tasks = {}, list(given.tasks)
    for k, task in enumerate(tasks):
        if k >= given.kept and not task.adversarial:
            name = f"{task.name}, shuffled"  # its head has not learned the concept
            columns[name] = shuffle(given.values(task.name), given.rows, given.seed)
            tasks[k] = scaled(dataclasses.replace(task, name=name), columns[name], given.rows)
    return given.arm("shuffled", tasks, columns=columns)


@as_arm("logistic regression on the pooled features of the untrained network; it has no checkpoint")
def logistic(given: Conditions) -> Arm:
    """Return the logistic regression on frozen features."""
    return given.arm("logistic", given.tasks[:1], fit=fit_frozen)


def choose_arms(names: Sequence[str] | None, given: Conditions) -> tuple[list[str], list[str]]:
    """Return the names of the arms to train in the order of the family, and notes on those that ``all`` skips.

    Parameters
    ----------
    names : of arms, or ``all``; ``None`` for those of a plain ``guide``

    Raises
    ------
    InputError
        when something is missing for a named arm, or an arm is named twice
    """
    if names is None:
        return [name for name, kind in ARMS.items() if kind.default and not kind.missing(given)], []
    check_distinct("arms", names)
    every = ALL in names
    missing = {name: ARMS[name].missing(given) for name in ARMS if every or name in names}
    notes = [f"Arm {name} was skipped: it {why}." for name, why in missing.items() if why]
    if not every:
        for name, why in missing.items():
            if why:
                raise InputError(f"arms: {name} {why}.")
    return [name for name, why in missing.items() if not why], notes


def random_values(n: int, *seeds: int) -> NDArray[np.float64]:
    """Return random values (n,), which no image predicts."""
    return np.random.default_rng([*seeds, 4]).normal(size=n)


def shuffle(values: NDArray[Any], rows: Mapping[str, NDArray[np.intp]], seed: int) -> NDArray[Any]:
    """Return values (n,) permuted among the known ones of each split."""
    out = values.copy()
    known = np.array([v is not None and v == v for v in values], dtype=bool)
    for k, own in enumerate(rows.values()):
        place = own[known[own]]
        out[place] = out[np.random.default_rng([seed, 1, k]).permutation(place)]
    return out


def scaled(task: Task, values: NDArray[Any], rows: Mapping[str, NDArray[np.intp]]) -> Task:
    """Return a task scaled by values (n,) of its training rows; a category as it is."""
    if task.kind == CATEGORICAL:
        return task
    own = values[rows["train"]]
    own = own[np.isfinite(own)]
    return dataclasses.replace(task, mean=float(own.mean()), deviation=float(own.std()) or 1.0)
