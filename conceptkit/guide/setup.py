"""Setting up a guided training: goals become tasks, rows, a backbone and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conceptkit.errors import InputError, check_seeds, near_names
from conceptkit.guide.adapters import features_for, opened_on
from conceptkit.guide.building import build_model
from conceptkit.guide.goals import Goal, concept_names
from conceptkit.guide.outline import trained_sentence
from conceptkit.guide.plan import Plan, concept_task, make_plan
from conceptkit.guide.prefix import frozen_layers
from conceptkit.guide.recipes import recipe_options
from conceptkit.guide.weighting import parse_weighting
from conceptkit.models.adapter import FEATURES
from conceptkit.models.backbones import Backbone
from conceptkit.models.checkpoints import checkpoint_notes, inside, mark_notes, open_model
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.options.guide import Guided
from conceptkit.options.shared import GIVEN
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.outliers import outlier_notes
from conceptkit.probe.usable import usable
from conceptkit.records import Note
from conceptkit.runs.opening import notes_on
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

ONLY_BASELINE = Note("baseline_only", "No concept was encouraged or discouraged: only the baseline was trained.")


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and how."""

    plan: Plan
    tasks: list[Task]
    """The main task first"""
    kept: int
    """Number of tasks of the baseline: the main task, and those that a checkpoint has already"""
    backbone: Backbone
    origin: GuidedModel | None
    """The guided network whose training is continued"""
    training: TrainingOptions
    notes: list[str]
    skipped: list[str]
    """Notes on the concepts that cannot be learned, which are among ``notes`` too"""
    trains: str
    """One sentence that says what is trained"""
    X: Any = None
    """(n used rows, d) features on which an adapter is trained; ``None`` for a network on images"""
    through: tuple[Task, ...] = ()
    """Concepts of a bottleneck"""


def set_up(
    study: Study,
    table: PatchTable,
    goals: Sequence[Goal],
    options: Guided,
    seeds: Sequence[int],
    *,
    transductive: bool = False,
    allow_leakage: bool = False,
) -> Setup:
    """Make the tasks of some goals, and refuse what cannot be trained.

    Parameters
    ----------
    goals : of all networks that are compared; one may encourage a concept that another discourages
    transductive, allow_leakage : see :func:`conceptkit.guide.plan.make_plan`

    Raises
    ------
    InputError
        for goals, options or seeds that cannot be used
    """
    names = concept_names(goals)
    for name in names:
        if name in (study.label, MAIN):
            raise InputError(f"encourage, discourage and through: {name} is the main task itself.")
    features = features_for(table, study, options)
    if study.model is None and features is None:
        raise InputError("model: no model given; set --model, or model in the study file.")
    check_seeds(seeds)
    plan = make_plan(study, table, concepts=names, transductive=transductive, allow_leakage=allow_leakage)
    learned, skipped = concept_tasks(table, plan, [goal for goal in goals if not goal.through])
    through = through_tasks(table, plan, [goal for goal in goals if goal.through])
    notes = [
        *notes_on(study, table, [*dict.fromkeys(t.name for t in [*learned, *through]), study.label]),
        *plan.notes,
        *skipped,
    ]
    # Only the rows that scale a concept matter: an outlier among the others does not compress its values.
    continuous = list(dict.fromkeys(task.name for task in [*learned, *through] if task.kind == "continuous"))
    notes += outlier_notes({name: table.concept(name).values[plan.scaled_on] for name in continuous})
    notes += [] if goals else [ONLY_BASELINE]
    X = None
    if features is None:
        opened = open_model(study.model, study.weights, seed=seeds[0])
        notes += checkpoint_notes(opened, table)
    else:
        [X] = features.read(plan.used).values()
        opened = opened_on(features, X, options)
        notes += [*features.notes(), *mark_notes(opened)]
    backbone, origin = inside(opened)
    if backbone.weights == GIVEN:
        notes.append(
            "The checkpoints of this run cannot be opened by themselves, as the network is a torch module given in "
            f"Python ({study.model_name}); train from package.module:factory for checkpoints that can be probed."
        )
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes), *learned]
    kept = 1
    if origin is not None:
        tasks, kept = _continued(origin, backbone, tasks), len(origin.tasks)
        notes.append(
            f"Training of {opened.name} continues: trunk, heads and scales are kept, in the baseline with the "
            "tasks it had, in the guided network with the added ones."
        )
    training, from_recipe = _training(options, backbone, origin, learned)
    _check_weighting(training, [task.name for task in tasks])
    notes += _training_notes(options, training, from_recipe, backbone, guided=len(tasks) > 1)
    notes += unbalanced_notes(table, plan, tasks) if training.balance or training.balance_main else []
    notes += thin_notes(study, table, plan, tasks)
    if training.augment and features is not None:
        raise InputError("augment: needs images, and an adapter is trained on features.")
    if training.augment and table.location is None:
        raise InputError("augment: needs the pixels of the patches, and the table does not say where they are.")
    network = build_model(backbone, _once_each(tasks), training, seed=0, origin=origin)
    trains = trained_sentence(network, backbone, training, chosen=options.unfreeze is not None)
    _check_layers(tasks, backbone, frozen_layers(network))
    return Setup(plan, tasks, kept, backbone, origin, training, notes, skipped, trains, X, through)


