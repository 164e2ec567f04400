"""The output of a command: tables, progress, JSON, and one sentence for an error."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from typer.core import TyperGroup
from typer.exceptions import TyperException

from conceptkit.errors import InputError, check_place
from conceptkit.options.base import Progress
from conceptkit.options.report import SYNTHETIC

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.records import Record
    from conceptkit.report.judging import Verdict
    from conceptkit.report.table import Table
    from conceptkit.tables.study import Study

WIDTH = 100
"""Characters per line of a table, and of everything that goes into a file or a pipe."""

NAME_MOST = 36
"""Characters of a cell; a longer name loses its middle."""

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


@contextlib.contextmanager
def sentences(debug: bool) -> Iterator[None]:
    """End invalid input with one sentence and exit code 2."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except InputError as error:
        if debug:
            raise
        say_error(str(error))
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # the reader of a pipe has had enough (… | head); typer ends quietly
    except MemoryError as error:
        if debug:
            raise
        say_error(f"memory: not enough for this ({error or 'out of memory'}); a smaller --batch-size may help.")
        raise typer.Exit(2) from None
    except OSError as error:
        if debug:
            raise
        say_error(f"{error.strerror or error}: {error.filename or 'a file'}; --debug shows where.")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say_error("interrupted; what was finished is kept.")
        raise typer.Exit(130) from None


class OneSentence(TyperGroup):
    """The group of all commands; a wrong call ends with one sentence that includes the value, unlike typer's box."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command, and end a wrong call with one sentence and exit code 2."""
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except TyperException as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # the help, which has been printed
                say_error(_usage_sentence(error))
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _usage_sentence(error: TyperException) -> str:
    said = " ".join(error.format_message().split()).rstrip(".").replace(". Did", ", did")
    details = getattr(error.__cause__, "errors", None)  # pydantic's, for a value of the wrong type
    got = f", got {details()[0]['input']!r}" if callable(details) else ""
    context = getattr(error, "ctx", None)
    more = f" ({context.command_path} --help lists what there is)" if context is not None else ""
    return f"{said}{got}{more}."


