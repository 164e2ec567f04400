"""Raw pixel and colour statistics of a table's patches, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.patches import PatchTable
from conceptkit.probe.controls import PIXEL_STATISTICS, pixel_statistics

VERSION = 1
"""Counts the changes of the statistics; kept ones of another version are not taken."""

_AT_ONCE = 64


def read_pixel_statistics(
    data: PatchTable,
    rows: NDArray[np.intp],
    *,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Floats | None:
    """Return the statistics (len(rows), k) of some rows; ``None`` for a table without pixels."""
    if data.location is None:
        return None
    identities = data.identities()
    named = "\n".join([f"version {VERSION}", *(identities[row] for row in rows)])
    path = cache / "pixels" / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.npy"
    if path.is_file():
        kept: Floats = np.load(path, allow_pickle=False)
        return kept
    out = np.empty((len(rows), PIXEL_STATISTICS))
    for start in range(0, len(rows), _AT_ONCE):
        for i in range(start, min(start + _AT_ONCE, len(rows))):
            out[i] = pixel_statistics(data.pixels(int(rows[i]))[None])[0]
        if progress is not None:
            progress(min(start + _AT_ONCE, len(rows)), len(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, out)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return out
