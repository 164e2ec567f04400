"""Options that commands share, and how their text is read."""

from __future__ import annotations

import csv
import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from conceptkit.errors import InputError

StudyOption = Annotated[
    str | None,
    typer.Option("--study", help="Study file; by default conceptkit.toml here, else the embedded synthetic study."),
]
TableOption = Annotated[
    str | None, typer.Option("--table", help="Patch table (CSV or Parquet), instead of the study's.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A network of timm's (also hf-hub:…), mini_inception (bundled), a checkpoint's folder, or "
        "package.module:factory, a function of yours, which is run.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="imagenet, random, or a weights FILE (of any number of classes); imagenet when only --model is given.",
    ),
]
GroupOption = Annotated[
    str | None, typer.Option("--group", help="Column of patients or slides, never split across folds.")
]
CategoricalOption = Annotated[
    list[str] | None, typer.Option("--categorical", help="Concepts to take as classes, comma-separated.")
]
FoldsOption = Annotated[int, typer.Option("--folds", help="Parts of the cross-validation.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, …")]
OutOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="Run folder; by default the next free one below runs/.", show_default=False),
]
JsonOption = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON to FILE, or to standard output with -.")
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        help="Folder for what can be computed again, as activations; by default CONCEPTKIT_CACHE, else the user's "
        "cache folder. Delete it, or any file in it, while no run uses it.",
        show_default=False,
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def with_cache_dir(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--cache-dir``, which sets ``CONCEPTKIT_CACHE`` while the command runs."""

    @functools.wraps(command)
    def run(*given: Any, cache_dir: str | None = None, **options: Any) -> None:
        before = os.environ.get("CONCEPTKIT_CACHE")
        if cache_dir:
            os.environ["CONCEPTKIT_CACHE"] = cache_dir
        try:
            command(*given, **options)
        finally:
            if cache_dir:
                os.environ.pop("CONCEPTKIT_CACHE")
                if before is not None:
                    os.environ["CONCEPTKIT_CACHE"] = before

    own = inspect.signature(command, eval_str=True)
    added = inspect.Parameter("cache_dir", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CacheOption)
    parameters = [*own.parameters.values(), added]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def name_list(given: list[str] | None) -> list[str]:
    """Return the names in options that may be repeated and may hold commas; a quoted name may have commas itself."""
    try:
        rows = list(csv.reader([" ".join(part.splitlines()) for part in given or ()], skipinitialspace=True))
    except csv.Error as problem:
        raise InputError(f"a list of names could not be read: {problem}.") from problem
    return [name.strip() for row in rows for name in row if name.strip()]


def name_pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """Return NAME=OTHER pairs in options that may be repeated and may hold commas."""
    pairs = {}
    for part in name_list(given):
        name, equals, other = (piece.strip() for piece in part.partition("="))
        if not (name and equals and other):
            raise InputError(f"{option}: must be NAME=OTHER pairs, got {part!r}.")
        pairs[name] = other
    return pairs


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option}: must be whole numbers separated by commas, got {text!r}.") from None


def seed_list(text: str) -> list[int]:
    """Return 0 … n − 1 for one number n, else the numbers listed."""
    numbers = list(whole_numbers("seeds", text))
    if len(numbers) == 1 and "," not in text:
        if numbers[0] < 1:
            raise InputError(f"seeds: at least 1 is needed, got {numbers[0]}.")
        return list(range(numbers[0]))
    return numbers


def shares(option: str, text: str | None) -> tuple[float, ...]:
    """Return numbers separated by commas; none where nothing is given."""
    try:
        found = tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option}: must be numbers separated by commas, got {text!r}.") from None
    if text is not None and not found:
        raise InputError(f"{option}: must be numbers separated by commas, got {text!r}.")
    return found
