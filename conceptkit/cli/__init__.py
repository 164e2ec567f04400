"""The command line: one file per command, holding its options and its printing; the work is in ``commands``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from conceptkit.cli.adapt import adapt
from conceptkit.cli.command import command_line
from conceptkit.cli.console import OneSentence
from conceptkit.cli.guide import LINES
from conceptkit.cli.printing import SHOWS
from conceptkit.options import COMMANDS, GROUPS
from conceptkit.registry import load

_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="conceptkit",
    cls=OneSentence,
    help="Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from conceptkit import __version__

        print(__version__)
        raise typer.Exit


_groups = {
    name: typer.Typer(help=text, no_args_is_help=True, context_settings=_SETTINGS) for name, text in GROUPS.items()
}
for name, place in COMMANDS.items():
    options = load(place)
    line = LINES.get(name) or command_line(options, SHOWS.get(name))
    group, _, own = name.rpartition(" ")
    (_groups[group] if group else app).command(own, epilog=f"Example: conceptkit {options.example}")(line)
for name, several in _groups.items():
    app.add_typer(several, name=name, rich_help_panel="Commands")
app.add_typer(adapt, rich_help_panel="Commands")


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as a service may leave it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale without µ must not end the command
    app()
