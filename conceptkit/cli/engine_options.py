"""Options of commands whose work is spread over processes or machines."""

from __future__ import annotations

from typing import Annotated

import typer

EngineOption = Annotated[
    str, typer.Option("--engine", help="processes on this machine, or dask on those of a --scheduler.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Processes at once; by default one per processor.", show_default=False)
]
SchedulerOption = Annotated[
    str | None, typer.Option("--scheduler", help="Address of a Dask scheduler, tcp://host:8786.", show_default=False)
]
