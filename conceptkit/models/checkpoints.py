"""Checkpoints of guided networks: safetensors and JSON, opened without running anything from them."""

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

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.models.backbones import Backbone, Preprocessing, build, is_factory, open_backbone, same_architecture
from conceptkit.models.guided import GuidedModel, Task
from conceptkit.records import Note, to_json, write_atomically
from conceptkit.records.reading import read
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import Resolution, resolution_notes

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
}
"""Option of a training that makes its network's scores worth less → the sentence in every result of the network"""

TRAINED = "trained"
"""Name of the weights of a network that was opened from a checkpoint"""

LARGEST = 4096
"""Side in pixels that a checkpoint may ask images to be resized to; no encoder wants as much"""


def open_model(model: str, weights: str | None = None, *, seed: int = 0) -> Backbone:
    """Open a network by name, or a checkpoint by its folder.

    Parameters
    ----------
    model : ``mini_inception``, a name of timm's, or the folder of a checkpoint; of one that was built on a function of
        your own, ``package.module:factory@FOLDER``, as that function is run
    weights : see :func:`conceptkit.models.backbones.open_backbone`; a checkpoint has its own, or ``random``
    seed : of random weights

    Raises
    ------
    InputError
        when it cannot be opened
    """
    if not model.strip():
        raise InputError("model: the name is empty.")
    if not is_checkpoint(model):
        if (folder := _trusted(model)[1]).is_dir():
            model = str(folder)
            raise InputError(f"model: the folder {model} holds no {DESCRIPTION}; name a checkpoint that guide wrote.")
        return open_backbone(model, weights, seed=seed)
    if weights == "random":
        return _random_checkpoint(model, seed)
    if weights is not None:
        raise InputError(f"weights: the checkpoint {model} has its own (or random), got {weights!r}.")
    return load_checkpoint(model)


def random_control(model: str, opened: Backbone, *, seed: int) -> Backbone:
    """Return a network built like the one that ``model`` opened as, with random weights throughout."""
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
    """Write a guided network into ``folder``; the description comes last, so that a half one is not taken for whole.

    Parameters
    ----------
    model : the network; all of its weights are written, frozen ones too
    backbone : what it was built on; its own marks stay
    marks : names in :data:`MARKS`
    trained_on : resolution and size of the patches
    """
    with replacing(folder / WEIGHTS) as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, temporary)
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
    write_atomically(folder / DESCRIPTION, to_json(description))


def inside(backbone: Backbone) -> tuple[Backbone, GuidedModel | None]:
    """Return the plain backbone within an opened checkpoint, and its guided network; without one itself and ``None``.

    The layers have the names again that they had before the network was guided.
    """
    model = backbone.module
    if not isinstance(model, GuidedModel):
        return backbone, None
    prefix = "backbone."
    plain = {alias: name.removeprefix(prefix) for alias, name in backbone.aliases.items() if name.startswith(prefix)}
    # Each layer's own name is an alias of the longer one in the checkpoint, and of itself here.
    aliases = {alias: name for alias, name in plain.items() if alias != name}
    return dataclasses.replace(backbone, module=model.backbone, aliases=aliases), model


def checkpoint_notes(backbone: Backbone, data: PatchTable) -> tuple[str, ...]:
    """Return what to say of a checkpoint that reads patches as they are; nothing of other networks."""
    notes = resolution_notes(backbone.trained_on, data) if backbone.weights == TRAINED else ()
    return (*mark_notes(backbone), *notes)


def mark_notes(backbone: Backbone) -> tuple[str, ...]:
    """Return a sentence for every mark of an opened network, and how its weights were found in their file."""
    return (*(MARKS[name] for name in backbone.marks), *backbone.notes)


def is_checkpoint(path: str | Path) -> bool:
    """Return whether ``path`` is a folder that holds a checkpoint."""
    return (_trusted(path)[1] / DESCRIPTION).is_file()


