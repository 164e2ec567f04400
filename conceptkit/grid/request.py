"""The request for a grid: read and checked before anything is trained, in a dry run as in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from conceptkit.errors import InputError, check_at_least, check_at_most, check_seeds, near_names
from conceptkit.families import RECIPES
from conceptkit.features.own_files import LAYER
from conceptkit.grid.plan import (
    PAPER,
    PAPER_WEIGHTINGS,
    RANDOM,
    SECOND_NETWORK,
    is_trained,
    models_of,
    plan_cells,
    with_balanced,
)
from conceptkit.guide.adapters import features_for
from conceptkit.guide.goals import Goal, concept_names
from conceptkit.guide.latent import refuse_latent
from conceptkit.guide.plan import make_plan
from conceptkit.guide.setup import concept_tasks
from conceptkit.guide.weighting import Weighting, parse_weighting
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.grid import Grid
from conceptkit.options.training import TrainingOptions
from conceptkit.records import GridCell
from conceptkit.runs.opening import open_source
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class GridRequest:
    """What is to be trained, and of which study."""

    options: Grid
    study: Study
    """With the concepts of the options"""
    second: tuple[str, ...]
    """The paper's other networks"""
    grid: str
    """``paper``, ``pairs``, ``list`` or ``none``"""
    cells: tuple[GridCell, ...]
    goals: tuple[Goal, ...]
    """Of all cells, each once, and those of curves and affinities"""
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    """Notes on the concepts that cannot be learned, which are among ``notes`` too"""


def read_request(study: Any, options: Grid) -> GridRequest:
    """Return the request that options make of a study; :class:`InputError` when they cannot be used."""
    _check_options(options)
    opened, table = open_source(options, study)
    if features_for(table, opened, options) is not None:
        opened = dataclasses.replace(
            opened, model=options.model or LAYER, weights=None if options.weights is None else str(options.weights)
        )
    if options.encourage is not None or options.discourage is not None:
        opened = dataclasses.replace(
            opened, encourage=tuple(options.encourage or ()), discourage=tuple(options.discourage or ())
        )
    if opened.model is None:
        raise InputError("model: no model given; set --model, or model in the study file.")
    if not isinstance(opened.model, str):
        raise InputError(
            "model: every process of a grid opens its network by name, got a torch module, "
            f"{opened.model_name}; write a function that makes it and give package.module:factory."
        )
    curves = bool(options.noise or options.fraction or options.affinity)
    if curves and not opened.encourage:
        raise InputError("encourage: curves and affinities need a concept to encourage, got none.")
    second, notes = _second_networks(models_of(options), opened)
    grid, cells = plan_cells(opened, options, weightings=_weightings(options), second=second)
    goals = _goals(cells, opened if curves else None)
    argument = "ablate" if grid != "none" else "encourage"
    for goal in goals:
        refuse_latent(argument, goal.concept, "in a grid")
        table.column(argument, goal.concept)
    goals, cells, skipped = _learnable(table, opened, goals, cells)
    _check_weightings(goals, cells)
    if _balance_main(options):
        cells = with_balanced(cells, lambda name: table.concept(name).kind == "categorical")
    return GridRequest(options, opened, tuple(second), grid, tuple(cells), goals, (*notes, *skipped), tuple(skipped))


def _balance_main(options: Grid) -> float:
    """Return the power of the balanced main loss: given, of the recipe, or the default."""
    if options.balance_main is not None:
        return options.balance_main
    return TrainingOptions(**RECIPES.choose("recipe", options.recipe)([])).balance_main


def _check_options(options: Grid) -> None:
    """Refuse options that are wrong whatever the table."""
    for name, levels in (("concept-noise", options.noise), ("concept-fraction", options.fraction)):
        for level in levels:
            check_at_least(name, level, 0)
            check_at_most(name, level, 1)
            if name == "concept-fraction" and level == 0:
                raise InputError(f"{name}: must be above 0, got 0; the grid always has a model without the concept.")
        if len(set(levels)) < len(levels):
            raise InputError(f"{name}: no level may be given twice, got {', '.join(f'{v:g}' for v in levels)}.")
    check_seeds(options.seeds)
    if options.weighting is not None:
        parse_weighting(options.weighting)


def _learnable(
    table: PatchTable, study: Study, goals: tuple[Goal, ...], cells: Sequence[GridCell]
) -> tuple[tuple[Goal, ...], list[GridCell], list[str]]:
    """Return goals and cells without the concepts that cannot be learned, and notes on these.

    Raises
    ------
    InputError
        when no concept can be learned, or no model is left
    """
    plan = make_plan(study, table, concepts=concept_names(goals))
    learned, notes = concept_tasks(table, plan, goals)
    lost = {goal.concept for goal in goals} - {task.name for task in learned}
    if not lost:
        return goals, list(cells), notes

    def concepts(cell: GridCell) -> set[str]:
        return {Goal.of(name, discouraged=False).concept for name in (*cell.encourage, *cell.discourage)}

    def models(some: Sequence[GridCell]) -> int:
        return sum(bool(concepts(cell)) and is_trained(cell) and not cell.control for cell in some)

    kept = [cell for cell in cells if not concepts(cell) & lost]
    named = ", ".join(sorted(lost))
    if models(cells) and not models(kept):
        raise InputError(f"ablate: no model is left without {named}. {notes[0]}")
    if len(kept) < len(cells):
        notes.append(f"Skipped: {len(cells) - len(kept)} of {len(cells)} models and controls, which need {named}.")
    return tuple(goal for goal in goals if goal.concept not in lost), kept, notes


def _weightings(options: Grid) -> tuple[str, ...]:
    """Return the weightings of a grid: those given, else that of the training options, else the paper's or ours."""
    if options.weightings is not None:
        if not options.weightings:
            raise InputError("weightings: at least one is needed, got none.")
        return tuple(dict.fromkeys(options.weightings))
    if options.weighting is not None:
        return (options.weighting,)
    return PAPER_WEIGHTINGS if models_of(options) == PAPER else ("uncertainty-bounded",)


def _second_networks(ablate: str | None, study: Study) -> tuple[list[str], list[str]]:
    """Return the paper's other networks if its first one is used, or a note that they are skipped."""
    if ablate != PAPER:
        return [], []
    if str(study.model).split(".")[0] == "inception_v3":
        return list(SECOND_NETWORK), []
    return [], [f"Models R1 and R8 (ResNet50 in addition to InceptionV3) are skipped, as the network is {study.model}."]


def _goals(cells: Iterable[GridCell], curves: Study | None) -> tuple[Goal, ...]:
    """Return the goals of all cells, each once, and those of curves and affinities."""
    of = [cell for cell in cells if is_trained(cell) and cell.control != RANDOM]
    pairs = [(cell.encourage, cell.discourage) for cell in of]
    pairs += [] if curves is None else [(curves.encourage, curves.discourage)]
    goals = [Goal.of(name, discouraged=k == 1) for pair in pairs for k in (0, 1) for name in pair[k]]
    return tuple(sorted(dict.fromkeys(goals), key=lambda goal: goal.discouraged))


def _check_weightings(goals: Sequence[Goal], cells: Iterable[GridCell]) -> None:
    """Refuse an unknown weighting before anything is trained."""
    known = [MAIN, *concept_names(goals)]
    for text in dict.fromkeys(cell.weighting for cell in cells if is_trained(cell)):
        for name in parse_weighting(text)[1]:
            if name not in known:
                raise InputError(f"weightings: there is no task {name!r}; {near_names(name, known)}.")
        Weighting([Task(name=MAIN, kind="categorical")], text)
