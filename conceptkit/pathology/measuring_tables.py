"""Measure the patches of a patch table, whether of slides, HDF5 files or images: it gains concept columns."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.families import MEASURES
from conceptkit.jobs import Engine, run_jobs
from conceptkit.pathology.images import check_upright, image_size, read_quality, tiff_quality
from conceptkit.pathology.masks import check_mask_rows, read_mask, read_mask_row
from conceptkit.pathology.measures import CORE, check_names, measure, names_for, spell_out
from conceptkit.pathology.measuring import (
    Measured,
    Segmentation,
    nuclei_state,
    relative_path,
    segmenter,
)
from conceptkit.pathology.nuclei import Segmenter, find_in
from conceptkit.pathology.outliers import outlier_notes
from conceptkit.pathology.resuming import file_state, keep_part, kept_parts, part_key
from conceptkit.pathology.scales import NEEDED, known_scales, scale_of
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


def is_patch_table(path: Path) -> bool:
    """Tell whether a file is a patch table, each row a patch, rather than a list of whole images."""
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
) -> Measured:
    """Measure every patch of a patch table.

    Parameters
    ----------
    path : the table; ``mpp`` is each patch's microns per pixel, ``mask`` a label image of the patch, or of its image,
        or, where the pixels lie in HDF5, such a file with a dataset ``masks`` of the same rows
    out : where the new table will be written: paths in it are as seen from there
    names, on_error, nuclei, engine, parts : as in :func:`conceptkit.pathology.measuring.measure_images`
    progress : called with the number of patches done and of all

    Raises
    ------
    InputError
        as :func:`conceptkit.pathology.measuring.measure_images`
    """
    path = path.absolute()
    table = load_table(path)
    if table.location is None:
        raise InputError(f"images: {path} does not say where the pixels of its patches are.")
    if out.exists() and out.samefile(path):
        raise InputError(f"out: {out} is the table itself; name another file.")
    if nuclei is not None and nuclei.masks_out is not None:
        raise InputError("masks-out: goes with a list of images; the nuclei of a table's patches are not kept.")
    scale_notes: list[str] = []
    if "mpp" in table.frame.columns:
        known, scale_notes = known_scales(table.frame["mpp"], table.frame["patch_id"])
        table = replace(table, frame=table.frame.assign(mpp=known))
    chosen = _choose(table, names, nuclei)
    for name in chosen:
        if name in table.frame.columns:
            raise InputError(f"{path}: column {name} bears the name of a measure that is to be computed.")
    jobs = [
        TableJob(path, path.stat().st_mtime_ns, tuple(rows), chosen, nuclei)
        for _, index in table.frame.groupby(table.location, sort=True).indices.items()
        for rows in np.array_split(index, math.ceil(len(index) / _CHUNK))
    ]
    values = {name: np.full(len(table), np.nan) for name in chosen}
    keys = _keys(table, jobs)
    kept = kept_parts(parts, keys)
    for k, part in kept.items():
        for name in chosen:
            values[name][list(jobs[k].rows)] = part[name]
    resumed = done = sum(len(jobs[k].rows) for k in kept)
    if progress is not None and resumed:
        progress(resumed, len(table))
    todo = [k for k in range(len(jobs)) if k not in kept]
    faults: dict[int, str] = {}
    for outcome in run_jobs(measure_rows, [jobs[k] for k in todo], engine or Engine()):
        k = todo[outcome.index]
        rows = jobs[k].rows
        if outcome.result is None:
            faults.update(dict.fromkeys(rows, str(outcome.error)))
        else:
            found, bad = outcome.result
            faults.update(bad)
            for name in chosen:
                values[name][list(rows)] = found[name]
            if not bad:  # a row that may be mended is read again, and with it the few beside it
                keep_part(parts, keys[k], pd.DataFrame(found))
        if faults and on_error == "raise":
            raise InputError(faults[min(faults)])
        done += len(rows)
        if progress is not None:
            progress(done, len(table))
    good = np.array([k not in faults for k in range(len(table))])
    if not good.any():
        raise InputError(f"{path}: no patch could be measured; the first was left out as {faults[min(faults)]}")
    frame = table.frame.assign(**values)[good].reset_index(drop=True)
    for column in {table.location, "mask"} & set(frame.columns):
        frame[column] = [v if pd.isna(v) else relative_path(path.parent / str(v), out.parent) for v in frame[column]]
    ids = table.patch_ids
    return Measured(
        table=frame,
        skipped=tuple((ids[k], fault) for k, fault in sorted(faults.items())),
        notes=(*scale_notes, *_notes(table, nuclei), *outlier_notes(values)),
        resumed=resumed,
    )


def _keys(table: PatchTable, jobs: list[TableJob]) -> list[str]:
    """Return for each job a digest of all that its measures follow from; the table's other columns do not count."""
    places, frame = table.identities(), table.frame
    mpp = [str(v) for v in frame["mpp"]] if "mpp" in frame.columns else [""] * len(table)
    masks: list[Any] = [None] * len(table)
    if "mask" in frame.columns:
        # Of one mask for many patches the file is asked once.
        states = {str(v): file_state(table.folder / str(v)) for v in frame["mask"].dropna().unique()}
        masks = [states.get(str(v)) for v in frame["mask"]]
    return [
        part_key([[(places[k], mpp[k], masks[k]) for k in job.rows], job.names, nuclei_state(job.nuclei)])
        for job in jobs
    ]


