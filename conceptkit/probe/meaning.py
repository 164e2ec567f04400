"""Whether predictions mean their concept: entanglement with other concepts, and the verdict by stated bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import effective_number
from conceptkit.evaluate.intervals import jackknife_error, student_reach
from conceptkit.evaluate.scores import Floats
from conceptkit.records.meaning import (
    INSEPARABLE,
    LEAST_AGREEMENT,
    LEAST_GAIN,
    MOST_CHANGE,
    SHARE,
    Meaning,
    MeaningVerdict,
)

_ROUNDING = 1e-10
"""Share of a variance that is rounding error"""


def entanglement(predicted: Floats, y: Floats, others: Mapping[str, Floats], units: NDArray[np.intp]) -> dict[str, Any]:
    """Return which other concept explains most of the predictions, as fields of :class:`.records.meaning.Meaning`.

    With r the correlations of prediction p, concept y and other concept z, the partial correlation is
    (r_py − r_pz r_yz) / √((1 − r_pz²)(1 − r_yz²)). A prediction y + e with an independent error e of the same score
    has the squared partial correlation (1 − r_yz²) / (1 − r_yz² + (1 − r_py²) / r_py²); the other concept is the one
    for which the observed one is the smallest share of that.

    Parameters
    ----------
    predicted, y : (n,) held-out predictions and values
    others : other concept → (n,), NaN where missing
    units : (n,) numbers of patients, which the jackknife deletes

    Returns
    -------
    empty without another concept that varies apart from this one
    """
    found: list[dict[str, Any]] = []
    for name, z in others.items():
        known = np.isfinite(z)
        if known.sum() < 3 or np.ptp(z[known]) == 0 or np.ptp(predicted[known]) == 0:
            continue
        fields = _partial(predicted[known], y[known], z[known], np.unique(units[known], return_inverse=True)[1])
        found.append({"against": name, **fields})
    found = [one for one in found if np.isfinite(one["partial"])]
    return min(found, key=lambda one: one["partial"] / one["expected"], default={})


def _partial(p: Floats, y: Floats, z: Floats, units: NDArray[np.intp]) -> dict[str, float]:
    columns = np.stack([(v - v.mean()) / max(v.std(), np.finfo(float).tiny) for v in (p, y, z)], axis=1)
    D = np.column_stack([np.ones(len(p)), columns])
    sums = np.zeros((int(units.max()) + 1, 4, 4))
    np.add.at(sums, units, D[:, :, None] * D[:, None, :])
    with np.errstate(invalid="ignore", divide="ignore"):
        own, cross, related, partial = (float(v) for v in _correlations(sums.sum(0)))
        deleted = np.arctanh(_correlations(sums.sum(0) - sums)[3])
        reach = student_reach(effective_number(units)) * jackknife_error(deleted)
        low, high = np.tanh(np.arctanh(partial) - reach), np.tanh(np.arctanh(partial) + reach)
    left = 1 - related**2
    return {
        "related": related**2,
        "own": own**2,
        "cross": cross**2,
        "partial": _signed(partial),
        "partial_low": _signed(float(low)),
        "partial_high": _signed(float(high)),
        "expected": left / (left + (1 - own**2) / own**2) if own else np.nan,
    }


def _correlations(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return r_py, r_pz, r_yz and the partial r_py given z, of sums (…, 4, 4) of products of 1, p, y and z."""
    n, means = sums[..., 0, 0], sums[..., 0, 1:] / sums[..., 0, 0][..., None]
    spread = sums[..., 1:, 1:] / n[..., None, None] - means[..., :, None] * means[..., None, :]
    scale = np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1))
    r = spread / (scale[..., :, None] * scale[..., None, :])
    py, pz, yz = r[..., 0, 1], r[..., 0, 2], r[..., 1, 2]
    left = (1 - pz**2) * (1 - yz**2)
    # Nothing is left of a prediction that is the other concept itself.
    partial = np.divide(py - pz * yz, np.sqrt(np.maximum(left, 0)), out=np.zeros_like(left), where=left > _ROUNDING)
    return py, pz, yz, np.clip(partial, -1 + 1e-12, 1 - 1e-12)


def _signed(r: float) -> float:
    return float(np.sign(r) * r * r)


def pattern_cosine(first: Floats, second: Floats, scale: Floats) -> float:
    """Return the cosine between two patterns (d,) of activations divided by ``scale`` (d,)."""
    a, b = first / scale, second / scale
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else float("nan")


def judged(meaning: Meaning, *, at_nuclei: bool) -> Meaning:
    """Return the row with its verdict.

    *unstable*: refits agree by less than :data:`LEAST_AGREEMENT`, or a disturbance changes the prediction by more than
    :data:`MOST_CHANGE`. *correlated*: less than :data:`SHARE` of the expected partial score is left (upper end of the
    interval), or the map of a concept of nuclei gains less than :data:`LEAST_GAIN` (upper end). *aligned*: the lower
    ends lie above that share and above no gain, as far as tested, and at least one was tested. Else *undecided*, also
    where the other concept is nearly the same (:data:`INSEPARABLE`) or the concept is not decoded.

    Parameters
    ----------
    at_nuclei : whether the concept is measured on nuclei, so that its map should follow them
    """
    return dataclasses.replace(meaning, verdict=_verdict(meaning, at_nuclei))


def _verdict(meaning: Meaning, at_nuclei: bool) -> MeaningVerdict:
    if not meaning.decoded:
        return "undecided"
    if meaning.agreement is not None and meaning.agreement < LEAST_AGREEMENT:
        return "unstable"
    if max(meaning.changes.values(), default=0.0) > MOST_CHANGE:
        return "unstable"
    tests: list[bool | None] = []  # passed, failed, or neither
    if meaning.share is not None:
        _, low, high = meaning.share
        apart = meaning.related is not None and meaning.related < INSEPARABLE
        tests.append(None if not apart else True if low > SHARE else False if high < SHARE else None)
    if at_nuclei and meaning.gain_low is not None and meaning.gain_high is not None:
        tests.append(True if meaning.gain_low > 0 else False if meaning.gain_high < LEAST_GAIN else None)
    if False in tests:
        return "correlated"
    return "aligned" if tests and None not in tests else "undecided"
