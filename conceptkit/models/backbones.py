"""Opening a network by name, with weights that are named, never guessed."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
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
        x = torch.from_numpy(np.require(images, requirements=("C", "W"))).permute(0, 3, 1, 2).float().div_(255.0)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(
                x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp_(0, 1)
        return x.sub_(torch.tensor(self.mean).view(3, 1, 1)).div_(torch.tensor(self.std).view(3, 1, 1))


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

    def layer(self, name: str) -> str:
        """Return the dotted name of a layer given by that name or an alias."""
        return layers.resolve_layer(self.module, self.aliases, name)

    def fingerprint(self) -> str:
        """Return a digest of every weight and buffer: two networks of one digest compute the same."""
        digest = hashlib.sha256(self.architecture.encode())
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def open_backbone(model: str, weights: str | None = None, *, seed: int = 0) -> Backbone:
    """Open a network.

    Parameters
    ----------
    model : ``mini_inception`` (bundled) or a name of timm's
    weights : ``imagenet`` (default of timm's networks), ``bundled`` (default of the bundled one), ``random``, or a
        safetensors file (or a ``.pt``/``.pth`` state dict, read without running code from it)
    seed : of random weights; the global random state is left as it was

    Raises
    ------
    InputError
        when the model is unknown, the weights do not fit or cannot be had
    """
    if model == BUNDLED:
        return _bundled(weights or "bundled", seed)
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
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model(model, pretrained=False, **arguments)
    try:
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"weights: {path} does not fit {model} ({reason} …).") from None
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
        strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
        if strange:
            raise ValueError(f"no state dict: {strange[0]!r} is no tensor")
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
    return _backbone(module, model, "imagenet", {})


def _cannot_download(model: str, reason: str) -> InputError:
    return InputError(
        f"weights: those of {model} could not be downloaded ({reason}); "
        "give a file with --weights FILE, or take untrained weights with --weights random."
    )


def _kept_locally(config: Any) -> bool:
    """Return whether an earlier download can be used, so that no network is needed."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    if not config.hf_hub_id:
        name = Path(str(config.url or "")).name
        return bool(name) and (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()
    for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        try:
            kept = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file) if file else None
        except HFValidationError:
            return False
        if isinstance(kept, str):
            return True
    return False


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
