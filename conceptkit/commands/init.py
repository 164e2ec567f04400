"""A first study file, written from the files in a folder; every guess is stated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from conceptkit.errors import InputError, check_place
from conceptkit.options.base import Notify, Progress
from conceptkit.options.study import Init
from conceptkit.pathology.finding import SLIDE_SUFFIXES
from conceptkit.pathology.measuring import SUFFIXES
from conceptkit.probe.targets import make_target
from conceptkit.records import write_atomically
from conceptkit.tables.patches import PatchTable, load_table
from conceptkit.tables.study import STUDY_FILE, SplitNames

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")

GROUPS = ("patient", "group", "case", "slide", "donor")
"""Possible columns of patients, the likeliest first"""

NUISANCES = ("center", "scanner", "site", "hospital", "stain")
"""Columns that a network should not encode"""

_SMALLEST_SLIDE = 2**22

_NO_CONCEPT = {"patch_id", "image_id", "x", "y", "size", "mpp", "row", "h5", "key", "image", "mask", "slide"}


@dataclass(frozen=True, kw_only=True)
class Started:
    """The study file that was written, and its sources."""

    path: Path
    table: str | None
    """The patch table that was found; ``None``: there is none yet"""
    notes: tuple[str, ...]
    """What has to be checked, or done first"""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        path, notes = str(self.path), list(self.notes)
        return {"schema": "conceptkit/init/1", "path": path, "table": self.table, "notes": notes}


def init(options: Init, *, progress: Progress | None = None, notify: Notify | None = None) -> Started:
    """Write a study file, see :func:`start_study`."""
    return start_study(options.folder, table=options.table)


def start_study(folder: str | Path, *, table: str | Path | None = None) -> Started:
    """Write a commented ``conceptkit.toml`` into a folder.

    Raises :class:`InputError` when the folder has a study file already, holds several tables and none was named, or a
    table cannot be read.

    Parameters
    ----------
    folder : of the study; created if it is missing
    table : the patch table; ``None`` for the one that is found in the folder
    """
    place = Path(folder)
    out = place / STUDY_FILE
    if place.exists() and not place.is_dir():
        raise InputError(f"folder: {place} is a file; name a folder.")
    if out.exists():
        raise InputError(f"folder: {out} exists already; remove it first to write a new one.")
    check_place("folder", out)
    found = _table(place, table)
    if found is None:
        text, notes = _without_table(place)
        write_atomically(out, text)
        return Started(path=out, table=None, notes=tuple(notes))
    data = load_table(found)
    text, notes = _with_table(place, found, data)
    write_atomically(out, text)
    return Started(path=out, table=_relative(found, place), notes=tuple(notes))


def _table(place: Path, named: str | Path | None) -> Path | None:
    if named is not None:
        if not Path(named).is_file():
            raise InputError(f"table: file {named} not found.")
        return Path(named)
    found = [p for p in sorted(place.glob("*")) if p.suffix.lower() in SUFFIXES and _is_patch_table(p)]
    if len(found) > 1:
        raise InputError(
            f"table: {', '.join(p.name for p in found)} could all be the patch table; choose one with --table."
        )
    return found[0] if found else None


def _is_patch_table(path: Path) -> bool:
    """Return whether a table says where pixels or features are."""
    try:
        if path.suffix.lower() == ".csv":
            columns = set(pd.read_csv(path, nrows=0).columns)
        else:
            columns = set(pyarrow.parquet.read_schema(path).names)
    except (OSError, ValueError):
        return False
    # A column slide without x and y is a group; windows of slides have coordinates.
    return bool(columns & {"image", "h5", "patch_id"} or columns >= {"slide", "x", "y"})


def _relative(path: Path, place: Path) -> str:
    try:
        return path.resolve().relative_to(place.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())


def _with_table(place: Path, path: Path, table: PatchTable) -> tuple[str, list[str]]:
    columns = [str(c) for c in table.frame.columns]
    notes = []
    group = next((name for name in GROUPS if name in columns), None)
    if group is None:
        notes.append("no column of patients: rows count as independent, and scores are too optimistic")
    label = next((name for name in ("label", "class", "target", "diagnosis") if name in columns), None)
    if label is None:
        notes.append("no column holds the main label: probe works without one, guide does not")
    whole = group is not None and bool(table.frame[group].notna().all())
    if group is not None and not whole:
        notes.append(f"column {group} has empty cells: probe needs a {group} for every patch")
    nuisances = [name for name in NUISANCES if name in columns]
    reserved = {*_NO_CONCEPT, *GROUPS, *NUISANCES, "split", label}
    rest = [name for name in columns if name not in reserved]
    numbers = [name for name in rest if table.kind(name) == "continuous" and table.frame[name].notna().any()]
    classes = [name for name in rest if table.kind(name) == "categorical" and 2 <= table.frame[name].nunique() <= 20]
    notes += [note for name in numbers if (note := table.looks_categorical(name))]
    groups = group if whole else None
    concepts = [name for name in (*numbers, *classes, *nuisances) if _can_be_read(table, name, groups, notes)]
    if not concepts:
        notes.append("no column looks like a concept: conceptkit measure adds some")
    lines = [
        f"# Study file of conceptkit for {path.name}: {len(table)} patches.",
        "# Every command finds it in the current folder, or by --study. Lines after # are remarks or choices.",
        "",
        f"table = {_quoted(_relative(path, place))}",
        "",
        "# The network: any name of timm's, a checkpoint's folder, hf-hub:…, or package.module:factory.",
        *_model(columns, notes),
        "",
        "# Column of patients or slides; no value of it is ever on both sides of a split.",
        f"group = {_quoted(group)}" if group else '# group = "patient"',
        "",
        "# Column of the main task.",
        f"label = {_quoted(label)}" if label else '# label = "label"',
        "",
        "[concepts]",
        "# Read by conceptkit probe.",
        f"probe = {_list(concepts)}",
        "# Concepts that conceptkit guide encourages and discourages: choose a few, by their probe scores.",
        f"# encourage = {_list([name for name in numbers if name in concepts][:2])}",
        f"# discourage = {_list(nuisances[:1])}",
        '# kind = { grade = "categorical" }',
        '# unit = { area_um2 = "µm²" }',
        "",
        *_splits(table, columns, notes),
    ]
    return "\n".join(lines).rstrip() + "\n", notes


def _can_be_read(table: PatchTable, name: str, group: str | None, notes: list[str]) -> bool:
    """Return whether a concept can be probed; if not, add a note that says why."""
    concept = table.concept(name)
    try:
        make_target(name, concept.kind, concept.values, table.groups(group))
    except InputError as error:
        notes.append(f"{name} is not in the list for probe. {error}")
        return False
    return True


def _model(columns: Sequence[str], notes: list[str]) -> list[str]:
    if "features" in columns:
        return ["# The table has its own features: no network is needed.", '# model = "inception_v3"']
    notes.append("the network is a first choice; conceptkit layers --model NAME lists the layers of another")
    return ['model = "inception_v3"', 'weights = "imagenet"', 'layers = ["mixed7", "mixed10"]']


def _splits(table: PatchTable, columns: Sequence[str], notes: list[str]) -> list[str]:
    usual = SplitNames()
    lines = [
        "# Needed by conceptkit guide: rows for training, validation and evaluation, with separate patients.",
        "[splits]",
    ]
    if "split" not in columns:
        notes.append("there is no split column: guide needs one with train, val and at least one more")
        return [lines[0], "# [splits]", '# column = "split"', '# train = "train"', '# val = "val"']
    values = [str(v) for v in dict.fromkeys(table.frame["split"].dropna())]
    for role, names in (("train", ("train", "training")), ("val", ("val", "valid", "validation", "dev"))):
        name = next((v for v in values if v.lower() in names), None)
        if name is None:
            notes.append(f"no value of the column split stands for {role}: {', '.join(values)}")
            lines.append(f'# {role} = "{getattr(usual, role)}"')
        else:
            lines.append(f"{role} = {_quoted(name)}")
    others = [v for v in values if v.lower() not in ("train", "training", "val", "valid", "validation", "dev")]
    read = "internal" if "internal" in others else others[0] if others else None
    lines.append(f"read = {_quoted(read)}" if read else '# read = "internal"')
    return lines


def _without_table(place: Path) -> tuple[str, list[str]]:
    """Return a file for a folder without a patch table, and the commands that make one from what lies there."""
    files = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else []
    slides = [p for p in files if p.suffix.lower() in SLIDE_SUFFIXES]
    images = [p for p in files if p.suffix.lower() in IMAGES]
    lists = [p for p in files if p.suffix.lower() in SUFFIXES]
    classes = {p.parent for p in (*slides, *images)}
    group = "patient"
    # Slides are also kept in one folder per center, but are larger than a few megabytes.
    patches = all(p.parent.parent == place and p.stat().st_size < _SMALLEST_SLIDE for p in (*slides, *images))
    if len(classes) > 1 and patches:
        steps = [f"conceptkit adapt classes {place} --out patches.csv"]
        found = f"{len(slides) + len(images)} images in {len(classes)} folders, which may be their classes"
    elif slides:
        pattern = f"{_relative(slides[0].parent, place)}/*{slides[0].suffix}".removeprefix("./")
        steps = [
            f"conceptkit tile {pattern} --tile-mpp 0.5 --out tiles.csv",
            "conceptkit measure tiles.csv --nuclei compact --out patches.csv",
        ]
        found = f"{len(slides)} slides"
        group = "group"  # where tile writes the slide; only its owner knows the patient
    elif images:
        steps = ["conceptkit measure images.csv --out patches.csv"]
        found = f"{len(images)} images; list them in images.csv first: image, mask, patient, mpp"
    else:
        steps = ["conceptkit measure images.csv --out patches.csv"]
        found = "no slides and no images"
    notes = [f"there is no patch table yet ({found})", *(f"next: {step}" for step in steps)]
    if lists:
        notes.append(f"{lists[0].name} does not say where pixels are: image, h5, or slide with x and y")
    text = [
        "# Study file of conceptkit. There was no patch table when it was written; make one:",
        *(f"#   {step}" for step in steps),
        'table = "patches.csv"',
        "",
        'model = "inception_v3"',
        'weights = "imagenet"',
        'layers = ["mixed7", "mixed10"]',
        "",
        "# Column of patients or slides; no value of it is ever on both sides of a split.",
        f"group = {_quoted(group)}",
        "",
        "[concepts]",
        'probe = ["count", "area_px", "contrast", "correlation"]',
    ]
    return "\n".join(text) + "\n", notes


def _quoted(text: str | None) -> str:
    """Return ``text`` as a basic string of TOML, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, names)) + "]"
