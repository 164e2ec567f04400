"""Features by one interface: networks, activation stores, feature files and pixel statistics."""

from __future__ import annotations

import abc
import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice, check_distinct
from conceptkit.features import activations
from conceptkit.features.own_files import LAYER, OwnFeatures, read_features
from conceptkit.features.pixels import VERSION, read_pixel_statistics
from conceptkit.features.slide_files import with_features
from conceptkit.features.stated import stated_of
from conceptkit.features.store_files import Rows
from conceptkit.features.store_reading import Activations, changed_since, is_store, open_activations
from conceptkit.files.matrix import gather, in_blocks
from conceptkit.models.backbones import Backbone, weights_setting
from conceptkit.models.checkpoints import (
    checkpoint_notes,
    is_adapter_folder,
    mark_notes,
    no_control,
    open_model,
    random_control,
)
from conceptkit.models.guided import GuidedModel
from conceptkit.probe.vectors import Origin
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

TRUNK = "trunk"
"""Layer of an adapter that its heads read"""

PIXELS = "pixel statistics"
"""Name of the layer of pixel statistics."""

_Size = Callable[[int], None] | None
_Progress = Callable[[int, int], None] | None


class Features(abc.ABC):
    """Features of a table's patches by layer, wherever they come from; :func:`open_features` chooses the kind."""

    table: PatchTable
    layers: tuple[str, ...]
    """Names of the layers"""
    pool: str
    """How positions were pooled"""
    model: str
    """The network as given by the user, or the origin of the features"""
    name: str
    """Name of the network, or of the origin of the features"""
    made_by: str
    """Name of the weights, the store or the file; of files, once rows were read"""

    def read(
        self,
        rows: NDArray[np.intp],
        layers: Sequence[str] | None = None,
        *,
        on_size: _Size = None,
        progress: _Progress = None,
    ) -> dict[str, Any]:
        """Return layer → (len(rows), d), each an array or a :class:`conceptkit.files.matrix.FileMatrix`.

        Parameters
        ----------
        rows : row numbers of the table
        layers : some of :attr:`layers`; ``None`` for all
        on_size : receives the number of bytes that new files in the cache will take, before any is created
        progress : receives rows done and rows to do

        Raises
        ------
        InputError
            when a row has no features, or they cannot be read
        """
        return self._read(rows, self.layers if layers is None else layers, on_size, progress)

    @abc.abstractmethod
    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        """Return layer → (len(rows), d)."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Return a digest of what the features depend on besides the pixels, or of the features themselves."""

    def notes(self) -> tuple[str, ...]:
        """Return notes on the features, for the results."""
        return ()

    def network(self) -> Backbone:
        """Return the network itself, for gradients; raise :class:`InputError` where there are features only."""
        raise InputError(
            f"model: {self.made_by} holds features only; set --model to a network, and name a table of images."
        )

    def random_controls(self, n: int) -> Iterator[Features]:
        """Yield the features of ``n`` randomly initialised copies of the network; none where there is no network."""
        yield from ()

    def settings(self) -> dict[str, str]:
        """Return what a record states of the origin of its features."""
        return {"model": self.model, "weights": self.made_by, "weights_sha256": self.digest()}

    def origin(self) -> Origin:
        """Return what vectors fitted on these features depend on besides them, without the size of the patches."""
        settings = self.settings()
        return Origin(
            source="network",
            model=settings["model"],
            weights=settings["weights"],
            fingerprint=settings["weights_sha256"],
            pool=self.pool,
        )


