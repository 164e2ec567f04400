"""The command ``conceptkit status``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption

_STYLES = {"finished": "green", "running": "bold", "stopped": "yellow", "empty": "dim"}


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, activation store, or table being written.")],
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Say how far a run is; the process that works on it is not disturbed."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.status import read_status

        found = read_status(run)
        what = f"{found.kind} " if found.kind else ""
        console.print(f"{what}{escape(found.path)}: {found.state}", style=_STYLES[found.state])
        if found.done is not None and found.state != "empty":
            of = "" if found.total is None else f" of {found.total}"
            left = "" if found.minutes_left is None else f", about {_ago(found.minutes_left)} left"
            console.print(f"{found.done}{of} {found.unit} finished{left}")
        if found.minutes_quiet is not None:
            console.print(f"last written {_ago(found.minutes_quiet)} ago")
        for training in found.trainings:
            losses = ", ".join(f"{escape(name)} {value:.4g}" for name, value in training.losses.items())
            console.print(f"{escape(training.name)}: epoch {training.epoch}, {losses}")
        for name, reason in found.failed.items():
            console.print(f"{escape(name)} failed: {escape(reason)}", style="yellow")
        for note in found.notes:
            console.print(escape(note), style="dim")
        write_json_result(json, found.to_dict())


def _ago(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