def _trusted(path: str | Path) -> tuple[str | None, Path]:
    """Return the user's own code that opening may run, and the folder, of ``package.module:factory@FOLDER``."""
    code, at, folder = str(path).partition("@")
    return (code, Path(folder)) if at and is_factory(code) else (None, Path(path))


def load_checkpoint(folder: str | Path) -> Backbone:
    """Open a guided network; the module is a :class:`GuidedModel`, its backbone's layers keep their names and aliases.

    Raises
    ------
    InputError
        when the folder holds no checkpoint, it is broken, or of another version
    """
    model, inner = _built(folder, seed=0)
    folder = _trusted(folder)[1]
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch raise many kinds
        raise _cannot_open(folder, error) from None
    return _as_backbone(model, inner, name=folder.name, weights=TRAINED)


def _random_checkpoint(folder: str | Path, seed: int) -> Backbone:
    model, inner = _built(folder, seed=seed)
    inner = dataclasses.replace(inner, marks=())  # nothing of the training is left
    return _as_backbone(model, inner, name=_trusted(folder)[1].name, weights=f"random:{seed}")


def _built(path: str | Path, *, seed: int) -> tuple[GuidedModel, Backbone]:
    """Build what the folder describes, with random weights; the global random state is left as it was."""
    trusted, folder = _trusted(path)
    description = _description(folder)
    # A checkpoint may come from a stranger: it does not say which code is run, its reader does.
    named = str(description.get("architecture"))
    if is_factory(named) and named != trusted:
        raise InputError(
            f"checkpoint: {folder} was built on {named}, code that opening it would run; name it to allow that, as in "
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
    except Exception as error:  # a malformed description raises many kinds
        raise _cannot_open(folder, error) from None


def _cannot_open(folder: Path, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, KeyError):
        reason = f"{DESCRIPTION} lacks {reason}"
    return InputError(f"checkpoint: {folder} cannot be opened ({reason}).")


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"checkpoint: {folder} holds no {DESCRIPTION}; name a folder that guide wrote.")
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = description["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"checkpoint: {path} is not a checkpoint's description.") from None
    if schema != SCHEMA:
        raise InputError(f"checkpoint: {path} has schema {schema!r}, this version reads {SCHEMA!r}.")
    return description


def _inner(description: dict[str, Any], *, seed: int) -> Backbone:
    """Build the backbone with random weights; a checkpoint's own are loaded over them."""
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
    marks = description.get("marks", [])  # absent from checkpoints of versions that knew none
    for mark in marks:
        if mark not in MARKS:  # a warning that is not understood is not passed over
            raise ValueError(f"mark {mark!r} is not known")
    return tuple(marks)


def _trained_on(description: dict[str, Any]) -> Resolution | None:
    stated = description.get("patches")  # absent from checkpoints of versions that did not state it
    if stated is None:
        return None
    trained_on: Resolution = read(stated, Resolution, "patches")
    return trained_on


def _check_size(folder: Path, description: dict[str, Any]) -> None:
    """Raise unless the tensors that are described are those in the file: no larger network is ever made."""
    try:
        with torch.device("meta"):  # nothing takes memory
            made = _build(_inner(description, seed=0).module, description).state_dict()
    except NotImplementedError:  # an architecture that computes while it is built: it is made as it is
        return
    with safe_open(folder / WEIGHTS, "pt") as file:
        kept = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted({*made, *kept}):
        if name not in made or name not in kept or tuple(made[name].shape) != kept[name]:
            raise ValueError(f"{name} is not in {WEIGHTS} as it is described")


def _build(backbone: nn.Module, description: dict[str, Any]) -> GuidedModel:
    tasks: Sequence[Task] = read(description["tasks"], tuple[Task, ...], "tasks")
    trunk, dropout = description["trunk"], description["dropout"]
    widths = description.get("widths", {})  # absent from checkpoints whose heads all read the trunk's end
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
        # What the heads read: behind the erasure, where there is one.
        aliases={
            **{alias: f"backbone.{n}" for alias, n in inner.aliases.items()},
            "trunk": "trunk" if model.erasure is None else "erasure",
            **own,
        },
    )
