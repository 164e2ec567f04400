"""What a pathologist corrected in QuPath, read back: labels, regions, and nuclei with their types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_at_most
from conceptkit.files.atomic import replacing
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.annotations import Annotations, extents, touches
from conceptkit.pathology.finding import listed
from conceptkit.pathology.measuring import relative_path
from conceptkit.pathology.viewers.corrections import Corrected, Correction, read_corrected
from conceptkit.pathology.viewers.exporting import CONTENTS, SCHEMA
from conceptkit.pathology.viewers.reading import TABLES, read_measurements
from conceptkit.pathology.viewers.shapes import canvas_of, find_image, object_id, without_unit
from conceptkit.pathology.viewers.tables import CONTOUR, WHOLES
from conceptkit.tables.patches import load_table

EXCLUDED = ("exclusion", "exclude", "ignore", "none of interest")
"""Classes (lower case) of tiles and regions that leave the table; so are QuPath's ignored ones, which end in ``*``."""

OUTLINE = "region*"
"""QuPath's class for a region that others lie in: it excludes nothing, whatever its name ends in."""

SUFFIXES = (".geojson.gz", ".geojson")

HALF = 0.5
"""Least share of a tile in a region that holds it"""


@dataclass(frozen=True)
class _Source:
    """What is read besides the objects."""

    folder: Path
    contents: dict[str, Any] | None
    base: pd.DataFrame | None
    base_folder: Path
    slides: Path | None
    out: Path
    corrections: dict[str, Correction]

    @property
    def whole(self) -> str:
        """Return the column that names the image of a patch."""
        if self.base is not None:
            return next((name for name in WHOLES if name in self.base), WHOLES[0])
        return str(self.contents["whole"]) if self.contents else WHOLES[0]

    def described(self, what: str) -> dict[str, Any] | None:
        """Return what the export says of the columns of ``tiles`` or ``nuclei``."""
        return self.contents[what] if self.contents else None


