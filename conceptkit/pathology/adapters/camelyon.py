"""Camelyon16 and 17: patient, center and label of the tiles of their slides, from names and ``stage_labels.csv``."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError
from conceptkit.pathology.adapters import Adapted

_NODE = re.compile(r"patient_(\d{3})_node_(\d)")
_SIXTEEN = re.compile(r"(?i)(normal|tumor|test)_(\d{3})")

PATIENTS_PER_CENTER = 20


def camelyon(table: pd.DataFrame, *, stage_labels: Path | None = None, column: str = "group") -> Adapted:
    """Complete the table that ``conceptkit tile`` made of Camelyon slides.

    Parameters
    ----------
    table : tiles, with ``tumor_share`` and ``label`` where the slide has an annotation
    stage_labels : Camelyon17's file of ``patient`` (a slide's or patient's file name) and ``stage``
    column : holds the slide's name without suffix

    Returns
    -------
    The table with ``patient``, ``center`` (``0`` to ``4`` by patient number, ``camelyon16``), ``stage`` of the slide
    (Camelyon17) and ``label``: of slides that are negative or called normal all tiles are ``normal``; tiles of other
    slides have a label only where the slide has an annotation.

    Raises
    ------
    InputError
        when a slide is named unlike Camelyon's, or ``stage_labels.csv`` cannot be read
    """
    if column not in table:
        raise InputError(f"column: the table has no column {column!r} that names the slide of a tile.")
    stages = {} if stage_labels is None else read_stage_labels(stage_labels)
    described = {str(name): _describe(str(name), stages) for name in table[column].unique()}
    out = table.copy()
    for key in ("patient", "center", "stage"):
        out[key] = [described[str(name)][key] for name in table[column]]
    normal = pd.Series([described[str(name)]["normal"] == "yes" for name in table[column]], index=table.index)
    before = table["label"] if "label" in table else pd.Series([None] * len(table), index=table.index, dtype="str")
    drawn = table["tumor_share"].notna() if "tumor_share" in table else pd.Series(False, index=table.index)
    out["label"] = before.where(drawn, None).mask(normal & ~drawn, "normal")
    notes = []
    unlabelled = int(out["label"].isna().sum())
    if unlabelled:
        notes.append(
            f"{unlabelled} of {len(out)} tiles have no label: their slide holds tumor and has no annotation, or their "
            "share of tumor lies between."
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


def _describe(name: str, stages: dict[str, str]) -> dict[str, str | None]:
    if found := _NODE.fullmatch(name):
        number = int(found[1])
        stage = stages.get(name)
        normal = "yes" if stage == "negative" else "no"
        return {"patient": found[1], "center": str(number // PATIENTS_PER_CENTER), "stage": stage, "normal": normal}
    if found := _SIXTEEN.fullmatch(name):
        normal = "yes" if found[1].lower() == "normal" else "no"
        return {"patient": f"camelyon16_{name.lower()}", "center": "camelyon16", "stage": None, "normal": normal}
    raise InputError(
        f"slide: {name} is named neither as Camelyon17's patient_000_node_0 nor as Camelyon16's tumor_001."
    )
