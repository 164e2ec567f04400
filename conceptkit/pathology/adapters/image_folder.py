"""A folder of images, one folder per class, as a patch table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from conceptkit._checks import InputError
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.scales import SCALES

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def image_folder(root: Path, *, out: Path, mpp: float | None = None) -> Adapted:
    """Return one row per image of ``root/CLASS/…``: ``image``, ``label`` (the class), ``mpp`` where given.

    Parameters
    ----------
    root : the folder; images deeper than its class folders count too
    out : where the table will be written: paths are as seen from there

    Raises
    ------
    InputError
        when there is no such folder, no image in a class folder, or mpp is not that of a microscope's image
    """
    low, high = SCALES
    if mpp is not None and not low <= mpp <= high:
        raise InputError(f"mpp: must be microns per pixel from {low} to {high}, got {mpp}.")
    if not root.is_dir():
        raise InputError(f"root: must be a folder, got {root}.")
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    rows = [
        {"patch_id": path.relative_to(root).as_posix(), "image": relative_path(path, out.parent), "label": folder.name}
        for folder in classes
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not rows:
        raise InputError(f"root: {root} holds no image in a folder per class.")
    table = pd.DataFrame(rows)
    if mpp is not None:
        table["mpp"] = mpp
    loose = sum(p.suffix.lower() in SUFFIXES for p in root.iterdir() if p.is_file())
    notes = ["No patient or slide is known: rows will be taken as independent unless a column group is added."]
    if loose:
        notes.append(f"{loose} images that lie in no class folder were left out.")
    return Adapted(table, tuple(notes))