def qupath_objects(
    folder: Path, *, out: Path, slides: Path | None = None, table: Path | None = None, exclude: float = HALF
) -> Adapted:
    """Read tiles, regions and nuclei that were corrected in QuPath.

    Nuclei go into ``{out}_nuclei.parquet`` next to the table, a row per nucleus with its type and contour.

    Parameters
    ----------
    folder : GeoJSON files that QuPath exported (all objects, one file per image, named like it), and its tables of
        measurements (TSV or CSV), in it or below; conceptkit.json in it or in the folder around it is read too
    slides : folder that holds the slides now, instead of where the export found them
    table : patch table that was exported; its columns are kept, and its rows of images without a file
    exclude : share of a tile in excluded regions from which it leaves the table

    Returns
    -------
    One row per tile: the columns that were exported, ``label`` (the class of the tile), ``region`` (name or class of
    the drawn region that holds at least half of it), and measurements that were added in QuPath. Tiles of an ignored
    class, and those in excluded regions, are left out.

    Raises
    ------
    InputError
        when a file is not GeoJSON, belongs to another image, or holds decimal commas; when an image is not found, or
        is another one than at the export; and when there is no tile
    """
    check_at_least("exclude", exclude, 0)
    check_at_most("exclude", exclude, 1)
    files, tables = _files(folder)
    patches = None if table is None else load_table(table)
    source = _Source(
        folder,
        _contents(folder),
        None if patches is None else patches.frame,
        Path() if patches is None else patches.folder,
        slides,
        out,
        _corrections(tables),
    )
    images = _read_images(files, source)
    notes = list(_notes(images))
    if source.base is not None:
        found, more = _merged(source, images)
    else:
        frames = [_frame(image, source) for image in images if image.rows.count]
        if not frames:
            raise InputError(f"folder: {folder} has no tile; give the patch table of the images with --table.")
        found, more = pd.concat(frames, ignore_index=True), []
    if unused := sum(not row.used for row in source.corrections.values()):
        more.append(f"Rows of tables of measurements that belong to no object: {unused}.")
    found, excluded = _with_regions(found, images, source.whole, exclude)
    if not len(found):
        raise InputError("folder: every tile is excluded, so that the table would have no row.")
    return Adapted(_ordered(found, source), (*notes, *more, *excluded, *_write_nuclei(images, source)))


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the GeoJSON files and the tables of measurements in a folder and below it."""
    if not folder.is_dir():
        raise InputError(f"folder: must be a folder of GeoJSON files, got {folder}.")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    files = [path for path in paths if path.name.lower().endswith(SUFFIXES)]
    tables = [path for path in paths if path.suffix.lower() in TABLES]
    if not files and not tables:
        raise InputError(
            f"folder: {folder} holds no GeoJSON and no table of measurements; in QuPath run export.groovy, or File > "
            "Export objects as GeoJSON."
        )
    return files, tables


def _contents(folder: Path) -> dict[str, Any] | None:
    path = next((p for p in (folder / CONTENTS, folder.absolute().parent / CONTENTS) if p.is_file()), None)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"folder: {path} is not what an export writes; restore it, or remove it.") from None
    return dict(found)


def _corrections(tables: list[Path]) -> dict[str, Correction]:
    return {
        identity: Correction(name, classification, measures, path)
        for path in tables
        for identity, name, classification, measures in read_measurements(path)
    }


def _read_images(files: list[Path], source: _Source) -> list[Corrected]:
    images: dict[Path, Corrected] = {}
    for path in files:
        image = _open_image(path, source)
        if image.canvas.path in images:
            raise InputError(
                f"folder: two files of {source.folder} belong to {image.canvas.path.name}; keep the one that is "
                "corrected."
            )
        images[image.canvas.path] = image
        read_corrected(path, image, source.corrections)
    return list(images.values())


def _open_image(path: Path, source: _Source) -> Corrected:
    """Return the image that a file is named like."""
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    stem = path.name[: -len(suffix)]
    for entry in source.contents["images"] if source.contents else ():
        if stem in (Path(entry["file"]).name.removesuffix(".geojson"), entry["image"], Path(entry["image"]).stem):
            return _at_export(entry, source)
    place = _place_of(stem, path, source)
    canvas = canvas_of(place, slide=source.whole == "slide", crop=True)
    return Corrected(canvas, relative_path(place, source.out.parent))


def _at_export(entry: Mapping[str, Any], source: _Source) -> Corrected:
    """Return an image of the export; refuse another one of its name."""
    stated = Path(entry["path"])
    if source.slides is None and not stated.is_file():
        raise InputError(
            f"slides: {stated}, which was exported, is not there; name the folder that holds it with --slides."
        )
    place = stated if source.slides is None else find_image(entry["image"], stated.parent, source.slides)
    cropped = (entry["left"], entry["top"]) != (0, 0)
    now = canvas_of(place, slide=source.whole == "slide", crop=cropped)
    if (now.width, now.height, now.left, now.top) != tuple(entry[k] for k in ("width", "height", "left", "top")):
        raise InputError(
            f"slides: {place} has {now.width} x {now.height} pixels, and {entry['width']} x {entry['height']} when it "
            "was exported; it is another image."
        )
    return Corrected(now, relative_path(place, source.out.parent))


def _place_of(stem: str, path: Path, source: _Source) -> Path:
    """Return the file of an image that is not of an export, in ``slides`` or as the table states it."""
    if source.slides is not None:
        paths = [p for p in sorted(source.slides.rglob("*")) if p.is_file() and stem in (p.name, p.stem)]
        places = [p for p in paths if not p.name.lower().endswith((*SUFFIXES, *TABLES))]
    elif source.base is not None:
        values = source.base[source.whole].dropna().astype("str").unique()
        places = [source.base_folder / v for v in values if stem in (Path(v).name, Path(v).stem)]
    else:
        raise InputError(f"slides: the image of {path} is not known; name the folder of the slides with --slides.")
    if len(places) != 1 or not places[0].is_file():
        where = source.slides or "the table"
        raise InputError(
            f"slides: {path} belongs to {len(places)} images of {where}; it must be named like one that is there."
        )
    return places[0]


def _frame(image: Corrected, source: _Source) -> pd.DataFrame:
    """Return the tiles of an image as rows of a table."""
    described, rows = source.described("tiles"), image.rows
    boxes = rows.boxes() + np.tile(image.corner, 2)
    size = boxes[:, 2] - boxes[:, 0]
    place = {"patch_id": rows.names, source.whole: image.value, "x": boxes[:, 0], "y": boxes[:, 1]}
    found = pd.DataFrame(place, index=range(rows.count))
    if (size > 0).any():
        found["size"] = size
    for name in ("x", "y", "size"):
        if name in found and (found[name] == found[name].round()).all():
            found[name] = found[name].astype("int64")
    label = (described or {}).get("label") or "label"
    known = (
        () if source.base is None or label not in source.base else source.base[label].dropna().astype("str").unique()
    )
    labels = rows.labels(described, list(known))
    if labels.notna().any() or (described and described["label"]):
        found[label] = labels
    return pd.concat([found, rows.frame(described)], axis=1)


def _merged(source: _Source, images: list[Corrected]) -> tuple[pd.DataFrame, list[str]]:
    """Return the patch table with what was corrected, and notes."""
    base, whole = source.base, source.whole
    assert base is not None
    if whole not in base:
        raise InputError("table: a column slide or image is needed, by which objects find their rows.")
    names = base[whole].map(lambda value: Path(str(value)).name)
    base = base.assign(**{whole: [relative_path(source.base_folder / str(v), source.out.parent) for v in base[whole]]})
    label = (source.described("tiles") or {}).get("label") or "label"
    changed = deleted = 0
    for image in images:
        at = names == image.canvas.path.name
        if not at.any():
            raise InputError(f"table: it has no row of {image.canvas.path.name}, of which {source.folder} has objects.")
        base.loc[at, whole] = image.value
        if not image.rows.count:
            continue
        frame = _frame(image, source).set_index("patch_id")
        rows = base.loc[at, "patch_id"].astype("str")
        if unknown := sorted(set(frame.index) - set(rows)):
            raise InputError(f"table: it has no row {unknown[0]}, which {source.folder} has among its tiles.")
        kept = rows[rows.isin(frame.index)]
        deleted += len(rows) - len(kept)
        base, names = base.drop(index=rows.index.difference(kept.index)), names.drop(rows.index.difference(kept.index))
        frame = frame.reindex(kept.to_numpy())
        for name in [c for c in frame if c == label or c not in base]:
            before = base[name] if name in base else pd.Series(None, index=base.index, dtype=frame[name].dtype)
            after = before.copy()
            after[kept.index] = frame[name].array
            if name == label:
                changed += int(((before.fillna("") != after.fillna("")) & base.index.isin(kept.index)).sum())
            base[name] = after
    changed += _from_tables(base, names, label, source)
    notes = [f"Labels that were changed: {changed}."]
    return base.reset_index(drop=True), notes + ([f"Tiles that were deleted in QuPath: {deleted}."] if deleted else [])


def _from_tables(base: pd.DataFrame, names: pd.Series[str], label: str, source: _Source) -> int:
    """Take labels and new measurements of tables of QuPath for rows whose objects are in no GeoJSON file."""
    changed = 0
    added: set[str] = set()
    for at, image, patch in zip(base.index, names, base["patch_id"], strict=True):
        row = source.corrections.get(object_id(image, str(patch)))
        if row is None or row.used:
            continue
        row.used = True
        before: Any = base.at[at, label] if label in base else None
        known = (
            {str(v).lower(): v for v in base[label].dropna().unique()} if label in base and row.classification else {}
        )
        after = known.get(row.classification.lower(), row.classification) or None
        if (None if pd.isna(before) else before) != after:
            changed += 1
            base.loc[at, label] = after
        for name, value in row.measures.items():
            if without_unit(name) not in base or name in added:
                added.add(name)
                base.loc[at, without_unit(name)] = value
    return changed


def _is_excluded(classification: str) -> bool:
    parts = [part.strip() for part in classification.lower().split(": ")]
    return classification.lower() != OUTLINE and any(p in EXCLUDED or p.endswith("*") for p in parts)


def _with_regions(
    found: pd.DataFrame, images: list[Corrected], whole: str, exclude: float
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows outside of what is excluded, with the region that holds each, and notes."""
    keep = np.ones(len(found), dtype=np.bool_)
    region = np.full(len(found), None, dtype=object)
    for image in images:
        at = np.flatnonzero((found[whole] == image.value).to_numpy())
        place = found.iloc[at]
        size = place.get("size", 0)
        boxes = np.stack([place["x"], place["y"], place["x"] + size, place["y"] + size], axis=1).astype(np.float64)
        boxes -= np.tile(image.corner, 2)
        most, taken = np.zeros(len(at)), np.zeros(len(at))
        for name, classification, drawn in sorted(image.regions, key=_reach, reverse=True):  # of equals the inner one
            share = _share(drawn, boxes)
            if _is_excluded(classification):
                taken = np.maximum(taken, share)
                continue
            better = (share >= HALF) & (share >= most)
            region[at[better]] = name
            most = np.maximum(most, share)
        keep[at] &= (taken < exclude) | (taken == 0)
    outside = int((~keep).sum())
    label = next((name for name in ("label",) if name in found), None)
    ignored = found[label].map(lambda v: _is_excluded(str(v)), na_action="ignore").eq(True) if label else ~keep & keep
    notes = [f"Tiles in excluded regions, left out: {outside}."] if outside else []
    notes += [f"Tiles of an ignored class, left out: {n}."] if (n := int((ignored & keep).sum())) else []
    if any(image.regions for image in images) and (region != None).any():  # noqa: E711 - elementwise
        found = found.assign(region=pd.Series(region, index=found.index, dtype="str"))
    return found[keep & ~np.asarray(ignored)].reset_index(drop=True), notes


