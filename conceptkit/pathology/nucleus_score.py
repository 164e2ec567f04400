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


# What benchmarks/fit_nucleus_score.py printed: 10 images, 29472 regions, R² 0.633
# fmt: off
LOW = (
    -1.792, 0.3369, 0.2724, 0.1185, 0.1617, 0.144, 0.08752, 0.03792, -0.1233, 0.07856,
)
"""Lowest value of each feature (0.5th percentile) among the regions fitted on."""

HIGH = (
    1.83, 0.9894, 0.9849, 0.9638, 1.164, 1.064, 1.493, 0.3723, 0.08793, 1.092,
)
"""Highest value of each feature (99.5th percentile)."""

WEIGHTS = (
    0.3464, 0.0008591, 0.333, -0.0464, 0.008011, -0.08337, 0.02518, -0.1409, -0.04876, -0.004086, 0.03338, -0.1457,
    0.02296, 0.05961, -0.06858, -0.04068, -0.04318, 0.0898, -0.06815, -0.1198, -0.03118, 0.1018, -0.03717, 0.2245,
    0.04896, -0.1117, 0.0504, 0.0305, -0.0371, -0.08472, -0.1119, -0.04129, 0.03039, 0.01923, -0.02112, -0.01702,
    -0.05175, 0.002721, -0.1091, 0.06231, 0.05823, 0.05946, -0.08211, -0.04791, -0.03635, -0.02816, -0.08981, 0.08064,
    0.02731, 0.01064, 0.105, -0.02879, -0.03039, -0.05246, 0.04365, 0.002457, 0.02034, -0.02434, 0.06932, -0.1197,
    -0.04807, -0.00105, 0.1259, -0.001372, -0.03597, -0.1304,
)
"""What each of :func:`terms` counts."""
# fmt: on
