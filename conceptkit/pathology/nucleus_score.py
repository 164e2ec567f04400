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


# What benchmarks/fit_nucleus_score.py printed: 10 images, 29559 regions, R² 0.631
# fmt: off
LOW = (
    -1.792, 0.3371, 0.2637, 0.1179, 0.161, 0.1436, 0.0865, 0.03753, -0.1257, 0.07706,
)
"""Lowest value of each feature (0.5th percentile) among the regions fitted on."""

HIGH = (
    1.834, 0.9895, 0.9847, 0.967, 1.16, 1.062, 1.494, 0.371, 0.08626, 1.088,
)
"""Highest value of each feature (99.5th percentile)."""

WEIGHTS = (
    0.3425, 0.0001995, 0.3356, -0.04127, 0.009369, -0.08331, 0.02234, -0.1439, -0.04935, -0.00562, 0.0331, -0.1489,
    0.02555, 0.0599, -0.06862, -0.03669, -0.04875, 0.08973, -0.06421, -0.1191, -0.03152, 0.1036, -0.03819, 0.2265,
    0.05211, -0.1114, 0.04964, 0.0261, -0.03501, -0.08324, -0.1152, -0.04304, 0.02996, 0.02018, -0.01567, -0.01501,
    -0.04964, 0.001998, -0.1059, 0.06403, 0.05402, 0.06189, -0.0854, -0.04772, -0.03838, -0.02929, -0.08976, 0.07884,
    0.0258, 0.006861, 0.1028, -0.02443, -0.02991, -0.04411, 0.04487, -0.001528, 0.02284, -0.0227, 0.07039, -0.1223,
    -0.04725, 0.001252, 0.1211, -0.001067, -0.03552, -0.1236,
)
"""What each of :func:`terms` counts."""
# fmt: on
