"""Tiling: from slides to a patch table of tiles that hold tissue, slide by slide; an interrupted run is resumed."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import held
from conceptkit.jobs import Engine
from conceptkit.options.base import Notify, Progress
from conceptkit.options.tile import Tile
from conceptkit.pathology.drawings import annotation_notes, find_annotations, label_warnings, summaries
from conceptkit.pathology.exporting import export_tiles
from conceptkit.pathology.finding import (
    SlideFacts,
    copies_note,
    doubts_note,
    find_slides,
    same_slides,
    slide_facts,
    slow_note,
)
from conceptkit.pathology.measuring import check_out, relative_path, write_table
from conceptkit.pathology.resuming import Part, file_state, part_key, parts_folder, run_in_parts
from conceptkit.pathology.tiling import Tiling, tile_slide
from conceptkit.runs.opening import at_stage


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """A table of tiles, and what is not in it."""

    path: str
    """File of the table, as the command was given it."""
    table: pd.DataFrame
    skipped: tuple[tuple[str, str], ...]
    """Slide and reason of every slide that has no tile in the table."""
    notes: tuple[str, ...]
    resumed: int
    """Slides finished by an earlier run."""
    warnings: tuple[str, ...] = ()
    """The first of the notes: those that question the labels."""
    copies: tuple[tuple[str, str], ...] = ()
    """File that opens as the same slide as another, and that other one, which was cut."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "schema": "conceptkit/tile/1",
            "rows_written": len(self.table),
            "resumed": self.resumed,
            "skipped": [{"what": what, "reason": reason} for what, reason in self.skipped],
            "copies": [{"what": copy, "same_as": kept} for copy, kept in self.copies],
            "path": self.path,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Chosen:
    """The files to cut."""

    drawn: dict[Path, Path | None]
    """File of each slide → its annotations, where there are any."""
    copies: dict[Path, Path]
    notes: list[str]
    slow: list[str]
    """A note on slides that take long"""


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
    workers: int | None = 1,
    notify: Notify | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tiled:
    """Cut slides into tiles, in this process unless ``workers`` or ``engine`` say otherwise.

    Parameters
    ----------
    slides : files and folders
    notify : receives a sentence on slides that take long, before they are read
    options : of :class:`conceptkit.options.tile.Tile`
    """
    return tile(Tile(**{"slides": slides, "workers": workers, **options}), progress=progress, notify=notify)


def tile(options: Tile, *, progress: Progress | None = None, notify: Notify | None = None) -> Tiled:
    """Cut slides into tiles that hold tissue, and write the patch table."""
    out = Path(options.out)
    check_out(out)
    check_place("out", out)
    tiling = Tiling(
        side=options.size,
        mpp=options.tile_mpp,
        slide_mpp=options.mpp,
        overlap=options.overlap,
        tissue=options.tissue,
        tumor=options.tumor,
        classes=options.tumor_class,
        shift_geojson=options.shift_geojson,
    )
    stain = _stain(options)
    engine = Engine(options.engine, options.workers, options.scheduler)
    chosen = _choose(options)
    if notify is not None:
        for note in chosen.slow:
            notify(note)
    drawn = chosen.drawn
    read = summaries(drawn, tiling.classes)
    drawing_notes = annotation_notes(drawn, read, options.annotations, tiling)
    parts = parts_folder(out)
    tiles = parts.with_name(out.stem + "_tiles")
    jobs = [SlideJob(path, drawing, tiling, options.export, tiles, stain) for path, drawing in drawn.items()]
    with held(parts):
        finished = run_in_parts(
            tile_one,
            jobs,
            folder=parts,
            engine=engine,
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
    warnings = tuple(label_warnings(drawn, read, options.annotations, table))
    return Tiled(
        path=str(options.out),
        table=table,
        skipped=skipped,
        notes=(*warnings, *chosen.notes, *drawing_notes, *_notes(table)),
        warnings=warnings,
        resumed=finished.resumed,
        copies=tuple((str(copy), str(kept)) for copy, kept in chosen.copies.items()),
    )


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


def _choose(options: Tile) -> _Chosen:
    """Find the slides and their annotations; of several files of one slide keep one, if possible with annotations."""
    paths, notes = find_slides(options.slides)
    facts = slide_facts(paths)
    drawn = dict(zip(paths, find_annotations(options.annotations, paths), strict=True))
    copies = same_slides(sorted(paths, key=lambda path: drawn[path] is None), facts)
    kept = [path for path in paths if path not in copies]
    _check_names(kept, facts)
    notes += copies_note(copies)
    if options.mpp is None:
        notes += doubts_note(facts, kept)
    slow = slow_note(facts, kept)
    return _Chosen({path: drawn[path] for path in kept}, copies, [*notes, *slow], slow)


def _check_names(paths: Iterable[Path], facts: Mapping[Path, SlideFacts]) -> None:
    """Refuse two slides of one name: their patches would have the same ids."""
    first: dict[str, Path] = {}
    for path in paths:
        # A file that cannot be opened is skipped later, and its name with it.
        if facts[path].identity and (other := first.setdefault(path.stem.lower(), path)) != path:
            raise InputError(
                f"slides: {path.stem} is the name of more than one slide ({other}, {path}); rename one of them."
            )


def _stain(options: Tile) -> tuple[str, Path] | None:
    """Return the stain method and its reference image."""
    name, reference = options.stain, options.stain_reference
    if name is None:
        if reference is not None:
            raise InputError("stain-reference: needs --stain METHOD.")
        return None
    if options.export == "none":
        raise InputError("stain: normalised pixels have to be kept, name --export png or h5.")
    if reference is None or not Path(reference).is_file():
        raise InputError(f"stain-reference: an image or .npy file is needed, got {reference}.")
    return name, Path(reference).absolute()


def _notes(table: pd.DataFrame) -> list[str]:
    notes = []
    if "mpp" not in table or table["mpp"].isna().any():
        notes.append(
            "The microns per pixel of some slides are unknown, so areas in µm² cannot be measured there; set --mpp."
        )
    notes.append("The column group holds the slide; add a column patient where a patient has several slides.")
    return notes
