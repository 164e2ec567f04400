"""The digest of what a network computes with."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_KNOWN_SOURCES = ("torch", "torchvision", "timm", "conceptkit")
"""Packages whose classes are known by their names."""


def network_digest(module: nn.Module, architecture: str, arguments: Mapping[str, Any]) -> str:
    """Return a digest of what a network computes with.

    It covers every weight and buffer (also those outside the state dict), the arguments, the printed structure with
    each part's plain settings, and the source of classes and functions outside torch, timm and conceptkit. It does not
    cover settings that are not numbers, text or functions, global variables, functions that a user's code calls, code
    without a file, and versions of libraries.
    """
    digest = hashlib.sha256(architecture.encode())
    digest.update(_plainly(sorted(arguments.items())).encode())
    tensors = {**dict(module.named_buffers()), **module.state_dict()}
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
            digest.update(_bytes_of(value))
    for text in _structure(module):
        digest.update(text.encode())
    return digest.hexdigest()


def _plainly(value: object) -> str:
    """Return the value as text that is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _bytes_of(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous()
    # As bytes, because NumPy has no bfloat16.
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _structure(module: nn.Module) -> Iterator[str]:
    """Yield a network's parts, their plain settings and the source of foreign code."""
    yield _plainly(module)
    known: set[object] = set()
    bare = vars(nn.Module())  # attributes of every module, such as training
    for name, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if k not in bare}
        functions = {k: v for k, v in own.items() if callable(v) and hasattr(v, "__qualname__")}
        plain = {k: v for k, v in own.items() if isinstance(v, bool | int | float | str | tuple | list | None)}
        yield f"{name}|{type(part).__module__}.{type(part).__qualname__}|{_plainly(sorted(plain.items()))}"
        yield from (f"{k}|{v.__module__}.{v.__qualname__}" for k, v in sorted(functions.items()))
        foreign = {c: None for c in (*type(part).__mro__, *functions.values()) if _is_foreign(c) and c not in known}
        known.update(foreign)
        yield from map(_source, foreign)
        if isinstance(part, torch.fx.GraphModule | torch.jit.ScriptModule):
            yield str(getattr(part, "code", ""))  # generated code is in no file


def _is_foreign(thing: object) -> bool:
    place = str(getattr(thing, "__module__", "")).split(".")[0]
    return place not in (*_KNOWN_SOURCES, "builtins", "functools", "")


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return ""
