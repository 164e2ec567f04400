"""Families of named members, such as measures or loss weightings, that any package can extend."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from conceptkit.errors import InputError, check_choice

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """The members of a family by name: built-in ones in their order, then those of other packages by name.

    A member is loaded when it is first used; listing the names imports nothing. Another package adds a member with an
    entry point in the group ``conceptkit.FAMILY``, whose name is the member's name. A script adds one with
    :meth:`register`.

    Parameters
    ----------
    family : plural name of the family, such as ``measures``
    members : name → ``module:object`` of the built-in members
    member : ``module:class`` of the members; by default members are functions or classes

    Raises
    ------
    InputError
        on use, when a member of another package fails to load, has the wrong type or takes a built-in name
    """

    def __init__(self, family: str, members: Mapping[str, str], *, member: str | None = None) -> None:
        self.family = family
        self.group = f"conceptkit.{family}"
        self._member = member
        self._built_in = {name: EntryPoint(name, place, self.group) for name, place in members.items()}
        self._loaded: dict[str, T] = {}

    def check(self, argument: str, name: str) -> str:
        """Return ``name``; raise :class:`InputError` with the near names when there is no such member."""
        return check_choice(argument, name, self)

    def choose(self, argument: str, name: str) -> T:
        """Return the member called ``name``; raise :class:`InputError` with the near names when there is none."""
        return self[self.check(argument, name)]

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds a member under ``name``.

        Raises
        ------
        InputError
            when the name is taken
        """

        def add(member: T) -> T:
            if name in self._built_in or name in self._loaded:
                raise InputError(f"{self.group}: the name {name!r} is taken; choose another one.")
            self[name] = member
            return member

        return add

    def __setitem__(self, name: str, member: T) -> None:
        """Add or replace a member."""
        fits = callable(member) if self._member is None else isinstance(member, load(self._member))
        if not fits:
            kind = "a function" if self._member is None else f"a {self._member.rpartition(':')[2]}"
            raise InputError(f"{self.group}: {name!r} must be {kind}, got {type(member).__name__}.")
        self._loaded[name] = member

    def __getitem__(self, name: str) -> T:
        """Return a member; a missing one raises :class:`KeyError`, as in any mapping."""
        if name not in self._loaded:
            self[name] = self._built_in[name].load() if name in self._built_in else _load(self._others()[name])
        return self._loaded[name]

    def __delitem__(self, name: str) -> None:
        """Remove a member that :meth:`register` or an assignment has added."""
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a member, without loading it."""
        return name in self._built_in or name in self._loaded or name in self._others()

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        yield from dict.fromkeys([*self._built_in, *self._loaded, *sorted(self._others())])

    def __len__(self) -> int:
        """Return the number of members."""
        return len(list(iter(self)))

    def first_line(self, name: str) -> str:
        """Return the first line of a function's docstring, read from its file: that imports nothing the function needs.

        Its packages are imported; a member that no file declares under its own name is loaded.
        """
        if name not in self._loaded:
            point = self._built_in[name] if name in self._built_in else self._others()[name]
            spec = importlib.util.find_spec(point.module)
            if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
                for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.FunctionDef) and node.name == point.attr:
                        return (ast.get_docstring(node) or "").partition("\n")[0]
        return (inspect.getdoc(self[name]) or "").partition("\n")[0]

    def _others(self) -> dict[str, EntryPoint]:
        points = _installed(self.group)
        for name in sorted(self._built_in.keys() & points.keys()):
            package = _package(points[name])
            raise InputError(f"{self.group}: {name!r} of {package} has a built-in member's name; uninstall {package}.")
        return points


@functools.cache
def _installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; reading them takes milliseconds."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise InputError(
                f"{group}: {_package(point)} and {_package(other)} both have {point.name!r}; uninstall one of them."
            )
    return points


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as problem:  # whatever the other package raises, the user needs to know whose it is
        raise InputError(
            f"{point.group}: {point.name!r} of {_package(point)} failed to load: {type(problem).__name__}: {problem}."
        ) from problem


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def load(place: str) -> Any:
    """Return the object that ``module:object`` names, and import its module."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
