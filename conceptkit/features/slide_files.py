"""Features of whole slides: a file per slide or one of several slides, and a table of slides or patients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, reason_of
from conceptkit.features.matrix_files import HDF5, MATRICES, NUMPY, MatrixFile
from conceptkit.features.own_files import opened, rows_are_slides, slide_rows
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.table_reading import PARQUET, label_of, read_frame

MANIFEST = "manifest.csv"
"""Name of a table in a folder of features that says which file belongs to which slide"""

_SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
"""Suffixes of slides, which tables may name with them"""

_NAMED = 5
"""Maximum number of slides named in a sentence"""


@dataclass(frozen=True)
class SlideFiles:
    """Which file holds the features of which slide."""

    origin: Path
    """Folder, manifest or file"""
    files: Mapping[str, Path]
    """Slide → file"""
    patients: Mapping[str, str] = field(default_factory=dict)
    """Slide → patient, where a manifest says so"""
    notes: tuple[str, ...] = ()

    def named(self, cell: Any) -> str | None:
        """Return the slide of a table's cell, which may be the path of the slide; ``None`` without a file."""
        if pd.isna(cell):
            return None
        name = os.path.basename(str(cell))
        bare, end = os.path.splitext(name)
        return next((n for n in (str(cell), name, bare if end.lower() in _SLIDES else name) if n in self.files), None)


@dataclass(frozen=True)
class _Slide:
    """What is known of the features of a slide before they are read."""

    name: str
    path: Path
    n: int
    width: int
    file: MatrixFile
    """Closed"""
    mark: bytes
    """Equal for equal features: their number, the first and the last row"""
    at: NDArray[np.intp] | None
    """Rows in a file of several slides"""
    coords: NDArray[Any] | None = None
    """(n, 2), where patches are read and named by their place"""


def find_slide_files(path: Path) -> SlideFiles | None:
    """Return the files of slides in a folder, a manifest, or a file of several slides; ``None`` for other files.

    Files of a folder and its subfolders are named like slides. A manifest is a table with the column ``file`` (relative
    to its folder), ``slide`` if files are not named like slides, and ``patient``; in a folder it is called
    :data:`MANIFEST`. In a file of several slides, or a table next to a .npy file, column ``slide`` names them.

    Raises
    ------
    InputError
        when there are no files, or a slide has two that differ
    """
    patients: dict[str, str] = {}
    if path.is_dir() and not (path / MANIFEST).is_file():
        pairs = [(file.stem, file) for file in sorted(path.rglob("*")) if file.suffix.lower() in MATRICES]
        if not pairs:
            raise InputError(f"features: {path} has no files {', '.join(MATRICES)}.")
    elif path.is_dir() or path.suffix.lower() == ".csv":
        pairs, patients = _of_manifest(path / MANIFEST if path.is_dir() else path)
    elif path.suffix.lower() in (NUMPY, *PARQUET):
        with opened(path, ()) as file:
            rows = slide_rows(file)
        return None if rows is None else SlideFiles(path, dict.fromkeys(rows, path))
    else:
        return None
    files: dict[str, Path] = {}
    twice: list[str] = []
    for slide, file_of in pairs:
        if slide in files:
            first, second = sorted((files[slide], file_of), key=lambda p: (p.suffix.lower() not in HDF5, str(p)))
            if _slide(slide, first).mark != _slide(slide, second).mark:
                raise InputError(
                    f"features: slide {slide} has two files with different features, {first} and {second}; name the "
                    "folder of one of them, or remove one."
                )
            twice.append(slide)
            files[slide] = first
        else:
            files[slide] = file_of
    notes = _note(twice, "slide", "in two files with the same first and last row, of which one was read")
    return SlideFiles(path, files, patients, tuple(notes))


