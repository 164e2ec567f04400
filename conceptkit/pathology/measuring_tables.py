"""Measure the patches of a patch table, whether of slides, HDF5 files or images: it gains concept columns."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.jobs import Engine
from conceptkit.pathology.image_lists import check_case
from conceptkit.pathology.images import check_upright, image_size, read_quality, tiff_quality
from conceptkit.pathology.masks import check_mask_rows, read_mask, read_mask_row
from conceptkit.pathology.measures import names_for
from conceptkit.pathology.measuring import (
    Measured,
    Segmentation,
    check_mask_shape,
    choose_measures,
    has_types,
    measure_batch,
    relative_path,
    segmenter,
    types_of,
)
from conceptkit.pathology.nuclei import Found, find_detailed, find_plain, mask_name, write_labels
from conceptkit.pathology.nucleus_rows import Kept, NucleusTable, Place, nucleus_rows, owner, owners
from conceptkit.pathology.outliers import outlier_notes
from conceptkit.pathology.quality import Condition, exclude
from conceptkit.pathology.resuming import Part, file_state, part_key, run_in_parts
from conceptkit.pathology.scales import known_scales, read_scale
from conceptkit.tables.patches import PatchTable, load_table

_CHUNK = 64

_HDF5 = (".h5", ".hdf5")
"""Files that hold the masks of many patches, in the order of their pixels."""

_MARGIN = 0.25
"""Share of a tile's side that is read around it on slides, so that nuclei at its border are seen whole when found."""


@dataclass(frozen=True)
class TableJob:
    """Some rows to measure, complete in itself so that any process can do it."""

    table: Path
    stamp: int
    rows: tuple[int, ...]
    names: tuple[str, ...]
    nuclei: Segmentation | None
    items: tuple[str, ...]
    """Patch ids of the rows."""
    key: str
    kept: Kept | None = None
    named: str | None = None
    """How types of nuclei in masks are named."""

    @property
    def is_complete(self) -> bool:
        """Return whether label images and rows of nuclei exist, where they are to be kept."""
        masks = None if self.nuclei is None else self.nuclei.masks_out
        if masks is not None and not all((masks / mask_name(patch)).is_file() for patch in self.items):
            return False
        return self.kept is None or self.kept.file(self.key).is_file()


