"""From a command's dataclass to its command line: every field is an option, declared nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from conceptkit.cli.console import introduce, progress_bars, reading_console, sentences, show_record, write_json_result
from conceptkit.options.base import Command, Described, RecordCommand, StudyCommand, described, name_list

Show = Callable[[Console, Any], None]
"""Prints a result for people"""

_STUDY = typer.Option(
    "--study", help="Study file, or embedded:NAME; default: conceptkit.toml here, else the embedded synthetic study."
)
_OUT = typer.Option("--out", "-o", help="Run folder; default: the next free one below runs/.", show_default=False)
JSON = typer.Option("--json", help="Write the result as JSON to FILE, or to standard output with -.")
_VERBOSE = typer.Option("--verbose", help="Print all results in words, and the tables of controls and baselines.")
DEBUG = typer.Option("--debug", help="Show the traceback of an error.")
_CACHE = typer.Option(
    "--cache-dir",
    help="Folder for what can be computed again, such as activations; default: CONCEPTKIT_CACHE, else the user's cache "
    "folder. Delete it, or any file in it, while no run uses it.",
    show_default=False,
)

_GENERAL = "General"
"""Panel of the options that every command has"""


def command_line(
    cls: type[Command],
    show: Show | None = None,
    *,
    more: type[Command] | None = None,
    make: Callable[..., Command] | None = None,
) -> Callable[..., None]:
    """Return the function that typer makes the command from.

    Parameters
    ----------
    cls : the command
    show : prints its result; ``None`` for a record, which prints its tables and verdicts
    more : another command, whose further options this command line has too
    make : returns the command from the options, which may be another than ``cls``
    """
    further = [option for option in described(more) if option.name not in _names(cls)] if more else []
    options = [*described(cls), *further]

    def run(**given: Any) -> None:
        invoke(make or cls, options, show, given)

    parameters = [_parameter(option) for option in options]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared])
        for name, kind, default, declared in _general(cls)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__ = cls.name.replace("-", "_").replace(" ", "_")
    run.__doc__ = (cls.__doc__ or "").partition("\n\n")[0]
    return run


def _general(cls: type[Command]) -> Iterator[tuple[str, Any, Any, Any]]:
    text: Any = str | None
    general = [("json", text, None, JSON), ("debug", bool, False, DEBUG)]
    if issubclass(cls, RecordCommand):
        general = [("out", text, None, _OUT), *general, ("verbose", bool, False, _VERBOSE)]
    if issubclass(cls, StudyCommand | RecordCommand):
        general = [("study", text, None, _STUDY), *general]
    if cls.caches:
        general.append(("cache_dir", text, None, _CACHE))
    for name, kind, default, declared in general:
        yield name, kind, default, _in_panel(declared, _GENERAL)


def _in_panel(declared: Any, panel: str) -> Any:
    declared.rich_help_panel = panel
    return declared


def _parameter(option: Described) -> inspect.Parameter:
    """Return the parameter of typer's function that stands for one option."""
    declared, several = option.declared, option.many or option.pairs
    plain = option.type if option.type in (int, float, bool) else str
    kind: Any = plain
    if several:
        kind = str if declared.parse else list[str]
    shown: bool | str = not several
    usual = option.default if declared.shown is None else declared.shown
    if isinstance(usual, tuple) and usual:
        shown = ",".join(map(str, usual))
    elif declared.shown is not None:
        shown = str(usual).lower() if isinstance(usual, bool) else str(usual)
    about: dict[str, Any] = {"help": option.help.replace("`", ""), "metavar": _metavar(option), "show_default": shown}
    default = inspect.Parameter.empty if option.required else option.default
    if several or not isinstance(default, str | int | float | bool) or default == "":
        default = inspect.Parameter.empty if option.required else None
    if default is None:
        kind, about["show_default"] = kind | None, shown if isinstance(shown, str) else False
    if declared.argument:
        info: Any = typer.Argument(**about)
    else:
        info = typer.Option(*option.flag.split(" "), rich_help_panel=option.panel, **about)
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _metavar(option: Described) -> str | None:
    """Return what stands for the value in the help."""
    if option.declared.metavar or option.type is bool:
        return option.declared.metavar
    if choices := option.choices():
        return f"<{'|'.join(choices)}>"
    if option.pairs:
        return "<name=name,…>"
    word = {int: "int", float: "float"}.get(option.type, "text")
    return f"<{word},…>" if option.many else f"<{word}>"


def invoke(
    make: Callable[..., Command], described_options: Sequence[Described], show: Show | None, given: dict[str, Any]
) -> None:
    """Run a command with the values of its command line, print its result and write it as JSON."""
    names = {option.name for option in described_options}
    debug, json, verbose = given.pop("debug"), given.pop("json"), given.pop("verbose", False)
    about = {name: given.pop(name) for name in ("study", "out") if name in given and name not in names}
    with sentences(debug), cache_folder(given.pop("cache_dir", None)), reading_console(json) as console:
        options = make(**_values(described_options, given))
        where: dict[str, Any] = {}
        if "study" in about and (about["study"] is not None or getattr(options, "needs_study", True)):
            from conceptkit.runs.opening import find_study

            where["study"] = find_study(about["study"], getattr(options, "table", None))
        if "out" in about:
            where["out"] = about["out"]
        first = _Introduction(console, where.get("study"), named=about.get("study") is not None)
        if not options.leads:
            first.print()
        with progress_bars() as progress:
            result = options.run(**where, progress=progress, notify=first.after)
        first.print()
        if show is None:
            show_record(console, result, verbose=verbose)
        else:
            show(console, result)
        if not console.quiet:
            write_json_result(json, result.to_dict())
        if getattr(result, "skipped", None) or not getattr(result, "is_usable", True):  # one file among many, say
            raise typer.Exit(1)


@dataclasses.dataclass
class _Introduction:
    """The line of the study, printed once: at the start, or below the command's first sentence."""

    console: Console
    study: Any
    named: bool
    """Whether the command line names it"""

    def print(self) -> None:
        """Print the line once, if the command has a study."""
        if self.study is not None:
            introduce(self.console, self.study, named=self.named)
            self.study = None

    def after(self, sentence: str) -> None:
        """Print a sentence, and the line below it."""
        self.console.print(escape(sentence), style="bold" if self.study is not None else None)
        self.print()


def _values(options: Sequence[Described], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; of those that may be repeated and hold commas, every name."""
    values = {name: value for name, value in given.items() if value is not None}
    for option in options:
        if isinstance(values.get(option.name), list) and not option.declared.argument:
            values[option.name] = [n for text in values[option.name] for n in name_list(option.name, text)]
    return values


def _names(cls: type[Command]) -> set[str]:
    return {option.name for option in described(cls)}


@contextlib.contextmanager
def cache_folder(given: str | None) -> Iterator[None]:
    """Use another cache folder while a command runs."""
    before = os.environ.get("CONCEPTKIT_CACHE")
    if given:
        os.environ["CONCEPTKIT_CACHE"] = given
    try:
        yield
    finally:
        if given:
            os.environ.pop("CONCEPTKIT_CACHE")
            if before is not None:
                os.environ["CONCEPTKIT_CACHE"] = before
