"""What a run keeps of its patches for its report: rows, folds, sample patches and colours, in the run folder."""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.errors import InputError
from conceptkit.files.hdf5 import replacing_hdf5
from conceptkit.options.probe import NO_CENTER
from conceptkit.probe.targets import Target
from conceptkit.probe.usable import usable_targets
from conceptkit.records import CONTEXT_FILE
from conceptkit.tables.patches import MemoryTable, PatchTable
from conceptkit.tables.study import Study

CENTER = "center"
"""Column of the centers whose samples and colours are kept"""

LEFT_OUT_PARTS = 10
"""Default maximum number of parts in which centers are held out; of more centers, several share a part"""

SAMPLES = 4
"""Patches kept of each center"""

COLOURED = 48
"""Maximum number of patches of each center in the colour histograms"""

BINS = 64
"""Number of bins of each colour's histogram"""

SIDE = 96
"""Side of the sample patches, in pixels"""

PATCHES_KEPT = 2000
"""Maximum number of patches whose thumbnails are kept, drawn at random; each is read once more from its file"""

THUMBNAIL = 48
"""Side of the thumbnails, in pixels"""

CENTERS_MOST = 40
"""Maximum number of centers; a column with more values is not shown as centers"""


def write_context(
    folder: Path,
    table: PatchTable,
    study: Study,
    rows: NDArray[np.intp],
    *,
    concepts: Sequence[str],
    targets: Iterable[Target] = (),
    folds: int = 0,
    predicted: Mapping[str, tuple[str, NDArray[Any]]] | None = None,
    trained: NDArray[np.intp] | None = None,
) -> Path:
    """Write the file and return its path.

    Parameters
    ----------
    folder : run folder
    table : the patch table
    rows : row numbers of the table that the run used
    concepts : columns to keep besides label, split, group and center
    targets : what was read by probes, with rows numbered as in ``rows``; their folds are kept
    folds : number of these folds
    predicted : concept → its layer and (len(rows),) held-out predictions, NaN or empty where missing; the page then
        shows patches one by one
    trained : row numbers of the table that networks were fitted on; ``None`` where all rows were
    """
    chosen = table.select(rows)
    groups = chosen.groups(study.group)
    centers = _classes(chosen, CENTER)
    with replacing_hdf5(folder / CONTEXT_FILE) as file:
        file.attrs["schema"] = "conceptkit/context/1"
        file.create_group("made_with").attrs.update(_made_with(study))
        file.create_group("units").attrs.update({name: study.units[name] for name in concepts if name in study.units})
        columns = {
            "split": _words(chosen.frame.get(study.splits.column, ()), len(chosen)),
            "group": _words([] if groups is None else groups, len(chosen)),
            "label": _classes(chosen, study.label),
            "center": centers,
        }
        for name, words in columns.items():
            file.create_dataset(f"rows/{name}", data=words, dtype=h5py.string_dtype(), compression="gzip")
        if trained is not None:
            file.create_dataset("rows/trained", data=np.isin(rows, trained), compression="gzip")
        kept = file.create_group("concepts")
        for name in dict.fromkeys(concepts):
            concept = chosen.concept(name)
            key = name.replace("/", "∕")  # a slash would make HDF5 groups
            if concept.kind == "continuous":
                kept.create_dataset(key, data=concept.values, compression="gzip")
            else:
                words = _words(concept.values, len(chosen))
                kept.create_dataset(key, data=words, dtype=h5py.string_dtype(), compression="gzip")
        numbered = file.create_group("folds")
        for target in targets:
            numbered.create_dataset(
                target.name.replace("/", "∕"), data=_fold_numbers(target, folds, len(chosen)), compression="gzip"
            )
        if predicted:
            _write_patches(file.create_group("patches"), chosen, predicted)
        # Features without pixels, or a slide that has since been moved, leave the report without samples.
        with contextlib.suppress(InputError, OSError):
            for name, values in _samples(chosen, centers).items():
                text = {"dtype": h5py.string_dtype()} if values.dtype == object else {}
                file.create_dataset(f"samples/{name}", data=values, compression="gzip", **text)
    return folder / CONTEXT_FILE


