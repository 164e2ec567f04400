"""The command ``conceptkit extract``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import introduce, progress_bars, reading_console, sentences, write_json_result
from conceptkit.cli.options import (
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    StudyOption,
    TableOption,
    WeightsOption,
    name_list,
)


def extract(
    out: Annotated[str, typer.Option("--out", "-o", help="The store to write or to finish, an HDF5 file.")],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers, comma-separated; conceptkit layers lists a network's.")
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    pool: Annotated[str, typer.Option("--pool", help="gap, max, flatten, cls or tokens.")] = "gap",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per forward pass.")] = 16,
    device: DeviceOption = "auto",
    autocast: Annotated[str | None, typer.Option("--autocast", help="bf16 or fp16, faster on a GPU.")] = None,
    on_error: Annotated[str, typer.Option("--on-error", help="fail, or skip to list a bad image and go on.")] = "fail",
    verify: Annotated[bool, typer.Option("--verify", help="Read every image again, unchanged or not.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Begin anew where the store is of something else.")
    ] = False,
    engine: Annotated[str, typer.Option("--engine", help="local, or dask for a cluster's workers.")] = "local",
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="Address of the Dask scheduler.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random weights.")] = 0,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Compute activations of layers, once, into a store on disk; a killed run is finished by the next."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands import extract as extracting
        from conceptkit.errors import InputError
        from conceptkit.features.sharding import ranks
        from conceptkit.models.backbones import is_factory
        from conceptkit.runs.opening import find_study, open_study

        own = ranks()
        console.quiet = own is not None and own.rank > 0  # one of several processes speaks for all
        meant = find_study(study, table)
        introduce(console, meant)
        meant, data = open_study(meant, None, model, weights, None, ())
        if meant.model is None:
            raise InputError("model: none is named, neither by --model nor in the study.")
        if is_factory(meant.model):
            console.print(f"{escape(meant.model)} is code of yours, and is run.", style="yellow")
        with progress_bars() as progress:
            found = extracting.extract(
                meant.model,
                data,
                layers=name_list(layer) or list(meant.layers),
                pool=pool,
                store=out,
                weights=meant.weights,
                seed=seed,
                dtype=dtype,
                batch_size=batch_size,
                device=device,
                autocast=autocast,
                on_error=on_error,
                verify=verify,
                refresh=refresh,
                engine=engine,
                scheduler=scheduler,
                notify=lambda sentence: console.print(escape(sentence)),
                progress=None if console.quiet else progress,
            )
        for what, reason in found.skipped:
            console.print(f"skipped {escape(what)}: {escape(reason)}", style="yellow")
        there = len(found) - found.rows_written
        console.print(f"{found.rows_written} rows written to {escape(out)}, {there} were there before")
        values = {
            "schema": "conceptkit/extract/1",
            "study": meant.name,
            "synthetic": meant.synthetic,
            "path": out,
            "rows": len(found),
            "rows_written": found.rows_written,
            "skipped": [{"what": what, "reason": reason} for what, reason in found.skipped],
            "notes": list(found.notes),
            "layers": {name: rows.shape[1] for name, rows in found.layers.items()},
            "pool": pool,
            "dtype": dtype,
            "weights_sha256": found.provenance["weights"],
        }
        if not console.quiet:
            write_json_result(json, values)
        if found.skipped:
            raise typer.Exit(1)
