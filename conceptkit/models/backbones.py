"""Opening a network by name, with explicit weights."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.errors import InputError, near_names, reason_of
from conceptkit.families import ENCODERS
from conceptkit.images.decoding import Pixels
from conceptkit.models import downloads, layers, mini_inception
from conceptkit.models.adapter import FEATURES, Standardised
from conceptkit.models.fingerprint import network_digest
from conceptkit.models.names import SOURCES, is_factory
from conceptkit.models.presets import IMAGENET_MEAN, IMAGENET_STD, Preset
from conceptkit.models.weight_files import Matched, head_names, load_weights, match_weights, read_weights
from conceptkit.options.shared import GIVEN
from conceptkit.tables.resolution import Resolution

BUNDLED = "mini_inception"
"""The network in this package."""

_ARGUMENTS: dict[str, Callable[[str], Any]] = {"num_classes": int, "pad_type": str}
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

    def __post_init__(self) -> None:
        both = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, both)) or min(self.std) <= 0:
            raise InputError(
                "preprocessing: mean and std must be three finite numbers each (red, green, blue), std above 0; "
                f"got {self.mean} and {self.std}."
            )

    def __call__(self, images: Pixels, device: torch.device | None = None) -> Tensor:
        """Return normalised images (n, 3, h, w) float32 of pixels (n, h, w, 3) uint8, on ``device`` if given."""
        pixels = torch.from_numpy(np.require(images, requirements=("C", "W")))
        if device is not None and device.type == "cuda":  # uint8 pixels are a quarter of the size
            return self.of(pixels.pin_memory().to(device, non_blocking=True))
        return self.of(pixels).to(device)

    def of(self, pixels: Tensor) -> Tensor:
        """Return normalised images (n, 3, h, w) float32 of pixels (n, h, w, 3) uint8, on the same device."""
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
    """As the user named them: ``bundled``, ``imagenet``, ``random:SEED`` or a file's name; ``given`` of a module"""
    architecture: str
    """timm's name, ``mini_inception``, or a factory or class"""
    arguments: dict[str, Any]
    """Arguments of the architecture's constructor"""
    preprocessing: Preprocessing
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of layers → dotted module names"""
    marks: tuple[str, ...] = ()
    """Names in :data:`conceptkit.models.checkpoints.MARKS` of what results must state of the training"""
    notes: tuple[str, ...] = ()
    """How the weights were found in their file"""
    preset: Preset | None = None
    """How the authors of an encoder use it; ``None`` for other networks"""
    trained_on: Resolution | None = None
    """Resolution of a checkpoint's training patches; ``None`` for other networks and early checkpoints"""

    def layer(self, name: str) -> str:
        """Return the dotted name of a layer given by that name or an alias."""
        return layers.resolve_layer(self.module, self.aliases, name)

    def fingerprint(self) -> str:
        """Return a digest of what the network computes with, see :func:`.fingerprint.network_digest`."""
        return network_digest(self.module, self.architecture, self.arguments)


def open_backbone(model: str, weights: str | None = None, *, seed: int = 0) -> Backbone:
    """Open a network.

    Parameters
    ----------
    model : ``mini_inception`` (bundled), a timm name, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER`` (as timm publishes
        networks), or ``package.module:factory`` (your own function, **which runs**, that returns a network)
    weights : ``imagenet`` (default of timm names), ``bundled`` (default of the bundled network, which also has
        ``tissue``), ``published`` (default of hubs and folders), ``own`` (default of factories: as returned),
        ``random``, or a safetensors file (or a ``.pt``/``.pth`` state dict, read without running code from it)
    seed : seed of random weights; the global random state does not change

    Raises
    ------
    InputError
        when the model is unknown, or the weights do not fit or cannot be downloaded
    """
    if model == BUNDLED:
        return _bundled(weights or "bundled", seed)
    if model in ENCODERS:
        return _encoder(model, weights, seed)
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


def _timm() -> Any:
    """Return timm, whose import takes two seconds that the bundled network does not need."""
    import timm

    return timm


