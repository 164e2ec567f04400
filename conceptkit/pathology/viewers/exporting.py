"""A folder that viewers open: a file per image, what is in them (``conceptkit.json``), and scripts for QuPath."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice, check_place
from conceptkit.families import MEASURES
from conceptkit.files.atomic import scratch
from conceptkit.pathology.exporting import safe_name
from conceptkit.pathology.viewers.formats import FORMATS
from conceptkit.pathology.viewers.shapes import (
    Canvas,
    Colour,
    Shape,
    canvas_of,
    class_colours,
    find_image,
    viewer_class,
)
from conceptkit.pathology.viewers.tables import (
    OF_NUCLEI,
    Roles,
    nucleus_shapes,
    read_nuclei,
    roles,
    tile_shapes,
)

CONTENTS = "conceptkit.json"
"""File of the folder that says what is in it; the way back reads it"""

SCHEMA = "conceptkit/viewers/1"

MANY = 500_000
"""Objects of one image from which a note says that QuPath needs long to open them"""

SCRIPTS = ("import.groovy", "export.groovy")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is exported, and how."""

    out: Path
    label: str | None = None
    """Column of classes; ``None`` for ``label`` of patches and ``type`` of nuclei."""
    only: tuple[str, ...] = ()
    """Columns that become measurements; empty for all of numbers."""
    formats: tuple[str, ...] = ("qupath",)
    crop: bool = True
    """Whether QuPath shows the scanned area only, so that its files count from the corner of that."""
    slides: Path | None = None
    """Folder that holds the images, instead of the places that the table states."""
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    out: Path
    images: Mapping[str, Canvas]
    """Name in the table → image as QuPath shows it."""
    tiles: int
    nuclei: int
    measures: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "schema": "conceptkit/qupath/1",
            "path": str(self.out),
            "images": list(self.images),
            "tiles": self.tiles,
            "nuclei": self.nuclei,
            "measurements": list(self.measures),
            "notes": list(self.notes),
        }


def check_new(out: Path, argument: str = "out") -> None:
    """Raise :class:`InputError` unless a folder is missing or empty: an export replaces nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{argument}: {out} exists and is not an empty folder; name another one.")
    check_place(argument, out)


def known_units(names: Iterable[str], stated: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the units of measures and of their predictions; ``stated`` go first."""
    found = {}
    for name in names:
        base = name.removesuffix("_predicted")
        unit = (stated or {}).get(name) or (stated or {}).get(base) or (MEASURES[base].unit if base in MEASURES else "")
        if unit not in ("", "1"):
            found[name] = unit
    return found


