"""The command ``conceptkit tile``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import progress_bars, reading_console, sentences, write_json_result
from conceptkit.cli.engine_options import EngineOption, SchedulerOption, WorkersOption
from conceptkit.cli.options import DebugOption, JsonOption, name_list


def tile(
    slides: Annotated[
        list[str], typer.Argument(metavar="SLIDES…", help="Slides, or folders with slides at any depth.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The patch table to write, .csv or .parquet.")],
    size: Annotated[int, typer.Option("--size", help="Side of a tile, in pixels.")] = 224,
    mpp: Annotated[
        float | None, typer.Option("--mpp", help="Microns per pixel of the slides, instead of what they state.")
    ] = None,
    tile_mpp: Annotated[
        float | None,
        typer.Option("--tile-mpp", help="Microns per pixel of the tiles; highest magnification by default."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", help="Pixels that neighbouring tiles share.")] = 0,
    tissue: Annotated[float, typer.Option("--tissue", help="Least share of tissue in a tile.")] = 0.5,
    annotations: Annotated[
        str | None, typer.Option("--annotations", help="Folder of XML or GeoJSON files named like the slides.")
    ] = None,
    tumor: Annotated[float, typer.Option("--tumor", help="Least annotated share of a tile labelled tumor.")] = 0.5,
    tumor_class: Annotated[
        list[str] | None,
        typer.Option("--tumor-class", help="Annotated classes that count as tumor, comma-separated; all by default."),
    ] = None,
    shift_geojson: Annotated[
        bool,
        typer.Option(
            "--shift-geojson/--no-shift-geojson",
            help="Whether GeoJSON counts from the corner of the scanned area, as QuPath's does.",
        ),
    ] = True,
    export: Annotated[str, typer.Option("--export", help="none, png or h5: where pixels are kept.")] = "none",
    stain: Annotated[str | None, typer.Option("--stain", help="reinhard or macenko, for exported pixels.")] = None,
    stain_reference: Annotated[
        str | None, typer.Option("--stain-reference", help="Image or .npy that the stain is fitted on.")
    ] = None,
    engine: EngineOption = "processes",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Cut slides into tiles that hold tissue: a patch table, read from the slides on demand or exported."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.tile import run_tile

        with progress_bars() as progress:
            tiled = run_tile(
                slides,
                out=out,
                size=size,
                mpp=mpp,
                tile_mpp=tile_mpp,
                overlap=overlap,
                tissue=tissue,
                annotations=annotations,
                tumor=tumor,
                tumor_class=name_list(tumor_class),
                shift_geojson=shift_geojson,
                export=export,
                stain=stain,
                stain_reference=stain_reference,
                engine=engine,
                workers=workers,
                scheduler=scheduler,
                notify=lambda sentence: console.print(escape(sentence)),
                progress=progress,
            )
        for what, reason in tiled.skipped:
            console.print(f"skipped {escape(what)}: {escape(reason)}", style="yellow")
        for note in tiled.notes:
            console.print(escape(note), style="yellow" if note in tiled.warnings else "dim")
        if tiled.resumed:
            console.print(f"{tiled.resumed} slides were finished by an earlier run", style="dim")
        console.print(f"{len(tiled.table)} tiles written to {escape(out)}")
        skipped = [{"what": what, "reason": reason} for what, reason in tiled.skipped]
        write_json_result(
            json,
            {
                "schema": "conceptkit/tile/1",
                "rows_written": len(tiled.table),
                "resumed": tiled.resumed,
                "skipped": skipped,
                "copies": [{"what": copy, "same_as": kept} for copy, kept in tiled.copies],
                "path": out,
                "notes": list(tiled.notes),
                "warnings": list(tiled.warnings),
            },
        )
        if skipped:
            raise typer.Exit(1)
