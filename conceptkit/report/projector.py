"""Saved features with thumbnails for the embedding projector of TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.records import write_atomically
from conceptkit.report.drawing import file_name
from conceptkit.report.embedding import Embeddings, read_embeddings

SPRITE_MOST = 8192
"""Maximum side of the picture of thumbnails, in pixels, as the projector takes it"""


def write_projector(folders: Mapping[str, Path], place: Path) -> list[Path]:
    """Write the features of runs as TSV, with a picture of all thumbnails and the projector's configuration.

    ``tensorboard --logdir PLACE`` opens them; projector.tensorflow.org takes the TSV files by hand.

    Parameters
    ----------
    folders : name of a run → its folder; runs without saved features are skipped

    Raises
    ------
    InputError
        when no run saved features
    """
    place.mkdir(parents=True, exist_ok=True)
    written, entries = [], []
    for title, folder in folders.items():
        embeddings = read_embeddings(folder)
        if embeddings is None:
            continue
        stem = file_name(title, otherwise="run")
        metadata = _text(place / f"{stem}-metadata.tsv", _metadata(embeddings))
        written.append(metadata)
        sprite = _sprite(embeddings.thumbnails, place / f"{stem}-sprite.png")
        for layer, spaces in (embeddings.layers or {"trunk": embeddings.features}).items():
            for run, X in spaces.items():
                tensor = place / f"{stem}-{file_name(f'{layer}-{run}')}.tsv"
                written.append(_text(tensor, "".join("\t".join(f"{v:.6g}" for v in row) + "\n" for row in X.tolist())))
                entries.append(_entry(f"{title}: {layer}, {run}", tensor.name, metadata.name, X.shape, sprite))
    if not entries:
        raise InputError("projector: none of the runs saved features; guide and grid do.")
    return [*written, _text(place / "projector_config.pbtxt", "".join(entries))]


def _entry(name: str, tensor: str, metadata: str, shape: tuple[int, ...], sprite: tuple[str, int] | None) -> str:
    """Return one embedding of the configuration, as text of a protocol buffer."""
    lines = [f"tensor_name: {_quoted(f'{name} ({shape[0]} × {shape[1]})')}", f"tensor_path: {_quoted(tensor)}"]
    lines.append(f"metadata_path: {_quoted(metadata)}")
    if sprite is not None:
        side = f"single_image_dim: {sprite[1]} single_image_dim: {sprite[1]}"
        lines.append(f"sprite {{ image_path: {_quoted(sprite[0])} {side} }}")
    return "embeddings {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _metadata(embeddings: Embeddings) -> str:
    columns: dict[str, NDArray[Any]] = {
        "patch": embeddings.patch_ids,
        "label": embeddings.labels,
        "split": embeddings.splits,
        "group": embeddings.groups,
        **embeddings.concepts,
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return "".join("\t".join(" ".join(str(v).split()) for v in row) + "\n" for row in (tuple(columns), *rows))


def _sprite(thumbnails: NDArray[np.uint8] | None, path: Path) -> tuple[str, int] | None:
    """Write all thumbnails in one square picture, row by row; return its name and their side."""
    if thumbnails is None:
        return None
    n, side = len(thumbnails), thumbnails.shape[1]
    across = math.ceil(math.sqrt(n))
    if across * side > SPRITE_MOST:
        side = SPRITE_MOST // across
    sheet = Image.new("RGB", (across * side, across * side), "white")
    for k, image in enumerate(thumbnails):
        sheet.paste(Image.fromarray(image).resize((side, side)), (k % across * side, k // across * side))
    sheet.save(path)
    return path.name, side


def _text(path: Path, text: str) -> Path:
    write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path
