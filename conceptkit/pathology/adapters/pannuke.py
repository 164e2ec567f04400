"""PanNuke's folds of ``.npy`` files as a patch table: crops, five counts of nuclei, label by neoplastic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.files.atomic import replacing
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.masks import check_instances

TYPES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
"""The first five channels of ``masks.npy``; the sixth is background."""

MPP = 0.25
"""Microns per pixel: all images were brought to 40x before they were published."""

_CHECKED = 32
"""Images and masks of a fold that are checked before anything is written."""

CROPS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")


@dataclass(frozen=True)
class _Fold:
    """The arrays of one fold, and which of its images are of the tissue."""

    number: int
    images: NDArray[np.number]
    masks: NDArray[np.number]
    types: list[str]
    chosen: list[int]


def pannuke(
    folds: Sequence[Path],
    *,
    out: Path,
    tissue: str = "Breast",
    patch_size: int = 224,
    training: int = 2,
    crop: str = "center",
) -> Adapted:
    """Cut PanNuke's folds into crops beside the table: nuclei by type, label by neoplastic ones.

    The crops go into ``{out}.h5`` with datasets ``images`` and ``masks``.

    Parameters
    ----------
    folds : folders of the folds in order, each with images.npy (n, 256, 256, 3), masks.npy (n, 256, 256, 6) and
        types.npy (n,), in it or below
    tissue : as in types.npy; ``all`` for every tissue
    patch_size : side of a crop in pixels
    training : number of the first folds that are for training; their images give five crops each, or one where crops
        have the images' size, and images of the other folds (``external``) one
    crop : place of the crop of evaluation rows: center, top_left, top_right, bottom_left or bottom_right

    Returns
    -------
    ``h5``, ``key``, ``row``, ``mask`` (the same file: ``measure`` reads the row of its dataset ``masks``, the nuclei of
    all types as one label image), ``mpp`` (0.25), ``label`` (``tumor`` where the crop holds a neoplastic nucleus, else
    ``normal``), a count per type of nucleus, ``tissue``, ``crop``, ``center`` (``pannuke``), ``split`` and ``group``
    (the image, as patients are not published).

    Raises
    ------
    InputError
        when a file is missing or of another shape, or no image is of the tissue
    """
    check_choice("crop", crop, CROPS)
    check_at_least("patch_size", patch_size, 1)
    if not folds:
        raise InputError("folds: at least one is needed, got none.")
    opened = [_open(number, folder, tissue) for number, folder in enumerate(folds, start=1)]
    height, width = opened[0].images.shape[1:3]
    if patch_size > min(height, width):
        raise InputError(f"patch_size: must be at most {min(height, width)}, the images' side, got {patch_size}.")
    places = dict(zip(CROPS, _places(height, width, patch_size), strict=True))
    # Crops of the size of the images are all at the same place: the first is enough.
    several = tuple(name for k, name in enumerate(CROPS) if places[name] not in [places[c] for c in CROPS[:k]])
    plan = [
        (fold, k, name)
        for fold in opened
        for k in fold.chosen
        for name in (several if fold.number <= training else (crop,))
    ]
    target, shape, rows = out.with_name(out.name + ".h5"), (patch_size, patch_size), []
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        pixels = file.create_dataset("images", (len(plan), *shape, 3), np.uint8, chunks=(1, *shape, 3))
        labels = file.create_dataset("masks", (len(plan), *shape), np.uint16, chunks=(1, *shape))
        for row, (fold, k, name) in enumerate(plan):
            top, left = places[name]
            window = np.s_[top : top + patch_size, left : left + patch_size]
            pixels[row] = _bytes(fold.images[k], fold.number)[window]
            numbers, labels[row] = _nuclei(np.asarray(fold.masks[k])[window])
            image = f"fold{fold.number}_{k:05d}"
            rows.append(
                {
                    "patch_id": f"{image}_{name}",
                    **{"h5": target.name, "key": "images", "row": row, "mask": target.name, "mpp": MPP},
                    "label": "tumor" if numbers[0] else "normal",
                    **{f"{kind}_count": n for kind, n in zip(TYPES, numbers, strict=True)},
                    **{"tissue": fold.types[k], "crop": name, "center": "pannuke"},
                    "split": "train" if fold.number <= training else "external",
                    "group": image,
                }
            )
    notes = (
        "PanNuke publishes no patients: group is the image, so that crops of one image stay together.",
        f"Evaluation rows hold one crop of each image, {crop}; training rows hold {len(several)}.",
    )
    return Adapted(pd.DataFrame(rows), notes)


def _open(number: int, folder: Path, tissue: str) -> _Fold:
    arrays = []
    for name in ("images", "masks", "types"):
        paths = sorted(folder.rglob(f"{name}.npy"))
        if len(paths) != 1:
            raise InputError(f"folds: {folder} must hold one {name}.npy, got {len(paths)}.")
        try:
            arrays.append(np.load(paths[0], mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(f"folds: {paths[0]} cannot be read ({error}).") from None
    images, masks, types = arrays
    n = len(types)
    if images.ndim != 4 or images.shape[3] != 3 or masks.shape != (*images.shape[:3], 6) or len(images) != n:
        raise InputError(
            f"folds: fold {number} must hold n x 256 x 256 x 3 images, x 6 masks and n types, got "
            f"{images.shape}, {masks.shape} and {types.shape}."
        )
    names = [str(t) for t in types]
    chosen = [k for k in range(n) if tissue == "all" or names[k].lower() == tissue.lower()]
    if not chosen:
        raise InputError(f"tissue: fold {number} has no {tissue!r}; it has {', '.join(sorted(set(names)))}.")
    few = chosen[:: max(1, len(chosen) // _CHECKED)]
    for k in few:
        _bytes(images[k], number)
    check_instances(
        (np.asarray(masks[k][..., c]).astype(np.int64) for k in few for c in range(len(TYPES))),
        f"folds: masks of fold {number}",
    )
    return _Fold(number, images, masks, names, chosen)


def _bytes(image: NDArray[np.number], fold: int) -> NDArray[np.uint8]:
    """Return an image (h, w, 3), which PanNuke keeps as floats from 0 to 255, as bytes."""
    low, top = float(np.min(image)), float(np.max(image))
    if not (low >= 0 and 1 < top <= 255):
        raise InputError(f"folds: images of fold {fold} must hold values from 0 to 255, got {low:.4g} to {top:.4g}.")
    return np.asarray(image).round().astype(np.uint8)


def _places(height: int, width: int, size: int) -> list[tuple[int, int]]:
    bottom, right = height - size, width - size
    return [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]


def _nuclei(mask: NDArray[np.number]) -> tuple[list[int], NDArray[np.uint16]]:
    """Return the number of nuclei of each type in a crop (h, w, 6), and all of them as one label image."""
    numbers, merged, total = [], np.zeros(mask.shape[:2], dtype=np.uint16), 0
    for k in range(len(TYPES)):
        values, labels = np.unique(mask[..., k], return_inverse=True)
        labels = labels.reshape(mask.shape[:2]) + (0 if values[0] == 0 else 1)
        count = int(labels.max())
        numbers.append(count)
        merged[labels > 0] = (labels[labels > 0] + total).astype(np.uint16)
        total += count
    return numbers, merged
