"""The commands ``guide`` and ``grid``; ``guide`` with an option of ``grid``, such as ``--ablate``, is ``grid``."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from conceptkit.cli.command import command_line
from conceptkit.cli.console import show_record
from conceptkit.errors import InputError
from conceptkit.options.base import Command
from conceptkit.options.grid import Grid
from conceptkit.options.guide import VARIED, Guide, Guided

if TYPE_CHECKING:
    from conceptkit.guide.outline import Outline

MAKING_A_GRID = ("ablate", "noise", "fraction", "affinity")
"""Options of ``grid`` with which ``guide`` is ``grid``"""


def guide_or_grid(**given: Any) -> Command:
    """Return a grid when an option makes one, else a guide; refuse options of the other command."""
    shared = {field.name for field in fields(Guided)}
    of_grid, of_guide = (_other_than_default(cls, given, shared) for cls in (Grid, Guide))
    if of_grid.keys() & set(MAKING_A_GRID):
        for name in of_guide.keys() - of_grid.keys():
            also = "; use --seeds for a grid" if name == "seed" else ""
            raise InputError(f"{name.replace('_', '-')}: is for a single pair of networks, not for a grid{also}.")
        one = {name: _one(name, given[name]) for name in VARIED if name in given}
        return Grid(**{name: value for name, value in given.items() if name in shared} | one, **of_grid)
    for name in of_grid.keys() - of_guide.keys():
        raise InputError(f"{name}: needs a grid; use --ablate, --concept-noise, --concept-fraction or --affinity.")
    return Guide(**{name: value for name, value in given.items() if name in shared}, **of_guide)


def _one(name: str, values: list[str]) -> str:
    """Return the value of an option that a grid has once."""
    if len(values) > 1:
        raise InputError(f"{name}: a grid has one value, got {', '.join(values)}.")
    return values[0]


def _other_than_default(cls: Any, given: dict[str, Any], shared: set[str]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(cls) if field.name not in shared}
    return {
        name: given[name]
        for name, default in defaults.items()
        if name in given and (type(given[name]), given[name]) != (type(default), default)
    }


def show(console: Console, result: Any) -> None:
    """Print a record, the notes of a plan, or the outline of a dry run."""
    from conceptkit.commands.grid import GridOutline
    from conceptkit.guide.outline import GuidePlan, Outline

    if isinstance(result, GuidePlan):
        for note in result.notes:
            console.print(escape(note), style="dim")
    elif isinstance(result, Outline):
        _show_outline(console, result)
    elif isinstance(result, GridOutline):
        for cell in result.cells:
            console.print(f"{cell.number or '·':>3}  {escape(cell.name)}", highlight=False)
    else:
        show_record(console, result)


def _show_outline(console: Console, outline: Outline) -> None:
    """Print the tree of branches."""
    tree = Tree(f"{escape(outline.model)}, recipe {outline.recipe}")
    backbone = tree.add(f"backbone: {len(outline.unfrozen)} layers trained" if outline.unfrozen else "backbone: frozen")
    for layer, size in outline.unfrozen.items():
        backbone.add(f"{escape(layer)}: {size:,} parameters")
    trunk = tree.add("trunk: " + (" → ".join(map(str, outline.trunk)) or "none"))
    for branch in outline.branches:
        parent = trunk if branch.layer == "trunk" else backbone.add(f"{escape(branch.layer)}, pooled")
        sign = "α = 1" if branch.alpha == 1 else "α = −1"
        parent.add(f"{escape(branch.task)}: {sign}, {branch.loss}, {branch.parameters:,} parameters")
    console.print(tree)
    console.print(
        f"trained before the heads {outline.trainable_before_heads:,}, in the heads {outline.trainable_heads:,}, "
        f"loss weights {outline.trainable_loss_weights}"
    )
    console.print("rows: " + ", ".join(f"{escape(name)} {n}" for name, n in outline.rows.items()))
    console.print(", ".join(f"{name} {escape(str(value))}" for name, value in outline.settings.items()), style="dim")
    for note in outline.notes:
        console.print(escape(note), style="dim")


LINES = {"guide": command_line(Guide, show, more=Grid, make=guide_or_grid), "grid": command_line(Grid, show)}
"""Name of a command → the function that typer makes it from"""
