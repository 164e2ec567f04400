"""The trunk's output on evaluation rows, with small pictures, kept so that the report needs no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.patches import PatchTable
from conceptkit.records import EMBEDDINGS_FILE
from conceptkit.study import Study

THUMBNAIL = 48
"""Side of the small pictures, in pixels."""

ROWS_DRAWN = 4000
"""Most rows that are kept; more are drawn from at random."""


def write_embeddings(
    folder: Path, data: PatchTable, study: Study, rows: NDArray[np.intp], trunks: Mapping[str, NDArray[np.float32]]
) -> Path:
    """Write the file and return its path.

    Parameters
    ----------
    folder : run folder
    data : the patch table
    rows : row numbers of the evaluation rows
    trunks : run → (len(rows), width)
    """
    kept = np.arange(len(rows))
    if len(rows) > ROWS_DRAWN:
        kept = np.sort(np.random.default_rng(0).choice(kept, ROWS_DRAWN, replace=False))
    chosen = data.select(rows[kept])
    text = h5py.string_dtype()
    groups = chosen.groups(study.group)
    identity: dict[str, Iterable[Any]] = {
        "patch_id": chosen.patch_ids,
        "label": chosen.concept(study.label).values,
        "split": chosen.frame[study.splits.column],
        "group": chosen.patch_ids if groups is None else groups,
    }
    temporary = folder / f".{EMBEDDINGS_FILE}.{os.getpid()}"
    with h5py.File(temporary, "w") as file:
        file.attrs["schema"] = "conceptkit/embeddings/1"
        for name, values in identity.items():
            file.create_dataset(name, data=_words(values), dtype=text)
        for name in chosen.concept_names:
            concept = chosen.concept(name)
            # Names with a slash would make HDF5 groups of their own.
            key = f"concepts/{name.replace('/', '∕')}"
            if concept.kind == "continuous":
                file.create_dataset(key, data=concept.values)
            else:
                file.create_dataset(key, data=_words(concept.values), dtype=text)
        for run, trunk in trunks.items():
            file.create_dataset(f"features/{run}", data=trunk[kept])
        small = [
            np.asarray(Image.fromarray(chosen.pixels(i)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
            for i in range(len(chosen))
        ]
        file.create_dataset("thumbnails", data=np.stack(small), compression="gzip")
    os.replace(temporary, folder / EMBEDDINGS_FILE)
    return folder / EMBEDDINGS_FILE


def _words(values: Iterable[Any]) -> NDArray[Any]:
    """Return text, empty where missing."""
    return np.array(["" if v is None or v != v else str(v) for v in values], dtype=object)