def say_error(sentence: str) -> None:
    """Print an error on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {escape(sentence)}", highlight=False)


@contextlib.contextmanager
def reading_console(json: str | None) -> Iterator[Console]:
    """Give the console that people read: standard error when there is JSON; refuse at once where that cannot go."""
    if json is not None and json != "-":
        if not json or Path(json).is_dir():
            raise InputError(f"json: must be a file or -, got {json!r}.")
        check_place("json", Path(json))
    stream = sys.stderr if json is not None else sys.stdout
    silent = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun starts the first one prints
    yield Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False, quiet=silent)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """Draw progress bars on a terminal; print a line now and then into a pipe, where a run may be watched too."""
    if not sys.stderr.isatty():
        yield _now_and_then()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(TextColumn):
        """How many a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.3g}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn())
    # Hours of a grid's runs, each of which moves the bar in jumps, are the measure of the time that is left.
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=14400) as bars:
        tasks: dict[str, Any] = {}

        def notify(stage: str, done: int, todo: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(escape(stage), total=todo)
            bars.update(tasks[stage], completed=done, total=todo, visible=done < todo)

        yield notify


def _now_and_then() -> Progress:
    last = time.monotonic()

    def notify(stage: str, done: int, todo: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{stage}: {done} of {todo}", file=sys.stderr, flush=True)

    return notify


def introduce(console: Console, study: Study, *, named: bool) -> None:
    """Say in the first line whose data is used, and how another is set where the study was not named."""
    if study.synthetic:
        about = study.name if named else f"{study.name}; --study or --table sets another."
        console.print(f"{SYNTHETIC} ({escape(about)})", style="bold yellow")
    else:
        console.print(f"Study {escape(study.name)}: {escape(str(study.table))}")


def show_record(console: Console, record: Record, *, verbose: bool = False) -> None:
    """Print what leads a record, its tables, verdicts and notes; with ``verbose`` also the tables of controls."""
    from conceptkit.report.sections import KINDS

    kind = KINDS[type(record)]
    show_findings(console, record, kind.lead(record), kind.tables(record), kind.verdicts(record), verbose=verbose)


def show_findings(
    console: Console,
    record: Record,
    lead: Sequence[Verdict],
    tables: Sequence[Table],
    verdicts: Sequence[Verdict],
    *,
    verbose: bool = False,
) -> None:
    """Print the leading verdicts, tables, the other verdicts, the notes of a record and its rows, and its folder.

    Parameters
    ----------
    verbose : whether all results in words and tables of details, such as the controls of every score, are printed too
    """
    from conceptkit.records.texts import DOUBTS
    from conceptkit.report.contents import notes_of
    from conceptkit.report.first_screen import ANSWERS_MOST, headline
    from conceptkit.report.judging import LEGEND, MARKS
    from conceptkit.report.table import in_parts, numeric_columns, shown

    def say(some: Sequence[Verdict]) -> None:
        for verdict in some:
            console.print(f"{MARKS[verdict.mark]} {escape(verdict.text)}")

    say(lead)
    for table in tables:
        if verbose or not table.details:
            for part in in_parts(table):
                show_table(console, part.title, shown(part), numeric_columns(part))
    said = verdicts if verbose else headline(verdicts, ANSWERS_MOST - len(lead))
    say(said)
    if len(said) < len(verdicts):
        console.print(f"--verbose prints all {len(lead) + len(verdicts)} results in words.", style="dim")
    if verdicts:
        console.print(LEGEND, style="dim")
    for note in notes_of(record):
        console.print(escape(note), style="bold yellow" if note.kind in DOUBTS else "dim")
    console.print(f"run saved in {escape(str(record.folder))}")


def show_table(console: Console, title: str, cells: pd.DataFrame, numeric: Collection[str] = ()) -> None:
    """Print a table of texts: columns that do not fit the line go below, after the first columns again.

    Nothing is broken within a word: headings wrap between words, and a name longer than :data:`NAME_MOST` loses its
    middle, different from the others that it stands with. A table that is too wide has verdicts as symbols.
    """
    from conceptkit.report.short_names import apart, as_symbols

    columns = {str(name): apart(cells[name].tolist(), NAME_MOST) for name in cells.columns}
    width = min(console.width, WIDTH)
    widths = {n: max(map(len, [*n.split(), *texts]), default=0) + 3 for n, texts in columns.items()}
    beside = sum(widths.values()) - widths.get("verdict", 0)
    if "verdict" in columns and width - widths["verdict"] <= beside < width - 10:  # the legend explains the symbols
        columns["verdict"] = as_symbols(columns["verdict"])
        widths["verdict"] = len("verdict") + 3
    names = list(itertools.takewhile(lambda name: name not in numeric and name != "verdict", columns))
    widest = max((widths[name] for name in columns if name not in names), default=0)
    while names and sum(widths[name] for name in names) > WIDTH // 2:
        free = [
            n for n in reversed(names) if _distinct(columns, [k for k in names if k != n]) == _distinct(columns, names)
        ]
        if not free and sum(widths[name] for name in names) + widest < width:
            break  # without one of them some rows would look the same
        names.remove((free or names[::-1])[0])
    blocks: list[list[str]] = [[]]
    for name in columns:
        if name not in names:
            if blocks[-1] and sum(widths[n] for n in (*names, *blocks[-1], name)) >= width:
                blocks.append([])
            blocks[-1].append(name)
    for k, block in enumerate(blocks):
        grid = RichTable(title=None if k else escape(title), title_justify="left")
        for name in (*names, *block):
            grid.add_column(
                escape(name), justify="right" if name in numeric else "left", width=widths[name] - 3, overflow="fold"
            )
        for row in zip(*(columns[name] for name in (*names, *block)), strict=True):
            grid.add_row(*map(escape, row))
        console.print(grid)


def _distinct(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> int:
    """Return how many rows differ in some columns."""
    return len(set(zip(*(columns[name] for name in names), strict=True)))


def write_json_result(json: str | None, values: Mapping[str, Any]) -> None:
    """Write the result where ``--json`` says; nowhere without it."""
    if json is None:
        return
    from conceptkit.records import to_json, write_atomically

    if json == "-":
        text = to_json(values)
        if (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8":
            text = dumps(loads(text), indent=2) + "\n"  # in ASCII, which every locale has
        sys.stdout.write(text)
    else:
        write_atomically(Path(json), to_json(values))
