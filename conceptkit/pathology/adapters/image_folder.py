"""A folder of images, one folder per class, as a patch table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError
from conceptkit.images.image_files import SUFFIXES
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.scales import SCALES


def image_folder(folder: Path, *, out: Path, mpp: float | None = None, patient: str | None = None) -> Adapted:
    """Take images in one folder per class: the folder is the label.

    Parameters
    ----------
    folder : holds one folder of images per class; images in deeper folders count too
    mpp : microns per pixel of all images
    patient : regular expression of the patient in file names, such as '^([^_]+)_'; its group, or all of it, is the
        patient

    Returns
    -------
    ``image``, ``label``, and ``mpp`` and ``patient`` where given, one row per image

    Raises
    ------
    InputError
        when there is no image in a folder per class, a file name does not match, or mpp is not that of a microscope
    """
    low, high = SCALES
    if mpp is not None and not low <= mpp <= high:
        raise InputError(f"mpp: must be microns per pixel from {low} to {high}, got {mpp}.")
    if not folder.is_dir():
        raise InputError(f"folder: must be a folder, got {folder}.")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    rows = [
        {"patch_id": path.relative_to(folder).as_posix(), "image": relative_path(path, out.parent), "label": label.name}
        for label in classes
        for path in sorted(label.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not rows:
        raise InputError(f"folder: {folder} holds no image in a folder per class.")
    table = pd.DataFrame(rows)
    if mpp is not None:
        table["mpp"] = mpp
    if patient is not None:
        table["patient"] = _patients([Path(name).name for name in table["patch_id"]], patient)
    loose = sum(p.suffix.lower() in SUFFIXES for p in folder.iterdir() if p.is_file())
    counted = ", ".join(f"{name} {n}" for name, n in table["label"].value_counts().sort_index().items())
    notes = [f"Images per class: {counted}."]
    if patient is None:
        notes.append("No patient is known: rows count as independent. Use --patient to read it from file names.")
    else:
        notes.append(f"{table['patient'].nunique()} patients, such as {table['patient'].iloc[0]!r}.")
    if loose:
        notes.append(f"{loose} images skipped (outside the class folders).")
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
        raise InputError(f"patient: {pattern!r} does not match {name} ({patients.count('')} of {len(names)} files).")
    return patients
