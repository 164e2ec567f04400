"""The command ``conceptkit predict``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import introduce, progress_bars, reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, DeviceOption, JsonOption, TableOption


def predict(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder that guide or bags wrote.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The predictions to write, .csv or .parquet.")],
    table: TableOption = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="Features of patches (.h5, .npy, .parquet), for a checkpoint of bags."),
    ] = None,
    maps: Annotated[
        str | None, typer.Option("--map", help="Folder for a picture per slide or image: its predictions as heat maps.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per forward pass.")] = 16,
    device: DeviceOption = "auto",
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Predict main task and concepts of patches, or of bags, with a guided network."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands import predict as predicting
        from conceptkit.runs.opening import find_study

        study = find_study(None, table)
        introduce(console, study)
        with progress_bars() as progress:
            frame = predicting.predict(
                checkpoint,
                table=table,
                features=features,
                out=out,
                maps=maps,
                batch_size=batch_size,
                device=device,
                progress=progress,
            )
        for what, reason in frame.attrs["skipped"]:
            console.print(f"skipped {escape(what)}: {escape(reason)}", style="yellow")
        columns = [name for name in frame.columns if name not in predicting.IDENTITY]
        rows = "bags" if "bag" in frame.columns else "patches"
        console.print(f"{len(frame)} {rows} written to {escape(out)}: {escape(', '.join(columns))}")
        for note in frame.attrs["notes"]:
            console.print(escape(note), style="bold yellow")
        if maps is not None:
            console.print(f"maps drawn in {escape(maps)}")
        write_json_result(
            json,
            {
                "schema": "conceptkit/predict/1",
                "study": study.name,
                "rows_written": len(frame),
                "skipped": [{"what": what, "reason": reason} for what, reason in frame.attrs["skipped"]],
                "path": out,
                "columns": columns,
                "maps": maps,
                "notes": frame.attrs["notes"],
            },
        )
        if frame.attrs["skipped"]:
            raise typer.Exit(1)
