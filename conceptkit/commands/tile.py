"""Tiling: from slides to a patch table of tiles that hold tissue, slide by slide, resumed where it was left."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from conceptkit.errors import InputError, check_choice, check_place
from conceptkit.files.atomic import held
from conceptkit.jobs import Engine
from conceptkit.pathology.drawings import annotation_notes, find_annotations, label_warnings, summaries
from conceptkit.pathology.exporting import export_tiles
from conceptkit.pathology.finding import SlideFacts, copies_note, doubts_note, find_slides, same_slides, slide_facts
from conceptkit.pathology.measuring import check_out, relative_path, write_table
from conceptkit.pathology.resuming import Part, file_state, part_key, parts_folder, run_in_parts
from conceptkit.pathology.stain import METHODS
from conceptkit.pathology.tiling import Tiling, tile_slide
from conceptkit.runs.opening import Progress, at_stage

EXPORTS = ("none", "png", "h5")
"""Where pixels are kept: in the slide, read on demand; as a PNG per tile; as an HDF5 file per slide."""


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """A table of tiles, and what did not get into it."""

    table: pd.DataFrame
    skipped: tuple[tuple[str, str], ...]
    """Slide and reason of every slide that has no tile in the table."""
    notes: tuple[str, ...]
    resumed: int
    """Slides whose tiles were there from an earlier run."""
    warnings: tuple[str, ...] = ()
    """The first of the notes: those that question the labels."""
    copies: tuple[tuple[str, str], ...] = ()
    """File that opens as the same slide as another, and that other one, which was cut."""


@dataclass(frozen=True)
class _Chosen:
    """The files to cut."""

    drawn: dict[Path, Path | None]
    """File of each slide → its annotations, where there are any."""
    copies: dict[Path, Path]
    notes: list[str]


@dataclass(frozen=True)
class SlideJob:
    """One slide to cut, complete in itself so that any process can do it."""

    slide: Path
    annotations: Path | None
    tiling: Tiling
    export: str
    tiles: Path
    """Folder of exported pixels."""
    stain: tuple[str, Path] | None

    @property
    def items(self) -> tuple[str, ...]:
        """Return the slide's path."""
        return (str(self.slide),)

    @functools.cached_property
    def key(self) -> str:
        """Return a digest of everything that the slide's rows depend on."""
        stain = None if self.stain is None else [self.stain[0], *file_state(self.stain[1])]
        drawing = file_state(self.annotations)
        return part_key([file_state(self.slide), drawing, dataclasses.asdict(self.tiling), self.export, stain])