class NetworkFeatures(Features):
    """Activations of a network, kept in the cache folder; of several layers, those that can be pooled.

    Parameters
    ----------
    model, weights, seed : see :func:`conceptkit.models.checkpoints.open_model`
    layers : names or aliases
    pool : one of :data:`conceptkit.families.POOLINGS`; ``None``: that of the encoder's authors, or ``gap``
    batch_size : images per forward pass
    device : ``auto``, ``cpu``, ``cuda``, …
    """

    def __init__(
        self,
        table: PatchTable,
        model: Any,
        layers: Sequence[str],
        *,
        weights: str | None = None,
        seed: int = 0,
        pool: str | None = None,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        self.table = table
        self._seed, self._batch_size, self._device = seed, batch_size, device
        self._backbone = open_model(model, weights, seed=seed)
        self._weights = weights_setting(self._backbone, weights)
        preset = self._backbone.preset
        self.pool = pool or (preset.pool if preset else "gap")
        layers = layers or ([preset.layer] if preset else ())
        self.name, self.made_by = self._backbone.name, self._backbone.weights
        self.model = str(model) if isinstance(model, str | Path) else self.name
        kept, self._notes = activations.readable_layers(table, self._backbone, layers, self.pool)
        self.layers = tuple(kept)

    def network(self) -> Backbone:
        """Return the network."""
        return self._backbone

    def notes(self) -> tuple[str, ...]:
        """Return what a checkpoint states of its training, layers that cannot be pooled, and inferred class tokens."""
        without = no_control(self._backbone)
        return (*checkpoint_notes(self._backbone, self.table), *self._notes, *([without] if without else []))

    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        return activations.read_activations(
            self.table,
            self._backbone,
            layers,
            cache=cache_folder(),
            rows=rows,
            pool=self.pool,
            batch_size=self._batch_size,
            device=self._device,
            away=cache_folder(),
            notify=size,
            progress=progress,
        )

    def digest(self) -> str:
        """Return the digest of the network."""
        return self._backbone.fingerprint()

    def settings(self) -> dict[str, str]:
        """Return network and weights as they open it again."""
        return {**super().settings(), "weights": self._weights}

    def origin(self) -> Origin:
        """Return network, preprocessing and pooling."""
        return dataclasses.replace(super().origin(), preprocessing=dataclasses.asdict(self._backbone.preprocessing))

    def random_controls(self, n: int) -> Iterator[Features]:
        """Yield the features of ``n`` networks built alike, with the seeds that follow this network's.

        There is none for a module with parts that cannot be initialised at random.
        """
        seeds = (seed for seed in itertools.count(self._seed + 1) if f"random:{seed}" != self.made_by)
        for seed in itertools.islice(seeds, 0 if no_control(self._backbone) else n):
            control = copy.copy(self)
            control._seed, control._backbone = seed, random_control(self.model, self._backbone, seed=seed)
            control.made_by = control._backbone.weights
            yield control


class StoreFeatures(Features):
    """Activations in a store that ``extract`` wrote, found by ``patch_id``; ``layers`` of ``None`` are all of it."""

    def __init__(self, table: PatchTable, store: Activations, layers: Sequence[str] | None = None) -> None:
        for name in layers or ():
            check_choice("layer", name, store.layers)
        self.table, self.layers = table, tuple(layers or store.layers)
        self.pool, self.name = (str(store.provenance.get(key)) for key in ("pool", "architecture"))
        self.model, self.made_by = self.name, store.path.name
        self._store = store

    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        store = self._store
        place = {name: i for i, name in enumerate(store.patch_ids)}
        part = self.table.select(rows)
        absent = [name for name in part.patch_ids if name not in place]
        if absent:
            raise InputError(
                f"features: {store.path} has no row for patch {absent[0]} ({len(absent)} of {len(part)} are missing); "
                "extract from this table."
            )
        if part.location is not None:
            now = Rows(patch_ids=part.patch_ids, stamps=part.identities(), digest=part.digest)
            if changed := changed_since(store.path, now):
                raise InputError(
                    f"features: {store.path} was computed from another image of patch {changed[0]} "
                    f"({len(changed)} of {len(part)} have changed); extract again."
                )
        at = np.array([place[name] for name in part.patch_ids], dtype=np.intp)

        def taken(layer: str) -> Any:
            values = store[layer]
            return in_blocks(len(at), values.shape[1], lambda rows: np.asarray(values[at[rows]], dtype=np.float32))

        return {layer: gather(len(at), taken(layer), cache_folder()) for layer in layers}

    def digest(self) -> str:
        """Return the digest of the network, as the store states it."""
        return str(self._store.provenance.get("weights"))

    def origin(self) -> Origin:
        """Return network, preprocessing and pooling, as the store states them."""
        stated = self._store.provenance.get("preprocessing")
        return dataclasses.replace(super().origin(), source="store", preprocessing=stated)


class FileFeatures(Features):
    """Embeddings in the files that the column ``features`` names, as one layer.

    Name, notes and digest are those of the rows that were read last; of all rows before any was read.
    """

    def __init__(self, table: PatchTable, layers: Sequence[str] | None = None, *, pool: str = "gap") -> None:
        for name in layers or ():
            check_choice("layer", name, (LAYER,))
        self.table, self.pool = table, pool
        self.layers, self.model, self.name, self.made_by = (LAYER,), LAYER, LAYER, LAYER
        self._last: OwnFeatures | None = None

    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        self._last = read_features(self.table, rows, away=cache_folder())
        self.made_by = self._last.name
        return {LAYER: self._last.X}

    def _features(self) -> OwnFeatures:
        if self._last is None:
            self.read(np.arange(len(self.table)))
        return cast(OwnFeatures, self._last)

    def notes(self) -> tuple[str, ...]:
        """Return which columns are not used as features, and which features are columns of the table."""
        return self._features().notes

    def digest(self) -> str:
        """Return a digest of the values."""
        return self._features().digest()

    def origin(self) -> Origin:
        """Return the files and what they state of their encoder, whose digest no file has."""
        files = self.table.frame["features"].dropna().astype(str).unique()
        stated = stated_of(self.table.folder / file for file in files)
        return Origin(source="files", model=self.model, weights=self.made_by, stated=stated, pool=self.pool)


class PixelFeatures(Features):
    """Plain statistics of each patch's pixels; a table without pixels has no layer."""

    def __init__(self, table: PatchTable) -> None:
        self.table, self.pool = table, "none"
        self.layers = () if table.location is None else (PIXELS,)
        self.model, self.name, self.made_by = PIXELS, PIXELS, f"version {VERSION}"

    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        values = read_pixel_statistics(self.table, rows, cache=cache_folder(), progress=progress)
        return {} if values is None else {PIXELS: values}

    def digest(self) -> str:
        """Return a digest of the images."""
        return hashlib.sha256("\n".join([self.made_by, *self.table.identities()]).encode()).hexdigest()


class AdapterFeatures(Features):
    """Layers of an adapter that ``guide`` trained on features: ``trunk``, ``heads.TASK`` and the features themselves.

    Its random controls are adapters with random weights on the same features.
    """

    def __init__(
        self,
        table: PatchTable,
        study: Study,
        *,
        layers: Sequence[str] | None = None,
        features: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self._backbone, self._seed = open_model(study.model, study.weights, seed=seed), seed
        self._adapter = cast(GuidedModel, self._backbone.module)
        heads = [f"heads.{name}" for name in self._adapter.heads]
        self.layers = tuple(layers or (TRUNK,))
        for name in self.layers:
            check_choice("layer", name, (LAYER, TRUNK, *heads))
        stated = self._backbone.arguments
        self._base = open_features(
            table, study.replace(model=LAYER), layers=adapter_layers(stated, features), features=features
        )
        check_like(stated, self._base)
        self.table, self.pool = table, self._base.pool
        self.name, self.made_by, self.model = self._backbone.name, self._backbone.weights, str(study.model)

    def network(self) -> Backbone:
        """Return the adapter."""
        return self._backbone

    def notes(self) -> tuple[str, ...]:
        """Return the notes on the features, and the marks of the adapter."""
        return (*self._base.notes(), *mark_notes(self._backbone))

    def _read(self, rows: NDArray[np.intp], layers: Sequence[str], size: _Size, progress: _Progress) -> dict[str, Any]:
        [X] = self._base.read(rows, progress=progress).values()
        check_like(self._backbone.arguments, self._base, X.shape[1])

        def taken(layer: str) -> Any:
            return in_blocks(len(rows), X.shape[1], lambda some: self._pass(X[some])[layer])

        return {layer: X if layer == LAYER else gather(len(rows), taken(layer), cache_folder()) for layer in layers}

    def _pass(self, X: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Return layer → values of some rows (k, d)."""
        with torch.inference_mode():
            reads = self._adapter.reads(*self._adapter.features(torch.from_numpy(np.asarray(X, np.float32))))
            outputs = self._adapter.outputs(reads)
        return {TRUNK: reads[None].numpy(), **{f"heads.{name}": value.numpy() for name, value in outputs.items()}}

    def digest(self) -> str:
        """Return a digest of the adapter and of its features."""
        return hashlib.sha256(f"{self._backbone.fingerprint()}{self._base.digest()}".encode()).hexdigest()

    def random_controls(self, n: int) -> Iterator[Features]:
        """Yield adapters with random weights and the same standardisation."""
        for seed in range(self._seed + 1, self._seed + 1 + n):
            control = copy.copy(self)
            control._backbone = random_control(self.model, self._backbone, seed=seed)
            control._adapter = cast(GuidedModel, control._backbone.module)
            control._adapter.backbone.load_state_dict(self._adapter.backbone.state_dict())
            control.made_by = control._backbone.weights
            yield control


def check_like(stated: Mapping[str, Any], features: Features, width: int | None = None) -> None:
    """Refuse features unlike those that an adapter was trained on: of another width or, where stated, origin.

    Parameters
    ----------
    stated : arguments of the adapter's backbone
    """
    now = {**origin_of(features), "width": width}
    for name, word in {"source": "network", "layer": "layer", "pool": "pooling", "width": "width"}.items():
        if None not in (stated[name], now[name]) and stated[name] != now[name]:
            raise InputError(
                f"features: the adapter was trained on features of {word} {stated[name]}, got {now[name]}."
            )


def origin_of(features: Features) -> dict[str, str | None]:
    """Return the network, layer and pooling behind features, ``None`` where a file does not state them."""
    known = not isinstance(features, FileFeatures)
    return {
        "source": features.name if known else None,
        "layer": features.layers[0] if known else None,
        "pool": features.pool if known else None,
    }


def adapter_layers(stated: Mapping[str, Any], features: str | Path | None) -> list[str] | None:
    """Return the layer of a store that an adapter reads; ``None`` of other files."""
    return [stated["layer"]] if is_store_file(features) and stated["layer"] is not None else None


def is_store_file(features: str | Path | None) -> bool:
    """Return whether features are an activation store."""
    return features is not None and Path(features).suffix.lower() in (".h5", ".hdf5") and is_store(Path(features))


def uses_files(table: PatchTable, study: Study, features: str | Path | None) -> bool:
    """Return whether features come from files: given, or named by the table where no network is."""
    column = "features" in table.frame.columns and (study.model in (None, LAYER) or table.location is None)
    return features is not None or column


def open_features(
    table: PatchTable,
    study: Study,
    *,
    layers: Sequence[str] | None = None,
    features: str | Path | None = None,
    pool: str | None = None,
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
) -> Features:
    """Open the features of a table's patches.

    They come from ``features``; else from the table's column ``features``, if no network is given or the table has no
    pixels; else from the study's network.

    Parameters
    ----------
    study : names the network, its weights and layers
    layers : names; ``None`` for the study's, or all of a store's. A feature file has one layer
    features : activation store; your own feature file (HDF5 of TRIDENT, CLAM or STAMP, ``.pt``, ``.npy``, Parquet); or
        a folder or manifest with a file per slide, for a table with a column ``slide``
    pool, batch_size, device, seed : see :class:`NetworkFeatures`

    Raises
    ------
    InputError
        when there is neither a network nor a file, the network or store cannot be opened, or it has no such layer
    """
    if study.model is not None and is_adapter_folder(study.model):
        return AdapterFeatures(table, study, layers=layers, features=features, seed=seed)
    opened: Features
    if is_store_file(features):
        opened = StoreFeatures(table, open_activations(Path(str(features))), layers)
    elif uses_files(table, study, features):
        given = table if features is None else with_features(table, features)
        opened = FileFeatures(given, layers, pool=pool or "gap")
    elif study.model == LAYER:
        raise InputError("features: none are given; set --features, or a column features in the table.")
    elif study.model is None:
        raise InputError("model: no model given; set --model, or model in the study file.")
    else:
        check_distinct("layer", layers or study.layers)
        opened = NetworkFeatures(
            table,
            study.model,
            layers or study.layers,
            weights=study.weights,
            seed=seed,
            pool=pool,
            batch_size=batch_size,
            device=device,
        )
    check_distinct("layer", opened.layers)
    return opened
