"""Pixel statistics and stain profiles of a table's patches, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.files.atomic import replacing
from conceptkit.images.decoding import Pixels
from conceptkit.pathology.domains import STAIN_PROFILE, stain_profile
from conceptkit.probe.controls import PIXEL_STATISTICS, pixel_statistics
from conceptkit.tables.patches import PatchTable

VERSION = 1
"""Version of the statistics; files of another version are not read."""

_AT_ONCE = 64


def read_pixel_statistics(
    data: PatchTable,
    rows: NDArray[np.intp],
    *,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Floats | None:
    """Return the statistics (len(rows), k) of some rows; ``None`` for a table without pixels."""
    return _read(data, rows, _statistics, PIXEL_STATISTICS, cache / "pixels", progress)


def read_stain_profiles(
    data: PatchTable,
    rows: NDArray[np.intp],
    *,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Floats | None:
    """Return the stain profiles (len(rows), k) of some rows; ``None`` for a table without pixels."""
    return _read(data, rows, stain_profile, STAIN_PROFILE, cache / "stains", progress)


def _statistics(pixels: Pixels) -> Floats:
    found: Floats = pixel_statistics(pixels[None])[0]
    return found


def _read(
    data: PatchTable,
    rows: NDArray[np.intp],
    measure: Callable[[Pixels], Floats],
    width: int,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> Floats | None:
    if data.location is None:
        return None
    identities = data.identities()
    named = "\n".join([f"version {VERSION}", *(identities[row] for row in rows)])
    path = folder / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.npy"
    if path.is_file():
        kept: Floats = np.load(path, allow_pickle=False)
        return kept
    out = np.empty((len(rows), width))
    for start in range(0, len(rows), _AT_ONCE):
        for i in range(start, min(start + _AT_ONCE, len(rows))):
            out[i] = measure(data.pixels(int(rows[i])))
        if progress is not None:
            progress(min(start + _AT_ONCE, len(rows)), len(rows))
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, out)
    return out
