"""A folder that viewers open: a file per image, what is in them (``conceptkit.json``), and scripts for QuPath."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice, check_place
from conceptkit.files.atomic import scratch
from conceptkit.pathology.exporting import safe_name
from conceptkit.pathology.viewers.formats import FORMATS
from conceptkit.pathology.viewers.shapes import (
    Canvas,
    Shape,
    canvas_of,
    class_colours,
    find_image,
)
from conceptkit.pathology.viewers.sources import Cells, Patches, same_image
from conceptkit.pathology.viewers.tables import Roles

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
    patches = None if frame is None else Patches.of(frame, wanted.label, wanted.only, wanted.units)
    cells = (
        None if nuclei is None else Cells.of(nuclei, *((wanted.label, wanted.only) if frame is None else (None, ())))
    )
    sources = [source for source in (patches, cells) if source is not None]
    images = _images(sources, folder, wanted)
    classes = sorted({name for source in sources for name in source.roles.classes.values()})
    with scratch(wanted.out) as temporary:
        writers = _Writers(temporary, images, wanted, classes)
        counts: Counter[str] = Counter()
        for source in sources:
            for name, shapes in source.parts():
                counts[source.kind] += writers.add(same_image(name, list(images)), shapes)
                if progress is not None and source is patches:
                    progress(counts[source.kind], len(patches.frame))
        writers.close()
        contents = _contents(images, writers, patches, cells)
        (temporary / CONTENTS).write_text(json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8")
        if "qupath" in wanted.formats:
            for script in SCRIPTS:
                (temporary / script).write_text(_script(script, wanted.out), encoding="utf-8")
        if maps is not None:
            maps(temporary, images)
        os.replace(temporary, wanted.out)
        temporary.mkdir()  # scratch removes it
    return Exported(
        out=wanted.out,
        images=images,
        tiles=counts["tiles"],
        nuclei=counts["nuclei"],
        measures=tuple(dict.fromkeys(name for source in sources for name in source.roles.measures.values())),
        notes=tuple(_notes(writers, 0 if patches is None else len(patches.frame) - counts["tiles"])),
    )


def _images(sources: Sequence[Patches | Cells], folder: Path, wanted: Wanted) -> dict[str, Canvas]:
    """Return name in the table → image as QuPath shows it; nuclei lie in images of the patches, if there are some."""
    names = sources[0].images()
    for source in sources[1:]:
        for name in source.images():
            same_image(name, names)
    slide = sources[0].roles.whole == "slide"
    images = {n: canvas_of(find_image(n, folder, wanted.slides), slide=slide, crop=wanted.crop) for n in names}
    return {name: replace(one, mpp=one.mpp or sources[0].mpp(name)) for name, one in images.items()}


class _Writers:
    """The files of the images, to which objects are added in turn."""

    def __init__(
        self,
        folder: Path,
        images: Mapping[str, Canvas],
        wanted: Wanted,
        classes: list[str],
    ) -> None:
        self.classes, colours = classes, class_colours(classes)
        self._formats = {name: FORMATS[name] for name in wanted.formats}
        self._images, self.colours = images, colours
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
            path.write_text(
                self._formats[name].head(images[image].path.name, classes, colours) + "\n", encoding="utf-8"
            )

    def add(self, image: str, shapes: Callable[[Canvas], Iterator[Shape]]) -> int:
        """Write objects of an image, and return how many."""
        number = 0
        for name, form in self._formats.items():
            canvas = (self._images if form.crop else self._full)[image]
            number = beyond = 0
            with self._paths[image, name].open("a", encoding="utf-8") as stream:
                for shape in shapes(canvas):
                    stream.write(form.between if self.counts[image] + number and form.between != "\n" else "")
                    stream.write(form.body(shape, self.colours))
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
    images: Mapping[str, Canvas], writers: _Writers, patches: Patches | None, cells: Cells | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "images": [
            {
                **{"image": canvas.path.name, "name": name, "path": str(canvas.path.resolve())},
                "file": writers.files.get((name, "qupath"), Path()).as_posix(),
                **{"width": canvas.width, "height": canvas.height, "left": canvas.left, "top": canvas.top},
                **{"mpp": canvas.mpp, "objects": writers.counts[name]},
            }
            for name, canvas in images.items()
        ],
        "whole": next(source.roles.whole for source in (patches, cells) if source is not None),
        "classes": {name: list(writers.colours[name]) for name in writers.classes},
        "tiles": patches and patches.described(),
        "nuclei": cells and cells.described(),
        "measurements": [] if patches is None else _ranges(patches.frame, patches.roles),
    }


def _ranges(frame: pd.DataFrame, found: Roles) -> list[dict[str, Any]]:
    """Return measurements with the range of their colours; concepts go before shares, as the first one is shown."""
    ranges = []
    for column, name in sorted(found.measures.items(), key=lambda pair: pair[0].endswith("_share")):
        low, high = value_range(column, frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
        ranges.append({"name": name, "column": column, "low": low, "high": high})
    return ranges


def value_range(name: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the range of a column's colours for all images: 2nd to 98th percentile; 0 to 1 of probabilities."""
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
            yield f"{name} has {number:,} objects: QuPath needs minutes and gigabytes to open them."
    if outside := {name: number for name, number in writers.beyond.items() if number}:
        which = ", ".join(f"{number} of {name}" for name, number in outside.items())
        yield f"Objects that begin outside of what the viewer shows: {which}; check that the images are the right ones."