def measure_rows(job: TableJob) -> tuple[dict[str, NDArray[np.float64]], dict[int, str]]:
    """Return the measures of some rows, (n,) each, and the rows that could not be measured with the reason."""
    table = _table(job.table, job.stamp)
    out = {name: np.full(len(job.rows), np.nan) for name in job.names}
    bad: dict[int, str] = {}
    for k, row in enumerate(job.rows):
        try:
            found = _measure_row(table, row, job)
        except InputError as error:
            bad[row] = str(error)
            continue
        for name, value in found.items():
            out[name][k] = value
    return out, bad


@functools.lru_cache(maxsize=2)
def _table(path: Path, stamp: int) -> PatchTable:
    return load_table(path)


def _measure_row(table: PatchTable, row: int, job: TableJob) -> dict[str, float]:
    record = table.frame.iloc[row]
    given = record.get("mpp")
    mpp = math.nan
    if given is not None and not pd.isna(given):
        try:
            mpp = scale_of(float(given) if isinstance(given, numbers.Real) else -1.0)
        except ValueError:
            raise InputError(f"mpp: {NEEDED}, got {given} for {record['patch_id']}.") from None
    labels: NDArray[Any] | None = None
    if job.nuclei is not None and table.location == "slide":
        pixels, labels = _with_nuclei(table, row, segmenter(job.nuclei), mpp)
    else:
        pixels = table.pixels(row)
    if labels is None and job.nuclei is not None:
        labels = find_in(pixels, segmenter(job.nuclei), mpp)
    elif labels is None and "mask" in table.frame.columns and not pd.isna(record["mask"]):
        labels = _mask_of(table, row, pixels.shape[:2], mpp)
    quality = _quality(table, str(record[str(table.location)])) if "jpeg_quality" in job.names else math.nan
    has = names_for(mask=labels is not None, mpp=not math.isnan(mpp), file=not math.isnan(quality))
    possible = [name for name in job.names if name in has]
    if not possible:
        return {}
    scale, file = (None if math.isnan(v) else v for v in (mpp, quality))
    masks = None if labels is None else labels[None]
    found = measure(pixels[None], masks, scale, names=possible, jpeg_quality=file)
    return {name: float(value[0]) for name, value in found.items()}


def _quality(table: PatchTable, name: str) -> float:
    """Return the JPEG quality of the file that a row's pixels are from."""
    path = table.folder / name
    return _quality_of(path, table.location == "slide", path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _quality_of(path: Path, is_slide: bool, stamp: int) -> float:
    return tiff_quality(path) if is_slide else read_quality(path)  # once for all windows of an image


def _with_nuclei(
    table: PatchTable, row: int, method: Segmenter, mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return a slide's patch and its nuclei, which were found with the tissue around it in view."""
    record = table.frame.iloc[row]
    size = record["size"]
    plain = isinstance(size, numbers.Integral) and record.get("side", size) == size
    # Where no pixel is resampled, the patch is the middle of what is read around it; else it is read for itself.
    pixels = None if plain else table.pixels(row)
    side = int(size) if pixels is None else pixels.shape[0]
    margin = round(side * _MARGIN)
    wide = _wider(table, row, margin, side)
    inner = np.s_[margin : margin + side, margin : margin + side]
    return wide[inner] if pixels is None else pixels, find_in(wide, method, mpp)[inner]


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
    if labels.shape != shape:
        sizes = [f"{a[1]} x {a[0]}" for a in (labels.shape, shape)]
        raise InputError(f"mask: {record['mask']} has {sizes[0]} pixels, patch {record['patch_id']} has {sizes[1]}.")
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


def _choose(table: PatchTable, names: Iterable[str] | None, nuclei: Segmentation | None) -> tuple[str, ...]:
    columns = table.frame.columns
    has_mask = nuclei is not None or ("mask" in columns and bool(table.frame["mask"].notna().any()))
    has_mpp = "mpp" in columns and bool(table.frame["mpp"].notna().any())
    # Of stored pixels the quality is not to be had.
    possible = names_for(mask=has_mask, mpp=has_mpp, file=table.location != "h5")
    if names is None:
        return tuple(name for name in CORE if name in possible)
    given = (names,) if isinstance(names, str) else tuple(names)
    chosen = check_names(dict.fromkeys(p for n in given for p in spell_out(n)))
    for name in chosen:
        if name in given and name not in possible:
            need = MEASURES[name].needs.replace("+", " and ")
            raise InputError(f"names: {name} needs {need}; no row of the table has it.")
    return tuple(name for name in chosen if name in possible)


def _notes(table: PatchTable, nuclei: Segmentation | None) -> tuple[str, ...]:
    notes = []
    if nuclei is not None:
        notes.append(f"Nuclei were found by {nuclei.method}; masks of the table, if any, were not used.")
    if "mpp" not in table.frame.columns or table.frame["mpp"].isna().any():
        notes.append("Some patches have no mpp: areas in µm² are empty there, and nuclei are looked for as at 40x.")
    return tuple(notes)
