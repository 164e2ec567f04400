"""The command ``conceptkit measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import progress_bars, reading_console, sentences, write_json_result
from conceptkit.cli.engine_options import EngineOption, SchedulerOption, WorkersOption
from conceptkit.cli.options import DebugOption, DeviceOption, JsonOption, name_list


def measure(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES.csv", help="One row per image: image, mask, mpp, patient, …")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The patch table to write, .csv or .parquet.")],
    patch_size: Annotated[int, typer.Option("--patch-size", help="Side of a patch, in pixels.")] = 224,
    names: Annotated[
        list[str] | None,
        typer.Option("--measure", help="Measures to take, comma-separated; or core, nuisances, all."),
    ] = None,
    nuclei: Annotated[
        str | None, typer.Option("--nuclei", help="hematoxylin or maskrcnn: find nuclei instead of reading masks.")
    ] = None,
    nuclei_weights: Annotated[
        str | None, typer.Option("--nuclei-weights", help="Checkpoint of maskrcnn.", show_default=False)
    ] = None,
    masks_out: Annotated[
        str | None, typer.Option("--masks-out", help="Folder for the nuclei found, a 16-bit PNG per image.")
    ] = None,
    on_error: Annotated[str, typer.Option("--on-error", help="fail, or skip to list a bad image and go on.")] = "fail",
    engine: EngineOption = "processes",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Cut images into patches and measure the concepts of each.

    The column mask names label images: PNG, TIFF or .npy, HoVer-Net's .mat (its inst_map), Cellpose's _cp_masks.png.
    Cellpose's _seg.npy is a pickle and is refused: save PNG or TIFF masks.
    """
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.measure import run_measure
        from conceptkit.errors import check_choice, check_place

        check_choice("on-error", on_error, ("fail", "skip"))
        check_place("out", Path(out))
        with progress_bars() as progress:
            measured = run_measure(
                images,
                out=out,
                patch_size=patch_size,
                names=name_list(names) or None,
                nuclei=nuclei,
                nuclei_weights=nuclei_weights,
                masks_out=masks_out,
                device=device,
                skip_bad=on_error == "skip",
                engine=engine,
                workers=workers,
                scheduler=scheduler,
                progress=progress,
            )
        for what, reason in measured.skipped:
            console.print(f"skipped {escape(what)}: {escape(reason)}", style="yellow")
        for note in measured.notes:
            console.print(escape(note), style="dim")
        if measured.resumed:
            console.print(f"{measured.resumed} were measured by an earlier run", style="dim")
        console.print(f"{len(measured.table)} patches written to {escape(out)}")
        skipped = [{"what": what, "reason": reason} for what, reason in measured.skipped]
        write_json_result(
            json,
            {
                "schema": "conceptkit/measure/1",
                "study": Path(images).stem,
                "rows_written": len(measured.table),
                "resumed": measured.resumed,
                "skipped": skipped,
                "path": out,
                "notes": list(measured.notes),
            },
        )
        if skipped:
            raise typer.Exit(1)
