"""How a cohort that was not trained on differs from the training centers, in terms of concepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.commands.maps import PREDICTED
from conceptkit.evaluate.clustering import group_means
from conceptkit.evaluate.intervals import student_p
from conceptkit.evaluate.scores import Floats
from conceptkit.records import CONTEXT_FILE
from conceptkit.runs.context import text_of
from conceptkit.tables.patches import PatchTable

USUAL = 0.01
"""Share of the training patches outside the range of a concept, half of it at each end"""

_LEVEL = 0.05


@dataclass(frozen=True)
class Training:
    """What a run keeps of the rows that its vectors or networks were fitted on."""

    concepts: Mapping[str, Floats]
    """Continuous concept → (n,) values"""
    centers: NDArray[Any]
    """(n,) text, empty where unknown"""
    patients: NDArray[Any]
    """(n,) text, empty without groups"""


def read_training(folder: Path) -> Training | None:
    """Return what a run folder keeps of its rows; ``None`` where it keeps nothing."""
    if not (folder / CONTEXT_FILE).is_file():
        return None
    with h5py.File(folder / CONTEXT_FILE) as file:
        concepts = {
            name.replace("∕", "/"): np.asarray(values[:], dtype=np.float64)
            for name, values in file["concepts"].items()
            if values.dtype.kind == "f"
        }
        centers, patients = (file[f"rows/{name}"].asstr()[:] for name in ("center", "group"))
        used = file["rows/trained"][:] if "trained" in file["rows"] else np.ones(len(centers), dtype=bool)
    return Training({name: values[used] for name, values in concepts.items()}, centers[used], patients[used])


def run_of_checkpoint(checkpoint: str | Path) -> Path | None:
    """Return the run folder that a checkpoint was written in; ``None`` where it was moved out of it."""
    place = Path(checkpoint).resolve().parent
    return place.parent if place.name == "checkpoints" else None


def notes_of_new_centers(
    run: str | Path | None, table: PatchTable, predictions: pd.DataFrame | None = None
) -> list[str]:
    """Return how new centers of a table differ from the training centers of a run.

    Measured concepts of the table are compared where it has them, else the predictions.

    Parameters
    ----------
    run : folder of a probe or of a guided training; ``None`` where it is unknown
    predictions : column → (n,), such as ``area_predicted``
    """
    training = None if run is None else read_training(Path(run))
    if training is None:
        return []
    values = {}
    for name in training.concepts:
        if name in table.frame and table.kind(name) == "continuous":
            values[name] = table.concept(name).values
        elif predictions is not None and name + PREDICTED in predictions:
            values[name] = np.asarray(predictions[name + PREDICTED], dtype=np.float64)
    columns = [next((c for c in names if c in table.frame), None) for names in (("center",), ("group", "patient"))]
    centers, patients = (
        None if column is None else np.array(["" if v is None else v for v in text_of(table, "center", column)])
        for column in columns
    )
    return cohort_notes(training, values, centers, patients)


def cohort_notes(
    training: Training, values: Mapping[str, Floats], centers: NDArray[Any] | None, patients: NDArray[Any] | None
) -> list[str]:
    """Return a note per center of new patches that the training has not: concepts beyond every training center.

    A concept is named when the mean of its patients lies beyond that of the outermost training center by more than
    chance (Welch's test over patients, p below 0.05 over the number of concepts).

    Parameters
    ----------
    values : concept → (n,) of the new patches, NaN where missing
    centers : (n,) text; ``None`` where the table has none: all patches are one new center
    patients : (n,) text; ``None`` where the table has none: each patch counts
    """
    known = {name for name in training.centers if name}
    n = len(next(iter(values.values()), ()))
    where = np.array(["the cohort"] * n, dtype=object) if centers is None else centers
    units = np.arange(n).astype(str) if patients is None else patients
    shared = {name: found for name, found in values.items() if name in training.concepts}
    if not known or not shared:
        return []
    notes = []
    for center in dict.fromkeys(name for name in where if name and name not in known):
        here = where == center
        apart = [
            text
            for name, found in shared.items()
            for text in _beyond(name, found[here], units[here], training, len(shared))
        ]
        share = _out_of_range({name: found[here] for name, found in shared.items()}, training)
        if apart:
            title = "the cohort" if centers is None else f"center {center}"
            notes.append(
                f"NEW CENTER: {title} lies beyond all {len(known)} training centers: {'; '.join(apart)}. {share:.0%} "
                f"of its patches have a concept outside the range of the training patches ({USUAL:.0%} per concept is "
                "usual)."
            )
    return notes


def _beyond(name: str, found: Floats, units: NDArray[Any], training: Training, tested: int) -> Iterator[str]:
    """Yield how a concept differs from the outermost training center, if it does."""
    values = training.concepts[name]
    new = _of_patients(found, units)
    old = {}
    for center in dict.fromkeys(one for one in training.centers if one):
        rows = training.centers == center
        patients = training.patients[rows]
        old[center] = _of_patients(values[rows], patients if patients.any() else np.arange(rows.sum()).astype(str))
    old = {center: means for center, means in old.items() if len(means) > 1}
    if len(new) < 2 or not old:
        return
    level = {center: float(means.mean()) for center, means in old.items()}
    mean = float(new.mean())
    highest, lowest = max(level, key=level.__getitem__), min(level, key=level.__getitem__)
    if lowest != highest and level[lowest] <= mean <= level[highest]:
        return
    nearest, word = (highest, "above") if mean > level[highest] else (lowest, "below")
    other = old[nearest]
    errors = new.var(ddof=1) / len(new), other.var(ddof=1) / len(other)
    error = float(np.sqrt(sum(errors)))
    freedom = sum(errors) ** 2 / max(
        sum(e**2 / (len(a) - 1) for e, a in zip(errors, (new, other), strict=True)), 1e-300
    )
    if error > 0 and student_p(mean - level[nearest], error, freedom + 1) >= _LEVEL / tested:
        return
    change = mean - level[nearest]
    if np.nanmin(values) >= 0 and level[nearest] > 0 and mean > 0:
        ratio = mean / level[nearest]
        amount = f"{ratio:.2g} ×" if ratio >= 2 or ratio <= 0.5 else f"{abs(ratio - 1):.0%} {word}"
    else:
        amount = f"{abs(change) / np.nanstd(values):.2g} standard deviations {word}"
    yield f"{name} {amount} {nearest} ({mean:.4g}, there {level[nearest]:.4g})"


def _of_patients(values: Floats, patients: NDArray[Any]) -> Floats:
    """Return the mean of each patient, of finite values."""
    known = np.isfinite(values)
    if not known.any():
        return np.empty(0)
    codes = np.unique(patients[known], return_inverse=True)[1]
    return group_means(values[known][:, None], codes)[:, 0]


def _out_of_range(values: Mapping[str, Floats], training: Training) -> float:
    """Return the share of patches with a concept outside the inner 99 % of the training patches."""
    out = np.zeros(len(next(iter(values.values()))), dtype=bool)
    for name, found in values.items():
        low, high = np.nanquantile(training.concepts[name], (USUAL / 2, 1 - USUAL / 2))
        out |= (found < low) | (found > high)
    return float(out.mean())
