"""Annotation files of slides, and notes on them."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, near_names
from conceptkit.pathology.annotation_files import SUFFIXES, read_drawing, suffix_of
from conceptkit.pathology.annotations import classes_in, extents, select, touches
from conceptkit.pathology.finding import listed
from conceptkit.pathology.slides import bounds, open_slide
from conceptkit.pathology.tiling import Tiling

Drawn = Mapping[Path, Path | None]
"""Slide → its annotation file, where there is one."""


def find_annotations(folder: str | Path | None, slides: Sequence[Path]) -> list[Path | None]:
    """Return the annotation file of each slide, ``None`` where there is none.

    A file is named like the slide, with or without its suffix: ``case.geojson`` or ``case.svs.geojson``. Raises
    :class:`InputError` without such a folder or any matching file, or with two of one kind for the same slide.
    """
    if folder is None:
        return [None] * len(slides)

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"annotations: must be a folder of files named like the slides, got {folder}.")
    by_name = _by_name(folder)
    found: list[Path | None] = []
    for slide in slides:
        files = _candidates(slide, by_name)
        if len(files) > 1 and suffix_of(files[0]) == suffix_of(files[1]):
            raise InputError(f"annotations: {files[0]} and {files[1]} both match slide {slide.name}; remove one.")
        found.append(files[0] if files else None)
    if not any(found):
        names = [path.name for files in by_name.values() for path in files]
        raise InputError(
            f"annotations: {folder} has none named as {slides[0].stem}; {near_names(slides[0].stem, names)}."
        )
    return found


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the annotation files of a folder and its sub-folders by name, without suffix, except hidden ones."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        suffix = suffix_of(path)
        if suffix and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found[_same_case(path.name[: -len(suffix)])].append(path.absolute())
    return found


def _candidates(slide: Path, by_name: Mapping[str, list[Path]]) -> list[Path]:
    """Return the annotation files that are named like a slide, the kind that is read first."""
    stem = _same_case(slide.stem)
    names = dict.fromkeys((_same_case(slide.name), stem, stem.removesuffix(".ome")))
    files = [path for name in names for path in by_name.get(name, [])]
    return sorted(files, key=lambda path: SUFFIXES.index(suffix_of(path)))


def _same_case(name: str) -> str:
    """Return a name as names are compared: upper and lower case alike, accents as one character."""
    return unicodedata.normalize("NFC", name).casefold()


@dataclass(frozen=True)
class Summary:
    """Facts of an annotation file; its polygons are read again when the slide is cut."""

    classes: tuple[str, ...]
    """Classes that count when none is named."""
    areas: NDArray[np.float64]
    """(n, 4) left, top, right and bottom of the polygons that count, as in the file."""
    skipped: Mapping[str, int]
    cropped: bool


def summaries(drawn: Drawn, classes: Sequence[str]) -> dict[Path, Summary]:
    """Return annotation file → summary; without files that cannot be read, whose slides are skipped with the reason."""
    found = {}
    for path in drawn.values():
        if path is None:
            continue
        try:
            drawing = read_drawing(path)
        except InputError:
            continue
        areas = extents(select(drawing, classes).areas)
        found[path] = Summary(classes_in(drawing), areas, drawing.skipped, drawing.cropped)
    return found


def annotation_notes(
    drawn: Drawn, read: Mapping[Path, Summary], folder: str | Path | None, tiling: Tiling
) -> list[str]:
    """Return notes on annotations before slides are cut: classes, objects skipped, shifts, files not read.

    Raises :class:`InputError` when no file has any of the named classes.
    """
    if folder is None:
        return []
    return [
        *_class_notes(read, tiling.classes),
        *_skipped_notes(read),
        *_place_notes(drawn, read, shift=tiling.shift_geojson),
        *_second_notes(drawn, Path(folder)),
    ]


def _class_notes(read: Mapping[Path, Summary], wanted: tuple[str, ...]) -> Iterator[str]:
    """Yield which classes count as tumor; a class that no file has is a mistake."""
    names = [name or "(none)" for name in dict.fromkeys(name for entry in read.values() for name in entry.classes)]
    if not wanted:
        if len(names) > 1:
            yield f"All of these classes were counted as tumor: {', '.join(names)}; use --tumor-class to choose some."
        return
    without = [path.name for path, entry in read.items() if not len(entry.areas)]
    if names and len(without) == len(read):
        raise InputError(f"tumor-class: no annotation is of {', '.join(wanted)}; {near_names(wanted[0], names)}.")
    if without:
        yield f"Nothing of {', '.join(wanted)} in {len(without)} of {len(read)} annotations ({listed(without)})."


def _skipped_notes(read: Mapping[Path, Summary]) -> Iterator[str]:
    total: Counter[str] = Counter()
    for entry in read.values():
        total.update(entry.skipped)
    if total:
        kinds = ", ".join(f"{kind} ({number})" for kind, number in total.items())
        files = listed([path.name for path, entry in read.items() if entry.skipped])
        yield f"Skipped in annotations: {kinds}, in {files}."


def _place_notes(drawn: Drawn, read: Mapping[Path, Summary], *, shift: bool) -> Iterator[str]:
    """Yield where coordinates were shifted by the corner of the scanned area, and which areas lie outside it."""
    moved: list[str] = []
    kept: list[str] = []
    beyond: list[str] = []
    for slide, path in drawn.items():
        if path is None or path not in read:
            continue
        try:
            with open_slide(slide) as opened:
                x, y, width, height = bounds(opened)
        except InputError:
            continue  # listed with the reason
        entry = read[path]
        moves = shift and entry.cropped
        if (x, y) != (0, 0):
            (moved if moves else kept).append(f"{path.name} by {x}, {y}" if moves else path.name)
        areas = entry.areas + (np.array([x, y, x, y]) if moves else 0)
        outside = int((~touches(areas, (x, y, x + width, y + height))).sum())
        if outside:
            beyond.append(f"{outside} of {len(areas)} in {path.name}")
    if moved:
        yield (
            f"Shifted by the corner of the scanned area, as QuPath counts from there: {listed(moved)}; "
            "--no-shift-geojson switches this off."
        )
    if kept:
        yield f"Not shifted by the corner of the scanned area, read as pixels of level 0: {listed(kept)}."
    if beyond:
        yield f"Annotated areas outside the scanned area of their slide: {listed(beyond)}."


def _second_notes(drawn: Drawn, folder: Path) -> Iterator[str]:
    by_name = _by_name(folder)
    second = [path for slide in drawn for path in _candidates(slide, by_name)[1:]]
    if second:
        yield f"Not read, as another kind of annotation goes first: {listed([path.name for path in second])}."


def label_warnings(
    drawn: Drawn, read: Mapping[Path, Summary], folder: str | Path | None, table: pd.DataFrame
) -> Iterator[str]:
    """Yield which slides have no annotation, and which have areas that no tile of tissue lies in."""
    if folder is None:
        return
    missing = [slide.name for slide, path in drawn.items() if path is None]
    if missing:
        by_name = _by_name(Path(folder))
        matched = {path for slide in drawn for path in _candidates(slide, by_name)}
        unused = [path.name for files in by_name.values() for path in files if path not in matched]
        more = f" Annotation files that match no slide: {listed(unused)}." if unused else ""
        yield (
            f"No annotations for {len(missing)} of {len(drawn)} slides ({', '.join(missing)}): "
            f"their tiles have no label.{more}"
        )
    most = dict(table.groupby("group")["tumor_share"].max()) if "tumor_share" in table else {}
    empty = [
        p.name for slide, p in drawn.items() if p and p in read and len(read[p].areas) and most.get(slide.stem) == 0
    ]
    if empty:
        yield (
            f"No tile of tissue lies in the annotated areas of {listed(empty)}: all tiles there are labelled normal; "
            "check that these files belong to their slides and are in pixels of level 0."
        )
