"""Checkpoints of guided networks: safetensors and JSON, opened without running code from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from conceptkit.errors import InputError, reason_of
from conceptkit.files.atomic import replacing
from conceptkit.models.adapter import FEATURES, is_adapter
from conceptkit.models.backbones import (
    Backbone,
    Preprocessing,
    build,
    fixed_parts,
    from_module,
    open_backbone,
    reinitialised,
    same_architecture,
)
from conceptkit.models.guided import GuidedModel, Task
from conceptkit.models.names import is_factory
from conceptkit.options.shared import GIVEN
from conceptkit.records import Note, to_json, write_atomically
from conceptkit.records.reading import read
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import Resolution, encoder_resolution_notes, resolution_notes

SCHEMA = "conceptkit/checkpoint/1"
DESCRIPTION = "checkpoint.json"
WEIGHTS = "weights.safetensors"

MARKS: Mapping[str, Note] = {
    "transductive": Note(
        "transductive",
        "TRANSDUCTIVE: rows of evaluation splits trained the concepts of this network; scores on them are not those of "
        "new data.",
    ),
    "allow_leakage": Note(
        "leakage",
        "LEAKAGE: patients or other groups had rows in several splits when this network was trained; scores on these "
        "splits overstate what it does on new ones.",
    ),
    "with_test": Note(
        "with_test",
        "WITH TEST: evaluation rows were looked at before the training (--with-test); if a choice followed from them, "
        "scores on them are too high.",
    ),
}
"""Training option that weakens what scores show → sentence in every result of the network"""

TRAINED = "trained"
"""Name of a checkpoint's weights"""

LARGEST = 4096
"""Largest side in pixels that a checkpoint may resize images to; no encoder needs more"""


def open_model(model: Any, weights: str | None = None, *, seed: int = 0) -> Backbone:
    """Open a network by name, a checkpoint by its folder, or a network that was built elsewhere.

    Parameters
    ----------
    model : ``mini_inception``, a timm name, a torch module, a backbone, or a checkpoint folder; if it was built on your
        own function, ``package.module:factory@FOLDER``, because that function runs
    weights : see :func:`conceptkit.models.backbones.open_backbone`; of a checkpoint ``random``, or ``None`` or
        ``trained`` for its own. ``random:SEED`` states the seed too, as records do
    seed : of random weights

    Raises
    ------
    InputError
        when the network cannot be opened
    """
    if not isinstance(model, str | Path):
        if weights is not None:
            raise InputError(f"weights: a network that was built already has its own, got {weights!r}.")
        if not isinstance(model, Backbone | nn.Module):
            raise InputError(f"model: must be a name, a torch module or a backbone, got a {type(model).__name__}.")
        return model if isinstance(model, Backbone) else from_module(model)
    model = str(model)
    if not model.strip():
        raise InputError("model: the name is empty.")
    kind, _, number = (weights or "").partition(":")
    if kind == "random" and number.isdecimal():
        weights, seed = kind, int(number)
    if not is_checkpoint(model):
        if (folder := _trusted(model)[1]).is_dir():
            raise InputError(f"model: the folder {folder} is not a guide checkpoint: it has no {DESCRIPTION}.")
        return open_backbone(model, weights, seed=seed)
    if weights == "random":
        return _random_checkpoint(model, seed)
    if weights not in (None, TRAINED):
        raise InputError(f"weights: the checkpoint {model} has its own (or random), got {weights!r}.")
    return load_checkpoint(model)


def random_control(model: str, opened: Backbone, *, seed: int) -> Backbone:
    """Return a randomly initialised network built like ``opened``, which ``model`` opened as."""
    if opened.weights == GIVEN:
        return reinitialised(opened, seed=seed)
    if is_checkpoint(model):
        return _random_checkpoint(model, seed)
    return same_architecture(opened, seed=seed)


def save_checkpoint(
    model: GuidedModel,
    backbone: Backbone,
    folder: Path,
    *,
    marks: Sequence[str] = (),
    trained_on: Resolution | None = None,
) -> None:
    """Write a guided network with all of its weights into ``folder``.

    Parameters
    ----------
    backbone : what the network was built on; its marks stay
    marks : names in :data:`MARKS`
    trained_on : resolution and size of the patches
    """
    description = {
        "schema": SCHEMA,
        "architecture": backbone.architecture,
        "arguments": backbone.arguments,
        "weights": backbone.weights,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "trunk": model.trunk_widths,
        "width": model.width,
        "dropout": model.dropout,
        "widths": model.widths,
        "erases": model.erasure is not None,
        "tasks": [dataclasses.asdict(task) for task in model.tasks],
        "marks": list(dict.fromkeys([*backbone.marks, *marks])),
        "patches": None if trained_on is None else dataclasses.asdict(trained_on),
    }
    write_network(model, folder, DESCRIPTION, description)


