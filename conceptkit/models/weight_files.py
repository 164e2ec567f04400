"""Weights files, read without running code and matched with a network."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from conceptkit.errors import InputError, reason_of

State = Mapping[str, Tensor]
"""Name of a parameter or buffer → its value."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts that torch adds to names of compiled or wrapped networks"""

_HEADS = ("fc", "classifier", "head", "heads", "last_linear")
"""Names of the classification head in networks that do not state it"""

_DEEPEST = 3
"""Depth of nested dictionaries that are searched for weights"""

_SHOWN = 3
"""Names in an error, of network and file each"""


@dataclass(frozen=True)
class Matched:
    """The part of a file with the weights of a network."""

    state: State
    """By the network's names, with the head's if the file has a head of the same form"""
    classes: int | None
    """Classes of the file's head; ``None`` without a head of the same form"""
    notes: tuple[str, ...]


def read_weights(path: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Return metadata and content of a safetensors or torch file, without running code from it.

    Raises
    ------
    InputError
        when the file cannot be read, or has no weights
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals([argparse.Namespace]):  # stored by many training scripts
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, Mapping) or not any(True for _ in _states(content)):
            raise ValueError("it does not hold a dictionary of tensors by name")
        return {}, content
    except Exception as error:  # both readers raise many types for a broken or unsafe file
        reason = reason_of(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the file
            reason = "not a weights file, or one that would run code; use .safetensors, .pt or .pth"
        raise InputError(f"weights: {path} cannot be read ({reason}).") from None


def match_weights(content: Mapping[str, Any], module: nn.Module, model: str, path: Path) -> Matched:
    """Find the weights of a network in the content of a file.

    They may be in a dictionary (``state_dict``, ``model``, ``teacher``, …), with a prefix (``module.``, ``model.``,
    ``backbone.``, …), without a head, or with another number of classes. Exactly one dictionary and prefix must have
    every name of the network outside its head, each of the same shape.

    Parameters
    ----------
    module : the network, not changed
    model, path : names for errors

    Raises
    ------
    InputError
        when nothing fits, or several parts of the file do
    """
    own = {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    heads = head_names(module)
    body = {k: shape for k, shape in own.items() if not _under(k, heads)}
    candidates = [
        (place, prefix, state) for place, state in _states(content) for prefix in _prefixes(state, body or own)
    ]
    fitting = [c for c in candidates if _fits(c[2], c[1], body, own, heads)]
    if len(fitting) != 1:
        raise _misfit(fitting, content, module, model, path, heads)
    place, prefix, state = fitting[0]
    inside = {k.removeprefix(prefix): v.float() if v.is_floating_point() else v for k, v in state.items()
              if k.startswith(prefix)}  # fmt: skip
    head = {k: v for k, v in inside.items() if k not in body and not k.endswith("num_batches_tracked")}
    where = [f"from {place!r}"] if place else []
    where += [f"without the prefix {prefix!r}"] if prefix else []
    notes = [f"The weights were read {' and '.join(where)} of {path.name}."] if where else []
    whole = all(k in head for k in own if k not in body)  # otherwise a bias would stay random
    classes = _classes(head, heads) if whole else None
    if heads and classes is None and (head or len(own) > len(body)):
        what = f"a head of another form ({min(head)}), which was not read" if head else "no classification head"
        notes.append(f"{path.name} holds {what}: only the layers before {', '.join(heads)} have its weights.")
    body_state = {k: v for k, v in inside.items() if k not in head}
    return Matched({**body_state, **({} if classes is None else head)}, classes, tuple(notes))


def head_names(module: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the classification head: as timm states it, else its last linear layer."""
    stated = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (stated,) if isinstance(stated, str) else tuple(stated)
    if names:
        known = dict(module.named_modules())
        return tuple(name for name in names if name in known)
    for name, part in module.named_children():
        if name in _HEADS:
            linear = [f"{name}.{n}".rstrip(".") for n, m in part.named_modules() if isinstance(m, nn.Linear)]
            return tuple(linear[-1:])
    return ()


def load_weights(module: nn.Module, matched: Matched) -> bool:
    """Load weights into a network; return ``False``, without loading, if the head has another shape.

    Weights that the file does not have stay.
    """
    own = module.state_dict()
    if any(k in own and own[k].shape != v.shape for k, v in matched.state.items()):
        return False
    if matched.classes is not None and any(k not in own and not k.endswith("tracked") for k in matched.state):
        return False
    module.load_state_dict(dict(matched.state), strict=False)
    return True


def _under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _states(content: Mapping[str, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield every dictionary of tensors in a file, with its place; names are without torch's wrappers."""
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield place, {_unwrapped(name): value for name, value in tensors.items()}
    for name, value in content.items():
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _states(value, f"{place}.{name}" if place else str(name), depth + 1)


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _prefixes(state: State, body: Mapping[str, Any]) -> list[str]:
    """Return the prefixes of the first name of a network in a state."""
    first = next(iter(body), "")
    ends = [k.removesuffix(first) for k in state if k.endswith(first)]
    return [prefix for prefix in dict.fromkeys(ends) if not prefix or prefix.endswith(".")]


def _fits(state: State, prefix: str, body: Mapping[str, Any], own: Mapping[str, Any], heads: tuple[str, ...]) -> bool:
    """Return whether a state has, after a prefix, every name of a network outside its head, and no others."""
    if any(prefix + k not in state or tuple(state[prefix + k].shape) != shape for k, shape in body.items()):
        return False
    return not _unexpected(state, prefix, own, heads)


def _unexpected(state: State, prefix: str, own: Mapping[str, Any], heads: tuple[str, ...]) -> list[str]:
    """Return the names after a prefix that a network does not have, except those of any head."""
    places = {*_HEADS, *(head.partition(".")[0] for head in heads)}
    inside = [k.removeprefix(prefix) for k in state if k.startswith(prefix)]
    names = [k for k in inside if k not in own and not k.endswith("num_batches_tracked")]
    return [k for k in names if not heads or k.partition(".")[0] not in places]


def _classes(head: State, heads: tuple[str, ...]) -> int | None:
    """Return the number of classes of a head whose tensors are weights and biases of linear layers."""
    if not head or set(head) - {f"{name}.{part}" for name in heads for part in ("weight", "bias")}:
        return None
    sizes = {len(v) for v in head.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _misfit(
    fitting: list[tuple[str, str, State]],
    content: Mapping[str, Any],
    module: nn.Module,
    model: str,
    path: Path,
    heads: tuple[str, ...],
) -> InputError:
    """Return the error that says why a file does not fit."""
    if fitting:
        parts = [f"{place} {prefix}*".strip() for place, prefix, _ in fitting]
        return InputError(
            f"weights: {path} has several sets of weights that fit {model} ({', '.join(parts)}); save one of them in "
            "a separate file."
        )
    own = {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    body = {k: shape for k, shape in own.items() if not _under(k, heads)}
    tried = [
        (sum(prefix + k in state for k in own), place, prefix, state)
        for place, state in _states(content)
        for prefix in _prefixes(state, body or own) or [""]
    ]
    _, place, prefix, state = max(tried, key=lambda t: t[0])
    where = f" in {place!r}" if place else ""
    missing = [k for k in body if prefix + k not in state]
    unexpected = [prefix + k for k in _unexpected(state, prefix, own, heads)]
    if missing or unexpected:
        return InputError(
            f"weights: {path} does not fit {model}: the network has {_some(missing)} that the file does not have, the "
            f"file{where} has {_some(unexpected)} that the network does not have."
        )
    name = next(k for k, shape in body.items() if tuple(state[prefix + k].shape) != shape)
    shapes = ("×".join(map(str, s)) for s in (body[name], state[prefix + name].shape))
    return InputError(
        f"weights: {path} does not fit {model}: {name} is {next(shapes)} in the network, and {prefix}{name} is "
        f"{next(shapes)} in the file{where}."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more names" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) if names else "nothing"