def run_tile(
    slides: Sequence[str | Path],
    *,
    out: str | Path,
    size: int = 224,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    overlap: int = 0,
    tissue: float = 0.5,
    annotations: str | Path | None = None,
    tumor: float = 0.5,
    tumor_class: Sequence[str] = (),
    shift_geojson: bool = True,
    export: str = "none",
    stain: str | None = None,
    stain_reference: str | Path | None = None,
    engine: str = "processes",
    workers: int | None = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Tiled:
    """Cut slides into tiles that hold tissue, and write the patch table.

    Parameters
    ----------
    slides : files and folders; a folder stands for the slides in it and in its sub-folders
    out : the table to write, ``.csv`` or ``.parquet``; what is finished lies in ``{out}.parts`` until all is
    size : side of a tile, in pixels
    mpp : microns per pixel of the slides' level 0, instead of what they say
    tile_mpp : microns per pixel of the tiles; ``None`` for the highest magnification
    overlap : pixels that neighbouring tiles share
    tissue : least share of tissue in a tile
    annotations : folder of annotation files named like the slides (``case.geojson``, ``case.svs.geojson``), in its
        sub-folders too: XML of ASAP, ImageScope or HALO, GeoJSON, or Camelyon's JSON; a slide without one has no label
    tumor : least share of annotated area in a tile labelled ``tumor``; ``normal`` has none of it
    tumor_class : classes, base classes or groups of annotations that count as tumor; by default all that are not
        excluded
    shift_geojson : whether GeoJSON counts from the corner of the scanned area, as QuPath's does
    export : ``none``, ``png`` or ``h5``: where the tiles' pixels are kept, in a folder beside the table
    stain, stain_reference : ``reinhard`` or ``macenko``, and an image or ``.npy`` to fit it on; exported pixels are
        normalised, each slide by its own tissue
    engine, workers, scheduler : as in ``run_measure``

    Raises
    ------
    InputError
        when an option cannot be used, two different slides share a name, or no slide gave a tile
    """
    out = Path(out)
    check_choice("export", export, EXPORTS)
    check_out(out)
    check_place("out", out)
    classes = (tumor_class,) if isinstance(tumor_class, str) else tuple(tumor_class)
    labels: dict[str, Any] = {"tumor": tumor, "classes": classes, "shift_geojson": shift_geojson}
    tiling = Tiling(side=size, mpp=tile_mpp, slide_mpp=mpp, overlap=overlap, tissue=tissue, **labels)
    normalise = _stain(stain, stain_reference, export)
    chosen = _choose(slides, annotations, stated=mpp is None)
    drawn = chosen.drawn
    read = summaries(drawn, classes)
    drawing_notes = annotation_notes(drawn, read, annotations, tiling)
    parts = parts_folder(out)
    tiles = parts.with_name(out.stem + "_tiles")
    jobs = [SlideJob(path, drawing, tiling, export, tiles, normalise) for path, drawing in drawn.items()]
    with held(parts):
        finished = run_in_parts(
            tile_one,
            jobs,
            folder=parts,
            engine=Engine(engine, workers, scheduler),
            on_error="skip",
            progress=None if progress is None else at_stage(progress, "cutting slides"),
        )
        skipped = tuple((Path(slide).name, reason) for slide, reason in finished.skipped.items())
        if not finished.rows:
            raise InputError(f"slides: no slide gave a tile; {skipped[0][0]} was skipped: {skipped[0][1]}")
        table = pd.concat([_rows(jobs[k], part, out) for k, part in finished.rows.items()], ignore_index=True)
        write_table(table, out)
        if not skipped:
            shutil.rmtree(parts, ignore_errors=True)  # nothing is left to be resumed
    warnings = tuple(label_warnings(drawn, read, annotations, table))
    notes = (*warnings, *chosen.notes, *drawing_notes, *_notes(table))
    copies = tuple((str(copy), str(kept)) for copy, kept in chosen.copies.items())
    return Tiled(table=table, skipped=skipped, notes=notes, warnings=warnings, resumed=finished.resumed, copies=copies)


def tile_one(job: SlideJob) -> Part:
    """Cut one slide, write its pixels where they are exported, and return its rows."""
    table = tile_slide(job.slide, job.tiling, annotations=job.annotations)
    if job.export != "none":
        mpp = job.tiling.slide_mpp
        table = export_tiles(job.slide, table, job.tiles, kind=job.export, slide_mpp=mpp, stain=job.stain)
    return Part(table)


def _rows(job: SlideJob, part: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return a slide's rows as they stand in the table: with patch ids, and paths relative to its folder."""
    stem = job.slide.stem
    part.insert(0, "patch_id", f"{stem}_x" + part["x"].astype("str") + "_y" + part["y"].astype("str"))
    if job.export == "none":
        part.insert(1, "slide", relative_path(job.slide, out.parent))
    else:
        column = "image" if job.export == "png" else "h5"
        part[column] = [relative_path(job.tiles / name, out.parent) for name in part[column]]
        part = part.drop(columns=["x", "y", "size", "side"])  # pixels are those of the file, no window of it
    if part["mpp"].isna().all():
        part = part.drop(columns="mpp")
    part.insert(len(part.columns), "group", stem)
    return part


def _choose(given: Iterable[str | Path], annotations: str | Path | None, *, stated: bool) -> _Chosen:
    """Find the slides and their annotations; of several files of one slide keep one, if possible with annotations.

    ``stated``: whether the resolution that a slide states is used.
    """
    paths, notes = find_slides(given)
    facts = slide_facts(paths)
    drawn = dict(zip(paths, find_annotations(annotations, paths), strict=True))
    copies = same_slides(sorted(paths, key=lambda path: drawn[path] is None), facts)
    kept = [path for path in paths if path not in copies]
    _check_names(kept, facts)
    notes += copies_note(copies)
    if stated:
        notes += doubts_note(facts, kept)
    return _Chosen({path: drawn[path] for path in kept}, copies, notes)


def _check_names(paths: Iterable[Path], facts: Mapping[Path, SlideFacts]) -> None:
    """Refuse slides of one name: their patches could not be told apart."""
    first: dict[str, Path] = {}
    for path in paths:
        # A file that cannot be opened is skipped later, and its name with it.
        if facts[path].identity and (other := first.setdefault(path.stem.lower(), path)) != path:
            raise InputError(
                f"slides: {path.stem} is the name of more than one slide ({other}, {path}); rename one of them."
            )


def _stain(name: str | None, reference: str | Path | None, export: str) -> tuple[str, Path] | None:
    if name is None:
        if reference is not None:
            raise InputError("stain-reference: goes with --stain METHOD, which was not given.")
        return None
    check_choice("stain", name, METHODS)
    if export == "none":
        raise InputError("stain: normalised pixels have to be kept, name --export png or h5.")
    if reference is None or not Path(reference).is_file():
        raise InputError(f"stain-reference: an image or .npy file is needed, got {reference}.")
    return name, Path(reference).absolute()


def _notes(table: pd.DataFrame) -> list[str]:
    notes = []
    if "mpp" not in table or table["mpp"].isna().any():
        notes.append(
            "The microns per pixel of some slides are unknown: areas in µm² are refused there until --mpp gives them."
        )
    notes.append("group is the slide; where a patient has several, name the patient in a column of that name.")
    return notes
