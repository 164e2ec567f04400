"""Camelyon16 and 17: patient, center and label of the tiles of their slides, from names and ``stage_labels.csv``."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError
from conceptkit.pathology.adapters import Adapted
from conceptkit.tables.patches import load_table

_NODE = re.compile(r"patient_(\d{3})_node_(\d)")
_SIXTEEN = re.compile(r"(?i)(normal|tumor|test)_(\d{3})")

PATIENTS_PER_CENTER = 20


def camelyon(tiles: Path, *, out: Path, stage_labels: Path | None = None, column: str = "group") -> Adapted:
    """Complete tiles of Camelyon16 and 17: patient, center, stage, labels of negative slides.

    Parameters
    ----------
    tiles : the table that ``tile`` made of the slides, in the folder of ``out``
    stage_labels : Camelyon17's stage_labels.csv
    column : column with the slide's name

    Returns
    -------
    As :func:`complete`

    Raises
    ------
    InputError
        when a slide is not named as in Camelyon, or a file cannot be read
    """
    if out.resolve().parent != tiles.resolve().parent:
        raise InputError(f"out: must lie in the folder of {tiles}, from which its paths are read; got {out}.")
    return complete(load_table(tiles).frame, stage_labels=stage_labels, column=column)


def complete(table: pd.DataFrame, *, stage_labels: Path | None = None, column: str = "group") -> Adapted:
    """Complete the table that ``conceptkit tile`` made of Camelyon slides.

    Parameters
    ----------
    table : tiles, with ``tumor_share`` and ``label`` where the slide has an annotation
    stage_labels : Camelyon17's file of ``patient`` (file name of a slide or patient) and ``stage``
    column : holds the slide's name without suffix

    Returns
    -------
    The table with ``patient``, ``center`` (``0`` to ``4`` by patient number, ``camelyon16``), ``stage`` of the slide
    (Camelyon17) and ``label``: all tiles of negative or normal slides are ``normal``; tiles of other slides have a
    label only where the slide has an annotation.
    """
    if column not in table:
        raise InputError(f"column: {column!r} not found in the table; name the column with the slide of a tile.")
    stages = {} if stage_labels is None else read_stage_labels(stage_labels)
    described = {str(name): _describe(str(name), stages) for name in table[column].unique()}
    out = table.copy()
    for key in ("patient", "center", "stage"):
        out[key] = [described[str(name)][key] for name in table[column]]
    normal = pd.Series([described[str(name)]["normal"] for name in table[column]], index=table.index, dtype=bool)
    before = table["label"] if "label" in table else pd.Series([None] * len(table), index=table.index, dtype="str")
    annotated = table["tumor_share"].notna() if "tumor_share" in table else pd.Series(False, index=table.index)
    out["label"] = before.where(annotated, None).mask(normal & ~annotated, "normal")
    notes = []
    unlabelled = int(out["label"].isna().sum())
    if unlabelled:
        notes.append(
            f"{unlabelled} of {len(out)} tiles have no label: their slide holds tumor and has no annotation, or their "
            "share of tumor is neither low nor high."
        )
    if out["stage"].isna().all():
        out = out.drop(columns="stage")
    return Adapted(out, tuple(notes))


def read_stage_labels(path: Path) -> dict[str, str]:
    """Return slide or patient → stage (``negative``, ``itc``, ``micro``, ``macro``; ``pN0`` … of patients)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {Path(row["patient"]).stem: row["stage"].strip() for row in rows}
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"stage_labels: {path} must be a CSV with the columns patient and stage ({type(error).__name__})."
        ) from None


def _describe(name: str, stages: dict[str, str]) -> dict[str, str | bool | None]:
    if match := _NODE.fullmatch(name):
        center, stage = str(int(match[1]) // PATIENTS_PER_CENTER), stages.get(name)
        return {"patient": match[1], "center": center, "stage": stage, "normal": stage == "negative"}
    if match := _SIXTEEN.fullmatch(name):
        normal = match[1].lower() == "normal"
        return {"patient": f"camelyon16_{name.lower()}", "center": "camelyon16", "stage": None, "normal": normal}
    raise InputError(
        f"slide: must be named as in Camelyon17 (patient_000_node_0) or Camelyon16 (tumor_001), got {name}."
    )
