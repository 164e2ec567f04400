"""Arms whose main head reads predicted concepts only, and their controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.guide.arms import Conditions, as_arm, no_balance, random_values, scaled, shuffle
from conceptkit.guide.bench import Arm
from conceptkit.guide.bottleneck import fit_bottleneck, fit_components
from conceptkit.models.guided import Task


def _no_through(given: Conditions) -> str:
    return "" if given.through else "needs --through with the concepts that the main head may read"


def _no_through_balance(given: Conditions) -> str:
    return _no_through(given) or no_balance(given)


def _no_residual(given: Conditions) -> str:
    if given.residual is None:
        return _no_through(given) or "needs --residual with the penalty of the path past the concepts"
    return _no_through(given) or ("is fitted with --bottleneck sequential only" if given.joint else "")


def _arm(
    given: Conditions,
    name: str,
    concepts: Sequence[Task],
    *,
    columns: Mapping[str, NDArray[Any]] | None = None,
    **more: Any,
) -> Arm:
    """Return an arm with a bottleneck of some concepts: fitted on the network as it is, or trained as a whole."""
    if given.joint:
        named = {task.name for task in concepts}
        tasks = [*given.tasks[:1], *concepts, *(task for task in given.tasks[1:] if task.name not in named)]
        return given.arm(name, tasks, columns=columns or {}, **more)
    return _fitted(given, name, concepts, columns=columns or {}, **{"solve": fit_bottleneck, **more})


def _fitted(given: Conditions, name: str, concepts: Sequence[Task], *, residual: bool = False, **more: Any) -> Arm:
    """Return an arm that is fitted on the network as it is: no dense layer is between its features and the heads."""
    kept = given.options.trunk if given.continued else ()
    main = dataclasses.replace(given.tasks[0], residual=residual)
    return given.arm(name, [main, *concepts], options=dataclasses.replace(given.options, trunk=kept), **more)


@as_arm("the main head reads only predicted concepts, with the plain main loss", missing=_no_through, default=True)
def through(given: Conditions) -> Arm:
    """Return the bottleneck with the main loss of the baseline."""
    return _arm(given, "through", given.through, balanced_by=())


@as_arm("through, with the balanced main loss", missing=_no_through_balance, default=True)
def through_balanced(given: Conditions) -> Arm:
    """Return the bottleneck with the main loss of the arm ``balanced``."""
    return _arm(given, "through-balanced", given.through)


@as_arm("through, with as many principal components of the features in place of concepts", missing=_no_through,
        default=True)  # fmt: skip
def components(given: Conditions) -> Arm:
    """Return the control of capacity: the same layers, the same number of columns, and no concept."""
    own: list[Task] = []
    for task in given.through:
        for _ in range(task.columns):
            own.append(Task(name=f"component {len(own) + 1}", kind="continuous", layer=task.layer, through=True))
    columns = {task.name: np.full(given.n, np.nan) for task in own}  # they have no values to learn
    return _fitted(given, "components", own, columns=columns, solve=fit_components)


@as_arm("through, with a penalised path from the features to the main head", missing=_no_residual, default=True)
def hybrid(given: Conditions) -> Arm:
    """Return the bottleneck with a residual path."""
    return _fitted(given, "hybrid", given.through, residual=True, solve=fit_bottleneck, penalty=given.residual)


@as_arm("through, with a random target in place of each concept", missing=_no_through)
def through_random(given: Conditions) -> Arm:
    """Return the bottleneck of values that nothing predicts."""
    columns, tasks = {}, []
    for k, task in enumerate(given.through):
        name = f"{task.name}, random"
        columns[name] = random_values(given.n, given.seed, k)
        own = Task(name=name, kind="continuous", layer=task.layer, through=True)
        tasks.append(scaled(own, columns[name], given.rows))
    return _arm(given, "through-random", tasks, columns=columns)


@as_arm("through, with the values of each concept shuffled among the rows of a split", missing=_no_through)
def through_shuffled(given: Conditions) -> Arm:
    """Return the bottleneck of values that belong to other rows."""
    columns, tasks = {}, []
    for task in given.through:
        name = f"{task.name}, shuffled"
        columns[name] = shuffle(given.values(task.name), given.rows, given.seed)
        tasks.append(scaled(dataclasses.replace(task, name=name), columns[name], given.rows))
    return _arm(given, "through-shuffled", tasks, columns=columns)
