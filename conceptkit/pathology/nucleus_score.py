"""How far a dark region will overlap a nucleus: a quadratic in ten numbers, fitted on ten annotated images."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def terms(features: Floats, low: Floats, high: Floats) -> Floats:
    """Return 1, the features scaled to -1 … 1 between ``low`` and ``high``, and their products, (k, 1 + d + d(d+1)/2).

    Values beyond are cut there: a region unlike all that were seen scores like the nearest that was.
    """
    scaled = 2 * (np.clip(features, low, high) - low) / (high - low) - 1
    d = scaled.shape[1]
    i, j = np.triu_indices(d)
    return np.concatenate([np.ones((len(scaled), 1)), scaled, scaled[:, i] * scaled[:, j]], axis=1)


def score(features: Floats) -> Floats:
    """Return the overlap over union that regions are expected to have with their nearest nucleus, (k,)."""
    low, high, weights = _fitted()
    return np.asarray(terms(features, low, high) @ weights)


@functools.cache
def _fitted() -> tuple[Floats, Floats, Floats]:
    return np.array(LOW), np.array(HIGH), np.array(WEIGHTS)


# What benchmarks/fit_nucleus_score.py printed: 10 MoNuSeg images, 42,629 regions, R² 0.63.
# fmt: off
LOW = (
    -1.792, 0.3371, 0.2673, 0.1206, 0.1688, 0.1477, 0.08067, 0.03816, -0.1258, 0.08329,
)
"""Lowest value of each feature (0.5th percentile) among the regions fitted on."""

HIGH = (
    1.824, 0.989, 0.9848, 0.9666, 1.158, 1.057, 1.494, 0.3688, 0.08531, 1.087,
)
"""Highest value of each feature (99.5th percentile)."""

WEIGHTS = (
    0.3452, -0.001035, 0.3259, -0.04002, 0.01044, -0.06606, 0.007388, -0.1437, -0.05702, -0.002275, 0.0433, -0.1462,
    0.02003, 0.06115, -0.06281, -0.002378, -0.07842, 0.08131, -0.07994, -0.1117, -0.02552, 0.1073, -0.03731, 0.2263,
    0.04632, -0.104, 0.04145, 0.02601, -0.03547, -0.08644, -0.114, -0.05005, 0.03531, 0.02415, -0.009223, -0.01747,
    -0.04963, 0.00475, -0.1072, 0.06208, 0.04949, 0.05686, -0.08702, -0.04782, -0.03594, -0.04469, -0.078, 0.06847,
    0.06279, 0.01266, 0.08347, -0.02285, -0.01505, -0.0704, 0.04227, 0.02803, 0.02171, -0.009496, 0.06644, -0.1207,
    -0.06074, -0.0004115, 0.1355, 0.004623, -0.03293, -0.1281,
)
"""What each of :func:`terms` counts."""
# fmt: on
