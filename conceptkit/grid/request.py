"""What a grid was asked for: read and checked before anything is trained, in a dry run as in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError, check_at_least, check_at_most, check_choice, check_seeds
from conceptkit.families import RECIPES
from conceptkit.grid.plan import (
    PAPER,
    PAPER_WEIGHTINGS,
    RANDOM_TARGET,
    SECOND_NETWORK,
    is_trained,
    plan_cells,
)
from conceptkit.guide.latent import refuse_latent
from conceptkit.guide.setup import Wish, concept_tasks
from conceptkit.records import GridCell
from conceptkit.runs.opening import open_study
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

PROTOCOLS = ("groups", "paper")
"""How models are compared: over groups alone, or by the paper's resamples of patches too"""


@dataclass(frozen=True)
class GridRequest:
    """What is to be trained, and of which study."""

    study: Study
    """With the concepts that were given beside it"""
    network: str
    second: tuple[str, ...]
    """The paper's other networks, where they are wanted"""
    grid: str
    """Name of the grid: ``paper``, ``pairs``, ``list`` or ``none``"""
    cells: tuple[GridCell, ...]
    wishes: tuple[Wish, ...]
    """Of all cells, each once; those of curves and affinities too"""
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    """Notes on the concepts that cannot be learned; they are among ``notes`` too"""


def read_request(
    study: Study | str | Path | None,
    *,
    ablate: str | None,
    weightings: Sequence[str] | None,
    controls: bool,
    noise: Sequence[float],
    fraction: Sequence[float],
    affinity: bool,
    protocol: str,
    encourage: Sequence[str] | None,
    discourage: Sequence[str] | None,
    table: str | Path | None,
    model: str | None,
    weights: str | None,
    group: str | None,
    categorical: Sequence[str],
    recipe: str,
    options: Mapping[str, Any] | None,
    seeds: Sequence[int],
) -> GridRequest:
    """Return what :func:`conceptkit.run_grid` was asked for.

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    check_choice("protocol", protocol, PROTOCOLS)
    _check_given(noise, fraction, seeds, recipe, options)
    meant, data = open_study(study, table, model, weights, group, categorical)
    meant = _with_wishes(meant, encourage, discourage)
    curves = bool(noise or fraction or affinity)
    network = _network(meant, curves=curves)
    weightings = _weightings(ablate, weightings, dict(options or {}).get("weighting"))
    second, notes = _second_networks(ablate, meant)
    grid, cells = plan_cells(
        ablate,
        meant,
        model=network,
        second=second,
        weightings=weightings,
        controls=controls,
        noise=noise,
        fraction=fraction,
        encourage=meant.encourage,
        discourage=meant.discourage,
    )
    wishes = _wishes(cells, meant if curves else None)
    _check_columns(data, grid, wishes)
    wishes, cells, skipped = _learnable(data, meant, wishes, cells)
    _check_weightings(wishes, cells)
    return GridRequest(meant, network, tuple(second), grid, tuple(cells), wishes, (*notes, *skipped), tuple(skipped))


def _check_given(
    noise: Sequence[float],
    fraction: Sequence[float],
    seeds: Sequence[int],
    recipe: str,
    options: Mapping[str, Any] | None,
) -> None:
    """Refuse what can be told to be wrong before a table is read, in a dry run as in a run."""
    from conceptkit.guide.options import TrainingOptions

    for name, levels in (("concept-noise", noise), ("concept-fraction", fraction)):
        for level in levels:
            check_at_least(name, level, 0)
            check_at_most(name, level, 1)
            if name == "concept-fraction" and level == 0:
                raise InputError(f"{name}: must be above 0, got 0; a model without the concept is in the grid anyway.")
        if len(set(levels)) < len(levels):
            raise InputError(f"{name}: no level may be given twice, got {', '.join(f'{v:g}' for v in levels)}.")
    check_seeds(seeds)
    RECIPES.check("recipe", recipe)
    TrainingOptions(**(options or {})).check()


def _network(meant: Study, *, curves: bool) -> str:
    """Return the network, and refuse a study that names no network, or no concept where curves need one."""
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    if curves and not meant.encourage:
        raise InputError("encourage: curves and affinities need a concept to encourage, none is named.")
    return meant.model


def _check_columns(data: PatchTable, grid: str, wishes: Iterable[Wish]) -> None:
    """Refuse concepts that the table does not have."""
    argument = "ablate" if grid != "none" else "encourage"
    for wish in wishes:
        refuse_latent(argument, wish.concept, "in a grid")
        data.column(argument, wish.concept)


def _learnable(
    data: PatchTable, meant: Study, wishes: tuple[Wish, ...], cells: Sequence[GridCell]
) -> tuple[tuple[Wish, ...], list[GridCell], list[str]]:
    """Return wishes and cells without the concepts that cannot be learned, and notes on these.

    Raises
    ------
    InputError
        when no concept can be learned, or no model is left
    """
    from conceptkit.guide.plan import make_plan, read_wish

    plan = make_plan(meant, data, concepts=list(dict.fromkeys(wish.concept for wish in wishes)))
    learned, notes = concept_tasks(data, plan, wishes)
    lost = {wish.concept for wish in wishes} - {task.name for task in learned}
    if not lost:
        return wishes, list(cells), notes

    def concepts(cell: GridCell) -> set[str]:
        return {read_wish(name)[0] for name in (*cell.encourage, *cell.discourage)}

    def models(some: Sequence[GridCell]) -> int:
        return sum(bool(concepts(cell)) and is_trained(cell) and not cell.control for cell in some)

    kept = [cell for cell in cells if not concepts(cell) & lost]
    named = ", ".join(sorted(lost))
    if models(cells) and not models(kept):
        raise InputError(f"ablate: no model is left without {named}. {notes[0]}")
    if len(kept) < len(cells):
        notes.append(f"Skipped: {len(cells) - len(kept)} of {len(cells)} models and controls, which name {named}.")
    return tuple(wish for wish in wishes if wish.concept not in lost), kept, notes


def _with_wishes(meant: Study, encourage: Sequence[str] | None, discourage: Sequence[str] | None) -> Study:
    if encourage is None and discourage is None:
        return meant
    return dataclasses.replace(meant, encourage=tuple(encourage or ()), discourage=tuple(discourage or ()))


def _weightings(ablate: str | None, given: Sequence[str] | None, stated: str | None) -> tuple[str, ...]:
    """Return the weightings of a grid: those given, else that of the options, else the paper's or ours."""
    if given is not None:
        if not given:
            raise InputError("weightings: at least one is needed, got none.")
        return tuple(dict.fromkeys(given))
    if stated is not None:
        return (stated,)
    return PAPER_WEIGHTINGS if ablate == PAPER else ("uncertainty-bounded",)


