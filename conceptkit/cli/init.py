"""The command ``conceptkit init``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Of the study; made when it is not there.")] = ".",
    table: Annotated[
        str | None, typer.Option("--table", help="The patch table; by default the one in the folder.")
    ] = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a commented conceptkit.toml from what lies in a folder."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.init import start_study

        started = start_study(folder, table=table)
        console.print(f"study file written to {escape(str(started.path))}")
        for note in started.notes:
            console.print(f"• {escape(note)}")
        console.print("Look it over, then: conceptkit probe" if started.table else "Then look it over.")
        write_json_result(
            json,
            {
                "schema": "conceptkit/init/1",
                "path": str(started.path),
                "table": started.table,
                "notes": list(started.notes),
            },
        )
