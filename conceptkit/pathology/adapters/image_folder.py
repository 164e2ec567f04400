"""A folder of images, one folder per class, as a patch table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.scales import SCALES

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def image_folder(root: Path, *, out: Path, mpp: float | None = None, patient: str | None = None) -> Adapted:
    """Return one row per image of ``root/CLASS/…``: ``image``, ``label``, and ``mpp`` and ``patient`` where given.

    Parameters
    ----------
    root : the folder; images deeper than its class folders count too
    out : where the table will be written: paths are as seen from there
    patient : regular expression that is searched in each file's name; its group (or all of it) is the patient

    Raises
    ------
    InputError
        when there is no such folder, no image in a class folder, a name without the pattern, or mpp is not that of a
        microscope's image
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
    if patient is not None:
        table["patient"] = _patients([Path(name).name for name in table["patch_id"]], patient)
    loose = sum(p.suffix.lower() in SUFFIXES for p in root.iterdir() if p.is_file())
    counted = ", ".join(f"{name} {n}" for name, n in table["label"].value_counts().sort_index().items())
    notes = [f"Images per class: {counted}."]
    if patient is None:
        notes.append("No patient is known: rows are taken as independent; --patient PATTERN takes it from file names.")
    else:
        notes.append(f"{table['patient'].nunique()} patients, such as {table['patient'].iloc[0]!r}.")
    if loose:
        notes.append(f"{loose} images that lie in no class folder were left out.")
    return Adapted(table, tuple(notes))


def _patients(names: list[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"patient: {pattern!r} must be a regular expression ({error}).") from None
    if compiled.groups > 1:
        raise InputError(f"patient: {pattern!r} must have at most one group in brackets, it has {compiled.groups}.")
    found = [compiled.search(name) for name in names]
    patients = [(match.group(compiled.groups) or "") if match else "" for match in found]
    if "" in patients:
        name = names[patients.index("")]
        raise InputError(f"patient: {pattern!r} finds nothing in {name} ({patients.count('')} of {len(names)} files).")
    return patients
