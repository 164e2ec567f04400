"""Types of nuclei, read from the files that hold them next to label masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from conceptkit.errors import InputError

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "pannuke": {
        **{"0": "", "1": "neoplastic", "2": "inflammatory", "3": "connective"},
        **{"4": "dead", "5": "epithelial"},
    },
    "consep": {
        **{"0": "", "1": "other", "2": "inflammatory", "3": "epithelial", "4": "neoplastic"},
        **{"5": "connective", "6": "connective", "7": "connective"},
    },
    "lizard": {
        **{"1": "neutrophil", "2": "epithelial", "3": "lymphocyte", "4": "plasma"},
        **{"5": "eosinophil", "6": "connective"},
    },
}
"""Published layout → number of a type → its name: PanNuke (Gamper et al. 2019) as HoVer-Net's weights number its types;
CoNSeP (Graham et al. 2019), whose fibroblasts, muscle and endothelium are connective; Lizard (Graham et al. 2021)."""


def type_names(given: str) -> Mapping[str, str]:
    """Return number → name for a layout, or for pairs such as ``1=neoplastic,2=inflammatory``.

    Raises :class:`InputError` when it is neither.
    """
    if given in LAYOUTS:
        return LAYOUTS[given]
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(number.strip() and equals and name.strip() for number, equals, name in pairs):
        raise InputError(
            f"type-names: must be {', '.join(LAYOUTS)} or pairs such as 1=neoplastic,2=inflammatory, got {given!r}."
        )
    return {number.strip(): name.strip() for number, _, name in pairs}


def read_types(path: Path, names: Mapping[str, str] | None = None) -> dict[int, str]:
    """Return label → type of a mask's nuclei; empty for a file that holds no types.

    Read are HoVer-Net's ``.mat`` (``inst_type`` of the labels 1 to n, as in CoNSeP) and ``.json`` (``type`` of each
    nucleus, in the order of the labels that its contours get), Lizard's ``.mat`` (``class`` of each ``id``), and CSV
    files with the columns ``label`` and ``type`` or ``class``, for the labels of StarDist, Cellpose and others.

    Parameters
    ----------
    names : number of a type → its name; needed where types are numbers

    Raises
    ------
    InputError
        when the file cannot be read, types do not fit its labels, or a number has no name
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        return {}
    if not path.is_file():
        raise InputError(f"types: {path} does not exist.")
    return {label: name for label, code in reader(path).items() if (name := _named(code, names, path))}


def _named(code: str, names: Mapping[str, str] | None, path: Path) -> str:
    """Return the name of a type."""
    if names is not None and code in names:
        return names[code]
    if not code.isdigit():
        return code
    if names is None:
        raise InputError(
            f"types: {path} holds types as numbers; name them with --type-names, by a layout ({', '.join(LAYOUTS)}) or "
            "as 1=neoplastic,2=inflammatory."
        )
    raise InputError(f"types: {path} has a type {code}, which --type-names does not name ({', '.join(names)}).")


def _from_mat(path: Path) -> dict[int, str]:
    try:
        content = loadmat(path, variable_names=["inst_map", "inst_type", "class", "id"], appendmat=False)
    except Exception as error:  # SciPy has no error of its own: damaged files raise errors of any kind
        raise InputError(f"types: {path} cannot be read ({type(error).__name__}: {error}).") from None
    codes = content.get("inst_type", content.get("class"))
    if codes is None:
        return {}
    codes = np.ravel(codes).astype(int)
    top = int(np.max(content.get("inst_map", 0), initial=0))
    labels = np.ravel(content["id"]).astype(int) if "id" in content else np.arange(1, len(codes) + 1)
    if len(labels) != len(codes) or top > int(labels.max(initial=0)):
        raise InputError(
            f"types: {path} has {len(codes)} types for labels up to {top}; which type is whose is unknown."
        )
    return {int(label): str(code) for label, code in zip(labels, codes, strict=True)}


def _from_json(path: Path) -> dict[int, str]:
    try:
        nuclei: Any = json.loads(path.read_bytes())["nuc"]
        codes = [nucleus.get("type") for nucleus in nuclei.values()]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"types: {path} cannot be read as JSON of HoVer-Net ({error}).") from None
    return {k: str(code) for k, code in enumerate(codes, start=1) if code is not None}


def _from_csv(path: Path) -> dict[int, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        column = next((c for c in ("type", "class") if rows and c in rows[0]), "type")
        found = {int(float(row["label"])): row[column].strip() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"types: {path} must be CSV with columns label and type ({error}).") from None
    if len(found) < len(rows):
        raise InputError(f"types: {path} has a label more than once.")
    return found


_READERS: dict[str, Callable[[Path], dict[int, str]]] = {".mat": _from_mat, ".json": _from_json, ".csv": _from_csv}
