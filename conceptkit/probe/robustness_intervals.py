"""Intervals of robustness indices: over patients with the centers fixed, and over centers."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from conceptkit.evaluate.clustering import effective_size
from conceptkit.evaluate.intervals import coverage_note, jackknife_error, student_p, student_reach
from conceptkit.evaluate.paired import PairedInterval
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.neighbours import Codes, Cohort
from conceptkit.probe.robustness import Index

SHARES = ("RI", "MaRI", "CRoMa below 0")
"""Indices between 0 and 1"""

LEAST_CENTERS = 10
"""Minimum number of centers of an interval over centers"""


def over_patients(index: Index, cohort: Cohort, against: Index | None = None) -> PairedInterval:
    """Return the index, or its difference to ``against``, with a 95 % interval over patients, the centers fixed.

    It holds for other patients of the same centers, as many as here: an index depends on their number, since
    neighbours come nearer. The standard error is the delete-one-patient jackknife within centers (strata),
    √(Σ_c (n_c−1)/n_c Σ_i (θ₋ᵢ − θ̄₋)²), and the quantile Student's with Satterthwaite's degrees of freedom, at most
    Kish's effective number of patients less the number of strata. Shares (:data:`SHARES`) are on the logit, as they are
    skewed. A deleted patient is replaced among the neighbours of all other rows. A bootstrap would draw a patient
    several times and make it its own neighbour; one that keeps the neighbours fixed misses half of the variation.

    Parameters
    ----------
    against : the same index of other features of the same rows

    Returns
    -------
    NaN ends where the index is undefined without one of the patients
    """
    deleted = index.without_patient if against is None else index.without_patient - against.without_patient
    value = index.value if against is None else index.value - against.value
    strata = strata_of(cohort)
    sizes = np.bincount(cohort.patient).astype(np.float64)
    effective, n = effective_size(sizes), len(sizes)
    if not np.isfinite(deleted).all() or not np.isfinite(value):
        why = "no interval: the index is undefined without one of the patients"
        return PairedInterval(value, float("nan"), float("nan"), n, why, effective)
    note = coverage_note(n, effective=effective)
    error, freedom = stratified_error(deleted, strata)
    p = student_p(value, error, min(effective - len(np.unique(strata)), freedom) + 1)
    on_logit = against is None and index.name in SHARES and min(value, *deleted) > 0 and max(value, *deleted) < 1
    middle = value
    if on_logit:
        middle = logit(value)
        error, freedom = stratified_error(logit(deleted), strata)
    reach = student_reach(min(effective - len(np.unique(strata)), freedom) + 1) * error
    low, high = (float(expit(end)) if on_logit else float(end) for end in (middle - reach, middle + reach))
    return PairedInterval(value, low, high, n, note, effective, p)


def stratified_error(deleted: Floats, strata: Codes) -> tuple[float, float]:
    """Return the jackknife standard error and its degrees of freedom, from the statistic without each unit (u,).

    Parameters
    ----------
    strata : (u,) of two units or more each

    Source
    ------
    Satterthwaite, 1946, for the degrees of freedom (Σ v_c)²/Σ v_c²/(n_c−1) of the sum of the strata's variances v_c
    """
    variances, units = (
        np.array(values, dtype=np.float64)
        for values in zip(
            *((jackknife_error(deleted[strata == one]) ** 2, (strata == one).sum()) for one in np.unique(strata)),
            strict=True,
        )
    )
    total = float(variances.sum())
    freedom = total**2 / float((variances**2 / (units - 1)).sum()) if total > 0 else float(len(deleted) - len(units))
    return float(np.sqrt(total)), freedom


def strata_of(cohort: Cohort) -> Codes:
    """Return the stratum of each patient (p,): its center; centers of one patient share one with the smallest other.

    Sharing makes the interval wider, not narrower (collapsed strata; Cochran, 1977, section 5A.12).
    """
    center = cohort.center_of_patient
    counts = np.bincount(center, minlength=len(cohort.centers))
    single = np.flatnonzero(counts == 1)
    if not len(single):
        return center
    others = np.flatnonzero(counts > 1)
    shared = single if len(single) > 1 or not len(others) else [*single, others[counts[others].argmin()]]
    return np.where(np.isin(center, shared), len(counts), center)


def over_centers(index: Index, against: Index | None = None) -> PairedInterval | None:
    """Return the index, or its difference, with a 95 % interval over centers; ``None`` below ten centers.

    It holds for other centers with their patients. The standard error is the delete-one-center jackknife.
    """
    deleted = index.without_center if against is None else index.without_center - against.without_center
    value = index.value if against is None else index.value - against.value
    n = len(deleted)
    if n < LEAST_CENTERS or not np.isfinite(deleted).all():
        return None
    error = jackknife_error(deleted)
    reach = student_reach(n) * error
    return PairedInterval(value, value - reach, value + reach, n, None, float(n), student_p(value, error, n))
