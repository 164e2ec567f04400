"""Predicting with a network on bags: from the features of patches to the outputs of each bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.features import activations
from conceptkit.features.own_files import LAYER
from conceptkit.features.slide_files import join_slides
from conceptkit.features.sources import open_features
from conceptkit.guide.bag_table import bag_members
from conceptkit.guide.bags import bag_inputs
from conceptkit.guide.training import predict
from conceptkit.models.backbones import Backbone
from conceptkit.models.bags import load_bag_model
from conceptkit.models.checkpoints import TRAINED, open_model
from conceptkit.models.guided import Task
from conceptkit.models.names import is_factory
from conceptkit.options.base import Progress
from conceptkit.probe.targets import check_activations
from conceptkit.runs.opening import at_stage
from conceptkit.synthetic import SLIDE, cache_folder, with_slides
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class BagOutputs:
    """The outputs of a network for bags."""

    bags: list[str]
    patches: list[int]
    """Number of patches of each bag"""
    tasks: tuple[Task, ...]
    raw: Mapping[str, NDArray[np.float64]]
    """Task → (n bags, nodes)"""
    notes: tuple[str, ...]


def bag_outputs(
    folder: Path,
    study: Study,
    *,
    features: str | Path | None,
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> BagOutputs:
    """Return the outputs of a bag checkpoint for the bags of a study's table, named by the column it was trained with.

    Parameters
    ----------
    features : file of the features of patches; ``None`` for those of the table, or of the checkpoint's network

    Raises
    ------
    InputError
        when the checkpoint cannot be opened, or the features are not those that it was trained on
    """
    model, made_with = load_bag_model(folder)
    table, by = study.load_table(), str(made_with["by"])
    if by == SLIDE and study.synthetic:
        table = with_slides(table)
    table = join_slides(table, features, "patch")
    bags, members = bag_members(table, by)
    rows = np.sort(np.concatenate(members))
    notes: tuple[str, ...] = ()
    column = "features" in table.frame.columns and (made_with["model"] == LAYER or table.location is None)
    if features is not None or column:
        source = open_features(table, replace(study, model=None), features=features)
        name = made_with["layer"] if made_with["layer"] in source.layers else source.layers[0]
        values, notes = np.asarray(source.read(rows, [name])[name]), source.notes()
    else:
        values, name = _activations(folder, made_with, table, rows, batch_size, device, progress), made_with["layer"]
    check_activations(values, name)
    width = int(model.backbone.shape["width"])
    if values.shape[1] != width:
        raise InputError(
            f"features: the checkpoint was trained on {width} features per patch ({made_with['model']} at "
            f"{made_with['layer']}), got {values.shape[1]}."
        )
    everywhere = np.zeros((len(table), width), np.float32)
    everywhere[rows] = values
    outputs, _ = predict(model, bag_inputs(model, everywhere, members), device=device)
    raw = {name: output.double().numpy() for name, output in outputs.items()}
    return BagOutputs(bags, [len(own) for own in members], model.tasks, raw, notes)


def _activations(
    folder: Path,
    made_with: Mapping[str, Any],
    table: PatchTable,
    rows: NDArray[np.intp],
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Return the activations (len(rows), d) of the network that the checkpoint was trained on."""
    if made_with["model"] == LAYER:
        raise InputError(
            f"features: {folder} was trained on your own features ({made_with['weights']}); set --features."
        )
    backbone = _network(folder, str(made_with["model"]), str(made_with["weights"]))
    if backbone.fingerprint() != made_with["weights_sha256"]:
        raise InputError(
            f"checkpoint: {made_with['model']} has other weights now than when {folder} was trained; set --features to "
            "the features it was trained on."
        )
    layer = str(made_with["layer"])
    return activations.read_activations(
        table,
        backbone,
        [layer],
        cache=cache_folder(),
        rows=rows,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else at_stage(progress, "reading activations"),
    )[layer]


def _network(folder: Path, model: str, weights: str) -> Backbone:
    """Open the network of a bag checkpoint by what the checkpoint says of it, without running code that it names."""
    if is_factory(model.partition("@")[0]):
        raise InputError(
            f"checkpoint: {folder} was trained on {model}, code that opening it would run; set --features to an "
            "activation store of conceptkit extract."
        )
    kind, _, seed = weights.partition(":")
    try:
        if kind == "random":
            return open_model(model, "random", seed=int(seed or 0))
        return open_model(model, None if kind == TRAINED else weights)
    except InputError as error:
        raise InputError(
            f"checkpoint: the network of {folder} cannot be opened ({str(error).rstrip('.')}); set --features."
        ) from None
