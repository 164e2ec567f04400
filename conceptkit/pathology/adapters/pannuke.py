"""PanNuke's folds of ``.npy`` files as a patch table: crops, five counts of nuclei, label by neoplastic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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

_LOOKED_AT = 32
"""Images and masks of a fold that are checked before anything is written."""

CROPS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")


def pannuke(
    folds: Mapping[int, Path],
    *,
    out: Path,
    tissue: str | None = "Breast",
    size: int = 224,
    training: Sequence[int] = (1, 2),
    evaluation_crop: str = "center",
) -> Adapted:
    """Write the crops of PanNuke's images into an HDF5 file beside the table, and return its rows.

    Parameters
    ----------
    folds : number of the fold → a folder that holds ``images.npy`` (n, 256, 256, 3), ``masks.npy`` (n, 256, 256, 6) and
        ``types.npy`` (n,), in it or below
    out : where the table will be written; the crops go into ``{out}.h5`` with datasets ``images`` and ``masks``
    tissue : as in ``types.npy``; ``None`` for all
    size : side of a crop
    training : folds whose rows are ``train``, with five crops of each image, or one where crops have the images' size;
        the others are ``external``, with one
    evaluation_crop : one of :data:`CROPS`

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
    import h5py

    check_choice("evaluation_crop", evaluation_crop, CROPS)
    check_at_least("size", size, 1)
    if not folds:
        raise InputError("folds: at least one is needed, got none.")
    target = out.with_name(out.name + ".h5")
    opened = {number: _open(number, Path(folder), tissue) for number, folder in sorted(folds.items())}
    height, width = next(iter(opened.values()))[0].shape[1:3]
    if size > min(height, width):
        raise InputError(f"size: must be at most {min(height, width)}, the images' side, got {size}.")
    places = dict(zip(CROPS, _places(height, width, size), strict=True))
    # Of crops at the same place, as all of them are when they have the size of the images, the first is enough.
    several = tuple(name for k, name in enumerate(CROPS) if places[name] not in [places[c] for c in CROPS[:k]])
    rows: list[dict[str, object]] = []
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        shape = (size, size)
        pixels = file.create_dataset(
            "images", (0, *shape, 3), np.uint8, maxshape=(None, *shape, 3), chunks=(1, *shape, 3)
        )
        labels = file.create_dataset("masks", (0, *shape), np.uint16, maxshape=(None, *shape), chunks=(1, *shape))
        for number, (images, masks, types, which) in opened.items():
            crops = several if number in training else (evaluation_crop,)
            for k in which:
                image = _bytes(images[k], number)
                mask = np.asarray(masks[k])
                for crop in crops:
                    top, left = places[crop]
                    window = np.s_[top : top + size, left : left + size]
                    numbers, merged = _nuclei(mask[window])
                    row = len(rows)
                    pixels.resize(row + 1, axis=0)
                    labels.resize(row + 1, axis=0)
                    pixels[row], labels[row] = image[window], merged
                    rows.append(
                        {
                            "patch_id": f"fold{number}_{k:05d}_{crop}",
                            "h5": target.name,
                            "key": "images",
                            "row": row,
                            "mask": target.name,
                            "mpp": MPP,
                            "label": "tumor" if numbers[0] else "normal",
                            **{f"{name}_count": n for name, n in zip(TYPES, numbers, strict=True)},
                            "tissue": str(types[k]),
                            "crop": crop,
                            "center": "pannuke",
                            "split": "train" if number in training else "external",
                            "group": f"fold{number}_{k:05d}",
                        }
                    )
    notes = (
        "PanNuke names no patients: group is the image, so that crops of one image stay together.",
        f"Evaluation rows hold one crop of each image, {evaluation_crop}; training rows hold {len(several)}.",
    )
    return Adapted(pd.DataFrame(rows), notes)


def _open(
    number: int, folder: Path, tissue: str | None
) -> tuple[NDArray[np.number], NDArray[np.number], list[str], list[int]]:
    arrays = []
    for name in ("images", "masks", "types"):
        found = sorted(folder.rglob(f"{name}.npy"))
        if len(found) != 1:
            raise InputError(f"folds: {folder} must hold one {name}.npy, got {len(found)}.")
        try:
            arrays.append(np.load(found[0], mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(f"folds: {found[0]} cannot be read ({error}).") from None
    images, masks, types = arrays
    n = len(types)
    if images.ndim != 4 or images.shape[3] != 3 or masks.shape != (*images.shape[:3], 6) or len(images) != n:
        raise InputError(
            f"folds: fold {number} must hold n x 256 x 256 x 3 images, x 6 masks and n types, got "
            f"{images.shape}, {masks.shape} and {types.shape}."
        )
    names = [str(t) for t in types]
    which = [k for k in range(n) if tissue is None or names[k].lower() == tissue.lower()]
    if not which:
        raise InputError(f"tissue: fold {number} has no {tissue!r}; it has {', '.join(sorted(set(names)))}.")
    few = which[:: max(1, len(which) // _LOOKED_AT)]
    for k in few:
        _bytes(images[k], number)
    check_instances(
        (np.asarray(masks[k][..., c]).astype(np.int64) for k in few for c in range(len(TYPES))),
        f"folds: masks of fold {number}",
    )
    return images, masks, names, which


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
