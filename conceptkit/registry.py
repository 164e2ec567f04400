"""Families of named members, such as measures or loss weightings, that any package can extend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from conceptkit.errors import InputError

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """The members of a family by name: conceptkit's own in their order, then those of other packages by name.

    Another package adds a member with an entry point in the group ``conceptkit.FAMILY``; the entry point's name is
    the member's name, and its object is loaded when the member is first used. A script adds one with
    :meth:`register`.

    Parameters
    ----------
    family : plural name of the family, such as ``measures``
    members : conceptkit's own members
    member : class of the members; ``None`` when members are functions
    make : function from a name, a function and keywords to a member, for families in which a member is more than its
        function

    Raises
    ------
    InputError
        on use, when a member of another package fails to load, has the wrong type or takes a built-in name
    """

    def __init__(
        self,
        family: str,
        members: Mapping[str, T],
        *,
        member: type | None = None,
        make: Callable[..., T] | None = None,
    ) -> None:
        self.group = f"conceptkit.{family}"
        self._member = member
        self._make = make
        self._loaded = dict(members)
        self._own = frozenset(members)

    def register(self, name: str, **about: Any) -> Callable[[Any], Any]:
        """Return a decorator that adds a function or class under ``name``, and returns the member.

        Parameters
        ----------
        about : what the family needs to know beside the function, such as the unit of a measure

        Raises
        ------
        InputError
            when the name is taken
        """

        def add(function: Any) -> Any:
            if name in self._loaded:
                raise InputError(f"{self.group}: the name {name!r} is taken; choose another one.")
            self[name] = function if self._make is None else self._make(name, function, **about)
            return self._loaded[name]

        return add

    def __setitem__(self, name: str, member: T) -> None:
        """Add or replace a member."""
        fits = callable(member) if self._member is None else isinstance(member, self._member)
        if not fits:
            kind = "a function" if self._member is None else f"a {self._member.__name__}"
            raise InputError(f"{self.group}: {name!r} must be {kind}, got {type(member).__name__}.")
        self._loaded[name] = member

    def __getitem__(self, name: str) -> T:
        """Return a member; a missing one raises :class:`KeyError`, as in any mapping."""
        if name not in self._loaded:
            self[name] = _load(self._others()[name])
        return self._loaded[name]

    def __delitem__(self, name: str) -> None:
        """Remove a member that :meth:`register` or an assignment has added."""
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        yield from self._loaded
        yield from sorted(self._others().keys() - self._loaded.keys())

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._loaded.keys() | self._others().keys())

    def _others(self) -> dict[str, EntryPoint]:
        found = _installed(self.group)
        for name in sorted(self._own & found.keys()):
            package = _package(found[name])
            raise InputError(f"{self.group}: {name!r} of {package} has a built-in member's name; uninstall {package}.")
        return found


@functools.cache
def _installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; reading them takes milliseconds."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise InputError(
                f"{group}: {_package(point)} and {_package(other)} both have {point.name!r}; uninstall one of them."
            )
    return found


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
