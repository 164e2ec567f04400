"""Selection of an arm and its options by training centers that are left out in turn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.intervals import jackknife_error
from conceptkit.evaluate.paired import Scored, scored_auc
from conceptkit.families import ARMS
from conceptkit.guide.arms import Conditions
from conceptkit.guide.bench import Arm, PatchBench, Places
from conceptkit.guide.endpoints import CENTER, has_centers
from conceptkit.guide.plan import Plan, concept_task
from conceptkit.guide.reading import Reading
from conceptkit.guide.training import DivergedError
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.base import Progress
from conceptkit.records.guide import Candidate, Selection, reference_of

MOST = 12
"""Maximum number of candidates"""

LEFT_OUT = "center left out"
"""Split of the rows of the center that is left out"""

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Choice:
    """An arm with the options that a selection varies."""

    arm: str
    layer: str | None
    strength: float
    augment: int

    @property
    def name(self) -> str:
        """Return the arm and what differs from a plain training of it."""
        parts = [self.layer, f"strength {self.strength:g}", f"augment {self.augment}" if self.augment else None]
        return ", ".join([self.arm, *(part for part in parts if part)])


def candidate_arms(given: Conditions) -> list[str]:
    """Return the arms that are tried where none is named."""
    ours = ("balanced", "guided", "through-balanced") if given.balanced_by else ("baseline", "guided", "through")
    return [name for name in (*ours, "hybrid") if name in ARMS and not ARMS[name].missing(given)]


def choices(
    arms: Sequence[str],
    layers: Sequence[str | None],
    strengths: Sequence[float],
    augments: Sequence[int],
    given: Conditions,
    *,
    of_store: bool = False,
) -> list[Choice]:
    """Return all combinations whose networks differ; :class:`InputError` for more than :data:`MOST`.

    Parameters
    ----------
    of_store : whether layers are those of a store, on which every arm depends, or those that a bottleneck reads
    """
    found = []
    for name in arms:
        tasks = ARMS[name].make(given).tasks
        own = strengths if any(task.adversarial for task in tasks) else strengths[:1]
        read = layers if of_store or any(task.through for task in tasks) else [None]
        found += list(itertools.starmap(Choice, itertools.product([name], read, own, augments)))
    if len(found) > MOST:
        raise InputError(
            f"select: at most {MOST} candidates, got {len(found)}; list fewer arms, layers, strengths or augmentations."
        )
    return found


def training_centers(bench: PatchBench) -> dict[str, NDArray[np.bool_]]:
    """Return training center → which rows of the table are of it (n,).

    Raises
    ------
    InputError
        when there are fewer than two, or validation rows of one center only
    """
    if not has_centers(bench.data):
        raise InputError(f"select: leave-one-center-out needs a column {CENTER!r} of the table; add it.")
    values = bench.data.concept(CENTER).values
    names = np.array(["" if v is None else str(v) for v in values], dtype=object)
    train, val = bench.plan.rows["train"], bench.plan.rows["val"]
    levels = sorted(set(names[train[bench.plan.codes[train] >= 0]]) - {""})
    if len(levels) < 2:
        found = f"got {levels[0]!r} only" if levels else "got none"
        raise InputError(f"select: leave-one-center-out needs at least two training centers, {found}.")
    for level in levels:
        if not (names[val] != level).any():
            raise InputError(f"select: all validation rows are of center {level!r}, so that none is left without it.")
    return {level: names == level for level in levels}


def without_center(plan: Plan, held: NDArray[np.bool_]) -> Plan:
    """Return the plan in which training and validation rows of a center are evaluated; no evaluation row is in it."""
    own = plan.without_evaluation
    rows = {name: members[~held[members]] for name, members in own.rows.items()}
    rows[LEFT_OUT] = np.sort(np.concatenate([members[held[members]] for members in own.rows.values()]))
    return dataclasses.replace(own, rows=rows, concept_rows=own.concept_rows[~held[own.concept_rows]])


def left_out_benches(bench: PatchBench) -> Iterator[tuple[str, PatchBench]]:
    """Yield each training center that has every class, with a bench on which it is left out.

    The bench reads what the given one has cached; its tasks are scaled without the center.
    """
    for center, held in training_centers(bench).items():
        plan = without_center(bench.plan, held)
        labels, rest = (plan.codes[plan.rows[split]] for split in (LEFT_OUT, "train"))
        if len({*labels} - {-1}) < 2 or {*labels} > {*rest}:
            continue
        tasks, through = (_tasks(bench, plan, own) for own in (bench.setup.tasks, bench.setup.through))
        setup = dataclasses.replace(bench.setup, tasks=tasks, through=tuple(through))
        reading = Reading(LEFT_OUT, plan.rows[LEFT_OUT], {}, {}, (), (), bench.reading.folds, ())
        yield center, dataclasses.replace(bench, plan=plan, setup=setup, reading=reading, whole=bench, progress=None)


def _tasks(bench: PatchBench, plan: Plan, tasks: Sequence[Task]) -> list[Task]:
    """Return tasks scaled by the training rows of a plan, without those that cannot be learned from them."""
    if bench.setup.origin is not None:
        return list(tasks)  # a checkpoint fixes scales and classes
    found = []
    for task in tasks:
        try:
            scaled = task if task.name == MAIN else _rescaled(bench, plan, task)
        except InputError:  # one center is left, which cannot be discouraged
            continue
        found.append(scaled)
    return found


def _rescaled(bench: PatchBench, plan: Plan, task: Task) -> Task:
    own = concept_task(bench.data, task.name, plan.scaled_on, adversarial=task.adversarial, layer=task.layer)
    return dataclasses.replace(task, classes=own.classes, mean=own.mean, deviation=own.deviation)


def select(
    candidates: Sequence[Choice],
    bench_of: Callable[[str | None], PatchBench],
    conditions: Callable[[PatchBench, Choice], Conditions],
    progress: Progress | None = None,
) -> Selection:
    """Train each candidate without each training center, and choose one by the mean AUC within the left-out centers.

    The reference, the first candidate of the arm that others are compared with, is kept unless another has a higher
    mean by more than one standard error of their difference over patients. Of those the one of highest mean is chosen.

    Parameters
    ----------
    bench_of : layer → bench of all rows
    conditions : bench and candidate → conditions of its arm

    Raises
    ------
    InputError
        when no center can be left out, or every training diverges
    """
    scored: dict[Choice, dict[str, Scored | None]] = {choice: {} for choice in candidates}
    for layer in dict.fromkeys(choice.layer for choice in candidates):
        own = [choice for choice in candidates if choice.layer == layer]
        benches = list(left_out_benches(bench_of(layer)))
        if not benches:
            raise InputError("select: no training center has rows of two classes, so that none can be scored.")
        steps = list(itertools.product(benches, own))
        for k, ((center, bench), choice) in enumerate(steps):
            if progress is not None:
                progress(f"selecting, {len(benches)} centers left out", k, len(steps))
            scored[choice][center] = _scored(bench, ARMS[choice.arm].make(conditions(bench, choice)))
        if progress is not None:
            progress(f"selecting, {len(benches)} centers left out", len(steps), len(steps))
    return chosen_of(scored)


def _scored(bench: PatchBench, arm: Arm) -> Scored | None:
    """Return the AUC within the left-out center, and without each patient; ``None`` if the training diverged."""
    try:
        run = arm.fit(bench, arm) if arm.fit is not None else bench.train(arm, Places(None)).run
    except DivergedError:
        return None
    rows = bench.plan.rows[LEFT_OUT]
    rows = rows[bench.plan.codes[rows] >= 0]
    groups = np.unique(bench.plan.groups[rows], return_inverse=True)[1]
    return scored_auc(bench.plan.codes[rows], run.probability[np.searchsorted(bench.used, rows)], groups)


def chosen_of(scored: Mapping[Choice, Mapping[str, Scored | None]]) -> Selection:
    """Return the selection among candidates, from their AUCs by center; see :func:`select`."""
    known = {choice: dict(of) for choice, of in scored.items() if all(one is not None for one in of.values())}
    if not known:
        raise InputError("select: every candidate diverged; a lower --lr may help.")
    kept = reference_of(list(dict.fromkeys(choice.arm for choice in known)))
    reference = next(choice for choice in known if choice.arm == kept)
    rows: dict[Choice, Candidate] = {}
    for choice, of in scored.items():
        mean = difference = error = float("nan")
        if choice in known:
            pairs = [(known[choice][center], known[reference][center]) for center in of]
            mean = float(np.mean([one.value for one, _ in pairs if one is not None]))
            difference = float(np.mean([one.value - other.value for one, other in pairs if one and other]))
            each = [jackknife_error(one.deleted - other.deleted) for one, other in pairs if one and other]
            error = float(np.sqrt(np.sum(np.square(each)))) / len(pairs)
        rows[choice] = Candidate(
            name=choice.name,
            arm=choice.arm,
            layer=choice.layer,
            strength=choice.strength,
            augment=choice.augment,
            auc=mean,
            centers={center: float("nan") if one is None else one.value for center, one in of.items()},
            difference=difference,
            error=error,
        )
    better = [choice for choice, row in rows.items() if row.difference > row.error]
    best = max(better, key=lambda choice: rows[choice].auc, default=reference)
    return Selection(
        method="leave-one-center-out",
        candidates=tuple(rows.values()),
        reference=reference.name,
        chosen=best.name,
    )