def is_patch_table(path: Path) -> bool:
    """Return whether each row of a table is a patch, rather than a whole image."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return True
    try:
        with path.open(encoding="utf-8-sig") as stream:
            columns = {c.strip().strip('"') for c in stream.readline().split(",")}
    except (OSError, UnicodeDecodeError):
        return False
    return {"slide", "x", "y", "size"} <= columns or {"h5", "key", "row"} <= columns or {"patch_id", "image"} <= columns


def measure_table(
    path: Path,
    *,
    out: Path,
    names: Iterable[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    nuclei: Segmentation | None = None,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] | None = None,
    parts: Path | None = None,
    nuclei_out: NucleusTable | None = None,
    conditions: Sequence[Condition] = (),
    type_names: str | None = None,
) -> Measured:
    """Measure every patch of a patch table; raises :class:`InputError` as ``measure_images`` does.

    Parameters
    ----------
    path : the table; ``mpp`` is each patch's microns per pixel, ``mask`` a label image of the patch, or of its image,
        or, where the pixels lie in HDF5, such a file with a dataset ``masks`` of the same rows
    out : where the new table will be written: paths in it are relative to its folder
    names, on_error, nuclei, engine, parts, nuclei_out, conditions, type_names : as in
        :func:`conceptkit.pathology.measuring.measure_images`
    progress : receives the number of patches that are finished, and of all
    """
    path = path.absolute()
    table = load_table(path)
    if table.location is None:
        raise InputError(f"images: {path} does not say where the pixels of its patches are.")
    if out.exists() and out.samefile(path):
        raise InputError(f"out: {out} is the table itself; name another file.")
    if nuclei is not None and nuclei.masks_out is not None:
        for patch in table.patch_ids:
            mask_name(patch)
        check_case(table.frame["patch_id"], path)
    columns = table.frame.columns
    scale_notes: list[str] = []
    if "mpp" in columns:
        known, scale_notes = known_scales(table.frame["mpp"], table.frame["patch_id"])
        table = replace(table, frame=table.frame.assign(mpp=known))
    has_mask = nuclei is not None or ("mask" in columns and bool(table.frame["mask"].notna().any()))
    typed = has_types(nuclei) if nuclei else type_names is not None or "types" in columns
    has_mpp = "mpp" in columns and bool(table.frame["mpp"].notna().any())
    possible = names_for(
        mask=has_mask, mpp=has_mpp, file=table.location != "h5", types=typed
    )  # stored pixels have no quality
    chosen = choose_measures(names, possible, columns, path, extra=[c.measure for c in conditions])
    kept = None if nuclei_out is None else nuclei_out.kept(parts, has_mask, path)
    jobs = _jobs(table, path, chosen, nuclei, kept, type_names)
    about: dict[str, Any] = {"folder": parts, "engine": engine, "progress": progress}
    finished = run_in_parts(measure_rows, jobs, on_error=on_error, is_complete=lambda job: job.is_complete, **about)
    values = {name: np.full(len(table), np.nan) for name in chosen}
    for k, part in finished.rows.items():
        for name in chosen:
            values[name][list(jobs[k].rows)] = part[name]
    good = ~table.frame["patch_id"].isin(finished.skipped)
    if not good.any():
        reason = next(iter(finished.skipped.values()))
        raise InputError(f"{path}: no patch could be measured; the first was skipped: {reason}")
    frame = table.frame.assign(**values)[good].reset_index(drop=True)
    if nuclei is not None and nuclei.masks_out is not None:
        frame["mask"] = [str(nuclei.masks_out / mask_name(patch)) for patch in frame["patch_id"]]
    frame, left_out = exclude(frame, conditions)
    if nuclei_out is not None:
        nuclei_out.join(kept, (jobs[k].key for k in finished.rows), frame["patch_id"] if left_out else None)
    for column in {table.location, "mask"} & set(frame.columns):
        frame[column] = [v if pd.isna(v) else relative_path(path.parent / str(v), out.parent) for v in frame[column]]
    return Measured(
        table=frame,
        skipped=tuple((name, finished.skipped[name]) for name in table.patch_ids if name in finished.skipped),
        notes=(*scale_notes, *left_out, *_notes(table, nuclei), *outlier_notes(values)),
        resumed=finished.resumed,
    )


def _jobs(
    table: PatchTable,
    path: Path,
    names: tuple[str, ...],
    nuclei: Segmentation | None,
    kept: Kept | None,
    named: str | None,
) -> list[TableJob]:
    """Return jobs of rows of one file; a key is a digest of everything that their measures depend on."""
    places, frame, ids = table.identities(), table.frame, table.patch_ids
    mpp = [str(v) for v in frame["mpp"]] if "mpp" in frame.columns else [""] * len(table)
    masks: list[Any] = [None] * len(table)
    if "mask" in frame.columns:
        states = {str(v): file_state(table.folder / str(v)) for v in frame["mask"].dropna().unique()}
        masks = [states.get(str(v)) for v in frame["mask"]]
    method = None if nuclei is None else nuclei.state()

    def job(rows: Sequence[int]) -> TableJob:
        more = [] if named is None else [named]
        key = part_key([[(places[k], mpp[k], masks[k]) for k in rows], names, method, *more])
        items = tuple(ids[k] for k in rows)
        return TableJob(path, path.stat().st_mtime_ns, tuple(rows), names, nuclei, items, key, kept, named)

    return [
        job(rows.tolist())
        for _, index in frame.groupby(table.location, sort=True).indices.items()
        for rows in np.array_split(index, math.ceil(len(index) / _CHUNK))
    ]


def measure_rows(job: TableJob) -> Part:
    """Return the measures of some rows, and why rows could not be measured."""
    table = _table(job.table, job.stamp)
    values = {name: np.full(len(job.rows), np.nan) for name in job.names}
    faults: dict[str, str] = {}
    rows: list[Any] = []
    for k, row in enumerate(job.rows):
        try:
            for name, value in _measure_row(table, row, job, rows).items():
                values[name][k] = value[0]
        except InputError as error:
            faults[job.items[k]] = str(error)
    if job.kept is not None:
        job.kept.write(job.key, rows)
    return Part(pd.DataFrame(values), faults)


@functools.lru_cache(maxsize=2)
def _table(path: Path, stamp: int) -> PatchTable:
    return load_table(path)


def _measure_row(table: PatchTable, row: int, job: TableJob, rows: list[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the measures of one patch; append its nuclei to ``rows`` and write its labels where these are kept."""
    record = table.frame.iloc[row]
    mpp = read_scale(record.get("mpp"), record["patch_id"])
    detailed = job.kept is not None or (job.nuclei is not None and has_types(job.nuclei))
    find = find_detailed if detailed else find_plain
    found: Found | None = None
    if job.nuclei is not None and table.location == "slide":
        pixels, margin, wide = _surroundings(table, row)
        found = find(wide, segmenter(job.nuclei), mpp)
    else:
        pixels, margin = table.pixels(row), 0
        wide = pixels
        if job.nuclei is not None:
            found = find(pixels, segmenter(job.nuclei), mpp)
        elif not pd.isna(record.get("mask")):
            named = types_of(table.folder, str(record["mask"]), _cell(record, "types"), job.named)
            found = Found(_mask_of(table, row, pixels.shape[:2], mpp), types=named)
    height, width = pixels.shape[:2]
    labels = None if found is None else found.labels[margin : margin + height, margin : margin + width]
    if labels is not None and job.nuclei is not None and job.nuclei.masks_out is not None:
        write_labels(_in_order(labels), job.nuclei.masks_out / mask_name(record["patch_id"]))
    if found is not None and job.kept is not None:
        rows.append(_nuclei_of(table, row, wide, found, mpp, margin, job.kept.contours))
    quality = _quality(table, str(record[str(table.location)])) if "jpeg_quality" in job.names else math.nan
    types = None if found is None else found.types
    return measure_batch(pixels[None], None if labels is None else labels[None], mpp, quality, job.names, types)