def export(
    frame: pd.DataFrame | None,
    folder: Path,
    wanted: Wanted,
    *,
    nuclei: Path | None = None,
    maps: Callable[[Path, Mapping[str, Canvas]], None] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the folder: it appears whole, or not at all.

    Parameters
    ----------
    frame : patch table (``slide`` or ``image``, ``x``, ``y``, ``size``, ``patch_id`` and others); ``None`` for nuclei
        only
    folder : that paths in the table are relative to
    nuclei : Parquet file of nuclei, see :func:`conceptkit.pathology.viewers.tables.read_nuclei`
    maps : writes more into the folder, given the images
    progress : receives the number of objects that are written, and of all

    Raises
    ------
    InputError
        when the folder exists, a column or an image is missing, or an image cannot be opened
    """
    check_new(wanted.out)
    for name in wanted.formats:
        check_choice("format", name, FORMATS)
    of_tiles = None if frame is None else roles(frame, label=wanted.label, only=wanted.only, units=wanted.units)
    of_nuclei = None if nuclei is None else _nucleus_roles(nuclei, None if frame is not None else wanted)
    groups = _groups(frame, of_tiles)
    total = len(frame) if frame is not None else 0
    found_nuclei = [] if nuclei is None else list(dict.fromkeys(_images_of_nuclei(nuclei)))
    images = _images(groups, found_nuclei, frame, of_tiles, folder, wanted)
    classes = _classes(frame, of_tiles) | (set() if nuclei is None else _nucleus_classes(nuclei, of_nuclei))
    colours = class_colours(classes)
    with scratch(wanted.out) as temporary:
        writers = _Writers(temporary, images, wanted, sorted(classes), colours)
        tiles = 0
        for name, rows in groups.items():
            assert frame is not None and of_tiles is not None
            tiles += writers.add(name, lambda c, r=rows: tile_shapes(frame.iloc[r], c, of_tiles))
            if progress is not None:
                progress(tiles, total)
        cells = _add_nuclei(writers, nuclei, of_nuclei, images)
        writers.close()
        contents = _contents(images, writers, frame, groups, of_tiles, of_nuclei, colours, sorted(classes))
        (temporary / CONTENTS).write_text(json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8")
        if "qupath" in wanted.formats:
            for script in SCRIPTS:
                (temporary / script).write_text(_script(script, wanted.out), encoding="utf-8")
        if maps is not None:
            maps(temporary, images)
        os.replace(temporary, wanted.out)
        temporary.mkdir()  # scratch removes it
    measures = tuple({**(of_tiles.measures if of_tiles else {}), **(of_nuclei.measures if of_nuclei else {})}.values())
    notes = tuple(_notes(writers, total - tiles))
    return Exported(out=wanted.out, images=images, tiles=tiles, nuclei=cells, measures=measures, notes=notes)


def _groups(frame: pd.DataFrame | None, found: Roles | None) -> dict[str, NDArray[np.intp]]:
    """Return image → rows of the table."""
    if frame is None or found is None:
        return {}
    names = frame[found.whole]
    if names.isna().any():
        raise InputError(f"table: column {found.whole} is empty in {int(names.isna().sum())} rows.")
    return {str(k): np.asarray(v, dtype=np.intp) for k, v in frame.groupby(names.astype("str"), sort=True).indices.items()}


def _nucleus_roles(path: Path, wanted: Wanted | None) -> Roles:
    part, _ = next(read_nuclei(path), (None, None))
    if part is None:
        raise InputError(f"nuclei: {path} has no rows.")
    units = known_units(part.columns, wanted.units if wanted else None)
    label, only = (wanted.label, wanted.only) if wanted else (None, ())
    return roles(part, label=label, only=only, units=units, places=(), usual="type", as_text=OF_NUCLEI)


def _images_of_nuclei(path: Path) -> Iterator[str]:
    for part, _ in read_nuclei(path):
        whole = "slide" if "slide" in part else "image"
        if part[whole].isna().any():
            raise InputError(f"nuclei: column {whole} of {path} is empty in some rows.")
        yield from part[whole].astype("str").unique()


def _images(
    groups: Mapping[str, Any],
    of_nuclei: Sequence[str],
    frame: pd.DataFrame | None,
    found: Roles | None,
    folder: Path,
    wanted: Wanted,
) -> dict[str, Canvas]:
    """Return name in the table → image as QuPath shows it; that of nuclei has the same name, or file name."""
    names = list(groups) or list(of_nuclei)
    is_slide = found is None or found.whole == "slide"
    images = {
        name: canvas_of(find_image(name, folder, wanted.slides), slide=is_slide, crop=wanted.crop) for name in names
    }
    for name in of_nuclei:
        _same_image(name, names)
    if frame is None or not {"mpp", "size"} <= set(frame.columns):
        return images
    return {name: _with_mpp(canvas, frame.iloc[groups[name]]) for name, canvas in images.items()}


def _with_mpp(canvas: Canvas, rows: pd.DataFrame) -> Canvas:
    """Return an image with the microns per pixel that its patches state, where they agree and the file states none."""
    side = rows["side"] if "side" in rows else rows["size"]
    stated = (rows["mpp"] * side / rows["size"]).to_numpy(dtype=np.float64, na_value=np.nan)
    if canvas.mpp is not None or not len(stated) or not np.allclose(stated, stated[0], rtol=1e-3):
        return canvas
    return replace(canvas, mpp=float(stated[0]))


def _same_image(name: str, names: Sequence[str]) -> str:
    """Return the image of the table that nuclei of an image belong to."""
    same = [other for other in names if other == name] or [o for o in names if Path(o).name == Path(name).name]
    if len(same) != 1:
        raise InputError(f"nuclei: {name} is not one of the images of the table, such as {names[0]}.")
    return same[0]


def _classes(frame: pd.DataFrame | None, found: Roles | None) -> set[str]:
    if frame is None or found is None or found.label is None:
        return set()
    return {viewer_class(str(v)) for v in frame[found.label].dropna().unique()}


def _nucleus_classes(path: Path, found: Roles | None) -> set[str]:
    if found is None or found.label is None:
        return set()
    return {viewer_class(str(v)) for part, _ in read_nuclei(path) for v in part[found.label].dropna().unique()}


def _add_nuclei(writers: _Writers, path: Path | None, found: Roles | None, images: Mapping[str, Canvas]) -> int:
    cells = start = 0
    for part, contours in read_nuclei(path) if path is not None and found is not None else ():
        assert found is not None
        for name, rows in part.groupby(part[found.whole].astype("str"), sort=False).indices.items():
            chosen = part.iloc[rows]
            cells += writers.add(
                _same_image(str(name), list(images)),
                lambda c, p=chosen, o=contours, s=start: nucleus_shapes(p, o, c, found, s),
            )
        start += len(part)
    return cells


class _Writers:
    """The files of the images, to which objects are added in turn."""

    def __init__(
        self,
        folder: Path,
        images: Mapping[str, Canvas],
        wanted: Wanted,
        classes: list[str],
        colours: Mapping[str, Colour],
    ) -> None:
        self._formats = {name: FORMATS[name] for name in wanted.formats}
        self._images, self._colours = images, colours
        self._full = {
            name: Canvas(canvas.path, canvas.width, canvas.height, mpp=canvas.mpp) for name, canvas in images.items()
        }
        self.counts = dict.fromkeys(images, 0)
        self.beyond = dict.fromkeys(images, 0)
        stems = _stems(images)
        self.files = {
            (image, name): Path("" if name == "qupath" else name) / f"{stem}{form.suffix}"
            for image, stem in stems.items()
            for name, form in self._formats.items()
        }
        self._paths = {key: folder / path for key, path in self.files.items()}
        for (image, name), path in self._paths.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(self._formats[name].head(images[image].path.name, classes, colours) + "\n", encoding="utf-8")

    def add(self, image: str, shapes: Callable[[Canvas], Iterator[Shape]]) -> int:
        """Write objects of an image, and return how many."""
        number = 0
        for name, form in self._formats.items():
            canvas = (self._images if form.crop else self._full)[image]
            number = beyond = 0
            with self._paths[image, name].open("a", encoding="utf-8") as stream:
                for shape in shapes(canvas):
                    stream.write(form.between if self.counts[image] + number and form.between != "\n" else "")
                    stream.write(form.body(shape, self._colours))
                    stream.write("" if form.between != "\n" else "\n")
                    x, y = shape.ring[0]
                    beyond += not (0 <= x < canvas.width and 0 <= y < canvas.height)
                    number += 1
        self.counts[image] += number
        self.beyond[image] += beyond
        return number

    def close(self) -> None:
        """End each file."""
        for (_, name), path in self._paths.items():
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"\n{self._formats[name].tail}")


def _stems(images: Mapping[str, Canvas]) -> dict[str, str]:
    """Return image → name of its file: that of the image, with a number where two are alike."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name, canvas in images.items():
        stem = f"{safe_name(canvas.path)}{canvas.path.suffix}"
        tries = (stem if k == 1 else f"{stem}-{k}" for k in range(1, len(images) + 1))
        found[name] = next(one for one in tries if one.lower() not in taken)
        taken.add(found[name].lower())
    return found


def _contents(
    images: Mapping[str, Canvas],
    writers: _Writers,
    frame: pd.DataFrame | None,
    groups: Mapping[str, Any],
    of_tiles: Roles | None,
    of_nuclei: Roles | None,
    colours: Mapping[str, Colour],
    classes: list[str],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "images": [
            {
                **{"image": canvas.path.name, "name": name, "path": str(canvas.path.resolve())},
                "file": writers.files.get((name, "qupath"), Path()).as_posix(),
                **{"width": canvas.width, "height": canvas.height, "left": canvas.left, "top": canvas.top},
                **{"mpp": canvas.mpp, "objects": writers.counts[name], "tiles": len(groups.get(name, ()))},
            }
            for name, canvas in images.items()
        ],
        "whole": (of_tiles or of_nuclei).whole,  # type: ignore[union-attr]
        "classes": {name: list(colours[name]) for name in classes},
        "tiles": _described(of_tiles, [] if frame is None else [str(c) for c in frame.columns]),
        "nuclei": _described(of_nuclei, []),
        "measurements": [] if frame is None or of_tiles is None else _ranges(frame, of_tiles),
    }


def _described(found: Roles | None, columns: list[str]) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"columns": columns, "label": found.label, "kinds": dict(found.kinds)}


