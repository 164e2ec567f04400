"""Extraction: from a network and images to a store of activations, by one process or several."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from conceptkit.errors import InputError, check_distinct
from conceptkit.features import sharding
from conceptkit.features.activations import Computed, Job, cached_store, fill, store_rows
from conceptkit.features.cluster import computed_on_cluster
from conceptkit.features.sources import NetworkFeatures
from conceptkit.features.store_files import predicted_bytes, size_text
from conceptkit.features.store_reading import Activations, open_activations
from conceptkit.features.stores import ActivationStore
from conceptkit.images.decoding import Pixels, forget_files
from conceptkit.models.backbones import BUNDLED
from conceptkit.models.checkpoints import open_model
from conceptkit.models.inference import provenance
from conceptkit.models.layers import NamedLayer, list_layers
from conceptkit.models.names import is_factory
from conceptkit.options.base import Notify, Progress, is_frame
from conceptkit.options.extract import Extract
from conceptkit.options.layers import Layers
from conceptkit.runs.opening import code_of, open_study
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study, load_study


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """A store that the command wrote."""

    activations: Activations
    study: Study
    options: Extract

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Return the patches that were skipped, each with the reason."""
        return self.activations.skipped

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        found = self.activations
        return {
            "schema": "conceptkit/extract/1",
            "study": self.study.name,
            "synthetic": self.study.synthetic,
            "path": str(self.options.store or found.path),
            "rows": len(found),
            "rows_written": found.rows_written,
            "skipped": [{"what": what, "reason": reason} for what, reason in found.skipped],
            "layers": {name: rows.shape[1] for name, rows in found.layers.items()},
            "pool": found.provenance["pool"],
            "dtype": self.options.dtype,
            "weights_sha256": found.provenance["weights"],
            "notes": list(found.notes),
        }


