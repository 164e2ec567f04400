"""Activations of a table's patches: read ahead, computed in batches of one size, kept in stores."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.features.store_files import SCHEMA, Rows, predicted_bytes
from conceptkit.features.stores import ActivationStore
from conceptkit.files.matrix import gather
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone
from conceptkit.models.inference import Reader, provenance, views_of
from conceptkit.models.pooling import readable
from conceptkit.tables.patches import PatchTable

Progress = Callable[[int, int], None]
"""Receives the number of rows done and the number of rows in all."""

DECODERS = 2
"""Threads that read images while the network computes. More threads wait for Python's lock: beside an H200, two read
1,190 JPEG files a second, four 940 and sixteen 730. More processes (torchrun) do help."""

AHEAD = 2
"""Batches that are read before they are needed."""


@dataclass(frozen=True)
class Computed:
    """Activations of one batch."""

    rows: NDArray[np.intp]
    """Rows of the table that could be read"""
    values: dict[str, NDArray[np.float32]]
    """Dotted name → (len(rows), d)"""
    digests: list[str]
    """Digests of the bytes that the rows were computed from"""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Rows that could not be read, each with the reason"""


def read_pixels(table: PatchTable, rows: NDArray[np.intp]) -> Pixels:
    """Read the pixels (n, h, w, 3) of some rows; raise :class:`InputError` when their sizes differ."""
    images = [table.pixels(int(row)) for row in rows]
    for image in images:
        _check_shape(image, images[0].shape[:2])
    return np.stack(images)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A table, a network and options from which rows are computed; it can be sent to another process."""

    table: PatchTable
    backbone: Backbone
    layers: tuple[str, ...]
    """Names or aliases"""
    options: Mapping[str, Any]
    """Options of the :class:`conceptkit.models.inference.Reader`"""
    skip_bad: bool = False
    """List rows that cannot be read instead of raising"""
    stated_shape: tuple[int, int] | None = None
    """Height and width of every patch; ``None`` for those of the first row"""

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of every patch; with ``skip_bad`` of the first that can be read."""
        if self.stated_shape is not None:
            return self.stated_shape
        first: InputError | None = None
        for row in range(len(self.table) if self.skip_bad else 1):
            try:
                height, width = self.table.pixels(row).shape[:2]
            except InputError as error:
                first = first or error
            else:
                return height, width
        raise first or InputError("table: there are no rows to read.")

    @functools.cached_property
    def reader(self) -> Reader:
        """The prepared network."""
        return Reader(self.backbone, self.layers, self.shape, **self.options)

    def computed(self, rows: NDArray[np.intp]) -> Iterator[Computed]:
        """Compute rows in batches of one size while the next ones are read.

        A row that cannot be read raises :class:`InputError`, or is listed with ``skip_bad``.
        """
        loaded = _ahead(self._load, rows, self.reader.batch_size)
        # On a CPU, computing the next batch would slow down the writing of this one.
        in_order = map if self.reader.device.type == "cpu" else _one_ahead
        yield from in_order(self._compute, loaded)

    def _compute(self, loaded: tuple[NDArray[np.intp], list[Future[Any]]]) -> Computed:
        read: list[tuple[int, str, Pixels]] = []
        bad: list[tuple[int, str]] = []
        for row, future in zip(*loaded, strict=True):
            try:
                read.append((int(row), *future.result()))
            except InputError as error:
                if not self.skip_bad:
                    raise
                bad.append((int(row), str(error)))
        values = self.reader(np.stack([pixels for _, _, pixels in read])) if read else {}
        done = np.array([row for row, _, _ in read], dtype=np.intp)
        return Computed(done, values, [digest for _, digest, _ in read], bad)

    def _load(self, row: int) -> tuple[str, Pixels]:
        # The digest comes first: if the file changes in between, the next check finds another digest.
        digest, pixels = self.table.digest(row), self.table.pixels(row)
        _check_shape(pixels, self.shape)
        return digest, pixels

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the prepared network: the other process prepares its own."""
        return {k: v for k, v in self.__dict__.items() if k != "reader"}


def fill(
    stores: Sequence[ActivationStore],
    parts: Iterable[Computed],
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, list[tuple[int, str]]]:
    """Write computed rows into stores; return how many, and those that could not be read with the reason."""
    written, skipped = 0, []
    for part in parts:
        for store in stores:
            store.write(part.rows, part.values, part.digests)
            store.skip(np.array([row for row, _ in part.skipped], dtype=np.intp))
        written += len(part.rows)
        skipped += part.skipped
        if progress is not None:
            progress(written + len(skipped))
    return written, skipped


def _ahead(
    load: Callable[[int], Any], rows: NDArray[np.intp], size: int
) -> Iterator[tuple[NDArray[np.intp], list[Future[Any]]]]:
    """Yield batches of rows with what is loaded for each, at most :data:`AHEAD` batches early."""
    batches = deque(rows[i : i + size] for i in range(0, len(rows), size))
    with ThreadPoolExecutor(max_workers=DECODERS) as pool:
        waiting: deque[tuple[NDArray[np.intp], list[Future[Any]]]] = deque()
        try:
            while batches or waiting:
                while batches and len(waiting) <= AHEAD:
                    batch = batches.popleft()
                    waiting.append((batch, [pool.submit(load, int(row)) for row in batch]))
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_ahead(compute: Callable[[Any], Computed], loaded: Iterable[Any]) -> Iterator[Computed]:
    """Yield the results in order; the next one is computed while the last one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        last: Future[Computed] | None = None
        for batch in loaded:
            begun = pool.submit(compute, batch)
            if last is not None:
                yield last.result()
            last = begun
        if last is not None:
            yield last.result()