def _training(
    options: Guided, backbone: Backbone, origin: GuidedModel | None, learned: Sequence[Task]
) -> tuple[TrainingOptions, dict[str, Any]]:
    """Return the options of the training, checked, and those of them that the recipe sets."""
    discouraged = list(dict.fromkeys(task.name for task in learned if task.adversarial))
    given = options.overrides()
    stated = recipe_options(options.recipe, backbone, discouraged)
    if origin is not None:
        stated |= {"trunk": origin.trunk_widths, "dropout": origin.dropout}
    stated = {name: value for name, value in stated.items() if name not in given}
    training = TrainingOptions(**{**stated, **given})
    return training, stated


def _check_weighting(training: TrainingOptions, tasks: Sequence[str]) -> None:
    for name in parse_weighting(training.weighting)[1]:
        if name not in tasks:
            raise InputError(f"weighting: there is no task {name!r}; {near_names(name, tasks)}.")


def _check_layers(tasks: Sequence[Task], backbone: Backbone, frozen: Sequence[str]) -> None:
    """Refuse a head on a layer that no training changes."""
    for task in tasks:
        if task.layer is not None and backbone.layer(task.layer) in frozen:
            raise InputError(
                f"{_option(task)}: {task.name}@{task.layer} lies before every trained layer, so nothing would change; "
                f"unfreeze {task.layer} or a layer before it."
            )


def _training_notes(
    options: Guided, training: TrainingOptions, from_recipe: Mapping[str, Any], backbone: Backbone, *, guided: bool
) -> list[str]:
    notes = []
    if not training.unfreeze and options.unfreeze is None and backbone.architecture != FEATURES:
        notes.append(f"The last block of {backbone.name} is not known: no layer of the backbone was trained.")
    if options.recipe != "ours":
        shown = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in from_recipe.items()}
        notes.append(f"Recipe {options.recipe} set: {', '.join(f'{k} {v}' for k, v in shown.items())}.")
    if training.epochs <= training.warmup and guided:
        notes.append(
            f"Training ended after {training.epochs} epochs, not later than the warmup of {training.warmup} epochs: "
            "the last state is kept whatever its validation loss, and discouraging never reached its full strength."
        )
    return notes


def concept_tasks(table: PatchTable, plan: Plan, goals: Sequence[Goal]) -> tuple[list[Task], list[str]]:
    """Return the tasks of the concepts that can be learned from the rows, and notes on those that are skipped.

    Raises
    ------
    InputError
        when there are goals, and no concept can be learned
    """
    rows = np.concatenate([plan.training, plan.rows["val"]])

    def make(goal: Goal) -> Task:
        table.check_words(goal.concept)
        task = concept_task(table, goal.concept, plan.scaled_on, adversarial=goal.discouraged, layer=goal.layer)
        if task.kind == "continuous":
            infinite = int(np.isinf(table.concept(task.name).values[rows]).sum())
            if infinite:
                raise InputError(
                    f"concept: {task.name} is infinite in {infinite} of the rows that train or validate; leave "
                    "missing values empty."
                )
        return task

    return usable(goals, make)


def through_tasks(table: PatchTable, plan: Plan, goals: Sequence[Goal]) -> tuple[Task, ...]:
    """Return the tasks of the concepts of a bottleneck; :class:`InputError` if one of them cannot be learned."""
    found = []
    for goal in goals:
        try:
            found += concept_tasks(table, plan, [goal])[0]
        except InputError as error:
            raise InputError(f"through: {str(error).removeprefix('concept: ')}") from None
    return tuple(dataclasses.replace(task, through=True) for task in found)