def extract(
    model: Any,
    images_or_table: Any,
    *,
    notify: Notify | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Activations:
    """Compute activations of layers, once, into a store on disk, and return it for lazy reading.

    What the store has already is not computed again; a run that was killed is finished by the next. Under ``torchrun``
    the rows are shared among the ranks. Rows are bit-identical for one machine and one batch size.

    Parameters
    ----------
    model : a network's name (see :func:`conceptkit.models.backbones.open_backbone`), a checkpoint's folder, a torch
        module, or a backbone
    images_or_table : a study or a table in any form (file, folder, DataFrame); or images: (n, h, w, 3) uint8, or a list
        of files
    notify : receives sentences: how large the store will be, before it is created, and notes on the network
    progress : receives the stage of the work and how far it is
    options : of :class:`conceptkit.options.extract.Extract`, ``layers`` among them

    Raises
    ------
    InputError
        when an option cannot be used, an image cannot be read, or the disk is full; rows that were finished before are
        kept
    """
    return _extract(Extract(model=model, **options), as_table(images_or_table), progress, notify)


def run_extract(
    options: Extract, study: Any = None, *, progress: Progress | None = None, notify: Notify | None = None
) -> Extracted:
    """Extract the activations of a study's patches."""
    weights = None if options.weights is None else str(options.weights)
    study, table = open_study(study, options.table, options.model, weights, None, ())
    if study.model is None:
        raise InputError("model: no model given; set --model or model in the study file.")
    if notify is not None and code_of(study):
        notify(f"Runs user code from {study.model}.")
    options = options.replace(
        table=None, model=study.model, weights=study.weights, layers=options.layers or study.layers
    )
    return Extracted(activations=_extract(options, as_table(table), progress, notify), study=study, options=options)


def _extract(options: Extract, table: PatchTable, progress: Progress | None, notify: Notify | None) -> Activations:
    dtype, scheduler = options.dtype, options.scheduler
    check_distinct("layer", options.layers)
    if (options.engine == "dask") != (scheduler is not None):
        raise InputError("scheduler: the engine dask needs the address of one, and no other engine does.")
    if options.verify:
        forget_files()
    weights = None if options.weights is None else str(options.weights)
    features = NetworkFeatures(
        table, options.model, options.layers, weights=weights, seed=options.seed, pool=options.pool
    )
    backbone, layers, notes = features.network(), features.layers, features.notes()
    if notify is not None:
        for note in notes:
            notify(note)
    reading: dict[str, Any] = {
        "pool": features.pool,
        "batch_size": options.batch_size,
        "autocast": options.autocast,
    }
    made_with = provenance(backbone, layers, **reading)
    store = options.store
    path = cached_store(cache_folder(), {**made_with, "dtype": dtype}, table) if store is None else Path(store)
    if path.is_dir():
        raise InputError(f"store: {path} is a folder; name a file.")
    job = Job(
        table=table,
        backbone=backbone,
        layers=tuple(layers),
        options={**reading, "device": options.device},
        skip_bad=options.on_error == "skip",
    )

    def opened(where: Path, job: Job) -> ActivationStore:
        def widths() -> dict[str, int]:
            found = job.reader.widths
            if notify is not None and where == path:
                size = size_text(predicted_bytes(table.patch_ids, found, dtype))
                notify(f"{path} will take {size}: {len(table)} rows of {sum(found.values())} values, {dtype}.")
            return found

        return ActivationStore(
            where,
            provenance=made_with,
            rows=store_rows(job.table),
            widths=widths,
            dtype=dtype,
            verify=options.verify,
            refresh=options.refresh,
        )

    def done(todo: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress("extracting", done, todo)

    if (ranks := sharding.ranks()) is not None:
        written, skipped = sharding.extract_shards(ranks, job, path, opened, done)
    else:
        with opened(path, job) as kept:
            sharding.absorb_shards(path, kept)
            missing = kept.missing(np.arange(len(table)))
            parts: Iterable[Computed] = ()
            if len(missing):
                parts = job.computed(missing) if scheduler is None else computed_on_cluster(scheduler, job, missing)
            written, skipped = fill([kept], parts, progress=done(len(missing)))
    found = open_activations(path, names={layer: backbone.layer(layer) for layer in layers})
    without = tuple((table.patch_ids[row], reason) for row, reason in sorted(skipped))
    return dataclasses.replace(found, skipped=without, rows_written=written, notes=notes)


def as_table(given: Any) -> PatchTable:
    """Return a patch table of a table, its file, a list of image files, or an array of images."""
    if isinstance(given, PatchTable):
        table = given
    elif isinstance(given, str | Path | Study) or is_frame(given):
        table = load_study(given).load_table()
    elif isinstance(given, np.ndarray):
        if given.ndim != 4 or given.shape[3] != 3 or given.dtype != np.uint8:
            raise InputError(f"images: must be (n, h, w, 3) uint8, got {given.shape} {given.dtype}.")
        width = len(str(max(len(given) - 1, 0)))
        names = [f"{i:0{width}d}" for i in range(len(given))]
        table = ImageArray(pd.DataFrame({"patch_id": names}), Path(), images=given)
    elif isinstance(given, Sequence) and all(isinstance(path, str | Path) for path in given):
        names = [str(Path(path).absolute()) for path in given]
        check_distinct("images", names)
        table = PatchTable(pd.DataFrame({"patch_id": [str(p) for p in given], "image": names}), Path())
    else:
        raise InputError(
            f"images: must be a study, a table, a list of files or an array, got a {type(given).__name__}."
        )
    if not len(table):
        raise InputError("table: there are no rows to extract.")
    return table


@dataclass(frozen=True)
class ImageArray(PatchTable):
    """Images in memory as a patch table."""

    images: Pixels = dataclasses.field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    """(n, h, w, 3)"""

    def pixels(self, row: int) -> Pixels:
        """Return the pixels (h, w, 3) of one row."""
        image: Pixels = self.images[row]
        return image

    def identities(self) -> list[str]:
        """Return a digest of each image."""
        return [self.digest(row) for row in range(len(self.images))]

    def digest(self, row: int) -> str:
        """Return a digest of one image."""
        image = self.images[row]
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class NetworkLayers:
    """The layers of a network."""

    model: str
    size: int
    """Side of the images that they were found with, in pixels"""
    layers: tuple[NamedLayer, ...]
    """The listed layers"""
    hidden: int
    """Number of parts of blocks that are not listed"""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        names = ("name", "aliases", "shape", "kind", "returns")
        layers = [{name: getattr(layer, name) for name in names} for layer in self.layers]
        return {"schema": "conceptkit/layers/1", "model": self.model, "size": self.size, "layers": layers}


def layers_of(options: Layers, *, progress: Progress | None = None, notify: Notify | None = None) -> NetworkLayers:
    """List the layers of a network."""
    if options.model is None:
        raise InputError("model: no model given; set --model.")
    if notify is not None and is_factory(options.model):
        notify(f"Runs user code from {options.model}.")
    found, side = find_layers(options.model, options.size)
    listed = tuple(x for x in found if options.everything or x.aliases or x.name.count(".") < 2)
    return NetworkLayers(model=options.model, size=side, layers=listed, hidden=len(found) - len(listed))


def find_layers(model: str, size: int | None = None) -> tuple[list[NamedLayer], int]:
    """Return the layers of a network, and the side in pixels of the images that they were found with.

    Raises :class:`InputError` when the network is unknown, or does not take images of that size.

    Parameters
    ----------
    model : as for :func:`extract`; its weights are not needed and not downloaded
    size : side of the images; ``None`` for what the network states, else 224
    """
    backbone = open_model(model, None if is_factory(model) else "random")
    side = size or backbone.preprocessing.size
    if side is None:
        stated: Any = [c["input_size"] for m in backbone.module.modules() if (c := getattr(m, "pretrained_cfg", None))]
        side = int(stated[0][-1]) if stated else 96 if backbone.architecture == BUNDLED else 224
    return list_layers(backbone.module, backbone.aliases, torch.zeros(1, 3, side, side)), side
