"""The patches of a run: rows, folds, samples and colour histograms, read from the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.files.hdf5 import open_hdf5
from conceptkit.records import CONTEXT_FILE

SCHEMA = "conceptkit/context/1"
"""Schema of the files that :func:`read_context` reads."""

Texts = NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some patches of each center, and the colours of more of them."""

    centers: tuple[str, ...]
    """Names; one empty name where the table has no centers"""
    images: NDArray[np.uint8]
    """(centers, samples, h, w, 3); black where a center has fewer"""
    counts: NDArray[np.int64]
    """(centers,) samples that exist"""
    histograms: NDArray[np.float64]
    """(centers, 3, bins) share of the pixels in each bin of red, green and blue"""
    n_patches: NDArray[np.int64]
    """(centers,) patches behind the histograms"""


@dataclass(frozen=True, kw_only=True)
class KeptPatches:
    """Patches drawn at random, which the page shows one by one."""

    rows: NDArray[np.intp]
    """(k,) row numbers of the context"""
    ids: Texts
    """(k,)"""
    all_ids: Texts
    """(n,) of all rows"""
    predicted: Mapping[str, tuple[str, NDArray[Any]]]
    """Concept → layer and (n,) held-out predictions of all rows, NaN or empty where missing"""
    thumbnails: NDArray[np.uint8] | None
    """(k, h, w, 3); ``None`` without pixels"""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The rows that a run used, and how they were made."""

    made_with: Mapping[str, str]
    """Command, digest of the table, Python, platform"""
    splits: Texts
    """(n,) empty where the table has none"""
    groups: Texts
    """(n,) patients; empty where rows were treated as independent"""
    labels: Texts
    """(n,) main label; empty where missing"""
    centers: Texts
    """(n,) empty where the table has none"""
    units: Mapping[str, str]
    """Concept → unit, where it is known"""
    concepts: Mapping[str, NDArray[Any]]
    """Concept → (n,) numbers, NaN where missing, or texts"""
    folds: Mapping[str, NDArray[np.int64]]
    """Concept → (n,) number of the fold that held the row out, −1 for none"""
    samples: Samples | None
    patches: KeptPatches | None
    """``None`` of runs that kept none"""

    def fold_members(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Return concept → the groups of each fold, sorted; empty without groups."""
        found = {}
        for concept, numbers in self.folds.items():
            if (self.groups != "").any():
                parts = [np.unique(self.groups[numbers == i]) for i in range(int(numbers.max(initial=-1)) + 1)]
                found[concept] = tuple(tuple(map(str, part)) for part in parts)
        return found


def read_context(folder: Path) -> Context | None:
    """Read the patches that a run saved; ``None`` for a folder without such a file, as of earlier versions.

    Raises
    ------
    InputError
        when the file cannot be read, or is of another schema
    """
    path = folder / CONTEXT_FILE
    if not path.is_file():
        return None
    with reading(path, "a run's context", schema=SCHEMA) as file:
        return _read(file)


@contextmanager
def reading(path: Path, what: str, *, schema: str | None = None) -> Iterator[h5py.File]:
    """Open a file of a run folder; whatever is wrong with it becomes one sentence.

    Raises
    ------
    InputError
        when the file or a part of it cannot be read, or it is of another schema
    """
    try:
        with open_hdf5(path) as file:
            found = file.attrs.get("schema")
            found = found.decode() if isinstance(found, bytes) else found
            if schema is not None and found != schema:
                raise ValueError(f"it has schema {found!r}; this version reads {schema}")
            yield file
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        said = str(error.args[-1] if error.args else error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"run: {path} cannot be read as {what} ({said}).") from None


def _read(file: h5py.File) -> Context:
    rows = file["rows"]
    return Context(
        made_with={name: str(value) for name, value in file["made_with"].attrs.items()},
        units={name: str(value) for name, value in file["units"].attrs.items()},
        splits=_texts(rows["split"]),
        groups=_texts(rows["group"]),
        labels=_texts(rows["label"]),
        centers=_texts(rows["center"]),
        concepts={name.replace("∕", "/"): _values(data) for name, data in file["concepts"].items()},
        folds={n.replace("∕", "/"): np.asarray(d[...], dtype=np.int64) for n, d in file["folds"].items()},
        samples=_samples(file["samples"]) if "samples" in file else None,
        patches=_patches(file["patches"]) if "patches" in file else None,
    )


def _patches(group: h5py.Group) -> KeptPatches:
    rows, ids = np.asarray(group["row"][...], dtype=np.intp), _texts(group["patch_id"])
    return KeptPatches(
        rows=rows,
        ids=ids[rows],
        all_ids=ids,
        predicted={
            name.replace("∕", "/"): (str(data.attrs["layer"]), _values(data))
            for name, data in group.get("predicted", {}).items()
        },
        thumbnails=np.asarray(group["thumbnails"][...], dtype=np.uint8) if "thumbnails" in group else None,
    )


def _samples(group: h5py.Group) -> Samples:
    return Samples(
        centers=tuple(map(str, _texts(group["center"]))),
        images=np.asarray(group["images"][...], dtype=np.uint8),
        counts=np.asarray(group["counts"][...], dtype=np.int64),
        histograms=np.asarray(group["histograms"][...], dtype=np.float64),
        n_patches=np.asarray(group["n_patches"][...], dtype=np.int64),
    )


def _texts(data: h5py.Dataset) -> Texts:
    return np.asarray(data.asstr()[...], dtype=str)


def _values(data: h5py.Dataset) -> NDArray[Any]:
    return _texts(data) if h5py.check_string_dtype(data.dtype) is not None else np.asarray(data[...], dtype=np.float64)


def is_drawable(values: NDArray[Any]) -> bool:
    """Return whether a concept has numbers to draw."""
    return values.dtype.kind == "f" and bool(np.isfinite(values).any()) and math.isfinite(np.nansum(values))
