"""Predictions of an adapter on features, for ``predict``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import adapter_layers, check_like, open_features
from conceptkit.models.backbones import Backbone
from conceptkit.models.guided import GuidedModel
from conceptkit.models.inference import choose_device, ieee_float32
from conceptkit.options.base import Progress
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

AT_ONCE = 4096
"""Rows per pass"""


def feature_outputs(
    backbone: Backbone,
    table: PatchTable,
    study: Study,
    *,
    features: str | Path | None,
    device: str,
    progress: Progress | None,
) -> tuple[dict[str, NDArray[np.float64]], tuple[str, ...]]:
    """Return task → raw output (n, nodes) of all rows, and notes on the features.

    Raises
    ------
    InputError
        when features are missing or unlike those that the adapter was trained on
    """
    model, where = backbone.module, choose_device(device)
    assert isinstance(model, GuidedModel)
    layers = adapter_layers(backbone.arguments, features)
    opened = open_features(table, study.replace(model=LAYER), layers=layers, features=features)
    [X] = opened.read(np.arange(len(table))).values()
    check_like(backbone.arguments, opened, X.shape[1])
    model.to(where).eval()
    parts: dict[str, list[NDArray[np.float64]]] = {task.name: [] for task in model.tasks}
    with torch.inference_mode(), ieee_float32():
        for start in range(0, len(table), AT_ONCE):
            rows = np.asarray(X[start : start + AT_ONCE], dtype=np.float32)
            for name, output in model(torch.from_numpy(rows).to(where)).items():
                parts[name].append(output.cpu().double().numpy())
            if progress is not None:
                progress("predicting", min(start + AT_ONCE, len(table)), len(table))
    return {name: np.concatenate(values) for name, values in parts.items()}, opened.notes()