def write_network(model: nn.Module, folder: Path, name: str, description: Mapping[str, Any]) -> None:
    """Write a network's weights, and last its description, without which a folder is not a checkpoint."""
    with replacing(folder / WEIGHTS) as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, temporary)
    write_atomically(folder / name, to_json(description))


def inside(backbone: Backbone) -> tuple[Backbone, GuidedModel | None]:
    """Return the plain backbone of an opened checkpoint and its guided network; of others, itself and ``None``.

    The layers have the names that they had before guiding.
    """
    model = backbone.module
    if not isinstance(model, GuidedModel):
        return backbone, None
    prefix = "backbone."
    plain = {alias: name.removeprefix(prefix) for alias, name in backbone.aliases.items() if name.startswith(prefix)}
    # In the checkpoint, a layer's plain name is an alias of its longer one.
    aliases = {alias: name for alias, name in plain.items() if alias != name}
    return dataclasses.replace(backbone, module=model.backbone, aliases=aliases), model


def checkpoint_notes(backbone: Backbone, data: PatchTable) -> tuple[str, ...]:
    """Return marks and notes of a network, and how its resolution differs from the table's, where it is known."""
    notes = resolution_notes(backbone.trained_on, data) if backbone.weights == TRAINED else ()
    if backbone.preset is not None:
        notes = encoder_resolution_notes(backbone.name, backbone.preset.mpp, data)
    return (*mark_notes(backbone), *notes)


def no_control(opened: Backbone) -> str | None:
    """Return why a network has no randomly initialised control; ``None`` if it has one."""
    fixed = fixed_parts(opened.module) if opened.weights == GIVEN else []
    if not fixed:
        return None
    return (
        f"No random network was compared: {fixed[0]} ({len(fixed)} of the parts of {opened.name}) has parameters and "
        "no reset_parameters, so its random state is not known."
    )


def mark_notes(backbone: Backbone) -> tuple[str, ...]:
    """Return a sentence for every mark of a network, and how its weights were found in their file."""
    return (*(MARKS[name] for name in backbone.marks), *backbone.notes)


def is_checkpoint(path: Any) -> bool:
    """Return whether ``path`` is a folder that holds a checkpoint."""
    return isinstance(path, str | Path) and (_trusted(path)[1] / DESCRIPTION).is_file()


def is_adapter_folder(path: Any) -> bool:
    """Return whether ``path`` is a checkpoint of an adapter, which reads features instead of images."""
    if not is_checkpoint(path):
        return False
    description = read_description(_trusted(path)[1] / DESCRIPTION, SCHEMA, "guide")
    return description.get("architecture") == FEATURES


def _trusted(path: str | Path) -> tuple[str | None, Path]:
    """Return the user's code that opening may run, and the folder, of ``package.module:factory@FOLDER``."""
    code, at, folder = str(path).partition("@")
    return (code, Path(folder)) if at and is_factory(code) else (None, Path(path))


def load_checkpoint(folder: str | Path) -> Backbone:
    """Open a guided network; its module is a :class:`GuidedModel`, and layers of its backbone keep names and aliases.

    Raises
    ------
    InputError
        when the folder is not a checkpoint, is broken, or has another version
    """
    model, inner = _built(folder, seed=0)
    folder = _trusted(folder)[1]
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch raise many types
        raise cannot_open(folder, error) from None
    return _as_backbone(model, inner, name=folder.name, weights=TRAINED)


def load_adapter(folder: str | Path) -> nn.Module:
    """Open an adapter that ``guide`` trained on features, as a module from rows (n, d) to task → raw output (n, nodes).

    A categorical task has logits (one of a main task of two classes), a continuous one is in standard deviations of the
    training rows.

    Parameters
    ----------
    folder : of the checkpoint, such as ``runs/guide-001/checkpoints/guided-seed0``

    Raises
    ------
    InputError
        when the folder is not a checkpoint, is broken, or is one of a network on images
    """
    opened = load_checkpoint(folder)
    if not is_adapter(opened.module):
        raise InputError(
            f"checkpoint: {folder} is a network on images ({opened.architecture}), not an adapter that guide trained "
            "on features; open it by --model, or model in Python."
        )
    return opened.module


def _random_checkpoint(folder: str | Path, seed: int) -> Backbone:
    model, inner = _built(folder, seed=seed)
    inner = dataclasses.replace(inner, marks=())  # they are of the training
    return _as_backbone(model, inner, name=_trusted(folder)[1].name, weights=f"random:{seed}")


