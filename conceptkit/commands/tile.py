"""Tiling: from slides to a patch table of tiles that hold tissue, slide by slide, resumed where it was left."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptkit.errors import InputError, check_choice, check_place
from conceptkit.families import STAIN
from conceptkit.files.atomic import held, replacing
from conceptkit.options.base import Progress
from conceptkit.pathology.drawings import annotation_notes, find_annotations, label_warnings, summaries

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.jobs import Engine
    from conceptkit.pathology.finding import SlideFacts
    from conceptkit.pathology.tiling import Tiling

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
    slow: list[str]
    """A note on slides that take long"""


@dataclass(frozen=True)
class SlideJob:
    """One slide to cut, complete in itself so that any process can do it."""

    slide: Path
    annotations: Path | None
    tiling: Tiling
    part: Path
    """Where its rows go: a Parquet file."""
    export: str
    tiles: Path
    """Folder of exported pixels."""
    stain: tuple[str, Path] | None


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
    notify: Callable[[str], None] | None = None,
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
    notify : receives a sentence on slides that take long, before they are read

    Raises
    ------
    InputError
        when an option cannot be used, two different slides share a name, or no slide gave a tile
    """
    import pandas as pd

    from conceptkit.jobs import Engine
    from conceptkit.pathology.measuring import SUFFIXES, write_table
    from conceptkit.pathology.resuming import parts_folder
    from conceptkit.pathology.tiling import Tiling

    out = Path(out)
    check_choice("export", export, EXPORTS)
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"out: must end in {' or '.join(SUFFIXES)}, got {out}.")
    check_place("out", out)
    classes = (tumor_class,) if isinstance(tumor_class, str) else tuple(tumor_class)
    labels: dict[str, Any] = {"tumor": tumor, "classes": classes, "shift_geojson": shift_geojson}
    tiling = Tiling(side=size, mpp=tile_mpp, slide_mpp=mpp, overlap=overlap, tissue=tissue, **labels)
    normalise = _stain(stain, stain_reference, export)
    chosen = _choose(slides, annotations, stated=mpp is None)
    if notify is not None:
        for note in chosen.slow:
            notify(note)
    drawn, paths = chosen.drawn, list(chosen.drawn)
    read = summaries(drawn, classes)
    drawing_notes = annotation_notes(drawn, read, annotations, tiling)
    parts = parts_folder(out)
    tiles = parts.with_name(out.stem + "_tiles")
    jobs = []
    for path, drawing in drawn.items():
        key = _key(path, drawing, tiling, export, normalise)
        jobs.append(SlideJob(path, drawing, tiling, parts / f"{key}.parquet", export, tiles, normalise))
    with held(parts):
        resumed, faults = _cut(jobs, Engine(engine, workers, scheduler), progress)
        frames = [_rows(job, out) for job in jobs if job.slide not in faults]
        skipped = tuple((path.name, faults[path]) for path in paths if path in faults)
        if not frames:
            raise InputError(f"slides: no slide gave a tile; {skipped[0][0]} was left out as {skipped[0][1]}")
        table = pd.concat(frames, ignore_index=True)
        write_table(table, out)
        if not faults:
            shutil.rmtree(parts, ignore_errors=True)  # nothing is left to be resumed
    warnings = tuple(label_warnings(drawn, read, annotations, table))
    notes = (*warnings, *chosen.notes, *drawing_notes, *_notes(table))
    copies = tuple((str(copy), str(kept)) for copy, kept in chosen.copies.items())
    return Tiled(table=table, skipped=skipped, notes=notes, warnings=warnings, resumed=resumed, copies=copies)


def _cut(jobs: list[SlideJob], engine: Engine, progress: Progress | None) -> tuple[int, dict[Path, str]]:
    """Cut the slides that are not cut yet; return how many were, and slide → reason of those that cannot be."""
    from conceptkit.jobs import run_jobs

    todo = [job for job in jobs if not job.part.is_file()]
    there = len(jobs) - len(todo)
    faults: dict[Path, str] = {}
    if progress is not None:
        progress("cutting slides", there, len(jobs))
    for done, outcome in enumerate(run_jobs(tile_one, todo, engine), start=1):
        if outcome.error is not None:
            faults[todo[outcome.index].slide] = outcome.error
        if progress is not None:
            progress("cutting slides", there + done, len(jobs))
    return there, faults


def tile_one(job: SlideJob) -> int:
    """Cut one slide, keep its pixels where wanted, and write its rows; returns their number."""
    from conceptkit.pathology.tiling import tile_slide

    table = tile_slide(job.slide, job.tiling, annotations=job.annotations)
    if job.export != "none":
        from conceptkit.pathology.exporting import export_tiles

        table = export_tiles(
            job.slide, table, job.tiles, kind=job.export, slide_mpp=job.tiling.slide_mpp, stain=job.stain
        )
    with replacing(job.part) as temporary:
        table.to_parquet(temporary, index=False)
    return len(table)


def _rows(job: SlideJob, out: Path) -> pd.DataFrame:
    """Return a slide's rows as they stand in the table: named, with paths as seen from its folder."""
    import pandas as pd

    from conceptkit.pathology.measuring import relative_path

    part = pd.read_parquet(job.part)
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
    from conceptkit.pathology.finding import copies_note, doubts_note, find_slides, same_slides, slide_facts, slow_note

    paths, notes = find_slides(given)
    facts = slide_facts(paths)
    drawn = dict(zip(paths, find_annotations(annotations, paths), strict=True))
    copies = same_slides(sorted(paths, key=lambda path: drawn[path] is None), facts)
    kept = [path for path in paths if path not in copies]
    _check_names(kept, facts)
    notes += copies_note(copies)
    if stated:
        notes += doubts_note(facts, kept)
    slow = slow_note(facts, kept)
    return _Chosen({path: drawn[path] for path in kept}, copies, [*notes, *slow], slow)


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
    STAIN.check("stain", name)
    if export == "none":
        raise InputError("stain: normalised pixels have to be kept, name --export png or h5.")
    if reference is None or not Path(reference).is_file():
        raise InputError(f"stain-reference: an image or .npy file is needed, got {reference}.")
    return name, Path(reference).absolute()


def _key(path: Path, drawing: Path | None, tiling: Tiling, export: str, stain: tuple[str, Path] | None) -> str:
    """Return a digest of all that a slide's rows follow from: another file or option is another part."""
    from conceptkit.pathology.resuming import file_state, part_key

    values: list[Any] = [file_state(path), file_state(drawing), dataclasses.asdict(tiling), export]
    values.append([stain[0], *file_state(stain[1])] if stain else None)
    return part_key(values)


def _notes(table: pd.DataFrame) -> list[str]:
    notes = []
    if "mpp" not in table or table["mpp"].isna().any():
        notes.append(
            "The microns per pixel of some slides are unknown: areas in µm² are refused there until --mpp gives them."
        )
    notes.append("group is the slide; where a patient has several, name the patient in a column of that name.")
    return notes
