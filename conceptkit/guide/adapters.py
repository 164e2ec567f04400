"""What an adapter is trained on: features in place of images, and the backbone that stands for them."""

from __future__ import annotations

from typing import Any

from conceptkit.errors import InputError
from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import Features, check_like, open_features, origin_of, uses_files
from conceptkit.models.backbones import Backbone, of_features
from conceptkit.models.checkpoints import is_adapter_folder, open_model
from conceptkit.options.guide import Guided
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


def features_for(table: PatchTable, study: Study, options: Guided) -> Features | None:
    """Return the features on which an adapter is trained; ``None`` for a network on images.

    Raises
    ------
    InputError
        when options are of a network on images, or a store has several layers and none is named
    """
    if not uses_files(table, study, options.features):
        if options.feature_layer is not None and getattr(options, "select", None) is None:
            raise InputError("layer: names a layer of --features, and none are given; see --unfreeze for a network's.")
        return None
    model = options.model
    if model not in (None, LAYER) and not is_adapter_folder(model):
        raise InputError(
            f"model: with --features it must be a checkpoint of an adapter, got {model}; drop one of the two options."
        )
    if options.unfreeze:
        raise InputError("unfreeze: an adapter has no layers of a backbone; drop it, or set --model instead.")
    if getattr(options, "disturb", ()):
        raise InputError("disturb: needs images, and an adapter is trained on features.")
    layers = None if options.feature_layer is None else [options.feature_layer]
    features = open_features(table, study.replace(model=LAYER), layers=layers, features=options.features)
    if len(features.layers) > 1:
        raise InputError(f"layer: {options.features} has {', '.join(features.layers)}; set --layer to one of them.")
    return features


def opened_on(features: Features, X: Any, options: Guided) -> Backbone:
    """Return the backbone of an adapter, or the adapter that the options name, on features (n, d) that were read."""
    if options.model in (None, LAYER):
        return of_features(features.made_by, width=X.shape[1], **origin_of(features), sha256=features.digest())
    opened = open_model(options.model, None if options.weights is None else str(options.weights))
    check_like(opened.arguments, features, X.shape[1])
    return opened