def _ranges(frame: pd.DataFrame, found: Roles) -> list[dict[str, Any]]:
    """Return measurements with the range of their colours: 2nd to 98th percentile; 0 to 1 of probabilities."""
    ranges = []
    for column, name in found.measures.items():
        low, high = value_range(column, frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
        ranges.append({"name": name, "column": column, "low": low, "high": high})
    return ranges


def value_range(name: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the range of the colours of a column, the same for all images."""
    values = values[np.isfinite(values)]
    if name.startswith("probability_") or not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(values, [0.02, 0.98]))
    return low, high if high > low else low + 1.0


def _script(name: str, out: Path) -> str:
    """Return a script of QuPath with the folder written into it."""
    text = files("conceptkit.pathology.viewers").joinpath(name).read_text(encoding="utf-8")
    place = str(out.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return text.replace("FOLDER", place)


def _notes(writers: _Writers, placeless: int) -> Iterator[str]:
    if placeless:
        yield f"{placeless} rows without x, y or size were left out."
    for name, number in writers.counts.items():
        if number > MANY:
            yield f"{name} has {number:,} objects, which QuPath needs minutes and gigabytes to open; export parts of it."
    if outside := {name: number for name, number in writers.beyond.items() if number}:
        which = ", ".join(f"{number} of {name}" for name, number in outside.items())
        yield f"Objects that begin outside of what the viewer shows: {which}; check that the images are the right ones."
