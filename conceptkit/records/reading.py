"""From JSON to dataclasses: every value is of the type that its field is annotated with, or is refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from conceptkit.records.texts import Metric, Note, from_typed


def read(value: object, hint: Any, place: str, *, null_is_nan: bool = False) -> Any:
    """Return a value of JSON as the type of a field.

    Parameters
    ----------
    hint : a class or an annotation of a dataclass: tuples, mappings, unions, literals
    place : name of the value in messages
    null_is_nan : whether ``null`` stands for a number that is not finite, as :func:`conceptkit.records.to_json` writes

    Raises
    ------
    ValueError
        when the value is of another type, a field is missing, or a key is unknown
    """
    inner = typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    again = functools.partial(read, null_is_nan=null_is_nan)
    if hint in (Any, object):
        return value
    if kind in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        return again(value, next(one for one in inner if one is not types.NoneType), place)
    if kind is Literal and value in inner:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _read_dataclass(value, kind, place, again)
    if kind in (tuple, Sequence, list) and isinstance(value, list | tuple):
        kinds = inner if kind is tuple and inner[1:] != (...,) else [inner[0]] * len(value)
        if len(kinds) == len(value):
            return tuple(
                again(one, hint, f"{place}[{k}]") for k, (one, hint) in enumerate(zip(value, kinds, strict=True))
            )
    if kind in (Mapping, dict) and isinstance(value, Mapping):
        return {key: again(one, inner[1], f"{place}.{key}") for key, one in value.items()}
    if kind is float and null_is_nan and value is None:
        return math.nan
    if kind in (Note, Metric) and isinstance(value, str):
        return kind.of(value)
    if _is_plain(value, kind):
        return value
    raise ValueError(f"{place} is {reprlib.repr(value)}")


def _is_plain(value: object, kind: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(kind, type) and isinstance(value, (int, float) if kind is float else kind)


def _read_dataclass(value: Mapping[str, Any], kind: type, place: str, again: typing.Callable[..., Any]) -> Any:
    values, hints = from_typed(value), typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if typing.get_origin(hints[f.name]) is not ClassVar}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise ValueError(f"{place} has an unknown key {unknown[0]!r}")
    needed = (f for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING)
    missing = [f.name for f in needed if f.name not in values]
    if missing:
        raise ValueError(f"{place} lacks {missing[0]!r}")
    return kind(**{key: again(one, hints[key], f"{place}.{key}") for key, one in values.items()})
