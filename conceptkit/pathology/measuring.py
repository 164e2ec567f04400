"""Cut images into tiles and measure each: a list of images becomes a patch table with concept columns."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.families import MEASURES, NUCLEI
from conceptkit.files.atomic import replacing
from conceptkit.jobs import Engine
from conceptkit.pathology.image_lists import OF_THE_LIST, check_case, is_numeric, read_list
from conceptkit.pathology.images import check_upright, image_size, read_image
from conceptkit.pathology.masks import read_mask
from conceptkit.pathology.measures import CORE, GROUPS, check_names, measure, names_for, spell_out
from conceptkit.pathology.nuclei import (
    Found,
    Segmenter,
    find_detailed,
    find_plain,
    mask_name,
    open_method,
    write_labels,
)
from conceptkit.pathology.nucleus_rows import Kept, NucleusTable, Place, nucleus_rows
from conceptkit.pathology.outliers import outlier_notes
from conceptkit.pathology.quality import Condition, exclude
from conceptkit.pathology.resuming import Part, file_state, part_key, run_in_parts
from conceptkit.pathology.scales import known_scales, read_scale
from conceptkit.pathology.typed_masks import read_types, type_names

CARRIED = ("patient", "group", "label", "split", "center", "slide")
"""Columns of the image list that hold for each tile of an image, numbers or not; they stay text: 007 stays 007."""

SUFFIXES = (".csv", ".parquet")
"""Kinds of table that :func:`write_table` writes."""

_UNUSED_SHARE = 0.01
"""Share of the images' pixels outside whole tiles from which a note mentions it."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The method that finds nuclei, where no masks are given."""

    method: str
    """One of :data:`conceptkit.families.NUCLEI`."""
    weights: Path | None = None
    """Checkpoint of a trained method."""
    device: str = "auto"
    masks_out: Path | None = None
    """Folder for the label images, ``{image_id}.png``; ``None`` keeps none."""

    def __post_init__(self) -> None:
        NUCLEI.check("nuclei", self.method)

    def state(self) -> list[Any]:
        """Return what the nuclei depend on, for the key of a part."""
        return [self.method, file_state(self.weights)]


@dataclass(frozen=True)
class ImageJob:
    """One image to cut and measure, complete in itself so that any process can do it."""

    cells: dict[str, str]
    folder: Path
    size: int
    names: tuple[str, ...]
    nuclei: Segmentation | None
    kept: Kept | None = None
    named: str | None = None
    """How types of nuclei in masks are named."""

    @property
    def items(self) -> tuple[str, ...]:
        """Return the image's id."""
        return (self.cells["image_id"],)

    @functools.cached_property
    def key(self) -> str:
        """Return a digest of everything that the image's measures depend on."""
        given = self.nuclei is None and self.cells["mask"]
        mask = file_state((self.folder / self.cells["mask"]).absolute()) if given else None
        image = file_state((self.folder / self.cells["image"]).absolute())
        nuclei = None if self.nuclei is None else self.nuclei.state()
        types = self.cells.get("types", "")
        more = [self.named, file_state(self.folder / types) if types else None] if self.named or types else []
        return part_key([image, mask, self.cells["mpp"], self.size, self.names, nuclei, *more])

    @property
    def is_complete(self) -> bool:
        """Return whether label image and rows of nuclei exist, where they are to be kept."""
        if self.kept is not None and not self.kept.file(self.key).is_file():
            return False
        if self.nuclei is None or self.nuclei.masks_out is None:
            return True
        return (self.nuclei.masks_out / mask_name(self.cells["image_id"])).is_file()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured patch table, and what is not in it."""

    table: pd.DataFrame
    """One row per tile: patch_id, image, x, y, size, mpp and mask (where known), carried columns, measures."""
    skipped: tuple[tuple[str, str], ...]
    """Image or patch, and reason, of everything that has no row in the table."""
    notes: tuple[str, ...]
    """Sentences that a reader of the table should know."""
    resumed: int = 0
    """Images, or patches of a table, that an earlier run had measured."""
    source: str = ""
    """Name of the list of images or of the table."""
    path: str = ""
    """File of the table, as the command was given it."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "schema": "conceptkit/measure/1",
            "study": self.source,
            "rows_written": len(self.table),
            "resumed": self.resumed,
            "skipped": [{"what": what, "reason": reason} for what, reason in self.skipped],
            "path": self.path,
            "notes": list(self.notes),
        }


