"""Features and predictions of evaluation rows with thumbnails, so that the report needs no network and no images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.files.hdf5 import replacing_hdf5
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.models.guided import GuidedModel
from conceptkit.records import EMBEDDINGS_FILE
from conceptkit.runs.context import THUMBNAIL, thumbnail
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

ROWS_DRAWN = 4000
"""Maximum number of rows that are kept, drawn at random."""


def drawn_rows(n: int) -> NDArray[np.intp]:
    """Return the positions among ``n`` evaluation rows whose features are kept, in order."""
    kept = np.arange(n)
    return kept if n <= ROWS_DRAWN else np.sort(np.random.default_rng(0).choice(kept, ROWS_DRAWN, replace=False))


def read_spaces(
    model: GuidedModel, inputs: Inputs, rows: NDArray[np.intp], *, batch_size: int = 256, device: str = "auto"
) -> dict[str, NDArray[np.float16]]:
    """Return layer → features (len(rows), d) of the two layers that the paper's Figure 7 compares.

    Parameters
    ----------
    rows : positions in ``inputs``

    Returns
    -------
    the pooled output of the backbone's last block and the output of the first dense layer of the trunk, if there is
    one, in half precision
    """
    pooled, dense = [], []
    with on_device(model, inputs, device) as where, torch.inference_mode():
        for batch in torch.split(torch.from_numpy(rows), batch_size):
            features = inputs.rest(*inputs.batch(batch, where))[0]
            pooled.append(features.half().cpu())
            if len(model.trunk):
                dense.append(model.trunk[0](features).half().cpu())
    spaces = {"backbone, pooled": torch.cat(pooled).numpy()}
    return spaces | ({"first dense layer": torch.cat(dense).numpy()} if dense else {})


def write_embeddings(
    folder: Path,
    table: PatchTable,
    study: Study,
    rows: NDArray[np.intp],
    trunks: Mapping[str, NDArray[np.float32]],
    *,
    spaces: Mapping[str, Mapping[str, NDArray[np.float16]]] | None = None,
    probabilities: Mapping[str, Floats] | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write the file into a run folder and return its path.

    Parameters
    ----------
    rows : row numbers of the evaluation rows
    trunks : run → (len(rows), width)
    spaces : run → layer → (len(drawn_rows(len(rows))), d), see :func:`read_spaces`; only of the runs of one seed
    probabilities : run → (len(rows),) of class 1, or (len(rows), k)
    classes : of the main task
    """
    kept = drawn_rows(len(rows))
    chosen = table.select(rows[kept])
    text = h5py.string_dtype()
    groups = chosen.groups(study.group)
    identity: dict[str, Iterable[Any]] = {
        "patch_id": chosen.patch_ids,
        "label": chosen.concept(study.label).values,
        "split": chosen.frame[study.splits.column],
        "group": chosen.patch_ids if groups is None else groups,
    }
    with replacing_hdf5(folder / EMBEDDINGS_FILE) as file:
        file.attrs["schema"] = "conceptkit/embeddings/1"
        file.create_dataset("position", data=kept)
        for name, values in identity.items():
            file.create_dataset(name, data=_words(values), dtype=text)
        for name in chosen.concept_names:
            concept = chosen.concept(name)
            # A slash would make an HDF5 group.
            key = f"concepts/{name.replace('/', '∕')}"
            if concept.kind == "continuous":
                file.create_dataset(key, data=concept.values)
            else:
                file.create_dataset(key, data=_words(concept.values), dtype=text)
        for run, trunk in trunks.items():
            file.create_dataset(f"features/{run}", data=trunk[kept])
        for run, layers in (spaces or {}).items():
            for layer, values in layers.items():
                file.create_dataset(f"layers/{layer}/{run}", data=values)
        if probabilities:
            _write_predictions(file, table.select(rows), study, probabilities, classes)
        # Features without pixels, or a slide that has since been moved, leave the report without thumbnails.
        with contextlib.suppress(InputError, OSError):
            small = [thumbnail(chosen.pixels(i), THUMBNAIL) for i in range(len(chosen))]
            file.create_dataset("thumbnails", data=np.stack(small), compression="gzip")
    return folder / EMBEDDINGS_FILE


def _write_predictions(
    file: h5py.File, table: PatchTable, study: Study, probabilities: Mapping[str, Floats], classes: Sequence[str]
) -> None:
    """Write the predictions of every run for all evaluation rows, with label, split and group."""
    groups = table.groups(study.group)
    columns: dict[str, Iterable[Any]] = {
        "label": table.concept(study.label).values,
        "split": table.frame[study.splits.column],
        "group": table.patch_ids if groups is None else groups,
    }
    for name, values in columns.items():
        file.create_dataset(f"predictions/{name}", data=_words(values), dtype=h5py.string_dtype(), compression="gzip")
    file["predictions"].attrs["classes"] = list(classes)
    for run, probability in probabilities.items():
        file.create_dataset(f"predictions/probability/{run}", data=probability)


def _words(values: Iterable[Any]) -> NDArray[Any]:
    """Return text, empty where missing."""
    return np.array(["" if v is None or v != v else str(v) for v in values], dtype=object)
