"""Correction of p-values for many tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests


def adjust_for_many(p: Sequence[float | None]) -> list[float]:
    """Return q, p adjusted by Benjamini and Hochberg (1995); NaN where p is ``None`` or NaN."""
    values = np.asarray(p, dtype=np.float64)  # None becomes NaN
    tested = np.isfinite(values)
    out = np.full(len(values), np.nan)
    if tested.any():
        out[tested] = multipletests(values[tested], method="fdr_bh")[1]
    return [float(v) for v in out]