def _second_networks(ablate: str | None, meant: Study) -> tuple[list[str], list[str]]:
    """Return the paper's other networks, where its first one is in use, and what has to be said otherwise."""
    if ablate != PAPER:
        return [], []
    if str(meant.model).split(".")[0] == "inception_v3":
        return list(SECOND_NETWORK), []
    return [], [
        f"Models R1 and R8 are ResNet50's beside InceptionV3's; {meant.model} is neither, so they are left out."
    ]


def _wishes(cells: Iterable[GridCell], curves: Study | None) -> tuple[Wish, ...]:
    """Return what all cells wish for, each once; that of curves and affinities too."""
    from conceptkit.guide.plan import read_wish

    found: dict[Wish, None] = {}
    for cell in cells:
        if not is_trained(cell) or cell.control == RANDOM_TARGET:
            continue
        for names, discouraged in ((cell.encourage, False), (cell.discourage, True)):
            found |= {Wish(*read_wish(name), discouraged): None for name in names}
    if curves is not None:
        found |= {Wish(*read_wish(name), False): None for name in curves.encourage}
        found |= {Wish(*read_wish(name), True): None for name in curves.discourage}
    # Encouraged ones first, as read_wishes has them.
    return tuple(sorted(found, key=lambda wish: wish.discouraged))


def _check_weightings(wishes: Iterable[Wish], cells: Iterable[GridCell]) -> None:
    """Refuse a weighting that is not known before anything is trained."""
    from conceptkit.errors import near_names
    from conceptkit.guide.weighting import Weighting, parse_weighting
    from conceptkit.models.guided import MAIN, Task

    known = [MAIN, *dict.fromkeys(wish.concept for wish in wishes)]
    for text in dict.fromkeys(cell.weighting for cell in cells if is_trained(cell)):
        for name in parse_weighting(text)[1]:
            if name not in known:
                raise InputError(f"weightings: there is no task {name!r}; {near_names(name, known)}.")
        Weighting([Task(name=MAIN, kind="categorical")], text)
