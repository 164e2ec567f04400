"""The command ``conceptkit guide``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from conceptkit.cli.console import (
    introduce,
    progress_bars,
    reading_console,
    say_error,
    sentences,
    show_findings,
    show_record,
    write_json_result,
)
from conceptkit.cli.engine_options import EngineOption, SchedulerOption, WorkersOption
from conceptkit.cli.options import (
    CategoricalOption,
    DebugOption,
    DeviceOption,
    FoldsOption,
    GroupOption,
    JsonOption,
    ModelOption,
    OutOption,
    StudyOption,
    TableOption,
    WeightsOption,
    name_list,
    seed_list,
    shares,
    whole_numbers,
)
from conceptkit.errors import InputError

if TYPE_CHECKING:
    from conceptkit.guide.outline import Outline


def guide(
    encourage: Annotated[
        list[str] | None,
        typer.Option("--encourage", help="Concepts to know: CONCEPT or CONCEPT@LAYER, comma-separated."),
    ] = None,
    discourage: Annotated[
        list[str] | None,
        typer.Option(
            "--discourage",
            help="Concepts not to know, as above; latent:3 for three domains proposed by stain, latent:3+LAYER by "
            "stain and what the network makes of patches there.",
        ),
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="ours, paper or paper-code: fills in the options below.")
    ] = "ours",
    unfreeze: Annotated[
        list[str] | None, typer.Option("--unfreeze", help="Layers to train, comma-separated; none for the trunk alone.")
    ] = None,
    trunk: Annotated[
        str | None, typer.Option("--trunk", help="Widths of the dense layers, such as 2048,512,256.")
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Rate after each dense layer.")] = None,
    l2: Annotated[float | None, typer.Option("--l2", help="Penalty on the trunk's kernels, as in Keras.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adam or sgd.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option("--momentum", help="Of sgd.")] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov/--no-nesterov", help="Of sgd.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most.")] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="Epochs in which discouraging sets in.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Epochs without a lower validation loss.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Patches per step.")] = None,
    weighting: Annotated[
        str | None,
        typer.Option("--weighting", help="Of the losses, for all tasks and for some: uncertainty,center=fixed:0.1"),
    ] = None,
    reset_weights: Annotated[
        bool | None, typer.Option("--reset-weights/--keep-weights", help="Learned weights anew after the warmup.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="How to discourage: confusion, reversal (or grl), coral, mmd or leace."),
    ] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Of discouraging, at the end of warmup.")] = None,
    reversal: Annotated[str | None, typer.Option("--reversal", help="Schedule: constant, ramp or switched.")] = None,
    balance: Annotated[
        bool | None,
        typer.Option("--balance/--no-balance", help="Adversaries learn from rows weighted free of the main label."),
    ] = None,
    balance_main: Annotated[
        float | None, typer.Option("--balance-main", help="Power of these weights in the main loss, 0 to 1.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", help="Of what is frozen: exact, fast (16 bits) or off.")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option("--within", help="Columns within whose levels AUCs are taken too, comma-separated."),
    ] = None,
    ablate: Annotated[
        str | None,
        typer.Option(
            "--ablate",
            help="A grid: paper, pairs, study (the list in its file), a FILE with a model per line, or "
            "'count; count,-center'.",
        ),
    ] = None,
    weightings: Annotated[
        str | None, typer.Option("--weightings", help="Of a grid, separated by semicolons: vanilla;uncertainty")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Of a grid: random target, shuffled concept and others.")
    ] = True,
    protocol: Annotated[
        str, typer.Option("--protocol", help="Of a grid: groups, or paper for its resamples of patches too.")
    ] = "groups",
    concept_noise: Annotated[
        str | None, typer.Option("--concept-noise", help="Shares of concept values exchanged, for a curve: 0,0.25,0.5")
    ] = None,
    concept_fraction: Annotated[
        str | None, typer.Option("--concept-fraction", help="Shares of rows that keep concept values: 0.01,0.1,1")
    ] = None,
    affinity: Annotated[
        bool, typer.Option("--affinity", help="What a step of each task does to the others' losses.")
    ] = False,
    engine: EngineOption = "processes",
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    folds: FoldsOption = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of a single pair of runs.")] = 0,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="How many (5), or a list (1001,822); 3 in a grid.")
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option("--devices", help="Processes on this machine that share each batch.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines; the command is started on each.")] = 1,
    precision: Annotated[str, typer.Option("--precision", help="32, bf16 or 16.")] = "32",
    log: Annotated[
        list[str] | None, typer.Option("--log", help="Losses as they come: csv, tensorboard, comma-separated.")
    ] = None,
    disturb: Annotated[
        list[str] | None,
        typer.Option(
            "--disturb",
            help="Disturb every patch by a known amount, which becomes the concept made_NAME: rotation, scale, jpeg, "
            "blur, hematoxylin, eosin.",
        ),
    ] = None,
    search: Annotated[
        int, typer.Option("--search", help="Try so many sets of trunk, dropout, l2 and lr on the baseline first.")
    ] = 0,
    transductive: Annotated[
        bool, typer.Option("--transductive", help="Evaluation rows train the concepts too, which the result says.")
    ] = False,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Groups may have rows in several splits, which the result says.")
    ] = False,
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a baseline and a guided network alike, and measure what guiding changed."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.guide import outline_guide, run_guide
        from conceptkit.runs.opening import find_study

        chosen = {
            "unfreeze": None if unfreeze is None else tuple(n for n in name_list(unfreeze) if n != "none"),
            "trunk": None if trunk is None else whole_numbers("trunk", trunk),
            "dropout": dropout,
            "l2": l2,
            "optimizer": optimizer,
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "epochs": epochs,
            "warmup": warmup,
            "patience": patience,
            "batch_size": batch_size,
            "weighting": weighting,
            "reset_weights": reset_weights,
            "method": method,
            "strength": strength,
            "reversal": reversal,
            "balance": balance,
            "balance_main": balance_main,
            "cache": cache,
        }
        meant = find_study(study, table)

        def say_trained(sentence: str) -> None:
            console.print(escape(sentence), style="bold")

        wanted: dict[str, Any] = {
            "encourage": None if encourage is None else name_list(encourage),
            "discourage": None if discourage is None else name_list(discourage),
            "model": model,
            "weights": weights,
            "group": group,
            "categorical": name_list(categorical),
            "recipe": recipe,
            "options": {k: v for k, v in chosen.items() if v is not None},
        }
        alone: dict[str, Any] = {
            "disturb": name_list(disturb),
            "transductive": transductive,
            "allow_leakage": allow_leakage,
        }
        engine_of_one: dict[str, Any] = {
            "devices": devices,
            "nodes": nodes,
            "precision": precision,
            "log": name_list(log),
            "search": search,
        }
        gridded = ablate is not None or concept_noise is not None or concept_fraction is not None or affinity
        if gridded:
            from conceptkit.commands.grid import grid_folder, outline_grid, run_grid
            from conceptkit.jobs import Engine
            from conceptkit.report.grid_tables import grid_split_table, grid_tables, grid_verdicts

            _refuse_for_a_grid({**alone, **engine_of_one, "seed": seed})
            grid: dict[str, Any] = {
                "ablate": ablate,
                "weightings": None if weightings is None else [w.strip() for w in weightings.split(";") if w.strip()],
                "controls": controls,
                "noise": shares("concept-noise", concept_noise),
                "fraction": shares("concept-fraction", concept_fraction),
                "seeds": [0, 1, 2] if seeds is None else seed_list(seeds),
            }
            introduce(console, meant)
            if dry_run:
                planned = outline_grid(meant, **wanted, **grid, affinity=affinity, protocol=protocol)
                for cell in planned:
                    console.print(f"{cell.number or '·':>3}  {escape(cell.name)}", highlight=False)
                write_json_result(
                    json,
                    {
                        "schema": "conceptkit/grid-outline/1",
                        "study": meant.name,
                        "cells": [asdict(cell) for cell in planned],
                    },
                )
                return
            folder = grid_folder(out)  # named before anything is trained, as the same command goes on with it
            console.print(f"each finished run is kept in {escape(str(folder))}; --out {escape(str(folder))} goes on")
            with told_how_to_go_on(folder), progress_bars() as progress:
                found = run_grid(
                    meant,
                    **wanted,
                    **grid,
                    affinity=affinity,
                    protocol=protocol,
                    folds=folds,
                    within=name_list(within),
                    device=device,
                    engine=Engine(name=engine, workers=workers, scheduler=scheduler),
                    out=folder,
                    notify=say_trained,
                    progress=progress,
                )
            show_findings(console, found, [grid_split_table(found), *grid_tables(found)], grid_verdicts(found))
            write_json_result(json, found.to_dict())
            return
        for name, given in (
            ("weightings", weightings is not None),
            ("protocol", protocol != "groups"),
            ("engine", engine != "processes"),
            ("workers", workers != 1),
            ("scheduler", scheduler is not None),
        ):
            if given:
                raise InputError(f"{name}: goes with a grid; name one by --ablate, --concept-noise or the like.")

        def begin(sentence: str) -> None:
            say_trained(sentence)
            introduce(console, meant)

        if dry_run:
            outline = outline_guide(meant, **wanted, **alone)
            begin(outline.trains)
            _show_outline(console, outline)
            write_json_result(json, outline.to_dict())
            return
        with progress_bars() as progress:
            record = run_guide(
                meant,
                **wanted,
                **alone,
                **engine_of_one,
                folds=folds,
                within=name_list(within),
                seeds=[seed] if seeds is None else seed_list(seeds),
                device=device,
                out=out,
                notify=begin,
                progress=progress,
            )
        show_record(console, record)
        write_json_result(json, record.to_dict())


_OF_A_PAIR: dict[str, Any] = {
    "disturb": [],
    "transductive": False,
    "allow_leakage": False,
    "devices": 1,
    "nodes": 1,
    "precision": "32",
    "log": [],
    "search": 0,
    "seed": 0,
}
"""Option that a grid does not have → its default; each is compared with its own, as True == 1"""


def _refuse_for_a_grid(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value != _OF_A_PAIR[name]:
            also = "; name a grid's by --seeds" if name == "seed" else ""
            raise InputError(f"{name.replace('_', '-')}: is for a single pair of networks, not for a grid{also}.")


@contextlib.contextmanager
def told_how_to_go_on(folder: Path) -> Iterator[None]:
    """Say, when a grid is interrupted, which command goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        say_error(f"interrupted; what was finished is kept: the same command with --out {folder} goes on.")
        raise typer.Exit(130) from None


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
