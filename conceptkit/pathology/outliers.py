"""A warning where a few values rule a concept's spread: z-scored, all others would be crushed into one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RATIO = 5.0
"""Standard deviation over the one that the middle half implies, from which on a concept is pointed out."""


def outlier_note(name: str, values: NDArray[np.float64]) -> str | None:
    """Return a sentence when outliers rule the spread of (n,) values, ``None`` when they do not."""
    values = values[np.isfinite(values)]
    if len(values) < 20:
        return None
    low, middle, high = np.percentile(values, (25, 50, 75))
    expected = (high - low) / 1.349  # of a normal distribution
    spread = values.std()
    if expected <= 0 or spread <= RATIO * expected:
        return None
    far = values[np.abs(values - middle) > 10 * expected]
    if len(far) == 0 or len(far) > len(values) / 20:
        return None  # a long tail or two groups, no outliers
    return (
        f"{name}: {len(far)} of {len(values)} values lie far out (up to {far[np.abs(far - middle).argmax()]:.4g}, the "
        f"median is {middle:.4g}) and rule its standard deviation; z-scored, the others would hardly differ."
    )


def outlier_notes(values: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Return :func:`outlier_note` of every concept, name → (n,) values, that has one."""
    return [note for name, found in values.items() if (note := outlier_note(name, found))]
