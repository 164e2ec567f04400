"""The paper's own HDF5 layout: patches, the file of concept measures, and the split lists, as a patch table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from conceptkit.errors import InputError
from conceptkit.files.hdf5 import open_hdf5
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.measuring import relative_path

MEASURES = ("ncount", "narea", "full_contrast", "full_correlation", "nuclei_contrast", "nuclei_correlation")

SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "internal"}
"""Names in the lists → names in the table."""

_ENTRY = re.compile(r"(tumor|normal)/level(\d+)/centre(\d+)/patient(\d+)(?:_Mask\.tif)?(?:/node(\d+))?/patches/?")
_STRICTEST = ("internal", "val", "train")
_CRUSHED = 0.01


def paper_table(concepts: Path, *, out: Path, lists: Sequence[Path] = (), patches: Path | None = None) -> Adapted:
    """Read the paper's own HDF5 layout: concept file, split lists, pixels.

    Parameters
    ----------
    concepts : HDF5 with ``{db}/{entry_path}/{patch_no}/{measure}``, each an array of one byte string
    lists : split list, a text file with lines ``db, entry_path, patch_no, split``
    patches : HDF5 with the pixels, ``file[db][entry_path][patch_no]``

    Returns
    -------
    One row per patch of the concept file and the lists: ``patch_id``, ``h5``, ``key`` and ``row`` with ``patches``, the
    measures (missing where the file has none), ``label``, ``center`` (``camelyon16`` is one center), ``patient``,
    ``node``, ``split``. A patch in several lists counts as test, else as validation: never in training as well.

    Raises
    ------
    InputError
        when a file cannot be read or an entry is named otherwise
    """
    values = read_concepts(concepts)
    splits, notes = _read_lists(lists)
    keys = sorted({*values, *splits}, key=lambda k: (k[0], k[1], int(k[2])))
    rows = []
    for db, entry, number in keys:
        row: dict[str, Any] = {"patch_id": f"{db}/{entry}/{number}"}
        if patches is not None:
            row.update(h5=relative_path(patches, out.parent), key=f"{db}/{entry}", row=int(number))
        row.update({name: values.get((db, entry, number), {}).get(name, np.nan) for name in MEASURES})
        row.update(_describe(db, entry))
        row["split"] = splits.get((db, entry, number))
        rows.append(row)
    if not rows:
        raise InputError(f"concepts: {concepts} holds no patch.")
    table = pd.DataFrame(rows)
    missing = int(table[list(MEASURES)].isna().any(axis=1).sum())
    if missing:
        notes.append(f"{missing} of {len(table)} patches lack a measure; it stays missing (the authors read 1.0).")
    spreads = table[list(MEASURES)].std()
    for name in MEASURES:
        if spreads[name] < _CRUSHED * spreads.median():
            notes.append(
                f"{name}: its standard deviation is {spreads[name]:.2g} where the z-scored measures have about "
                f"{spreads.median():.2g}: outliers of the whole data set crushed it; it is not worth probing as it is."
            )
    return Adapted(table, tuple(notes))


def read_concepts(path: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return (db, entry path, patch number) → measure → value; byte strings are decoded, what is empty is left out."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        db, _, rest = name.partition("/")
        entry, number, measure = rest.rsplit("/", 2)
        value = np.asarray(item[()]).ravel()
        text = value[0] if value.size else b""
        word = text.decode() if isinstance(text, bytes) else str(text)
        if measure in MEASURES and word.strip().lower() not in ("", "nan", "none"):
            found.setdefault((db, entry, number), {})[measure] = float(word)
        else:
            found.setdefault((db, entry, number), {})

    try:
        with open_hdf5(path) as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"concepts: {path} is not the paper's file of measures ({error}).") from None
    return found


def _read_lists(paths: Sequence[Path]) -> tuple[dict[tuple[str, str, str], str], list[str]]:
    found: dict[tuple[str, str, str], set[str]] = {}
    repeated = 0
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"lists: {path} cannot be read ({type(error).__name__}).") from None
        seen = set()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) != 4 or cells[3] not in SPLITS or not cells[2].isdigit():
                raise InputError(f"lists: line {number} of {path} must be db, entry_path, patch_no, split.")
            key = (cells[0], cells[1].strip("/"), cells[2])
            repeated += key in seen
            seen.add(key)
            found.setdefault(key, set()).add(SPLITS[cells[3]])
    notes = []
    several = [key for key, names in found.items() if len(names) > 1]
    if several:
        notes.append(f"{len(several)} patches stand in lists of several splits and were kept out of training.")
    if repeated:
        notes.append(f"{repeated} lines repeat a patch within its list; each patch is one row.")
    return {key: next(s for s in _STRICTEST if s in names) for key, names in found.items()}, notes


def _describe(db: str, entry: str) -> Mapping[str, str | None]:
    parts = _ENTRY.fullmatch(entry.strip("/"))
    if parts is None:
        raise InputError(f"concepts: {db}/{entry} is not named as label/level/centre/patient/node/patches.")
    label, _, center, patient, node = parts.groups()
    if db.startswith("cam16"):
        # Camelyon16 numbers its tumor and its normal slides anew: 044 is two patients.
        return {"label": label, "center": "camelyon16", "patient": f"camelyon16_{label}_{patient}", "node": None}
    return {"label": label, "center": center, "patient": patient, "node": node}
