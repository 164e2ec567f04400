"""Options that hold one encoder or several, as NAME=VALUE separated by commas; options of ``encoders``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError
from conceptkit.options.base import Command, declare, name_list, network_given, option
from conceptkit.options.shared import NetworkOptions


def features_given(value: Any) -> Any:
    """Return the path of features, or name → path of several encoders, given as a mapping or as NAME=PATH,…."""
    found = _several("features", value, _path)
    if isinstance(found, Mapping):
        places: dict[str, str] = {}
        for name, path in found.items():
            other = places.setdefault(os.path.realpath(path), name)
            if other != name:
                raise InputError(f"features: {other} and {name} are the same file or folder, {path}.")
    return found


def networks_given(value: Any) -> Any:
    """Return a network as it was given, or name → network of several, given as a mapping, a list or NAME=NETWORK,…."""
    if isinstance(value, list | tuple) and all(isinstance(one, str | Path) for one in value):
        value = ",".join(f'"{one}"' if "," in str(one) else str(one) for one in value)
    return _several("model", value, network_given, named_by_itself=True)


def _path(value: Any) -> Any:
    if isinstance(value, str | Path):
        return value
    raise InputError(f"features: must be a path, or NAME=PATH of several encoders, got a {type(value).__name__}.")


def _several(argument: str, value: Any, one: Callable[[Any], Any], *, named_by_itself: bool = False) -> Any:
    """Return one value, or name → value."""
    if isinstance(value, Mapping) and value:
        return {str(name): _plain(one(given)) for name, given in value.items()}
    if not isinstance(value, str) or os.path.exists(value):
        return one(value)
    found: dict[str, Any] = {}
    parts = name_list(argument, value)
    if not parts:
        raise InputError(f"{argument}: must be a path or a name, got an empty text.")
    for part in parts:
        name, equals, rest = (piece.strip() for piece in part.partition("="))
        if not equals or not name or "/" in name or os.path.exists(part):
            if len(parts) == 1:
                return one(value)
            name, rest = part, part if named_by_itself else ""
        if not rest:
            raise InputError(f"{argument}: each of several encoders needs a name, as NAME=PATH, got {part!r}.")
        if name in found:
            raise InputError(f"{argument}: encoder {name} is named twice; give each encoder its own name.")
        found[name] = _plain(one(rest))
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@declare
class EncoderOptions(NetworkOptions):
    """Which network or networks, with which weights."""

    panel = "Network"

    model: Any = option(None, parse=networks_given)
    """A timm network (also hf-hub:…), an encoder of conceptkit encoders, mini_inception (bundled), a checkpoint folder,
    or package.module:factory, your own function, which is run. Several, as A,B or NAME=A,NAME=B, are compared."""


@declare
class Encoders(Command):
    """List the encoders of computational pathology that --model opens by name, as their authors use them."""

    name = "encoders"
    example = "encoders"
    runner = "conceptkit.commands.encoders:list_encoders"
    caches = False
