"""The network of concept vectors, opened again: the vectors apply to no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.images.image_files import read_rgb
from conceptkit.models.backbones import Backbone
from conceptkit.models.checkpoints import open_model
from conceptkit.models.inference import Reader
from conceptkit.options.shared import GIVEN
from conceptkit.probe.vectors import ConceptVector, Origin


def score_images(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8] | str | Path],
    vector: ConceptVector,
    *,
    model: Any = None,
    batch_size: int = 16,
    device: str = "auto",
) -> NDArray[Any]:
    """Return the concept (n,) that a vector predicts for images, from the network, layer and pooling of its probe.

    Parameters
    ----------
    images : pixels (n, h, w, 3) of the probe's resolution, or a list of such images or their files, all of one size
    vector : of :func:`conceptkit.load_vectors`
    model : the network, where the probe was given a module
    batch_size : images per forward pass
    device : ``auto``, ``cpu``, ``cuda``, …

    Raises
    ------
    InputError
        when the network is another, the images cannot be read, or the vector is of a feature file
    """
    pixels = [read_rgb(Path(image)) if isinstance(image, str | Path) else np.asarray(image) for image in images]
    shapes = {image.shape for image in pixels}
    wrong = [shape for shape in shapes if len(shape) != 3 or shape[2] != 3]
    if len(shapes) != 1 or wrong or any(image.dtype != np.uint8 for image in pixels):
        found = ", ".join(sorted({f"{image.shape} {image.dtype}" for image in pixels})) or "none"
        raise InputError(f"images: must be (h, w, 3) uint8 of one size, got {found}.")
    side, (height, width, _) = vector.origin.side, pixels[0].shape
    if side is not None and (height, width) != (side, side):
        raise InputError(f"images: the patches of the probe had {side}×{side} pixels, got {width}×{height}.")
    backbone = opened_network(vector.origin, model)
    layer = vector.origin.layer
    reader = Reader(backbone, [layer], (height, width), pool=vector.origin.pool, batch_size=batch_size, device=device)
    batches = (np.stack(pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size))
    return vector.predict(np.concatenate([reader(batch)[backbone.layer(layer)] for batch in batches]))


def opened_network(origin: Origin, model: Any = None) -> Backbone:
    """Open the network that vectors were fitted on; refuse another.

    Raises
    ------
    InputError
        when there is none, or weights or preprocessing have changed
    """
    if origin.source == "files":
        raise InputError(
            f"vector: it was fitted on the feature file {origin.weights}, so there is no network to read images with; "
            "apply it to features of the same encoder."
        )
    if model is None and (origin.weights == GIVEN or origin.source == "store"):
        raise InputError(f"vector: it was fitted on {origin.model}, which no name opens; give the network as model.")
    backbone = open_model(origin.model, origin.weights) if model is None else open_model(model)
    here = dataclasses.replace(
        origin, fingerprint=backbone.fingerprint(), preprocessing=dataclasses.asdict(backbone.preprocessing)
    )
    check_same(origin, here, backbone.name)
    return backbone


def check_same(origin: Origin, here: Origin, name: str) -> None:
    """Raise :class:`InputError` with what differs, unless features of another origin, called ``name``, suit vectors."""
    differ = list(_differences(origin, here))
    if differ:
        raise InputError(f"vector: {name} does not suit the vectors of {origin.model}: {'; '.join(differ)}.")


def _differences(origin: Origin, here: Origin) -> Iterator[str]:
    if (origin.source == "files") != (here.source == "files"):
        kinds = {True: "feature files", False: "activations of a network"}
        yield f"they were fitted on {kinds[origin.source == 'files']}, not on {kinds[here.source == 'files']}"
        return
    if None not in (origin.fingerprint, here.fingerprint) and origin.fingerprint != here.fingerprint:
        digests = [str(one.fingerprint)[:12] for one in (here, origin)]
        yield f"its weights have the digest {digests[0]}, those of the probe {digests[1]}"
    if origin.preprocessing is not None and here.preprocessing is not None:
        for key, value in origin.preprocessing.items():
            now = here.preprocessing.get(key)
            if _plain(now) != _plain(value):
                yield f"{key} of its preprocessing is {_plain(now)}, that of the probe {_plain(value)}"
    if origin.source != "files" and origin.pool != here.pool:
        yield f"its pooling is {here.pool}, that of the probe {origin.pool}"
    for key, value in origin.stated.items():
        if here.stated.get(key, value) != value:
            yield f"its {key} is {here.stated[key]}, that of the probe {value}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
