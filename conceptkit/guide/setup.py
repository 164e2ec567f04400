"""Setting up a guided training: what is wished for becomes tasks, rows, a backbone and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_distinct, check_seeds, near_names
from conceptkit.records import Note
from conceptkit.runs.opening import notes_on
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.plan import Plan
    from conceptkit.models.backbones import Backbone
    from conceptkit.models.guided import GuidedModel, Task


class Wish(NamedTuple):
    """One concept that a network is to know, or not to know."""

    concept: str
    layer: str | None
    """Whose output the head reads; ``None`` for the trunk's end"""
    discouraged: bool

    @property
    def name(self) -> str:
        """Return the concept as an option names it, such as ``count@mixed5``."""
        return self.concept if self.layer is None else f"{self.concept}@{self.layer}"


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and how."""

    plan: Plan
    tasks: list[Task]
    """The main task first"""
    kept: int
    """How many of them the baseline has too: the main task, and what a checkpoint knows already"""
    backbone: Backbone
    origin: GuidedModel | None
    """The guided network whose training goes on"""
    training: TrainingOptions
    notes: list[str]
    skipped: list[str]
    """Notes on the concepts that cannot be learned; they are among ``notes`` too"""
    trains: str
    """In one sentence, what is trained"""


def read_wishes(encourage: Sequence[str] | None, discourage: Sequence[str] | None) -> list[Wish]:
    """Return what is wished of ``CONCEPT`` and ``CONCEPT@LAYER``, encouraged ones first; no concept twice.

    Raises
    ------
    InputError
        when a concept is named twice
    """
    from conceptkit.guide.plan import read_wish

    wishes = [Wish(*read_wish(text), False) for text in encourage or ()]
    wishes += [Wish(*read_wish(text), True) for text in discourage or ()]
    if wishes:
        check_distinct("encourage and discourage", [wish.concept for wish in wishes])
    return wishes


def set_up(
    meant: Study,
    data: PatchTable,
    wishes: Sequence[Wish],
    recipe: str,
    options: Mapping[str, Any] | None,
    seeds: Sequence[int],
    *,
    transductive: bool = False,
    allow_leakage: bool = False,
) -> Setup:
    """Make the tasks that are wished for, and refuse what cannot be trained.

    Parameters
    ----------
    wishes : of all networks that will be compared; one concept may be encouraged in one and discouraged in another
    recipe : fills in what ``options`` do not name
    transductive, allow_leakage : see :func:`conceptkit.guide.plan.make_plan`

    Raises
    ------
    InputError
        for wishes, options or seeds that cannot be
    """
    from conceptkit.guide.building import build_model
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.outline import trained_sentence
    from conceptkit.guide.plan import make_plan
    from conceptkit.guide.prefix import frozen_layers
    from conceptkit.guide.recipes import recipe_options
    from conceptkit.guide.weighting import parse_weighting
    from conceptkit.models.checkpoints import checkpoint_notes, inside, open_model
    from conceptkit.models.guided import MAIN, Task
    from conceptkit.pathology.outliers import outlier_notes

    names = list(dict.fromkeys(wish.concept for wish in wishes))
    for name in names:
        if name in (meant.label, MAIN):
            raise InputError(f"encourage and discourage: {name} is the main task itself.")
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    check_seeds(seeds)
    plan = make_plan(meant, data, concepts=names, transductive=transductive, allow_leakage=allow_leakage)
    learned, skipped = concept_tasks(data, plan, wishes)
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes), *learned]
    names = list(dict.fromkeys(task.name for task in learned))
    notes = [*notes_on(meant, data, [*names, meant.label]), *plan.notes, *skipped]
    # Of the rows that a concept's scale comes from: an outlier among the others crushes nothing.
    continuous = [task.name for task in learned if task.kind == "continuous"]
    notes += outlier_notes({name: data.concept(name).values[plan.scaled_on] for name in continuous})
    if not wishes:
        notes.append(Note("baseline_only", "No concept was encouraged or discouraged: only the baseline was trained."))
    backbone, origin = inside(open_model(meant.model, meant.weights, seed=seeds[0]))
    notes += checkpoint_notes(backbone, data)
    kept = 1
    if origin is not None:
        tasks = _continued(origin, backbone, tasks)
        kept = len(origin.tasks)
        notes.append(
            f"Training of {meant.model} goes on: trunk, heads and scales are kept, in the baseline with the tasks it "
            "had, in the guided network with what was added."
        )
    discouraged = list(dict.fromkeys(task.name for task in learned if task.adversarial))
    given = dict(options or {})
    set_by_recipe = {k: v for k, v in recipe_options(recipe, backbone, discouraged).items() if k not in given}
    if origin is not None:
        set_by_recipe |= {k: v for k, v in _shape(origin).items() if k not in given}
    training = TrainingOptions(**{**set_by_recipe, **given})
    training.check()
    for name in parse_weighting(training.weighting)[1]:
        known = [task.name for task in tasks]
        if name not in known:
            raise InputError(f"weighting: there is no task {name!r}; {near_names(name, known)}.")
    if not training.unfreeze and "unfreeze" not in given:
        notes.append(f"The last block of {meant.model} is not known: no layer of the backbone was trained.")
    if recipe != "ours":
        stated = ", ".join(f"{k} {_shown(v)}" for k, v in set_by_recipe.items())
        notes.append(f"Recipe {recipe} set: {stated}.")
    if training.epochs <= training.warmup and len(tasks) > 1:
        notes.append(
            f"epochs {training.epochs} end no later than the schedule of {training.warmup} epochs (warmup): the last "
            "state is kept whatever its validation loss, and the discouragement never reached its strength."
        )
    notes += unbalanced_notes(data, plan, tasks) if training.balance or training.balance_main else []
    network = build_model(backbone, _once_each(tasks), training, seed=0, origin=origin)
    trains = trained_sentence(network, backbone, training, chosen="unfreeze" in given)
    frozen = frozen_layers(network)
    for task in tasks:
        if task.layer is not None and backbone.layer(task.layer) in frozen:
            raise InputError(
                f"{'discourage' if task.adversarial else 'encourage'}: {task.name}@{task.layer} lies before every "
                f"layer that is trained, so that nothing would change; unfreeze {task.layer} or a layer before it."
            )
    return Setup(plan, tasks, kept, backbone, origin, training, notes, skipped, trains)


def concept_tasks(data: PatchTable, plan: Plan, wishes: Sequence[Wish]) -> tuple[list[Task], list[str]]:
    """Return the tasks of the concepts that the rows can teach, and notes on those that are skipped.

    Raises
    ------
    InputError
        when there are concepts, and none can be learned
    """
    from conceptkit.guide.plan import concept_task
    from conceptkit.probe.usable import usable

    rows = np.concatenate([plan.training, plan.rows["val"]])

    def make(wish: Wish) -> Task:
        data.check_words(wish.concept)
        task = concept_task(data, wish.concept, plan.scaled_on, adversarial=wish.discouraged, layer=wish.layer)
        _check_finite(data, task, rows)
        return task

    return usable(wishes, make)


def unbalanced_notes(data: PatchTable, plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Return a sentence for each discouraged class whose training rows have no row of some label."""
    rows = plan.rows["train"][plan.codes[plan.rows["train"]] >= 0]
    notes = []
    for name in dict.fromkeys(t.name for t in tasks if t.adversarial and t.kind == "categorical"):
        values = data.concept(name).values[rows]
        for level in sorted({str(v) for v in values if v is not None}):
            there = {plan.classes[code] for code in plan.codes[rows][[str(v) == level for v in values]]}
            missing = [one for one in plan.classes if one not in there]
            if missing:
                notes.append(
                    f"{name} {level} has no training row of the label {' or '.join(missing)}: reweighting cannot "
                    f"balance {level}, which still tells part of the label."
                )
    return notes


