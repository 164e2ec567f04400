"""Label images as a table of nuclei with contours, as the viewers' files are written from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from skimage.measure import approximate_polygon, find_contours, regionprops

from conceptkit.errors import InputError
from conceptkit.pathology.masks import read_mask
from conceptkit.pathology.viewers.tables import CONTOUR

TOLERANCE = 0.3
"""Pixels by which a contour may leave out corners of a label image"""

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz", ".mat")


@contextmanager
def nuclei_of_masks(nuclei: Path, frame: pd.DataFrame | None) -> Iterator[Path]:
    """Yield a table of nuclei: the given file, or one made of a folder of label images while the block runs.

    Raises :class:`InputError` when the folder has no label image of any image of the table.
    """
    if not nuclei.is_dir():
        if not nuclei.is_file():
            raise InputError(f"nuclei: {nuclei} not found.")
        yield nuclei
        return
    if frame is None or "image" not in frame:
        raise InputError("nuclei: label images go with a table of images; for slides give a Parquet file of nuclei.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nuclei.parquet"
        schema = pyarrow.schema(
            {
                "image": pyarrow.string(),
                **dict.fromkeys(("x", "y", "area_px"), pyarrow.float64()),
                CONTOUR: pyarrow.list_(pyarrow.list_(pyarrow.float64())),
            }
        )
        number = 0
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for image in sorted({str(name) for name in frame["image"].dropna()}):
                mask = next((m for s in SUFFIXES if (m := nuclei / f"{Path(image).stem}{s}").is_file()), None)
                if mask is not None:
                    number += 1
                    writer.write_table(pyarrow.Table.from_pylist(list(_nuclei(image, read_mask(mask))), schema=schema))
        if not number:
            raise InputError(f"nuclei: {nuclei} has no label image named like an image of the table.")
        yield path


def _nuclei(image: str, labels: NDArray[Any]) -> Iterator[dict[str, Any]]:
    for region in regionprops(labels):  # type: ignore[no-untyped-call]
        top, left = region.bbox[:2]
        y, x = region.centroid
        contour = outline(region.image) + np.array([left, top])
        yield {"image": image, "x": x + 0.5, "y": y + 0.5, "area_px": float(region.area), CONTOUR: contour.tolist()}


def outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the outline of the largest piece of a mask (h, w) as x and y, (k, 2), counted from its corner."""
    rings = find_contours(np.pad(mask.astype(np.float64), 1), 0.5)  # type: ignore[no-untyped-call]
    longest = max(rings, key=lambda ring: float(np.ptp(ring, axis=0).prod()))
    ring = approximate_polygon(longest, TOLERANCE)[:-1]  # type: ignore[no-untyped-call]
    return np.asarray(ring[:, ::-1] - 0.5)