def _of_manifest(path: Path) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    try:
        frame, _ = read_frame(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"features: {path} cannot be read as a table ({reason_of(error)}).") from None
    if "file" not in frame.columns:
        raise InputError(
            f"features: {path} must have a column file, and slide unless files are named like slides; it has "
            f"{', '.join(map(str, frame.columns))}."
        )
    for name in ("file", "slide", "patient"):
        if name in frame.columns and (missing := int(frame[name].isna().sum())):
            raise InputError(f"features: every row of {path} needs a {name}, {missing} have none.")
    files = [path.parent / str(file) for file in frame["file"]]
    slides = [label_of(slide) for slide in frame["slide"]] if "slide" in frame.columns else [f.stem for f in files]
    patients = dict(zip(slides, map(label_of, frame["patient"]), strict=True)) if "patient" in frame.columns else {}
    return list(zip(slides, files, strict=True)), patients


def with_features(table: PatchTable, path: str | Path) -> PatchTable:
    """Return the table with column ``features``: one file for all of its rows, or that of each row's slide.

    Raises
    ------
    InputError
        when a folder or manifest has no file for a slide
    """
    place = Path(path).absolute()
    found = find_slide_files(place) if _is_of_slides(place) else None
    if found is None:
        return replace(table, frame=table.frame.assign(features=str(place)))
    if "slide" not in table.frame.columns:
        raise InputError(f"features: {path} has a file per slide; give the table a column slide.")
    cells = table.frame["slide"]
    slides = {cell: found.named(cell) for cell in cells.dropna().unique()}
    missing = [str(cell) for cell, slide in slides.items() if slide is None]
    if missing or cells.isna().any():
        raise InputError(f"features: {path} has no file for {_counted(missing or ['(empty cell)'], 'slide')}.")
    files = {cell: str(found.files[slide]) for cell, slide in slides.items() if slide is not None}
    return replace(table, frame=table.frame.assign(features=cells.map(files)))