def _reach(region: tuple[str, str, Annotations]) -> float:
    """Return the area of the rectangle around a region."""
    boxes = extents(region[2].areas)
    return float(np.prod(boxes[:, 2:].max(axis=0) - boxes[:, :2].min(axis=0)))


def _share(drawn: Annotations, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box in a region; of those far from it without looking."""
    out = np.zeros(len(boxes))
    reach = extents(drawn.areas)
    near = touches(boxes, (*reach[:, :2].min(axis=0), *reach[:, 2:].max(axis=0)))
    out[near] = drawn.share(boxes[near])
    return out


def _write_nuclei(images: list[Corrected], source: _Source) -> list[str]:
    """Write the nuclei of all images next to the table."""
    images = [image for image in images if image.nuclei.count]
    if not images:
        return []
    described = source.described("nuclei")
    label = (described or {}).get("label") or "type"
    tables = []
    for image in images:
        nuclei = image.nuclei
        frame = nuclei.frame(described)
        centres = np.array(nuclei.centres).reshape(-1, 2) + image.corner
        for k, axis in enumerate("xy"):  # where the export states a place, it is that of the segmentation
            stated = pd.to_numeric(frame[axis], errors="coerce") if axis in frame else pd.Series(np.nan, frame.index)
            frame[axis] = stated.fillna(pd.Series(centres[:, k], frame.index))
        frame[source.whole], frame[label] = image.value, nuclei.labels(described)
        tables.append((frame, nuclei.contours(image.corner)))
    whole = pd.concat([frame for frame, _ in tables], ignore_index=True)
    first = [name for name in (source.whole, "patch", "x", "y", label) if name in whole]
    whole = whole[[*first, *(name for name in whole if name not in first)]]
    contours = pyarrow.chunked_array([contours for _, contours in tables])
    path = source.out.with_name(f"{source.out.stem}_nuclei.parquet")
    with replacing(path) as temporary:
        table = pyarrow.Table.from_pandas(whole, preserve_index=False).append_column(CONTOUR, contours)
        pyarrow.parquet.write_table(table, temporary)
    types = Counter(whole[label].fillna("without a type"))
    return [f"{len(whole)} nuclei written to {path}: {', '.join(f'{n} {t}' for t, n in types.most_common())}."]


def _ordered(found: pd.DataFrame, source: _Source) -> pd.DataFrame:
    """Return columns in the order of the table that was exported; the others after them."""
    first = [name for name in (source.described("tiles") or {}).get("columns", ()) if name in found]
    return found[[*first, *(name for name in found if name not in first)]]


def _notes(images: list[Corrected]) -> Iterator[str]:
    total: Counter[str] = Counter()
    for image in images:
        total.update(image.counts)
        if image.counts["outside"]:
            yield f"Objects outside of {image.canvas.path.name}: {image.counts['outside']}."
    if total["nested"]:
        yield f"Objects inside others in QuPath's hierarchy, read like the others: {total['nested']}."
    if total["locked"]:
        yield f"Objects that are locked in QuPath, read like the others: {total['locked']}."
    if total["annotations without an area"]:
        yield f"Annotations that are points or lines were left out: {total['annotations without an area']}."
    if total["tiles that are not squares"]:
        yield f"Tiles that are not squares, such as superpixels, were left out: {total['tiles that are not squares']}."
    skipped = {kind.removeprefix("skipped "): n for kind, n in total.items() if kind.startswith("skipped ")}
    if skipped:
        yield f"Objects of other kinds were left out: {listed([f'{n} {kind}' for kind, n in skipped.items()])}."
