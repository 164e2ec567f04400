"""Opening a network by name, with weights that are named, never guessed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import inspect
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit._checks import InputError, near_names
from conceptkit.models import layers
from conceptkit.patches import Pixels

BUNDLED = "mini_inception"
"""The network that comes with the package."""

SOURCES = ("hf-hub:", "local-dir:")
"""What a network's name begins with that timm finds in a hub or a folder."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What a network is given that does not state how it wants its pixels."""

_METADATA_ARGUMENTS: dict[str, Callable[[str], Any]] = {"num_classes": int, "pad_type": str}
"""Arguments of timm's constructor that a weights file may state in its metadata."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become a network's input."""

    mean: tuple[float, ...]
    """Per channel, on the scale 0 to 1"""
    std: tuple[float, ...]
    """Per channel, on the scale 0 to 1"""
    size: int | None = None
    """Side that images are resized to; ``None``: as they are"""

    def __call__(self, images: Pixels) -> Tensor:
        """Return normalised images (n, 3, h, w) float32 of pixels (n, h, w, 3) uint8."""
        return self.of(torch.from_numpy(np.require(images, requirements=("C", "W"))))

    def of(self, pixels: Tensor) -> Tensor:
        """Return normalised images (n, 3, h, w) float32 of pixels (n, h, w, 3) uint8, on the device they are on."""
        x = pixels.permute(0, 3, 1, 2).float().div_(255.0)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(
                x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp_(0, 1)
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An opened network, ready to be read."""

    module: nn.Module
    """In evaluation mode, on the CPU"""
    name: str
    """As the user named it"""
    weights: str
    """As the user named them: ``bundled``, ``imagenet``, ``random``, ``random:SEED`` or a file's name"""
    architecture: str
    """Name of the architecture, timm's or ``mini_inception``"""
    arguments: dict[str, Any]
    """What the architecture was built with beside its name"""
    preprocessing: Preprocessing
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of layers → dotted module names"""
    marks: tuple[str, ...] = ()
    """What a reader of its results has to know of its training, by name: see
    :data:`conceptkit.models.checkpoints.MARKS`"""

    def layer(self, name: str) -> str:
        """Return the dotted name of a layer given by that name or an alias."""
        return layers.resolve_layer(self.module, self.aliases, name)

    def fingerprint(self) -> str:
        """Return a digest of what the network computes with: two networks of different digests may differ.

        It holds every weight and buffer (those that no state dict holds too), what the network was built with, its
        printed structure with each part's plain settings, and the source of classes and functions that are neither
        torch's nor timm's nor ours. It does not see: settings that are neither numbers, text nor functions, global
        variables, base functions that a user's own code calls, code typed without a file, and versions of libraries.
        """
        digest = hashlib.sha256(self.architecture.encode())
        digest.update(_plainly(sorted(self.arguments.items())).encode())
        tensors = {**dict(self.module.named_buffers()), **self.module.state_dict()}
        for name, value in sorted(tensors.items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
                digest.update(_bytes_of(value))
        for text in _structure(self.module):
            digest.update(text.encode())
        return digest.hexdigest()


_KNOWN_SOURCES = ("torch", "torchvision", "timm", "conceptkit")
"""Packages whose classes are known by their names."""


def _plainly(value: object) -> str:
    """Return the value in words that are the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _bytes_of(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous()
    # NumPy has no bfloat16: its bytes are taken as they are.
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _structure(module: nn.Module) -> Iterator[str]:
    """Yield what a network does beside its tensors: its parts, their plain settings and the source of foreign code."""
    yield _plainly(module)
    known: set[object] = set()
    bare = vars(nn.Module())  # what torch itself keeps in every module says nothing, training among it
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
            yield str(getattr(part, "code", ""))  # made, not written: no file has it


def _is_foreign(thing: object) -> bool:
    place = str(getattr(thing, "__module__", "")).split(".")[0]
    return place not in (*_KNOWN_SOURCES, "builtins", "functools", "")


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return ""


def open_backbone(model: str, weights: str | None = None, *, seed: int = 0) -> Backbone:
    """Open a network.

    Parameters
    ----------
    model : ``mini_inception`` (bundled), a name of timm's, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER`` (as timm
        publishes networks), or ``package.module:factory`` (a function of your own, **which is run**, that returns a
        network)
    weights : ``imagenet`` (default of timm's networks), ``bundled`` (default of the bundled one), ``published``
        (default of a hub's or folder's), ``own`` (default of a factory's: as it returns them), ``random``, or a
        safetensors file (or a ``.pt``/``.pth`` state dict, read without running code from it)
    seed : of random weights; the global random state is left as it was

    Raises
    ------
    InputError
        when the model is unknown, the weights do not fit or cannot be had
    """
    if model == BUNDLED:
        return _bundled(weights or "bundled", seed)
    if model.startswith(SOURCES):
        return _sourced(model, weights, seed)
    if is_factory(model):
        return _made(model, weights, seed)
    _check_known(model)
    if weights is None or weights == "imagenet":
        return _downloaded(model)
    if weights == "random":
        return build(model, {}, seed=seed)
    return _from_file(model, Path(weights))


def _check_known(model: str) -> None:
    import timm

    if not timm.is_model(model):
        raise InputError(f"model: {model!r} is not known; {near_names(model, [BUNDLED, *timm.list_models()])}.")


def build(
    architecture: str, arguments: dict[str, Any], preprocessing: Preprocessing | None = None, *, seed: int
) -> Backbone:
    """Build a network with random weights; the global random state is left as it was.

    Parameters
    ----------
    architecture : ``mini_inception`` or a name of timm's
    arguments : for timm's constructor
    preprocessing : ``None`` for the architecture's own
    """
    if architecture == BUNDLED:
        backbone = _bundled("random", seed)
    elif is_factory(architecture):
        backbone = _made(architecture, "random", seed)
    else:
        import timm

        _check_known(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = timm.create_model(architecture, pretrained=False, **arguments)
        backbone = _backbone(module, architecture, f"random:{seed}", arguments)
    return backbone if preprocessing is None else dataclasses.replace(backbone, preprocessing=preprocessing)


def same_architecture(backbone: Backbone, *, seed: int) -> Backbone:
    """Return a network built like ``backbone``, with random weights: the control for what is trivial."""
    like = build(backbone.architecture, backbone.arguments, backbone.preprocessing, seed=seed)
    return dataclasses.replace(like, name=backbone.name)


def _bundled(weights: str, seed: int) -> Backbone:
    from conceptkit.models import mini_inception

    if weights not in ("bundled", "random"):
        raise InputError(f"weights: {BUNDLED} has weights bundled and random, got {weights!r}.")
    module = mini_inception.load_mini_inception(pretrained=weights == "bundled", seed=seed)
    return Backbone(
        module=module.eval(),
        name=BUNDLED,
        weights=weights if weights == "bundled" else f"random:{seed}",
        architecture=BUNDLED,
        arguments={},
        preprocessing=Preprocessing(mean=mini_inception.MEAN, std=mini_inception.STD),
    )


def _backbone(
    module: Any, model: str, weights: str, arguments: dict[str, Any], *, mean: Any = None, std: Any = None
) -> Backbone:
    config = module.pretrained_cfg
    size = config["input_size"][-1] if config.get("fixed_input_size") else None
    return Backbone(
        module=module.eval(),
        name=model,
        weights=weights,
        architecture=model,
        arguments=arguments,
        aliases=layers.aliases(module, model),
        preprocessing=Preprocessing(mean=tuple(mean or config["mean"]), std=tuple(std or config["std"]), size=size),
    )


def from_module(module: nn.Module, *, name: str | None = None, weights: str = "own") -> Backbone:
    """Return a network that was built elsewhere, copied, as a backbone.

    How it wants its pixels is taken from its ``preprocessing`` (a :class:`Preprocessing`) or, as timm has it, its
    ``pretrained_cfg``; a network that states neither is given ImageNet's mean and deviation.
    """
    module = copy.deepcopy(module).cpu().eval()
    config = getattr(module, "pretrained_cfg", None) or {}
    stated = getattr(module, "preprocessing", None)
    if not isinstance(stated, Preprocessing):
        mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
        size = config["input_size"][-1] if config.get("fixed_input_size") else None
        stated = Preprocessing(mean=tuple(mean), std=tuple(std), size=size)
    architecture = str(config.get("architecture") or f"{type(module).__module__}.{type(module).__qualname__}")
    return Backbone(
        module=module,
        name=name or architecture,
        weights=weights,
        architecture=architecture,
        arguments={},
        preprocessing=stated,
        aliases=layers.aliases(module, architecture),
    )


def is_factory(model: str) -> bool:
    """Return whether ``model`` names a function of the user's own, as ``package.module:factory``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model) is not None and not model.startswith(SOURCES)


def _made(model: str, weights: str | None, seed: int) -> Backbone:
    """Run a user's factory."""
    place, _, name = model.partition(":")
    sys.path.insert(0, "")  # the current folder, as for python -m
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = getattr(importlib.import_module(place), name)()
            if not isinstance(module, nn.Module):
                raise TypeError(f"it returned a {type(module).__name__}, no torch module")
            if weights == "random":
                torch.manual_seed(seed)  # again, as the factory may have set one of its own
                for part in module.modules():
                    if callable(reset := getattr(part, "reset_parameters", None)):
                        reset()
    except Exception as error:  # it is the user's own code
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"model: {model} gives no network ({type(error).__name__}: {reason}).") from None
    finally:
        sys.path.remove("")
    if weights not in (None, "own", "random"):
        _fill(module, model, Path(str(weights)), _read_state(_weights_file(Path(str(weights))))[1])
    named = {None: "own", "random": f"random:{seed}"}.get(weights, Path(str(weights)).name)
    return dataclasses.replace(from_module(module, name=model, weights=named), architecture=model)


def _sourced(model: str, weights: str | None, seed: int) -> Backbone:
    """Open a network whose architecture and weights lie in a hub's repository or in a folder, as timm writes them."""
    import timm
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    source, _, place = model.partition(":")
    hub = source == "hf-hub"
    if hub and not _repository_kept(place) and not _hub_answers():
        raise _cannot_download(model, "the hub cannot be reached")
    try:
        config, architecture, arguments = (load_model_config_from_hf if hub else load_model_config_from_path)(place)
        arguments = {
            **(arguments or {}),
            **({"num_classes": n} if (n := config.get("num_classes")) is not None else {}),
        }
        if weights in (None, "published"):
            with torch.random.fork_rng(devices=[]):
                module = timm.create_model(model, pretrained=True)
            for file in _kept_of_hub(place) if hub else ():
                _check_hash(file)
            opened = _backbone(module, architecture, "published", arguments)
        elif weights == "random":
            opened = build(architecture, arguments, seed=seed)
        else:
            opened = _from_file(architecture, Path(weights))
    except InputError:
        raise
    except Exception as error:  # network, disk, access, a file that is not there or not timm's
        raise _cannot_download(model, (str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    pixels = dataclasses.replace(
        opened.preprocessing,
        mean=tuple(config.get("mean") or opened.preprocessing.mean),
        std=tuple(config.get("std") or opened.preprocessing.std),
    )
    return dataclasses.replace(opened, name=model, preprocessing=pixels)


def _repository_kept(repository: str) -> bool:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(repository, "config.json"), str)
    except HFValidationError as error:
        raise InputError(f"model: hf-hub:{repository} is no name of a repository ({error}).") from None


def _weights_file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"weights: must be a name that the model knows, random or a file; there is no file {path}.")
    return path


def _fill(module: nn.Module, model: str, path: Path, state: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"weights: {path} does not fit {model} ({reason} …).") from None


def _from_file(model: str, path: Path) -> Backbone:
    import timm

    if not path.is_file():
        raise InputError(f"weights: must be imagenet, random or a file, and there is no file {path}.")
    metadata, state = _read_state(path)
    stated = metadata.get("architecture", model)
    if stated.split(".")[0] != model.split(".")[0]:
        raise InputError(f"weights: {path} holds weights of {stated}, the model is {model}.")
    try:
        arguments = {k: kind(metadata[k]) for k, kind in _METADATA_ARGUMENTS.items() if k in metadata}
        mean, std = (_numbers(metadata[k]) if k in metadata else None for k in ("mean", "std"))
    except ValueError as error:
        raise InputError(f"weights: the metadata of {path} cannot be read ({error}).") from None
    classes = arguments.get("num_classes")
    # Before a network of that size is made:
    if classes and not any(v.ndim and len(v) == classes for v in state.values()):
        raise InputError(f"weights: the metadata of {path} names {classes} classes, which no tensor in it has.")
    try:
        with torch.random.fork_rng(devices=[]):
            module = timm.create_model(model, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"weights: {model} cannot be built as the metadata of {path} says ({reason}).") from None
    _fill(module, model, path, state)
    return _backbone(module, model, path.name, arguments, mean=mean, std=std)


def _read_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a state dict and its metadata; nothing in the file is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        strange = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
        if strange:
            raise ValueError(f"no state dict: {strange[0]!r} is no name of a tensor")
        return {}, state
    except Exception as error:  # both readers raise errors of their own kinds for a broken or unsafe file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"weights: {path} cannot be read ({reason}).") from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in text.split(","))


def _downloaded(model: str) -> Backbone:
    """Open a network with its published weights, from the local copy of the hub or from the hub."""
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None or not (config.has_weights or config.hf_hub_id):
        raise InputError(f"weights: timm publishes none for {model}; use --weights FILE or --weights random.")
    if not _kept_locally(config) and not _hub_answers():
        raise _cannot_download(model, "the hub cannot be reached")
    try:
        with torch.random.fork_rng(devices=[]):
            module = timm.create_model(model, pretrained=True)
    except Exception as error:  # the hub client raises many kinds: network, disk, access, missing file
        raise _cannot_download(model, (str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    for file in _kept_files(config):
        _check_hash(file)
    return _backbone(module, model, "imagenet", {})


def _cannot_download(model: str, reason: str) -> InputError:
    return InputError(
        f"weights: those of {model} could not be downloaded ({reason}); "
        "give a file with --weights FILE, or take untrained weights with --weights random."
    )


def _kept_locally(config: Any) -> bool:
    """Return whether an earlier download can be used, so that no network is needed."""
    return bool(_kept_files(config))


def _kept_files(config: Any) -> list[Path]:
    """Return the files of an earlier download."""
    if config.hf_hub_id:
        return _kept_of_hub(config.hf_hub_id, config.hf_hub_filename)
    name = Path(str(config.url or "")).name
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    return [kept] if name and kept.is_file() else []


def _kept_of_hub(repository: str, filename: str | None = None) -> list[Path]:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        kept = [
            huggingface_hub.try_to_load_from_cache(repository, file)
            for file in (filename, "model.safetensors", "pytorch_model.bin")
            if file
        ]
    except HFValidationError:
        return []
    return [Path(path) for path in kept if isinstance(path, str)]


def _check_hash(path: Path) -> None:
    """Raise :class:`InputError` when a downloaded file is not what its publisher's hash says.

    The client compares sizes alone. The hub's cache calls a file by its SHA-256 (or git's SHA-1), other sites name a
    file with the first digits of its SHA-256; where neither is there, as where links cannot be made, nothing is known.
    """
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if blob is path:
        found = re.search(r"-([0-9a-f]{8,64})\.", path.name)
        stated = found.group(1) if found else ""
    else:
        stated = blob.name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else ""
    if not stated:
        return
    with path.open("rb") as stream:
        if blob is not path and len(stated) == 40:
            content = stream.read()
            own = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
    if not own.startswith(stated):
        raise InputError(
            f"weights: {path} is not what was published (its hash is {own[:8]}…, not {stated[:8]}…); remove it, so "
            "that it is downloaded again."
        )


def _hub_answers(limit: float = 6.0) -> bool:
    """Return whether the hub answers within ``limit`` seconds; its own client retries for almost a minute."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=limit):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer: the client's own error will say more
        except (OSError, ValueError):
            return

    # A thread, as looking a name up cannot be given a time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    return answered.is_set()