def _is_of_slides(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".csv"


def join_slides(table: PatchTable, features: Any, per: str | None = None) -> PatchTable:
    """Return the rows of a table whose features can be read; its notes name what was left out.

    A table of slides or patients becomes one of slides, for the mean of their patches, or one of patches. Of a table
    of patches, those of slides without a file are left out.

    Parameters
    ----------
    features : folder, manifest or file, as commands take it, or several by name, for the rows that are in all;
        ``None`` for column ``features`` of a table of slides
    per : ``slide`` or ``patch``; ``None`` is ``slide`` for a table of slides

    Raises
    ------
    InputError
        when no row has features, files differ in width or encoder, or ``per`` is slide for a table of patches
    """
    if isinstance(features, Mapping):
        for name, one in features.items():
            joined = join_slides(replace(table, notes=()), one, per if _is_by_slide(table.frame) else None)
            table = replace(joined, notes=(*table.notes, *(f"{name}: {note}" for note in joined.notes)))
        return table
    frame, by_slide = table.frame, _is_by_slide(table.frame)
    if per == "slide" and not by_slide:
        raise InputError("per: slide needs a table of one row per slide or patient; this one has patches.")
    place = None if features is None else Path(features).absolute()
    found = None
    if place is not None:
        found = find_slide_files(place) if by_slide or _is_of_slides(place) else None
    elif by_slide and "features" in frame.columns and "slide" in frame.columns:
        rows = frame.dropna(subset="features")
        places = {str(s): table.folder / str(f) for s, f in zip(rows["slide"], rows["features"], strict=True)}
        found = SlideFiles(Path("features"), places)
    if found is None or not (by_slide or "slide" in frame.columns):
        if per == "patch" and by_slide:
            raise InputError("per: patch needs a folder with a file per slide, or a file with a column slide.")
        return table
    if "slide" not in frame.columns:
        frame = _slides_of_patients(frame, found)
    names = frame["slide"].map({cell: found.named(cell) for cell in frame["slide"].unique()})
    missing, unused = frame["slide"][names.isna()], sorted({*found.files} - {*names.dropna()})
    if names.isna().all():
        raise InputError(
            f"features: no slide of the table has a file in {found.origin}: the table has "
            f"{_some(missing.unique())}, the files {_some(unused)}."
        )
    notes = [
        *found.notes,
        *_note(missing.dropna().unique(), "slide", "of the table left out without a features file"),
        *_note(unused, "features file", "without a row in the table not used"),
    ]
    if empty := int(frame["slide"].isna().sum()):
        notes.append(f"{empty} rows without a slide left out.")
    if by_slide:
        frame, of_slides = _expanded(frame.assign(slide=names)[names.notna()], found, per == "patch")
        notes += of_slides
    else:
        frame = frame[names.notna()]
        if table.location == "slide" and not any((table.folder / str(s)).is_file() for s in frame["slide"].unique()):
            frame = frame.drop(columns="size")  # then the table has no pixels
            notes.append("There are no pixel statistics to compare with, as no slide of the table was found.")
    aside = {**table.aside} | {name: "coordinates" for name in ("x_um", "y_um") if name in frame.columns}
    return replace(table, frame=frame.reset_index(drop=True), aside=aside, notes=(*table.notes, *notes))


def _is_by_slide(frame: pd.DataFrame) -> bool:
    """Return whether each row of a table stands for a slide, or for a patient."""
    if "slide" in frame.columns:
        return rows_are_slides(frame)
    return "patient" in frame.columns and bool((frame["patient"].astype("str") == frame["patch_id"]).all())


def _slides_of_patients(frame: pd.DataFrame, found: SlideFiles) -> pd.DataFrame:
    """Return a table of slides from one of patients: by a manifest, or with files named like patients."""
    patients = found.patients or {slide: slide for slide in found.files}
    slides = pd.DataFrame({"slide": list(patients), "patient": list(patients.values())})
    if not frame["patient"].isin(slides["patient"]).any():
        hint = "" if found.patients else "; give the table a column slide, or the folder a manifest.csv (file, patient)"
        raise InputError(
            f"features: no patient of the table has a file in {found.origin}: the table has "
            f"{_some(frame['patient'])}, the files {_some(slides['patient'])}{hint}."
        )
    joined = frame.merge(slides, on="patient", how="left")
    return joined.assign(slide=joined["slide"].fillna(joined["patient"]))


def _expanded(frame: pd.DataFrame, found: SlideFiles, patches: bool) -> tuple[pd.DataFrame, list[str]]:
    """Return a table of slides with their files, a row per slide or patch, and notes."""
    if (twice := frame["slide"][frame["slide"].duplicated()]).size:
        raise InputError(f"table: slide {twice.iloc[0]} has more than one row; keep one.")
    slides = list(_slides(frame["slide"], found, patches))
    filled = np.array([slide.n > 0 for slide in slides])
    notes = _note([slide.name for slide in slides if not slide.n], "slide", "without patches left out")
    slides, frame = [slide for slide in slides if slide.n], frame[filled]
    if not slides:
        raise InputError(f"features: no slide of the table has patches in {found.origin}.")
    _check_alike(slides)
    notes += [*_differing(slides), *_identical(slides, frame)]
    sizes = [slide.n for slide in slides]
    spread = f"{len(slides)} slides, {min(sizes)} to {max(sizes)} patches each"
    frame = frame.sort_values("slide", kind="stable").assign(features=[str(slide.path) for slide in slides])
    if not patches:
        notes.append(f"Features are means over the patches of each slide ({spread}).")
        return frame.assign(patch_id=frame["slide"]), notes
    notes.append(f"Each patch has the values of its slide ({spread}).")
    names = {slide.file.place_columns() for slide in slides}
    placed = names.pop() if len(names) == 1 else None
    whole = frame.iloc[np.repeat(np.arange(len(frame)), sizes)]
    if placed is not None and all(slide.coords is not None for slide in slides):
        places = np.concatenate([slide.coords for slide in slides if slide.coords is not None])
        whole = whole.assign(**dict(zip(placed, places.T, strict=True)))
        cells = zip(whole["slide"], *(map(label_of, column) for column in places.T.tolist()), strict=True)
    else:
        rows = np.concatenate([np.arange(slide.n) if slide.at is None else slide.at for slide in slides])
        whole = whole.assign(row=rows)
        cells = zip(whole["slide"], map(str, rows.tolist()), strict=True)
    return whole.assign(patch_id=["|".join(place) for place in cells]), notes


def _slides(names: Iterable[str], found: SlideFiles, patches: bool) -> Iterator[_Slide]:
    """Yield the slides, sorted by name, each file opened once."""
    if len({*found.files.values()}) == 1 and len(found.files) > 1:
        path = next(iter(found.files.values()))
        with opened(path, ()) as file:
            rows = slide_rows(file) or {}
            for name in sorted(names):
                yield _described(name, file, rows[name], patches)
        return
    for name in sorted(names):
        yield _slide(name, found.files[name], patches)


def _slide(name: str, path: Path, patches: bool = False) -> _Slide:
    with opened(path, ()) as file:
        return _described(name, file, None, patches)


def _described(name: str, file: MatrixFile, at: NDArray[np.intp] | None, patches: bool) -> _Slide:
    if len(file.shape) not in (1, 2):
        raise InputError(f"features: {file.path} must hold (n, d) numbers, got {file.shape}.")
    width, n = file.shape[-1], (1 if len(file.shape) == 1 else file.shape[0]) if at is None else len(at)
    n = n if width else 0
    if patches and n and len(file.shape) == 1:
        raise InputError(f"features: {file.path} holds one vector of the whole slide, so that there are no patches.")
    mark, coords = b"", None
    if n:
        values = file.values() if len(file.shape) == 2 else np.asarray(file.values())[None]
        ends = (0, n - 1) if at is None else (at[0], at[-1])
        mark = b"%d|" % n + b"".join(np.asarray(values[one], dtype=np.float32).tobytes() for one in ends)
    if patches and n and file.place_columns() is not None and file.coords is not None:
        read = file.coords()
        coords = read if len(np.unique(read, axis=0)) == n else None
    return _Slide(name, file.path, n, width, replace(file, values=lambda: None, coords=file.coords), mark, at, coords)


def _check_alike(slides: Sequence[_Slide]) -> None:
    """Refuse files of different widths or encoders."""
    for what, values in (
        ("{} features per patch", [slide.width for slide in slides]),
        ("features of encoder {}", [slide.file.encoder for slide in slides]),
    ):
        stated = [(value, slide.path) for value, slide in zip(values, slides, strict=True) if value is not None]
        other = next(((value, path) for value, path in stated if value != stated[0][0]), None)
        if other is not None:
            (wrong, path), (first, before) = other, stated[0]
            raise InputError(
                f"features: {path} has {what.format(wrong)}, {before} has {what.format(first)}; use files of one "
                "encoder."
            )


def _differing(slides: Sequence[_Slide]) -> list[str]:
    """Return a note for each fact on how patches were cut that is not the same in all files."""
    notes = []
    for key in dict.fromkeys(key for slide in slides for key in slide.file.facts):
        of = pd.Series({slide.name: slide.file.facts.get(key, "not stated") for slide in slides})
        if of.nunique() > 1:
            each = (f"{value} ({_counted(list(part.index), 'slide')})" for value, part in of.groupby(of))
            notes.append(f"Features files differ in {key}: {'; '.join(each)}.")
    return notes


def _identical(slides: Sequence[_Slide], frame: pd.DataFrame) -> list[str]:
    """Return a note on slides whose features are identical, as far as number, first and last row show."""
    patients = dict(zip(frame["slide"], frame["patient"], strict=True)) if "patient" in frame.columns else {}
    alike: dict[bytes, list[str]] = {}
    for slide in slides:
        alike.setdefault(slide.mark, []).append(slide.name)
    several = [names for names in alike.values() if len(names) > 1]
    if not several:
        return []
    shown = [
        " = ".join(names) + (" (different patients)" if len({patients.get(n) for n in names}) > 1 else "")
        for names in several
    ]
    return [f"Identical features under several names (equal number, first and last row): {_some(shown)}."]


def _note(names: Iterable[Any], what: str, how: str) -> list[str]:
    names = [str(name) for name in names]
    return [f"{_counted(names, what, how)}."] if names else []


def _counted(names: Sequence[str], what: str, how: str = "") -> str:
    return f"{len(names)} {what}{'s' if len(names) != 1 else ''}{' ' if how else ''}{how}: {_some(names)}"


def _some(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