def _check_finite(data: PatchTable, task: Task, rows: NDArray[np.intp]) -> None:
    """Refuse infinite values among the rows that train and validate: they are no measurements, and not missing."""
    if task.kind == "continuous":
        infinite = int(np.isinf(data.concept(task.name).values[rows]).sum())
        if infinite:
            raise InputError(
                f"concept: {task.name} is infinite in {infinite} of the rows that train or validate; leave empty "
                "what was not measured."
            )


def balance_notes(training: TrainingOptions, tasks: Sequence[Task]) -> list[str]:
    """Return what has to be said when some networks weigh the rows of the main loss and others do not."""
    names = list(dict.fromkeys(t.name for t in tasks if t.adversarial and t.kind == "categorical"))
    if not training.balance_main or not names:
        return []
    return [
        "The main loss of the guided network, and of it alone, weighs rows towards independence of label and "
        f"{', '.join(names)} (balance_main {training.balance_main:g}): part of what discouraging does; "
        "--balance-main 0 leaves it out."
    ]


def _continued(origin: GuidedModel, backbone: Backbone, wanted: list[Task]) -> list[Task]:
    """Return the tasks of a checkpoint, then those that are new to it.

    Raises
    ------
    InputError
        when the main task has other classes, or a wish contradicts what the checkpoint has
    """
    known = {task.name: task for task in origin.tasks}
    main, *wishes = wanted
    if known[main.name].classes != main.classes:
        raise InputError(
            f"label: the checkpoint was trained on the classes {', '.join(known[main.name].classes)}, the table has "
            f"{', '.join(main.classes)}."
        )
    for task in wishes:
        old = known.get(task.name)
        if old is not None and (old.adversarial != task.adversarial or old.kind != task.kind):
            was = "discouraged" if old.adversarial else "encouraged"
            raise InputError(
                f"{'discourage' if task.adversarial else 'encourage'}: {task.name} was {was} in the checkpoint, as a "
                f"{old.kind} concept; train from the plain backbone to turn it round."
            )
        if old is not None and task.layer is not None and backbone.layer(task.layer) != old.layer:
            raise InputError(
                f"{'discourage' if task.adversarial else 'encourage'}: the head of {task.name} in the checkpoint reads "
                f"{old.layer or 'the end of the trunk'}, got {task.layer}; train from the plain backbone to move it."
            )
    return [*origin.tasks, *(task for task in wishes if task.name not in known)]


def _once_each(tasks: list[Task]) -> list[Task]:
    """Return tasks of distinct names: one concept may be wished for in two ways, by two networks."""
    seen: set[str] = set()
    out = []
    for task in tasks:
        out.append(dataclasses.replace(task, name=f"{task.name} {len(seen)}") if task.name in seen else task)
        seen.add(out[-1].name)
    return out


def _shape(origin: GuidedModel) -> dict[str, Any]:
    return {"trunk": origin.trunk_widths, "dropout": origin.dropout}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
