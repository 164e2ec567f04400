"""Remedies against the center, priced: each fitted in training parts only, and compared with doing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from conceptkit.errors import InputError, check_distinct
from conceptkit.evaluate.paired import PairedInterval, paired_interval
from conceptkit.evaluate.scores import Floats
from conceptkit.families import REMEDIES
from conceptkit.files.matrix import rows_of
from conceptkit.probe.neighbours import Cohort, find_neighbours
from conceptkit.probe.remedies import Remedy, Rows, price
from conceptkit.probe.robustness import Index, RobustnessIndices, indices_of
from conceptkit.probe.robustness_intervals import over_patients
from conceptkit.records.remedies import RemedyRow

NOTHING = "nothing"
"""The remedy that the others are compared with"""


def chosen_remedies(names: Sequence[str], *, has_pixels: bool) -> dict[str, Remedy]:
    """Return the remedies by name, with ``nothing`` first; none without names.

    Raises
    ------
    InputError
        when a name is unknown or repeated, or a remedy of pixels is named and features do not come from pixels
    """
    if not names:
        return {}
    check_distinct("remedies", names)
    chosen = {name: REMEDIES.choose("remedies", name) for name in dict.fromkeys((NOTHING, *names))}
    of_pixels = [name for name, remedy in chosen.items() if remedy.pixels]
    if of_pixels and not has_pixels:
        raise InputError(
            f"remedies: {of_pixels[0]} changes pixels, and features from files cannot be computed again; name a "
            "network with --model."
        )
    return chosen


def rows_of_cohort(cohort: Cohort, concepts: Mapping[str, Floats]) -> Rows:
    """Return the rows whose features are changed; concepts are (n,) values, NaN where missing."""
    return Rows(label=cohort.label, center=cohort.center, patient=cohort.patient, concepts=concepts)


def remedy_rows(
    X: Any,
    remedies: Mapping[str, Remedy],
    changed: Mapping[str, Any],
    cohort: Cohort,
    concepts: Mapping[str, Floats],
    *,
    candidates: Sequence[int],
    nearest: int = 5,
    folds: int = 5,
    seed: int = 0,
    place: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[RemedyRow]:
    """Yield every score of every remedy, with its paired difference to doing nothing.

    Indices of robustness are those of features that are each changed by the remedy fitted without their fold, with the
    number of neighbours that was chosen before.

    Parameters
    ----------
    X : (n, d) features of the cohort's rows
    changed : remedy of pixels → features (n, d) of the changed patches
    candidates, nearest : numbers of neighbours of the indices
    place : encoder and layer
    progress : receives the number of remedies done and in total
    """
    rows = rows_of_cohort(cohort, concepts)
    everything = np.arange(len(cohort.label))
    before: tuple[Mapping[str, Any], RobustnessIndices] | None = None
    for step, (name, remedy) in enumerate(remedies.items()):
        own, other = (np.asarray(rows_of(A, everything), np.float64) for A in (X, changed.get(name, X)))
        plain, copies = (own, other) if remedy.augments else (other, None)
        priced = price(plain, remedy, rows, copies=copies, folds=folds, seed=seed)
        of_k = candidates if before is None else [before[1].k]
        near = find_neighbours(priced.corrected, cohort, k=max(of_k), m=nearest)
        now = priced.scores, indices_of(near, of_k)
        about = {**place, "remedy": name, "transductive": remedy.transductive}
        for measure, scored in now[0].items():
            change = None if before is None else paired_interval([scored], [before[0][measure]])
            yield _row(about, measure, scored.value, change, len(scored.deleted))
        for measure, index in now[1].indices.items():
            yield _row(about, measure, index.value, _change(index, cohort, before), len(index.without_patient))
        before = before or now
        if progress is not None:
            progress(step + 1, len(remedies))


def _change(
    index: Index, cohort: Cohort, before: tuple[Mapping[str, Any], RobustnessIndices] | None
) -> PairedInterval | None:
    return None if before is None else over_patients(index, cohort, before[1].indices[index.name])


def _row(
    about: Mapping[str, Any], measure: str, value: float, change: PairedInterval | None, n_groups: int
) -> RemedyRow:
    known: dict[str, float] = (
        {} if change is None else {"difference": change.mean, "low": change.low, "high": change.high, "p": change.p}
    )
    return RemedyRow(
        **about,
        measure=measure,
        value=value,
        **_finite(known),
        n_groups=n_groups,
        interval_note=None if change is None else change.note,
    )


def _finite(values: Mapping[str, float]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
