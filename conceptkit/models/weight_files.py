"""Weights files: read without running code, and matched with a network whatever they are wrapped in."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError

State = Mapping[str, Tensor]
"""Name of a parameter or buffer → its value."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch puts into names, at any place, when a network was compiled or wrapped before it was saved"""

_HEADS = ("fc", "classifier", "head", "heads", "last_linear")
"""Names of the classification head in networks that do not state it"""

_DEEPEST = 3
"""Dictionaries within dictionaries that are searched for weights"""

_SHOWN = 3
"""Names that a sentence shows of each side"""


@dataclass(frozen=True)
class Matched:
    """The part of a file that holds the weights of a network."""

    state: State
    """The network's own names; the head's are among them where the file has a head of the network's form"""
    classes: int | None
    """Classes of the head in the file; ``None`` where it has no head of the network's form"""
    notes: tuple[str, ...]


def read_weights(path: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Return metadata and content of a safetensors file or of one that torch saved; nothing in the file is run.

    Raises
    ------
    InputError
        when the file cannot be read, or holds no weights
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals([argparse.Namespace]):  # a bag of options that many trainings store
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, Mapping) or not any(True for _ in _states(content)):
            raise ValueError("it does not hold a dictionary of tensors by name")
        return {}, content
    except Exception as error:  # both readers raise errors of their own kinds for a broken or unsafe file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in the file
            reason = "not a file of weights, or one that would run code; use .safetensors, .pt or .pth"
        raise InputError(f"weights: {path} cannot be read ({reason}).") from None


def match_weights(content: Mapping[str, Any], module: nn.Module, model: str, path: Path) -> Matched:
    """Find the weights of a network in the content of a file.

    A file may hold them in a dictionary (``state_dict``, ``model``, ``teacher``, …), behind a prefix (``module.``,
    ``model.``, ``backbone.``, …), without a head, or with a head of another number of classes. They are taken when
    exactly one dictionary and prefix has every name of the network beside its head, each of the same shape.

    Parameters
    ----------
    module : the network; its weights are not changed
    model, path : names for the sentences

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
    whole = all(k in head for k in own if k not in body)  # else a bias would stay random
    classes = _classes(head, heads) if whole else None
    if heads and classes is None and (head or len(own) > len(body)):
        what = f"a head of another form ({min(head)}), which was not read" if head else "no classification head"
        notes.append(f"{path.name} holds {what}: only the layers before {', '.join(heads)} have its weights.")
    body_state = {k: v for k, v in inside.items() if k not in head}
    return Matched({**body_state, **({} if classes is None else head)}, classes, tuple(notes))


def head_names(module: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the classification head: as timm states it, else the last linear layer there."""
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
    """Put weights into a network; return ``False``, and do nothing, where the head has another shape there.

    What the file does not hold stays as it is.
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
    """Yield every dictionary of tensors in a file, with the names that lead to it; names without torch's wrappers."""
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
    """Return the prefixes with which the first name of a network stands in a state."""
    first = next(iter(body), "")
    ends = [k.removesuffix(first) for k in state if k.endswith(first)]
    return [prefix for prefix in dict.fromkeys(ends) if not prefix or prefix.endswith(".")]


def _fits(state: State, prefix: str, body: Mapping[str, Any], own: Mapping[str, Any], heads: tuple[str, ...]) -> bool:
    """Return whether a state has, behind a prefix, every name of a network beside its head, and no name more."""
    if any(prefix + k not in state or tuple(state[prefix + k].shape) != shape for k, shape in body.items()):
        return False
    return not _unexpected(state, prefix, own, heads)


def _unexpected(state: State, prefix: str, own: Mapping[str, Any], heads: tuple[str, ...]) -> list[str]:
    """Return the names behind a prefix that a network does not have, apart from a head, of whatever form."""
    places = {*_HEADS, *(head.partition(".")[0] for head in heads)}
    inside = [k.removeprefix(prefix) for k in state if k.startswith(prefix)]
    names = [k for k in inside if k not in own and not k.endswith("num_batches_tracked")]
    return [k for k in names if not heads or k.partition(".")[0] not in places]


def _classes(head: State, heads: tuple[str, ...]) -> int | None:
    """Return the number of classes of a head, when its tensors are the weights and biases of linear layers."""
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
    """Return the sentence that says why a file does not fit."""
    if fitting:
        parts = [f"{place} {prefix}*".strip() for place, prefix, _ in fitting]
        return InputError(
            f"weights: {path} holds several sets of weights that fit {model} ({', '.join(parts)}); save the one "
            "that you want in a file of its own."
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