def signed_names(tasks: Sequence[Task]) -> tuple[list[str], list[str]]:
    """Return the encouraged and the discouraged concepts of some tasks."""
    concepts = [task for task in tasks if task.name != MAIN]
    return [t.name for t in concepts if not t.adversarial], [t.name for t in concepts if t.adversarial]


def unbalanced_notes(table: PatchTable, plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Return a sentence for each discouraged class that has no training row of some label."""
    rows = plan.rows["train"][plan.codes[plan.rows["train"]] >= 0]
    notes = []
    for name in _discouraged_classes(tasks):
        values = table.concept(name).values[rows]
        for level in sorted({str(v) for v in values if v is not None}):
            present = {plan.classes[code] for code in plan.codes[rows][[str(v) == level for v in values]]}
            missing = [label for label in plan.classes if label not in present]
            if missing:
                notes.append(
                    f"{name} {level} has no training row of the label {' or '.join(missing)}: reweighting cannot "
                    f"balance {level}, which still predicts part of the label."
                )
    return notes


def thin_notes(study: Study, table: PatchTable, plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Return a sentence for each discouraged class with one training group, and for each with validation rows only."""
    notes, train, val = [], plan.training, plan.rows["val"]
    for name in _discouraged_classes(tasks):
        values = table.concept(name).values
        here, held = ({str(v) for v in values[rows] if v is not None} for rows in (train, val))
        for level in sorted(here) if study.group is not None else ():
            if len(np.unique(plan.groups[train][[str(v) == level for v in values[train]]])) == 1:
                notes.append(
                    f"{name} {level} has one {study.group} among the training rows: discouraging {level} cannot be "
                    f"distinguished from discouraging this {study.group}."
                )
        for level in sorted(held - here):
            notes.append(f"{name} {level} has validation rows and no training row: no adversary learns {level}.")
    return notes


def balance_notes(training: TrainingOptions, tasks: Sequence[Task]) -> list[str]:
    """Return a note when the main loss is balanced in some networks and not in others."""
    names = _discouraged_classes(tasks)
    if not training.balance_main or not names:
        return []
    return [
        f"The main loss of every network but baseline and through is balanced: its rows are reweighted towards "
        f"independence of label and {', '.join(names)} (balance_main {training.balance_main:g}); --balance-main 0 "
        "turns it off."
    ]


def _discouraged_classes(tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(t.name for t in tasks if t.adversarial and t.kind == "categorical"))


def _continued(origin: GuidedModel, backbone: Backbone, tasks: list[Task]) -> list[Task]:
    """Return the tasks of a checkpoint, then the new ones; refuse those that contradict the checkpoint."""
    known = {task.name: task for task in origin.tasks}
    main, *others = tasks
    if any(task.through for task in origin.tasks):
        raise InputError(
            "model: it is a concept bottleneck, whose training does not continue; name the network it reads."
        )
    if known[main.name].classes != main.classes:
        raise InputError(
            f"label: the checkpoint was trained on the classes {', '.join(known[main.name].classes)}, the table has "
            f"{', '.join(main.classes)}."
        )
    for task in others:
        old = known.get(task.name)
        if old is not None and (old.adversarial != task.adversarial or old.kind != task.kind):
            raise InputError(
                f"{_option(task)}: {task.name} was {_option(old)}d in the checkpoint, as a {old.kind} concept; train "
                "from the plain backbone to reverse its role."
            )
        if old is not None and task.layer is not None and backbone.layer(task.layer) != old.layer:
            raise InputError(
                f"{_option(task)}: the head of {task.name} in the checkpoint reads "
                f"{old.layer or 'the end of the trunk'}, got {task.layer}; train from the plain backbone to move it."
            )
    return [*origin.tasks, *(task for task in others if task.name not in known)]


def _option(task: Task) -> str:
    return "discourage" if task.adversarial else "encourage"


def _once_each(tasks: list[Task]) -> list[Task]:
    """Return tasks of distinct names: two networks may train one concept in two ways."""
    seen: set[str] = set()
    out = []
    for task in tasks:
        out.append(dataclasses.replace(task, name=f"{task.name} {len(seen)}") if task.name in seen else task)
        seen.add(out[-1].name)
    return out