def _create(architecture: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> Any:
    """Return a network that timm builds; arguments that are layers of timm are given by name, as JSON holds them."""
    given = dict(arguments)
    if isinstance(given.get("mlp_layer"), str):
        given["mlp_layer"] = getattr(_timm().layers, given["mlp_layer"])
    return _timm().create_model(architecture, pretrained=pretrained, **given)


def _check_known(model: str) -> None:
    if not _timm().is_model(model):
        raise InputError(
            f"model: {model!r} is not known; {near_names(model, [BUNDLED, *ENCODERS, *_timm().list_models()])}."
        )


def build(
    architecture: str, arguments: dict[str, Any], preprocessing: Preprocessing | None = None, *, seed: int
) -> Backbone:
    """Build a randomly initialised network; the global random state does not change.

    Parameters
    ----------
    architecture : ``mini_inception``, a timm name or a factory
    arguments : of timm's constructor
    preprocessing : ``None`` for the architecture's default
    """
    if architecture == BUNDLED:
        backbone = _bundled("random", seed)
    elif architecture == FEATURES:
        backbone = of_features(FEATURES, **arguments)
    elif is_factory(architecture):
        backbone = _made(architecture, "random", seed)
    else:
        _check_known(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _create(architecture, arguments)
        backbone = _backbone(module, architecture, f"random:{seed}", arguments)
    return backbone if preprocessing is None else dataclasses.replace(backbone, preprocessing=preprocessing)


def of_features(name: str, *, width: int, **stated: Any) -> Backbone:
    """Return the backbone of an adapter, which has no weights; ``stated`` says where the features come from."""
    return Backbone(
        module=Standardised(width).eval(),
        name=name,
        weights=FEATURES,
        architecture=FEATURES,
        arguments={"width": width, **stated},
        preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


def same_architecture(backbone: Backbone, *, seed: int) -> Backbone:
    """Return a randomly initialised network built like ``backbone``, as a control."""
    like = build(backbone.architecture, backbone.arguments, backbone.preprocessing, seed=seed)
    return dataclasses.replace(like, name=backbone.name)


def reinitialised(backbone: Backbone, *, seed: int) -> Backbone:
    """Return a copy of a network that was given as a module, with the random weights that its parts draw."""
    module = copy.deepcopy(backbone.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _reset(module)
    return dataclasses.replace(backbone, module=module, weights=f"random:{seed}")


def fixed_parts(module: nn.Module) -> list[str]:
    """Return the parts of a network with parameters that no ``reset_parameters`` draws at random."""
    return [
        name or type(part).__name__
        for name, part in module.named_modules()
        if next(part.parameters(recurse=False), None) is not None
        and not callable(getattr(part, "reset_parameters", None))
    ]


def _reset(module: nn.Module) -> None:
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()


def weights_setting(backbone: Backbone, given: str | None) -> str:
    """Return the weights as settings state them: a file's path as it was given, else their name."""
    return str(given) if given is not None and Path(given).is_file() else backbone.weights


def _bundled(weights: str, seed: int) -> Backbone:
    trained = weights in mini_inception.WEIGHTS
    if not trained and weights != "random":
        raise InputError(f"weights: {BUNDLED} has weights bundled, tissue and random, got {weights!r}.")
    module = mini_inception.load_mini_inception(
        pretrained=trained, seed=seed, weights=weights if trained else "bundled"
    )
    return Backbone(
        module=module.eval(),
        name=BUNDLED,
        weights=weights if trained else f"random:{seed}",
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


def from_module(module: nn.Module, *, name: str | None = None, weights: str = GIVEN) -> Backbone:
    """Return a copy of a network that was built elsewhere as a backbone; its name is that of its class by default.

    Preprocessing comes from its ``preprocessing`` (a :class:`Preprocessing`) or timm's ``pretrained_cfg``, else it is
    ImageNet's.
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
        name=name or type(module).__qualname__,
        weights=weights,
        architecture=architecture,
        arguments={},
        preprocessing=stated,
        aliases=layers.aliases(module, architecture),
    )


def _made(model: str, weights: str | None, seed: int) -> Backbone:
    """Run a user's factory."""
    place, _, name = model.partition(":")
    sys.path.insert(0, "")  # the current folder, as for python -m
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = getattr(importlib.import_module(place), name)()
            if not isinstance(module, nn.Module):
                raise TypeError(f"it returned a {type(module).__name__}, not a torch module")
            if weights == "random":
                torch.manual_seed(seed)  # again, because the factory may have changed it
                _reset(module)
    except Exception as error:  # it is the user's code
        raise InputError(f"model: {model} returned no network ({type(error).__name__}: {reason_of(error)}).") from None
    finally:
        sys.path.remove("")
    notes: tuple[str, ...] = ()
    if weights not in (None, "own", "random"):
        path = Path(str(weights))
        if not path.is_file():
            raise InputError(f"weights: must be own, random or a file; file {path} not found.")
        notes = _filled(module, match_weights(read_weights(path)[1], module, model, path), path)
    named = {None: "own", "random": f"random:{seed}"}.get(weights, Path(str(weights)).name)
    return dataclasses.replace(from_module(module, name=model, weights=named), architecture=model, notes=notes)


def _encoder(name: str, weights: str | None, seed: int) -> Backbone:
    """Open an encoder with the preprocessing of its authors."""
    preset = ENCODERS[name]
    if preset.package:
        raise InputError(
            f"model: {name} ({preset.repository}) is not a timm network, it needs the package {preset.package}; "
            "extract its features, for example with TRIDENT, and set --features to their files."
        )
    opened = _sourced(f"hf-hub:{preset.repository}", weights, seed, preset.arguments)
    preprocessing = Preprocessing(mean=preset.mean, std=preset.std, size=preset.size)
    remark = (f"{name}: {preset.remark}.",) if preset.remark else ()
    notes = (*opened.notes, *remark)
    return dataclasses.replace(opened, name=name, preprocessing=preprocessing, preset=preset, notes=notes)


def _sourced(model: str, weights: str | None, seed: int, more: Mapping[str, Any] = MappingProxyType({})) -> Backbone:
    """Open a network from a hub's repository or a folder, as timm writes them; ``more`` are arguments not in there."""
    hub_of_timm = _timm().models._hub
    source, _, place = model.partition(":")
    hub = source == "hf-hub"
    if hub and not downloads.repository_kept(place) and not downloads.hub_answers():
        raise downloads.cannot_download(model, "the hub does not answer")
    try:
        config, architecture, arguments = (
            hub_of_timm.load_model_config_from_hf if hub else hub_of_timm.load_model_config_from_path
        )(place)
        arguments = {
            **(arguments or {}),
            **({"num_classes": n} if (n := config.get("num_classes")) is not None else {}),
            **more,
        }
        if weights in (None, "published"):
            with torch.random.fork_rng(devices=[]):
                module = _create(model, more, pretrained=True)
            for file in downloads.kept_of_hub(place) if hub else ():
                downloads.check_hash(file)
            opened = _backbone(module, architecture, "published", arguments)
        elif weights == "random":
            opened = build(architecture, arguments, seed=seed)
        else:
            opened = _from_file(architecture, Path(weights), arguments)
    except InputError:
        raise
    except Exception as error:  # network, disk, access, a missing file or one that is not timm's
        for file in downloads.kept_of_hub(place) if hub else ():
            downloads.check_hash(file)  # the reason, where a file cannot be read
        raise downloads.download_error(model, error) from None
    pixels = dataclasses.replace(
        opened.preprocessing,
        mean=tuple(config.get("mean") or opened.preprocessing.mean),
        std=tuple(config.get("std") or opened.preprocessing.std),
    )
    return dataclasses.replace(opened, name=model, preprocessing=pixels)


def _filled(module: nn.Module, matched: Matched, path: Path) -> tuple[str, ...]:
    """Load weights into a network that was built elsewhere, with a head for the file's classes; return the notes."""
    if matched.classes is not None:
        for name in head_names(module):
            old: Any = module.get_submodule(name)
            if isinstance(old, nn.Linear) and old.out_features != matched.classes:
                new = nn.Linear(old.in_features, matched.classes, bias=old.bias is not None)
                module.set_submodule(name, new)
    if not load_weights(module, matched):
        raise InputError(f"weights: the head in {path} does not fit the network's {', '.join(head_names(module))}.")
    return matched.notes


def _from_file(model: str, path: Path, arguments: Mapping[str, Any] | None = None) -> Backbone:
    """Open a timm network with the weights and classes of a file, whose metadata override ``arguments``."""
    if not path.is_file():
        raise InputError(f"weights: must be imagenet, random or a file; file {path} not found.")
    metadata, content = read_weights(path)
    stated = metadata.get("architecture", model)
    if stated.split(".")[0] != model.split(".")[0]:
        raise InputError(f"weights: {path} holds weights of {stated}, the model is {model}.")
    try:
        built_with = {**(arguments or {}), **{k: kind(metadata[k]) for k, kind in _ARGUMENTS.items() if k in metadata}}
        mean, std = (_numbers(metadata[k]) if k in metadata else None for k in ("mean", "std"))
        Preprocessing(mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)  # refused here, to name the file
    except ValueError as error:
        raise InputError(f"weights: the metadata of {path} cannot be read ({error}).") from None
    classes = built_with.get("num_classes") if "num_classes" in metadata else None
    # Before a network of that size is built:
    if classes and not any(v.ndim and len(v) == classes for v in content.values()):
        raise InputError(f"weights: the metadata of {path} states {classes} classes, which no tensor in it has.")
    module = _built(model, built_with, path)
    matched = match_weights(content, module, model, path)
    if not load_weights(module, matched) or matched.classes is None:
        built_with["num_classes"] = matched.classes or 0
        module = _built(model, built_with, path)
        if not load_weights(module, matched):
            raise InputError(f"weights: the head in {path} does not fit {model}'s {', '.join(head_names(module))}.")
    opened = _backbone(module, model, path.name, built_with, mean=mean, std=std)
    return dataclasses.replace(opened, notes=matched.notes)


def _built(model: str, arguments: Mapping[str, Any], path: Path) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            module: nn.Module = _create(model, arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"weights: {model} cannot be built as the metadata of {path} says ({reason_of(error)})."
        ) from None
    return module


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in text.split(","))


def _downloaded(model: str) -> Backbone:
    """Open a network with its published weights, from the hub or its cache."""
    config = _timm().get_pretrained_cfg(model)
    if config is None or not (config.has_weights or config.hf_hub_id):
        raise InputError(f"weights: timm has none for {model}; use --weights FILE or --weights random.")
    if not downloads.kept_files(config) and not downloads.hub_answers():
        raise downloads.cannot_download(model, "the hub does not answer")
    try:
        with torch.random.fork_rng(devices=[]):
            module = _timm().create_model(model, pretrained=True)
    except Exception as error:  # the hub's client raises many types
        raise downloads.download_error(model, error) from None
    for file in downloads.kept_files(config):
        downloads.check_hash(file)
    return _backbone(module, model, "imagenet", {})