def measure_images(
    images_csv: Path,
    *,
    out: Path,
    patch_size: int = 224,
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
    """Cut each listed image into tiles and measure every tile; a process has one image in memory at a time.

    Tiles do not overlap, start in the top-left corner and are whole: 1000 x 1000 pixels hold 4 x 4 tiles of 224.
    Raises :class:`InputError` when the list or an option is wrong, when no tile is left and, unless ``on_error`` is
    ``skip``, when an image, a mask or an mpp is wrong. Images smaller than a tile are always skipped.

    Parameters
    ----------
    images_csv : one row per image. Columns: ``image`` (path relative to this file); optionally ``mask`` (path of a
        nucleus label image: 0 is background, each nucleus its own integer), ``image_id`` (default: the image's file
        name without suffix), ``mpp`` (microns per pixel), and others. :data:`CARRIED` and columns of text are carried
        over to the tiles; other numbers are not, as a number measured on the whole image does not hold for a tile.
    out : table that :func:`write_table` will write; paths in it are relative to its folder
    patch_size : side of a tile in pixels
    names : measures, or groups of them; ``None``: all of the paper's measures that at least one image allows
    on_error : ``skip`` lists an image that cannot be measured in ``skipped`` and continues
    nuclei : replaces the ``mask`` column; ``None`` reads the listed masks
    engine : where images are measured; ``None``: in this process
    progress : receives the number of images that are finished, and of all
    parts : folder of the measures of finished images, which the next run reads; ``None`` keeps none
    nuclei_out : table of a row per nucleus to write; needs ``parts``
    conditions : which patches are left out, by measures that are computed too
    type_names : what the numbers of types in masks are called, see :func:`type_names`
    """
    check_at_least("patch_size", patch_size, 8)
    check_choice("on_error", on_error, ("raise", "skip"))
    _check_new(out, images_csv)
    images = read_list(images_csv)
    images["mpp"], scale_notes = known_scales(images["mpp"], images["image_id"], "")
    if nuclei is not None:
        images["mask"] = [mask_name(i) if nuclei.masks_out else "found" for i in images["image_id"]]
        check_case(images["image_id"], images_csv)
    has_mask = images["mask"] != ""
    typed = has_types(nuclei) if nuclei else type_names is not None or ("types" in images and any(images["types"]))
    scaled = bool((has_mask & (images["mpp"] != "")).any())
    possible = names_for(mask=bool(has_mask.any()), mpp=scaled, file=True, types=typed)
    chosen = choose_measures(names, possible, images.columns, images_csv, extra=[c.measure for c in conditions])
    kept = None if nuclei_out is None else nuclei_out.kept(parts, bool(has_mask.any()), images_csv)
    shared = images_csv.parent, patch_size, chosen, nuclei, kept, type_names
    jobs = [ImageJob({str(c): v for c, v in images.iloc[k].items()}, *shared) for k in range(len(images))]
    about: dict[str, Any] = {"folder": parts, "engine": engine, "progress": progress}
    finished = run_in_parts(measure_image, jobs, on_error=on_error, is_complete=lambda job: job.is_complete, **about)
    if not finished.rows:
        name, reason = next(iter(finished.skipped.items()))
        raise InputError(f"{images_csv}: no image gave a tile; {name} was skipped: {reason}")
    used = images.iloc[list(finished.rows)].reset_index(drop=True)
    carried = [c for c in used.columns if c in CARRIED or (c not in OF_THE_LIST and not is_numeric(images[c]))]
    whole = _assemble(used, list(finished.rows.values()), carried, patch_size, images_csv.parent, out.parent, nuclei)
    table, left_out = exclude(whole, conditions)
    if nuclei_out is not None:
        nuclei_out.join(kept, (jobs[k].key for k in finished.rows), table["patch_id"] if left_out else None)
    return Measured(
        table=table,
        skipped=tuple(finished.skipped.items()),
        notes=(
            *scale_notes,
            *left_out,
            *_notes(images, used, carried, chosen, every=names is None),
            *_border_notes([images_csv.parent / image for image in used["image"]], len(whole), patch_size),
            *_nuclei_notes(used, nuclei),
            *outlier_notes({name: whole[name].to_numpy(dtype=np.float64) for name in chosen}),
        ),
        resumed=finished.resumed,
    )


def choose_measures(
    names: Iterable[str] | None,
    possible: Iterable[str],
    columns: Iterable[str],
    path: Path,
    *,
    extra: Iterable[str] = (),
) -> tuple[str, ...]:
    """Return the measures to compute: the named ones, or all of the paper's that are possible; and ``extra`` ones.

    A group of measures stands for those of it that are possible; a measure that is named must be possible.
    Raises :class:`InputError` when it is not, or a column has its name.
    """
    possible = tuple(possible)
    if names is None:
        chosen = tuple(name for name in CORE if name in possible)
    else:
        given = (names,) if isinstance(names, str) else tuple(names)
        spelled = [part for name in given for part in spell_out(name)]
        checked = check_names(dict.fromkeys(spelled) if any(name in GROUPS for name in given) else given)
        for name in checked:
            if name not in possible and name in given:
                needed = MEASURES[name].needs.replace("+", " and ")
                raise InputError(f"names: {name} needs {needed}; no row of {path} has it.")
        chosen = tuple(name for name in checked if name in possible)
    for name in extra:
        if name not in possible:
            needed = MEASURES[name].needs.replace("+", " and ")
            raise InputError(f"exclude: {name} needs {needed}; no row of {path} has it.")
    chosen = tuple(dict.fromkeys((*chosen, *extra)))
    for column in columns:
        if column in chosen:
            raise InputError(f"{path}: column {column} has the name of a measure that is to be computed.")
    return chosen


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table as CSV or Parquet, by the suffix of ``out``, so that a reader sees all of it or the old file.

    Numbers keep their full precision. Missing folders are created.

    Raises :class:`InputError` when the suffix is not one of :data:`SUFFIXES`, or ``out`` is a folder.
    """
    check_out(out)
    with replacing(out) as temporary:
        if out.suffix.lower() == ".csv":
            table.to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False)


def check_out(out: Path) -> None:
    """Raise :class:`InputError` unless a table can be written as ``out``."""
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"out: must end in {' or '.join(SUFFIXES)}, got {out}.")
    if out.is_dir():
        raise InputError(f"out: must be a file, but {out} is a folder.")


def _check_new(out: Path, images: Path) -> None:
    check_out(out)
    if out.exists() and images.exists() and out.samefile(images):
        raise InputError(f"out: {out} is the list of images itself; name another file.")


def measure_image(job: ImageJob) -> Part:
    """Return one row per whole tile of an image, x, y and the measures; or why it has no tile."""
    cells, nuclei = job.cells, job.nuclei
    mpp = read_scale(cells["mpp"], cells["image_id"])
    if not cells["image"]:
        raise InputError(f"image: a path is needed, got none for {cells['image_id']}.")
    pixels, quality = read_image(job.folder / cells["image"])
    height, width = pixels.shape[:2]
    if min(height, width) < job.size:
        reason = f"image: {cells['image']} has {width} x {height} pixels, less than a tile of {job.size}."
        return Part(None, skipped={cells["image_id"]: reason})
    found: Found | None = None
    if nuclei is not None:
        find = find_detailed if job.kept or has_types(nuclei) else find_plain
        found = find(pixels, segmenter(nuclei), mpp)
        if nuclei.masks_out is not None:
            write_labels(found.labels, nuclei.masks_out / mask_name(cells["image_id"]))
    elif cells["mask"]:
        check_upright(job.folder / cells["image"])
        known = types_of(job.folder, cells["mask"], cells.get("types", ""), job.named)
        found = Found(read_mask(job.folder / cells["mask"], pixels.shape[:2], mpp), types=known)
        check_mask_shape(found.labels, pixels.shape, cells["mask"], f"its image {cells['image']}")
    labels, types = (None, None) if found is None else (found.labels, found.types)
    if job.kept is not None:
        name, whole = cells["image_id"], (height // job.size * job.size, width // job.size * job.size)
        patches = functools.partial(_patches_at, name, job.size, whole)
        views = [] if found is None else [found]
        job.kept.write(
            job.key,
            (nucleus_rows(pixels, f, mpp, Place(name), patches, contours=job.kept.contours) for f in views),
        )
    strips: list[dict[str, NDArray[Any]]] = []
    for y in range(0, height - job.size + 1, job.size):  # a row of tiles at a time: float copies of an image are huge
        images = _cut(pixels[y : y + job.size], job.size)
        masks = None if labels is None else _cut(labels[y : y + job.size], job.size)
        place = {"x": np.arange(len(images)) * job.size, "y": np.full(len(images), y)}
        strips.append(place | measure_batch(images, masks, mpp, quality, job.names, types))
    return Part(pd.DataFrame({name: np.concatenate([strip[name] for strip in strips]) for name in strips[0]}))


def has_types(nuclei: Segmentation) -> bool:
    """Return whether a method distinguishes types of nuclei."""
    return bool(getattr(segmenter(nuclei), "types", ()))


def types_of(folder: Path, mask: str, types: str, names: str | None) -> dict[int, str]:
    """Return label → type: of the file in the column ``types``, else of the mask where its types have names."""
    if types:
        return read_types(folder / types, None if names is None else type_names(names))
    return {} if names is None else read_types(folder / mask, type_names(names))


def _patches_at(
    name: str, size: int, whole: tuple[int, int], x: NDArray[np.float64], y: NDArray[np.float64]
) -> list[str | None]:
    """Return the patch of an image that each place lies in; ``None`` outside whole tiles."""
    left, top = (np.floor(v / size).astype(int) * size for v in (x, y))
    inside = (y < whole[0]) & (x < whole[1])
    return [patch_name(name, a, b) if i else None for a, b, i in zip(left, top, inside, strict=True)]


def patch_name(image_id: str, x: int, y: int) -> str:
    """Return the id of an image's tile."""
    return f"{image_id}_x{x}_y{y}"


def measure_batch(
    images: NDArray[np.uint8],
    masks: NDArray[Any] | None,
    mpp: float,
    quality: float,
    names: Iterable[str],
    types: Mapping[int, str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the measures (n,) of patches (n, h, w, 3) of one image, NaN where an input of a measure is missing."""
    has = names_for(mask=masks is not None, mpp=not math.isnan(mpp), file=not math.isnan(quality), types=bool(types))
    possible = [name for name in names if name in has]
    scale, file = (None if math.isnan(v) else v for v in (mpp, quality))
    values = measure(images, masks, scale, names=possible, jpeg_quality=file, types=types) if possible else {}
    return {name: values.get(name, np.full(len(images), np.nan)) for name in names}


def check_mask_shape(labels: NDArray[Any], shape: tuple[int, ...], mask: str, whole: str) -> None:
    """Raise :class:`InputError` unless a mask has the height and width of its image or patch."""
    if labels.shape != shape[:2]:
        raise InputError(
            f"mask: {mask} has {labels.shape[1]} x {labels.shape[0]} pixels, {whole} has {shape[1]} x {shape[0]}."
        )


@functools.lru_cache(maxsize=2)
def segmenter(nuclei: Segmentation) -> Segmenter:
    """Return the method; a network is loaded once per process."""
    return open_method(nuclei.method, weights=nuclei.weights, device=nuclei.device)


def _cut(strip: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the (n, size, size, ...) whole tiles of a (size, width, ...) strip, from left to right."""
    n = strip.shape[1] // size
    return np.moveaxis(strip[:, : n * size].reshape(size, n, size, *strip.shape[2:]), 1, 0)


def _assemble(
    images: pd.DataFrame,
    tiles: list[pd.DataFrame],
    carried: list[str],
    size: int,
    folder: Path,
    out_folder: Path,
    nuclei: Segmentation | None,
) -> pd.DataFrame:
    """Join what holds for an image with what was measured on its tiles."""
    measured = pd.concat(tiles, ignore_index=True)
    of_images = pd.DataFrame({"image": [relative_path(folder / p, out_folder) for p in images["image"]]}, dtype="str")
    of_images["mpp"] = [float(v) if v else math.nan for v in images["mpp"]]
    if nuclei is not None:
        folder = nuclei.masks_out or folder
    kept = nuclei is None or nuclei.masks_out is not None
    masks = [relative_path(folder / p, out_folder) if p and kept else "" for p in images["mask"]]
    of_images["mask"] = pd.Series(masks, dtype="str").replace("", None)
    for column in carried:
        of_images[column] = images[column].replace("", None)
    of_images = of_images.drop(columns=[c for c in ("mpp", "mask") if of_images[c].isna().all()])

    whose = np.repeat(np.arange(len(images)), [len(t) for t in tiles])
    table = of_images.iloc[whose].reset_index(drop=True)
    ids = images["image_id"].iloc[whose].reset_index(drop=True)
    x, y = measured["x"], measured["y"]
    table.insert(0, "patch_id", ids + "_x" + x.astype("str") + "_y" + y.astype("str"))
    table.insert(2, "x", x)
    table.insert(3, "y", y)
    table.insert(4, "size", size)
    return pd.concat([table, measured.drop(columns=["x", "y"])], axis=1)


def relative_path(path: Path, folder: Path) -> str:
    """Return ``path`` relative to ``folder``, or unchanged if that is impossible (another drive)."""
    path = path.parent.resolve() / path.name  # ".." after a symbolic link leads elsewhere than it reads
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _notes(
    images: pd.DataFrame, used: pd.DataFrame, carried: list[str], names: tuple[str, ...], *, every: bool
) -> Iterator[str]:
    """Yield notes on the table."""
    left = [c for c in images.columns if c not in carried and c not in OF_THE_LIST]
    if left:
        yield f"Not carried over to the tiles, as they are empty or hold numbers of the whole image: {', '.join(left)}."
    if every and len(names) < len(CORE):
        absent = [f"{name} (needs {MEASURES[name].needs.replace('+', ' and ')})" for name in CORE if name not in names]
        yield f"Not measured, as no image has what is needed: {', '.join(absent)}."
    for column, needing in (("mask", ("mask", "mask+mpp")), ("mpp", ("mask+mpp",))):
        empty = [name for name in names if MEASURES[name].needs in needing]
        without = list(used["image_id"][used[column] == ""])
        if empty and without:
            few = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            yield f"No {column} for {len(without)} of {len(used)} images ({few}): {', '.join(empty)} empty there."
    if not {"patient", "group"} & set(carried):
        yield "No column patient or group: without one, tiles of one patient may be on both sides of a split."


def _border_notes(paths: list[Path], tiles: int, size: int) -> Iterator[str]:
    """Yield the share of the images outside whole tiles, if it is at least :data:`_UNUSED_SHARE`."""
    pixels = sum(height * width for height, width in map(image_size, paths))
    share = 1.0 - tiles * size**2 / pixels
    if share >= _UNUSED_SHARE:
        yield (
            f"{share:.0%} of the images' pixels lie outside whole tiles of {size}, on the right and at the bottom, and "
            "were not used."
        )


def _nuclei_notes(used: pd.DataFrame, nuclei: Segmentation | None) -> Iterator[str]:
    """Yield notes on nuclei that were segmented rather than given."""
    if nuclei is None:
        return
    yield f"Nuclei were found by {nuclei.method}; masks of the list, if any, were not used."
    without = int((used["mpp"] == "").sum())
    if without:
        yield f"No mpp for {without} of {len(used)} images: their nuclei were looked for as at 0.25 µm per pixel (40x)."