def _write_patches(group: h5py.Group, table: PatchTable, predicted: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Write ids and predictions of all rows, and thumbnails of some."""
    text, packed = h5py.string_dtype(), {"compression": "gzip"}
    group.create_dataset("patch_id", data=_words(table.patch_ids, len(table)), dtype=text, **packed)
    for name, (layer, values) in predicted.items():
        words = {"dtype": text} if values.dtype == object else {}
        data = group.create_dataset(f"predicted/{name.replace('/', '∕')}", data=values, **words, **packed)
        data.attrs["layer"] = layer
    kept = np.sort(np.random.default_rng(0).permutation(len(table))[:PATCHES_KEPT])
    group.create_dataset("row", data=kept)
    with contextlib.suppress(InputError, OSError):  # as for samples
        if table.location is not None:
            small = [thumbnail(table.pixels(int(row)), THUMBNAIL) for row in kept]
            group.create_dataset("thumbnails", data=np.stack(small), **packed)


def thumbnail(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a patch (h, w, 3) as (side, side, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def center_column(table: PatchTable, center: str | None) -> str | None:
    """Return the column of centers: the one named, or ``center`` where the table has it; ``None`` for ``none``."""
    if center is None:
        return CENTER if CENTER in table.frame.columns else None
    if center == NO_CENTER and NO_CENTER not in table.frame.columns:
        return None
    table.column("center", center)
    return center


def default_concepts(table: PatchTable, study: Study) -> list[str]:
    """Return the concepts that are used when none are named: those of the table, without the column of the groups."""
    return [name for name in table.concept_names if name != study.group]


def placed_in(table: PatchTable, study: Study, *, center: str | None, nested: str | None = None) -> dict[str, Any]:
    """Return the keyword arguments of :func:`conceptkit.probe.targets.make_target` other than the groups.

    Parameters
    ----------
    center : column of centers, by :func:`center_column`
    nested : column of units nested in the groups, such as slides

    Raises
    ------
    InputError
        when there is no such column, or a row has no nested unit
    """
    found: dict[str, Any] = {"centers": None if center is None else text_of(table, "center", center)}
    if study.label in table.frame.columns:
        found["labels"] = text_of(table, "label", study.label)
    if nested is not None:
        found["nested"] = text_of(table, "nested", nested)
        missing = sum(one is None for one in found["nested"])
        if missing:
            raise InputError(f"nested: every row needs a value of {nested}, {missing} of {len(table)} rows have none.")
    return found


def table_targets(
    table: PatchTable,
    concepts: Sequence[str],
    keep: NDArray[np.bool_],
    groups: NDArray[Any] | None,
    folds: int | None,
    placing: Mapping[str, Any],
) -> tuple[list[Target], list[str]]:
    """Return the concepts that can be probed on some rows, and notes on concepts and classes that are skipped.

    Parameters
    ----------
    keep : (n rows of the table,) which rows are used
    folds : of the cross-validation; ``None`` for the paper's protocol, which has none
    placing : centers, nested units, labels and seed, as :func:`conceptkit.probe.targets.make_target` takes them

    Raises
    ------
    InputError
        when there is no such column, or no concept can be probed
    """
    columns = {name: table.concept(name) for name in concepts}

    def values_of(name: str) -> tuple[str, NDArray[Any]]:
        table.check_words(name)
        column = columns[name]
        missing: Any = np.nan if column.kind == "continuous" else None
        return column.kind, np.where(keep, column.values, missing)

    return usable_targets(concepts, values_of, groups, folds, placing)


def text_of(table: PatchTable, argument: str, name: str) -> NDArray[Any]:
    """Return a column as text (n,), ``None`` where missing."""
    column = table.column(argument, name)
    return np.array(
        [None if missing else str(v) for v, missing in zip(column, column.isna(), strict=True)], dtype=object
    )


def _made_with(study: Study) -> dict[str, str]:
    program = Path(sys.argv[0])  # …/bin/conceptkit, or …/conceptkit/__main__.py
    ours = "conceptkit" in (program.stem, program.parent.name if program.stem == "__main__" else "")
    has_table = isinstance(study.table, MemoryTable) or study.table.is_file()
    return {
        "command": shlex.join(["conceptkit", *sys.argv[1:]]) if ours else "called from Python",
        "table": study.table.name,
        "table's SHA-256": study.table_digest() if has_table else "",
        "Python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _classes(table: PatchTable, name: str) -> NDArray[Any]:
    """Return a categorical column as text, empty where it is missing."""
    return _words(table.concept(name).values if name in table.frame.columns else [], len(table))


def _words(values: Iterable[Any], n: int) -> NDArray[Any]:
    words = ["" if v is None or v != v else str(v) for v in values]
    return np.array(words or [""] * n, dtype=object)


def _fold_numbers(target: Target, folds: int, n: int) -> NDArray[np.int16]:
    numbers = np.full(n, -1, dtype=np.int16)
    with contextlib.suppress(InputError):  # too few groups: nothing was read, and nothing was held out
        for i, (_, test) in enumerate(target.folds(folds)):
            numbers[target.rows[test]] = i
    return numbers


def _samples(table: PatchTable, centers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return names, sample pictures and colour histograms of the centers; nothing without pixels."""
    if table.location is None or not len(table):
        return {}
    names = sorted({name for name in centers if name})
    if not names or len(names) > CENTERS_MOST:
        names = [""]
    images = np.zeros((len(names), SAMPLES, SIDE, SIDE, 3), np.uint8)
    counts, n_patches = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    histograms = np.zeros((len(names), 3, BINS))
    random = np.random.default_rng(0)
    for k, name in enumerate(names):
        rows = np.flatnonzero(centers == name) if name else np.arange(len(table))
        rows = random.permutation(rows)[:COLOURED]
        for i, row in enumerate(rows):
            pixels = table.pixels(int(row))
            for channel in range(3):
                histograms[k, channel] += np.bincount(pixels[..., channel].ravel() // (256 // BINS), minlength=BINS)
            if i < SAMPLES:
                images[k, i] = thumbnail(pixels, SIDE)
        counts[k], n_patches[k] = min(len(rows), SAMPLES), len(rows)
    histograms /= np.maximum(histograms.sum(axis=2, keepdims=True), 1)
    return {
        "center": np.array(names, dtype=object),
        "images": images,
        "counts": counts,
        "histograms": histograms,
        "n_patches": n_patches,
    }


def names_kept(study: Study, table: PatchTable, wanted: Iterable[str]) -> list[str]:
    """Return the concepts whose values are kept: those that the run is about, and the centers."""
    extra = [CENTER] if CENTER in table.frame.columns else []
    return [n for n in dict.fromkeys([*wanted, *extra]) if n != study.label and n in table.frame.columns]
