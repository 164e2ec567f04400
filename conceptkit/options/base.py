"""Commands as frozen dataclasses: each option is one field, checked when the command is made."""

from __future__ import annotations

import ast
import csv
import dataclasses
import functools
import inspect
import itertools
import operator
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

from conceptkit.errors import InputError, check_at_least, check_at_most, check_choice, near_names
from conceptkit.registry import load

C = TypeVar("C", bound="type[Any]")

Progress = Callable[[str, int, int], None]
"""Called with the stage of the work, how much of it is done, and how much there is"""

Notify = Callable[[str], None]
"""Called with a sentence"""

Names = tuple[str, ...]
"""Names; in Python also a list or one text, in which commas separate them"""

Choices = Collection[str] | Callable[[], Collection[str]]


@dataclasses.dataclass(frozen=True)
class Declared:
    """What an option states besides its type, default and help."""

    flag: str | None = None
    """Spelling on the command line; ``--name-of-the-field`` when ``None``"""
    argument: bool = False
    """Whether it is given without a flag, such as the slides of ``tile``"""
    choices: Choices | None = None
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    parse: Callable[[Any], Any] | None = None
    """Turns a text, or another short form, into the value"""
    shown: Any = None
    """Default that the help shows where ``None`` stands for it"""


def option(
    default: Any = dataclasses.MISSING,
    *,
    flag: str | None = None,
    argument: bool = False,
    choices: Choices | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare an option of a command; its help is the docstring below it.

    Parameters
    ----------
    default : of the option; without one it must be given
    flag : spelling on the command line, such as ``--layer`` or ``--balance/--no-balance``
    argument : whether it is given without a flag
    choices : allowed values, or a function that returns them
    metavar : placeholder of the value in the help
    minimum, maximum : allowed range of a number
    parse : turns a text, or another short form, into the value
    """
    declared = Declared(flag, argument, choices, metavar, minimum, maximum, parse)
    return dataclasses.field(default=default, metadata={"option": declared})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def declare(cls: C) -> C:
    """Make a class of options a frozen dataclass that refuses unknown names with an ``InputError``."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    fields = {field.name: field for field in dataclasses.fields(made)}
    assign = made.__init__

    @functools.wraps(assign)
    def init(self: Any, *unnamed: Any, **options: Any) -> None:
        command = cls.__name__
        if unnamed:
            raise InputError(f"{command}: options are given by name, got {unnamed[0]!r} without one.")
        for name in options:
            if name not in fields:
                raise InputError(f"{command}: no option {name!r}; {near_names(name, fields)}.")
        for name, field in fields.items():
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if missing and name not in options:
                raise InputError(f"{name}: must be given.")
        assign(self, **options)

    made.__init__ = init
    return typing.cast("C", made)


class Options:
    """Options that commands share: a mixin of commands, whose fields form a panel of the help."""

    panel: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        """Bring each value into its declared type, and refuse what is outside the declared choices or range."""
        for field in described(type(self)):
            object.__setattr__(self, field.name, field.checked(getattr(self, field.name)))

    def replace(self, **options: Any) -> Self:
        """Return the same command with some options changed."""
        return dataclasses.replace(self, **options)  # type: ignore[type-var]

    def settings(self) -> dict[str, Any]:
        """Return every option by name, as JSON can hold it."""
        return {field.name: _plain(getattr(self, field.name)) for field in described(type(self))}


class Command(Options):
    """A command: options, and what is run with them."""

    name: ClassVar[str]
    """Name on the command line"""
    example: ClassVar[str]
    """One call, without the program's name"""
    runner: ClassVar[str]
    """``module:function`` that does the work; it is imported when the command runs"""
    caches: ClassVar[bool] = True
    """Whether the command uses the cache folder, so that ``--cache-dir`` applies"""
    leads: ClassVar[bool] = False
    """Whether the command's first sentence is the first line of the output, above the study"""

    def run(self, *, progress: Progress | None = None, notify: Notify | None = None) -> Any:
        """Run the command.

        Parameters
        ----------
        progress : called with each stage of the work and how far it is
        notify : called with sentences for the user
        """
        return load(self.runner)(self, progress=progress, notify=notify)


class StudyCommand(Command):
    """A command that works on a study."""

    @property
    def needs_study(self) -> bool:
        """Whether a study is found for it where none is given."""
        return True

    def run(self, study: Any = None, *, progress: Progress | None = None, notify: Notify | None = None) -> Any:
        """Run the command.

        Parameters
        ----------
        study : a study, its file or folder, or a table: its file or a DataFrame (pandas or polars); ``None`` for the
            current folder's study, else the embedded one
        progress : called with each stage of the work and how far it is
        notify : called with sentences for the user

        Raises
        ------
        InputError
            when something cannot be used; nothing is written then
        """
        return load(self.runner)(self, study, progress=progress, notify=notify)


class RecordCommand(Command):
    """A command that works on a study and writes a run folder with a record."""

    def run(
        self,
        study: Any = None,
        *,
        out: str | Path | None = None,
        progress: Progress | None = None,
        notify: Notify | None = None,
    ) -> Any:
        """Run the command.

        Parameters
        ----------
        study : a study, its file or folder, or a table: its file or a DataFrame (pandas or polars); ``None`` for the
            current folder's study, else the embedded one
        out : run folder; ``None`` for the next free one below ``runs/``
        progress : called with each stage of the work and how far it is
        notify : called with sentences for the user

        Raises
        ------
        InputError
            when something cannot be used; nothing is written then
        """
        if out is not None:
            _typed("out", out, str | Path)
        return load(self.runner)(self, study, out=out, progress=progress, notify=notify)


@dataclasses.dataclass(frozen=True)
class Described:
    """One option as declared: what the command line, the docs and the checks read."""

    name: str
    type: Any
    """Of one value: str, int, float, bool, Path or Any"""
    many: bool
    """Whether it holds several values"""
    pairs: bool
    """Whether it maps names to names"""
    optional: bool
    default: Any
    help: str
    panel: str
    declared: Declared

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return self.declared.flag or f"--{self.name.replace('_', '-')}"

    def choices(self) -> tuple[str, ...]:
        """Return the allowed values; empty if any value is allowed."""
        given = self.declared.choices
        return tuple(given() if callable(given) else given or ())

    def checked(self, value: Any) -> Any:
        """Return a value in the declared type.

        Raises
        ------
        InputError
            when it has another type, or is outside the declared choices or range
        """
        if value is None:
            if self.optional:
                return None
            raise InputError(f"{self.name}: must be given.")
        if self.declared.parse is not None:
            value = self.declared.parse(value)
        if self.pairs:
            return _pairs(self.name, value)
        if self.many:
            return tuple(self._one(part) for part in _parts(self.name, value, self.type))
        return self._one(value)

    def _one(self, value: Any) -> Any:
        value = _typed(self.name, value, self.type)
        if choices := self.choices():
            check_choice(self.name, value, choices)
        if self.declared.minimum is not None:
            check_at_least(self.name, value, self.declared.minimum)
        if self.declared.maximum is not None:
            check_at_most(self.name, value, self.declared.maximum)
        return value


_DESCRIBED: dict[Any, tuple[Described, ...]] = {}


def described(cls: Any) -> tuple[Described, ...]:
    """Return the options of a class: those of the command in the order of its fields, then those of each mixin."""
    if cls not in _DESCRIBED:
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        found: dict[str, Described] = {}
        for owner in cls.__mro__:
            for name, help_text in _docstrings(owner):
                if name in fields and name not in found:
                    found[name] = _describe(
                        fields[name], hints[name], help_text, owner.__dict__.get("panel", "Options")
                    )
        if missing := [name for name in fields if name not in found]:
            raise TypeError(f"{cls.__name__}: {', '.join(missing)} has no docstring below it")
        own = [found[name] for name in fields if found[name].panel == Options.panel]
        _DESCRIBED[cls] = (*own, *(one for one in found.values() if one not in own))
    return _DESCRIBED[cls]


def _describe(field: dataclasses.Field[Any], hint: Any, help_text: str, panel: str) -> Described:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    kind: Any = str | Path if set(kinds) == {str, Path} else kinds[0] if len(kinds) == 1 else Any
    many, pairs = typing.get_origin(kind) is tuple, typing.get_origin(kind) in (dict, Mapping)
    return Described(
        name=field.name,
        type=typing.get_args(kind)[0] if many or pairs else kind,
        many=many,
        pairs=pairs,
        optional=type(None) in parts or kind is Any,
        default=field.default,
        help=help_text,
        panel=panel,
        declared=field.metadata.get("option", Declared()),
    )


def _docstrings(owner: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class with the docstring below each, in the order of the source."""
    if "__annotations__" not in owner.__dict__ or not dataclasses.is_dataclass(owner):
        return
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    statements = typing.cast("ast.ClassDef", body).body
    for statement, below in itertools.pairwise(statements):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text).replace("\n", " ")


def name_list(argument: str, text: str) -> list[str]:
    """Return the names in a text, in which commas separate them; a quoted name may have commas itself."""
    try:
        rows = list(csv.reader([" ".join(text.splitlines())], skipinitialspace=True))
    except csv.Error as problem:
        raise InputError(f"{argument}: a list of names could not be read: {problem}.") from problem
    return [name.strip() for row in rows for name in row if name.strip()]


def names_of(argument: str, value: Any) -> Names:
    """Return names as a tuple, given as a list or as one text in which commas separate them."""
    return tuple(_typed(argument, part, str) for part in _parts(argument, value, str))


def text_of(argument: str, value: Any) -> str | None:
    """Return text, or ``None``; raise :class:`InputError` for anything else."""
    return None if value is None else str(_typed(argument, value, str))


def is_frame(value: Any) -> bool:
    """Return whether a value is a table in memory: of pandas, polars or pyarrow."""
    return not isinstance(value, type) and hasattr(value, "__arrow_c_stream__") and hasattr(value, "columns")


def table_given(value: Any) -> Any:
    """Return a table as it was given: its path, or a table in memory."""
    if isinstance(value, str | Path) or is_frame(value):
        return value
    raise InputError(f"table: must be a path or a DataFrame (pandas or polars), got {_short(value)}.")


def network_given(value: Any) -> Any:
    """Return a network as it was given: its name or folder as text, or the network itself."""
    if isinstance(value, str | Path):
        return str(value)
    module = getattr(value, "module", value)  # that of a backbone
    if isinstance(value, type) or not all(callable(getattr(module, name, None)) for name in ("forward", "state_dict")):
        raise InputError(
            "model: must be the name of a network, the folder of a checkpoint, package.module:factory or a torch "
            f"module, got {_short(value)}."
        )
    return value


def _short(value: Any) -> str:
    """Return a value as an error names it: a long one by its class."""
    shown = repr(value)
    return shown if len(shown) <= 60 and "\n" not in shown else f"a {type(value).__name__}"


def _parts(argument: str, value: Any, kind: type) -> list[Any]:
    """Return the values of an option that holds several."""
    if isinstance(value, str):
        return list(name_list(argument, value))
    if isinstance(value, Path) or not isinstance(value, Collection) or isinstance(value, Mapping | bytes):
        if kind in (int, float) and isinstance(value, int | float):
            return [value]
        raise InputError(f"{argument}: must be a list, got {_short(value)}.")
    return list(value)


def _pairs(argument: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(name): str(other) for name, other in value.items()}
    found = {}
    for part in _parts(argument, value, str):
        name, equals, other = (piece.strip() for piece in str(part).partition("="))
        if not (name and equals and other):
            raise InputError(f"{argument}: must be NAME=OTHER pairs, got {part!r}.")
        found[name] = other
    return found


_WORDS: Mapping[Any, str] = {
    **{str: "text", int: "a whole number", float: "a number", bool: "True or False"},
    **{Path: "a path", str | Path: "a path"},
}


def _typed(argument: str, value: Any, kind: Any) -> Any:
    """Return one value in its type; numbers may come as text, as the command line and lists have them."""
    try:
        if kind is Any:
            return value
        if kind is bool or isinstance(value, bool):
            if kind is not bool or not isinstance(value, bool):
                raise TypeError
            return value
        if kind is int:
            return int(value) if isinstance(value, str) else operator.index(value)
        if kind is float:
            if not isinstance(value, str):
                value.__float__()
            return float(value)
        if kind in (str, str | Path):
            if not isinstance(value, str | Path):
                raise TypeError
            return str(value) if kind is str else value
        return kind(value)
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"{argument}: must be {_WORDS.get(kind, str(kind))}, got {_short(value)}.") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str | dict):
        return value
    return str(value) if isinstance(value, Path) else type(value).__name__


def seed_list(value: Any) -> Any:
    """Return the seeds 0 … n − 1 for a single number n; a list of seeds as it is."""
    if isinstance(value, str) and "," in value:
        return value
    if isinstance(value, str | int):
        number = _typed("seeds", value, int)
        check_at_least("seeds", number, 1)
        return list(range(number))
    return value
