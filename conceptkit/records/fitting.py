"""Whether what was loaded is of the types that its class is annotated with; a stranger's record may hold anything."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal


def misfit(value: object, meant: Any, place: str) -> str | None:
    """Return what is not of the type that is meant, as ``place is text, not a number``; ``None`` when all is.

    Parameters
    ----------
    meant : a class, or a hint as dataclasses are annotated with: tuples, mappings, unions
    place : what the value is called
    """
    origin, inner = typing.get_origin(meant), typing.get_args(meant)
    if meant is Any or meant is object or origin is ClassVar:
        return None
    if origin in (typing.Union, types.UnionType):
        found = [misfit(value, kind, place) for kind in inner]
        return None if None in found else found[0]
    if origin is Literal:
        return None if value in inner else f"{place} is {value!r}"
    if dataclasses.is_dataclass(meant) and isinstance(value, typing.cast(type, meant)):
        hints = typing.get_type_hints(meant)
        parts = [(getattr(value, f.name), hints[f.name], f.name) for f in dataclasses.fields(meant)]
    elif origin in (tuple, Sequence, list) and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if origin is not tuple or inner[1:] == (...,) else list(inner)
        if len(kinds) != len(value):
            return f"{place} has {len(value)} parts"
        parts = [(v, kind, f"{place}[{k}]") for k, (v, kind) in enumerate(zip(value, kinds, strict=True))]
    elif origin in (Mapping, dict) and isinstance(value, Mapping):
        parts = [(v, inner[1], f"{place}.{k}") for k, v in value.items()]
    else:
        kind = origin or meant
        number = kind is float and isinstance(value, int)
        fits = (isinstance(value, kind) or number) and not (isinstance(value, bool) and kind in (int, float))
        return None if fits else f"{place} is {reprlib.repr(value)}"
    return next((wrong for part in parts if (wrong := misfit(*part)) is not None), None)