def _check_shape(pixels: Pixels, shape: tuple[int, ...]) -> None:
    if pixels.shape[:2] != tuple(shape):
        first, other = (f"{s[1]}×{s[0]}" for s in (shape, pixels.shape))
        raise InputError(
            f"table: patches must have one size, this table has {first} and {other} pixels; cut them to one size first."
        )


def readable_layers(
    table: PatchTable, backbone: Backbone, layers: Sequence[str], pool: str
) -> tuple[list[str], tuple[str, ...]]:
    """Return the layers that can be pooled, and a sentence on each other one and on inferred class tokens."""
    shape = Job(table=table, backbone=backbone, layers=(), options={}, skip_bad=True).shape
    views = views_of(backbone, list(dict.fromkeys(backbone.layer(layer) for layer in layers)), shape)
    kept, skipped = readable(views, pool)
    inferred = dict.fromkeys(views[layer].note for layer in kept if views[layer].note)
    return [layer for layer in layers if backbone.layer(layer) in kept], (*skipped, *inferred)


def store_rows(table: PatchTable) -> Rows:
    """Return a table's rows as a store needs them."""
    return Rows(patch_ids=table.patch_ids, stamps=table.identities(), digest=table.digest)


def cached_store(cache: Path, made_with: dict[str, Any], table: PatchTable) -> Path:
    """Return the file in the cache of activations of this provenance and this table."""
    rows = hashlib.sha256("\n".join(table.patch_ids).encode()).hexdigest()
    stated = json.dumps({**made_with, "schema": SCHEMA}, sort_keys=True)
    return cache / "activations" / f"{hashlib.sha256(f'{stated}|{rows}'.encode()).hexdigest()[:24]}.h5"


def read_activations(
    table: PatchTable,
    backbone: Backbone,
    layers: Sequence[str],
    *,
    cache: Path,
    rows: NDArray[np.intp] | None = None,
    pool: str = "gap",
    batch_size: int = 16,
    device: str = "auto",
    away: Path | None = None,
    notify: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return activations; compute those that the stores in ``cache`` do not have.

    Every forward pass runs at ``batch_size`` rows, and short batches are padded: rows computed at another batch size
    would differ in their last bits. Each layer has its own store.

    Parameters
    ----------
    layers : names or aliases, each once
    cache : folder of activation stores
    rows : row numbers of the table; all by default
    pool : one of :data:`conceptkit.families.POOLINGS`
    batch_size : images per forward pass
    away : folder of files for large matrices, see :func:`conceptkit.files.matrix.gather`; ``None`` keeps all in memory
    notify : receives the number of bytes that new stores will take, before any is created
    progress : receives rows done and rows to do

    Returns
    -------
    layer as named → (len(rows), d) float32
    """
    rows = np.arange(len(table)) if rows is None else rows
    made_with = provenance(backbone, layers, pool=pool, batch_size=batch_size, autocast=None)
    options = {"pool": pool, "batch_size": batch_size, "device": device}
    known = store_rows(table)
    shape = functools.cache(lambda: Job(table=table.select(rows), backbone=backbone, layers=(), options={}).shape)

    @functools.cache
    def job(*wanted: str) -> Job:
        return Job(table=table, backbone=backbone, layers=wanted, options=options, stated_shape=shape())

    def widths(own: str) -> dict[str, int]:
        return {own: job(*made_with["layers"]).reader.widths[own]}

    of_layer = {own: {**made_with, "layers": [own]} for own in made_with["layers"]}
    places = {own: cached_store(cache, stated, table) for own, stated in of_layer.items()}
    new = [own for own, path in places.items() if not path.exists()]
    if new and notify is not None:
        notify(sum(predicted_bytes(table.patch_ids, widths(own)) for own in new))
    with contextlib.ExitStack() as stack:
        stores: dict[str, ActivationStore] = {}
        # In one order everywhere: two processes that need two stores each never wait for each other.
        for own, path in sorted(places.items(), key=lambda place: place[1]):
            stated = of_layer[own]
            store = ActivationStore(path, provenance=stated, rows=known, widths=functools.partial(widths, own))
            stores[own] = stack.enter_context(store)
        absent = {own: store.missing(rows) for own, store in stores.items()}
        wanted = [own for own in stores if len(absent[own])]
        if wanted:
            todo = np.unique(np.concatenate([absent[own] for own in wanted]))
            notify = None if progress is None else lambda done: progress(done, len(todo))
            fill([stores[own] for own in wanted], job(*wanted).computed(todo), progress=notify)
        named = zip(layers, made_with["layers"], strict=True)
        return {layer: gather(len(rows), stores[own].parts(own, rows), away) for layer, own in named}