def _cell(record: Any, column: str) -> str:
    """Return the text of a cell, empty where there is none."""
    value = record.get(column)
    return "" if value is None or pd.isna(value) else str(value)


def _in_order(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels 1 … n without gaps: those of a larger view, cut, may be beyond 16 bits."""
    return np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape)


def _nuclei_of(
    table: PatchTable, row: int, view: NDArray[np.uint8], found: Found, mpp: float, margin: int, contours: bool
) -> Any:
    """Return a row per nucleus whose centre belongs to a patch, seen in a view with a margin around it."""
    record = table.frame.iloc[row]
    patch, side = str(record["patch_id"]), view.shape[0] - 2 * margin
    location = str(table.location)
    placed = {"x", "y", "size"} <= set(table.frame.columns) and not pd.isna(record["x"])
    scale = float(record["size"]) / side if placed else 1.0
    slide = str(record[location]) if placed else patch
    left, top = (float(record[c]) if placed else 0.0 for c in ("x", "y"))
    place = Place(slide, left - scale * margin, top - scale * margin, scale)
    tree, index = _tiles_of(table, str(record[location])) if placed else (None, {})

    def belongs(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (x >= margin) & (x < margin + side) & (y >= margin) & (y < view.shape[0] - margin)
        if tree is None or not len(x):
            return inside
        points = np.column_stack([place.x + scale * x, place.y + scale * y])
        return np.asarray(inside & (owner(tree, points) == index[row]))

    return nucleus_rows(view, found, mpp, place, lambda x, y: [patch] * len(x), keep=belongs, contours=contours)


def _tiles_of(table: PatchTable, name: str) -> tuple[Any, dict[int, int]]:
    """Return the tree of the centres of a slide's patches, and row → number in it."""
    cached = _TILES.get((id(table), name))
    if cached is None:
        frame = table.frame
        rows = np.flatnonzero((frame[str(table.location)].astype(str) == name).to_numpy())
        part = frame.iloc[rows]
        centres = np.column_stack([part[c] + part["size"] / 2 for c in ("x", "y")]).astype(np.float64)
        cached = owners(centres), {int(row): k for k, row in enumerate(rows)}
        _TILES.clear()
        _TILES[id(table), name] = cached
    return cached


_TILES: dict[tuple[int, str], tuple[Any, dict[int, int]]] = {}
"""Of the slide whose patches were read last"""


def _quality(table: PatchTable, name: str) -> float:
    """Return the JPEG quality of the file that a row's pixels are from."""
    path = table.folder / name
    return _quality_of(path, table.location == "slide", path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _quality_of(path: Path, is_slide: bool, stamp: int) -> float:
    return tiff_quality(path) if is_slide else read_quality(path)  # once for all windows of an image


def _surroundings(table: PatchTable, row: int) -> tuple[NDArray[np.uint8], int, NDArray[np.uint8]]:
    """Return a slide's patch, a margin in pixels, and the patch with the tissue of that margin around it."""
    record = table.frame.iloc[row]
    size = record["size"]
    plain = isinstance(size, numbers.Integral) and record.get("side", size) == size
    # Where no pixel is resampled, the patch is the middle of what is read around it; else it is read for itself.
    pixels = None if plain else table.pixels(row)
    side = int(size) if pixels is None else pixels.shape[0]
    margin = round(side * _MARGIN)
    wide = _wider(table, row, margin, side)
    inner = np.s_[margin : margin + side, margin : margin + side]
    return wide[inner] if pixels is None else pixels, margin, wide


def _wider(table: PatchTable, row: int, margin: int, side: int) -> NDArray[np.uint8]:
    """Read a slide's patch with a margin around it."""
    record = table.frame.iloc[[row]].copy()
    extra = round(margin * int(record["size"].iloc[0]) / side)
    record["x"], record["y"] = record["x"] - extra, record["y"] - extra
    record["size"], record["side"] = record["size"] + 2 * extra, side + 2 * margin
    return PatchTable(record, table.folder).pixels(0)


def _mask_of(table: PatchTable, row: int, shape: tuple[int, ...], mpp: float) -> NDArray[Any]:
    record = table.frame.iloc[row]
    place = table.folder / str(record["mask"])
    if table.location == "h5" and place.suffix.lower() in _HDF5:
        _check_rows(place, _stamp(place))
        labels = read_mask_row(place, int(record["row"]))
    else:
        whole = table.folder / str(record["image"]) if table.location == "image" else None
        if table.location == "slide" and place.suffix.lower() == ".json":
            raise InputError(f"mask: {place} holds contours, which go with images, not with slides.")
        labels = _mask_file(place, _stamp(place), whole, shape, None if math.isnan(mpp) else mpp)
    if labels.shape != shape and {"x", "y", "size"} <= set(table.frame.columns) and not pd.isna(record["x"]):
        x, y, size = (int(record[c]) for c in ("x", "y", "size"))
        labels = labels[max(y, 0) : y + size, max(x, 0) : x + size]
    check_mask_shape(labels, shape, str(record["mask"]), f"patch {record['patch_id']}")
    return labels


@functools.lru_cache(maxsize=2)
def _mask_file(path: Path, stamp: int, image: Path | None, shape: tuple[int, ...], mpp: float | None) -> NDArray[Any]:
    """Read the mask of an image, once for all its windows, or of a patch of this shape."""
    if image is None:
        return read_mask(path, shape, mpp)
    check_upright(image)
    return read_mask(path, image_size(image), mpp)


@functools.lru_cache(maxsize=2)
def _check_rows(path: Path, stamp: int) -> None:
    check_mask_rows(path)  # once for all rows


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _notes(table: PatchTable, nuclei: Segmentation | None) -> tuple[str, ...]:
    notes = []
    if nuclei is not None:
        notes.append(f"Nuclei were found by {nuclei.method}; masks of the table, if any, were not used.")
    if "mpp" not in table.frame.columns or table.frame["mpp"].isna().any():
        notes.append("Some patches have no mpp: areas in µm² are empty there, and nuclei are looked for as at 40x.")
    return tuple(notes)
