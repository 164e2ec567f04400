"""The commands ``conceptkit adapt …``: one for each member of the family of adapters, derived from its function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from conceptkit.cli.command import DEBUG, JSON
from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.errors import check_place
from conceptkit.families import ADAPTERS

if TYPE_CHECKING:
    from conceptkit.pathology.adapters import Adapted

OutTable = Annotated[Path, typer.Option("--out", "-o", help="The patch table to write, .csv or .parquet.")]


class Subcommands(Mapping[str, Any]):
    """Name → command of each adapter, which is imported when its command is first used."""

    def __getitem__(self, name: str) -> Any:
        """Return a command, derived from the adapter's signature and docstring."""
        with sentences(debug=False):
            adapter = ADAPTERS[name]
        app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        app.command(name=name)(command_of(adapter))
        return typer.main.get_command(app)

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(ADAPTERS)

    def __len__(self) -> int:
        """Return the number of adapters."""
        return len(ADAPTERS)


class Adapters(TyperGroup):
    """The group of the adapters' commands."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.commands: Any = Subcommands()

    def format_help(self, *given: Any) -> None:
        """List the adapters by their first lines, without importing them."""
        self.commands = {name: TyperCommand(name, help=ADAPTERS.first_line(name)) for name in ADAPTERS}
        super().format_help(*given)


adapt = typer.Typer(
    name="adapt",
    cls=Adapters,
    help="Make a patch table of a published data set's own layout.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@adapt.callback()
def _adapt() -> None:
    """Make a patch table of a published data set's own layout."""


def command_of(adapter: Callable[..., Adapted]) -> Callable[..., None]:
    """Return the function of the adapter's command: it writes the table and prints the notes."""

    def run(*, out: Path, json: str | None, debug: bool, **options: Any) -> None:
        with sentences(debug), reading_console(json) as console:
            from conceptkit.pathology.measuring import check_out, write_table

            check_out(out)
            check_place("out", out)
            positional = [options.pop(name) for name, kind in kinds.items() if kind != inspect.Parameter.KEYWORD_ONLY]
            adapted = adapter(*positional, out=out, **options)
            write_table(adapted.table, out)
            for note in adapted.notes:
                console.print(escape(note), style="dim")
            console.print(f"{len(adapted.table)} patches written to {escape(str(out))}")
            write_json_result(
                json,
                {
                    "schema": "conceptkit/adapt/1",
                    "study": out.stem,
                    "rows_written": len(adapted.table),
                    "columns": [str(name) for name in adapted.table.columns],
                    "path": str(out),
                    "notes": list(adapted.notes),
                },
            )

    kinds = {name: p.kind for name, p in inspect.signature(adapter).parameters.items() if name != "out"}
    parameters = [*_parameters(adapter), *_shared()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = (inspect.getdoc(adapter) or "").partition("\n")[0]
    return run


def _parameters(adapter: Callable[..., Adapted]) -> Iterator[inspect.Parameter]:
    """Return the parameters of an adapter as arguments and options of a command; ``out`` is shared by all."""
    texts, types = parameter_texts(inspect.getdoc(adapter) or ""), get_type_hints(adapter)
    for name, parameter in inspect.signature(adapter).parameters.items():
        if name == "out":
            continue
        hint, default, repeated = types[name], parameter.default, get_origin(types[name]) is Sequence
        if repeated:
            hint, default = list[get_args(hint)[0]], list(default) if isinstance(default, tuple) else default  # type: ignore[misc]
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
            spelling = f"--{name.replace('_', '-')}".removesuffix("s" if repeated else "")
            about: Any = typer.Option(spelling, help=texts.get(name), show_default=default not in (None, []))
        else:
            about = typer.Argument(help=texts.get(name))
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, about]
        )


def _shared() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in (
            ("out", inspect.Parameter.empty, OutTable),
            ("json", None, Annotated[str | None, JSON]),
            ("debug", False, Annotated[bool, DEBUG]),
        )
    ]


def parameter_texts(docstring: str) -> dict[str, str]:
    """Return parameter → sentence from the section Parameters of a docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\S|\Z)", docstring, re.M | re.S)
    texts = re.findall(r"^(\w+) : (.*(?:\n    .*)*)", section[1] if section else "", re.M)
    plain = {name: " ".join(text.replace("``", "").split()) for name, text in texts}
    return {name: escape(f"{text[0].upper()}{text[1:]}.") for name, text in plain.items()}