def _built(path: str | Path, *, seed: int) -> tuple[GuidedModel, Backbone]:
    """Build what the folder describes, with random weights; the global random state does not change."""
    trusted, folder = _trusted(path)
    description = read_description(folder / DESCRIPTION, SCHEMA, "guide")
    if description.get("weights") == GIVEN:
        raise InputError(
            f"checkpoint: {folder} was trained from a torch module given in Python, {description.get('architecture')}, "
            "which no name builds again; train from package.module:factory to open checkpoints of it."
        )
    # A checkpoint may come from a stranger: the user, not the checkpoint, says which code runs.
    named = str(description.get("architecture"))
    if is_factory(named) and named != trusted:
        raise InputError(
            f"checkpoint: {folder} was built on {named}, and opening it would run this code; to allow that, name "
            f"{named}@{folder}."
        )
    try:
        if trusted is None:
            _check_size(folder, description)
        inner = _inner(description, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _build(inner.module, description), inner
    except InputError:
        raise
    except Exception as error:  # a malformed description raises many types
        raise cannot_open(folder, error) from None


def cannot_open(folder: Path, error: Exception) -> InputError:
    """Return the error of a checkpoint that is broken."""
    reason = f"its description has no {reason_of(error)}" if isinstance(error, KeyError) else reason_of(error)
    return InputError(f"checkpoint: {folder} cannot be opened ({reason}).")


def read_description(path: Path, schema: str, command: str) -> dict[str, Any]:
    """Return the description of a checkpoint that ``command`` wrote; raise :class:`InputError` for other files."""
    if not path.is_file():
        raise InputError(f"checkpoint: {path.parent} is not a {command} checkpoint: it has no {path.name}.")
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = description["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"checkpoint: {path} is not a checkpoint's description.") from None
    if found != schema:
        raise InputError(f"checkpoint: {path} has schema {found!r}, this version reads {schema!r}.")
    return description


def _inner(description: dict[str, Any], *, seed: int) -> Backbone:
    """Build the backbone with random weights, which the checkpoint's replace."""
    stated = description["preprocessing"]
    try:
        preprocessing: Preprocessing = read(stated, Preprocessing, "preprocessing")
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if not 1 <= (preprocessing.size or 1) <= LARGEST:
        raise ValueError(f"the size of the preprocessing must be from 1 to {LARGEST}")
    built = build(description["architecture"], description["arguments"], preprocessing, seed=seed)
    return dataclasses.replace(built, marks=_marks(description), trained_on=_trained_on(description))


def _marks(description: dict[str, Any]) -> tuple[str, ...]:
    marks = description.get("marks", [])  # absent from early checkpoints
    for mark in marks:
        if mark not in MARKS:  # an unknown warning must not get lost
            raise ValueError(f"mark {mark!r} is not known")
    return tuple(marks)


def _trained_on(description: dict[str, Any]) -> Resolution | None:
    stated = description.get("patches")  # absent from early checkpoints
    if stated is None:
        return None
    trained_on: Resolution = read(stated, Resolution, "patches")
    return trained_on


def _check_size(folder: Path, description: dict[str, Any]) -> None:
    """Raise unless the described tensors are those in the file, before a network of that size is built."""
    try:
        with torch.device("meta"):  # takes no memory
            made = _build(_inner(description, seed=0).module, description).state_dict()
    except NotImplementedError:  # an architecture that computes while it is built
        return
    with safe_open(folder / WEIGHTS, "pt") as file:
        kept = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted({*made, *kept}):
        if name not in made or name not in kept or tuple(made[name].shape) != kept[name]:
            raise ValueError(f"{name} is not in {WEIGHTS} as it is described")


def _build(backbone: nn.Module, description: dict[str, Any]) -> GuidedModel:
    tasks: Sequence[Task] = read(description["tasks"], tuple[Task, ...], "tasks")
    trunk, dropout = description["trunk"], description["dropout"]
    widths = description.get("widths", {})  # absent if all heads read the trunk's end
    erases = description.get("erases", False)
    return GuidedModel(
        backbone, description["width"], tasks, trunk=trunk, dropout=dropout, widths=widths, erases=erases
    )


def _as_backbone(model: GuidedModel, inner: Backbone, *, name: str, weights: str) -> Backbone:
    own = {n: f"backbone.{n}" for n, _ in inner.module.named_modules() if n}
    return dataclasses.replace(
        inner,
        module=model.eval(),
        name=name,
        weights=weights,
        # The input of the heads: after the erasure, if there is one.
        aliases={
            **{alias: f"backbone.{n}" for alias, n in inner.aliases.items()},
            "trunk": "trunk" if model.erasure is None else "erasure",
            **own,
        },
    )
