"""The command line: one file per command, holding its options and its printing; the work is in ``commands``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from conceptkit.cli.adapt import adapt
from conceptkit.cli.command import command_line
from conceptkit.cli.console import OneSentence
from conceptkit.cli.demo import demo
from conceptkit.cli.doctor import doctor
from conceptkit.cli.examples import epilog
from conceptkit.cli.extract import extract
from conceptkit.cli.guide import GRID, GUIDE
from conceptkit.cli.init import init
from conceptkit.cli.layers import layers
from conceptkit.cli.measure import measure
from conceptkit.cli.options import with_cache_dir
from conceptkit.cli.predict import predict
from conceptkit.cli.report import report
from conceptkit.cli.splits import splits
from conceptkit.cli.status import status
from conceptkit.cli.tile import tile
from conceptkit.options.attribute import Attribute
from conceptkit.options.audit import Audit
from conceptkit.options.bags import Bags
from conceptkit.options.base import Command
from conceptkit.options.grid import Grid
from conceptkit.options.guide import Guide
from conceptkit.options.predictivity import Predictivity
from conceptkit.options.probe import Probe

app = typer.Typer(
    name="conceptkit",
    cls=OneSentence,
    help="Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def _declare(options: type[Command], line: Callable[..., None] | None = None) -> None:
    app.command(epilog=f"Example: conceptkit {options.example}")(line or command_line(options))


_declare(Probe)
for command in (
    predict,
    tile,
    measure,
    splits,
    extract,
    layers,
    report,
    demo,
    init,
    status,
    doctor,
):
    keeps = command not in (tile, measure, layers, report, init, status)
    app.command(epilog=epilog(command.__name__))(with_cache_dir(command) if keeps else command)
_declare(Guide, GUIDE)
_declare(Grid, GRID)
_declare(Bags)
_declare(Predictivity)
_declare(Attribute)
_declare(Audit)
app.add_typer(adapt, rich_help_panel="Commands")


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as a service may leave it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # µ is no reason to fail where the locale has no µ
    app()
