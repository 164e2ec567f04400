"""Slides in folders: which files are slides, and which files open as the same slide."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from conceptkit.errors import InputError
from conceptkit.pathology.slides import AS_PYRAMID, MOST_PIXELS, PIXELS_PER_SECOND, SLOW_PIXELS, open_slide

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")
"""Files of a folder that count as slides even when they cannot be opened; others count when OpenSlide knows them."""

UNFINISHED = (".partial", ".part", ".tmp", ".temp", ".crdownload", ".download", ".filepart")
"""What programs append to the name of a file that they have not finished."""


@dataclass(frozen=True)
class SlideFacts:
    """What a file says of its slide."""

    identity: tuple[object, ...] = ()
    """Equal for files that open as the same slide; empty for a file that cannot be opened."""
    doubt: str = ""
    """Why the microns per pixel that the slide states are not used."""
    pixels: float = 0.0
    """Pixels that are read to detect tissue."""


def find_slides(given: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the slides among files and folders, and notes.

    A folder stands for the slides in it and in its sub-folders. Hidden files and folders, the data folders of MRXS
    slides, and files whose name says that they are unfinished are passed over; a note names the latter.

    Parameters
    ----------
    given : files, taken as they are, and folders

    Returns
    -------
    Absolute paths, sorted, each once; notes

    Raises
    ------
    InputError
        when nothing is given or a folder has no slide
    """
    found: list[Path] = []
    unfinished: list[Path] = []
    for entry in map(Path, given):
        if not entry.is_dir():
            found.append(entry.absolute())
            continue
        slides = [path.absolute() for path in _files(entry) if _is_slide(path)]
        unfinished += [path for path in slides if path.suffix.lower() in UNFINISHED]
        finished = [path for path in slides if path.suffix.lower() not in UNFINISHED]
        if not finished:
            raise InputError(f"slides: {entry} and its sub-folders have no slide that OpenSlide can read.")
        found += finished
    if not found:
        raise InputError("slides: at least one is needed, got none.")
    notes = []
    if unfinished:
        notes.append(
            f"Passed over {listed(sorted(p.name for p in unfinished))}: the name says that the file is unfinished."
        )
    return sorted(set(found)), notes


def slide_facts(paths: Sequence[Path]) -> dict[Path, SlideFacts]:
    """Open each file and return what it says of its slide.

    A slide's identity is OpenSlide's ``quickhash-1`` and the sizes of its levels, as the digest is of the coarsest
    level, which padding may make equal in two slides. Files without a digest are compared byte by byte.
    """
    with ThreadPoolExecutor(8) as pool:
        facts = dict(zip(paths, pool.map(_facts, paths), strict=True))
    without = [path for path in paths if facts[path].identity[:1] == (None,)]
    alike = Counter(facts[path].identity for path in without)
    for path in without:
        if alike[facts[path].identity] > 1:
            facts[path] = replace(facts[path], identity=(*facts[path].identity, _digest(path)))
    return facts


def same_slides(paths: Iterable[Path], facts: Mapping[Path, SlideFacts]) -> dict[Path, Path]:
    """Return the files that open as the same slide as an earlier one → the earlier one.

    Every file of a DICOM series opens as the whole slide, as does a copy under another name. Cut twice, the same pixels
    would stand for two patients.
    """
    first: dict[tuple[object, ...], Path] = {}
    copies = {}
    for path in paths:
        identity = facts[path].identity
        if identity and first.setdefault(identity, path) != path:
            copies[path] = first[identity]
    return copies


def copies_note(copies: Mapping[Path, Path]) -> list[str]:
    """Return a note on the files that :func:`same_slides` found; none without any."""
    if not copies:
        return []
    names = listed([f"{copy} (as {kept.name})" for copy, kept in copies.items()])
    return [f"Left out {len(copies)} files that open as the same slide as another file: {names}."]


def doubts_note(facts: Mapping[Path, SlideFacts], paths: Iterable[Path]) -> list[str]:
    """Return a note on slides whose stated resolution is not used; none without any."""
    doubts = [f"{path.name} ({facts[path].doubt})" for path in paths if facts[path].doubt]
    return [f"The resolution of {listed(doubts)} counts as unknown."] if doubts else []


def slow_note(facts: Mapping[Path, SlideFacts], paths: Iterable[Path]) -> list[str]:
    """Return a note on slides whose tissue is detected in many pixels; none without any."""
    slow = {path: facts[path].pixels for path in paths if SLOW_PIXELS < facts[path].pixels <= MOST_PIXELS}
    if not slow:
        return []
    minutes = sum(slow.values()) / PIXELS_PER_SECOND / 60
    return [
        f"No level of {listed([path.name for path in slow])} is coarse enough to detect tissue: "
        f"{sum(slow.values()) / 1e6:,.0f} megapixels are read, about {minutes:,.0f} minutes of a core. For a faster "
        f"run, {AS_PYRAMID}."
    ]


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names as a list, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, linked ones included, each folder once."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        data = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        known = {os.path.realpath(root)} & seen
        seen.add(os.path.realpath(root))
        folders[:] = [] if known else sorted(n for n in folders if n[0] != "." and n not in {*data, "__MACOSX"})
        yield from (Path(root, name) for name in sorted(names) if not known and name[0] != ".")


def _refuse(error: OSError) -> None:
    raise InputError(f"slides: folder {error.filename} cannot be read ({error.strerror}).")


def _is_slide(path: Path) -> bool:
    import openslide

    name = path.with_suffix("") if path.suffix.lower() in UNFINISHED else path
    if name.suffix.lower() in SLIDE_SUFFIXES:  # also one that is damaged, or a link to nothing: it will be listed
        return True
    return path.is_file() and openslide.OpenSlide.detect_format(path) is not None


def _facts(path: Path) -> SlideFacts:
    try:
        with open_slide(path) as slide:
            digest = slide.handle.properties.get("openslide.quickhash-1")
            identity: list[object] = [digest, *slide.handle.level_dimensions]
            pixels = slide.pyramid.pixels_read(slide.picture_scale)
            return SlideFacts(tuple(identity if digest else [*identity, path.stat().st_size]), slide.doubt, pixels)
    except InputError:
        return SlideFacts()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
