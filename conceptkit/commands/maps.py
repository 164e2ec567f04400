"""Maps: a checkpoint's predictions drawn where the patches of each slide or image lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import replacing
from conceptkit.images.image_files import read_rgb
from conceptkit.models.guided import MAIN, Task
from conceptkit.pathology.slides import open_slide
from conceptkit.records import GridRecord, GuideRecord, load_record
from conceptkit.report.drawing import file_name, to_bytes
from conceptkit.report.slide_maps import MapLayer, Place, slide_map
from conceptkit.report.verdicts import READABLE_ABOVE_CHANCE
from conceptkit.report.wording import as_float, is_finite, number
from conceptkit.tables.patches import PatchTable

WHOLES = ("slide", "image")
"""Columns that name the slide or image of a patch; the first one present is used"""

PICTURE = 900
"""Longer side of the picture next to the maps, in pixels"""


def check_maps(table: PatchTable, folder: Path) -> str:
    """Return the column that names the whole of each patch; refuse what cannot be drawn, before the work.

    Raises :class:`InputError` when the table does not say where patches lie, or nothing can be written into the folder.
    """
    columns = set(table.frame.columns)
    whole = next((name for name in WHOLES if name in columns), None)
    absent = [name for name in ("x", "y", "size") if name not in columns]
    if whole is None or absent:
        needed = ", ".join([*absent, *([" or ".join(WHOLES)] if whole is None else [])])
        raise InputError(f"map: a map needs columns that say where patches lie; the table has no {needed}.")
    if not table.frame[["x", "y", "size", whole]].notna().all(axis=1).any():
        raise InputError(f"map: no row has values in all of x, y, size and {whole}.")
    if folder.is_file():
        raise InputError(f"map: {folder} is a file; name a folder.")
    check_place("map", folder)
    return whole


@dataclass(frozen=True)
class HeldOut:
    """The held-out score of one prediction."""

    text: str
    above_chance: bool


PREDICTED = "_predicted"
"""End of the name of a column that holds a predicted concept"""

UNKNOWN = HeldOut("held-out score unknown", above_chance=True)
"""Used when the checkpoint has no record next to it"""


def held_out_scores(checkpoint: Path, tasks: Sequence[Task]) -> dict[str, HeldOut]:
    """Return column of the predictions → its held-out score, from the record of the run that wrote the checkpoint.

    Empty if the checkpoint is not in its run folder.
    """
    try:
        record = load_record(checkpoint.resolve().parents[1])
    except (InputError, OSError, IndexError):
        return {}
    if not isinstance(record, GuideRecord | GridRecord):
        return {}
    run = next((run for run in record.runs if Path(run.checkpoint).name == checkpoint.resolve().name), None)
    if run is None:
        return {}
    found: dict[str, HeldOut] = {}
    for task in tasks:
        if task.name == MAIN:
            value = run.metrics.get(record.evaluated_on, run.metrics.get("overall", {})).get("auc")
            columns, measure, chance = [f"probability_{name}" for name in task.classes], "AUC", 0.5
        else:
            value, columns = run.concepts.get(task.name, {}).get("head"), [task.name + PREDICTED]
            measure, chance = ("balanced accuracy", 1 / len(task.classes)) if task.classes else ("R²", 0.0)
        if is_finite(value):
            text = f"held-out {measure} = {number(value)} ({record.evaluated_on})"
            found |= dict.fromkeys(columns, HeldOut(text, as_float(value) > chance + READABLE_ABOVE_CHANCE))
    return found


def write_maps(
    frame: pd.DataFrame,
    table: PatchTable,
    predicted: Sequence[str],
    folder: Path,
    *,
    units: Mapping[str, str] | None = None,
    scores: Mapping[str, HeldOut] | None = None,
) -> list[Path]:
    """Draw every slide's predictions and return the pictures' paths; rows without a place are skipped.

    Parameters
    ----------
    frame : predictions, a row per row of ``data``
    predicted : columns of it that are drawn
    folder : of the pictures, one per slide, named after it
    units : of concepts
    scores : held-out scores of the predictions, as far as they are known
    """
    whole = check_maps(table, folder)
    places = table.frame[[whole, "x", "y", "size"]].reset_index(drop=True)
    known = places[places.notna().all(axis=1)]
    ranges: dict[str, dict[str, Any]] = {}
    for name in predicted:
        if name.startswith("probability_"):
            ranges[name] = {"low": 0.0, "high": 1.0}
        elif frame[name].dtype.kind == "f":
            low, high = (float(v) for v in np.nanquantile(frame[name], [0.02, 0.98]))
            ranges[name] = {"low": low, "high": high if high > low else low + 1.0}
        else:
            ranges[name] = {"classes": tuple(sorted({str(v) for v in frame[name]}))}
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(list(dict.fromkeys(known[whole].astype(str))))
    paths = []
    for value, rows in known.groupby(known[whole].astype(str), sort=True).indices.items():
        at = known.index.to_numpy()[rows]
        layers = [
            MapLayer(
                name=_title(name),
                values=frame[name].to_numpy()[at],
                unit=(units or {}).get(name, ""),
                score=(scores or {}).get(name, UNKNOWN).text,
                established=(scores or {}).get(name, UNKNOWN).above_chance,
                **ranges[name],
            )
            for name in predicted
        ]
        drawing = slide_map(_place(table, known.loc[at], str(value), names[str(value)]), layers)
        path = folder / f"{names[str(value)]}.png"
        with replacing(path) as temporary:
            temporary.write_bytes(to_bytes(drawing.figure, kind="png", dpi=150))
        paths.append(path)
    return paths


def _title(name: str) -> str:
    probability = name.removeprefix("probability_")
    if probability != name:
        return f"probability of {probability}"
    concept = name.removesuffix(PREDICTED)
    return name if concept == name else f"{concept}, predicted"


def _names(wholes: Sequence[str]) -> dict[str, str]:
    """Return slide → name of its picture: that of the file without suffix, with a number where two are alike."""
    found: dict[str, str] = {}
    for whole in wholes:
        stem = file_name(Path(whole).stem)
        number, name = 2, stem
        while name in found.values():
            name, number = f"{stem}-{number}", number + 1
        found[whole] = name
    return found


def _place(table: PatchTable, rows: pd.DataFrame, value: str, name: str) -> Place:
    """Return where the patches lie, with a picture of the whole where its file can be read."""
    x, y, size = (rows[column].to_numpy(dtype=float) for column in ("x", "y", "size"))
    path = table.folder / value
    if not path.is_file() or (x < 0).any() or (y < 0).any():
        return Place(name=name, x=x, y=y, size=size)
    try:
        if table.location == "slide":
            with open_slide(path) as slide:
                pixels, _ = slide.picture()
                width, height = slide.width, slide.height
        else:
            pixels = read_rgb(path)
            height, width = pixels.shape[:2]
    except InputError:  # a map without tissue is still a map
        return Place(name=name, x=x, y=y, size=size)
    small = Image.fromarray(pixels)
    small.thumbnail((PICTURE, PICTURE))
    picture = np.asarray(small)
    return Place(name=name, x=x, y=y, size=size, picture=picture, width=float(width), height=float(height))
