"""What an attribution reads: a network on images, or an adapter on features, whose gradients are exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.commands.attribute_maps import ImageReader
from conceptkit.errors import InputError
from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import TRUNK, Features, open_features
from conceptkit.models.adapter import on_standardised
from conceptkit.models.backbones import Backbone
from conceptkit.models.checkpoints import is_adapter_folder
from conceptkit.models.guided import GuidedModel
from conceptkit.models.layouts import hooked
from conceptkit.options.attribute import Attribute
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

Steps = Callable[[int, int], None]
"""Called with rows done and rows to do"""

AT_ONCE = 4096
"""Rows of features per pass"""

MAPS = 6
"""Patches at each end of a contact sheet, where images are read"""


@dataclass(frozen=True, kw_only=True)
class FeatureReader:
    """Rows of features for an adapter, standardised by its training rows, in float64."""

    backbone: Backbone
    """Of the copy that reads standardised rows"""
    rows: NDArray[np.intp]
    """Ascending row numbers of ``X``"""
    X: NDArray[np.float64]
    where: torch.device

    def of(self, rows: NDArray[np.intp]) -> Tensor:
        """Return some rows (n, width)."""
        return torch.from_numpy(self.X[np.searchsorted(self.rows, rows)]).to(self.where)

    def batches(self, rows: NDArray[np.intp]) -> Iterator[Tensor]:
        """Give some rows in batches."""
        for start in range(0, len(rows), AT_ONCE):
            yield self.of(rows[start : start + AT_ONCE])

    def activations(self, rows: NDArray[np.intp], layer: str) -> NDArray[np.float64]:
        """Return the output (n, d) of a layer for some rows."""
        module, seen = self.backbone.module, []

        def keep(name: str) -> Any:
            return lambda own, inputs, out: seen.append(out.cpu().numpy())

        with hooked(module, keep, [self.backbone.layer(layer)]), torch.no_grad():
            for batch in self.batches(rows):
                module(batch)
        return np.concatenate(seen)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is attributed and what it reads."""

    features: Features
    reader: ImageReader | FeatureReader
    layers: tuple[str, ...]
    maps: int
    """Patches at each end of a contact sheet"""

    @property
    def backbone(self) -> Backbone:
        """The network that is differentiated."""
        return self.reader.backbone

    def activations(self, rows: NDArray[np.intp], layer: str, progress: Steps | None) -> NDArray[np.float64]:
        """Return the pooled activations (n, d) of some rows at a layer."""
        if isinstance(self.reader, FeatureReader):
            return self.reader.activations(rows, layer)
        self.backbone.module.cpu()  # where the digest of its weights is taken, and activations are read from
        X = np.asarray(self.features.read(rows, [layer], progress=progress)[layer], np.float64)
        self.backbone.module.to(self.reader.where)
        return X


def check_inputs(options: Attribute, study: Study) -> None:
    """Raise :class:`InputError`, before anything is read, when options belong to the other kind of input."""
    if not is_adapter_folder(study.model):
        if options.features is not None:
            raise InputError(
                f"features: only an adapter that guide --features trained reads them, and the model is {study.model}; "
                "name an adapter's checkpoint, or drop --features."
            )
    elif options.maps:
        raise InputError(f"maps: features have no image to draw maps in, got {options.maps}; drop --maps.")
    elif options.pool != "gap":
        raise InputError(f"pool: features are pooled already, got {options.pool}; drop --pool.")


def open_inputs(
    options: Attribute, study: Study, table: PatchTable, rows: NDArray[np.intp], device: torch.device
) -> Inputs:
    """Open the network, or the adapter and the features of ``rows``."""
    features = open_features(
        table,
        study,
        layers=options.layers,
        features=options.features,
        pool=options.pool,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )
    backbone = features.network()
    if not is_adapter_folder(study.model):
        reader = ImageReader(table, backbone, device, options.batch_size)
        maps = MAPS if options.maps is None else options.maps
        return Inputs(features=features, reader=reader, layers=features.layers, maps=maps)
    model = cast(GuidedModel, backbone.module)
    X = np.asarray(features.read(rows, [LAYER])[LAYER], np.float64)
    inner = {name: value.double().numpy() for name, value in model.backbone.named_buffers()}
    own = dataclasses.replace(
        backbone,
        module=on_standardised(model).to(device).eval(),
        aliases={LAYER: f"backbone.{LAYER}", TRUNK: backbone.layer(TRUNK)},
    )
    # Linear heads read the features themselves: one layer, not the same one twice.
    several = len(model.trunk) > 0 or model.erasure is not None
    return Inputs(
        features=features,
        reader=FeatureReader(backbone=own, rows=rows, X=(X - inner["mean"]) / inner["deviation"], where=device),
        layers=options.layers or ((LAYER, TRUNK) if several else (LAYER,)),
        maps=0,
    )
