"""Extraction: from a network and images to a store of activations, by one process or several."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit.errors import InputError, check_choice, check_distinct
from conceptkit.features.store_files import predicted_bytes, size_text
from conceptkit.features.store_reading import Activations, open_activations
from conceptkit.features.stores import ActivationStore
from conceptkit.images.decoding import Pixels, forget_files
from conceptkit.options.base import Progress
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable, load_table

if TYPE_CHECKING:
    from conceptkit.features.activations import Computed
    from conceptkit.models.layers import Layer

ENGINES = ("local", "dask")


def extract(
    model: Any,
    images_or_table: Any,
    *,
    layers: Sequence[str],
    pool: str = "gap",
    store: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    batch_size: int = 16,
    device: str = "auto",
    autocast: str | None = None,
    on_error: str = "fail",
    verify: bool = False,
    refresh: bool = False,
    engine: str = "local",
    scheduler: str | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Compute activations of layers, once, into a store on disk, and return it for lazy reading.

    What the store has already is not computed again; a run that was killed is finished by the next. Under ``torchrun``
    the rows are shared among the ranks.

    Parameters
    ----------
    model : a network's name (see :func:`conceptkit.models.backbones.open_backbone`), a checkpoint's folder, a torch
        module, or a backbone
    images_or_table : a patch table or its file; or images: (n, h, w, 3) uint8, or a list of files
    layers : names or aliases, each once
    pool : ``gap``, ``max``, ``flatten``, ``cls`` or ``tokens``
    store : the HDF5 file; ``None`` for one in the cache
    weights : as for :func:`conceptkit.models.backbones.open_backbone`; not for a module
    seed : of random weights
    dtype : ``float32`` or ``float16``
    batch_size : images per forward pass; rows are bit-identical for one machine and one batch size
    device : ``auto``, ``cpu``, ``cuda``, …
    autocast : ``None`` for float32, or ``bf16`` or ``fp16``
    on_error : ``fail``, or ``skip`` to list an image that cannot be read and go on
    verify : look at every image's bytes again; by default a file of the same size and time of change is trusted
    refresh : begin anew when the store is of another network, table or preprocessing, or broken
    engine : ``local``, or ``dask`` for the workers of a Dask cluster
    scheduler : the Dask scheduler's address
    notify : receives sentences: how large the store will be, before it is created, and notes on the network
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used, an image cannot be read, or the disk is full; rows that were
        finished before are kept
    """
    from conceptkit.features import sharding
    from conceptkit.features.activations import Job, cached_store, fill, store_rows
    from conceptkit.features.cluster import computed_on_cluster
    from conceptkit.features.sources import NetworkFeatures
    from conceptkit.models.inference import provenance

    check_choice("on_error", on_error, ("fail", "skip"))
    check_choice("engine", engine, ENGINES)
    check_distinct("layer", list(layers))
    if (engine == "dask") != (scheduler is not None):
        raise InputError("scheduler: the engine dask needs the address of one, and no other engine does.")
    table = as_table(images_or_table)
    if verify:
        forget_files()
    features = NetworkFeatures(table, model, layers, weights=weights, seed=seed, pool=pool)
    backbone, layers, notes = features.network(), features.layers, features.notes()
    if notify is not None:
        for note in notes:
            notify(note)
    options = {"pool": pool, "batch_size": batch_size, "device": device, "autocast": autocast}
    made_with = provenance(backbone, layers, pool=pool, batch_size=batch_size, autocast=autocast)
    path = cached_store(cache_folder(), {**made_with, "dtype": dtype}, table) if store is None else Path(store)
    if path.is_dir():
        raise InputError(f"store: {path} is a folder; name a file.")
    job = Job(table=table, backbone=backbone, layers=tuple(layers), options=options, skip_bad=on_error == "skip")

    def opened(where: Path, job: Job) -> ActivationStore:
        def widths() -> dict[str, int]:
            found = job.reader.widths
            if notify is not None and where == path:
                size = size_text(predicted_bytes(table.patch_ids, found, dtype))
                notify(f"{path} will take {size}: {len(table)} rows of {sum(found.values())} values, {dtype}.")
            return found

        rows = store_rows(job.table)
        return ActivationStore(
            where, provenance=made_with, rows=rows, widths=widths, dtype=dtype, verify=verify, refresh=refresh
        )

    def done(todo: int) -> Callable[[int], None] | None:
        return None if progress is None else functools.partial(_told, progress, todo)

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
    told = tuple((table.patch_ids[row], reason) for row, reason in sorted(skipped))
    return dataclasses.replace(found, skipped=told, rows_written=written, notes=notes)


def _told(progress: Progress, todo: int, done: int) -> None:
    progress("extracting", done, todo)


def as_table(given: Any) -> PatchTable:
    """Return a patch table of a table, its file, a list of image files, or an array of images."""
    import pandas as pd

    if isinstance(given, PatchTable):
        table = given
    elif isinstance(given, str | Path):
        table = load_table(Path(given))
    elif isinstance(given, np.ndarray):
        if given.ndim != 4 or given.shape[3] != 3 or given.dtype != np.uint8:
            raise InputError(f"images: must be (n, h, w, 3) uint8, got {given.shape} {given.dtype}.")
        width = len(str(max(len(given) - 1, 0)))
        names = [f"{i:0{width}d}" for i in range(len(given))]
        table = ImageArray(pd.DataFrame({"patch_id": names}), Path(), images=given)
    elif isinstance(given, Sequence):
        names = [str(Path(path).absolute()) for path in given]
        check_distinct("images", names)
        table = PatchTable(pd.DataFrame({"patch_id": [str(p) for p in given], "image": names}), Path())
    else:
        raise InputError(f"images: must be a table, files or an array, got a {type(given).__name__}.")
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


def find_layers(model: str, size: int | None = None) -> tuple[list[Layer], int]:
    """Return the layers of a network, and the side in pixels of the images that they were found with.

    Parameters
    ----------
    model : as for :func:`extract`; its weights are not needed and not downloaded
    size : side of the images; ``None`` for what the network states, else 224

    Raises
    ------
    InputError
        when there is no such network, or it does not take images of that size
    """
    import torch

    from conceptkit.models.backbones import BUNDLED, is_factory
    from conceptkit.models.checkpoints import open_model
    from conceptkit.models.layers import list_layers

    backbone = open_model(model, None if is_factory(model) else "random")
    side = size or backbone.preprocessing.size
    if side is None:
        stated: Any = [c["input_size"] for m in backbone.module.modules() if (c := getattr(m, "pretrained_cfg", None))]
        side = int(stated[0][-1]) if stated else 96 if backbone.architecture == BUNDLED else 224
    return list_layers(backbone.module, backbone.aliases, torch.zeros(1, 3, side, side)), side
